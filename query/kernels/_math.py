"""Device functions shared by the query kernels: compensated sums, stale markers, ordering with NaN."""

from __future__ import annotations

import math

import numpy as np

from tsdb.kernels._jit import device

STALE_BITS = np.uint64(0x7FF0000000000002)
"""Bit pattern of the staleness marker (docs/format/chunk.md; the same in Prometheus)."""


@device
def kahan_add(value, total, compensation):
    """One step of Neumaier's compensated sum; returns (total, compensation).

    An infinite total keeps no compensation, as Prometheus does it: otherwise it would turn into NaN.
    """
    new = total + value
    if math.isinf(new):
        return new, 0.0
    if abs(total) >= abs(value):
        return new, compensation + ((total - new) + value)
    return new, compensation + ((value - new) + total)


@device
def below(a, b):
    """Order of PromQL's quantiles and topk: NaN is the smallest value, equal to itself."""
    if a != a:
        return b == b
    return a < b


@device
def sort_values(values, count):
    """Sort ``values[:count]`` ascending in place, NaN first (shell sort: no allocation, short code)."""
    gap = 701
    if count > 1750:
        gap = count // 2
    while gap > 0:
        for i in range(gap, count):
            held = values[i]
            j = i
            while j >= gap and below(held, values[j - gap]):
                values[j] = values[j - gap]
                j -= gap
            values[j] = held
        if gap > 701:
            gap = max(701, int(gap / 2.25))
        elif gap == 701:
            gap = 301
        elif gap == 301:
            gap = 132
        elif gap == 132:
            gap = 57
        elif gap == 57:
            gap = 23
        elif gap == 23:
            gap = 10
        elif gap == 10:
            gap = 4
        elif gap == 4:
            gap = 1
        else:
            gap = 0


@device
def quantile_of(q, values, count):
    """φ-quantile of ``values[:count]`` (count >= 1, gets sorted): linear between the two nearest ranks."""
    if math.isnan(q):
        return math.nan
    if q < 0:
        return -math.inf
    if q > 1:
        return math.inf
    sort_values(values, count)
    rank = q * (count - 1)
    lower = math.floor(rank)
    weight = rank - lower
    low = values[int(lower)]
    high = values[min(count - 1, int(lower) + 1)]
    return low * (1 - weight) + high * weight
