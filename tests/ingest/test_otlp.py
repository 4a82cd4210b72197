"""OTLP metrics: the receiver beside its plain twin, names, JSON, deltas, exemplars, refusals."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

from ingest.kernels.otlp import FACT_MISSES, accumulate
from ingest.otlp import OtlpReceiver
from ingest.otlp_json import to_protobuf
from ingest.otlp_names import label_name, metric_name, value_text
from ingest.reception import SampleWriter
from ingest.store import Metadata
from tests.ingest.fakes import NOW, FakeTenant, Server
from tests.reference import otlp as reference
from tsdb.batch import STALE_BITS
from tsdb.clock import ManualClock
from tsdb.errors import OverloadedError, RejectedError
from tsdb.limits import TimeLimits
from tsdb.tally import Tally

PATH = "/api/v1/otlp/v1/metrics"
MS = 1_000_000
PROTOBUF = "application/x-protobuf"
bits = reference.bits


def attributes(**pairs: Any) -> list[KeyValue]:
    out = []
    for key, value in pairs.items():
        kind = {str: "string_value", bool: "bool_value", int: "int_value"}[type(value)]
        out.append(KeyValue(key=key.replace("__", "."), value=AnyValue(**{kind: value})))
    return out


class Body:
    """A request under construction."""

    def __init__(self, **resource: Any) -> None:
        self.request = ExportMetricsServiceRequest()
        self.group = self.request.resource_metrics.add()
        self.group.resource.attributes.extend(attributes(**resource))
        self.scope = self.group.scope_metrics.add()

    def metric(self, name: str, unit: str = "", description: str = "") -> Metric:
        return self.scope.metrics.add(name=name, unit=unit, description=description)

    def number(self, name: str, value: float | int, ms: int = NOW, kind: str = "gauge", **labels: Any) -> Metric:
        metric = self.metric(name)
        data = getattr(metric, kind)
        if kind == "sum":
            data.aggregation_temporality, data.is_monotonic = 2, True
        point = data.data_points.add(time_unix_nano=ms * MS)
        if isinstance(value, int):
            point.as_int = value
        else:
            point.as_double = value
        point.attributes.extend(attributes(**labels))
        return metric

    def histogram(self, name: str, counts: list[int], bounds: list[float], total: float, ms: int = NOW) -> Metric:
        metric = self.metric(name, "s")
        metric.histogram.aggregation_temporality = 2
        metric.histogram.data_points.add(
            time_unix_nano=ms * MS, count=sum(counts), sum=total, bucket_counts=counts, explicit_bounds=bounds
        )
        return metric

    def raw(self) -> bytes:
        return self.request.SerializeToString()


class Beside:
    """A receiver beside the twin."""

    def __init__(self) -> None:
        self.tenant = FakeTenant()
        self.receiver = OtlpReceiver(SampleWriter(ManualClock(NOW), Tally(), TimeLimits(1 << 60, 1 << 60)))

    def check(self, body: bytes) -> None:
        self.tenant.stored.clear()
        self.tenant.newest = 0
        self.receiver.receive(self.tenant, body)
        wanted: dict[reference.Pairs, dict[int, int]] = {}
        rows = reference.parse(body)
        valid = [row for row in rows if any(name == "__name__" for name, _ in row[0])]
        for labels, ms, value in sorted(valid, key=lambda row: row[1]):
            wanted.setdefault(labels, {}).setdefault(ms, value)
        stored = self.tenant.series()
        assert {key: set(times) for key, times in stored.items()} == {key: set(t) for key, t in wanted.items()}
        once = {(labels, ms) for labels, ms, _ in valid if sum(r[:2] == (labels, ms) for r in valid) == 1}
        for labels, ms in once:
            assert stored[labels][ms] == wanted[labels][ms]


names = st.sampled_from(["http.server.duration", "requests", "9lives", "a..b__c", "size_total", "", "x:y", "zürich"])
units = st.sampled_from(["", "s", "ms", "By", "1", "%", "By/s"])
keys = st.sampled_from(
    ["service.name", "service.namespace", "service.instance.id", "a.b", "a_b", "_x", "__y", "1st", "k"]
)
values = st.sampled_from(["", "v", "w;x", True, False, 7, -(2**40)])
floats = st.floats() | st.sampled_from([0.0, 1.5, 1e-9, 250.0])


@st.composite
def key_values(draw: st.DrawFn) -> list[KeyValue]:
    pairs = draw(st.lists(st.tuples(keys, values), max_size=4, unique_by=lambda pair: pair[0]))
    out = []
    for key, value in pairs:
        kind = {str: "string_value", bool: "bool_value", int: "int_value"}[type(value)]
        out.append(KeyValue(key=key, value=AnyValue(**{kind: value})))
    return out


@st.composite
def metrics(draw: st.DrawFn) -> Metric:
    metric = Metric(name=draw(names), unit=draw(units), description=draw(st.sampled_from(["", "text"])))
    kind = draw(st.sampled_from(["gauge", "sum", "histogram", "summary", "exponential_histogram", ""]))
    if not kind:
        return metric
    data = getattr(metric, kind)
    if kind not in ("gauge", "summary"):
        data.aggregation_temporality = draw(st.sampled_from([2, 2, 2, 2, 0, 1]))
    if kind == "sum":
        data.is_monotonic = draw(st.booleans())
    for _ in range(draw(st.integers(0, 3))):
        point = data.data_points.add(time_unix_nano=draw(st.integers(0, 3)) * MS + draw(st.sampled_from([0, 999_999])))
        point.attributes.extend(draw(key_values()))
        point.flags = draw(st.sampled_from([0, 0, 0, 1, 2]))
        if kind in ("gauge", "sum"):
            if draw(st.booleans()):
                point.as_double = draw(floats)
            elif draw(st.booleans()):
                point.as_int = draw(st.integers(-(2**63), 2**63 - 1))
        elif kind != "exponential_histogram":
            point.count = draw(st.integers(0, 2**64 - 1))
            if kind == "summary" or draw(st.booleans()):
                point.sum = draw(floats)
        if kind == "histogram":
            point.bucket_counts.extend(draw(st.lists(st.integers(0, 2**50), max_size=4)))
            point.explicit_bounds.extend(draw(st.sampled_from([[], [0.005, 1.0], [-1.0, 2.5, 1e7], [1e-05]])))
        if kind == "summary":
            for quantile in draw(st.sampled_from([[], [0.5], [0.5, 0.99]])):
                point.quantile_values.add(quantile=quantile, value=draw(floats))
    return metric


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    request = ExportMetricsServiceRequest()
    for _ in range(draw(st.integers(0, 3))):
        group = request.resource_metrics.add()
        group.resource.attributes.extend(draw(key_values()))
        for _ in range(draw(st.integers(0, 2))):
            scope = group.scope_metrics.add()
            scope.scope.name = "scope"
            scope.metrics.extend(draw(st.lists(metrics(), max_size=3)))
    return request.SerializeToString()


@pytest.mark.kernel
@settings(max_examples=150, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=3))
def test_receiver_is_the_twin(bodies: list[bytes]) -> None:
    beside = Beside()
    for body in bodies + bodies:  # the second round meets known points and predictions
        beside.check(body)


@pytest.mark.kernel
@settings(max_examples=150, deadline=None)
@given(requests(), st.data())
def test_broken_bodies_never_crash(body: bytes, data: st.DataObject) -> None:
    beside = Beside()
    beside.check(body)
    broken = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        if broken:
            at = data.draw(st.integers(0, len(broken) - 1))
            broken[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, broken[at] ^ 1, 0x0A, 0x12, 0x3A]))
    cut = data.draw(st.integers(0, len(broken)))
    for bad in (bytes(broken), bytes(broken[:cut])):
        with contextlib.suppress(RejectedError):
            beside.receiver.receive(beside.tenant, bad)


@pytest.mark.kernel
def shrink(receiver: OtlpReceiver) -> None:
    """Leave the buffers of the next request room for one point."""
    scratch = receiver._scratch.take()
    scratch.set_room(1)
    receiver._scratch.give(scratch)


def test_known_points_take_no_python() -> None:
    beside = Beside()
    for round_ in range(3):
        body = Body(service__name="shop", service__instance__id="a", host__name="h")
        for i in range(30):
            body.number("cluster.endpoint.rq", i, NOW + round_, "sum", envoy__cluster_name=f"c{i}")
        body.histogram("latency", [1, 2, 3], [0.1, 1.0], 4.5, NOW + round_)
        beside.check(body.raw())
        scratch = beside.receiver._scratch.take()
        assert scratch.facts[FACT_MISSES] == (31 if round_ == 0 else 0)
        beside.receiver._scratch.give(scratch)


def test_a_full_table_begins_anew() -> None:
    tenant = FakeTenant()
    receiver = OtlpReceiver(SampleWriter(ManualClock(NOW), Tally()), keys_max=10, accept_delta=True)
    for round_ in range(4):
        body = Body(service__name="x")
        for i in range(6):
            body.number("m", 1, NOW + round_, i=i + 6 * (round_ // 2))
        metric = body.metric("jobs")
        metric.sum.aggregation_temporality = 1
        metric.sum.data_points.add(time_unix_nano=(NOW + round_) * MS, as_double=1.0)
        receiver.receive(tenant, body.raw())
    assert len(receiver._spellings_of(tenant.registry).keys) == 7
    assert tenant.series()[(("__name__", "jobs"), ("job", "x"))][NOW + 3] == bits(4.0)  # the totals stay


@settings(max_examples=200, deadline=None)
@pytest.mark.kernel
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(-2, 5), st.booleans(), st.sampled_from([0.5, 1.0, 2.0])), max_size=12
    )
)
def test_totals_are_their_twin(rows: list[tuple[int, int, bool, float]]) -> None:
    refs, ts_ms, delta, given_values = (np.array(column) for column in zip(*rows, strict=True)) if rows else ([],) * 4
    values = np.array(given_values, np.float64)
    stale = values == 2.0
    values.view(np.uint64)[stale] = STALE_BITS
    before = values.tolist()
    totals, newest, newest_ms = np.zeros(3), np.zeros(3), np.zeros(3, np.int64)
    keep = np.empty(len(rows), np.uint8)
    refused = accumulate(
        np.array(refs, np.uint32), np.array(ts_ms, np.int64), np.array(delta, np.uint8),
        values.view(np.uint64), values, totals, newest, newest_ms, keep,
    )  # fmt: skip
    wanted, kept = reference.accumulate(
        [(r, t, d and not s, v) for (r, t, d, _), s, v in zip(rows, stale, before, strict=True)]
    )
    assert keep.tolist() == kept
    assert refused == kept.count(0)
    for got, want, good, was in zip(values.tolist(), wanted, kept, stale, strict=True):
        assert not good or was or got == want


@pytest.mark.kernel
def test_outputs_grow() -> None:
    beside = Beside()
    shrink(beside.receiver)
    body = Body(service__name="shop")
    body.histogram("latency", [1] * 60, [float(i) for i in range(59)], 4.5)
    for i in range(20):
        body.number("m", i, i=i)
    for _ in range(2):
        beside.check(body.raw())
        shrink(beside.receiver)


@pytest.mark.parametrize(
    ("name", "unit", "counter", "gauge", "wanted"),
    [
        ("http.server.duration", "ms", True, False, "http_server_duration_milliseconds_total"),
        ("system.memory.usage", "By", False, True, "system_memory_usage_bytes"),
        ("a.total.b", "", True, False, "a_b_total"),
        ("cpu.utilization", "1", False, True, "cpu_utilization_ratio"),
        ("cpu.utilization", "1", False, False, "cpu_utilization"),
        ("disk.io", "By/s", False, True, "disk_io_bytes_per_second"),
        ("requests", "{requests}", True, False, "requests_total"),
        ("requests", "{requests}/m", False, True, "requests_per_minute"),
        ("latency_seconds", "s", False, False, "latency_seconds"),
        ("5xx", "", False, True, "_5xx"),
        ("odd..name  here", "foo bar", False, True, "odd_name_here_foo_bar"),
    ],
)
def test_metric_names(name: str, unit: str, counter: bool, gauge: bool, wanted: str) -> None:
    assert metric_name(name, unit, counter=counter, gauge=gauge) == wanted


def test_label_names_and_values() -> None:
    assert [label_name(key) for key in ("a.b", "9x", "_p", "__q", "ü")] == ["a_b", "key_9x", "key_p", "__q", "key_"]
    shown = [value_text(value) for value in ("s", True, 3, 2.5, 1e30, b"\x00\x01", [1, "a"], {"k": [b"x"]}, None)]
    assert shown == ["s", "true", "3", "2.5", "1" + "0" * 30, "AAE=", '[1,"a"]', '{"k":["eA=="]}', ""]
    assert (
        value_text({"k": ["\udcff", 1]}) == '{"k":["\udcff",1]}'
    )  # bytes that are no UTF-8: refused where it is stored


# -- over HTTP


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(accept_delta=False)
    yield server
    server.executor.shutdown()


@pytest.fixture
def adding() -> Iterator[Server]:
    server = Server(accept_delta=True)
    yield server
    server.executor.shutdown()


def push(server: Server, body: Body | bytes, content_type: str = PROTOBUF, **headers: str) -> tuple[int, str]:
    raw = body if isinstance(body, bytes) else body.raw()
    status, _, text = server.post(raw, path=PATH, content_type=content_type, **headers)
    return status, text


def shop() -> Body:
    body = Body(service__name="checkout", service__namespace="shop", service__instance__id="i-1", host__arch="amd64")
    body.number("http.requests", 5, kind="sum", http__method="GET").description = "Requests."
    body.histogram("http.latency", [2, 1, 1], [0.5, 1.0], 3.25)
    return body


def test_resource_identity_target_info_and_classic_buckets(server: Server) -> None:
    assert server.post(shop().raw(), path=PATH, content_type=PROTOBUF) == (
        200,
        {"content-type": PROTOBUF, "content-length": "0"},
        "",
    )
    own = (("instance", "i-1"), ("job", "shop/checkout"))
    stored = server.tenant.series()
    latency = "http_latency_seconds"
    assert {key: times[NOW] for key, times in stored.items()} == {
        (("__name__", "http_requests_total"), ("http_method", "GET"), *own): bits(5.0),
        (("__name__", f"{latency}_count"), *own): bits(4.0),
        (("__name__", f"{latency}_sum"), *own): bits(3.25),
        (("__name__", f"{latency}_bucket"), *own, ("le", "0.5")): bits(2.0),
        (("__name__", f"{latency}_bucket"), *own, ("le", "1")): bits(3.0),
        (("__name__", f"{latency}_bucket"), *own, ("le", "+Inf")): bits(4.0),
        (("__name__", "target_info"), ("host_arch", "amd64"), *own): bits(1.0),
    }
    assert server.tenant.metadata == [
        Metadata("http_requests_total", "counter", "Requests.", ""),
        Metadata(latency, "histogram", "", "s"),
        Metadata("target_info", "gauge", "Target metadata", ""),
    ]


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8"])
def test_json_means_the_same(server: Server, content_type: str) -> None:
    text = json.dumps(MessageToDict(shop().request)).encode()
    headers = {"content-type": "application/json", "content-length": "2"}
    assert server.post(text, path=PATH, content_type=content_type) == (200, headers, "{}")
    as_json = server.tenant.series()
    other = Server()
    assert push(other, shop())[0] == 200
    assert as_json == other.tenant.series()
    other.executor.shutdown()


@settings(max_examples=60, deadline=None)
@given(requests())
def test_json_of_any_request(body: bytes) -> None:
    request = ExportMetricsServiceRequest.FromString(body)
    again = to_protobuf(json.dumps(MessageToDict(request)).encode())
    nan = bits(float("nan"))  # JSON has but one NaN

    def plain(rows: list[reference.Row]) -> list[reference.Row]:
        return [(labels, ms, nan if value & (2**63 - 1) > bits(float("inf")) else value) for labels, ms, value in rows]

    assert plain(reference.parse(again)) == plain(reference.parse(body))


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{", b'{"resourceMetrics":{}}', b'{"resourceMetrics":[1]}', b"\xff",
     b'{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":5}]}]}]}',
     b'{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"gauge":{"dataPoints":[{"asInt":"x"}]}}]}]}]}'],
)  # fmt: skip
def test_bad_json_is_400(server: Server, text: bytes) -> None:
    status, answer = push(server, text, "application/json")
    assert (status, answer[:11]) == (400, "OTLP/JSON: ")


def test_types_and_encodings(server: Server) -> None:
    assert push(server, gzip.compress(shop().raw()), content_encoding="gzip")[0] == 200
    assert push(server, shop(), content_encoding="zstd")[0] == 400
    assert push(server, shop(), "text/plain")[0] == 400
    assert push(server, shop(), "")[0] == 400
    assert push(server, b"\x0a\x7f")[0] == 400
    assert push(server, b"") == (200, "")
    server.tenant.fail = OverloadedError("full")
    assert push(server, shop())[0] == 503


def test_what_a_busy_store_did_not_take_is_taken_when_it_is_repeated(server: Server) -> None:
    server.tenant.fail = OverloadedError("full")
    assert push(server, shop())[0] == 503
    server.tenant.fail = None
    server.tenant.metadata.clear()
    assert push(server, shop())[0] == 200
    assert len(server.tenant.series()) == 7
    assert len(server.tenant.metadata) == 3


def test_exponential_histograms_are_refused_by_name(server: Server) -> None:
    body = shop()
    metric = body.metric("native.latency", "s")
    metric.exponential_histogram.aggregation_temporality = 2
    metric.exponential_histogram.data_points.add(time_unix_nano=NOW * MS)
    status, text = push(server, body)
    assert status == 400
    assert text.splitlines()[1] == "exponential histograms are not supported: 1, first: native.latency"
    assert len(server.tenant.series()) == 7


def deltas(values: list[tuple[float, int]], flags: int = 0) -> Body:
    body = Body(service__name="x")
    metric = body.metric("jobs")
    metric.sum.aggregation_temporality, metric.sum.is_monotonic = 1, True
    for value, ms in values:
        metric.sum.data_points.add(time_unix_nano=ms * MS, as_double=value, flags=flags)
    return body


def test_deltas_are_refused_unless_enabled(server: Server) -> None:
    status, text = push(server, deltas([(1.0, NOW)]))
    assert status == 400
    assert "temporality are not accepted (otlp.delta): 1, first: jobs" in text
    assert not server.tenant.stored


def test_deltas_become_totals(adding: Server) -> None:
    key = (("__name__", "jobs_total"), ("job", "x"))
    for _ in range(2):  # repeated: the totals stay
        assert push(adding, deltas([(1.0, NOW), (2.0, NOW + 10)])) == (200, "") or _ == 1
    assert adding.tenant.series()[key] == {NOW: bits(1.0), NOW + 10: bits(3.0)}
    assert push(adding, deltas([(2.0, NOW + 10)])) == (200, "")
    status, text = push(adding, deltas([(5.0, NOW + 10), (4.0, NOW + 20)]))
    assert status == 400
    assert "out of order sample: 1" in text
    assert push(adding, deltas([(0.0, NOW + 30)], flags=1)) == (200, "")
    assert push(adding, deltas([(1.0, NOW + 40)])) == (200, "")
    assert adding.tenant.series()[key] == {
        NOW: bits(1.0), NOW + 10: bits(3.0), NOW + 20: bits(7.0), NOW + 30: STALE_BITS, NOW + 40: bits(8.0),
    }  # fmt: skip


def test_delta_histograms_add_up(adding: Server) -> None:
    for i in range(3):
        body = Body(service__name="x")
        body.histogram("h", [1, 2, 0], [1.0, 2.0], 2.5, NOW + i).histogram.aggregation_temporality = 1
        assert push(adding, body) == (200, "")
    last = {key[0][1] + dict(key).get("le", ""): times[NOW + 2] for key, times in adding.tenant.series().items()}
    assert last == {
        "h_seconds_count": bits(9.0), "h_seconds_sum": bits(7.5), "h_seconds_bucket1": bits(3.0),
        "h_seconds_bucket2": bits(9.0), "h_seconds_bucket+Inf": bits(9.0),
    }  # fmt: skip


def test_exemplars_go_to_their_bucket(server: Server) -> None:
    for i in range(2):  # the first time unknown, then known
        body = Body(service__name="x")
        point = body.histogram("h", [1, 2, 0], [1.0, 2.0], 2.5, NOW + i).histogram.data_points[0]
        one = point.exemplars.add(
            time_unix_nano=(NOW + i) * MS, as_double=1.5, trace_id=b"\xab" * 16, span_id=b"\xcd" * 8
        )
        one.filtered_attributes.extend(attributes(user__id=str(i)))
        counter = body.number("n", 3, NOW + i, "sum").sum.data_points[0]
        counter.exemplars.add(time_unix_nano=(NOW + i) * MS, as_int=3)
        assert push(server, body) == (200, "")
    registry = server.tenant.registry
    rows = server.tenant.exemplars.select(np.arange(len(registry), dtype=np.uint32), 0, NOW + 9, server.tenant.registry)
    assert rows is not None
    table = registry.label_table(rows.refs)
    shown = [(table.labels(i)["__name__"], table.labels(i).get("le"), rows.ts_ms[i] - NOW) for i in range(4)]
    assert shown == [
        ("h_seconds_bucket", "2", 0),
        ("h_seconds_bucket", "2", 1),
        ("n_total", None, 0),
        ("n_total", None, 1),
    ]
    ids = b"span_id\xff" + b"cd" * 8 + b"\xfftrace_id\xff" + b"ab" * 16
    assert rows.labels[:2] == [ids + b"\xffuser_id\xff0\xff", ids + b"\xffuser_id\xff1\xff"]
    assert rows.bits.tolist() == [bits(1.5), bits(1.5), bits(3.0), bits(3.0)]


def test_refused_series_are_named(server: Server) -> None:
    body = shop()
    body.number("", 1)
    body.number("ok", 1, **{"n" * 1100: "x"})
    for _ in range(2):
        status, text = push(server, body)
        assert status == 400
        assert text.startswith("2 of 9 samples refused")
        assert "series without a metric name: 1" in text
        assert "label name too long: 1" in text


def test_totals_go_on_when_the_tenant_numbers_its_series_anew() -> None:
    tenant = FakeTenant()
    refs = [tenant.registry.resolve({"__name__": f"m{i}"}) for i in range(4)]
    receiver = OtlpReceiver(SampleWriter(ManualClock(NOW), Tally()), accept_delta=True)
    before = receiver._spellings_of(tenant.registry)
    before.totals[refs] = [1.0, 2.0, 3.0, 4.0]
    before.newest_ms[refs] = [10, 20, 30, 40]
    tenant.forget([{"__name__": "m1"}, {"__name__": "m3"}])
    after = receiver._spellings_of(tenant.registry)
    assert after is not before
    assert after.totals[:3].tolist() == [2.0, 4.0, 0.0]
    assert after.newest_ms[:3].tolist() == [20, 40, 0]
