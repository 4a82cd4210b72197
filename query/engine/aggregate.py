"""Aggregation operators: groups of series to one series each, or to a selection of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from query.engine.context import QueryContext
from query.engine.gofloat import format_general, format_plain
from query.engine.grid import (
    METADATA_LABELS,
    NAME,
    Grid,
    by_group,
    drop_labels,
    empty_table,
    group_ids,
    keep_labels,
    set_label,
    take,
)
from query.engine.window import WindowCall, note_counters
from query.errors import ExecutionError
from query.kernels import group as kernels
from query.kernels.group import accumulate, group_quantile, group_topk
from query.promql.ast import Aggregation, Span
from tsdb.frame import LabelTable

FOLDS = {
    "sum": kernels.SUM,
    "avg": kernels.AVG,
    "min": kernels.MIN,
    "max": kernels.MAX,
    "count": kernels.COUNT,
    "group": kernels.COUNT,
    "stdvar": kernels.STDVAR,
    "stddev": kernels.STDVAR,
}
"""Operators whose state per group is a few numbers: rows can be folded in one batch after another."""

_BATCH_POINTS = 1 << 15
"""Points of one batch: 256 KiB of float64 stay in the second-level cache between the window and the group kernel."""

_THREAD_POINTS = 1 << 17
"""Points from which the steps of a batched aggregation are shared with a second thread."""

_INT64_LIMIT = 9223372036854774784.0


def group_table(labels: LabelTable, node: Aggregation) -> LabelTable:
    """Labels that remain of each input series; those that are alike are one group."""
    if node.without:
        return drop_labels(labels, (*node.grouping, NAME))
    return keep_labels(labels, node.grouping)


class _Fold:
    """Running state of all groups at all steps."""

    def __init__(self, ctx: QueryContext, node: Aggregation, labels: LabelTable, steps: int) -> None:
        table = group_table(labels, node)
        self.op = node.op
        self.group, self.first = group_ids(table.ids)
        self.labels = take(table, self.first) if len(table.names) else empty_table(ctx.symbols, len(self.first))
        shape = (len(self.first), steps)
        ctx.reserve(*shape)
        self.total = np.zeros(shape)
        self.count = np.zeros(shape)
        self.extra = np.zeros(shape)

    def add(
        self, values: NDArray[np.float64], present: NDArray[np.bool_], group: NDArray[np.int32], first_step: int
    ) -> None:
        """Fold rows of points."""
        accumulate(values, present, group, FOLDS[self.op], first_step, self.total, self.extra, self.count)

    def result(self, drop_name: NDArray[np.bool_]) -> Grid:
        """The aggregated series; one that contains a renamed series is renamed too."""
        total, extra, count = self.total, self.extra, self.count
        if self.op == "sum":
            total += extra
        elif self.op == "count":
            total = count
        elif self.op == "group":
            total = np.ones_like(count)
        elif self.op == "avg":
            total = np.where(count < 0, total + extra, total / count + extra / count)
        elif self.op in ("stdvar", "stddev"):
            total /= count
            if self.op == "stddev":
                np.sqrt(total, out=total)
        return Grid(self.labels, total, count != 0, _renamed(self.labels, self.group, drop_name)).without_empty()


def _renamed(labels: LabelTable, group: NDArray[np.int32], drop_name: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Groups with any member whose metadata labels are to go; none when the groups have no such labels."""
    out = np.zeros(len(labels), np.bool_)
    if any(name in labels.names for name in METADATA_LABELS):
        out[group[drop_name]] = True
    return out


def fold(ctx: QueryContext, node: Aggregation, grid: Grid) -> Grid:
    """``sum``, ``avg``, ``min``, ``max``, ``count``, ``group``, ``stddev`` and ``stdvar`` of a grid."""
    state = _Fold(ctx, node, grid.labels, grid.values.shape[1])
    state.add(grid.values, grid.present, state.group, 0)
    ctx.release(grid.values.size)
    return state.result(grid.drop_name)


def fold_windows(ctx: QueryContext, node: Aggregation, call: WindowCall, span: Span) -> Grid:
    """The same of a function of a range vector, without ever holding all its points.

    The rows pass in batches that fit the cache. Two threads share the steps, not the rows: so each group's points are
    added up in the order of the rows, and the result does not depend on the number of threads.
    """
    labels = call.vector.frame.labels
    steps = call.steps.count
    state = _Fold(ctx, node, labels, steps)
    rows = len(call)
    found = np.zeros(rows, np.bool_)

    def work(first_step: int, last_step: int) -> tuple[int, NDArray[np.bool_]]:
        width = last_step - first_step
        batch = max(1, min(rows, _BATCH_POINTS // width))
        values = np.empty((batch, width))
        present = np.empty((batch, width), np.bool_)
        any_point = np.zeros(rows, np.bool_)
        looked = 0
        for begin in range(0, rows, batch):
            ctx.check_time()
            end = min(rows, begin + batch)
            out, mask = values[: end - begin], present[: end - begin]
            looked += call.run(begin, end, first_step, out, mask)
            state.add(out, mask, state.group[begin:end], first_step)
            np.any(mask, axis=1, out=any_point[begin:end])
        return looked, any_point

    if ctx.pool is not None and steps > 1 and rows * steps >= _THREAD_POINTS:
        other = ctx.pool.submit(work, steps // 2, steps)
        looked, found = work(0, steps // 2)
        more, found_there = other.result()
        looked += more
        found |= found_there
    else:
        looked, found = work(0, steps)
    ctx.stats.samples_total += looked
    if call.func in ("rate", "increase"):
        note_counters(ctx, call.func, take(labels, found), span)
    # a series without any point does not count as a member of its group
    return state.result(call.drop_name() & found)


def is_batched(call: WindowCall) -> bool:
    """Whether an aggregation of this call should go through :func:`fold_windows`."""
    return len(call) * call.steps.count > _BATCH_POINTS


def quantile(ctx: QueryContext, node: Aggregation, grid: Grid, q: NDArray[np.float64]) -> Grid:
    """``quantile``: the φ-quantile of each group."""
    assert node.param is not None
    ctx.annotations.check_quantiles(q, node.param.span)
    table = group_table(grid.labels, node)
    group, first = group_ids(table.ids)
    order, bounds = by_group(group, len(first))
    shape = (len(first), grid.values.shape[1])
    ctx.reserve(*shape)
    out = np.empty(shape)
    present = np.empty(shape, np.bool_)
    group_quantile(grid.values, grid.present, order, bounds, q, np.empty(len(grid)), out, present)
    labels = take(table, first)
    return Grid(labels, out, present, _renamed(labels, group, grid.drop_name)).without_empty()


def topk(node: Aggregation, grid: Grid, k: NDArray[np.float64]) -> Grid:
    """``topk`` and ``bottomk``: the largest or smallest points of each group; of one step in that order."""
    wrong = ~((k < _INT64_LIMIT) & (k > -_INT64_LIMIT))
    if wrong.any():
        raise ExecutionError(f"Scalar value {format_general(float(k[wrong][0]))} overflows int64")
    sizes = np.clip(k, 0, len(grid)).astype(np.int64)
    table = group_table(grid.labels, node)
    group, first = group_ids(table.ids)
    order, bounds = by_group(group, len(first))
    keep = np.zeros(grid.present.shape, np.bool_)
    sign = 1 if node.op == "topk" else -1
    heap = np.empty(max(1, int(sizes.max(initial=0))), np.int64)
    group_topk(grid.values, grid.present, order, bounds, sizes, sign, heap, keep)
    kept = Grid(grid.labels, grid.values, keep, grid.drop_name)
    if grid.values.shape[1] > 1:
        return kept.without_empty()
    rows = np.flatnonzero(keep[:, 0])
    values = grid.values[rows, 0]
    ranked = -values if node.op == "topk" else values
    by_value = np.lexsort((ranked, np.isnan(values), group[rows]))
    return kept.rows(rows[by_value])


def count_values(ctx: QueryContext, node: Aggregation, grid: Grid, label: str) -> Grid:
    """``count_values``: how often each value occurs in each group; the value becomes a label."""
    if not label:
        raise ExecutionError('invalid label name ""')
    table = group_table(grid.labels, node)
    table = drop_labels(table, (label,))
    group, first = group_ids(table.ids)
    rows, steps = np.nonzero(grid.present)
    bits = grid.values[rows, steps].view(np.uint64)
    # all NaN are one value: they are written alike
    distinct, which = np.unique(np.where(np.isnan(bits.view(np.float64)), _NAN_BITS, bits), return_inverse=True)
    pairs, row_of = np.unique(group[rows].astype(np.int64) * max(1, len(distinct)) + which, return_inverse=True)
    shape = (len(pairs), grid.values.shape[1])
    ctx.reserve(*shape)
    counts = np.zeros(shape)
    np.add.at(counts, (row_of, steps), 1.0)
    texts = [format_plain(value) for value in distinct.view(np.float64).tolist()]
    symbols = np.array([ctx.symbols.intern(text) for text in texts], np.int32)
    of_group, of_value = np.divmod(pairs, max(1, len(distinct)))
    labels = take(table, first[of_group])
    if node.without and label in node.grouping:
        # the label that was just set is among those to be removed: only the counts per group remain
        merged, inverse = np.unique(of_group, return_inverse=True)
        total = np.zeros((len(merged), shape[1]))
        np.add.at(total, inverse, counts)
        return Grid(take(table, first[merged]), total, total != 0, np.zeros(len(merged), np.bool_))
    labels = set_label(labels, label, symbols[of_value] if len(pairs) else np.zeros(0, np.int32))
    return Grid(labels, counts, counts != 0, np.zeros(len(pairs), np.bool_))


_NAN_BITS: Any = np.float64(np.nan).view(np.uint64)
