"""Device functions of the window kernels: live samples of a row, and where its windows begin and end."""

from __future__ import annotations

import numpy as np

from query.kernels._math import STALE_BITS
from tsdb.kernels._jit import device, i64, u64

_0 = np.uint64(0)
_1 = np.uint64(1)


@device
def copy_live(ts_ms, values, bits, begin, end, scratch_ts, scratch_values):
    """Copy the samples of ``[begin, end)`` that are no stale markers; returns how many."""
    count = 0
    for i in range(begin, end):
        if bits[i] != STALE_BITS:
            scratch_ts[count] = ts_ms[i]
            scratch_values[count] = values[i]
            count += 1
    return count


@device
def first_after(ts_ms, begin, end, time_ms):
    """Index of the first sample of ``[begin, end)`` later than ``time_ms``, else ``end``.

    Rows are mostly cut to the query already: the ends are tried first, a search touches cold memory at every probe.
    """
    if begin == end or ts_ms[begin] > time_ms:
        return begin
    if ts_ms[end - 1] <= time_ms:
        return end
    while begin < end:
        middle = (begin + end) // 2
        if ts_ms[middle] > time_ms:
            end = middle
        else:
            begin = middle + 1
    return begin


@device
def stale_count(bits, begin, end):
    """Number of stale markers (a plain counting loop: it vectorises)."""
    stale = 0
    for i in range(begin, end):
        stale += bits[i] == STALE_BITS
    return stale


@device
def find_edges(t, base, stop, first_ms, step_ms, begin, end, edges):
    """Write to ``edges[begin:end]`` where in ``[base, stop)`` the samples later than ``first_ms + k * step_ms`` begin.

    Scrapes are regular up to a jitter: an edge lies about as many samples further as the one before did, which takes
    two well predicted comparisons. One sample more or less does not change the pace.
    """
    # Unsigned indices: of a signed one the compiler must ask whether it counts from the end.
    at = u64(base)
    last = u64(stop)
    pace = _0
    limit_ms = first_ms
    for k in range(u64(begin), u64(end)):
        found = min(at + pace, last)
        while found > at and t[found - _1] > limit_ms:
            found -= _1
        while found < last and t[found] <= limit_ms:
            found += _1
        moved = found - at
        if moved > pace + _1 or moved + _1 < pace:
            pace = moved
        at = found
        edges[k] = i64(found)
        limit_ms += step_ms


@device
def window_edges(t, base, stop, first_ms, step_ms, range_ms, steps, edges):
    """Edges of all windows: window s is ``[edges[s], edges[s + shift])``; returns shift.

    Where the range is a multiple of the step, windows end where later ones begin: one pass finds both edges.
    """
    if step_ms > 0 and range_ms % step_ms == 0 and range_ms // step_ms <= steps:
        shift = range_ms // step_ms
        find_edges(t, base, stop, first_ms - range_ms, step_ms, 0, steps + shift, edges)
        return shift
    find_edges(t, base, stop, first_ms - range_ms, step_ms, 0, steps, edges)
    find_edges(t, base, stop, first_ms, step_ms, steps, 2 * steps, edges)
    return steps
