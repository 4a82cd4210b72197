"""OpenTelemetry's own senders, unmodified: the SDK's exporters over HTTP and gRPC, and a real Envoy's stat sink."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from meshpulse.demo.envoy import CLUSTER, bootstrap
from meshpulse.demo.processes import console_script
from meshpulse.otlp_grpc import METRICS_SERVICE
from tests.e2e.server import Server
from tests.ingest.test_otlp import Body

CONFIG = """
storage: {free_bytes_min: 0, free_fraction_min: 0}
otlp: {grpc_listen: "127.0.0.1:0", delta: true}
"""
PATH = f"/{METRICS_SERVICE}/Export"
DELTA = {Counter: AggregationTemporality.DELTA, Histogram: AggregationTemporality.DELTA}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("otlp"), CONFIG) as running:
        yield running


@pytest.fixture(scope="module")
def grpc_port(server: Server) -> int:
    found = re.search(r"OTLP over gRPC.*port=(\d+)", server.log)
    assert found
    return int(found[1])


def export(exporter: MetricExporter, service: str) -> None:
    """What an instrumented program does: a counter, a gauge and a histogram, exported twice."""
    resource = Resource({"service.name": service, "service.instance.id": "i-1", "host.arch": "amd64"})
    provider = MeterProvider([PeriodicExportingMetricReader(exporter, 3_600_000)], resource)
    meter = provider.get_meter("test")
    requests = meter.create_counter("http.requests", "{request}", "Requests taken.")
    latency = meter.create_histogram("http.latency", "s", explicit_bucket_boundaries_advisory=[0.1, 1.0])
    depth = meter.create_up_down_counter("queue.depth")
    for _ in range(2):
        requests.add(3, {"http.method": "GET"})
        latency.record(0.05)
        latency.record(5.0)
        depth.add(2)
        assert provider.force_flush()
        time.sleep(0.05)
    provider.shutdown()


def value(server: Server, query: str) -> float | None:
    found = server.query(query)
    return float(found[0]["value"][1]) if found else None


def check(server: Server, service: str) -> None:
    own = f'job="{service}",instance="i-1"'
    assert value(server, f'http_requests_total{{{own},http_method="GET"}}') == 6
    assert value(server, f"queue_depth{{{own}}}") == 4
    buckets = {r["metric"]["le"]: r["value"][1] for r in server.query(f"http_latency_seconds_bucket{{{own}}}")}
    assert buckets == {"0.1": "2", "1": "2", "+Inf": "4"}
    assert value(server, f"http_latency_seconds_sum{{{own}}}") == pytest.approx(10.1)
    assert value(server, f'target_info{{{own},host_arch="amd64"}}') == 1


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
@pytest.mark.parametrize("temporality", [None, DELTA], ids=["cumulative", "delta"])
def test_sdk_over_http(server: Server, compression: Compression, temporality: Any) -> None:
    service = f"http-{compression.value}-{'delta' if temporality else 'cumulative'}"
    url = f"{server.url}/api/v1/otlp/v1/metrics"
    export(HttpExporter(url, compression=compression, preferred_temporality=temporality), service)
    check(server, service)
    families = json.loads(server.get("/api/v1/metadata?metric=http_requests_total").body)["data"]
    assert families["http_requests_total"][0] == {"type": "counter", "help": "Requests taken.", "unit": "{request}"}


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_sdk_over_grpc(server: Server, grpc_port: int, compression: grpc.Compression) -> None:
    endpoint = f"http://127.0.0.1:{grpc_port}"
    export(GrpcExporter(endpoint, insecure=True, compression=compression), f"grpc-{compression.value}")
    check(server, f"grpc-{compression.value}")


def test_grpc_says_what_it_refuses(server: Server, grpc_port: int) -> None:
    body = Body(service__name="x")
    body.number("fine", 1, time.time_ns() // 1_000_000)
    body.metric("native").exponential_histogram.data_points.add(time_unix_nano=time.time_ns())
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        call = channel.unary_unary(PATH)
        answer = ExportMetricsServiceResponse.FromString(call(body.raw()))
        assert answer.partial_success.rejected_data_points == 1
        assert "exponential histograms are not supported: 1, first: native" in answer.partial_success.error_message
        assert call(b"") == b""
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\x0a\x7f")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as caught:
            call(body.raw(), metadata=(("x-scope-orgid", "nobody"),))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    metrics = server.get("/metrics").body.decode()
    assert re.search(rf'meshpulse_http_responses_total{{code="400",path="{PATH}"}} 2\.0', metrics)


def wait_for(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.2)
    return found


def envoy_config(upstream_port: int, otlp_port: int) -> dict[str, Any]:
    config = bootstrap("envoy-1", control_port=0, detectors={})
    upstream = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": upstream_port}}}}
    config["static_resources"]["clusters"] = [  # the demo's cluster, with an endpoint of its own
        {
            "name": CLUSTER,
            "type": "STATIC",
            "track_cluster_stats": {"per_endpoint_stats": True},
            "load_assignment": {"cluster_name": CLUSTER, "endpoints": [{"lb_endpoints": [upstream]}]},
        }
    ]
    detector = "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig"
    config["stats_flush_interval"] = "0.5s"
    config["stats_sinks"] = [
        {
            "name": "envoy.stat_sinks.open_telemetry",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.stat_sinks.open_telemetry.v3.SinkConfig",
                "grpc_service": {"envoy_grpc": {"cluster_name": "meshpulse"}},
                # the sink says nothing about the node by itself
                "resource_detectors": [
                    {
                        "name": "envoy.tracers.opentelemetry.resource_detectors.static_config",
                        "typed_config": {
                            "@type": f"type.googleapis.com/{detector}",
                            "attributes": {"service.name": "front", "service.instance.id": "envoy-1"},
                        },
                    }
                ],
            },
        }
    ]
    address = {"socket_address": {"address": "127.0.0.1", "port_value": otlp_port}}
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    config["static_resources"]["clusters"].append(
        {
            "name": "meshpulse",
            "type": "STATIC",
            "typed_extension_protocol_options": {
                options: {
                    "@type": f"type.googleapis.com/{options}",
                    "explicit_http_config": {"http2_protocol_options": {}},
                }
            },
            "load_assignment": {
                "cluster_name": "meshpulse",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
            },
        }
    )
    return config


def observers(server: Server) -> list[str]:
    """Who reports attempts on the demo's cluster, as the health API sees it."""
    answer = json.loads(server.get("/api/v1/health/observers", service=CLUSTER).body)
    return [row["observer"] for row in answer["data"]["observers"]] if answer["status"] == "success" else []


@contextlib.contextmanager
def running_envoy(config: dict[str, Any], folder: Path) -> Iterator[str]:
    """Run a real Envoy; ``http://HOST:PORT`` of its listener."""
    file = folder / "envoy.json"
    file.write_text(json.dumps(config))
    command = [
        console_script("envoy"), "-c", str(file), "--concurrency", "1", "--use-dynamic-base-id",
        "--admin-address-path", str(folder / "admin"), "-l", "warning",
    ]  # fmt: skip
    with (folder / "envoy.log").open("wb") as log:
        envoy = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
    try:
        admin = wait_for(lambda: (folder / "admin").exists() and (folder / "admin").read_text())

        def front() -> str | None:
            with urllib.request.urlopen(f"http://{admin}/listeners?format=json", timeout=5) as answer:
                listeners = json.load(answer).get("listener_statuses", [])
            address = listeners[0]["local_address"]["socket_address"] if listeners else {}
            return f"http://{address['address']}:{address['port_value']}" if address.get("port_value") else None

        yield wait_for(front)
    finally:
        envoy.terminate()
        envoy.wait(20)


def test_envoys_stat_sink(server: Server, grpc_port: int, tmp_path: Path) -> None:
    with running_envoy(envoy_config(server.port, grpc_port), tmp_path) as front:
        url = f"{front}/-/healthy"
        for _ in range(3):
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert answer.status == 200
        cluster = 'job="front",instance="envoy-1",envoy_cluster_name="checkout"'
        endpoint = f'{cluster},envoy_endpoint_address="127.0.0.1:{server.port}"'
        wait_for(lambda: value(server, f"cluster_endpoint_rq_success_total{{{endpoint}}}") == 3)
        assert value(server, f"cluster_endpoint_rq_total{{{endpoint}}}") == 3
        wait_for(lambda: observers(server) == ["envoy-1"])
        info = server.query('target_info{job="front"}')
        assert info[0]["metric"]["telemetry_sdk_name"] == "envoy"
        bucket = f'cluster_upstream_rq_time_bucket{{{cluster},le="+Inf"}}'

        def one_more_is_timed() -> float | None:
            """Envoy sends a histogram for an interval in which its workers recorded something."""
            with urllib.request.urlopen(url, timeout=5):
                return value(server, bucket)

        def answers() -> dict[str, str]:
            metrics = server.get("/metrics").body.decode()
            return dict(re.findall(rf'http_responses_total{{code="(\d+)",path="{PATH}"}} (\d+)', metrics))

        wait_for(one_more_is_timed)
        wait_for(lambda: int(answers()["200"]) > 3)
        assert "503" not in answers()


def test_grpc_asks_for_tokens(tmp_path: Path) -> None:
    secrets = {"write": "w" * 32, "read": "r" * 32}
    tokens = ", ".join(f"{{name: {role}, token: {secret}, roles: [{role}]}}" for role, secret in secrets.items())
    with Server(tmp_path, f"{CONFIG}auth: {{tokens: [{tokens}]}}\n") as guarded:
        found = re.search(r"OTLP over gRPC.*port=(\d+)", guarded.log)
        assert found
        body = Body(service__name="x")
        body.number("fine", 1, time.time_ns() // 1_000_000)
        with grpc.insecure_channel(f"127.0.0.1:{found[1]}") as channel:
            call = channel.unary_unary(PATH)

            def code(token: str) -> grpc.StatusCode:
                try:
                    call(body.raw(), metadata=(("authorization", f"Bearer {token}"),))
                except grpc.RpcError as error:
                    return error.code()
                return grpc.StatusCode.OK

            assert code(secrets["write"]) is grpc.StatusCode.OK
            assert code(secrets["read"]) is grpc.StatusCode.PERMISSION_DENIED
            assert code("x" * 32) is grpc.StatusCode.UNAUTHENTICATED
