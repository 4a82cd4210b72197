"""``query_exemplars``: which selectors an expression holds, and how exemplars are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite
from typing import Any

import orjson

from query.promql.ast import Aggregation, Binary, Call, Expr, MatrixSelector, Paren, Subquery, Unary, VectorSelector
from query.promql.literals import format_number
from tsdb.matchers import Matcher


@dataclass(frozen=True, slots=True)
class SeriesExemplars:
    """Exemplars of one series.

    Attributes
    ----------
    labels : of the series
    exemplars : (labels, value, milliseconds) each, ascending in time
    """

    labels: Mapping[str, str]
    exemplars: Sequence[tuple[Mapping[str, str], float, int]]


def selectors_of(expr: Expr) -> list[tuple[Matcher, ...]]:
    """Matchers of every selector in an expression, each once, in the order written."""
    found: dict[tuple[Matcher, ...], None] = {}
    todo: list[Expr | None] = [expr]
    while todo:
        node = todo.pop()
        if isinstance(node, VectorSelector):
            found[node.matchers] = None
        elif isinstance(node, MatrixSelector):
            found[node.selector.matchers] = None
        elif isinstance(node, Subquery | Unary | Paren):
            todo.append(node.expr)
        elif isinstance(node, Binary):
            todo += [node.rhs, node.lhs]
        elif isinstance(node, Call):
            todo += reversed(node.args)
        elif isinstance(node, Aggregation):
            todo += [node.expr, node.param]
    return list(found)


def exemplar_data(series: Iterable[SeriesExemplars]) -> list[dict[str, Any]]:
    """What the answer holds as ``data``."""
    return [
        {
            "seriesLabels": dict(one.labels),
            "exemplars": [
                {"labels": dict(labels), "value": value_text(value), "timestamp": orjson.Fragment(time_text(ts_ms))}
                for labels, value, ts_ms in one.exemplars
            ],
        }
        for one in series
    ]


def value_text(value: float) -> str:
    """A value as Prometheus writes it: an exponent only below 1e-6 and from 1e21 on."""
    if not isfinite(value) or value == 0 or 1e-6 <= abs(value) < 1e21:
        return format_number(value)
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    text = "".join(map(str, digits))
    power = len(text) - 1 + int(exponent)
    return f"{'-' if sign else ''}{text[0]}{'.' + text[1:] if text[1:] else ''}e{power:+03d}"


def time_text(ts_ms: int) -> bytes:
    """Seconds: an integer, or with exactly three decimals."""
    seconds, rest = divmod(abs(ts_ms), 1000)
    return f"{'-' if ts_ms < 0 else ''}{seconds}{f'.{rest:03d}' if rest else ''}".encode()
