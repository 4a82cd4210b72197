"""Loki's API over a small store with known lines, for the API and Grafana tests."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from query.limits import QueryLimits
from query.logql.engine.engine import LogEngine
from query.loki_api import LokiApi
from tests.query.demo_api import BUILD_INFO
from tests.query.logql.memory_logs import MemoryLogs
from tsdb.clock import ManualClock

NS = 10**9
START_NS = 1_795_415_400 * NS
NOW_MS = 1_795_415_580_500


def demo_logs() -> MemoryLogs:
    """A web server that logs JSON, one that logs logfmt, and a stream of plain lines."""
    levels = ["info", "info", "error"]
    web = [
        (
            START_NS + i * 15 * NS + 1,
            f'{{"level":"{levels[i % 3]}","status":{500 if i % 3 == 2 else 200},"took":0.0{i}0,"path":"/p{i}"}}',
            {"detected_level": levels[i % 3], "trace_id": f"t{i}"},
        )
        for i in range(6)
    ]
    api = [
        (START_NS + i * 20 * NS, f'level=info dur={i + 1}ms msg="call {i}"', {"detected_level": "info"})
        for i in range(4)
    ]
    plain = [
        (START_NS + 7, "started", {"detected_level": "unknown"}),
        (START_NS + 7, "again <1>", {"detected_level": "unknown"}),
    ]
    return MemoryLogs(
        [
            ({"app": "web", "env": "prod", "service_name": "web"}, web),
            ({"app": "api", "env": "prod", "service_name": "api"}, api),
            ({"app": "job", "service_name": "job"}, plain),
        ]
    )


@contextmanager
def loki_api(logs: Any = None, limits: QueryLimits | None = None) -> Iterator[LokiApi]:
    """The API over ``logs``, which are the tenant ``default``'s; there is no other."""
    store = demo_logs() if logs is None else logs
    clock = ManualClock(NOW_MS)
    engine = LogEngine(limits or QueryLimits(workers=1), clock)
    with ThreadPoolExecutor(2) as executor:
        yield LokiApi(engine, {"default": store}.get, executor, BUILD_INFO, clock=clock)
    engine.close()
