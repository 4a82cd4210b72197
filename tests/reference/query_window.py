"""What the window kernels compute, one window at a time over a plain list of (time, value)."""

from __future__ import annotations

import itertools
import math
import struct

Sample = tuple[int, float]

STALE_BITS = 0x7FF0000000000002


def is_stale(value: float) -> bool:
    return struct.unpack("<Q", struct.pack("<d", value))[0] == STALE_BITS


def divide(a: float, b: float) -> float:
    """IEEE division."""
    if b != 0:
        return a / b
    if a == 0 or math.isnan(a):
        return math.nan
    return math.copysign(math.inf, a) * math.copysign(1.0, b)


def window(samples: list[Sample], end_ms: int, range_ms: int) -> list[Sample]:
    """Live samples of ``(end - range, end]``."""
    return [(t, v) for t, v in samples if end_ms - range_ms < t <= end_ms and not is_stale(v)]


def window_rate(samples: list[Sample], kind: str, end_ms: int, range_ms: int) -> float | None:
    """``rate``, ``increase`` or ``delta`` of one window."""
    inside = window(samples, end_ms, range_ms)
    if len(inside) < 2:
        return None
    (first_t, first), (last_t, last) = inside[0], inside[-1]
    counter = kind != "delta"
    result = last - first
    if counter:
        for (_, before), (_, after) in itertools.pairwise(inside):
            if after < before:
                result += before
    to_start = (first_t - (end_ms - range_ms)) / 1000
    to_end = (end_ms - last_t) / 1000
    sampled = (last_t - first_t) / 1000
    between = sampled / (len(inside) - 1)
    if to_start >= between * 1.1:
        to_start = between / 2
    if counter and result > 0 and first >= 0:
        to_start = min(to_start, sampled * (first / result)) if first == first else to_start
    if to_end >= between * 1.1:
        to_end = between / 2
    factor = (sampled + to_start + to_end) / sampled
    if kind == "rate":
        factor /= range_ms / 1000
    return result * factor


def window_last(samples: list[Sample], end_ms: int, lookback_ms: int) -> Sample | None:
    """Newest sample of one window, stale markers counting as the end of the series."""
    seen = [(t, v) for t, v in samples if end_ms - lookback_ms < t <= end_ms]
    return seen[-1] if seen and not is_stale(seen[-1][1]) else None


def kahan_add(value: float, total: float, compensation: float) -> tuple[float, float]:
    new = total + value
    if math.isinf(new):
        return new, 0.0
    if abs(total) >= abs(value):
        return new, compensation + ((total - new) + value)
    return new, compensation + ((value - new) + total)


def average(values: list[float]) -> float:
    total, compensation, mean, running = values[0], 0.0, 0.0, False
    for count, value in enumerate(values[1:], 2):
        if not running:
            new, new_compensation = kahan_add(value, total, compensation)
            if not math.isinf(new):
                total, compensation = new, new_compensation
                continue
            running = True
            mean = total / (count - 1)
            compensation /= count - 1
        q = (count - 1) / count
        mean, compensation = kahan_add(value / count, q * mean, q * compensation)
    return mean + compensation if running else total / len(values) + compensation / len(values)


def variance(values: list[float]) -> float:
    mean = mean_c = squares = squares_c = 0.0
    for count, value in enumerate(values, 1):
        delta = value - (mean + mean_c)
        mean, mean_c = kahan_add(delta / count, mean, mean_c)
        squares, squares_c = kahan_add(delta * (value - (mean + mean_c)), squares, squares_c)
    return (squares + squares_c) / len(values)


def quantile(q: float, values: list[float]) -> float:
    if math.isnan(q):
        return math.nan
    if q < 0:
        return -math.inf
    if q > 1:
        return math.inf
    ordered = sorted(values, key=lambda v: (not math.isnan(v), v))
    rank = q * (len(ordered) - 1)
    lower = math.floor(rank)
    upper = min(len(ordered) - 1, lower + 1)
    weight = rank - lower
    return ordered[lower] * (1 - weight) + ordered[upper] * weight


def regression(samples: list[Sample], origin_ms: int) -> tuple[float, float]:
    if all(v == samples[0][1] for _, v in samples[1:]):
        constant = samples[0][1]
        return (math.nan, math.nan) if math.isinf(constant) else (0.0, constant)
    sums = [(0.0, 0.0)] * 4
    for t, y in samples:
        x = (t - origin_ms) / 1000
        sums = [kahan_add(v, *held) for v, held in zip((x, y, x * y, x * x), sums, strict=True)]
    sum_x, sum_y, sum_xy, sum_xx = (total + compensation for total, compensation in sums)
    n = float(len(samples))
    slope = divide(sum_xy - sum_x * sum_y / n, sum_xx - sum_x * sum_x / n)
    return slope, sum_y / n - slope * sum_x / n


def extreme(values: list[float], sign: int) -> float:
    """Largest (sign 1) or smallest value; NaN only when there is nothing else."""
    best = values[0]
    for value in values:
        if value * sign > best * sign or math.isnan(best):
            best = value
    return best


def compensated_sum(values: list[float]) -> float:
    total, compensation = 0.0, 0.0
    for value in values:
        total, compensation = kahan_add(value, total, compensation)
    return total if math.isinf(total) else total + compensation


def window_fold(
    samples: list[Sample], op: str, end_ms: int, range_ms: int, param: float, origin_ms: int
) -> float | None:
    """The function called ``op`` of one window."""
    inside = window(samples, end_ms, range_ms)
    values = [v for _, v in inside]
    if len(inside) < (2 if op in ("irate", "idelta", "deriv", "predict_linear") else 1):
        return None
    pairs = list(itertools.pairwise(values))
    match op:
        case "sum_over_time":
            return compensated_sum(values)
        case "avg_over_time":
            return average(values)
        case "min_over_time":
            return extreme(values, -1)
        case "max_over_time":
            return extreme(values, 1)
        case "count_over_time":
            return float(len(values))
        case "first_over_time":
            return values[0]
        case "last_over_time":
            return values[-1]
        case "present_over_time":
            return 1.0
        case "stdvar_over_time":
            return variance(values)
        case "stddev_over_time":
            v = variance(values)
            return math.sqrt(v) if v >= 0 else math.nan
        case "quantile_over_time":
            return quantile(param, values)
        case "changes":
            return float(sum(a != b and not (math.isnan(a) and math.isnan(b)) for a, b in pairs))
        case "resets":
            return float(sum(b < a for a, b in pairs))
        case "idelta":
            return values[-1] - values[-2]
        case "irate":
            change = values[-1] if values[-1] < values[-2] else values[-1] - values[-2]
            return change / ((inside[-1][0] - inside[-2][0]) / 1000)
        case "deriv":
            return regression(inside, inside[0][0])[0]
        case "predict_linear":
            slope, intercept = regression(inside, origin_ms)
            return slope * param + intercept
    raise AssertionError(op)
