"""What a log store writes to the process' one log: batches and requests to delete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tsdb.logs.batch import LogBatch, encode_batch
from tsdb.wal.framing import Record
from tsdb.wal.records import Kind

LOG_SHARD = 0x8000
"""Shard number of a tenant's logs in the write-ahead log; metrics have the numbers below."""


class Appender(Protocol):
    """The store of a batch."""

    name: str

    def stream_records(self, refs: NDArray[np.uint32], segment: int) -> list[Record]:
        """The STREAM record of those streams that a log segment does not define yet, if any."""
        ...

    def apply(self, batch: LogBatch, position: int) -> int:
        """Append a logged batch; the number of entries that were new."""
        ...


class AppendOperation:
    """A batch on its way through the log."""

    __slots__ = ("_batch", "_bodies", "_max_ms", "_store")

    def __init__(self, store: Appender, batch: LogBatch) -> None:
        self._store = store
        self._batch = batch
        self._bodies = encode_batch(batch)
        self._max_ms = int(batch.ts_ns.max()) // 1_000_000

    @property
    def n_bytes(self) -> int:
        """Bytes of the records."""
        return sum(map(len, self._bodies))

    def records(self, segment: int) -> list[Record]:
        """Streams that the segment does not define yet, then the rows."""
        out = self._store.stream_records(self._batch.refs, segment)
        out += [Record(Kind.LOG_ROWS, self._store.name, LOG_SHARD, body, self._max_ms) for body in self._bodies]
        return out

    def apply(self, position: int) -> int:
        """Append; the number of entries that were new."""
        self._bodies.clear()
        return self._store.apply(self._batch, position)


class DeleteOperation:
    """A request to delete rows, or its withdrawal, on its way through the log."""

    __slots__ = ("_apply", "_body", "_created_ms", "_name")

    def __init__(self, name: str, body: bytes, created_ms: int, apply: Callable[[int], None]) -> None:
        self._name = name
        self._body = body
        self._created_ms = created_ms
        self._apply = apply

    @property
    def n_bytes(self) -> int:
        """Bytes of the record."""
        return len(self._body)

    def records(self, segment: int) -> list[Record]:  # noqa: ARG002
        """The record."""
        return [Record(Kind.LOG_DELETE, self._name, LOG_SHARD, self._body, self._created_ms)]

    def apply(self, position: int) -> None:
        """In force."""
        self._apply(position)
