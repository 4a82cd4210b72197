"""Selectors and functions of range vectors: samples in, points at steps out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from query.engine.context import QueryContext, Steps
from query.engine.grid import NAME, Grid, RangeVector, column, empty_table, quote
from query.kernels import fold as folds
from query.kernels.fold import window_fold
from query.kernels.window import DELTA, INCREASE, RATE, window_extreme, window_last, window_rate, window_sum
from query.promql.ast import Span, Subquery, VectorSelector
from tsdb.frame import LabelTable, SeriesFrame

RATES = {"delta": DELTA, "increase": INCREASE, "rate": RATE}

SUMS = {"sum_over_time": 0, "avg_over_time": 1}

EXTREMES = {"min_over_time": -1, "max_over_time": 1}

FOLDS = {
    "count_over_time": folds.COUNT,
    "first_over_time": folds.FIRST,
    "last_over_time": folds.LAST,
    "present_over_time": folds.PRESENT,
    "absent_over_time": folds.PRESENT,  # what is present nowhere is absent, see functions.py
    "stdvar_over_time": folds.STDVAR,
    "stddev_over_time": folds.STDDEV,
    "quantile_over_time": folds.QUANTILE,
    "changes": folds.CHANGES,
    "resets": folds.RESETS,
    "irate": folds.IRATE,
    "idelta": folds.IDELTA,
    "deriv": folds.DERIV,
    "predict_linear": folds.PREDICT_LINEAR,
}

KEEP_NAME = frozenset(("", "first_over_time", "last_over_time"))
"""Functions that pick a sample, as ``offset`` does: the result is still the metric."""

RANGE_FUNCTIONS = frozenset((*RATES, *SUMS, *EXTREMES, *FOLDS))
"""All functions of a range vector."""

_COUNTER_SUFFIXES = ("_total", "_sum", "_count", "_bucket")

_NO_PARAMS = np.zeros(0)

_CHECK_WORK = 1 << 26
"""Samples that windows look at between two looks at the clock, about 0.2 s of compensated summing."""

_THREAD_WORK = 400_000
"""Samples and points from which a second thread pays (about 1 ms of work against 50 us to hand it over)."""


def selector_times(ctx: QueryContext, steps: Steps, at: int | str | None, offset_ms: int) -> tuple[int, int]:
    """(end of the first window, distance to the next): a pinned range stays where it is at every step."""
    if at is None:
        return steps.first_ms - offset_ms, steps.step_ms
    if isinstance(at, str):
        at = ctx.start_ms if at == "start" else ctx.end_ms
    return at - offset_ms, 0


def _split(ctx: QueryContext, frame: SeriesFrame, steps: int, work: Callable[[int, int], int]) -> int:
    """Run ``work(begin, end)`` over all rows, on two threads when there is much to do; returns the sum."""
    n = len(frame)
    if ctx.pool is None or n < 2 or len(frame.ts_ms) + n * steps < _THREAD_WORK:
        return work(0, n)
    middle = int(np.searchsorted(frame.offsets, len(frame.ts_ms) // 2))
    middle = min(max(middle, 1), n - 1)
    other = ctx.pool.submit(work, middle, n)
    return work(0, middle) + other.result()


def instant_call(ctx: QueryContext, steps: Steps, selector: VectorSelector, want_time: bool = False) -> WindowCall:
    """The instant selector as a function of its lookback window: the newest sample, or with ``want_time`` its time."""
    vector = range_vector(ctx, steps, selector, ctx.lookback_ms)
    return WindowCall("timestamp" if want_time else "", vector, steps, _NO_PARAMS, 0)


def instant_vector(ctx: QueryContext, steps: Steps, selector: VectorSelector, want_time: bool = False) -> Grid:
    """Newest sample of each series within the lookback at each step; with ``want_time`` its time in seconds."""
    return evaluate_call(ctx, instant_call(ctx, steps, selector, want_time), selector.span)


def range_vector(ctx: QueryContext, steps: Steps, selector: VectorSelector, range_ms: int) -> RangeVector:
    """Samples of a range selector for all steps."""
    end_ms, step_ms = selector_times(ctx, steps, selector.at, selector.offset_ms)
    last_ms = end_ms + (steps.count - 1) * step_ms
    frame = ctx.select(selector.matchers, end_ms - range_ms + 1, last_ms)
    return RangeVector(frame, np.zeros(len(frame), np.bool_), range_ms, end_ms, step_ms)


def subquery_steps(ctx: QueryContext, steps: Steps, subquery: Subquery) -> tuple[Steps, int, int]:
    """Steps of a subquery's expression, and the windows over them (end of the first, distance).

    Its steps are multiples of its resolution, the first one later than the start of the first window.
    """
    end_ms, step_ms = selector_times(ctx, steps, subquery.at, subquery.offset_ms)
    resolution = subquery.step_ms or ctx.limits.default_step_ms
    first_ms = (end_ms - subquery.range_ms) // resolution * resolution + resolution
    last_ms = end_ms + (steps.count - 1) * step_ms
    count = (last_ms - first_ms) // resolution + 1 if last_ms >= first_ms else 0
    return Steps(first_ms, resolution, count), end_ms, step_ms


def no_samples(ctx: QueryContext) -> SeriesFrame:
    """No series at all."""
    return SeriesFrame(empty_table(ctx.symbols), np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0))


def grid_samples(grid: Grid, steps: Steps) -> SeriesFrame:
    """The points of a grid as samples, one series a row."""
    counts = grid.present.sum(axis=1)
    offsets = np.zeros(len(grid) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    times = np.broadcast_to(steps.times_ms(), grid.present.shape)
    return SeriesFrame(grid.labels, offsets, times[grid.present], grid.values[grid.present])


@dataclass(slots=True)
class WindowCall:
    """A function of a range vector, ready to evaluate any rows at any steps.

    The instant selector is one too: ``func`` is empty and the range is the lookback (``timestamp`` for its time).
    """

    func: str
    vector: RangeVector
    steps: Steps
    params: NDArray[np.float64]  # (steps,): the scalar argument, zeros when there is none
    row_max: int  # samples of the longest row

    def __len__(self) -> int:
        return len(self.vector.frame)

    def run(self, begin: int, end: int, first_step: int, out: NDArray[np.float64], present: NDArray[np.bool_]) -> int:
        """Write the points of rows ``[begin, end)`` from ``first_step`` on, ``out.shape[1]`` steps of them.

        Returns
        -------
        int        samples looked at
        """
        frame = self.vector.frame
        first_ms = self.vector.end_ms + first_step * self.vector.step_ms
        if self.func in ("", "timestamp"):
            return window_last(  # type: ignore[no-any-return]
                frame.ts_ms, frame.values, frame.values.view(np.uint64), frame.offsets, begin, end,
                int(self.func == "timestamp"), first_ms, self.vector.step_ms, self.vector.range_ms,
                np.empty(out.shape[1], np.int64), out, present,
            )  # fmt: skip
        scratch_ts = np.empty(self.row_max, np.int64)
        scratch_values = np.empty(self.row_max)
        edges = np.empty(2 * out.shape[1], np.int64)
        kind = RATES.get(self.func)
        if kind is not None:
            return window_rate(  # type: ignore[no-any-return]
                frame.ts_ms, frame.values, frame.values.view(np.uint64), frame.offsets, begin, end, kind, first_ms,
                self.vector.step_ms, self.vector.range_ms, scratch_ts, scratch_values,
                np.empty(self.row_max, np.int64), edges, np.empty((5, out.shape[1])), out, present,
            )  # fmt: skip
        mean = SUMS.get(self.func)
        if mean is not None:
            return window_sum(  # type: ignore[no-any-return]
                frame.ts_ms, frame.values, frame.values.view(np.uint64), frame.offsets, begin, end, mean, first_ms,
                self.vector.step_ms, self.vector.range_ms, scratch_ts, scratch_values, edges, out, present,
            )  # fmt: skip
        sign = EXTREMES.get(self.func)
        if sign is not None:
            return window_extreme(  # type: ignore[no-any-return]
                frame.ts_ms, frame.values, frame.values.view(np.uint64), frame.offsets, begin, end, sign, first_ms,
                self.vector.step_ms, self.vector.range_ms, scratch_ts, scratch_values,
                np.empty(self.row_max, np.int64), edges, out, present,
            )  # fmt: skip
        last_step = first_step + out.shape[1]
        return window_fold(  # type: ignore[no-any-return]
            frame.ts_ms, frame.values, frame.values.view(np.uint64), frame.offsets, begin, end, FOLDS[self.func],
            first_ms, self.vector.step_ms, self.vector.range_ms, self.params[first_step:last_step],
            self.steps.times_ms()[first_step:last_step], scratch_ts, scratch_values, np.empty(self.row_max), edges,
            out, present,
        )  # fmt: skip

    def drop_name(self) -> NDArray[np.bool_]:
        """Which results lose the metric's labels."""
        return self.vector.drop_name if self.func in KEEP_NAME else np.ones(len(self), np.bool_)


def window_call(func: str, vector: RangeVector, steps: Steps, params: NDArray[np.float64] | None) -> WindowCall:
    """Prepare a call."""
    lengths = np.diff(vector.frame.offsets)
    row_max = int(lengths.max()) if len(lengths) else 0
    return WindowCall(func, vector, steps, np.zeros(steps.count) if params is None else params, row_max)


def evaluate_call(ctx: QueryContext, call: WindowCall, span: Span) -> Grid:
    """All rows at all steps."""
    n, count = len(call), call.steps.count
    ctx.reserve(n, count)
    values = np.empty((n, count))
    present = np.empty((n, count), np.bool_)
    frame = call.vector.frame
    # bounded pieces, so that a query whose windows are long can be stopped
    batch = max(1, _CHECK_WORK // max(1, count * min(call.row_max, _CHECK_WORK)))

    def work(begin: int, end: int) -> int:
        looked = 0
        for at in range(begin, end, batch):
            to = min(end, at + batch)
            looked += call.run(at, to, 0, values[at:to], present[at:to])
            if to < end:
                ctx.check_time()
        return looked

    ctx.stats.samples_total += _split(ctx, frame, count, work)
    grid = Grid(frame.labels, values, present, call.drop_name()).without_empty()
    note_counters(ctx, call.func, grid.labels, span)
    return grid


def note_counters(ctx: QueryContext, func: str, labels: LabelTable, span: Span) -> None:
    """Tell the reader when a counter function was applied to what does not look like a counter."""
    if func not in ("rate", "increase") or NAME not in labels.names:
        return
    for name in labels.symbols.texts(np.unique(column(labels, NAME))):
        if name and not name.endswith(_COUNTER_SUFFIXES):
            ctx.annotations.inform(
                "metric might not be a counter, name does not end in _total/_sum/_count/_bucket: " + quote(name), span
            )
