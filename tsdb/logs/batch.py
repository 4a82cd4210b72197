"""The unit of writing log lines, and its body in the write-ahead log."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsdb.errors import CorruptionError
from tsdb.logs.frame import PAD_BYTES

BODY_VERSION = 1
RECORD_BYTES_MAX = 16 << 20
"""A record ends with the row that passes this; one row more still fits the log."""

_HEAD_BYTES = 8  # version u8, three zeros, rows u32
_ROW_BYTES = 4 + 8 + 4 + 4 + 1


@dataclass(frozen=True, slots=True)
class LogBatch:
    """Entries of many streams, as parallel arrays.

    Attributes
    ----------
    refs : (n,) uint32             stream of each entry, a number of the tenant's log registry
    ts_ns : (n,) int64
    line_offsets, line_bytes : (n + 1,) int64, uint8        ``PAD_BYTES`` more behind the last line
    meta_offsets, meta_bytes : structured metadata ``name 0xFF value 0xFF ...``, padded like the lines
    levels : (n,) uint8            derived level, see ``tsdb.logs.frame.LEVELS``
    """

    refs: NDArray[np.uint32]
    ts_ns: NDArray[np.int64]
    line_offsets: NDArray[np.int64]
    line_bytes: NDArray[np.uint8]
    meta_offsets: NDArray[np.int64]
    meta_bytes: NDArray[np.uint8]
    levels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.refs)

    def rows(self, first: int, last: int) -> LogBatch:
        """Some rows in a row; nothing is copied."""
        return LogBatch(
            self.refs[first:last],
            self.ts_ns[first:last],
            self.line_offsets[first : last + 1],
            self.line_bytes,
            self.meta_offsets[first : last + 1],
            self.meta_bytes,
            self.levels[first:last],
        )


def encode_rows(batch: LogBatch) -> bytes:
    """Body of a LOG_ROWS record (docs/format/logs.md)."""
    n = len(batch)
    parts = (
        np.array([BODY_VERSION, n], np.uint32),
        batch.refs,
        np.diff(batch.ts_ns, prepend=np.int64(0)),
        np.diff(batch.line_offsets).astype(np.uint32),
        np.diff(batch.meta_offsets).astype(np.uint32),
        batch.levels,
        batch.line_bytes[int(batch.line_offsets[0]) : int(batch.line_offsets[-1])],
        batch.meta_bytes[int(batch.meta_offsets[0]) : int(batch.meta_offsets[-1])],
    )
    return b"".join(np.ascontiguousarray(part).data.cast("B") for part in parts if part.size)


def encode_batch(batch: LogBatch) -> list[bytes]:
    """Bodies of the LOG_ROWS records of a batch: more than one where it is large."""
    before = batch.line_offsets[:-1] + batch.meta_offsets[:-1] + _ROW_BYTES * np.arange(len(batch))
    number = (before - before[0]) // RECORD_BYTES_MAX
    cuts = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(batch)]
    return [encode_rows(batch.rows(first, last)) for first, last in pairwise(cuts)]


def decode_rows(body: bytes) -> LogBatch:
    """What :func:`encode_rows` wrote.

    Raises
    ------
    CorruptionError        the body is no LOG_ROWS body of this version
    """
    if len(body) < _HEAD_BYTES or int.from_bytes(body[:4], "little") != BODY_VERSION:
        raise CorruptionError("record body", 0, "not log rows of a version this program reads")
    n = int.from_bytes(body[4:8], "little")
    if n * _ROW_BYTES > len(body) - _HEAD_BYTES:
        raise CorruptionError("record body", 4, f"{n} log rows do not fit into {len(body)} bytes")
    at = _HEAD_BYTES

    def take(dtype: type, count: int) -> NDArray[Any]:
        nonlocal at
        array: NDArray[Any] = np.frombuffer(body, dtype, count, at)
        at += array.nbytes
        return array

    refs = take(np.uint32, n).astype(np.uint32)
    ts_ns = np.cumsum(take(np.int64, n), dtype=np.int64)
    line_offsets, meta_offsets = np.zeros(n + 1, np.int64), np.zeros(n + 1, np.int64)
    np.cumsum(take(np.uint32, n), out=line_offsets[1:])
    np.cumsum(take(np.uint32, n), out=meta_offsets[1:])
    levels = take(np.uint8, n).astype(np.uint8)
    lines, meta = int(line_offsets[-1]), int(meta_offsets[-1])
    if at + lines + meta != len(body):
        raise CorruptionError("record body", at, "lengths of log rows do not add up")
    data = np.frombuffer(body + bytes(PAD_BYTES), np.uint8)
    return LogBatch(refs, ts_ns, line_offsets, data[at:], meta_offsets, data[at + lines :], levels)
