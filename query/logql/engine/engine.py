"""The LogQL engine: text in, log entries or arrays with labels out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import numpy as np

from query.empty import EmptyStorage
from query.engine.context import QueryContext, Steps
from query.engine.grid import Grid, Scalar, empty_table, sort_order
from query.errors import BadDataError, ExecutionError, QueryTimeoutError
from query.limits import QueryLimits
from query.logql.ast import LogQuery, MetricExpr
from query.logql.engine.entries import Scanned, StreamEntries, select_entries
from query.logql.engine.metrics import MetricEvaluator, Value
from query.logql.parser import parse
from query.result import MatrixResult, ScalarResult, VectorResult
from tsdb.clock import Clock, SystemClock
from tsdb.frame import SymbolOverlay
from tsdb.logs.frame import LogReader

ENTRIES_MAX = 5000
"""Most lines of one answer; Loki's ``max_entries_limit_per_query``."""

T = TypeVar("T")

parsed = lru_cache(maxsize=1024)(parse)


@dataclass(slots=True)
class LogStats:
    """What a query cost.

    Attributes
    ----------
    lines, lines_kept : entries looked at, and those that passed the pipeline
    entries : entries answered
    seconds : wall seconds by phase: ``queue``, ``total``
    """

    lines: int = 0
    lines_kept: int = 0
    entries: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogResult:
    """An answer: entries of a log query, or the arrays of a metric query."""

    value: list[StreamEntries] | MatrixResult | VectorResult | ScalarResult
    stats: LogStats


class LogEngine:
    """Evaluates LogQL over any :class:`tsdb.logs.frame.LogReader`; safe to use from many threads.

    Parameters
    ----------
    limits : QueryLimits
    clock : what ``now`` is
    """

    def __init__(self, limits: QueryLimits | None = None, clock: Clock | None = None) -> None:
        self.limits = limits or QueryLimits()
        self._clock = clock or SystemClock()
        self._gate = threading.BoundedSemaphore(self.limits.concurrent_max)
        self._pool = ThreadPoolExecutor(self.limits.workers, "logql") if self.limits.workers > 1 else None

    def close(self) -> None:
        """Stop the worker threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def entries(
        self,
        reader: LogReader,
        query: LogQuery,
        start_ns: int,
        end_ns: int,
        limit: int,
        *,
        backward: bool,
        interval_ns: int = 0,
    ) -> LogResult:
        """The newest (backward) or oldest ``limit`` lines with start <= ts < end, at least an interval apart.

        Raises
        ------
        query.errors.QueryError
        """
        scanned = Scanned()

        def work(ctx: QueryContext) -> list[StreamEntries]:
            return select_entries(
                reader, query, start_ns, end_ns, limit, backward=backward, now_ns=self._now_ns(), scanned=scanned,
                check_time=ctx.check_time, interval_ns=interval_ns,
            )  # fmt: skip

        streams, stats = self._run(Steps(start_ns, 1, 1), work)
        stats.lines, stats.lines_kept = scanned.lines, scanned.lines_kept
        stats.entries = sum(len(stream.entries) for stream in streams)
        return LogResult(streams, stats)

    def range(self, reader: LogReader, text: str, start_ns: int, end_ns: int, step_ns: int) -> LogResult:
        """Values of a metric query from ``start_ns`` to ``end_ns``, both included, every ``step_ns``.

        Raises
        ------
        query.errors.QueryError
        """
        expr = parsed(text)
        assert not isinstance(expr, LogQuery)
        return self.range_of(reader, expr, start_ns, end_ns, step_ns)

    def range_of(self, reader: LogReader, expr: MetricExpr, start_ns: int, end_ns: int, step_ns: int) -> LogResult:
        """The same of an expression.

        Raises
        ------
        query.errors.QueryError
        """
        if step_ns <= 0:
            raise BadDataError("zero or negative query resolution step widths are not accepted. Try a positive integer")
        if (end_ns - start_ns) // step_ns > self.limits.steps_max:
            raise BadDataError(
                f"exceeded maximum resolution of {self.limits.steps_max:,} points per time series. "
                "Try increasing the value of the step parameter"
            )
        steps = Steps(start_ns, step_ns, (end_ns - start_ns) // step_ns + 1)
        value, stats = self._metric(reader, expr, steps)
        times_ms = steps.times_ms() // 1_000_000
        if isinstance(value, Scalar):
            value = _as_grid(value)
        grid = value.without_empty()
        if len(grid) > 1:
            grid = grid.rows(sort_order(grid.labels))
        return LogResult(MatrixResult(grid.labels, times_ms, grid.values, grid.present), stats)

    def instant(self, reader: LogReader, text: str, time_ns: int) -> LogResult:
        """Value of a metric query at one time.

        Raises
        ------
        query.errors.QueryError
        """
        expr = parsed(text)
        assert not isinstance(expr, LogQuery)
        value, stats = self._metric(reader, expr, Steps(time_ns, 1, 1))
        time_ms = time_ns // 1_000_000
        if isinstance(value, Scalar):
            return LogResult(ScalarResult(time_ms, float(value.values[0])), stats)
        grid = value.without_empty()
        return LogResult(VectorResult(grid.labels, np.array([time_ms]), grid.values, grid.present), stats)

    def _metric(self, reader: LogReader, expr: MetricExpr, steps: Steps) -> tuple[Value, LogStats]:
        scanned = Scanned()

        def work(ctx: QueryContext) -> Value:
            with np.errstate(all="ignore"):
                return MetricEvaluator(ctx, reader, steps, self._now_ns(), scanned).evaluate(expr)

        value, stats = self._run(steps, work)
        stats.lines, stats.lines_kept = scanned.lines, scanned.lines_kept
        return value, stats

    def _now_ns(self) -> int:
        return self._clock.now_ms() * 1_000_000

    def _run(self, steps: Steps, work: Callable[[QueryContext], T]) -> tuple[T, LogStats]:
        """Wait for a turn, then work."""
        begin = time.perf_counter()
        deadline = time.monotonic() + self.limits.timeout_s
        if not self._gate.acquire(timeout=self.limits.timeout_s):
            raise QueryTimeoutError("query queue")
        try:
            started = time.perf_counter()
            ctx = QueryContext(
                "",
                EmptyStorage(),
                self.limits,
                steps,
                end_ms=steps.last_ms,
                lookback_ms=self.limits.lookback_ms,
                deadline=deadline,
                pool=self._pool,
            )
            value = work(ctx)
        except RecursionError as e:
            raise ExecutionError("expression is nested too deeply") from e
        except MemoryError as e:
            raise ExecutionError("query needs more memory than there is") from e
        finally:
            self._gate.release()
        seconds = {"queue": started - begin, "total": time.perf_counter() - begin}
        return value, LogStats(seconds=seconds)


def _as_grid(value: Scalar) -> Grid:
    values = value.values[None, :]
    return Grid(empty_table(SymbolOverlay(), 1), values, np.ones(values.shape, np.bool_), np.zeros(1, np.bool_))
