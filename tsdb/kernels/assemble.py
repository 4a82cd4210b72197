"""Decode chunks and late samples of many series from several sources into one ragged pair of arrays.

A *piece* is one chunk, or a run of plain samples of one row: 6 int64 of a table, see ``FIRST`` ... ``MAX``.
"""

from __future__ import annotations

from tsdb.kernels._jit import const, device, i32, i64, kernel, mut, u8, u64
from tsdb.kernels.gorilla import PAD_WORDS
from tsdb.kernels.pack import PACK, XOR, decode_any

PIECE_COLUMNS = 5
FIRST = 0  # first word of the payload, or -1 - first plain sample
WORDS = 1  # words of the payload, and its kind above KIND_SHIFT
COUNT = 2  # samples
MIN = 3  # first and last time
MAX = 4

KIND_SHIFT = 32


_CHUNKS = (const(i32), const(i64), const(i64), const(i32), const(i64), const(i32))
# rows, min_ms, max_ms, counts, word_offsets, word_counts: columns of tsdb.chunks.Chunks


@kernel(i64(*_CHUNKS, const(u8), const(u64), i64, i64, mut(i64), mut(i64), mut(i64)))
def count_chunks(
    rows, min_ms, max_ms, counts, offsets, word_counts, kinds, words, mint_ms, maxt_ms,
    piece_counts, sample_counts, tail_words,
):  # fmt: skip
    """Check the descriptors of one source; count those that overlap ``[mint_ms, maxt_ms]``, by row.

    Parameters
    ----------
    rows ... word_counts, kinds : (n,) const; words : uint64, const
    piece_counts, sample_counts : (n_rows,) int64, added to
    tail_words : (1,) int64, added to        space for :func:`place_chunks` to copy payloads into

    Returns
    -------
    int64        0, or -1 - number of the first descriptor that is out of bounds or of an unknown kind
    """
    n_rows = len(piece_counts)
    n_words = len(words)
    for i in range(len(rows)):
        row = i64(rows[i])
        size = i64(word_counts[i])
        if row < 0 or row >= n_rows or counts[i] < 1 or (kinds[i] != XOR and kinds[i] != PACK):
            return -1 - i
        if size < 2 or offsets[i] < 0 or offsets[i] > n_words - size:
            return -1 - i
        if max_ms[i] >= mint_ms and min_ms[i] <= maxt_ms:
            piece_counts[row] += 1
            sample_counts[row] += counts[i]
            if offsets[i] + size > n_words - PAD_WORDS:
                tail_words[0] += size + PAD_WORDS
    return 0


@device
def put_piece(pieces, at, first, n_words, count, min_ms, max_ms):
    """Write one piece."""
    pieces[at, FIRST] = first
    pieces[at, WORDS] = n_words
    pieces[at, COUNT] = count
    pieces[at, MIN] = min_ms
    pieces[at, MAX] = max_ms


@kernel(i64(*_CHUNKS, const(u8), const(u64), i64, i64, i64, i64, mut(u64), i64, mut(i64), mut(i64, 2)))
def place_chunks(
    rows, min_ms, max_ms, counts, offsets, word_counts, kinds, words, mint_ms, maxt_ms,
    base, tail_base, tails, tail, cursors, pieces,
):  # fmt: skip
    """Write the chunks of one source that :func:`count_chunks` counted behind the pieces of earlier sources.

    The decoder may read ``PAD_WORDS`` past a payload, so those at the very end of the words are copied to ``tails``.

    Parameters
    ----------
    base, tail_base : places of ``words`` and ``tails`` in the window that :func:`assemble_rows` decodes from
    tails : uint64, zeros, written; tail : first free word in it
    cursors : (n_rows,) int64, written        next piece of each row
    pieces : (n_pieces, PIECE_COLUMNS) int64, written

    Returns
    -------
    int64        next free word in ``tails``
    """
    n_words = len(words)
    for i in range(len(rows)):
        if max_ms[i] >= mint_ms and min_ms[i] <= maxt_ms:
            size = i64(word_counts[i])
            first = base + offsets[i]
            if offsets[i] + size > n_words - PAD_WORDS:
                for k in range(size):
                    tails[tail + k] = words[offsets[i] + k]
                first = tail_base + tail
                tail += size + PAD_WORDS
            at = cursors[rows[i]]
            cursors[rows[i]] = at + 1
            put_piece(pieces, at, first, size | (i64(kinds[i]) << KIND_SHIFT), counts[i], min_ms[i], max_ms[i])
    return tail


@kernel(i64(const(i32), const(i64), i64, i64, i64, u8, mut(i64), mut(i64), mut(i64), mut(i64, 2)))
def late_pieces(
    rows, ts_ms, first, mint_ms, maxt_ms, place, piece_counts, sample_counts, cursors, pieces
):  # fmt: skip
    """Count, or place, the plain samples of one source: one piece a row, all of the row's samples.

    Parameters
    ----------
    rows : (n,) int32, const; ts_ms : (n,) int64, const        sorted by (row, time)
    first : place of these samples among the plain samples of all sources
    place : 0 = add to ``piece_counts`` and ``sample_counts``, 1 = write ``cursors`` and ``pieces``

    Returns
    -------
    int64        0, or -1 - number of the first sample whose row is out of bounds
    """
    n = len(rows)
    begin = 0
    while begin < n:
        row = i64(rows[begin])
        if row < 0 or row >= len(piece_counts):
            return -1 - begin
        end = begin + 1
        while end < n and rows[end] == row:
            end += 1
        if ts_ms[end - 1] >= mint_ms and ts_ms[begin] <= maxt_ms:
            if place:
                at = cursors[row]
                cursors[row] = at + 1
                put_piece(pieces, at, -1 - first - begin, 0, end - begin, ts_ms[begin], ts_ms[end - 1])
            else:
                piece_counts[row] += 1
                sample_counts[row] += end - begin
        begin = end
    return 0


@device
def read_piece(pieces, p, words, late_times, late_bits, out_times, out_bits, at):
    """Write all samples of a piece to ``out_times[at]`` on; 0, or a negative status."""
    count = pieces[p, COUNT]
    first = pieces[p, FIRST]
    if first >= 0:
        kind = pieces[p, WORDS] >> KIND_SHIFT
        n_words = pieces[p, WORDS] & ((1 << KIND_SHIFT) - 1)
        return decode_any(kind, words, first, n_words, count, out_times, out_bits, at)
    source = -1 - first
    for k in range(count):
        out_times[at + k] = late_times[source + k]
        out_bits[at + k] = late_bits[source + k]
    return 0


@device
def trim(times, bits, first, count, mint_ms, maxt_ms):
    """Move the samples within ``[mint_ms, maxt_ms]`` of a sorted piece to its front; their number."""
    begin = 0
    while begin < count and i64(times[first + begin]) < mint_ms:
        begin += 1
    end = count
    while end > begin and i64(times[first + end - 1]) > maxt_ms:
        end -= 1
    if begin:
        for k in range(begin, end):
            times[first + k - begin] = times[first + k]
            bits[first + k - begin] = bits[first + k]
    return end - begin


@device
def copy_samples(times, bits, first, count, out_times, out_bits, at):
    """Copy ``count`` samples."""
    for k in range(count):
        out_times[at + k] = times[first + k]
        out_bits[at + k] = bits[first + k]


@device
def merge_sorted(runs, n_runs, half, times, bits):
    """Merge neighbouring sorted runs until one is left; of equal times the earlier run comes first.

    Parameters
    ----------
    runs : (n_runs + 1,) int64, written        borders of the runs within a half of the scratch
    half : length of a half; samples start in the lower one and move between the halves
    times, bits : (2 * half,) uint64, scratch

    Returns
    -------
    int64        where the merged samples start
    """
    source = 0
    while n_runs > 1:
        target = half - source
        made = 0
        r = 0
        while r < n_runs:
            a = source + runs[r]
            a_end = source + runs[r + 1]
            b = a_end
            b_end = source + runs[r + 2] if r + 1 < n_runs else a_end
            at = target + runs[r]
            while a < a_end or b < b_end:
                if b == b_end or (a < a_end and i64(times[a]) <= i64(times[b])):
                    times[at] = times[a]
                    bits[at] = bits[a]
                    a += 1
                else:
                    times[at] = times[b]
                    bits[at] = bits[b]
                    b += 1
                at += 1
            runs[made] = runs[r]
            made += 1
            r += 2
        runs[made] = runs[n_runs]
        n_runs = made
        source = target
    return source


@kernel(
    i64(
        const(i64), const(i64, 2), const(u64), const(u64), const(u64), i64, i64, i64, i64, i64, u8,
        mut(u64), mut(u64), mut(i64), mut(i64), mut(u64), mut(u64),
    )
)  # fmt: skip
def assemble_rows(
    row_pieces, pieces, words, late_times, late_bits, row_begin, row_end, mint_ms, maxt_ms, at, backward,
    times, bits, runs, out_counts, out_times, out_bits,
):  # fmt: skip
    """Assemble rows ``[row_begin, row_end)`` within ``[mint_ms, maxt_ms]``, without gaps between them.

    Chunks that follow each other in time and lie inside the range are decoded in place. Those on its borders go
    through the scratch, and so do rows whose sources overlap: they are merged, and of equal times the first stays.

    Parameters
    ----------
    row_pieces : (n_rows + 1,) int64, const        pieces of row r are ``[row_pieces[r], row_pieces[r + 1])``
    pieces : (n_pieces, PIECE_COLUMNS) int64, const
    words : uint64, const        payloads, each followed by ``PAD_WORDS`` readable words
    late_times, late_bits : uint64, const        plain samples
    at : place of the first sample, or, backward, the place behind the last one
    backward : last row first, so that two threads can start from one place and leave no gap
    times, bits : (2 * half,) uint64, scratch        half >= samples of the longest row, and of its two longest chunks
    runs : (most pieces of a row + 1,) int64, scratch
    out_counts : (n_rows,) int64, written        samples of the row
    out_times, out_bits : uint64, written

    Returns
    -------
    int64        ``at`` after the last row, or -1 - number of the piece that does not decode
    """
    half = len(times) >> 1
    n_rows = row_end - row_begin
    for i in range(n_rows):
        row = row_end - 1 - i if backward else row_begin + i
        first = row_pieces[row]
        last = row_pieces[row + 1] - 1
        ordered = True
        inside = 0
        for p in range(first, last + 1):
            if p > first and pieces[p, MIN] <= pieces[p - 1, MAX]:
                ordered = False
            if pieces[p, MIN] >= mint_ms and pieces[p, MAX] <= maxt_ms:
                inside += pieces[p, COUNT]
        # What goes through the scratch: all pieces, or the first and the last where they stick out of the range.
        n_runs = 0
        held = 0
        head = 0
        for p in range(first, last + 1):
            partial = pieces[p, MIN] < mint_ms or pieces[p, MAX] > maxt_ms
            if ordered and not partial:
                continue
            if read_piece(pieces, p, words, late_times, late_bits, times, bits, held) < 0:
                return -1 - p
            count = trim(times, bits, held, pieces[p, COUNT], mint_ms, maxt_ms) if partial else pieces[p, COUNT]
            if ordered and p == first:
                head = count
            elif count and (n_runs == 0 or i64(times[held]) <= i64(times[held - 1])):
                runs[n_runs] = held
                n_runs += 1
            held += count
        if ordered:
            total = inside + held
            begin = at - total if backward else at
            place = begin
            copy_samples(times, bits, 0, head, out_times, out_bits, place)
            place += head
            for p in range(first, last + 1):
                if pieces[p, MIN] >= mint_ms and pieces[p, MAX] <= maxt_ms:
                    if read_piece(pieces, p, words, late_times, late_bits, out_times, out_bits, place) < 0:
                        return -1 - p
                    place += pieces[p, COUNT]
            copy_samples(times, bits, head, held - head, out_times, out_bits, place)
        else:
            runs[n_runs] = held
            source = merge_sorted(runs, n_runs, half, times, bits)
            total = 0
            for k in range(held):
                if total == 0 or times[source + k] != times[source + total - 1]:
                    times[source + total] = times[source + k]
                    bits[source + total] = bits[source + k]
                    total += 1
            begin = at - total if backward else at
            copy_samples(times, bits, source, total, out_times, out_bits, begin)
        out_counts[row] = total
        at = begin if backward else begin + total
    return at
