"""The engine as a whole: what the scripts of Prometheus do not ask."""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from query.engine import Engine, aggregate, context, window
from query.errors import BadDataError, ErrorType, ExecutionError, QueryTimeoutError, UnsupportedError
from query.limits import QueryLimits
from query.promql.ast import ValueType
from query.result import MatrixResult, RawMatrix, ScalarResult, StringResult, VectorResult
from tests.query.memory_storage import STALE, MemoryStorage
from tsdb.assemble import Selection
from tsdb.chunks import LateSamples
from tsdb.gorilla import encode_rows

MINUTE = 60_000


@pytest.fixture(scope="module")
def engine():
    engine = Engine(QueryLimits(workers=1))
    yield engine
    engine.close()


def counters(series: int = 3, minutes: int = 30, every_s: int = 15) -> MemoryStorage:
    """``m_total{i="0", l="0"}`` ...: series i grows by i + 1 a sample."""
    times = range(0, minutes * MINUTE + 1, every_s * 1000)
    return MemoryStorage(
        ({"__name__": "m_total", "i": str(i), "l": str(i % 2)}, [(t, (i + 1.0) * k) for k, t in enumerate(times)])
        for i in range(series)
    )


def vector(result) -> dict[str, float]:
    assert isinstance(result.value, VectorResult)
    return {str(labels): v for labels, v in zip(result.value.labels, result.value.values[:, 0].tolist(), strict=True)}


def matrix(result) -> dict[str, list[float | None]]:
    assert isinstance(result.value, MatrixResult)
    value = result.value
    return {
        str(labels): [v if p else None for v, p in zip(row, mask, strict=True)]
        for labels, row, mask in zip(value.labels, value.values.tolist(), value.present.tolist(), strict=True)
    }


# ------------------------------------------------------------------ shapes


def test_types_of_results(engine) -> None:
    storage = counters()
    assert isinstance(engine.instant(storage, "1 + 1", 4000).value, ScalarResult)
    assert engine.instant(storage, "1 + 1", 4000).value.value == 2
    string = engine.instant(storage, '"a b"', 4000)
    assert isinstance(string.value, StringResult)
    assert string.result_type is ValueType.STRING
    assert engine.instant(storage, "m_total", MINUTE).result_type is ValueType.VECTOR
    assert engine.instant(storage, "m_total[1m]", MINUTE).result_type is ValueType.MATRIX
    assert engine.range(storage, "1", 0, MINUTE, MINUTE).result_type is ValueType.MATRIX


def test_scalar_of_a_range_query_is_one_series(engine) -> None:
    assert matrix(engine.range(counters(), "time() / 60", 0, 2 * MINUTE, MINUTE)) == {"{}": [0, 1, 2]}


def test_raw_samples_come_sorted_without_stale_markers(engine) -> None:
    storage = MemoryStorage(
        [
            ({"__name__": "b"}, [(1000, 1.0), (2000, STALE), (3000, 3.0)]),
            ({"__name__": "a", "x": "1"}, [(2000, math.nan)]),
            ({"__name__": "a"}, [(0, 1.0), (2000, 7.0)]),
            ({"__name__": "c"}, [(2000, STALE)]),
        ]
    )
    value = engine.instant(storage, '{__name__=~"a|b|c"}[3s]', 3000).value
    assert isinstance(value, RawMatrix)
    frame = value.frame
    assert list(frame.labels) == [{"__name__": "a"}, {"__name__": "a", "x": "1"}, {"__name__": "b"}]
    assert frame.offsets.tolist() == [0, 1, 2, 4]
    assert frame.ts_ms.tolist() == [2000, 2000, 1000, 3000]
    np.testing.assert_array_equal(frame.values, [7.0, np.nan, 1.0, 3.0])


def test_subquery_as_result(engine) -> None:
    frame = engine.instant(counters(1), "m_total[2m:1m] offset 1m", 5 * MINUTE).value.frame
    assert frame.ts_ms.tolist() == [3 * MINUTE, 4 * MINUTE]
    assert frame.values.tolist() == [12, 16]


def test_subquery_between_its_steps_is_empty(engine) -> None:
    assert len(engine.instant(counters(1), "m_total[10s:1m]", 90_000).value.frame) == 0
    assert vector(engine.instant(counters(1), "sum_over_time(m_total[10s:1m])", 90_000)) == {}


def test_ranges_come_sorted_by_labels(engine) -> None:
    labels = [{}, {"a": "1"}, {"a": "1", "b": "0"}, {"a": "2"}, {"a": "10"}, {"b": "1"}, {"a": "1", "c": "1"}]
    storage = MemoryStorage(({"__name__": "x", **one}, [(0, 1.0)]) for one in labels)
    rows = list(engine.range(storage, "x", 0, 0, 1).value.labels)
    assert rows == sorted(rows, key=lambda row: sorted(row.items()))


def test_a_nan_value_is_not_absent(engine) -> None:
    storage = MemoryStorage([({"__name__": "x"}, [(0, math.nan)])])
    result = engine.range(storage, "x + 0", 0, 10 * MINUTE, 5 * MINUTE)
    assert result.value.present.tolist() == [[True, False, False]]
    assert math.isnan(result.value.values[0, 0])


def test_lookback_can_be_chosen(engine) -> None:
    storage = MemoryStorage([({"__name__": "x"}, [(0, 1.0)])])
    assert vector(engine.instant(storage, "x", 299_999)) != {}
    assert vector(engine.instant(storage, "x", 300_000)) == {}
    assert vector(engine.instant(storage, "x", 60_000, lookback_ms=60_000)) == {}
    assert vector(engine.instant(storage, "x", 59_999, lookback_ms=60_000)) != {}


def test_the_same_selection_is_read_once(engine) -> None:
    storage = counters()
    engine.instant(storage, "sum(m_total) / count(m_total)", MINUTE)
    assert len(storage.selections) == 1
    engine.instant(storage, "m_total - m_total offset 1m", MINUTE)
    assert len(storage.selections) == 3


def test_stats(engine) -> None:
    stats = engine.range(counters(3), "sum(rate(m_total[5m]))", 5 * MINUTE, 10 * MINUTE, MINUTE).stats
    assert stats.samples == 3 * 40
    assert stats.series == 3
    assert stats.samples_total == 3 * 6 * 20
    assert stats.seconds.keys() >= {"prepare", "queue", "select", "eval", "total"}


@pytest.mark.parametrize(
    "query",
    [
        "m_total",
        "timestamp(m_total)",
        "sum(rate(m_total[5m]))",
        "sum(m_total) + sum(max_over_time(m_total[3m]))",
        "m_total @ 300",
        "max_over_time(sum(m_total)[3m:1m])",
        "absent_over_time(m_total[2m])",
        "1",
    ],
)
def test_samples_by_step_add_up(engine, query: str) -> None:
    stats = engine.range(counters(300), query, 5 * MINUTE, 14 * MINUTE, MINUTE, per_step=True).stats
    times, counts = stats.samples_per_step
    assert times.tolist() == [m * MINUTE for m in range(5, 15)]
    assert counts.sum() == stats.samples_total


def test_samples_by_step_are_those_of_the_windows(engine) -> None:
    storage = counters(2)
    storage.add({"__name__": "m_total", "late": "yes"}, [(9 * MINUTE - 1, 1.0), (9 * MINUTE, STALE)])
    steps = (8 * MINUTE, 10 * MINUTE, MINUTE)
    stats = engine.range(storage, "count_over_time(m_total[1m])", *steps, per_step=True).stats
    assert stats.samples_per_step[1].tolist() == [2 * 4, 2 * 4 + 1, 2 * 4]
    stats = engine.range(storage, "m_total", *steps, per_step=True).stats
    assert stats.samples_per_step[1].tolist() == [2, 2, 2]
    assert engine.range(storage, "m_total", *steps).stats.samples_per_step is None


# ------------------------------------------------------------------ refusals and limits


@pytest.mark.parametrize(
    ("text", "construct"),
    [
        ("1 + histogram_count(x)", "function histogram_count()"),
        ("\nhistogram_stddev(x)", "function histogram_stddev()"),
    ],
)
def test_what_is_not_spoken_is_refused_by_name(engine, text, construct) -> None:
    with pytest.raises(UnsupportedError, match="unsupported") as error:
        engine.instant(counters(), text, 0)
    assert error.value.construct == construct
    assert error.value.error_type is ErrorType.BAD_DATA
    at = text.index("hist")
    assert f"{1 + text.count(chr(10), 0, at)}:{at - text.rfind(chr(10), 0, at)}: " in str(error.value)


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda e, s: e.instant(s, "sum(", 0), 'invalid parameter "query": 1:5: parse error'),
        (lambda e, s: e.range(s, "x", 0, 1, 0), 'invalid parameter "step": zero or negative'),
        (lambda e, s: e.range(s, "x", 1, 0, 1), 'invalid parameter "end": end timestamp must not be before start time'),
        (lambda e, s: e.range(s, "x", 0, 11_001, 1), "exceeded maximum resolution of 11,000 points per timeseries"),
        (lambda e, s: e.instant(s, "x", 1 << 63), "evaluation time out of range"),
        (lambda e, s: e.range(s, "x[1m]", 0, 1, 1), 'invalid expression type "range vector" for range query'),
        (lambda e, s: e.range(s, '"x"', 0, 1, 1), 'invalid expression type "string" for range query'),
    ],
)
def test_bad_requests(engine, ask, text) -> None:
    with pytest.raises(BadDataError) as error:
        ask(engine, counters())
    assert str(error.value).startswith(text)


def test_eleven_thousand_steps_are_allowed(engine) -> None:
    assert engine.range(counters(1), "vector(1)", 0, 11_000, 1).value.values.shape == (1, 11_001)


@pytest.mark.parametrize(
    ("limits", "query", "named"),
    [
        ({"samples_max": 100}, "m_total", "samples_max"),
        ({"series_max": 2}, "m_total", "series"),
        ({"memory_bytes_max": 1000}, "m_total", "memory_bytes_max"),
        ({"subquery_steps_max": 10}, "max_over_time(m_total[1h:1s])", "subquery_steps_max"),
        ({"samples_max": 1000}, "m_total * m_total", "samples_max"),
        ({"samples_read_max": 100}, "m_total", "samples_read_max"),
    ],
)
def test_limits_are_named(limits, query, named) -> None:
    engine = Engine(QueryLimits(workers=1, **limits))
    with pytest.raises(ExecutionError, match=named):
        engine.range(counters(), query, 0, 30 * MINUTE, 15_000)


def test_timeout() -> None:
    engine = Engine(QueryLimits(workers=1))
    with pytest.raises(QueryTimeoutError, match="query timed out in query execution"):
        engine.instant(counters(), "sum(m_total)", 0, timeout_s=0.0)


def test_a_query_over_long_windows_can_be_stopped() -> None:
    """Half a million samples looked at by 11,001 windows: the clock is looked at in between."""
    times = range(0, 500_000 * 10, 10)
    storage = MemoryStorage([({"__name__": "x"}, [(t, float(t % 7)) for t in times])])
    engine = Engine(QueryLimits(workers=1))
    begin = time.monotonic()
    with pytest.raises(QueryTimeoutError):
        engine.range(storage, "stddev_over_time(x[2h])", 5_000_000, 5_011_000, 1, timeout_s=1.0)
    assert time.monotonic() - begin < 10


class SlowStorage(MemoryStorage):
    def __init__(self) -> None:
        super().__init__()
        self.entered, self.leave = threading.Event(), threading.Event()

    def select(self, *args):
        self.entered.set()
        self.leave.wait(10)
        return super().select(*args)


def test_queries_wait_for_their_turn() -> None:
    engine = Engine(QueryLimits(workers=1, concurrent_max=1))
    storage = SlowStorage()
    first = threading.Thread(target=engine.instant, args=(storage, "x", 0))
    first.start()
    storage.entered.wait(10)
    with pytest.raises(QueryTimeoutError, match="query timed out in query queue"):
        engine.instant(counters(), "m_total", 0, timeout_s=0.05)
    storage.leave.set()
    first.join()
    assert vector(engine.instant(counters(1), "m_total", 0)) != {}


# ------------------------------------------------------------------ large queries go other ways to the same answer


@settings(max_examples=25, deadline=None)
@given(
    op=st.sampled_from(sorted(aggregate.FOLDS)),
    inner=st.sampled_from(
        [
            "m_total",
            "rate(m_total[2m])",
            "delta(m_total[90s])",
            "avg_over_time(m_total[3m])",
            "quantile_over_time(scalar(vector(time() / 2000)), m_total[2m])",
            "predict_linear(m_total[3m] offset 1m, 60)",
            "last_over_time(m_total[1m:20s])",
            "rate(m_total[5m] @ 600)",
        ]
    ),
    by=st.sampled_from(["by (l)", "without (i)", "by (__name__)", ""]),
)
def test_batches_and_threads_change_nothing(op, inner, by) -> None:
    storage = counters(7, 20)
    storage.add({"__name__": "m_total", "i": "x", "l": "1"}, [(5 * MINUTE, 3.0), (6 * MINUTE, STALE)])
    query = f"{op} {by} ({inner})"
    small = Engine(QueryLimits(workers=1))
    plain = small.range(storage, query, 0, 20 * MINUTE, 30_000).value
    large = Engine(QueryLimits(workers=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregate, "BATCH_POINTS", 30)
        patch.setattr(window, "BATCH_POINTS", 30)
        patch.setattr(window, "HALVED_WORK_MIN", 0)
        patch.setattr(window, "_CHECK_WORK", 300)
        batched = large.range(storage, query, 0, 20 * MINUTE, 30_000).value
        bare = large.range(storage, inner, 0, 20 * MINUTE, 30_000).value
    large.close()
    assert list(plain.labels) == list(batched.labels)
    np.testing.assert_array_equal(plain.present, batched.present)
    np.testing.assert_allclose(plain.values[plain.present], batched.values[batched.present], rtol=1e-12, atol=1e-9)
    alone = small.range(storage, inner, 0, 20 * MINUTE, 30_000).value
    np.testing.assert_array_equal(alone.values[alone.present], bare.values[bare.present])


class EncodedStorage(MemoryStorage):
    """Answers as the real store does: with chunks, decoded by whoever reads them."""

    def open(self, matchers, mint_ms, maxt_ms, limits):
        frame = self.select(matchers, -(1 << 62), 1 << 62, limits)
        rows = np.repeat(np.arange(len(frame), dtype=np.int32), np.diff(frame.offsets))
        chunks = encode_rows(rows, frame.ts_ms, frame.values.view(np.uint64), 10 * MINUTE)
        late = LateSamples(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.uint64))
        return Selection(frame.labels, [(chunks, late)], mint_ms, maxt_ms, ("partial: a note",))


def test_encoded_selections_change_nothing(monkeypatch) -> None:
    series = [
        ({"__name__": "m_total", "i": str(i)}, [(t * 7000 + i, float(t * i)) for t in range(40 * i)]) for i in range(9)
    ]
    series.append(({"__name__": "m_total", "i": "x"}, [(5 * MINUTE, 3.0), (6 * MINUTE, STALE), (7 * MINUTE, -0.0)]))
    plain, encoded = MemoryStorage(series), EncodedStorage(series)
    monkeypatch.setattr(context, "KEPT_SAMPLES_MAX", 0)
    monkeypatch.setattr(window, "BATCH_POINTS", 100)
    monkeypatch.setattr(aggregate, "BATCH_POINTS", 100)
    monkeypatch.setattr(window, "HALVED_WORK_MIN", 0)
    engine = Engine(QueryLimits(workers=2))
    for query in (
        "m_total",
        "sum(m_total)",
        "rate(m_total[3m])",
        "max by (i) (max_over_time(m_total[5m]))",
        "m_total * on (i) stddev_over_time(m_total[10m])",
        "topk(2, m_total)",
        "timestamp(m_total)",
        "absent_over_time(m_total[1s])",
    ):
        a = engine.range(plain, query, 0, 30 * MINUTE, 45_000)
        b = engine.range(encoded, query, 0, 30 * MINUTE, 45_000)
        assert list(a.value.labels) == list(b.value.labels), query
        np.testing.assert_array_equal(a.value.present, b.value.present)
        mask = a.value.present
        np.testing.assert_allclose(a.value.values[mask], b.value.values[mask], rtol=1e-12, err_msg=query)
        assert b.warnings == ("partial: a note",)
    a = engine.instant(plain, "m_total[20m]", 30 * MINUTE).value.frame
    b = engine.instant(encoded, "m_total[20m]", 30 * MINUTE).value.frame
    assert list(a.labels) == list(b.labels)
    np.testing.assert_array_equal(a.ts_ms, b.ts_ms)
    np.testing.assert_array_equal(a.values.view(np.uint64), b.values.view(np.uint64))
    engine.close()


def test_range_equals_instants(engine) -> None:
    storage = counters(4, 15)
    storage.add({"__name__": "g", "l": "1"}, [(7 * MINUTE, 3.0), (8 * MINUTE, STALE), (9 * MINUTE, 4.0)])
    for query in (
        "m_total > 60",
        "m_total * on (l) group_left g",
        "g or m_total",
        "m_total unless on (l) g",
        "topk by (l) (1, m_total)",
        "count_values('v', m_total)",
        "absent(g)",
        "sum by (l) (increase(m_total[150s])) / 2",
        "max_over_time(rate(m_total[2m])[3m:40s])",
        "label_replace(m_total, 'l', 'x', 'i', '0')",
        "m_total offset -1m - m_total @ 300",
        "histogram_quantile(0.5, sum by (le) (label_replace(m_total, 'le', '+Inf', 'i', '3') or "
        "label_replace(m_total, 'le', '$1', 'i', '(.*)')))",
        "timestamp(g) - time()",
        "scalar(g) + m_total",
        "stddev(m_total) + quantile(0.3, m_total)",
    ):
        whole = matrix(engine.range(storage, query, 0, 15 * MINUTE, 45_000))
        for step, t in enumerate(range(0, 15 * MINUTE + 1, 45_000)):
            one = vector(engine.instant(storage, query, t))
            assert {k: v[step] for k, v in whole.items() if v[step] is not None} == pytest.approx(one, nan_ok=True), (
                query,
                t,
            )


# ------------------------------------------------------------------ single rules


def test_one_query_at_time_4(engine) -> None:
    """Grafana's health check."""
    assert engine.instant(MemoryStorage(), "1+1", 4000).value == ScalarResult(4000, 2.0)


def test_match_errors_name_the_series(engine) -> None:
    storage = MemoryStorage(
        [
            ({"__name__": "many", "a": "1", "b": "1"}, [(0, 1.0)]),
            ({"__name__": "one", "a": "1", "c": "1"}, [(0, 1.0)]),
            ({"__name__": "one", "a": "1", "c": "2"}, [(0, 1.0)]),
        ]
    )
    with pytest.raises(ExecutionError) as error:
        engine.instant(storage, "many * on (a) one", 0)
    assert str(error.value) == (
        'found duplicate series for the match group {a="1"} on the right hand-side of the operation: '
        '[{__name__="one", a="1", c="2"}, {__name__="one", a="1", c="1"}]'
        ";many-to-many matching not allowed: matching labels must be unique on one side"
    )
    with pytest.raises(ExecutionError, match=r"on the left hand-side"):
        engine.instant(storage, "one * on (a) group_right many", 0)
    with pytest.raises(ExecutionError, match=r"many-to-one matching must be explicit \(group_left/group_right\)"):
        engine.instant(storage, "one * on (a) many", 0)
    with pytest.raises(ExecutionError, match=r"grouping labels must ensure unique matches"):
        engine.instant(storage, "one * on (a) group_left (c) (many * 2)", 0)


def test_series_that_change_places_match_step_by_step(engine) -> None:
    """Two series of the one side in a match group are fine as long as they are never there together."""
    storage = MemoryStorage(
        [
            ({"__name__": "many", "a": "1"}, [(0, 1.0), (MINUTE, 2.0)]),
            ({"__name__": "one", "a": "1", "pod": "x"}, [(0, 10.0), (1000, STALE)]),
            ({"__name__": "one", "a": "1", "pod": "y"}, [(MINUTE, 20.0)]),
        ]
    )
    assert matrix(engine.range(storage, "many * on (a) one", 0, MINUTE, MINUTE)) == {"{'a': '1'}": [10, 40]}
    assert matrix(engine.range(storage, "many * on (a) group_left (pod) one", 0, MINUTE, MINUTE)) == {
        "{'a': '1', 'pod': 'x'}": [10, None],
        "{'a': '1', 'pod': 'y'}": [None, 40],
    }


def test_series_that_become_alike(engine) -> None:
    storage = MemoryStorage(
        [({"__name__": "a_total"}, [(0, 1.0), (1000, STALE)]), ({"__name__": "b_total"}, [(MINUTE, 2.0)])]
    )
    query = '-{__name__=~".+_total"}'
    assert matrix(engine.range(storage, query, 0, MINUTE, MINUTE)) == {"{}": [-1, -2]}
    storage.add({"__name__": "c_total"}, [(MINUTE, 3.0)])
    with pytest.raises(ExecutionError, match="vector cannot contain metrics with the same labelset"):
        engine.range(storage, query, 0, MINUTE, MINUTE)


@pytest.mark.parametrize(
    ("pattern", "template", "expected"),
    [
        ("(.*)-(.*)", "$2.$1", "b.a"),
        ("(?P<first>.*)-(?P<x>.*)", "${x}$first", "ba"),
        ("(?:a)-(b)", "[$1]$$", "[b]$"),
        ("a-(b)(c)?", "<$2>", "<>"),
        ("[(]?a-b", "$1$0", "a-b"),
        (r"\Qa-b\E", "q", "q"),
        ("a", "no", None),
        ("(a)-(b)()()()()()()()()(b?)", "$11${12}x", "x"),
        ("(a.b)", "$1x", ""),
    ],
)
def test_label_replace(engine, pattern, template, expected) -> None:
    storage = MemoryStorage([({"__name__": "x", "src": "a-b"}, [(0, 1.0)])])
    result = engine.instant(
        storage, f"label_replace(x, 'dst', '{template}', 'src', '{pattern}')".replace("\\", "\\\\"), 0
    )
    assert next(iter(result.value.labels)).get("dst") == (expected or None)


def test_label_join_of_many_series(engine) -> None:
    storage = counters(3)
    labels = list(engine.instant(storage, 'label_join(m_total, "j", "-", "l", "i", "none")', 0).value.labels)
    assert [row["j"] for row in labels] == ["0-0-", "1-1-", "0-2-"]


def test_monotonicity_note(engine) -> None:
    storage = MemoryStorage(
        ({"__name__": "h_bucket", "le": le}, [(t * MINUTE, v) for t in range(3)])
        for le, v in (("1", 5.0), ("2", 2.0), ("+Inf", 9.0))
    )
    result = engine.range(storage, "histogram_quantile(0.5, h_bucket)", 0, 2 * MINUTE, MINUTE)
    assert result.infos == (
        "PromQL info: input to histogram_quantile needed to be fixed for monotonicity (see "
        "https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile) "
        'for metric name "h_bucket", from buckets 2 to 2, with a max diff of 3, over 3 samples from '
        "1970-01-01T00:00:00Z to 1970-01-01T00:02:00Z (1:25)",
    )


def test_counter_note(engine) -> None:
    storage = MemoryStorage([({"__name__": "gauge"}, [(0, 1.0), (MINUTE, 2.0)])])
    result = engine.instant(storage, "sum(rate(gauge[5m]))", MINUTE)
    assert result.infos == (
        'PromQL info: metric might not be a counter, name does not end in _total/_sum/_count/_bucket: "gauge" (1:10)',
    )
    assert result.warnings == ()


def test_extreme_dates(engine) -> None:
    """Whatever does not fit 64 bits of seconds is what Go makes of it on a PC."""
    for query, expected in (
        ("year(vector(NaN))", 292277026596),
        ("year(vector(1e300))", 292277026596),
        ("year(vector(-62135596801))", 0),
        ("day_of_week(vector(0))", 4),
        ("day_of_year(vector(951782400))", 60),
        ("days_in_month(vector(951782400))", 29),
        ("month(vector(-1))", 12),
        ("minute(vector(-1))", 59),
    ):
        assert vector(engine.instant(MemoryStorage(), query, 0)) == {"{}": expected}, query


def test_clamp_of_special_values(engine) -> None:
    for query, expected in (
        ("clamp_min(vector(NaN), Inf)", math.inf),
        ("clamp_max(vector(NaN), -Inf)", -math.inf),
        ("clamp(vector(5), 6, 7)", 6),
        ("clamp(vector(-0), 0, 7)", 0),
    ):
        assert vector(engine.instant(MemoryStorage(), query, 0)) == {"{}": expected}, query
    assert vector(engine.instant(MemoryStorage(), "clamp(vector(5), 7, 6)", 0)) == {}


def test_at_end_is_the_end_that_was_asked_for(engine) -> None:
    """... even where no step falls on it."""
    result = engine.range(counters(1), "m_total @ end() - m_total @ start()", MINUTE, 5 * MINUTE - 1000, MINUTE)
    assert result.value.values.tolist() == [[15.0] * 4]


def test_constant_parts_are_evaluated_once(engine) -> None:
    storage = counters(2)
    result = engine.range(storage, "sum(rate(m_total[5m] @ 600))", 0, 30 * MINUTE, MINUTE)
    assert result.value.values.shape == (1, 31)
    assert len(set(result.value.values[0].tolist())) == 1
    assert result.stats.samples_total == 2 * 20


def test_engine_is_quick_for_one_series(engine) -> None:
    """A very loose guard: 150 us are the aim, measured by the benchmarks."""
    storage = counters(1, 5)
    engine.instant(storage, "sum by (l) (rate(m_total[5m]))", 5 * MINUTE)
    begin = time.process_time()
    for _ in range(50):
        engine.instant(storage, "sum by (l) (rate(m_total[5m]))", 5 * MINUTE)
    assert (time.process_time() - begin) / 50 < 0.005
