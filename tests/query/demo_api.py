"""The API over a small store with known samples, for the API and Grafana tests."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

from query.api import QueryApi
from query.endpoints import Providers
from query.engine.engine import Engine
from query.limits import QueryLimits
from tests.query.memory_storage import MemoryStorage
from tsdb.clock import ManualClock

START_MS = 1_795_415_400_000
TIMES_MS = range(START_MS, START_MS + 180_001, 15_000)
NOW_MS = 1_795_415_580_500


class Family(NamedTuple):
    """Metadata of a metric family."""

    type: str
    help: str
    unit: str


FAMILIES = {
    "up": Family("gauge", "Whether the target answers.", ""),
    "http_requests_total": Family("counter", "Requests.", ""),
}

BUILD_INFO = {
    "version": "2.55.0",
    "revision": "0.1.0",
    "branch": "meshpulse",
    "buildUser": "",
    "buildDate": "",
    "goVersion": "",
}

CARDINALITY = {
    "headStats": {"numSeries": 4, "numLabelPairs": 9, "chunkCount": 4, "minTime": START_MS, "maxTime": NOW_MS},
    "seriesCountByMetricName": [{"name": "up", "value": 2}],
    "labelValueCountByLabelName": [],
    "memoryInBytesByLabelName": [],
    "seriesCountByLabelValuePair": [],
}


def demo_storage() -> MemoryStorage:
    """Two targets, a counter that grows by 30 every 15 s, and a series with UTF-8 names."""
    return MemoryStorage(
        [
            ({"__name__": "up", "job": "api", "instance": "a:1"}, [(t, 1.0) for t in TIMES_MS]),
            ({"__name__": "up", "job": "api", "instance": "b:1"}, [(t, 0.0) for t in TIMES_MS]),
            (
                {"__name__": "http_requests_total", "job": "api", "instance": "a:1", "code": "200"},
                [(t, 30.0 * i) for i, t in enumerate(TIMES_MS)],
            ),
            ({"__name__": "temperature", "label.x": 'é "q"'}, [(t, -0.0000025) for t in TIMES_MS]),
        ]
    )


@contextmanager
def query_api(storage: Any = None, limits: QueryLimits | None = None, **providers: Any) -> Iterator[QueryApi]:
    """The API over ``storage``, which is the tenant ``default``; there is no other."""
    store = demo_storage() if storage is None else storage
    engine = Engine(limits or QueryLimits(workers=1))
    asked: dict[str, Any] = {
        "build_info": BUILD_INFO,
        "status_tsdb": lambda tenant, limit: {**CARDINALITY, "asked": [tenant, limit]},
        "metadata": lambda tenant: FAMILIES if tenant == "default" else {},
        **providers,
    }
    with ThreadPoolExecutor(2) as executor:
        yield QueryApi(engine, {"default": store}.get, executor, Providers(**asked), ManualClock(NOW_MS))
    engine.close()
