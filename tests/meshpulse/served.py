"""A server of echoes over real sockets: uvicorn with our protocol, pushes off the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn
import uvloop

from ingest.api import Answer, Push, PushRequest
from meshpulse.asgi import Receive, Scope, Send, answer
from meshpulse.direct import Direct, Target
from meshpulse.edge import Edge, EdgeLimits
from meshpulse.protocol import PIECE_BYTES, Protocol, watch
from tsdb.tally import Tally

PATH = "/api/v1/write"
GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
CHECK_S = 0.05
LARGE = 64 << 20
"""Size of a response that no socket's buffers hold."""
UNREAD = 99_999
"""Length of a body that is refused before it is read."""


class Served:
    """A server of echoes: each answer says where its request was served, of what length and by which sum."""

    def __init__(self, limits: EdgeLimits | None = None, in_rounds: bool = False) -> None:
        self.direct = Direct()
        self.edge = Edge(limits or EdgeLimits(), Tally())
        self.steps = Steps(self.push)
        refuses = lambda scope: scope if self.refuses(scope) else None  # noqa: E731
        self.direct.targets[PATH] = Target(PATH, self.push, refuses, self.steps if in_rounds else None)
        self.go = threading.Event()
        self.go.set()
        self.reached = threading.Event()
        self.pushes: list[PushRequest] = []
        self.cut = 0
        config = uvicorn.Config(
            self.app,
            interface="asgi3",
            loop="none",
            http=functools.partial(Protocol, self.direct, self.edge),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=10,
        )
        self.server = uvicorn.Server(config)
        self.server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=lambda: uvloop.run(self.run()))
        self.thread.start()

    async def run(self) -> None:
        watching = asyncio.ensure_future(watch(self.server.server_state.connections, CHECK_S))
        await self.server.serve([self.listener])
        watching.cancel()

    @staticmethod
    def refuses(scope: Scope) -> bool:
        return (b"authorization", b"wrong") in scope["headers"]

    def push(self, path: str, request: PushRequest, length: int, read: Callable[[], bytes]) -> Answer:
        assert path == PATH
        if length == UNREAD:
            return Answer(200, b"direct unread")
        body = read()
        assert len(body) == length
        self.pushes.append(request)
        self.reached.set()
        assert self.go.wait(30)
        if body == b"nothing":
            return Answer(204)
        return Answer(200, b"direct %d %d" % (len(body), sum(body)))

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope["query_string"].decode()
        body, more = b"", scope["path"] != "/unread" and "unread" not in asked
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.cut += 1
                return
            assert len(message["body"]) <= 2 * PIECE_BYTES
            body, more = body + message["body"], message["more_body"]
        if scope["path"] == "/large":
            await answer(send, 200, bytes(LARGE))
            return
        await answer(send, 200, f"loop {scope['method']} {len(body)} {sum(body)}{asked and ' ' + asked}".encode())

    def connect(self) -> Client:
        return Client(self.listener.getsockname())

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.direct.close()


class Steps:
    """The same pushes in the steps of :class:`ingest.api.PushApi`."""

    def __init__(self, push: Callable[[str, PushRequest, int, Callable[[], bytes]], Answer]) -> None:
        self._push = push
        self.rounds: list[int] = []  # requests of each
        self.given_up = 0

    def admit(self, path: str, request: PushRequest, length: int) -> Push:
        found = Push(None, path, request, length)  # type: ignore[arg-type]  # nobody asks for the endpoint
        if length == UNREAD:
            found.answer = self._push(path, request, length, lambda: b"")
        return found

    def gathering(self) -> contextlib.AbstractContextManager[None]:
        self.rounds.append(0)
        return contextlib.nullcontext()

    def parse(self, push: Push, body: bytes) -> None:
        self.rounds[-1] += 1
        if push.answer is None:
            push.answer = self._push(push.path, push.request, push.length, lambda: body)

    def finish(self, push: Push) -> Answer:
        assert push.answer is not None
        return push.answer

    def give_up(self, push: Push) -> None:
        assert push.length
        self.given_up += 1


class Client:
    def __init__(self, address: Any) -> None:
        self.socket = socket.create_connection(address, timeout=30)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, data: bytes, piece: int = 0) -> None:
        for at in range(0, len(data), piece or len(data)):
            self.socket.sendall(data[at : at + (piece or len(data))])
            if piece:
                time.sleep(0.002)

    def read(self) -> str:
        """Body of the next response."""
        status = self.file.readline()
        length = 0
        while (line := self.file.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            assert name.lower() != b"transfer-encoding"
            if name.lower() == b"content-length":
                length = int(value)
        if not status:
            return "closed"
        text = self.file.read(length).decode()
        return text if status.startswith(b"HTTP/1.1 200") else f"{status.split()[1].decode()} {text}"

    def ask(self, data: bytes, piece: int = 0) -> str:
        self.send(data, piece)
        return self.read()


def push(body: bytes, *headers: str, method: str = "POST", path: str = PATH) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
