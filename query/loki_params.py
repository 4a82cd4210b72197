"""What the parameters of a Loki read request mean (compat.md 2 and 6)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from query.errors import BadDataError
from query.logql.engine.engine import ENTRIES_MAX
from query.logql.units import NS, parse_duration_ns
from query.params import Params, int64
from query.promql.literals import quote

_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_FLOAT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_RFC_3339 = re.compile(r"(.+T\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d)", re.ASCII)

_NS_MAX = (1 << 63) - 1
DEFAULT_RANGE_NS = 3600 * NS
DEFAULT_LIMIT = 100
SECONDS_DIGITS_MAX = 10
"""An integer of at most so many characters counts seconds, a longer one nanoseconds."""


@dataclass(frozen=True, slots=True)
class TimeRange:
    """start <= ts < end, in nanoseconds."""

    start_ns: int
    end_ns: int


def _number_ns(text: str) -> int | None:
    """Nanoseconds of a time that is a number, None of any other; what 64 bits do not hold is anything beyond them."""
    if _INTEGER.fullmatch(text):
        number = int64(text)
        return _NS_MAX + 1 if number is None else number * (NS if len(text) <= SECONDS_DIGITS_MAX else 1)
    if "." not in text or not _FLOAT.fullmatch(text):
        return None
    whole, _, part = text.partition(".")
    if part.isdecimal() and _INTEGER.fullmatch(whole):
        fraction = int(part.ljust(9, "0")[:9])
        seconds = int64(whole)
        return _NS_MAX + 1 if seconds is None else seconds * NS + (-fraction if whole.startswith("-") else fraction)
    return _seconds_ns(text)


def _seconds_ns(text: str) -> int:
    """Nanoseconds of float seconds, at most what 64 bits hold and one."""
    seconds = float(text) * NS
    return round(seconds) if abs(seconds) <= _NS_MAX else (_NS_MAX + 1) * (1 if seconds > 0 else -1)


def parse_time_ns(text: str) -> int:
    """Nanoseconds of a time: float seconds, integer seconds or nanoseconds, or RFC 3339.

    Raises
    ------
    ValueError
    """
    found = _number_ns(text)
    if found is not None:
        if not -_NS_MAX <= found <= _NS_MAX:
            raise ValueError(f"cannot parse {quote(text)} to a valid timestamp")
        return found
    moment = _RFC_3339.fullmatch(text)
    if moment is None:
        raise ValueError(f"cannot parse {quote(text)} to a valid timestamp")
    try:
        at = datetime.fromisoformat(moment[1] + moment[3].replace("Z", "+00:00"))
    except ValueError:
        raise ValueError(f"cannot parse {quote(text)} to a valid timestamp") from None
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * NS + int((moment[2] or "").ljust(9, "0"))


def time_ns(params: Params, name: str, default_ns: int) -> int:
    """An optional time.

    Raises
    ------
    BadDataError
    """
    text = params.get(name)
    if not text:
        return default_ns
    try:
        return parse_time_ns(text)
    except ValueError as error:
        raise BadDataError(f"could not parse '{name}' parameter: {error}") from None


def time_range(params: Params, now_ns: int) -> TimeRange:
    """``start`` and ``end`` with Loki's defaults.

    Raises
    ------
    BadDataError
    """
    end_ns = time_ns(params, "end", now_ns)
    since_ns = DEFAULT_RANGE_NS
    if since := params.get("since"):
        parsed = parse_duration_ns(since)
        if parsed is None:
            raise BadDataError(f"could not parse 'since' parameter: not a valid duration string: {quote(since)}")
        since_ns = parsed
    start_ns = time_ns(params, "start", min(end_ns, now_ns) - since_ns)
    if end_ns < start_ns:
        raise BadDataError("end timestamp must not be before or equal to start time")
    return TimeRange(start_ns, end_ns)


def positive(params: Params, name: str, default: int) -> int:
    """An optional count > 0.

    Raises
    ------
    BadDataError
    """
    text = params.get(name)
    if not text:
        return default
    if not _INTEGER.fullmatch(text):
        raise BadDataError(f"strconv.Atoi: parsing {quote(text)}: invalid syntax")
    number = int64(text)
    if number is None:
        raise BadDataError(f"strconv.Atoi: parsing {quote(text)}: value out of range")
    if number <= 0:
        raise BadDataError(f"{name} must be a positive value")
    return number


def entries_limit(params: Params) -> int:
    """``limit`` of a log query.

    Raises
    ------
    BadDataError
    """
    limit = positive(params, "limit", DEFAULT_LIMIT)
    if limit > ENTRIES_MAX:
        raise BadDataError(
            f"max entries limit per query exceeded, limit > max_entries_limit_per_query ({limit} > {ENTRIES_MAX})"
        )
    return limit


def is_backward(params: Params) -> bool:
    """``direction``.

    Raises
    ------
    BadDataError
    """
    text = params.get("direction")
    if text.lower() not in ("", "backward", "forward"):
        raise BadDataError(f"invalid direction '{text}'")
    return text.lower() != "forward"


def step_ns(params: Params, bounds: TimeRange) -> int:
    """``step``: a duration or float seconds.

    Raises
    ------
    BadDataError
    """
    text = params.get("step")
    if not text:
        return max(1, (bounds.end_ns - bounds.start_ns) // (250 * NS)) * NS
    step = _seconds_ns(text) if _FLOAT.fullmatch(text) else parse_duration_ns(text)
    if step is None or step > _NS_MAX:
        raise BadDataError(f"cannot parse {quote(text)} to a valid duration")
    if step <= 0:
        raise BadDataError("zero or negative query resolution step widths are not accepted. Try a positive integer")
    return step


def interval_ns(params: Params) -> int:
    """``interval`` of a log query: a duration or float seconds, 0 = every line.

    Raises
    ------
    BadDataError
    """
    text = params.get("interval")
    if not text:
        return 0
    interval = _seconds_ns(text) if _FLOAT.fullmatch(text) else parse_duration_ns(text)
    if interval is None or interval > _NS_MAX:
        raise BadDataError(f"cannot parse {quote(text)} to a valid duration")
    if interval < 0:
        raise BadDataError("interval must be >= 0")
    return interval
