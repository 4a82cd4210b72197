"""Threads that push log lines as fast as they are answered, and the audit of what a server holds afterwards."""

from __future__ import annotations

import http.client
import json
import random
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

from tests.crash.harness import SenderThreads, Server

LINES_PER_PUSH = 60
QUERY_LINES_MAX = 5000
WINDOW_NS = QUERY_LINES_MAX // 2  # one line a nanosecond: room to see lines that are there twice
NS = 1_000_000_000

Entry = tuple[str, int, str]
"""(sender, ns, line)."""


class LogSenders(SenderThreads):
    """Remembers what was sent and what was acknowledged; every fourth push is the one before once more."""

    def __init__(self, count: int, first_ns: int) -> None:
        super().__init__(count)
        self.first_ns = self.next_ns = first_ns
        self.sent: set[Entry] = set()
        self.acknowledged: set[Entry] = set()
        self.pushes = 0

    def _run(self, sender: int, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        rng = random.Random(sender)
        entries: list[Entry] = []
        number = 0
        while not self._stopping.is_set():
            number += 1
            if number % 4 or not entries:
                with self._lock:
                    first = self.next_ns
                    self.next_ns += LINES_PER_PUSH
                entries = [
                    (str(sender), first + k, json.dumps({"id": f"{rng.getrandbits(128):032x}", "status": 200 + k}))
                    for k in range(LINES_PER_PUSH)
                ]
                with self._lock:
                    self.sent.update(entries)
            stream = {
                "stream": {"job": "crash", "n": str(sender)},
                "values": [[str(t), line] for _, t, line in entries],
            }
            try:
                body = json.dumps({"streams": [stream]})
                connection.request("POST", "/loki/api/v1/push", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                return
            if answer.status == 204:
                with self._lock:
                    self.acknowledged.update(entries)
                    self.pushes += 1


def held(server: Server, senders: LogSenders) -> list[Entry]:
    """Every line of a server, piece by piece: an answer is bounded."""

    def ask(first_ns: int) -> list[Entry]:
        params = {
            "query": '{job="crash"}', "start": first_ns, "end": first_ns + WINDOW_NS, "limit": QUERY_LINES_MAX,
        }  # fmt: skip
        status, body = server.get(f"/loki/api/v1/query_range?{urllib.parse.urlencode(params)}")
        assert status == 200, body
        return [
            (stream["stream"]["n"], int(ts), line)
            for stream in json.loads(body)["data"]["result"]
            for ts, line in stream["values"]
        ]

    with ThreadPoolExecutor(2) as pool:
        found = pool.map(ask, range(senders.first_ns, senders.next_ns, WINDOW_NS))
        return [entry for piece in found for entry in piece]


def audit(server: Server, senders: LogSenders) -> int:
    """Compare what a restarted server holds with what was acknowledged; the number of lines it holds."""
    entries = held(server, senders)
    lost = senders.acknowledged - set(entries)
    assert not lost, f"{len(lost)} of {len(senders.acknowledged)} acknowledged lines are lost, e.g. {sorted(lost)[:3]}"
    foreign = set(entries) - senders.sent
    assert not foreign, f"{len(foreign)} lines were never sent or changed, e.g. {sorted(foreign)[:3]}"
    assert len(entries) == len(set(entries)), "lines that were sent again are there twice"
    return len(entries)
