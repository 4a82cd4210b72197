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
    """Index of the first sample of ``[begin, end)`` later than ``time_ms``, else ``end``."""
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


@kernel(
    i64(
        mut(i64), mut(f64), const(u64), const(i64), i64, i64, i64, i64, i64, i64,
        mut(i64), mut(f64), mut(i64), mut(f64, 2), mut(u1, 2),
    )
)  # fmt: skip
def window_rate(
    ts_ms, values, bits, offsets, begin, end, kind, first_ms, step_ms, range_ms,
    scratch_ts, scratch_values, scratch_resets, out, present,
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
        if _stale_count(bits, base, stop) > 0:
            stop = _copy_live(ts_ms, values, bits, base, stop, scratch_ts, scratch_values)
            base = 0
            t = scratch_ts
            v = scratch_values
        lo = base
        hi = base
        resets = 0
        reset_lo = 0
        previous = math.inf
        if base < stop:
            previous = v[base]
        for s in range(steps):
            t1 = first_ms + s * step_ms
            t0 = t1 - range_ms
            while hi < stop and t[hi] <= t1:
                value = v[hi]
                if value < previous:
                    scratch_resets[resets] = hi
                    resets += 1
                previous = value
                hi += 1
            while lo < hi and t[lo] <= t0:
                lo += 1
            count = hi - lo
            looked += count
            if count < 2:
                out[row - begin, s] = 0.0
                present[row - begin, s] = False
                continue
            first = v[lo]
            result = v[hi - 1] - first
            if kind != DELTA:
                while reset_lo < resets and scratch_resets[reset_lo] <= lo:
                    reset_lo += 1
                for j in range(reset_lo, resets):
                    result += v[scratch_resets[j] - 1]
            to_start = (t[lo] - t0) / 1000.0
            to_end = (t1 - t[hi - 1]) / 1000.0
            sampled = (t[hi - 1] - t[lo]) / 1000.0
            between = sampled / (count - 1)
            threshold = between * 1.1
            if to_start >= threshold:
                to_start = between / 2
            if kind != DELTA and result > 0 and first >= 0:
                # a counter cannot have been below zero: extrapolate no further than its zero point
                to_zero = sampled * (first / result)
                if to_zero < to_start:
                    to_start = to_zero
            if to_end >= threshold:
                to_end = between / 2
            factor = (sampled + to_start + to_end) / sampled
            if kind == RATE:
                factor /= range_s
            out[row - begin, s] = result * factor
            present[row - begin, s] = True
    return looked


@kernel(
    i64(
        mut(i64), mut(f64), const(u64), const(i64), i64, i64, i64, i64, i64, i64, mut(f64, 2), mut(u1, 2),
    )
)  # fmt: skip
def window_last(
    ts_ms, values, bits, offsets, begin, end, want_time, first_ms, step_ms, lookback_ms, out, present
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
        hi = base
        for s in range(steps):
            t1 = first_ms + s * step_ms
            while hi < stop and ts_ms[hi] <= t1:
                hi += 1
            newest = hi - 1
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
        mut(i64), mut(f64), mut(f64), mut(f64, 2), mut(u1, 2),
    )
)  # fmt: skip
def window_fold(
    ts_ms, values, bits, offsets, begin, end, op, first_ms, step_ms, range_ms, params, origins_ms,
    scratch_ts, scratch_values, scratch_sort, out, present,
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
        lo = base
        hi = base
        for s in range(steps):
            t1 = first_ms + s * step_ms
            t0 = t1 - range_ms
            while hi < stop and t[hi] <= t1:
                hi += 1
            while lo < hi and t[lo] <= t0:
                lo += 1
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
