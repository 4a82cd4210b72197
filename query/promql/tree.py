"""An expression as JSON, in the shape of Prometheus' ``/api/v1/parse_query``; its pages and Perses draw trees of it."""

from __future__ import annotations

from typing import Any, assert_never

from query.promql.ast import (
    Aggregation,
    Binary,
    Call,
    Expr,
    MatrixSelector,
    NumberLiteral,
    Paren,
    StringLiteral,
    Subquery,
    Unary,
    VectorSelector,
)
from query.promql.functions import FUNCTIONS
from query.promql.literals import format_number


def to_tree(expr: Expr) -> dict[str, Any]:
    """The tree, with the keys of experimental features as expressions of the standard language leave them."""
    match expr:
        case NumberLiteral():
            return {"type": "numberLiteral", "val": format_number(expr.value)}
        case StringLiteral():
            # JSON cannot carry the bytes that "\xff" means.
            return {
                "type": "stringLiteral",
                "val": expr.value.encode("utf-8", "surrogateescape").decode(errors="replace"),
            }
        case VectorSelector():
            return {"type": "vectorSelector", **_selector(expr)}
        case MatrixSelector():
            return {"type": "matrixSelector", **_selector(expr.selector), "range": expr.range_ms, "rangeExpr": None}
        case Subquery():
            window = {"range": expr.range_ms, "rangeExpr": None, "step": expr.step_ms or 0, "stepExpr": None}
            return {"type": "subquery", "expr": to_tree(expr.expr), **window, **_modifiers(expr)}
        case Call():
            function = FUNCTIONS[expr.func]
            signature = {
                "name": function.name,
                "argTypes": [str(t) for t in function.arg_types],
                "returnType": str(function.return_type),
                "variadic": function.variadic,
            }
            return {"type": "call", "func": signature, "args": [to_tree(arg) for arg in expr.args]}
        case Aggregation():
            return {
                "type": "aggregation",
                "op": expr.op,
                "expr": to_tree(expr.expr),
                "param": None if expr.param is None else to_tree(expr.param),
                "grouping": list(expr.grouping),
                "without": expr.without,
            }
        case Binary():
            matching = None
            if expr.matching is not None:
                matching = {
                    "card": str(expr.matching.card),
                    "labels": list(expr.matching.labels),
                    "on": expr.matching.on,
                    "include": list(expr.matching.include),
                    "fillValues": {"lhs": None, "rhs": None},
                }
            sides = {"lhs": to_tree(expr.lhs), "rhs": to_tree(expr.rhs)}
            return {"type": "binaryExpr", "op": expr.op, "bool": expr.return_bool, "matching": matching, **sides}
        case Unary():
            return {"type": "unaryExpr", "op": expr.op, "expr": to_tree(expr.expr)}
        case Paren():
            return {"type": "parenExpr", "expr": to_tree(expr.expr)}
        case _ as unreachable:
            assert_never(unreachable)


def _selector(vector: VectorSelector) -> dict[str, Any]:
    matchers = [{"name": m.name, "type": m.op.value, "value": m.value} for m in vector.matchers]
    shape = {"anchored": False, "smoothed": False}
    return {"name": vector.name, "matchers": matchers, **shape, **_modifiers(vector)}


def _modifiers(expr: VectorSelector | Subquery) -> dict[str, Any]:
    return {
        "offset": expr.offset_ms,
        "offsetExpr": None,
        "timestamp": expr.at if isinstance(expr.at, int) else None,
        "startOrEnd": expr.at if isinstance(expr.at, str) else None,
    }
