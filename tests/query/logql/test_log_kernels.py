"""The kernels for log lines against plain twins."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from query.kernels.log_fields import ESCAPED, json_fields, logfmt_fields, pattern_captures
from query.kernels.log_windows import add_to_windows
from query.logql.engine.columns import decode, unescape
from query.logql.engine.parse_fields import Fields, _find_fields, find_fields
from tests.reference import log_fields as twin
from tsdb.logs.frame import Texts

pytestmark = pytest.mark.kernel

_words = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
_scalars = st.one_of(_words, st.integers(-(10**6), 10**6), st.floats(-1e9, 1e9), st.booleans(), st.none())
_values = st.recursive(
    _scalars | st.lists(_scalars | st.dictionaries(_words, _scalars, max_size=2), max_size=2),
    lambda inner: st.dictionaries(_words, inner, max_size=3),
    max_leaves=5,
)
_objects = st.dictionaries(_words, _values, max_size=4).map(lambda o: json.dumps(o, ensure_ascii=False).encode())
_garbage = st.sampled_from([b"", b"{", b"[1]", b'"x"', b"{}x", b'{"a":1,}', b'{"a" 1}', b'{"a":01x}', b' { "a" : 1 } '])


def _read(fields: Fields, lines: Texts) -> list[list[tuple[tuple[str, ...], str]]]:
    out: list[list[tuple[tuple[str, ...], str]]] = [[] for _ in range(len(lines.offsets) - 1)]
    data = lines.data.tobytes()
    columns = (fields.rows, fields.names, fields.starts, fields.ends, fields.kinds)
    for row, name, start, end, kind in zip(*(column.tolist() for column in columns), strict=True):
        text = data[start:end]
        out[row].append((fields.paths[name], unescape(text) if kind == ESCAPED else decode(text)))
    return out


@settings(max_examples=120, deadline=None)
@given(st.lists(_objects | _garbage, max_size=6))
def test_json_members(texts: list[bytes]) -> None:
    lines = Texts.of(texts)
    fields = find_fields(lines, json_fields)
    for text, found, bad in zip(texts, _read(fields, lines), fields.bad.tolist(), strict=True):
        wanted = twin.json_members(text)
        assert bad == (wanted is None)
        # names are compared as they are spelled
        names = [tuple(json.loads(f'"{part}"', strict=False) for part in path) for path, _ in found]
        assert list(zip(names, [value for _, value in found], strict=True)) == (wanted or [])


def test_more_names_than_there_is_room_for() -> None:
    lines = Texts.of([json.dumps({f"k{i}": i for i in range(50)}).encode()])
    assert _find_fields(lines, json_fields, 32) is None
    assert len(find_fields(lines, json_fields).paths) == 50


def test_more_fields_than_there_is_room_for_at_once() -> None:
    texts = [json.dumps({f"k{i}": str(n) for i in range(2000)}).encode() for n in range(60)]
    lines = Texts.of(texts)
    fields = find_fields(lines, json_fields)
    assert len(fields.rows) == 120_000
    assert np.array_equal(np.bincount(fields.rows), np.full(60, 2000))


_keys = st.text("abcxyz._", min_size=1, max_size=4)
_pairs = st.tuples(_keys, st.text('ab "\\=é\t', max_size=5) | st.text("ab1.", max_size=4))


@settings(max_examples=120, deadline=None)
@given(st.lists(st.lists(_pairs, max_size=5), max_size=5))
def test_logfmt_pairs(rows: list[list[tuple[str, str]]]) -> None:
    texts = []
    for pairs in rows:
        parts = [
            f"{key}={value}" if value and value.replace(".", "").isalnum() and value.isascii() else
            f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in pairs
        ]  # fmt: skip
        texts.append(" ".join(parts))
    lines = Texts.of([text.encode() for text in texts])
    fields = find_fields(lines, logfmt_fields)
    assert not fields.bad.any()
    for text, pairs, found in zip(texts, rows, _read(fields, lines), strict=True):
        assert [(path[0], value) for path, value in found] == pairs
        assert [name for name, _ in twin.logfmt_pairs(text)] == [name for name, _ in pairs]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text("ab-", max_size=8).map(str.encode), max_size=6),
    st.lists(st.sampled_from([b"a", b"-", b"ab", b"--"]), max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_pattern_captures(texts: list[bytes], literals: list[bytes], leads: bool, trails: bool) -> None:
    leads = leads and bool(literals)
    count = len(literals) - leads + (0 if trails and literals else 1)
    lines = Texts.of(texts)
    offsets = np.zeros(len(literals) + 1, np.int64)
    np.cumsum([len(literal) for literal in literals], out=offsets[1:])
    starts, ends = np.empty((count, len(texts)), np.int64), np.empty((count, len(texts)), np.int64)
    matched = np.zeros(len(texts), np.uint8)
    joined = np.frombuffer(b"".join(literals) + b"\0", np.uint8)
    hits = pattern_captures(lines.data, lines.offsets, joined, offsets, int(leads), count, starts, ends, matched)
    assert hits == matched.sum()
    data = lines.data.tobytes()
    for row, text in enumerate(texts):
        found = [
            data[a:b] if a >= 0 else None for a, b in zip(starts[:, row].tolist(), ends[:, row].tolist(), strict=True)
        ]
        assert (found, bool(matched[row])) == twin.captures(text, literals, leads, count)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-50, 50), st.integers(-1, 2), st.integers(0, 9)), max_size=20),
    st.integers(-40, 40),
    st.integers(1, 12),
    st.integers(1, 30),
    st.integers(1, 8),
)
def test_windows(rows: list[tuple[int, int, int]], first: int, step: int, width: int, steps: int) -> None:
    ts, series, weights = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    counts, sums = np.zeros((3, steps + 1)), np.zeros((3, steps + 1))
    arrays = np.array(ts, np.int64), np.array(series, np.int32), np.array(weights, np.float64)
    add_to_windows(*arrays, first, step, width, counts, sums)
    wanted = twin.windows(ts, series, weights, first, step, width, steps, 3)
    assert np.cumsum(counts, axis=1)[:, :-1].tolist() == wanted[0]
    if rows:
        assert np.cumsum(sums, axis=1)[:, :-1].tolist() == wanted[1]
