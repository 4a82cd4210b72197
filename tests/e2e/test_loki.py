"""Logs through the running server: pushed, asked for, counted, tailed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.e2e.server import Server

NS = 10**9


def push(server: Server, labels: dict[str, str], lines: list[tuple[int, str]]) -> None:
    body = {"streams": [{"stream": labels, "values": [[str(ts), line] for ts, line in lines]}]}
    reply = server.request("POST", "/loki/api/v1/push", json.dumps(body).encode(), {"Content-Type": "application/json"})
    assert reply.status == 204, reply.body


def test_pushed_lines_are_read_counted_and_tailed(tmp_path: Path) -> None:
    client = pytest.importorskip("websockets.sync.client")
    with Server(tmp_path) as server:
        now = time.time_ns()
        push(server, {"app": "web"}, [(now - (5 - i) * NS, f'{{"status":{200 + i},"took":"{i}ms"}}') for i in range(5)])
        query = quote('{app="web"} | json | took >= 3ms')
        found = server.get(f"/loki/api/v1/query_range?query={query}").json()["data"]["result"]
        assert sorted(labels["stream"]["status"] for labels in found) == ["203", "204"]
        count = quote('sum by (app) (count_over_time({app="web"} | json | status < 203 [1h]))')
        (series,) = server.get(f"/loki/api/v1/query?query={count}").json()["data"]["result"]
        assert (series["metric"], series["value"][1]) == ({"app": "web"}, "3")
        assert "app" in server.get("/loki/api/v1/labels").json()["data"]

        selector = quote('{app="web"}')
        with client.connect(f"ws://127.0.0.1:{server.port}/loki/api/v1/tail?limit=1&query={selector}") as tail:
            (stream,) = json.loads(tail.recv(timeout=10))["streams"]
            assert json.loads(stream["values"][0][1])["status"] == 204
            push(server, {"app": "web"}, [(time.time_ns(), "new line")])
            (stream,) = json.loads(tail.recv(timeout=10))["streams"]
            assert stream["values"][0][1] == "new line"

        with pytest.raises(Exception, match="400"):
            client.connect(f"ws://127.0.0.1:{server.port}/loki/api/v1/tail?query=x")
