"""Writing connections served past the event loop: a thread each reads, parses, commits and answers.

A request on the event loop costs its wake-ups, a task, and two hand-overs between threads that wait for the
interpreter: 150 us of CPU for a remote-write request, as much as parsing it. A sender that pushes keeps its connection
and repeats its headers, so the connection is taken off the loop (:class:`meshpulse.protocol.Protocol`) and read here
with plain blocking calls. What is not such a request, byte by byte, goes back to the loop with the bytes read so far.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from ingest.api import Answer, DisconnectedError, PushRequest, push_request
from meshpulse.asgi import Scope
from meshpulse.edge import BODY_TIMEOUT, IDLE_S, response_of
from meshpulse.rounds import Rounds, Steps

HEAD_BYTES_MAX = 8192
HEADS_MAX = 256
"""Most spellings of a head that are remembered: senders are few."""
LENGTH_MAX = 1 << 20
"""Longer bodies are read piece by piece on the event loop, where a limit can refuse them half way."""
CONNECTIONS_MAX = 64

_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]{1,9})\r\n")
_PLAIN = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"connection", b"te", b"trailer"})


class Target(NamedTuple):
    """What serves a path, ``path`` being what it is called inside."""

    path: str
    serve: Callable[[str, PushRequest, int, Callable[[], bytes]], Answer]
    refuses: Callable[[Scope], object]  # not None: the request is not let through
    rounds: Steps | None = None  # serves it in steps, together with others (:mod:`meshpulse.rounds`)


class Head(NamedTuple):
    """A request's head: everything before the body."""

    path: str
    request: PushRequest
    size: int
    length: int  # of the body


class _Collector:
    """What httptools finds in a head."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True


class Heads:
    """Recognises the heads of pushes that need nothing of HTTP but a body of known length.

    A head is parsed once; after that it is known by its bytes, all but the digits of its Content-Length.

    Parameters
    ----------
    targets : path -> what serves it
    """

    def __init__(self, targets: Mapping[str, Target]) -> None:
        self._targets = targets
        self._known: dict[bytes, tuple[str, PushRequest] | None] = {}

    def find(self, data: bytes) -> Head | None:
        """The head at the begin of ``data``; None when it is for the event loop."""
        if not data.startswith(b"POST "):
            return None
        end = data.find(b"\r\n\r\n", 0, HEAD_BYTES_MAX)
        if end < 0:
            return None
        size = end + 4
        match = _LENGTH.search(data, 0, size)
        if match is None or int(match[1]) > LENGTH_MAX:
            return None
        spelling = data[: match.start(1)] + data[match.end(1) : size]
        if spelling not in self._known:
            if len(self._known) >= HEADS_MAX:
                self._known.clear()
            self._known[spelling] = self._parse(data[:size])
        known = self._known[spelling]
        return None if known is None else Head(*known, size, int(match[1]))

    def _parse(self, head: bytes) -> tuple[str, PushRequest] | None:
        found = _Collector()
        parser = httptools.HttpRequestParser(found)
        try:
            parser.feed_data(head)
            url = httptools.parse_url(found.url)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return None
        path = url.path.decode("latin-1")
        target = self._targets.get(path)
        names = [name for name, _ in found.headers]
        if (
            not found.complete
            or target is None
            or parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or not parser.should_keep_alive()
            or names.count(b"content-length") != 1
            or not _PLAIN.isdisjoint(names)
        ):
            return None
        scope = {"type": "http", "method": "POST", "path": target.path, "headers": found.headers}
        if target.refuses(scope) is not None:
            return None
        return path, push_request(found.headers, url.query or b"")


class _Body:
    """The body of a request, of which some bytes have come with the head.

    Attributes
    ----------
    since : monotonic time since when the rest is waited for
    """

    __slots__ = ("_connection", "_left", "_parts", "since")

    def __init__(self, connection: socket.socket, begin: bytes, length: int) -> None:
        self._connection = connection
        self._parts = [begin] if begin else []
        self._left = length - len(begin)
        self.since: float | None = None

    def read(self) -> bytes:
        """All of it, the first time.

        Raises
        ------
        DisconnectedError        the sender went away
        """
        parts, self._parts = self._parts, []
        if self._left:
            self.since = time.monotonic()
        while self._left:
            try:
                part = self._connection.recv(self._left, socket.MSG_WAITALL)
            except OSError as error:
                raise DisconnectedError from error
            if not part:
                raise DisconnectedError
            parts.append(part)
            self._left -= len(part)
        self.since = None
        return parts[0] if len(parts) == 1 else b"".join(parts)


class DirectConnection:
    """One connection while it is off the event loop.

    Parameters
    ----------
    connection : in blocking mode, owned from now on
    heads, targets : what is served
    default_headers : uvicorn's, as they are now
    """

    def __init__(
        self,
        connection: socket.socket,
        heads: Heads,
        targets: Mapping[str, Target],
        default_headers: Callable[[], Sequence[tuple[bytes, bytes]]],
    ) -> None:
        self._connection = connection
        self._heads = heads
        self._targets = targets
        self._default_headers = default_headers
        self._lock = threading.Lock()
        self._is_busy = False
        self._is_ending = False
        self._is_late = False
        self._body: _Body | None = None
        self._since: float | None = None  # a body is waited for, without a thread of its own

    def serve(self, data: bytes) -> tuple[bytes, bool]:
        """Serve requests, of which ``data`` is the begin of the first, until one is none of ours.

        Returns
        -------
        bytes that were read and not served, and whether the connection is over
        """
        connection = self._connection
        try:
            while True:
                head = self._heads.find(data)
                if head is None or len(data) > head.size + head.length:
                    return data, False
                self.begin()
                target = self._targets[head.path]
                self._body = body = _Body(connection, data[head.size :], head.length)
                answer = target.serve(target.path, head.request, head.length, body.read)
                body.read()  # refused before it was read: the next request begins behind it
                if self.answer(answer):
                    return b"", True
                data = connection.recv(HEAD_BYTES_MAX)
                if not data:
                    return b"", True
        except (OSError, DisconnectedError):  # reset, idle for too long, or a body that does not come
            self.say_late()
            return b"", True

    # -- the steps of it, for a thread that serves many

    def fileno(self) -> int:
        """The descriptor."""
        return self._connection.fileno()

    def find(self, data: bytes | memoryview) -> tuple[Head, Target] | None:
        """The head at the begin of ``data`` and what serves it; None when it is for the event loop."""
        head = self._heads.find(bytes(data[:HEAD_BYTES_MAX]))
        return None if head is None else (head, self._targets[head.path])

    def receive(self, buffer: memoryview) -> int:
        """Read what is there; 0 at the end, ``BlockingIOError`` when there is nothing."""
        return self._connection.recv_into(buffer, len(buffer), socket.MSG_DONTWAIT)

    def begin(self) -> None:
        """A request has begun: :meth:`end` lets it finish."""
        with self._lock:
            self._is_busy = True

    def wait_for_body(self, is_waiting: bool) -> None:
        """The rest of a body is, or is no longer, waited for."""
        if not is_waiting:
            self._since = None
        elif self._since is None:
            self._since = time.monotonic()

    def answer(self, answer: Answer, flags: int = 0) -> bool:
        """Answer the request; whether the connection is over.

        Raises
        ------
        OSError        the sender went away, or, with ``MSG_DONTWAIT``, reads no answers
        """
        is_last = self._is_ending
        data = response(answer, self._default_headers(), is_last)
        if flags:
            if self._connection.send(data, flags) < len(data):
                raise BlockingIOError
        else:
            self._connection.sendall(data)
        with self._lock:
            self._is_busy = False
        return is_last or self._is_ending

    def say_late(self) -> None:
        """Tell why, when the body did not come in time."""
        if self._is_late:
            with contextlib.suppress(OSError):
                self._connection.send(response_of(BODY_TIMEOUT), socket.MSG_DONTWAIT)

    def end_late_body(self, before: float) -> bool:
        """Give up a body that is waited for since before a monotonic time; whether there is one; from any thread."""
        since = self._body.since if self._body else self._since
        if since is None or since >= before or self._is_late:
            return False
        self._is_late = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RD)
        return True

    def end(self) -> None:
        """Let the request that is being served be the last one; from any thread."""
        with self._lock:
            self._is_ending = True
            if not self._is_busy:
                self.abort()

    def abort(self) -> None:
        """End at once, whatever is being served; from any thread."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back: the event loop has a descriptor of its own of it, and expects that it never blocks."""
        with contextlib.suppress(OSError):
            self._connection.setblocking(False)
        self._connection.close()


def response(answer: Answer, default_headers: Iterable[tuple[bytes, bytes]], is_last: bool) -> bytes:
    """The bytes of a response."""
    fields = [*default_headers, *answer.fields()]
    if answer.status not in (200, 204) and not answer.body:
        fields.append((b"content-length", b"0"))
    if is_last:
        fields.append((b"connection", b"close"))
    lines = [STATUS_LINE[answer.status], *(b"%s: %s\r\n" % field for field in fields), b"\r\n"]
    return b"".join(lines) + answer.body


def take_over(connection: socket.socket) -> None:
    """Put a socket into blocking mode, with a bound on how long it may block."""
    connection.setblocking(True)
    limit = struct.pack("ll", int(IDLE_S), 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


class Direct:
    """Everything that serves off the event loop.

    Attributes
    ----------
    targets : path -> what serves it; empty until the program is ready
    """

    def __init__(self) -> None:
        self.targets: dict[str, Target] = {}
        self.heads = Heads(self.targets)
        self._threads = ThreadPoolExecutor(CONNECTIONS_MAX, "push")
        self._rounds = Rounds()
        self._connections: set[DirectConnection] = set()  # the event loop's own

    def start(
        self, connection: DirectConnection, data: bytes, then: Callable[[bytes, bool], None], loop: AbstractEventLoop
    ) -> None:
        """Serve a connection off the event loop, on which ``then(bytes left, is over)`` follows."""
        self._connections.add(connection)

        def back(rest: bytes, is_over: bool) -> None:
            self._connections.discard(connection)
            then(rest, is_over)

        def leave(rest: bytes, is_over: bool) -> None:
            connection.close()
            with contextlib.suppress(RuntimeError):  # the loop is gone: so is the connection
                loop.call_soon_threadsafe(back, rest, is_over)

        found = connection.find(data)
        if found is not None and found[1].rounds is not None:
            self._rounds.add(connection, data, leave)
        else:
            self._threads.submit(lambda: leave(*connection.serve(data)))

    @property
    def has_room(self) -> bool:
        """Whether one more connection may be served; called on the event loop."""
        return bool(self.targets) and len(self._connections) < CONNECTIONS_MAX

    def close(self) -> None:
        """End what is still being served and wait for it; after the event loop's connections are closed."""
        for connection in self._connections:
            connection.abort()
        self._rounds.close()
        self._threads.shutdown()
