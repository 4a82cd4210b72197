"""A kernel to test the decorator with."""

from __future__ import annotations

from tsdb.kernels._jit import const, i64, kernel


@kernel(i64(const(i64)))
def total(values):
    """Sum of ``values``, (n,) int64."""
    result = 0
    for value in values:
        result += value
    return result
