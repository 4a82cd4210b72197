"""LogQL over a store in memory: what each stage and aggregation makes of lines."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from query.errors import QueryError
from query.limits import QueryLimits
from query.logql.ast import LogQuery
from query.logql.engine.engine import LogEngine, LogResult
from query.logql.parser import parse
from query.result import MatrixResult, ScalarResult, VectorResult
from tests.query.logql.memory_logs import MemoryLogs
from tsdb.clock import ManualClock

NS = 10**9
WEB = {"app": "web", "site": "a"}
JSON_LINES = [
    '{"status":200,"took":"1.5s","size":"10KB","path":"/a","n":{"x":"1"},"app":"inner"}',
    '{"status":500,"took":"250ms","size":"1KB","path":"/b","t":[1],"z":null,"ok":true}',
    '{"status":404,"took":"oops","size":"2MB","path":"/a\\u0041\\n","r":0.010}',
    "not json",
]


def logs(lines: list[Any], labels: dict[str, str] | None = None, **more: Any) -> MemoryLogs:
    """One stream, a line a second from 1 s on."""
    entries = [(i * NS, *line) if isinstance(line, tuple) else (i * NS, line) for i, line in enumerate(lines, 1)]
    return MemoryLogs([(labels or WEB, entries)], **more)


engine = LogEngine(clock=ManualClock(100_000))


def rows(store: MemoryLogs, text: str, limit: int = 100, *, backward: bool = False) -> list[tuple[str, dict[str, str]]]:
    """(line, labels that are not the stream's) in order of time."""
    query = parse(text)
    assert isinstance(query, LogQuery)
    result = engine.entries(store, query, 0, 1000 * NS, limit, backward=backward)
    assert isinstance(result.value, list)
    entries = [entry for stream in result.value for entry in stream.entries]
    entries.sort(key=lambda entry: entry.ts_ns, reverse=backward)
    return [(entry.line, {**entry.metadata, **entry.parsed}) for entry in entries]


def lines(store: MemoryLogs, text: str, **more: Any) -> list[str]:
    return [line for line, _ in rows(store, text, **more)]


def points(result: LogResult) -> dict[str, list[float | None]]:
    """``labels -> values`` of a metric answer."""
    value = result.value
    assert isinstance(value, MatrixResult | VectorResult)
    return {
        json.dumps(labels): [v if p else None for v, p in zip(row.tolist(), has.tolist(), strict=True)]
        for labels, row, has in zip(value.labels, value.values, value.present, strict=True)
    }


def instant(store: MemoryLogs, text: str, at_s: float = 10) -> dict[str, float]:
    result = engine.instant(store, text, int(at_s * NS))
    return {labels: values[0] for labels, values in points(result).items() if values[0] is not None}


# ------------------------------------------------------------------------ line filters


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('|= "a"', ["a one", "A b a"]),
        ('|= ""', ["a one", "b two", "A b a", "ip 10.0.0.7 x"]),
        ('!= "a"', ["b two", "ip 10.0.0.7 x"]),
        ('|= "one" or "two"', ["a one", "b two"]),
        ('!= "one" or "two"', ["A b a", "ip 10.0.0.7 x"]),
        ('|~ "^a|two$"', ["a one", "b two"]),
        ('|~ "one|two"', ["a one", "b two"]),
        ('!~ "(?i)a"', ["b two", "ip 10.0.0.7 x"]),
        ('|> "<_> one"', ["a one"]),
        ('!> "<_> <_>"', []),
        ('|> "a <_>"', ["a one"]),
        ('|= ip("10.0.0.0/8")', ["ip 10.0.0.7 x"]),
        ('!= ip("10.0.0.1-10.0.0.9")', ["a one", "b two", "A b a"]),
        ('|= "a" |= "b"', ["A b a"]),
    ],
)
def test_line_filters(text: str, kept: list[str]) -> None:
    store = logs(["a one", "b two", "A b a", "ip 10.0.0.7 x"])
    assert lines(store, f'{{app="web"}} {text}') == kept


def test_needles_go_to_the_store() -> None:
    store = logs(["x"])
    lines(store, '{app="web"} |= "a" |~ "b.c" |~ "lit" |> "<_> d <_>" != "e" | line_format "x" |= "f"')
    assert store.needles == [(b"a", b"lit", b" d ")]


# ------------------------------------------------------------------------ parsers


@pytest.mark.parametrize("fields", [False, True])
def test_json(fields: bool) -> None:
    store = logs(JSON_LINES[:3] if fields else JSON_LINES, fields=fields)
    found = [labels for _, labels in rows(store, '{app="web"} | json')]
    assert found[0] == {
        "status": "200", "took": "1.5s", "size": "10KB", "path": "/a", "n_x": "1", "app_extracted": "inner"
    }  # fmt: skip
    assert found[1] == {"status": "500", "took": "250ms", "size": "1KB", "path": "/b", "ok": "true"}
    assert found[2] == {"status": "404", "took": "oops", "size": "2MB", "path": "/aA\n", "r": "0.010"}
    if not fields:
        assert found[3]["__error__"] == "JSONParserErr"


@pytest.mark.parametrize("fields", [False, True])
def test_json_expressions(fields: bool) -> None:
    store = logs(['{"a":{"b":[{"c":"x"},2.50]},"d e":true,"s":"t"}'], fields=fields)
    (_, labels), *_ = rows(
        store, r'{app="web"} | json first="a.b[0].c", second="a.b[1]", all="a.b", flag="[\"d e\"]", s'
    )
    assert labels == {"first": "x", "second": "2.50", "all": '[{"c":"x"},2.5]', "flag": "true", "s": "t"}


def test_logfmt() -> None:
    store = logs(['level=info msg="a \\"b\\" c" dur=2s empty= alone x.y=1', 'a="broken'])
    found = [labels for _, labels in rows(store, '{app="web"} | logfmt')]
    assert found == [{"level": "info", "msg": 'a "b" c', "dur": "2s", "x_y": "1"}, {}]
    assert rows(store, '{app="web"} | logfmt --strict')[1][1]["__error__"] == "LogfmtParserErr"
    assert rows(store, '{app="web"} | logfmt lvl="level", dur')[0][1] == {"lvl": "info", "dur": "2s"}


def test_regexp_and_pattern() -> None:
    store = logs(['1.2.3.4 - - "GET /x HTTP/1.1" 200', "1.2.3.4 oops"])
    text = '{app="web"} | pattern `<ip> - - "<method> <path> <_>" <status>`'
    assert rows(store, text)[0][1] == {"ip": "1.2.3.4", "method": "GET", "path": "/x", "status": "200"}
    assert rows(store, text)[1][1] == {"ip": "1.2.3.4 oops"}
    found = rows(store, '{app="web"} | regexp `(?P<ip>[0-9.]+) (-|(?P<word>\\w+))`')
    assert [labels for _, labels in found] == [{"ip": "1.2.3.4"}, {"ip": "1.2.3.4", "word": "oops"}]


def test_unpack() -> None:
    store = logs(['{"pod":"p1","n":3,"_entry":"the line"}', "x"])
    found = rows(store, '{app="web"} | unpack')
    assert found[0] == ("the line", {"pod": "p1"})
    assert found[1][1]["__error__"] == "JSONParserErr"


# ------------------------------------------------------------------------ label filters


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("status >= 400", [1, 2, 3]),
        ("status == 200", [0, 3]),
        ('status = "200"', [0]),
        ('status != "200"', [1, 2, 3]),
        ("took > 1s", [0, 2, 3]),
        ('took > 1s | __error__ = ""', [0]),
        ("size < 5KB", [1, 3]),
        ("size >= 10kB and status < 400", [0, 3]),
        ('path =~ "/a.*"', [0, 2]),
        ('(status = "200" or status = "500") and path != "/b"', [0]),
        ('nothing = ""', [0, 1, 2, 3]),
        ('nothing > 5 | __error__ = ""', []),
        ('app = "web"', [0, 1, 2, 3]),
        ('__error__ != ""', [3]),
    ],
)
@pytest.mark.parametrize("frame_rows", [1, 3, 100])
def test_label_filters(text: str, kept: list[int], frame_rows: int) -> None:
    store = logs(JSON_LINES, frame_rows=frame_rows)
    assert lines(store, f'{{app="web"}} | json | {text}') == [JSON_LINES[i] for i in kept]


def test_ip_label_filters() -> None:
    store = logs(["addr=10.1.2.3", "addr=192.168.0.1", "addr=::1", "b=1"])
    assert lines(store, '{app="web"} | logfmt | addr = ip("10.0.0.0/8")') == ["addr=10.1.2.3"]
    assert lines(store, '{app="web"} | logfmt | addr != ip("10.0.0.0/8")') == ["addr=192.168.0.1", "addr=::1"]
    assert lines(store, '{app="web"} | logfmt | addr = ip("::/16")') == ["addr=::1"]


# ------------------------------------------------------------------------ formats


def test_line_format() -> None:
    store = logs(["a=1 b=xy", "b=z"])
    assert lines(store, '{app="web"} | logfmt | line_format "{{.a}}-{{.b | ToUpper}} {{.app}}"') == [
        "1-XY web",
        "-Z web",
    ]
    assert lines(store, '{app="web"} | line_format "{{ __line__ | len }} {{ __timestamp__ | unixEpoch }}"') == [
        "8 1",
        "3 2",
    ]
    assert lines(store, '{app="web"} | logfmt | line_format "{{if eq .a `1`}}one{{else}}other{{end}}" |= "o"') == [
        "one",
        "other",
    ]
    found = rows(store, '{app="web"} | line_format `{{ div 1 0 }}`')
    assert found[0][0] == "a=1 b=xy"
    assert found[0][1]["__error__"] == "TemplateFormatErr"


def test_label_format_drop_and_keep() -> None:
    store = logs([("a=1 b=2", {"trace": "t1"})])
    base = '{app="web"} | logfmt'
    assert rows(store, f'{base} | label_format c=a, d="{{{{.b}}}}{{{{.site}}}}"')[0][1] == {
        "b": "2", "c": "1", "d": "2a", "trace": "t1"
    }  # fmt: skip
    assert rows(store, f"{base} | drop a, trace")[0][1] == {"b": "2"}
    assert rows(store, f'{base} | drop a="2", b="2"')[0][1] == {"a": "1", "trace": "t1"}
    assert rows(store, f"{base} | keep b, trace")[0][1] == {"b": "2", "trace": "t1"}
    query = parse(f"{base} | keep b")
    assert isinstance(query, LogQuery)
    (stream,) = engine.entries(store, query, 0, 100 * NS, 10, backward=True).value  # type: ignore[misc]
    assert stream.labels == {}


def test_decolorize() -> None:
    store = logs(["\x1b[31mred\x1b[0m plain"])
    assert lines(store, '{app="web"} | decolorize') == ["red plain"]


def test_structured_metadata() -> None:
    store = logs([("x", {"trace_id": "1", "app": "other", "http.method": "GET"}), ("y", {"trace_id": "2"})])
    assert rows(store, '{app="web"} | trace_id = "1"') == [
        ("x", {"trace_id": "1", "app_extracted": "other", "http_method": "GET"})
    ]


# ------------------------------------------------------------------------ limits and order


@pytest.mark.parametrize("frame_rows", [1, 2, 5])
@pytest.mark.parametrize("limit", [1, 3, 7, 50])
def test_limit_is_exact_over_all_streams(frame_rows: int, limit: int) -> None:
    random = np.random.default_rng(1)
    streams = [
        ({"app": "web", "n": str(n)}, [(int(t), f"{n} {i}") for i, t in enumerate(np.sort(random.integers(0, 30, 20)))])
        for n in range(3)
    ]
    store = MemoryLogs(streams, frame_rows=frame_rows)
    everything = sorted(((t, line) for _, entries in streams for t, line in entries), key=lambda e: e[0])
    query = parse('{app="web"}')
    assert isinstance(query, LogQuery)
    for backward in (True, False):
        result = engine.entries(store, query, 0, 30, limit, backward=backward).value
        assert isinstance(result, list)
        got = sorted(entry.ts_ns for stream in result for entry in stream.entries)
        wanted = [t for t, _ in everything]
        assert got == (wanted[-limit:] if backward else wanted[:limit])
        for stream in result:
            times = [entry.ts_ns for entry in stream.entries]
            assert times == sorted(times, reverse=backward)


def test_entries_of_one_nanosecond_keep_their_order() -> None:
    store = MemoryLogs([(WEB, [(5, "a"), (5, "b"), (5, "c"), (5, "d")])], frame_rows=3)
    query = parse('{app="web"}')
    assert isinstance(query, LogQuery)
    for backward, wanted in ((False, "abcd"), (True, "dcba")):
        (stream,) = engine.entries(store, query, 0, 10, 10, backward=backward).value  # type: ignore[misc]
        assert "".join(entry.line for entry in stream.entries) == wanted


# ------------------------------------------------------------------------ metrics


def test_counts_and_bytes() -> None:
    store = logs(["aa", "b", "cccc", "d"])
    assert instant(store, 'count_over_time({app="web"}[2s])', 4) == {'{"app": "web", "site": "a"}': 2}
    assert instant(store, 'count_over_time({app="web"}[3s] offset 1s)', 4) == {'{"app": "web", "site": "a"}': 3}
    assert instant(store, 'rate({app="web"}[2s])', 4) == {'{"app": "web", "site": "a"}': 1}
    assert instant(store, 'bytes_over_time({app="web"}[10s])') == {'{"app": "web", "site": "a"}': 8}
    assert instant(store, 'sum(bytes_rate({app="web"}[10s]))') == {"{}": 0.8}
    assert instant(store, 'absent_over_time({app="web"}[10s])') == {}
    assert instant(store, 'absent_over_time({app="other",x=~"y"}[10s])') == {'{"app": "other"}': 1}
    assert instant(store, 'absent_over_time({app="web"} | logfmt | unwrap nope [10s])') == {'{"app": "web"}': 1}
    assert instant(store, 'sum(count_over_time({app="web"} |= "zz" [10s]))') == {}


@pytest.mark.parametrize("frame_rows", [2, 100])
def test_count_by_parsed_label(frame_rows: int) -> None:
    store = logs(JSON_LINES[:3], frame_rows=frame_rows)
    assert instant(store, 'sum by (status) (count_over_time({app="web"} | json [10s]))') == {
        '{"status": "200"}': 1, '{"status": "404"}': 1, '{"status": "500"}': 1
    }  # fmt: skip
    assert instant(store, 'sum without (site) (count_over_time({app="web"} | json | keep site, app, ok [10s]))') == {
        '{"app": "web"}': 2, '{"app": "web", "ok": "true"}': 1
    }  # fmt: skip
    assert instant(store, 'count(count_over_time({app="web"} | json | keep path [10s]))') == {"{}": 3}


def test_many_series_are_counted_once_against_the_limits() -> None:
    store = logs([f"n={i}" for i in range(300)], frame_rows=10)
    small = LogEngine(QueryLimits(workers=1, samples_max=2 * 2 * 600 * 3), ManualClock(0))
    assert len(points(small.instant(store, 'count_over_time({app="web"} | logfmt [1h])', 1000 * NS))) == 300
    with pytest.raises(QueryError, match="too many samples"):
        small.range(store, 'count_over_time({app="web"} | logfmt [1h])', 0, 1000 * NS, 10 * NS)


def test_range_query() -> None:
    store = logs(["a"] * 6)
    result = engine.range(store, 'sum(count_over_time({app="web"}[2s]))', 0, 10 * NS, 2 * NS)
    assert points(result) == {"{}": [None, 2, 2, 2, None, None]}


def test_unwrap() -> None:
    store = logs(["v=1 d=1s b=1KB", "v=2 d=500ms b=2KB", "v=6 d=1m b=3KB h=x", "w=1"])
    base = '{app="web"} | logfmt | unwrap'
    for op, wanted in (
        ("sum", 9), ("avg", 3), ("min", 1), ("max", 6), ("first", 1), ("last", 6), ("stdvar", 14 / 3)
    ):  # fmt: skip
        got = instant(store, f"sum({op}_over_time({base} v [10s])" + (")" if op == "sum" else " by (app))"))
        assert got == {"{}": pytest.approx(wanted)}
    assert instant(store, f"quantile_over_time(0.5, {base} v [10s]) by (app)") == {'{"app": "web"}': 2}
    assert instant(store, f"sum(rate({base} v [10s]))") == {"{}": pytest.approx(0.9)}
    assert instant(store, f"max_over_time({base} duration(d) [10s]) by ()") == {"{}": 60}
    assert instant(store, f"sum(sum_over_time({base} bytes(b) [10s]))") == {"{}": 6000}
    # the unwrapped label is no label of the series
    assert instant(store, f'sum_over_time({base} v [10s]) == 6') == {
        '{"app": "web", "b": "3KB", "d": "1m", "h": "x", "site": "a"}': 6
    }  # fmt: skip
    assert instant(store, f"max_over_time({base} v | v > 1 | v < 6 [10s]) by ()") == {"{}": 2}


def test_rate_counter() -> None:
    store = logs([f"v={v}" for v in (10, 20, 5, 15)])
    (got,) = instant(store, 'rate_counter({app="web"} | logfmt | unwrap v [4s])', 4).values()
    assert got == pytest.approx(25 / 3 * (4 / 4), rel=0.1)


def test_errors_of_lines_are_errors_of_metric_queries() -> None:
    store = logs(JSON_LINES)
    with pytest.raises(QueryError, match="pipeline error: 'JSONParserErr' for series"):
        instant(store, 'sum(count_over_time({app="web"} | json [10s]))')
    assert instant(store, 'sum(count_over_time({app="web"} | json | drop __error__ [10s]))') == {"{}": 4}
    assert instant(store, 'sum(count_over_time({app="web"} | json | __error__="" [10s]))') == {"{}": 3}
    with pytest.raises(QueryError, match="pipeline error: 'SampleExtractionErr'"):
        instant(logs(["v=x"]), 'sum(sum_over_time({app="web"} | logfmt | unwrap v [10s]))')
    assert instant(logs(["v=x"]), 'sum(sum_over_time({app="web"} | logfmt | unwrap v | __error__="" [10s]))') == {}


def test_operators() -> None:
    store = MemoryLogs(
        [
            ({"app": "web", "site": s}, [(i * NS, "x") for i in range(1, 1 + n)])
            for s, n in (("a", 3), ("b", 5), ("c", 1))
        ]
    )
    counts = 'count_over_time({app="web"}[20s])'
    assert instant(store, f"topk(1, sum by (site) ({counts}))") == {'{"site": "b"}': 5}
    assert instant(store, f"approx_topk(1, sum by (site) ({counts}))") == {'{"site": "b"}': 5}
    assert list(instant(store, f"sort(sum by (site) ({counts}))").values()) == [1, 3, 5]
    assert list(instant(store, f"sort_desc(sum by (site) ({counts}))").values()) == [5, 3, 1]
    assert instant(store, f"max({counts}) - min({counts})") == {"{}": 4}
    assert instant(store, f"sum by (site) ({counts}) / on () group_left sum({counts}) > 0.5") == {
        '{"site": "b"}': 5 / 9
    }
    assert instant(store, f"sum by (site) ({counts}) > 2 and sum by (site) ({counts}) < 5") == {'{"site": "a"}': 3}
    assert instant(store, f'label_replace(sum by (site) ({counts}) == 1, "s", "${{1}}x", "site", "(.*)")') == {
        '{"s": "cx", "site": "c"}': 1
    }  # fmt: skip
    assert instant(store, "vector(1)+vector(1)") == {"{}": 2}
    scalar = engine.instant(store, "1+1", 4 * NS).value
    assert isinstance(scalar, ScalarResult)
    assert scalar.value == 2
