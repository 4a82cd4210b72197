"""Logs of OpenTelemetry's own senders, unmodified: the SDK's exporters, HTTP and gRPC, and Envoy's access logger."""

from __future__ import annotations

import logging
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpExporter
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter
from opentelemetry.sdk.resources import Resource

from tests.e2e.server import Server
from tests.e2e.test_otlp import CONFIG, envoy_config, running_envoy, wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("otlp"), CONFIG) as running:
        yield running


@pytest.fixture(scope="module")
def grpc_port(server: Server) -> int:
    found = re.search(r"OTLP over gRPC.*port=(\d+)", server.log)
    assert found
    return int(found[1])


def found(server: Server, query: str) -> list[dict[str, Any]]:
    return server.get(f"/loki/api/v1/query_range?query={quote(query)}&limit=100").json()["data"]["result"]


def log_as(exporter: LogRecordExporter, service: str) -> None:
    """What an instrumented program does: Python's logging, handed on by the SDK."""
    provider = LoggerProvider(Resource({"service.name": service, "host.name": "node-7"}))
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
    logger = logging.Logger(service)
    logger.addHandler(LoggingHandler(logger_provider=provider))
    logger.warning("queue is %d deep", 7, extra={"http.status_code": 502})
    logger.error("broke")
    assert provider.force_flush()
    provider.shutdown()


def check(server: Server, service: str) -> None:
    warnings = found(server, f'{{service_name="{service}"}} | detected_level="warn"')
    assert [value[1] for stream in warnings for value in stream["values"]] == ["queue is 7 deep"]
    labels = warnings[0]["stream"]
    assert (labels["http_status_code"], labels["host_name"], labels["severity_text"]) == ("502", "node-7", "WARN")
    count = quote(f'sum(count_over_time({{service_name="{service}"}} | severity_number >= 17 [1h]))')
    (series,) = server.get(f"/loki/api/v1/query?query={count}").json()["data"]["result"]
    assert series["value"][1] == "1"


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_sdk_over_http(server: Server, compression: Compression) -> None:
    service = f"http-{compression.value}"
    log_as(HttpExporter(f"{server.url}/otlp/v1/logs", compression=compression), service)
    check(server, service)


def test_sdk_over_grpc(server: Server, grpc_port: int) -> None:
    endpoint = f"http://127.0.0.1:{grpc_port}"
    log_as(GrpcExporter(endpoint, insecure=True, compression=grpc.Compression.Gzip), "grpc")
    check(server, "grpc")


def access_logger() -> dict[str, Any]:
    name = "envoy.access_loggers.open_telemetry"
    kind = "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig"
    body = "%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE%"
    attributes = {"upstream.host": "%UPSTREAM_HOST%", "response.flags": "%RESPONSE_FLAGS%"}
    return {
        "name": name,
        "typed_config": {
            "@type": f"type.googleapis.com/{kind}",
            "common_config": {
                "log_name": "front",
                "transport_api_version": "V3",
                "buffer_flush_interval": "0.2s",
                "grpc_service": {"envoy_grpc": {"cluster_name": "meshpulse"}},
            },
            "body": {"string_value": body},
            "attributes": {"values": [{"key": k, "value": {"string_value": v}} for k, v in attributes.items()]},
            "resource_attributes": {"values": [{"key": "service.name", "value": {"string_value": "front"}}]},
        },
    }


def test_envoys_access_logger(server: Server, grpc_port: int, tmp_path: Path) -> None:
    config = envoy_config(server.port, grpc_port)
    del config["stats_sinks"]
    listener = config["static_resources"]["listeners"][0]
    listener["filter_chains"][0]["filters"][0]["typed_config"]["access_log"] = [access_logger()]
    with running_envoy(config, tmp_path) as front:
        url = f"{front}/-/healthy"
        for _ in range(3):
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert answer.status == 200
        query = f'{{service_name="front"}} | upstream_host="127.0.0.1:{server.port}"'
        wait_for(lambda: sum(len(stream["values"]) for stream in found(server, query)) == 3)
        lines = {value[1] for stream in found(server, query) for value in stream["values"]}
        assert lines == {"GET /-/healthy 200"}
        ages = [time.time_ns() - int(value[0]) for stream in found(server, query) for value in stream["values"]]
        assert all(0 <= age < 600 * 10**9 for age in ages)
