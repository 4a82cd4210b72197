"""What nginx' log formats say, as columns: JSON objects, ``combined``, or any ``log_format`` string.

A batch of lines becomes one column a *role* (status, bytes, attempts, ...), so that what follows costs by the number of
distinct values and not by the number of lines. JSON is read by Arrow's reader; what it cannot take whole (a broken
line, a field that is now a number and now a string) is read line by line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.json as pj
from numpy.typing import NDArray

from tsdb.logs.frame import Texts, gather

ROLES: Mapping[str, tuple[str, ...]] = {
    "time": ("time", "msec", "time_iso8601", "time_local", "ts", "t"),
    "site": (),
    "status": ("status",),
    "bytes": ("body_bytes_sent", "bytes_sent", "bytes"),
    "request_time": ("request_time",),
    "upstream_addr": ("upstream_addr", "uaddr", "up_addr"),
    "upstream_status": ("upstream_status", "ustatus", "up_status"),
    "upstream_response_time": ("upstream_response_time", "urt", "up_time"),
    "upstream_connect_time": ("upstream_connect_time", "uct"),
    "client": ("remote_addr", "ip"),
    "country": ("geoip2_country", "geoip_country_code", "geoip_country", "cc"),
}
"""Role -> names of nginx' variables, or of the keys of a JSON line, the first that a line has wins."""

COMBINED = (
    '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent"'
)
"""nginx' predefined format."""

LINE_FEED = 10
LEARN_LINES = 4
"""Lines that are looked at to learn the types of their fields."""
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_UPSTREAM_ITEM = r"[^ ,\n]+"


class Numbers:
    """A column of numbers: float64, NaN = the line has none."""

    __slots__ = ("values",)

    def __init__(self, values: NDArray[np.float64]) -> None:
        self.values = values

    def numbers(self) -> NDArray[np.float64]:
        """(n,) float64."""
        return self.values

    def words(self) -> Words:
        """The same as texts: whole numbers without a point, others with three decimals as nginx writes them."""
        distinct, codes = np.unique(self.values, return_inverse=True)
        texts = [f"{v:.0f}" if v == int(v) else f"{v:.3f}" for v in distinct[~np.isnan(distinct)].tolist()]
        return Words(np.where(np.isnan(self.values), -1, codes).astype(np.int64), texts)


class Words:
    """A column of texts by their numbers: ``texts[codes[i]]``; -1 = the line has none."""

    __slots__ = ("codes", "texts")

    def __init__(self, codes: NDArray[np.int64], texts: list[str]) -> None:
        self.codes = codes
        self.texts = texts

    @classmethod
    def of(cls, values: Iterable[str | None]) -> Words:
        """From a text or None a line."""
        numbers: dict[str, int] = {}
        codes = [-1 if v is None else numbers.setdefault(v, len(numbers)) for v in values]
        return cls(np.array(codes, np.int64), list(numbers))

    def words(self) -> Words:
        """Itself."""
        return self

    def numbers(self) -> NDArray[np.float64]:
        """(n,) float64; what is no number ("-", "") is NaN."""
        return self.take(np.array([_number(text) for text in self.texts], np.float64), np.nan)

    def take(self, of_text: NDArray[Any], nothing: Any) -> NDArray[Any]:
        """A value of each line by its text, ``nothing`` where there is none."""
        return np.append(of_text, np.array([nothing], of_text.dtype))[self.codes]


Column = Numbers | Words


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


@dataclass(frozen=True, slots=True)
class Columns:
    """Roles of n lines.

    Attributes
    ----------
    good : (n,) bool        the line has the form it should have
    of : role -> column; a role that no line has is absent
    """

    good: NDArray[np.bool_]
    of: Mapping[str, Column] = field(default_factory=dict)

    def numbers(self, role: str) -> NDArray[np.float64] | None:
        """(n,) float64, NaN where a line has none; None when no line has one."""
        column = self.of.get(role)
        return None if column is None else column.numbers()

    def words(self, role: str) -> Words | None:
        """Texts; None when no line has one."""
        column = self.of.get(role)
        return None if column is None else column.words()


class LineFormat(Protocol):
    """A way to read lines."""

    def read(self, lines: Texts, roles: Sequence[str]) -> Columns:
        """The wanted roles of all lines."""
        ...


def joined(lines: Texts) -> NDArray[np.uint8] | None:
    """The lines, each ended by a line feed, in one array; None when a line holds a line feed or nothing."""
    lengths = np.diff(lines.offsets)
    if not len(lengths) or not lengths.all():
        return None
    both = gather(
        lines.data, lines.offsets[:-1], lengths + 1
    )  # a line and the byte behind it, which is padding at most
    data = both.data[: int(both.offsets[-1])]
    data[both.offsets[1:] - 1] = LINE_FEED
    return data if np.count_nonzero(data == LINE_FEED) == len(lengths) else None


class JsonFormat:
    """One JSON object a line, as ``escape=json`` writes it. Threads may share it.

    Parameters
    ----------
    names : role -> keys, instead of those of :data:`ROLES`
    """

    def __init__(self, names: Mapping[str, Sequence[str]] | None = None) -> None:
        self._names = {**ROLES, **(names or {})}
        self._schemas: dict[tuple[str, ...], pa.Schema] = {}

    def read(self, lines: Texts, roles: Sequence[str]) -> Columns:
        """See :class:`LineFormat`."""
        data = joined(lines)
        if data is not None:
            found = self._read_whole(data, lines, tuple(roles))
            if found is not None:
                return found
        return self._read_each(lines, roles)

    def _read_whole(self, data: NDArray[np.uint8], lines: Texts, roles: tuple[str, ...]) -> Columns | None:
        schema = self._schemas.get(roles) or self._learn(lines, roles, LEARN_LINES)
        for attempt in range(2):
            try:
                table = pj.read_json(
                    pa.py_buffer(data),
                    read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
                    parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
                )
            except pa.ArrowInvalid:
                if not attempt:  # a key that no line had before, or a broken line: look at all of them
                    schema = self._learn(lines, roles, len(lines.offsets) - 1)
                continue
            if table.num_rows != len(lines.offsets) - 1:
                return None
            columns = {
                key: column for key in schema.names if (column := _from_arrow(table[key].combine_chunks())) is not None
            }
            return Columns(np.ones(table.num_rows, np.bool_), self._by_role(columns, roles))
        return None

    def _learn(self, lines: Texts, roles: tuple[str, ...], count: int) -> pa.Schema:
        """Type of each key that we look for; null for those that no line has, so that a value is noticed."""
        types = {key: pa.null() for role in roles for key in self._names[role]}
        known = self._schemas.get(roles)
        if known is not None:
            types |= {entry.name: entry.type for entry in known}
        for i in range(min(len(lines.offsets) - 1, count)):
            for key, value in (_object(lines.text(i)) or {}).items():
                if types.get(key) == pa.null() and isinstance(value, int | float | str) and not isinstance(value, bool):
                    types[key] = pa.string() if isinstance(value, str) else pa.float64()
        schema = self._schemas[roles] = pa.schema(list(types.items()))
        return schema

    def _by_role(self, columns: Mapping[str, Column], roles: Sequence[str]) -> dict[str, Column]:
        found = {}
        for role in roles:
            key = next((key for key in self._names[role] if key in columns), None)
            if key is not None:
                found[role] = columns[key]
        return found

    def _read_each(self, lines: Texts, roles: Sequence[str]) -> Columns:
        objects = [_object(lines.text(i)) for i in range(len(lines.offsets) - 1)]
        good = np.array([o is not None for o in objects], np.bool_)
        columns: dict[str, Column] = {}
        for key in dict.fromkeys(key for role in roles for key in self._names[role]):
            texts = [None if o is None else _plain(o.get(key)) for o in objects]
            if any(text is not None for text in texts):
                columns[key] = Words.of(texts)
        return Columns(good, self._by_role(columns, roles))


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _plain(value: object) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return value
    return repr(value) if isinstance(value, int | float) else None


def _from_arrow(array: pa.Array) -> Column | None:
    if array.null_count == len(array):
        return None
    if pa.types.is_floating(array.type):
        return Numbers(array.to_numpy(zero_copy_only=False))
    encoded = array.cast(pa.binary()).dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return Words(codes, [text.decode("utf-8", "replace") for text in encoded.dictionary.to_pylist()])


class TextFormat:
    """Lines of a ``log_format`` string such as :data:`COMBINED`.

    Raises
    ------
    ValueError        the string names no variable, or two without anything between them
    """

    def __init__(self, log_format: str, names: Mapping[str, Sequence[str]] | None = None) -> None:
        self._names = {**ROLES, **(names or {})}
        self._pieces = _pieces(log_format)
        self._patterns: dict[tuple[str, ...], tuple[re.Pattern[bytes], re.Pattern[bytes], list[str]]] = {}

    def read(self, lines: Texts, roles: Sequence[str]) -> Columns:
        """See :class:`LineFormat`."""
        pattern, lenient, found_roles = self._pattern(tuple(roles))
        n = len(lines.offsets) - 1
        data = joined(lines)
        rows: list[Any] = [] if data is None else pattern.findall(data.tobytes())
        good = np.ones(n, np.bool_)
        if len(rows) != n:  # a line of another form, or one that holds a line feed
            each = [_match(lines.text(i), pattern, lenient) for i in range(n)]
            good = np.array([match is not None for match in each], np.bool_)
            rows = [match.groups() if match else (None,) * len(found_roles) for match in each]
        elif len(found_roles) == 1:
            rows = [(row,) for row in rows]
        columns = zip(*rows, strict=True) if rows else ()
        return Columns(good, {r: _words(texts) for r, texts in zip(found_roles, columns, strict=False)})

    def _pattern(self, roles: tuple[str, ...]) -> tuple[re.Pattern[bytes], re.Pattern[bytes], list[str]]:
        known = self._patterns.get(roles)
        if known is None:
            present = {name for name, _ in self._pieces}
            named = {}
            for role in roles:
                name = next((name for name in self._names[role] if name in present), None)
                if name is not None:
                    named[name] = role
            text, lenient, order = "", "", []
            for name, piece in self._pieces:
                loose = _LENIENT.get(name) or (_UNQUOTED if piece == _QUOTED else piece)
                if name in named:
                    order.append(named.pop(name))
                    piece, loose = f"({piece})", f"({loose})"
                text += piece
                lenient += loose
            strict, forgiving = (re.compile(f"^{one}$".encode(), re.MULTILINE) for one in (text, lenient))
            known = self._patterns[roles] = (strict, forgiving, order)
        return known


def _words(texts: Iterable[bytes | None]) -> Words:
    numbers: dict[bytes | None, int] = {None: -1}
    codes = [numbers.setdefault(text, len(numbers) - 1) for text in texts]
    return Words(np.array(codes, np.int64), [text.decode("utf-8", "replace") for text in numbers if text is not None])


_QUOTED = r'[^"\n]*'
_UNQUOTED = r"[^\n]*?"
_LENIENT = dict.fromkeys(("status", "body_bytes_sent", "bytes_sent"), "(?:[0-9]+|-)")
"""Pieces that no quote can be part of: they tell where a value ends that holds quotes."""

LENIENT_BYTES_MAX = 2048
"""Longest line with quotes inside of quotes that is read: looking for their ends costs the cube of the length."""


def _match(line: bytes, pattern: re.Pattern[bytes], lenient: re.Pattern[bytes]) -> re.Match[bytes] | None:
    """A line as nginx escapes it, or with bare quotes in its values (``escape=none``, other servers)."""
    return pattern.fullmatch(line) or (lenient.fullmatch(line) if len(line) <= LENIENT_BYTES_MAX else None)


def _pieces(log_format: str) -> list[tuple[str, str]]:
    """(variable or "", regex) of each part of a format."""
    out: list[tuple[str, str]] = []
    at = 0
    found = list(_VARIABLE.finditer(log_format))
    if not found:
        raise ValueError("is neither json nor combined, and as a log_format it names no $variable")
    for match in found:
        if at and match.start() == at:
            raise ValueError(f"cannot be read back: nothing lies between {out[-1][0]} and {match[0]}")
        out.append(("", re.escape(log_format[at : match.start()])))
        name, at = match[1] or match[2], match.end()
        after = log_format[at : at + 1]
        if name.startswith("upstream_"):
            piece = rf"(?:{_UPSTREAM_ITEM}(?:(?:, | : ){_UPSTREAM_ITEM})*)?"
        elif after == " " and (name.startswith(("http_", "sent_http_", "cookie_", "arg_")) or name in _SPACED):
            piece = r"(?:-(?= )|[^\n]*?)"  # nearly always "-", which needs no search
        else:
            piece = rf"[^{re.escape(after) if after else ''}\n]*"
        out.append((name, piece))
    out.append(("", re.escape(log_format[at:])))
    return out


_SPACED = frozenset({"remote_user", "request", "request_uri", "uri", "args", "query_string", "document_uri"})
"""Variables whose values may hold spaces."""


def parse_format(text: str, names: Mapping[str, Sequence[str]] | None = None) -> LineFormat:
    """``json``, ``combined`` or a ``log_format`` string.

    Raises
    ------
    ValueError
    """
    if text == "json":
        return JsonFormat(names)
    return TextFormat(COMBINED if text == "combined" else text, names)
