"""Values of unwrapped labels on their way to the window kernels: collected batch by batch, then put in order."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from query.engine.context import Steps
from query.logql.ast import LogRange
from tsdb.frame import LabelTable, SeriesFrame
from tsdb.logs.frame import PAD_BYTES, gather

_VALUE_BYTES = 8


class Samples(Protocol):
    """What collects values."""

    def add(self, series: NDArray[np.int32], ts_ns: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Add the values of some lines, (n,) each."""

    def frame(self, labels: LabelTable) -> SeriesFrame:
        """All of them by series; ``labels`` has a row for each number."""
        ...


class Sorted:
    """In the order of time, lines of one time as they arrived."""

    def __init__(self) -> None:
        self._pieces: list[tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float64]]] = []

    def add(self, series: NDArray[np.int32], ts_ns: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Add some."""
        self._pieces.append((series, ts_ns, values))

    def frame(self, labels: LabelTable) -> SeriesFrame:
        """All of them."""
        series, ts_ns, values = (np.concatenate(parts) for parts in zip(*self._pieces, strict=True))
        order = by_series_and_time(series, ts_ns)
        offsets = np.zeros(len(labels) + 1, np.int64)
        np.cumsum(np.bincount(series, minlength=len(labels)), out=offsets[1:])
        return SeriesFrame(labels, offsets, ts_ns[order], values[order])


class Windowed:
    """By the windows that the lines lie in: for functions that do not ask for the order inside a window.

    The borders of all windows cut time into stretches. Lines of one stretch lie in the same windows, so they need no
    order among themselves and get one time; what is sorted is runs of lines, of which a store that keeps lines by
    stream has few.
    """

    def __init__(self, steps: Steps, log_range: LogRange) -> None:
        self._count = steps.count
        self._step = steps.step_ms
        self._first = steps.first_ms - log_range.offset_ns
        self._range = log_range.range_ns
        self._keys: list[NDArray[np.int64]] = []
        self._times: list[NDArray[np.int64]] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.float64]] = []

    def add(self, series: NDArray[np.int32], ts_ns: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Add some."""
        # the first window that ends at or behind a line, and the first that begins at or behind it
        low = np.clip(-((self._first - ts_ns) // self._step), 0, self._count)
        high = np.clip(-((self._first - self._range - ts_ns) // self._step), 0, self._count)
        inside = low < high
        keys = series * np.int64(2 * self._count + 1) + low + high
        if not inside.all():
            keys, ts_ns, values = keys[inside], ts_ns[inside], values[inside]
        if not len(keys):
            return
        first = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1])
        self._keys.append(keys[first])
        self._times.append(ts_ns[first])
        self._lengths.append(np.diff(first, append=len(keys)))
        self._values.append(values)

    def frame(self, labels: LabelTable) -> SeriesFrame:
        """All of them."""
        if not self._keys:
            return SeriesFrame(labels, np.zeros(len(labels) + 1, np.int64), np.zeros(0, np.int64), np.zeros(0))
        keys, times, lengths = map(np.concatenate, (self._keys, self._times, self._lengths))
        starts = np.cumsum(lengths) - lengths
        order = np.argsort(keys, kind="stable")
        keys, lengths = keys[order], lengths[order]
        same = np.concatenate([[True], keys[1:] != keys[:-1]])
        times = times[order][same][np.cumsum(same) - 1]  # one time for all runs of a stretch
        padding = np.zeros(PAD_BYTES // _VALUE_BYTES)
        values = np.concatenate([*self._values, padding]).view(np.uint8)
        self._values.clear()
        ordered = gather(values, starts[order] * _VALUE_BYTES, lengths * _VALUE_BYTES).data[:-PAD_BYTES]
        offsets = np.zeros(len(labels) + 1, np.int64)
        series = keys // (2 * self._count + 1)
        np.cumsum(np.bincount(series, lengths, len(labels)).astype(np.int64), out=offsets[1:])
        return SeriesFrame(labels, offsets, np.repeat(times, lengths), ordered.view(np.float64))


def by_series_and_time(series: NDArray[np.int32], ts_ns: NDArray[np.int64]) -> NDArray[np.intp]:
    """Order by series, then time, then arrival. Lines come nearly sorted by time, and 16-bit numbers sort by radix."""
    order = np.argsort(ts_ns, kind="stable")
    numbers = series[order]
    narrow = numbers.astype(np.uint16) if len(numbers) and int(numbers.max()) < 1 << 16 else numbers
    return order[np.argsort(narrow, kind="stable")]
