"""The health part over gRPC: endpoints for proxies (EDS, ADS), and their load reports (LRS)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import structlog

from health.adapters.grpc_eds import METHODS
from health.adapters.lrs import METHOD as LRS_METHOD
from health.adapters.lrs import SERVICE as LRS_SERVICE
from health.adapters.rest_eds import PATH as EDS_PATH
from meshpulse.auth import Guard
from meshpulse.grpc_server import GrpcServer, admit
from meshpulse.health import HealthParts
from meshpulse.runtime import Runtime
from tsdb.errors import RejectedError, UnavailableError

log = structlog.get_logger(__name__)

_WRITE_PATH = "/api/v1/write"
"""A load report needs the same role as any push."""

_Serve = Callable[[HealthParts], Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]]


class HealthGrpcServer:
    """Serves proxies on a port of its own.

    Parameters
    ----------
    runtime : what is behind it; until it is open, streams are ended with UNAVAILABLE, and proxies try again
    guard : checks tokens, in the metadata ``authorization``: role ``read`` for endpoints, ``write`` for load reports
    """

    def __init__(self, runtime: Runtime, guard: Guard) -> None:
        self._runtime = runtime
        self._guard = guard
        handlers = [
            self._handler(service, method, EDS_PATH, lambda parts: parts.grpc_eds.serve)
            for service, method in METHODS.items()
        ]
        handlers.append(self._handler(LRS_SERVICE, LRS_METHOD, _WRITE_PATH, lambda parts: parts.loads.serve))
        limit = runtime.config.limits.ingest.decoded_bytes_max
        self._server = GrpcServer("health.grpc_listen", "read endpoints and report loads", handlers, limit)

    async def start(self, *, open_to_all: bool) -> None:
        """Listen.

        Raises
        ------
        ListenRefusedError
        """
        config = self._runtime.config
        port = await self._server.start(config.health.grpc_listen, config.server, open_to_all=open_to_all)
        log.info("listening for xDS over gRPC", port=port)

    async def stop(self, grace_s: float) -> None:
        """Refuse new streams, let open ones say their last word."""
        await self._server.stop(grace_s)

    def _handler(self, service: str, method: str, path: str, of: _Serve) -> grpc.GenericRpcHandler:
        async def stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            await admit(self._guard, path, context)
            parts = self._runtime.parts
            if parts is None or parts.health is None:
                await context.abort(grpc.StatusCode.UNAVAILABLE, self._runtime.progress.describe())
                raise AssertionError("abort raises")
            try:
                async for answer in of(parts.health)(requests):
                    yield answer
            except RejectedError as error:
                self._runtime.tally.add(error.reason)
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:1000])
            except UnavailableError as error:
                self._runtime.tally.add(error.reason)
                await context.abort(grpc.StatusCode.UNAVAILABLE, str(error)[:1000])

        # bytes in, bytes out
        handlers = {method: grpc.stream_stream_rpc_method_handler(stream)}
        return grpc.method_handlers_generic_handler(service, handlers)
