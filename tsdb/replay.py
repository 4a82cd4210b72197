"""From log records back into heads: the same decisions, in the same order, as when they were written."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tsdb.errors import CorruptionError
from tsdb.kernels.shard import NO_SLOT
from tsdb.replicas import ReplicaSource
from tsdb.shard import Shard
from tsdb.tenant import Metadata, ShardBatch, Tenant
from tsdb.wal.log import LocalLog, ReplayedRecord
from tsdb.wal.records import Kind, decode_deletion, decode_metadata, decode_replicas, decode_samples, decode_series

CUT_CHECK_SAMPLES = 4_000_000
"""Samples between two looks at whether a head must be cut on the way: about 40 MB of head."""


class Replay:
    """State of one replay; its counts stay readable afterwards.

    Parameters
    ----------
    tenant : name -> tenant, made when it is new
    cut : called with a shard and the position reached, cuts it when it is due
    """

    def __init__(self, tenant: Callable[[str], Tenant], cut: Callable[[Shard, int], None]) -> None:
        self._tenant = tenant
        self._cut = cut
        self._numbers: dict[tuple[str, int], NDArray[np.uint32]] = {}  # log number -> registry number
        self._segment = -1
        self._until_cut = CUT_CHECK_SAMPLES
        self.samples = 0
        self.records = 0
        self.seconds = 0.0

    def run(self, log: LocalLog) -> None:
        """Replay everything the log holds."""
        begin = time.perf_counter()
        for record in log.replay():
            if record.segment != self._segment:
                # The dictionary is local to a segment: each replays alone.
                self._numbers.clear()
                self._segment = record.segment
            try:
                lost = self._take(record)
                if lost:
                    what = "samples of series whose SERIES record is damaged"
                    if record.kind == Kind.LOG_ROWS:
                        what = "rows of log streams whose STREAM record is damaged"
                    log.set_aside(record, f"{lost} {what}")
            except CorruptionError as error:
                # The frame's checksum held: a record of a newer format, or our own fault. Keep it, say so, go on.
                log.set_aside(record, str(error))
            self.records += 1
        self._numbers.clear()
        self.seconds = time.perf_counter() - begin

    def _take(self, record: ReplayedRecord) -> int:
        """Apply one record; the number of samples whose series the segment does not define."""
        tenant = self._tenant(record.tenant)
        if record.kind == Kind.SERIES:
            self._series(tenant, record)
        elif record.kind == Kind.SAMPLES:
            return self._samples(tenant, record)
        elif record.kind == Kind.METADATA:
            tenant.keep_metadata({name: Metadata(t, h, u) for name, t, h, u in decode_metadata(record.body)})
        elif record.kind == Kind.REPLICAS:
            tenant.replicas.restore(ReplicaSource(*row) for row in decode_replicas(record.body))
        elif record.kind == Kind.TOMBSTONE:
            deletion = decode_deletion(record.body)
            tenant.shards[record.shard].delete(deletion, tenant.refs_of(deletion), record.position)
        elif record.kind == Kind.STREAM:
            tenant.logs.replay_streams(record.body, record.segment)
        elif record.kind == Kind.LOG_ROWS:
            return tenant.logs.replay_rows(record.body, record.segment, record.position)
        elif record.kind == Kind.LOG_DELETE:
            tenant.logs.replay_deletion(record.body, record.position)
        else:
            raise CorruptionError("write-ahead log", record.position, f"record of unknown kind {record.kind}")
        return 0

    def _series(self, tenant: Tenant, record: ReplayedRecord) -> None:
        refs, labels, offsets = decode_series(record.body)
        numbers = self._numbers.get((record.tenant, record.shard), np.zeros(0, np.uint32))
        needed = int(refs.max()) + 1 if len(refs) else 0
        if needed > len(numbers):
            grown = np.full(max(needed, 2 * len(numbers)), NO_SLOT, np.uint32)
            grown[: len(numbers)] = numbers
            numbers = grown
        numbers[refs] = tenant.registry.adopt(labels, offsets)
        self._numbers[record.tenant, record.shard] = numbers

    def _samples(self, tenant: Tenant, record: ReplayedRecord) -> int:
        refs, ts_ms, bits = decode_samples(record.body)
        shard = tenant.shards[record.shard]
        keep = np.ones(len(refs), np.bool_)
        if record.position < shard.manifest.next_position:
            keep = ts_ms >= shard.manifest.cut_ms  # the rest is in blocks
        numbers = self._numbers.get((record.tenant, record.shard), np.zeros(0, np.uint32))
        known = refs < len(numbers)
        mapped = np.full(len(refs), NO_SLOT, np.uint32)
        mapped[known] = numbers[refs[known]]
        keep &= mapped != NO_SLOT
        lost = len(refs) - int(np.count_nonzero(mapped != NO_SLOT))
        if not keep.all():
            mapped, ts_ms, bits = mapped[keep], ts_ms[keep], bits[keep]
        if not len(mapped):
            return lost
        part = ShardBatch(shard, mapped, ts_ms, bits, np.arange(len(mapped)), b"", 0)
        tenant.store([part], len(mapped))
        self.samples += len(mapped)
        self._until_cut -= len(mapped)
        if self._until_cut < 0:
            self._until_cut = CUT_CHECK_SAMPLES
            for other in tenant.shards:
                if other.head.sample_count:
                    self._cut(other, record.position)
        return lost
