"""Postings: for each pair (label name, value) the ascending series that have it, and set algebra on them.

Postings of one run of series ``[first, last)`` are CSR arrays: the series of pair p are
``refs[offsets[p]:offsets[p + 1]]``.
"""

from __future__ import annotations

import numpy as np

from tsdb.kernels._jit import const, device, i64, kernel, mut, u32, u64

_U0 = np.uint64(0)
_U1 = np.uint64(1)
_U63 = np.uint64(63)


@kernel(i64(const(u32), const(u32), i64, i64, mut(u32), mut(u32)))
def build_postings(rows, row_offsets, first, last, offsets, refs):
    """Postings of series ``[first, last)`` by counting sort.

    Parameters
    ----------
    rows, row_offsets : uint32, const        pairs of each series
    offsets : (n_pairs + 1,) uint32, zeros, written
    refs : (row entries of the run,) uint32, written

    Returns
    -------
    int64        entries written
    """
    begin = i64(row_offsets[first])
    end = i64(row_offsets[last])
    n_pairs = len(offsets) - 1
    for entry in range(begin, end):
        offsets[i64(rows[entry]) + 1] += u32(1)
    for pair in range(n_pairs):
        offsets[pair + 1] += offsets[pair]
    for ref in range(first, last):
        for entry in range(i64(row_offsets[ref]), i64(row_offsets[ref + 1])):
            pair = i64(rows[entry])
            refs[offsets[pair]] = u32(ref)
            offsets[pair] += u32(1)
    for pair in range(n_pairs, 0, -1):  # each offset has moved to its successor's place
        offsets[pair] = offsets[pair - 1]
    offsets[0] = u32(0)
    return end - begin


@kernel(i64(const(u32), i64, i64, mut(u32)))
def count_pairs(rows, first, last, counts):
    """Add the row entries ``[first, last)`` to the number of series of each pair.

    Returns
    -------
    int64        entries counted
    """
    for entry in range(first, last):
        counts[rows[entry]] += u32(1)
    return last - first


@kernel(i64(const(u32), const(u32), const(u32), i64, mut(u64), mut(u32)))
def unite(pairs, offsets, refs, first, bits, out):
    """Ascending union of the postings of many pairs.

    Parameters
    ----------
    pairs : (n,) uint32, const
    offsets, refs : uint32, const             postings of a run that begins at series ``first``
    bits : (ceil(run / 64),) uint64, zeros, scratch
    out : uint32, written                     at most one entry a series

    Returns
    -------
    int64        series written
    """
    for pair in pairs:
        for at in range(i64(offsets[pair]), i64(offsets[i64(pair) + 1])):
            place = u64(i64(refs[at]) - first)
            bits[place >> np.uint64(6)] |= _U1 << (place & _U63)
    n = i64(0)
    for word in range(len(bits)):
        left = bits[word]
        base = first + word * 64
        while left != _U0:
            low = left & (~left + _U1)
            place = i64(0)
            step = i64(32)
            while step > 0:  # number of the lowest set bit
                if low >> u64(step) != _U0:
                    low = low >> u64(step)
                    place += step
                step >>= 1
            out[n] = u32(base + place)
            n += 1
            left &= left - _U1
    return n


@kernel(i64(const(u32), const(u32), i64, mut(u32)))
def intersect(candidates, others, wanted, out):
    """Those candidates that are (``wanted`` = 1) or are not (0) in ``others``; all ascending.

    Leaps through ``others`` in doubling steps, so that a short list against a long one is cheap.

    Returns
    -------
    int64        series written
    """
    n = i64(0)
    at = i64(0)
    end = len(others)
    for candidate in candidates:
        if at < end and others[at] < candidate:
            step = i64(1)
            while at + step < end and others[at + step] < candidate:
                at += step
                step <<= 1
            high = min(at + step, end)
            while high - at > 1:  # others[at] < candidate <= others[high], or high is the end
                middle = (at + high) >> 1
                if others[middle] < candidate:
                    at = middle
                else:
                    high = middle
            at = high
        found = i64(at < end and others[at] == candidate)
        if found == wanted:
            out[n] = candidate
            n += 1
    return n


@device
def _among(pair, pairs):
    """Whether ``pair`` is one of the ascending ``pairs``."""
    low = i64(0)
    high = len(pairs)
    while low < high:
        middle = (low + high) >> 1
        if pairs[middle] < pair:
            low = middle + 1
        else:
            high = middle
    return low < len(pairs) and pairs[low] == pair


@kernel(i64(const(u32), const(u32), const(u32), const(u32), i64, const(u32), i64, mut(u32)))
def filter_rows(candidates, rows, row_offsets, pair_names, name, pairs, wanted, out):
    """Those candidates whose row holds (``wanted`` = 1) or lacks (0) every one of some pairs of one label name.

    Parameters
    ----------
    candidates : (n,) uint32, const
    rows, row_offsets, pair_names : uint32, const
    name : int64                            label name number
    pairs : (k,) uint32, const              ascending pairs of that name
    out : (n,) uint32, written

    Returns
    -------
    int64        series written
    """
    n = i64(0)
    for candidate in candidates:
        found = i64(0)
        for entry in range(i64(row_offsets[candidate]), i64(row_offsets[i64(candidate) + 1])):
            pair = rows[entry]
            if len(pairs) == 1:
                if pair == pairs[0]:
                    found = i64(1)
                    break
            elif i64(pair_names[pair]) == name:
                if _among(pair, pairs):
                    found = i64(1)
                break
        if found == wanted:
            out[n] = candidate
            n += 1
    return n


@kernel(i64(const(u32), const(u32), const(u32), mut(u32), mut(u32)))
def gather_rows(refs, rows, row_offsets, out_offsets, out):
    """Rows of some series, one behind the other; with an empty ``out`` only their offsets.

    Parameters
    ----------
    refs : (n,) uint32, const
    out_offsets : (n + 1,) uint32, written
    out : uint32, written

    Returns
    -------
    int64        entries of all
    """
    at = i64(0)
    out_offsets[0] = u32(0)
    for i in range(len(refs)):
        for entry in range(i64(row_offsets[refs[i]]), i64(row_offsets[i64(refs[i]) + 1])):
            if len(out):
                out[at] = rows[entry]
            at += 1
        out_offsets[i + 1] = u32(at)
    return at
