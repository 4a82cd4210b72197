"""Numbers, durations and strings as PromQL spells them, both ways: text to value and value to canonical text.

The language inherits its literals from Go (``strconv`` and Prometheus' ``model.Duration``), so the rules and the error
texts here are Go's: a leading 0 means octal, underscores separate digits, ``\\xff`` is a byte and not a character.
"""

from __future__ import annotations

import re
from decimal import Decimal
from math import inf, isnan, nan, trunc

UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000, "y": 31_536_000_000}
"""Milliseconds of each duration unit; a year is 365 days."""

DURATION_MS_MAX = ((1 << 63) - 1) // 1_000_000
"""Longest duration: Prometheus counts int64 nanoseconds (about 292 years)."""

_DURATION_PARTS = re.compile(r"(\d+)([^\d]*)", re.ASCII)
_RANK = {unit: rank for rank, unit in enumerate(reversed(UNIT_MS))}
_PLAIN_INTEGER = re.compile(r"[1-9]\d{0,17}|0", re.ASCII)
_PREFIXED_INTEGER = re.compile(r"0[xX](?:_?[0-9a-fA-F])+|0(?:_?[0-7])+|[1-9](?:_?\d)*|0", re.ASCII)
_FLOAT = re.compile(r"(?:\d+(?:_\d+)*(?:\.(?:\d+(?:_\d+)*)?)?|\.\d+(?:_\d+)*)(?:[eE][+-]?\d+(?:_\d+)*)?", re.ASCII)
_LEGACY_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NO_ESCAPE_NEEDED = re.compile(r"[ !#-\[\]-~]*")

_ESCAPES = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, "'": 39, '"': 34}
_ESCAPED = {7: "\\a", 8: "\\b", 12: "\\f", 10: "\\n", 13: "\\r", 9: "\\t", 11: "\\v", 92: "\\\\"}
_ESCAPE_SEQUENCE = re.compile(r"\\(?:([0-7]{3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)


def parse_number(text: str) -> float:
    """Value of a number token.

    Raises
    ------
    ValueError        with the text of Go's ``strconv`` when the token is no number or too large for a float64
    """
    if _PLAIN_INTEGER.fullmatch(text):
        return float(text)
    if _PREFIXED_INTEGER.fullmatch(text):
        digits = text.replace("_", "")
        base = 16 if digits[1:2] in ("x", "X") else 8 if digits[0] == "0" and len(digits) > 1 else 10
        whole = int(digits, base)
        if whole < 1 << 63:
            return float(whole)
    if _FLOAT.fullmatch(text):
        value = float(text.replace("_", ""))
        if value == inf:
            raise ValueError(f"strconv.ParseFloat: parsing {quote(text)}: value out of range")
        return value
    word = text.lower()
    if word == "inf":
        return inf
    if word == "nan":
        return nan
    raise ValueError(f"strconv.ParseFloat: parsing {quote(text)}: invalid syntax")


def parse_duration(text: str) -> int:
    """Milliseconds of a duration such as ``1h30m``: units in falling order, each at most once, or the bare ``0``.

    Raises
    ------
    ValueError        with Prometheus' words
    """
    if text == "0":
        return 0
    if not text:
        raise ValueError("empty duration string")
    total_ms = 0
    last_rank = -1
    end = 0
    for part in _DURATION_PARTS.finditer(text):
        if part.start() != end or not part[2]:
            break
        unit = part[2]
        if unit not in UNIT_MS:
            raise ValueError(f"unknown unit {quote(unit)} in duration {quote(text)}")
        if _RANK[unit] <= last_rank:
            break
        last_rank = _RANK[unit]
        total_ms += int(part[1]) * UNIT_MS[unit]
        if total_ms > DURATION_MS_MAX:
            raise ValueError("duration out of range")
        end = part.end()
    if end != len(text):
        raise ValueError(f"not a valid duration string: {quote(text)}")
    return total_ms


def seconds_to_ms(seconds: float) -> int:
    """Whole milliseconds of a duration given in seconds: rounded to nanoseconds, then cut, as Prometheus does.

    Nanoseconds of long durations do not fit the 53 bits of a float64; what was written in milliseconds stays exact.
    """
    whole_ms = round(seconds * 1000)
    if whole_ms / 1000 == seconds:
        return whole_ms
    duration_ms = abs(round_half_away(seconds * 1e9)) // 1_000_000
    return -duration_ms if seconds < 0 else duration_ms


def round_half_away(value: float) -> int:
    """Nearest integer, halves away from zero (Python's ``round`` takes the even one)."""
    whole = trunc(value)
    if abs(value - whole) >= 0.5:
        whole += 1 if value > 0 else -1
    return whole


def format_duration(duration_ms: int) -> str:
    """Canonical text of a duration >= 0: ``90d`` rather than ``12w6d``, ``0s`` for nothing."""
    if duration_ms == 0:
        return "0s"
    rest = duration_ms
    text = ""
    for unit in ("y", "w"):
        if rest and rest % UNIT_MS[unit] == 0:
            text += f"{rest // UNIT_MS[unit]}{unit}"
            rest = 0
    for unit in ("d", "h", "m", "s", "ms"):
        count, rest = divmod(rest, UNIT_MS[unit])
        if count:
            text += f"{count}{unit}"
    return text


def format_signed_duration(duration_ms: int) -> str:
    """Like :func:`format_duration`, with a minus sign where needed."""
    return f"-{format_duration(-duration_ms)}" if duration_ms < 0 else format_duration(duration_ms)


def format_number(value: float) -> str:
    """Shortest text that reads back as ``value``, without an exponent."""
    if isnan(value):
        return "NaN"
    if value in (inf, -inf):
        return "+Inf" if value > 0 else "-Inf"
    text = repr(value)
    if "e" in text:
        text = format(Decimal(text), "f")
    return text.removesuffix(".0")


def is_legacy_name(name: str) -> bool:
    """Whether a label name can be written without quotes."""
    return _LEGACY_NAME.fullmatch(name) is not None


def quote(text: str) -> str:
    """``text`` in double quotes with Go's escapes; lone surrogates stand for bytes that are no UTF-8 (``\\xff``)."""
    if _NO_ESCAPE_NEEDED.fullmatch(text):
        return f'"{text}"'
    return '"' + "".join(_escaped(char, '"') for char in text) + '"'


def quote_char(char: str) -> str:
    """One character in single quotes, as Go prints a rune."""
    return f"'{_escaped(char, chr(39))}'"


def _escaped(char: str, quote_mark: str) -> str:
    code = ord(char)
    if char == quote_mark:
        return f"\\{char}"
    if code in _ESCAPED:
        return _ESCAPED[code]
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if char.isprintable():
        return char
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def unquote(token: str) -> str:
    """Value of a string token that the lexer has found well-formed.

    Bytes written as ``\\xff`` or ``\\377`` that form no UTF-8 come back as lone surrogates (``surrogateescape``).
    """
    body = token[1:-1]
    if token[0] == "`" or "\\" not in body:
        return body
    out = bytearray()
    end = 0
    for escape in _ESCAPE_SEQUENCE.finditer(body):
        out += body[end : escape.start()].encode()
        end = escape.end()
        octal, hexa, short, long, char = escape.groups()
        if octal or hexa:
            out.append(int(octal, 8) if octal else int(hexa, 16))
        elif short or long:
            out += chr(int(short or long, 16)).encode()
        else:
            out.append(_ESCAPES[char])
    out += body[end:].encode()
    return out.decode("utf-8", "surrogateescape")
