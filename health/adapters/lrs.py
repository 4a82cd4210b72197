"""Envoy's load reports (``LoadReportingService/StreamLoadStats``) as series of the mapping ``generic``.

Each report tells what a proxy sent to each endpoint since the last one. The counts are added up to running totals, so
that everything that reads counters reads them too: the detectors, replay, a person with PromQL. They begin anew with
each start of the process, and with each proxy or endpoint that was silent for long, which readers take for what it is.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from health.adapters.eds import service_name
from health.adapters.xds import EndpointLoad, LoadReport, load_stats_response, read_load_report
from health.series import Store
from tsdb.batch import AppendResult, SampleBatch
from tsdb.clock import Clock
from tsdb.errors import Reason, RejectedError

SERVICE = "envoy.service.load_stats.v3.LoadReportingService"
METHOD = "StreamLoadStats"
SUCCESS = "endpoint_attempts_success_total"
ERROR = "endpoint_attempts_error_total"
JOB = "lrs"
LINGER_MS = 600_000
"""A proxy does not report an endpoint that it sent nothing to: its totals are written again for so long, as a scrape
would, since zero traffic is not absence. As long as an observer counts as known."""


class _Observer:
    """Running totals of one proxy.

    Attributes
    ----------
    totals : (n, 2) float64   successes and errors
    heard_ms : (n,) int64     when the endpoint was last reported
    written_ms : time of the newest samples
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], int] = {}
        self.refs: NDArray[np.uint32] = np.zeros((0, 2), dtype=np.uint32)
        self.totals: NDArray[np.float64] = np.zeros((0, 2))
        self.heard_ms: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.written_ms = 0

    def add(self, keys: list[tuple[str, str]], refs: list[tuple[int, int]], now_ms: int) -> None:
        n = len(self.rows)
        self.rows.update({key: n + i for i, key in enumerate(keys)})
        self.refs = np.concatenate((self.refs, np.array(refs, dtype=np.uint32)))
        self.totals = np.concatenate((self.totals, np.zeros((len(keys), 2))))
        self.heard_ms = np.concatenate((self.heard_ms, np.full(len(keys), now_ms)))

    def forget(self, before_ms: int) -> None:
        stays = self.heard_ms > before_ms
        if stays.all():
            return
        keys = [key for key, kept in zip(self.rows, stays.tolist(), strict=True) if kept]
        self.rows = {key: i for i, key in enumerate(keys)}
        self.refs, self.totals, self.heard_ms = self.refs[stays], self.totals[stays], self.heard_ms[stays]


class LoadReports:
    """Takes load reports of proxies.

    Parameters
    ----------
    store : the tenant that is judged
    interval_ms : how often proxies are asked to report

    Attributes
    ----------
    streams, reports, loads : open now; taken so far; counts of one endpoint in them
    """

    def __init__(self, store: Store, clock: Clock, interval_ms: int) -> None:
        self._store = store
        self._clock = clock
        self._interval_ms = interval_ms
        self._lock = threading.Lock()
        self._observers: dict[str, _Observer] = {}
        self._registry = store.registry  # numbers the series of all observers
        self.streams = self.reports = self.loads = 0

    async def serve(self, requests: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """Serve one stream.

        Raises
        ------
        RejectedError        not a load report, or of a proxy without a name, or too many series
        UnavailableError     the store cannot take it now
        """
        node = zone = ""
        self.streams += 1
        try:
            async for message in requests:
                report = read_load_report(message)
                if not node:
                    node, zone = report.node, report.node_zone
                    if not node:
                        raise RejectedError(Reason.MALFORMED, "node.id is missing: it is the observer's name")
                    yield load_stats_response(self._interval_ms)
                await asyncio.to_thread(self.take, node, zone, report)
        finally:
            self.streams -= 1

    def take(self, node: str, zone: str, report: LoadReport) -> None:
        """Write what one report says; from any thread.

        Raises
        ------
        RejectedError, UnavailableError
        """
        with self._lock:
            self._renew()
            future = self._take(node, zone, report)
        if future is not None:
            future.result()

    def _renew(self) -> None:
        """Take the numbers that the tenant's series have now."""
        if self._registry.is_current:
            return
        observers = list(self._observers.values())
        parts = [observer.refs.ravel() for observer in observers]
        self._registry, refs = self._registry.renumbered(np.concatenate([np.zeros(0, np.uint32), *parts]))
        for observer, own in zip(observers, np.split(refs, np.cumsum([len(part) for part in parts])), strict=False):
            observer.refs = own.reshape(-1, 2)

    def _take(self, node: str, zone: str, report: LoadReport) -> Future[AppendResult] | None:
        self.reports += 1
        self.loads += len(report.loads)
        self._forget(self._clock.now_ms())
        observer = self._observers.setdefault(node, _Observer())
        now_ms = max(self._clock.now_ms(), observer.written_ms + 1)
        new = {(service_name(load.cluster), load.endpoint): load for load in report.loads}
        keys = [key for key in new if key not in observer.rows]
        begin_ms = max(observer.written_ms, now_ms - max(report.clusters.values(), default=self._interval_ms)) + 1
        first = len(observer.rows)
        if keys:
            refs = [self._refs(node, zone, key, new[key]) for key in keys]
            observer.add(keys, refs, now_ms)
        if not observer.rows:
            return None
        before = observer.totals[first:].copy()  # a counter counts from its first sample on
        at = np.array(
            [observer.rows[service_name(load.cluster), load.endpoint] for load in report.loads], dtype=np.intp
        )
        counts = np.array([(load.success, load.error) for load in report.loads], dtype=np.float64).reshape(-1, 2)
        np.add.at(observer.totals, at, counts)
        observer.heard_ms[at] = now_ms
        observer.written_ms = now_ms
        refs_all = np.concatenate((observer.refs[first:].ravel(), observer.refs.ravel()))
        values = np.concatenate((before.ravel(), observer.totals.ravel()))
        times = np.full(len(values), now_ms, dtype=np.int64)
        times[: before.size] = min(begin_ms, now_ms - 1)
        return self._store.append(SampleBatch(refs_all, times, values.view(np.uint64), self._registry))

    def _refs(self, node: str, zone: str, key: tuple[str, str], load: EndpointLoad) -> tuple[int, int]:
        labels = {"job": JOB, "instance": node, "service": key[0], "endpoint": key[1]}
        labels |= {name: value for name, value in (("observer_zone", zone), ("zone", load.zone)) if value}
        success, error = (self._registry.resolve({"__name__": name, **labels}) for name in (SUCCESS, ERROR))
        return success, error

    def _forget(self, now_ms: int) -> None:
        """Let go of proxies and endpoints that were not heard of for long."""
        for name, observer in list(self._observers.items()):
            if observer.written_ms and observer.written_ms <= now_ms - LINGER_MS:
                del self._observers[name]
            else:
                observer.forget(now_ms - LINGER_MS)
