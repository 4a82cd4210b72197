"""Sealed chunks as parallel arrays: what the head hands to a block, and what a reader decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from tsdb.kernels.gorilla import PAD_WORDS
from tsdb.kernels.shard import gather_words

CHUNK_SAMPLES_MAX = 120
"""Most samples of one chunk: 30 min at 15 s, so that a narrow query decodes little (storage.md section 4)."""

CHUNK_SPAN_MS = 2 * 3_600_000
"""No chunk crosses a multiple of this time unless told otherwise: a block takes whole chunks only."""


class ChunkKind(IntEnum):
    """Encoding of a chunk; the byte is stored in blocks (docs/format/chunk.md)."""

    XOR = 1  # the head's, a stream of bits
    PACK = 2  # scaled integers, where a chunk is that: in blocks only
    NATIVE_HISTOGRAM = 16  # reserved: nothing writes it yet, readers refuse it by name


@dataclass(frozen=True, slots=True)
class Chunks:
    """Sealed chunks of many series; a series' chunks are adjacent and ascend in time.

    Attributes
    ----------
    rows : (n_chunks,) int32       series of the chunk, in the numbering of whoever made this; ascending
    kinds : (n_chunks,) uint8      ChunkKind
    min_ms, max_ms : (n_chunks,) int64   first and last sample time, milliseconds
    counts : (n_chunks,) int32     samples
    word_offsets : (n_chunks,) int64     first word of the payload in ``words``
    word_counts : (n_chunks,) int32      words of the payload
    words : (n_words,) uint64      payloads, most significant bit first in each word (docs/format/chunk.md)
    """

    rows: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    min_ms: NDArray[np.int64]
    max_ms: NDArray[np.int64]
    counts: NDArray[np.int32]
    word_offsets: NDArray[np.int64]
    word_counts: NDArray[np.int32]
    words: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class LateSamples:
    """Plain samples that did not fit into a series' chunk stream; sorted by (row, time), each pair once.

    Attributes
    ----------
    rows : (n,) int32; ts_ms : (n,) int64; bits : (n,) uint64
    """

    rows: NDArray[np.int32]
    ts_ms: NDArray[np.int64]
    bits: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.rows)


Part = tuple[Chunks, LateSamples]
"""What one source holds of a selection."""

NO_LATE = LateSamples(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.uint64))


def join_chunks(parts: Sequence[Chunks]) -> Chunks:
    """One set of chunks with the words of all parts side by side, ordered by row and first time."""
    rows = np.concatenate([p.rows for p in parts])
    min_ms = np.concatenate([p.min_ms for p in parts])
    word_counts = np.concatenate([p.word_counts for p in parts])
    order = np.lexsort((min_ms, rows))
    ends = np.cumsum(word_counts[order], dtype=np.int64)
    offsets_sorted = ends - word_counts[order]
    offsets = np.empty_like(offsets_sorted)
    offsets[order] = offsets_sorted
    words = np.zeros((int(ends[-1]) if len(ends) else 0) + PAD_WORDS, np.uint64)
    first = 0
    for part in parts:
        gather_words(part.words, part.word_offsets, part.word_counts, words, offsets[first : first + len(part)])
        first += len(part)
    return Chunks(
        rows=rows[order],
        kinds=np.concatenate([p.kinds for p in parts])[order],
        min_ms=min_ms[order],
        max_ms=np.concatenate([p.max_ms for p in parts])[order],
        counts=np.concatenate([p.counts for p in parts])[order],
        word_offsets=offsets_sorted,
        word_counts=word_counts[order],
        words=words,
    )


def pick_chunks(chunks: Chunks, chosen: NDArray[np.bool_], renumber: NDArray[np.int32] | None = None) -> Chunks:
    """The chosen chunks, their rows renumbered where a map is given; the words are shared."""
    rows = chunks.rows[chosen]
    return Chunks(
        rows=rows if renumber is None else renumber[rows],
        kinds=chunks.kinds[chosen],
        min_ms=chunks.min_ms[chosen],
        max_ms=chunks.max_ms[chosen],
        counts=chunks.counts[chosen],
        word_offsets=chunks.word_offsets[chosen],
        word_counts=chunks.word_counts[chosen],
        words=chunks.words,
    )
