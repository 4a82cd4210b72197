"""The immutable past: index and chunks of some series over a span of time, as one object (docs/format/block.md)."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsdb.block.container import FRAME_BYTES, Container, pack
from tsdb.blockstore import AlreadyExistsError, BlockStore
from tsdb.chunks import Chunks
from tsdb.errors import CorruptionError
from tsdb.index.static import StaticIndex
from tsdb.index.symbols import SymbolTable
from tsdb.kernels.block import select_chunks
from tsdb.kernels.gorilla import PAD_WORDS
from tsdb.kernels.shard import gather_words

FRAME_WORDS = FRAME_BYTES // 8
WORDS = "chunk/words"


@dataclass(frozen=True, slots=True)
class BlockMeta:
    """What a manifest says of a block.

    Attributes
    ----------
    min_ms, max_ms : first and last sample time, inclusive
    bytes : size of the object
    crc : CRC32 of its table of contents, which holds those of all its parts
    deleted : key of its tombstones; empty when all of it is there
    """

    key: str
    min_ms: int
    max_ms: int
    series: int
    chunks: int
    samples: int
    bytes: int
    crc: int
    deleted: str = ""


def _packed_words(chunks: Chunks) -> NDArray[np.uint64]:
    """The payloads one behind the other, in chunk order, and the padding a decoder may read behind the last."""
    ends = np.cumsum(chunks.word_counts, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    starts = ends - chunks.word_counts
    if len(chunks.words) == total + PAD_WORDS and np.array_equal(starts, chunks.word_offsets):
        return chunks.words
    words = np.zeros(total + PAD_WORDS, np.uint64)
    gather_words(chunks.words, chunks.word_offsets, chunks.word_counts, words, starts)
    return words


def _narrow(values: NDArray[np.int32]) -> NDArray[np.uint16]:
    assert not len(values) or 0 <= values.min() <= values.max() <= 0xFFFF, "a chunk has at most 65,535 samples or words"
    return values.astype(np.uint16)


def write_block(store: BlockStore, key: str, index: Mapping[str, NDArray[Any]], chunks: Chunks) -> BlockMeta:
    """Write a block, read it back from the device and verify it.

    Parameters
    ----------
    key : no manifest lists it; an object a crash left there is replaced unless it is this very block
    index : arrays of :meth:`tsdb.index.static.StaticIndex.build`
    chunks : rows numbered as in the index, ascending; chunks of one row may overlap in time

    Raises
    ------
    CorruptionError        what was read back is not what was written; the object is removed again
    """
    assert len(chunks), "a block holds at least one chunk"
    assert (np.diff(chunks.rows) >= 0).all(), "chunks are ordered by row"
    n_rows = int(chunks.rows[-1]) + 1
    first_chunk = np.searchsorted(chunks.rows, np.arange(n_rows + 1)).astype(np.uint32)
    word_ends = np.zeros(len(chunks) + 1, np.int64)
    np.cumsum(chunks.word_counts, out=word_ends[1:])
    arrays: dict[str, NDArray[Any]] = {f"index/{name}": array for name, array in index.items()}
    arrays |= {
        "row/first_chunk": first_chunk,
        "row/first_word": word_ends[first_chunk],
        "chunk/min_ms": chunks.min_ms,
        "chunk/max_ms": chunks.max_ms,
        "chunk/counts": _narrow(chunks.counts),
        "chunk/word_counts": _narrow(chunks.word_counts),
        "chunk/kinds": chunks.kinds,
        WORDS: _packed_words(chunks),
    }
    facts = {
        "min_ms": int(chunks.min_ms.min()),
        "max_ms": int(chunks.max_ms.max()),
        "series": int(np.count_nonzero(np.diff(first_chunk.astype(np.int64)))),
        "chunks": len(chunks),
        "samples": int(chunks.counts.sum()),
    }
    parts, _ = pack(arrays, facts, framed={WORDS})
    try:
        store.create(key, parts)
    except AlreadyExistsError:
        if _is_same(store, key, parts):
            return read_meta(store, key)
        store.delete(key)
        store.create(key, parts)
    container = Container(store.open(key), key)
    damaged = next(container.damage(), None)
    if damaged is not None:
        store.delete(key)
        raise damaged
    return _meta_of(container)


def _is_same(store: BlockStore, key: str, parts: list[memoryview | bytes]) -> bool:
    there = store.open(key)
    position = 0
    for part in parts:
        if there[position : position + len(part)] != part:
            return False
        position += len(part)
    return position == len(there)


def read_meta(store: BlockStore, key: str) -> BlockMeta:
    """What a block says of itself.

    Raises
    ------
    CorruptionError, FileNotFoundError
    """
    return _meta_of(Container(store.open(key), key))


def _meta_of(container: Container) -> BlockMeta:
    return BlockMeta(key=container.name, bytes=container.size, crc=container.crc, **container.meta)


class Block:
    """A block opened for reading.

    Parameters
    ----------
    meta : what the manifest says; the object must be that one
    symbols : the table into which :attr:`index` interns its own strings on first use; None = one of its own

    Raises
    ------
    CorruptionError, FileNotFoundError        the object is not there or not the one the manifest names
    """

    def __init__(self, store: BlockStore, meta: BlockMeta, symbols: SymbolTable | None = None) -> None:
        self.meta = meta
        self._symbols = symbols
        self._container = Container(store.open(meta.key), meta.key)
        if _meta_of(self._container) != replace(meta, deleted=""):
            raise CorruptionError(meta.key, 0, "not the object that the manifest names")
        self._index: StaticIndex | None = None
        self._lock = threading.Lock()

    @property
    def index(self) -> StaticIndex:
        """Labels and postings of the rows.

        Raises
        ------
        CorruptionError        a section of the index fails its checksum
        """
        if self._index is None:
            with self._lock:
                if self._index is None:
                    self._index = self.index_in(self._symbols or SymbolTable())
        return self._index

    def index_in(self, symbols: SymbolTable) -> StaticIndex:
        """The same with the numbering of another table.

        Raises
        ------
        CorruptionError
        """
        return StaticIndex(self._container.arrays("index/"), symbols)

    def samples_by_row(self) -> NDArray[np.int64]:
        """(rows of the index,) samples that each row has, repeats counted.

        Raises
        ------
        CorruptionError        a descriptor section is damaged
        """
        ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(self._container.array("chunk/counts"), dtype=np.int64)))
        found = np.zeros(len(self.index), np.int64)
        by_row = np.diff(ends[self._container.array("row/first_chunk")])
        found[: len(by_row)] = by_row
        return found

    def chunks(self, rows: NDArray[np.int32], mint_ms: int, maxt_ms: int, warnings: list[str] | None = None) -> Chunks:
        """Chunks of some rows that reach into a range; the payloads stay in the memory map.

        Parameters
        ----------
        rows : (m,) int32        rows of this block, any order; the result numbers them 0 ... m - 1
        mint_ms, maxt_ms : inclusive
        warnings : with a list, chunks in damaged frames are left out and that is said here

        Raises
        ------
        CorruptionError        a descriptor section is damaged; without ``warnings`` also a frame of the payloads
        """
        array = self._container.array
        first_chunk = array("row/first_chunk")
        inside = rows[(rows >= 0) & (rows < len(first_chunk) - 1)]
        most = int((first_chunk[inside + 1] - first_chunk[inside]).sum(dtype=np.int64)) if len(inside) else 0
        frames = np.zeros(self._container.frame_count(WORDS), np.uint8)
        out_rows, kinds = np.empty(most, np.int32), np.empty(most, np.uint8)
        min_ms, max_ms = np.empty(most, np.int64), np.empty(most, np.int64)
        counts, offsets = np.empty(most, np.int32), np.empty(most, np.int64)
        word_counts = np.empty(most, np.int32)
        n = select_chunks(
            rows, mint_ms, maxt_ms, first_chunk, array("row/first_word"), array("chunk/min_ms"),
            array("chunk/max_ms"), array("chunk/counts"), array("chunk/word_counts"), array("chunk/kinds"),
            FRAME_WORDS, out_rows, kinds, min_ms, max_ms, counts, offsets, word_counts, frames,
        )  # fmt: skip
        chosen: slice | NDArray[np.bool_] = slice(n)
        bad = self._container.bad_frames(WORDS, frames)
        if bad.any():
            first_bad = int(np.flatnonzero(bad)[0])
            offset = self._container.frame_offset(WORDS, first_bad)
            if warnings is None:
                raise CorruptionError(self.meta.key, offset, f"frame {first_bad} of the chunks fails its checksum")
            bad_before = np.concatenate(([0], np.cumsum(bad)))
            first_frame = offsets[:n] // FRAME_WORDS
            last_frame = (offsets[:n] + word_counts[:n] - 1) // FRAME_WORDS
            chosen = np.zeros(most, np.bool_)
            chosen[:n] = bad_before[last_frame + 1] == bad_before[first_frame]
            lost = n - int(np.count_nonzero(chosen))
            warnings.append(f"partial: {lost} chunks of {self.meta.key} are damaged (from byte {offset} on)")
        return Chunks(
            rows=out_rows[chosen],
            kinds=kinds[chosen],
            min_ms=min_ms[chosen],
            max_ms=max_ms[chosen],
            counts=counts[chosen],
            word_offsets=offsets[chosen],
            word_counts=word_counts[chosen],
            words=array(WORDS),
        )

    def damage(self) -> list[CorruptionError]:
        """Everything in it that fails its checksum (reads the whole object)."""
        return list(self._container.damage())
