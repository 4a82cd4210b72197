"""HTTP/1.1 under the ASGI application: uvicorn's httptools protocol, made for large request bodies.

uvicorn wakes the application for every piece of a body that the socket delivers, stops reading at 64 KiB and copies
the pieces into a growing buffer: 100 us for the 70 KB of a remote-write request. Here the application is woken once,
with the body's pieces joined once.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from typing import Any, cast

import httptools
from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from meshpulse.direct import Direct, DirectConnection, take_over

PIECE_BYTES = 256 << 10
"""Of a longer body the application gets pieces of about this size; reading stops until it asks for the next."""


class PiecesCycle(RequestResponseCycle):
    """One request and its response; ``pieces`` of the body as the parser delivered them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pieces: list[bytes] = []
        self.size = 0

    def take(self, piece: bytes) -> bool:
        """Keep a piece; whether it is time to stop reading."""
        self.pieces.append(piece)
        self.size += len(piece)
        if self.size < PIECE_BYTES:
            return False
        self.message_event.set()
        return True

    async def receive(self) -> ASGIReceiveEvent:
        """The next event (ASGI): the whole body in one, unless it is longer than ``PIECE_BYTES``."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            self.flow.resume_reading()
            await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        pieces, self.pieces, self.size = self.pieces, [], 0
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return {"type": "http.request", "body": body, "more_body": self.more_body}


class Protocol(HttpToolsProtocol):
    """One connection, without uvicorn's limit of connections, which the server does not use.

    A connection that sends pushes is handed to :class:`meshpulse.direct.Direct`, and comes back with the first
    request that is none.
    """

    def __init__(self, direct: Direct, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._direct = direct
        self._off_loop: DirectConnection | None = None
        self._is_between = True  # two requests, as far as they were read

    def data_received(self, data: bytes) -> None:
        """Called by the event loop with what has arrived."""
        if not (self._is_between and self._direct.has_room and self._leave(data)):
            super().data_received(data)

    def _leave(self, data: bytes) -> bool:
        """Go on off the event loop, if ``data`` begins a push and nothing else is on its way."""
        cycle = self.cycle
        transport = self.transport
        if (
            (cycle is not None and not cycle.response_complete)
            or self.scheme != "http"
            or self._direct.heads.find(data) is None
            or transport.is_closing()
            or transport.get_write_buffer_size()
        ):
            return False
        self._unset_keepalive_if_required()
        transport.pause_reading()
        connection = transport.get_extra_info("socket").dup()
        take_over(connection)
        self._off_loop = DirectConnection(
            connection, self._direct.heads, self._direct.targets, lambda: self.server_state.default_headers
        )
        self._direct.start(self._off_loop, data, self._return, self.loop)
        return True

    def _return(self, rest: bytes, is_over: bool) -> None:
        """Go on here with the bytes that were read and not served."""
        self._off_loop = None
        transport = self.transport
        if is_over or transport.is_closing():
            transport.close()
            return
        transport.resume_reading()
        super().data_received(rest)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop when the connection is closed."""
        if self._off_loop is not None:
            self._off_loop.abort()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Called by uvicorn: finish what is being served, then close."""
        if self._off_loop is not None:
            self._off_loop.end()
        else:
            super().shutdown()

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._is_between = False
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._is_between = True
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        """Called by the parser when a request's headers are there: start the application on it."""
        parser = self.parser
        version = parser.get_http_version()
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope = self.scope
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"] = urllib.parse.unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        if parser.should_upgrade() and self._should_upgrade():
            return  # data_received hands the connection to the WebSocket protocol
        before = self.cycle
        self.cycle = PiecesCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:  # pipelined: its turn comes after the response before it
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        """Called by the parser with a piece of the body."""
        cycle = cast(PiecesCycle | None, self.cycle)  # None on the way to a WebSocket
        if cycle is not None and not cycle.response_complete and cycle.take(body):
            self.flow.pause_reading()
