"""OTLP over gRPC, metrics and logs: ``MetricsService/Export`` and ``LogsService/Export`` on a port of their own."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog

from ingest.otlp_json import partial_success
from meshpulse.auth import Guard
from meshpulse.grpc_server import GrpcServer, admit
from meshpulse.runtime import Parts, Runtime
from tsdb.db import DEFAULT_TENANT
from tsdb.errors import RejectedError, UnavailableError

log = structlog.get_logger(__name__)

METRICS_SERVICE = "opentelemetry.proto.collector.metrics.v1.MetricsService"
LOGS_SERVICE = "opentelemetry.proto.collector.logs.v1.LogsService"
_HTTP_PATHS = {METRICS_SERVICE: "/api/v1/otlp/v1/metrics", LOGS_SERVICE: "/otlp/v1/logs"}
"""The same over HTTP: what a token needs for one, it needs for the other."""

_Take = Callable[[Parts, str, bytes], Awaitable[tuple[int, str]]]


class OtlpGrpcServer:
    """Takes the same requests as the two paths over HTTP, with the same limits and tokens.

    Parameters
    ----------
    runtime : what is behind it; until it is open, requests are answered UNAVAILABLE
    guard : checks tokens, in the metadata ``authorization``
    """

    def __init__(self, runtime: Runtime, guard: Guard) -> None:
        self._runtime = runtime
        self._guard = guard
        handlers = []
        for service, take in ((METRICS_SERVICE, _take_metrics), (LOGS_SERVICE, _take_logs)):
            export = functools.partial(self._export, service, take)
            method = grpc.unary_unary_rpc_method_handler(export)  # bytes in, bytes out: the kernels read them
            handlers.append(grpc.method_handlers_generic_handler(service, {"Export": method}))
        limits = runtime.config.limits
        limit = max(limits.ingest.decoded_bytes_max, limits.logs.decoded_bytes_max)
        self._server = GrpcServer("otlp.grpc_listen", "write", handlers, limit)

    async def start(self, *, open_to_all: bool) -> None:
        """Listen.

        Raises
        ------
        ListenRefusedError
        """
        config = self._runtime.config
        port = await self._server.start(config.otlp.grpc_listen, config.server, open_to_all=open_to_all)
        log.info("listening for OTLP over gRPC", port=port)

    async def stop(self, grace_s: float) -> None:
        """Refuse new requests, let open ones finish."""
        await self._server.stop(grace_s)

    async def _export(self, service: str, take: _Take, request: bytes, context: Any) -> bytes:
        metadata = await admit(self._guard, _HTTP_PATHS[service], context)
        parts = self._runtime.parts
        if parts is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self._runtime.progress.describe())
            raise AssertionError("abort raises")
        tenant = metadata.get("x-scope-orgid", "") or DEFAULT_TENANT
        responses = parts.push_api.stats.responses
        path = f"/{service}/Export"
        try:
            refused, text = await take(parts, tenant, request)
        except RejectedError as error:
            self._runtime.tally.add(error.reason)
            responses[path, 400] += 1
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:1000])
            raise AssertionError("abort raises") from error
        except UnavailableError as error:
            self._runtime.tally.add(error.reason)
            responses[path, 503] += 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            raise AssertionError("abort raises") from error
        responses[path, 200] += 1
        return partial_success(refused, text) if text else b""


async def _take_metrics(parts: Parts, tenant: str, request: bytes) -> tuple[int, str]:
    """How many data points were refused, and why."""
    reception, result = await parts.push_api.take(parts.otlp.receive, tenant, request)
    return sum(reception.refusals.counts.values()), reception.refused(result)


async def _take_logs(parts: Parts, tenant: str, request: bytes) -> tuple[int, str]:
    """How many records were refused, and why."""
    received = await parts.loki_push_api.otlp(tenant, request)
    return sum(received.refusals.reasons.values()), received.refusals.text()
