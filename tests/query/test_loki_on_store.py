"""The API over the real log store answers as it does over lists in memory, before and after a flush."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from query.loki_api import LokiApi
from tests.query.asgi import ask
from tests.query.demo_logs import demo_logs, loki_api
from tests.query.test_grafana_loki import RECORDED, STATS
from tsdb.db import TSDB, StoreConfig
from tsdb.labels import Labels
from tsdb.logs.batch import LogBatch
from tsdb.logs.frame import LEVELS, Texts

INDEX_COUNTS = re.compile(r'"(chunks|bytes)":\d+')
"""The store counts groups of rows, and their bytes as it keeps them."""


@pytest.fixture(scope="module", params=["buffer", "parts"])
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LokiApi]:
    path: Path = tmp_path_factory.mktemp("store")
    db = TSDB(StoreConfig(path=path, min_free_bytes=0, min_free_fraction=0, maintenance_seconds=3600))
    db.open()
    logs = db.tenant("default").logs
    for labels, entries in demo_logs().streams_of():
        lines = Texts.of([line if isinstance(line, bytes) else line.encode() for _, line, _ in entries])
        meta = Texts.of(
            [
                b"".join(k.encode() + b"\xff" + v.encode() + b"\xff" for k, v in m.items() if k != "detected_level")
                for _, _, m in entries
            ]
        )
        levels = np.array([LEVELS.index(m["detected_level"]) for _, _, m in entries], np.uint8)
        ref = logs.resolve(Labels.of(labels))
        refs = np.full(len(entries), ref, np.uint32)
        ts_ns = np.array([t for t, _, _ in entries], np.int64)
        logs.append(LogBatch(refs, ts_ns, lines.offsets, lines.data, meta.offsets, meta.data, levels)).result()
    if request.param == "parts":
        logs.flush()
    with loki_api(logs) as app:
        yield app
    db.close()


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["name"])
def test_recorded_request(api: LokiApi, recorded: dict[str, str]) -> None:
    reply = ask(api, recorded["method"], recorded["target"], recorded["headers"], recorded.get("body", ""))  # type: ignore[arg-type]
    got, wanted = STATS.sub('"stats":{...}}}', reply.text), recorded["reply"]
    assert INDEX_COUNTS.sub("", got) == INDEX_COUNTS.sub("", wanted)


@pytest.mark.parametrize(
    "query",
    [
        '{app="web"} | json | took >= 0.03 | line_format "{{.path}} {{.took}}"',
        '{app="web"} |= "p3"',
        '{app="web"} |~ "p[34]" | json path="path"',
        '{app="api"} | logfmt | dur > 2ms',
        '{app="web"} | json | detected_level="error" | label_format x="{{.status}}-{{.level}}" | keep x',
        '{service_name=~".+"} | pattern `<first> <_>` | first != ""',
        '{app="api"} | regexp `call (?P<n>\\d)` | n > 1',
        '{app="web"} | json | nope="x"',
    ],
)
def test_pipelines(api: LokiApi, query: str) -> None:
    target = "/loki/api/v1/query_range?limit=100&since=1h&query=" + quote(query)
    with loki_api() as memory:
        wanted = ask(memory, "GET", target).json()["data"]["result"]
    assert ask(api, "GET", target).json()["data"]["result"] == wanted
    assert wanted or "nope" in query
    metric = f"sum by (app, x, n) (count_over_time({query} [1m]))"
    target = "/loki/api/v1/query_range?since=1h&step=60s&query=" + quote(metric)
    with loki_api() as memory:
        wanted = ask(memory, "GET", target).json()["data"]["result"]
    assert json.dumps(ask(api, "GET", target).json()["data"]["result"]) == json.dumps(wanted)
