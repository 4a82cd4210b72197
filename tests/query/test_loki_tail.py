"""Tailing: the backlog, what arrives later, late lines, slow readers, refusals and goodbyes."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

import pytest

from query.logql.ast import LogQuery
from query.logql.engine.engine import ENTRIES_MAX, LogEngine
from query.logql.parser import parse
from query.loki_tail import FRAME_ENTRIES_MAX, LAG_NS_MAX, Follower, TailRequest, frames
from tests.query.demo_logs import NS, START_NS, demo_logs, loki_api
from tests.query.logql.memory_logs import MemoryLogs

NOW_NS = START_NS + 180 * NS


async def converse(app: Any, query_string: str, headers: dict[str, str], wanted: int) -> list[dict[str, Any]]:
    """Connect, collect ``wanted`` messages, hang up."""
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    incoming.put_nowait({"type": "websocket.connect"})
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if len(sent) == wanted:
            incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})

    scope = {
        "type": "websocket",
        "path": "/loki/api/v1/tail",
        "query_string": query_string.encode(),
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
        "extensions": {"websocket.http.response": {}},
    }
    await asyncio.wait_for(app(scope, incoming.get, send), 10)
    return sent


def talk(query_string: str, wanted: int = 2, **headers: str) -> list[dict[str, Any]]:
    with loki_api() as app:
        return asyncio.run(converse(app, query_string, headers, wanted))


def test_the_backlog_comes_first() -> None:
    accept, frame = talk("limit=2&query=" + quote('{app="web"} | json | keep status'))
    assert accept == {"type": "websocket.accept"}
    streams = json.loads(frame["text"])["streams"]
    assert [s["stream"] for s in streams] == [{"status": "200"}, {"status": "500"}]
    assert [s["values"][0][0] for s in streams] == ["1795415460000000001", "1795415475000000001"]


def test_labels_are_told_apart_on_request() -> None:
    headers = {"x-loki-response-encoding-flags": "categorize-labels"}
    with loki_api() as app:
        sent = asyncio.run(converse(app, "limit=1&query=" + quote('{app="job"}'), headers, 2))
    body = json.loads(sent[1]["text"])
    assert body["encodingFlags"] == ["categorize-labels"]
    assert body["streams"][0]["values"] == [
        ["1795415400000000007", "again <1>", {"structuredMetadata": {"detected_level": "unknown"}}]
    ]


@pytest.mark.parametrize(
    ("query_string", "message"),
    [
        ("query={", "parse error at line 1, col 2: syntax error: unexpected $end, expecting IDENTIFIER or }"),
        ("query=1", "only log queries can be tailed"),
        ("query={app=%22x%22}&delay_for=6", "delay_for can't be greater than 5"),
        ("query={app=%22x%22}&limit=0", "limit must be a positive value"),
    ],
)
def test_bad_requests_are_refused_before_the_upgrade(query_string: str, message: str) -> None:
    start, body = talk(query_string)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 400)
    assert body["body"].decode() == message


def follower(store: MemoryLogs, start_ns: int = START_NS, limit: int = 100) -> Follower:
    query = parse('{app=~".+"}')
    assert isinstance(query, LogQuery)
    return Follower(LogEngine(), store, TailRequest(query, start_ns, limit, 0, False, "default"))


def shown(streams: list[Any]) -> list[str]:
    return sorted(entry.line for stream in streams for entry in stream.entries)


def test_new_and_late_lines_are_shown_once() -> None:
    entries: list[Any] = [(START_NS + NS, "first")]
    store = MemoryLogs([({"app": "x"}, entries)])
    tail = follower(store)
    now = START_NS + 5 * NS
    assert shown(tail.backlog(now)) == ["first"]
    rows = store.streams_of()[0][1]
    rows.append((START_NS + 2 * NS, "late", {}))
    rows.append((now + 1, "new", {}))
    rows.append((now + 100 * NS, "not yet", {}))
    assert shown(tail.more(now + NS)[0]) == ["late", "new"]
    assert shown(tail.more(now + 2 * NS)[0]) == []
    assert shown(tail.more(now + 60 * NS)[0]) == []
    assert shown(tail.more(now + 101 * NS)[0]) == ["not yet"]


def test_lines_behind_the_limit_of_the_backlog_are_no_news() -> None:
    store = MemoryLogs([({"app": "x"}, [(START_NS + i * NS, str(i)) for i in range(5)])])
    tail = follower(store, limit=2)
    assert shown(tail.backlog(START_NS + 5 * NS)) == ["3", "4"]
    assert shown(tail.more(START_NS + 6 * NS)[0]) == []


def test_many_lines_come_in_turns() -> None:
    count = 2 * ENTRIES_MAX + 10
    store = MemoryLogs([({"app": "x"}, [(START_NS + i * 1000, str(i)) for i in range(count)])], frame_rows=4096)
    tail = follower(store, START_NS - 1)
    seen: list[str] = []
    for turn in range(6):
        seen += shown(tail.more(START_NS + (20 + turn) * NS)[0])
    assert len(seen) == len(set(seen))
    assert set(seen) == {str(i) for i in range(count)}


def test_a_slow_reader_is_told_what_it_lost() -> None:
    tail = follower(demo_logs())
    tail.backlog(START_NS + NS)
    streams, dropped_ns = tail.more(START_NS + NS + LAG_NS_MAX + 2 * NS)
    assert dropped_ns == START_NS + NS
    (frame, *_) = frames(streams, dropped_ns, categorize=False)
    assert json.loads(frame)["dropped_entries"] == [{"timestamp": str(START_NS + NS), "labels": {}}]


def test_frames_are_small() -> None:
    store = MemoryLogs([({"app": "x"}, [(START_NS + i, str(i)) for i in range(250)])], frame_rows=100)
    tail = follower(store)
    streams, _ = tail.more(START_NS + NS)
    sizes = [
        sum(len(stream["values"]) for stream in json.loads(text)["streams"])
        for text in frames(streams, None, categorize=False)
    ]
    assert sizes == [FRAME_ENTRIES_MAX, FRAME_ENTRIES_MAX, 50]
