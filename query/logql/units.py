"""Durations and byte counts as LogQL and log lines spell them: Go's ``time.ParseDuration`` and ``humanize``."""

from __future__ import annotations

import re
from math import isfinite

from query.promql.literals import format_duration, parse_duration

NS = 1_000_000_000
"""Nanoseconds of a second."""

_GO_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": NS,
    "m": 60 * NS,
    "h": 3600 * NS,
}
_GO_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_BYTES = re.compile(r"\s*(\d[\d,]*\.?\d*|\.\d+)\s*([A-Za-z]*)\s*", re.ASCII)
_SI = ("", "k", "m", "g", "t", "p", "e")
_BYTE_UNITS = {"": 1, "b": 1}
for _power, _prefix in enumerate(_SI[1:], 1):
    _BYTE_UNITS[_prefix] = _BYTE_UNITS[f"{_prefix}b"] = 1000**_power
    _BYTE_UNITS[f"{_prefix}i"] = _BYTE_UNITS[f"{_prefix}ib"] = 1024**_power
_INT64_MAX = (1 << 63) - 1


def parse_go_duration_ns(text: str) -> int | None:
    """``time.ParseDuration``: signed, any order, fractions; None where it reports an error."""
    body = text[1:] if text[:1] in ("+", "-") else text
    if body == "0":
        return 0
    total = 0.0
    exact = 0
    at = 0
    while at < len(body):
        part = _GO_PART.match(body, at)
        if part is None:
            return None
        number, unit = part[1], _GO_UNITS_NS[part[2]]
        if "." in number:
            total += float(number) * unit
        else:
            exact += int(number) * unit
        at = part.end()
    ns = exact + int(total)
    if not body or ns > _INT64_MAX:
        return None
    return -ns if text[0] == "-" else ns


def parse_duration_ns(text: str) -> int | None:
    """A duration of the language: Prometheus' spelling (``1d``), else Go's (``1.5h``)."""
    sign = -1 if text.startswith("-") else 1
    try:
        return sign * parse_duration(text.removeprefix("-")) * 1_000_000
    except ValueError:
        return parse_go_duration_ns(text)


def parse_bytes(text: str) -> int | None:
    """``humanize.ParseBytes``: ``5KB`` = 5000, ``1.5 MiB``; None where it reports an error."""
    part = _BYTES.fullmatch(text)
    if part is None:
        return None
    unit = _BYTE_UNITS.get(part[2].lower())
    if unit is None:
        return None
    value = float(part[1].replace(",", "")) * unit
    return int(value) if isfinite(value) and value < 1 << 64 else None


def format_duration_ns(ns: int) -> str:
    """Canonical text of a duration that reads back exactly: ``1h30m``, ``250ms``, ``1us500ns``."""
    if ns < 0:
        return "-" + format_duration_ns(-ns)
    if ns == 0:
        return "0s"
    text = ""
    for unit, size in (("h", 3600 * NS), ("m", 60 * NS), ("s", NS), ("ms", 1_000_000), ("us", 1_000), ("ns", 1)):
        count, ns = divmod(ns, size)
        if count:
            text += f"{count}{unit}"
    return text


def format_range_ns(ns: int) -> str:
    """A range between brackets: whole milliseconds, Prometheus' units."""
    return format_duration(ns // 1_000_000)


def format_bytes(count: int) -> str:
    """Canonical text of a byte count: the largest unit that divides it."""
    for power in range(len(_SI) - 2, 0, -1):
        for base, suffix in ((1024, "iB"), (1000, "B")):
            if count and count % base**power == 0:
                return f"{count // base**power}{_SI[power].upper()}{suffix}"
    return f"{count}B"
