"""Loki's delete API: make a request, list them, take one back; what it says when it will not."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import pytest

from query.logql.engine.engine import LogEngine
from query.loki_api import LokiApi
from tests.query.asgi import FORM, Reply, ask
from tests.tsdb.logs.test_store import open_db, push
from tsdb.clock import ManualClock
from tsdb.logs.store import LogStore

P = "/loki/api/v1/"
NOW_S = 1_795_415_400
NS = 1_000_000_000


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[LogStore]:
    db = open_db(tmp_path, cancel_s=0)
    store = db.tenant("default").logs
    push(store, [(f"a{i % 2}", (NOW_S - 100 + i) * NS, b"line %d" % i) for i in range(20)])
    yield store
    db.close()


@pytest.fixture
def api(logs: LogStore) -> Iterator[LokiApi]:
    clock = ManualClock(NOW_S * 1000)
    with ThreadPoolExecutor(1) as pool:
        engine = LogEngine(clock=clock)
        known = {"default": logs}
        yield LokiApi(engine, known.get, pool, {}, clock=clock, deleter_for=known.get)
        engine.close()


def delete(api: LokiApi, **params: object) -> Reply:
    return ask(api, "POST", f"{P}delete?{urlencode(params)}")


def lines(api: LokiApi) -> list[str]:
    params = {"query": '{log="x"}', "limit": 100, "start": NOW_S - 200, "end": NOW_S}
    target = f"{P}query_range?{urlencode(params)}"
    return sorted(line for stream in ask(api, "GET", target).data["result"] for _, line in stream["values"])


def test_a_request_is_made_listed_and_taken_back(api: LokiApi, logs: LogStore) -> None:
    assert ask(api, "GET", f"{P}delete").json() == []
    everything = lines(api)
    reply = delete(api, query='{app="a0"} |~ "line 1?[02]$"', start=NOW_S - 100, end=NOW_S - 90)
    assert (reply.status, reply.body) == (204, b"")
    assert sorted(set(everything) - set(lines(api))) == ["line 0", "line 10", "line 2"]
    (listed,) = ask(api, "GET", f"{P}delete").json()
    request_id = listed.pop("request_id")
    assert listed == {
        "start_time": NOW_S - 100.0,
        "end_time": NOW_S - 90.0,
        "query": '{app="a0"} |~ "line 1?[02]$"',
        "status": "received",
        "created_at": NOW_S,
    }
    assert ask(api, "DELETE", f"{P}delete?request_id={request_id}").status == 204
    assert ask(api, "GET", f"{P}delete").json() == []
    assert lines(api) == everything
    form = urlencode({"query": '{app="a1"}', "start": NOW_S - 100})
    assert ask(api, "PUT", f"{P}delete", {"content-type": FORM}, form.encode()).status == 204
    assert lines(api) == sorted(f"line {i}" for i in range(0, 20, 2))
    logs.maintain()
    (listed,) = ask(api, "GET", f"{P}delete").json()
    assert listed["status"] == "processed"
    reply = ask(api, "DELETE", f"{P}delete?request_id={listed['request_id']}")
    assert (reply.status, "already processed" in reply.text) == (400, True)
    assert logs.store_stats().part_entries == 10


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"query": '{app="a0"}'}, "start time not set"),
        ({"query": '{app="a0"}', "start": 9, "end": 5}, "start time can't be greater than end time"),
        ({"query": '{app="a0"}', "start": 9, "end": NOW_S + 9}, "deletes in the future are not allowed"),
        ({"query": '{app="a0"} | json', "start": 9}, "unsupported: JsonParser in a delete request"),
        ({"query": '{app="a0"} |> "a <_>"', "start": 9}, "unsupported: patterns and ip()"),
        ({"query": '{app="a0"} |= ip("10.0.0.1")', "start": 9}, "unsupported: patterns and ip()"),
        ({"query": 'rate({app="a0"}[5m])', "start": 9}, "only log queries"),
        ({"query": "{app=", "start": 9}, "syntax error"),
        ({"query": '{app="a0"}', "start": "x"}, "could not parse 'start' parameter"),
    ],
)
def test_what_is_refused(api: LokiApi, params: dict[str, object], text: str) -> None:
    everything = lines(api)
    reply = delete(api, **params)
    assert reply.status == 400
    assert text in reply.text
    assert lines(api) == everything


def test_verbs_tenants_and_unknown_requests(api: LokiApi) -> None:
    assert ask(api, "PATCH", f"{P}delete").status == 405
    assert ask(api, "OPTIONS", f"{P}delete").status == 204
    assert ask(api, "GET", f"{P}delete", {"x-scope-orgid": "other"}).json() == []
    assert ask(api, "POST", f"{P}delete?query=%7Ba%3D%22b%22%7D&start=1", {"x-scope-orgid": "other"}).status == 400
    assert ask(api, "DELETE", f"{P}delete?request_id=x").status == 404
    assert ask(api, "DELETE", f"{P}delete").status == 400
