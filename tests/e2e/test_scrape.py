"""Scraping side by side with Debian's unmodified Prometheus, and of an unmodified Python client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server

from tests.e2e.prometheus import Prometheus, ask
from tests.e2e.server import Server

FREE = "storage: {free_bytes_min: 0, free_fraction_min: 0}"
SECONDS_MAX = 60.0
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT = "text/plain; version=0.0.4"
LONG = "v" * 60


def openmetrics_page(now: float) -> str:
    return f"""# HELP shop_requests Requests \\"served\\"\\nby path.
# TYPE shop_requests counter
shop_requests_total{{path="/grüße",q="a\\"b\\\\c\\nd"}} 17.0 # {{trace_id="abc",span_id="1"}} 0.5 {now - 3:.3f}
shop_requests_created{{path="/grüße",q="a\\"b\\\\c\\nd"}} 1.7e9
# TYPE shop_latency_seconds histogram
# UNIT shop_latency_seconds seconds
shop_latency_seconds_bucket{{le="0.1"}} 4 # {{}} 0.067 {now - 2:.3f}
shop_latency_seconds_bucket{{le="1.0"}} 11 # {{trace_id="KOO5S4vxi0o"}} 0.67 {now - 2:.3f}
shop_latency_seconds_bucket{{le="+Inf"}} 17
shop_latency_seconds_count 17
shop_latency_seconds_sum 3.244567e2
# TYPE shop_queue gaugehistogram
shop_queue_bucket{{le="+Inf"}} 3
shop_queue_gcount 3
shop_queue_gsum -1.5
# TYPE shop_state stateset
shop_state{{shop_state="open"}} 1
shop_state{{shop_state="shut"}} 0
# TYPE shop_build info
shop_build_info{{version="1.2"}} 1
# TYPE shop_late unknown
shop_late{{at="its own time"}} 42 {now - 5:.3f}
shop_late{{at="nan"}} NaN
shop_late{{at="inf"}} -Inf
shop_late{{at="tiny"}} 4.9e-324
# TYPE shop_size summary
shop_size{{quantile="0.99",job="theirs"}} 7e-05
shop_size_sum 1
shop_size_count 2
# EOF
"""


class Site:
    """Pages by path, each with the ``Content-Type`` that goes with it."""

    def __init__(self, pages: dict[str, tuple[str, str]]) -> None:
        self.pages = pages
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                kind, text = site.pages.get(self.path, ("", ""))
                body = text.encode()
                self.send_response(200 if kind else 404)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def job(self, name: str, **more: Any) -> dict[str, Any]:
        """A scrape configuration of the page ``/name``."""
        return {"job_name": name, "metrics_path": f"/{name}", "static_configs": [{"targets": [self.address]}], **more}

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def config_of(jobs: list[dict[str, Any]], interval: str = "1s") -> str:
    times = {"scrape_interval": interval, "scrape_timeout": interval}
    return f"{FREE}\nglobal: {json.dumps(times)}\nscrape_configs: {json.dumps(jobs)}\n"


def wait_for(what: str, done: Callable[[], Any]) -> Any:
    until = time.monotonic() + SECONDS_MAX
    while not (found := done()):
        assert time.monotonic() < until, what
        time.sleep(0.2)
    return found


class Pair:
    """Both servers, scraping the same site."""

    def __init__(self, ours: str, theirs: str, site: Site, now: float) -> None:
        self.urls = (ours, theirs)
        self.site = site
        self.now = now

    def both(self, path: str, **params: Any) -> tuple[Any, Any]:
        ours, theirs = (ask(url, path, **params) for url in self.urls)
        return ours, theirs


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    now = time.time()
    site = Site(
        {
            "/shop": (OPENMETRICS, openmetrics_page(now)),
            "/relabelled": (OPENMETRICS, openmetrics_page(now)),
            "/honest": (TEXT, 'plain{job="its own",code="200"} 5 # not openmetrics\n'),
            "/text": (TEXT, '# TYPE plain counter\nplain {job="its own", code="200",} 5\n\nplain2\t7 1\n# c\n'),
            "/odd": (TEXT, f"far 1 {(now + 3600) * 1000:.0f}\ntwice 1\ntwice 2\nold 3 {(now - 60) * 1000:.0f}\n"),
            "/empty": (TEXT, 'empty{job="",instance=""} 3\nfull{job="",instance="x"} 4\n'),
            "/labels": (TEXT, f'wide{{a="1",b="2",long_name_here="{LONG}"}} 1\n'),
            "/names": (TEXT, f'wide{{a="1",b="2",long_name_here="{LONG}"}} 1\n'),
            "/values": (TEXT, f'wide{{a="1",b="2",long_name_here="{LONG}"}} 1\n'),
            "/samples": (TEXT, "a 1\nb 2\nc 3\n"),
            "/body": (TEXT, "a 1\n" + "# padding\n" * 100),
            "/cut": (OPENMETRICS, "a 1\n"),
            "/fine": (TEXT, "fine 1\n"),
        }
    )
    drop = [{"source_labels": ["__name__"], "regex": "shop_(latency|queue).*", "action": "drop"}]
    jobs = [
        site.job("shop"),
        site.job("relabelled", metric_relabel_configs=drop),
        site.job("honest"),
        site.job("text", honor_labels=True, honor_timestamps=False),
        site.job("odd"),
        site.job("empty", honor_labels=True),
        site.job("labels", label_limit=4),
        site.job("names", label_name_length_limit=10),
        site.job("values", label_value_length_limit=50),
        site.job("samples", sample_limit=2),
        site.job("body", body_size_limit="100B"),
        site.job("cut"),
        site.job("missing"),
        site.job("fine", sample_limit=1, label_limit=3, label_value_length_limit=50, body_size_limit="8B"),
    ]
    folder = tmp_path_factory.mktemp("scrape")
    (folder / "theirs").mkdir()
    with Server(folder, config_of(jobs)) as server, Prometheus(folder / "theirs", "", "", jobs=jobs) as prometheus:
        pair = Pair(server.url, prometheus.url, site, now)
        for url in pair.urls:
            wait_for(
                "each target scraped thrice",
                lambda url=url: len(ask(url, "query", query="count_over_time(up[1h]) >= 3")["result"]) == len(jobs),
            )
        yield pair
    site.end()


def instant(data: Any) -> dict[str, str]:
    return {json.dumps(row["metric"], sort_keys=True): row["value"][1] for row in data["result"]}


@pytest.mark.parametrize("job", ["shop", "text", "relabelled", "fine", "odd", "empty"])
def test_series_and_values_are_the_same(pair: Pair, job: str) -> None:
    what = f'{{job="{job}",__name__!~"scrape_duration_seconds|scrape_series_added"}} or {{exported_job="{job}"}}'
    what += {"text": ' or {job="its own"}', "empty": ' or {__name__=~"empty|full"}'}.get(job, "")
    ours, theirs = (instant(data) for data in pair.both("query", query=what))
    assert ours == theirs
    assert len(ours) > 3


def test_times_of_samples_are_the_same(pair: Pair) -> None:
    ours, theirs = (
        instant(data) for data in pair.both("query", query='timestamp(shop_late{job="shop",at="its own time"})')
    )
    assert ours.keys() == theirs.keys()
    (mine,), (other,) = ours.values(), theirs.values()
    assert float(mine) == pytest.approx(pair.now - 5, abs=0.0011)
    assert float(mine) == pytest.approx(float(other), abs=0.0011)  # it loses a millisecond where a float is not exact


def test_exemplars_are_the_same(pair: Pair) -> None:
    def rows(data: Any) -> list[Any]:
        flat = [
            (sorted(one["seriesLabels"].items()), sorted(e["labels"].items()), e["value"], round(e["timestamp"], 2))
            for one in data
            for e in one["exemplars"]
        ]
        return sorted(flat)

    ours, theirs = (
        rows(data)
        for data in pair.both("query_exemplars", query='{job="shop"}', start=pair.now - 60, end=pair.now + 60)
    )
    assert ours == theirs
    assert len(ours) == 3


def test_metadata_is_the_same(pair: Pair) -> None:
    def rows(data: Any) -> list[Any]:
        return sorted((row["metric"], row["type"], row["help"], row["unit"]) for row in data)

    ours, theirs = (rows(data) for data in pair.both("targets/metadata", match_target='{job="shop"}'))
    assert ours == theirs
    assert ("shop_latency_seconds", "histogram", "", "seconds") in ours
    mine, other = (data["shop_requests"] for data in pair.both("metadata", metric="shop_requests"))
    assert mine == other


@pytest.mark.parametrize("job", ["labels", "names", "values", "samples", "body", "cut", "missing", "honest"])
def test_pages_beyond_limits_fail_alike(pair: Pair, job: str) -> None:
    assert instant(pair.both("query", query=f'up{{job="{job}"}}')[0]).popitem()[1] == "0"
    ours, theirs = (next(t for t in data["activeTargets"] if t["scrapePool"] == job) for data in pair.both("targets"))
    assert ours["health"] == theirs["health"] == "down"
    if job not in ("cut", "honest"):  # ours name the line
        assert ours["lastError"] == theirs["lastError"]
    if job == "cut":
        assert theirs["lastError"] in ours["lastError"]
    left = f'{{job="{job}",__name__!~"up|scrape_.*"}}'
    assert [data["result"] for data in pair.both("query", query=left)] == [[], []]
    if job == "samples":
        counts = f'{{job="{job}",__name__=~"scrape_samples.*"}}'
        ours, theirs = (instant(data) for data in pair.both("query", query=counts))
        assert ours == theirs


def test_what_vanishes_is_stale_at_once(pair: Pair) -> None:
    """Last: it changes the pages. A series goes, and a target fails."""
    gone = 'count({job="text",__name__=~"plain.*"} or {job="its own"})'
    assert [instant(data) for data in pair.both("query", query=gone)] == [{"{}": "2"}] * 2
    pair.site.pages["/text"] = (TEXT, "plain2 7\n")
    del pair.site.pages["/fine"]
    for url in pair.urls:
        wait_for("plain to be gone", lambda url=url: instant(ask(url, "query", query=gone)) == {"{}": "1"})
        wait_for("fine to be gone", lambda url=url: not ask(url, "query", query="fine")["result"])


def test_a_python_client_with_exemplars_and_utf8_names(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    counter = Counter("app.requests", "Requests of the app.", ["http.path"], registry=registry)
    histogram = Histogram("app_seconds", "Seconds.", registry=registry, buckets=(0.1, 1))
    counter.labels("/").inc(3, {"trace_id": "t1"})
    histogram.observe(0.5, {"trace_id": "t2"})
    exporter, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        address = f"127.0.0.1:{exporter.server_port}"
        jobs = [{"job_name": "app", "static_configs": [{"targets": [address]}]}]
        with Server(tmp_path, config_of(jobs)) as server:
            wait_for("a scrape", lambda: server.query("up == 1"))
            (row,) = server.query('{"app.requests_total"}')
            labels = {"__name__": "app.requests_total", "http.path": "/", "instance": address, "job": "app"}
            assert (row["metric"], row["value"][1]) == (labels, "3")
            assert [r["value"][1] for r in server.query('app_seconds_bucket{le="1.0"}')] == ["1"]
            found = ask(server.url, "query_exemplars", query='{"app.requests_total"} or app_seconds_bucket', start=0)
            assert [[e["labels"] for e in one["exemplars"]] for one in found] == [
                [{"trace_id": "t1"}],
                [{"trace_id": "t2"}],
            ]
            families = {r["metric"]: r["type"] for r in ask(server.url, "targets/metadata")}
            assert families["app.requests"] == "counter"
            counter.labels("/").inc(1, {"trace_id": "t3"})
            wait_for(
                "the next exemplar",
                lambda: (
                    len(ask(server.url, "query_exemplars", query='{"app.requests_total"}', start=0)[0]["exemplars"])
                    == 2
                ),
            )
    finally:
        exporter.shutdown()
        thread.join()
