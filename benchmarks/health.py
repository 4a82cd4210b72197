"""Every row of the health acceptance table, simulated with known truth: ``python -m benchmarks.health [--quick]``.

Then what the snapshot costs (:mod:`benchmarks.health_api`) and the closed loop with real Envoys
(:mod:`benchmarks.health_live`), not with ``--quick``.

What is measured is the whole decision: detectors, guards and state machine of :mod:`health`, second by second, on many
services side by side. Times run from the onset of the fault to the decision (not to its effect in a proxy).
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks import health_worlds as worlds
from benchmarks.health_api import api
from benchmarks.health_dogma import measure
from benchmarks.health_dogma import report as detect_to_commit
from benchmarks.health_live import live
from health.detectors import detect
from health.machine import Ejector
from health.policy import Policy
from health.simulate import Outcome, Setup, World, run
from health.verdicts import Decision, FleetBudget, Guard, Kind, ServiceState, Situation, Topology
from health.window import Channel, ServiceWindow

DEFAULT = Policy()
SENSITIVE = replace(DEFAULT, error=replace(DEFAULT.error, min_excess=0.02))
ONSET_S = 130
"""Healthy for more than the longest ordinary window after the warm-up."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report.

    Attributes
    ----------
    held : None when no bar is set
    """

    name: str
    bar: str
    measured: str
    held: bool | None


def percentile(values: NDArray[np.float64], q: float) -> float:
    """Smallest value that at least q percent of the trials reach; inf when fewer ever do."""
    return float(np.percentile(values, q, method="inverted_cdf"))


def times(values: NDArray[np.float64]) -> str:
    """Share that ever got there, p50, p90."""
    found = float(np.isfinite(values).mean())
    return f"{found:.2f}, p50 {percentile(values, 50):g} s, p90 {percentile(values, 90):g} s"


def even_setup(policy: Policy, endpoints: int, observers: int = 20, **more: int) -> Setup:
    return Setup(policy, observers, endpoints, **more)


def detection(trials: int) -> Iterator[Row]:
    """D1 after a healthy history, 20 observers."""
    for name, policy, endpoints, rps, rates, bar, more in (
        ("15 % bad, 6 endpoints, 20 rps", DEFAULT, 6, 20.0, (0.15,), 7, {}),
        ("5 % bad, min_excess 2 %", SENSITIVE, 6, 20.0, (0.05,), 16, {}),
        ("100 % bad at 1 rps per endpoint", DEFAULT, 6, 1.0, (1.0,), 14, {}),
        ("15 % bad, 5 s scrape + 5 s batch", DEFAULT, 6, 20.0, (0.15,), 12, {"scrape_s": 5, "delay_s": 5}),
        ("100 % bad, 5 s scrape + 5 s batch", DEFAULT, 6, 20.0, (1.0,), 7, {"scrape_s": 5, "delay_s": 5}),
    ):
        world = worlds.fault(worlds.even(20, endpoints, rps), 0.001, rates, ONSET_S)
        out = run(even_setup(policy, endpoints, **more), world, trials, ONSET_S + 60, 1)
        waited = out.first(trials, ONSET_S, Kind.EJECTED)
        wrong = len(out.of(Kind.EJECTED, right=False))
        yield Row(
            f"eject: {name}",
            f"p90 <= {bar} s",
            f"{times(waited)}, {wrong} wrong",
            percentile(waited, 90) <= bar and not wrong,
        )
    world = worlds.fault(worlds.even(20, 10, 20.0), 0.001, (0.3,) * 4, ONSET_S)
    out = run(even_setup(DEFAULT, 10), world, trials, ONSET_S + 120, 1)
    wrong = len(out.of(Kind.EJECTED, right=False))
    convicted = [out.first(trials, ONSET_S, Kind.EJECTED, Kind.BLOCKED, endpoints=i) for i in (1, 4)]
    yield Row(
        "convict: 4 of 10 bad at 30 %, the first / all four",
        "p90 <= 5 s",
        f"{times(convicted[0])} / {times(convicted[1])}, {wrong} wrong",
        percentile(convicted[1], 90) <= 5 and not wrong,
    )
    ejected = [out.first(trials, ONSET_S, Kind.EJECTED, endpoints=i) for i in (1, 2, 3, 4)]
    yield Row(
        "eject: 4 of 10 bad at 30 %, 1st / 2nd / 3rd / 4th (guards rate, capacity)",
        "first p90 <= 5 s",
        " / ".join(f"{percentile(e, 90):g} s" for e in ejected) + f"; blocked by {guards(out)}",
        percentile(ejected[0], 90) <= 5,
    )
    dead = worlds.fault(worlds.even(20, 6, 20.0), 0.001, (1.0,), ONSET_S, refused=True)
    out = run(even_setup(DEFAULT, 6), dead, trials, ONSET_S + 60, 1)
    yield Row("eject: connections refused (D3)", "", times(out.first(trials, ONSET_S, Kind.EJECTED)), None)


def guards(out: Outcome) -> str:
    """Who refused how often (first refusals only)."""
    counts: Counter[Guard | None] = Counter(h.decision.guard for h in out.of(Kind.BLOCKED))
    return ", ".join(f"{guard} {n}" for guard, n in counts.most_common()) or "nobody"


def hours(
    name: str,
    policy: Policy,
    rate: NDArray[np.float64],
    world: World,
    endpoint_hours: int,
    *,
    limit: int | None,
    seconds: int = 3600,
    trials: int | None = None,
) -> Row:
    """Count wrong ejections over so many endpoint-hours."""
    observers, endpoints = rate.shape[-2:]
    trials = trials or max(1, math.ceil(endpoint_hours * 3600 / seconds / endpoints))
    out = run(Setup(policy, observers, endpoints), world, trials, seconds + 60, 7)
    wrong, right = out.of(Kind.EJECTED, right=False), out.of(Kind.EJECTED, right=True)
    text = f"{len(wrong)} wrong in {out.endpoint_hours:.0f} endpoint-hours"
    grey = len(out.of(Kind.EJECTED)) - len(wrong) - len(right)
    if right or grey:
        text += f", {len(right)} right, {grey} grey"
    suspects = len(out.of(Kind.SUSPECT, right=False))
    observers_broken = len(out.of(Kind.OBSERVER_BROKEN))
    text += f" ({suspects} suspected once, {observers_broken} observers doubted)"
    bar = "" if limit is None else f"{limit} wrong" if not limit else f"<= {limit} wrong"
    return Row(f"false: {name}", bar, text, None if limit is None else len(wrong) <= limit)


def false_ejections(scale: float) -> Iterator[Row]:
    """Nobody is bad."""
    r20, r1, r02 = worlds.even(20, 6, 20.0), worlds.even(20, 6, 1.0), worlds.even(20, 6, 0.2)
    each = round(250 * scale)
    for name, rate, failing in (
        ("healthy, 0.1 % at 20 rps", r20, 0.001),
        ("healthy, 1 % at 1 rps", r1, 0.01),
        ("healthy, 5 % at 1 rps", r1, 0.05),
        ("healthy, 1 % at 0.2 rps (300 s window)", r02, 0.01),
    ):
        yield hours(name, DEFAULT, rate, worlds.steady(rate, failing), each, limit=0)
    rate = worlds.even(20, 10, 20.0)
    n = max(1, round(6 * scale))
    yield hours("over-dispersed, Beta(2, 198), 20 rps", DEFAULT, rate, worlds.over_dispersed(rate, n, 5), 60, limit=2,
                trials=n)  # fmt: skip
    rate = worlds.even(20, 10, 1.0)
    yield hours("over-dispersed, Beta(2, 198), 1 rps", DEFAULT, rate, worlds.over_dispersed(rate, n, 5), 60, limit=2,
                trials=n)  # fmt: skip
    n = max(1, round(40 * scale))
    for rps in (20.0, 1.0):
        rate = worlds.even(20, 10, rps)
        world = worlds.common_cause(rate, 0.001, 0.3, ONSET_S, n, 3)
        yield hours(f"common cause, all at 30 % +- 10 %, {rps:g} rps", DEFAULT, rate, world, 40, limit=0, seconds=360,
                    trials=n)  # fmt: skip


def harder(scale: float) -> Iterator[Row]:
    """Traffic that is not Poisson, and changes that are not faults."""
    each = round(60 * scale)
    rate = worlds.even(20, 6, 20.0)
    n = max(1, each // 6)
    yield hours("autocorrelated load and ratios (log-AR(1), 60 s, 1 %)", DEFAULT, rate,
                worlds.autocorrelated(rate, n), each, limit=None, trials=n)  # fmt: skip
    yield hours("bursts of 6 x load with 5 % errors", DEFAULT, rate, worlds.bursty(rate, n), each, limit=None, trials=n)
    slow = worlds.even(20, 6, 1.0)
    yield hours("the same bursts at 1 rps", DEFAULT, slow, worlds.bursty(slow, n), each, limit=None, trials=n)
    yield hours("noisy neighbour, 3 % for 20 s", DEFAULT, rate, worlds.noisy_neighbour(rate, n), each, limit=None,
                trials=n)  # fmt: skip
    yield hours("rolling restarts (4 s refused each, right while down)", DEFAULT, rate,
                worlds.rolling_restarts(rate, 0.001), each, limit=None, trials=n)  # fmt: skip
    rate = worlds.even(20, 12, 20.0)
    yield hours("autoscaling 6 to 12, cold starts fail 20 % for 5 s", DEFAULT, rate,
                worlds.autoscaling(rate, 0.001, 6), each, limit=None, trials=max(1, each // 12))  # fmt: skip


def broken_views(trials: int) -> Iterator[Row]:
    """Proxies and networks fail, endpoints do not."""
    halves = np.arange(20) // 10
    rate = worlds.zonal(halves, np.arange(6) // 3, 20.0, 0.9)
    setup = Setup(DEFAULT, 20, 6, observer_zones=tuple(f"z{z}" for z in halves), zones=("z0",) * 3 + ("z1",) * 3)
    out = run(setup, worlds.broken_proxies(rate, 0.001, (0, 1), 0.3, ONSET_S), trials, ONSET_S + 120, 1)
    found = len({(h.trial, h.decision.evidence["observer"]) for h in out.of(Kind.OBSERVER_BROKEN)}) / (2 * trials)
    yield Row(
        "2 of 20 proxies fail 30 %, 90 % zone-local",
        "0 ejected",
        f"{len(out.of(Kind.EJECTED))} ejected in {trials} trials; {found:.2f} of the broken proxies named",
        not out.of(Kind.EJECTED),
    )
    thirds = np.arange(21) % 3
    zones = np.arange(6) % 3
    for local in (1 / 3, 0.8):
        rate = worlds.zonal(thirds, zones, 20.0, local)
        setup = Setup(
            DEFAULT, 21, 6, observer_zones=tuple(f"z{z}" for z in thirds), zones=tuple(f"z{z}" for z in zones)
        )
        for what, cut in (
            ("one endpoint of zone 1", (thirds[:, None] == 0) & (np.arange(6)[None, :] == 1)),
            ("all of zone 1", (thirds[:, None] == 0) & (zones[None, :] == 1)),
        ):
            out = run(setup, worlds.partition(rate, 0.001, cut, ONSET_S), trials, ONSET_S + 120, 1)
            seen = len({h.trial for h in out.of(Kind.PARTIAL_VIEW)}) / trials
            yield Row(
                f"zone 0 cannot reach {what}, {local:.0%} local",
                "0 ejected",
                f"{len(out.of(Kind.EJECTED))} ejected in {trials} trials; partial_view in {seen:.2f}, "
                f"{len(out.of(Kind.OBSERVER_BROKEN))} observers doubted",
                not out.of(Kind.EJECTED),
            )


def bad_majority(trials: int) -> Iterator[Row]:
    """More bad endpoints than may go."""
    for name, endpoints, rates in (
        ("6 of 10 bad at 30 %", 10, (0.3,) * 6),
        ("7 of 10 bad at 30 %", 10, (0.3,) * 7),
        ("2 of 3 bad at 30 %", 3, (0.3,) * 2),
        ("6 of 10 bad at 90, 60, 40, 30, 20, 15 %", 10, (0.9, 0.6, 0.4, 0.3, 0.2, 0.15)),
    ):
        rate = worlds.even(20, endpoints, 20.0)
        out = run(even_setup(DEFAULT, endpoints), worlds.fault(rate, 0.001, rates, ONSET_S), trials, ONSET_S + 120, 1)
        equal = len(set(rates)) == 1
        wrong, right = (len(out.of(Kind.EJECTED, right=r)) for r in (False, True))
        most, cap = int(out.most_out.max()), endpoints * DEFAULT.guards.cap_percent // 100
        held = not wrong and most <= cap and not (equal and right)
        yield Row(
            f"majority: {name}",
            "0 ejected" if equal else f"at most {cap} out, 0 good ones",
            f"{right} bad and {wrong} good ejected in {trials} trials, at most {most} out; blocked by {guards(out)}",
            held,
        )


def slow_endpoints(trials: int, scale: float) -> Iterator[Row]:
    """D2 from Envoy's default buckets, 8 endpoints, 5 observer groups."""
    buckets = len(worlds.ENVOY_BOUNDS_MS) + 1

    def setup(endpoints: int = 8) -> Setup:
        return Setup(DEFAULT, 20, endpoints, groups=5, buckets=buckets)

    for name, rps, change, bar in (
        ("x2 slower at 20 rps", 20.0, {"factor": 2.0}, 15.0),
        ("5 % of attempts +1 s at 20 rps", 20.0, {"late": 0.05}, 40.0),
        ("20 % of attempts +1 s at 20 rps", 20.0, {"late": 0.2}, None),
        ("x3 slower at 5 rps", 5.0, {"factor": 3.0}, None),
        ("x3 slower at 1 rps", 1.0, {"factor": 3.0}, None),
    ):
        world = worlds.slow_fault(worlds.even(20, 8, rps), ONSET_S, trials=trials, seed=2, **change)
        out = run(setup(), world, trials, ONSET_S + 120, 1)
        waited = out.first(trials, ONSET_S, Kind.EJECTED)
        wrong = len(out.of(Kind.EJECTED, right=False))
        yield Row(
            f"slow: {name}",
            "" if bar is None else f"p90 <= {bar:g} s",
            f"{times(waited)}, {wrong} wrong",
            None if bar is None else percentile(waited, 90) <= bar and not wrong,
        )
    total = wrong = 0.0
    for spread, seed in ((0.08, 11), (0.15, 12)):
        n = max(1, round(4 * scale))
        world = worlds.slow_fault(worlds.even(20, 8, 20.0), 10**9, spread=spread, trials=n, seed=seed)
        out = run(setup(), world, n, 60 + 3600, seed)
        total, wrong = total + out.endpoint_hours, wrong + len(out.of(Kind.EJECTED))
    yield Row(
        "slow: false, medians within +- 8 % and +- 15 %",
        "0 in 59 h",
        f"{wrong:g} in {total:.0f} endpoint-hours",
        not wrong,
    )
    world = worlds.slow_observers(worlds.even(20, 8, 20.0), 5, 2, 4.0, ONSET_S)
    out = run(setup(), world, trials, ONSET_S + 60, 1)
    yield Row("slow: 2 of 5 observer groups x4 slower, endpoints fine", "0 ejected",
              f"{len(out.of(Kind.EJECTED))} ejected in {trials} trials", not out.of(Kind.EJECTED))  # fmt: skip


def evaluation_time(observers: int, services: int, endpoints: int, bar_ms: float, rounds: int = 30) -> Row:
    """CPU time of this thread for one evaluation of everything: add a second, judge, decide."""
    zones = tuple(f"z{h % 3}" for h in range(endpoints))
    names, hosts = tuple(f"p{p}" for p in range(observers)), tuple(f"e{h}" for h in range(endpoints))
    topologies = [
        replace(
            Topology.plain(f"svc-{s}", names, hosts),
            observer_zones=tuple(f"z{p % 3}" for p in range(observers)),
            zones=zones,
        )
        for s in range(services)
    ]
    windows = [ServiceWindow(DEFAULT, observers, endpoints) for _ in range(services)]
    states = [ServiceState(started_ms=0) for _ in range(services)]
    ejectors = [Ejector(t.service, DEFAULT) for t in topologies]
    rng = np.random.default_rng(1)
    p, h = (a.ravel() for a in np.meshgrid(np.arange(observers), np.arange(endpoints), indexing="ij"))
    decided: list[float] = []
    whole: list[float] = []
    decisions: list[Decision] = []
    for second in range(70 + rounds):
        now_ms = second * 1000
        begin, end = np.full(len(p), now_ms - 1000), np.full(len(p), now_ms)
        failing = np.where(h == 0, 0.15 if second > 75 else 0.001, 0.001)
        counts = []
        for _ in range(services):
            n = rng.poisson(1.0, len(p))
            counts.append((n.astype(float), rng.binomial(n, failing).astype(float)))
        started = time.thread_time()
        for window, (n, k) in zip(windows, counts, strict=True):
            window.advance(now_ms)
            window.add(Channel.ATTEMPTS, p, h, begin, end, n)
            window.add(Channel.ERRORS, p, h, begin, end, k)
        added = time.thread_time()
        for s in range(services):
            signals = windows[s].signals(now_ms)
            verdicts = detect(signals, topologies[s], states[s], DEFAULT)
            situation = Situation(topologies[s], now_ms, 1000, observers, observers, False, signals.rps,
                                  signals.rps_peak, {}, FleetBudget(1000))  # fmt: skip
            states[s], new = ejectors[s].step(states[s], verdicts, situation, now_ms)
            decisions += new
            for decision in new:
                if decision.resets:
                    windows[s].clear(topologies[s].endpoints.index(decision.endpoint), now_ms)
        if second >= 70:
            decided.append((time.thread_time() - added) * 1e3)
            whole.append((time.thread_time() - started) * 1e3)
    ejected = sum(d.kind is Kind.EJECTED for d in decisions)
    p50, p99 = (float(np.percentile(decided, q)) for q in (50, 99))
    return Row(
        f"evaluate {services} x ({observers} proxies x {endpoints} endpoints)",
        f"<= {bar_ms:g} ms",
        f"p50 {p50:.1f} ms, p99 {p99:.1f} ms CPU of one core; with adding the second's increments "
        f"{float(np.percentile(whole, 50)):.1f} ms ({ejected} ejected meanwhile)",
        p99 <= bar_ms,
    )


def rows(scale: float) -> Iterator[Row]:
    """All rows; ``scale`` 1 is the full run."""
    trials = max(10, round(200 * scale))
    yield from detection(trials)
    yield from false_ejections(scale)
    yield from broken_views(max(10, round(60 * scale)))
    yield from bad_majority(max(10, round(60 * scale)))
    yield from slow_endpoints(max(10, round(60 * scale)), scale * 2)
    yield from harder(scale)
    from benchmarks.rollouts import rows as rollouts  # which takes Row from here

    yield from rollouts(scale)
    yield evaluation_time(500, 1, 200, 20.0)
    yield evaluation_time(20, 100, 10, 100.0)


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 when a bar is not held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials and hours, no live runs")
    quick = parser.parse_args(argv).quick
    started = time.process_time()
    missed = 0
    print("| what | bar | measured | |\n|---|---|---|---|")
    for row in rows(0.1 if quick else 1.0):
        missed += row.held is False
        mark = {True: "ok", False: "**missed**", None: ""}[row.held]
        print(f"| {row.name} | {row.bar} | {row.measured} | {mark} |", flush=True)
    print(f"\n{missed} bars missed; {time.process_time() - started:.0f} CPU s, seeded, so every run gives the same.\n")
    if not quick:
        missed += not api()
        missed += not asyncio.run(live(120.0))
        missed += not detect_to_commit(asyncio.run(measure()))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
