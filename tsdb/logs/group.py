"""A group of rows: up to 8,192 entries of neighbouring streams, compressed column by column (docs/format/logs.md).

Lines with the same literals share a pattern and have their values in typed columns; the rest is kept as it is. Every
group is decoded alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from tsdb.errors import CorruptionError
from tsdb.kernels.log_columns import DELTA, assemble_lines
from tsdb.kernels.log_head import longest_words
from tsdb.kernels.log_split import JSON, TEXT, VALUES_MAX, copy_columns, pick_values, split_lines
from tsdb.logs.blobs import BlobReader, BlobWriter
from tsdb.logs.columns import ColumnWriter, Spans, StoredColumn, spans_of
from tsdb.logs.facts import ColumnFact, HashSet, Known, merged
from tsdb.logs.frame import DETECTED_LEVEL, PAD_BYTES, Column, FieldKind, Format, Texts, contains, gather, padded
from tsdb.logs.needles import plan_of
from tsdb.logs.regex.automaton import Automaton
from tsdb.logs.regex.walk import search_columns, search_texts
from tsdb.logs.rows import join_columns, level_column, split_metadata
from tsdb.logs.text_types import UUID_BYTES

PATTERNS_MAX = 64
PATTERN_ROWS_MIN = 16
"""Fewer lines than this are cheaper raw: a pattern costs about 30 bytes a value before its first row."""

SCAN_ROWS = 1024
GAP_BYTES = 16
HEAD_BYTES = 4
LINE_BYTES_MAX = 1 << 62
_NO_ROWS: NDArray[np.int64] = np.zeros(0, np.int64)
_ONE_VALUE = Texts.of([b"", b""])
"""The literals of a line that is one value."""

_UNITS_NS = (1_000_000_000, 1_000_000, 1_000)
_LOGFMT_FIRST = re.compile(rb'([A-Za-z_][\w.\-/]*)=("?)')
_LOGFMT_NEXT = re.compile(rb'("?) ([A-Za-z_][\w.\-/]*)=("?)')


class Entries(NamedTuple):
    """Rows to be encoded, in their final order."""

    ts_ns: NDArray[np.int64]
    lines: Spans
    metadata: Texts
    levels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.ts_ns)


class Bloomed(NamedTuple):
    """A column whose whole values go to the bloom filter of the group: ``values`` of ``size`` bytes each."""

    size: int
    values: NDArray[np.uint8]
    is_uuid: bool = False


class Facts(NamedTuple):
    """What the index of a part says of the words in a group's lines.

    Attributes
    ----------
    bloomed : hex and UUID columns without exceptions
    longest_word, longest_dashed : longest runs of letters and digits, and of these and dashes, anywhere but in these
        columns; the second counts hex columns too
    format : of all lines
    columns : of structured metadata, and of the fields of lines of a known format
    words : what the hashes say of the words of lines (``HashSet.words``)
    hashes : 8 bytes each, of values and words
    """

    bloomed: list[Bloomed]
    longest_word: int
    longest_dashed: int
    format: Format
    columns: list[ColumnFact]
    words: int
    hashes: NDArray[np.uint8]

    @property
    def hex_widths(self) -> int:
        """Bit b is set where a hex column of b bytes a value is bloomed."""
        return sum({1 << min(column.size, 62) for column in self.bloomed if not column.is_uuid})

    @property
    def has_uuids(self) -> bool:
        """Whether a UUID column is bloomed."""
        return any(column.is_uuid for column in self.bloomed)


def encode_group(entries: Entries) -> tuple[list[bytes | memoryview], int, Facts]:
    """The parts of a group, their size, and what it says of its words."""
    blobs = BlobWriter()
    n = len(entries)
    unit = next((u for u in _UNITS_NS if not (entries.ts_ns % u).any()), 1)
    head: dict[str, Any] = {"n": n, "unit": unit, "ts": blobs.put_ints(entries.ts_ns // unit, DELTA)}
    hashes = HashSet()
    head["text"], bloomed, longest, fields = _encode_lines(entries, blobs, hashes)
    columns: list[ColumnFact] = []
    if int(entries.metadata.offsets[-1]):
        head["meta"], more, columns = _encode_metadata(entries, blobs, hashes)
        bloomed += more
    patterns = [PatternHead(entry, "group") for entry in head["text"]["patterns"]]
    format_ = _format_of(patterns, with_raw="raw" in head["text"])
    columns = merged([*columns, *(fields if format_ is not Format.UNKNOWN else ())])
    word, dashed = longest.tolist()
    facts = Facts(bloomed, word, dashed, format_, columns, hashes.words, hashes.values())
    levels = np.unique(entries.levels)
    head["level"] = int(levels[0]) if len(levels) == 1 else blobs.put(entries.levels)
    packed = orjson.dumps(head)
    place = BlobWriter()
    stored = place.put(packed)
    sizes = np.array(stored[1:], np.uint32).tobytes()
    parts: list[bytes | memoryview] = [sizes, *place.parts, *blobs.parts]
    return parts, len(sizes) + place.size + blobs.size, facts


def _encode_lines(
    entries: Entries, blobs: BlobWriter, hashes: HashSet
) -> tuple[dict[str, Any], list[Bloomed], NDArray[np.int64], list[ColumnFact]]:
    """(head of the lines, columns for the filter, longest words, what is known of the fields)."""
    data, starts, lengths = entries.lines
    starts = np.ascontiguousarray(starts)
    ends = starts + lengths
    n = len(starts)
    first_value, how, shape = np.empty(n + 1, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint64)
    escaped = np.empty(n, np.uint8)
    room = 24 * n + VALUES_MAX
    value_starts, value_ends = np.empty(room, np.int64), np.empty(room, np.int64)
    row = 0
    while True:
        row = split_lines(data, starts, ends, row, value_starts, value_ends, first_value, how, escaped, shape)
        if row == n:
            break
        room *= 2
        value_starts = np.concatenate([value_starts, np.empty(room - len(value_starts), np.int64)])
        value_ends = np.concatenate([value_ends, np.empty(room - len(value_ends), np.int64)])
    if (shape == shape[0]).all():
        models, counts, pattern_of = np.zeros(1, np.int64), np.array([n]), np.zeros(n, np.int64)
    else:
        _, models, pattern_of, counts = np.unique(shape, return_index=True, return_inverse=True, return_counts=True)
    chosen = np.argsort(-counts, kind="stable")[:PATTERNS_MAX]
    chosen = chosen[(counts[chosen] >= PATTERN_ROWS_MIN) & (how[models[chosen]] > 0)]
    ids = np.full(n, len(chosen), np.uint8)
    patterns = []
    bloomed: list[Bloomed] = []
    fields: list[ColumnFact] = []
    longest = np.zeros(2, np.int64)
    for k, shape_number in enumerate(chosen.tolist()):
        model = int(models[shape_number])
        rows = np.flatnonzero(pattern_of == shape_number) if len(models) > 1 else np.arange(n)
        width = int(first_value[model + 1] - first_value[model])
        out_starts, out_lengths = np.empty(width * len(rows), np.int64), np.empty(width * len(rows), np.int64)
        same = np.empty(len(rows), np.uint8)
        good = pick_values(
            data, starts, ends, value_starts, value_ends, first_value, rows, model, out_starts, out_lengths, same
        )
        matrix_starts, matrix_lengths = out_starts.reshape(width, len(rows)), out_lengths.reshape(width, len(rows))
        if good < len(rows):  # two patterns with one hash: practically never
            keep = same.view(np.bool_)
            rows, matrix_starts, matrix_lengths = rows[keep], matrix_starts[:, keep], matrix_lengths[:, keep]
        ids[rows] = k
        borders = [int(starts[model])]
        for v in range(int(first_value[model]), int(first_value[model + 1])):
            borders += [int(value_starts[v]), int(value_ends[v])]
        borders.append(int(ends[model]))
        literals = [data[a:b].tobytes() for a, b in zip(borders[::2], borders[1::2], strict=True)]
        writer = ColumnWriter(blobs, entries.ts_ns[rows], longest, hashes)
        suspects = np.flatnonzero(escaped[rows])
        names, _ = field_names(int(how[model]), tuple(literals)) or ([], [])
        columns = []
        for c, values in enumerate(_side_by_side(data, matrix_starts, matrix_lengths)):
            columns.append(writer.encode(values, suspects))
            if names:
                fields.append(writer.fact(names[c], values, columns[-1]))
        longest_words(*Texts.of(literals), longest)
        hashes.add_literals(literals)
        bloomed += _bloomed(writer)
        patterns.append(
            {
                "n": len(rows),
                "how": int(how[model]),
                "lit": [text.decode("latin-1") for text in literals],
                "cols": columns,
            }
        )
    raw = np.flatnonzero(ids == len(chosen))
    out: dict[str, Any] = {"patterns": patterns}
    if len(raw):
        texts = Spans(data, starts, lengths).rows(raw).texts()
        out["raw"] = blobs.put_texts(texts)
        longest_words(*texts, longest)
        hashes.add_words(texts)
    if len(patterns) + (len(raw) > 0) > 1:
        out["ids"] = blobs.put(ids)
    return out, bloomed, longest, fields


def _side_by_side(data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[Spans]:
    """The values of each column, copied together: every later look at a column then stays in the cache.

    Parameters
    ----------
    starts, lengths : (n_values, n_rows) int64
    """
    width, n = lengths.shape
    flat = np.ascontiguousarray(lengths).ravel()
    offsets = np.cumsum(flat) - flat
    offsets += np.repeat(np.arange(width) * GAP_BYTES, n)
    out = padded(int(flat.sum()) + width * GAP_BYTES)
    copy_columns(data, np.ascontiguousarray(starts).ravel(), flat, offsets, n, out)
    for c in range(width):
        yield Spans(out, offsets[c * n : (c + 1) * n], flat[c * n : (c + 1) * n])


def _bloomed(writer: ColumnWriter) -> list[Bloomed]:
    """The columns whose values go to the filter as their bytes."""
    found = [Bloomed(size, values) for size, values in writer.hex_values]
    return found + [Bloomed(UUID_BYTES, values, is_uuid=True) for values in writer.uuid_values]


def _encode_metadata(
    entries: Entries, blobs: BlobWriter, hashes: HashSet
) -> tuple[list[dict[str, Any]], list[Bloomed], list[ColumnFact]]:
    """(head of the structured metadata, columns for the filter, what is known of all columns)."""
    pairs = split_metadata(entries.metadata)
    out: list[dict[str, Any]] = []
    bloomed: list[Bloomed] = []
    facts: list[ColumnFact] = []
    for code, name in enumerate(pairs.names):
        chosen = np.flatnonzero(pairs.codes == code)
        rows, last = np.unique(pairs.rows[chosen][::-1], return_index=True)
        chosen = chosen[len(chosen) - 1 - last]  # of repeated names the last counts
        values = Spans(entries.metadata.data, pairs.starts[chosen], pairs.ends[chosen] - pairs.starts[chosen])
        writer = ColumnWriter(blobs, entries.ts_ns[rows], np.zeros(2, np.int64), hashes, Known.METADATA)
        column = writer.encode(values)
        facts.append(writer.fact(name, values, column))
        bloomed += _bloomed(writer)
        entry: dict[str, Any] = {"name": name, "n": len(rows), "col": column}
        if len(rows) < len(entries):
            entry["rows"] = blobs.put_ints(rows, DELTA)
        out.append(entry)
    return out, bloomed, facts


@lru_cache(maxsize=4096)
def field_names(how: int, literals: tuple[bytes, ...]) -> tuple[list[str], list[FieldKind]] | None:
    """Names and kinds of the values of a pattern; None when its lines cannot be taken for that format."""
    if how == JSON:
        return _json_names(literals)
    if how == TEXT:
        return _logfmt_names(literals)
    return None


def _json_names(literals: tuple[bytes, ...]) -> tuple[list[str], list[FieldKind]] | None:
    names: list[str] = []
    kinds: list[FieldKind] = []
    path: list[str] = []
    key = ""
    for k, literal in enumerate(literals):
        at = 0
        if k and kinds[-1] is FieldKind.TEXT:
            at = 1  # the quote that ends the value before
        while at < len(literal):
            c = literal[at : at + 1]
            if c == b"{":
                path.append(key)
            elif c == b"}":
                path.pop()
            elif c == b'"':
                stop = literal.find(b'"', at + 1)
                if stop < 0:
                    break  # the quote that begins the next value
                if b"\\" in literal[at:stop]:
                    return None
                key = literal[at + 1 : stop].decode("utf-8", "replace")
                at = stop
            at += 1
        if k < len(literals) - 1:
            names.append("_".join([*path[1:], key]))
            kinds.append(FieldKind.TEXT if literal.endswith(b'"') else FieldKind.BARE)
    return None if len(set(names)) < len(names) else (names, kinds)


def _logfmt_names(literals: tuple[bytes, ...]) -> tuple[list[str], list[FieldKind]] | None:
    if len(literals) < 2:
        return None
    names: list[str] = []
    kinds: list[FieldKind] = []
    quoted = b""
    for k, literal in enumerate(literals[:-1]):
        match = _LOGFMT_NEXT.fullmatch(literal) if k else _LOGFMT_FIRST.fullmatch(literal)
        if match is None or (k and match[1] != quoted):
            return None
        quoted = match[match.lastindex or 0]
        names.append(match[2 if k else 1].decode("ascii"))
        kinds.append(FieldKind.TEXT if quoted else FieldKind.BARE)
    return None if literals[-1] != quoted or len(set(names)) < len(names) else (names, kinds)


def _no_column(number: int) -> StoredColumn:
    raise CorruptionError("column", 0, f"refers to column {number}, which is not there")


class PatternHead:
    """What lines of one pattern inside a group have in common."""

    def __init__(self, entry: dict[str, Any], name: str) -> None:
        self.n: int = entry["n"]
        self.how: int = entry["how"]
        self.literals = [text.encode("latin-1") for text in entry["lit"]]
        self.literal_key = tuple(self.literals)
        self.entries: list[dict[str, Any]] = entry["cols"]
        self.dictionaries: dict[int, Texts] = {}
        if len(self.literals) != len(self.entries) + 1:
            raise CorruptionError(name, 0, "a pattern does not fit its columns")

    @cached_property
    def fields(self) -> tuple[list[str], list[FieldKind]] | None:
        return field_names(self.how, self.literal_key)

    @cached_property
    def varying(self) -> tuple[Texts, list[int]]:
        """The columns that are no constants, by number, and the literals around them with the constants in them."""
        literals, numbers = [self.literals[0]], []
        for k, (entry, literal) in enumerate(zip(self.entries, self.literals[1:], strict=True)):
            if entry["t"] == "const":
                literals[-1] += entry["v"].encode("latin-1") + literal
            else:
                numbers.append(k)
                literals.append(literal)
        return Texts.of(literals), numbers

    @cached_property
    def quotable(self) -> tuple[bool, ...] | None:
        """Which values may hold a double quote: those of JSON only behind a backslash; None = all."""
        return tuple("e" in entry for entry in self.entries) if self.how == JSON else None


def _format_of(patterns: list[PatternHead], *, with_raw: bool) -> Format:
    """What all lines of a group are."""
    hows = {pattern.how if pattern.fields is not None else 0 for pattern in patterns}
    if with_raw or len(hows) != 1:
        return Format.UNKNOWN
    return {JSON: Format.JSON, TEXT: Format.LOGFMT}.get(hows.pop(), Format.UNKNOWN)


class GroupHead:
    """The head of a group, parsed: what is worth keeping of it between two queries.

    Parameters
    ----------
    data : the group's bytes
    name : for error messages
    longest_word, longest_dashed : as :class:`Facts` says, where it is known

    Raises
    ------
    CorruptionError
    """

    def __init__(
        self,
        data: memoryview,
        name: str,
        longest_word: int = LINE_BYTES_MAX,
        longest_dashed: int = LINE_BYTES_MAX,
    ) -> None:
        stored, raw = np.frombuffer(data[: 2 * HEAD_BYTES], np.uint32).tolist()
        begin = 2 * HEAD_BYTES
        try:
            head: dict[str, Any] = orjson.loads(
                BlobReader(data[begin : begin + stored], name).get((0, stored, raw), 0).data
            )
        except orjson.JSONDecodeError as error:
            raise CorruptionError(name, 0, f"the head of a group does not parse: {error}") from error
        self.name = name
        self.longest_word = longest_word
        self.longest_dashed = longest_dashed
        self.begin: int = begin + stored
        self.n: int = head["n"]
        self.unit: int = head["unit"]
        self.ts = head["ts"]
        self.level: Any = head["level"]
        self.ids: Any = head["text"].get("ids")
        self.raw: Any = head["text"].get("raw")
        self.meta: list[dict[str, Any]] = head.get("meta", [])
        self.patterns = [PatternHead(entry, name) for entry in head["text"]["patterns"]]

    @cached_property
    def format(self) -> Format:
        return _format_of(self.patterns, with_raw=bool(self.raw))

    @cached_property
    def field_names(self) -> tuple[str, ...]:
        if self.format is Format.UNKNOWN:
            return ()
        known = [pattern.fields[0] for pattern in self.patterns if pattern.fields]
        return tuple(dict.fromkeys(name for names in known for name in names))


class _Pattern:
    """Lines of one pattern inside a group."""

    def __init__(self, head: PatternHead, rows: NDArray[np.int64], blobs: BlobReader, ts: Any) -> None:
        self.head = head
        self.rows = rows
        self.literals = head.literals
        self._blobs = blobs
        self._ts = ts
        self._made: dict[int, StoredColumn] = {}
        if len(rows) != head.n:
            raise CorruptionError("group", 0, "a pattern does not fit its rows")

    def column(self, k: int) -> StoredColumn:
        """Column k; the same object each time."""
        made = self._made.get(k)
        if made is None:
            made = StoredColumn(
                self.head.entries[k],
                self.head.n,
                self._blobs,
                self.column,
                lambda: self._ts()[self.rows],
                self.head.dictionaries,
                k,
            )
            self._made[k] = made
        return made

    @cached_property
    def columns(self) -> list[StoredColumn]:
        return [self.column(k) for k in range(len(self.head.entries))]

    @property
    def fields(self) -> tuple[list[str], list[FieldKind]] | None:
        return self.head.fields

    @property
    def varying(self) -> tuple[Texts, list[StoredColumn]]:
        """The columns that are no constants, and the literals around them with the constants in them."""
        literals, numbers = self.head.varying
        return literals, [self.column(k) for k in numbers]

    def matches(self, needle: bytes, rows: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Which of some lines hold a literal, by their columns alone; None where that takes too many looks."""
        plan = plan_of(self.head.literal_key, self.head.quotable, needle)
        if plan is None:
            return None
        if plan.everywhere:
            return np.ones(len(rows), np.bool_)
        out = np.zeros(len(rows), np.bool_)
        for k in plan.inside:
            out |= self.column(k).holds(needle, rows)
        for case in plan.cases:
            if any(self.column(question.column).never_stands(question.text, question.place) for question in case):
                continue
            left = np.flatnonzero(~out)
            for question in sorted(case, key=lambda question: self.column(question.column).cost):
                if not len(left):
                    break
                own = rows if len(left) == len(rows) else rows[left]
                left = left[self.column(question.column).stands(question.text, question.place, own)]
            out[left] = True
        return out


class StoredRows:
    """A group opened for reading; columns are decoded on their first use and kept.

    Parameters
    ----------
    head : of the group
    data : the group's bytes

    Raises
    ------
    CorruptionError        from any method
    """

    def __init__(self, head: GroupHead, data: memoryview) -> None:
        self._head = head
        self._blobs = BlobReader(data[head.begin :], head.name)
        self.n = head.n

    @cached_property
    def every_row(self) -> NDArray[np.int64]:
        """Numbers of all rows; functions that get this very array know that nothing is to be chosen."""
        return np.arange(self.n)

    @cached_property
    def ts_ns(self) -> NDArray[np.int64]:
        """(n,) int64."""
        ts = self._blobs.ints(self._head.ts, self.n)
        ts *= self._head.unit
        return ts

    @cached_property
    def levels(self) -> NDArray[np.uint8]:
        """(n,) uint8."""
        level = self._head.level
        return np.full(self.n, level, np.uint8) if isinstance(level, int) else self._blobs.get(level, 0)[: self.n]

    @cached_property
    def _ids(self) -> NDArray[np.uint8] | None:
        """Pattern of each row (the number of patterns = raw); None when there is one kind only."""
        return self._blobs.get(self._head.ids, 0)[: self.n] if self._head.ids else None

    @cached_property
    def _place(self) -> NDArray[np.int64]:
        """Number of each row among those of its pattern."""
        if self._ids is None:
            return self.every_row
        place: NDArray[np.int64] = np.empty(self.n, np.int64)
        for k in range(len(self._patterns) + 1):
            rows = np.flatnonzero(self._ids == k)
            place[rows] = np.arange(len(rows))
        return place

    @cached_property
    def _patterns(self) -> list[_Pattern]:
        out = []
        for k, head in enumerate(self._head.patterns):
            rows = self.every_row if self._ids is None else np.flatnonzero(self._ids == k)
            out.append(_Pattern(head, rows, self._blobs, lambda: self.ts_ns))
        return out

    @cached_property
    def _raw(self) -> Texts:
        return self._blobs.texts(self._head.raw) if self._head.raw else Texts.of([])

    # -- RowSource

    @property
    def format(self) -> Format:
        return self._head.format

    @property
    def field_names(self) -> tuple[str, ...]:
        return self._head.field_names

    @cached_property
    def metadata_names(self) -> tuple[str, ...]:
        names = {entry["name"] for entry in self._head.meta}
        if self._head.level != 0 and self.levels.any():
            names.add(DETECTED_LEVEL)
        return tuple(sorted(names))

    def _parts(self, rows: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """(pattern, places in ``rows``, numbers among its own rows) of each pattern that any row has."""
        if self._ids is None:
            return [(0, rows if rows is self.every_row else np.arange(len(rows)), rows)]
        ids = self._ids[rows]
        out = []
        for k in np.unique(ids).tolist():
            at = np.flatnonzero(ids == k)
            out.append((k, at, self._place[rows[at]]))
        return out

    def lines(self, rows: NDArray[np.int64]) -> Texts:
        n = len(rows)
        offsets = np.zeros(n + 1, np.int64)
        if not n:
            return Texts(np.zeros(PAD_BYTES, np.uint8), offsets)
        sizes = np.empty(n, np.int64)
        made = []
        for k, at, own in self._parts(rows):
            if k == len(self._patterns):
                spans = spans_of(self._raw).rows(own)
                made.append((at, spans.data, spans.starts, spans.lengths, _ONE_VALUE))
                sizes[at] = spans.lengths
                continue
            literals, varying = self._patterns[k].varying
            columns = [column.spans(own) for column in varying]
            if not columns:
                pool, starts, lengths = np.zeros(PAD_BYTES, np.uint8), _NO_ROWS, _NO_ROWS
            else:
                pool = np.concatenate([c.data for c in columns])
                base, starts = 0, np.concatenate([c.starts for c in columns])
                for v, c in enumerate(columns):
                    starts[v * len(own) : (v + 1) * len(own)] += base
                    base += len(c.data)
                lengths = np.concatenate([c.lengths for c in columns])
            sizes[at] = int(literals.offsets[-1]) + lengths.reshape(-1, len(own)).sum(axis=0)
            made.append((at, pool, starts, lengths, literals))
        np.cumsum(sizes, out=offsets[1:])
        out = padded(int(offsets[-1]))
        for at, pool, starts, lengths, literals in made:
            assemble_lines(pool, starts, lengths, *literals, offsets[:-1][at], offsets[1:][at], out)
        return Texts(out, offsets)

    def line_sizes(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        sizes = np.empty(len(rows), np.int64)
        for k, at, own in self._parts(rows):
            if k == len(self._patterns):
                sizes[at] = np.diff(self._raw.offsets)[own]
                continue
            literals, varying = self._patterns[k].varying
            total = np.full(len(own), int(literals.offsets[-1]))
            for column in varying:
                total += column.lengths(own)
            sizes[at] = total
        return sizes

    def field(self, name: str, rows: NDArray[np.int64]) -> Column | None:
        if name not in self.field_names:
            return None
        parts: list[tuple[NDArray[np.int64], Column | None]] = []
        for k, at, own in self._parts(rows):
            names, kinds = self._patterns[k].fields or ([], [])
            column = self._patterns[k].column(names.index(name)) if name in names else None
            parts.append((at, column.column(kinds[names.index(name)], own) if column else None))
        return join_columns(parts, len(rows))

    def metadata(self, name: str, rows: NDArray[np.int64]) -> Column | None:
        column = None
        for entry in self._head.meta:
            if entry["name"] == name:
                column = self._metadata(entry, rows)
        return level_column(self.levels[rows], column) if name == DETECTED_LEVEL else column

    def _metadata(self, entry: dict[str, Any], rows: NDArray[np.int64]) -> Column | None:
        n = entry["n"]
        having = self._blobs.ints(entry["rows"], n) if "rows" in entry else np.arange(n)
        stored = StoredColumn(entry["col"], n, self._blobs, _no_column, lambda: self.ts_ns[having])
        own = np.searchsorted(having, rows)
        own[own == n] = 0
        at = np.flatnonzero(having[own] == rows)
        if not len(at):
            return None
        return join_columns([(at, stored.column(FieldKind.TEXT, own[at]))], len(rows))

    def matches(self, needle: bytes, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        out = np.zeros(len(rows), np.bool_)
        only: tuple[str, ...] = ()
        if needle.isascii() and needle.isalnum() and self._head.longest_word < len(needle):
            only = ("hex",)  # nothing else has so long a word
        elif needle.isascii() and needle.replace(b"-", b"a").isalnum() and self._head.longest_dashed < len(needle):
            only = ("uuid",)
        if only:
            for k, at, own in self._parts(rows):
                for column in self._patterns[k].columns if k < len(self._patterns) else ():
                    if column.type in only:
                        out[at] |= column.holds(needle, own)
            return out
        for k, at, own in self._parts(rows):
            found = self._patterns[k].matches(needle, own) if k < len(self._patterns) else None
            out[at] = self._scan(needle, rows[at]) if found is None else found
        return out

    def search(self, automaton: Automaton, rows: NDArray[np.int64]) -> NDArray[np.int8]:
        out = np.empty(len(rows), np.int8)
        for k, at, own in self._parts(rows):
            if k == len(self._patterns):
                raw = spans_of(self._raw).rows(own)
                out[at] = search_texts(automaton, *raw)
            else:
                literals, columns = self._patterns[k].varying
                out[at] = search_columns(automaton, literals.to_list(), columns, own)
        return out

    def _scan(self, needle: bytes, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """As :meth:`matches`, by rebuilding the lines: a few at a time, so that they stay in the cache."""
        parts = [rows[k : k + SCAN_ROWS] for k in range(0, len(rows), SCAN_ROWS)]
        return np.concatenate([contains(self.lines(part), needle) for part in parts])

    def metadata_blobs(self, rows: NDArray[np.int64]) -> Texts:
        """Structured metadata of some rows as it is written: ``name 0xFF value 0xFF ...``."""
        n = len(rows)
        pools, starts, lengths = [], [], []
        base = 0
        for entry in self._head.meta:
            column = self._metadata(entry, rows)
            if column is None:
                continue
            texts = column.texts()
            name = entry["name"].encode() + b"\xff"
            present = np.ones(n, np.int64) if column.present is None else column.present.astype(np.int64)
            pools.append(np.concatenate([np.frombuffer(name, np.uint8), texts.data]))
            for start, length in (
                (np.zeros(n, np.int64), present * len(name)),
                (texts.offsets[:-1] + len(name), np.diff(texts.offsets)),
                (np.full(n, len(name) - 1), present),
            ):
                starts.append(start + base)
                lengths.append(length)
            base += len(pools[-1])
        if not pools:
            return Texts(np.zeros(PAD_BYTES, np.uint8), np.zeros(n + 1, np.int64))
        flat = np.stack(lengths, axis=1)
        made = gather(np.concatenate(pools), np.stack(starts, axis=1).ravel(), flat.ravel())
        offsets = np.zeros(n + 1, np.int64)
        np.cumsum(flat.sum(axis=1), out=offsets[1:])
        return Texts(made.data, offsets)
