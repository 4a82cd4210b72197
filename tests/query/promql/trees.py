"""Expressions for tests: a strategy of well-typed trees."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

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
    ValueType,
    VectorMatching,
    VectorSelector,
)
from query.promql.functions import FUNCTIONS
from query.promql.lexer import AGGREGATORS, AGGREGATORS_WITH_PARAM
from query.promql.literals import format_number
from query.promql.printer import matcher_text
from tsdb.matchers import Matcher, MatchOp

PRECEDENCE = {"or": 1, "and": 2, "unless": 2, "==": 3, ">": 3, "+": 4, "-": 4, "*": 5, "atan2": 5, "^": 6}

_texts = st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"]), max_size=6)
_metric_names = st.sampled_from(
    ["up", "http_requests:rate5m", "sum", "by", "offset", "and", "start", "step", "anchored", "limitk", "fill", "_x"]
)
_label_names = st.sampled_from(["job", "le", "on", "by", "sum", "bool", "__x", "atan2"]) | _texts.filter(
    # Prometheus prints these bare and reads them as numbers
    lambda text: text and text.lower() not in ("inf", "nan")
)
_durations_ms = st.integers(1, 10**12) | st.sampled_from([1, 1000, 60_000, 86_400_000, 31_536_000_000])
_offsets_ms = st.just(0) | _durations_ms | _durations_ms.map(lambda ms: -ms)
_ats = st.none() | st.integers(-(10**13), 10**13) | st.sampled_from(["start", "end"])
_matchers = st.builds(Matcher, _label_names.filter(lambda n: n != "__name__"), st.sampled_from(MatchOp), _texts).filter(
    lambda m: m.op in (MatchOp.EQUAL, MatchOp.NOT_EQUAL)
) | st.builds(
    Matcher,
    _label_names,
    st.sampled_from([MatchOp.REGEX, MatchOp.NOT_REGEX]),
    st.sampled_from([".*", "a|b", "5..", "a.+"]),
)


@st.composite
def selectors(draw: st.DrawFn, *, modified: bool = True) -> VectorSelector:
    """Instant vector selectors; unmodified ones may stand before a range."""
    name = draw(_metric_names | st.just(""))
    matchers = draw(st.lists(_matchers.filter(lambda m: m.name != "__name__"), max_size=3))
    if not name:
        matchers.insert(0, Matcher("__name__", MatchOp.EQUAL, draw(_texts.filter(bool))))
    else:
        matchers.append(Matcher("__name__", MatchOp.EQUAL, name))
    # The canonical text sorts matchers, so that only sorted ones come back in the same order.
    explicit = matchers[:-1] if name else matchers
    explicit.sort(key=matcher_text)
    matchers = explicit + matchers[len(explicit) :]
    if not modified:
        return VectorSelector(name, tuple(matchers))
    return VectorSelector(name, tuple(matchers), draw(_offsets_ms), draw(_ats))


_numbers = st.floats(allow_nan=False).map(NumberLiteral) | _offsets_ms.map(
    lambda ms: NumberLiteral(ms / 1000, duration=True)
)


def _operand(expr: Expr, precedence: int, *, left: bool) -> Expr:
    """``expr`` in parentheses where its text would otherwise be read another way."""
    if isinstance(expr, Binary):
        own = PRECEDENCE[expr.op]
        # "^" binds to the right, everything else to the left.
        bound = own > precedence or (own == precedence and left != (expr.op == "^"))
        return expr if bound else Paren(expr)
    if isinstance(expr, Unary) or (isinstance(expr, NumberLiteral) and format_number(expr.value)[0] in "+-"):
        return Paren(expr)
    return expr


@st.composite
def _matchings(draw: st.DrawFn, op: str) -> VectorMatching:
    labels = tuple(draw(st.lists(st.sampled_from(["job", "a b", "le"]), max_size=2)))
    on = draw(st.booleans())
    if PRECEDENCE[op] <= 2:
        return VectorMatching(Card.MANY_TO_MANY, labels, on)
    card = draw(st.sampled_from([Card.ONE_TO_ONE, Card.MANY_TO_ONE, Card.ONE_TO_MANY]))
    include = () if card is Card.ONE_TO_ONE else tuple(draw(st.lists(st.sampled_from(["x", "ü"]), max_size=2)))
    return VectorMatching(card, labels, on, include)


def expressions(value_type: ValueType, depth: int = 3) -> st.SearchStrategy[Any]:
    """Well-typed expressions of the standard language, in parentheses where needed."""
    scalar, vector = ValueType.SCALAR, ValueType.VECTOR
    if value_type is ValueType.STRING:
        return st.builds(StringLiteral, _texts)
    leaf: st.SearchStrategy[Any] = (
        _numbers
        if value_type is scalar
        else selectors()
        if value_type is vector
        else st.builds(MatrixSelector, selectors(), _durations_ms)
    )
    if depth == 0:
        return leaf
    if value_type is ValueType.MATRIX:
        inner = expressions(vector, depth - 1).map(lambda e: Paren(e) if isinstance(e, (Binary, Unary)) else e)
        return leaf | st.builds(Subquery, inner, _durations_ms, st.none() | _durations_ms, _offsets_ms, _ats)
    same = expressions(value_type, depth - 1)
    calls = st.sampled_from(
        [f for f in FUNCTIONS.values() if f.return_type is value_type and not f.experimental]
    ).flatmap(lambda f: st.builds(Call, st.just(f.name), st.tuples(*(expressions(t, depth - 1) for t in f.arg_types))))
    unary = st.builds(
        Unary,
        st.sampled_from(["+", "-"]),
        same.map(lambda e: Paren(e) if isinstance(e, (Binary, NumberLiteral)) else e),
    )
    options = [leaf, st.builds(Paren, same), unary, calls, _binaries(value_type, depth - 1)]
    if value_type is vector:
        options.append(_aggregations(depth - 1))
    return st.one_of(options)


@st.composite
def _aggregations(draw: st.DrawFn, depth: int) -> Aggregation:
    op = draw(st.sampled_from(sorted(AGGREGATORS - {"limitk", "limit_ratio"})))
    param = None
    if op in AGGREGATORS_WITH_PARAM:
        param = draw(expressions(ValueType.STRING if op == "count_values" else ValueType.SCALAR, depth))
    labels = tuple(draw(st.lists(_label_names, max_size=2)))
    return Aggregation(op, draw(expressions(ValueType.VECTOR, depth)), param, labels, draw(st.booleans()))


@st.composite
def _binaries(draw: st.DrawFn, value_type: ValueType, depth: int) -> Binary:
    scalar, vector = ValueType.SCALAR, ValueType.VECTOR
    op = draw(st.sampled_from(sorted(PRECEDENCE)))
    types = (scalar, scalar)
    if value_type is vector:
        pairs = [(vector, vector)] + ([(vector, scalar), (scalar, vector)] if PRECEDENCE[op] > 2 else [])
        types = draw(st.sampled_from(pairs))
    elif PRECEDENCE[op] <= 2:
        op = "+"
    lhs = _operand(draw(expressions(types[0], depth)), PRECEDENCE[op], left=True)
    rhs = _operand(draw(expressions(types[1], depth)), PRECEDENCE[op], left=False)
    return_bool = PRECEDENCE[op] == 3 and (value_type is scalar or draw(st.booleans()))
    return Binary(op, lhs, rhs, return_bool, draw(_matchings(op)) if types == (vector, vector) else None)
