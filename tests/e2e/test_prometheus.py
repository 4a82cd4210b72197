"""A real Prometheus writes to us, and both give the same answers.

Debian's Prometheus (2.42) takes a range as closed on both sides, we take it as left-open like Prometheus 3: evaluation
times are kept half a scrape interval away from every sample.
"""

from __future__ import annotations

import json
import math
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.prometheus import Exporter, Prometheus, ask, need
from tests.e2e.server import Server

SCRAPES = 26
"""So many that no window of the queries reaches before the first: 2.42 extrapolated a young counter differently."""

INSTANT = [
    "demo_temperature",
    'demo_requests_total{code!="200"}',
    '{__name__=~"demo_.*_count|up"}',
    "demo_requests_total offset 3s",
    "up",
    "demo_nan",
    "demo_sometimes",
    "count(demo_sometimes)",
    "absent(demo_missing)",
    "absent_over_time(demo_missing[5s])",
    "rate(demo_requests_total[7s])",
    "increase(demo_requests_total[10s])",
    "irate(demo_requests_total[7s])",
    "delta(demo_temperature[7s])",
    "sum(rate(demo_requests_total[9s]))",
    "sum by (code) (rate(demo_requests_total[9s]))",
    "avg without (instance, job) (demo_temperature)",
    "min(demo_temperature)",
    "max by (room) (demo_temperature)",
    "count by (code) (demo_requests_total)",
    "group by (path) (demo_requests_total)",
    "quantile(0.3, demo_temperature)",
    "topk(2, demo_requests_total)",
    "bottomk by (code) (1, demo_requests_total)",
    "sum_over_time(demo_temperature[5s])",
    "avg_over_time(demo_temperature[5s])",
    "min_over_time(demo_temperature[5s])",
    "max_over_time(demo_temperature[5s])",
    "count_over_time(demo_sometimes[9s])",
    "last_over_time(demo_sometimes[9s])",
    "present_over_time(demo_sometimes[9s])",
    "histogram_quantile(0.9, rate(demo_seconds_bucket[9s]))",
    "histogram_quantile(0.5, sum by (le) (rate(demo_seconds_bucket[9s])))",
    "rate(demo_seconds_sum[9s]) / rate(demo_seconds_count[9s])",
    'sum(rate(demo_requests_total{code="500"}[9s])) / sum(rate(demo_requests_total[9s]))',
    "demo_requests_total / on (path) group_left () demo_requests_total{code='200'}",
    "demo_temperature > bool 10",
    "demo_temperature > 10",
    "demo_temperature and demo_temperature < 15",
    "demo_temperature unless demo_temperature < 15",
    "demo_temperature > 20 or demo_temperature < 0",
    "abs(demo_temperature) + ceil(demo_temperature) * floor(demo_temperature)",
    "round(demo_temperature, 0.5)",
    "clamp(demo_temperature, 0, 20)",
    'label_replace(demo_temperature, "floor", "$1", "room", "([ab])")',
    "timestamp(demo_temperature)",
    "scalar(demo_seconds_count) * 2 + vector(1)",
    "time()",
    "-demo_temperature ^ 2 % 7",
    "max_over_time(sum(demo_temperature)[8s:2s])",
    "rate(demo_requests_total[5s] @ end())",
    "2 * 3 - 1",
    '"text"',
]
RANGE = [query for query in INSTANT if query != '"text"']


@dataclass
class Pair:
    ours: Server
    theirs: str
    at: float


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    need("prometheus")
    folder = tmp_path_factory.mktemp("pair")
    exporter = Exporter()
    try:
        with Server(folder) as server, Prometheus(folder, exporter.target, f"{server.url}/api/v1/write") as prometheus:
            until = time.monotonic() + 90
            while time.monotonic() < until:
                raw = ask(prometheus.url, "query", query="demo_seconds_count[5m]")["result"]
                if raw and len(raw[0]["values"]) >= SCRAPES:
                    break
                time.sleep(0.5)
            else:
                pytest.fail("prometheus did not scrape")
            # half a scrape interval behind the newest sample but three, so that both have everything before it
            at = raw[0]["values"][-3][0] + 0.5
            while server.query("timestamp(demo_seconds_count)")[0]["value"][1] < str(at):
                time.sleep(0.2)
                assert time.monotonic() < until
            yield Pair(server, prometheus.url, round(at, 3))
    finally:
        exporter.end()


def same(ours: Any, theirs: Any) -> bool:
    """Equal structure; numbers within 1e-12 of each other, because sums may be added in another order."""
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, str) and isinstance(theirs, str) and ours != theirs:
        try:
            return math.isclose(float(ours), float(theirs), rel_tol=1e-12, abs_tol=1e-12)
        except ValueError:
            return False
    return bool(ours == theirs)


def ordered(data: Any, *, keep_order: bool = False) -> Any:
    if data["resultType"] in ("vector", "matrix") and not keep_order:
        data["result"].sort(key=lambda row: json.dumps(row["metric"], sort_keys=True))
    return data


@pytest.mark.parametrize("query", INSTANT)
def test_instant(pair: Pair, query: str) -> None:
    ours = ordered(ask(pair.ours.url, "query", query=query, time=pair.at))
    theirs = ordered(ask(pair.theirs, "query", query=query, time=pair.at))
    assert same(ours, theirs), f"\nours   {ours}\ntheirs {theirs}"


@pytest.mark.parametrize("query", RANGE)
def test_range(pair: Pair, query: str) -> None:
    span = {"start": pair.at - 10, "end": pair.at, "step": 2}
    ours = ordered(ask(pair.ours.url, "query_range", query=query, **span))
    theirs = ordered(ask(pair.theirs, "query_range", query=query, **span))
    assert same(ours, theirs), f"\nours   {ours}\ntheirs {theirs}"


def test_raw_samples_are_the_same(pair: Pair) -> None:
    query = '{__name__=~".+"}[8s]'
    ours = ordered(ask(pair.ours.url, "query", query=query, time=pair.at))
    theirs = ordered(ask(pair.theirs, "query", query=query, time=pair.at))
    assert ours == theirs
    assert len(ours["result"]) > 25


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("labels", {}),
        ("labels", {"match[]": "demo_temperature"}),
        ("label/__name__/values", {}),
        ("label/room/values", {}),
        ("label/path/values", {"match[]": 'demo_requests_total{code="500"}'}),
        ("series", {"match[]": ["demo_temperature", "up"]}),
    ],
)
def test_labels_and_series(pair: Pair, path: str, params: dict[str, Any]) -> None:
    ours, theirs = (ask(url, path, **params) for url in (pair.ours.url, pair.theirs))
    if path == "series":
        ours, theirs = (sorted(rows, key=lambda row: json.dumps(row, sort_keys=True)) for rows in (ours, theirs))
    assert ours == theirs


@pytest.mark.parametrize(
    "query", ["sum(", "demo_temperature + on (x", "rate(demo_temperature)", "{}", "1 +", "foo{a=~'*'}"]
)
def test_errors_have_the_same_kind(pair: Pair, query: str) -> None:
    assert ask(pair.ours.url, "query", query=query) == ask(pair.theirs, "query", query=query) == (400, "bad_data")


def test_metadata_arrives(pair: Pair) -> None:
    until = time.monotonic() + 15
    while not (found := ask(pair.ours.url, "metadata", metric="demo_requests_total")) and time.monotonic() < until:
        time.sleep(0.2)
    assert found == {"demo_requests_total": [{"type": "counter", "help": "Requests served.", "unit": ""}]}


class TestPromtool:
    """Prometheus' own client asks us."""

    @staticmethod
    def run(*arguments: str) -> str:
        command = (need("promtool"), "query", *arguments)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_instant(self, pair: Pair) -> None:
        out = self.run("instant", f"--time={pair.at}", pair.ours.url, 'demo_temperature{room="a"}')
        assert "demo_temperature{" in out

    def test_range(self, pair: Pair) -> None:
        flags = (f"--start={pair.at - 10:.0f}", f"--end={pair.at:.0f}", "--step=2s")
        out = self.run("range", *flags, pair.ours.url, "sum(demo_temperature)")
        assert out.count("@[") >= 5

    def test_series(self, pair: Pair) -> None:
        assert self.run("series", "--match=demo_temperature", pair.ours.url).count("room=") == 4

    def test_labels(self, pair: Pair) -> None:
        assert self.run("labels", pair.ours.url, "room").split() == ["a", "b", "c", "d"]


def federated(url: str) -> set[tuple[str, str, str]]:
    """(series, value, time) of each sample of a federation page."""
    query = urllib.parse.urlencode({"match[]": '{__name__=~"demo_.+"}'})
    with urllib.request.urlopen(f"{url}/federate?{query}", timeout=30) as response:
        page = response.read().decode()
    rows = [line.rsplit(" ", 2) for line in page.splitlines() if not line.startswith("#")]
    return {(series, repr(float(value)), ts_ms) for series, value, ts_ms in rows}


def test_federation_pages_are_equal(pair: Pair) -> None:
    until = time.monotonic() + 20
    ours, theirs = federated(pair.ours.url), federated(pair.theirs)
    while ours != theirs and time.monotonic() < until:  # a scrape in between
        time.sleep(0.3)
        ours, theirs = federated(pair.ours.url), federated(pair.theirs)
    assert len(ours) > 20
    assert ours == theirs
