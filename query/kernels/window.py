"""Windows over ragged samples: rates, sums and extremes over time, and the instant selector's lookback.

All kernels walk the rows ``[begin, end)`` of a SeriesFrame and write row ``r`` of the output for row ``begin + r``.
Window s is ``(first_ms + s * step_ms - range_ms, first_ms + s * step_ms]``: open to the left, as Prometheus 3 has it.
Stale markers are no samples. ``ts_ms`` and ``values`` are only read; they are declared writable because a row with
stale markers is copied without them to the scratch arrays, and both must be of one type.
"""

from __future__ import annotations

import math

from query.kernels._math import STALE_BITS, kahan_add
from query.kernels._rows import copy_live, find_edges, first_after, stale_count, window_edges
from tsdb.kernels._jit import const, device, f64, i64, kernel, mut, u1, u64

DELTA, INCREASE, RATE = 0, 1, 2


@device
def _is_rising(v, begin, end):
    """Whether no sample is smaller than the one before and none is NaN (so none is a stale marker either)."""
    falls = 0
    for i in range(begin + 1, end):
        falls += not v[i] >= v[i - 1]
    return falls == 0 and begin < end and v[begin] == v[begin]


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
        base = first_after(ts_ms, offsets[row], offsets[row + 1], first_ms - range_ms)
        stop = first_after(ts_ms, base, offsets[row + 1], first_ms + (steps - 1) * step_ms)
        t = ts_ms
        v = values
        resets = 0
        if kind == DELTA or not _is_rising(v, base, stop):
            if stale_count(bits, base, stop) > 0:
                stop = copy_live(ts_ms, values, bits, base, stop, scratch_ts, scratch_values)
                base = 0
                t = scratch_ts
                v = scratch_values
            if kind != DELTA:
                for i in range(base + 1, stop):
                    if v[i] < v[i - 1]:
                        scratch_resets[resets] = i
                        resets += 1
        shift = window_edges(t, base, stop, first_ms, step_ms, range_ms, steps, edges)
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
            low = u64(lo)  # unsigned, see find_edges
            high = u64(hi - 1)
            first = v[low]
            difference = v[high] - first
            if resets > 0:
                while reset_lo < resets and scratch_resets[reset_lo] <= lo:
                    reset_lo += 1
                reset_hi = max(reset_hi, reset_lo)
                while reset_hi < resets and scratch_resets[reset_hi] < hi:
                    reset_hi += 1
                for j in range(reset_lo, reset_hi):
                    difference += v[scratch_resets[j] - 1]
            parts[0, s] = t[low] - (t1 - range_ms)
            parts[1, s] = t1 - t[high]
            parts[2, s] = t[high] - t[low]
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
        base = first_after(ts_ms, offsets[row], offsets[row + 1], first_ms - lookback_ms)
        stop = offsets[row + 1]
        find_edges(ts_ms, base, stop, first_ms, step_ms, 0, steps, edges)
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
def _fast_add(value, total, compensation):
    """:func:`kahan_add` without its case for infinity, so without a branch: right as long as the total is finite."""
    new = total + value
    large = abs(total) >= abs(value)
    big = total if large else value
    small = value if large else total
    return new, compensation + ((big - new) + small)


@kernel(
    i64(
        mut(i64), mut(f64), const(u64), const(i64), i64, i64, i64, i64, i64, i64,
        mut(i64), mut(f64), mut(i64), mut(f64, 2), mut(u1, 2),
    )
)  # fmt: skip
def window_sum(
    ts_ms, values, bits, offsets, begin, end, mean, first_ms, step_ms, range_ms,
    scratch_ts, scratch_values, edges, out, present,
):  # fmt: skip
    """``sum_over_time``, and with ``mean`` 1 ``avg_over_time``.

    A compensated sum is a chain of dependent additions. Four windows are summed side by side, which hides the latency;
    the windows whose sum is not finite are summed again with care.

    Parameters and result as in :func:`window_rate`.
    """
    steps = out.shape[1]
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
        r = row - begin
        for s in range(0, steps, 4):
            # lanes behind the last step repeat it
            s1 = min(s + 1, steps - 1)
            s2 = min(s + 2, steps - 1)
            s3 = min(s + 3, steps - 1)
            a0 = edges[s]
            a1 = edges[s1]
            a2 = edges[s2]
            a3 = edges[s3]
            n0 = edges[s + shift] - a0
            n1 = edges[s1 + shift] - a1
            n2 = edges[s2 + shift] - a2
            n3 = edges[s3 + shift] - a3
            x0 = 0.0
            x1 = 0.0
            x2 = 0.0
            x3 = 0.0
            c0 = 0.0
            c1 = 0.0
            c2 = 0.0
            c3 = 0.0
            common = min(n0, n1, n2, n3)
            for i in range(common):
                x0, c0 = _fast_add(v[a0 + i], x0, c0)
                x1, c1 = _fast_add(v[a1 + i], x1, c1)
                x2, c2 = _fast_add(v[a2 + i], x2, c2)
                x3, c3 = _fast_add(v[a3 + i], x3, c3)
            for i in range(common, n0):
                x0, c0 = _fast_add(v[a0 + i], x0, c0)
            for i in range(common, n1):
                x1, c1 = _fast_add(v[a1 + i], x1, c1)
            for i in range(common, n2):
                x2, c2 = _fast_add(v[a2 + i], x2, c2)
            for i in range(common, n3):
                x3, c3 = _fast_add(v[a3 + i], x3, c3)
            if mean == 0:
                x0 += c0
                x1 += c1
                x2 += c2
                x3 += c3
            else:
                x0 = x0 / n0 + c0 / n0
                x1 = x1 / n1 + c1 / n1
                x2 = x2 / n2 + c2 / n2
                x3 = x3 / n3 + c3 / n3
            out[r, s3] = x3
            out[r, s2] = x2
            out[r, s1] = x1
            out[r, s] = x0
        for s in range(steps):
            lo = edges[s]
            hi = edges[s + shift]
            looked += hi - lo
            present[r, s] = hi > lo
            if hi == lo:
                out[r, s] = 0.0
            elif not math.isfinite(out[r, s]):
                if mean != 0:
                    out[r, s] = _average(v, lo, hi)
                else:
                    total = 0.0
                    compensation = 0.0
                    for i in range(lo, hi):
                        total, compensation = kahan_add(v[i], total, compensation)
                    out[r, s] = total if math.isinf(total) else total + compensation
    return looked


@kernel(
    i64(
        mut(i64), mut(f64), const(u64), const(i64), i64, i64, i64, i64, i64, i64,
        mut(i64), mut(f64), mut(i64), mut(i64), mut(f64, 2), mut(u1, 2),
    )
)  # fmt: skip
def window_extreme(
    ts_ms, values, bits, offsets, begin, end, sign, first_ms, step_ms, range_ms,
    scratch_ts, scratch_values, queue, edges, out, present,
):  # fmt: skip
    """``max_over_time`` (sign 1) and ``min_over_time`` (sign -1), O(1) per sample whatever the range.

    ``queue`` holds the samples of the current window that no later one has beaten, best first (a monotonic queue). NaN
    is never the extreme unless a window has nothing else.

    Parameters
    ----------
    queue : int64, at least as long as the longest row
    others and the result as in :func:`window_rate`
    """
    steps = out.shape[1]
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
        front = 0
        back = 0  # one behind the last entry
        seen = base
        for s in range(steps):
            lo = edges[s]
            hi = edges[s + shift]
            looked += hi - lo
            for i in range(max(seen, lo), hi):
                value = v[i] * sign
                if value == value:
                    while back > front and v[queue[back - 1]] * sign < value:
                        back -= 1
                    queue[back] = i
                    back += 1
            seen = max(seen, hi)
            while front < back and queue[front] < lo:
                front += 1
            present[row - begin, s] = hi > lo
            if hi == lo:
                out[row - begin, s] = 0.0
            elif front < back:
                out[row - begin, s] = v[queue[front]]
            else:
                out[row - begin, s] = v[hi - 1]
    return looked
