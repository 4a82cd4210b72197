"""Decode what several sources hold of the same series into one ragged pair of arrays, ready for a SeriesFrame."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsdb.chunks import Chunks, LateSamples
from tsdb.errors import CorruptionError
from tsdb.frame import LabelTable, SeriesFrame
from tsdb.gorilla import check_descriptors
from tsdb.kernels import assemble as kernels
from tsdb.kernels.gorilla import PAD_WORDS

SAMPLES_PER_THREAD_MIN = 100_000
"""Fewer are decoded in about 0.3 ms: not worth a thread."""


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


_Column = NDArray[Any]


def _columns(chunks: Chunks) -> tuple[_Column, _Column, _Column, _Column, _Column, _Column]:
    """What the kernels take of the descriptors."""
    return chunks.rows, chunks.min_ms, chunks.max_ms, chunks.counts, chunks.word_offsets, chunks.word_counts


class _Plan(NamedTuple):
    """What lies in the range, by row; the arguments of the decoding kernel.

    Attributes
    ----------
    row_pieces : (n_rows + 1,) int64; pieces : (n_pieces, PIECE_COLUMNS) int64
    words : uint64, a window over the words of all sources and over ``tails``
    late_times, late_bits : uint64, plain samples of all sources
    samples : (n_rows,) int64, most samples of each row; the range and repeated times make it fewer
    pieces_max : most pieces of a row
    tails : uint64, kept alive for ``words``
    """

    row_pieces: NDArray[np.int64]
    pieces: NDArray[np.int64]
    words: NDArray[np.uint64]
    late_times: NDArray[np.uint64]
    late_bits: NDArray[np.uint64]
    samples: NDArray[np.int64]
    pieces_max: int
    tails: NDArray[np.uint64]


def _plan(n_rows: int, parts: Sequence[tuple[Chunks, LateSamples]], mint_ms: int, maxt_ms: int) -> _Plan:
    """Check all descriptors and list, row by row, what overlaps the range, in the order of the sources."""
    piece_counts, sample_counts = np.zeros(n_rows, np.int64), np.zeros(n_rows, np.int64)
    tail_words = np.zeros(1, np.int64)
    no_cursors, no_pieces = np.empty(0, np.int64), np.empty((0, kernels.PIECE_COLUMNS), np.int64)
    n_late = 0
    for chunks, late in parts:
        bad = kernels.count_chunks(
            *_columns(chunks), chunks.kinds, chunks.words, mint_ms, maxt_ms, piece_counts, sample_counts, tail_words
        )
        if bad < 0:
            check_descriptors(chunks)
            raise CorruptionError("chunk", -1 - bad, "row out of bounds")
        if len(late):
            bad = kernels.late_pieces(
                late.rows, late.ts_ms, n_late, mint_ms, maxt_ms, 0, piece_counts, sample_counts, no_cursors, no_pieces
            )
            assert bad == 0, "row of a late sample out of bounds"
            n_late += len(late)

    row_pieces = np.zeros(n_rows + 1, np.int64)
    np.cumsum(piece_counts, out=row_pieces[1:])
    pieces = np.empty((int(row_pieces[-1]), kernels.PIECE_COLUMNS), np.int64)
    cursors = row_pieces[:-1].copy()
    tails = np.zeros(int(tail_words[0]) + PAD_WORDS, np.uint64)
    words, bases = _one_window([tails, *(chunks.words for chunks, _ in parts)])
    tail = n_late = 0
    for (chunks, late), base in zip(parts, bases[1:], strict=True):
        tail = kernels.place_chunks(
            *_columns(chunks), chunks.kinds, chunks.words, mint_ms, maxt_ms, base, bases[0], tails, tail,
            cursors, pieces,
        )  # fmt: skip
        if len(late):
            kernels.late_pieces(
                late.rows, late.ts_ms, n_late, mint_ms, maxt_ms, 1, piece_counts, sample_counts, cursors, pieces
            )
            n_late += len(late)
    plain = [late for _, late in parts if len(late)]
    late_times = np.concatenate([late.ts_ms for late in plain] or [np.zeros(0, np.int64)]).view(np.uint64)
    late_bits = np.concatenate([late.bits for late in plain] or [np.zeros(0, np.uint64)])
    pieces_max = int(piece_counts.max(initial=0))
    return _Plan(row_pieces, pieces, words, late_times, late_bits, sample_counts, pieces_max, tails)


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
    return _decode_all(_plan(n_rows, parts, mint_ms, maxt_ms), n_rows, mint_ms, maxt_ms, workers)


def _decode_all(
    plan: _Plan, n_rows: int, mint_ms: int, maxt_ms: int, workers: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    ends = np.cumsum(plan.samples)
    most = int(ends[-1]) if n_rows else 0
    out_times, out_bits, out_counts = np.empty(most, np.uint64), np.empty(most, np.uint64), np.zeros(n_rows, np.int64)
    scratch = 2 * int(plan.samples.max(initial=0))

    def run(backward: int, begin: int, end: int, at: int) -> int:
        times, bits = np.empty(scratch, np.uint64), np.empty(scratch, np.uint64)
        runs = np.empty(plan.pieces_max + 1, np.int64)
        done: int = kernels.assemble_rows(
            *plan[:5], begin, end, mint_ms, maxt_ms, at, backward, times, bits, runs, out_counts, out_times, out_bits
        )
        if done < 0:
            raise CorruptionError("chunk", -1 - done, "payload does not decode")
        return done

    if workers > 1 and most >= 2 * SAMPLES_PER_THREAD_MIN:
        middle = int(np.searchsorted(ends, most // 2))
        at = int(ends[middle - 1]) if middle else 0
        with ThreadPoolExecutor(1, "assemble") as other:
            upper_half = other.submit(run, 0, middle, n_rows, at)
            first = run(1, 0, middle, at)
            last = upper_half.result()
    else:
        first, last = 0, run(0, 0, n_rows, 0)
    offsets = np.zeros(n_rows + 1, np.int64)
    np.cumsum(out_counts, out=offsets[1:])
    return offsets, out_times[first:last].view(np.int64), out_bits[first:last].view(np.float64)


class Selection:
    """Series and their samples as the sources hold them: decoded all at once, or a few rows at a time.

    A query over very many samples folds them batch by batch: the batch stays in the cache, and the whole is never in
    memory. Several threads may each have a reader.

    Attributes
    ----------
    labels : LabelTable        one row a series
    warnings : what a reader must be told, e.g. that a damaged frame was left out
    """

    __slots__ = ("_maxt_ms", "_mint_ms", "_parts", "_plan", "labels", "warnings")

    def __init__(
        self,
        labels: LabelTable,
        parts: Sequence[tuple[Chunks, LateSamples]],
        mint_ms: int,
        maxt_ms: int,
        warnings: tuple[str, ...],
    ) -> None:
        self.labels = labels
        self.warnings = warnings
        self._mint_ms, self._maxt_ms = mint_ms, maxt_ms
        self._parts = parts  # the plan looks into their words
        self._plan = _plan(len(labels), parts, mint_ms, maxt_ms)

    @property
    def samples_max(self) -> NDArray[np.int64]:
        """(n_rows,) most samples of each row; the range and repeated times make it fewer."""
        return self._plan.samples

    def frame(self) -> SeriesFrame:
        """All samples, decoded."""
        arrays = _decode_all(self._plan, len(self.labels), self._mint_ms, self._maxt_ms, workers=2)
        return SeriesFrame(self.labels, *arrays, self.warnings)

    def reader(self, batch: int) -> RowReader:
        """A reader of at most ``batch`` rows at once, with buffers of its own."""
        return RowReader(self._plan, len(self.labels), self._mint_ms, self._maxt_ms, batch)


class RowReader:
    """Decodes ranges of rows into buffers that it uses again and again; for one thread."""

    __slots__ = ("_bits", "_counts", "_maxt_ms", "_mint_ms", "_offsets", "_plan", "_runs", "_scratch", "_times")

    def __init__(self, plan: _Plan, n_rows: int, mint_ms: int, maxt_ms: int, batch: int) -> None:
        self._plan = plan
        self._mint_ms, self._maxt_ms = mint_ms, maxt_ms
        ends = np.concatenate(([0], np.cumsum(plan.samples)))
        most = int((ends[batch:] - ends[:-batch]).max()) if 0 < batch < len(ends) else int(ends[-1])
        self._times, self._bits = np.empty(most, np.uint64), np.empty(most, np.uint64)
        longest = 2 * int(plan.samples.max(initial=0))
        self._scratch = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
        self._runs = np.empty(plan.pieces_max + 1, np.int64)
        self._counts = np.zeros(n_rows, np.int64)
        self._offsets = np.zeros(batch + 1, np.int64)

    def read(self, begin: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Samples of rows ``[begin, end)``, valid until the next call.

        Returns
        -------
        offsets (end - begin + 1,) int64, ts_ms (n,) int64, values (n,) float64        as in a SeriesFrame
        """
        done = kernels.assemble_rows(
            *self._plan[:5], begin, end, self._mint_ms, self._maxt_ms, 0, 0, *self._scratch, self._runs, self._counts,
            self._times, self._bits,
        )  # fmt: skip
        if done < 0:
            raise CorruptionError("chunk", -1 - done, "payload does not decode")
        offsets = self._offsets[: end - begin + 1]
        np.cumsum(self._counts[begin:end], out=offsets[1:])
        return offsets, self._times[:done].view(np.int64), self._bits[:done].view(np.float64)
