"""The query engine: text in, arrays with labels out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache

import numpy as np

from query.engine.binary import merge_alike
from query.engine.context import QueryContext, Steps
from query.engine.evaluate import FUNCTIONS, Evaluator, Value, as_grid
from query.engine.grid import METADATA_LABELS, Grid, RangeVector, Scalar, sort_order, take
from query.engine.plan import light_selectors, refuse_unsupported, unwrapped
from query.engine.window import STALE
from query.errors import BadDataError, ExecutionError, QueryTimeoutError
from query.limits import QueryLimits
from query.promql.ast import Expr, MatrixSelector, StringLiteral, Subquery, VectorSelector
from query.promql.parser import ParseError, parse
from query.result import (
    MatrixResult,
    QueryResult,
    RawMatrix,
    ResultValue,
    ScalarResult,
    StringResult,
    VectorResult,
)
from query.storage import FrameSelection, Storage
from tsdb.frame import SeriesFrame


class Engine:
    """Evaluates PromQL over any :class:`query.storage.Storage`; safe to use from many threads.

    Parameters
    ----------
    limits : QueryLimits
    """

    def __init__(self, limits: QueryLimits | None = None) -> None:
        self.limits = limits or QueryLimits()
        self._gate = threading.BoundedSemaphore(self.limits.concurrent_max)
        self._pool = ThreadPoolExecutor(self.limits.workers, "query") if self.limits.workers > 1 else None

    def close(self) -> None:
        """Stop the worker threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def instant(
        self,
        storage: Storage,
        text: str,
        time_ms: int,
        *,
        lookback_ms: int | None = None,
        timeout_s: float | None = None,
        per_step: bool = False,
        gated: bool = True,
    ) -> QueryResult:
        """Value of ``text`` at one time.

        Parameters
        ----------
        per_step : also count samples by step
        gated : wait for a turn; only what :meth:`is_light` allows may go without

        Raises
        ------
        QueryError        with the type and text that the HTTP API answers
        """

        def value_of(ctx: QueryContext, expr: Expr) -> ResultValue:
            value = Evaluator(ctx, steps).evaluate(expr)
            if isinstance(value, str):
                return StringResult(time_ms, value)
            if isinstance(value, Scalar):
                return ScalarResult(time_ms, float(value.values[0]))
            if isinstance(value, RangeVector):
                if not isinstance(value.samples, FrameSelection):
                    ctx.hold(value.size)
                return RawMatrix(_raw_samples(value))
            grid = _renamed(value)
            return VectorResult(grid.labels, np.array([time_ms]), grid.values, grid.present)

        steps = Steps(time_ms, 1, 1)
        return self._run(storage, text, steps, time_ms, value_of, lookback_ms, timeout_s, per_step, gated)

    def is_light(self, storage: Storage, text: str, time_ms: int, lookback_ms: int | None = None) -> bool:
        """Whether an instant query takes so little that handing it to another thread would cost more.

        Raises
        ------
        QueryError        the text is no query, or one that is not evaluated
        """
        selectors = _light_selectors(text)
        if selectors is None:
            return False
        oldest_ms = time_ms - (self.limits.lookback_ms if lookback_ms is None else lookback_ms) + 1
        return all(storage.is_light(selector.matchers, oldest_ms) for selector in selectors)

    def range(
        self,
        storage: Storage,
        text: str,
        start_ms: int,
        end_ms: int,
        step_ms: int,
        *,
        lookback_ms: int | None = None,
        timeout_s: float | None = None,
        per_step: bool = False,
    ) -> QueryResult:
        """Values of ``text`` from ``start_ms`` to ``end_ms``, both included, every ``step_ms``.

        Parameters
        ----------
        per_step : also count samples by step

        Raises
        ------
        QueryError        with the type and text that the HTTP API answers
        """
        if step_ms <= 0:
            raise BadDataError(
                'invalid parameter "step": zero or negative query resolution step widths are not accepted. '
                "Try a positive integer"
            )
        if end_ms < start_ms:
            raise BadDataError('invalid parameter "end": end timestamp must not be before start time')
        if (end_ms - start_ms) // step_ms > self.limits.steps_max:
            raise BadDataError(
                f"exceeded maximum resolution of {self.limits.steps_max:,} points per timeseries. "
                "Try decreasing the query resolution (?step=XX)"
            )
        steps = Steps(start_ms, step_ms, (end_ms - start_ms) // step_ms + 1)

        def value_of(ctx: QueryContext, expr: Expr) -> ResultValue:
            root = unwrapped(expr)
            if isinstance(root, StringLiteral | MatrixSelector | Subquery):
                kind = "string" if isinstance(root, StringLiteral) else "range vector"
                raise BadDataError(
                    f'invalid expression type "{kind}" for range query, must be Scalar or instant Vector'
                )
            grid = _renamed(as_grid(ctx, Evaluator(ctx, steps).evaluate(expr)))
            begin = time.perf_counter()
            grid = grid.without_empty()
            if len(grid) > 1:
                grid = grid.rows(sort_order(grid.labels))
            ctx.stats.seconds["sort"] = time.perf_counter() - begin
            return MatrixResult(grid.labels, steps.times_ms(), grid.values, grid.present)

        return self._run(storage, text, steps, end_ms, value_of, lookback_ms, timeout_s, per_step)

    def _run(
        self,
        storage: Storage,
        text: str,
        steps: Steps,
        end_ms: int,
        value_of: Callable[[QueryContext, Expr], ResultValue],
        lookback_ms: int | None,
        timeout_s: float | None,
        per_step: bool,
        gated: bool = True,
    ) -> QueryResult:
        """Parse, wait for a turn, evaluate, collect notes and cost."""
        begin = time.perf_counter()
        if max(abs(steps.first_ms), abs(end_ms)) > _TIME_MAX_MS:
            raise BadDataError("evaluation time out of range")
        timeout_s = self.limits.timeout_s if timeout_s is None else min(timeout_s, self.limits.timeout_s)
        deadline = time.monotonic() + timeout_s
        expr = _parsed(text)
        prepared = time.perf_counter()
        if gated and not self._gate.acquire(timeout=timeout_s):
            raise QueryTimeoutError("query queue")
        try:
            started = time.perf_counter()
            lookback_ms = self.limits.lookback_ms if lookback_ms is None else lookback_ms
            ctx = QueryContext(text, storage, self.limits, steps, end_ms, lookback_ms, deadline, self._pool, per_step)
            with np.errstate(all="ignore"):
                value = value_of(ctx, expr)
        except RecursionError as e:
            raise ExecutionError("expression is nested too deeply") from e
        except MemoryError as e:
            raise ExecutionError("query needs more memory than there is") from e
        finally:
            if gated:
                self._gate.release()
        end = time.perf_counter()
        ctx.stats.samples_per_step = ctx.samples_per_step()
        seconds = ctx.stats.seconds
        seconds["prepare"] = prepared - begin
        seconds["queue"] = started - prepared
        seconds["eval"] = end - started - seconds.get("sort", 0.0)
        seconds["total"] = end - begin
        return QueryResult(value, tuple(ctx.annotations.warnings), tuple(ctx.annotations.infos), ctx.stats)


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Expr:
    """Expression of a query text, checked for constructs that we do not evaluate (dashboards repeat their queries)."""
    try:
        expr = parse(text)
    except ParseError as e:
        raise BadDataError(f'invalid parameter "query": {e}') from e
    refuse_unsupported(expr, text, FUNCTIONS)
    return expr


@lru_cache(maxsize=1024)
def _light_selectors(text: str) -> tuple[VectorSelector, ...] | None:
    return light_selectors(_parsed(text))


def _renamed(value: Value) -> Grid:
    """The final series: metadata labels dropped where they are to go.

    Raises
    ------
    ExecutionError        two series have become the same
    """
    assert isinstance(value, Grid)
    names = value.labels.names
    if not value.drop_name.any() or not any(name in names for name in METADATA_LABELS):
        return value
    ids = value.labels.ids.copy()
    for name in METADATA_LABELS:
        if name in names:
            ids[value.drop_name, names.index(name)] = 0
    return merge_alike(replace(value, labels=replace(value.labels, ids=ids)))


def _raw_samples(vector: RangeVector) -> SeriesFrame:
    """Samples of the one window of an instant query, without stale markers, series sorted by labels."""
    frame = vector.samples.frame()
    live = (frame.ts_ms > vector.end_ms - vector.range_ms) & (frame.ts_ms <= vector.end_ms)
    live &= frame.values.view(np.uint64) != STALE
    grid = _renamed(
        Grid(vector.labels, np.zeros((len(frame), 1)), np.ones((len(frame), 1), np.bool_), vector.drop_name)
    )
    row_of = np.repeat(np.arange(len(frame)), np.diff(frame.offsets))
    counts = np.bincount(row_of[live], minlength=len(frame))
    kept = sort_order(grid.labels)
    kept = kept[counts[kept] > 0]
    position = np.full(len(frame), -1)
    position[kept] = np.arange(len(kept))
    index = np.flatnonzero(live)
    index = index[np.argsort(position[row_of[index]], kind="stable")]
    offsets = np.zeros(len(kept) + 1, np.int64)
    np.cumsum(counts[kept], out=offsets[1:])
    return SeriesFrame(take(grid.labels, kept), offsets, frame.ts_ms[index], frame.values[index])


_TIME_MAX_MS = 1 << 62
"""146 million years either way: further out, the arithmetic of windows would leave 64 bits."""
