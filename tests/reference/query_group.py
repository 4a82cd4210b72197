"""What the group kernels compute, one group at one step over a plain list of values."""

from __future__ import annotations

import math

from tests.reference.query_window import average, divide, extreme, kahan_add, quantile

__all__ = ["accumulate", "group_rows", "group_topk", "histogram_fraction", "histogram_quantile", "quantile"]

MIN_NORMAL = 2.2250738585072014e-308
MAX_FLOAT = 1.7976931348623157e308


def group_rows(keys: list[tuple[int, ...]]) -> list[int]:
    """Number of each row's group, in order of appearance."""
    numbers: dict[tuple[int, ...], int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def accumulate(op: str, values: list[float]) -> float | None:
    """Aggregation of the points of a group, in the order of its series."""
    if not values:
        return None
    match op:
        case "sum":
            total, compensation = values[0], 0.0
            for value in values[1:]:
                total, compensation = kahan_add(value, total, compensation)
            return total + compensation
        case "avg":
            return average(values)
        case "min":
            return extreme(values, -1)
        case "max":
            return extreme(values, 1)
        case "count":
            return float(len(values))
        case "group":
            return 1.0
    assert op in ("stdvar", "stddev")
    mean, squares = values[0], 0.0 if math.isfinite(values[0]) else math.nan
    for count, value in enumerate(values[1:], 2):
        delta = value - mean
        mean += delta / count
        squares += delta * (value - mean)
    result = squares / len(values)
    return (math.sqrt(result) if result >= 0 else math.nan) if op == "stddev" else result


def group_topk(k: int, largest: bool, values: list[float | None]) -> set[int]:
    """Rows of the k largest or smallest values; NaN last, of equal values the earlier row."""
    rows = [row for row, value in enumerate(values) if value is not None]

    def rank(row: int) -> tuple[bool, float, int]:
        value = values[row]
        assert value is not None
        return (True, 0.0, row) if math.isnan(value) else (False, -value if largest else value, row)

    return set(sorted(rows, key=rank)[: max(k, 0)])


def _coalesced(buckets: list[tuple[float, float]]) -> list[list[float]]:
    out: list[list[float]] = []
    for bound, count in buckets:
        if out and out[-1][0] == bound:
            out[-1][1] += count
        else:
            out.append([bound, count])
    return out


def _almost_equal(a: float, b: float, tolerance: float) -> bool:
    if a == b:
        return True
    total, difference = abs(a) + abs(b), abs(a - b)
    if a == 0 or b == 0 or total < MIN_NORMAL:
        return difference < tolerance * MIN_NORMAL
    return divide(difference, min(total, MAX_FLOAT)) < tolerance


def histogram_quantile(q: float, buckets: list[tuple[float, float]], tolerance: float) -> tuple[float, float]:
    """φ-quantile of (upper bound, cumulative count) ascending by bound; and the largest decrease that was removed."""
    if math.isnan(q):
        return math.nan, 0.0
    if q < 0:
        return -math.inf, 0.0
    if q > 1:
        return math.inf, 0.0
    if buckets[-1][0] != math.inf:
        return math.nan, 0.0
    merged = _coalesced(buckets)
    worst = 0.0
    previous = merged[0][1]
    for bucket in merged[1:]:
        if _almost_equal(previous, bucket[1], tolerance):
            bucket[1] = previous
        elif bucket[1] < previous:
            worst = max(worst, previous - bucket[1])
            bucket[1] = previous
        else:
            previous = bucket[1]
    total = merged[-1][1]
    if len(merged) < 2 or total == 0:
        return math.nan, worst
    rank = q * total
    at, top = 0, len(merged) - 1  # a binary search: with NaN among the counts it matters which ones are looked at
    while at < top:
        middle = (at + top) // 2
        at, top = (at, middle) if merged[middle][1] >= rank else (middle + 1, top)
    if at == len(merged) - 1:
        return merged[-2][0], worst
    if at == 0 and merged[0][0] <= 0:
        return merged[0][0], worst
    start, below = merged[at - 1] if at else (0.0, 0.0)
    return start + (merged[at][0] - start) * divide(rank - below, merged[at][1] - below), worst


def histogram_fraction(lower: float, upper: float, buckets: list[tuple[float, float]]) -> float:
    """Share of the observations in (lower, upper]."""
    merged = _coalesced(buckets)
    total = merged[-1][1]
    if merged[-1][0] != math.inf or total == 0 or math.isnan(lower) or math.isnan(upper):
        return math.nan
    if lower >= upper:
        return 0.0

    def rank_of(value: float) -> float:
        start, below = (0.0 if merged[0][0] > 0 else -math.inf), 0.0
        for end, count in merged:
            if start >= value:
                return below
            if start < value < end:
                inside = divide((count - below) * (value - start), end - start)
                return count if start == -math.inf else below + inside
            start, below = end, count
        return total

    return (min(rank_of(upper), total) - min(rank_of(lower), total)) / total
