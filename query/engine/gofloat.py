"""Floats as Go writes and reads them, for label values and messages."""

from __future__ import annotations

import math
import re

_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_HEX = re.compile(r"[+-]?0[xX]([0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)[pP][+-]?\d+")
_INTEGER_MAX = 2.0**53  # below it every integer is a float64, so that its digits are the shortest ones
_SPECIAL = re.compile(r"[+-]?(inf|infinity)|nan", re.IGNORECASE)


def parse_float(text: str) -> float | None:
    """``strconv.ParseFloat``: None where it reports an error (also for what overflows)."""
    if _DECIMAL.fullmatch(text) and text.isascii():
        value = float(text)
        return None if math.isinf(value) else value
    if _HEX.fullmatch(text):
        try:
            return float.fromhex(text)
        except OverflowError:
            return None
    return float(text) if _SPECIAL.fullmatch(text) else None


def _digits(value: float) -> tuple[str, str, int]:
    """Sign, shortest digits and decimal exponent: ``0.d1d2d3... * 10**point``."""
    sign = "-" if math.copysign(1.0, value) < 0 else ""
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, part = mantissa.partition(".")
    digits = (whole + part).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + part) - len(digits))
    digits = digits.rstrip("0")
    return sign, digits or "0", point if digits else 1


def _special(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "+Inf" if value > 0 else "-Inf"


def format_plain(value: float) -> str:
    """``FormatFloat(v, 'f', -1, 64)``: shortest digits, never an exponent."""
    if not math.isfinite(value):
        return _special(value)
    if value and value.is_integer() and abs(value) < _INTEGER_MAX:
        return str(int(value))
    sign, digits, point = _digits(value)
    if point <= 0:
        return f"{sign}0.{'0' * -point}{digits}" if digits != "0" else f"{sign}0"
    if point >= len(digits):
        return sign + digits + "0" * (point - len(digits))
    return f"{sign}{digits[:point]}.{digits[point:]}"


def _with_exponent(sign: str, digits: str, exponent: int) -> str:
    shown = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
    return f"{sign}{shown}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"


def format_sample(value: float) -> str:
    """A sample as the Prometheus API writes it: an exponent below 1e-6 and from 1e21."""
    if math.isfinite(value) and value and not 1e-6 <= abs(value) < 1e21:
        sign, digits, point = _digits(value)
        return _with_exponent(sign, digits, point - 1)
    return format_plain(value)


def format_general(value: float, precision: int | None = None) -> str:
    """``%g``, or ``%.<precision>g``: an exponent below 1e-4 and from 1e6, or from ``precision`` digits on."""
    if not math.isfinite(value):
        return _special(value)
    if precision is not None:
        value = float(f"{value:.{precision}g}")
    sign, digits, point = _digits(value)
    exponent = point - 1
    if digits != "0" and not -4 <= exponent < (precision or 6):
        return _with_exponent(sign, digits, exponent)
    return format_plain(value)
