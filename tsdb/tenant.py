"""One tenant: its series registry in front of its shards; what ingest writes to."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsdb.batch import STATUS_REASON, AppendResult, SampleBatch, SampleStatus
from tsdb.blockstore import BlockStore
from tsdb.disk import DiskGuard
from tsdb.errors import Reason
from tsdb.exemplars import ExemplarRing
from tsdb.generation import Generation
from tsdb.index.registry import NO_REF, SeriesRegistry
from tsdb.kernels.shard import scatter, unlogged
from tsdb.limits import SeriesLimits, TimeLimits
from tsdb.logs.store import LogStore
from tsdb.reader import Reader
from tsdb.replicas import Replicas, ReplicaSource
from tsdb.shard import MIN_MS, Shard
from tsdb.tally import Tally
from tsdb.wal.framing import Record
from tsdb.wal.log import LocalLog
from tsdb.wal.records import (
    Deletion,
    Kind,
    encode_deletion,
    encode_metadata,
    encode_parts,
    encode_replicas,
    encode_series,
)

FAILOVER_MS = 30_000
"""Silence of an elected replica after which another one is taken: two scrapes of 15 s."""

METADATA_FAMILIES_MAX = 100_000
"""Most metric families with metadata a tenant: ten times a large mesh, about 20 MB."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a metric family is."""

    type: str
    help: str
    unit: str


class ShardBatch(NamedTuple):
    """The part of a batch that goes to one shard, with its encoded log record.

    Attributes
    ----------
    places : (n,) int64, or a slice        of the samples in the whole batch
    """

    shard: Shard
    refs: NDArray[np.uint32]
    ts_ms: NDArray[np.int64]
    bits: NDArray[np.uint64]
    places: NDArray[np.int64] | slice
    body: bytes
    max_ms: int


class AppendOperation:
    """A batch on its way through the log: dictionary and samples first, the heads after the sync."""

    __slots__ = ("_batch", "_keep", "_parts", "_source", "_tenant")

    def __init__(self, tenant: Tenant, batch: SampleBatch, source: ReplicaSource | None = None) -> None:
        self._tenant = tenant
        self._batch = tenant.renumbered(batch)
        self._parts = tenant.split(self._batch)
        self._source = source
        self._keep: bool | None = None if source else True

    @property
    def n_bytes(self) -> int:
        """Bytes the log will write for the samples; its queue is bounded by them."""
        return sum(len(part.body) for part in self._parts)

    def records(self, segment: int) -> list[Record]:
        """What this segment needs: series it does not define yet, then the samples."""
        tenant = self._tenant
        self._renew()
        if self._keep is None and self._source is not None:  # once: a write that is tried again is decided already
            self._keep = tenant.replicas.decide(self._source)
        if not self._keep:
            return []
        out = tenant.metadata_records({}, segment)
        if self._source is not None:
            out.extend(tenant.replica_records(self._source.cluster, segment))
        out.extend(tenant.series_records(self._batch.refs, segment))
        out.extend(Record(Kind.SAMPLES, tenant.name, p.shard.number, p.body, p.max_ms) for p in self._parts)
        return out

    def apply(self, position: int) -> AppendResult:  # noqa: ARG002
        """Store the samples; what is refused follows from the order of the log alone."""
        if not self._keep:
            return self._tenant.apply_nothing(len(self._batch))
        self._renew()
        return self._tenant.apply(self._parts, len(self._batch))

    def _renew(self) -> None:
        """Take the numbers of the generation of now (committer thread, which changes it)."""
        if not self._batch.registry.is_current:
            self._batch = self._tenant.renumbered(self._batch)
            self._parts = self._tenant.split(self._batch)


class MetadataOperation:
    """Metric families on their way through the log."""

    __slots__ = ("_families", "_tenant")

    def __init__(self, tenant: Tenant, families: Mapping[str, Metadata]) -> None:
        self._tenant = tenant
        self._families = families

    @property
    def n_bytes(self) -> int:
        """About what the log will write."""
        return sum(len(name) + len(m.help) + len(m.unit) + 16 for name, m in self._families.items())

    def records(self, segment: int) -> list[Record]:
        """The whole dictionary once a segment (each replays alone), after that what changed."""
        return self._tenant.metadata_records(self._families, segment)

    def apply(self, position: int) -> None:  # noqa: ARG002
        """Keep the families."""
        self._tenant.keep_metadata(self._families)


class DeleteOperation:
    """A deletion on its way through the log: everything logged before it is gone when it is applied."""

    __slots__ = ("_body", "_deletion", "_rows", "_tenant")

    def __init__(self, tenant: Tenant, deletion: Deletion) -> None:
        self._tenant = tenant
        self._deletion = deletion
        self._body = encode_deletion(deletion)
        # The blocks are searched here, on the caller's thread: they must not change until it is applied.
        self._rows = [shard.rows_to_delete(deletion) for shard in tenant.shards]

    @property
    def n_bytes(self) -> int:
        """Bytes the log will write."""
        return len(self._body)

    def records(self, segment: int) -> list[Record]:  # noqa: ARG002
        """One for each shard. They concern no samples of their own: those they delete are in front of them."""
        tenant = self._tenant
        return [Record(Kind.TOMBSTONE, tenant.name, s.number, self._body, MIN_MS) for s in tenant.shards]

    def apply(self, position: int) -> None:
        """Delete."""
        found = self._tenant.refs_of(self._deletion)
        for shard, rows in zip(self._tenant.shards, self._rows, strict=True):
            shard.delete(self._deletion, found, position, rows)


class BeginGeneration:
    """Forget the series that have ended, between two writes; nothing is logged, a replay knows series by labels."""

    __slots__ = ("_copy", "_refs", "_tenant")
    n_bytes = 0

    def __init__(self, tenant: Tenant) -> None:
        """Copy the series that are held now, on the caller's thread; no cut may run meanwhile."""
        self._tenant = tenant
        self._refs = np.sort(np.concatenate([shard.refs_held() for shard in tenant.shards]))
        self._copy = tenant.registry.copied(self._refs)

    def records(self, segment: int) -> list[Record]:  # noqa: ARG002
        """Nothing to log."""
        return []

    def apply(self, position: int) -> None:  # noqa: ARG002
        """Add what has come since, then let everybody use the new numbers."""
        self._tenant.begin_generation(self._refs, self._copy)


class Tenant(Reader):
    """All series of one tenant: written here, and read as the generation of now numbers them.

    A query takes :meth:`view` instead, which keeps its numbers.
    """

    def __init__(
        self,
        name: str,
        store: BlockStore,
        log: LocalLog,
        shard_count: int,
        span_ms: int,
        series_limits: SeriesLimits,
        time_limits: TimeLimits,
        tally: Tally,
        disk: DiskGuard,
        logs: LogStore,
        failover_ms: int = FAILOVER_MS,
    ) -> None:
        # Slots that rest come on top of the active series.
        slots_max = 2 * series_limits.active_series_max
        generation = Generation(SeriesRegistry(series_limits))
        super().__init__(
            generation,
            tuple(
                Shard(k, f"tenants/{name}/shard-{k}", store, generation, shard_count, slots_max, span_ms)
                for k in range(shard_count)
            ),
        )
        self.name = name
        self.logs = logs
        self._former: weakref.WeakSet[SeriesRegistry] = weakref.WeakSet()  # somebody still has numbers of theirs
        self.generations = 1
        self._log = log
        self._tally = tally
        self._disk = disk
        self._time_limits = time_limits
        self.exemplars = ExemplarRing(self.registry)
        self.replicas = Replicas(failover_ms)
        self._metadata: dict[str, Metadata] = {}
        self._metadata_segment = -1
        self.samples_appended = 0

    @property
    def registry(self) -> SeriesRegistry:
        """The series and their numbers now."""
        return self.generation.registry

    def view(self) -> Reader:
        """A reader that keeps the numbers of now, whatever is forgotten meanwhile."""
        return Reader(self.generation, self.shards)

    # -- forgetting

    def held_series(self) -> int:
        """Series of which a head holds a sample."""
        return sum(len(shard.refs_held()) for shard in self.shards)

    def begin_generation(self, refs: NDArray[np.uint32], copy: SeriesRegistry) -> None:
        """Give the tenant the numbers of another registry (committer thread).

        Parameters
        ----------
        refs : ascending; copy : has these series already, numbered by their places
        """
        former = self.registry
        held = np.sort(np.concatenate([shard.refs_held() for shard in self.shards]))
        since = held[~np.isin(held, refs)]
        numbers = np.full(len(former), NO_REF, np.uint32)
        numbers[refs] = np.arange(len(refs), dtype=np.uint32)
        numbers[since] = copy.adopt(*former.canonical(since))
        generation = Generation(copy)
        now_s = time.monotonic()
        for shard in self.shards:
            shard.begin_generation(generation, numbers, now_s)
        former.give_way(copy, numbers)
        for older in self._former:
            older.skip(former)
        self._former.add(former)
        self.exemplars.renumber(former)
        self.generation = generation
        self.generations += 1

    def renumbered(self, batch: SampleBatch) -> SampleBatch:
        """The batch with the numbers of now."""
        registry, refs = batch.registry.renumbered(batch.refs)
        return batch if registry is batch.registry else SampleBatch(refs, batch.ts_ms, batch.bits, registry)

    # -- writing

    def append(self, batch: SampleBatch, source: ReplicaSource | None = None) -> Future[AppendResult]:
        """Log a batch, store it, say what became of each sample.

        The future resolves after the records are on disk and the samples are readable.

        Parameters
        ----------
        source : who of a pair of senders it comes from; nothing of the one that is not elected is stored

        Raises
        ------
        DiskFullError, OverloadedError, LogFailedError        nothing of the batch was kept
        """
        self._disk.check()
        return self._log.submit(AppendOperation(self, batch, source))

    def split(self, batch: SampleBatch) -> list[ShardBatch]:
        """Cut a batch by shard and encode the log records; runs on the caller's thread, without the GIL."""
        n = len(batch)
        starts = np.zeros(len(self.shards) + 1, np.int64)
        index: NDArray[np.int64] | None = None
        if len(self.shards) == 1:
            starts[1] = n
            refs, ts_ms, bits = batch.refs, batch.ts_ms, batch.bits
        else:
            refs, ts_ms, bits = np.empty(n, np.uint32), np.empty(n, np.int64), np.empty(n, np.uint64)
            index = np.empty(n, np.int64)
            mask = len(self.shards) - 1
            scatter(
                batch.refs, batch.ts_ms, batch.bits, batch.registry.series_hash, mask, starts, refs, ts_ms, bits, index
            )
        encoded = encode_parts(refs, ts_ms, bits, starts)
        parts = []
        edges = pairwise(starts.tolist())
        for shard, (a, b), body, max_ms in zip(self.shards, edges, encoded.bodies, encoded.max_ms, strict=True):
            if b > a:
                places = slice(None) if index is None else index[a:b]
                parts.append(ShardBatch(shard, refs[a:b], ts_ms[a:b], bits[a:b], places, body, max_ms))
        return parts

    def series_records(self, refs: NDArray[np.uint32], segment: int) -> list[Record]:
        """SERIES records, one a shard, of those series that a log segment does not define yet."""
        new = np.empty(len(refs), np.uint32)
        registry = self.registry
        found = unlogged(refs, segment + 1, self.generation.logged_in.array, new)
        if not found:
            return []
        shard_of = registry.series_hash[new[:found]] & np.uint64(len(self.shards) - 1)
        records = []
        for shard in self.shards:
            own = new[:found][shard_of == shard.number]
            if len(own):
                labels, offsets = registry.canonical(own)
                body = encode_series(own, labels, offsets)
                records.append(Record(Kind.SERIES, self.name, shard.number, body, MIN_MS))
        return records

    def apply(self, parts: Iterable[ShardBatch], size: int) -> AppendResult:
        """Store a logged batch and count what was refused (committer thread)."""
        result = self.store(parts, size)
        if result.rejected:
            self._tally.add_all(result.rejected)
        self.samples_appended += result.accepted
        return result

    def apply_nothing(self, size: int) -> AppendResult:
        """Pass over a batch of a replica that is not elected: its samples come from the other one."""
        self._tally.add(Reason.REPLICA, size)
        return AppendResult(size, duplicate=True)

    def replica_records(self, cluster: str, segment: int) -> list[Record]:
        """Who is elected, as far as a segment does not know it yet."""
        sources = self.replicas.to_log(cluster, segment)
        return [Record(Kind.REPLICAS, self.name, 0, encode_replicas(sources), MIN_MS)] if sources else []

    def store(self, parts: Iterable[ShardBatch], size: int) -> AppendResult:
        """Store samples in log order; replay takes this way too, so it decides the same."""
        status: NDArray[np.uint8] | None = None
        for part in parts:
            decided = part.shard.append(part.refs, part.ts_ms, part.bits, self._time_limits.out_of_order_window_ms)
            if decided is not None:
                status = np.zeros(size, np.uint8) if status is None else status
                status[part.places] = decided
        if status is None:
            return AppendResult(size)
        counts = np.bincount(status, minlength=len(SampleStatus)).tolist()
        rejected = {reason: counts[code] for code, reason in STATUS_REASON.items() if counts[code]}
        return AppendResult(size - sum(rejected.values()), rejected, status)

    def refs_of(self, deletion: Deletion) -> NDArray[np.uint32]:
        """Ascending series of the registry that a deletion concerns."""
        found = [self.registry.find(selector) for selector in deletion.selectors]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint32)

    # -- metadata

    def put_metadata(self, families: Iterable[tuple[str, str, str, str]]) -> Future[None] | None:
        """Log and keep (family, type, help, unit) rows; None when nothing is new.

        Families beyond the limit are refused and counted.
        """
        changed: dict[str, Metadata] = {}
        for name, kind, text, unit in families:
            entry = Metadata(kind, text, unit)
            if self._metadata.get(name) == entry:
                continue
            if name not in self._metadata and len(self._metadata) + len(changed) >= METADATA_FAMILIES_MAX:
                self._tally.add(Reason.METADATA_LIMIT)
                continue
            changed[name] = entry
        if not changed:
            return None
        return self._log.submit(MetadataOperation(self, changed))

    def metadata_records(self, changed: Mapping[str, Metadata], segment: int) -> list[Record]:
        """What a segment must hold: everything with its first write, the changes afterwards."""
        families = changed if segment == self._metadata_segment else {**self._metadata, **changed}
        self._metadata_segment = segment
        if not families:
            return []
        rows = [(name, m.type, m.help, m.unit) for name, m in families.items()]
        return [Record(Kind.METADATA, self.name, 0, encode_metadata(rows), MIN_MS)]

    def keep_metadata(self, families: Mapping[str, Metadata]) -> None:
        """Take over logged families."""
        self._metadata.update(families)

    def metadata(self) -> dict[str, Metadata]:
        """Metric families by name."""
        return dict(self._metadata)
