"""Remote-read and federation: the kernels against plain twins, and the endpoints in process."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import Any

import cramjam
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from query.api import QueryApi
from query.errors import BadDataError
from query.federation import federation_page
from query.limits import QueryLimits
from query.remote_read import REQUEST_BYTES_MAX, encode_result, parse_read_request
from tests.query.asgi import Reply, ask, get
from tests.query.demo_api import NOW_MS, START_MS, TIMES_MS, query_api
from tests.query.memory_storage import STALE, MemoryStorage
from tests.reference import exposition_page, protobuf
from tsdb.frame import SeriesFrame
from tsdb.limits import SelectLimits
from tsdb.matchers import Matcher, MatchOp

STALE_BITS = 0x7FF0000000000002
ALL = SelectLimits(1000, 100_000)
EVERYTHING = [Matcher("__name__", MatchOp.REGEX, ".*")]
LONGEST = (1 << 62) - 1

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
label_sets = st.dictionaries(st.sampled_from(["a", "b", "ü.x", "zz"]) | texts, texts | st.just('q"\\\n'), max_size=4)
series_lists = st.lists(
    st.tuples(
        st.builds(lambda m, ls: {**ls, "__name__": m}, st.sampled_from(["up", "a:b", "x.y"]) | texts, label_sets),
        st.dictionaries(st.integers(-(1 << 62), 1 << 62), st.integers(0, (1 << 64) - 1), max_size=4),
    ),
    max_size=6,
    unique_by=lambda entry: tuple(sorted(entry[0].items())),
)


def frame_of(series: Any) -> SeriesFrame:
    storage = MemoryStorage(
        (labels, [(t, struct.unpack("<d", struct.pack("<Q", bits))[0]) for t, bits in samples.items()])
        for labels, samples in series
    )
    return storage.select(EVERYTHING, -(1 << 63), (1 << 63) - 1, ALL)


@pytest.mark.kernel
@settings(deadline=None, max_examples=80)
@given(series_lists)
def test_a_result_is_the_message_of_the_plain_writer(series: Any) -> None:
    got = encode_result(frame_of(series), 1 << 30)
    (number, result), *rest = protobuf.fields(got)
    assert (number, rest) == (1, [])
    wanted = {
        tuple(sorted(labels.items(), key=lambda pair: pair[0].encode())): sorted(samples.items())
        for labels, samples in series
        if samples
    }
    (read,) = protobuf.read_response(got)
    assert read == wanted
    assert result == protobuf.query_result((dict(labels), samples) for labels, samples in read.items())
    assert list(read) == sorted(read, key=lambda pairs: [part for pair in pairs for part in pair])


@pytest.mark.kernel
@settings(deadline=None, max_examples=80)
@given(series_lists)
def test_a_page_has_the_lines_of_the_plain_writer(series: Any) -> None:
    page = federation_page([frame_of(series)]).decode()
    newest = [(labels, *max(samples.items())) for labels, samples in series if samples]
    wanted = exposition_page.page_lines(
        (labels, t, struct.unpack("<d", struct.pack("<Q", bits))[0]) for labels, t, bits in newest if bits != STALE_BITS
    )
    got: dict[str, set[str]] = {}
    for line in page.split("\n")[:-1]:
        if line.startswith("# TYPE "):
            metric = line.removeprefix("# TYPE ").removesuffix(" untyped")
            assert metric not in got
            got[metric] = set()
        else:
            got[metric].add(line)
    assert got == wanted


def test_the_limit_of_a_result() -> None:
    frame = frame_of([({"__name__": "a"}, {1: 0})])
    size = len(encode_result(frame, 1 << 20))
    with pytest.raises(BadDataError, match="limit"):
        encode_result(frame, size - 3)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    for data in (body, bytes(cramjam.snappy.compress_raw(body))):
        with contextlib.suppress(BadDataError):
            parse_read_request(data)


def test_every_truncation_is_read_or_refused() -> None:
    request = protobuf.read_request([(1, 2, [(2, "a", "b.*")])])
    assert len(parse_read_request(bytes(cramjam.snappy.compress_raw(request)))) == 1
    for end in range(1, len(request)):
        with pytest.raises(BadDataError):
            parse_read_request(bytes(cramjam.snappy.compress_raw(request[:end])))


def test_the_matchers_of_a_request() -> None:
    hints = protobuf.field(4, protobuf.field(1, 15_000) + protobuf.field(2, b"rate"))
    asked = [(-5, 10, [(0, "a", "x"), (1, "b", ""), (2, "c", "y.*"), (3, "d", "z")])]
    body = protobuf.read_request(asked, hints) + protobuf.field(2, 1) + protobuf.field(2, 0)
    (query,) = parse_read_request(bytes(cramjam.snappy.compress_raw(body)))
    assert (query.start_ms, query.end_ms) == (-5, 10)
    assert [str(m.op) for m in query.matchers] == ["=", "!=", "=~", "!~"]
    assert [(m.name, m.value) for m in query.matchers] == [("a", "x"), ("b", ""), ("c", "y.*"), ("d", "z")]


# The endpoints


def storage() -> MemoryStorage:
    return MemoryStorage(
        [
            ({"__name__": "up", "job": "a"}, [(t, float(i)) for i, t in enumerate(TIMES_MS)]),
            ({"__name__": "up", "job": "b"}, [(TIMES_MS[0], 1.0), (TIMES_MS[1], STALE)]),
            ({"__name__": "old"}, [(START_MS - 600_000, 1.0)]),
            ({"__name__": "http.requests", "path": '/"x"'}, [(TIMES_MS[-1], 1e9)]),
        ]
    )


@pytest.fixture(scope="module")
def api() -> Iterator[QueryApi]:
    with query_api(storage()) as app:
        yield app


def read(api: QueryApi, request: bytes, **headers: str) -> Reply:
    return ask(api, "POST", "/api/v1/read", headers, bytes(cramjam.snappy.compress_raw(request)))


def results(reply: Reply) -> list[protobuf.Series]:
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == "application/x-protobuf"
    assert reply.headers["content-encoding"] == "snappy"
    return protobuf.read_response(bytes(cramjam.snappy.decompress_raw(reply.body)))


def test_remote_read_answers_each_query(api: QueryApi) -> None:
    request = protobuf.read_request(
        [
            (TIMES_MS[1], TIMES_MS[2], [(0, "__name__", "up")]),
            (0, LONGEST, [(0, "__name__", "nothing")]),
            (5, 4, [(0, "__name__", "up")]),
        ]
    )
    one, two = (struct.unpack("<Q", struct.pack("<d", v))[0] for v in (1.0, 2.0))
    assert results(read(api, request, **{"accept-encoding": "gzip"})) == [
        {
            (("__name__", "up"), ("job", "a")): [(TIMES_MS[1], one), (TIMES_MS[2], two)],
            (("__name__", "up"), ("job", "b")): [(TIMES_MS[1], STALE_BITS)],
        },
        {},
        {},
    ]


def test_remote_read_of_an_unknown_tenant_is_empty(api: QueryApi) -> None:
    request = protobuf.read_request([(0, LONGEST, [(0, "__name__", "up")])])
    assert results(read(api, request, **{"x-scope-orgid": "nobody"})) == [{}]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "truncated"),
        (b"\xff\x06\x00\x00sNaPpY", "decompress"),
        (b"\xff\xff\xff\xff\x0f", "limit"),
        (bytes(cramjam.snappy.compress_raw(b"\x0a\x05\x08")), "truncated"),
        (bytes(cramjam.snappy.compress_raw(protobuf.read_request([(0, 1, [(9, "a", "b")])]))), "matcher type 9"),
        (bytes(cramjam.snappy.compress_raw(protobuf.read_request([(0, 1, [(2, "a", "(")])]))), "("),
    ],
)
def test_remote_read_refuses_in_plain_text(api: QueryApi, body: bytes, words: str) -> None:
    reply = ask(api, "POST", "/api/v1/read", {}, body)
    assert reply.status == 400
    assert reply.headers["content-type"].startswith("text/plain")
    assert words in reply.text


def test_a_claimed_size_is_checked_before_memory_is_taken() -> None:
    with pytest.raises(BadDataError, match=f"{REQUEST_BYTES_MAX:,}"):
        parse_read_request(protobuf.varint(REQUEST_BYTES_MAX + 1) + b"\x00")


def test_remote_read_obeys_the_limits_of_queries() -> None:
    with query_api(storage(), QueryLimits(workers=1, samples_max=3)) as api:
        reply = read(api, protobuf.read_request([(0, LONGEST, [(0, "__name__", "up")])]))
    assert reply.status == 400


def test_federation_shows_the_newest_live_samples(api: QueryApi) -> None:
    target = "/federate?match[]=up&match[]={job='a'}&match[]={__name__=~'old|http.*'}"
    old = get(api, target, accept="text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
    assert old.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert old.text.splitlines()[1] == f'http_requests{{path="/\\"x\\""}} 1000000000 {TIMES_MS[-1]}'
    reply = get(api, target, accept="text/plain;version=1.0.0; escaping=allow-utf-8;q=0.5,*/*;q=0.1")
    assert reply.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8; escaping=allow-utf-8"
    assert reply.text == (
        '# TYPE "http.requests" untyped\n'
        f'{{"http.requests",path="/\\"x\\""}} 1000000000 {TIMES_MS[-1]}\n'
        "# TYPE up untyped\n"
        f'up{{job="a"}} 12 {TIMES_MS[-1]}\n'
    )
    assert TIMES_MS[-1] <= NOW_MS


def test_federation_of_nothing_is_an_empty_page(api: QueryApi) -> None:
    for target in ("/federate", "/federate?match[]=nothing", "/federate?match[]=old"):
        reply = get(api, target)
        assert (reply.status, reply.body) == (200, b"")


def test_federation_refuses_in_plain_text(api: QueryApi) -> None:
    reply = get(api, "/federate?match[]=up{")
    assert (reply.status, reply.headers["content-type"]) == (400, "text/plain; charset=utf-8")
    assert reply.text == "1:4: parse error: unexpected end of input inside braces\n"


def test_many_series_federate(api: QueryApi) -> None:
    wide = MemoryStorage(({"__name__": f"m{i % 3}", "i": str(i)}, [(NOW_MS - i, float(i))]) for i in range(500))
    with query_api(wide) as app:
        lines = get(app, "/federate?match[]={i!=''}").text.splitlines()
    assert len(lines) == 503
    assert [line for line in lines if line.startswith("#")] == [f"# TYPE m{k} untyped" for k in range(3)]
    assert np.array_equal(sorted(float(line.split()[1]) for line in lines if line[0] != "#"), range(500))
