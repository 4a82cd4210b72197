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
def select_value(values, count, rank):
    """Put ``values[:count]`` so that nothing before ``rank`` is larger than what is there, and nothing behind smaller.

    Hoare's selection. The pivot is drawn, from a fixed seed: no order of the values is slow but by chance.
    """
    low = 0
    high = count - 1
    seed = np.uint64(0x9E3779B97F4A7C15)
    while low < high:
        seed = seed * np.uint64(0x5851F42D4C957F2D) + np.uint64(0x14057B7EF767814F)
        pivot = values[low + int((seed >> np.uint64(33)) % np.uint64(high - low + 1))]
        i = low
        j = high
        while i <= j:
            while below(values[i], pivot):
                i += 1
            while below(pivot, values[j]):
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            break


@device
def quantile_of(q, values, count):
    """φ-quantile of ``values[:count]`` (count >= 1, gets moved): linear between the two nearest ranks."""
    if math.isnan(q):
        return math.nan
    if q < 0:
        return -math.inf
    if q > 1:
        return math.inf
    rank = q * (count - 1)
    lower = int(rank)
    weight = rank - lower
    select_value(values, count, lower)
    low = values[lower]
    high = low
    if lower + 1 < count:
        high = values[lower + 1]
        for i in range(lower + 2, count):
            if below(values[i], high):
                high = values[i]
    return low * (1 - weight) + high * weight
