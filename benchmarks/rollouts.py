"""Rollouts of nginx configurations, simulated with known truth: ``python -m benchmarks.rollouts [--rollouts 1000]``.

A fleet of machines serves many sites of very unequal traffic. The traffic is burstier than Poisson, sites differ in
their share of errors, machines in their speed, and now and then a site has a bad minute on all machines at once. One
machine gets a new configuration; the gate is asked several times in the minutes after it, and one halt is a halt.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.health import Row
from health.rollout import judge_rollout
from health.rollout_counts import RolloutCounts, Stretch

BIN_S = 10
BEFORE_BINS = 60
ASKED_S = (30, 60, 120, 300)
"""When the gate is asked, after the change."""

REQUESTS_PER_S = 50.0
"""Of the changed machine, all sites together; the last of 100 sites has 1 request in 10 s."""

BOUNDS = 12
BROKEN = 10
"""The site that a fault breaks: of 100 it has 2 % of the traffic, 1 request a second on the changed machine."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What the new configuration does to one site on the changed machine.

    Attributes
    ----------
    errors : share of its requests answered with 502
    slower : factor on its times
    traffic : factor on its requests
    everywhere : on all machines alike: not the change's doing
    loud : a line of the error log at the ``crit`` level
    """

    errors: float = 0.0
    slower: float = 1.0
    traffic: float = 1.0
    everywhere: bool = False
    loud: bool = False


class Fleet:
    """One rollout: counts of every 10 s, before and after the change on machine 0."""

    def __init__(self, rng: np.random.Generator, sites: int, hosts: int, fault: Fault | None = None) -> None:
        bins = BEFORE_BINS + ASKED_S[-1] // BIN_S
        share = 1.0 / (np.arange(sites) + 2.0)
        rate = REQUESTS_PER_S * BIN_S * share / share.sum()
        rate = rate[None, :, None] * np.exp(rng.normal(0, 0.1, (1, sites, hosts)))  # machines get unequal shares
        ebb = np.exp(rng.normal(0, 0.1) * np.linspace(0, 1, bins))[:, None, None]
        bursts = rng.gamma(4.0, 0.25, (bins, sites, 1)) * rng.gamma(16.0, 1 / 16, (bins, sites, hosts))
        bad = rng.beta(0.5, 60.0, sites)[None, :, None] * np.ones((bins, 1, hosts))  # mean 0.8 %, up to 5 % and more
        minutes = rng.random((bins // 6 + 1, sites, 1)) < 0.002
        bad = np.maximum(bad, 0.3 * np.repeat(minutes, 6, axis=0)[:bins])
        mu = rng.normal(2.0, 1.0, (sites, 1)) + rng.normal(0, 0.08, (sites, hosts))  # log of the time in buckets
        mu_after = mu + rng.normal(0, 0.05, (sites, 1))
        self.fault = fault or Fault()
        where = (slice(BEFORE_BINS, None), min(BROKEN, sites - 1), slice(None) if self.fault.everywhere else 0)
        factor = np.ones((bins, sites, hosts))
        factor[where] = self.fault.traffic
        bad[where] = np.maximum(bad[where], self.fault.errors)
        mu_after = np.array(mu_after)
        mu_after[where[1:]] += 2 * np.log2(self.fault.slower)  # two buckets are about a factor of two
        self.requests = rng.poisson(rate * ebb * bursts * factor)
        self.errors = rng.binomial(self.requests, np.minimum(bad, 1.0))
        self.hosts = tuple(f"web-{i}" for i in range(hosts))
        self.sites = tuple(f"site-{i}.example" for i in range(sites))
        self._p = _distribution(mu), _distribution(mu_after)
        self._rng = rng

    def counts(self, after_s: int) -> RolloutCounts:
        """What is known ``after_s`` seconds after the change."""
        cut = BEFORE_BINS + after_s // BIN_S
        parts = (slice(0, BEFORE_BINS), slice(BEFORE_BINS, cut))
        stretches = []
        for part, p, seconds in zip(parts, self._p, (BEFORE_BINS * BIN_S, after_s), strict=True):
            n = self.requests[part].sum(axis=0)
            buckets = self._rng.multinomial(n, p).astype(np.float64)
            stretches.append(
                Stretch(float(seconds), n.astype(float), self.errors[part].sum(axis=0).astype(float), buckets)
            )
        newest = np.full(len(self.hosts), 1000 * after_s)
        loud = ((self.sites[-1], "[crit] 1#1: it broke"),) if self.fault.loud else ()
        return RolloutCounts(self.sites, self.hosts, *stretches, newest, loud)

    def ask(self, after_s: int, site: str = "") -> str:
        """The verdict about machine 0."""
        counts = self.counts(after_s)
        if site:
            counts = _only(counts, self.sites.index(site))
        return str(judge_rollout(counts, site=site, host=self.hosts[0], now_ms=1000 * after_s)["verdict"])


def _only(counts: RolloutCounts, i: int) -> RolloutCounts:
    def cut(s: Stretch) -> Stretch:
        return replace(s, requests=s.requests[i : i + 1], errors=s.errors[i : i + 1], buckets=s.buckets[i : i + 1])

    return replace(counts, sites=counts.sites[i : i + 1], before=cut(counts.before), after=cut(counts.after))


def _distribution(mu: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of requests in each bucket: a bell over the logarithmic bounds."""
    bell = np.exp(-0.5 * ((np.arange(BOUNDS + 1) - 2 - mu[..., None]) / 1.5) ** 2) + 1e-4
    return bell / bell.sum(axis=-1, keepdims=True)


def halted_at(fleet: Fleet) -> int:
    """Seconds after the change at which the gate halts; 0 = never."""
    return next((s for s in ASKED_S if fleet.ask(s) == "halt"), 0)


def clean(rollouts: int, seed: int, sites: int = 100, hosts: int = 4) -> Counter[str]:
    """Clean rollouts by their worst verdict."""
    found: Counter[str] = Counter()
    for i in range(rollouts):
        fleet = Fleet(np.random.default_rng([seed, i]), sites, hosts)
        found["halt" if halted_at(fleet) else fleet.ask(ASKED_S[-1])] += 1
    return found


def broken(rollouts: int, seed: int, fault: Fault, sites: int = 100, hosts: int = 4) -> list[int]:
    """When rollouts that break one site are halted; 0 = never."""
    return [halted_at(Fleet(np.random.default_rng([seed, i, 1]), sites, hosts, fault)) for i in range(rollouts)]


def rows(scale: float) -> list[Row]:
    """The rows of the acceptance table."""
    rollouts = max(20, round(1000 * scale))
    found = clean(rollouts, 7)
    out = [
        Row(
            f"{rollouts:,} clean rollouts, 100 sites on 4 machines, asked {len(ASKED_S)} times",
            "0 halted",
            f"{found['halt']} halted; after 300 s {found['go']} go, {found['wait']} wait",
            found["halt"] == 0,
        )
    ]
    few = max(10, rollouts // 10)
    for what, fault, bar in (
        ("502 for everything on one site of 100", Fault(errors=1.0), 60),
        ("502 for a third of it", Fault(errors=0.33), 120),
        ("one site four times as slow", Fault(slower=4.0), 60),
        ("one site without traffic", Fault(traffic=0.0), 60),
        ("a crit line", Fault(loud=True), 30),
    ):
        times = broken(few, 11, fault)
        late = sum(not 0 < t <= bar for t in times)
        seen = ", ".join(f"{n} at {t} s" if t else f"{n} never" for t, n in sorted(Counter(times).items()))
        out.append(Row(f"rollout: {what}", f"halt within {bar} s", f"of {few}: {seen}", late == 0))
    times = broken(few, 13, Fault(errors=0.3, everywhere=True))
    halted = sum(t > 0 for t in times)
    out.append(
        Row("rollout: 30 % errors on all machines at once", "not halted", f"{halted} of {few} halted", halted == 0)
    )
    return out


def main() -> int:
    """Print the table; 1 when a bar is not held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1000)
    begin = time.process_time()
    found = rows(parser.parse_args().rollouts / 1000)
    print("| what | bar | measured | |\n|---|---|---|---|")
    for row in found:
        print(f"| {row.name} | {row.bar} | {row.measured} | {'ok' if row.held else '**missed**'} |")
    print(f"\n{time.process_time() - begin:.0f} CPU s, seeded.")
    return 0 if all(row.held for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
