"""Pushes off the event loop: the same answers as on it, whatever comes before, between and after them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.api import Answer
from meshpulse.asgi import Receive, Scope, Send
from meshpulse.direct import LENGTH_MAX, Direct, Heads, Target
from meshpulse.edge import Edge, EdgeLimits
from meshpulse.protocol import Protocol
from tests.meshpulse.served import GET, PATH, UNREAD, Served, push
from tsdb.tally import Tally


@pytest.fixture(params=[False, True], ids=["threads", "rounds"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    server = Served(in_rounds=request.param)
    yield server
    server.go.set()
    server.stop()


def test_pushes_leave_the_loop_and_other_requests_come_back_to_it(served: Served) -> None:
    with served.connect() as client:
        for _ in range(3):
            assert client.ask(push(b"abc")) == "direct 3 294"
            assert client.ask(push(b"nothing")) == "204 "
            assert client.ask(GET) == "loop GET 0 0"
            assert client.ask(GET) == "loop GET 0 0"
            assert client.ask(push(b"abc", path="/other")) == "loop POST 3 294"
            assert client.ask(push(b"")) == "direct 0 0"


@pytest.mark.parametrize("size", [0, 1, 5000, 70_000, 600_000])
@pytest.mark.parametrize("piece", [0, 100_000])
def test_bodies_arrive_whole_in_whatever_pieces(served: Served, size: int, piece: int) -> None:
    body = bytes(i % 251 for i in range(size))
    with served.connect() as client:
        for _ in range(2):
            assert client.ask(push(body), piece) == f"direct {size} {sum(body)}"
            assert client.ask(push(body, "Expect: x", path="/other"), piece) == f"loop POST {size} {sum(body)}"


def test_a_head_in_pieces_is_read_by_the_loop(served: Served) -> None:
    with served.connect() as client:
        assert client.ask(push(b"abc"), piece=20) == "loop POST 3 294"
        assert client.ask(push(b"abc")) == "direct 3 294"
        assert client.ask(push(b"abc"), piece=20) == "loop POST 3 294"


def test_what_is_more_than_a_body_of_known_length_is_the_loops(served: Served) -> None:
    with served.connect() as client:
        chunked = f"POST {PATH} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".encode()
        assert client.ask(chunked) == "loop POST 3 294"
        client.send(push(b"abc", "Expect: 100-continue"))
        assert client.read() == "100 "
        assert client.read() == "loop POST 3 294"
        assert client.ask(push(b"abc", "Authorization: wrong")) == "loop POST 3 294"
        assert client.ask(push(b"abc", "Connection: keep-alive")) == "loop POST 3 294"
        long = bytes(LENGTH_MAX + 1)
        assert client.ask(push(long)) == f"loop POST {len(long)} 0"
        assert client.ask(push(b"abc", method="PUT")) == "loop PUT 3 294"
        assert client.ask(push(b"abc", path=f"{PATH}/")) == "loop POST 3 294"
        assert client.ask(push(b"abc", "Connection: close")) == "loop POST 3 294"
        assert client.read() == "closed"


def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    with served.connect() as client:
        client.send(push(b"a") + GET + push(b"bc") + push(b"nothing") + GET)
        found = [client.read() for _ in range(5)]
        assert found == ["loop POST 1 97", "loop GET 0 0", "loop POST 2 197", "loop POST 7 759", "loop GET 0 0"]
        served.go.clear()
        client.send(push(b"a"))
        assert served.reached.wait(30)
        client.send(push(b"bc") + GET)  # while the first is being served
        served.go.set()
        assert [client.read() for _ in range(3)] == ["direct 1 97", "loop POST 2 197", "loop GET 0 0"]


def test_a_body_that_nobody_wanted_does_not_become_the_next_request(served: Served) -> None:
    with served.connect() as client:
        for _ in range(2):
            assert client.ask(push((GET * 10_000)[:UNREAD])) == "direct unread"
            assert client.ask(push(b"abc")) == "direct 3 294"


def test_rubbish_after_a_push_is_answered_by_the_loop(served: Served) -> None:
    with served.connect() as client:
        assert client.ask(push(b"abc")) == "direct 3 294"
        assert client.ask(b"rubbish\r\n\r\n").startswith("400")


def test_a_sender_that_goes_away_frees_its_thread(served: Served) -> None:
    for cut in (push(b"abc"), push(b"abc" * 100)[:-1]):
        for _ in range(70):
            with served.connect() as client:
                client.send(cut)
    deadline = time.monotonic() + 30
    while served.direct._connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not served.direct._connections
    with served.connect() as client:
        assert client.ask(push(b"abc")) == "direct 3 294"


def test_many_connections_at_once(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(served.connect()) for _ in range(80)]
        for _ in range(3):
            for client in clients:
                client.send(push(b"abc"))
            found = [client.read() for client in clients]
            assert found.count("direct 3 294") == 64
            assert found.count("loop POST 3 294") == 16


def test_the_end_closes_idle_connections_and_lets_a_request_finish(served: Served) -> None:
    with served.connect() as idle, served.connect() as busy:
        assert idle.ask(push(b"abc")) == "direct 3 294"
        served.reached.clear()
        served.go.clear()
        busy.send(push(b"abc"))
        assert served.reached.wait(30)
        served.server.should_exit = True
        assert idle.read() == "closed"
        served.go.set()
        assert busy.read() == "direct 3 294"
        assert busy.read() == "closed"
        served.thread.join(30)
        assert not served.thread.is_alive()


def test_nothing_leaves_the_loop_before_the_program_is_ready() -> None:
    server = Served()
    target = server.direct.targets.pop(PATH)
    with server.connect() as client:
        assert client.ask(push(b"abc")) == "loop POST 3 294"
        server.direct.targets[PATH] = target
        assert client.ask(push(b"abc")) == "direct 3 294"
    server.stop()


LINES = st.sampled_from(
    [
        "Content-Length: 3", "content-length: 12", "Content-Length:7", "CONTENT-LENGTH: 1", "Content-Length: 0",
        "Content-Length: -1", "Content-Length: 3, 3", "Host: x", "X: \t y ", "X:", "Content-Type: a/b; c", " folded",
        "Content-Encoding: SNAPPY", "X-Scope-OrgID: t", "Transfer-Encoding: chunked", "Expect: 100-continue",
        "Connection: close", "Connection: keep-alive", "Upgrade: h2c", "Authorization: wrong", "no colon", "X: \x01",
        "TE: trailers", "X : y", "X-Long: " + "v" * 300,
    ]
)  # fmt: skip
FIRST = st.sampled_from(
    [
        f"POST {PATH} HTTP/1.1", f"POST {PATH}?a=b HTTP/1.1", f"POST {PATH} HTTP/1.0", "POST /other HTTP/1.1",
        f"PUT {PATH} HTTP/1.1", f"POST {PATH}", f"POST http://h{PATH} HTTP/1.1", f"POST  {PATH} HTTP/1.1",
        f"POST {PATH}%2F HTTP/1.1",
    ]
)  # fmt: skip


@given(FIRST, st.lists(LINES, max_size=6), st.integers(0, 30))
@settings(deadline=None, max_examples=300)
def test_a_head_that_is_recognised_says_what_uvicorn_finds_in_it(first: str, lines: list[str], cut: int) -> None:
    seen: list[Any] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append((scope, dict(scope["headers"])))

    heads = Heads({PATH: Target(PATH, lambda *_: Answer(204), lambda scope: scope if Served.refuses(scope) else None)})
    data = "\r\n".join([first, *lines]).encode() + b"\r\n\r\n"
    found = heads.find(data)
    assert found == heads.find(data), "remembered"
    assert heads.find(data[: len(data) - 1 - cut]) is None or cut < 0, "incomplete"
    if found is None:
        return

    class Transport(asyncio.Transport):
        def write(self, data: Any) -> None:
            raise AssertionError(data)

    async def feed() -> None:
        config = uvicorn.Config(
            app, interface="asgi3", loop="none", ws="none", lifespan="off", log_config=None, proxy_headers=False
        )
        config.load()
        state = uvicorn.Server(config).server_state
        protocol = Protocol(Direct(), Edge(EdgeLimits(), Tally()), config=config, server_state=state, app_state={})
        protocol.connection_made(Transport())
        protocol.data_received(data)
        await asyncio.sleep(0)
        assert protocol.parser.should_keep_alive()
        assert not protocol.expect_100_continue

    with contextlib.suppress(Exception):
        asyncio.run(feed())
    (scope, fields) = seen[0]
    assert (scope["method"], scope["path"], scope["http_version"]) == ("POST", found.path, "1.1")
    assert scope["query_string"] == found.request.query
    assert int(fields[b"content-length"]) == found.length
    assert fields.get(b"content-type", b"").decode() == found.request.content_type
    assert fields.get(b"x-scope-orgid", b"default").decode() == found.request.tenant
    assert b"transfer-encoding" not in fields
    assert found.size == len(data)
