"""One service as the loop keeps it: names of its rows and columns, what was counted, what else is known."""

from __future__ import annotations

import zlib
from collections.abc import Container, Sequence

import numpy as np
from numpy.typing import NDArray

from health.machine import Ejector
from health.policy import Policy
from health.topology import Fact
from health.verdicts import ServiceState, Topology
from health.window import NEVER_MS, ServiceWindow

KNOWN_MS = 600_000
"""How long an observer is expected to report after it was last seen."""
FORGET_MS = 1_200_000
"""Observers and endpoints that were last seen longer ago make room: addresses of pods come and go."""
GROUPS_PER_ZONE = 8
"""Observers are folded into so many groups a zone for latency, which would otherwise take most of the memory."""
_INTERVAL_GAIN = 0.2
_AVAILABLE = frozenset({"", "UNKNOWN", "HEALTHY", "DEGRADED"})


class Service:
    """The recent past of one service. Not thread-safe: the loop's thread alone touches it.

    Attributes
    ----------
    observers, endpoints : names in the order of rows and columns
    observer_zones, zones, versions : what the series' labels say of them, "" = nothing
    seen_ms : (P,) int64     time of the newest sample of each observer
    usable : (P, H) int8     the proxy's own view: 1 usable, 0 not, -1 not told
    data_as_of_ms : newest sample time
    arrived : series that had new samples in this evaluation
    interval_ms : how often observers report, estimated
    bounds : upper bounds of the latency buckets as written, ascending, the last is ``+Inf``; empty = no latency
    generation : grows when rows and columns get other numbers
    """

    def __init__(self, name: str, policy: Policy, state: ServiceState) -> None:
        self.name = name
        self.policy = policy
        self.ejector = Ejector(name, policy)
        self.state = state
        self.observers: list[str] = []
        self.observer_zones: list[str] = []
        self.endpoints: list[str] = []
        self.zones: list[str] = []
        self.versions: list[str] = []
        self.seen_ms: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.usable: NDArray[np.int8] = np.zeros((0, 0), dtype=np.int8)
        self.data_as_of_ms = NEVER_MS
        self.arrived = 0
        self.interval_ms = 1_000.0
        self._interval_known = False
        self.bounds: tuple[str, ...] = ()
        self.generation = 0
        self.groups: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.window = ServiceWindow(policy, 0, 0)
        self._group_zones: tuple[str, ...] = ()
        self._rows: dict[str, int] = {}
        self._columns: dict[str, int] = {}
        self._bounds_wanted: frozenset[str] = frozenset()

    def use(self, policy: Policy) -> None:
        """Judge by another policy from now on; what was counted is forgotten when its windows differ."""
        if policy == self.policy:
            return
        self.policy = policy
        self.ejector = Ejector(self.name, policy)
        valid = self.window.valid_from_ms
        self.window = ServiceWindow(policy, *self.window.shape)
        self.window.valid_from_ms = valid
        self._group_zones = ()
        self.fit()

    def observer(self, name: str, zone: str) -> int:
        """Row of an observer; a new one gets the next."""
        if name not in self._rows:
            self._rows[name] = len(self.observers)
            self.observers.append(name)
            self.observer_zones.append(zone)
        return self._rows[name]

    def endpoint(self, name: str, zone: str = "", version: str = "") -> int:
        """Column of an endpoint; a new one gets the next."""
        at = self._columns.get(name)
        if at is None:
            at = self._columns[name] = len(self.endpoints)
            self.endpoints.append(name)
            self.zones.append(zone)
            self.versions.append(version)
        else:
            self.zones[at] = zone or self.zones[at]
            self.versions[at] = version or self.versions[at]
        return at

    def column(self, endpoint: str) -> int | None:
        """Column of an endpoint that is known."""
        return self._columns.get(endpoint)

    def want_bounds(self, bounds: Sequence[str]) -> None:
        """Note upper bounds of latency buckets."""
        self._bounds_wanted |= frozenset(bounds)

    def fit(self) -> None:
        """Let arrays have as many rows and columns as there are names."""
        p, h = self.window.shape
        new_p, new_h = len(self.observers), len(self.endpoints)
        if (p, h) != (new_p, new_h):
            self.window.rearrange(_grown(p, new_p), _grown(h, new_h))
            self.seen_ms = np.concatenate((self.seen_ms, np.full(new_p - p, NEVER_MS, dtype=np.int64)))
            usable = np.full((new_p, new_h), -1, dtype=np.int8)
            usable[:p, :h] = self.usable
            self.usable = usable
        zones = sorted(set(self.observer_zones))
        group_zones = tuple(zone for zone in zones for _ in range(GROUPS_PER_ZONE))
        bounds = tuple(sorted(self._bounds_wanted, key=_bound))
        if bounds and (group_zones != self._group_zones or bounds != self.bounds):
            self.bounds, self._group_zones = bounds, group_zones
            self.window.divide_latency(len(group_zones), len(bounds), group_zones)
        if len(self.groups) != new_p or bounds:
            self.groups = np.array(
                [
                    zones.index(zone) * GROUPS_PER_ZONE + zlib.crc32(name.encode()) % GROUPS_PER_ZONE
                    for name, zone in zip(self.observers, self.observer_zones, strict=True)
                ],
                dtype=np.int64,
            )

    def forget_gone(self, now_ms: int, listed: Container[str]) -> bool:
        """Let go of observers and endpoints that nobody has heard of for long; whether there were any.

        Endpoints stay while a topology source lists them or their state is remembered, unless the service is silent.
        """
        remembered: Container[str] = self.state.endpoints if self.data_as_of_ms > now_ms - FORGET_MS else ()
        rows = np.flatnonzero(self.seen_ms > now_ms - FORGET_MS)
        seen = self.window.last_seen_ms > now_ms - FORGET_MS
        columns = np.flatnonzero(
            [bool(seen[h]) or name in listed or name in remembered for h, name in enumerate(self.endpoints)]
        )
        if (len(rows), len(columns)) == self.window.shape:
            return False
        self.window.rearrange(rows, columns)
        self.seen_ms, self.usable = self.seen_ms[rows], self.usable[np.ix_(rows, columns)]
        self.observers = [self.observers[p] for p in rows]
        self.observer_zones = [self.observer_zones[p] for p in rows]
        self.endpoints = [self.endpoints[h] for h in columns]
        self.zones, self.versions = [self.zones[h] for h in columns], [self.versions[h] for h in columns]
        self._rows = {name: p for p, name in enumerate(self.observers)}
        self._columns = {name: h for h, name in enumerate(self.endpoints)}
        self.generation += 1
        self.fit()
        return True

    def note_interval(self, begin_ms: NDArray[np.int64], times_ms: NDArray[np.int64]) -> None:
        """Learn from increments how often observers report."""
        if len(times_ms):
            middle = float(np.median(times_ms - begin_ms))
            gain = _INTERVAL_GAIN if self._interval_known else 1.0
            self._interval_known = True
            self.interval_ms += gain * (middle - self.interval_ms)

    def note_seen(
        self, observers: NDArray[np.int64], endpoints: NDArray[np.int64], times_ms: NDArray[np.int64]
    ) -> None:
        """Note that series had samples, (n,) each."""
        if len(times_ms):
            self.arrived += len(times_ms)
            np.maximum.at(self.seen_ms, observers, times_ms)
            self.window.seen(endpoints, times_ms)
            self.data_as_of_ms = max(self.data_as_of_ms, int(times_ms.max()))

    def known_observers(self, now_ms: int) -> NDArray[np.bool_]:
        """Observers that are expected to report, (P,) bool."""
        return self.seen_ms > now_ms - KNOWN_MS

    def reporting_observers(self, now_ms: int) -> NDArray[np.bool_]:
        """Observers that do report, (P,) bool."""
        limit_ms = self.policy.guards.staleness_factor * (self.policy.eval_interval_ms + self.interval_ms)
        return self.seen_ms > now_ms - limit_ms

    def topology(self, facts: dict[str, Fact], present: NDArray[np.bool_], now_ms: int) -> Topology:
        """What the service consists of.

        Parameters
        ----------
        facts : of a topology source, by endpoint; empty = nobody told
        present : (H,) bool, endpoints with recent series
        """
        nothing = Fact("")
        told = [facts.get(name, nothing) for name in self.endpoints]
        reporting = self.reporting_observers(now_ms)[:, None]
        views = (self.usable >= 0) & reporting
        against = (self.usable == 0) & reporting
        out = 2 * np.count_nonzero(against, axis=0) > np.maximum(np.count_nonzero(views, axis=0), 1)
        return Topology(
            service=self.name,
            observers=tuple(self.observers),
            observer_zones=tuple(self.observer_zones),
            endpoints=tuple(self.endpoints),
            zones=tuple(fact.zone or zone for fact, zone in zip(told, self.zones, strict=True)),
            versions=tuple(fact.version or version for fact, version in zip(told, self.versions, strict=True)),
            priorities=tuple(fact.priority for fact in told),
            listed=tuple(
                name in facts if facts else bool(seen)
                for name, seen in zip(self.endpoints, present.tolist(), strict=True)
            ),
            unavailable=tuple(
                fact.health not in _AVAILABLE or bool(gone) for fact, gone in zip(told, out.tolist(), strict=True)
            ),
            deploying=tuple(fact.deploying for fact in told),
            told=bool(facts),
        )


def _grown(old: int, new: int) -> NDArray[np.int64]:
    sources = np.full(new, -1, dtype=np.int64)
    sources[:old] = np.arange(old)
    return sources


def _bound(text: str) -> float:
    return float(text)
