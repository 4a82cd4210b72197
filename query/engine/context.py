"""What all parts of one query share: its store, symbols, limits, notes to the reader and cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from query.engine.gofloat import format_general
from query.engine.grid import Grid, quote
from query.errors import ExecutionError, QueryTimeoutError, UnsupportedError
from query.limits import QueryLimits
from query.promql.ast import Span, line_col
from query.result import QueryStats
from query.storage import FrameSelection, Selection, Storage
from tsdb.errors import LimitError
from tsdb.frame import LabelTable, NewestSamples, SymbolOverlay
from tsdb.limits import SelectLimits
from tsdb.matchers import Matcher

S = TypeVar("S", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Steps:
    """Times at which an expression is evaluated: ``first_ms + i * step_ms``."""

    first_ms: int
    step_ms: int
    count: int

    @property
    def last_ms(self) -> int:
        return self.first_ms + (self.count - 1) * self.step_ms

    def times_ms(self) -> NDArray[np.int64]:
        """(count,) int64."""
        return np.arange(self.count, dtype=np.int64) * self.step_ms + self.first_ms


class Annotations:
    """Warnings and infos of a query, each text once, in order of appearance."""

    __slots__ = ("infos", "text", "warnings")

    def __init__(self, text: str) -> None:
        self.text = text
        self.warnings: dict[str, None] = {}
        self.infos: dict[str, None] = {}

    def _place(self, span: Span) -> str:
        line, col = line_col(self.text, span.start)
        return f"({line}:{col})"

    def warn(self, what: str, span: Span) -> None:
        self.warnings[f"PromQL warning: {what} {self._place(span)}"] = None

    def inform(self, what: str, span: Span) -> None:
        self.infos[f"PromQL info: {what} {self._place(span)}"] = None

    def check_quantiles(self, quantiles: NDArray[np.float64], span: Span) -> None:
        """Warn of every φ outside [0, 1]."""
        good = (quantiles >= 0) & (quantiles <= 1)
        if good.all():
            return
        for value in np.unique(quantiles[~good]).tolist():
            self.warn(f"quantile value should be between 0 and 1, got {format_general(value)}", span)

    def bad_bucket(self, metric: str, value: str, span: Span) -> None:
        of = f" for metric name {quote(metric)}" if metric else ""
        self.warn(f'bucket label "le" is missing or has a malformed value of {quote(value)}{of}', span)


class QueryContext:
    """One running query.

    Attributes
    ----------
    text : the query, for places in messages
    symbols : SymbolOverlay        numbering of all label tables of this query
    start_ms, end_ms : what ``@ start()`` and ``@ end()`` mean, everywhere in the query: the end is the one that was
        asked for, even where the last step lies before it
    steps : Steps        of the query as a whole
    step_counts : of each window function, samples that it looked at by step; None = nobody wants to know
    """

    __slots__ = (
        "_deadline",
        "_held",
        "_opened",
        "annotations",
        "end_ms",
        "limits",
        "lookback_ms",
        "pool",
        "start_ms",
        "stats",
        "step_counts",
        "steps",
        "storage",
        "symbols",
        "text",
    )  # fmt: skip

    def __init__(
        self,
        text: str,
        storage: Storage,
        limits: QueryLimits,
        steps: Steps,
        end_ms: int,
        lookback_ms: int,
        deadline: float,
        pool: ThreadPoolExecutor | None,
        per_step: bool = False,
    ) -> None:
        self.text = text
        self.storage = storage
        self.symbols = SymbolOverlay(storage.symbols)
        self.limits = limits
        self.lookback_ms = lookback_ms
        self.start_ms = steps.first_ms
        self.end_ms = end_ms
        self.annotations = Annotations(text)
        self.stats = QueryStats()
        self.pool = pool
        self.steps = steps
        self.step_counts: list[NDArray[np.int64]] | None = [] if per_step else None
        self._deadline = deadline
        self._opened: dict[tuple[tuple[Matcher, ...], int, int], tuple[LabelTable, Selection, int]] = {}
        self._held = 0

    def unsupported(self, construct: str, span: Span) -> UnsupportedError:
        """The error for valid PromQL that we do not evaluate."""
        return UnsupportedError(construct, self.text, span)

    def samples_per_step(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Times of the steps and samples looked at."""
        if self.step_counts is None:
            return None
        total = np.zeros(self.steps.count, np.int64)
        for counts in self.step_counts:
            total += counts
        return self.steps.times_ms(), total

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """The inside of a subquery: what it looks at does not count, only what the windows over its points do."""
        total, self.step_counts, kept = self.stats.samples_total, None, self.step_counts
        try:
            yield
        finally:
            self.stats.samples_total, self.step_counts = total, kept

    def check_time(self) -> None:
        """Raise when the query has run too long; called between pieces of work of bounded size."""
        if time.monotonic() > self._deadline:
            raise QueryTimeoutError

    def reserve(self, series: int, steps: int, arrays: int = 1) -> None:
        """Account for a grid about to be allocated: refuse it when it, or all grids together, would be too much.

        Parameters
        ----------
        arrays : arrays of that size needed to compute it
        """
        points = series * steps
        needed = points * 9 * arrays  # float64 and bool
        if needed > self.limits.memory_bytes_max:
            raise ExecutionError(
                f"query needs about {needed >> 20} MiB at once ({series} series x {steps} steps), "
                f"more than limits.query.memory_bytes_max ({self.limits.memory_bytes_max >> 20} MiB)"
            )
        self.hold(points)

    def release(self, grid: Grid) -> None:
        """A grid that has served its purpose: another one has taken its place."""
        self._held -= grid.values.size

    def hold(self, samples: int) -> None:
        """Count samples or points that are kept in memory."""
        self._held += samples
        self.stats.peak_samples = max(self.stats.peak_samples, self._held)
        if self._held > self.limits.samples_max:
            raise ExecutionError(
                "query processing would load too many samples into memory in query execution: "
                f"{self._held}, more than limits.query.samples_max ({self.limits.samples_max})"
            )

    def open(self, matchers: tuple[Matcher, ...], mint_ms: int, maxt_ms: int) -> tuple[LabelTable, Selection, int]:
        """Series, samples and their number (at most) of a selector with inclusive bounds.

        The same selection twice in a query is read once. Little is decoded at once and kept, much is left to be decoded
        batch by batch where it is used.
        """
        key = (matchers, mint_ms, maxt_ms)
        opened = self._opened.get(key)
        if opened is not None:
            return opened
        self.check_time()
        begin = time.perf_counter()
        left = max(0, self.limits.samples_read_max - self.stats.samples)
        try:
            selection = self.storage.open(matchers, mint_ms, maxt_ms, SelectLimits(self.limits.series_max, left))
        except LimitError as e:
            raise self._too_much(e) from e
        series = len(selection.labels)
        samples = int(selection.samples_max.sum())
        if isinstance(selection, FrameSelection) or samples <= KEPT_SAMPLES_MAX:
            frame = selection.frame()
            samples = len(frame.ts_ms)
            self.hold(samples)
            selection = FrameSelection(replace(frame, ts_ms=_writable(frame.ts_ms), values=_writable(frame.values)))
        self.stats.samples += samples
        self.stats.series += series
        if series > self.limits.series_max:
            raise ExecutionError(
                f"query selects {series} series, more than limits.query.series_max ({self.limits.series_max})"
            )
        for warning in selection.warnings:
            self.annotations.warnings[warning] = None
        labels = LabelTable(selection.labels.names, selection.labels.ids, self.symbols)
        self._opened[key] = opened = labels, selection, samples
        seconds = self.stats.seconds
        seconds["select"] = seconds.get("select", 0.0) + time.perf_counter() - begin
        return opened

    def newest(self, matchers: tuple[Matcher, ...], oldest_ms: int, at_ms: int) -> NewestSamples | None:
        """Newest sample of each series of a selector, where the store has it at hand."""
        begin = time.perf_counter()
        try:
            found = self.storage.newest(matchers, oldest_ms, at_ms, SelectLimits(self.limits.series_max))
        except LimitError as e:
            raise self._too_much(e) from e
        if found is not None:
            samples = int(np.count_nonzero(found.present))
            self.stats.samples += samples
            self.stats.samples_total += samples
            self.stats.series += len(found.labels)
            seconds = self.stats.seconds
            seconds["select"] = seconds.get("select", 0.0) + time.perf_counter() - begin
        return found

    def _too_much(self, error: LimitError) -> ExecutionError:
        limits = self.limits
        return ExecutionError(
            f"query selects too much: {error} (limits.query.series_max = {limits.series_max}, "
            f"limits.query.samples_read_max = {limits.samples_read_max})"
        )


KEPT_SAMPLES_MAX = 1 << 18
"""Samples of a selection that are decoded as a whole: 4 MiB, beyond that fresh memory costs more than decoding."""


def _writable(array: NDArray[S]) -> NDArray[S]:
    """The kernels take writable arrays only (see :mod:`query.kernels.window`)."""
    return array if array.flags.writeable else array.copy()
