"""Counting log lines in windows without sorting them by series."""

from __future__ import annotations

from tsdb.kernels._jit import const, f64, i32, i64, kernel, mut


@kernel(i64(const(i64), const(i32), const(f64), i64, i64, i64, mut(f64, 2), mut(f64, 2)))
def add_to_windows(ts, series, weights, first, step, width, counts, sums):
    """Add lines to all the windows they lie in.

    Window s is ``(first + s * step - width, first + s * step]``. What is written are differences along the steps: the
    running sum over the second axis is the result, exact as long as sums stay below 2**53.

    Parameters
    ----------
    ts : (n,) int64, any order
    series : (n,) int32, negative = no series
    weights : (n,) float64, integers; empty = nothing is weighed
    first, step, width : the windows, in the unit of ``ts``; ``step`` >= 1
    counts, sums : (series, steps + 1) float64, added to; ``sums`` only with weights

    Returns
    -------
    int64        lines that lie in any window
    """
    steps = counts.shape[1] - 1
    used = i64(0)
    weighed = len(weights) > 0
    low = i64(0)
    high = i64(0)
    # Times for which the windows are those of the line before: neighbours are of one stream, and divisions are slow.
    same_from = i64(1)
    same_to = i64(0)
    for i in range(len(ts)):
        row = series[i]
        if row < 0:
            continue
        at = ts[i]
        if at < same_from or at > same_to:
            # the first window that ends at or behind the line, and the first that begins at or behind it
            low_step = -((first - at) // step)
            high_step = -((first - width - at) // step)
            same_from = max(first + (low_step - 1) * step, first - width + (high_step - 1) * step) + 1
            same_to = min(first + low_step * step, first - width + high_step * step)
            low = max(i64(0), low_step)
            high = min(i64(steps), high_step)
        if low >= high:
            continue
        used += 1
        counts[row, low] += 1.0
        counts[row, high] -= 1.0
        if weighed:
            sums[row, low] += weights[i]
            sums[row, high] -= weights[i]
    return used
