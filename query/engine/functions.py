"""Functions of instant vectors and scalars."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from query.engine.context import QueryContext, Steps
from query.engine.grid import Grid, Scalar, set_label
from query.engine.grid import empty_table as no_labels
from query.promql.ast import Expr, MatrixSelector, VectorSelector
from tsdb.frame import LabelTable
from tsdb.matchers import MatchOp

Values = NDArray[np.float64]


def _sign(values: Values) -> Values:
    return np.where(values < 0, -1.0, np.where(values > 0, 1.0, values))


ELEMENTWISE: dict[str, Callable[[Any], Any]] = {
    "abs": np.abs,
    "ceil": np.ceil,
    "floor": np.floor,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "ln": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "rad": lambda values: values * math.pi / 180,
    "deg": lambda values: values * 180 / math.pi,
    "sgn": _sign,
}


def round_to(values: Values, nearest: Values) -> Values:
    """``round``: ties go up; computed with the inverse, as Prometheus does for accuracy."""
    inverse = 1.0 / nearest
    return np.asarray(np.floor(values * inverse + 0.5) / inverse)


def _larger(a: Values, b: Values) -> Values:
    """Go's ``math.Max``: infinity wins over NaN, +0 over -0."""
    larger = np.where((a == 0) & (b == 0), a + b, np.maximum(a, b))
    return np.where((a == np.inf) | (b == np.inf), np.inf, larger)


def clamp(grid: Grid, low: Values, high: Values) -> Grid:
    """``clamp``, ``clamp_min`` and ``clamp_max``: nothing at steps where ``high`` is below ``low``."""
    values = _larger(low, -_larger(-high, -grid.values))
    if not (high < low).any():
        return grid.derived(values)
    return grid.derived(values, grid.present & ~(high < low)).without_empty()


def scalar_of(grid: Grid) -> Scalar:
    """``scalar``: the value of the only series at each step, else NaN."""
    steps = grid.values.shape[1]
    if not len(grid):
        return Scalar(np.full(steps, np.nan))
    row = grid.present.argmax(axis=0)
    values = grid.values[row, np.arange(steps)]
    return Scalar(np.where(grid.present.sum(axis=0) == 1, values, np.nan))


def vector_of(ctx: QueryContext, scalar: Scalar) -> Grid:
    """``vector``: one series without labels."""
    values = scalar.values[None, :]
    return Grid(no_labels(ctx.symbols, 1), values, np.ones(values.shape, np.bool_), np.zeros(1, np.bool_))


def absent(ctx: QueryContext, argument: Expr, grid: Grid, steps: int) -> Grid:
    """``absent`` and ``absent_over_time``: 1 where no series has a point, labelled by the equality matchers."""
    missing = ~grid.present.any(axis=0) if len(grid) else np.ones(steps, np.bool_)
    labels = _labels_of_matchers(ctx, argument)
    rows = 1 if missing.any() else 0
    values = np.ones((rows, steps))
    return Grid(
        LabelTable(labels.names, labels.ids[:rows], labels.symbols),
        values,
        np.broadcast_to(missing, values.shape).copy(),
        np.zeros(rows, np.bool_),
    )


def _labels_of_matchers(ctx: QueryContext, argument: Expr) -> LabelTable:
    """Labels that a selector fixes by one single equality matcher."""
    labels: dict[str, str] = {}
    selector = argument.selector if isinstance(argument, MatrixSelector) else argument
    if isinstance(selector, VectorSelector):
        seen: set[str] = set()
        for matcher in selector.matchers:
            if matcher.name == "__name__":
                continue
            if matcher.op is MatchOp.EQUAL and matcher.name not in seen:
                labels[matcher.name] = matcher.value
                seen.add(matcher.name)
            else:
                labels.pop(matcher.name, None)
    table = no_labels(ctx.symbols, 1)
    for name, value in labels.items():
        if value:
            table = set_label(table, name, np.array([ctx.symbols.intern(value)], np.int32))
    return table


# ------------------------------------------------------------------ dates

_DAYS_PER_CYCLE = 146_097  # of the 400 years after which the Gregorian calendar repeats
_ZERO_YEAR = -292_277_022_399  # Go's: 1 modulo 400, early enough for every int64 of seconds
_ZERO_TO_EPOCH_CYCLES = (1 - _ZERO_YEAR) // 400
_UNIX_TO_ZERO_S = (_ZERO_TO_EPOCH_CYCLES * _DAYS_PER_CYCLE + 719_162) * 86_400  # 719,162 days from 0001-01-01 to 1970
_DAY_ONE = np.datetime64("0001-01-01", "D")


def _seconds(values: Values) -> NDArray[np.uint64]:
    """Seconds since Go's zero year: truncated towards zero; what does not fit int64 is its smallest value, as in Go."""
    fits = (values >= -(2.0**63)) & (values < 2.0**63)
    whole = np.where(fits, values, 0.0).astype(np.int64)
    whole[~fits] = np.iinfo(np.int64).min
    return whole.view(np.uint64) + np.uint64(_UNIX_TO_ZERO_S % 2**64)


def date_part(func: str, values: Values) -> Values:
    """``minute``, ``hour``, ``day_of_*``, ``days_in_month``, ``month`` and ``year`` of Unix times, UTC."""
    return np.asarray(_date_part(func, _seconds(np.ascontiguousarray(values))), np.float64)


def _date_part(func: str, seconds: NDArray[np.uint64]) -> Any:
    if func == "minute":
        return seconds % np.uint64(3600) // np.uint64(60)
    if func == "hour":
        return seconds % np.uint64(86_400) // np.uint64(3600)
    days = seconds // np.uint64(86_400)
    if func == "day_of_week":
        return (days + np.uint64(1)) % np.uint64(7)  # the zero year began on a Monday
    cycle, day_in_cycle = np.divmod(days, np.uint64(_DAYS_PER_CYCLE))
    date = _DAY_ONE + day_in_cycle.astype(np.int64)
    year = date.astype("datetime64[Y]")
    month = date.astype("datetime64[M]")
    if func == "year":
        # years of the cycle count from 1, numpy's from 1970
        return _ZERO_YEAR + cycle.astype(np.int64) * 400 + year.astype(np.int64) + 1969
    if func == "month":
        return (month - year).astype(np.int64) + 1
    if func == "day_of_month":
        return (date - month).astype(np.int64) + 1
    if func == "day_of_year":
        return (date - year).astype(np.int64) + 1
    assert func == "days_in_month"
    return (month + 1).astype("datetime64[D]") - month.astype("datetime64[D]")


DATES = frozenset(("minute", "hour", "day_of_week", "day_of_month", "day_of_year", "days_in_month", "month", "year"))


def sort(grid: Grid, steps: Steps, descending: bool) -> Grid:
    """``sort`` and ``sort_desc`` of an instant vector, NaN last; a range query is ordered by labels anyway."""
    if steps.count != 1 or len(grid) < 2:
        return grid
    values = grid.values[:, 0]
    order = np.lexsort((-values if descending else values, np.isnan(values)))
    return grid.rows(order)
