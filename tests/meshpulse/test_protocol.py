"""What a response is written as, and who runs a request."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from meshpulse.protocol import AT_ONCE, PIECE_BYTES, PiecesCycle, plain_head
from tests.meshpulse.served import Served


class Transport:
    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def resume_reading(self) -> None:
        pass


HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"


def written(method: str, length: int | None, pieces: list[bytes], *, keep_alive: bool = True) -> Transport:
    """What arrives at the transport of a response."""
    transport = Transport()

    async def respond() -> None:
        cycle = PiecesCycle(
            scope={"type": "http", "method": method, "path": "/"},
            transport=transport,
            flow=FlowControl(transport),  # type: ignore[arg-type]
            logger=logging.getLogger(),
            access_logger=logging.getLogger(),
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=keep_alive,
            on_response=lambda: None,
        )
        headers: list[Any] = [] if length is None else [(b"content-length", b"%d" % length)]
        await cycle.send({"type": "http.response.start", "status": 200, "headers": headers})
        if length is None:
            assert len(transport.writes) == 1  # nobody knows when the first piece comes
        for k, piece in enumerate(pieces):
            await cycle.send({"type": "http.response.body", "body": piece, "more_body": k + 1 < len(pieces)})
        assert cycle.response_complete

    asyncio.run(respond())
    return transport


def test_head_and_body_are_written_together() -> None:
    assert written("GET", 3, [b"abc"]).writes == [HEAD % 3 + b"abc"]


def test_further_pieces_follow() -> None:
    assert written("GET", 5, [b"abc", b"de"]).writes == [HEAD % 5 + b"abc", b"de"]


def test_a_long_body_is_not_copied() -> None:
    body = bytes(PIECE_BYTES + 1)
    assert written("GET", len(body), [body]).writes == [HEAD % len(body), body]


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_head_without_a_body_is_written(method: str) -> None:
    length = 3 if method == "HEAD" else 0
    assert b"".join(written(method, length, [b""]).writes) == HEAD % length


def test_pieces_of_no_known_length_are_chunks() -> None:
    writes = written("GET", None, [b"abc", b""]).writes
    assert writes[0].endswith(b"transfer-encoding: chunked\r\n\r\n")
    assert b"".join(writes[1:]) == b"3\r\nabc\r\n0\r\n\r\n"


def test_a_connection_that_is_not_kept_is_closed_behind_the_body() -> None:
    transport = written("GET", 3, [b"abc"], keep_alive=False)
    assert transport.writes[-1].endswith(b"connection: close\r\n\r\nabc")
    assert transport.closed


def test_more_than_was_said_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="longer than Content-Length"):
        written("GET", 2, [b"abc"])


def test_requests_that_are_answered_at_once_stay_in_order() -> None:
    """Pipelined with others, and when they wait after all."""
    served = Served()
    path = next(iter(AT_ONCE))
    targets = [f"{path}?1-unread", "/x?2", f"{path}?3", f"{path}?4-unread", "/y?5", f"{path}?6", f"{path}?7-unread"]
    try:
        with served.connect() as client:
            client.send(b"".join(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for target in targets))
            answers = [client.read() for _ in targets]
    finally:
        served.stop()
    assert answers == [f"loop GET 0 0 {target.partition('?')[2]}" for target in targets]


@pytest.mark.parametrize(
    "headers",
    [
        [(b"Content-Type", b"text/plain"), (b"vary", b"x, y"), (b"content-length", b"3")],
        [(b"content-length", b"3"), (b"content-type", b"text/plain")],
        [(b"content-type", b"text/plain")],
        [(b"connection", b"close"), (b"content-length", b"3")],
        [(b"transfer-encoding", b"chunked"), (b"content-length", b"3")],
    ],
)
def test_heads_are_those_of_uvicorn(headers: list[tuple[bytes, bytes]]) -> None:
    """Short cut or not, the bytes are the same."""

    def respond(kind: type[RequestResponseCycle]) -> tuple[bytes, bool]:
        transport = Transport()

        async def run() -> None:
            cycle = kind(
                scope={"type": "http", "method": "GET", "path": "/"},
                transport=transport,
                flow=FlowControl(transport),  # type: ignore[arg-type]
                logger=logging.getLogger(),
                access_logger=logging.getLogger(),
                access_log=False,
                default_headers=[(b"date", b"now")],
                message_event=asyncio.Event(),
                expect_100_continue=False,
                keep_alive=True,
                on_response=lambda: None,
            )
            await cycle.send({"type": "http.response.start", "status": 200, "headers": headers})
            await cycle.send({"type": "http.response.body", "body": b"abc"})
            assert cycle.response_complete

        asyncio.run(run())
        return b"".join(transport.writes), transport.closed

    assert respond(PiecesCycle) == respond(RequestResponseCycle)


@pytest.mark.parametrize("header", [(b"a b", b"c"), (b"a", b"b\r\nset-cookie: c"), (b"a\n", b"b")])
def test_no_header_splits_a_response(header: tuple[bytes, bytes]) -> None:
    assert plain_head(200, (header,)) is None
