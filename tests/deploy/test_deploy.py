"""What is shipped beside the program: dashboards and alert rules, against our parser and a server with real data.

The data are pages of a real Envoy (``envoy_stats.txt``: the demo's, with a failing third endpoint) and of the server
itself, let grow for a quarter of an hour and pushed by remote-write, so that every panel has something to show.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from query.promql.ast import ValueType, VectorSelector
from query.promql.parser import parse, type_of
from tests.e2e.bodies import write_body
from tests.e2e.prometheus import need
from tests.e2e.server import Server
from tests.house.test_lint import ROOT
from tsdb.compaction import Failure
from tsdb.errors import Reason
from tsdb.matchers import MatchOp

DEPLOY = ROOT / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
BOARDS = {path.stem: json.loads(path.read_text()) for path in DASHBOARDS}
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "alerts" / "meshpulse.rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
STEP_MS = 15_000
STEPS = 60
INSTANCE = "127.0.0.1:9090"
GRAFANA = {"Accept-Encoding": "gzip", "X-Grafana-Org-Id": "1"}


def filled_in(text: str) -> str:
    """A query as Grafana sends it: variables replaced, the interval known."""
    values = {"service": "checkout", "proxy": ".*", "instance": ".*", "__rate_interval": "1m"}
    return re.sub(r"\$(\w+)", lambda match: values[match[1]], text)


def panels() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                yield name, panel, target


QUERIES = [
    pytest.param(panel, filled_in(target["expr"]), id=f"{name}-{panel['title']}-{target['refId']}")
    for name, panel, target in panels()
]
VARIABLES = [
    pytest.param(variable["query"]["query"], id=f"{name}-{variable['name']}")
    for name, board in BOARDS.items()
    for variable in board["templating"]["list"]
    if variable["type"] == "query"
]
ANNOTATIONS = [
    pytest.param(filled_in(note["expr"]), id=f"{name}-{note['name']}")
    for name, board in BOARDS.items()
    for note in board["annotations"]["list"]
]
SELDOM = ("Refused by reason",)
"""Panels that are empty while all is well."""


def selectors(node: Any) -> Iterator[VectorSelector]:
    if isinstance(node, VectorSelector):
        yield node
    elif isinstance(node, tuple):
        for item in node:
            yield from selectors(item)
    elif is_dataclass(node):
        for item in fields(node):
            yield from selectors(getattr(node, item.name))


def page_series(page: str, labels: dict[str, str]) -> Iterator[tuple[dict[str, str], float, bool]]:
    """Labels, value and whether it counts, of each sample of a text page."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))
    for line in page.splitlines():
        if line.startswith("#"):
            continue
        series, _, value = line.rpartition(" ")
        name, _, inner = series.partition("{")
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        counts = kinds.get(name) == "counter" or kinds.get(family) in ("histogram", "summary")
        pairs = dict(re.findall(r'([^,{]+)="((?:[^"\\]|\\.)*)"', inner))
        yield {"__name__": name, **labels, **pairs}, float(value), counts


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = (
        "storage: {free_bytes_min: 0, free_fraction_min: 0}\n"
        "scrape_configs: [{job_name: nobody, scrape_interval: 1s, static_configs: [{targets: ['127.0.0.1:9']}]}]\n"
    )
    with Server(tmp_path_factory.mktemp("deploy"), config) as running:
        newest_ms = time.time_ns() // 1_000_000
        running.query("up")
        assert running.write(write_body([({"__name__": "first"}, [(newest_ms, 1.0)])])).status == 204
        pages = [
            page_series(
                (Path(__file__).parent / "envoy_stats.txt").read_text(), {"job": "envoy", "instance": "127.0.0.1:9901"}
            ),
            page_series(running.get("/metrics").body.decode(), {"job": "meshpulse", "instance": INSTANCE}),
        ]
        times = [newest_ms - STEP_MS * i for i in range(STEPS, -1, -1)]
        body = [
            (labels, [(t, value * (10 + i) if counts else value) for i, t in enumerate(times)])
            for page in pages
            for labels, value, counts in page
        ]
        assert running.write(write_body(body)).status == 204
        yield running


@pytest.mark.parametrize(("panel", "query"), QUERIES)
def test_a_panel_has_something_to_show(server: Server, panel: dict[str, Any], query: str) -> None:
    assert type_of(parse(query)) is ValueType.VECTOR
    now = time.time()
    if panel["type"] == "table":
        reply = server.post("/api/v1/query", query=query, time=now)
        points = [series["value"] for series in reply.json()["data"]["result"]]
    else:
        reply = server.post("/api/v1/query_range", query=query, start=now - 900, end=now, step=15)
        points = [point for series in reply.json()["data"]["result"] for point in series["values"]]
    assert reply.status == 200
    assert "warnings" not in reply.json()
    assert points or panel["title"] in SELDOM


@pytest.mark.parametrize("query", VARIABLES)
def test_a_variable_has_values(server: Server, query: str) -> None:
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert found
    selector = filled_in(found[1])
    reply = server.get(f"/api/v1/label/{found[2]}/values", GRAFANA, **{"match[]": selector, "start": time.time() - 900})
    assert b'"success"' in reply.body or reply.headers.get("content-encoding") == "gzip"
    assert server.get(f"/api/v1/label/{found[2]}/values", **{"match[]": selector}).json()["data"]


@pytest.mark.parametrize("query", ANNOTATIONS)
def test_an_annotation_is_answered(server: Server, query: str) -> None:
    now = time.time()
    assert server.post("/api/v1/query_range", query=query, start=now - 900, end=now, step=60).status == 200


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_well_formed(name: str) -> None:
    board = BOARDS[name]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    declared = {variable["name"] for variable in board["templating"]["list"]} | {"__rate_interval"}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board["panels"]) + json.dumps(board["annotations"])))
    assert used <= declared
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["type"] == "row" or panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["type"] == "row" or panel["targets"]
    squares = [
        (x, y)
        for panel in board["panels"]
        for p in [panel["gridPos"]]
        for x in range(p["x"], p["x"] + p["w"])
        for y in range(p["y"], p["y"] + p["h"])
    ]
    assert len(set(squares)) == len(squares), "panels lie on each other"


def test_dashboards_have_ids_of_their_own() -> None:
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS) == 3


def test_provisioning_names_the_files() -> None:
    folder = DEPLOY / "grafana" / "provisioning"
    source, logs = yaml.safe_load((folder / "datasources" / "meshpulse.yml").read_text())["datasources"]
    assert (source["type"], source["access"], source["jsonData"]["httpMethod"]) == ("prometheus", "proxy", "POST")
    assert (logs["type"], logs["access"], logs["url"]) == ("loki", "proxy", source["url"])
    assert logs["uid"] != source["uid"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "meshpulse.yml").read_text())["providers"]
    assert provider["type"] == "file"


# Alert rules


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_can_be_evaluated(server: Server, rule: dict[str, Any]) -> None:
    expr = parse(rule["expr"])
    assert type_of(expr) is ValueType.VECTOR
    page = server.get("/metrics").body.decode()
    served = set(re.findall(r"^(\w+)[{ ]", page, re.MULTILINE)) | {"up"}
    for selector in selectors(expr):
        assert selector.name in served, f"{selector.name} is not in /metrics"
        for matcher in selector.matchers:
            if matcher.name == "reason":
                assert set(matcher.literals or ()) <= {reason.value for reason in (*Reason, *Failure)}
                assert matcher.op is not MatchOp.REGEX
    assert server.post("/api/v1/query", query=rule["expr"]).status == 200
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert f"| `{rule['alert']}` |" in (ROOT / "docs" / "operations.md").read_text()


def test_a_healthy_server_raises_no_alert(server: Server) -> None:
    failing_on_purpose = {"MeshpulseScrapesFail"}
    firing = {
        rule["alert"] for rule in RULES if "critical" in rule["labels"]["severity"] and server.query(rule["expr"])
    }
    assert firing <= failing_on_purpose


def test_promtool_takes_the_rules() -> None:
    done = subprocess.run(
        [need("promtool"), "check", "rules", DEPLOY / "alerts" / "meshpulse.rules.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
