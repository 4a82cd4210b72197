"""OTLP over gRPC, metrics and logs: ``MetricsService/Export`` and ``LogsService/Export`` on a port of their own."""

from __future__ import annotations

import functools
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog

from ingest.otlp_json import partial_success
from meshpulse.auth import Guard
from meshpulse.config import split_listen
from meshpulse.runtime import Parts, Runtime
from tsdb.db import DEFAULT_TENANT
from tsdb.errors import RejectedError, UnavailableError

log = structlog.get_logger(__name__)

METRICS_SERVICE = "opentelemetry.proto.collector.metrics.v1.MetricsService"
LOGS_SERVICE = "opentelemetry.proto.collector.logs.v1.LogsService"
_HTTP_PATHS = {METRICS_SERVICE: "/api/v1/otlp/v1/metrics", LOGS_SERVICE: "/otlp/v1/logs"}
"""The same over HTTP: what a token needs for one, it needs for the other."""

_STATUS = {401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED}


_Take = Callable[[Parts, str, bytes], Awaitable[tuple[int, str]]]


class OtlpGrpcError(Exception):
    """The address would be open to others, or cannot be bound."""


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
        limits = runtime.config.limits
        limit = max(limits.ingest.decoded_bytes_max, limits.logs.decoded_bytes_max)
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", limit), ("grpc.so_reuseport", 0)])
        for service, take in ((METRICS_SERVICE, _take_metrics), (LOGS_SERVICE, _take_logs)):
            export = functools.partial(self._export, service, take)
            method = grpc.unary_unary_rpc_method_handler(export)  # bytes in, bytes out: the kernels read them
            handlers = grpc.method_handlers_generic_handler(service, {"Export": method})
            self._server.add_generic_rpc_handlers((handlers,))

    async def start(self, listen: str, *, open_to_all: bool) -> int:
        """Listen; the port.

        Parameters
        ----------
        open_to_all : whether it may be other than a loopback address: tokens are asked for, or somebody insists

        Raises
        ------
        OtlpGrpcError
        """
        host, port = split_listen(listen)
        try:
            address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4][0]
            if not open_to_all and not ipaddress.ip_address(str(address).partition("%")[0]).is_loopback:
                raise OtlpGrpcError(
                    f"refusing to listen on {listen} (otlp.grpc_listen): everybody who reaches it could write. "
                    "Configure auth.tokens, use a loopback address, or say --insecure"
                )
            where = f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"
            server = self._runtime.config.server
            if server.tls_cert_file and server.tls_key_file:
                credentials = _credentials(server.tls_cert_file, server.tls_key_file, server.tls_client_ca_file)
                bound = self._server.add_secure_port(where, credentials)
            else:
                bound = self._server.add_insecure_port(where)
        except (OSError, RuntimeError) as error:
            raise OtlpGrpcError(f"cannot listen on {listen} (otlp.grpc_listen): {error}") from None
        await self._server.start()
        log.info("listening for OTLP over gRPC", port=bound)
        return int(bound)

    async def stop(self, grace_s: float) -> None:
        """Refuse new requests, let open ones finish."""
        await self._server.stop(grace_s)

    async def _export(self, service: str, take: _Take, request: bytes, context: Any) -> bytes:
        metadata = [(key.encode(), _bytes(value)) for key, value in context.invocation_metadata() or ()]
        scope = {"type": "http", "method": "POST", "path": _HTTP_PATHS[service], "headers": metadata}
        refusal = self._guard.refuse(scope)
        if refusal is not None:
            await context.abort(_STATUS[refusal.status], refusal.text)
        parts = self._runtime.parts
        if parts is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self._runtime.progress.describe())
            raise AssertionError("abort raises")
        tenant = dict(metadata).get(b"x-scope-orgid", b"").decode("latin-1") or DEFAULT_TENANT
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


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _credentials(cert: Path, key: Path, client_ca: Path | None) -> grpc.ServerCredentials:
    roots = client_ca.read_bytes() if client_ca else None
    pair = (key.read_bytes(), cert.read_bytes())
    return grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)
