"""The parsers ``json``, ``logfmt`` and ``unpack`` over whole batches: one kernel finds all fields of all lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from query.kernels.log_fields import COUNTS, ESCAPED, PLAIN, json_fields, logfmt_fields
from query.logql.ast import Extraction, JsonParser, LogfmtParser
from query.logql.engine.batch import Batch, label_name
from query.logql.engine.columns import Values, decode
from query.logql.jsonpath import follow, parse_path
from tsdb.logs.frame import Format, Texts, gather

JSON_ERROR = "JSONParserErr"
LOGFMT_ERROR = "LogfmtParserErr"
_NAMES_MAX = 1 << 12
_FIELDS_MIN = 1 << 16


@dataclass(frozen=True, slots=True)
class Fields:
    """All fields of all lines.

    Attributes
    ----------
    paths : name by number, outermost first
    rows, names, starts, ends, kinds : line, name, bytes and kind of each field
    bad : (n,) bool       lines that could not be read
    """

    paths: list[tuple[str, ...]]
    rows: NDArray[np.int32]
    names: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    bad: NDArray[np.bool_]


def find_fields(lines: Texts, kernel: Any) -> Fields:
    """Run :func:`json_fields` or :func:`logfmt_fields` over all lines, with more room as it is needed."""
    names_max = _NAMES_MAX
    while True:
        found = _find_fields(lines, kernel, names_max)
        if found is not None:
            return found
        names_max *= 8


def _find_fields(lines: Texts, kernel: Any, names_max: int) -> Fields | None:
    n = len(lines.offsets) - 1
    longest = int(np.diff(lines.offsets).max(initial=0))
    capacity = max(_FIELDS_MIN, longest // 2 + 2)
    slots = np.zeros(names_max * 2, np.int64)
    parent, name_start, name_end = (np.zeros(names_max, np.int64) for _ in range(3))
    bad = np.zeros(n, np.uint8)
    pieces: list[tuple[Any, ...]] = []
    known = 0
    row = 0
    while True:
        counts = np.zeros(COUNTS, np.int64)
        counts[1] = known
        out = [np.empty(capacity, dtype) for dtype in (np.int32, np.int32, np.int64, np.int64, np.uint8)]
        row = kernel(lines.data, lines.offsets, row, slots, parent, name_start, name_end, counts, *out, bad)
        if row < 0:
            return None
        used, known = int(counts[0]), int(counts[1])
        pieces.append(tuple(array[:used] for array in out))
        if row == n:
            break
    paths: list[tuple[str, ...]] = []
    data = lines.data
    for number in range(known):
        name = decode(data[name_start[number] : name_end[number]].tobytes())
        paths.append((*(paths[parent[number]] if parent[number] >= 0 else ()), name))
    joined = pieces[0] if len(pieces) == 1 else tuple(map(np.concatenate, zip(*pieces, strict=True)))
    rows, names, starts, ends, kinds = joined
    return Fields(paths, rows, names, starts, ends, kinds, bad.view(np.bool_))


def field_values(lines: Texts, fields: Fields, chosen: NDArray[np.bool_], n: int) -> Values:
    """The chosen fields as one label of n lines; of several in one line the last counts."""
    rows = fields.rows[chosen]
    starts, lengths = np.zeros(n, np.int64), np.zeros(n, np.int64)
    present = np.zeros(n, np.bool_)
    starts[rows] = fields.starts[chosen]
    lengths[rows] = (fields.ends - fields.starts)[chosen]
    present[rows] = True
    escaped = bool((fields.kinds[chosen] == ESCAPED).any())
    return Values.of_texts(gather(lines.data, starts, lengths), present, escaped=escaped)


def read_pending(batch: Batch) -> None:
    """Read all stored fields that are still to be read from the lines: for few lines cheaper than as many columns."""
    pending = batch.pending()
    if not pending:
        return
    lines = batch.frame.lines()
    if not batch.rewritten:
        batch.set_lines(lines)  # they are asked for next
    fields = find_fields(lines, json_fields if batch.frame.format == Format.JSON else logfmt_fields)
    numbers: dict[str, list[int]] = {}
    for number, path in enumerate(fields.paths):
        numbers.setdefault("_".join(path), []).append(number)
    for label, name in pending.items():
        batch.set(label, field_values(lines, fields, _chosen(fields, numbers.get(name, [-1])), len(batch)))


def _labels(fields: Fields) -> Iterator[tuple[str, list[int]]]:
    """Label name -> numbers of the names that become it."""
    found: dict[str, list[int]] = {}
    for number, path in enumerate(fields.paths):
        found.setdefault("_".join(map(label_name, path)), []).append(number)
    yield from found.items()


def _chosen(fields: Fields, numbers: list[int]) -> NDArray[np.bool_]:
    """Fields with any of some names."""
    return fields.names == numbers[0] if len(numbers) == 1 else np.isin(fields.names, numbers)


def _set_fields(batch: Batch, fields: Fields) -> None:
    """Make labels of the fields that anybody wants."""
    lines = batch.lines()
    for name, numbers in _labels(fields):
        if name and batch.wants_field(name):
            batch.set_parsed(name, field_values(lines, fields, _chosen(fields, numbers), len(batch)))


def run_json(batch: Batch, parser: JsonParser) -> None:
    """``| json``, with or without expressions."""
    stored = not batch.rewritten and batch.frame.format == Format.JSON
    if parser.extractions:
        _extract_json(batch, parser.extractions, stored)
        return
    if stored:
        for field in filter(batch.wants_field, batch.frame.field_names):
            batch.set_field(field)
        return
    fields = find_fields(batch.lines(), json_fields)
    _set_fields(batch, fields)
    batch.fail(fields.bad, JSON_ERROR, "Value looks like object, but can't find closing '}' symbol")


def _extract_json(batch: Batch, extractions: tuple[Extraction, ...], stored: bool) -> None:
    slow: list[tuple[Extraction, tuple[str | int, ...]]] = []
    for extraction in extractions:
        path = parse_path(extraction.path)
        field = "_".join(map(str, path))
        if stored and all(isinstance(step, str) for step in path) and field in batch.frame.field_names:
            column = batch.frame.field(field)
            values = Values.absent(len(batch)) if column is None else Values.of_column(column)
            if len(values.used()):
                batch.set_parsed(extraction.name, values)
                continue
        slow.append((extraction, path))
    if not slow:
        return
    bad = np.zeros(len(batch), np.bool_)
    texts: list[list[str | None]] = [[] for _ in slow]
    for row, line in enumerate(batch.lines().to_list()):
        whole = _object(line)
        bad[row] = whole is None
        for out, (_, path) in zip(texts, slow, strict=True):
            out.append(_json_text(follow(whole, path), line, path))
    for out, (extraction, _) in zip(texts, slow, strict=True):
        batch.set_parsed(extraction.name, Values.of(out))
    batch.fail(bad, JSON_ERROR, "Value looks like object, but can't find closing '}' symbol")


def _object(line: bytes) -> dict[str, Any] | None:
    """The object that a line is, numbers as they are spelled."""
    try:
        whole = json.loads(decode(line), parse_float=_Raw, parse_int=_Raw)
    except ValueError:
        return None
    return whole if isinstance(whole, dict) else None


class _Raw(str):
    """A number as it is spelled."""

    __slots__ = ()


def _json_text(value: Any, line: bytes, path: tuple[str | int, ...]) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return str(value)
    return orjson.dumps(follow(orjson.loads(line), path)).decode()


def run_logfmt(batch: Batch, parser: LogfmtParser) -> None:
    """``| logfmt``, with or without expressions; empty values are absent labels."""
    wanted = {extraction.path: extraction.name for extraction in parser.extractions}
    if not batch.rewritten and batch.frame.format == Format.LOGFMT:
        for field in batch.frame.field_names:
            if wanted and field not in wanted:
                continue
            if field not in wanted:
                batch.set_field(field)
                continue
            column = batch.frame.field(field)
            if column is not None:
                batch.set_parsed(wanted[field], Values.of_column(column))
        return
    fields = find_fields(batch.lines(), logfmt_fields)
    if wanted:
        lines = batch.lines()
        for path, name in wanted.items():
            numbers = [number for number, found in enumerate(fields.paths) if found == (path,)]
            if numbers:
                values = field_values(lines, fields, fields.names == numbers[0], len(batch))
                batch.set_parsed(name, values)
    else:
        _set_fields(batch, fields)
    if parser.strict:
        batch.fail(fields.bad, LOGFMT_ERROR, "logfmt syntax error : unexpected '\"' or '='")


def run_unpack(batch: Batch) -> None:
    """``| unpack``: the strings of a JSON object become labels, the one named ``_entry`` the line."""
    lines = batch.lines()
    fields = find_fields(lines, json_fields)
    texts = (fields.kinds == PLAIN) | (fields.kinds == ESCAPED)
    entry: Values | None = None
    for number, path in enumerate(fields.paths):
        chosen = texts & (fields.names == number)
        if len(path) > 1 or not chosen.any():
            continue
        values = field_values(lines, fields, chosen, len(batch))
        if path == ("_entry",):
            entry = values
        else:
            batch.set_parsed(path[0], values)
    if entry is not None:
        old = lines.to_list()
        new = [
            text.encode("utf-8", "surrogateescape") if has else line
            for text, has, line in zip(entry.to_list(), entry.present.tolist(), old, strict=True)
        ]
        batch.set_lines(Texts.of(new))
    batch.fail(fields.bad, JSON_ERROR, "expecting json object(6), but it is not")
