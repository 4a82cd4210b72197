"""OTLP logs: the reader against its twin, and what becomes of requests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cramjam
import pytest
import zstandard
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from ingest.logs.otlp import INDEX_ATTRIBUTES, OtlpLogReader
from ingest.otlp_json import LOGS_REQUEST, to_protobuf
from ingest.wire import fields
from tests.ingest.logs.test_push import NOW, Server
from tests.reference import otlp_logs as twin
from tsdb.errors import RejectedError

PROTOBUF = {"content-type": "application/x-protobuf"}
JSON = {"content-type": "application/json"}
PATH = "/otlp/v1/logs"

keys = st.sampled_from(["http.method", "a", "é.b", "1st", "_x", "level", *sorted(INDEX_ATTRIBUTES)[:4]]) | st.text(
    max_size=8
)
u32 = st.integers(0, (1 << 32) - 1)
times = st.just(0) | st.integers(NOW, NOW + 1000)
scalars = st.one_of(
    st.builds(lambda v: AnyValue(string_value=v), st.text(max_size=12)),
    st.builds(lambda v: AnyValue(bool_value=v), st.booleans()),
    st.builds(lambda v: AnyValue(int_value=v), st.integers(-(1 << 63), (1 << 63) - 1)),
    st.builds(lambda v: AnyValue(double_value=v), st.floats(allow_nan=False)),
    st.builds(lambda v: AnyValue(bytes_value=v), st.binary(max_size=8)),
    st.just(AnyValue()),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(lambda v: AnyValue(array_value=ArrayValue(values=v)), st.lists(inner, max_size=3)),
        st.builds(
            lambda v: AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key=k, value=x) for k, x in v.items()])),
            st.dictionaries(keys, inner, max_size=3),
        ),
    ),
    max_leaves=6,
)
attributes = st.dictionaries(keys, values, max_size=4).map(
    lambda pairs: [KeyValue(key=key, value=value) for key, value in pairs.items()]
)
records = st.builds(
    LogRecord,
    time_unix_nano=times,
    observed_time_unix_nano=times,
    severity_number=st.integers(0, 24),
    severity_text=st.sampled_from(["", "Warn", "odd"]),
    body=values,
    attributes=attributes,
    dropped_attributes_count=st.just(0) | u32,
    flags=st.just(0) | u32,
    trace_id=st.sampled_from([b"", bytes(16)]) | st.binary(min_size=16, max_size=16) | st.binary(max_size=3),
    span_id=st.just(b"") | st.binary(min_size=8, max_size=8),
    event_name=st.sampled_from(["", "e"]),
)
scopes = st.builds(
    InstrumentationScope,
    name=st.sampled_from(["", "lib"]),
    version=st.sampled_from(["", "1"]),
    attributes=attributes,
    dropped_attributes_count=st.just(0) | u32,
)
requests = st.builds(
    ExportLogsServiceRequest,
    resource_logs=st.lists(
        st.builds(
            ResourceLogs,
            resource=st.builds(Resource, attributes=attributes, dropped_attributes_count=st.just(0) | u32),
            scope_logs=st.lists(
                st.builds(ScopeLogs, scope=scopes, log_records=st.lists(records, max_size=4)), max_size=3
            ),
        ),
        max_size=3,
    ),
)


def read(reader: OtlpLogReader, body: bytes) -> list[twin.Entry]:
    streams, spans = reader.read(body, NOW - 1)
    data = spans.body.tobytes()
    out = []
    for i in range(len(spans.ts_ns)):
        rows = spans.pairs[spans.first_pairs[i] : spans.first_pairs[i + 1]].tolist()
        start = int(spans.line_starts[i])
        line = data[start : start + int(spans.line_sizes[i])].decode()
        meta = [(data[a:b].decode(), data[c:d].decode()) for a, b, c, d in rows]
        assert spans.levels is not None
        labels = dict(streams[int(spans.streams[i])])
        out.append((labels, int(spans.ts_ns[i]), line, meta, int(spans.levels[i])))
    return out


READER = OtlpLogReader()  # keeps the names of all examples


@pytest.mark.kernel
@given(request=requests)
@settings(max_examples=150, deadline=None)
def test_reader_is_the_twin(request: ExportLogsServiceRequest) -> None:
    assert read(READER, request.SerializeToString()) == twin.entries(request, NOW - 1)


@pytest.mark.kernel
@given(request=requests, data=st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_requests_are_refused_or_read(request: ExportLogsServiceRequest, data: st.DataObject) -> None:
    body = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(0, 3)) if body else 0):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(body[: data.draw(st.integers(0, len(body)))])
    try:
        READER.read(cut, NOW)
    except RejectedError:
        return
    list(fields(cut))  # what the reader took holds together


@given(request=requests)
@settings(max_examples=50, deadline=None)
def test_json_means_the_same(request: ExportLogsServiceRequest) -> None:
    shape: Any = MessageToDict(request, use_integers_for_enums=True)
    for resource, sent in zip(shape.get("resourceLogs", []), request.resource_logs, strict=True):
        for scope, given_ in zip(resource.get("scopeLogs", []), sent.scope_logs, strict=True):
            for record, one in zip(scope.get("logRecords", []), given_.log_records, strict=True):
                record.update(traceId=one.trace_id.hex(), spanId=one.span_id.hex())  # OTLP/JSON: hex, not base64
    body = to_protobuf(json.dumps(shape).encode(), LOGS_REQUEST)
    assert read(READER, body) == twin.entries(request, NOW - 1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.executor.shutdown()
    made.db.close()


def text(value: str) -> AnyValue:
    return AnyValue(string_value=value)


def example() -> ExportLogsServiceRequest:
    resource = Resource(
        attributes=[
            KeyValue(key="service.name", value=text("shop")),
            KeyValue(key="k8s.pod.name", value=text("shop-1")),
            KeyValue(key="host.name", value=text("node-7")),
        ]
    )
    record = LogRecord(
        time_unix_nano=NOW,
        observed_time_unix_nano=NOW + 5,
        severity_number=17,
        severity_text="Error",
        body=text("it broke, info"),
        attributes=[
            KeyValue(key="http.status_code", value=AnyValue(int_value=502)),
            KeyValue(
                key="user", value=AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="id", value=text("7"))]))
            ),
        ],
        trace_id=bytes(range(16)),
        span_id=bytes(range(8)),
    )
    scope = ScopeLogs(scope=InstrumentationScope(name="lib"), log_records=[record])
    return ExportLogsServiceRequest(resource_logs=[ResourceLogs(resource=resource, scope_logs=[scope])])


STORED = [
    (
        {"service_name": "shop", "k8s_pod_name": "shop-1"},
        NOW,
        b"it broke, info",
        {
            "detected_level": "error", "host_name": "node-7", "scope_name": "lib", "http_status_code": "502",
            "user_id": "7", "observed_timestamp": str(NOW + 5), "severity_number": "17", "severity_text": "Error",
            "trace_id": "000102030405060708090a0b0c0d0e0f", "span_id": "0001020304050607",
        },
    )
]  # fmt: skip


def test_what_is_stored_of_a_record(server: Server) -> None:
    body = example().SerializeToString()
    lz4 = bytes(cramjam.lz4.compress(body))
    for encoding, sent in (
        ("", body),
        ("gzip", gzip.compress(body)),
        ("zstd", zstandard.compress(body)),
        ("lz4", lz4),
    ):
        assert server.push(sent, {**PROTOBUF, "content-encoding": encoding}, path=PATH) == (204, ""), encoding
    assert server.rows() == STORED


def test_refusals_are_statuses(server: Server) -> None:
    for body, headers, status, words in (
        (b"{}", JSON, 422, "at least one valid stream"),
        (b"", PROTOBUF, 422, "at least one valid stream"),
        (b'{"resourceLogs":7}', JSON, 400, "resourceLogs"),
        (b"\x0a\xff", PROTOBUF, 400, "malformed protobuf"),
        (b"x", {**PROTOBUF, "content-encoding": "br"}, 400, "not supported"),
        (b"x", {**PROTOBUF, "content-encoding": "lz4"}, 400, "does not decompress"),
    ):
        code, answer = server.push(body, headers, path=PATH)
        ((number, message),) = fields(answer.encode(errors="surrogateescape"))
        assert (code, number) == (status, 2), answer
        assert isinstance(message, bytes)
        assert words in message.decode()
    old = example()
    old.resource_logs[0].scope_logs[0].log_records[0].time_unix_nano = 1
    code, answer = server.push(old.SerializeToString(), PROTOBUF, path=PATH)
    assert code == 400
    assert "timestamp too old" in answer
    assert server.rows() == []
