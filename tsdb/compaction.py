"""Blocks become fewer and longer with age: those of a day are merged into one, then those of a week.

A block of a span is made once nothing can be written into it any more: the span lies behind the out-of-order window.
The merge runs on a thread of its own and holds no lock; that it counts, the next manifest generation decides, as with
everything else. Whatever ends it before leaves the old blocks, and an object that no manifest lists.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tsdb.block.block import Block, BlockMeta
from tsdb.block.live import LiveBlock, merged_key
from tsdb.block.merge import merge_blocks
from tsdb.blockstore import BlockStore
from tsdb.disk import DiskGuard
from tsdb.errors import CorruptionError, MeshpulseError
from tsdb.shard import MIN_MS, Shard

DAY_MS = 24 * 3_600_000
SPANS_MS = (DAY_MS, 7 * DAY_MS)
"""Decision 11: 2 h, 1 d, 7 d."""

RETENTION_FRACTION = 2
"""A span longer than the retention by this is not made: a block goes as a whole, when its newest sample is past, so its
oldest stays for a span longer."""

CPU_SHARE = 0.25
"""Of one core that a merge takes at most: it rests three times as long as it worked."""

RETRY_S = 600.0
"""A shard whose merge failed is left alone for this long: a full disk or a damaged block does not mend in seconds."""

CHUNKS_MAX = 8_000_000
"""Chunks of the blocks that one merge takes, so that descriptors stay below about 500 MB; what is larger stays in
blocks of the span before."""

DISK_FACTOR = 2
"""Free space that a merge needs above the reserve, in sizes of its sources: the scratch file and the block."""


class Failure(StrEnum):
    """Why a merge came to nothing: the ``reason`` label of ``meshpulse_compaction_failures_total``."""

    DISK_FULL = "disk_full"
    DAMAGED = "damaged_block"
    CHANGED = "changed_meanwhile"  # something was deleted from a source, or a source went
    OTHER = "other"


@dataclass(slots=True)
class CompactionStats:
    """Since the start.

    Attributes
    ----------
    merges : by span, milliseconds
    damaged : keys of blocks that are left alone
    seconds : wall time, rests included
    """

    merges: Counter[int] = field(default_factory=Counter)
    failures: Counter[Failure] = field(default_factory=Counter)
    seconds: float = 0.0
    blocks_in: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    samples: int = 0
    damaged: frozenset[str] = frozenset()
    last_error: str | None = None


@dataclass(slots=True)
class Tier:
    """All blocks of one span.

    Attributes
    ----------
    span_ms : 0 = longer than any configured: what a cut made of strays
    min_ms, max_ms : first and last sample time; 0 without blocks
    """

    span_ms: int
    blocks: int = 0
    bytes: int = 0
    samples: int = 0
    min_ms: int = 0
    max_ms: int = 0

    def add(self, meta: BlockMeta) -> None:
        """Count a block."""
        self.min_ms = min(self.min_ms, meta.min_ms) if self.blocks else meta.min_ms
        self.max_ms = max(self.max_ms, meta.max_ms) if self.blocks else meta.max_ms
        self.blocks += 1
        self.bytes += meta.bytes
        self.samples += meta.samples


class _StoppedError(Exception):
    """The store closes: the merge is given up."""


@dataclass(frozen=True, slots=True)
class Due:
    """Blocks that are to become one: ``[first_ms, first_ms + span_ms)`` holds all their samples."""

    span_ms: int
    first_ms: int
    sources: tuple[LiveBlock, ...]


def due(
    shard: Shard, spans_ms: Sequence[int], window_ms: int, retention_ms: int, skipped: frozenset[str] = frozenset()
) -> Due | None:
    """The oldest blocks of the shortest span that are to be merged now.

    Depends on sample times alone: a clock that jumps changes nothing.

    Parameters
    ----------
    window_ms : how late a sample may be
    retention_ms : 0 = for ever
    skipped : keys of blocks that are left as they are
    """
    if shard.newest_ms <= MIN_MS + window_ms:
        return None
    settled_ms = min(shard.newest_ms - window_ms, shard.cut_floor_ms)
    for span_ms in sorted(spans_ms):
        if retention_ms and span_ms * RETENTION_FRACTION > retention_ms:
            break
        groups: dict[int, list[LiveBlock]] = {}
        for live in shard.blocks:
            first = live.meta.min_ms // span_ms
            if first == live.meta.max_ms // span_ms and live.meta.key not in skipped:
                groups.setdefault(first, []).append(live)
        for first, sources in sorted(groups.items()):
            small_enough = sum(live.meta.chunks for live in sources) <= CHUNKS_MAX
            if len(sources) > 1 and (first + 1) * span_ms <= settled_ms and small_enough:
                return Due(span_ms, first * span_ms, tuple(sources))
    return None


class Compactor:
    """Merges blocks of shards, one group at a time.

    Parameters
    ----------
    lock : held by whoever changes blocks or manifests
    stopping : set when the store closes
    """

    def __init__(self, store: BlockStore, disk: DiskGuard, lock: threading.Lock, stopping: threading.Event) -> None:
        self._store = store
        self._disk = disk
        self._lock = lock
        self._stopping = stopping
        self._rests_until: dict[Shard, float] = {}
        self.stats = CompactionStats()

    def run(
        self,
        shard: Shard,
        spans_ms: Sequence[int],
        window_ms: int,
        retention_ms: int,
        cpu_share: float = CPU_SHARE,
    ) -> int:
        """Merge everything of a shard that is due; how many blocks were made."""
        done = 0
        while not self._stopping.is_set() and time.monotonic() >= self._rests_until.get(shard, 0.0):
            found = due(shard, spans_ms, window_ms, retention_ms, self.stats.damaged)
            if found is None:
                break
            begin = time.monotonic()
            try:
                done += self._merge(shard, found, cpu_share)
            except _StoppedError:
                break
            except CorruptionError as error:
                self._leave_damaged(found, error)
            except (MeshpulseError, OSError) as error:
                full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
                self._failed(Failure.DISK_FULL if full else Failure.OTHER, str(error))
                self._rests_until[shard] = time.monotonic() + RETRY_S
            finally:
                self.stats.seconds += time.monotonic() - begin
        return done

    def _failed(self, why: Failure, text: str) -> None:
        self.stats.failures[why] += 1
        self.stats.last_error = text

    def _leave_damaged(self, found: Due, error: CorruptionError) -> None:
        """Name the damaged sources and go on without them; readers get from them what is left."""
        damaged = {live.meta.key for live in found.sources if live.block.damage()}
        # One that decodes to nonsense under good checksums cannot be told from its neighbours.
        self.stats.damaged |= damaged or {live.meta.key for live in found.sources}
        self._failed(Failure.DAMAGED, f"left alone: {', '.join(sorted(damaged))}: {error}" if damaged else str(error))

    def _pacer(self, cpu_share: float) -> Callable[[], None]:
        worked_since = time.monotonic()

        def pause() -> None:
            nonlocal worked_since
            rest_s = (time.monotonic() - worked_since) * (1 / cpu_share - 1)
            if self._stopping.wait(rest_s) if rest_s > 0 else self._stopping.is_set():
                raise _StoppedError
            worked_since = time.monotonic()

        return pause

    def _merge(self, shard: Shard, found: Due, cpu_share: float) -> bool:
        sources = found.sources
        bytes_in = sum(live.meta.bytes for live in sources)
        space = self._disk.space
        if space.free_bytes < space.reserve_bytes + DISK_FACTOR * bytes_in:
            raise OSError(errno.ENOSPC, f"{bytes_in >> 20} MiB of blocks need twice as much above the reserve to merge")
        with self._lock:
            shard.save_deletions()
            before = [live.tombstones for live in sources]
            keys, generation = [live.meta.key for live in sources], shard.manifest.generation + 1
            key = merged_key(keys, found.first_ms, found.span_ms, generation)
        meta = None
        try:
            meta = merge_blocks(self._store, key, sources, found.span_ms, self._pacer(cpu_share))
            made = None if meta is None else LiveBlock(Block(self._store, meta), meta)
            with self._lock:
                committed = shard.replace_blocks(sources, before, made)
        except BaseException:
            # A commit of which we cannot say whether it happened keeps its block: the next start decides.
            if meta is None:
                with self._lock, contextlib.suppress(OSError):
                    self._store.delete(key)
            raise
        if not committed:
            with self._lock:
                self._store.delete(key)
            self._failed(Failure.CHANGED, f"{key}: its sources changed while they were merged")
            return False
        self.stats.merges[found.span_ms] += 1
        self.stats.blocks_in += len(sources)
        self.stats.bytes_in += bytes_in
        self.stats.bytes_out += 0 if meta is None else meta.bytes
        self.stats.samples += sum(live.meta.samples for live in sources)
        return True
