"""One tenant: its series registry in front of its shards; what ingest writes to and the engine reads from."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsdb.arena import Arena
from tsdb.assemble import Selection
from tsdb.batch import STATUS_REASON, AppendResult, SampleBatch, SampleStatus
from tsdb.block.live import LiveBlock
from tsdb.blockstore import BlockStore
from tsdb.chunks import Part
from tsdb.disk import DiskGuard
from tsdb.errors import CorruptionError, LimitError, Reason
from tsdb.exemplars import ExemplarRing
from tsdb.frame import LabelTable, NewestSamples, SeriesFrame, Symbols
from tsdb.index.registry import SeriesRegistry
from tsdb.kernels.shard import NO_SLOT, scatter, unlogged
from tsdb.limits import SelectLimits, SeriesLimits, TimeLimits
from tsdb.logs.store import LogStore
from tsdb.matchers import Matcher, MatchOp
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

LIGHT_SERIES_MAX = 64
"""Series that are read in about 0.2 ms at most, chunks included: less than a thread switch may take."""

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

    __slots__ = ("_keep", "_parts", "_refs", "_source", "_tenant")

    def __init__(
        self,
        tenant: Tenant,
        parts: Sequence[ShardBatch],
        refs: NDArray[np.uint32],
        source: ReplicaSource | None = None,
    ) -> None:
        self._tenant = tenant
        self._parts = parts
        self._refs = refs
        self._source = source
        self._keep: bool | None = None if source else True

    @property
    def n_bytes(self) -> int:
        """Bytes the log will write for the samples; its queue is bounded by them."""
        return sum(len(part.body) for part in self._parts)

    def records(self, segment: int) -> list[Record]:
        """What this segment needs: series it does not define yet, then the samples."""
        tenant = self._tenant
        if self._keep is None and self._source is not None:  # once: a write that is tried again is decided already
            self._keep = tenant.replicas.decide(self._source)
        if not self._keep:
            return []
        out = tenant.metadata_records({}, segment)
        if self._source is not None:
            out.extend(tenant.replica_records(self._source.cluster, segment))
        out.extend(tenant.series_records(self._refs, segment))
        out.extend(Record(Kind.SAMPLES, tenant.name, p.shard.number, p.body, p.max_ms) for p in self._parts)
        return out

    def apply(self, position: int) -> AppendResult:  # noqa: ARG002
        """Store the samples; what is refused follows from the order of the log alone."""
        if not self._keep:
            return self._tenant.apply_nothing(len(self._refs))
        return self._tenant.apply(self._parts, len(self._refs))


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


class Tenant:
    """All series of one tenant.

    Implements ``query.storage.Storage``; every bound of a time range is inclusive and in milliseconds.
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
        self.name = name
        self.logs = logs
        self.registry = SeriesRegistry(series_limits)
        self._log = log
        self._tally = tally
        self._disk = disk
        self._time_limits = time_limits
        # Rows of blocks that get a number when they are read come on top of the active series.
        slots_max = 2 * series_limits.active_series_max
        self.exemplars = ExemplarRing(slots_max)
        self.replicas = Replicas(failover_ms)
        self._slot_of = Arena(np.uint32, slots_max)
        self._slots_ready = 0
        self._slots_lock = threading.Lock()
        self._logged_in = Arena(np.uint32, slots_max)
        self.shards = tuple(
            Shard(
                k,
                f"tenants/{name}/shard-{k}",
                store,
                self.registry,
                shard_count,
                series_limits.active_series_max,
                span_ms,
            )
            for k in range(shard_count)
        )
        for shard in self.shards:
            shard.use_slots(self._slot_of)
        self._metadata: dict[str, Metadata] = {}
        self._metadata_segment = -1
        self.samples_appended = 0

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
        return self._log.submit(AppendOperation(self, self.split(batch), batch.refs, source))

    def split(self, batch: SampleBatch) -> list[ShardBatch]:
        """Cut a batch by shard and encode the log records; runs on the caller's thread, without the GIL."""
        n = len(batch)
        self._ready_slots()
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
                batch.refs, batch.ts_ms, batch.bits, self.registry.series_hash, mask, starts, refs, ts_ms, bits, index
            )
        encoded = encode_parts(refs, ts_ms, bits, starts)
        parts = []
        edges = pairwise(starts.tolist())
        for shard, (a, b), body, max_ms in zip(self.shards, edges, encoded.bodies, encoded.max_ms, strict=True):
            if b > a:
                places = slice(None) if index is None else index[a:b]
                parts.append(ShardBatch(shard, refs[a:b], ts_ms[a:b], bits[a:b], places, body, max_ms))
        return parts

    def _ready_slots(self) -> None:
        """Mark the slots of new series as free (arena pages read as zero, which is a slot)."""
        count = len(self.registry)
        if count > self._slots_ready:
            with self._slots_lock:
                if count > self._slots_ready:
                    self._slot_of.array[self._slots_ready : count] = NO_SLOT
                    self._slots_ready = count

    def series_records(self, refs: NDArray[np.uint32], segment: int) -> list[Record]:
        """SERIES records, one a shard, of those series that a log segment does not define yet."""
        new = np.empty(len(refs), np.uint32)
        found = unlogged(refs, segment + 1, self._logged_in.array, new)
        if not found:
            return []
        shard_of = self.registry.series_hash[new[:found]] & np.uint64(len(self.shards) - 1)
        records = []
        for shard in self.shards:
            own = new[:found][shard_of == shard.number]
            if len(own):
                labels, offsets = self.registry.canonical(own)
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
        self._ready_slots()
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
        self._ready_slots()
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint32)

    # -- reading

    @property
    def symbols(self) -> Symbols:
        """Numbering of all label values of this tenant."""
        return self.registry.symbols

    @property
    def newest_ms(self) -> int:
        """Time of the newest sample; ``MIN_MS`` when there is none."""
        return max(shard.newest_ms for shard in self.shards)

    def select(self, matchers: Sequence[Matcher], mint_ms: int, maxt_ms: int, limits: SelectLimits) -> SeriesFrame:
        """Samples of all series that satisfy every matcher, exact bits, strictly ascending in time.

        Raises
        ------
        LimitError        more series or samples than ``limits`` allow
        """
        return self.open(matchers, mint_ms, maxt_ms, limits).frame()

    def open(self, matchers: Sequence[Matcher], mint_ms: int, maxt_ms: int, limits: SelectLimits) -> Selection:
        """What :meth:`select` returns, still encoded: to be decoded a few series at a time.

        Raises
        ------
        LimitError        more series or samples than ``limits`` allow
        """
        # The head is read before the list of blocks: one published in between is then seen twice, never missed.
        refs = self.registry.find(matchers)
        parts = self._head_parts(refs, mint_ms, maxt_ms)
        warnings: list[str] = []
        hits = self._block_rows(matchers, mint_ms, maxt_ms, warnings)
        if hits:
            wanted = np.unique(np.concatenate([refs, *(r for _, _, r in hits)]))
            place = np.searchsorted(wanted, refs).astype(np.int32)
            parts = [(replace(c, rows=place[c.rows]), replace(late, rows=place[late.rows])) for c, late in parts]
            for live, rows, block_refs in hits:
                try:
                    parts.append(live.part(rows, block_refs, wanted, mint_ms, maxt_ms, warnings))
                except CorruptionError as error:
                    warnings.append(f"partial: {error}")
            refs = wanted
        self._check_limits(refs, parts, limits)
        return Selection(self.registry.label_table(refs), parts, mint_ms, maxt_ms, tuple(warnings))

    def newest(
        self, matchers: Sequence[Matcher], oldest_ms: int, at_ms: int, limits: SelectLimits
    ) -> NewestSamples | None:
        """Newest sample at ``at_ms`` of each series, from what the heads keep at hand.

        None when a sample may lie in a chunk: the series has gone on since, or the time reaches behind the last cut.

        Raises
        ------
        LimitError        more series than ``limits`` allow
        """
        refs = self.registry.find(matchers)
        self._check_limits(refs, (), limits)
        self._ready_slots()
        n = len(refs)
        present, ts_ms, bits = np.zeros(n, np.bool_), np.empty(n, np.int64), np.empty(n, np.uint64)
        for shard, own, rows in self._by_shard(refs):
            found = shard.newest(own, oldest_ms, at_ms)
            if found is None:
                return None
            present[rows], ts_ms[rows], bits[rows] = found
        if any(oldest_ms < shard.cut_floor_ms for shard in self.shards):
            return None  # a cut began meanwhile, or a block has series that the registry does not know yet
        return NewestSamples(self.registry.label_table(refs), present, ts_ms, bits.view(np.float64))

    def is_light(self, matchers: Sequence[Matcher], oldest_ms: int) -> bool:
        """Whether these series are few, found without a regex, and in memory since ``oldest_ms``."""
        if any(matcher.op is not MatchOp.EQUAL for matcher in matchers):
            return False
        if any(oldest_ms < shard.cut_floor_ms for shard in self.shards):
            return False
        return len(self.registry.find(matchers)) <= LIGHT_SERIES_MAX

    def _check_limits(self, refs: NDArray[np.uint32], parts: Sequence[Part], limits: SelectLimits) -> None:
        if len(refs) > limits.series_max:
            raise LimitError(
                Reason.QUERY_LIMIT,
                f"the selector matches {len(refs):,} series, "
                f"the limit is {limits.series_max:,} (limits.query.series_max)",
            )
        samples = sum(int(chunks.counts.sum()) + len(late) for chunks, late in parts)
        if samples > limits.samples_max:
            raise LimitError(
                Reason.QUERY_LIMIT,
                f"the selector reads {samples:,} samples, "
                f"the limit is {limits.samples_max:,} (limits.query.samples_max)",
            )

    def _by_shard(self, refs: NDArray[np.uint32]) -> Iterable[tuple[Shard, NDArray[np.uint32], NDArray[np.int32]]]:
        """Split ascending series over the shards, each with the places of its series in ``refs``."""
        if len(self.shards) == 1:
            yield self.shards[0], refs, np.arange(len(refs), dtype=np.int32)
            return
        shard_of = self.registry.series_hash[refs] & np.uint64(len(self.shards) - 1)
        for shard in self.shards:
            places = np.flatnonzero(shard_of == shard.number)
            if len(places):
                yield shard, refs[places], places.astype(np.int32)

    def _head_parts(self, refs: NDArray[np.uint32], mint_ms: int, maxt_ms: int) -> list[Part]:
        if not len(refs):
            return []
        self._ready_slots()
        return [shard.head_part(own, rows, mint_ms, maxt_ms) for shard, own, rows in self._by_shard(refs)]

    def _block_rows(
        self, matchers: Sequence[Matcher], mint_ms: int, maxt_ms: int, warnings: list[str]
    ) -> list[tuple[LiveBlock, NDArray[np.int32], NDArray[np.uint32]]]:
        """Matching rows of the blocks in range, oldest block first, with their series numbers."""
        hits = []
        for shard in self.shards:
            if mint_ms < shard.cut_floor_ms:
                warnings.extend(f"partial: {what}" for what in shard.damage)
            for live in shard.blocks_in(mint_ms, maxt_ms):
                try:
                    rows = live.find(matchers)
                    if len(rows):
                        hits.append((live, rows, live.refs(rows, self.registry)))
                except CorruptionError as error:
                    warnings.append(f"partial: {error}")
        return hits

    def _refs_in_range(self, selectors: Sequence[Sequence[Matcher]], mint_ms: int, maxt_ms: int) -> NDArray[np.uint32]:
        """Series of any selector whose head or block reaches into the range."""
        found = []
        for matchers in selectors or [()]:
            refs = self.registry.find(matchers)
            self._ready_slots()
            for shard, own, _ in self._by_shard(refs):
                found.append(own[shard.maybe_in_head(own, mint_ms, maxt_ms)])
            found.extend(refs for _, _, refs in self._block_rows(matchers, mint_ms, maxt_ms, []))
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint32)

    def series(self, selectors: Sequence[Sequence[Matcher]], mint_ms: int, maxt_ms: int) -> LabelTable:
        """Labels of the series of any selector that may have samples in the range, each once."""
        return self.registry.label_table(self._refs_in_range(selectors, mint_ms, maxt_ms))

    def label_names(self, selectors: Sequence[Sequence[Matcher]], mint_ms: int, maxt_ms: int) -> list[str]:
        """Sorted label names of those series."""
        return self.registry.label_names(self._refs_in_range(selectors, mint_ms, maxt_ms))

    def label_values(self, name: str, selectors: Sequence[Sequence[Matcher]], mint_ms: int, maxt_ms: int) -> list[str]:
        """Sorted values of one label of those series."""
        return self.registry.label_values(name, self._refs_in_range(selectors, mint_ms, maxt_ms))

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
