"""What Grafana (and vmalert, and a browser) sends, replayed with verb, headers and body as sent; replies by byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from query.api import QueryApi
from tests.query.asgi import ask
from tests.query.demo_api import query_api

RECORDED = [
    json.loads(line) for line in (Path(__file__).parent / "grafana" / "requests.jsonl").read_text("utf-8").splitlines()
]


@pytest.fixture(scope="module")
def api() -> Iterator[QueryApi]:
    with query_api() as app:
        yield app


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["name"])
def test_recorded_request(api: QueryApi, recorded: dict[str, Any]) -> None:
    reply = ask(api, recorded["method"], recorded["target"], recorded["headers"], recorded.get("body", ""))
    assert (reply.status, reply.text) == (recorded["status"], recorded["reply"])
    for name, value in recorded.get("reply_headers", {}).items():
        assert reply.headers.get(name) == value, name


def test_the_suite_covers_what_grafana_asks_for(api: QueryApi) -> None:
    """Every path of the API but those that only Prometheus and its pages know appears in the recording."""
    asked = {recorded["target"].partition("?")[0] for recorded in RECORDED}
    unasked = {path for path in api.paths if path not in asked and "{name}" not in path}
    assert unasked == {
        "/api/v1/alertmanagers",
        "/api/v1/targets",
        "/api/v1/scrape_pools",
        "/api/v1/targets/metadata",
        "/api/v1/status/tsdb",
        "/api/v1/parse_query",
        "/api/v1/read",
        "/federate",
    }
