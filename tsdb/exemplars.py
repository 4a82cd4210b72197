"""Exemplars of one tenant: a bounded ring in memory, oldest out first (decision 12: neither logged nor in blocks)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from tsdb.arena import Arena
from tsdb.errors import Reason
from tsdb.index.registry import SeriesRegistry

EXEMPLARS_MAX = 100_000
"""Exemplars kept a tenant, as many as Prometheus keeps by default: 4 MB of columns."""

LABEL_BYTES_MAX = 16 << 20
"""Bytes of their labels: 160 each, a trace and a span id take 70."""

LABEL_CHARS_MAX = 128
"""Longest labels of one exemplar, names and values together, in characters (OpenMetrics 1.0)."""


class ExemplarStatus(IntEnum):
    """What became of one exemplar."""

    KEPT = 0
    REPEATED = 1  # exactly as one that is kept
    OUT_OF_ORDER = 2  # older than the newest of its series


EXEMPLAR_REASON = {ExemplarStatus.OUT_OF_ORDER: Reason.EXEMPLAR_OUT_OF_ORDER}


@dataclass(frozen=True, slots=True)
class ExemplarRows:
    """Exemplars as columns, sorted by series and time.

    Attributes
    ----------
    refs : (n,) uint32        series
    ts_ms : (n,) int64
    bits : (n,) uint64        float64 bit patterns
    labels : canonical bytes of the labels of each (see tsdb.labels)
    """

    refs: NDArray[np.uint32]
    ts_ms: NDArray[np.int64]
    bits: NDArray[np.uint64]
    labels: Sequence[bytes]


class ExemplarRing:
    """The newest exemplars of all series. One writer at a time and any number of readers, under one lock.

    Parameters
    ----------
    registry : numbers the series
    capacity, label_bytes_max : what is kept
    """

    def __init__(
        self,
        registry: SeriesRegistry,
        capacity: int = EXEMPLARS_MAX,
        label_bytes_max: int = LABEL_BYTES_MAX,
    ) -> None:
        self.registry = registry
        self._capacity = capacity
        self._refs: NDArray[np.uint32] = Arena(np.uint32, capacity).array
        self._ts_ms: NDArray[np.int64] = Arena(np.int64, capacity).array
        self._bits: NDArray[np.uint64] = Arena(np.uint64, capacity).array
        self._label_ends: NDArray[np.int64] = Arena(np.int64, capacity).array  # counted from the first byte ever
        self._label_lengths: NDArray[np.uint32] = Arena(np.uint32, capacity).array
        self._older: NDArray[np.int64] = Arena(np.int64, capacity).array  # number of the series' one before
        self._labels: NDArray[np.uint8] = Arena(np.uint8, label_bytes_max).array
        self._newest: NDArray[np.int64] = Arena(np.int64, registry.capacity).array  # number + 1 of the series' newest
        self._first = 0  # number of the oldest that is kept
        self._next = 0
        self._label_end = 0
        self._lock = threading.Lock()
        self.kept = 0

    def __len__(self) -> int:
        """Exemplars kept now."""
        return self._next - self._first

    def append(
        self,
        refs: NDArray[np.uint32],
        ts_ms: NDArray[np.int64],
        bits: NDArray[np.uint64],
        labels: Sequence[bytes],
        registry: SeriesRegistry,
    ) -> NDArray[np.uint8]:
        """Keep exemplars, in order.

        Parameters
        ----------
        registry : numbers the series; it may have given way to another one
        refs : (n,) uint32; ts_ms : (n,) int64; bits : (n,) uint64
        labels : canonical bytes of each, none longer than the ring

        Returns
        -------
        (n,) uint8        an :class:`ExemplarStatus` each
        """
        with self._lock:
            _, refs = registry.renumbered(refs, passive=True)
            rows = zip(refs.tolist(), ts_ms.tolist(), bits.tolist(), labels, strict=True)
            status: NDArray[np.uint8] = np.array([self._append(*row) for row in rows], np.uint8)
        return status

    def _append(self, ref: int, ts_ms: int, bits: int, labels: bytes) -> ExemplarStatus:
        newest = int(self._newest[ref]) - 1
        number = newest
        while number >= self._first:  # a body that is sent again repeats more than the newest
            at = number % self._capacity
            if int(self._ts_ms[at]) < ts_ms:
                break
            if int(self._ts_ms[at]) == ts_ms and int(self._bits[at]) == bits and self._label_bytes(at) == labels:
                return ExemplarStatus.REPEATED
            number = int(self._older[at])
        if newest >= self._first and ts_ms < int(self._ts_ms[newest % self._capacity]):
            return ExemplarStatus.OUT_OF_ORDER
        self._make_room(len(labels))
        at = self._next % self._capacity
        self._refs[at], self._ts_ms[at], self._bits[at] = ref, ts_ms, bits
        self._older[at] = newest
        self._put_labels(labels)
        self._label_ends[at], self._label_lengths[at] = self._label_end, len(labels)
        self._next += 1
        self._newest[ref] = self._next
        self.kept += 1
        return ExemplarStatus.KEPT

    def renumber(self, former: SeriesRegistry) -> None:
        """Take the numbers of the registry that the former one has given way to."""
        with self._lock:
            kept = np.arange(self._first, self._next)
            at = kept % self._capacity
            # Not those of a series without samples yet: it is made again, so that its exemplars stay findable.
            self.registry, self._refs[at] = former.renumbered(self._refs[at], passive=True)
            self._newest = Arena(np.int64, self.registry.capacity).array
            self._newest[self._refs[at]] = kept + 1

    def _make_room(self, label_bytes: int) -> None:
        if self._next - self._first == self._capacity:
            self._first += 1
        floor = self._label_end + label_bytes - len(self._labels)
        while self._first < self._next:
            at = self._first % self._capacity
            if int(self._label_ends[at]) - int(self._label_lengths[at]) >= floor:
                return
            self._first += 1

    def _put_labels(self, labels: bytes) -> None:
        begin = self._label_end % len(self._labels)
        room = len(self._labels) - begin
        data: NDArray[np.uint8] = np.frombuffer(labels, np.uint8)
        self._labels[begin : begin + len(data)] = data[:room]
        self._labels[: max(0, len(data) - room)] = data[room:]
        self._label_end += len(data)

    def _label_bytes(self, at: int) -> bytes:
        length = int(self._label_lengths[at])
        begin = (int(self._label_ends[at]) - length) % len(self._labels)
        head = self._labels[begin : begin + length].tobytes()
        return head + self._labels[: length - len(head)].tobytes()

    def select(
        self, refs: NDArray[np.uint32], mint_ms: int, maxt_ms: int, registry: SeriesRegistry
    ) -> ExemplarRows | None:
        """Exemplars of some series in a time range, both ends included; None when others have these numbers now."""
        with self._lock:
            if registry is not self.registry:
                return None
            kept = np.arange(self._first, self._next) % self._capacity
            kept = kept[(self._ts_ms[kept] >= mint_ms) & (self._ts_ms[kept] <= maxt_ms)]
            kept = kept[np.isin(self._refs[kept], refs)]
            kept = kept[np.lexsort((self._ts_ms[kept], self._refs[kept]))]
            labels = [self._label_bytes(at) for at in kept.tolist()]
            return ExemplarRows(self._refs[kept], self._ts_ms[kept], self._bits[kept], labels)
