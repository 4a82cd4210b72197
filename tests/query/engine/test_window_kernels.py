"""The window kernels against their plain twins."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from query.engine.window import EXTREMES, FOLDS, RATES, SUMS
from query.kernels.fold import window_fold
from query.kernels.window import window_extreme, window_last, window_rate, window_sum
from tests.reference import query_window as plain

pytestmark = [pytest.mark.kernel, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # JIT off: numpy scalars warn

STALE = struct.unpack("<d", struct.pack("<Q", plain.STALE_BITS))[0]
NAN_PAYLOAD = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000123))[0]

values = st.one_of(
    st.integers(0, 20).map(float),
    st.sampled_from([STALE, math.nan, NAN_PAYLOAD, math.inf, -math.inf, 0.0, -0.0, 1e308, -1e308, 5e-324, 1e100, 1.0]),
    st.floats(),
)


@st.composite
def rows(draw: st.DrawFn) -> list[list[plain.Sample]]:
    """A few series: regular, regular with a jitter, or with gaps."""
    out = []
    for _ in range(draw(st.integers(0, 4))):
        count = draw(st.integers(0, 25))
        gaps = draw(
            st.one_of(
                st.just([10] * count),
                st.lists(st.sampled_from([9, 10, 10, 11]), min_size=count, max_size=count),
                st.lists(st.integers(1, 60), min_size=count, max_size=count),
            )
        )
        times = np.cumsum([draw(st.integers(-50, 50)), *gaps])[1:].tolist()
        out.append(list(zip(times, draw(st.lists(values, min_size=count, max_size=count)), strict=True)))
    return out


windows = st.tuples(
    st.integers(-40, 150),  # end of the first
    st.sampled_from([0, 1, 7, 10, 20, 40]),  # distance
    st.integers(1, 12),  # how many
    st.sampled_from([1, 10, 20, 35, 40, 120]),  # width
)


class Arrays:
    """Kernel arguments of some rows."""

    def __init__(self, series: list[list[plain.Sample]], steps: int) -> None:
        n = len(series)
        self.ts_ms = np.array([t for row in series for t, _ in row], np.int64)
        self.values = np.array([v for row in series for _, v in row], np.float64)
        self.offsets = np.concatenate(([0], np.cumsum([len(row) for row in series]))).astype(np.int64)
        longest = max((len(row) for row in series), default=0)
        self.samples = (self.ts_ms, self.values, self.values.view(np.uint64), self.offsets, 0, n)
        self.scratch = (np.empty(longest, np.int64), np.empty(longest))
        self.longest = longest
        self.edges = np.empty(2 * steps, np.int64)
        self.out = np.full((n, steps), 77.0)
        self.present = np.ones((n, steps), np.bool_)

    def check(self, expected: list[list[float | None]]) -> None:
        for row, (values_, present) in enumerate(zip(self.out.tolist(), self.present.tolist(), strict=True)):
            got = [v if p else None for v, p in zip(values_, present, strict=True)]
            assert list(map(key, got)) == list(map(key, expected[row]))


def key(value: float | None) -> object:
    """Equal for equal bits; any NaN is like any other where arithmetic has made it."""
    if value is None or math.isnan(value):
        return str(value)
    return struct.pack("<d", value)


@settings(max_examples=300, deadline=None)
@given(rows(), windows, st.sampled_from(sorted(RATES)))
def test_window_rate(series, shape, kind) -> None:
    first, step, steps, width = shape
    a = Arrays(series, steps)
    looked = window_rate(
        *a.samples, RATES[kind], first, step, width, *a.scratch, np.empty(a.longest, np.int64), a.edges,
        np.empty((5, steps)), a.out, a.present,
    )  # fmt: skip
    ends = [first + i * step for i in range(steps)]
    with np.errstate(all="ignore"):
        a.check([[plain.window_rate(row, kind, end, width) for end in ends] for row in series])
    assert looked == sum(len(plain.window(row, end, width)) for row in series for end in ends)


@settings(max_examples=300, deadline=None)
@given(rows(), windows, st.booleans())
def test_window_last(series, shape, want_time) -> None:
    first, step, steps, width = shape
    a = Arrays(series, steps)
    found = window_last(*a.samples, int(want_time), first, step, width, a.edges, a.out, a.present)
    newest = [[plain.window_last(row, first + i * step, width) for i in range(steps)] for row in series]
    a.check([[None if s is None else s[0] / 1000 if want_time else s[1] for s in row] for row in newest])
    assert found == a.present.sum()
    if not want_time:  # values pass with all their bits
        expected = [s[1] for row in newest for s in row if s is not None]
        np.testing.assert_array_equal(a.out[a.present].view(np.uint64), np.array(expected).view(np.uint64))


@settings(max_examples=300, deadline=None)
@given(rows(), windows, st.sampled_from(sorted(SUMS)))
def test_window_sum(series, shape, op) -> None:
    first, step, steps, width = shape
    a = Arrays(series, steps)
    window_sum(*a.samples, SUMS[op], first, step, width, *a.scratch, a.edges, a.out, a.present)
    ends = [first + i * step for i in range(steps)]
    a.check([[plain.window_fold(row, op, end, width, 0.0, 0) for end in ends] for row in series])


@settings(max_examples=300, deadline=None)
@given(rows(), windows, st.sampled_from(sorted(EXTREMES)))
def test_window_extreme(series, shape, op) -> None:
    first, step, steps, width = shape
    a = Arrays(series, steps)
    queue = np.empty(a.longest, np.int64)
    window_extreme(*a.samples, EXTREMES[op], first, step, width, *a.scratch, queue, a.edges, a.out, a.present)
    ends = [first + i * step for i in range(steps)]
    a.check([[plain.window_fold(row, op, end, width, 0.0, 0) for end in ends] for row in series])


@settings(max_examples=500, deadline=None)
@given(rows(), windows, st.sampled_from(sorted(FOLDS.keys() - {"absent_over_time"})), st.data())
def test_window_fold(series, shape, op, data) -> None:
    first, step, steps, width = shape
    a = Arrays(series, steps)
    param = st.one_of(st.floats(-0.5, 1.5), st.just(math.nan))
    params = data.draw(st.lists(param, min_size=steps, max_size=steps))
    ends = [first + i * step for i in range(steps)]
    origins = [end + 13 for end in ends]
    window_fold(
        *a.samples, FOLDS[op], first, step, width, np.array(params), np.array(origins), *a.scratch,
        np.empty(a.longest), a.edges, a.out, a.present,
    )  # fmt: skip
    each = list(zip(ends, params, origins, strict=True))
    a.check([[plain.window_fold(row, op, end, width, p, o) for end, p, o in each] for row in series])
