"""Events as log lines: LogQL finds them, and a store that is slow, full or broken holds nobody up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from health.log_lines import PENDING_MAX, EventLines
from tests.health.mesh import START_MS, Mesh
from tests.health.test_loop import QUICK
from tests.query.asgi import call
from tests.query.demo_logs import loki_api
from tests.tsdb.logs.test_store import open_db
from tsdb.errors import DiskFullError
from tsdb.labels import Labels
from tsdb.logs.batch import LogBatch


def event(number: int = 1) -> Mapping[str, Any]:
    return {"number": number, "time_ms": START_MS, "type": "ejected", "service": "svc"}


def test_logql_finds_what_was_decided(tmp_path: Path) -> None:
    db = open_db(tmp_path / "db")
    try:
        with ThreadPoolExecutor(1) as executor:
            lines = EventLines(db.tenant("default").logs, executor)
            mesh = Mesh(tmp_path / "health", QUICK, listener=lines)
            mesh.run(40)
            mesh.failing[2] = 0.5
            mesh.run(20)
        told = [dict(e.data) for e in mesh.loop.events.find()]
        assert lines.dropped == 0
        with loki_api(db.tenant("default").logs) as api:

            def lines_of(query: str) -> list[str]:
                params = {"query": query, "start": START_MS // 1000, "end": mesh.now // 1000 + 1, "limit": 1000}
                reply = asyncio.run(call(api, "GET", f"/loki/api/v1/query_range?{urlencode(params)}"))
                return [line for stream in reply.data["result"] for _, line, *_ in stream["values"]]

            every = lines_of('{job="meshpulse", component="health", service="svc"}')
            ejected = lines_of('{job="meshpulse", component="health"} | json | type="ejected" | detector="error_ratio"')
        assert len(every) == len(told)
        assert len(ejected) == sum(e["type"] == "ejected" and e["detector"] == "error_ratio" for e in told) >= 1
        assert f'"endpoint":"{mesh.names[2]}"' in ejected[0]
        assert "attempts fail" in ejected[0]
        assert '"level":"warn"' in ejected[0]
    finally:
        db.close()


class BrokenLogs:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.free = threading.Event()

    def resolve(self, labels: Labels) -> int:
        return 0

    def append(self, batch: LogBatch) -> Future[int]:
        self.free.wait(60)
        if self.error:
            raise self.error
        done: Future[int] = Future()
        done.set_result(len(batch))
        return done


def test_a_stuck_store_holds_nobody_up() -> None:
    logs = BrokenLogs()
    with ThreadPoolExecutor(1) as executor:
        lines = EventLines(logs, executor)
        many = [event(i) for i in range(PENDING_MAX)]
        lines(many)
        lines([event()])  # no room: left out and counted, at once
        assert lines.dropped == 1
        logs.free.set()
    with ThreadPoolExecutor(1) as executor:
        lines._executor = executor
        lines([event()])
    assert lines.dropped == 1


@pytest.mark.parametrize("error", [DiskFullError("full"), RuntimeError("a fault of ours")])
def test_what_the_store_refuses_is_counted(error: Exception) -> None:
    logs = BrokenLogs(error)
    logs.free.set()
    with ThreadPoolExecutor(1) as executor:
        lines = EventLines(logs, executor)
        lines([event(), event(2)])
    assert lines.dropped == 2
