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
from query.engine.window import BATCH_POINTS, WindowCall, in_halves, note_counters
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

_INT64_LIMIT = 9223372036854774784.0


def group_table(labels: LabelTable, node: Aggregation) -> LabelTable:
    """Labels that remain of each input series; those that are alike are one group."""
    if node.without:
        return drop_labels(labels, (*node.grouping, NAME))
    return keep_labels(labels, node.grouping)


class _State:
    """Running state of all groups at all steps: the arrays of :func:`query.kernels.group.accumulate`."""

    __slots__ = ("count", "extra", "op", "total")

    def __init__(self, op: str, groups: int, steps: int) -> None:
        self.op = op
        self.total = np.zeros((groups, steps))
        self.extra = np.zeros((groups, steps))
        self.count = np.zeros((groups, steps))

    def add(self, values: NDArray[np.float64], present: NDArray[np.bool_], group: NDArray[np.int32]) -> None:
        """Fold rows of points."""
        accumulate(values, present, group, FOLDS[self.op], self.total, self.extra, self.count)

    def merge(self, later: _State) -> None:
        """Fold what another state has seen of rows that come after those of this one."""
        a, b = (self.total, self.extra, self.count), (later.total, later.extra, later.count)
        only_b, only_a = self.count == 0, later.count == 0
        if self.op in ("sum", "avg"):
            both = _merged_sums(a, b) if self.op == "sum" else _merged_means(a, b)
        elif self.op in ("min", "max"):
            pick = np.fmin if self.op == "min" else np.fmax  # NaN only where both are
            both = pick(self.total, later.total), self.extra, self.count + later.count
        elif self.op in ("stdvar", "stddev"):
            both = _merged_variances(a, b)
        else:
            both = self.total, self.extra, self.count + later.count
        self.total, self.extra, self.count = (
            np.where(only_a, x, np.where(only_b, y, z)) for x, y, z in zip(a, b, both, strict=True)
        )

    def values(self) -> NDArray[np.float64]:
        """(groups, steps) results, undefined where ``count`` is 0."""
        total, extra, count = self.total, self.extra, self.count
        match self.op:
            case "sum":
                return total + extra
            case "count":
                return count
            case "group":
                return np.ones_like(count)
            case "avg":
                return np.where(count < 0, total + extra, total / count + extra / count)
            case "stdvar":
                return total / count
            case "stddev":
                return np.asarray(np.sqrt(total / count))
        return total


_Arrays = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def _merged_sums(a: _Arrays, b: _Arrays) -> _Arrays:
    """Sum of two compensated sums."""
    total = a[0] + b[0]
    lost = np.where(np.abs(a[0]) >= np.abs(b[0]), (a[0] - total) + b[0], (b[0] - total) + a[0])
    return total, np.where(np.isinf(total), 0.0, a[1] + b[1] + lost), a[2] + b[2]


def _merged_means(a: _Arrays, b: _Arrays) -> _Arrays:
    """Sums where they do not overflow, else running means weighted by their counts (negative, see the kernel)."""
    total, extra, count = _merged_sums(a, b)
    n_a, n_b = np.abs(a[2]), np.abs(b[2])
    running = (a[2] < 0) | (b[2] < 0) | np.isinf(total)
    if not running.any():
        return total, extra, count
    n = n_a + n_b
    parts = [np.where(side[2] < 0, x, x / k) * (k / n) for side, k in ((a, n_a), (b, n_b)) for x in side[:2]]
    mean = parts[0] + parts[2]
    mean_extra = np.where(np.isinf(mean), 0.0, parts[1] + parts[3])
    return np.where(running, mean, total), np.where(running, mean_extra, extra), np.where(running, -n, count)


def _merged_variances(a: _Arrays, b: _Arrays) -> _Arrays:
    """Sum of squared differences and mean of two samples together (Chan, Golub, LeVeque)."""
    n = a[2] + b[2]
    delta = b[1] - a[1]
    return a[0] + b[0] + delta * delta * (a[2] * b[2] / n), a[1] + delta * (b[2] / n), n


def _grouped(ctx: QueryContext, node: Aggregation, labels: LabelTable) -> tuple[LabelTable, NDArray[np.int32]]:
    """Labels of the groups, and the group of every series."""
    table = group_table(labels, node)
    group, first = group_ids(table.ids)
    return (take(table, first) if len(table.names) else empty_table(ctx.symbols, len(first))), group


def _renamed(labels: LabelTable, group: NDArray[np.int32], drop_name: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Groups with any member whose metadata labels are to go; none when the groups have no such labels."""
    out = np.zeros(len(labels), np.bool_)
    if any(name in labels.names for name in METADATA_LABELS):
        out[group[drop_name]] = True
    return out


def fold(ctx: QueryContext, node: Aggregation, grid: Grid) -> Grid:
    """``sum``, ``avg``, ``min``, ``max``, ``count``, ``group``, ``stddev`` and ``stdvar`` of a grid."""
    labels, group = _grouped(ctx, node, grid.labels)
    steps = grid.values.shape[1]
    ctx.reserve(len(labels), steps, arrays=3)
    state = _State(node.op, len(labels), steps)
    state.add(grid.values, grid.present, group)
    ctx.release(grid)
    drop = _renamed(labels, group, grid.drop_name)
    return Grid(labels, state.values(), state.count != 0, drop).without_empty()


def fold_windows(ctx: QueryContext, node: Aggregation, call: WindowCall, span: Span) -> Grid:
    """The same of a function of a range vector, without ever holding all its samples and points.

    The rows pass in batches that fit the cache: decoded, evaluated, folded.
    """
    labels, group = _grouped(ctx, node, call.vector.labels)
    rows, steps = len(call), call.steps.count
    ctx.reserve(len(labels), steps, arrays=6)  # two states of three
    found = np.zeros(rows, np.bool_)
    batch = min(rows, call.batch_rows(BATCH_POINTS))
    call.step_counts = ctx.step_counts

    def work(begin: int, end: int) -> tuple[int, _State]:
        state = _State(node.op, len(labels), steps)
        reader = call.vector.samples.reader(batch)
        values = np.empty((batch, steps))
        present = np.empty((batch, steps), np.bool_)
        looked = 0
        for at in range(begin, end, batch):
            to = min(end, at + batch)
            out, mask = values[: to - at], present[: to - at]
            looked += call.run_timed(ctx, reader.read(at, to), to - at, out, mask)
            state.add(out, mask, group[at:to])
            np.any(mask, axis=1, out=found[at:to])
        return looked, state

    done = in_halves(ctx, call, work)
    ctx.stats.samples_total += sum(looked for looked, _ in done)
    state = done[0][1]
    for _, later in done[1:]:
        state.merge(later)
    note_counters(ctx, call.func, take(call.vector.labels, found), span)
    # a series without any point does not count as a member of its group
    drop = _renamed(labels, group, call.drop_name() & found)
    return Grid(labels, state.values(), state.count != 0, drop).without_empty()


def is_batched(call: WindowCall) -> bool:
    """Whether an aggregation of this call should go through :func:`fold_windows`."""
    return len(call) > call.batch_rows(BATCH_POINTS)


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
