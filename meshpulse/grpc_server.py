"""What our gRPC services share: where they listen, TLS, tokens. Importing it costs 20 MB: only who listens pays."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from meshpulse.asgi import Scope
from meshpulse.auth import Guard
from meshpulse.config import ServerConfig, split_listen
from meshpulse.server import ListenRefusedError

_STATUS = {401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED}


class GrpcServer:
    """A port on which some services are served.

    Parameters
    ----------
    key : of the configuration that names the address
    harm : what everybody who reaches an open port could do
    message_bytes_max : of a received message
    """

    def __init__(self, key: str, harm: str, handlers: Iterable[grpc.GenericRpcHandler], message_bytes_max: int) -> None:
        self._key = key
        self._harm = harm
        options = [("grpc.max_receive_message_length", message_bytes_max), ("grpc.so_reuseport", 0)]
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers(tuple(handlers))

    async def start(self, listen: str, server: ServerConfig, *, open_to_all: bool) -> int:
        """Listen; the port.

        Parameters
        ----------
        server : whose TLS files hold here too
        open_to_all : whether it may be other than a loopback address: tokens are asked for, or somebody insists

        Raises
        ------
        ListenRefusedError
        """
        host, port = split_listen(listen)
        try:
            address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4][0]
            if not open_to_all and not ipaddress.ip_address(str(address).partition("%")[0]).is_loopback:
                raise ListenRefusedError(
                    f"refusing to listen on {listen} ({self._key}): everybody who reaches it could {self._harm}. "
                    "Configure auth.tokens, use a loopback address, or say --insecure"
                )
            where = f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"
            if server.tls_cert_file and server.tls_key_file:
                credentials = _credentials(server.tls_cert_file, server.tls_key_file, server.tls_client_ca_file)
                bound = self._server.add_secure_port(where, credentials)
            else:
                bound = self._server.add_insecure_port(where)
        except (OSError, RuntimeError) as error:
            raise ListenRefusedError(f"cannot listen on {listen} ({self._key}): {error}") from None
        await self._server.start()
        return int(bound)

    async def stop(self, grace_s: float) -> None:
        """Refuse new requests, let open ones finish."""
        await self._server.stop(grace_s)


async def admit(guard: Guard, path: str, context: Any) -> dict[str, str]:
    """End a call whose token is not for what a POST to ``path`` would do; its metadata otherwise."""
    metadata = [(key, _text(value)) for key, value in context.invocation_metadata() or ()]
    headers = [(key.encode(), value.encode("latin-1", "replace")) for key, value in metadata]
    scope: Scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    refusal = guard.refuse(scope)
    if refusal is not None:
        await context.abort(_STATUS[refusal.status], refusal.text)
    return dict(metadata)


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _credentials(cert: Path, key: Path, client_ca: Path | None) -> grpc.ServerCredentials:
    roots = client_ca.read_bytes() if client_ca else None
    pair = (key.read_bytes(), cert.read_bytes())
    return grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)
