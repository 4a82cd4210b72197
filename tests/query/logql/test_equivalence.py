"""What must not matter: whether fields are stored or parsed, how lines are cut into frames, what is pushed down."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from query.errors import QueryError
from query.logql.ast import Grouping, LogQuery, LogRange, MetricExpr, RangeAggregation, VectorAggregation
from query.logql.engine.engine import LogEngine
from query.result import MatrixResult
from tests.query.logql.memory_logs import MemoryLogs
from tests.query.logql.trees import stages
from tsdb.clock import ManualClock
from tsdb.matchers import Matcher, MatchOp

APP = (Matcher("app", MatchOp.REGEX, ".+"),)
_values = st.sampled_from(
    ["a", "b", "x y", "5", "1.50", "250ms", "5KB", "10.0.0.7", "é\n", "", "null"]
) | st.sampled_from([1, 200, 500, 2.5, True, False, None])
_lines = st.dictionaries(st.sampled_from(["app", "level", "status_code", "_x", "m.n"]), _values, max_size=4).map(
    lambda o: json.dumps(o, ensure_ascii=False)
)
_metadata = st.dictionaries(st.sampled_from(["level", "trace", "app"]), st.sampled_from(["t", "info"]), max_size=2)
_entries = st.lists(st.tuples(st.integers(1, 30), _lines, _metadata), max_size=12)
_streams = st.tuples(_entries, _entries)
engine = LogEngine(clock=ManualClock(0))


def store(streams: tuple[Any, Any], **more: Any) -> MemoryLogs:
    labels = ({"app": "web", "env": "p"}, {"app": "api"})
    return MemoryLogs(
        [(each, sorted(entries, key=lambda e: e[0])) for each, entries in zip(labels, streams, strict=True)], **more
    )


def entries(logs: MemoryLogs, query: LogQuery, limit: int, backward: bool) -> list[Any]:
    found = engine.entries(logs, query, 0, 100, limit, backward=backward).value
    assert isinstance(found, list)
    return sorted(
        (sorted(s.labels.items()), e.ts_ns, e.line, sorted(e.metadata.items()), sorted(e.parsed.items()))
        for s in found
        for e in s.entries
    )


def matrix(logs: MemoryLogs, expr: MetricExpr) -> Any:
    try:
        value = engine.range_of(logs, expr, 0, 40, 5).value
    except QueryError as error:
        return str(error).partition(" for series")[0]
    assert isinstance(value, MatrixResult)
    return {
        json.dumps(labels): [v if p else None for v, p in zip(row.tolist(), has.tolist(), strict=True)]
        for labels, row, has in zip(value.labels, value.values, value.present, strict=True)
    }


@settings(max_examples=150, deadline=None)
@given(_streams, st.lists(stages, max_size=4).map(tuple), st.integers(1, 30), st.booleans())
def test_log_queries(streams: Any, pipeline: Any, limit: int, backward: bool) -> None:
    query = LogQuery(APP, pipeline)
    wanted = entries(store(streams, frame_rows=100), query, 100, backward)
    for more in ({"frame_rows": 100, "fields": True}, {"frame_rows": 1}, {"frame_rows": 4, "fields": True}):
        assert entries(store(streams, **more), query, 100, backward) == wanted
    some = entries(store(streams, frame_rows=3), query, limit, backward)
    assert len(some) == min(limit, len(wanted))
    times = sorted(entry[1] for entry in wanted)
    assert sorted(entry[1] for entry in some) == (times[-limit:] if backward else times[:limit])


_groupings = st.builds(
    Grouping, st.lists(st.sampled_from(["app", "level", "status_code", "env"]), max_size=2).map(tuple)
)


@settings(max_examples=150, deadline=None)
@given(
    _streams,
    st.lists(stages, max_size=3).map(tuple),
    _groupings,
    st.sampled_from(["count_over_time", "bytes_over_time", "rate"]),
)
def test_sums_pushed_down(streams: Any, pipeline: Any, grouping: Grouping, op: str) -> None:
    """``sum by`` of counts is the same whether the engine counts the groups or sums the series."""
    counted = RangeAggregation(op, LogRange(LogQuery(APP, pipeline), 7))
    pushed = VectorAggregation("sum", counted, None, grouping)
    apart = VectorAggregation("sum", VectorAggregation("sort", counted), None, grouping)
    wanted = matrix(store(streams, frame_rows=100), apart)
    for more in ({"frame_rows": 2}, {"frame_rows": 100, "fields": True}):
        got = matrix(store(streams, **more), pushed)
        if isinstance(wanted, str):
            assert got == wanted
        else:
            assert got.keys() == wanted.keys()
            for labels, values in got.items():
                assert np.allclose(np.array(values, float), np.array(wanted[labels], float), equal_nan=True)
