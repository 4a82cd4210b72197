"""``histogram_quantile`` and ``histogram_fraction`` of classic histograms (series with an ``le`` label)."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from query.engine.context import QueryContext, Steps
from query.engine.gofloat import format_general, parse_float
from query.engine.grid import NAME, Grid, by_group, column, drop_labels, group_ids, quote, take
from query.kernels.group import histogram
from query.promql.ast import Span
from tsdb.frame import LabelTable

BUCKET = "le"

_NOISE = 1e-12
"""Relative difference of neighbouring bucket counts that is taken for rounding, as in Prometheus."""


def classic_histogram(
    ctx: QueryContext,
    steps: Steps,
    grid: Grid,
    low: NDArray[np.float64],
    high: NDArray[np.float64] | None,
    span: Span,
) -> Grid:
    """One series per histogram: its φ-quantile (``high`` is None, φ is in ``low``) or a fraction of it.

    Parameters
    ----------
    span : of the vector argument, for annotations
    """
    distinct, which = np.unique(column(grid.labels, BUCKET), return_inverse=True)
    texts = ctx.symbols.texts(distinct)
    bounds = np.array([parse_float(text) for text in texts], np.float64)  # None becomes NaN
    good = np.array([parse_float(text) is not None for text in texts], np.bool_)
    if not good.all():
        _note_bad_buckets(ctx, grid.labels, ~good[which], span)
        grid = grid.rows(good[which])
        which = which[good[which]]
    upper_bounds = bounds[which] if len(grid) else np.zeros(0)
    table = drop_labels(grid.labels, (BUCKET,))
    group, first = group_ids(table.ids)
    groups = len(first)
    order, group_bounds = by_group(group, groups)
    order = order[np.lexsort((upper_bounds[order], group[order]))]
    ctx.reserve(groups, steps.count)
    out = np.empty((groups, steps.count))
    present = np.empty((groups, steps.count), np.bool_)
    fixes = np.empty((groups, 6))
    histogram(
        grid.values, grid.present, order, group_bounds, upper_bounds, int(high is not None), low,
        low if high is None else high, _NOISE, np.empty(len(grid)), np.empty(len(grid)), fixes, out, present,
    )  # fmt: skip
    ctx.release(grid)
    labels = take(table, first)
    if high is None and (fixes[:, 0] > 0).any():
        _note_fixes(ctx, steps, labels, fixes, span)
    return Grid(labels, out, present, np.ones(groups, np.bool_)).without_empty()


def _note_bad_buckets(ctx: QueryContext, labels: LabelTable, bad: NDArray[np.bool_], span: Span) -> None:
    names, values = column(labels, NAME)[bad], column(labels, BUCKET)[bad]
    for name, value in sorted(set(zip(names.tolist(), values.tolist(), strict=True))):
        ctx.annotations.bad_bucket(ctx.symbols.text(name), ctx.symbols.text(value), span)


def _note_fixes(ctx: QueryContext, steps: Steps, labels: LabelTable, fixes: NDArray[np.float64], span: Span) -> None:
    """One info a metric name: what was fixed, in which buckets, by how much, when."""
    names = column(labels, NAME)
    for symbol in np.unique(names[fixes[:, 0] > 0]).tolist():
        rows = fixes[(names == symbol) & (fixes[:, 0] > 0)]
        name = ctx.symbols.text(symbol)
        times = [
            datetime.fromtimestamp((steps.first_ms + int(step) * steps.step_ms) // 1000, UTC)
            for step in (rows[:, 4].min(), rows[:, 5].max())
        ]
        begin, end = (time.strftime("%Y-%m-%dT%H:%M:%SZ") for time in times)
        ctx.annotations.inform(
            "input to histogram_quantile needed to be fixed for monotonicity (see "
            "https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile)"
            + (f" for metric name {quote(name)}" if name else "")
            + f", from buckets {format_general(float(rows[:, 1].min()))} to {format_general(float(rows[:, 2].max()))}, "
            f"with a max diff of {format_general(float(rows[:, 3].max()), 2)}, over {int(rows[:, 0].sum())} samples "
            f"from {begin} to {end}",
            span,
        )
