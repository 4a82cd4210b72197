"""The group kernels against their plain twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from query.engine.aggregate import FOLDS
from query.engine.grid import by_group, group_ids
from query.kernels.group import accumulate, group_quantile, group_topk, histogram
from tests.reference import query_group as plain

pytestmark = [pytest.mark.kernel, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # JIT off: numpy scalars warn

values = st.one_of(
    st.integers(-5, 5).map(float),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1e308, -1e308, 1e100, 1.0]),
    st.floats(),
)


@st.composite
def grids(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values, present, group) of a few rows."""
    n, steps, groups = draw(st.integers(0, 9)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    cells = draw(st.lists(values, min_size=n * steps, max_size=n * steps))
    mask = draw(st.lists(st.booleans(), min_size=n * steps, max_size=n * steps))
    group = draw(st.lists(st.integers(0, groups - 1), min_size=n, max_size=n))
    return (
        np.array(cells).reshape(n, steps),
        np.array(mask, np.bool_).reshape(n, steps),
        np.array(group, np.int32),
    )


def points(cells: np.ndarray, mask: np.ndarray, group: np.ndarray, g: int, s: int) -> list[float]:
    return cells[(group == g) & mask[:, s], s].tolist()


def check(got: float, expected: float) -> None:
    assert got == expected or (math.isnan(got) and math.isnan(expected)), (got, expected)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(-1, 2**31 - 1)), max_size=60))
@settings(max_examples=200, deadline=None)
def test_group_rows(keys) -> None:
    group, first = group_ids(np.array(keys, np.int32).reshape(len(keys), 3))
    assert group.tolist() == plain.group_rows(keys)
    assert [group[row] for row in first.tolist()] == list(range(len(first)))


def test_group_rows_without_columns() -> None:
    group, first = group_ids(np.zeros((3, 0), np.int32))
    assert group.tolist() == [0, 0, 0]
    assert first.tolist() == [0]
    assert len(group_ids(np.zeros((0, 2), np.int32))[1]) == 0


@given(grids(), st.sampled_from(sorted(FOLDS)))
@settings(max_examples=400, deadline=None)
def test_accumulate(grid, op) -> None:
    cells, mask, group = grid
    shape = (3, cells.shape[1])
    total, extra, count = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    half = len(cells) // 2
    for rows in (slice(0, half), slice(half, None)):  # in two batches
        accumulate(cells[rows], mask[rows], group[rows], FOLDS[op], total, extra, count)
    for g in range(3):
        for s in range(cells.shape[1]):
            t, e, c = total[g, s], extra[g, s], count[g, s]
            expected = plain.accumulate(op, points(cells, mask, group, g, s))
            if expected is None:
                assert c == 0
                continue
            with np.errstate(all="ignore"):
                result = {
                    "sum": t + e,
                    "avg": t + e if c < 0 else t / c + e / c,
                    "count": c,
                    "group": 1.0,
                    "stdvar": t / c,
                    "stddev": np.sqrt(t / c),
                }.get(op, t)
            check(float(result), expected)


@given(grids(), st.lists(st.one_of(st.floats(-0.2, 1.2), st.just(math.nan)), min_size=4, max_size=4))
@settings(max_examples=200, deadline=None)
def test_group_quantile(grid, q) -> None:
    cells, mask, group = grid
    steps = cells.shape[1]
    order, bounds = by_group(group, 3)
    out, present = np.empty((3, steps)), np.empty((3, steps), np.bool_)
    group_quantile(cells, mask, order, bounds, np.array(q[:steps]), np.empty(len(cells)), out, present)
    for g in range(3):
        for s in range(steps):
            members = points(cells, mask, group, g, s)
            assert present[g, s] == bool(members)
            if members:
                check(out[g, s], plain.quantile(q[s], members))


def test_quantile_of_many_values() -> None:
    """The sort of long groups, every gap of it."""
    rng = np.random.default_rng(7)
    for n in (1, 2, 57, 301, 701, 1750, 1751, 6000):
        cells = rng.choice([*rng.normal(size=50), np.nan, np.inf], size=(n, 1))
        out, present = np.empty((1, 1)), np.empty((1, 1), np.bool_)
        order, bounds = by_group(np.zeros(n, np.int32), 1)
        group_quantile(cells, np.ones((n, 1), np.bool_), order, bounds, np.array([0.3]), np.empty(n), out, present)
        check(float(out[0, 0]), plain.quantile(0.3, cells[:, 0].tolist()))


@given(grids(), st.lists(st.integers(0, 6), min_size=4, max_size=4), st.booleans())
@settings(max_examples=400, deadline=None)
def test_group_topk(grid, k, largest) -> None:
    cells, mask, group = grid
    steps = cells.shape[1]
    order, bounds = by_group(group, 3)
    keep = np.zeros(mask.shape, np.bool_)
    group_topk(
        cells, mask, order, bounds, np.array(k[:steps]), 1 if largest else -1, np.empty(max(k) + 1, np.int64), keep,
    )  # fmt: skip
    for s in range(steps):
        expected: set[int] = set()
        for g in range(3):
            rows = np.flatnonzero(group == g)
            members = [cells[row, s] if mask[row, s] else None for row in rows]
            expected |= {int(rows[i]) for i in plain.group_topk(k[s], largest, members)}
        assert set(np.flatnonzero(keep[:, s]).tolist()) == expected


bounds_ = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 5.0, math.inf])
counts = st.one_of(st.integers(0, 9).map(float), st.sampled_from([1 + 1e-14, 3.0000000000001, math.nan, math.inf]))


@given(st.lists(st.tuples(bounds_, counts, st.booleans()), min_size=1, max_size=7), st.booleans(), st.data())
@settings(max_examples=500, deadline=None)
def test_histogram(rows, fraction, data) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    low = data.draw(st.one_of(st.sampled_from([-0.1, 0.0, 0.25, 0.5, 0.9, 1.0, 1.1, math.nan, -math.inf]), bounds_))
    high = data.draw(bounds_)
    n = len(rows)
    order, bounds = by_group(np.zeros(n, np.int32), 1)
    out, present, fixes = np.empty((1, 1)), np.empty((1, 1), np.bool_), np.empty((1, 6))
    histogram(
        np.array([[c] for _, c, _ in rows]), np.array([[p] for _, _, p in rows]), order, bounds,
        np.array([b for b, _, _ in rows]), int(fraction), np.array([low]), np.array([high]), 1e-12,
        np.empty(n), np.empty(n), fixes, out, present,
    )  # fmt: skip
    buckets = [(b, c) for b, c, p in rows if p]
    assert present[0, 0] == bool(buckets)
    if not buckets:
        return
    if fraction:
        check(float(out[0, 0]), plain.histogram_fraction(low, high, buckets))
    else:
        expected, worst = plain.histogram_quantile(low, buckets, 1e-12)
        check(float(out[0, 0]), expected)
        assert fixes[0, 3] == worst
        assert (fixes[0, 0] > 0) == (worst > 0)
