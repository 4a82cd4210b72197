"""Plain-Python twin of the JSON kernel: compat.md section 2 said with ``repr``, ``json.dumps`` and loops."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable


def float_text(value: float) -> str:
    """Text of a float as the Prometheus API writes sample values: the digits of ``repr``, re-pointed."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    sign = "-" if math.copysign(1.0, value) < 0 else ""
    mantissa, _, exponent = repr(float(abs(value))).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    if not digits:
        return sign + "0"
    point = len(digits) - len(fraction) + int(exponent or 0)  # digits before the decimal point
    digits = digits.rstrip("0")
    if abs(value) < 1e-6 or abs(value) >= 1e21:
        rest = "." + digits[1:] if len(digits) > 1 else ""
        return f"{sign}{digits[0]}{rest}e{point - 1:+03d}"
    if point <= 0:
        return sign + "0." + "0" * -point + digits
    if len(digits) <= point:
        return sign + digits.ljust(point, "0")
    return f"{sign}{digits[:point]}.{digits[point:]}"


def time_text(ts_ms: int) -> str:
    """Seconds, an integer when there are no milliseconds, else with exactly three decimals."""
    seconds, rest = divmod(abs(ts_ms), 1000)
    sign = "-" if ts_ms < 0 else ""
    return f"{sign}{seconds}.{rest:03d}" if rest else f"{sign}{seconds}"


def _metric(labels: dict[str, str]) -> str:
    pairs = sorted(labels.items(), key=lambda pair: pair[0].encode())
    return json.dumps(dict(pairs), ensure_ascii=False, separators=(",", ":"))


def _point(ts_ms: int, value: float) -> str:
    return f'[{time_text(ts_ms)},"{float_text(value)}"]'


def vector(rows: Iterable[tuple[dict[str, str], float]], ts_ms: int) -> str:
    """``result`` of a vector."""
    return "[" + ",".join(f'{{"metric":{_metric(m)},"value":{_point(ts_ms, v)}}}' for m, v in rows) + "]"


def matrix(rows: Iterable[tuple[dict[str, str], Iterable[tuple[int, float]]]]) -> str:
    """``result`` of a matrix; points are (time, value)."""
    return (
        "["
        + ",".join(
            f'{{"metric":{_metric(m)},"values":[{",".join(_point(t, v) for t, v in points)}]}}' for m, points in rows
        )
        + "]"
    )
