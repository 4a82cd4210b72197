"""HTTP/1.1 under the ASGI application: uvicorn's httptools protocol, made for large request bodies.

uvicorn wakes the application for every piece of a body that the socket delivers, stops reading at 64 KiB and copies
the pieces into a growing buffer: 100 us for the 70 KB of a remote-write request. Here the application is woken once,
with the body's pieces joined once.
"""

from __future__ import annotations

import asyncio
import functools
import time
import urllib.parse
from collections.abc import Collection
from enum import Enum, auto
from typing import Any, cast

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from meshpulse.direct import Direct, DirectConnection, take_over
from meshpulse.eager import first_step
from meshpulse.edge import (
    BODY_BYTES_A_SECOND_MIN,
    BODY_TIMEOUT,
    CHECK_S,
    HEADER_TIMEOUT,
    HEADER_TOO_LARGE,
    IDLE_S,
    MALFORMED,
    TOO_MANY_CONNECTIONS,
    Edge,
    Refusal,
    response_of,
)
from tsdb.errors import Reason

AT_ONCE = frozenset({"/api/v1/query"})
"""Paths whose GET is mostly answered without waiting for anything, by applications that look for no task."""

PIECE_BYTES = 256 << 10
"""Of a longer body the application gets pieces of about this size; reading stops until it asks for the next."""


class PiecesCycle(RequestResponseCycle):
    """One request and its response; ``pieces`` of the body as the parser delivered them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pieces: list[bytes] = []
        self.size = 0
        self._head = b""  # of a response, until its body comes

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

    async def send(self, message: ASGISendEvent) -> None:
        """Take a response event (ASGI); a head that tells a length is written with the body: one packet, not two.

        What is for a connection that has just been closed, of which nobody has told us yet, is dropped.
        """
        if self.transport.is_closing():
            self.disconnected = True
            self.message_event.set()
            return
        if self._is_begun_plainly(message) or self._is_ended_plainly(message):
            return
        if not self.response_started and not self.flow.write_paused:
            transport = self.transport
            self.transport = kept = _Writes()  # type: ignore[assignment]
            try:
                await super().send(message)  # waits for nothing: writing is not paused
            finally:
                self.transport = transport
            if self.expected_content_length and self.scope["method"] != "HEAD":
                self._head = kept.written
            elif kept.written:
                transport.write(kept.written)
            return
        if self._head and message["type"] == "http.response.body":
            body = message.get("body", b"")
            head, self._head = self._head, b""
            if len(body) > PIECE_BYTES:
                self.transport.write(head)
            else:
                self.expected_content_length += len(head)
                message = {**message, "body": head + body}
        await super().send(message)

    def _is_begun_plainly(self, message: ASGISendEvent) -> bool:
        """Whether this was a head of known length and nothing special, kept until its body comes."""
        if (
            self.response_started
            or message["type"] != "http.response.start"
            or not self.keep_alive
            or self.access_log
            or self.disconnected
            or self.flow.write_paused
            or self.scope["method"] != "GET"
        ):
            return False
        *fields, (name, length) = message.get("headers") or ((b"", b""),)
        if name != b"content-length" or not length.isdigit():
            return False
        head = plain_head(message["status"], (*self.default_headers, *fields))
        if head is None:
            return False
        self.response_started = True
        self.waiting_for_100_continue = False
        self.chunked_encoding = False
        self.expected_content_length = int(length)
        if self.expected_content_length:
            self._head = b"%bcontent-length: %b\r\n\r\n" % (head, length)
        else:
            self.transport.write(b"%bcontent-length: %b\r\n\r\n" % (head, length))
        return True

    def _is_ended_plainly(self, message: ASGISendEvent) -> bool:
        """Whether this was the whole body that a kept head has told of."""
        if not self._head or self.disconnected or message["type"] != "http.response.body" or message.get("more_body"):
            return False
        body = message.get("body", b"")
        if len(body) != self.expected_content_length or len(body) > PIECE_BYTES or not self.keep_alive:
            return False
        if self.flow.write_paused:
            return False
        self.transport.write(self._head + body)
        self._head = b""
        self.expected_content_length = 0
        self.response_complete = True
        self.message_event.set()
        self.on_response()
        return True


@functools.lru_cache(maxsize=64)
def plain_head(status: int, headers: tuple[tuple[bytes, bytes], ...]) -> bytes | None:
    """Status line and headers as uvicorn writes them, but for the end; None = not this simple, it is to check them.

    The date is one of them: a text lives for a second.
    """
    parts = [STATUS_LINE[status]]
    for name, value in headers:
        name = name.lower()
        if name in _SPECIAL_HEADERS or HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
            return None
        parts += (name, b": ", value, b"\r\n")
    return b"".join(parts)


_SPECIAL_HEADERS = frozenset({b"content-length", b"transfer-encoding", b"connection"})


class _Writes:
    """Stands in for a transport: keeps what is written."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.written += data


class _Reading(Enum):
    """What of a request a connection waits for."""

    NOTHING = auto()  # between two requests, as far as they were read
    HEAD = auto()
    BODY = auto()


class Protocol(HttpToolsProtocol):
    """One connection; its own bounds (:class:`meshpulse.edge.EdgeLimits`) stand in for uvicorn's timer and limit.

    A connection that sends pushes is handed to :class:`meshpulse.direct.Direct`, and comes back with the first
    request that is none.
    """

    def __init__(self, direct: Direct, edge: Edge, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._direct = direct
        self._edge = edge
        self._off_loop: DirectConnection | None = None
        self._reading = _Reading.NOTHING
        self._since = time.monotonic()  # when that began
        self._unread_bytes = 0  # that arrived since the last piece of a body: of a head, or of what follows a body
        self._body_bytes = 0
        self._refusal: Refusal | None = None  # told in place of the parser's error
        self._is_surplus = False
        self._unsent_bytes = 0  # of a response, when the connection was last looked at

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by the event loop with a new connection."""
        super().connection_made(transport)
        self._is_surplus = len(self.connections) > self._edge.connections_max  # it is told so when it asks

    def data_received(self, data: bytes) -> None:
        """Called by the event loop with what has arrived."""
        if self._is_surplus:
            self._refuse(TOO_MANY_CONNECTIONS)
        elif not (self._reading is _Reading.NOTHING and self._direct.has_room and self._leave(data)):
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > self._edge.limits.header_bytes_max and not self.transport.is_closing():
            self._refuse(HEADER_TOO_LARGE)

    def send_400_response(self, _msg: str) -> None:
        """Called when the parser has met an error, or one of its callbacks has raised one."""
        self._refuse(self._refusal or MALFORMED)

    def _refuse(self, refusal: Refusal) -> None:
        """Count and tell why, and close; nothing more of the connection is read."""
        self._edge.tally.add(refusal.reason)
        cycle = self.cycle
        is_next = cycle is None or cycle.response_complete  # the response that the client waits for is ours to write
        if self._reading is _Reading.BODY:
            is_next = not cycle.response_started and not self.pipeline
        if is_next:
            self.transport.write(response_of(refusal))
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # the application learns it, and is not waited for
            cycle.message_event.set()
        self.transport.close()

    def check(self, now: float) -> None:
        """End what takes too long; called by :func:`watch` with the monotonic time in seconds."""
        limits = self._edge.limits
        waited = now - self._since
        cycle = self.cycle
        is_answered = cycle is None or cycle.response_complete
        if self._off_loop is not None:
            if self._off_loop.end_late_body(now - limits.body_timeout_s):
                self._edge.tally.add(BODY_TIMEOUT.reason)
        elif self._reading is _Reading.BODY:
            more = 0.0 if is_answered else self._body_bytes / BODY_BYTES_A_SECOND_MIN
            if waited > limits.body_timeout_s + more and not self.flow.read_paused:
                self._refuse(BODY_TIMEOUT)
        elif self._is_stuck(waited):
            self._edge.tally.add(Reason.RESPONSE_TIMEOUT)
            self.transport.abort()
        elif self._reading is _Reading.HEAD:
            if is_answered and waited > limits.header_timeout_s:
                self._refuse(HEADER_TIMEOUT)
        elif is_answered and waited > (limits.header_timeout_s if self._is_surplus else IDLE_S):
            self.transport.close()

    def _is_stuck(self, waited: float) -> bool:
        """Whether the client has taken nothing of a response for too long."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent != self._unsent_bytes:
            self._unsent_bytes = unsent
            if unsent:
                self._since = time.monotonic()
            return False
        return waited > self._edge.limits.response_timeout_s

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
        self._since = time.monotonic()
        transport = self.transport
        if is_over or transport.is_closing():
            transport.close()
            return
        transport.resume_reading()
        self._feed(rest)

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
        self._reading, self._since = _Reading.HEAD, time.monotonic()
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._reading, self._since = _Reading.NOTHING, time.monotonic()
        self._unread_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Called when a response is sent: begin the next request that has arrived."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._reading is _Reading.NOTHING:
            self._since = time.monotonic()

    def on_headers_complete(self) -> None:
        """Called by the parser when a request's headers are there: start the application on it."""
        if self._unread_bytes > self._edge.limits.header_bytes_max and self._is_head_too_large():
            self._refusal = HEADER_TOO_LARGE
            raise ValueError(HEADER_TOO_LARGE.text)
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
        self._reading, self._since = _Reading.BODY, time.monotonic()
        self._body_bytes = 0
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

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if cycle.scope["path"] in AT_ONCE and cycle.scope["method"] == "GET":
            rest = first_step(cycle.run_asgi(app))
            if rest is not None:
                task = self.loop.create_task(rest)
                task.add_done_callback(self.tasks.discard)
                self.tasks.add(task)
        else:
            super()._start_asgi_task(cycle, app)

    def _is_head_too_large(self) -> bool:
        """Exactly: what arrived with it may be its body."""
        size = len(self.url) + sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)
        return size > self._edge.limits.header_bytes_max

    def on_body(self, body: bytes) -> None:
        """Called by the parser with a piece of the body."""
        self._unread_bytes = 0
        self._body_bytes += len(body)
        cycle = cast(PiecesCycle | None, self.cycle)  # None on the way to a WebSocket
        if cycle is not None and not cycle.response_complete and cycle.take(body):
            self.flow.pause_reading()


async def watch(connections: Collection[object], every_s: float = CHECK_S) -> None:
    """Look through all connections until cancelled; other protocols (WebSockets) look after themselves."""
    while True:
        await asyncio.sleep(every_s)
        now = time.monotonic()
        for connection in list(connections):
            if isinstance(connection, Protocol):
                connection.check(now)
