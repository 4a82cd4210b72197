"""What the parameters of a read request mean: forms, times, durations, limits and escaped label names.

Everything is parsed by hand, because the clients depend on the exact words of the errors.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from email.parser import BytesParser
from email.policy import HTTP
from urllib.parse import unquote_plus, unquote_to_bytes

from query.errors import BadDataError
from query.promql.literals import parse_duration, quote, round_half_away, seconds_to_ms

MIN_TIME_MS = -((1 << 63) // 1000 - 62_135_596_801) * 1000
"""``-292273086-05-16T16:47:06Z``: the smallest time that the Go clients can say."""

MAX_TIME_MS = (((1 << 63) - 1) // 1000 - 62_135_596_801) * 1000 + 999
"""``292277025-08-18T07:12:54.999999999Z``: the largest."""

_EXTREMES = {"-292273086-05-16T16:47:06Z": MIN_TIME_MS, "292277025-08-18T07:12:54.999999999Z": MAX_TIME_MS}
_FLOAT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_RFC_3339 = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:[.,](\d+))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_INT64_MAX = (1 << 63) - 1
_INT64_CHARS_MAX = 40  # and leading zeros
_ESCAPE = re.compile(r"_(?:(_)|([0-9a-fA-F]{1,6})_)|_")
_DURATION_MS_MAX = ((1 << 63) - 1) // 1_000_000  # what int64 nanoseconds hold


class ParamError(BadDataError):
    """A parameter that cannot be understood."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f'invalid parameter "{name}": {message}')


class Params:
    """Parameters of one request: form values first, then those of the URL."""

    __slots__ = ("_values",)

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        values: dict[str, list[str]] = {}
        for name, value in pairs:
            values.setdefault(name, []).append(value)
        self._values = values

    @classmethod
    def read(cls, query_string: bytes, content_type: str = "", body: bytes = b"") -> Params:
        """Merge the query string and a form; a body that is no form is ignored."""
        pairs: list[tuple[str, str]] = []
        if body:
            kind = content_type.partition(";")[0].strip().lower()
            if kind == "application/x-www-form-urlencoded":
                pairs += _pairs(body)
            elif kind == "multipart/form-data":
                pairs += _multipart(content_type, body)
        return cls(pairs + _pairs(query_string))

    def get(self, name: str) -> str:
        """The first value of a parameter; ``""`` when it is absent."""
        values = self._values.get(name)
        return values[0] if values else ""

    def all(self, name: str) -> list[str]:
        """All values of a parameter that may be repeated."""
        return self._values.get(name, [])


def _pairs(encoded: bytes) -> list[tuple[str, str]]:
    """What ``urllib.parse.parse_qsl`` makes of it with ``keep_blank_values``, in a third of the time."""
    pairs = []
    # Bytes that are no UTF-8 stay visible (as surrogates), so that the parser refuses them by place.
    for pair in encoded.decode("utf-8", "surrogateescape").split("&"):
        if pair:
            name, _, value = pair.partition("=")
            pairs.append((_unquoted(name), _unquoted(value)))
    return pairs


def _unquoted(text: str) -> str:
    if "%" in text:
        return _unquoted_escapes(text)
    return text.replace("+", " ")


@functools.lru_cache(maxsize=1024)
def _unquoted_escapes(text: str) -> str:
    """Dashboards repeat their queries."""
    return unquote_plus(text, errors="surrogateescape")


def _multipart(content_type: str, body: bytes) -> list[tuple[str, str]]:
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    pairs = []
    for part in message.walk():
        name = part.get_param("name", header="content-disposition")
        value = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(value, bytes):
            pairs.append((name, value.decode("utf-8", "surrogateescape")))
    return pairs


@functools.lru_cache(maxsize=64)
def parse_time(text: str) -> int:
    """Milliseconds of a time: float seconds or RFC 3339 with any offset, rounded to the millisecond.

    Raises
    ------
    ValueError        with the words of the API
    """
    if _FLOAT.fullmatch(text):
        seconds = float(text)
        if abs(seconds) <= MAX_TIME_MS // 1000:
            whole = int(seconds)
            return whole * 1000 + round_half_away((seconds - whole) * 1000)
    elif match := _RFC_3339.fullmatch(text):
        year, month, day, hour, minute, second, fraction, sign, offset_hours, offset_minutes = match.groups()
        try:
            moment = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second), tzinfo=UTC)
        except ValueError:
            pass
        else:
            ms = (moment - _EPOCH) // _MILLISECOND
            if fraction:
                ms += round_half_away(float(f"0.{fraction}") * 1000)
            if sign:
                offset = (int(offset_hours) * 60 + int(offset_minutes)) * 60_000
                ms += offset if sign == "-" else -offset
            return ms
    elif text in _EXTREMES:
        return _EXTREMES[text]
    raise ValueError(f"cannot parse {quote(text)} to a valid timestamp")


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def parse_step(text: str) -> int:
    """Milliseconds of a duration parameter: float seconds or a Prometheus duration.

    Raises
    ------
    ValueError        with the words of the API
    """
    problem = f"cannot parse {quote(text)} to a valid duration"
    if _FLOAT.fullmatch(text):
        seconds = float(text)
        if abs(seconds) > _DURATION_MS_MAX / 1000:
            raise ValueError(f"{problem}. It overflows int64")
        return seconds_to_ms(seconds)
    try:
        return parse_duration(text)
    except ValueError:
        raise ValueError(problem) from None


def time_param(params: Params, name: str, default_ms: int) -> int:
    """An optional time.

    Raises
    ------
    ParamError
    """
    text = params.get(name)
    if not text:
        return default_ms
    try:
        return parse_time(text)
    except ValueError as error:
        raise ParamError(name, f"Invalid time value for '{name}': {error}") from None


def required_time_param(params: Params, name: str) -> int:
    """A time that must be there (``start`` and ``end`` of ``query_range``).

    Raises
    ------
    ParamError
    """
    try:
        return parse_time(params.get(name))
    except ValueError as error:
        raise ParamError(name, str(error)) from None


def step_param(params: Params, name: str) -> int:
    """A duration that must be there.

    Raises
    ------
    ParamError
    """
    try:
        return parse_step(params.get(name))
    except ValueError as error:
        raise ParamError(name, str(error)) from None


def limit_param(params: Params) -> int:
    """``limit``, 0 = no limit.

    Raises
    ------
    ParamError
    """
    text = params.get("limit")
    if not text:
        return 0
    if not _INTEGER.fullmatch(text):
        raise ParamError("limit", f"strconv.Atoi: parsing {quote(text)}: invalid syntax")
    limit = int64(text)
    if limit is None:
        raise ParamError("limit", f"strconv.Atoi: parsing {quote(text)}: value out of range")
    if limit < 0:
        raise ParamError("limit", "limit must be non-negative")
    return limit


def number_param(params: Params, name: str, default: int = -1) -> int:
    """An integer; of ``metadata`` negative = no limit.

    Raises
    ------
    BadDataError
    """
    text = params.get(name)
    if not text:
        return default
    number = int64(text) if _INTEGER.fullmatch(text) else None
    if number is None:
        raise BadDataError(f"{name} must be a number")
    return number


def int64(digits: str) -> int | None:
    """A whole number, None beyond 64 bits, where Go's clients and Python's slices end; no length costs much."""
    number = int(digits) if len(digits) <= _INT64_CHARS_MAX else _INT64_MAX + 1
    return number if -_INT64_MAX - 1 <= number <= _INT64_MAX else None


def unescape_name(name: str) -> str:
    """A label name from a path: ``U__`` names are unescaped, anything malformed stays as it came."""
    if not name.startswith("U__"):
        return name
    try:
        return _ESCAPE.sub(_unescaped, name[3:])
    except ValueError:
        return name


def _unescaped(match: re.Match[str]) -> str:
    if match[1]:
        return "_"
    if not match[2]:
        raise ValueError("an underscore that begins no escape")
    code = int(match[2], 16)
    if 0xD800 <= code <= 0xDFFF:
        raise ValueError("half of a surrogate pair")
    return chr(code)  # ValueError beyond U+10FFFF


def path_label_name(raw_path: bytes, prefix: str, suffix: str) -> str:
    """The label name between prefix and suffix of a percent-encoded path.

    Raises
    ------
    BadDataError      empty, or not UTF-8
    """
    raw = unquote_to_bytes(raw_path).removeprefix(prefix.encode()).removesuffix(suffix.encode())
    name = unescape_name(raw.decode("utf-8", "surrogateescape"))
    if not name or any("\udc80" <= char <= "\udcff" for char in name):
        raise BadDataError(f"invalid label name: {quote(name)}")
    return name
