"""Selectors and functions of range vectors: samples in, points at steps out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from query.engine.context import QueryContext, Steps
from query.engine.grid import NAME, Grid, RangeVector, column, quote
from query.kernels import fold as folds
from query.kernels._math import STALE_BITS
from query.kernels.fold import window_fold
from query.kernels.window import DELTA, INCREASE, RATE, window_extreme, window_last, window_rate, window_sum
from query.promql.ast import Span, Subquery, VectorSelector
from query.storage import FrameSelection
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

_LINEAR = frozenset((*SUMS, "stdvar_over_time", "stddev_over_time", "quantile_over_time", "deriv", "predict_linear"))
"""Functions that take time in proportion to the samples of each window; the others do not."""

_CHECK_WORK = 1 << 26
"""Samples that windows may look at between two looks at the clock: 0.1 s of summing, a few seconds of sorting."""

KEEP_NAME = frozenset(("", "first_over_time", "last_over_time"))
"""Functions that pick a sample, as ``offset`` does: the result is still the metric."""

RANGE_FUNCTIONS = frozenset((*RATES, *SUMS, *EXTREMES, *FOLDS))
"""All functions of a range vector."""

_COUNTER_SUFFIXES = ("_total", "_sum", "_count", "_bucket")

_NO_PARAMS = np.zeros(0)

BATCH_POINTS = 1 << 15
"""Samples or points of a batch of rows: with what is around them they stay in the second-level cache."""

HALVED_WORK_MIN = 400_000
"""Samples and points from which a second thread pays (about 1 ms of work against 50 us to hand it over)."""

STALE = np.uint64(0x7FF0000000000002)
"""Bits of a stale marker."""

Samples = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""(offsets, ts_ms, values) of some rows."""

T = TypeVar("T")


def selector_times(ctx: QueryContext, steps: Steps, at: int | str | None, offset_ms: int) -> tuple[int, int]:
    """(end of the first window, distance to the next): a pinned range stays where it is at every step."""
    if at is None:
        return steps.first_ms - offset_ms, steps.step_ms
    if isinstance(at, str):
        at = ctx.start_ms if at == "start" else ctx.end_ms
    return at - offset_ms, 0


def instant_call(ctx: QueryContext, steps: Steps, selector: VectorSelector, want_time: bool = False) -> WindowCall:
    """The instant selector as a function of its lookback window: the newest sample, or with ``want_time`` its time."""
    vector = range_vector(ctx, steps, selector, ctx.lookback_ms)
    return WindowCall("timestamp" if want_time else "", vector, steps, _NO_PARAMS)


def instant_vector(ctx: QueryContext, steps: Steps, selector: VectorSelector, want_time: bool = False) -> Grid:
    """Newest sample of each series within the lookback at each step; with ``want_time`` its time in seconds."""
    if steps.count == 1 and ctx.step_counts is None:
        grid = _newest(ctx, steps, selector, want_time)
        if grid is not None:
            return grid
    return evaluate_call(ctx, instant_call(ctx, steps, selector, want_time), selector.span)


def _newest(ctx: QueryContext, steps: Steps, selector: VectorSelector, want_time: bool) -> Grid | None:
    """The instant selector at one time from what the store has at hand: nothing is decoded when that is "now"."""
    at_ms, _ = selector_times(ctx, steps, selector.at, selector.offset_ms)
    found = ctx.newest(selector.matchers, at_ms - ctx.lookback_ms + 1, at_ms)
    if found is None:
        return None
    present = found.present & (found.values.view(np.uint64) != STALE_BITS)
    n = len(present)
    ctx.hold(n)
    values = found.ts_ms / 1000 if want_time else found.values
    labels = LabelTable(found.labels.names, found.labels.ids, ctx.symbols)
    drop_name = np.ones(n, np.bool_) if want_time else np.zeros(n, np.bool_)
    return Grid(labels, values.reshape(n, 1), present.reshape(n, 1), drop_name).without_empty()


def range_vector(ctx: QueryContext, steps: Steps, selector: VectorSelector, range_ms: int) -> RangeVector:
    """Samples of a range selector for all steps."""
    end_ms, step_ms = selector_times(ctx, steps, selector.at, selector.offset_ms)
    last_ms = end_ms + (steps.count - 1) * step_ms
    labels, samples, size = ctx.open(selector.matchers, end_ms - range_ms + 1, last_ms)
    return RangeVector(labels, samples, size, np.zeros(len(labels), np.bool_), range_ms, end_ms, step_ms)


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


def range_of_grid(grid: Grid, steps: Steps, range_ms: int, end_ms: int, step_ms: int) -> RangeVector:
    """The points of a grid as samples, one series a row."""
    offsets = np.zeros(len(grid) + 1, np.int64)
    np.cumsum(grid.present.sum(axis=1), out=offsets[1:])
    times = np.broadcast_to(steps.times_ms(), grid.present.shape)
    frame = SeriesFrame(grid.labels, offsets, times[grid.present], grid.values[grid.present])
    return RangeVector(grid.labels, FrameSelection(frame), int(offsets[-1]), grid.drop_name, range_ms, end_ms, step_ms)


@dataclass(slots=True)
class WindowCall:
    """A function of a range vector, ready to evaluate any rows at any steps.

    The instant selector is one too: ``func`` is empty and the range is the lookback (``timestamp`` for its time).
    """

    func: str
    vector: RangeVector
    steps: Steps
    params: NDArray[np.float64]  # (steps,): the scalar argument, zeros when there is none
    step_counts: list[NDArray[np.int64]] | None = None  # see QueryContext

    def __len__(self) -> int:
        return len(self.vector.labels)

    def run(self, samples: Samples, begin: int, end: int, out: NDArray[np.float64], present: NDArray[np.bool_]) -> int:
        """Write the points of rows ``[begin, end)`` of ``samples`` at all steps.

        Returns
        -------
        int        samples looked at
        """
        looked = self._run(samples, begin, end, out, present)
        if self.step_counts is not None:
            self.step_counts.append(self._counts(samples, begin, end, present))
        return looked

    def _counts(self, samples: Samples, begin: int, end: int, present: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Samples that the windows of each step looked at, (steps,) int64."""
        if self.func in ("", "timestamp"):
            return present.sum(axis=0, dtype=np.int64)  # type: ignore[no-any-return]
        offsets, ts_ms, values = samples
        inside = slice(int(offsets[begin]), int(offsets[end]))
        live = np.sort(ts_ms[inside][values[inside].view(np.uint64) != STALE])
        ends = self.vector.end_ms + np.arange(self.steps.count, dtype=np.int64) * self.vector.step_ms
        starts = ends - self.vector.range_ms
        return np.searchsorted(live, ends, side="right") - np.searchsorted(live, starts, side="right")

    def _run(self, samples: Samples, begin: int, end: int, out: NDArray[np.float64], present: NDArray[np.bool_]) -> int:
        offsets, ts_ms, values = samples
        width = self.steps.count
        rows = (ts_ms, values, values.view(np.uint64), offsets, begin, end)
        windows = (self.vector.end_ms, self.vector.step_ms, self.vector.range_ms)
        edges = np.empty(2 * width, np.int64)
        func = self.func
        if func in ("", "timestamp"):
            return window_last(*rows, int(func == "timestamp"), *windows, edges, out, present)  # type: ignore[no-any-return]
        longest = len(ts_ms) if end - begin < 2 else int(np.diff(offsets[begin : end + 1]).max())
        scratch = (np.empty(longest, np.int64), np.empty(longest))
        if func in RATES:
            return window_rate(  # type: ignore[no-any-return]
                *rows, RATES[func], *windows, *scratch, np.empty(longest, np.int64), edges, np.empty((5, width)), out,
                present,
            )  # fmt: skip
        if func in SUMS:
            return window_sum(*rows, SUMS[func], *windows, *scratch, edges, out, present)  # type: ignore[no-any-return]
        if func in EXTREMES:
            queue = np.empty(longest, np.int64)
            return window_extreme(*rows, EXTREMES[func], *windows, *scratch, queue, edges, out, present)  # type: ignore[no-any-return]
        times_ms = self.steps.times_ms()
        return window_fold(  # type: ignore[no-any-return]
            *rows, FOLDS[func], *windows, self.params, times_ms, *scratch, np.empty(longest), edges, out, present,
        )  # fmt: skip

    def run_timed(
        self,
        ctx: QueryContext,
        samples: Samples,
        rows: int,
        out: NDArray[np.float64],
        present: NDArray[np.bool_],
    ) -> int:
        """:meth:`run` for the first ``rows`` rows, with a look at the clock after each bounded piece of work.

        Rows are few; what can take minutes is a function that looks at all samples of long windows at many steps.
        """
        ctx.check_time()
        steps = self.steps
        width = max(1, _CHECK_WORK // max(1, int(samples[0][rows])))
        if width >= steps.count or self.func not in _LINEAR:
            return self.run(samples, 0, rows, out, present)
        looked = 0
        for first in range(0, steps.count, width):
            ctx.check_time()
            count = min(width, steps.count - first)
            some = Steps(steps.first_ms + first * steps.step_ms, steps.step_ms, count)
            vector = replace(self.vector, end_ms=self.vector.end_ms + first * self.vector.step_ms)
            values, mask = np.empty((rows, count)), np.empty((rows, count), np.bool_)
            call = WindowCall(self.func, vector, some, self.params[first : first + count])
            looked += call.run(samples, 0, rows, values, mask)
            out[:, first : first + count] = values
            present[:, first : first + count] = mask
        return looked

    def batch_rows(self, points_max: int) -> int:
        """Rows to do at once so that their samples and points stay in the cache; at least one."""
        per_row = self.vector.size // max(1, len(self))
        return max(1, points_max // max(1, self.steps.count, per_row))

    def drop_name(self) -> NDArray[np.bool_]:
        """Which results lose the metric's labels."""
        return self.vector.drop_name if self.func in KEEP_NAME else np.ones(len(self), np.bool_)


def window_call(func: str, vector: RangeVector, steps: Steps, params: NDArray[np.float64] | None) -> WindowCall:
    """Prepare a call."""
    return WindowCall(func, vector, steps, np.zeros(steps.count) if params is None else params)


def in_halves(ctx: QueryContext, call: WindowCall, work: Callable[[int, int], T]) -> list[T]:
    """Results of ``work(begin, end)`` for all rows; of two halves, on two threads, when there is much to do.

    Where it is cut depends on the data only, not on the number of threads, so that sums come out the same.
    """
    n = len(call)
    if n < 2 or call.vector.size + n * call.steps.count < HALVED_WORK_MIN:
        return [work(0, n)]
    ends = np.cumsum(call.vector.samples.samples_max)
    middle = min(max(int(np.searchsorted(ends, ends[-1] // 2)), 1), n - 1)
    if ctx.pool is None:
        return [work(0, middle), work(middle, n)]
    other = ctx.pool.submit(work, middle, n)
    return [work(0, middle), other.result()]


def evaluate_call(ctx: QueryContext, call: WindowCall, span: Span) -> Grid:
    """All rows at all steps."""
    n, count = len(call), call.steps.count
    ctx.reserve(n, count)
    values = np.empty((n, count))
    present = np.empty((n, count), np.bool_)
    batch = call.batch_rows(BATCH_POINTS)
    call.step_counts = ctx.step_counts

    def work(begin: int, end: int) -> int:
        reader = call.vector.samples.reader(batch)
        looked = 0
        for at in range(begin, end, batch):
            to = min(end, at + batch)
            looked += call.run_timed(ctx, reader.read(at, to), to - at, values[at:to], present[at:to])
        return looked

    ctx.stats.samples_total += sum(in_halves(ctx, call, work))
    grid = Grid(call.vector.labels, values, present, call.drop_name()).without_empty()
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
