"""The JSON writer against its plain twin: every bit pattern, every shape, whatever the size of a piece."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from query import json_out
from query.kernels.json import RAGGED, TIME_SLOT, write_series
from query.result import MatrixResult, QueryResult, QueryStats, RawMatrix, ScalarResult, StringResult, VectorResult
from tests.reference import json_text
from tsdb.frame import LabelTable, SeriesFrame, SymbolOverlay

pytestmark = pytest.mark.kernel
PLAIN = bool(os.environ.get("NUMBA_DISABLE_JIT"))
MANY = 300 if PLAIN else 200_000

rng = np.random.default_rng(2020)


def points_text(values: Any, ts_ms: Any = None) -> list[str]:
    """Texts of points ``[t,"v"]`` as the kernel writes them."""
    bits = np.ascontiguousarray(values, np.float64).view(np.uint64)
    n = len(bits)
    times = np.zeros(n, np.int64) if ts_ms is None else np.asarray(ts_ms, np.int64)
    out = np.empty(100 + 90 * n, np.uint8)
    cursor = np.array([0, -1, 0])
    with np.errstate(over="ignore"):  # wrapping is meant; it warns only where the kernel runs as plain Python
        size = write_series(
            np.zeros(8, np.uint8),
            np.zeros(1, np.int64),
            np.zeros((1, 0), np.int32),
            np.zeros(8, np.uint8),
            np.zeros(1, np.int64),
            times,
            bits,
            np.zeros(0, np.bool_),
            np.array([0, n]),
            RAGGED,
            cursor,
            np.empty(TIME_SLOT, np.uint8),
            out,
        )
    text = out[:size].tobytes().decode()
    assert text.startswith('{"metric":{},"values":[[')
    assert text.endswith("]]}")
    return text[len('{"metric":{},"values":[[') : -len("]]}")].split("],[")


def check_floats(values: Any) -> None:
    values = np.asarray(values, np.float64)
    for value, got in zip(values.tolist(), points_text(values), strict=True):
        assert got == f'0,"{json_text.float_text(value)}"', value.hex()


def powers(base: float, exponents: range) -> Any:
    return np.array([float(f"1e{e}") if base == 10 else np.ldexp(1.0, e) for e in exponents])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "-0"),
        (1.0, "1"),
        (-17.5, "-17.5"),
        (1e-7, "1e-07"),
        (-2.5e-7, "-2.5e-07"),
        (0.000001, "0.000001"),
        (1e21, "1e+21"),
        (999999999999999900000.0, "999999999999999900000"),
        (123456789012345680000.0, "123456789012345680000"),
        (5e-324, "5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        (0.1 + 0.2, "0.30000000000000004"),
        (float("nan"), "NaN"),
        (float("inf"), "+Inf"),
        (float("-inf"), "-Inf"),
        (9007199254740993.0, "9007199254740992"),
    ],
)
def test_notation_of_values(value: float, text: str) -> None:
    assert points_text([value]) == [f'0,"{text}"']
    assert json_text.float_text(value) == text


def test_random_bit_patterns() -> None:
    check_floats(rng.integers(0, 2**64, MANY, dtype=np.uint64).view(np.float64))


def test_subnormals() -> None:
    check_floats(rng.integers(0, 2**52, MANY // 4, dtype=np.uint64).view(np.float64))
    check_floats(np.arange(300, dtype=np.uint64).view(np.float64))


def test_integers_and_decimals() -> None:
    check_floats(rng.integers(-(2**63), 2**63, MANY // 4).astype(np.float64))
    check_floats(rng.integers(-(10**9), 10**9, MANY // 4).astype(np.float64))
    check_floats(np.round(rng.random(MANY // 4) * 10.0 ** rng.integers(-8, 18, MANY // 4), 3))
    check_floats([float(10**i + d) for i in range(18) for d in (-1, 0, 1)])


@pytest.mark.parametrize("base", [2, 10])
def test_powers_and_their_neighbours(base: int) -> None:
    exact = powers(base, range(-1074, 1024, 7 if PLAIN else 1) if base == 2 else range(-324, 309, 7 if PLAIN else 1))
    check_floats(np.concatenate([exact, np.nextafter(exact, 0), np.nextafter(exact, np.inf), -exact]))


def test_times() -> None:
    times = [0, 1, 999, 1000, -1, -1500, 10**11 - 1, 10**11, 1795415580500, -(2**63), 2**63 - 1, 10**14, 86_400_000]
    times += rng.integers(-(10**14), 10**14, 200).tolist()
    assert points_text(np.zeros(len(times)), times) == [f'{json_text.time_text(t)},"0"' for t in times]


texts = st.text(st.characters(codec="utf-8"), max_size=12)
label_sets = st.lists(st.dictionaries(texts.filter(bool), texts.filter(bool), max_size=5), max_size=6)
floats = st.floats(width=64)


GUARD = 64


def guarded_write_series(*args: Any) -> int:
    """The kernel with fences around what it writes: it addresses memory without checks."""
    *inputs, times_text, out = args
    fenced = [np.full(len(array) + 2 * GUARD, 0xA5, np.uint8) for array in (times_text, out)]
    inner = [array[GUARD:-GUARD] for array in fenced]
    inner[0][:] = times_text
    with np.errstate(over="ignore"):
        written: int = write_series(*inputs, *inner)
    for array in fenced:
        assert (array[:GUARD] == 0xA5).all()
        assert (array[-GUARD:] == 0xA5).all()
    times_text[:] = inner[0]
    out[:written] = inner[1][:written]
    return written


def whole(pieces: Any, piece_bytes: int = 1 << 20) -> str:
    """The pieces of an answer, made with fences and a buffer of ``piece_bytes`` (or as large as it must be)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_out, "PIECE_BYTES", piece_bytes)
        patch.setattr(json_out, "write_series", guarded_write_series)
        return b"".join(pieces).decode()


def same_json(got: str, result_type: str, result: str) -> None:
    """Byte for byte but for the escapes of strings, which JSON lets a writer choose: those after reading back."""
    expected = f'{{"status":"success","data":{{"resultType":"{result_type}","result":{result}}}}}'
    assert json.loads(got) == json.loads(expected)
    if "\\" not in expected:
        assert got == expected


@given(label_sets, st.data(), st.integers(1, 5), st.integers(1, 2000))
@settings(max_examples=20 if PLAIN else 150, deadline=None)
def test_matrix_is_its_twin(rows: list[dict[str, str]], data: Any, steps: int, piece: int) -> None:
    times = np.array(data.draw(st.lists(st.integers(-(10**13), 10**13), min_size=steps, max_size=steps)), np.int64)
    n = len(rows)
    values = np.array(data.draw(st.lists(floats, min_size=n * steps, max_size=n * steps)), np.float64)
    present = np.array(data.draw(st.lists(st.booleans(), min_size=n * steps, max_size=n * steps)), np.bool_)
    values, present = values.reshape(n, steps), present.reshape(n, steps)
    result = MatrixResult(LabelTable.of(rows), times, values, present)
    got = whole(json_out.query_answer(QueryResult(result)), piece)
    points = [[(int(t), v) for t, v, p in zip(times, values[i], present[i], strict=True) if p] for i in range(n)]
    same_json(got, "matrix", json_text.matrix(zip(rows, points, strict=True)))


@given(label_sets, st.data(), st.integers(-(10**13), 10**13), st.integers(1, 900))
@settings(max_examples=20 if PLAIN else 150, deadline=None)
def test_vector_is_its_twin(rows: list[dict[str, str]], data: Any, time_ms: int, piece: int) -> None:
    values = data.draw(st.lists(floats, min_size=len(rows), max_size=len(rows)))
    grid = np.array(values, np.float64).reshape(-1, 1)
    result = VectorResult(LabelTable.of(rows), np.array([time_ms]), grid, np.ones_like(grid, np.bool_))
    got = whole(json_out.query_answer(QueryResult(result)), piece)
    same_json(got, "vector", json_text.vector(zip(rows, values, strict=True), time_ms))


@given(label_sets, st.data(), st.integers(1, 2000))
@settings(max_examples=20 if PLAIN else 100, deadline=None)
def test_raw_samples_are_their_twin(rows: list[dict[str, str]], data: Any, piece: int) -> None:
    series = [data.draw(st.lists(st.tuples(st.integers(-(10**13), 10**13), floats), max_size=4)) for _ in rows]
    flat = [point for points in series for point in points]
    frame = SeriesFrame(
        LabelTable.of(rows),
        np.cumsum([0, *map(len, series)], dtype=np.int64),
        np.array([t for t, _ in flat], np.int64),
        np.array([v for _, v in flat], np.float64),
    )
    got = whole(json_out.query_answer(QueryResult(RawMatrix(frame))), piece)
    same_json(got, "matrix", json_text.matrix(zip(rows, series, strict=True)))


@given(label_sets, st.integers(1, 900))
@settings(max_examples=20 if PLAIN else 100, deadline=None)
def test_label_sets_are_sorted(rows: list[dict[str, str]], piece: int) -> None:
    got = json.loads(whole(json_out.series_answer(LabelTable.of(rows)), piece))["data"]
    ordered = [{name: labels[name] for name in sorted(labels)} for labels in rows]
    assert got == sorted(ordered, key=lambda labels: list(labels.items()))


def test_series_answer_sorts_and_truncates() -> None:
    table = LabelTable.of([{"a": "2"}, {"__name__": "up", "b": 'q"'}, {"a": "1"}])
    assert whole(json_out.series_answer(table)) == (
        '{"status":"success","data":[{"__name__":"up","b":"q\\""},{"a":"1"},{"a":"2"}]}'
    )
    assert whole(json_out.series_answer(table, limit=1)) == (
        '{"status":"success","data":[{"__name__":"up","b":"q\\""}],"warnings":["results truncated due to limit"]}'
    )


@pytest.mark.parametrize(
    ("value", "body"),
    [
        (ScalarResult(1795415580500, 2.0), '"scalar","result":[1795415580.5,"2"]'),
        (ScalarResult(4000, 1e21), '"scalar","result":[4,"1000000000000000000000"]'),
        (ScalarResult(0, 1e-7), '"scalar","result":[0,"0.0000001"]'),
        (ScalarResult(-1500, float("inf")), '"scalar","result":[-1.5,"+Inf"]'),
        (ScalarResult(1, -0.0), '"scalar","result":[0.001,"-0"]'),
        (ScalarResult(1, float("nan")), '"scalar","result":[0.001,"NaN"]'),
        (StringResult(4000, 'a"b'), '"string","result":[4,"a\\"b"]'),
    ],
)
def test_scalars_and_strings(value: ScalarResult | StringResult, body: str) -> None:
    assert whole(json_out.query_answer(QueryResult(value))) == f'{{"status":"success","data":{{"resultType":{body}}}}}'


class Store:
    """Symbols of a store: numbers of any distance."""

    def __init__(self, texts_of: dict[int, str]) -> None:
        self._texts = {0: "", **texts_of}

    def text(self, symbol: int) -> str:
        return self._texts[symbol]

    def texts(self, symbols: Any) -> list[str]:
        return [self._texts[s] for s in symbols.tolist()]

    def find(self, text: str) -> int:
        return -1


@pytest.mark.parametrize("distance", [1, 1000])
def test_symbols_of_store_and_query_mixed(distance: int) -> None:
    base = {i * distance: f"base{i}" for i in range(1, 200 if PLAIN else 2000)}
    overlay = SymbolOverlay(Store(base))
    ids = np.array([[s, overlay.intern(f"own{s % 7}"), 0] for s in base], np.int32)
    rows = [{"a": text, "b": f"own{s % 7}"} for s, text in base.items()]
    values = np.ones((len(rows), 1))
    result = VectorResult(LabelTable(("a", "b", "c"), ids, overlay), np.array([0]), values, values > 0)
    got = whole(json_out.query_answer(QueryResult(result)))
    same_json(got, "vector", json_text.vector(((row, 1.0) for row in rows), 0))


def test_annotations_and_stats() -> None:
    stats = QueryStats(
        samples_total=7,
        peak_samples=3,
        seconds={"eval": 0.5, "select": 0.125, "sort": 0.25, "total": 0.75, "queue": 0.0625},
    )
    warnings = tuple(f"PromQL warning: w{i} (1:1)" for i in range(12))
    got = json.loads(
        whole(json_out.query_answer(QueryResult(ScalarResult(0, 1.0), warnings, ("i",), stats), stats=True))
    )
    assert list(got) == ["status", "data", "warnings", "infos"]
    assert got["warnings"] == [*warnings[:10], "2 more warning annotations omitted"]
    assert got["infos"] == ["i"]
    assert list(got["data"]) == ["resultType", "result", "stats"]
    assert got["data"]["stats"] == {
        "timings": {
            "evalTotalTime": 0.75,
            "resultSortTime": 0.25,
            "queryPreparationTime": 0.125,
            "innerEvalTime": 0.375,
            "execQueueTime": 0.0625,
            "execTotalTime": 0.75,
        },
        "samples": {"totalQueryableSamples": 7, "peakSamples": 3},
    }


def test_limit_keeps_the_first_rows_and_says_so() -> None:
    values = np.ones((3, 1))
    table = LabelTable.of([{"a": str(i)} for i in range(3)])
    result = QueryResult(VectorResult(table, np.array([1000]), values, values > 0))
    assert whole(json_out.query_answer(result, limit=1)) == (
        '{"status":"success","data":{"resultType":"vector","result":[{"metric":{"a":"0"},"value":[1,"1"]}]},'
        '"warnings":["results truncated due to limit"]}'
    )
    assert "warnings" not in whole(json_out.query_answer(result, limit=3))


def test_large_answers_come_in_pieces_that_join() -> None:
    n, steps = (20, 50) if PLAIN else (400, 500)
    values = rng.random((n, steps))
    table = LabelTable.of([{"__name__": "m", "i": str(i)} for i in range(n)])
    times = np.arange(steps, dtype=np.int64) * 15_000
    with np.errstate(over="ignore"):
        pieces = list(json_out.query_answer(QueryResult(MatrixResult(table, times, values, values >= 0))))
    assert max(map(len, pieces)) <= json_out.PIECE_BYTES + 100
    parsed = json.loads(b"".join(pieces))["data"]["result"]
    assert [[float(v) for _, v in row["values"]] for row in parsed] == values.tolist()


def test_label_texts_kept_of_one_store_are_not_those_of_another() -> None:
    """Two stores give the same numbers to other strings."""

    class Store:
        def __init__(self, *texts: str) -> None:
            self._texts = ["", *texts]

        def text(self, symbol: int) -> str:
            return self._texts[symbol]

        def texts(self, symbols: Any) -> list[str]:
            return [self._texts[s] for s in symbols.tolist()]

        def find(self, text: str) -> int:
            return self._texts.index(text) if text in self._texts else -1

    def metrics(store: Store, names: tuple[str, ...], ids: list[list[int]]) -> list[dict[str, str]]:
        table = LabelTable(names, np.array(ids, np.int32), SymbolOverlay(store))
        points = np.ones((len(ids), 1))
        value = VectorResult(table, np.array([0]), points, points > 0)
        body = b"".join(json_out.query_answer(QueryResult(value, (), (), QueryStats())))
        return [row["metric"] for row in json.loads(body)["data"]["result"]]

    one, other = Store("a", "b"), Store("x", "y")
    for _ in range(2):  # the second time from what is kept
        assert metrics(one, ("n", "o"), [[1, 2], [2, 0]]) == [{"n": "a", "o": "b"}, {"n": "b"}]
        assert metrics(other, ("n", "o"), [[1, 2], [2, 0]]) == [{"n": "x", "o": "y"}, {"n": "y"}]
        assert metrics(one, ("n", "p"), [[1, 2]]) == [{"n": "a", "p": "b"}]
    for k in range(json_out.METRICS_MAX + 2):  # more than are kept
        assert metrics(one, (f"n{k}",), [[1]]) == [{f"n{k}": "a"}]


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 1.0, -1.0, 1e15, 2.0**53 - 1, 2.0**53, -(2.0**53) + 1, 1e20, 1e21, 123456.0]
)
def test_integers_are_written_like_by_the_kernel(value: float) -> None:
    few = VectorResult(LabelTable.of([{"a": "b"}]), np.array([0]), np.array([[value]]), np.ones((1, 1), np.bool_))
    many = MatrixResult(few.labels, few.times_ms, few.values, few.present)
    texts = []
    for result in (few, many):
        body = b"".join(json_out.query_answer(QueryResult(result, (), (), QueryStats())))
        found = json.loads(body)["data"]["result"][0]
        texts.append((found.get("value") or found["values"][0])[1])
    assert texts[0] == texts[1]
