"""Every way in over the wire, read back by queries."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator

import pytest

from tests.e2e.server import Server
from tests.ingest.bodies import snappy
from tests.ingest.bodies_v2 import TYPE, Body


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("push")) as running:
        yield running


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_remote_write_2_with_exemplars_and_metadata(server: Server) -> None:
    now = now_ms()
    body = Body()
    trace = body.exemplar([("trace_id", "ab")], 0.25, now)
    body.add({"__name__": "v2_seconds_count", "job": "a"}, [(2.0, now)], trace, metadata=(5, "Seconds.", "seconds"))
    reply = server.request("POST", "/api/v1/write", snappy(body.raw()), {"Content-Type": TYPE})
    assert reply.status == 204
    assert reply.headers["x-prometheus-remote-write-samples-written"] == "1"
    assert reply.headers["x-prometheus-remote-write-exemplars-written"] == "1"
    labels = {"__name__": "v2_seconds_count", "job": "a"}
    assert server.query("v2_seconds_count", time=now / 1000) == [{"metric": labels, "value": [now / 1000, "2"]}]
    found = server.get("/api/v1/query_exemplars?query=rate(v2_seconds_count[5m])&start=0")
    exemplar = {"labels": {"trace_id": "ab"}, "value": "0.25", "timestamp": now / 1000}
    assert json.loads(found.body)["data"] == [{"seriesLabels": labels, "exemplars": [exemplar]}]
    families = json.loads(server.get("/api/v1/metadata?metric=v2_seconds").body)["data"]
    assert families == {"v2_seconds": [{"type": "summary", "help": "Seconds.", "unit": "seconds"}]}


def test_text_import(server: Server) -> None:
    now = now_ms()
    text = b'# TYPE imported gauge\nimported{a="1"} 3\n'
    reply = server.request(
        "POST",
        f"/api/v1/import/prometheus?extra_label=job=b&timestamp={now}",
        gzip.compress(text),
        {"Content-Encoding": "gzip"},
    )
    assert (reply.status, reply.body) == (204, b"")
    labels = {"__name__": "imported", "a": "1", "job": "b"}
    assert server.query("imported", time=now / 1000) == [{"metric": labels, "value": [now / 1000, "3"]}]
    assert json.loads(server.get("/api/v1/metadata?metric=imported").body)["data"]["imported"][0]["type"] == "gauge"
