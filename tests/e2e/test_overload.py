"""Twice what the server takes, for a while: it says so, stays in its memory and answers; what it took is there."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.e2e.bodies import write_body
from tests.e2e.prometheus import need
from tests.e2e.server import Server

SYNC_MS = 40
"""How long each sync of the log takes, by a system call that is held up: a slow disk that costs no CPU."""
ROOM = 8
CONFIG = f"""
storage: {{free_bytes_min: 0, free_fraction_min: 0}}
limits: {{ingest: {{requests_max: {ROOM}}}}}
"""
SENDERS = 32
SAMPLES = 200
"""A request."""
SECONDS = 20.0
RETRY_HEADER = "retry-after"
MIB = 1 << 20


class Sender(threading.Thread):
    """Pushes samples of series of its own at a pace, whatever becomes of them, and notes what was acknowledged."""

    def __init__(self, server: Server, number: int, begin_ms: int, until: float, pace_s: float) -> None:
        super().__init__()
        self.server, self.number, self.until, self.pace_s = server, number, until, pace_s
        self.time_ms = begin_ms
        self.acknowledged = 0
        self.answers: Counter[int] = Counter()
        self.problem: Exception | None = None

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - told by the test, on its own thread
            self.problem = error

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy"}
        due = time.monotonic()
        while due < self.until:
            time.sleep(max(0.0, due - time.monotonic()))
            due = max(due + self.pace_s, time.monotonic() - 1.0)  # what was late is not sent in one go
            self.time_ms += 1
            labels = {"__name__": "offered", "sender": str(self.number)}
            body = write_body([({**labels, "i": str(i)}, [(self.time_ms, 1.0)]) for i in range(SAMPLES)])
            connection.request("POST", "/api/v1/write", body, headers)
            answer = connection.getresponse()
            answer.read()
            self.answers[answer.status] += 1
            if answer.status == 204:
                self.acknowledged += 1
            elif answer.status == 503:
                assert int(answer.getheader(RETRY_HEADER) or "") >= 1
        connection.close()


def offer(server: Server, count: int, first: int, seconds: float, pace_s: float) -> list[Sender]:
    begin_ms = time.time_ns() // 1_000_000 - 600_000
    until = time.monotonic() + seconds
    senders = [Sender(server, first + k, begin_ms, until, pace_s) for k in range(count)]
    for sender in senders:
        sender.start()
    return senders


def joined(senders: list[Sender]) -> Counter[int]:
    answers: Counter[int] = Counter()
    for sender in senders:
        sender.join()
        if sender.problem is not None:
            raise sender.problem
        answers += sender.answers
    return answers


def acknowledged(server: Server, senders: list[Sender]) -> None:
    """Every acknowledged request is stored, whole; of others there is nothing, or all."""
    rows = server.query("min by (sender) (count_over_time(offered[1h]))")
    least = {row["metric"]["sender"]: float(row["value"][1]) for row in rows}
    rows = server.query("max by (sender) (count_over_time(offered[1h]))")
    most = {row["metric"]["sender"]: float(row["value"][1]) for row in rows}
    for sender in senders:
        name = str(sender.number)
        assert least.get(name, 0) == most.get(name, 0) == sender.acknowledged, name


@pytest.mark.slow
def test_sustained_overload(tmp_path: Path) -> None:
    held = f"inject=fdatasync:delay_enter={SYNC_MS * 1000}"
    under = (need("strace"), "-D", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", held)
    everybody: list[Sender] = []
    with Server(tmp_path, CONFIG, under=under) as server:
        # What it takes: as many requests at once as it has room for.
        few = offer(server, ROOM, 0, 5.0, 0.0)
        answers = joined(few)
        assert set(answers) == {204}
        everybody += few
        capacity = answers[204] / 5.0
        rss = psutil.Process(server.pid).memory_info().rss

        # Twice as much, by more senders than it has room for.
        many = offer(server, SENDERS, 100, SECONDS, SENDERS / (2.0 * capacity))
        peak, questions = rss, 0
        while any(sender.is_alive() for sender in many):
            assert server.query("count(last_over_time(offered[1h]))")
            assert server.get("/api/v1/health/endpoints").status == 200
            assert server.get("/-/ready").status == 200
            questions += 1
            peak = max(peak, psutil.Process(server.pid).memory_info().rss)
            time.sleep(0.2)
        answers = joined(many)
        everybody += many
        taken, offered = answers[204] / SECONDS, answers.total() / SECONDS
        print(
            f"takes {capacity:.0f} requests/s; of {offered:.0f} offered took {taken:.0f}; answers {dict(answers)}; "
            f"{(peak - rss) / MIB:.0f} MiB more; {questions} rounds of questions answered"
        )
        assert set(answers) == {204, 503}
        assert offered > 1.2 * capacity, "the senders offer about twice as much"
        assert answers[503] > 0.2 * answers.total()
        assert taken > 0.25 * capacity, "it goes on, at nearly its own pace"
        assert questions >= 5
        assert peak - rss < 128 * MIB
        assert server.metric('meshpulse_rejected_total{reason="overloaded"}') >= answers[503]

        # It recovers by itself.
        later = offer(server, 4, 500, 3.0, 0.1)
        assert set(joined(later)) == {204}
        everybody += later
        acknowledged(server, everybody)
        server.kill()
    with Server(tmp_path) as again:
        acknowledged(again, everybody)
