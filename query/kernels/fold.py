"""Windows over ragged samples: every function of a range vector that is neither a rate, a sum nor an extreme.

Rows, windows and stale markers as in :mod:`query.kernels.window`.
"""

from __future__ import annotations

import math

from query.kernels._math import kahan_add, quantile_of
from query.kernels._rows import copy_live, first_after, stale_count, window_edges
from tsdb.kernels._jit import const, device, f64, i64, kernel, mut, u1, u64

COUNT, FIRST, LAST, PRESENT, STDVAR, STDDEV, QUANTILE, CHANGES, RESETS = 0, 1, 2, 3, 4, 5, 6, 7, 8
IRATE, IDELTA, DERIV, PREDICT_LINEAR = 9, 10, 11, 12  # these need two samples


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
    """``op`` over the samples of each window.

    Parameters
    ----------
    op : one of the constants of this module
    params : (steps,) float64     φ of QUANTILE, seconds ahead of PREDICT_LINEAR, else ignored
    origins_ms : (steps,) int64      evaluation times, from which PREDICT_LINEAR counts
    scratch_sort : float64, at least as long as the longest row
    others as in :func:`query.kernels.window.window_rate`

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
        base = first_after(ts_ms, offsets[row], offsets[row + 1], first_ms - range_ms)
        stop = first_after(ts_ms, base, offsets[row + 1], first_ms + (steps - 1) * step_ms)
        t = ts_ms
        v = values
        if stale_count(bits, base, stop) > 0:
            stop = copy_live(ts_ms, values, bits, base, stop, scratch_ts, scratch_values)
            base = 0
            t = scratch_ts
            v = scratch_values
        shift = window_edges(t, base, stop, first_ms, step_ms, range_ms, steps, edges)
        if op in (CHANGES, RESETS):
            # how many there were up to each sample
            events = 0.0
            for i in range(base, stop):
                if i > base:
                    if op == RESETS:
                        events += v[i] < v[i - 1]
                    else:
                        events += v[i] != v[i - 1] and not (v[i] != v[i] and v[i - 1] != v[i - 1])
                scratch_sort[i - base] = events
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
            if op == COUNT:
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
            elif op in (CHANGES, RESETS):
                result = scratch_sort[hi - 1 - base] - scratch_sort[lo - base]
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
