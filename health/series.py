"""Verdicts written back as series, so that dashboards and alerts see them like everything else."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Protocol

import numpy as np

from health.board import ServiceView
from health.verdicts import Decision, Kind
from tsdb.batch import STALE_BITS, AppendResult, SampleBatch
from tsdb.errors import MeshpulseError
from tsdb.index.registry import SeriesRegistry

log = logging.getLogger(__name__)

STATE = "mesh_health_endpoint_state"
WEIGHT = "mesh_health_endpoint_weight"
EJECTIONS = "mesh_health_ejections_total"
BLOCKED = "mesh_health_blocked_ejections_total"
AGE = "mesh_health_data_age_seconds"

_Key = tuple[str, ...]


class Store(Protocol):
    """What is written to."""

    @property
    def registry(self) -> SeriesRegistry: ...

    def append(self, batch: SampleBatch) -> Future[AppendResult]: ...


class VerdictWriter:
    """Writes the series of all services every few seconds, and at once when something was decided.

    Parameters
    ----------
    store : the tenant
    interval_ms : at least so often
    """

    def __init__(self, store: Store, interval_ms: int) -> None:
        self._store = store
        self._interval_ms = interval_ms
        self._written_ms = 0
        self._registry = store.registry
        self._refs: dict[_Key, int] = {}  # numbers of that registry
        self._states: dict[tuple[str, str, str], str] = {}
        self._ejections: Counter[_Key] = Counter()
        self._blocked: Counter[_Key] = Counter()

    def count(self, decisions: Iterable[Decision], mode: str) -> None:
        """Count ejections and refusals; each refused evaluation counts."""
        for decision in decisions:
            if decision.kind is Kind.EJECTED:
                self._ejections[decision.service, str(decision.detector), mode] += 1
            elif decision.kind is Kind.BLOCKED:
                self._blocked[str(decision.guard), decision.service, mode] += 1

    def write(self, services: Mapping[str, ServiceView], now_ms: int, *, moved: bool) -> None:
        """Write one sample a series when it is time; a state that ended gets a staleness marker."""
        if not moved and now_ms - self._written_ms < self._interval_ms:
            return
        self._written_ms = now_ms
        rows: list[tuple[int, float | None]] = []
        if self._store.registry is not self._registry:
            self._registry = self._store.registry
            self._refs.clear()
        try:
            for service in services.values():
                rows += self._service(service, now_ms)
            for (name, detector, mode), n in self._ejections.items():
                rows.append((self._ref(EJECTIONS, "service", name, "detector", detector, "mode", mode), float(n)))
            for (guard, name, mode), n in self._blocked.items():
                rows.append((self._ref(BLOCKED, "guard", guard, "service", name, "mode", mode), float(n)))
            if rows:
                self._append(rows, now_ms)
        except MeshpulseError as error:  # the store is busy or full: the verdicts themselves do not depend on it
            log.warning("verdict series were not written: %s", error)

    def _service(self, view: ServiceView, now_ms: int) -> Iterable[tuple[int, float | None]]:
        mode = str(view.mode)
        for endpoint in view.endpoints:
            labels = ("service", view.name, "endpoint", endpoint.endpoint, "mode", mode)
            key = (view.name, endpoint.endpoint, mode)
            before = self._states.get(key)
            state = str(endpoint.state)
            if before is not None and before != state:
                yield self._ref(STATE, *labels, "state", before), None
            self._states[key] = state
            yield self._ref(STATE, *labels, "state", state), 1.0
            yield self._ref(WEIGHT, *labels), endpoint.weight_factor
        yield self._ref(AGE, "service", view.name), max(0.0, (now_ms - view.data_as_of_ms) / 1000)

    def _ref(self, name: str, *labels: str) -> int:
        key = (name, *labels)
        ref = self._refs.get(key)
        if ref is None:
            pairs = dict(zip(labels[::2], labels[1::2], strict=True))
            ref = self._refs[key] = self._registry.resolve({"__name__": name, **pairs})
        return ref

    def _append(self, rows: list[tuple[int, float | None]], now_ms: int) -> None:
        refs = np.array([ref for ref, _ in rows], dtype=np.uint32)
        bits = np.array([0.0 if value is None else value for _, value in rows]).view(np.uint64)
        bits[[value is None for _, value in rows]] = STALE_BITS
        self._store.append(SampleBatch(refs, np.full(len(rows), now_ms, dtype=np.int64), bits, self._registry))
