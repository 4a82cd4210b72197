"""The store: one log, one block store, many tenants.

Opening reads the manifests, replays the log into the heads and only then takes writes. A maintenance thread cuts
heads into blocks, enforces retention and frees log segments.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from tsdb.batch import AppendResult
from tsdb.block.block import BlockMeta
from tsdb.block.live import block_span_ms
from tsdb.blockstore import FolderStore
from tsdb.compaction import CPU_SHARE, SPANS_MS, CompactionStats, Compactor, Tier
from tsdb.disk import DiskGuard
from tsdb.errors import LimitError, MeshpulseError, Reason, RejectedError
from tsdb.limits import SeriesLimits, TimeLimits
from tsdb.logs.operations import LOG_SHARD
from tsdb.logs.settings import LogLimits
from tsdb.logs.store import LogStore
from tsdb.reader import Reader
from tsdb.replay import Replay
from tsdb.shard import MIN_MS, HeadCut, Shard
from tsdb.tally import Tally
from tsdb.tenant import FAILOVER_MS, BeginGeneration, DeleteOperation, Tenant
from tsdb.wal.framing import TIME_NONE, Record
from tsdb.wal.log import QUEUE_BYTES_MAX, SEGMENT_BYTES, Gatherer, Leader, LocalLog, SyncMode
from tsdb.wal.records import Deletion
from tsdb.wal.step import Step

log = logging.getLogger(__name__)

HOUR_MS = 3_600_000
DEFAULT_TENANT = "default"

FORGET_SERIES_MIN = 10_000
"""Fewer series are not worth a new generation: about 10 MB."""
FORGET_FRACTION = 4
"""A new generation begins when one series in so many has ended: copying the others then costs a few us for each that
is forgotten."""

TENANT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
"""What a tenant may be called: its name is a folder and a log key."""


@dataclass(frozen=True, slots=True)
class TenantConfig:
    """What is different for one tenant.

    Attributes
    ----------
    series : its limits, None = those of all
    retention_ms : how long its blocks are kept, 0 = for ever, None = as all others
    """

    series: SeriesLimits | None = None
    retention_ms: int | None = None


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """How a store keeps its data.

    Attributes
    ----------
    shards : power of two, fixed when the folder is made; the log applies writes one after the other, so that more
        shards cost CPU (a tenth of a sample each) and gain nothing before they are on many machines
    block_span_ms : length of a block; a head is cut when it reaches half a span past it
    retention_ms : blocks older than the tenant's newest sample minus this are deleted; 0 = never
    retention_bytes : while all blocks together are larger, the oldest are deleted; 0 = never
    compaction_spans_ms : blocks of a span are merged into one once it lies behind the out-of-order window; none = never
    failover_ms : silence of the elected one of a pair of senders after which the other one is taken
    idle_cut_ms : wall time without a sample after which a head is cut whole, so that it does not hold the log
    """

    path: Path
    shards: int = 1
    block_span_ms: int = 2 * HOUR_MS
    retention_ms: int = 15 * 24 * HOUR_MS
    retention_bytes: int = 0
    idle_cut_ms: int = 3 * HOUR_MS
    compaction_spans_ms: tuple[int, ...] = SPANS_MS
    maintenance_seconds: float = 5.0
    sync: SyncMode = SyncMode.ALWAYS
    sync_interval_ms: int = 200
    segment_bytes: int = SEGMENT_BYTES
    log_queue_bytes_max: int = QUEUE_BYTES_MAX
    tenants_auto_create: bool = False
    tenants_max: int = 1_000
    min_free_bytes: int = 1 << 30
    min_free_fraction: float = 0.05
    tenants: Mapping[str, TenantConfig] = field(default_factory=dict)
    series: SeriesLimits = field(default_factory=SeriesLimits)
    time: TimeLimits = field(default_factory=TimeLimits)
    failover_ms: int = FAILOVER_MS
    logs: LogLimits = field(default_factory=LogLimits)


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Sums over all tenants, for ``/metrics``."""

    tenants: int
    series: int
    samples_appended: int
    head_samples: int
    head_chunks: int
    head_bytes: int
    blocks: int
    block_bytes: int
    cuts: int
    cut_failures: int
    replayed_samples: int
    damage: int


_AS_ALL = TenantConfig()


class _CutOperation:
    """Fix a head's cut at one position of the log, between two writes."""

    n_bytes = 0

    def __init__(self, shard: Shard, border_ms: int) -> None:
        self._shard = shard
        self._border_ms = border_ms

    def records(self, segment: int) -> list[Record]:  # noqa: ARG002
        """Nothing to log: the manifest tells where the cut was."""
        return []

    def apply(self, position: int) -> HeadCut:
        """Run between two writes."""
        return self._shard.begin_cut(self._border_ms, position)


class TSDB:
    """All tenants of one data folder.

    Use :meth:`open` before anything else; the folder must be locked by the caller (one process a folder).
    """

    def __init__(self, config: StoreConfig, tally: Tally | None = None) -> None:
        if config.shards < 1 or config.shards & (config.shards - 1):
            raise ValueError(f"storage.shards must be a power of two, not {config.shards}")
        self.config = config
        self.tally = tally or Tally()
        self.store = FolderStore(config.path)
        self.log = LocalLog(
            config.path / "wal",
            sync=config.sync,
            segment_bytes=config.segment_bytes,
            interval_ms=config.sync_interval_ms,
            queue_bytes_max=config.log_queue_bytes_max,
        )
        self._disk = DiskGuard(config.path, config.min_free_fraction, config.min_free_bytes)
        self._tenants: dict[str, Tenant] = {}
        self._lock = threading.Lock()
        self._maintenance = threading.Thread(target=self._maintain_for_ever, name="maintenance", daemon=True)
        self._log_parts = threading.Thread(target=self._write_log_parts, name="log-parts", daemon=True)
        self._log_work = threading.Event()
        self._cut_lock = threading.Lock()
        self._stopping = threading.Event()
        self._compactor = Compactor(self.store, self._disk, self._cut_lock, self._stopping)
        self._compaction = threading.Thread(target=self._compact_for_ever, name="compaction", daemon=True)
        self._idle_since: dict[tuple[str, int], tuple[int, float]] = {}
        self.cuts = 0
        self.cut_failures = 0
        self.last_error: str | None = None
        self._looked_at: dict[str, tuple[int, ...]] = {}  # when there was last something to forget
        self.replay = Replay(self._get_or_create, self._cut_during_replay)

    # -- life

    def open(self) -> None:
        """Read manifests, replay the log, then take writes."""
        for key in self.store.list("tenants/"):
            name = key.split("/")[1]
            self._get_or_create(name)
        self._get_or_create(DEFAULT_TENANT)
        self.replay.run(self.log)
        self._tell_of_damage()
        for tenant in self.tenants():
            for shard in tenant.shards:
                shard.save_deletions()
        # Never below a published position: a log whose files were lost must not number its records anew.
        first = max(shard.manifest.next_position for tenant in self.tenants() for shard in tenant.shards)
        self.log.start(max(first, *(tenant.logs.first_position for tenant in self.tenants())))
        self._maintenance.start()
        self._log_parts.start()
        self._compaction.start()

    def _tell_of_damage(self) -> None:
        """Name what the start found damaged; ``stats().damage`` counts it."""
        for tenant in self.tenants():
            for damage in chain.from_iterable(shard.damage for shard in tenant.shards):  # log stores tell theirs
                log.error("damage: %s", damage)
        for report in self.log.damage:
            log.error("damage: %s", report)
        for report in self.log.torn_tails:
            log.info("as a crash leaves it: %s", report)

    def close(self) -> None:
        """Sync and close the log; what is in the heads comes back by replay."""
        self._stopping.set()
        self._log_work.set()
        for thread in (self._maintenance, self._log_parts, self._compaction):
            if thread.is_alive():
                thread.join()
        self.log.close()

    def leader(self) -> Leader:
        """A context at whose end the calling thread commits what it appended inside."""
        return self.log.leader()

    def gatherer(self) -> Gatherer:
        """The same for threads that then wait for the :meth:`result`: those inside at a time share one sync."""
        return self.log.gatherer()

    def result(self, future: Future[AppendResult]) -> AppendResult:
        """Wait for what was appended, and commit meanwhile if it is this thread's turn."""
        return self.log.result(future)

    # -- tenants

    def follow(self, config: StoreConfig) -> list[str]:
        """Take over what may change while running: retention, which tenants there may be, limits of their series.

        Returns
        -------
        Tenants whose new limits need more room than was reserved: they keep the old ones until the next start.
        """
        self.config = replace(
            self.config,
            retention_ms=config.retention_ms,
            retention_bytes=config.retention_bytes,
            tenants=config.tenants,
            tenants_auto_create=config.tenants_auto_create,
            tenants_max=config.tenants_max,
            series=config.series,
            logs=replace(self.config.logs, retention_ms=config.logs.retention_ms),
        )
        small = []
        for tenant in self.tenants():
            tenant.logs.limits = self._log_limits(tenant.name)
            if not tenant.registry.use_limits(self._tenant_config(tenant.name).series or config.series):
                small.append(tenant.name)
        return small

    def _tenant_config(self, name: str) -> TenantConfig:
        return self.config.tenants.get(name, _AS_ALL)

    def _retention_ms(self, tenant: Tenant) -> int:
        own = self._tenant_config(tenant.name).retention_ms
        return self.config.retention_ms if own is None else own

    def _log_limits(self, name: str) -> LogLimits:
        own = self._tenant_config(name).retention_ms
        return self.config.logs if own is None else replace(self.config.logs, retention_ms=own)

    def _get_or_create(self, name: str) -> Tenant:
        with self._lock:
            tenant = self._tenants.get(name)
            if tenant is None:
                tenant = self._tenants[name] = Tenant(
                    name,
                    self.store,
                    self.log,
                    self.config.shards,
                    self.config.block_span_ms,
                    self._tenant_config(name).series or self.config.series,
                    self.config.time,
                    self.tally,
                    self._disk,
                    LogStore(name, self.store, self.log, self._disk, self._log_limits(name), self._log_work.set),
                    self.config.failover_ms,
                )
            return tenant

    def tenant(self, name: str, *, create: bool | None = None) -> Tenant:
        """The tenant a write is for.

        Parameters
        ----------
        create : make it if it is new; None = as ``tenants.auto_create`` says

        Raises
        ------
        RejectedError        the name is not one, or the tenant may not be created
        """
        known = self._tenants.get(name)
        if known is not None:
            return known
        if not TENANT_NAME.fullmatch(name):
            raise RejectedError(Reason.TENANT, f"tenant {name[:64]!r} is no valid name ({TENANT_NAME.pattern})")
        if not (self.config.tenants_auto_create if create is None else create):
            raise RejectedError(Reason.TENANT, f"tenant {name!r} does not exist and tenants.auto_create is off")
        if len(self._tenants) >= self.config.tenants_max:
            raise LimitError(
                Reason.TENANT, f"tenant {name!r} is one too many, the limit is {self.config.tenants_max} (tenants.max)"
            )
        return self._get_or_create(name)

    def find(self, name: str) -> Tenant | None:
        """The tenant a read is for; a read never creates one."""
        return self._tenants.get(name)

    def reader(self, name: str) -> Reader | None:
        """What a query reads of a tenant, from its first selection to its last."""
        tenant = self._tenants.get(name)
        return tenant.view() if tenant else None

    def tenants(self) -> list[Tenant]:
        """All tenants."""
        with self._lock:
            return list(self._tenants.values())

    # -- maintenance

    def _maintain_for_ever(self) -> None:
        while not self._stopping.wait(self.config.maintenance_seconds):
            self.maintain()

    def _write_log_parts(self) -> None:
        """Turn full log buffers into parts: on a thread of its own, so that pushes do not wait for a cut."""
        while not self._stopping.is_set():
            self._log_work.wait(self.config.maintenance_seconds)
            self._log_work.clear()
            for tenant in self.tenants():
                try:
                    tenant.logs.maintain()
                except (MeshpulseError, OSError) as error:
                    self.cut_failures += 1
                    self.last_error = f"{tenant.name}/logs: {error}"

    def _compact_for_ever(self) -> None:
        while not self._stopping.wait(self.config.maintenance_seconds):
            self.compact(CPU_SHARE)

    @property
    def compaction(self) -> CompactionStats:
        """What was merged."""
        return self._compactor.stats

    def tiers(self, tenants: Iterable[Tenant]) -> list[Tier]:
        """Blocks of some tenants by the span that they are made for, shortest first; strays above all of them last."""
        spans_ms = sorted({self.config.block_span_ms, *self.config.compaction_spans_ms})
        tiers = [Tier(span_ms) for span_ms in spans_ms] + [Tier(0)]
        for live in (live for tenant in tenants for shard in tenant.shards for live in shard.blocks):
            tiers[bisect_left(spans_ms, block_span_ms(live.meta.key))].add(live.meta)
        return tiers

    def compact(self, cpu_share: float = 1.0) -> int:
        """Merge the blocks that are due into longer ones (one thread at a time); how many."""
        window_ms = self.config.time.out_of_order_window_ms
        return sum(
            self._compactor.run(
                shard, self.config.compaction_spans_ms, window_ms, self._retention_ms(tenant), cpu_share
            )
            for tenant in self.tenants()
            for shard in tenant.shards
        )

    def maintain(self) -> None:
        """One pass: cut heads that are due, forget series, delete what is past retention, free log segments."""
        for tenant in self.tenants():
            for shard in tenant.shards:
                try:
                    border = self._due_border(tenant, shard)
                    if border is not None:
                        self.cut(shard, border)
                    with self._cut_lock:
                        shard.save_deletions()  # those that could not be saved when they were made
                    retention_ms = self._retention_ms(tenant)
                    if retention_ms and tenant.newest_ms > MIN_MS + retention_ms:
                        with self._cut_lock:
                            shard.drop_blocks_before(tenant.newest_ms - retention_ms)
                except (MeshpulseError, OSError) as error:
                    # A failed cut must not stop ingest or the other shards: it is counted, shown and tried again.
                    self.cut_failures += 1
                    self.last_error = f"{tenant.name}/shard-{shard.number}: {error}"
            try:
                self.forget(tenant)
            except (MeshpulseError, OSError) as error:
                self.cut_failures += 1
                self.last_error = f"{tenant.name}: {error}"
        with self._cut_lock:
            self.log.free(self._is_published)
            if self.config.retention_bytes:
                try:
                    self._drop_beyond_size()
                except (MeshpulseError, OSError) as error:
                    self.cut_failures += 1
                    self.last_error = f"retention by size: {error}"

    def _drop_beyond_size(self) -> None:
        """Retention by size: the oldest blocks go first, whosever they are."""
        shards = [shard for tenant in self.tenants() for shard in tenant.shards]
        blocks = [(meta, shard) for shard in shards for meta in shard.manifest.blocks]
        blocks.sort(key=lambda found: (found[0].max_ms, found[0].key))
        excess = sum(meta.bytes for meta, _ in blocks) - self.config.retention_bytes
        expired: dict[Shard, list[BlockMeta]] = {}
        for meta, shard in blocks:
            if excess <= 0:
                break
            excess -= meta.bytes
            expired.setdefault(shard, []).append(meta)
        for shard, metas in expired.items():
            shard.drop_blocks(metas)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Keep the files of blocks, manifests and finished log segments as they are; writes go on."""
        with ExitStack() as stack:
            stack.enter_context(self._cut_lock)
            for tenant in self.tenants():
                stack.enter_context(tenant.logs.unchanged())
            yield

    def _due_border(self, tenant: Tenant, shard: Shard) -> int | None:
        """Where the head is to be cut now, if it is."""
        head = shard.head
        if not head.sample_count and head.newest_ms < max(shard.cut_floor_ms, MIN_MS + 1):
            return None  # unless its samples were deleted, but not the log that brought them
        span = self.config.block_span_ms
        newest, oldest = head.newest_ms, head.oldest_ms
        border = (newest - span // 2) // span * span
        if border > oldest:
            return int(border)
        seen = (head.sample_count, time.monotonic())
        known = self._idle_since.setdefault((tenant.name, shard.number), seen)
        if known[0] != seen[0]:
            self._idle_since[tenant.name, shard.number] = seen
        elif (seen[1] - known[1]) * 1000 > self.config.idle_cut_ms:
            return int(newest // span * span + span)
        return None

    def cut(self, shard: Shard, border_ms: int) -> None:
        """Turn everything older than the border into blocks; writes and reads go on meanwhile."""
        with self._cut_lock:
            cut = self.log.submit(_CutOperation(shard, border_ms)).result()
            blocks = shard.write_cut(cut)
            manifest = shard.commit_cut(cut, blocks)
            self.log.submit(Step(lambda: shard.publish(manifest, blocks, border_ms))).result()
            self.cuts += 1

    def delete(self, tenant: Tenant, deletion: Deletion) -> None:
        """Delete samples for good: they are gone for every reader on return, and after any restart.

        What is written afterwards is stored, whatever its time. The space of blocks comes back by :meth:`clean`.

        Raises
        ------
        RejectedError        bad_matcher
        OSError, UnavailableError        it may or may not have happened: ask again
        """
        with self._cut_lock:
            self.log.submit(DeleteOperation(tenant, deletion)).result()
            for shard in tenant.shards:
                shard.save_deletions()

    def clean(self) -> int:
        """Write all blocks anew from which something was deleted; returns how many.

        Raises
        ------
        OSError, UnavailableError        those that are not done stay as they are
        """
        done = 0
        for tenant in self.tenants():
            for shard in tenant.shards:
                with self._cut_lock:
                    done += shard.clean()
        return done

    def forget(self, tenant: Tenant) -> bool:
        """Begin a new generation of a tenant's series without those that have ended, if it is worth it.

        A series has ended when the head holds no sample of it: it was silent for half a span or more before a cut.
        """
        with self._cut_lock:
            known = len(tenant.registry)
            # Series end with a cut; those that are read from blocks are forgotten when they are many.
            seen = (*(shard.cut_floor_ms for shard in tenant.shards), tenant.registry.passive // FORGET_SERIES_MIN)
            if known < FORGET_SERIES_MIN or self._looked_at.get(tenant.name) == seen:
                return False
            self._looked_at[tenant.name] = seen
            held = tenant.held_series()
            if (known - held) * FORGET_FRACTION < known:
                return False
            self.log.submit(BeginGeneration(tenant)).result()
            return True

    def _cut_during_replay(self, shard: Shard, position: int) -> None:
        """Keep a replay within the memory of a running store: the log is not written yet, so cut in place."""
        span = self.config.block_span_ms
        border = (shard.head.newest_ms - span // 2) // span * span
        if border > shard.head.oldest_ms:
            cut = shard.begin_cut(int(border), position)
            blocks = shard.write_cut(cut)
            shard.publish(shard.commit_cut(cut, blocks), blocks, int(border))
            self.cuts += 1

    def _is_published(self, tenant: str, shard: int, max_ms: int, position: int) -> bool:
        """Whether a record's samples are all in committed blocks, so that the log may forget it."""
        known = self._tenants.get(tenant)
        if known is None:
            return False
        if shard == LOG_SHARD:
            return max_ms == TIME_NONE or position < known.logs.manifest.next_position
        if known.shards[shard].has_unsaved:
            return False
        manifest = known.shards[shard].manifest
        # A partition without samples (series, metadata) is needed by nobody: each segment defines its own series.
        return max_ms == TIME_NONE or (max_ms < manifest.cut_ms and position < manifest.next_position)

    # -- statistics

    def stats(self) -> StoreStats:
        """Sums over all tenants."""
        tenants = self.tenants()
        shards = [shard for tenant in tenants for shard in tenant.shards]
        return StoreStats(
            tenants=len(tenants),
            series=sum(tenant.registry.active for tenant in tenants),
            samples_appended=sum(tenant.samples_appended for tenant in tenants),
            head_samples=sum(shard.head.sample_count for shard in shards),
            head_chunks=sum(shard.head.chunk_count for shard in shards),
            head_bytes=sum(shard.head.memory_bytes for shard in shards),
            blocks=sum(len(shard.blocks) for shard in shards),
            block_bytes=sum(live.meta.bytes for shard in shards for live in shard.blocks),
            cuts=self.cuts,
            cut_failures=self.cut_failures,
            replayed_samples=self.replay.samples,
            damage=sum(len(shard.damage) for shard in shards)
            + sum(len(tenant.logs.damage) for tenant in tenants)
            + len(self.log.damage),
        )
