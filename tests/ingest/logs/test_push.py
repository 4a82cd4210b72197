"""Bodies of log pushes: what is stored of them, and what senders are told."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest.kernels.loki import detect_levels
from ingest.logs.api import LokiPushApi
from ingest.logs.labels import parse_labels
from ingest.logs.limits import PushLimits
from ingest.logs.push import PushReceiver
from ingest.logs.spans import LEAD_BYTES
from tests.reference.loki import level, push_request, snappy
from tsdb.clock import ManualClock
from tsdb.db import TSDB, StoreConfig
from tsdb.errors import RejectedError
from tsdb.logs.frame import LEVELS, PAD_BYTES
from tsdb.tally import Tally

NOW_S = 1_800_000_000
NOW = NOW_S * 10**9
PROTOBUF = {"content-type": "application/x-protobuf"}
JSON = {"content-type": "application/json; charset=utf-8"}


class Server:
    """The endpoint in front of a store of its own."""

    def __init__(self, path: Path, **limits: Any) -> None:
        self.db = TSDB(StoreConfig(path=path, min_free_bytes=0, min_free_fraction=0, maintenance_seconds=3600))
        self.db.open()
        self.logs = self.db.tenant("default").logs
        self.tally = Tally()
        self.executor = ThreadPoolExecutor(1)
        receiver = PushReceiver(ManualClock(NOW_S * 1000), self.tally, PushLimits(**limits))
        self.api = LokiPushApi(lambda name: self.db.tenant(name).logs, receiver, self.executor, self.tally)

    def push(
        self, body: bytes, headers: dict[str, str], *, path: str = "/loki/api/v1/push", method: str = "POST"
    ) -> tuple[int, str]:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        raw = [(k.encode(), v.encode()) for k, v in headers.items()]
        scope = {"type": "http", "path": path, "method": method, "headers": raw, "query_string": b""}
        asyncio.run(self.api(scope, receive, send))
        return sent[0]["status"], sent[1]["body"].decode(errors="surrogateescape")

    def json(self, streams: Any, **kwargs: Any) -> tuple[int, str]:
        return self.push(json.dumps({"streams": streams}).encode(), JSON, **kwargs)

    def rows(self) -> list[tuple[dict[str, str], int, bytes, dict[str, str]]]:
        out = []
        for frame in self.logs.select([], -(1 << 63), (1 << 63) - 1, backward=False):
            columns = {name: frame.metadata(name) for name in frame.metadata_names}
            lines = frame.lines().to_list()
            for i in range(len(frame)):
                metadata = {
                    name: column.texts().text(i).decode()
                    for name, column in columns.items()
                    if column is not None and (column.present is None or column.present[i])
                }
                out.append((frame.labels.labels(int(frame.stream_row[i])), int(frame.ts_ns[i]), lines[i], metadata))
        return out


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.executor.shutdown()
    made.db.close()


ENTRIES = [
    (NOW, b"level=info a", {}),
    (NOW + 1, b"x\x00\xff\n", {"trace_id": "ab", "level": "WARN"}),
    (NOW + 2, b"", {"level": "odd"}),
]


@pytest.mark.parametrize("headers", [PROTOBUF, {}, {"content-type": "text/plain"}, {"content-encoding": "snappy"}])
def test_protobuf_is_stored(server: Server, headers: dict[str, str]) -> None:
    body = snappy(push_request([('{b="2", app="x"}', ENTRIES)]))
    for _ in range(2):  # the second time by the key table; and nothing is stored twice
        assert server.push(body, headers) == (204, "")
    labels = {"app": "x", "b": "2", "service_name": "x"}
    assert server.rows() == [
        (labels, NOW, b"level=info a", {"detected_level": "info"}),
        (labels, NOW + 1, b"x\x00\xff\n", {"detected_level": "warn", "level": "WARN", "trace_id": "ab"}),
        (labels, NOW + 2, b"", {"detected_level": "odd", "level": "odd"}),
    ]
    assert server.api.stats.entries_accepted == 6
    assert len(server.logs.registry.keys) == 1


def test_json_is_stored(server: Server) -> None:
    streams = [
        {"stream": {"app": "x"}, "values": [[str(NOW), "é error"], [str(NOW + 1), "b", {"trace_id": "ab"}]]},
        {"stream": {"level": "INFO", "job": "j"}, "values": [[str(NOW + 2), "fatal"]]},
        {"stream": {"level": "verbose", "job": "j"}, "values": [[str(NOW + 3), "fatal"]]},
        {"stream": {"a": "b"}, "values": None},
    ]
    assert server.json(streams) == (204, "")
    assert [(r[0]["service_name"], r[2], r[3]) for r in server.rows()] == [
        ("x", "é error".encode(), {"detected_level": "error"}),
        ("x", b"b", {"detected_level": "unknown", "trace_id": "ab"}),
        ("j", b"fatal", {"detected_level": "info"}),
        ("j", b"fatal", {"detected_level": "verbose"}),
    ]


def test_compressed_bodies(server: Server) -> None:
    plain = json.dumps({"streams": [{"stream": {"app": "x"}, "values": [[str(NOW), "a"]]}]}).encode()
    bare = zlib.compressobj(wbits=-15)
    for encoding, body in (
        ("gzip", gzip.compress(plain)),
        ("deflate", zlib.compress(plain)),
        ("deflate", bare.compress(plain) + bare.flush()),
    ):
        assert server.push(body, {**JSON, "content-encoding": encoding})[0] == 204
    assert len(server.rows()) == 1
    proto = snappy(push_request([('{app="y"}', [(NOW, b"a", {})])]))
    assert server.push(gzip.compress(proto), {**PROTOBUF, "content-encoding": "gzip"})[0] == 204
    assert server.push(plain, {**JSON, "content-encoding": "br"}) == (400, 'Content-Encoding "br" not supported\n')
    assert server.push(gzip.compress(plain)[:-9], {**JSON, "content-encoding": "gzip"})[0] == 400
    assert server.push(b"no gzip", {**JSON, "content-encoding": "gzip"})[0] == 400


def test_the_old_path_takes_the_old_shape(server: Server) -> None:
    stream = {"labels": '{app="x"}', "entries": [{"ts": "2027-01-15T08:00:00.5Z", "line": "old"}]}
    assert server.json([stream], path="/api/prom/push")[0] == 204
    assert server.json([stream])[0] == 400
    assert [r[1:3] for r in server.rows()] == [(NOW + 500_000_000, b"old")]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{}", 400),
        (b"not json", 400),
        (b'{"streams":[]}', 422),
        (b'{"streams":[{"stream":{"a":"b"},"values":[[1,"x"]]}]}', 400),
        (b'{"streams":[{"stream":{"a":"b"},"values":[["x","x"]]}]}', 400),
        (b'{"streams":[{"stream":{"a":1},"values":[]}]}', 400),
        (b'{"streams":[{"stream":{"a":"b"},"values":[["1","x",{"k":1}]]}]}', 400),
        (b'{"streams":[{"stream":{"a":"b"},"values":[["99999999999999999999","x"]]}]}', 400),
    ],
)
def test_wrong_json(server: Server, body: bytes, status: int) -> None:
    got, text = server.push(body, JSON)
    assert got == status
    assert text.endswith("\n")
    assert server.rows() == []


def test_wrong_protobuf(server: Server) -> None:
    good = push_request([('{app="x"}', ENTRIES)])
    assert server.push(b"\xff\xff\xff", PROTOBUF)[0] == 400
    assert server.push(snappy(b""), PROTOBUF) == (422, "error at least one valid stream is required for ingestion\n")
    for cut in range(1, len(good)):
        assert server.push(snappy(good[:cut]), PROTOBUF)[0] in (204, 400, 422)
    assert server.push(b"", PROTOBUF, method="GET")[0] == 405


def test_what_is_refused_takes_nothing_else_with_it(server: Server) -> None:
    ok = [str(NOW), "fine"]
    x = '{app="x", service_name="x"}'
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"stream": {"app": "x"}, "values": [["1600000000000000000", "o"], ok]},
            f"entry for stream '{x}' has timestamp too old: 2020-09-13T12:26:40Z, "
            "oldest acceptable timestamp is: 2027-01-08T08:00:00Z",
        ),
        (
            {"stream": {"app": "x"}, "values": [[str(NOW + 601 * 10**9), "o"], ok]},
            "has timestamp too new: 2027-01-15T08:10:01Z",
        ),
        (
            {"stream": {"app": "x"}, "values": [[str(NOW), "o" * 307200], ok]},
            f"max entry size '262144' bytes exceeded for stream '{x}' while adding an entry with length '307200' bytes",
        ),
        (
            {"stream": {"app": "x"}, "values": [[str(NOW), "o", {"k": "v" * 65537}], ok]},
            "has structured metadata too large: '65538' bytes, limit: '65536' bytes",
        ),
        (
            {"stream": {"app": "x"}, "values": [[str(NOW), "o", {f"k{i}": "v" for i in range(129)}], ok]},
            "has too many structured metadata labels: '129'",
        ),
        ({"stream": {f"l{i}": "x" for i in range(20)}, "values": [ok]}, "has 20 label names; limit 15"),
        ({"stream": {"n" * 1025: "x"}, "values": [ok]}, "has label name too long: 'nnn"),
        ({"stream": {"n": "x" * 2049}, "values": [ok]}, "has label value too long: 'xxx"),
    ]
    for k, (stream, message) in enumerate(cases):
        other = {"stream": {"app": "good"}, "values": [[str(NOW + k), "kept"]]}
        status, text = server.json([stream, other])
        assert status == 400
        assert message in text
        assert sum(row[2] == b"kept" for row in server.rows()) == k + 1
    assert sum(row[2] == b"fine" for row in server.rows()) == 1
    assert sum(server.tally.snapshot().values()) == len(cases)
    labels = '{app="a", app="b"}'
    status, text = server.push(snappy(push_request([(labels, [(NOW, b"a", {})])])), PROTOBUF)
    assert (status, text) == (400, "stream '{app=\"a\", app=\"b\"}' has duplicate label name: 'app'\n")
    status, text = server.push(snappy(push_request([('{a b="c"}', [(NOW, b"a", {})])])), PROTOBUF)
    assert (status, text) == (400, "couldn't parse labels: 1:4: parse error: unexpected identifier 'b'\n")


def test_an_empty_label_set_gets_a_service(server: Server) -> None:
    assert server.json([{"stream": {}, "values": [[str(NOW), "x"]]}])[0] == 204
    assert server.rows()[0][0] == {"service_name": "unknown_service"}


def test_limits_of_a_whole_push(tmp_path: Path) -> None:
    server = Server(tmp_path, body_bytes_max=200, rate_bytes_max=10, discover_service_name=False, detect_level=False)
    assert server.push(b" " * 201, JSON) == (413, "request body too large: 201 bytes, limit: 200 bytes\n")
    assert server.push(b" ", {**JSON, "content-length": "300"})[0] == 413
    assert server.json([{"stream": {}, "values": [[str(NOW), "x"]]}]) == (
        400, "error at least one label pair is required per stream\n",
    )  # fmt: skip
    stream = {"stream": {"a": "b"}, "values": [[str(NOW), "x" * 90]]}
    assert server.json([stream])[0] == 204
    status, text = server.json([stream])
    assert status == 429
    assert text.startswith("ingestion rate limit exceeded for user default (limit: 10 bytes/sec) while attempting")
    assert server.push(b"{}", {**JSON, "x-scope-orgid": "nobody"})[0] == 400
    assert server.rows()[0][3] == {}
    server.executor.shutdown()
    server.db.close()


def test_label_strings() -> None:
    assert parse_labels('{a="b", c = `d` ,}') == [("a", "b"), ("c", "d")]
    assert parse_labels('{ a="q\\"\\\\\\n\\u00e9" }') == [("a", 'q"\\\né')]
    assert parse_labels("{}") == []
    for wrong in ("", "a", "{a}", '{a="b"', '{a="b"}x', "{a=b}", '{1a="b"}', '{a="b" c="d"}'):
        with pytest.raises(RejectedError, match="parse error"):
            parse_labels(wrong)


levels = st.sampled_from(
    ["error", "ERR", "info", "Information", "warn", "debugger", "my_error", "fatal", "crit", "x", "TRC"]
)
names = st.sampled_from(["level", "lvl", "severity", "SeverityText", "log.level", "levels", "msg", "xlevel"])
flat_json = st.dictionaries(names, levels | st.integers(), max_size=4).map(json.dumps)
logfmt = st.lists(st.tuples(names, levels, st.booleans()), max_size=5).map(
    lambda pairs: " ".join(f'{k}="{v}"' if quoted else f"{k}={v}" for k, v, quoted in pairs)
)
prose = st.lists(levels | st.sampled_from([":", "[", "-", "errors", "the", "information"]), max_size=12).flatmap(
    lambda words: st.sampled_from([" ".join(words), "".join(words)])
)


@pytest.mark.kernel
@settings(max_examples=300, deadline=None)
@given(st.lists(flat_json | logfmt | prose, min_size=1, max_size=4))
@example(["x", "error"])
@example(["level=error"])
def test_levels_are_those_of_the_twin(lines: list[str]) -> None:
    raw = [line.encode() for line in lines]
    offsets = np.cumsum([LEAD_BYTES] + [len(line) for line in raw])
    data = np.frombuffer(bytes(LEAD_BYTES) + b"".join(raw) + bytes(PAD_BYTES), np.uint8)
    got = np.zeros(len(raw), np.uint8)
    assert detect_levels(data, offsets, got) == len(raw)
    assert [LEVELS[code] for code in got] == [LEVELS[level(line)] for line in lines]


def test_level_names_count_only_to_depth_two() -> None:
    raw = [
        b'{"a":{"level":"warn"}}',
        b'{"a":{"b":{"level":"warning_x"}}}',
        b'{"a":{"b":{"level":"fatal"}},"level":"debug"}',
    ]
    offsets = np.cumsum([LEAD_BYTES] + [len(line) for line in raw])
    data = np.frombuffer(bytes(LEAD_BYTES) + b"".join(raw) + bytes(PAD_BYTES), np.uint8)
    got = np.zeros(len(raw), np.uint8)
    detect_levels(data, offsets, got)
    assert [LEVELS[code] for code in got] == ["warn", "unknown", "debug"]
