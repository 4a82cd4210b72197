"""What Grafana (Loki data source, Logs Drilldown) and logcli send, replayed; replies by byte but for their stats."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from query.loki_api import LokiApi
from tests.query.asgi import ask
from tests.query.demo_logs import loki_api

RECORDED = [
    json.loads(line)
    for line in (Path(__file__).parent / "grafana" / "loki_requests.jsonl").read_text("utf-8").splitlines()
]
STATS = re.compile(r'"stats":(\{"summary".*\})\}\}$')


@pytest.fixture(scope="module")
def api() -> Iterator[LokiApi]:
    with loki_api() as app:
        yield app


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["name"])
def test_recorded_request(api: LokiApi, recorded: dict[str, Any]) -> None:
    reply = ask(api, recorded["method"], recorded["target"], recorded["headers"], recorded.get("body", ""))
    stats = STATS.search(reply.text)
    text = STATS.sub('"stats":{...}}}', reply.text)
    assert (reply.status, text) == (recorded["status"], recorded["reply"])
    for name, value in recorded["reply_headers"].items():
        assert reply.headers.get(name) == value, name
    if stats:
        summary = json.loads(stats[1])["summary"]
        assert {type(value) for name, value in summary.items() if not name.endswith("Time")} == {int}


def test_the_suite_covers_every_path(api: LokiApi) -> None:
    asked = {
        re.sub(r"/(label|detected_field)/\w+/values", r"/\1/{name}/values", r["target"].partition("?")[0])
        for r in RECORDED
    }
    assert set(api.paths) - {"/loki/api/v1/delete"} <= asked  # which nothing in Grafana asks for
