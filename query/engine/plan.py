"""Before evaluation: what is not spoken here, what does not depend on the step, where selectors look."""

from __future__ import annotations

from collections.abc import Iterator

from query.errors import UnsupportedError
from query.promql.ast import (
    Aggregation,
    Binary,
    Call,
    Expr,
    MatrixSelector,
    Paren,
    Subquery,
    Unary,
    VectorSelector,
)

AGGREGATIONS = frozenset(
    ("sum", "avg", "min", "max", "count", "group", "stddev", "stdvar", "quantile", "topk", "bottomk", "count_values")
)

OPERATORS = frozenset(("+", "-", "*", "/", "%", "^", "atan2", "==", "!=", "<", "<=", ">", ">=", "and", "or", "unless"))

_TIME_OF_STEP = frozenset(
    (
        "days_in_month", "day_of_month", "day_of_week", "day_of_year", "hour", "minute", "month", "year",
        "predict_linear", "time", "timestamp",
    )
)  # fmt: skip
"""Functions that look at the evaluation time itself, so ``@`` in their arguments does not make them constant."""


def children(expr: Expr) -> Iterator[Expr]:
    """Direct sub-expressions."""
    match expr:
        case Call():
            yield from expr.args
        case Aggregation():
            if expr.param is not None:
                yield expr.param
            yield expr.expr
        case Binary():
            yield expr.lhs
            yield expr.rhs
        case Unary() | Paren() | Subquery():
            yield expr.expr
        case MatrixSelector():
            yield expr.selector


def refuse_unsupported(expr: Expr, text: str, functions: frozenset[str]) -> None:
    """Raise for the first construct, outermost first, that the engine does not evaluate.

    Raises
    ------
    UnsupportedError        names the construct and its place
    """
    todo = [expr]
    while todo:
        node = todo.pop()
        if isinstance(node, Call) and node.func not in functions:
            raise UnsupportedError(f"function {node.func}()", text, node.span)
        if isinstance(node, Aggregation) and node.op not in AGGREGATIONS:
            raise UnsupportedError(f"aggregation {node.op}", text, node.span)
        if isinstance(node, Binary) and node.op not in OPERATORS:
            raise UnsupportedError(f"operator {node.op}", text, node.span)
        todo.extend(reversed(list(children(node))))


LIGHT_NODES_MAX = 32
"""Nodes of an expression that may be evaluated on the spot: some 10 us each."""


def light_selectors(expr: Expr) -> tuple[VectorSelector, ...] | None:
    """Selectors of a small expression that only looks at newest samples; None for any other."""
    found = []
    seen = 0
    todo = [expr]
    while todo:
        node = todo.pop()
        seen += 1
        if seen > LIGHT_NODES_MAX or isinstance(node, MatrixSelector | Subquery):
            return None
        if isinstance(node, VectorSelector):
            if node.at is not None or node.offset_ms:
                return None
            found.append(node)
        todo.extend(children(node))
    return tuple(found)


def unwrapped(expr: Expr) -> Expr:
    """The expression inside any number of parentheses."""
    while isinstance(expr, Paren):
        expr = expr.expr
    return expr


def is_constant(expr: Expr) -> bool:
    """Whether the value is the same at every step: all its selectors are pinned by ``@``."""
    todo = [expr]
    while todo:
        node = todo.pop()
        if isinstance(node, MatrixSelector):
            node = node.selector
        if isinstance(node, VectorSelector | Subquery):
            if node.at is None:
                return False
        elif isinstance(node, Call) and node.func in _TIME_OF_STEP:
            return False
        else:
            todo.extend(children(node))
    return True


def has_selector(expr: Expr) -> bool:
    """Whether any data is read."""
    todo = [expr]
    while todo:
        node = todo.pop()
        if isinstance(node, VectorSelector):
            return True
        todo.extend(children(node))
    return False
