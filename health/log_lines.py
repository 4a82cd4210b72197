"""Events written to the tenant's log store as lines, so that LogQL finds them beside everything else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Protocol

import numpy as np
import orjson

from health.verdicts import Kind
from tsdb.errors import MeshpulseError
from tsdb.labels import Labels
from tsdb.logs.batch import LogBatch
from tsdb.logs.frame import LEVELS, Texts

log = logging.getLogger(__name__)

PENDING_MAX = 10_000
"""Events that may wait for the store, about 10 MB; newer ones are left out then, and counted."""
JOB, COMPONENT = "meshpulse", "health"
_WARNINGS = frozenset(
    {
        Kind.EJECTED,
        Kind.BLOCKED,
        Kind.INCIDENT,
        Kind.OBSERVER_BROKEN,
        Kind.OBSERVERS_SPLIT,
        Kind.ZONE_DEGRADED,
        Kind.VERSION_DEGRADED,
        Kind.FREEZE,
        Kind.CAPACITY_LOST,
        Kind.LEASE_EXPIRED,
        Kind.NACK,
        Kind.OVERWRITTEN,
    }
)


class Logs(Protocol):
    """What is written to: the log store of a tenant."""

    def resolve(self, labels: Labels) -> int: ...

    def append(self, batch: LogBatch) -> Future[int]: ...


class EventLines:
    """A listener of the loop: one JSON line an event, in ``{job="meshpulse", component="health", service=...}``.

    Parameters
    ----------
    logs : where the lines go
    executor : where writing waits; the loop never does

    Attributes
    ----------
    dropped : events that were left out, because the store was too slow or refused them
    """

    def __init__(self, logs: Logs, executor: Executor) -> None:
        self._logs = logs
        self._executor = executor
        self._lock = threading.Lock()
        self._pending = 0
        self.dropped = 0

    def __call__(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Take new events; returns at once."""
        with self._lock:
            if self._pending + len(events) > PENDING_MAX:
                self.dropped += len(events)
                return
            self._pending += len(events)
        self._executor.submit(self._write, tuple(events))

    def _write(self, events: Sequence[Mapping[str, Any]]) -> None:
        try:
            self._logs.append(self._batch(events)).result()
        except MeshpulseError as error:  # the verdicts do not depend on it, and the journal has the events
            log.warning("%d events were not written as log lines: %s", len(events), error)
            with self._lock:
                self.dropped += len(events)
        except Exception:
            log.exception("a fault of ours while writing events as log lines")
            with self._lock:
                self.dropped += len(events)
        finally:
            with self._lock:
                self._pending -= len(events)

    def _batch(self, events: Sequence[Mapping[str, Any]]) -> LogBatch:
        refs = [
            self._logs.resolve(Labels.of({"job": JOB, "component": COMPONENT, "service": str(event["service"])}))
            for event in events
        ]
        levels = ["warn" if event["type"] in _WARNINGS else "info" for event in events]
        lines = [
            orjson.dumps({"level": level, **event}, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
            for level, event in zip(levels, events, strict=True)
        ]
        # nanoseconds below the millisecond keep the order of what was said at once
        order = np.array([int(event["number"]) % 1_000_000 for event in events], np.int64)
        texts, nothing = Texts.of(lines), Texts.of([b""] * len(events))
        return LogBatch(
            np.array(refs, np.uint32),
            np.array([int(event["time_ms"]) for event in events], np.int64) * 1_000_000 + order,
            texts.offsets,
            texts.data,
            nothing.offsets,
            nothing.data,
            np.array([LEVELS.index(level) for level in levels], np.uint8),
        )
