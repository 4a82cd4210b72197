"""Encode plain samples into chunks, chunks into other encodings, and back, many series at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tsdb.chunks import CHUNK_SAMPLES_MAX, CHUNK_SPAN_MS, ChunkKind, Chunks
from tsdb.errors import CorruptionError
from tsdb.kernels import gorilla as kernels
from tsdb.kernels import pack


def encode_rows(
    rows: NDArray[np.int32] | NDArray[np.uint32],
    ts_ms: NDArray[np.int64],
    bits: NDArray[np.uint64],
    span_ms: int = CHUNK_SPAN_MS,
    samples_max: int = CHUNK_SAMPLES_MAX,
) -> Chunks:
    """Encode samples into chunks of one row each, within one span.

    Parameters
    ----------
    rows : (n,) int32 or uint32        series of each sample, not negative
    ts_ms : (n,) int64                 strictly ascending within a row; the input is sorted by (row, time)
    bits : (n,) uint64                 float64 bit patterns
    span_ms : no chunk crosses a multiple of it
    samples_max : of a chunk

    Returns
    -------
    Chunks       with ``kernels.PAD_WORDS`` unused words behind the last payload
    """
    n = len(rows)
    assert len(ts_ms) == n
    assert len(bits) == n
    counts = np.empty(n, np.int32)
    out_rows, word_counts = np.empty(n, np.int32), np.empty(n, np.int32)
    min_ms, max_ms, offsets = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    words = np.empty(3 * n + kernels.PAD_WORDS, np.uint64)  # a chunk has 2 words, then at most 145 bits a sample
    made = kernels.encode_rows(
        np.ascontiguousarray(rows, np.uint32),
        np.ascontiguousarray(ts_ms, np.int64).view(np.uint64),
        np.ascontiguousarray(bits, np.uint64),
        np.uint64(span_ms),
        samples_max,
        out_rows,
        min_ms,
        max_ms,
        counts,
        offsets,
        word_counts,
        words,
    )
    used = int(offsets[made - 1] + word_counts[made - 1]) if made else 0
    words[used : used + kernels.PAD_WORDS] = 0
    return Chunks(
        rows=out_rows[:made].copy(),  # copies: a slice would keep n elements alive for a 120th of them
        kinds=np.full(made, ChunkKind.XOR, np.uint8),
        min_ms=min_ms[:made].copy(),
        max_ms=max_ms[:made].copy(),
        counts=counts[:made].copy(),
        word_offsets=offsets[:made].copy(),
        word_counts=word_counts[:made].copy(),
        words=words[: used + kernels.PAD_WORDS].copy(),
    )


def decode_rows(chunks: Chunks) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """All samples of all chunks, in the order of the chunks: a check of what was written, not a read path.

    Returns
    -------
    (ts_ms (n,) int64, bits (n,) uint64)

    Raises
    ------
    tsdb.errors.CorruptionError        a payload that ends early, a descriptor outside the words, an unknown kind
    """
    check_descriptors(chunks)
    n = int(chunks.counts.sum(dtype=np.int64))
    times, bits = np.empty(n, np.uint64), np.empty(n, np.uint64)
    words = chunks.words
    ends = chunks.word_offsets + chunks.word_counts
    if len(chunks) and int(ends.max()) + kernels.PAD_WORDS > len(words):
        words = np.concatenate([words, np.zeros(kernels.PAD_WORDS, np.uint64)])
    done = pack.decode_chunks(words, chunks.word_offsets, chunks.word_counts, chunks.counts, chunks.kinds, times, bits)
    if done < 0:
        raise CorruptionError("chunk", 0, "payload ends before its last sample")
    return times.view(np.int64), bits


def repack(chunks: Chunks) -> Chunks:
    """The same samples in the encodings that suit a block: PACK where it fits, else as they are.

    Parameters
    ----------
    chunks : with ``kernels.PAD_WORDS`` unused words behind the last payload

    Raises
    ------
    tsdb.errors.CorruptionError        a payload that does not decode
    """
    check_descriptors(chunks)
    n = len(chunks)
    longest = int(chunks.counts.max(initial=0))
    used = int(chunks.word_counts.sum(dtype=np.int64))
    words = np.zeros(used + used // 8 + kernels.PAD_WORDS, np.uint64)
    offsets, word_counts, kinds = np.empty(n, np.int64), np.empty(n, np.int32), np.empty(n, np.uint8)
    made = pack.pack_chunks(
        chunks.words, chunks.word_offsets, chunks.word_counts, chunks.counts, chunks.kinds,
        np.empty(longest, np.uint64), np.empty(longest, np.uint64), np.empty(longest, np.int64),
        words, offsets, word_counts, kinds,
    )  # fmt: skip
    if made < 0:
        raise CorruptionError("chunk", -1 - made, "payload does not decode")
    words = words[: made + kernels.PAD_WORDS].copy()
    return replace(chunks, kinds=kinds, word_offsets=offsets, word_counts=word_counts, words=words)


def check_descriptors(chunks: Chunks) -> None:
    """Raise CorruptionError for a chunk of a kind this version cannot decode, or outside the words."""
    unknown = np.flatnonzero((chunks.kinds != ChunkKind.XOR) & (chunks.kinds != ChunkKind.PACK))
    if len(unknown):
        kind = int(chunks.kinds[unknown[0]])
        name = {k.value: k.name for k in ChunkKind}.get(kind, str(kind))
        raise CorruptionError("chunk", int(unknown[0]), f"chunk kind {name} is not supported")
    room = len(chunks.words) - chunks.word_counts  # not offset + count: a damaged offset must not overflow
    sane = (chunks.word_offsets >= 0) & (chunks.word_offsets <= room) & (chunks.word_counts >= 2) & (chunks.counts >= 1)
    if not sane.all():
        raise CorruptionError("chunk", int(np.argmin(sane)), "descriptor outside the payload")
