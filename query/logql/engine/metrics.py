"""Metric queries: lines become samples, the window and group kernels of PromQL do the rest.

Times are nanoseconds here: the kernels count in any unit, only a division by seconds has to know which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from query.engine import aggregate, binary, functions
from query.engine.context import QueryContext, Steps
from query.engine.grid import Grid, RangeVector, Scalar, columns, empty_table
from query.engine.labels import label_replace
from query.engine.window import WindowCall, evaluate_call
from query.kernels.log_windows import add_to_windows
from query.logql.ast import (
    Binary,
    Grouping,
    LabelReplace,
    Literal,
    LogRange,
    MetricExpr,
    RangeAggregation,
    Unit,
    Unwrap,
    Vector,
    VectorAggregation,
)
from query.logql.engine.batch import Batch
from query.logql.engine.entries import Scanned
from query.logql.engine.prune import clauses_of
from query.logql.engine.samples import Samples, Sorted, Windowed
from query.logql.engine.series import SeriesNumbers
from query.logql.engine.stages import needles_of, number_of, run_stages
from query.logql.engine.wanted import wanted_labels
from query.logql.units import NS
from query.promql import ast as promql
from query.promql.ast import VectorSelector
from query.storage import FrameSelection
from tsdb.logs.frame import LogFrame, LogReader

Value = Grid | Scalar

_NO_WEIGHTS = np.zeros(0)
_NOTHING = promql.NumberLiteral(0.0)
_WINDOW_FUNCTIONS = {"rate": "sum_over_time", "rate_counter": "rate"}
_ORDER_FREE = frozenset(("quantile_over_time", "min_over_time", "max_over_time"))
"""Functions whose result does not depend on the order of the values, to the last bit."""

_SUMMED = frozenset(("count_over_time", "rate", "bytes_over_time", "bytes_rate"))


class MetricEvaluator:
    """Evaluates metric expressions at one set of steps (in nanoseconds)."""

    __slots__ = ("_ctx", "_now_ns", "_reader", "_scanned", "_steps")

    def __init__(self, ctx: QueryContext, reader: LogReader, steps: Steps, now_ns: int, scanned: Scanned) -> None:
        self._ctx = ctx
        self._reader = reader
        self._steps = steps
        self._now_ns = now_ns
        self._scanned = scanned

    def evaluate(self, expr: MetricExpr) -> Value:
        """Value of an expression at all steps."""
        self._ctx.check_time()
        match expr:
            case Literal():
                return Scalar(np.full(self._steps.count, expr.value))
            case Vector():
                return functions.vector_of(self._ctx, Scalar(np.full(self._steps.count, expr.value)))
            case RangeAggregation():
                return self._range(expr, expr.grouping)
            case VectorAggregation():
                return self._aggregation(expr)
            case Binary():
                return self._binary(expr)
            case LabelReplace():
                grid = self._grid(expr.expr)
                return label_replace(self._ctx, grid, expr.target, expr.template, expr.source, expr.pattern)
            case _ as unreachable:
                assert_never(unreachable)

    def _grid(self, expr: MetricExpr) -> Grid:
        value = self.evaluate(expr)
        return functions.vector_of(self._ctx, value) if isinstance(value, Scalar) else value

    # ---------------------------------------------------------------- operators

    def _aggregation(self, expr: VectorAggregation) -> Grid:
        inner = expr.expr
        grouping = expr.grouping or Grouping(())
        if (
            expr.op == "sum"
            and not grouping.without
            and isinstance(inner, RangeAggregation)
            and inner.op in _SUMMED
            and inner.range.unwrap is None
        ):
            return self._range(inner, grouping)  # sums of counts are counts of the groups
        grid = self._grid(inner)
        if expr.op in ("sort", "sort_desc"):
            return functions.sort(grid, self._steps, expr.op == "sort_desc")
        op = "topk" if expr.op == "approx_topk" else expr.op  # the exact answer is the best approximation
        node = promql.Aggregation(op, _NOTHING, None, grouping.names, grouping.without, expr.span)
        if expr.op in aggregate.FOLDS:
            return aggregate.fold(self._ctx, node, grid)
        assert expr.param is not None
        return aggregate.topk(node, grid, np.full(self._steps.count, expr.param))

    def _binary(self, expr: Binary) -> Value:
        chain = [expr]
        while isinstance(left := chain[-1].lhs, Binary):
            chain.append(left)
        value = self.evaluate(left)
        for link in reversed(chain):
            value = self._combine(link, value, self.evaluate(link.rhs))
        return value

    def _combine(self, expr: Binary, lhs: Value, rhs: Value) -> Value:
        node = promql.Binary(expr.op, _NOTHING, _NOTHING, expr.return_bool, expr.matching, expr.span)
        if isinstance(lhs, Scalar):
            if isinstance(rhs, Scalar):
                return binary.scalars(node, lhs, rhs)
            return binary.vector_scalar(node, rhs, lhs, swapped=True)
        if isinstance(rhs, Scalar):
            return binary.vector_scalar(node, lhs, rhs, swapped=False)
        if expr.op in binary.SETS:
            return binary.sets(self._ctx, node, lhs, rhs)
        return binary.vectors(self._ctx, node, lhs, rhs)

    # ---------------------------------------------------------------- windows

    def _range(self, expr: RangeAggregation, grouping: Grouping | None) -> Grid:
        log_range = expr.range
        if expr.op == "absent_over_time":
            counted = replace(expr, op="count_over_time")
            if log_range.unwrap is None:
                present = self._counted(counted.op, log_range, Grouping(()))
            else:
                present = self._unwrapped(counted, log_range, log_range.unwrap, Grouping(()))
            selector = VectorSelector("", log_range.query.matchers)
            return functions.absent(self._ctx, selector, present, self._steps.count)
        if log_range.unwrap is None:
            return self._counted(expr.op, log_range, grouping)
        return self._unwrapped(expr, log_range, log_range.unwrap, grouping)

    def _bounds(self, log_range: LogRange) -> tuple[int, int]:
        """Times that any window reaches, the second one excluded."""
        first = self._steps.first_ms - log_range.offset_ns - log_range.range_ns + 1
        return first, self._steps.last_ms - log_range.offset_ns + 1

    def _is_of_streams(self, log_range: LogRange, grouping: Grouping) -> bool:
        """Whether a grouping is by labels that all streams of a selector have: then metadata cannot change it."""
        if grouping.without:
            return False
        if not grouping.names:
            return True
        labels = self._reader.streams([log_range.query.matchers], *self._bounds(log_range))
        return set(grouping.names) <= set(labels.names) and bool(columns(labels, list(grouping.names)).all())

    def _batches(
        self,
        log_range: LogRange,
        wanted: frozenset[str] | None,
        work: Callable[[Batch], None],
        frames: Iterator[LogFrame] | None = None,
    ) -> Iterator[Batch]:
        """Batches of all windows (or of some frames) that have lines left after ``work``."""
        query = log_range.query
        start_ns, end_ns = self._bounds(log_range)
        needles, clauses = needles_of(query.stages), clauses_of(query.stages)
        for frame in frames or self._reader.select(
            query.matchers, start_ns, end_ns, needles=needles, clauses=clauses, backward=False, ordered=False
        ):
            self._ctx.check_time()
            self._scanned.lines += len(frame)
            batch = Batch(frame, wanted)
            work(batch)
            if len(batch):
                self._scanned.lines_kept += len(batch)
                yield batch

    def _counted(self, op: str, log_range: LogRange, grouping: Grouping | None) -> Grid:
        """Aggregations of lines: each line is added to its windows as it passes, nothing is kept."""
        ctx, steps, query = self._ctx, self._steps, log_range.query
        numbers = SeriesNumbers(grouping, (), ctx.limits.series_max)
        wanted = wanted_labels(query.stages, None, grouping)
        counts = np.zeros((1, steps.count + 1))
        ctx.reserve(2, steps.count + 1)
        weigh = op.startswith("bytes")
        sums = np.zeros((1, steps.count + 1)) if weigh else counts
        windows = (steps.first_ms - log_range.offset_ns, steps.step_ms, log_range.range_ns)

        def grow() -> None:
            nonlocal counts, sums
            if len(numbers) > len(counts):
                rows = max(len(numbers), 2 * len(counts))
                ctx.reserve(rows - len(counts), 2 * (steps.count + 1))
                counts = _grown(counts, rows)
                sums = _grown(sums, rows) if weigh else counts

        frames: Iterator[LogFrame] | None = None
        if grouping is not None and not query.stages and self._is_of_streams(log_range, grouping):
            # Only the lines of each stream are counted: the index knows them, but where a window cuts a run.
            runs, frames = self._reader.condensed(
                query.matchers, *self._bounds(log_range), partial(_alike, windows, steps.count)
            )
            names = sorted(set(grouping.names))
            series = numbers.number_streams(runs.refs, runs.labels, runs.stream_row, names)
            grow()
            weights = (runs.bytes if weigh else runs.entries).astype(np.float64)
            add_to_windows(runs.ts_ns, series, weights, *windows, counts if weigh else np.zeros_like(counts), sums)
            self._scanned.lines += int(runs.entries.sum())
            self._scanned.lines_kept += int(runs.entries.sum())
        for batch in self._batches(
            log_range, wanted, lambda batch: run_stages(batch, query.stages, self._now_ns), frames
        ):
            series = numbers.number(batch)
            grow()
            weights = batch.line_sizes().astype(np.float64) if weigh else _NO_WEIGHTS
            add_to_windows(batch.frame.ts_ns, series, weights, *windows, counts, sums)
        n = len(numbers)
        if not n:
            return _no_series(ctx, steps.count)
        found = np.cumsum(counts[:n], axis=1)[:, :-1]
        values = np.cumsum(sums[:n], axis=1)[:, :-1] if weigh else found
        if op in ("rate", "bytes_rate"):
            values = values / (log_range.range_ns / NS)
        labels = numbers.table(ctx.symbols)
        return Grid(labels, np.ascontiguousarray(values), found > 0, np.zeros(n, np.bool_)).without_empty()

    def _unwrapped(
        self, expr: RangeAggregation, log_range: LogRange, unwrap: Unwrap, grouping: Grouping | None
    ) -> Grid:
        """Aggregations of the values of a label."""
        ctx, steps = self._ctx, self._steps
        numbers = SeriesNumbers(grouping, (unwrap.name,), ctx.limits.series_max)
        samples = Windowed(steps, log_range) if expr.op in _ORDER_FREE else Sorted()
        self._collect(log_range, unwrap, numbers, grouping, samples)
        if not len(numbers):
            return _no_series(ctx, steps.count)
        labels = numbers.table(ctx.symbols)
        frame = samples.frame(labels)
        size = len(frame.ts_ms)
        end = steps.first_ms - log_range.offset_ns
        no_drop = np.zeros(len(labels), np.bool_)
        vector = RangeVector(labels, FrameSelection(frame), size, no_drop, log_range.range_ns, end, steps.step_ms)
        params = np.full(steps.count, 0.0 if expr.param is None else expr.param)
        func = _WINDOW_FUNCTIONS.get(expr.op, expr.op)
        grid = evaluate_call(ctx, WindowCall(func, vector, steps, params), expr.span)
        if expr.op == "rate":
            grid.values /= log_range.range_ns / NS
        elif expr.op == "rate_counter":
            grid.values *= NS / 1000  # the kernel takes a thousand units for a second
        return Grid(grid.labels, grid.values, grid.present, np.zeros(len(grid), np.bool_))

    def _collect(
        self,
        log_range: LogRange,
        unwrap: Unwrap,
        numbers: SeriesNumbers,
        grouping: Grouping | None,
        samples: Samples,
    ) -> None:
        """Add the values of all lines with the label."""
        ctx, query = self._ctx, log_range.query
        wanted = wanted_labels(query.stages, unwrap, grouping)

        def unwrapped(batch: Batch) -> None:
            run_stages(batch, query.stages, self._now_ns)
            if len(batch):
                unwrap_values(batch, unwrap)
                run_stages(batch, unwrap.filters, self._now_ns)

        for batch in self._batches(log_range, wanted, unwrapped):
            assert batch.samples is not None
            samples.add(numbers.number(batch), batch.frame.ts_ns, batch.samples)
            ctx.stats.samples += len(batch)
            ctx.hold(len(batch))


def _alike(
    windows: tuple[int, int, int], steps: int, first_ns: NDArray[np.int64], last_ns: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether lines of two times, and so all in between, lie in the same windows."""
    end, step, width = windows
    same = np.ones(len(first_ns), np.bool_)
    for border in (end, end - width):  # windows that end, and that begin, at or behind a line
        same &= np.clip(-((border - first_ns) // step), 0, steps) == np.clip(-((border - last_ns) // step), 0, steps)
    return same


def unwrap_values(batch: Batch, unwrap: Unwrap) -> None:
    """Set the samples of a batch to the values of a label: lines without it go, lines without a number are marked."""
    stored = None if unwrap.conversion else batch.numbers(unwrap.name)
    if stored is not None:
        batch.samples = stored[0]
        batch.take(stored[1])
        return
    batch.take(batch.get(unwrap.name).present)
    column = batch.get(unwrap.name)
    if unwrap.conversion == "bytes":
        values = column.map(lambda text: number_of(text, Unit.BYTES), np.nan)
    elif unwrap.conversion:
        values = column.map(lambda text: number_of(text, Unit.DURATION) / NS, np.nan)
    else:
        values = column.map(lambda text: number_of(text, Unit.NUMBER), np.nan)
    bad = np.isnan(values)
    if bad.any():
        bad &= ~(column.map(lambda text: float(text.lower() in ("nan", "+nan", "-nan")), 0.0) > 0)
        batch.fail(bad, "SampleExtractionErr", f"cannot read {unwrap.name} as a number")
    batch.samples = values


def _grown(array: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    out = np.zeros((rows, array.shape[1]))
    out[: len(array)] = array
    return out


def _no_series(ctx: QueryContext, steps: int) -> Grid:
    return Grid(empty_table(ctx.symbols), np.zeros((0, steps)), np.zeros((0, steps), np.bool_), np.zeros(0, np.bool_))
