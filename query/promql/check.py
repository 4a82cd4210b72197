"""Types of expressions, and what the grammar lets pass but PromQL does not mean.

Prometheus checks types after the whole text was read without a syntax error, children before parents; so do we, that
the same error comes first. The leftmost child is followed in a loop and not by recursion: queries with thousands of
terms in a row exist, nested ones do not.
"""

from __future__ import annotations

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
    VectorSelector,
)
from query.promql.functions import FUNCTIONS
from query.promql.lexer import SET_OPERATORS, ParseError
from query.promql.literals import quote

DEPTH_MAX = 256
"""Deepest tree, the terms of ``a + b + c`` included: what walks over a tree takes a few Python frames a level."""

TOO_DEEP = f"expression is more than {DEPTH_MAX} operations deep"
COMPARISONS = frozenset({"==", "!=", "<=", "<", ">=", ">"})

_SCALAR, _STRING, _VECTOR, _MATRIX = ValueType.SCALAR, ValueType.STRING, ValueType.VECTOR, ValueType.MATRIX
_DOCUMENTED = {_SCALAR: "scalar", _STRING: "string", _VECTOR: "instant vector", _MATRIX: "range vector"}
_WITH_LEFT_CHILD = (Binary, Paren, Unary, Subquery)


def type_of(expr: Expr) -> ValueType:
    """Type of the value of a checked expression."""
    while isinstance(expr, (Paren, Unary)):
        expr = expr.expr
    if isinstance(expr, Binary):
        if expr.matching is not None:
            return _VECTOR
        both = (type_of(expr.lhs), type_of(expr.rhs))
        return _SCALAR if both == (_SCALAR, _SCALAR) else _VECTOR
    if isinstance(expr, (VectorSelector, Aggregation)):
        return _VECTOR
    if isinstance(expr, (MatrixSelector, Subquery)):
        return _MATRIX
    if isinstance(expr, Call):
        return FUNCTIONS[expr.func].return_type
    return _SCALAR if isinstance(expr, NumberLiteral) else _STRING


def check(expr: Expr, text: str) -> ValueType:
    """Check ``expr``, parsed from ``text``, and return its type.

    Raises
    ------
    ParseError        the first thing wrong, in Prometheus' order
    """
    return _Check(text).node(expr, 0)


class _Check:
    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def error(self, what: str, expr: Expr) -> ParseError:
        return ParseError(what, expr.span.start, self.text)

    def node(self, expr: Expr, depth: int) -> ValueType:
        """Type of a node that stands ``depth`` levels deep."""
        parents: list[Binary | Paren | Unary | Subquery] = []
        child = expr
        while isinstance(child, _WITH_LEFT_CHILD):
            parents.append(child)
            child = child.lhs if isinstance(child, Binary) else child.expr
        level = depth + len(parents)
        value_type: ValueType
        if isinstance(child, VectorSelector):
            self.selector(child)
            value_type = _VECTOR
        elif isinstance(child, MatrixSelector):
            self.selector(child.selector)
            value_type = _MATRIX
        elif isinstance(child, NumberLiteral):
            value_type = _SCALAR
        elif isinstance(child, StringLiteral):
            value_type = _STRING
        else:
            if level >= DEPTH_MAX:
                raise self.error(TOO_DEEP, expr)
            if isinstance(child, Call):
                value_type = self.call(child, level + 1)
            else:
                self.aggregation(child, level + 1)
                value_type = _VECTOR
        while parents:
            parent = parents.pop()
            if isinstance(parent, Binary):
                value_type = self.binary(parent, value_type, depth + len(parents) + 1)
            elif isinstance(parent, Unary):
                if value_type not in (_SCALAR, _VECTOR):
                    found = quote(_DOCUMENTED[value_type])
                    what = f"unary expression only allowed on expressions of type scalar or instant vector, got {found}"
                    raise self.error(what, parent)
            elif isinstance(parent, Subquery):
                if value_type is not _VECTOR:
                    raise self.error(f"subquery is only allowed on instant vector, got {value_type} instead", parent)
                value_type = _MATRIX
        if level > DEPTH_MAX:
            raise self.error(TOO_DEEP, expr)
        return value_type

    def selector(self, vector: VectorSelector) -> None:
        """A selector has one metric name, and at least one matcher that does not match the empty value."""
        if vector.name:
            for matcher in vector.matchers[:-1]:
                if matcher.name == "__name__":
                    names = f"{quote(vector.name)} or {quote(matcher.value)}"
                    raise self.error(f"metric name must not be set twice: {names}", vector)
        elif all(matcher.matches_empty for matcher in vector.matchers):
            raise self.error("vector selector must contain at least one non-empty matcher", vector)

    def call(self, call: Call, depth: int) -> ValueType:
        """Number and types of the arguments."""
        function = FUNCTIONS[call.func]
        name, count = quote(call.func), len(call.args)
        least, most = function.args_min, function.args_max
        if count < least or (most is not None and count > most):
            bound = "" if not function.variadic else "at least " if count < least else "at most "
            limit = least if count < least else most
            raise self.error(f"expected {bound}{limit} argument(s) in call to {name}, got {count}", call)
        bypass = None
        if call.func == "info" and count > 1:
            bypass = self.label_selectors(call.args[1])
        for index, arg in enumerate(call.args):
            wanted = function.arg_types[min(index, len(function.arg_types) - 1)]
            found = _VECTOR if arg is bypass else self.node(arg, depth)
            if found is not wanted:
                what = f"expected type {_DOCUMENTED[wanted]} in call to function {name}, got {_DOCUMENTED[found]}"
                raise self.error(what, arg)
        return function.return_type

    def label_selectors(self, arg: Expr) -> Expr:
        """The second argument of info(): matchers only, which may all match the empty value."""
        if not isinstance(arg, VectorSelector):
            raise self.error("expected label selectors only", arg)
        if arg.name:
            raise self.error("expected label selectors only, got vector selector instead", arg)
        return arg

    def aggregation(self, expr: Aggregation, depth: int) -> None:
        """What is aggregated is an instant vector, a parameter a scalar or, of count_values, a string."""
        self.expect(expr.expr, _VECTOR, "aggregation expression", depth)
        if expr.param is not None:
            wanted = _STRING if expr.op == "count_values" else _SCALAR
            self.expect(expr.param, wanted, "aggregation parameter", depth)

    def expect(self, expr: Expr, wanted: ValueType, context: str, depth: int) -> None:
        found = self.node(expr, depth)
        if found is not wanted:
            raise self.error(f"expected type {_DOCUMENTED[wanted]} in {context}, got {_DOCUMENTED[found]}", expr)

    def binary(self, expr: Binary, lhs: ValueType, depth: int) -> ValueType:
        """Operands, ``bool`` and matching of a binary operation whose left side has been checked."""
        if depth > DEPTH_MAX:
            raise self.error(TOO_DEEP, expr)
        rhs = self.node(expr.rhs, depth)
        scalars = lhs is _SCALAR and rhs is _SCALAR
        matching = expr.matching
        if expr.return_bool and expr.op not in COMPARISONS:
            raise self.operator_error("bool modifier can only be used on comparison operators", expr)
        if scalars and not expr.return_bool and expr.op in COMPARISONS:
            raise self.operator_error("comparisons between scalars must use BOOL modifier", expr)
        if matching is not None and matching.on:
            for label in matching.labels:
                if label in matching.include:
                    what = f"label {quote(label)} must not occur in ON and GROUP clause at once"
                    raise self.operator_error(what, expr)
        for value_type, side in ((lhs, expr.lhs), (rhs, expr.rhs)):
            if value_type not in (_SCALAR, _VECTOR):
                raise self.error("binary expression must contain only scalar and instant vector types", side)
        vectors = lhs is _VECTOR and rhs is _VECTOR
        if not vectors and matching is not None:
            raise self.error("vector matching only allowed between instant vectors", expr)
        if expr.op in SET_OPERATORS:
            if not vectors:
                raise self.error(f"set operator {quote(expr.op)} not allowed in binary scalar expression", expr)
            if matching is not None and matching.card is not Card.MANY_TO_MANY:
                raise self.error(f"no grouping allowed for {quote(expr.op)} operation", expr)
        return _SCALAR if scalars else _VECTOR

    def operator_error(self, what: str, expr: Binary) -> ParseError:
        """An error at the operator, the first character behind the left side that is no space."""
        pos = expr.lhs.span.end
        while self.text[pos] in " \t\r\n":
            pos += 1
        return ParseError(what, pos, self.text)
