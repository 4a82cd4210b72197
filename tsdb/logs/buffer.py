"""The newest log rows, uncompressed: flat arenas that are filled once and then become a part."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from tsdb.arena import Arena
from tsdb.kernels.log_head import append_rows, choose_rows, rehash_rows
from tsdb.logs.batch import LogBatch
from tsdb.logs.frame import PAD_BYTES, Texts
from tsdb.logs.rows import PlainRows

ROWS_FULL = 1 << 18
LINE_BYTES_FULL = 64 << 20
META_BYTES_FULL = 64 << 20
"""From here on a buffer is sealed: large enough for long runs of each stream, small enough for two in memory."""

BATCH_ROWS_MAX = 1 << 20
BATCH_BYTES_MAX = 128 << 20
_ROWS_MAX = ROWS_FULL + BATCH_ROWS_MAX
_SLOTS_FIRST = 1 << 12


class Buffer:
    """Rows in the order of the log. One writer (the log's committer thread), any number of readers.

    A reader takes :attr:`count` first; the arenas never move.

    Attributes
    ----------
    count : rows that are complete
    min_ns, max_ns : range of their times
    position : last log position in it
    after : log position that all of its rows are beyond
    born : monotonic time of the first row
    """

    def __init__(self, after: int = -1) -> None:
        self.after = after
        self._slots: NDArray[np.int32] = np.zeros(_SLOTS_FIRST, np.int32)
        self._hashes = Arena(np.uint64, _ROWS_MAX)
        self._refs = Arena(np.uint32, _ROWS_MAX)
        self._ts = Arena(np.int64, _ROWS_MAX)
        self._line_offsets = Arena(np.int64, _ROWS_MAX + 1)
        self._lines = Arena(np.uint8, LINE_BYTES_FULL + BATCH_BYTES_MAX + PAD_BYTES)
        self._meta_offsets = Arena(np.int64, _ROWS_MAX + 1)
        self._meta = Arena(np.uint8, META_BYTES_FULL + BATCH_BYTES_MAX + PAD_BYTES)
        self._levels = Arena(np.uint8, _ROWS_MAX)
        self.count = 0
        self.min_ns = self.max_ns = 0
        self.position = -1
        self.born = 0.0

    @property
    def is_full(self) -> bool:
        """Whether it is time for the next buffer; below that a batch of any legal size fits."""
        return self.count >= ROWS_FULL or self.line_bytes >= LINE_BYTES_FULL or self.meta_bytes >= META_BYTES_FULL

    @property
    def line_bytes(self) -> int:
        """Bytes of all lines."""
        return int(self._line_offsets.array[self.count])

    @property
    def meta_bytes(self) -> int:
        """Bytes of all structured metadata."""
        return int(self._meta_offsets.array[self.count])

    def append(self, batch: LogBatch, position: int) -> int:
        """Take over a batch; the number of its rows that were not there yet."""
        before = self.count
        if (before + len(batch)) * 4 > len(self._slots):
            self._grow(before + len(batch))
        count = append_rows(
            batch.refs, batch.ts_ns, batch.line_offsets, batch.line_bytes, batch.meta_offsets, batch.meta_bytes,
            batch.levels, before, self._slots, self._hashes.array, self._refs.array, self._ts.array,
            self._line_offsets.array, self._lines.array, self._meta_offsets.array, self._meta.array,
            self._levels.array,
        )  # fmt: skip
        if count > before:
            new = self._ts.array[before:count]
            low, high = int(new.min()), int(new.max())
            self.min_ns = min(self.min_ns, low) if before else low
            self.max_ns = max(self.max_ns, high) if before else high
            self.born = self.born or time.monotonic()
        self.position = position
        self.count = count
        return int(count) - before

    def _grow(self, rows: int) -> None:
        """A larger table of the rows by hash."""
        size = len(self._slots)
        while rows * 4 > size:
            size *= 2
        slots: NDArray[np.int32] = np.zeros(size, np.int32)
        rehash_rows(self._hashes.array, self.count, slots)
        self._slots = slots

    def find(self, wanted: NDArray[np.uint8], start_ns: int, end_ns: int) -> NDArray[np.int64]:
        """Rows of wanted streams (uint8 by stream number) in the range, in the order of the log."""
        count = self.count
        out = np.empty(count, np.int64)
        return out[: choose_rows(self._refs.array[:count], self._ts.array[:count], wanted, start_ns, end_ns, out)]

    def refs(self) -> NDArray[np.uint32]:
        """(count,) uint32."""
        return self._refs.array[: self.count]

    def ts_ns(self) -> NDArray[np.int64]:
        """(count,) int64."""
        return self._ts.array[: self.count]

    def line_sizes(self) -> NDArray[np.int64]:
        """(count,) int64, bytes of each line."""
        return np.diff(self._line_offsets.array[: self.count + 1])

    def levels(self) -> NDArray[np.uint8]:
        """(count,) uint8."""
        return self._levels.array[: self.count]

    def lines(self) -> Texts:
        """All lines, in place."""
        return Texts(self._lines.array, self._line_offsets.array[: self.count + 1])

    def metadata(self) -> Texts:
        """All structured metadata, in place."""
        return Texts(self._meta.array, self._meta_offsets.array[: self.count + 1])

    def source(self) -> PlainRows:
        """Its rows as a frame reads them."""
        return PlainRows(*self.lines(), *self.metadata(), self.levels())
