"""Loki's read API beside what Grafana sends: verbs, forms, defaults, compression, tenants, times."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from query.limits import QueryLimits
from query.loki_api import TIMED_OUT, LokiApi
from query.loki_params import parse_time_ns
from tests.query.asgi import FORM, ask, get, post_form
from tests.query.demo_logs import NS, START_NS, loki_api
from tests.query.logql.memory_logs import MemoryLogs

P = "/loki/api/v1/"


@pytest.fixture(scope="module")
def api() -> Iterator[LokiApi]:
    with loki_api() as app:
        yield app


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("4000000000", 4_000_000_000 * NS),
        ("1795415400000000001", 1_795_415_400_000_000_001),
        ("1795415400.5", 1_795_415_400_500_000_000),
        ("-1.25", -1_250_000_000),
        ("1.5e3", 1500 * NS),
        ("2026-11-23T06:30:00Z", 1_795_415_400 * NS),
        ("2026-11-23T07:30:00.000000001+01:00", 1_795_415_400 * NS + 1),
        ("0", 0),
    ],
)
def test_times(text: str, ns: int) -> None:
    assert parse_time_ns(text) == ns


@pytest.mark.parametrize(
    "text",
    ["x", "2026-13-01T00:00:00Z", "1.2.3", "NaN", "9" * 5000, f"{1 << 63}", "1.5e300", "9999999999.0", "-9e99.0"],
)
def test_no_times(api: LokiApi, text: str) -> None:
    reply = get(api, f"{P}labels?start={text}")
    assert (reply.status, reply.headers["content-type"]) == (400, "text/plain; charset=utf-8")
    assert reply.text == f"could not parse 'start' parameter: cannot parse \"{text}\" to a valid timestamp"


def test_defaults_are_the_last_hour_and_a_hundred_lines_backward(api: LokiApi) -> None:
    (stream,) = get(api, f"{P}query_range?query=" + quote('{app="job"}')).data["result"]
    assert [line for _, line in stream["values"]] == ["again <1>", "started"]
    assert get(api, f"{P}query_range?since=1m&query=" + quote('{app="job"}')).data["result"] == []
    assert get(api, f"{P}labels?since=1m").data == []


def test_verbs_and_forms(api: LokiApi) -> None:
    query = "query=" + quote('{app="job"}')
    assert post_form(api, f"{P}query_range", query).data["result"]
    assert ask(api, "POST", f"{P}query_range?{query}", {"content-type": "application/json"}).data["result"]
    assert post_form(api, f"{P}query_range?query=%7B", query).data["result"]
    reply = ask(api, "DELETE", f"{P}labels")
    assert (reply.status, reply.text, reply.headers["allow"]) == (405, "Method Not Allowed\n", "GET, OPTIONS, POST")
    reply = ask(api, "OPTIONS", f"{P}labels", {"origin": "http://x"})
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (204, "*")
    assert get(api, f"{P}labels", origin="http://x").headers["vary"] == "Origin"
    assert ask(api, "POST", f"{P}labels", {"content-type": FORM}, "x" * (11 << 20)).status == 400


def test_unknown_tenants_are_empty(api: LokiApi) -> None:
    query = "query=" + quote('{app="job"}')
    for path in ("labels", "label/app/values", "series"):
        assert get(api, P + path, x_scope_orgid="nobody").data == []
    assert get(api, f"{P}query_range?{query}", x_scope_orgid="nobody").data["result"] == []
    assert get(api, f"{P}index/stats?{query}", x_scope_orgid="nobody").json()["streams"] == 0
    assert get(api, f"{P}index/volume?{query}", x_scope_orgid="nobody").data["result"] == []
    assert (
        get(api, f"{P}query?query=" + quote('sum(rate({app="job"}[5m]))'), x_scope_orgid="nobody").data["result"] == []
    )


def test_large_answers_are_compressed() -> None:
    logs = MemoryLogs([({"app": "x"}, [(START_NS + i, "a line " * 20) for i in range(300)])], frame_rows=50)
    with loki_api(logs) as api:
        target = f"{P}query_range?limit=300&query=" + quote('{app="x"}')
        reply = get(api, target, accept_encoding="gzip")
        assert reply.headers["content-encoding"] == "gzip"
        assert len(reply.data["result"][0]["values"]) == 300


def test_a_query_that_takes_too_long() -> None:
    with loki_api(limits=QueryLimits(workers=1, timeout_s=-1)) as api:
        reply = get(api, f"{P}query_range?query=" + quote('{app="job"}'))
        assert (reply.status, reply.text) == (504, TIMED_OUT)


def test_too_many_series() -> None:
    with loki_api(limits=QueryLimits(workers=1, series_max=2)) as api:
        reply = get(api, f"{P}query?query=" + quote('count_over_time({service_name=~".+"}[1h])'))
        assert reply.status == 400
        assert reply.text.startswith("maximum number of series (2) reached for a single query")


def test_odd_numbers_have_no_exponent() -> None:
    logs = MemoryLogs([({"app": "x"}, [(START_NS, "v=1e-9"), (START_NS + 1, "v=2e25")])])
    with loki_api(logs) as api:
        for op, text in (("min", "0.000000001"), ("max", "20000000000000000000000000")):
            query = quote(f'{op}_over_time({{app="x"}} | logfmt | unwrap v [1h]) by (app)')
            (series,) = get(api, f"{P}query?query={query}").data["result"]
            assert series == {"metric": {"app": "x"}, "value": [1795415580.5, text]}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("query_range?query={app=%22x%22}&direction=up", "invalid direction 'up'"),
        ("query_range?query={app=%22x%22}&step=x", 'cannot parse "x" to a valid duration'),
        (
            f"query_range?query={{app=%22x%22}}&limit={1 << 63}",
            f'strconv.Atoi: parsing "{1 << 63}": value out of range',
        ),
        ("query_range?query={app=%22x%22}&step=1e300", 'cannot parse "1e300" to a valid duration'),
        ("query_range?query={app=%22x%22}&interval=1e300", 'cannot parse "1e300" to a valid duration'),
        ("query_range?query={app=%22x%22}&limit=x", 'strconv.Atoi: parsing "x": invalid syntax'),
        ("query_range?query={app=%22x%22}&interval=-5s", "interval must be >= 0"),
        ("query_range?query={app=%22x%22}&interval=x", 'cannot parse "x" to a valid duration'),
        ("query_range?query=", "parse error at line 1, col 1: syntax error: unexpected $end"),
        ("index/volume?query={}&aggregateBy=x", "invalid aggregation option: x"),
        ("detected_fields?query=1", "only log queries are supported"),
        ("labels?query=1", "only label matchers are supported"),
        ("labels?since=x", "could not parse 'since' parameter: not a valid duration string: \"x\""),
    ],
)
def test_bad_parameters(api: LokiApi, target: str, message: str) -> None:
    reply = get(api, P + target)
    assert (reply.status, reply.text) == (400, message)


def test_statistics(api: LokiApi) -> None:
    before = api.stats.query_lines
    get(api, f"{P}query_range?query=" + quote('{app="job"}'))
    assert api.stats.query_lines == before + 2
    assert api.stats.responses[f"{P}query_range", 200] > 0
