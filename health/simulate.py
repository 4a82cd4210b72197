"""Many services at once, with known truth, judged by the real detectors, guards and state machine.

A :class:`World` says for every second how much is sent and how often it fails. :func:`run` draws the traffic of all
trials as arrays, keeps their windows, and evaluates every second. A trial in which no kernel marks anything and all
endpoints are settled is left alone in that second, because a step would change nothing (a test holds this); all others
go through :func:`health.detectors.detect` and :meth:`health.machine.Ejector.step`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from health.detectors import detect, judge_errors, rule_vector, zone_numbers
from health.machine import Ejector
from health.policy import Policy
from health.verdicts import (
    Decision,
    EndpointState,
    FleetBudget,
    Kind,
    ServiceState,
    Situation,
    State,
    Topology,
)
from health.window import COARSE_S, FINE_S, HISTORY_S, LatencySums, Ring, Signals, Sums

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class Moment:
    """One second of the world; arrays broadcast to (trials, P, H).

    Attributes
    ----------
    rate : attempts per second each observer sends to each endpoint while all have their full weight
    failing : probability that an attempt fails
    bad : (H,) or (trials, H) bool       ejecting these is right
    grey : the same, or None             ejecting these is neither right nor wrong
    present : (H,) or (trials, H) bool, or None = all
    refused : (H,) or (trials, H) bool, or None: endpoints whose failures are refused connections
    slow : None, or broadcast to (trials, G, H, J): probabilities of the latency buckets
    """

    rate: Floats
    failing: Floats
    bad: Flags
    grey: Flags | None = None
    present: Flags | None = None
    refused: Flags | None = None
    slow: Floats | None = None


World = Callable[[int, np.random.Generator], Moment]
"""(second, random numbers) -> what happens then. Called once for every second, in order."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What all trials of a run have in common.

    Attributes
    ----------
    observers, endpoints : P, H
    observer_zones, zones, versions : as in ``Topology``, empty = unknown
    scrape_s : how often an observer is scraped, staggered over observers
    delay_s : a scrape arrives up to so many seconds later (a remote-write batch)
    groups, buckets : of latency; 0 = no latency
    group_zones : zones of the latency groups
    fleet_endpoints : size of the fleet, for its budget of ejections
    """

    policy: Policy
    observers: int
    endpoints: int
    observer_zones: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    scrape_s: int = 1
    delay_s: int = 0
    groups: int = 0
    buckets: int = 0
    group_zones: tuple[str, ...] = ()
    fleet_endpoints: int = 1000

    def topology(self) -> Topology:
        """Names and labels of the service."""
        plain = Topology.plain(
            "svc",
            tuple(f"proxy-{p}" for p in range(self.observers)),
            tuple(f"10.0.{h // 250}.{h % 250}:80" for h in range(self.endpoints)),
        )
        return replace(
            plain,
            observer_zones=self.observer_zones or plain.observer_zones,
            zones=self.zones or plain.zones,
            versions=self.versions or plain.versions,
        )


@dataclass(frozen=True, slots=True)
class Happened:
    """A decision in a trial, beside the truth at that time.

    Attributes
    ----------
    right : the endpoint was bad
    grey : neither clearly bad nor clearly good
    """

    trial: int
    second: int
    right: bool
    grey: bool
    decision: Decision


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave.

    Attributes
    ----------
    happened : decisions about endpoints and observers in order, without repeated ones
    most_out : (trials,) int      most endpoints ejected or on probation at once
    endpoint_hours : judged, after the warm-up
    errors, attempts : of all traffic after the warm-up
    full_steps, evaluations : trials x seconds that went through the state machine; all of them
    """

    happened: tuple[Happened, ...]
    most_out: NDArray[np.int64]
    endpoint_hours: float
    errors: int
    attempts: int
    full_steps: int
    evaluations: int

    def of(self, kind: Kind, *, right: bool | None = None) -> list[Happened]:
        """Decisions of one kind: all, or only about bad endpoints, or only about good ones (not grey)."""
        return [
            h
            for h in self.happened
            if h.decision.kind is kind and (right is None or (h.right if right else not (h.right or h.grey)))
        ]

    def first(self, trials: int, after_s: int, *kinds: Kind, endpoints: int = 1) -> Floats:
        """Seconds from ``after_s`` until ``endpoints`` bad ones had such a decision, per trial; inf = never."""
        seen: list[dict[str, int]] = [{} for _ in range(trials)]
        for h in self.happened:
            if h.right and h.decision.kind in kinds and h.second >= after_s:
                seen[h.trial].setdefault(h.decision.endpoint, h.second)
        return np.array(
            [sorted(s.values())[endpoints - 1] - after_s if len(s) >= endpoints else np.inf for s in seen], dtype=float
        )


class _Windows:
    """The windows of all trials, as ``ServiceWindow`` keeps them for one service."""

    def __init__(self, setup: Setup, trials: int) -> None:
        policy = setup.policy
        self._setup = setup
        self._shape = (trials, setup.observers, setup.endpoints)
        self.spans = (policy.hard.window_s, *sorted({*policy.windows_s, FINE_S}))
        cells = trials * setup.observers * setup.endpoints
        self._fine = [Ring(cells, FINE_S, self.spans) for _ in range(2)]
        self._refused = Ring(cells, FINE_S, self.spans[:1])
        self._any_refused = False
        sparse = policy.sparse_window_s // COARSE_S
        self._coarse = [Ring(cells, sparse, (sparse,)) for _ in range(2)] if sparse else []
        history = (HISTORY_S // COARSE_S, FINE_S // COARSE_S)
        self._past = [Ring(trials * setup.endpoints, history[0], history) for _ in range(2)]
        self._latency: Ring | None = None
        if setup.groups:
            self._latency_shape = (trials, setup.groups, setup.endpoints, setup.buckets)
            self._latency = Ring(int(np.prod(self._latency_shape)), FINE_S, setup.policy.latency.windows_s)
        self.since = np.zeros((2, *self._shape))
        self._peaks = np.zeros((history[0], trials))
        self._now = 0
        self._places = np.arange(cells).reshape(self._shape)

    def advance(self, now: int) -> None:
        self._now = now
        for ring in (*self._fine, self._refused, *([self._latency] if self._latency else [])):
            ring.advance(now)
        if self._peaks_move(now):
            self._peaks[now // COARSE_S % len(self._peaks)] = 0.0
        for ring in (*self._coarse, *self._past):
            ring.advance(now // COARSE_S)

    def _peaks_move(self, now: int) -> bool:
        return now % COARSE_S == 0

    def add(self, second: int, counts: tuple[NDArray[np.int32], NDArray[np.int32]]) -> None:
        """Errors and attempts (trials, P, H) with that sample time."""
        for i, count in enumerate(counts):
            flat = count.reshape(-1)
            self._fine[i].add_all(second, flat)
            self.since[i] += count
            if self._coarse:
                self._coarse[i].add_all(second // COARSE_S, flat)
            self._past[i].add_all(second // COARSE_S, count.sum(axis=1, dtype=np.int32).reshape(-1))

    def add_refused(self, second: int, count: NDArray[np.int32]) -> None:
        self._any_refused = True
        self._refused.add_all(second, count.reshape(-1))

    def add_latency(self, second: int, count: NDArray[np.int32]) -> None:
        assert self._latency is not None
        self._latency.add_all(second, count.reshape(-1))

    def clear(self, trial: int, endpoint: int) -> None:
        cells = self._places[trial, :, endpoint]
        for ring in (*self._fine, self._refused, *self._coarse):
            ring.clear(cells)
        if self._latency is not None:
            _, groups, endpoints, buckets = self._latency_shape
            at = (trial * groups + np.arange(groups)[:, None]) * endpoints + endpoint
            self._latency.clear((at * buckets + np.arange(buckets)).ravel())
        self.since[:, trial, :, endpoint] = 0.0

    def windows(self) -> list[tuple[int, Floats, Floats]]:
        """(seconds, errors, attempts) of each judged fine window, (trials, P, H)."""
        errors, attempts = self._fine
        return [
            (span, errors.sums[i].reshape(self._shape), attempts.sums[i].reshape(self._shape))
            for i, span in enumerate(self.spans)
            if i
        ]

    def sparse(self) -> tuple[int, Floats, Floats] | None:
        """The sparse window, None when the policy has none."""
        if not self._coarse:
            return None
        errors, attempts = (ring.sums[0].reshape(self._shape) for ring in self._coarse)
        return self._setup.policy.sparse_window_s, errors, attempts

    def hard(self) -> tuple[Floats, Floats] | None:
        """Refused connections and attempts of D3's window, None when none was ever refused."""
        if not self._any_refused:
            return None
        return self._refused.sums[0].reshape(self._shape), self._fine[1].sums[0].reshape(self._shape)

    def latency(self) -> list[tuple[int, Floats]]:
        """(seconds, buckets (trials, G, H, J)) of each window."""
        if self._latency is None:
            return []
        return [
            (s, self._latency.sums[i].reshape(self._latency_shape))
            for i, s in enumerate(self._setup.policy.latency.windows_s)
        ]

    def rates(self) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Attempts/s of each service, the most per active endpoint lately, active endpoints; all (trials,)."""
        minute = self._past[1].sums[1].reshape(self._shape[0], self._shape[2])
        past = np.count_nonzero(minute, axis=1).clip(1)
        rps = minute.sum(axis=1) / (FINE_S - COARSE_S + self._now % COARSE_S + 1)
        at = self._now // COARSE_S % len(self._peaks)
        np.maximum(self._peaks[at], rps / past, out=self._peaks[at])
        return rps, self._peaks.max(axis=0), past

    def signals(self, trial: int, present: Flags, rps: float, peak: float, active: int) -> Signals:
        """What the detectors see of one trial."""
        policy = self._setup.policy
        windows = [Sums(s, k[trial], n[trial]) for s, k, n in self.windows()]
        sparse = self.sparse()
        if sparse is not None and windows[-1].attempts.sum() < policy.sparse_rps * FINE_S * active:
            windows.append(Sums(sparse[0], sparse[1][trial], sparse[2][trial]))
        past = [r.sums.reshape(2, self._shape[0], self._shape[2])[:, trial] for r in self._past]
        return Signals(
            windows=tuple(windows),
            hard=Sums(
                policy.hard.window_s,
                self._refused.sums[0].reshape(self._shape)[trial],
                self._fine[1].sums[0].reshape(self._shape)[trial],
            ),
            latency=tuple(LatencySums(s, c[trial]) for s, c in self.latency()),
            latency_zones=self._setup.group_zones or ("",) * self._setup.groups,
            past_errors=past[0][0] - past[0][1],
            past_attempts=past[1][0] - past[1][1],
            probe_errors=self.since[0, trial],
            probe_attempts=self.since[1, trial],
            present=present,
            rps=rps,
            rps_peak=peak,
        )


class _Pipe:
    """What observers counted but have not been scraped for, and scrapes on their way."""

    def __init__(self, setup: Setup, trials: int, rng: np.random.Generator) -> None:
        shape = (trials, setup.observers, setup.endpoints)
        self._every, self._delay = setup.scrape_s, setup.delay_s
        self._phase = rng.integers(0, setup.scrape_s, shape[:2])
        # a remote-write sender batches: each observer's sender has its own beat
        self._beat = rng.integers(0, max(1, setup.delay_s), shape[:2])
        self._counted = [np.zeros(shape, dtype=np.int32) for _ in range(3)]
        self._sent: dict[tuple[int, int], list[NDArray[np.int32]]] = {}

    def push(self, second: int, counts: tuple[NDArray[np.int32], ...]) -> list[tuple[int, list[NDArray[np.int32]]]]:
        """Take one second of counts; returns what arrives now: (sample time, counts)."""
        if self._every == 1 and not self._delay:
            return [(second, list(counts))]
        for total, count in zip(self._counted, counts, strict=True):
            total += count
        scraped = second % self._every == self._phase
        batch = max(1, self._delay)
        wait = (self._beat - second) % batch if self._delay else np.zeros_like(self._beat)
        for delay in range(batch):
            now = scraped & (wait == delay)
            if now.any():
                mask = now[:, :, None]
                self._sent[second, second + delay] = [np.where(mask, total, 0) for total in self._counted]
        for total in self._counted:
            total[scraped] = 0
        due = sorted(key for key in self._sent if key[1] == second)
        return [(taken, self._sent.pop((taken, arrives))) for taken, arrives in due]

    def clear(self, trial: int, endpoint: int) -> None:
        for counts in (self._counted, *self._sent.values()):
            for count in counts:
                count[trial, :, endpoint] = 0


def run(setup: Setup, world: World, trials: int, seconds: int, seed: int, *, thorough: bool = False) -> Outcome:
    """Simulate ``trials`` services side by side for ``seconds``, evaluated every second.

    Deterministic for a seed. The policy's jitter differs between trials, as it would between services. ``thorough``
    steps every trial every second and gives the same outcome.
    """
    rng = np.random.default_rng(seed)
    shape = (trials, setup.observers, setup.endpoints)
    windows, pipe = _Windows(setup, trials), _Pipe(setup, trials, rng)
    topology = setup.topology()
    judge = _Judge(setup, topology)
    ejectors = [Ejector(f"svc-{t}", setup.policy) for t in range(trials)]
    states = [ServiceState(started_ms=0) for _ in range(trials)]
    settled = np.zeros(trials, dtype=np.bool_)
    weights = np.ones((trials, setup.endpoints))
    most_out = np.zeros(trials, dtype=np.int64)
    happened: list[Happened] = []
    budgets = [FleetBudget(setup.fleet_endpoints) for _ in range(trials)]
    everyone = np.ones((trials, setup.endpoints), dtype=np.bool_)
    before = everyone
    errors = attempts = full = evaluations = hours_s = 0
    warm_s = setup.policy.guards.warmup_ms // 1000
    for second in range(seconds):
        moment = world(second, rng)
        present = everyone if moment.present is None else np.broadcast_to(moment.present, everyone.shape)
        bad = np.broadcast_to(moment.bad, everyone.shape)
        grey = np.broadcast_to(False if moment.grey is None else moment.grey, everyone.shape)
        k, n, refused, slow = _traffic(moment, weights * present, shape, setup, rng)
        windows.advance(second)
        for taken, (some_k, some_n, some_refused) in pipe.push(second, (k, n, refused)):
            windows.add(taken, (some_k, some_n))
            if moment.refused is not None:
                windows.add_refused(taken, some_refused)
        if slow is not None:
            windows.add_latency(second, slow)
        rps, peak, active = windows.rates()
        if second < warm_s - 1:
            continue
        if second >= warm_s:
            errors, attempts, evaluations = errors + int(k.sum()), attempts + int(n.sum()), evaluations + trials
            hours_s += int(np.count_nonzero(present))
        loud = np.ones(trials, dtype=np.bool_) if thorough else ~settled | judge.marked(windows)
        if before is not present:
            loud |= (before != present).any(axis=1)
            before = present.copy()
        now_ms = second * 1000
        for t in np.flatnonzero(loud).tolist():
            full += 1
            here = topology
            if moment.present is not None:
                here = replace(topology, listed=tuple(present[t].tolist()))
            signals = windows.signals(t, present[t], float(rps[t]), float(peak[t]), int(active[t]))
            verdicts = detect(signals, here, states[t], setup.policy)
            situation = Situation(
                here, now_ms, 1000 * setup.scrape_s, setup.observers, setup.observers, False,
                signals.rps, signals.rps_peak, {}, budgets[t],
            )  # fmt: skip
            states[t], decisions = ejectors[t].step(states[t], verdicts, situation, now_ms)
            settled[t] = _is_settled(states[t])
            budgets[t] = budgets[t].charged(decisions, now_ms)
            for decision in decisions:
                at = here.endpoints.index(decision.endpoint) if decision.endpoint else -1
                if not decision.repeated:
                    truth = (bool(bad[t, at]), bool(grey[t, at])) if at >= 0 else (False, False)
                    happened.append(Happened(t, second, *truth, decision))
                if decision.resets:
                    windows.clear(t, at)
                    pipe.clear(t, at)
                elif decision.restarts:
                    windows.since[:, t, :, at] = 0.0
            for at, name in enumerate(here.endpoints):
                weights[t, at] = states[t].endpoints[name].weight if name in states[t].endpoints else 1.0
            out = sum(s.state in (State.EJECTED, State.PROBATION) for s in states[t].endpoints.values())
            most_out[t] = max(most_out[t], out)
    return Outcome(tuple(happened), most_out, hours_s / HOUR_S, errors, attempts, full, evaluations)


def _traffic(
    moment: Moment, weights: Floats, shape: tuple[int, int, int], setup: Setup, rng: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32] | None]:
    """Errors, attempts and refused connections (trials, P, H), and latency buckets (trials, G, H, J) of one second."""
    rate = np.broadcast_to(moment.rate, shape)
    if not (weights == 1.0).all():  # what an endpoint does not get, the others of that observer do
        weighted = rate * weights[:, None, :]
        total = weighted.sum(axis=2, keepdims=True)
        rate = weighted * np.divide(rate.sum(axis=2, keepdims=True), total, out=np.ones_like(total), where=total > 0)
    n = rng.poisson(rate).astype(np.int32)
    k = rng.binomial(n, moment.failing).astype(np.int32)
    refused = k
    if moment.refused is not None:
        refused = k * np.broadcast_to(moment.refused, weights.shape)[:, None, :].astype(np.int32)
    slow = None
    if setup.groups and moment.slow is not None:
        trials, observers, endpoints = shape
        grouped = n.reshape(trials, setup.groups, observers // setup.groups, endpoints).sum(axis=2)
        odds = np.broadcast_to(moment.slow, (*grouped.shape, setup.buckets))
        slow = rng.multinomial(grouped, odds).astype(np.int32)
    return k, n, refused, slow


class _Judge:
    """Which trials need a closer look: any mark of any detector in any window."""

    def __init__(self, setup: Setup, topology: Topology) -> None:
        self._policy = setup.policy
        self._rule = rule_vector(setup.policy.error, setup.policy.agreement)
        self._observer_rule = rule_vector(setup.policy.error)
        self._zones = zone_numbers(topology.observer_zones)
        self._nowhere = np.full(setup.endpoints, -1, dtype=np.int32)
        self._groups = [
            np.array([[v == group for v in values] for group in sorted(set(values))], dtype=np.float64).T
            for values in (topology.zones, topology.versions)
            if len(set(values)) > 1
        ]

    def marked(self, windows: _Windows) -> Flags:
        judged = windows.windows()
        sparse = windows.sparse()
        if sparse is not None:
            minute = judged[-1][2]
            limit = self._policy.sparse_rps * FINE_S * minute.shape[2]
            if (minute.sum(axis=(1, 2)) < limit).any():
                judged.append(sparse)
        trials, observers, endpoints = judged[0][1].shape
        asked = np.ones((trials, observers), dtype=np.bool_)
        compared = np.ones((trials, endpoints), dtype=np.bool_)
        out = np.zeros(trials, dtype=np.bool_)
        for _, k, n in judged:
            out |= judge_errors(k, n, asked, compared, self._zones, self._rule).marks.any(axis=1)
            if self._policy.observer.enabled and observers > 1:
                k_t, n_t = (np.ascontiguousarray(a.transpose(0, 2, 1)) for a in (k, n))
                out |= judge_errors(k_t, n_t, compared, asked, self._nowhere, self._observer_rule).marks.any(axis=1)
            for columns in self._groups:
                grouped = np.ones((trials, columns.shape[1]), dtype=np.bool_)
                found = judge_errors(k @ columns, n @ columns, asked, grouped, self._zones, self._rule)
                out |= found.marks.any(axis=1)
        hard = windows.hard()
        if hard is not None:
            tried = hard[1].sum(axis=1)
            out |= ((hard[0].sum(axis=1) >= tried) & (tried >= self._policy.hard.attempts)).any(axis=1)
        if windows.latency():
            out[:] = True  # D2 is judged one service at a time
        return out


def _is_settled(state: ServiceState) -> bool:
    """Whether a step without any flag would leave the state as it is."""
    return (
        not (state.frozen or state.incident or state.observers_split or state.broken or state.partial or state.degraded)
        and bool(state.endpoints)
        and all(_is_calm(endpoint) for endpoint in state.endpoints.values())
    )


def _is_calm(endpoint: EndpointState) -> bool:
    if endpoint.state is State.UNKNOWN:
        return bool(endpoint.absent_since_ms) and endpoint.returning is None
    return endpoint.state is State.HEALTHY and not endpoint.ejections
