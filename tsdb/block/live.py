"""An open block of a shard: the numbers of its rows in the tenant, and what of it has been deleted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsdb.block.block import Block, BlockMeta, write_block
from tsdb.block.tombstones import NOTHING, Tombstones, read_tombstones
from tsdb.blockstore import BlockStore
from tsdb.chunks import NO_LATE, Chunks, LateSamples, Part, join_chunks, pick_chunks
from tsdb.errors import CorruptionError
from tsdb.gorilla import encode_rows, repack
from tsdb.index.registry import SeriesRegistry
from tsdb.index.static import StaticIndex
from tsdb.kernels.shard import NO_SLOT
from tsdb.matchers import Matcher
from tsdb.wal.records import Deletion

_SPAN = re.compile(r"/block-(-?[0-9]+)-(-?[0-9]+)-")

MIN_MS = -(1 << 63)
MAX_MS = (1 << 63) - 1


def block_key(prefix: str, first_ms: int, end_ms: int, position: int) -> str:
    """Key of the block that a cut at a log position makes of ``[first_ms, end_ms)``: a repeated cut makes the same."""
    return f"{prefix}/block-{first_ms}-{end_ms}-{position}"


def cleaned_key(key: str, generation: int) -> str:
    """Key of a block that a manifest generation puts in the place of another one, from which something was deleted."""
    stem, _, position = key.rpartition("-")
    return f"{stem}-{position.partition('.')[0]}.{generation}"


def merged_key(keys: Sequence[str], first_ms: int, span_ms: int, generation: int) -> str:
    """Key of the block of ``[first_ms, first_ms + span_ms)`` that a manifest generation puts in the place of others.

    It has the highest of their log positions: a deletion behind that is not in it yet, one before has been applied.
    """
    prefix = keys[0].rpartition("/block-")[0]
    return f"{block_key(prefix, first_ms, first_ms + span_ms, max(map(block_position, keys)))}.{generation}"


def block_span_ms(key: str) -> int:
    """Length of the span that a block was made for."""
    first, end = _SPAN.findall(key)[-1]
    return int(end) - int(first)


def block_position(key: str) -> int:
    """Log position of the cut that made a block; a block that was cleaned keeps it."""
    return int(key.rpartition("-")[2].partition(".")[0])


class Bound(NamedTuple):
    """A block as a registry of the tenant sees it: label values by its symbols, rows by its numbers."""

    registry: SeriesRegistry
    rows: StaticIndex
    refs: NDArray[np.uint32]  # of each row, NO_SLOT = not asked for yet


class LiveBlock:
    """An open block, the numbers that its rows have in the tenant's registry, and its tombstones.

    Attributes
    ----------
    tombstones : replaced as a whole, on the committer thread; a reader takes it once
    unsaved : the store does not hold these tombstones yet
    """

    __slots__ = ("_bound", "block", "meta", "tombstones", "unsaved")

    def __init__(
        self,
        block: Block,
        meta: BlockMeta,
        bound: tuple[SeriesRegistry, NDArray[np.uint32]] | None = None,
        tombstones: Tombstones = NOTHING,
    ) -> None:
        self.block = block
        self.meta = meta
        self._bound: Bound | None = None
        if bound is not None:
            self._bound = Bound(bound[0], block.index_in(bound[0].symbols), bound[1])
        self.tombstones = tombstones
        self.unsaved = False

    @classmethod
    def open(cls, store: BlockStore, meta: BlockMeta) -> LiveBlock:
        """Open a block that a manifest lists.

        Raises
        ------
        CorruptionError, FileNotFoundError        block or tombstones: what was deleted must not come back
        """
        tombstones = read_tombstones(store, meta.deleted) if meta.deleted else NOTHING
        return cls(Block(store, meta), meta, tombstones=tombstones)

    def bound(self, registry: SeriesRegistry) -> Bound:
        """The block as one registry sees it; only the tenant's own is kept, so that no former one stays in memory.

        Raises
        ------
        CorruptionError        a section of the index fails its checksum
        """
        bound = self._bound
        if bound is None or bound.registry is not registry:
            index = self.block.index_in(registry.symbols)
            bound = Bound(registry, index, np.full(len(index), NO_SLOT, np.uint32))
            if registry.is_current:
                self._bound = bound
        return bound

    def unbind(self) -> None:
        """Let go of a registry that has given way to another one."""
        self._bound = None

    def refs(self, rows: NDArray[np.int32], registry: SeriesRegistry) -> NDArray[np.uint32]:
        """Registry numbers of some rows; rows asked for the first time get theirs now."""
        bound = self.bound(registry)
        refs = bound.refs[rows]
        unknown = refs == NO_SLOT
        if unknown.any():
            new_rows = rows[unknown]
            refs[unknown] = bound.refs[new_rows] = registry.adopt(*bound.rows.canonical(new_rows), passive=True)
        return refs

    def find(self, matchers: Sequence[Matcher], registry: SeriesRegistry) -> NDArray[np.int32]:
        """Ascending rows that satisfy every matcher and are not deleted as a whole."""
        rows = self.bound(registry).rows.find(matchers)
        buried = self.tombstones.rows_buried(self.meta.min_ms, self.meta.max_ms)
        return rows if not len(buried) else rows[~np.isin(rows, buried)]

    def part(
        self,
        rows: NDArray[np.int32],
        refs: NDArray[np.uint32],
        wanted: NDArray[np.uint32],
        mint_ms: int,
        maxt_ms: int,
        warnings: list[str] | None,
    ) -> Part:
        """What is left of some rows, numbered by the place of their series in ``wanted`` (ascending refs).

        With ``warnings`` damaged chunks are left out and named there, without they raise CorruptionError.
        """
        order = np.argsort(refs, kind="stable")
        rows = rows[order]
        chunks = self.block.chunks(rows, mint_ms, maxt_ms, warnings)
        places = np.searchsorted(wanted, refs[order]).astype(np.int32)
        late = NO_LATE
        tombstones = self.tombstones
        if len(tombstones):
            chunks, late = tombstones.bury(chunks, rows[chunks.rows])
        return replace(chunks, rows=places[chunks.rows]), replace(late, rows=places[late.rows])

    def rows_of(self, deletion: Deletion, registry: SeriesRegistry) -> NDArray[np.int32]:
        """Ascending rows that a deletion concerns; none when the index is damaged: then nobody reads them either."""
        if self.meta.min_ms > deletion.maxt_ms or self.meta.max_ms < deletion.mint_ms:
            return np.zeros(0, np.int32)
        try:
            index = self.bound(registry).rows
            found = [index.find(selector) for selector in deletion.selectors]
        except CorruptionError:
            return np.zeros(0, np.int32)
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int32)

    def delete(self, rows: NDArray[np.int32], mint_ms: int, maxt_ms: int) -> None:
        """Hide the samples of some rows (ascending) in a span of time from now on."""
        if not len(rows):
            return
        grown = self.tombstones.add(rows, max(mint_ms, self.meta.min_ms), min(maxt_ms, self.meta.max_ms))
        if not grown.same_as(self.tombstones):
            self.tombstones = grown
            self.unsaved = True

    def rewrite(self, store: BlockStore, key: str, registry: SeriesRegistry, span_ms: int) -> LiveBlock | None:
        """Write what is left of it as a new block, read back and verified; None when nothing is left.

        Raises
        ------
        CorruptionError        a chunk is damaged: the block stays as it is
        """
        bound = self.bound(registry)
        chunks, left = self._all_left(len(bound.rows))
        parts = [chunks, encode_rows(left.rows, left.ts_ms, left.bits, span_ms)]
        used = np.unique(np.concatenate([part.rows for part in parts]))
        if not len(used):
            return None
        renumber = np.full(len(bound.rows), -1, np.int32)
        renumber[used] = np.arange(len(used), dtype=np.int32)
        joined = join_chunks([pick_chunks(part, np.ones(len(part), np.bool_), renumber) for part in parts])
        index = StaticIndex.build(bound.rows, used.astype(np.uint32))
        meta = write_block(store, key, index, repack(joined))
        return LiveBlock(Block(store, meta), meta, (registry, bound.refs[used]))

    def _all_left(self, rows_count: int) -> tuple[Chunks, LateSamples]:
        rows = np.arange(rows_count, dtype=np.int32)
        chunks = self.block.chunks(rows, MIN_MS, MAX_MS)
        return self.tombstones.bury(chunks, chunks.rows)
