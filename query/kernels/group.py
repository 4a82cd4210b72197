"""Grouping of series by label symbols, and aggregation of points by group."""

from __future__ import annotations

import math

import numpy as np

from query.kernels._math import below, kahan_add, quantile_of
from tsdb.kernels._jit import const, f64, i32, i64, kernel, mut, u1, u64

SUM, AVG, MIN, MAX, COUNT, STDVAR = 0, 1, 2, 3, 4, 5

_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


@kernel(i64(const(i32, 2), mut(i32), mut(i32), mut(i32)))
def group_rows(keys, slots, group, first):
    """Number the distinct rows of ``keys`` in order of appearance.

    Parameters
    ----------
    keys : (n, k) int32, const
    slots : (capacity,) int32, zero; capacity a power of two >= 2 n      the hash table: row + 1 of a group's first row
    group : (n,) int32, written        number of each row's group
    first : (n,) int32, written        first row of each group, the first ``groups`` entries are valid

    Returns
    -------
    int64        number of groups
    """
    n, width = keys.shape
    mask = u64(slots.shape[0] - 1)
    groups = 0
    for row in range(n):
        hashed = u64(width)
        for column in range(width):
            hashed = (hashed ^ u64(keys[row, column])) * _MIX
            hashed ^= hashed >> _SHIFT
        slot = i64(hashed & mask)
        while True:
            holder = slots[slot]
            if holder == 0:
                slots[slot] = row + 1
                group[row] = groups
                first[groups] = row
                groups += 1
                break
            same = True
            for column in range(width):
                if keys[row, column] != keys[holder - 1, column]:
                    same = False
                    break
            if same:
                group[row] = group[holder - 1]
                break
            slot = (slot + 1) & (slots.shape[0] - 1)
    return groups


@kernel(i64(const(f64, 2), const(u1, 2), const(i32), i64, mut(f64, 2), mut(f64, 2), mut(f64, 2)))
def accumulate(values, present, group, op, total, extra, count):
    """Fold rows of points into the running state of their groups, in row order.

    Parameters
    ----------
    values, present : (n, s) float64 and bool, const
    group : (n,) int32, const
    op : SUM, AVG, MIN, MAX, COUNT (also for ``group``) or STDVAR
    total, extra, count : (groups, steps) float64, state, zero at the start
        points seen are in ``count``; SUM: sum and compensation; AVG: the same, or with a negative ``count`` a running
        mean and its compensation; MIN, MAX: the value in ``total``; STDVAR: sum of squared differences in
        ``total``, mean in ``extra``

    Returns
    -------
    int64        points folded
    """
    n, steps = values.shape
    folded = 0
    for row in range(n):
        g = group[row]
        for s in range(steps):
            if not present[row, s]:
                continue
            folded += 1
            value = values[row, s]
            seen = count[g, s]
            if op == COUNT:
                count[g, s] = seen + 1.0
            elif seen == 0.0:
                count[g, s] = 1.0
                total[g, s] = value
                if op == STDVAR:
                    extra[g, s] = value
                    # an infinite or NaN value has no distance to anything
                    total[g, s] = 0.0 if math.isfinite(value) else math.nan
            elif op == SUM:
                count[g, s] = seen + 1.0
                total[g, s], extra[g, s] = kahan_add(value, total[g, s], extra[g, s])
            elif op == MIN:
                count[g, s] = seen + 1.0
                if value < total[g, s] or total[g, s] != total[g, s]:
                    total[g, s] = value
            elif op == MAX:
                count[g, s] = seen + 1.0
                if value > total[g, s] or total[g, s] != total[g, s]:
                    total[g, s] = value
            elif op == STDVAR:
                count[g, s] = seen + 1.0
                delta = value - extra[g, s]
                extra[g, s] += delta / (seen + 1.0)
                total[g, s] += delta * (value - extra[g, s])
            elif op == AVG:
                if seen > 0.0:
                    new, compensation = kahan_add(value, total[g, s], extra[g, s])
                    if not math.isinf(new):
                        count[g, s] = seen + 1.0
                        total[g, s] = new
                        extra[g, s] = compensation
                        continue
                    # the sum would overflow: a running mean from here on
                    total[g, s] /= seen
                    extra[g, s] /= seen
                    seen = -seen
                points = 1.0 - seen
                count[g, s] = -points
                q = (points - 1.0) / points
                total[g, s], extra[g, s] = kahan_add(value / points, q * total[g, s], q * extra[g, s])
    return folded


@kernel(i64(const(f64, 2), const(u1, 2), const(i64), const(i64), const(f64), mut(f64), mut(f64, 2), mut(u1, 2)))
def group_quantile(values, present, order, bounds, q, scratch, out, out_present):
    """φ-quantile of each group at each step.

    Parameters
    ----------
    values, present : (n, steps), const
    order, bounds : rows of group g are ``order[bounds[g]:bounds[g + 1]]``
    q : (steps,) float64, const
    scratch : float64, as long as the largest group
    out, out_present : (groups, steps), written

    Returns
    -------
    int64        points written
    """
    steps = values.shape[1]
    written = 0
    for g in range(bounds.shape[0] - 1):
        for s in range(steps):
            count = 0
            for i in range(bounds[g], bounds[g + 1]):
                if present[order[i], s]:
                    scratch[count] = values[order[i], s]
                    count += 1
            out_present[g, s] = count > 0
            out[g, s] = 0.0
            if count > 0:
                out[g, s] = quantile_of(q[s], scratch, count)
                written += 1
    return written


@kernel(i64(const(f64, 2), const(u1, 2), const(i64), const(i64), const(i64), i64, mut(i64), mut(u1, 2)))
def group_topk(values, present, order, bounds, k, sign, heap, keep):
    """Mark the k largest (sign 1) or smallest (sign -1) points of each group at each step.

    NaN is kept only when fewer than k numbers are there; among equal values the earlier row stays.

    Parameters
    ----------
    values, present, order, bounds : as in :func:`group_quantile`
    k : (steps,) int64, const
    heap : int64, as long as the largest k
    keep : (n, steps) bool, zero, written

    Returns
    -------
    int64        points kept
    """
    steps = values.shape[1]
    kept = 0
    for g in range(bounds.shape[0] - 1):
        for s in range(steps):
            size = 0
            for i in range(bounds[g], bounds[g + 1]):
                row = order[i]
                if not present[row, s] or k[s] < 1:
                    continue
                value = values[row, s] * sign
                if size < k[s]:
                    at = size
                    size += 1
                    while at > 0:
                        parent = (at - 1) // 2
                        # the root is what goes first: the smallest, of equal ones the latest row
                        if below(values[heap[parent], s] * sign, value):
                            break
                        heap[at] = heap[parent]
                        at = parent
                    heap[at] = row
                elif below(values[heap[0], s] * sign, value):
                    at = 0
                    while True:
                        child = 2 * at + 1
                        if child >= size:
                            break
                        if child + 1 < size:
                            a = values[heap[child], s] * sign
                            b = values[heap[child + 1], s] * sign
                            if below(b, a) or (not below(a, b) and heap[child + 1] > heap[child]):
                                child += 1
                        c = values[heap[child], s] * sign
                        if below(value, c):
                            break
                        if not below(c, value) and row > heap[child]:
                            break
                        heap[at] = heap[child]
                        at = child
                    heap[at] = row
            for j in range(size):
                keep[heap[j], s] = True
                kept += 1
    return kept


@kernel(
    i64(
        const(f64, 2), const(u1, 2), const(i64), const(i64), const(f64), i64, const(f64), const(f64), f64,
        mut(f64), mut(f64), mut(f64, 2), mut(f64, 2), mut(u1, 2),
    )
)  # fmt: skip
def histogram(
    values, present, order, bounds, upper_bounds, fraction, low, high, tolerance,
    scratch_bound, scratch_count, fixes, out, out_present,
):  # fmt: skip
    """``histogram_quantile`` and ``histogram_fraction`` of classic histograms, one per group and step.

    Parameters
    ----------
    values, present : (n, steps), const      cumulative bucket counts
    order, bounds : rows of group g are ``order[bounds[g]:bounds[g + 1]]``, ascending by upper bound
    upper_bounds : (n,) float64, const       ``le`` of each row
    fraction : 0 for the quantile, 1 for the fraction
    low, high : (steps,) float64             φ is in ``low``; or the ends of the fraction
    tolerance : relative difference of two counts that is rounding noise
    scratch_bound, scratch_count : as long as the largest group
    fixes : (groups, 6) float64, written     what monotonicity cost: steps fixed, lowest and highest bound fixed,
        largest difference, first and last step
    out, out_present : (groups, steps), written

    Returns
    -------
    int64        points written

    Source: Prometheus 3 ``BucketQuantile`` and ``BucketFraction``.
    """
    steps = values.shape[1]
    written = 0
    for g in range(bounds.shape[0] - 1):
        fixes[g, 0] = 0.0
        fixes[g, 1] = math.inf
        fixes[g, 2] = -math.inf
        fixes[g, 3] = 0.0
        for s in range(steps):
            count = 0
            for i in range(bounds[g], bounds[g + 1]):
                row = order[i]
                if present[row, s]:
                    if count > 0 and scratch_bound[count - 1] == upper_bounds[row]:
                        scratch_count[count - 1] += values[row, s]
                    else:
                        scratch_bound[count] = upper_bounds[row]
                        scratch_count[count] = values[row, s]
                        count += 1
            out_present[g, s] = count > 0
            out[g, s] = 0.0
            if count == 0:
                continue
            written += 1
            result = math.nan
            ends_at_infinity = scratch_bound[count - 1] == math.inf
            if fraction == 0:
                q = low[s]
                if q < 0:
                    result = -math.inf
                elif q > 1:
                    result = math.inf
                elif q == q and ends_at_infinity:
                    fixed = False
                    previous = scratch_count[0]
                    for i in range(1, count):
                        current = scratch_count[i]
                        if current == previous:
                            continue
                        difference = abs(previous - current)
                        scale = abs(previous) + abs(current)
                        if previous == 0 or current == 0 or scale < 2.2250738585072014e-308:
                            noise = difference < tolerance * 2.2250738585072014e-308
                        else:
                            noise = difference / min(scale, 1.7976931348623157e308) < tolerance
                        if noise:
                            scratch_count[i] = previous
                        elif current < previous:
                            scratch_count[i] = previous
                            fixed = True
                            fixes[g, 1] = min(fixes[g, 1], scratch_bound[i])
                            fixes[g, 2] = max(fixes[g, 2], scratch_bound[i])
                            fixes[g, 3] = max(fixes[g, 3], difference)
                        else:
                            previous = current
                    if fixed:
                        if fixes[g, 0] == 0:
                            fixes[g, 4] = s
                        fixes[g, 0] += 1
                        fixes[g, 5] = s
                    total = scratch_count[count - 1]
                    if count >= 2 and total != 0:
                        rank = q * total
                        b = 0
                        top = count - 1
                        while b < top:
                            middle = (b + top) // 2
                            if scratch_count[middle] >= rank:
                                top = middle
                            else:
                                b = middle + 1
                        if b == count - 1:
                            result = scratch_bound[count - 2]
                        elif b == 0 and scratch_bound[0] <= 0:
                            result = scratch_bound[0]
                        else:
                            start = 0.0
                            inside = scratch_count[b]
                            if b > 0:
                                start = scratch_bound[b - 1]
                                inside -= scratch_count[b - 1]
                                rank -= scratch_count[b - 1]
                            result = start + (scratch_bound[b] - start) * (rank / inside)
            else:
                lower = low[s]
                upper = high[s]
                total = scratch_count[count - 1]
                if ends_at_infinity and total != 0 and lower == lower and upper == upper:
                    if lower >= upper:
                        result = 0.0
                    else:
                        rank = 0.0
                        lower_rank = total
                        upper_rank = total
                        lower_set = False
                        upper_set = False
                        start = 0.0
                        if scratch_bound[0] <= 0:
                            start = -math.inf
                        for i in range(count):
                            if i > 0:
                                start = scratch_bound[i - 1]
                            end = scratch_bound[i]
                            if not lower_set and start >= lower:
                                lower_rank = rank
                                lower_set = True
                            if not upper_set and start >= upper:
                                upper_rank = rank
                                upper_set = True
                            if not lower_set and start < lower and end > lower:
                                lower_rank = scratch_count[i]
                                if start != -math.inf:
                                    lower_rank = rank + (scratch_count[i] - rank) * (lower - start) / (end - start)
                                lower_set = True
                            if not upper_set and start < upper and end > upper:
                                upper_rank = scratch_count[i]
                                if start != -math.inf:
                                    upper_rank = rank + (scratch_count[i] - rank) * (upper - start) / (end - start)
                                upper_set = True
                            rank = scratch_count[i]
                        result = (min(upper_rank, total) - min(lower_rank, total)) / total
            out[g, s] = result
            out_present[g, s] = True
    return written
