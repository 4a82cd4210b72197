"""Small services to try decisions on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from health.guards import Docket
from health.policy import Policy
from health.verdicts import (
    Detector,
    EndpointState,
    Finding,
    FleetBudget,
    ServiceState,
    Situation,
    State,
    Stats,
    Topology,
    Verdicts,
)
from health.window import LatencySums, Signals, Sums

NOW = 1_000_000
POLICY = Policy()


def names(n: int) -> tuple[str, ...]:
    return tuple(f"10.0.0.{h}:80" for h in range(n))


def topology(endpoints: int = 6, observers: int = 4, **more) -> Topology:
    return replace(Topology.plain("svc", tuple(f"p{p}" for p in range(observers)), names(endpoints)), **more)


def stats(endpoints: int, **rows) -> Stats:
    """Statistics with given columns, (n,) each."""
    table = np.zeros((endpoints, len(Stats.COLUMNS)))
    for name, values in rows.items():
        table[:, Stats.COLUMNS.index(name)] = values
    return Stats(table)


def verdicts(endpoints: int = 6, flagged=(), *, detector=Detector.ERROR_RATIO, excess=0.15, **more) -> Verdicts:
    """Verdicts that flag those endpoints, worst first, by one finding."""
    rising = np.zeros(endpoints)
    for rank, h in enumerate(flagged):
        rising[h] = excess - 0.001 * rank
    numbers = stats(endpoints, excess=rising, z=9.0, errors=30.0, attempts=200.0, observers=4.0, agreement=1.0)
    finding = Finding(detector, 10, 0.0, numbers, tuple(flagged), (), (), incident=False)
    base = Verdicts(
        endpoints=names(endpoints),
        present=np.ones(endpoints, dtype=np.bool_),
        attempts_60s=np.full(endpoints, 500.0),
        flagged=tuple(flagged),
        leading=dict.fromkeys(flagged, 0),
        hard=frozenset(flagged) if detector is Detector.HARD_FAILURE else frozenset(),
        findings=(finding,),
        probe_errors=np.zeros(endpoints),
        probe_attempts=np.zeros(endpoints),
        baseline_hi=0.01,
    )
    return replace(base, **more)


def situation(top: Topology | None = None, now: int = NOW, **more) -> Situation:
    base = Situation(
        top or topology(),
        data_as_of_ms=now - 500,
        known_observers=4,
        reporting_observers=4,
        rps=600.0,
        rps_peak=100.0,
        fleet=FleetBudget(1000),
    )
    return replace(base, **more)


def healthy(since: int = 0, **more) -> EndpointState:
    return replace(EndpointState(State.HEALTHY, since_ms=since, first_seen_ms=since), **more)


def ejected(until: int, **more) -> EndpointState:
    return healthy(state=State.EJECTED, until_ms=until, ejections=1, weight=0.0, **more)


def service(endpoints: int = 6, **states: EndpointState) -> ServiceState:
    """All healthy, but those given as ``e2=...``."""
    known = {name: healthy() for name in names(endpoints)}
    for key, state in states.items():
        known[names(endpoints)[int(key[1:])]] = state
    return ServiceState(started_ms=0, endpoints=known)


def docket(state: ServiceState, found: Verdicts, facts: Situation, policy: Policy = POLICY, now: int = NOW) -> Docket:
    return Docket(
        policy=policy,
        verdicts=found,
        situation=facts,
        now_ms=now,
        started_ms=state.started_ms,
        states=tuple(state.endpoints.get(name) for name in found.endpoints),
        last_ejection_ms=state.last_ejection_ms,
        spent=facts.fleet.spent(now),
        overrides=tuple(facts.overrides.get(name) for name in found.endpoints),
    )


def counts(errors, attempts, window_s: int = 10) -> Sums:
    return Sums(window_s, np.ascontiguousarray(errors, dtype=float), np.ascontiguousarray(attempts, dtype=float))


def signals(*windows: Sums, hard: Sums | None = None, latency: tuple[LatencySums, ...] = (), **more) -> Signals:
    p, h = windows[0].errors.shape
    zeros = np.zeros((p, h))
    base = Signals(
        windows=windows,
        hard=hard or Sums(5, zeros, zeros),
        latency=latency,
        latency_zones=("",) * (latency[0].buckets.shape[0] if latency else 0),
        past_errors=np.zeros(h),
        past_attempts=np.zeros(h),
        probe_errors=zeros,
        probe_attempts=zeros,
        present=np.ones(h, dtype=np.bool_),
        rps=100.0,
        rps_peak=100.0,
    )
    return replace(base, **more)
