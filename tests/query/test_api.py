"""The query API in process: statuses, words, headers, merging of parameters, concurrency."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pytest
import uvicorn
import zstandard

from query.api import QueryApi
from query.asgi import COMPRESS_BYTES_MIN, chosen_encoding
from query.empty import EmptyStorage
from query.limits import QueryLimits
from tests.query.asgi import FORM, ask, call, get, post_form
from tests.query.demo_api import CARDINALITY, NOW_MS, START_MS, demo_storage, query_api
from tests.query.memory_storage import MemoryStorage
from tsdb.frame import SeriesFrame

DOCS = Path(__file__).resolve().parents[2] / "docs" / "api" / "query.md"


@pytest.fixture(scope="module")
def api() -> Iterator[QueryApi]:
    with query_api() as app:
        yield app


def test_documented_paths_are_the_routes(api: QueryApi) -> None:
    rows = re.findall(
        r"^\| ([A-Z, ]+) \| `(/(?:api/|prometheus/|federate)[^`]*)` \|", DOCS.read_text("utf-8"), re.MULTILINE
    )
    assert {path: frozenset(methods.split(", ")) for methods, path in rows} == api.paths


RANGE = "/api/v1/query_range?query=up&start=0&end=10&step=1"


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("query?query=up{", 'invalid parameter "query": 1:4: parse error: unexpected end of input inside braces'),
        ("query", 'invalid parameter "query": 1:1: parse error: no expression found in input'),
        ("query?query=", 'invalid parameter "query": 1:1: parse error: no expression found in input'),
        (
            "query?query=up&time=abc",
            'invalid parameter "time": Invalid time value for \'time\': cannot parse "abc" to a valid timestamp',
        ),
        ("query?query=up&timeout=abc", 'invalid parameter "timeout": cannot parse "abc" to a valid duration'),
        ("query?query=up&limit=-1", 'invalid parameter "limit": limit must be non-negative'),
        (
            f"labels?limit=1{'0' * 5000}",
            f'invalid parameter "limit": strconv.Atoi: parsing "1{"0" * 5000}": value out of range',
        ),
        (
            "query?query=up&lookback_delta=x",
            'error parsing lookback delta duration: cannot parse "x" to a valid duration',
        ),
        (
            "query_range?query=up&start=x&end=1&step=1",
            'invalid parameter "start": cannot parse "x" to a valid timestamp',
        ),
        ("query_range?query=up&end=1&step=1", 'invalid parameter "start": cannot parse "" to a valid timestamp'),
        ("query_range?query=up&start=1&step=1", 'invalid parameter "end": cannot parse "" to a valid timestamp'),
        ("query_range?query=up&start=0&end=1", 'invalid parameter "step": cannot parse "" to a valid duration'),
        (
            "query_range?query=up&start=0&end=1&step=abc",
            'invalid parameter "step": cannot parse "abc" to a valid duration',
        ),
        (
            "query_range?query=up&start=0&end=1&step=0",
            'invalid parameter "step": zero or negative query resolution step widths are not accepted. '
            "Try a positive integer",
        ),
        (
            "query_range?query=up&start=2&end=1&step=1",
            'invalid parameter "end": end timestamp must not be before start time',
        ),
        (
            "query_range?query=up&start=0&end=11001&step=1",
            "exceeded maximum resolution of 11,000 points per timeseries. "
            "Try decreasing the query resolution (?step=XX)",
        ),
        (
            "query_range?query=up[5m]&start=0&end=10&step=1",
            'invalid expression type "range vector" for range query, must be Scalar or instant Vector',
        ),
        (
            "query_range?query='s'&start=0&end=10&step=1",
            'invalid expression type "string" for range query, must be Scalar or instant Vector',
        ),
        ("labels?match[]={}", "match[] must contain at least one non-empty matcher"),
        ("labels?match[]=up{", "1:4: parse error: unexpected end of input inside braces"),
        (
            "labels?start=x",
            'invalid parameter "start": Invalid time value for \'start\': cannot parse "x" to a valid timestamp',
        ),
        ("label/job/values?match[]={a=''}", "match[] must contain at least one non-empty matcher"),
        ("label/job/values?limit=x", 'invalid parameter "limit": strconv.Atoi: parsing "x": invalid syntax'),
        ("label//values", 'invalid label name: ""'),
        ("label/%FF/values", 'invalid label name: "\\xff"'),
        ("series", "no match[] parameter provided"),
        ("series?match[]=", "no match[] parameter provided"),
        (
            "series?match[]={x=~'.*'}",
            'invalid parameter "match[]": match[] must contain at least one non-empty matcher',
        ),
        ("query_exemplars?query=up&start=10&end=1", "end timestamp must not be before start timestamp"),
        ("query_exemplars?query=up{&start=10&end=100", "1:4: parse error: unexpected end of input inside braces"),
        ("parse_query?query=sum(", 'invalid parameter "query": 1:5: parse error: unclosed left parenthesis'),
        ("format_query?query=sum(", 'invalid parameter "query": 1:5: parse error: unclosed left parenthesis'),
        ("metadata?limit=x", "limit must be a number"),
        ("metadata?limit_per_metric=x", "limit_per_metric must be a number"),
        ("rules?type=x", 'invalid parameter "type": not supported value "x"'),
        ("status/tsdb?limit=0", "limit must be a positive number"),
        ("status/tsdb?limit=" + "9" * 5000, "limit must be a number"),
        ("metadata?limit=9223372036854775808", "limit must be a number"),
    ],
)
def test_words_of_bad_requests(api: QueryApi, target: str, error: str) -> None:
    reply = get(api, "/api/v1/" + quote(target, safe="/?&=[]{}%'"))
    assert reply.status == 400
    assert reply.headers["content-type"] == "application/json"
    assert reply.text == json.dumps({"status": "error", "errorType": "bad_data", "error": error}, separators=(",", ":"))


def test_eleven_thousand_steps_are_allowed(api: QueryApi) -> None:
    assert get(api, "/api/v1/query_range?query=1&start=0&end=11000&step=1").status == 200


def test_execution_error_is_422(api: QueryApi) -> None:
    reply = get(api, "/api/v1/query?query=" + quote("up * on(job) up") + f"&time={NOW_MS // 1000}")
    assert reply.status == 422
    parsed = reply.json()
    assert (parsed["status"], parsed["errorType"]) == ("error", "execution")
    assert "found duplicate series for the match group" in parsed["error"]
    assert "many-to-many matching not allowed" in parsed["error"]


def test_timeout_is_503() -> None:
    class Slow(MemoryStorage):
        def select(self, *args: Any) -> SeriesFrame:
            time.sleep(0.05)
            return super().select(*args)

    with query_api(Slow([({"__name__": "up"}, [(START_MS, 1.0)])])) as api:
        reply = get(api, f"/api/v1/query?query={quote('up + avg(sum_over_time(up[1h]))')}&timeout=0.01")
    assert (reply.status, reply.json()["errorType"]) == (503, "timeout")
    assert reply.json()["error"] == "query timed out in query execution"


def test_limits_are_execution_errors() -> None:
    with query_api(limits=QueryLimits(samples_max=5, workers=1)) as api:
        reply = get(api, f"/api/v1/query?query={quote('up[3m]')}")
    assert (reply.status, reply.json()["errorType"]) == (422, "execution")


def test_our_own_fault_is_500_without_details() -> None:
    class Broken(MemoryStorage):
        def select(self, *_args: Any) -> SeriesFrame:
            raise ZeroDivisionError("secret")

    with query_api(Broken()) as api:
        reply = get(api, "/api/v1/query?query=up")
    assert reply.status == 500
    assert reply.json()["errorType"] == "internal"
    assert "secret" not in reply.text


def test_form_is_merged_with_the_url(api: QueryApi) -> None:
    assert post_form(api, "/api/v1/query?query=1&time=4", "query=2").data["result"] == [4, "2"]
    assert post_form(api, "/api/v1/labels?match[]=up", "match%5B%5D=temperature").data == [
        "__name__", "instance", "job", "label.x",
    ]  # fmt: skip
    reply = ask(api, "POST", "/api/v1/query?query=1&time=4", {"content-type": "application/json"}, '{"query":"2"}')
    assert reply.data["result"] == [4, "1"]
    assert ask(api, "GET", "/api/v1/query?query=1&time=4", {"content-type": FORM}, "query=2").data["result"] == [4, "1"]


def test_form_with_charset(api: QueryApi) -> None:
    reply = ask(api, "POST", "/api/v1/query", {"content-type": f"{FORM}; charset=UTF-8"}, "query=1%2B1&time=4")
    assert reply.data["result"] == [4, "2"]


def test_form_that_is_too_large(api: QueryApi) -> None:
    reply = post_form(api, "/api/v1/query", "query=" + "1" * (11 << 20))
    assert (reply.status, reply.json()["error"]) == (400, "http: POST too large")


def test_unknown_parameters_are_ignored(api: QueryApi) -> None:
    reply = get(api, "/api/v1/query?query=1&time=4&nocache=1&max_source_resolution=5m&engine=x", x_dashboard_uid="d")
    assert reply.status == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "HEAD", "get"])
def test_wrong_verbs(api: QueryApi, method: str) -> None:
    reply = ask(api, method, "/api/v1/query?query=1")
    assert (reply.status, reply.body) == (405, b"Method Not Allowed\n")
    assert reply.headers["allow"] == "GET, OPTIONS, POST"
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"


def test_head_of_static_pages(api: QueryApi) -> None:
    reply = ask(api, "HEAD", "/api/v1/status/buildinfo")
    assert (reply.status, reply.body) == (200, b"")
    assert int(reply.headers["content-length"]) == len(get(api, "/api/v1/status/buildinfo").body)


@pytest.mark.parametrize(
    "path", ["/api/v1/nope", "/api/v1/", "/api/v1/query/", "/api/v1/label/job", "/api/v1/label/a/b"]
)
def test_unknown_paths(api: QueryApi, path: str) -> None:
    reply = get(api, path)
    assert (reply.status, reply.body) == (404, b"404 page not found\n")
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"


def test_every_path_answers_options(api: QueryApi) -> None:
    for path in api.paths:
        reply = ask(api, "OPTIONS", path, {"origin": "http://x"})
        assert (reply.status, reply.body) == (204, b"")
        assert reply.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-origin" not in ask(api, "OPTIONS", "/api/v1/query").headers


def test_cors_headers_only_with_an_origin(api: QueryApi) -> None:
    assert "access-control-allow-origin" not in get(api, "/api/v1/rules").headers
    headers = get(api, "/api/v1/query?query=up{", origin="http://x").headers
    assert headers["access-control-allow-origin"] == "*"
    assert headers["access-control-expose-headers"] == "Date"
    assert headers["vary"] == "Origin"


def test_root_path_is_cut_off(api: QueryApi) -> None:
    reply = ask(api, "GET", "/prom/api/v1/label/job/values", root_path="/prom")
    assert reply.data == ["api"]


@pytest.mark.parametrize(
    ("header", "chosen"),
    [(b"gzip", b"gzip"), (b"br, GZIP;q=0.5", b"gzip"), (b"*", b"gzip"), (b"", b""), (b"br", b""),
     (b"gzip;q=0", b""), (b"gzip; q=0.0, br", b""), (b"identity", b""), (b"gzip, deflate, br, zstd", b"zstd"),
     (b"zstd;q=0.2, gzip", b"gzip"), (b"zstd;q=x", b"zstd"), (b"zstd;q=0, *", b"gzip")],
)  # fmt: skip
def test_accept_encoding(header: bytes, chosen: bytes) -> None:
    assert chosen_encoding(header) == chosen


def wide_storage(series: int, steps: int) -> MemoryStorage:
    rng = np.random.default_rng(3)
    values = np.round(rng.random((series, steps)) * 1000, 2)
    times = [START_MS + 1000 * i for i in range(steps)]
    return MemoryStorage(
        ({"__name__": "m", "i": f"{i:04}"}, zip(times, row.tolist(), strict=True)) for i, row in enumerate(values)
    )


def test_larger_answers_are_compressed_when_asked() -> None:
    with query_api(wide_storage(100, 1)) as api:
        plain = get(api, f"/api/v1/query?query=m&time={START_MS // 1000}")
        packed = get(api, f"/api/v1/query?query=m&time={START_MS // 1000}", accept_encoding="gzip, br")
        zstd = get(api, f"/api/v1/query?query=m&time={START_MS // 1000}", accept_encoding="gzip, zstd")
        small = get(api, "/api/v1/query?query=1", accept_encoding="gzip")
    assert len(plain.body) >= COMPRESS_BYTES_MIN
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == "Accept-Encoding"
    assert gzip.decompress(packed.body) == plain.body
    assert zstd.headers["content-encoding"] == "zstd"
    assert zstandard.ZstdDecompressor().decompress(zstd.body) == plain.body
    assert "content-encoding" not in small.headers


def test_large_matrix_comes_in_pieces() -> None:
    target = f"/api/v1/query_range?query=m&start={START_MS // 1000}&end={START_MS // 1000 + 299}&step=1"
    with query_api(wide_storage(200, 300)) as api:
        plain = get(api, target)
        packed = get(api, target, accept_encoding="gzip")
    assert plain.pieces > 2
    assert "content-length" not in plain.headers
    assert len(plain.data["result"]) == 200
    assert all(len(row["values"]) == 300 for row in plain.data["result"])
    assert gzip.decompress(packed.body) == plain.body


def test_limit_warns(api: QueryApi) -> None:
    parsed = get(api, f"/api/v1/query?query=up&limit=1&time={NOW_MS // 1000}").json()
    assert len(parsed["data"]["result"]) == 1
    assert parsed["warnings"] == ["results truncated due to limit"]
    parsed = get(api, "/api/v1/label/__name__/values?limit=2").json()
    assert parsed["data"] == ["http_requests_total", "temperature"]
    assert parsed["warnings"] == ["results truncated due to limit"]
    assert "warnings" not in get(api, "/api/v1/label/__name__/values?limit=0").json()


def test_lookback_of_one_request(api: QueryApi) -> None:
    late = START_MS // 1000 + 180 + 290
    assert len(get(api, f"/api/v1/query?query=up&time={late}").data["result"]) == 2
    assert get(api, f"/api/v1/query?query=up&time={late}&lookback_delta=1m").data["result"] == []


def test_stats(api: QueryApi) -> None:
    data = get(api, f"/api/v1/query?query=up&stats=true&time={NOW_MS // 1000}").data
    assert list(data) == ["resultType", "result", "stats"]
    assert set(data["stats"]) == {"timings", "samples"}
    assert list(data["stats"]["samples"]) == ["totalQueryableSamples", "peakSamples"]
    assert "stats" not in get(api, "/api/v1/query?query=up").data
    steps = f"start={NOW_MS // 1000 - 30}&end={NOW_MS // 1000}.25&step=14.5"
    data = get(api, f"/api/v1/query_range?query=up&stats=all&{steps}").data
    second = NOW_MS // 1000 - 30
    per_step = [[second, 2], [second + 14.5, 2], [second + 29, 2]]
    assert data["stats"]["samples"]["totalQueryableSamplesPerStep"] == per_step
    assert data["stats"]["samples"]["totalQueryableSamples"] == 6
    data = get(api, f"/api/v1/query?query=up&stats=all&time={second}").data
    assert data["stats"]["samples"]["totalQueryableSamplesPerStep"] == [[second, 2]]


def test_warnings_of_a_query(api: QueryApi) -> None:
    parsed = get(api, f"/api/v1/query?query={quote('quantile(2, up)')}&time={NOW_MS // 1000}").json()
    assert parsed["warnings"] == ["PromQL warning: quantile value should be between 0 and 1, got 2 (1:10)"]


def test_times_the_clients_use_for_everything(api: QueryApi) -> None:
    reply = get(api, "/api/v1/labels?start=-292273086-05-16T16:47:06Z&end=292277025-08-18T07:12:54.999999999Z")
    assert "job" in reply.data


def test_unknown_tenant_reads_nothing(api: QueryApi) -> None:
    for target, empty in {
        "query?query=up": {"resultType": "vector", "result": []},
        RANGE.removeprefix("/api/v1/"): {"resultType": "matrix", "result": []},
        "labels": [],
        "label/job/values": [],
        "series?match[]=up": [],
        "metadata": {},
    }.items():
        assert get(api, f"/api/v1/{target}", x_scope_orgid="nobody").data == empty
    assert get(api, "/api/v1/labels", x_scope_orgid="").data != []


def test_empty_storage_is_a_storage() -> None:
    storage = EmptyStorage()
    assert storage.symbols.text(0) == ""
    assert storage.label_names([], 0, 1) == storage.label_values("a", [], 0, 1) == []
    assert len(storage.series([], 0, 1)) == 0


def test_status_pages() -> None:
    pages = {"runtimeinfo": lambda: {"CWD": "/"}, "flags": lambda: {"web.listen-address": "x"}}
    with query_api(status=pages) as api:
        assert "features" not in get(api, "/api/v1/status/buildinfo").data
        assert get(api, "/api/v1/status/runtimeinfo").data == {"CWD": "/"}
        assert get(api, "/api/v1/status/flags").data == {"web.listen-address": "x"}
        assert get(api, "/api/v1/status/config").status == 404
        assert "/api/v1/status/flags" in api.paths
        assert get(api, "/api/v1/status/tsdb").data == {**CARDINALITY, "asked": ["default", 10]}
        assert get(api, "/api/v1/status/tsdb?limit=3", x_scope_orgid="t").data["asked"] == ["t", 3]


def test_targets() -> None:
    dropped = {"droppedTargets": [{"discoveredLabels": {}}], "droppedTargetCounts": {"a": 1}}
    found = {"activeTargets": [{"health": "up"}], **dropped}
    asked = []

    def targets(pool: str) -> dict[str, Any]:
        asked.append(pool)
        return found

    with query_api(targets=targets, scrape_pools=lambda: ["a", "b"]) as api:
        assert get(api, "/api/v1/targets").data == found
        none = {"droppedTargets": [], "droppedTargetCounts": {}}
        assert get(api, "/api/v1/targets?state=active&scrapePool=a").data == {**found, **none}
        assert get(api, "/api/v1/targets?state=dropped").data == {**found, "activeTargets": []}
        assert asked == ["", "a", ""]
        assert get(api, "/api/v1/scrape_pools").data == {"scrapePools": ["a", "b"]}
        assert get(api, "/api/v1/targets/metadata").data == []
        assert get(api, "/api/v1/alertmanagers").data == {"activeAlertmanagers": [], "droppedAlertmanagers": []}


def test_target_metadata() -> None:
    families = [("up", "gauge", "Is it?", ""), ("t_seconds", "counter", "", "seconds")]
    found = [({"job": "a", "instance": "h:1"}, families), ({"job": "b", "instance": "h:2"}, families[:1])]
    up = {"type": "gauge", "help": "Is it?", "unit": ""}
    seconds = {"type": "counter", "help": "", "unit": "seconds"}
    (a, _), (b, _) = found
    with query_api(target_metadata=lambda: found) as api:

        def shown(**params: str) -> Any:
            return get(api, f"/api/v1/targets/metadata?{urlencode(params)}").data

        rows = [
            {"target": a, "metric": "up", **up},
            {"target": a, "metric": "t_seconds", **seconds},
            {"target": b, "metric": "up", **up},
        ]
        assert shown() == rows
        assert shown(limit="2") == rows[:2]
        assert shown(match_target='{job=~"b|c"}') == rows[2:]
        assert shown(metric="up") == [{"target": a, **up}, {"target": b, **up}]
        assert shown(metric="up", match_target='{instance="h:1"}', limit="0") == []
        answer = get(api, "/api/v1/targets/metadata?match_target=%7B")
        assert (answer.status, answer.json()["errorType"]) == (400, "bad_data")
        assert 'invalid parameter "match_target"' in answer.json()["error"]


def test_metadata_limits(api: QueryApi) -> None:
    assert get(api, "/api/v1/metadata?limit=0").data == {}
    assert list(get(api, "/api/v1/metadata?limit=1").data) == ["up"]
    assert len(get(api, "/api/v1/metadata?limit=-1").data) == 2


def test_counts(api: QueryApi) -> None:
    before = api.stats.responses["/api/v1/query", 200], sum(api.stats.query_seconds), api.stats.query_samples
    get(api, f"/api/v1/query?query=up&time={NOW_MS // 1000}")
    assert api.stats.responses["/api/v1/query", 200] == before[0] + 1
    assert sum(api.stats.query_seconds) == before[1] + 1
    assert api.stats.query_samples > before[2]
    assert api.stats.in_flight == 0
    get(api, "/api/v1/label/job/values")
    assert api.stats.responses["/api/v1/label/{name}/values", 200] >= 1


class Gated(MemoryStorage):
    """Selections of ``slow`` wait until they are let go."""

    def __init__(self) -> None:
        super().__init__([({"__name__": "up"}, [(START_MS, 1.0)])])
        self.gate = threading.Event()
        self.entered = threading.Event()

    def select(self, matchers: Any, *args: Any) -> SeriesFrame:
        if any(matcher.value == "slow" for matcher in matchers):
            self.entered.set()
            assert self.gate.wait(10)
        return super().select(matchers, *args)


def test_a_slow_query_does_not_hold_up_others() -> None:
    storage = Gated()

    async def both(api: QueryApi) -> None:
        slow = asyncio.ensure_future(call(api, "GET", "/api/v1/query?query=slow"))
        quick = await asyncio.wait_for(call(api, "GET", "/api/v1/query?query=1"), 5)
        assert quick.status == 200
        assert not slow.done()
        storage.gate.set()
        assert (await slow).status == 200

    with query_api(storage) as api:
        asyncio.run(both(api))


def test_a_client_that_hangs_up_is_not_waited_for() -> None:
    storage = Gated()
    sent: list[Any] = []

    async def hang_up(api: QueryApi) -> None:
        messages = [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/api/v1/query",
            "query_string": b"query=slow",
            "headers": [],
        }
        await asyncio.wait_for(api(scope, receive, send), 5)

    with query_api(storage) as api:
        asyncio.run(hang_up(api))
        assert api.stats.responses["/api/v1/query", 499] == 1
        storage.gate.set()
    assert sent == []


@contextmanager
def served(api: QueryApi) -> Iterator[http.client.HTTPConnection]:
    """A connection to the API under uvicorn."""
    server = uvicorn.Server(
        uvicorn.Config(api, host="127.0.0.1", port=0, lifespan="off", ws="none", log_level="warning", access_log=False)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    connection = http.client.HTTPConnection(*server.servers[0].sockets[0].getsockname())
    try:
        yield connection
    finally:
        connection.close()
        server.should_exit = True
        thread.join()


def test_under_a_real_server() -> None:
    def fetch(method: str, target: str, body: str | None = None, **headers: str) -> tuple[int, Any, bytes]:
        connection.request(method, target, body, {k.replace("_", "-"): v for k, v in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()

    matrix = f"/api/v1/query_range?query=m&start={START_MS // 1000}&end={START_MS // 1000 + 299}&step=1"
    with query_api(wide_storage(200, 300)) as api, served(api) as connection:
        status, _, body = fetch("POST", "/api/v1/query", "query=1%2B1&time=4", content_type=FORM)
        assert (status, body) == (200, b'{"status":"success","data":{"resultType":"scalar","result":[4,"2"]}}')
        status, headers, body = fetch("GET", matrix)
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        assert len(json.loads(body)["data"]["result"]) == 200
        _, headers, packed = fetch("GET", matrix, accept_encoding="gzip")
        assert headers["content-encoding"] == "gzip"
        assert gzip.decompress(packed) == body
        assert fetch("HEAD", "/api/v1/status/buildinfo")[::2] == (200, b"")
        assert fetch("OPTIONS", "/api/v1/query", origin="http://x")[::2] == (204, b"")
        assert fetch("PUT", "/api/v1/query")[::2] == (405, b"Method Not Allowed\n")
        assert fetch("GET", "/api/v1/label/a%2Fb/values")[::2] == (200, b'{"status":"success","data":[]}')
        connection.request("GET", matrix)
        connection.close()  # the client hangs up
        assert fetch("GET", "/api/v1/query?query=1&time=0")[0] == 200


def test_reads_do_not_change_the_store() -> None:
    storage = demo_storage()
    with query_api(storage) as api:
        before = get(api, '/api/v1/series?match[]={__name__!=""}').body
        get(api, "/api/v1/query?query=" + quote("label_replace(up, 'new', 'x', '', '')"))
        assert get(api, '/api/v1/series?match[]={__name__!=""}').body == before
