"""Decode what several sources hold of the same series into one ragged pair of arrays, ready for a SeriesFrame."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsdb.chunks import Chunks, LateSamples
from tsdb.errors import CorruptionError
from tsdb.gorilla import check_descriptors
from tsdb.kernels import assemble as kernels
from tsdb.kernels.gorilla import PAD_WORDS

SAMPLES_PER_THREAD_MIN = 100_000
"""Fewer are decoded in about 0.3 ms: not worth a thread."""


class _Source(NamedTuple):
    """Pieces of one source: its chunks, or its late samples with one piece a row.

    ``firsts`` is the place of a piece's first word in the window over all words, or -1 - place of its first plain
    sample. All columns have shape (n,); rows, counts and word_counts are int32, the others int64.
    """

    rows: NDArray[np.int32]
    min_ms: NDArray[np.int64]
    max_ms: NDArray[np.int64]
    counts: NDArray[np.int32]
    firsts: NDArray[np.int64]
    word_counts: NDArray[np.int32]


class _Memory:
    """A read-only window over raw memory, for ``np.asarray``."""

    __slots__ = ("__array_interface__",)

    def __init__(self, address: int, n_words: int) -> None:
        self.__array_interface__ = {"data": (address, True), "shape": (n_words,), "typestr": "<u8", "version": 3}


def _one_window(arrays: Sequence[NDArray[np.uint64]]) -> tuple[NDArray[np.uint64], list[int]]:
    """One array over the memory of all, and the place in it where each begins.

    A kernel takes one array of words, and copying all sources side by side would cost as much as decoding them. The
    window spans from the lowest to the highest address; what lies in between is never touched. It is valid as long
    as the arrays live.
    """
    addresses = [a.ctypes.data for a in arrays]
    assert all(address % 8 == 0 for address in addresses), "words must be aligned"
    low = min(addresses)
    high = max(address + a.nbytes for address, a in zip(addresses, arrays, strict=True))
    return np.asarray(_Memory(low, (high - low) // 8)), [(address - low) // 8 for address in addresses]


def _pad_tails(chunks: Chunks, offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Payloads that end less than ``PAD_WORDS`` before the end of the words, each padded; ``offsets`` follow them.

    The decoder reads a little past a payload, so the few at the very end cannot stay where they are. Their offsets
    become -1 - place in the returned array.
    """
    padded: list[NDArray[np.uint64]] = []
    place = 0
    for i in np.flatnonzero(offsets + chunks.word_counts > len(chunks.words) - PAD_WORDS).tolist():
        payload = chunks.words[offsets[i] : offsets[i] + chunks.word_counts[i]]
        padded += [payload, np.zeros(PAD_WORDS, np.uint64)]
        offsets[i] = -1 - place
        place += len(payload) + PAD_WORDS
    return np.concatenate(padded) if padded else np.zeros(0, np.uint64)


def _chunk_sources(parts: Sequence[Chunks]) -> tuple[list[_Source], NDArray[np.uint64], list[NDArray[np.uint64]]]:
    """Chunks of all parts with their words addressed through one window; the arrays that must outlive it."""
    arrays: list[NDArray[np.uint64]] = [np.zeros(PAD_WORDS, np.uint64)]
    all_offsets = []
    for chunks in parts:
        check_descriptors(chunks)
        offsets = chunks.word_offsets.astype(np.int64)
        tails = _pad_tails(chunks, offsets)
        arrays += [np.ascontiguousarray(chunks.words), tails]
        all_offsets.append(offsets)
    window, begins = _one_window(arrays)
    sources = []
    for i, (chunks, offsets) in enumerate(zip(parts, all_offsets, strict=True)):
        begin, tail_begin = begins[1 + 2 * i : 3 + 2 * i]
        firsts = np.where(offsets >= 0, begin + offsets, tail_begin - 1 - offsets)
        columns = (chunks.rows, chunks.min_ms, chunks.max_ms, chunks.counts, firsts, chunks.word_counts)
        sources.append(_Source(*(np.ascontiguousarray(column) for column in columns)))
    return sources, window, arrays


def _late_source(late: LateSamples, first: int) -> _Source:
    """One piece a row; ``first`` is the place of the first of these samples among all plain ones."""
    starts = np.flatnonzero(np.diff(late.rows, prepend=np.int32(-1)))
    ends = np.append(starts[1:], len(late))
    counts = (ends - starts).astype(np.int32)
    firsts = -1 - (first + starts)
    return _Source(late.rows[starts], late.ts_ms[starts], late.ts_ms[ends - 1], counts, firsts, np.zeros_like(counts))


def assemble(
    n_rows: int, parts: Sequence[tuple[Chunks, LateSamples]], mint_ms: int, maxt_ms: int, workers: int = 2
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Samples of all rows within ``[mint_ms, maxt_ms]``, in order of time, each time once.

    Of several samples of one row and time the first source wins: parts in the given order, within a part chunks in
    their order before late samples.

    Parameters
    ----------
    n_rows : rows of the result; those of the parts are ``0 .. n_rows - 1``
    parts : chunks and late samples of each source, e.g. the blocks, oldest first, then the head
    workers : 1 or 2 threads. Two fill one array from its middle outwards, so that no gap is left between them; who
        has more cores splits the rows over several calls

    Returns
    -------
    offsets : (n_rows + 1,) int64        samples of row i are ``[offsets[i], offsets[i + 1])``
    ts_ms : (n,) int64        strictly ascending within a row
    values : (n,) float64        exactly the stored bits

    Raises
    ------
    tsdb.errors.CorruptionError        a chunk does not decode, or is of an unknown kind
    """
    chunk_sources, words, alive = _chunk_sources([chunks for chunks, _ in parts])
    plain = [late for _, late in parts if len(late)]
    late_times = np.concatenate([late.ts_ms for late in plain] or [np.zeros(0, np.int64)]).view(np.uint64)
    late_bits = np.concatenate([late.bits for late in plain] or [np.zeros(0, np.uint64)])
    sources: list[_Source] = []
    n_late = 0
    for source, (_, late) in zip(chunk_sources, parts, strict=True):
        sources.append(source)
        if len(late):
            sources.append(_late_source(late, n_late))
            n_late += len(late)

    piece_counts, sample_counts = np.zeros(n_rows, np.int64), np.zeros(n_rows, np.int64)
    for source in sources:
        bad = kernels.count_pieces(*source[:4], mint_ms, maxt_ms, piece_counts, sample_counts)
        if bad < 0:
            raise CorruptionError("chunk", -1 - bad, "row or number of samples out of bounds")
    row_pieces = np.zeros(n_rows + 1, np.int64)
    np.cumsum(piece_counts, out=row_pieces[1:])
    pieces = np.empty((int(row_pieces[-1]), kernels.PIECE_COLUMNS), np.int64)
    cursors = row_pieces[:-1].copy()
    for source in sources:
        kernels.place_pieces(*source, mint_ms, maxt_ms, cursors, pieces)

    ends = np.cumsum(sample_counts)  # upper bounds: the range and repeated times make it fewer
    most = int(ends[-1]) if n_rows else 0
    out_times, out_bits, out_counts = np.empty(most, np.uint64), np.empty(most, np.uint64), np.zeros(n_rows, np.int64)
    half = int(sample_counts.max(initial=0))
    runs_max = int(piece_counts.max(initial=0))
    results = [0, 0]

    def run(worker: int, begin: int, end: int, at: int) -> None:
        times, bits, runs = (
            np.empty(2 * half, np.uint64),
            np.empty(2 * half, np.uint64),
            np.empty(runs_max + 1, np.int64),
        )
        results[worker] = kernels.assemble_rows(
            row_pieces, pieces, words, late_times, late_bits, begin, end, mint_ms, maxt_ms, at, 1 - worker,
            times, bits, runs, out_counts, out_times, out_bits,
        )  # fmt: skip

    if workers > 1 and most >= 2 * SAMPLES_PER_THREAD_MIN:
        middle = int(np.searchsorted(ends, most // 2))
        at = int(ends[middle - 1]) if middle else 0
        other = threading.Thread(target=run, args=(1, middle, n_rows, at), name="assemble")
        other.start()
        run(0, 0, middle, at)
        other.join()
    else:
        run(1, 0, n_rows, 0)
    del alive
    for result in results:
        if result < 0:
            raise CorruptionError("chunk", -1 - result, "payload does not decode")
    offsets = np.zeros(n_rows + 1, np.int64)
    np.cumsum(out_counts, out=offsets[1:])
    first, last = results
    return offsets, out_times[first:last].view(np.int64), out_bits[first:last].view(np.float64)
