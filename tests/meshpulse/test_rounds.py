"""Pushing connections served by one thread; test_direct.py asks the same of it as of a thread a connection."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from ingest.api import Answer, PushRequest
from meshpulse import rounds
from meshpulse.edge import EdgeLimits
from tests.meshpulse.served import UNREAD, Served, push
from tsdb.errors import Reason


@pytest.fixture
def served() -> Iterator[Served]:
    server = Served(EdgeLimits(body_timeout_s=0.4), in_rounds=True)
    yield server
    server.go.set()
    server.stop()


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_so()


def test_what_arrives_during_a_round_belongs_to_it_or_to_the_next(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(served.connect()) for _ in range(40)]
        for client in clients:
            assert client.ask(push(b"abc")) == "direct 3 294"
        del served.steps.rounds[:]
        served.reached.clear()
        served.go.clear()
        clients[0].send(push(b"abc"))
        assert served.reached.wait(30)
        for client in clients[1:]:
            client.send(push(b"abc"))
        served.go.set()
        assert [client.read() for client in clients] == ["direct 3 294"] * 40
        assert sum(served.steps.rounds) == 40
        assert served.steps.rounds == [rounds.ROUND_MAX, rounds.ROUND_MAX, 40 - 2 * rounds.ROUND_MAX]


def test_a_slow_body_keeps_nobody_waiting(served: Served) -> None:
    with served.connect() as slow, served.connect() as quick:
        assert slow.ask(push(b"abc")) == "direct 3 294"
        slow.send(push(b"b" * 300_000)[:-100_000])
        for _ in range(20):
            assert quick.ask(push(b"abc")) == "direct 3 294"
        slow.send(b"b" * 100_000)
        assert slow.read() == f"direct 300000 {300_000 * ord('b')}"


def test_a_body_that_does_not_come_is_answered_408_and_not_served(served: Served) -> None:
    with served.connect() as slow, served.connect() as quick:
        slow.send(push(b"b" * 5000)[:-1])
        assert slow.read().startswith("408 Request Timeout: the body took too long")
        assert slow.read() == "closed"
        assert quick.ask(push(b"abc")) == "direct 3 294"
    assert served.edge.tally.snapshot() == {Reason.REQUEST_TIMEOUT: 1}
    assert len(served.pushes) == 1
    assert served.steps.given_up == 1


def test_a_sender_that_goes_away_gives_its_request_up(served: Served) -> None:
    with served.connect() as client:
        client.send(push(b"b" * 5000)[:-1])
        until(lambda: bool(served.direct._rounds._seats))
    until(lambda: served.steps.given_up == 1)
    until(lambda: not served.direct._connections)


def test_silent_connections_are_closed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "IDLE_S", 0.2)
    monkeypatch.setattr(rounds, "SWEEP_S", 0.05)
    with served.connect() as client:
        assert client.ask(push(b"abc")) == "direct 3 294"
        assert client.read() == "closed"
    until(lambda: not served.direct._connections)


def test_who_reads_no_answers_is_cut_and_the_others_are_served(served: Served) -> None:
    with served.connect() as deaf, served.connect() as other:
        assert deaf.ask(push(b"abc")) == "direct 3 294"

        def large(path: str, request: PushRequest, length: int, read: Callable[[], bytes]) -> Answer:
            return Answer(200, bytes(16 << 20) if read() == b"large" else b"small")

        served.steps._push = large
        deaf.send(push(b"large"))
        assert other.ask(push(b"abc")) == "small"
        until(lambda: len(served.direct._connections) == 1)


def test_a_fault_of_ours_ends_the_round_and_not_the_thread(served: Served) -> None:
    with served.connect() as first, served.connect() as second:
        assert second.ask(push(b"abc")) == "direct 3 294"
        kept = served.steps._push

        def fault(path: str, request: PushRequest, length: int, read: Callable[[], bytes]) -> Answer:
            raise ZeroDivisionError

        served.steps._push = fault
        first.send(push(b"abc"))
        assert first.read() == "closed"
        first_again = served.connect()
        first_again.send(push(b"x" * UNREAD))  # refused, hence asked for before the body
        assert first_again.read() == "closed"
        first_again.__exit__()
        served.steps._push = kept
        with served.connect() as third, pytest.MonkeyPatch.context() as patch:
            patch.delattr(type(served.steps), "finish")
            third.send(push(b"abc"))
            assert third.read() == "closed"
        assert second.ask(push(b"abc")) == "direct 3 294"
