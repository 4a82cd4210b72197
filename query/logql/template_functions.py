"""The functions of templates: Go's own, and those that Loki documents (most of them sprig's)."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote_plus, unquote_plus
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from query.engine.gofloat import format_general, parse_float
from query.logql.units import NS, parse_bytes, parse_go_duration_ns

_GO_LAYOUT = {
    "2006": "%Y",
    "January": "%B",
    "Jan": "%b",
    "01": "%m",
    "Monday": "%A",
    "Mon": "%a",
    "02": "%d",
    "15": "%H",
    "03": "%I",
    "04": "%M",
    "05": "%S",
    "PM": "%p",
    "MST": "%Z",
    "06": "%y",
}
_LAYOUT = re.compile(
    r"[.,](0+|9+)(?!\d)|Z07:00|-07:00|-0700|2006|January|Monday|Jan|Mon|MST|01|02|03|04|05|06|15|PM|_2|1|2|3"
)
_VERB = re.compile(r"%([-+# 0]*)(\d+)?(?:\.(\d+))?([a-zA-Z%])")


class Moment(int):
    """Nanoseconds since 1970, which templates know as a time."""


class TemplateError(Exception):
    """A template that fails on a line; the line carries ``__error__="TemplateFormatErr"``."""


def go_text(value: Any) -> str:
    """``fmt.Sprint``."""
    if isinstance(value, str):
        return value
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return format_general(value, 21) if abs(value) < 1e21 and value == int(value) else _float_text(value)
    if isinstance(value, list):
        return "[" + " ".join(map(go_text, value)) + "]"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{k}:{go_text(value[k])}" for k in sorted(value)) + "]"
    if type(value) is not int:  # a time
        return _date("2006-01-02 15:04:05.999999999 -0700 MST", value)
    return str(value)


def _float_text(value: float) -> str:
    """``%v`` of a float: shortest digits, an exponent below 1e-4 and from 1e21."""
    if not math.isfinite(value):
        return format_general(value)
    text = repr(value)
    if "e" in text and 1e-4 <= abs(value) < 1e21:
        return f"{value:f}"
    return text.removesuffix(".0")


def is_true(value: Any) -> bool:
    """Go's truth: not empty, not zero, not nil."""
    return bool(value)


_text = go_text


def _int(value: Any) -> int:
    if isinstance(value, str):
        number = parse_float(value)
        try:
            return int(value, 0)
        except ValueError:
            return int(number) if number is not None and math.isfinite(number) else 0
    return int(value or 0)


def _float(value: Any) -> float:
    if isinstance(value, str):
        return parse_float(value) or 0.0
    return float(value or 0)


def _divide(a: Any, b: Any) -> int:
    x, y = _int(a), _int(b)
    if y == 0:
        raise TemplateError("integer divide by zero")
    return int(x / y) if abs(x) < 1 << 53 else (abs(x) // abs(y)) * (1 if (x < 0) == (y < 0) else -1)


def _go_template(replacement: str) -> str:
    """``${1}`` of Go as ``\\g<1>`` of Python."""
    return re.sub(r"\$\{?(\w+)\}?", r"\\g<\1>", replacement.replace("\\", "\\\\"))


def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\(\?P?<", "(?P<", pattern))


def _printf(layout: str, *args: Any) -> str:
    left = list(args)

    def verb(match: re.Match[str]) -> str:
        flags, width, precision, kind = match.groups()
        if kind == "%":
            return "%"
        if not left:
            return f"%!{kind}(MISSING)"
        value = left.pop(0)
        if kind in "sv":
            text = go_text(value)
            text = text[: int(precision)] if precision else text
        elif kind == "q":
            text = json.dumps(go_text(value), ensure_ascii=False)
        elif kind == "d" and isinstance(value, int):
            text = f"{value:+d}" if "+" in flags else str(int(value))
        elif kind in "feEgG" and isinstance(value, int | float):
            text = f"{float(value):{'+' if '+' in flags else ''}.{precision or 6}{kind}}"
        elif kind in "xXob" and isinstance(value, int):
            text = f"{value:{kind}}"
        elif kind == "t":
            text = go_text(value)
        elif kind == "c" and isinstance(value, int):
            text = chr(value)
        elif kind in "xX":
            text = go_text(value).encode().hex()
        else:
            text = f"%!{kind}({type(value).__name__}={go_text(value)})"
        if width:
            if "-" in flags:
                return text.ljust(int(width))
            return text.zfill(int(width)) if "0" in flags and kind not in "sqv" else text.rjust(int(width))
        return text

    return _VERB.sub(verb, layout)


def _moment(value: Any) -> tuple[datetime, int]:
    ns = int(value)
    return datetime.fromtimestamp(ns // NS, UTC), ns % NS


def _date(layout: str, value: Any, zone: Any = UTC) -> str:
    """``time.Format``."""
    moment, ns = _moment(value)
    moment = moment.astimezone(zone)

    def part(match: re.Match[str]) -> str:
        piece = match[0]
        if match[1]:
            digits = f"{ns:09d}"[: len(match[1])]
            if match[1][0] == "9":
                digits = digits.rstrip("0")
                return piece[0] + digits if digits else ""
            return piece[0] + digits
        if piece in ("1", "2", "3", "_2"):
            number = {"1": moment.month, "2": moment.day, "_2": moment.day, "3": moment.hour % 12 or 12}[piece]
            return f"{number:2d}" if piece == "_2" else str(number)
        if "07" in piece:
            offset = moment.strftime("%z")
            if piece[0] == "Z" and offset == "+0000":
                return "Z"
            return f"{offset[:3]}:{offset[3:]}" if ":" in piece else offset
        return moment.strftime(_GO_LAYOUT[piece])

    return _LAYOUT.sub(part, layout)


def _to_date(layout: str, value: str, zone: Any = UTC) -> int:
    """``time.Parse``; the zero time where it fails, as sprig has it."""
    pattern = []
    at = 0
    names: list[str] = []
    for found_part in _LAYOUT.finditer(layout):
        pattern.append(re.escape(layout[at : found_part.start()]))
        at = found_part.end()
        names.append(found_part[0])
        kind = found_part[0]
        pattern.append(
            r"((?:[.,]\d+)?)"
            if found_part[1]
            else r"(Z|[+-]\d\d:?\d\d)"
            if "07" in kind
            else r"([A-Za-z]+)"
            if kind.isalpha()
            else r"(\d{4})"
            if kind == "2006"
            else r"( ?\d{1,2})"
        )
    pattern.append(re.escape(layout[at:]))
    found = re.fullmatch("".join(pattern), value)
    if found is None:
        raise TemplateError(f'parsing time "{value}" as "{layout}": cannot parse')
    fields = {"%Y": "1970", "%m": "01", "%d": "01", "%H": "00", "%M": "00", "%S": "00"}
    ns = 0
    offset = ""
    for piece, text in zip(names, found.groups(), strict=True):
        if piece[0] in ".,":
            ns = int((text[1:] or "0").ljust(9, "0")[:9])
        elif "07" in piece:
            offset = "+0000" if text == "Z" else text.replace(":", "")
        else:
            fields[{"1": "%m", "2": "%d", "_2": "%d", "3": "%I"}.get(piece) or _GO_LAYOUT[piece]] = text.strip()
    if "%b" in fields or "%B" in fields:
        fields.pop("%m")
    if "%I" in fields:
        fields.pop("%H")
    fields.pop("%Z", None)
    if "%y" in fields:
        fields.pop("%Y")
    keys = list(fields)
    moment = datetime.strptime(" ".join(fields[k] for k in keys) + " " + (offset or "+0000"), " ".join(keys) + " %z")
    if not offset:
        moment = moment.replace(tzinfo=zone)
    return Moment(int(moment.timestamp()) * NS + ns)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError):
        raise TemplateError(f"unknown time zone {name}") from None


def _compare(a: Any, b: Any) -> int:
    if isinstance(a, str) != isinstance(b, str):
        raise TemplateError("incompatible types for comparison")
    return int(a > b) - int(a < b)


def _equal(a: Any, *others: Any) -> bool:
    for other in others:
        if isinstance(a, str) != isinstance(other, str):
            raise TemplateError("incompatible types for comparison")
    return any(a == other for other in others)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key, "") if isinstance(value, Mapping) else value[key]
    return value


def _substr(start: Any, end: Any, value: Any) -> str:
    text, low, high = go_text(value), _int(start), _int(end)
    if low < 0:
        return text[: max(high, 0)]
    return text[low:] if high < 0 or high > len(text) else text[low:high]


def _trunc(count: Any, value: Any) -> str:
    size, text = _int(count), go_text(value)
    if size < 0:
        return text[size:] if len(text) + size > 0 else text
    return text[:size]


def _indent(spaces: Any, text: Any) -> str:
    pad = " " * _int(spaces)
    return pad + _text(text).replace("\n", "\n" + pad)


def _align(count: Any, value: Any, *, left: bool) -> str:
    size, text = _int(count), go_text(value)
    if size < 0 or len(text) == size:
        return text
    if len(text) > size:
        return text[:size] if left else text[len(text) - size :]
    return text.ljust(size) if left else text.rjust(size)


def _round(value: Any, places: Any = 0, half: Any = 0.5) -> float:
    scale = 10.0 ** _int(places)
    scaled = _float(value) * scale
    whole = math.trunc(scaled)
    if abs(scaled - whole) >= _float(half):
        whole += 1 if scaled > 0 else -1
    return whole / scale


def _seconds(text: Any) -> float:
    ns = parse_go_duration_ns(_text(text))
    if ns is None:
        raise TemplateError(f'time: invalid duration "{_text(text)}"')
    return ns / NS


def _bytes(text: Any) -> float:
    count = parse_bytes(_text(text))
    if count is None:
        raise TemplateError(f"unhandled size name: {_text(text)}")
    return float(count)


def _unix_to_time(text: Any) -> Any:
    digits = _text(text)
    scale = {5: 86_400 * NS, 10: NS, 13: 1_000_000, 16: 1_000, 19: 1}.get(len(digits))
    if scale is None:
        raise TemplateError(f"unable to parse time '{digits}': expected 5, 10, 13, 16 or 19 digits")
    return Moment(int(digits) * scale)


def _from_json(text: Any) -> Any:
    try:
        return json.loads(_text(text))
    except ValueError:
        return None


def _fold(pick: Callable[..., Any], convert: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda first, *rest: pick([convert(first), *map(convert, rest)])


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    # Go
    "and": lambda *a: a[-1],
    "or": lambda *a: a[-1],
    "not": lambda a: not is_true(a),
    "eq": _equal,
    "ne": lambda a, b: not _equal(a, b),
    "lt": lambda a, b: _compare(a, b) < 0,
    "le": lambda a, b: _compare(a, b) <= 0,
    "gt": lambda a, b: _compare(a, b) > 0,
    "ge": lambda a, b: _compare(a, b) >= 0,
    "len": len,
    "index": _index,
    "slice": lambda text, start=0, end=None: text[start:end],
    "print": lambda *a: "".join(map(go_text, a)),
    "printf": _printf,
    "println": lambda *a: " ".join(map(go_text, a)) + "\n",
    "urlquery": lambda text: quote_plus(_text(text)),
    "html": lambda text: _text(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"),
    # Loki
    "ToLower": lambda text: _text(text).lower(),
    "ToUpper": lambda text: _text(text).upper(),
    "Replace": lambda text, old, new, n: _text(text).replace(old, new, _int(n)),
    "Trim": lambda text, cut: _text(text).strip(cut),
    "TrimLeft": lambda text, cut: _text(text).lstrip(cut),
    "TrimRight": lambda text, cut: _text(text).rstrip(cut),
    "TrimPrefix": lambda text, cut: _text(text).removeprefix(cut),
    "TrimSuffix": lambda text, cut: _text(text).removesuffix(cut),
    "TrimSpace": lambda text: _text(text).strip(),
    "regexReplaceAll": lambda pattern, text, new: _regex(pattern).sub(_go_template(new), _text(text)),
    "regexReplaceAllLiteral": lambda pattern, text, new: _regex(pattern).sub(lambda _m: new, _text(text)),
    "count": lambda pattern, text: len(_regex(pattern).findall(_text(text))),
    "urldecode": lambda text: unquote_plus(_text(text)),
    "urlencode": lambda text: quote_plus(_text(text)),
    "bytes": _bytes,
    "duration": _seconds,
    "duration_seconds": _seconds,
    "unixEpoch": lambda at: str(int(at) // NS),
    "unixEpochMillis": lambda at: str(int(at) // 1_000_000),
    "unixEpochNanos": lambda at: str(int(at)),
    "unixToTime": _unix_to_time,
    "toDateInZone": lambda layout, zone, text: _to_date(layout, _text(text), _zone(zone)),
    "alignLeft": lambda n, text: _align(n, text, left=True),
    "alignRight": lambda n, text: _align(n, text, left=False),
    # sprig
    "lower": lambda text: _text(text).lower(),
    "upper": lambda text: _text(text).upper(),
    "title": lambda text: re.sub(r"\b\w", lambda m: m[0].upper(), _text(text)),
    "trunc": _trunc,
    "substr": _substr,
    "contains": lambda part, text: part in _text(text),
    "hasPrefix": lambda part, text: _text(text).startswith(part),
    "hasSuffix": lambda part, text: _text(text).endswith(part),
    "replace": lambda old, new, text: _text(text).replace(old, new),
    "trim": lambda text: _text(text).strip(),
    "trimAll": lambda cut, text: _text(text).strip(cut),
    "trimPrefix": lambda cut, text: _text(text).removeprefix(cut),
    "trimSuffix": lambda cut, text: _text(text).removesuffix(cut),
    "repeat": lambda n, text: _text(text) * max(0, _int(n)),
    "indent": _indent,
    "nindent": lambda n, text: "\n" + _indent(n, text),
    "default": lambda other, value="": value if is_true(value) else other,
    "b64enc": lambda text: base64.b64encode(_text(text).encode()).decode(),
    "b64dec": lambda text: base64.b64decode(_text(text)).decode(errors="replace"),
    "fromJson": _from_json,
    "date": _date,
    "toDate": lambda layout, text: _to_date(layout, _text(text)),
    "int": _int,
    "float64": _float,
    "add": lambda *a: sum(map(_int, a)),
    "sub": lambda a, b: _int(a) - _int(b),
    "mul": lambda a, *b: math.prod([_int(a), *map(_int, b)]),
    "div": _divide,
    "mod": lambda a, b: int(math.fmod(_int(a), _int(b))),
    "addf": lambda *a: sum(map(_float, a)),
    "subf": lambda a, *b: _float(a) - sum(map(_float, b)),
    "mulf": lambda a, *b: math.prod([_float(a), *map(_float, b)]),
    "divf": lambda a, *b: _float(a) / math.prod(map(_float, b)),
    "max": _fold(max, _int),
    "min": _fold(min, _int),
    "maxf": _fold(max, _float),
    "minf": _fold(min, _float),
    "ceil": lambda a: float(math.ceil(_float(a))),
    "floor": lambda a: float(math.floor(_float(a))),
    "round": _round,
}
"""By name; the arguments of a pipeline come last."""
