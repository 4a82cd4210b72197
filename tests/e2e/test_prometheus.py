"""Debian's unmodified Prometheus writes to us; both then give the same answers, and promtool reads us."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.crash.harness import Server, free_port

CONFIG = """\
global:
  scrape_interval: 1s
  external_labels: {{}}
scrape_configs:
  - job_name: prometheus
    static_configs: [{{targets: ["127.0.0.1:{own}"]}}]
  - job_name: gone
    static_configs: [{{targets: ["127.0.0.1:{closed}"]}}]
remote_write:
  - url: http://127.0.0.1:{port}/api/v1/write
    queue_config: {{batch_send_deadline: 200ms, max_samples_per_send: 500}}
"""


@dataclass
class Pair:
    """A Prometheus and the meshpulse it writes to."""

    prometheus: str
    ours: str
    server: Server


def ask(base: str, path: str, **parameters: str) -> Any:
    with urllib.request.urlopen(f"{base}{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
        body = json.load(answer)
    assert body["status"] == "success"
    return body["data"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("needs Debian's prometheus")
    folder: Path = tmp_path_factory.mktemp("prometheus")
    server = Server(folder / "data")
    port = free_port()
    closed = socket.socket()  # bound, never listening: a target that is down
    closed.bind(("127.0.0.1", 0))
    config = CONFIG.format(own=port, closed=closed.getsockname()[1], port=server.port)
    (folder / "prometheus.yml").write_text(config)
    command = [binary, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/prom"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        base = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                rows = ask(base, "/api/v1/query", query="count_over_time(up[1h]) > 15")["result"]
                if len(rows) == 2:
                    break
            except OSError:
                pass
            assert time.monotonic() < deadline, (folder / "prometheus.log").read_text()[-2000:]
            time.sleep(0.3)
        time.sleep(2.0)  # what was scraped by now is sent by now
        yield Pair(base, f"http://127.0.0.1:{server.port}", server)
    finally:
        process.terminate()
        process.wait(30)
        closed.close()
        assert server.stop() == 0


def off_boundary(pair: Pair) -> float:
    """A time 3 s back that no scrape and no window border of the tests falls on."""
    newest = float(ask(pair.prometheus, "/api/v1/query", query="max(timestamp(up))")["result"][0]["value"][1])
    return math.floor(newest) - 3 + (newest % 1 + 0.4567) % 1


def by_labels(rows: list[dict[str, Any]], key: str) -> dict[tuple[tuple[str, str], ...], Any]:
    return {tuple(sorted(row["metric"].items())): row[key] for row in rows}


def test_every_series_has_the_same_value(pair: Pair) -> None:
    at = f"{off_boundary(pair):.3f}"
    query = '{__name__=~".+"}'
    theirs = by_labels(ask(pair.prometheus, "/api/v1/query", query=query, time=at)["result"], "value")
    ours = by_labels(ask(pair.ours, "/api/v1/query", query=query, time=at)["result"], "value")
    assert len(theirs) > 500
    assert ours == theirs  # the very text: time and value


def test_raw_samples_are_the_same(pair: Pair) -> None:
    at = f"{off_boundary(pair):.3f}"
    query = '{job="prometheus",__name__=~"prometheus_(http|tsdb).*|up"}[8s]'
    theirs = by_labels(ask(pair.prometheus, "/api/v1/query", query=query, time=at)["result"], "values")
    ours = by_labels(ask(pair.ours, "/api/v1/query", query=query, time=at)["result"], "values")
    assert ours == theirs


@pytest.mark.parametrize(
    "query",
    [
        "up",
        "rate(prometheus_http_requests_total[5s])",
        "sum by (code) (increase(prometheus_http_requests_total[6s]))",
        "histogram_quantile(0.9, sum by (le) (rate(prometheus_http_request_duration_seconds_bucket[7s])))",
        "avg_over_time(process_resident_memory_bytes[4s]) / 1024",
        "topk(3, prometheus_tsdb_head_series) or up",
        "max by (job) (scrape_duration_seconds) * on (job) group_left up",
        "count by (__name__) ({__name__=~'go_.*'})",
        "quantile_over_time(0.5, go_goroutines[6s]) - go_goroutines offset 2s",
        "absent(nothing)",
        "label_replace(up, 'x', '$1', 'instance', '(.*):.*')",
        "sum(rate(prometheus_http_requests_total[4s:1s]))",
        "up == bool 1",
        "stddev(scrape_samples_scraped) > 0",
    ],
)
def test_range_queries_agree(pair: Pair, query: str) -> None:
    end = off_boundary(pair)
    given = {"query": query, "start": f"{end - 8:.3f}", "end": f"{end:.3f}", "step": "1"}
    theirs = by_labels(ask(pair.prometheus, "/api/v1/query_range", **given)["result"], "values")
    ours = by_labels(ask(pair.ours, "/api/v1/query_range", **given)["result"], "values")
    assert ours.keys() == theirs.keys()
    assert theirs, "the reference answers something"
    for labels, points in theirs.items():
        assert [t for t, _ in ours[labels]] == [t for t, _ in points]
        for (_, a), (_, b) in zip(ours[labels], points, strict=True):
            assert float(a) == pytest.approx(float(b), rel=1e-12, nan_ok=True), labels


def test_names_values_and_metadata_agree(pair: Pair) -> None:
    assert ask(pair.ours, "/api/v1/labels") == ask(pair.prometheus, "/api/v1/labels")
    for name in ("__name__", "job", "code", "le"):
        path = f"/api/v1/label/{name}/values"
        assert ask(pair.ours, path) == ask(pair.prometheus, path)
    match = {"match[]": 'up{job="gone"}'}
    assert ask(pair.ours, "/api/v1/series", **match) == ask(pair.prometheus, "/api/v1/series", **match)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["instant", "{url}", "up"], 'up{instance="127.0.0.1:'),
        (["range", "--step=1s", "{url}", "sum(up)"], "{} =>"),
        (["series", '--match=up{job="gone"}', "{url}"], '__name__="up"'),
        (["labels", "{url}", "job"], "gone\nprometheus"),
    ],
)
def test_promtool_reads_us(pair: Pair, command: list[str], expected: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool")
    arguments = [part.format(url=pair.ours) for part in command]
    done = subprocess.run([promtool, "query", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
