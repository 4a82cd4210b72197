"""What has been deleted of a block that never changes: spans of time by row, kept beside it (docs/format/block.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsdb.block.container import Container, pack
from tsdb.blockstore import AlreadyExistsError, BlockStore
from tsdb.chunks import NO_LATE, Chunks, LateSamples, pick_chunks
from tsdb.gorilla import decode_rows


@dataclass(frozen=True, slots=True)
class Tombstones:
    """Deleted spans of one block, sorted by (row, time); those of a row neither overlap nor touch.

    Attributes
    ----------
    rows : (n,) int32        row of the block
    min_ms, max_ms : (n,) int64        inclusive
    """

    rows: NDArray[np.int32]
    min_ms: NDArray[np.int64]
    max_ms: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def same_as(self, other: Tombstones) -> bool:
        """Whether both delete the same."""
        return (
            np.array_equal(self.rows, other.rows)
            and np.array_equal(self.min_ms, other.min_ms)
            and np.array_equal(self.max_ms, other.max_ms)
        )

    def add(self, rows: NDArray[np.int32], mint_ms: int, maxt_ms: int) -> Tombstones:
        """These and one span more for some rows (ascending); spans that overlap or touch it become one with it.

        The caller keeps the span within the times of the block, so that its neighbours in time do not overflow.
        """
        joined = np.isin(self.rows, rows) & (self.min_ms <= maxt_ms + 1) & (self.max_ms >= mint_ms - 1)
        low, high = np.full(len(rows), mint_ms, np.int64), np.full(len(rows), maxt_ms, np.int64)
        places = np.searchsorted(rows, self.rows[joined])
        np.minimum.at(low, places, self.min_ms[joined])
        np.maximum.at(high, places, self.max_ms[joined])
        all_rows = np.concatenate([self.rows[~joined], rows]).astype(np.int32)
        min_ms = np.concatenate([self.min_ms[~joined], low])
        max_ms = np.concatenate([self.max_ms[~joined], high])
        order = np.lexsort((min_ms, all_rows))
        return Tombstones(all_rows[order], min_ms[order], max_ms[order])

    def rows_buried(self, min_ms: int, max_ms: int) -> NDArray[np.int32]:
        """Ascending rows of which everything within ``[min_ms, max_ms]`` is deleted."""
        return self.rows[(self.min_ms <= min_ms) & (self.max_ms >= max_ms)]

    def bury(self, chunks: Chunks, block_rows: NDArray[np.int32]) -> tuple[Chunks, LateSamples]:
        """Chunks without what is deleted: one that is partly deleted is decoded, and what is left of it comes plain.

        Parameters
        ----------
        chunks : of the block
        block_rows : (n_chunks,) int32        row of each in the block

        Returns
        -------
        (Chunks, LateSamples)        rows as those of ``chunks``

        Raises
        ------
        tsdb.errors.CorruptionError        a chunk that does not decode
        """
        chunk, span = self._pairs(block_rows)
        overlaps = (self.min_ms[span] <= chunks.max_ms[chunk]) & (self.max_ms[span] >= chunks.min_ms[chunk])
        chunk, span = chunk[overlaps], span[overlaps]
        if not len(chunk):
            return chunks, NO_LATE
        covers = (self.min_ms[span] <= chunks.min_ms[chunk]) & (self.max_ms[span] >= chunks.max_ms[chunk])
        touched, gone = np.zeros(len(chunks), np.bool_), np.zeros(len(chunks), np.bool_)
        touched[chunk] = True
        gone[chunk[covers]] = True
        left = self._left(chunks, block_rows, touched & ~gone)
        return pick_chunks(chunks, ~touched), left

    def _pairs(self, block_rows: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Every (chunk or sample, span of its row)."""
        first = np.searchsorted(self.rows, block_rows, "left")
        counts = np.searchsorted(self.rows, block_rows, "right") - first
        owner = np.repeat(np.arange(len(block_rows)), counts)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        return owner, first[owner] + within

    def _left(self, chunks: Chunks, block_rows: NDArray[np.int32], partly: NDArray[np.bool_]) -> LateSamples:
        """Samples of some chunks that are not deleted."""
        chosen = pick_chunks(chunks, partly)
        ts_ms, bits = decode_rows(chosen)
        rows, own = np.repeat(chosen.rows, chosen.counts), np.repeat(block_rows[partly], chosen.counts)
        sample, span = self._pairs(own)
        inside = (ts_ms[sample] >= self.min_ms[span]) & (ts_ms[sample] <= self.max_ms[span])
        keep = np.ones(len(ts_ms), np.bool_)
        keep[sample[inside]] = False
        rows, ts_ms, bits = rows[keep], ts_ms[keep], bits[keep]
        order = np.lexsort((ts_ms, rows))
        rows, ts_ms, bits = rows[order], ts_ms[order], bits[order]
        first = np.ones(len(rows), np.bool_)
        first[1:] = (rows[1:] != rows[:-1]) | (ts_ms[1:] != ts_ms[:-1])
        return LateSamples(rows[first], ts_ms[first], bits[first])


NOTHING = Tombstones(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64))
"""Of a block of which all is there."""


def write_tombstones(store: BlockStore, key: str, tombstones: Tombstones) -> None:
    """Store them, durable on return. No manifest lists the key yet: what a crash left there is replaced."""
    arrays: dict[str, NDArray[Any]] = {"row": tombstones.rows, "min_ms": tombstones.min_ms, "max_ms": tombstones.max_ms}
    parts, _ = pack(arrays, {"spans": len(tombstones)})
    try:
        store.create(key, parts)
    except AlreadyExistsError:
        store.delete(key)
        store.create(key, parts)


def read_tombstones(store: BlockStore, key: str) -> Tombstones:
    """What :func:`write_tombstones` stored.

    Raises
    ------
    CorruptionError, FileNotFoundError
    """
    container = Container(store.open(key), key)
    return Tombstones(container.array("row"), container.array("min_ms"), container.array("max_ms"))
