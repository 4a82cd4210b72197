"""Binary operators: arithmetic, comparison and sets, between scalars and vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from query.engine.context import QueryContext
from query.engine.grid import (
    METADATA_LABELS,
    NAME,
    Grid,
    Scalar,
    by_group,
    column,
    columns,
    describe,
    drop_labels,
    group_ids,
    keep_labels,
    set_label,
    stack,
    take,
)
from query.errors import ExecutionError
from query.kernels.group import COUNT, accumulate
from query.promql.ast import Binary, Card, VectorMatching
from tsdb.frame import LabelTable

Operation = Callable[[Any, Any], Any]

ARITHMETIC: dict[str, Operation] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.fmod,
    "^": np.power,
    "atan2": np.arctan2,
}
COMPARISONS: dict[str, Operation] = {
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}
SETS = frozenset(("and", "or", "unless"))


def scalars(node: Binary, lhs: Scalar, rhs: Scalar) -> Scalar:
    """Scalar with scalar; a comparison is always 0 or 1."""
    operation = ARITHMETIC.get(node.op) or COMPARISONS[node.op]
    return Scalar(np.asarray(operation(lhs.values, rhs.values), np.float64))


def vector_scalar(node: Binary, vector: Grid, scalar: Scalar, swapped: bool) -> Grid:
    """Vector with scalar; ``swapped`` when the scalar is on the left. A comparison keeps the vector's values."""
    a, b = (scalar.values, vector.values) if swapped else (vector.values, scalar.values)
    if node.op in ARITHMETIC:
        return vector.derived(ARITHMETIC[node.op](a, b))
    true = COMPARISONS[node.op](a, b)
    if node.return_bool:
        return vector.derived(true.astype(np.float64))
    return Grid(vector.labels, vector.values, vector.present & true, vector.drop_name).without_empty()


def _match_names(matching: VectorMatching, lhs: LabelTable, rhs: LabelTable) -> list[str]:
    """Labels that must be equal on both sides."""
    if matching.on:
        return list(matching.labels)
    out = {*matching.labels, NAME}
    return [name for name in dict.fromkeys((*lhs.names, *rhs.names)) if name not in out]


def _match_groups(
    matching: VectorMatching, lhs: LabelTable, rhs: LabelTable
) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
    """Number of the match group of every row of both sides, and how many groups there are."""
    names = _match_names(matching, lhs, rhs)
    keys = np.concatenate((columns(lhs, names), columns(rhs, names)))
    group, first = group_ids(keys)
    return group[: len(lhs)], group[len(lhs) :], len(first)


def _any_present(grid: Grid, group: NDArray[np.int32], groups: int) -> NDArray[np.bool_]:
    """(groups, steps): whether any series of the group has a point."""
    count = np.zeros((groups, grid.values.shape[1]))
    accumulate(grid.values, grid.present, group, COUNT, count, count, count)  # COUNT has no other state
    return count > 0


def sets(ctx: QueryContext, node: Binary, lhs: Grid, rhs: Grid) -> Grid:
    """``and``, ``or`` and ``unless``."""
    assert node.matching is not None
    left, right, groups = _match_groups(node.matching, lhs.labels, rhs.labels)
    ctx.reserve(len(lhs) + len(rhs) * (node.op == "or"), lhs.values.shape[1])  # at most
    if node.op == "or":
        new = rhs.present & ~_any_present(lhs, left, groups)[right]
        rest = Grid(rhs.labels, rhs.values, new, rhs.drop_name).without_empty()
        if not len(rest):
            return lhs
        if not len(lhs):
            return rest
        both = Grid(
            stack((lhs.labels, rest.labels)),
            np.concatenate((lhs.values, rest.values)),
            np.concatenate((lhs.present, rest.present)),
            np.concatenate((lhs.drop_name, rest.drop_name)),
        )
        return merge_alike(both)
    there = _any_present(rhs, right, groups)[left]
    present = lhs.present & (there if node.op == "and" else ~there)
    return Grid(lhs.labels, lhs.values, present, lhs.drop_name).without_empty()


def merge_alike(grid: Grid) -> Grid:
    """Join series that have come to have the same labels.

    Raises
    ------
    ExecutionError        two of them have a point at the same step
    """
    group, first = group_ids(grid.labels.ids)
    if len(first) == len(grid):
        return grid
    values = grid.values[first].copy()
    present = grid.present[first].copy()
    rest = np.ones(len(grid), np.bool_)
    rest[first] = False
    for row in np.flatnonzero(rest).tolist():
        at = group[row]
        mask = grid.present[row]
        if (present[at] & mask).any():
            raise ExecutionError("vector cannot contain metrics with the same labelset")
        values[at, mask] = grid.values[row, mask]
        present[at] |= mask
    return Grid(take(grid.labels, first), values, present, grid.drop_name[first])


def _check_one_side(matching: VectorMatching, one: Grid, group: NDArray[np.int32], many: Grid, groups: int) -> None:
    """Refuse two series of the one side in one match group at the same step."""
    sizes = np.bincount(group, minlength=groups)
    if sizes.max(initial=0) < 2:
        return
    busy = many.present.any(axis=0)  # without anything to match there is no match
    order, bounds = by_group(group, groups)
    for g in np.flatnonzero(sizes > 1).tolist():
        rows = order[bounds[g] : bounds[g + 1]]
        together = one.present[rows].sum(axis=0)
        if not (busy & (together > 1)).any():
            continue
        step = int(np.flatnonzero(busy & (together > 1))[0])
        first, second = rows[one.present[rows, step]][:2].tolist()
        names = matching.labels if matching.on else _match_names(matching, one.labels, one.labels)
        side = "left" if matching.card is Card.ONE_TO_MANY else "right"
        raise ExecutionError(
            f"found duplicate series for the match group {describe(one.labels, first, names)} on the {side} hand-side "
            f"of the operation: [{describe(one.labels, second)}, {describe(one.labels, first)}]"
            ";many-to-many matching not allowed: matching labels must be unique on one side"
        )


def _pairs(
    ctx: QueryContext, steps: int, many: NDArray[np.int32], one: NDArray[np.int32], groups: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """All (row of the many side, row of the one side) in one match group, ordered by the many side."""
    order, bounds = by_group(one, groups)
    counts = np.diff(bounds)[many]
    ctx.reserve(int(counts.sum()), steps)
    left = np.repeat(np.arange(len(many)), counts)
    offset = np.arange(len(left)) - np.repeat(np.cumsum(counts) - counts, counts)
    return left, order[bounds[many[left]] + offset]


def vectors(ctx: QueryContext, node: Binary, lhs: Grid, rhs: Grid) -> Grid:
    """Vector with vector: arithmetic and comparison."""
    matching = node.matching
    assert matching is not None
    swapped = matching.card is Card.ONE_TO_MANY
    many, one = (rhs, lhs) if swapped else (lhs, rhs)
    many_group, one_group, groups = _match_groups(matching, many.labels, one.labels)
    _check_one_side(matching, one, one_group, many, groups)
    m, o = _pairs(ctx, many.values.shape[1], many_group, one_group, groups)
    present = many.present[m] & one.present[o]
    many_values, one_values = many.values[m], one.values[o]
    a, b = (one_values, many_values) if swapped else (many_values, one_values)
    if matching.card is Card.ONE_TO_ONE:
        _check_one_to_one(present, many_group[m])
    drop = many.drop_name[m]
    labels = take(many.labels, m)
    matched = present
    if node.op in ARITHMETIC:
        values = ARITHMETIC[node.op](a, b)
        labels = drop_labels(labels, METADATA_LABELS)
        drop = np.zeros(len(m), np.bool_)
    else:
        true = COMPARISONS[node.op](a, b)
        if node.return_bool:
            values = true.astype(np.float64)
            drop = np.ones(len(m), np.bool_)
        else:
            values = a
            present = present & true
    labels = _result_labels(matching, labels, one.labels, o)
    if matching.card is not Card.ONE_TO_ONE:
        _check_unique(labels, matched, many_group[m])
    return merge_alike(Grid(labels, values, present, drop).without_empty())


def _check_one_to_one(present: NDArray[np.bool_], group: NDArray[np.int32]) -> None:
    """Refuse two matches in one group at the same step."""
    if len(group) == 0 or np.bincount(group).max() < 2:
        return
    count = np.zeros((int(group.max()) + 1, present.shape[1]))
    np.add.at(count, group, present)
    if (count > 1).any():
        raise ExecutionError(
            "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)"
        )


def _check_unique(labels: LabelTable, present: NDArray[np.bool_], group: NDArray[np.int32]) -> None:
    """Refuse two results with the same labels in one match group at the same step."""
    keys = np.concatenate((labels.ids, group[:, None]), axis=1)
    same, first = group_ids(keys)
    if len(first) == len(keys):
        return
    count = np.zeros((len(first), present.shape[1]))
    np.add.at(count, same, present)
    if (count > 1).any():
        raise ExecutionError("multiple matches for labels: grouping labels must ensure unique matches")


def _result_labels(
    matching: VectorMatching, many: LabelTable, one: LabelTable, one_rows: NDArray[np.intp]
) -> LabelTable:
    """Labels of the results: of the many side, with the included ones from the one side."""
    if matching.card is Card.ONE_TO_ONE:
        return keep_labels(many, matching.labels) if matching.on else drop_labels(many, matching.labels)
    for name in matching.include:
        many = set_label(many, name, column(one, name)[one_rows])
    return many
