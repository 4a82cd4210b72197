"""Texts of a page that the kernel leaves to Python: series that are new, numbers that are rare."""

from __future__ import annotations

import math
import re
import struct
from decimal import Decimal, InvalidOperation

from ingest.kernels.exposition import NAN_BITS

_TEXT_LABEL = re.compile(
    r"[ \t]*(?:(?P<name>[a-zA-Z_][a-zA-Z0-9_]*)|\"(?P<quoted>(?:[^\"\\]|\\.)*)\")[ \t]*"
    r"(?:=[ \t]*\"(?P<value>(?:[^\"\\]|\\.)*)\"[ \t]*)?(?P<end>,|\Z)",
    re.DOTALL,
)
_OPENMETRICS_LABEL = re.compile(
    r"(?:(?P<name>[a-zA-Z_][a-zA-Z0-9_]*)|\"(?P<quoted>(?:[^\"\\]|\\.)*)\")"
    r"(?:=\"(?P<value>(?:[^\"\\]|\\.)*)\")?(?P<end>,|\Z)"
)
_ESCAPE = re.compile(r"\\([\\\"n])")
_FLOAT = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?)|nan", re.IGNORECASE | re.ASCII)
_INT64_MAX = (1 << 63) - 1
_EXPONENT_FROM = 6  # as Go's shortest %g


def unescape(text: str) -> str:
    """Text of a quoted string: a backslash, quote or newline for its escape; other backslashes stay."""
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda m: "\n" if m[1] == "n" else m[1], text)


def parse_series(text: str, openmetrics: bool = False) -> list[tuple[str, str]]:
    """Labels of a series as a page spells it, in the order written; the metric name is ``__name__``.

    Parameters
    ----------
    openmetrics : blanks between the parts are an error

    Raises
    ------
    ValueError    the text is no series
    """
    name, brace, rest = text.partition("{")
    if not openmetrics:
        name = name.strip(" \t")
    elif name.endswith((" ", "\t")):
        raise ValueError(f"a blank between name and labels in {text[:200]!r}")
    pairs = [("__name__", name)] if name else []
    if brace:
        inner = rest[:-1]  # the kernel has found the closing brace
        label_pattern = _OPENMETRICS_LABEL if openmetrics else _TEXT_LABEL
        pos = 0
        while inner[pos:] if openmetrics else inner[pos:].strip(" \t"):
            match = label_pattern.match(inner, pos)
            if match is None:
                raise ValueError(f"labels cannot be read from {inner[pos : pos + 40]!r}")
            label = unescape(match["quoted"]) if match["name"] is None else match["name"]
            if match["value"] is not None:
                pairs.append((label, unescape(match["value"])))
            elif match["quoted"] is not None:  # a metric name that needs quotes
                pairs.append(("__name__", label))
            else:
                raise ValueError(f"label {label!r} has no value")
            pos = match.end()
    labels = {label for label, _ in pairs}
    if "__name__" not in labels:
        raise ValueError("the series has no metric name")
    if len(labels) < len(pairs):
        raise ValueError(f"a label name is used twice in {text[:200]!r}")
    return pairs


def parse_float(text: str) -> int:
    """Bits of the float64 nearest to ``text``, read as Go's ``strconv.ParseFloat`` reads it.

    Raises
    ------
    ValueError    not a number, or beyond the largest float64
    """
    if not _FLOAT.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no number")
    value = float(text)
    if value in (float("inf"), float("-inf")) and "n" not in text.lower():
        raise ValueError(f"{text[:40]!r} is out of range")
    bits = int.from_bytes(struct.pack("<d", value), "little")
    return int(NAN_BITS) if value != value else bits


def parse_seconds(text: str) -> int:
    """Milliseconds of a time in seconds; what is less than one is cut off.

    Raises
    ------
    ValueError    no number, or not finite, or beyond int64
    """
    parse_float(text)  # the spellings are those of values
    try:
        ms = int(Decimal(text) * 1000)
    except (InvalidOperation, OverflowError, ValueError):
        raise ValueError(f"invalid timestamp {text[:40]!r}") from None
    if abs(ms) > _INT64_MAX:
        raise ValueError(f"invalid timestamp {text[:40]!r}")
    return ms


def normal_bound(text: str) -> str:
    """A ``le`` or ``quantile`` as Prometheus 3 stores it, whatever the format of the page: ``1`` is ``1.0``.

    Always a float: with a point or an exponent. What is no number stays as it is.
    """
    try:
        parse_float(text)
    except ValueError:
        return text
    value = float(text)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'+' if value > 0 else '-'}Inf"
    short = Decimal(repr(value)).normalize()
    exponent = short.adjusted()
    if not value or -4 <= exponent < _EXPONENT_FROM:
        plain = f"{short:f}" if value else "0"
        return plain if "." in plain else plain + ".0"
    digits = "".join(map(str, short.as_tuple().digits))
    shown = digits[0] + (f".{digits[1:]}" if digits[1:] else "")
    return f"{'-' if value < 0 else ''}{shown}e{exponent:+03d}"
