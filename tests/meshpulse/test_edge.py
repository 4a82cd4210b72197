"""Connections that are too slow, too many, too talkative or no HTTP: told, counted and closed, on both roads."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import Callable, Iterator

import pytest
from structlog.testing import capture_logs

from meshpulse.edge import FILES_RESERVED, Edge, EdgeLimits
from tests.meshpulse.served import GET, LARGE, PATH, Client, Served, push
from tsdb.errors import Reason
from tsdb.tally import Tally

QUICK = EdgeLimits(
    connections_max=8, header_bytes_max=4096, header_timeout_s=0.4, body_timeout_s=0.4, response_timeout_s=0.4
)


@pytest.fixture
def served() -> Iterator[Served]:
    server = Served(QUICK)
    yield server
    server.go.set()
    server.stop()


def counted(served: Served, reason: Reason) -> int:
    return served.edge.tally.snapshot().get(reason, 0)


def wait_for(what: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def trickle(client: Client, data: bytes, seconds: float = 30.0) -> str:
    """Send a byte now and then, for ever if it is let; what is answered."""
    client.socket.settimeout(0.05)
    until = time.monotonic() + seconds
    for at in range(len(data)):
        assert time.monotonic() < until, "nobody minds"
        with contextlib.suppress(ConnectionError):
            client.socket.sendall(data[at : at + 1])
        try:
            if client.socket.recv(1, 0x2):  # MSG_PEEK
                break
        except TimeoutError:
            continue
    client.socket.settimeout(30)
    return client.read()


LONG_HEAD = b"GET /x HTTP/1.1\r\nX-Slow: " + b"s" * 2000


def test_a_head_that_trickles_is_answered_408(served: Served) -> None:
    with served.connect() as client:
        assert trickle(client, LONG_HEAD).startswith("408 Request Timeout: the header took too long")
        assert client.read() == "closed"
    assert counted(served, Reason.REQUEST_TIMEOUT) == 1


def test_a_head_that_trickles_after_other_requests_too(served: Served) -> None:
    with served.connect() as client:
        assert client.ask(push(b"abc")) == "direct 3 294"
        assert client.ask(GET) == "loop GET 0 0"
        assert trickle(client, LONG_HEAD).startswith("408 ")
    with served.connect() as client:
        assert client.ask(push(b"abc")) == "direct 3 294"
        assert trickle(client, push(b"", "X-Slow: " + "s" * 2000)).startswith("408 ")
    assert counted(served, Reason.REQUEST_TIMEOUT) == 2


@pytest.mark.parametrize("path", [PATH, "/other"])
def test_a_body_that_trickles_is_answered_408_and_not_served(served: Served, path: str) -> None:
    with served.connect() as client:
        request = push(b"b" * 5000, path=path)
        client.send(request[:-4990])
        assert trickle(client, request[-4990:]).startswith("408 Request Timeout: the body took too long")
        assert client.read() == "closed"
    assert counted(served, Reason.REQUEST_TIMEOUT) == 1
    assert not served.pushes
    assert served.cut == (path != PATH)


def test_a_chunked_body_that_trickles(served: Served) -> None:
    with served.connect() as client:
        client.send(b"POST /other HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert trickle(client, b"1\r\na\r\n" * 500).startswith("408 ")


@pytest.mark.parametrize("path", [PATH, "/other"])
def test_a_body_that_never_comes(served: Served, path: str) -> None:
    with served.connect() as client:
        client.send(push(b"b" * 5000, path=path)[:-5000])
        assert client.read().startswith("408 ")


def test_a_large_body_may_take_longer_as_long_as_it_comes() -> None:
    served = Served(EdgeLimits(body_timeout_s=1.0))
    with served.connect() as client:
        body = b"b" * (2 << 20)
        request = push(body, path="/other")
        for at in range(0, len(request), 128 << 10):  # two seconds' worth in a tenth
            client.send(request[at : at + (128 << 10)])
            time.sleep(0.1)
        assert client.read() == f"loop POST {len(body)} {sum(body)}"
    served.stop()


def test_a_refused_body_that_goes_on_is_not_read_for_ever(served: Served) -> None:
    with served.connect() as client:
        client.send(push(b"b" * 9000, path="/unread")[:-9000])
        assert client.read() == "loop POST 0 0"
        assert trickle(client, b"b" * 8000) == "closed"


@pytest.mark.parametrize("piece", [0, 700])
@pytest.mark.parametrize(
    "head",
    [
        b"GET /x HTTP/1.1\r\nX-Long: " + b"v" * 5000 + b"\r\n\r\n",
        b"GET /x HTTP/1.1\r\n" + b"X: v\r\n" * 2000 + b"\r\n",
        b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /api/v1/write HTTP/1.1\r\nContent-Length: 3\r\nX-Long: " + b"v" * 9000 + b"\r\n\r\nabc",
    ],
    ids=["one field", "many fields", "URL", "push"],
)
def test_a_head_that_is_too_large_is_answered_431(served: Served, head: bytes, piece: int) -> None:
    with served.connect() as client:
        with contextlib.suppress(ConnectionError):  # it is closed while we still send
            client.send(head, piece)
        with contextlib.suppress(ConnectionError):
            assert client.read().startswith("431 Request Header Fields Too Large")
    wait_for(lambda: counted(served, Reason.HEADER_TOO_LARGE) == 1)
    assert not served.pushes


def test_a_trailer_that_is_too_large_is_answered_431(served: Served) -> None:
    with served.connect() as client:
        client.send(b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Trailer: ")
        with contextlib.suppress(ConnectionError):
            client.send(b"v" * 100_000, 700)
    wait_for(lambda: counted(served, Reason.HEADER_TOO_LARGE) == 1)
    assert counted(served, Reason.REQUEST_TIMEOUT) == 0


def test_a_head_is_not_too_large_for_what_comes_behind_it(served: Served) -> None:
    with served.connect() as client:
        assert client.ask(push(b"b" * 200_000, "X-Long: " + "v" * 3500, path="/other")) == "loop POST 200000 19600000"
        client.send(GET * 400)
        assert [client.read() for _ in range(400)] == ["loop GET 0 0"] * 400
    assert counted(served, Reason.HEADER_TOO_LARGE) == 0


def test_no_http_is_answered_400(served: Served) -> None:
    with served.connect() as client:
        assert client.ask(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").startswith("400 Bad Request")
    assert counted(served, Reason.MALFORMED_REQUEST) == 1


def test_one_connection_too_many_is_answered_503(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(served.connect()) for _ in range(QUICK.connections_max)]
        for client in clients:
            assert client.ask(push(b"abc")) == "direct 3 294"
        with served.connect() as surplus:
            assert surplus.ask(push(b"abc")).startswith("503 Service Unavailable: too many connections")
            assert surplus.read() == "closed"
        with served.connect() as silent:
            assert silent.read() == "closed"
        assert clients[0].ask(GET) == "loop GET 0 0"
    assert counted(served, Reason.CONNECTIONS) == 1
    wait_for(lambda: not served.server.server_state.connections)
    with served.connect() as client:
        assert client.ask(push(b"abc")) == "direct 3 294"


def test_a_response_that_nobody_reads_is_cut(served: Served) -> None:
    with served.connect() as client:
        client.send(GET.replace(b"/x", b"/large"))
        wait_for(lambda: counted(served, Reason.RESPONSE_TIMEOUT) == 1)
        with pytest.raises((ConnectionError, AssertionError)):
            assert len(client.read()) == LARGE
    wait_for(lambda: not served.server.server_state.connections)


def test_a_response_that_is_read_slowly_is_sent(served: Served) -> None:
    with served.connect() as client:
        client.send(GET.replace(b"/x", b"/large"))
        got = 0
        while got < LARGE:
            got += len(client.socket.recv(8 << 20))
            time.sleep(0.05)
    assert counted(served, Reason.RESPONSE_TIMEOUT) == 0


def test_an_answer_to_who_has_gone_is_dropped(served: Served) -> None:
    """uvloop raises for a write to a transport that it has closed, before it says that the connection is lost."""
    with served.connect() as client:
        assert client.ask(GET) == "loop GET 0 0"
        (connection,) = served.server.server_state.connections
        cycle = connection.cycle  # type: ignore[union-attr]
        cycle.response_started = cycle.response_complete = False

        async def answer_late() -> None:
            connection.transport.abort()  # type: ignore[union-attr]
            await cycle.send({"type": "http.response.start", "status": 200, "headers": []})
            await cycle.send({"type": "http.response.body", "body": b"late"})

        asyncio.run_coroutine_threadsafe(answer_late(), connection.loop).result(30)  # type: ignore[union-attr]
        assert cycle.disconnected
        assert not cycle.response_started


class TestFiles:
    """The limit of open files, as the system has it."""

    @staticmethod
    def make_room(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> tuple[Edge, list[int], list[str]]:
        asked: list[int] = []
        monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
        monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits[0]))
        edge = Edge(EdgeLimits(connections_max=5000), Tally())
        with capture_logs() as logs:
            edge.make_room()
        return edge, asked, [entry["event"] for entry in logs]

    def test_it_is_raised_as_far_as_needed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        edge, asked, said = self.make_room(monkeypatch, 1024, 1 << 20)
        assert (edge.connections_max, asked, said) == (5000, [5000 + FILES_RESERVED], [])

    @pytest.mark.parametrize("soft", [6000, resource.RLIM_INFINITY])
    def test_enough_is_left_alone(self, monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
        edge, asked, said = self.make_room(monkeypatch, soft, soft)
        assert (edge.connections_max, asked, said) == (5000, [], [])

    def test_too_few_are_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        edge, asked, said = self.make_room(monkeypatch, 1024, 2048)
        assert (edge.connections_max, asked) == (2048 - FILES_RESERVED, [2048])
        assert "LimitNOFILE" in said[0]
