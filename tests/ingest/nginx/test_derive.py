"""Counters made of lines: per attempt, bounded, once a line, as samples that queries understand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from ingest.nginx.columns import COMBINED, JsonFormat, TextFormat
from ingest.nginx.counters import CLASSES, Counters, attempts_of
from ingest.nginx.derive import Rule
from tests.ingest.nginx.builders import NOW_S, World, line, settled
from tests.shared import shared_path
from tsdb.errors import Reason
from tsdb.limits import SelectLimits
from tsdb.logs.frame import Texts
from tsdb.matchers import Matcher, MatchOp
from tsdb.tenant import BeginGeneration

STREAM = {"job": "nginx", "site": "a.example", "env": "prod", "host": "web-1", "log": "access"}
WHERE = {"site": "a.example", "env": "prod", "host": "web-1"}
PUSHED = (Rule(JsonFormat(), (Matcher("job", MatchOp.EQUAL, "nginx"), Matcher("log", MatchOp.EQUAL, "access"))),)


def key(**labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({**WHERE, **labels}.items()))


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[Any]:
    made: list[World] = []

    def make(**settings: Any) -> World:
        made.append(World(tmp_path, **{"rules": PUSHED, **settings}))
        return made[-1]

    yield make
    for world in made:
        world.close()


def push(world: World, *lines: bytes, labels: dict[str, str] | None = None, first: int = 0) -> None:
    values = [[str(NOW_S * 10**9 + first + i), text.decode()] for i, text in enumerate(lines)]
    body = orjson.dumps({"streams": [{"stream": labels or STREAM, "values": values}]})
    received = world.receiver.json(world.logs, "default", body)
    assert received.future is not None
    received.future.result()


VECTOR = line(
    status=200,
    upstream_addr="10.0.0.1:80, 10.0.0.2:80 : 10.0.0.3:80",
    upstream_status="502, 504 : 200",
    upstream_response_time="0.000, 1.000 : 0.008",
    upstream_connect_time="-, 0.001 : 0.002",
)


def test_each_attempt_is_charged_to_its_own_endpoint(worlds: Any) -> None:
    world = worlds()
    push(world, VECTOR, line(status=499, upstream_addr="10.0.0.3:80", upstream_status="-", upstream_response_time="-"))
    world.count()
    assert world.series("nginx_requests_total") == {key(status_class="2xx"): 1.0, key(status_class="4xx"): 1.0}
    assert world.series("nginx_upstream_requests_total") == {
        key(upstream_addr="10.0.0.1:80", status_class="5xx"): 1.0,
        key(upstream_addr="10.0.0.2:80", status_class="5xx"): 1.0,
        key(upstream_addr="10.0.0.3:80", status_class="2xx"): 1.0,
        key(upstream_addr="10.0.0.3:80", status_class="none"): 1.0,
    }
    assert world.series("nginx_upstream_connect_failures_total") == {
        key(upstream_addr="10.0.0.1:80"): 1.0,
        key(upstream_addr="10.0.0.2:80"): 0.0,
        key(upstream_addr="10.0.0.3:80"): 0.0,
    }
    seconds = world.series("nginx_upstream_response_time_seconds_sum")
    assert seconds[key(upstream_addr="10.0.0.3:80")] == 0.008
    buckets = world.series("nginx_upstream_response_time_seconds_bucket")
    assert buckets[key(upstream_addr="10.0.0.3:80", le="0.01")] == 1.0
    assert buckets[key(upstream_addr="10.0.0.2:80", le="0.5")] == 0.0
    assert buckets[key(upstream_addr="10.0.0.2:80", le="1")] == 1.0, "a bound belongs to its bucket"
    assert world.series("nginx_response_bytes_total") == {key(): 20.0}
    assert world.series("nginx_request_time_seconds_count") == {key(): 2.0}


def test_a_group_without_a_live_server_is_no_endpoint(worlds: Any) -> None:
    world = worlds()
    push(world, line(status=502, upstream_addr="web_app", upstream_status="502", upstream_response_time="0.000"))
    world.count()
    assert world.series("nginx_upstream_requests_total") == {}
    assert world.series("nginx_upstream_no_live_total") == {key(upstream="web_app"): 1.0}


def test_counters_begin_at_zero_and_grow(worlds: Any) -> None:
    world = worlds()
    push(world, line())
    world.count(NOW_S + 5)
    push(world, line(), line(), first=10)
    world.count(NOW_S + 10)
    frame = world.tenant.select(
        [Matcher("__name__", MatchOp.EQUAL, "nginx_requests_total")], 0, 1 << 62, SelectLimits()
    )
    assert (frame.ts_ms.tolist(), frame.values.tolist()) == (
        [NOW_S * 1000, NOW_S * 1000 + 5000, NOW_S * 1000 + 10_000],
        [0.0, 1.0, 3.0],
    )


def test_the_numbers_of_series_may_change_between_writes(worlds: Any) -> None:
    world = worlds()
    for number in range(50):
        world.tenant.registry.resolve({"__name__": "gone", "n": str(number)})
    push(world, line())
    world.count(NOW_S + 5)
    with world.db.unchanged():
        world.db.log.submit(BeginGeneration(world.tenant)).result()
    push(world, line(), line(), first=10)
    world.count(NOW_S + 10)
    frame = world.tenant.select(
        [Matcher("__name__", MatchOp.EQUAL, "nginx_requests_total")], 0, 1 << 62, SelectLimits()
    )
    assert frame.values.tolist() == [0.0, 1.0, 3.0]
    assert world.tenant.registry.find([Matcher("__name__", MatchOp.EQUAL, "gone")]).tolist() == []


def test_what_is_pushed_again_is_not_counted_again(worlds: Any) -> None:
    world = worlds()
    push(world, line(path="/1"), line(path="/2"))
    push(world, line(path="/1"), line(path="/2"), line(path="/3"))
    world.count()
    assert world.series("nginx_requests_total") == {key(status_class="2xx"): 3.0}


def test_only_matching_streams_count_and_broken_lines_are_told(worlds: Any) -> None:
    world = worlds()
    push(world, line(), labels={**STREAM, "job": "other"})
    push(world, line(), b"what?", b'{"status": "odd"}')
    world.count()
    assert world.series("nginx_requests_total") == {key(status_class="2xx"): 1.0, key(status_class="none"): 1.0}
    assert (world.deriver.stats.lines, world.deriver.stats.unparsed) == (3, 1)


def test_the_site_of_a_line_where_the_stream_has_none(worlds: Any) -> None:
    by_line = Rule(JsonFormat({"site": ["host"]}), (Matcher("job", MatchOp.EQUAL, "nginx"),), by_line=True)
    world = worlds(rules=(by_line,), sites_max=2)
    push(world, *[line(host=f"{i}.example") for i in range(4)], labels={"job": "nginx", "host": "web-1"})
    world.count()
    found = {dict(labels)["site"]: value for labels, value in world.series("nginx_requests_total").items()}
    assert found == {"0.example": 1.0, "1.example": 1.0, "other": 2.0}
    assert world.tally.snapshot()[Reason.SERIES_LIMIT] == 2


def test_combined_lines_count_without_upstreams(worlds: Any) -> None:
    world = worlds(rules=(Rule(TextFormat(COMBINED), PUSHED[0].matchers),))
    push(world, b'192.0.2.1 - - [02/Nov/2026:06:13:20 +0000] "GET / HTTP/1.1" 503 7 "-" "x"')
    world.count()
    assert world.series("nginx_requests_total") == {key(status_class="5xx"): 1.0}
    assert world.series("nginx_response_bytes_total") == {key(): 7.0}
    assert world.series("nginx_request_time_seconds_count") == {}


def test_more_endpoints_than_the_limit_are_refused_and_told(worlds: Any) -> None:
    world = worlds(series_max=1000)
    addresses = [f"10.0.{i // 250}.{i % 250}:80" for i in range(100)]
    push(world, *[line(upstream_addr=a, upstream_status="200", path=a) for a in addresses])
    world.count()
    kept = len(world.series("nginx_upstream_requests_total"))
    assert 0 < kept < 100
    assert world.tally.snapshot()[Reason.SERIES_LIMIT] == 100 - kept
    assert world.series("nginx_requests_total") == {key(status_class="2xx"): 100.0}


def test_what_is_gone_gets_stale_markers(worlds: Any) -> None:
    world = worlds(stale_ms=60_000)
    push(world, line(upstream_addr="10.0.0.1:80", upstream_status="200"))
    world.count(NOW_S)
    push(world, line(upstream_addr="10.0.0.2:80", upstream_status="200"), first=5)
    world.clock.ms = (NOW_S + 50) * 1000
    world.deriver.count_pending()
    world.count(NOW_S + 70)
    found = world.series("nginx_upstream_requests_total")
    assert np.isnan(found.pop(key(upstream_addr="10.0.0.1:80", status_class="2xx")))
    assert found == {key(upstream_addr="10.0.0.2:80", status_class="2xx"): 1.0}
    push(world, line(upstream_addr="10.0.0.1:80", upstream_status="200"), first=9)
    world.count(NOW_S + 75)
    assert world.series("nginx_upstream_requests_total")[key(upstream_addr="10.0.0.1:80", status_class="2xx")] == 1.0


def test_on_a_thread_of_its_own(worlds: Any) -> None:
    world = worlds()
    world.deriver.start()
    push(world, *[line(path=f"/{i}") for i in range(100)])
    assert settled(lambda: world.deriver.stats.lines == 100)
    world.clock.ms += 6000
    push(world, line(path="/last"))
    world.deriver.close()
    assert world.series("nginx_requests_total") == {key(status_class="2xx"): 101.0}
    assert world.tenant.metadata()["nginx_request_time_seconds"].type == "histogram"


def test_the_lines_of_the_generator_count_as_a_loop_over_them() -> None:
    import importlib.util

    path = shared_path("data/nginx_lines.py")
    spec = importlib.util.spec_from_file_location("nginx_lines", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = next(iter(module.batches(16_384, sites=10)))
    texts = [text.encode() for _, _, text in rows]
    wanted: Counter[tuple[str, str]] = Counter()
    for _, _, text in rows:
        fields = orjson.loads(text)
        addresses = fields["upstream_addr"].replace(" : ", ", ").split(", ") if fields["upstream_addr"] else []
        statuses = fields["upstream_status"].replace(" : ", ", ").split(", ")
        for address, status in zip(addresses, statuses, strict=True) if addresses else ():
            wanted[address, f"{status[0]}xx" if status != "-" else "none"] += 1
    columns = JsonFormat().read(
        Texts.of(texts), ("status", "upstream_addr", "upstream_status", "upstream_response_time")
    )
    found = attempts_of(columns, columns.good)
    got = Counter(zip([found.texts[a] for a in found.address], [CLASSES[c] for c in found.classes], strict=True))
    assert got == wanted
    assert any(", " in orjson.loads(text)["upstream_addr"] for _, _, text in rows)


def test_batches_add_up() -> None:
    """Counted in one batch or line by line: the same tables."""
    lines = [VECTOR, line(status=304), line(status=502, upstream_addr="u:1", upstream_status="502", request_time=99.0)]
    one, many = Counters(), Counters()
    roles = ("status", "bytes", "request_time", "upstream_addr", "upstream_status", "upstream_response_time")
    keys = [("a", "", "h"), ("b", "", "h")]
    place = np.array([0, 1, 0, -1])
    one.access(keys, place, JsonFormat().read(Texts.of([*lines, VECTOR]), roles), 1)
    for i, text in enumerate(lines):
        many.access(keys, place[i : i + 1], JsonFormat().read(Texts.of([text]), roles), 1)
    for a, b in zip(one.tables, many.tables, strict=True):
        rows = [b.keys[k] for k in a.keys]
        assert set(a.keys) == set(b.keys)
        np.testing.assert_allclose(a.values[: len(a)], b.values[rows])
