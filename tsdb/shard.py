"""One shard of one tenant: a head, immutable blocks, and the manifest that says which blocks live.

A shard never knows where its log and its objects lie. It is written on the log's committer thread only; readers
read the head first and the list of blocks after it, so that a block published in between is seen twice (and
deduplicated), never missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tsdb.arena import Arena
from tsdb.assemble import assemble
from tsdb.batch import SampleStatus
from tsdb.block.block import Block, BlockMeta, write_block
from tsdb.block.live import LiveBlock, block_key, block_position, cleaned_key
from tsdb.block.tombstones import Tombstones, write_tombstones
from tsdb.blockstore import BlockStore
from tsdb.chunks import Chunks, LateSamples, Part, join_chunks, pick_chunks
from tsdb.errors import CorruptionError, OverloadedError
from tsdb.generation import Generation
from tsdb.gorilla import encode_rows, repack
from tsdb.head import Head
from tsdb.index.registry import SeriesRegistry
from tsdb.index.static import StaticIndex
from tsdb.kernels.shard import NO_SLOT, assign_slots, compare_stored
from tsdb.manifest import Manifest, ManifestStore
from tsdb.wal.records import Deletion

MIN_MS = -(1 << 63)
MAX_MS = (1 << 63) - 1

SPANS_PER_CUT_MAX = 24
"""A cut writes one block a span up to here (two days of backfill); beyond, one block, so that a stray sample from
1970 does not make half a million files."""


SLOTS_REST_S = 60.0
"""How long a slot that was given back is not used: a reader needs it from its look-up to its copy, milliseconds."""


@dataclass(frozen=True, slots=True)
class HeadCut:
    """What a cut takes out of the head, fixed at one position of the log.

    Attributes
    ----------
    border_ms : everything older is in here
    position : last log position whose samples are in here
    newest_ms : time of the newest sample older than the border that was ever in the head, or above it
    refs : (n,) uint32     series of the rows
    """

    border_ms: int
    position: int
    newest_ms: int
    refs: NDArray[np.uint32]
    chunks: Chunks
    late: LateSamples


class Shard:
    """Head and blocks of one tenant's share of the series.

    Parameters
    ----------
    prefix : key prefix in the block store, ``tenants/<id>/shard-<k>``
    slots_max : most series it can hold
    span_ms : time range of a block; no chunk crosses a multiple of it
    generation : the tenant's
    """

    def __init__(
        self,
        number: int,
        prefix: str,
        store: BlockStore,
        generation: Generation,
        shard_count: int,
        slots_max: int,
        span_ms: int,
    ) -> None:
        self.number = number
        self._prefix = prefix
        self._store = store
        self._generation = generation
        self._manifests = ManifestStore(store, prefix, shard_count)
        self._ref_of = Arena(np.uint32, slots_max)
        self._slot_counts = np.zeros(2, np.int64)  # slots ever used; of _free_slots those that are left
        self._free_slots: NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._resting: list[tuple[float, NDArray[np.uint32]]] = []  # given back, since when
        self._span_ms = span_ms
        self.head = Head(slots_max, span_ms)
        self.manifest: Manifest = self._manifests.load()
        if not self.manifest.generation:
            # The number of shards is fixed before the first sample: records in the log name shards, too.
            self.manifest = self._manifests.commit(replace(self.manifest, generation=1))
        self.damage: list[str] = list(self._manifests.damage)
        self.blocks: tuple[LiveBlock, ...] = tuple(self._open_blocks())
        # Samples older than this are refused by the head: their range is, or is about to be, in a block.
        self.cut_floor_ms = self.manifest.cut_ms
        # Time of the newest sample in head or blocks; MIN_MS when there is none.
        # What a replay adds is not older than the cut, so this refuses nothing that was accepted.
        self.newest_ms = max([self.manifest.newest_ms, *(b.max_ms for b in self.manifest.blocks)])

    def _open_blocks(self) -> list[LiveBlock]:
        live = []
        for meta in self.manifest.blocks:
            try:
                live.append(LiveBlock.open(self._store, meta))
            except (CorruptionError, FileNotFoundError) as error:
                # Row 7 and 8 of the crash matrix: the neighbours stay readable, the answer says what is missing.
                self.damage.append(f"block {meta.key} cannot be opened: {error}")
        return live

    @property
    def _registry(self) -> SeriesRegistry:
        return self._generation.registry

    def _slots(self) -> NDArray[np.uint32]:
        return self._generation.slot_of()

    # -- writing, on the committer thread

    def append(
        self, refs: NDArray[np.uint32], ts_ms: NDArray[np.int64], bits: NDArray[np.uint64], window_ms: int
    ) -> NDArray[np.uint8] | None:
        """Decide and store the samples of one batch.

        Samples more than ``window_ms`` behind the shard's newest at the start of the batch are too old: that depends
        on the log's order alone, so that a replay decides the same.

        Returns
        -------
        (n,) uint8        one SampleStatus a sample; None when every sample is accepted
        """
        slots = np.empty(len(refs), np.uint32)
        if assign_slots(refs, self._slot_counts, self._free_slots, self._slots(), self._ref_of.array, slots) < 0:
            raise OverloadedError(f"{self._prefix} holds its most series, {len(self._ref_of.array)}")
        floor_ms = self.newest_ms - window_ms if self.newest_ms > MIN_MS + window_ms else MIN_MS
        status = np.empty(len(refs), np.uint8)
        accepted = self.head.append(slots, ts_ms, bits, status, floor_ms, self.cut_floor_ms)
        if accepted < len(refs):
            below = np.flatnonzero(status == SampleStatus.BELOW_CUT)
            if len(below):
                self._append_below_cut(slots[below], refs[below], ts_ms[below], bits[below], status, below)
        self.newest_ms = max(self.newest_ms, self.head.newest_ms)
        return status if accepted < len(refs) else None

    def _append_below_cut(
        self,
        slots: NDArray[np.uint32],
        refs: NDArray[np.uint32],
        ts_ms: NDArray[np.int64],
        bits: NDArray[np.uint64],
        status: NDArray[np.uint8],
        places: NDArray[np.int64],
    ) -> None:
        """Samples older than the cut: compare with the blocks, keep the new ones for an overlapping block."""
        wanted, rows = np.unique(refs, return_inverse=True)
        mint, maxt = int(ts_ms.min()), int(ts_ms.max())
        parts = self._block_parts_of(wanted, mint, maxt)
        found = np.zeros(len(refs), np.uint8)
        if parts:
            offsets, stored_ms, values = assemble(len(wanted), parts, mint, maxt)
            compare_stored(rows.astype(np.int32), ts_ms, bits, offsets, stored_ms, values.view(np.uint64), found)
        status[places[found == 1]] = SampleStatus.REPEATED
        status[places[found == 2]] = SampleStatus.DUPLICATE
        new = np.flatnonzero(found == 0)
        if len(new):
            decided = np.zeros(len(new), np.uint8)
            self.head.append_late(slots[new], ts_ms[new], bits[new], decided)
            status[places[new]] = decided

    # -- reading, on any thread

    def head_part(self, slots: NDArray[np.uint32], rows: NDArray[np.int32], mint_ms: int, maxt_ms: int) -> Part:
        """Chunks and late samples of some slots in the head; ``rows`` ascend and number the result."""
        known = slots != NO_SLOT
        if not known.all():
            slots, rows = slots[known], rows[known]
        chunks, late = self.head.snapshot(slots, mint_ms, maxt_ms)
        return replace(chunks, rows=rows[chunks.rows]), replace(late, rows=rows[late.rows])

    def newest(
        self, slots: NDArray[np.uint32], oldest_ms: int, at_ms: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.uint64]] | None:
        """Newest sample of each series, see :meth:`tsdb.head.Head.newest`; None also when blocks may hold it."""
        if oldest_ms < self.cut_floor_ms:
            return None
        return self.head.newest(slots, oldest_ms, at_ms)

    def maybe_in_head(self, slots: NDArray[np.uint32], mint_ms: int, maxt_ms: int) -> NDArray[np.bool_]:
        """Which slots may have samples of the range in the head (by the range of the whole head)."""
        if not self.head.sample_count or self.head.oldest_ms > maxt_ms or self.head.newest_ms < mint_ms:
            return np.zeros(len(slots), np.bool_)
        return np.not_equal(slots, NO_SLOT)

    def blocks_in(self, mint_ms: int, maxt_ms: int) -> list[LiveBlock]:
        """Blocks that may hold samples of the range, oldest first."""
        return [b for b in self.blocks if b.meta.min_ms <= maxt_ms and b.meta.max_ms >= mint_ms]

    def _block_parts_of(self, wanted: NDArray[np.uint32], mint_ms: int, maxt_ms: int) -> list[Part]:
        """Block chunks of given series (ascending), rows numbered by their place in ``wanted``."""
        parts = []
        for live in self.blocks_in(mint_ms, maxt_ms):
            candidates = live.bound(self._registry).rows.rows_of_hashes(self._registry.series_hash[wanted])
            hits = candidates >= 0
            refs = live.refs(candidates[hits], self._registry)
            same = refs == wanted[hits]  # equal hashes are not yet equal labels
            part = live.part(candidates[hits][same], refs[same], wanted, mint_ms, maxt_ms, None)
            if len(part[0]) or len(part[1]):
                parts.append(part)
        return parts

    # -- cutting

    def begin_cut(self, border_ms: int, position: int) -> HeadCut:
        """Fix what is older than the border (committer thread). Nothing leaves the head yet."""
        slots, chunks, late = self.head.cut(border_ms)
        self.cut_floor_ms = max(self.cut_floor_ms, border_ms)
        newest_ms = min(self.newest_ms, border_ms - 1)
        return HeadCut(border_ms, position, newest_ms, self._ref_of.array[slots].copy(), chunks, late)

    def write_cut(self, cut: HeadCut) -> list[LiveBlock]:
        """Write the blocks of a cut: one a span, read back and verified. Any thread."""
        span_ms = self._span_ms
        parts = [cut.chunks, encode_rows(cut.late.rows, cut.late.ts_ms, cut.late.bits, span_ms)]
        spans = np.concatenate([p.min_ms // span_ms for p in parts])
        if not len(spans):
            return []
        distinct = np.unique(spans)
        groups = [(s, s) for s in distinct.tolist()]
        if len(groups) > SPANS_PER_CUT_MAX:
            groups = [(int(distinct[0]), int(distinct[-1]))]
        return [self._write_group(cut, parts, first, last) for first, last in groups]

    def _write_group(self, cut: HeadCut, parts: list[Chunks], first: int, last: int) -> LiveBlock:
        span_ms = self._span_ms
        chosen = [(p.min_ms // span_ms >= first) & (p.min_ms // span_ms <= last) for p in parts]
        used = np.unique(np.concatenate([p.rows[c] for p, c in zip(parts, chosen, strict=True)]))
        renumber = np.full(len(cut.refs), -1, np.int32)
        renumber[used] = np.arange(len(used), dtype=np.int32)
        refs = cut.refs[used]
        chunks = repack(join_chunks([pick_chunks(p, c, renumber) for p, c in zip(parts, chosen, strict=True)]))
        arrays = StaticIndex.build(self._registry, refs)
        key = block_key(self._prefix, first * span_ms, (last + 1) * span_ms, cut.position)
        meta = write_block(self._store, key, arrays, chunks)
        return LiveBlock(Block(self._store, meta), meta, (self._registry, refs))

    def commit_cut(self, cut: HeadCut, blocks: Sequence[LiveBlock]) -> Manifest:
        """Make the blocks live: the next manifest generation is the only commit. Any thread, one at a time."""
        metas = sorted([*self.manifest.blocks, *(b.meta for b in blocks)], key=lambda m: (m.min_ms, m.key))
        return self._manifests.commit(
            replace(
                self.manifest,
                generation=self.manifest.generation + 1,
                blocks=tuple(metas),
                cut_ms=max(cut.border_ms, self.manifest.cut_ms),
                next_position=max(cut.position + 1, self.manifest.next_position),
                newest_ms=max(cut.newest_ms, self.manifest.newest_ms),
            )
        )

    def publish(self, manifest: Manifest, blocks: Sequence[LiveBlock], border_ms: int | None) -> None:
        """Show new blocks to readers, then let the head forget what they hold (committer thread)."""
        alive = {m.key for m in manifest.blocks}
        kept = [b for b in (*self.blocks, *blocks) if b.meta.key in alive]
        self.blocks = tuple(sorted(kept, key=lambda b: (b.meta.min_ms, b.meta.key)))
        self.manifest = manifest
        if border_ms is not None:
            self.head.drop(border_ms)

    # -- forgetting

    def held(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Slots of which the head holds a sample, and those of which it does not: their series have ended, or pause.

        Exact on the committer thread. A slot that was given back is in neither.
        """
        given_back = [slots for _, slots in self._resting]
        given_back.append(self._free_slots[: int(self._slot_counts[1])])
        used = np.ones(int(self._slot_counts[0]), np.bool_)
        used[np.concatenate(given_back)] = False
        holds = self.head.holds(len(used))
        return np.flatnonzero(holds).astype(np.uint32), np.flatnonzero(used & ~holds).astype(np.uint32)

    def refs_held(self) -> NDArray[np.uint32]:
        """Series of which the head holds a sample."""
        return self._ref_of.array[self.held()[0]].copy()

    def begin_generation(self, generation: Generation, numbers: NDArray[np.uint32], now_s: float) -> None:
        """Take the numbers of a new generation, which has all series that the head holds (committer thread).

        The other slots are given back. They rest for :data:`SLOTS_REST_S` before a series gets them: a reader may
        have looked them up in the generation before.

        Parameters
        ----------
        numbers : (n,) uint32        of each series of the former generation in the new one
        """
        kept, empty = self.held()
        refs = numbers[self._ref_of.array[kept]]
        generation.slot_of()[refs] = kept
        self._slots()[self._ref_of.array[empty]] = NO_SLOT
        self._ref_of.array[kept] = refs
        self.head.forget(empty)
        self._generation = generation
        self._resting.append((now_s, empty))
        rested = [slots for since, slots in self._resting if now_s - since >= SLOTS_REST_S]
        self._resting = [(since, slots) for since, slots in self._resting if now_s - since < SLOTS_REST_S]
        self._free_slots = np.concatenate([self._free_slots[: int(self._slot_counts[1])], *rested])
        self._slot_counts[1] = len(self._free_slots)
        for live in self.blocks:
            live.unbind()

    # -- deleting

    def rows_to_delete(self, deletion: Deletion) -> list[tuple[LiveBlock, NDArray[np.int32]]]:
        """Rows of each block that a deletion concerns; the blocks must not change until it is applied."""
        return [(live, live.rows_of(deletion, self._registry)) for live in self.blocks]

    def delete(
        self,
        deletion: Deletion,
        refs: NDArray[np.uint32],
        position: int,
        rows: Sequence[tuple[LiveBlock, NDArray[np.int32]]] | None = None,
    ) -> None:
        """Delete what was logged before a position: at once from the head, by tombstones from the blocks.

        Runs on the committer thread, or in a replay, which meets blocks that were cut behind that position: what they
        hold of the span was written after the deletion.

        Parameters
        ----------
        refs : series that a selector finds in the registry
        rows : of :meth:`rows_to_delete`
        """
        mask = np.uint64(self.manifest.shard_count - 1)
        slots = self._slots()[refs[self._registry.series_hash[refs] & mask == self.number]]
        self.head.erase(slots[slots != NO_SLOT], deletion.mint_ms, deletion.maxt_ms)
        for live, own in self.rows_to_delete(deletion) if rows is None else rows:
            if block_position(live.meta.key) < position:
                live.delete(own, deletion.mint_ms, deletion.maxt_ms)

    @property
    def has_unsaved(self) -> bool:
        """Whether the log alone knows of some deletion; it may not forget anything of this shard then."""
        return any(live.unsaved for live in self.blocks)

    def save_deletions(self) -> None:
        """Store new tombstones and name them in the manifest. Any thread that may change the blocks."""
        unsaved = [live for live in self.blocks if live.unsaved]
        if not unsaved:
            return
        generation = self.manifest.generation + 1
        keys: dict[str, str] = {}
        for live in unsaved:
            keys[live.meta.key] = self._manifests.tombstones_key(live.meta, generation)
            write_tombstones(self._store, keys[live.meta.key], live.tombstones)
        blocks = tuple(replace(m, deleted=keys.get(m.key, m.deleted)) for m in self.manifest.blocks)
        self.manifest = self._manifests.commit(replace(self.manifest, generation=generation, blocks=blocks))
        for live in unsaved:
            former, live.meta = live.meta, replace(live.meta, deleted=keys[live.meta.key])
            live.unsaved = False
            if former.deleted:
                self._store.delete(former.deleted)

    def clean(self) -> int:
        """Write the blocks with tombstones anew, without what is deleted; returns how many there were.

        Raises
        ------
        CorruptionError        a block is damaged: it stays, with its tombstones; the others are done
        """
        self.save_deletions()
        buried = [live for live in self.blocks if len(live.tombstones)]
        damage: CorruptionError | None = None
        for live in buried:
            generation = self.manifest.generation + 1
            key = cleaned_key(live.meta.key, generation)
            try:
                made = live.rewrite(self._store, key, self._registry, self._span_ms)
            except CorruptionError as error:
                damage = damage or error
                continue
            new = () if made is None else (made,)
            metas = [*(m for m in self.manifest.blocks if m.key != live.meta.key), *(b.meta for b in new)]
            metas.sort(key=lambda m: (m.min_ms, m.key))
            newest_ms = max(self.manifest.newest_ms, live.meta.max_ms)
            manifest = replace(self.manifest, generation=generation, blocks=tuple(metas), newest_ms=newest_ms)
            self.publish(self._manifests.commit(manifest), new, None)
            self._remove(live.meta)
        if damage is not None:
            raise damage
        return len(buried)

    def replace_blocks(
        self, sources: Sequence[LiveBlock], tombstones: Sequence[Tombstones], made: LiveBlock | None
    ) -> bool:
        """Put one block in the place of others, from which it was made as they were with these tombstones.

        Returns
        -------
        False        something was deleted from them since, or one is gone: nothing has changed
        """
        there = {id(live) for live in self.blocks}
        for live, before in zip(sources, tombstones, strict=True):
            if id(live) not in there or not live.tombstones.same_as(before):
                return False
        gone = {live.meta.key for live in sources}
        new = () if made is None else (made,)
        metas = [*(m for m in self.manifest.blocks if m.key not in gone), *(b.meta for b in new)]
        manifest = replace(
            self.manifest,
            generation=self.manifest.generation + 1,
            blocks=tuple(sorted(metas, key=lambda m: (m.min_ms, m.key))),
            newest_ms=max(self.manifest.newest_ms, *(live.meta.max_ms for live in sources)),
        )
        self.publish(self._manifests.commit(manifest), new, None)
        for live in sources:
            self._remove(live.meta)
        return True

    def _remove(self, meta: BlockMeta) -> None:
        """Delete the objects of a block that no manifest lists; who reads it still can."""
        self._store.delete(meta.key)
        if meta.deleted:
            self._store.delete(meta.deleted)

    def drop_blocks_before(self, floor_ms: int) -> int:
        """Retention: delete the blocks wholly older than the floor."""
        expired = [m for m in self.manifest.blocks if m.max_ms < floor_ms]
        if expired:
            self.drop_blocks(expired)
        return len(expired)

    def drop_blocks(self, expired: Sequence[BlockMeta]) -> None:
        """Delete blocks: they leave the manifest first, then the store."""
        gone = {m.key for m in expired}
        kept = tuple(m for m in self.manifest.blocks if m.key not in gone)
        next_manifest = replace(self.manifest, generation=self.manifest.generation + 1, blocks=kept)
        self.publish(self._manifests.commit(next_manifest), (), None)
        for meta in expired:
            self._remove(meta)
