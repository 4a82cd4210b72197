"""schemathesis asks a running server what its OpenAPI promises: no answer is a fault of ours, all are as described."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import schemathesis.openapi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import BaseSchema, Case, CheckContext, GenerationMode, Response
from schemathesis.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from schemathesis.specs.openapi.checks import unsupported_method

from meshpulse.openapi import hot_paths
from tests.damage import damaged, damages
from tests.e2e.bodies import write_body
from tests.e2e.server import Server
from tests.house.test_lint import ROOT
from tests.ingest.bodies import snappy
from tests.pushes import PUSHES

QUERIES = [
    "asked_total", "rate(asked_total[1m])", "sum by (code) (increase(asked_total[5m]))", "asked_total > bool 3",
    "histogram_quantile(0.9, asked_total)", 'label_replace(asked_total, "a", "$1", "code", "(.*)")', "time()", '"text"',
    "max_over_time(asked_total[5m:10s] offset 1m)", "asked_total @ end()", "topk(1, asked_total)", "1 / 0",
    "asked_total * on (code) group_left () asked_total", "absent(nothing)", "vector(scalar(asked_total))", "sum(",
    "asked_total[5m]", "a" * 300, "{}", '{__name__=~".+"}', "rate(asked_total)", "-asked_total ^ 2", "1 offset",
]  # fmt: skip
SELECTORS = ["asked_total", '{code="200"}', '{__name__=~"asked.*"}', "up[5m]", "{", '{code=~"*"}', "", "é{"]
TIMES = ["0", "1", "-1", "1e3", "NaN", "Inf", "1e300", "2026-11-25T21:00:00Z", "2026-13-25T21:00:00Z", "now", "", "0x1"]
DURATIONS = ["15", "0.5", "1m", "1h30m", "0", "-1", "1e9", "NaN", "5x", "1ns", "", "99999999999999999999d"]

times = st.sampled_from(TIMES) | st.floats(0, 3600).map(lambda age: f"{time.time() - age:.3f}") | st.text(max_size=8)
schemathesis.openapi.format("promql", st.sampled_from(QUERIES) | st.text(max_size=30))
schemathesis.openapi.format("selector", st.sampled_from(SELECTORS) | st.text(max_size=12))
schemathesis.openapi.format("time", times)
schemathesis.openapi.format("prometheus-duration", st.sampled_from(DURATIONS) | st.text(max_size=8))
GOOD_BODIES = [PUSHES[name].plain(0) for name in ("remote-write 1.0", "remote-write 2.0", "OTLP")]
bodies = st.sampled_from(GOOD_BODIES).flatmap(lambda good: damages.map(lambda damage: damaged(good, damage)))
schemathesis.openapi.media_type("application/x-protobuf", st.binary(max_size=40) | bodies | bodies.map(snappy))

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance, unsupported_method]


def not_our_fault(_context: CheckContext, response: Response, case: Case) -> None:
    """5xx only where it is promised: a query whose time is over."""
    if response.status_code >= 500:
        assert response.status_code == 503, response.text
        assert b'"timeout"' in response.content, response.text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("openapi")) as running:
        now = time.time_ns() // 1_000_000
        series = [
            ({"__name__": "asked_total", "code": code}, [(now - 5000 * i, float(100 - i)) for i in range(20, -1, -1)])
            for code in ("200", "500")
        ]
        series.append(({"__name__": "asked_odd", "name with blank": "é"}, [(now, math.inf)]))
        assert running.write(write_body(series)).status == 204
        yield running


@pytest.fixture(scope="module")
def api(server: Server) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def ask(api: BaseSchema, path: str, verb: str, examples: int) -> None:
    """Ask one operation ``examples`` times, with what its description allows and with some that it does not."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(api[path][verb].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def check(case: Case) -> None:
        case.call_and_validate(checks=[*CHECKS, not_our_fault])

    check()


PAGES = ["/", "/-/healthy", "/-/ready", "/ready", "/metrics", "/health"]
OPERATIONS = [(path, verb) for path, verbs in hot_paths().items() for verb in verbs] + [(path, "get") for path in PAGES]
EVERY = pytest.mark.parametrize(("path", "verb"), OPERATIONS)


@EVERY
def test_answers_are_as_described(api: BaseSchema, path: str, verb: str) -> None:
    ask(api, path, verb, 1 if path in PAGES else 15)


@pytest.mark.slow
@EVERY
def test_answers_are_as_described_in_depth(api: BaseSchema, path: str, verb: str) -> None:
    ask(api, path, verb, 5 if path in PAGES else 100)


def test_nothing_was_our_fault(server: Server) -> None:
    """After the tests above."""
    assert "Traceback" not in server.log, server.log.partition("Traceback")[2][:5000]
    assert server.get("/-/ready").status == 200


def test_every_metrics_route_is_described(server: Server) -> None:
    described: dict[str, Any] = json.loads(server.get("/openapi.json").body)["paths"]
    rows = re.findall(r"^\| [a-z]+ \| ([A-Z, ]+) \| `(/[^`]+)` \| done", compat_page(), re.MULTILINE)
    assert len(rows) > 30
    admin = "/api/v1/admin/"
    wanted = {(path, verb) for verbs, path in rows for verb in verbs.split(", ") if not path.startswith(admin)}
    found = {(path, verb.upper()) for path, verbs in described.items() for verb in verbs}
    of_logs = {(path, verb) for path, verb in wanted if path.startswith("/loki/") or path in LOG_PATHS}
    assert wanted - of_logs <= found


LOG_PATHS = {"/otlp/v1/logs", "/api/prom/push", "/prometheus/api/v1/rules", "/prometheus/api/v1/alerts"}
"""In the table of metrics for their clients' sake; the log API has a page of its own (docs/logs.md)."""


def compat_page() -> str:
    return Path(ROOT / "docs" / "compat.md").read_text()
