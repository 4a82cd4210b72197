"""Windows over ragged samples: every function of a range vector, and the instant selector's lookback.

All kernels walk the rows ``[begin, end)`` of a SeriesFrame and write row ``r`` of the output for row ``begin + r``.
Window s is ``(first_ms + s * step_ms - range_ms, first_ms + s * step_ms]``: open to the left, as Prometheus 3 has it.
Stale markers are no samples. ``ts_ms`` and ``values`` are only read; they are declared writable because a row with
stale markers is copied without them to the scratch arrays, and both must be of one type.
"""

from __future__ import annotations

import math

from query.kernels._math import STALE_BITS, kahan_add, quantile_of
from tsdb.kernels._jit import const, device, f64, i64, kernel, mut, u1, u64

DELTA, INCREASE, RATE = 0, 1, 2

# Operations of window_fold.
SUM, AVG, MIN, MAX, COUNT, FIRST, LAST, PRESENT, STDVAR, STDDEV = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
QUANTILE, CHANGES, RESETS, IRATE, IDELTA, DERIV, PREDICT_LINEAR = 10, 11, 12, 13, 14, 15, 16


@device
def _copy_live(ts_ms, values, bits, begin, end, scratch_ts, scratch_values):
    """Copy the samples of ``[begin, end)`` that are no stale markers; returns how many."""
    count = 0
    for i in range(begin, end):
        if bits[i] != STALE_BITS:
            scratch_ts[count] = ts_ms[i]
            scratch_values[count] = values[i]
            count += 1
    return count


@device
def _first_after(ts_ms, begin, end, time_ms):
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
def _stale_count(bits, begin, end):
    """Number of stale markers (a plain counting loop: it vectorises)."""
    stale = 0
    for i in range(begin, end):
        stale += bits[i] == STALE_BITS
    return stale


@device
def _is_rising(v, begin, end):
    """Whether no sample is smaller than the one before and none is NaN (so none is a stale marker either)."""
    falls = 0
    for i in range(begin + 1, end):
        falls += not v[i] >= v[i - 1]
    return falls == 0 and begin < end and v[begin] == v[begin]


@device
def _edges(t, base, stop, first_ms, step_ms, begin, end, edges):
    """Write to ``edges[begin:end]`` where in ``[base, stop)`` the samples later than ``first_ms + k * step_ms`` begin.

    Scrapes are regular up to a jitter: an edge lies about as many samples further as the one before did, which takes
    two well predicted comparisons. One sample more or less does not change the pace.
    """
    at = base
    pace = 0
    limit_ms = first_ms
    for k in range(begin, end):
        found = min(at + pace, stop)
        while found > at and t[found - 1] > limit_ms:
            found -= 1
        while found < stop and t[found] <= limit_ms:
            found += 1
        moved = found - at
        if moved > pace + 1 or moved < pace - 1:
            pace = moved
        at = found
        edges[k] = found
        limit_ms += step_ms


@device
def _window_edges(t, base, stop, first_ms, step_ms, range_ms, steps, edges):
    """Edges of all windows: window s is ``[edges[s], edges[s + shift])``; returns shift.

    Where the range is a multiple of the step, windows end where later ones begin: one pass finds both edges.
    """
    if step_ms > 0 and range_ms % step_ms == 0 and range_ms // step_ms <= steps:
        shift = range_ms // step_ms
        _edges(t, base, stop, first_ms - range_ms, step_ms, 0, steps + shift, edges)
        return shift
    _edges(t, base, stop, first_ms - range_ms, step_ms, 0, steps, edges)
    _edges(t, base, stop, first_ms, step_ms, steps, 2 * steps, edges)
    return steps


@kernel(
    i64(
        mut(i64), mut(f64), const(u64), const(i64), i64, i64, i64, i64, i64, i64,
        mut(i64), mut(f64), mut(i64), mut(i64), mut(f64, 2), mut(f64, 2), mut(u1, 2),
    )
)  # fmt: skip
def window_rate(
    ts_ms, values, bits, offsets, begin, end, kind, first_ms, step_ms, range_ms,
    scratch_ts, scratch_values, scratch_resets, edges, parts, out, present,
):  # fmt: skip
    """``rate``, ``increase`` and ``delta`` with Prometheus' extrapolation, O(1) per window apart from counter resets.

    Parameters
    ----------
    ts_ms, values, bits : (n_samples,) int64, float64, uint64      ``bits`` is a view of ``values``
    offsets : (n_series + 1,) int64
    begin, end : rows to do
    kind : DELTA, INCREASE or RATE
    first_ms, step_ms, range_ms : the windows, see the module
    scratch_ts, scratch_values, scratch_resets : at least as long as the longest row
    edges : (2 * steps,) int64, scratch
    parts : (5, steps) float64, scratch        of each window: milliseconds before, after and between its outer samples,
        intervals between samples, first value
    out, present : (end - begin, steps) float64 and bool, written; ``out`` is 0 where absent

    Returns
    -------
    int64        samples that all windows together looked at

    Source: Prometheus 3 ``extrapolatedRate``; the order of every floating-point operation is kept.
    """
    steps = out.shape[1]
    range_s = range_ms / 1000.0
    looked = 0
    for row in range(begin, end):
        base = _first_after(ts_ms, offsets[row], offsets[row + 1], first_ms - range_ms)
        stop = _first_after(ts_ms, base, offsets[row + 1], first_ms + (steps - 1) * step_ms)
        t = ts_ms
        v = values
        resets = 0
        if kind == DELTA or not _is_rising(v, base, stop):
            if _stale_count(bits, base, stop) > 0:
                stop = _copy_live(ts_ms, values, bits, base, stop, scratch_ts, scratch_values)
                base = 0
                t = scratch_ts
                v = scratch_values
            if kind != DELTA:
                for i in range(base + 1, stop):
                    if v[i] < v[i - 1]:
                        scratch_resets[resets] = i
                        resets += 1
        shift = _window_edges(t, base, stop, first_ms, step_ms, range_ms, steps, edges)
        reset_lo = 0
        reset_hi = 0
        r = row - begin
        # first the edges of all windows, then the arithmetic of all windows: the second loop has no branches
        for s in range(steps):
            t1 = first_ms + s * step_ms
            lo = edges[s]
            hi = edges[s + shift]
            count = hi - lo
            looked += count
            present[r, s] = count >= 2
            if count < 2:
                parts[0, s] = 0.0
                parts[1, s] = 0.0
                parts[2, s] = 1.0
                parts[3, s] = 1.0
                parts[4, s] = 0.0
                out[r, s] = 0.0
                continue
            first = v[lo]
            difference = v[hi - 1] - first
            if resets > 0:
                while reset_lo < resets and scratch_resets[reset_lo] <= lo:
                    reset_lo += 1
                reset_hi = max(reset_hi, reset_lo)
                while reset_hi < resets and scratch_resets[reset_hi] < hi:
                    reset_hi += 1
                for j in range(reset_lo, reset_hi):
                    difference += v[scratch_resets[j] - 1]
            parts[0, s] = t[lo] - (t1 - range_ms)
            parts[1, s] = t1 - t[hi - 1]
            parts[2, s] = t[hi - 1] - t[lo]
            parts[3, s] = count - 1
            parts[4, s] = first
            out[r, s] = difference
        for s in range(steps):
            to_start = parts[0, s] / 1000.0
            to_end = parts[1, s] / 1000.0
            sampled = parts[2, s] / 1000.0
            first = parts[4, s]
            difference = out[r, s]
            between = sampled / parts[3, s]
            threshold = between * 1.1
            half = between / 2
            to_start = half if to_start >= threshold else to_start
            # a counter cannot have been below zero: extrapolate no further than its zero point
            to_zero = sampled * (first / difference)
            cut = (kind != DELTA) & (difference > 0) & (first >= 0) & (to_zero < to_start)
            to_start = to_zero if cut else to_start
            to_end = half if to_end >= threshold else to_end
            factor = (sampled + to_start + to_end) / sampled
            factor = factor / range_s if kind == RATE else factor
            out[r, s] = difference * factor
    return looked


@kernel(
    i64(
        mut(i64), mut(f64), const(u64), const(i64), i64, i64, i64, i64, i64, i64, mut(i64), mut(f64, 2), mut(u1, 2),
    )
)  # fmt: skip
def window_last(
    ts_ms, values, bits, offsets, begin, end, want_time, first_ms, step_ms, lookback_ms, edges, out, present
):  # fmt: skip
    """The instant selector: the newest sample of each window, absent when that is a stale marker.

    Parameters
    ----------
    want_time : 1 to write the sample's time in seconds instead of its value (``timestamp()``)
    others as in :func:`window_rate`; ``lookback_ms`` is the width of the window

    Returns
    -------
    int64        points written as present
    """
    steps = out.shape[1]
    found = 0
    for row in range(begin, end):
        base = _first_after(ts_ms, offsets[row], offsets[row + 1], first_ms - lookback_ms)
        stop = offsets[row + 1]
        _edges(ts_ms, base, stop, first_ms, step_ms, 0, steps, edges)
        for s in range(steps):
            t1 = first_ms + s * step_ms
            newest = edges[s] - 1
            if newest >= base and ts_ms[newest] > t1 - lookback_ms and bits[newest] != STALE_BITS:
                out[row - begin, s] = ts_ms[newest] / 1000.0 if want_time != 0 else values[newest]
                present[row - begin, s] = True
                found += 1
            else:
                out[row - begin, s] = 0.0
                present[row - begin, s] = False
    return found


@device
def _average(v, lo, hi):
    """Mean by a compensated sum; by a running mean from where the sum would overflow."""
    total = v[lo]
    compensation = 0.0
    mean = 0.0
    running = False
    for i in range(lo + 1, hi):
        count = i - lo + 1.0
        if not running:
            new, new_compensation = kahan_add(v[i], total, compensation)
            if not math.isinf(new):
                total = new
                compensation = new_compensation
                continue
            running = True
            mean = total / (count - 1)
            compensation /= count - 1
        q = (count - 1) / count
        mean, compensation = kahan_add(v[i] / count, q * mean, q * compensation)
    if running:
        return mean + compensation
    count = float(hi - lo)
    return total / count + compensation / count


@device
def _variance(v, lo, hi):
    """Population variance, Welford's update with compensated mean and sum."""
    count = 0.0
    mean = 0.0
    mean_c = 0.0
    squares = 0.0
    squares_c = 0.0
    for i in range(lo, hi):
        count += 1
        delta = v[i] - (mean + mean_c)
        mean, mean_c = kahan_add(delta / count, mean, mean_c)
        squares, squares_c = kahan_add(delta * (v[i] - (mean + mean_c)), squares, squares_c)
    return (squares + squares_c) / count


@device
def _regression(t, v, lo, hi, origin_ms):
    """Least squares: (slope per second, value at ``origin_ms``)."""
    sum_x = 0.0
    c_x = 0.0
    sum_y = 0.0
    c_y = 0.0
    sum_xy = 0.0
    c_xy = 0.0
    sum_xx = 0.0
    c_xx = 0.0
    first = v[lo]
    constant = True
    for i in range(lo, hi):
        y = v[i]
        if i > lo and y != first:
            constant = False
        x = (t[i] - origin_ms) / 1000.0
        sum_x, c_x = kahan_add(x, sum_x, c_x)
        sum_y, c_y = kahan_add(y, sum_y, c_y)
        sum_xy, c_xy = kahan_add(x * y, sum_xy, c_xy)
        sum_xx, c_xx = kahan_add(x * x, sum_xx, c_xx)
    if constant:
        if math.isinf(first):
            return math.nan, math.nan
        return 0.0, first
    n = float(hi - lo)
    sum_x += c_x
    sum_y += c_y
    sum_xy += c_xy
    sum_xx += c_xx
    slope = (sum_xy - sum_x * sum_y / n) / (sum_xx - sum_x * sum_x / n)
    return slope, sum_y / n - slope * sum_x / n


@kernel(
    i64(
        mut(i64), mut(f64), const(u64), const(i64), i64, i64, i64, i64, i64, i64, const(f64), const(i64),
        mut(i64), mut(f64), mut(f64), mut(i64), mut(f64, 2), mut(u1, 2),
    )
)  # fmt: skip
def window_fold(
    ts_ms, values, bits, offsets, begin, end, op, first_ms, step_ms, range_ms, params, origins_ms,
    scratch_ts, scratch_values, scratch_sort, edges, out, present,
):  # fmt: skip
    """All other functions of a range vector: ``op`` over the samples of each window.

    Parameters
    ----------
    op : one of the constants of this module
    params : (steps,) float64     φ of QUANTILE, seconds ahead of PREDICT_LINEAR, else ignored
    origins_ms : (steps,) int64      evaluation times, from which PREDICT_LINEAR counts
    scratch_sort : at least as long as the longest row
    others as in :func:`window_rate`

    Returns
    -------
    int64        samples that all windows together looked at

    Source: the functions of the same names in Prometheus 3, operation for operation.
    """
    steps = out.shape[1]
    least = 1
    if op >= IRATE:
        least = 2
    looked = 0
    for row in range(begin, end):
        base = _first_after(ts_ms, offsets[row], offsets[row + 1], first_ms - range_ms)
        stop = _first_after(ts_ms, base, offsets[row + 1], first_ms + (steps - 1) * step_ms)
        t = ts_ms
        v = values
        if _stale_count(bits, base, stop) > 0:
            stop = _copy_live(ts_ms, values, bits, base, stop, scratch_ts, scratch_values)
            base = 0
            t = scratch_ts
            v = scratch_values
        shift = _window_edges(t, base, stop, first_ms, step_ms, range_ms, steps, edges)
        for s in range(steps):
            lo = edges[s]
            hi = edges[s + shift]
            count = hi - lo
            looked += count
            if count < least:
                out[row - begin, s] = 0.0
                present[row - begin, s] = False
                continue
            result = 1.0  # PRESENT
            if op == SUM:
                result = 0.0
                compensation = 0.0
                for i in range(lo, hi):
                    result, compensation = kahan_add(v[i], result, compensation)
                if not math.isinf(result):
                    result += compensation
            elif op == AVG:
                result = _average(v, lo, hi)
            elif op == MIN:
                result = v[lo]
                for i in range(lo, hi):
                    if v[i] < result or result != result:
                        result = v[i]
            elif op == MAX:
                result = v[lo]
                for i in range(lo, hi):
                    if v[i] > result or result != result:
                        result = v[i]
            elif op == COUNT:
                result = float(count)
            elif op == FIRST:
                result = v[lo]
            elif op == LAST:
                result = v[hi - 1]
            elif op == STDVAR:
                result = _variance(v, lo, hi)
            elif op == STDDEV:
                result = math.sqrt(_variance(v, lo, hi))
            elif op == QUANTILE:
                for i in range(count):
                    scratch_sort[i] = v[lo + i]
                result = quantile_of(params[s], scratch_sort, count)
            elif op == CHANGES:
                result = 0.0
                for i in range(lo + 1, hi):
                    if v[i] != v[i - 1] and not (v[i] != v[i] and v[i - 1] != v[i - 1]):
                        result += 1.0
            elif op == RESETS:
                result = 0.0
                for i in range(lo + 1, hi):
                    if v[i] < v[i - 1]:
                        result += 1.0
            elif op == IRATE:
                result = v[hi - 1]
                if not result < v[hi - 2]:
                    result -= v[hi - 2]
                result /= (t[hi - 1] - t[hi - 2]) / 1000.0
            elif op == IDELTA:
                result = v[hi - 1] - v[hi - 2]
            elif op == DERIV:
                result, _intercept = _regression(t, v, lo, hi, t[lo])
            elif op == PREDICT_LINEAR:
                slope, intercept = _regression(t, v, lo, hi, origins_ms[s])
                result = slope * params[s] + intercept
            out[row - begin, s] = result
            present[row - begin, s] = True
    return looked
