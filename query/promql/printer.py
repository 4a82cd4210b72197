"""The canonical text of an expression, letter by letter what Prometheus' ``format_query`` and error texts print."""

from __future__ import annotations

from typing import Literal, assert_never

from query.promql.ast import (
    Aggregation,
    Binary,
    Call,
    Card,
    Expr,
    MatrixSelector,
    NumberLiteral,
    Paren,
    StringLiteral,
    Subquery,
    Unary,
    VectorMatching,
    VectorSelector,
)
from query.promql.literals import (
    format_duration,
    format_number,
    format_signed_duration,
    is_legacy_name,
    quote,
    seconds_to_ms,
)
from tsdb.matchers import Matcher, MatchOp


def to_text(expr: Expr) -> str:
    """Canonical text of ``expr``; parsing it gives an equal tree."""
    match expr:
        case NumberLiteral():
            return format_literal(expr)
        case StringLiteral():
            return quote(expr.value)
        case VectorSelector():
            return _selector(expr) + _modifiers(expr.at, expr.offset_ms, expr.offset_spelling)
        case MatrixSelector():
            vector = expr.selector
            window = f"[{format_duration(expr.range_ms)}]"
            return _selector(vector) + window + _modifiers(vector.at, vector.offset_ms, vector.offset_spelling)
        case Subquery():
            step = "" if expr.step_ms is None else format_duration(expr.step_ms)
            window = f"[{format_duration(expr.range_ms)}:{step}]"
            return to_text(expr.expr) + window + _modifiers(expr.at, expr.offset_ms, expr.offset_spelling)
        case Call():
            return f"{expr.func}({', '.join(map(to_text, expr.args))})"
        case Aggregation():
            return _aggregation(expr)
        case Binary():
            modifiers = (" bool" if expr.return_bool else "") + _matching(expr.matching)
            return f"{to_text(expr.lhs)} {expr.op}{modifiers} {to_text(expr.rhs)}"
        case Unary():
            return expr.op + to_text(expr.expr)
        case Paren():
            return f"({to_text(expr.expr)})"
        case _ as unreachable:
            assert_never(unreachable)


def format_literal(number: NumberLiteral) -> str:
    """Text of a number, as a duration where it was written as one."""
    return format_signed_duration(seconds_to_ms(number.value)) if number.duration else format_number(number.value)


def matcher_text(matcher: Matcher) -> str:
    """``name="value"``, the name quoted where it has to be."""
    name = matcher.name if is_legacy_name(matcher.name) else quote(matcher.name)
    return f"{name}{matcher.op.value}{quote(matcher.value)}"


def _selector(vector: VectorSelector) -> str:
    matchers = sorted(
        matcher_text(matcher)
        for matcher in vector.matchers
        if not (
            vector.name and matcher.name == "__name__" and matcher.op is MatchOp.EQUAL and matcher.value == vector.name
        )
    )
    return f"{vector.name}{{{','.join(matchers)}}}" if matchers else vector.name


def _modifiers(at: int | Literal["start", "end"] | None, offset_ms: int, offset_spelling: str) -> str:
    text = ""
    if isinstance(at, int):
        text = f" @ {at / 1000:.3f}"
    elif at is not None:
        text = f" @ {at}()"
    offset = offset_spelling or (format_signed_duration(offset_ms) if offset_ms else "")
    return f"{text} offset {offset}" if offset else text


def _aggregation(expr: Aggregation) -> str:
    grouping = ""
    if expr.without:
        grouping = f" without ({_labels(expr.grouping)}) "
    elif expr.grouping:
        grouping = f" by ({_labels(expr.grouping)}) "
    param = "" if expr.param is None else f"{to_text(expr.param)}, "
    return f"{expr.op}{grouping}({param}{to_text(expr.expr)})"


def _matching(matching: VectorMatching | None) -> str:
    if matching is None:
        return ""
    grouped = matching.card in (Card.MANY_TO_ONE, Card.ONE_TO_MANY)
    text = ""
    if matching.labels or matching.on or grouped:
        text = f" {'on' if matching.on else 'ignoring'} ({_labels(matching.labels)})"
    if grouped:
        side = "left" if matching.card is Card.MANY_TO_ONE else "right"
        text += f" group_{side} ({_labels(matching.include)})"
    return text


def _labels(names: tuple[str, ...]) -> str:
    return ", ".join(name if is_legacy_name(name) else quote(name) for name in names)
