"""Debian's Prometheus reads our data by remote-read: its engine over our samples answers what ours answers.

Evaluation times lie between samples, because Prometheus 2.42 takes ranges as closed on both sides (decision 19).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from tests.e2e.bodies import write_body
from tests.e2e.prometheus import Prometheus, ask
from tests.e2e.server import Server
from tests.e2e.test_prometheus import same

STALE = float(np.uint64(0x7FF0000000000002).view(np.float64))
STEP_MS = 5000
SAMPLES = 200

QUERIES = [
    "rr_requests_total",
    'rr_requests_total{code=~"4..|5.."}',
    'rr_requests_total{code!="200",pod!~"a.*"}',
    "rate(rr_requests_total[2m])",
    "sum by (code) (rate(rr_requests_total[2m]))",
    "rr_gone",
    "count_over_time(rr_gone[3m])",
    "rr_special",
    "changes(rr_special[10m])",
    "histogram_quantile(0.9, sum by (le) (rate(rr_seconds_bucket[3m])))",
    "rr_requests_total offset 3m",
    "max_over_time(sum(rr_requests_total)[5m:30s])",
    "absent(rr_nothing)",
]


@dataclass
class Reader:
    ours: Server
    theirs: str
    newest_ms: int


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("read")
    rng = np.random.default_rng(7)
    newest_ms = time.time_ns() // 1_000_000 // STEP_MS * STEP_MS
    times = [newest_ms - STEP_MS * i for i in range(SAMPLES - 1, -1, -1)]
    series = []
    for pod in ("a1", "a2", "b"):
        for code in ("200", "404", "500"):
            values = np.cumsum(rng.integers(0, 50, SAMPLES)).astype(float).tolist()
            series.append(
                ({"__name__": "rr_requests_total", "pod": pod, "code": code}, list(zip(times, values, strict=True)))
            )
    counts = np.cumsum(rng.integers(0, 9, (4, SAMPLES)), axis=1).cumsum(axis=0)
    for le, values in zip(("0.1", "0.5", "1", "+Inf"), counts.astype(float).tolist(), strict=True):
        series.append(({"__name__": "rr_seconds_bucket", "le": le}, list(zip(times, values, strict=True))))
    gone = list(zip(times, rng.random(SAMPLES).tolist(), strict=True))
    gone[120:] = [(times[120], STALE)]
    series.append(({"__name__": "rr_gone"}, gone))
    special = [float("nan"), float("inf"), -0.0, 5e-324, -1e308]
    series.append(({"__name__": "rr_special", "x": 'ü "q"'}, list(zip(times, special * (SAMPLES // 5), strict=True))))
    with Server(folder) as server:
        for entry in series:
            assert server.write(write_body([entry])).status == 204
        with Prometheus(folder, "", "", read_url=f"{server.url}/api/v1/read") as prometheus:
            yield Reader(server, prometheus.url, newest_ms)


@pytest.mark.parametrize("query", QUERIES)
def test_instant_answers_are_equal(reader: Reader, query: str) -> None:
    at = reader.newest_ms / 1000 - 302.5  # a sample's distance from everything
    ours, theirs = (ask(url, "query", query=query, time=at) for url in (reader.ours.url, reader.theirs))
    assert ours["resultType"] == theirs["resultType"]
    key = repr
    assert same(
        sorted(ours["result"], key=lambda s: key(s["metric"])), sorted(theirs["result"], key=lambda s: key(s["metric"]))
    ), (ours, theirs)


@pytest.mark.parametrize("query", QUERIES)
def test_range_answers_are_equal(reader: Reader, query: str) -> None:
    end = reader.newest_ms / 1000 - 2.5
    asked = {"query": query, "start": end - 300, "end": end, "step": 15}
    ours, theirs = (ask(url, "query_range", **asked) for url in (reader.ours.url, reader.theirs))
    assert same(ours, theirs), (ours, theirs)


@pytest.mark.parametrize("selector", ["rr_gone", "rr_special", "rr_requests_total"])
def test_raw_samples_are_equal(reader: Reader, selector: str) -> None:
    asked = {"query": f"{selector}[20m]", "time": reader.newest_ms / 1000 + 1}
    ours, theirs = (ask(url, "query", **asked)["result"] for url in (reader.ours.url, reader.theirs))
    assert ours
    assert ours == theirs


def test_series_and_labels_are_equal(reader: Reader) -> None:
    asked = {"match[]": '{__name__=~"rr_.+"}', "start": 1, "end": reader.newest_ms / 1000}
    ours, theirs = (ask(url, "series", **asked) for url in (reader.ours.url, reader.theirs))
    assert sorted(map(repr, ours)) == sorted(map(repr, theirs))
    assert len(ours) == 15


@pytest.mark.parametrize("query", QUERIES)
def test_samples_by_step_are_equal(reader: Reader, query: str) -> None:
    end = reader.newest_ms / 1000 - 2.5
    asked = {"query": query, "start": end - 300, "end": end, "step": 15, "stats": "all"}
    ours, theirs = (ask(url, "query_range", **asked)["stats"]["samples"] for url in (reader.ours.url, reader.theirs))
    assert ours["totalQueryableSamplesPerStep"] == theirs["totalQueryableSamplesPerStep"]
    assert ours["totalQueryableSamples"] == theirs["totalQueryableSamples"]
