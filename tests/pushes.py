"""One good body of each push protocol, with everything in it that the protocol has; for tests that damage bodies."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cramjam
import zstandard
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from tests.ingest import bodies
from tests.ingest.bodies import snappy
from tests.ingest.bodies_v2 import TYPE as V2_TYPE
from tests.ingest.bodies_v2 import Body as V2Body
from tests.reference.loki import push_request

SERIES = 12
"""Series, or log entries, of each body."""


@dataclass(frozen=True)
class Push:
    """How a sender pushes.

    Attributes
    ----------
    plain : milliseconds now -> the body as its parser reads it
    pack : compresses it as ``headers`` say
    """

    path: str
    headers: Mapping[str, str]
    plain: Callable[[int], bytes]
    pack: Callable[[bytes], bytes]

    @property
    def is_packed(self) -> bool:
        """Whether a body that is cut off can be told from a whole one."""
        return self.pack is not bytes

    def body(self, now_ms: int) -> bytes:
        """A whole request body."""
        return self.pack(self.plain(now_ms))


def remote_write(now_ms: int) -> bytes:
    out = bodies.metadata(1, "pushed_total", "Pushes.", "")
    for i in range(SERIES):
        labels = {"__name__": "pushed_total", "job": "v1", "i": str(i), "path": "/zürich" * (i % 3)}
        out += bodies.series(labels, [(float(i), now_ms - 1000), (float(i), now_ms)])
    return out


def remote_write_2(now_ms: int) -> bytes:
    body = V2Body()
    trace = body.exemplar([("trace_id", "ab" * 16)], 0.25, now_ms)
    for i in range(SERIES):
        labels = {"__name__": "pushed_total", "job": "v2", "i": str(i)}
        body.add(labels, [(float(i), now_ms)], *([trace] if i % 4 == 0 else []), metadata=(1, "Pushes.", ""))
    return body.raw()


def text(now_ms: int) -> bytes:
    lines = ["# HELP pushed Pushes \\n of text.", "# TYPE pushed gauge"]
    lines += [f'pushed{{job="text",i="{i}",odd="a\\"\\\\b"}} {i / 3!r} {now_ms}' for i in range(SERIES)]
    return "\n".join([*lines, ""]).encode()


def attribute(key: str, depth: int) -> KeyValue:
    value = AnyValue(string_value="deep")
    for _ in range(depth):
        value = AnyValue(array_value=ArrayValue(values=[value, AnyValue(int_value=-1)]))
        value = AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="in", value=value)]))
    return KeyValue(key=key, value=value)


def otlp_metrics(now_ms: int) -> ExportMetricsServiceRequest:
    request = ExportMetricsServiceRequest()
    group = request.resource_metrics.add()
    group.resource.attributes.extend([attribute("service.name", 0), attribute("nested", 4)])
    scope = group.scope_metrics.add()
    at = now_ms * 1_000_000
    for i in range(SERIES - 2):
        point = scope.metrics.add(name=f"pushed.otlp.{i % 3}", unit="By").gauge.data_points.add(time_unix_nano=at)
        point.as_double = i / 3
        point.attributes.extend([KeyValue(key="i", value=AnyValue(int_value=i)), attribute("deep", 2)])
    histogram = scope.metrics.add(name="pushed.seconds", unit="s").histogram
    histogram.aggregation_temporality = 2
    one = histogram.data_points.add(
        time_unix_nano=at, count=6, sum=1.5, bucket_counts=[1, 2, 3], explicit_bounds=[0.1, 1.0]
    )
    one.exemplars.add(time_unix_nano=at, as_double=0.05, trace_id=bytes(16), span_id=bytes(8))
    summary = scope.metrics.add(name="pushed.summary").summary.data_points.add(time_unix_nano=at, count=2, sum=3.0)
    summary.quantile_values.add(quantile=0.9, value=1.0)
    return request


def otlp_json(now_ms: int) -> bytes:
    points = [
        {"timeUnixNano": str(now_ms * 1_000_000), "asDouble": i / 3, "attributes": [_json_attribute(i)]}
        for i in range(SERIES)
    ]
    metric = {"name": "pushed.json", "unit": "1", "gauge": {"dataPoints": points}}
    group = {"resource": {"attributes": [_json_attribute(0)]}, "scopeMetrics": [{"metrics": [metric]}]}
    return json.dumps({"resourceMetrics": [group]}).encode()


def _json_attribute(i: int) -> dict[str, object]:
    return {"key": "i", "value": {"arrayValue": {"values": [{"intValue": str(i)}, {"stringValue": "é"}]}}}


def loki(now_ms: int) -> bytes:
    at = now_ms * 1_000_000
    entries = [(at + i, b"level=info line %d \xff" % i, {"trace_id": f"{i:x}"} if i % 3 else {}) for i in range(SERIES)]
    return push_request(
        [('{app="pushed", job="loki"}', entries[:5]), ("{app='pushed'}".replace("'", '"'), entries[5:])]
    )


def loki_json(now_ms: int) -> bytes:
    at = now_ms * 1_000_000
    values = [[str(at + i), f"line {i} é", {"trace_id": f"{i:x}"}] for i in range(SERIES)]
    return json.dumps({"streams": [{"stream": {"app": "pushed", "job": "json"}, "values": values}]}).encode()


def otlp_logs(now_ms: int) -> bytes:
    request = ExportLogsServiceRequest()
    group = request.resource_logs.add()
    group.resource.attributes.extend([attribute("service.name", 0), attribute("nested", 3)])
    scope = group.scope_logs.add()
    for i in range(SERIES):
        record = scope.log_records.add(time_unix_nano=now_ms * 1_000_000 + i, severity_number=9, trace_id=bytes(16))
        record.body.string_value = f"line {i}"
        record.attributes.append(attribute("deep", i % 3))
    return request.SerializeToString()


def lz4(plain: bytes) -> bytes:
    return bytes(cramjam.lz4.compress(plain))


def zstd(plain: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(plain)


_PROTOBUF = {"Content-Type": "application/x-protobuf"}
_JSON = {"Content-Type": "application/json"}
_SNAPPY = {"Content-Encoding": "snappy"}
_GZIP = {"Content-Encoding": "gzip"}
_OTLP, _LOKI, _OTLP_LOGS = "/api/v1/otlp/v1/metrics", "/loki/api/v1/push", "/otlp/v1/logs"


def _otlp(now_ms: int) -> bytes:
    return otlp_metrics(now_ms).SerializeToString()


PUSHES: Mapping[str, Push] = {
    "remote-write 1.0": Push("/api/v1/write", {**_PROTOBUF, **_SNAPPY}, remote_write, snappy),
    "remote-write 2.0": Push("/api/v1/write", {"Content-Type": V2_TYPE, **_SNAPPY}, remote_write_2, snappy),
    "text": Push("/api/v1/import/prometheus", {}, text, bytes),
    "text gzip": Push("/api/v1/import/prometheus", _GZIP, text, gzip.compress),
    "OTLP": Push(_OTLP, _PROTOBUF, _otlp, bytes),
    "OTLP gzip": Push(_OTLP, {**_PROTOBUF, **_GZIP}, _otlp, gzip.compress),
    "OTLP JSON": Push(_OTLP, {**_JSON, **_GZIP}, otlp_json, gzip.compress),
    "Loki": Push(_LOKI, _PROTOBUF, loki, snappy),
    "Loki JSON": Push(_LOKI, _JSON, loki_json, bytes),
    "Loki JSON gzip": Push(_LOKI, {**_JSON, **_GZIP}, loki_json, gzip.compress),
    "Loki JSON deflate": Push(_LOKI, {**_JSON, "Content-Encoding": "deflate"}, loki_json, zlib.compress),
    "OTLP logs": Push(_OTLP_LOGS, {**_PROTOBUF, **_GZIP}, otlp_logs, gzip.compress),
    "OTLP logs zstd": Push(_OTLP_LOGS, {**_PROTOBUF, "Content-Encoding": "zstd"}, otlp_logs, zstd),
    "OTLP logs lz4": Push(_OTLP_LOGS, {**_PROTOBUF, "Content-Encoding": "lz4"}, otlp_logs, lz4),
}
"""What is pushed, by name."""
