"""Groups of rows give back what was put in, whatever it was; fields are what a JSON parser finds."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.reference.log_split import json_fields, text_values
from tsdb.errors import CorruptionError
from tsdb.kernels.log_split import JSON, TEXT, VALUES_MAX, split_lines
from tsdb.logs.columns import spans_of
from tsdb.logs.frame import FieldKind, Format, Texts
from tsdb.logs.group import Entries, GroupHead, StoredRows, encode_group
from tsdb.logs.regex.automaton import automaton_of

scalars = st.one_of(
    st.text(max_size=12), st.integers(-(10**19), 10**19), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([True, False, None, "", "10.0.0.1", "deadbeefdeadbeef", "/a/1/b/007", "0.050", "-0"]),
)  # fmt: skip
objects = st.dictionaries(
    st.text('abcxyz_.\\"é', min_size=1, max_size=5),
    scalars | st.dictionaries(st.text("kl", max_size=2), scalars | st.lists(scalars, max_size=2), max_size=2),
    max_size=5,
)
json_lines = st.builds(
    lambda value, compact, ascii_only: json.dumps(
        value, separators=(",", ":") if compact else None, ensure_ascii=ascii_only
    ),
    objects, st.booleans(), st.booleans(),
)  # fmt: skip
words = st.sampled_from(
    ["GET", "/a/1", "id=7", 'k="v 1"', "k=", '"', "=", "x1=2", "10.0.0.1", "took", "0.25s", "[", "a=b=c", "\\", '"\\"',
     "127.0.0.1:80", "\t", "\x00", "é1"],
)  # fmt: skip
text_lines = st.lists(words, max_size=8).flatmap(lambda w: st.sampled_from([" ".join(w), "".join(w)]))
lines = st.one_of(json_lines, text_lines, st.text('{}[]":,\\u0a1 -.eE', max_size=24))


def split(texts: list[bytes]) -> tuple[list[int], list[list[bytes]]]:
    data, offsets = Texts.of(texts)
    n = len(texts)
    first, how = np.empty(n + 1, np.int64), np.empty(n, np.uint8)
    room = VALUES_MAX * n
    starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    escaped, shape = np.empty(n, np.uint8), np.empty(n, np.uint64)
    done = split_lines(data, offsets[:-1], offsets[1:], 0, starts, ends, first, how, escaped, shape)
    assert done == n
    values = [[data[starts[v] : ends[v]].tobytes() for v in range(first[i], first[i + 1])] for i in range(n)]
    return how.tolist(), values


@pytest.mark.kernel
@settings(max_examples=300, deadline=None)
@given(text_lines)
def test_text_is_split_as_the_twin_does(line: str) -> None:
    if line.startswith("{"):
        return
    how, values = split([line.encode()])
    assert how == [TEXT]
    assert values == [[v.encode() for v in text_values(line)]]


@pytest.mark.kernel
@settings(max_examples=400, deadline=None)
@given(lines)
@example('{"a":01}')
@example('{"a":1,}')
@example('{"a":"\\u12g4"}')
@example('{"a":nul}')
@example('{"a":1}x')
@example("{}")
def test_json_is_what_a_parser_takes(line: str) -> None:
    try:
        parsed = json.loads(line, parse_constant=lambda c: 1 / 0)
        valid = isinstance(parsed, dict)
    except (ValueError, ZeroDivisionError):
        valid = False
    (how,), _ = split([line.encode("utf-8", "surrogatepass")])
    if how == JSON:
        assert valid, line
    elif valid:
        assert b"[" in line.encode("utf-8", "surrogatepass"), "only arrays make valid JSON loose"


def group_of(texts: list[bytes], metadata: list[dict[str, str]] | None = None) -> StoredRows:
    rng = np.random.default_rng(len(texts))
    n = len(texts)
    ts_ns = np.sort(rng.integers(0, 10**18, n))
    blobs = [b"".join(k.encode() + b"\xff" + v.encode() + b"\xff" for k, v in m.items()) for m in metadata or [{}] * n]
    levels = np.zeros(n, np.uint8)
    parts, size, _ = encode_group(Entries(ts_ns, spans_of(Texts.of(texts)), Texts.of(blobs), levels))
    data = b"".join(parts)
    assert len(data) == size
    rows = StoredRows(GroupHead(memoryview(data), "test"), memoryview(data))
    assert rows.ts_ns.tolist() == ts_ns.tolist()
    return rows


def check_lines(rows: StoredRows, texts: list[bytes]) -> None:
    assert rows.lines(np.arange(rows.n)).to_list() == texts
    some = np.flatnonzero(np.random.default_rng(1).random(rows.n) < 0.3)
    assert rows.lines(some).to_list() == [texts[i] for i in some]
    for i in np.unique([0, rows.n // 2, rows.n - 1]).tolist():  # of a group of which nothing is decoded yet
        assert group_of(texts).lines(np.array([i])).to_list() == [texts[i]]


@pytest.mark.kernel
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(lines | st.binary(max_size=20), min_size=1, max_size=6), st.integers(1, 40), st.randoms())
def test_lines_come_back(samples: list[str | bytes], times: int, shuffle: object) -> None:
    texts = [s if isinstance(s, bytes) else s.encode("utf-8", "surrogatepass") for s in samples] * times
    shuffle.shuffle(texts)  # type: ignore[attr-defined]
    check_lines(group_of(texts), texts)


COLUMNS = {
    "const": st.just("x"),
    "few": st.sampled_from(["", "a", "b c", "504"]),
    "int": st.integers(-(10**18), 10**18).map(str),
    "small": st.integers(0, 5000).map(str),
    "decimal": st.integers(0, 99_999).map(lambda v: f"{v / 1000:.3f}"),
    "odd decimal": st.integers(0, 99_999).map(lambda v: f"{v / 1000:.3f}")
    | st.sampled_from(["", "-", "1.0, 2.0", "-0.000"]),
    "ip": st.tuples(*[st.integers(0, 255)] * 4).map(lambda p: ".".join(map(str, p))),
    "bad ip": st.sampled_from(["1.2.3.4", "01.2.3.4", "256.1.1.1", "1.2.3", "1.2.3.4.5", "1..2.3"]),
    "hex": st.binary(min_size=16, max_size=16).map(bytes.hex),
    "odd hex": st.binary(min_size=8, max_size=8).map(bytes.hex) | st.just("ABCDEF0123456789"),
    "path": st.tuples(st.sampled_from(["/a/", "/b/c/", "/0/"]), st.integers(0, 10**19)).map(
        lambda p: f"{p[0]}{p[1]}/x"
    ),
    "time": st.datetimes().map(lambda t: t.isoformat(timespec="milliseconds") + "Z"),
    "odd time": st.datetimes().map(lambda t: t.isoformat(" ", "seconds") + "+09:00")
    | st.sampled_from(["2026-02-29 00:00:00+09:00", "2026-13-01 00:00:00+09:00", "2026-01-01 24:00:00+09:00", ""]),
    "nanoseconds": st.tuples(st.datetimes(), st.integers(0, 999)).map(
        lambda t: f"{t[0].isoformat('T', 'microseconds')}{t[1]:03d}"
    ),
    "clf": st.datetimes().map(lambda t: t.strftime("%d/%b/") + f"{t.year:04d}" + t.strftime(":%H:%M:%S +0000")),
    "odd clf": st.sampled_from(
        ["30/Feb/2026:00:00:00 +0000", "01/Foo/2026:00:00:00 +0000", "28/Feb/2026:23:59:59 +0000"]
    ),
    "uuid": st.uuids().map(str),
    "odd uuid": st.uuids().map(str) | st.uuids().map(lambda u: str(u).upper()) | st.uuids().map(lambda u: u.hex),
    "ipv6": st.ip_addresses(v=6).map(str),
    "odd ipv6": st.ip_addresses(v=6).map(lambda a: a.exploded)
    | st.sampled_from(["::", "::1", "::ffff:1.2.3.4", ":", "1:2"]),
    "slot": st.sampled_from(["\x00", "a\x001", "7", "007"]),
    "text": st.text(max_size=10),
}


@pytest.mark.kernel
@pytest.mark.parametrize("kind", list(COLUMNS))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_columns_come_back(kind: str, data: st.DataObject) -> None:
    n = data.draw(st.integers(16, 120))
    seeds = data.draw(st.lists(COLUMNS[kind], min_size=1, max_size=n))
    values = [seeds[i % len(seeds)] for i in range(n)]
    other = [str(1000 + i) for i in range(n)]
    texts = [json.dumps({"n": int(o), "v": v}).encode() for o, v in zip(other, values, strict=True)]
    rows = group_of(texts)
    check_lines(rows, texts)
    assert rows.format is Format.JSON
    column = rows.field("v", np.arange(n))
    assert column is not None
    assert column.kind is FieldKind.TEXT
    got = column.texts().to_list()
    assert [json.loads(b'"' + text + b'"') for text in got] == values
    assert column.escaped or b"\\" not in b"".join(got)
    if column.ints is not None:
        number = column.is_int if column.is_int is not None else np.ones(n, bool)
        for i in np.flatnonzero(number):
            value = int(column.ints[i])
            text = f"{abs(value):0{column.scale + 1}d}"
            text = f"{text[: -column.scale]}.{text[-column.scale :]}" if column.scale else text
            assert ("-" if value < 0 else "") + text == values[i]


@settings(max_examples=60, deadline=None)
@given(st.lists(json_lines, min_size=1, max_size=3))
def test_fields_are_those_of_a_parser(samples: list[str]) -> None:
    texts = [s.encode() for s in samples for _ in range(20)]
    rows = group_of(texts)
    if rows.format is not Format.JSON:
        return
    expected = [json_fields(t.decode()) for t in texts]
    assert set(rows.field_names) == {name for fields in expected for name in fields or {}}
    for name in rows.field_names:
        column = rows.field(name, np.arange(rows.n))
        assert column is not None
        for i, text in enumerate(column.texts().to_list()):
            fields = expected[i]
            assert fields is not None
            present = column.present is None or bool(column.present[i])
            assert present == (name in fields)
            if present:
                quoted = b'"' + text + b'"' if isinstance(fields[name], str) else text
                assert json.loads(quoted) == fields[name]


@settings(max_examples=150, deadline=None)
@given(st.lists(json_lines | text_lines, min_size=1, max_size=3), st.data())
def test_literals_are_found_as_in_the_lines(samples: list[str], data: st.DataObject) -> None:
    texts = [s.encode() for s in samples for _ in range(17)]
    rows = group_of(texts)
    source = data.draw(st.sampled_from(texts))
    first = data.draw(st.integers(0, max(0, len(source) - 1)))
    needle = source[first : first + data.draw(st.integers(1, 24))]
    needle = data.draw(st.sampled_from([needle, needle + b"x", b'"a":1', b'":":', b'"', b"deadbeefdeadbeef", b"0"]))
    if needle:
        assert rows.matches(needle, np.arange(rows.n)).tolist() == [needle in t for t in texts]


@pytest.mark.parametrize(
    "needle",
    [
        b'"v":5',
        b'"v":504,',
        b'v":504,"h',
        b'":504',
        b'"s":"GET"',
        b'"s":"G',
        b'"s":"GET","',
        b'"h":"' + b"0" * 32,
        b'ip":"10.0.0.7"',
        b"0.0.7",
        b"GET",
        b"/p/17",
        b"/p/",
        b"zz",
        b'"v":504,"s":"GET"',
        b" :",
        b"}",
    ],
)
def test_literals_of_typed_columns(needle: bytes) -> None:
    texts = [
        json.dumps(
            {"v": i if i % 7 else 504, "s": "GET" if i % 3 else "PUT", "h": f"{i * i:032x}", "ip": f"10.0.0.{i % 200}",
             "p": f"/p/{i}" if i % 11 else "-"},
            separators=(",", ":"),
        ).encode()
        for i in range(400)
    ]  # fmt: skip
    rows = group_of(texts)
    some = np.arange(3, 390, 2)
    assert rows.matches(needle, some).tolist() == [needle in texts[i] for i in some]


@pytest.mark.parametrize("n", [40, 1000, 1500, 2047, 4000])
def test_ids_and_addresses_keep_their_types(n: int) -> None:
    texts = [b'{"id":"%032x","ip":"10.%d.%d.%d"}' % (i * 7919**8, i % 251, i % 241, i % 199) for i in range(n)]
    columns = group_of(texts)._head.patterns[0].entries
    assert [column["t"] for column in columns] == ["hex", "ip"]


def test_times_uuids_and_ipv6_have_types() -> None:
    start = datetime(2026, 11, 25, 22, 0, tzinfo=UTC)
    texts = []
    for i in range(400):
        at = start + timedelta(milliseconds=7919 * i)
        iso = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        values = {
            "t": iso, "local": at.strftime("%d/%b/%Y:%H:%M:%S +0000"),
            "trace": str(UUID(int=i * 7919**9)), "peer": f"2001:db8::{i:x}:{i * 7 % 65521:x}",
        }  # fmt: skip
        texts.append(json.dumps(values, separators=(",", ":")).encode())
    rows = group_of(texts)
    entries = rows._head.patterns[0].entries
    assert [entry["t"] for entry in entries] == ["time", "time", "uuid", "ipv6"]
    check_lines(rows, texts)
    every = np.arange(len(texts))
    for needle in (
        b"2026-11-25T22:00:39.595Z", b":39.595", b"25/Nov/2026:22:01:", b"+0000", b"XT22", b"2001:db8::7:31", b"db8::1",
        str(UUID(int=7 * 7919**9)).encode(), b"00000000-0000", str(UUID(int=7)).encode(),
        b'T22:00:39.595Z","local":"25/Nov',
    ):  # fmt: skip
        assert rows.matches(needle, every).tolist() == [needle in text for text in texts], needle


def test_logfmt_has_fields() -> None:
    texts = [f'level=info id={i} msg="hello {i}" took=0.{i:03d}'.encode() for i in range(100)]
    rows = group_of(texts)
    assert rows.format is Format.LOGFMT
    assert rows.field_names == ("level", "id", "msg", "took")
    column = rows.field("id", np.array([3, 7]))
    assert column is not None
    assert column.texts().to_list() == [b"3", b"7"]
    assert rows.field("nope", np.arange(3)) is None


def test_other_text_has_no_fields() -> None:
    rows = group_of([f"took {i} ms for id={i}".encode() for i in range(50)])
    assert rows.format is Format.UNKNOWN
    assert rows.field_names == ()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["trace_id", "a", "b"]), st.text(max_size=6)), min_size=1, max_size=40))
def test_metadata_come_back(metadata: list[dict[str, str]]) -> None:
    rows = group_of([b"x"] * len(metadata), metadata)
    assert set(rows.metadata_names) == {name for m in metadata for name in m}
    for name in rows.metadata_names:
        column = rows.metadata(name, np.arange(rows.n))
        assert column is not None
        got = column.texts().to_list()
        for i, m in enumerate(metadata):
            present = column.present is None or bool(column.present[i])
            assert (got[i].decode() if present else None) == m.get(name)
    again = [
        dict(zip(p[::2], p[1::2], strict=True))
        for p in (blob.split(b"\xff")[:-1] for blob in rows.metadata_blobs(np.arange(rows.n)).to_list())
    ]
    assert again == [{k.encode(): v.encode() for k, v in m.items()} for m in metadata]


def test_lying_groups_raise() -> None:
    rng = np.random.default_rng(5)
    texts = [json.dumps({"a": i, "p": f"/x/{i}", "h": f"{i:032x}"}).encode() for i in range(300)]
    parts, _, _ = encode_group(
        Entries(np.arange(300), spans_of(Texts.of(texts)), Texts.of([b""] * 300), np.zeros(300, np.uint8))
    )
    good = b"".join(parts)
    for at in rng.integers(8, len(good), 150).tolist():
        bad = bytearray(good)
        bad[at] ^= 1 << int(rng.integers(8))
        try:
            rows = StoredRows(GroupHead(memoryview(bytes(bad)), "bad"), memoryview(bytes(bad)))
            rows.lines(np.arange(rows.n))
            automaton = automaton_of("[a-f]{3}|[0-9]{4}x")
            assert automaton is not None
            rows.search(automaton, rows.every_row)
        except (CorruptionError, ValueError, KeyError, TypeError, IndexError, AttributeError):
            pass
