"""The PromQL parser: precedence climbing over the tokens of one query, then a pass that checks types.

It accepts the standard language of Prometheus 3. What Prometheus keeps behind feature flags is understood and then
refused by name, after everything else that may be wrong with the expression, so that the most telling error wins.
Error texts and places are Prometheus': a yacc grammar with error rules reports "the innermost construct that knows what
it expected", which is here the context of :meth:`_Parser.fail`.
"""

from __future__ import annotations

from math import isfinite
from typing import Literal

from query.promql.ast import (
    Aggregation,
    Binary,
    Call,
    Card,
    Expr,
    MatrixSelector,
    NumberLiteral,
    Paren,
    Span,
    StringLiteral,
    Subquery,
    Unary,
    ValueType,
    VectorMatching,
    VectorSelector,
)
from query.promql.check import check, type_of
from query.promql.cursor import NESTING_MAX, TOO_NESTED, UnexpectedTokenError
from query.promql.durations import DurationParser
from query.promql.functions import FUNCTIONS
from query.promql.lexer import (
    AGGREGATORS,
    AGGREGATORS_WITH_PARAM,
    DURATION,
    END_OF_INPUT,
    FILL_MODIFIERS,
    IDENTIFIER,
    METRIC_IDENTIFIER,
    MODIFIERS,
    NUMBER,
    PREPROCESSORS,
    SET_OPERATORS,
    STRING,
    ParseError,
)
from query.promql.literals import parse_duration, quote, round_half_away, unquote
from tsdb.errors import RejectedError
from tsdb.matchers import Matcher, MatchOp, compile_regex

__all__ = ["ParseError", "parse", "parse_duration_ms", "parse_selector", "type_of"]

_PRECEDENCE = {
    "or": 1,
    "and": 2,
    "unless": 2,
    "==": 3,
    "!=": 3,
    "<=": 3,
    "<": 3,
    ">=": 3,
    ">": 3,
    "</": 3,  # trim a native histogram
    ">/": 3,
    "+": 4,
    "-": 4,
    "*": 5,
    "/": 5,
    "%": 5,
    "atan2": 5,
    "^": 6,
}
_POWER = 6  # binds to the right, and stronger than a sign: -1 ^ 2 is -(1 ^ 2)
_POSTFIX = frozenset({"[", "offset", "@", "anchored", "smoothed"})
_METRIC_NAMES = (
    AGGREGATORS
    | SET_OPERATORS
    | PREPROCESSORS
    | {IDENTIFIER, METRIC_IDENTIFIER, "by", "without", "offset", "anchored", "smoothed"}
)
_LABEL_NAMES = _METRIC_NAMES | MODIFIERS | FILL_MODIFIERS | {"atan2"}
_EXPERIMENTAL_AGGREGATORS = frozenset({"limitk", "limit_ratio"})
_MATCH_OPS = {op.value: op for op in MatchOp}
_ONE_TO_ONE = VectorMatching(Card.ONE_TO_ONE, (), on=False)
_MANY_TO_MANY = VectorMatching(Card.MANY_TO_MANY, (), on=False)


def parse(text: str) -> Expr:
    """Parse and check one expression.

    Raises
    ------
    ParseError        ``str()`` is ``line:col: parse error: what``
    """
    parser = _Parser(text)
    expr = parser.whole_expression()
    check(expr, text)
    if parser.refusal is not None:
        raise parser.refusal
    return expr


def parse_selector(text: str) -> tuple[Matcher, ...]:
    """Parse an instant vector selector without modifiers, as ``match[]`` takes it; ``{}`` is not refused here.

    Raises
    ------
    ParseError
    """
    parser = _Parser(text)
    return parser.whole_selector().matchers


def parse_duration_ms(text: str) -> int:
    """Milliseconds of a duration such as ``1h30m``.

    Raises
    ------
    ParseError
    """
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ParseError(str(error), 0, text) from None


class _Parser(DurationParser):
    """The grammar, one method per construct; each leaves ``at`` behind what it has read."""

    __slots__ = ("is_vector",)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.is_vector = False  # whether the expression read last is an instant vector

    def whole_expression(self) -> Expr:
        """The expression that makes up the whole text."""
        if self.kinds[0] == END_OF_INPUT:
            raise ParseError("no expression found in input", 0, self.text)
        expr = self.expression(0)
        if self.kinds[self.at] != END_OF_INPUT:
            self.fail()
        return expr

    def whole_selector(self) -> VectorSelector:
        """The selector that makes up the whole text."""
        kind = self.kinds[0]
        if kind not in _METRIC_NAMES and kind != "{":
            self.fail()
        selector = self.selector(kind)
        if self.kinds[self.at] != END_OF_INPUT:
            self.fail()
        return selector

    def expression(self, precedence_min: int) -> Expr:
        """Operands joined by operators that bind at least as strongly as ``precedence_min``."""
        kinds = self.kinds
        start = self.starts[self.at]
        self.depth += 1
        if self.depth > NESTING_MAX:
            raise ParseError(TOO_NESTED, start, self.text)
        kind = kinds[self.at]
        lhs: Expr
        if kind in ("-", "+"):
            self.at += 1
            lhs = self.expression(_POWER)
            if type(lhs) is NumberLiteral:
                lhs = NumberLiteral(-lhs.value if kind == "-" else lhs.value, lhs.duration, Span(start, lhs.span.end))
            else:
                lhs = Unary("-" if kind == "-" else "+", lhs, Span(start, lhs.span.end))
        else:
            lhs = self.operand(kind)
            while kinds[self.at] in _POSTFIX:
                lhs = self.postfix(lhs)
        while True:
            op = kinds[self.at]
            precedence = _PRECEDENCE.get(op, -1)
            if precedence < precedence_min or precedence < 0:
                break
            self.at += 1
            lhs_vector = self.is_vector
            return_bool = kinds[self.at] == "bool"
            if return_bool:
                self.at += 1
            matching = _MANY_TO_MANY if precedence <= 2 else _ONE_TO_ONE
            if kinds[self.at] in ("on", "ignoring"):
                matching = self.matching(matching.card)
            if kinds[self.at] in FILL_MODIFIERS:
                self.fill(start)
            rhs = self.expression(precedence + (op != "^"))
            vectors = lhs_vector and self.is_vector
            # Labels between other types are kept for the check to refuse.
            kept = matching if vectors or matching.labels else None
            lhs = Binary(op, lhs, rhs, return_bool, kept, Span(start, rhs.span.end))
            self.is_vector = lhs_vector or self.is_vector
        self.depth -= 1
        return lhs

    def operand(self, kind: str) -> Expr:
        """A selector, call, aggregation, literal or expression in parentheses."""
        at = self.at
        behind = self.kinds[at + 1] if at + 1 < len(self.kinds) else END_OF_INPUT
        if kind == IDENTIFIER:
            return self.call() if behind == "(" else self.selector(kind)
        if kind in AGGREGATORS and behind in ("(", "by", "without"):
            return self.aggregation(kind)
        if kind == "(":
            start = self.starts[at]
            self.at += 1
            inner = self.expression(0)
            end = self.expect(")")
            return Paren(inner, Span(start, end))
        if kind in (NUMBER, DURATION):
            self.at += 1
            self.is_vector = False
            start = self.starts[at]
            return NumberLiteral(self.seconds_at(at), kind == DURATION, Span(start, start + len(self.texts[at])))
        if kind in PREPROCESSORS and behind == "(":
            return self.call()
        if kind in _METRIC_NAMES or kind == "{":
            return self.selector(kind)
        if kind == STRING:
            self.at += 1
            self.is_vector = False
            start = self.starts[at]
            return StringLiteral(unquote(self.texts[at]), Span(start, start + len(self.texts[at])))
        return self.fail()

    def call(self) -> Call:
        """``function(argument, ...)``."""
        at = self.at
        start = self.starts[at]
        name = self.texts[at]
        self.at += 1
        args, end = self.arguments()
        if self.kinds[at] in PREPROCESSORS:
            name = self.kinds[at]
        function = FUNCTIONS.get(name)
        if function is None:
            raise ParseError(f"unknown function with name {quote(name)}", start, self.text)
        if function.experimental:
            self.refuse(f"function {quote(name)} is not enabled", start)
        self.is_vector = function.return_type is ValueType.VECTOR
        return Call(name, args, Span(start, end))

    def arguments(self) -> tuple[tuple[Expr, ...], int]:
        """Expressions in parentheses, and the position behind the right one."""
        kinds = self.kinds
        if kinds[self.at] != "(":
            self.fail()
        self.at += 1
        if kinds[self.at] == ")":
            return (), self.expect(")")
        args = [self.expression(0)]
        while kinds[self.at] == ",":
            comma = self.at
            self.at += 1
            if kinds[self.at] in (")", ","):
                raise ParseError("trailing commas not allowed in function call args", self.starts[comma], self.text)
            args.append(self.expression(0))
        return tuple(args), self.expect(")")

    def aggregation(self, op: str) -> Aggregation:
        """``op by (labels) (args)``, the grouping before or behind the arguments or missing."""
        start = self.starts[self.at]
        self.at += 1
        grouping: tuple[str, ...] | None = None
        without = False
        try:
            if self.kinds[self.at] in ("by", "without"):
                without = self.kinds[self.at] == "without"
                grouping = self.labels()
            args, end = self.arguments()
        except UnexpectedTokenError:
            self.fail("aggregation")
        if grouping is None and self.kinds[self.at] in ("by", "without"):
            without = self.kinds[self.at] == "without"
            grouping = self.labels()
            end = self.starts[self.at - 1] + 1
        if not args:
            raise ParseError("no arguments for aggregate expression provided", start, self.text)
        wanted = 2 if op in AGGREGATORS_WITH_PARAM else 1
        if op in _EXPERIMENTAL_AGGREGATORS:
            flag = "--enable-feature=promql-experimental-functions"
            self.refuse(f"{op}() is experimental and must be enabled with {flag}", start)
        if len(args) != wanted:
            what = f"wrong number of arguments for aggregate expression provided, expected {wanted}, got {len(args)}"
            raise ParseError(what, start, self.text)
        self.is_vector = True
        return Aggregation(op, args[-1], args[0] if wanted == 2 else None, grouping or (), without, Span(start, end))

    def labels(self) -> tuple[str, ...]:
        """``keyword (label, ...)``, standing at the keyword."""
        kinds = self.kinds
        self.at += 1
        if kinds[self.at] != "(":
            self.fail("grouping opts", '"("')
        self.at += 1
        names: list[str] = []
        while kinds[self.at] != ")" or not names:
            kind = kinds[self.at]
            if kind == ")":
                break
            if kind in _LABEL_NAMES:
                names.append(self.texts[self.at])
            elif kind == STRING:
                name = unquote(self.texts[self.at])
                if not name or not _is_text(name):
                    what = f"invalid label name for grouping: {quote(name)}"
                    raise ParseError(what, self.starts[self.at], self.text)
                names.append(name)
            else:
                self.fail("grouping opts", "label")
            self.at += 1
            if kinds[self.at] == ",":
                self.at += 1
            elif kinds[self.at] != ")":
                self.fail("grouping opts", '"," or ")"')
        self.at += 1
        return tuple(names)

    def matching(self, card: Card) -> VectorMatching:
        """``on|ignoring (labels) group_left|group_right (labels)``."""
        kinds = self.kinds
        on = kinds[self.at] == "on"
        labels = self.labels()
        include: tuple[str, ...] = ()
        if kinds[self.at] in ("group_left", "group_right"):
            card = Card.MANY_TO_ONE if kinds[self.at] == "group_left" else Card.ONE_TO_MANY
            if kinds[self.at + 1] == "(":
                include = self.labels()
            else:
                self.at += 1
        return VectorMatching(card, labels, on, include)

    def fill(self, start: int) -> None:
        """``fill(number)``, ``fill_left(number)``, ``fill_right(number)``: read and refused."""
        while self.kinds[self.at] in FILL_MODIFIERS:
            self.at += 1
            self.expect("(")
            if self.kinds[self.at] in ("+", "-"):
                self.at += 1
            if self.kinds[self.at] not in (NUMBER, DURATION):
                self.fail()
            self.at += 1
            self.expect(")")
        self.refuse("binop fill modifiers are experimental and not enabled", start)

    def selector(self, kind: str) -> VectorSelector:
        """``name{matchers}``, either part optional."""
        at = self.at
        start = self.starts[at]
        name = ""
        self.is_vector = True
        if kind != "{":
            name = self.texts[at]
            self.at = at + 1
            named = Matcher("__name__", MatchOp.EQUAL, name)
            if self.kinds[at + 1] != "{":
                return VectorSelector(name, (named,), span=Span(start, start + len(name)))
        matchers = self.matchers()
        if name:
            matchers.append(named)
        return VectorSelector(name, tuple(matchers), span=Span(start, self.starts[self.at - 1] + 1))

    def matchers(self) -> list[Matcher]:
        """``{name op "value", ...}``; a string alone is the metric name."""
        kinds, texts = self.kinds, self.texts
        matchers: list[Matcher] = []
        self.at += 1
        while kinds[self.at] != "}":
            at = self.at
            kind = kinds[at]
            if kind == IDENTIFIER:
                name = texts[at]
            elif kind == STRING:
                name = unquote(texts[at])
            else:
                self.fail("label matching", 'identifier or "}"')
            self.at = at + 1
            op = _MATCH_OPS.get(kinds[at + 1])
            if op is None:
                if kind == IDENTIFIER:
                    self.fail("label matching", "label matching operator")
                matchers.append(self.matcher("__name__", MatchOp.EQUAL, name, at))
            else:
                self.at = at + 2
                if kinds[self.at] != STRING:
                    self.fail("label matching", "string")
                matchers.append(self.matcher(name, op, unquote(texts[self.at]), at))
                self.at += 1
            if kinds[self.at] == ",":
                self.at += 1
            elif kinds[self.at] != "}":
                self.fail("label matching", '"," or "}"')
        self.at += 1
        return matchers

    def matcher(self, name: str, op: MatchOp, value: str, at: int) -> Matcher:
        """A checked matcher; ``at`` is its first token."""
        if not name or not _is_text(name):
            raise ParseError(f"invalid label name: {quote(name)}", self.starts[at], self.text)
        if not _is_text(value):
            # Stored values are UTF-8, so that a match is impossible; a lone byte would break the index's text columns.
            raise ParseError(f"matcher value is not valid UTF-8: {quote(value)}", self.starts[at], self.text)
        if op in (MatchOp.REGEX, MatchOp.NOT_REGEX):
            try:
                compile_regex(value)
            except RejectedError as error:
                problem = str(error).removeprefix("Invalid regular expression: ").removesuffix(f": {value!r}")
                raise ParseError(f"error parsing regexp: {problem}", self.starts[at], self.text) from None
        return Matcher(name, op, value)

    def postfix(self, expr: Expr) -> Expr:
        """A range, subquery, offset, @ or range modifier behind ``expr``."""
        kind = self.kinds[self.at]
        if kind == "[":
            return self.brackets(expr)
        if kind == "offset":
            return self.offset(expr)
        if kind == "@":
            return self.timestamp(expr)
        self.at += 1
        self.refuse(f"{kind} modifier is experimental and not enabled", expr.span.start)
        return expr

    def brackets(self, expr: Expr) -> Expr:
        """``[range]`` or ``[range:step]``."""
        left = self.starts[self.at]
        self.at += 1
        try:
            range_ms = self.positive_duration()
        except UnexpectedTokenError:
            self.fail("subquery or range selector", "number, duration, step(), or range()")
        start = expr.span.start
        if self.kinds[self.at] == "]":
            if type(expr) is not VectorSelector:
                raise ParseError("ranges only allowed for vector selectors", left, self.text)
            if expr.offset_ms or expr.offset_spelling:
                raise ParseError("no offset modifiers allowed before range", left, self.text)
            if expr.at is not None:
                raise ParseError("no @ modifiers allowed before range", left, self.text)
            self.is_vector = False
            return MatrixSelector(expr, range_ms, Span(start, self.expect("]")))
        if self.kinds[self.at] != ":":
            self.fail("subquery or range", '":" or "]"')
        self.at += 1
        step_ms = None
        if self.kinds[self.at] != "]":
            try:
                step_ms = self.positive_duration()
            except UnexpectedTokenError:
                self.fail("subquery selector", 'number, duration, step(), range(), or "]"')
            if self.kinds[self.at] != "]":
                self.fail("subquery selector", '"]"')
        self.is_vector = False
        return Subquery(expr, range_ms, step_ms, span=Span(start, self.expect("]")))

    def offset(self, expr: Expr) -> Expr:
        """``offset duration``."""
        self.at += 1
        try:
            offset_ms, spelling = self.offset_duration()
        except UnexpectedTokenError:
            self.fail("offset", "number, duration, step(), or range()")
        target = self.target(expr, "offset modifier")
        if target.offset_ms or target.offset_spelling:
            raise ParseError("offset may not be set multiple times", expr.span.start, self.text)
        return _modified(expr, target, target.at, offset_ms, spelling, self.end())

    def timestamp(self, expr: Expr) -> Expr:
        """``@ seconds``, ``@ start()`` or ``@ end()``."""
        self.at += 1
        kinds = self.kinds
        at_ms: int | None = None
        kind = kinds[self.at]
        try:
            if kind in ("start", "end"):
                self.at += 1
                self.expect("(")
                self.expect(")")
            else:
                self.at += kind in ("+", "-")
                if kinds[self.at] not in (NUMBER, DURATION):
                    self.fail()
                seconds = self.seconds_at(self.at)
                self.at += 1
                at_ms = self.instant_ms(-seconds if kind == "-" else seconds, expr)
        except UnexpectedTokenError:
            self.fail("@", "timestamp")
        target = self.target(expr, "@ modifier")
        if target.at is not None:
            raise ParseError("@ <timestamp> may not be set multiple times", expr.span.start, self.text)
        at: int | Literal["start", "end"] = "start" if kind == "start" else "end"
        if at_ms is not None:
            at = at_ms
        return _modified(expr, target, at, target.offset_ms, target.offset_spelling, self.end())

    def instant_ms(self, seconds: float, expr: Expr) -> int:
        """Milliseconds of an @ timestamp, inside what an int64 holds."""
        if not isfinite(seconds) or abs(seconds) >= 1 << 63:
            shown = f"{seconds:.6f}" if isfinite(seconds) else {"inf": "+Inf", "-inf": "-Inf"}.get(str(seconds), "NaN")
            raise ParseError(f"timestamp out of bounds for @ modifier: {shown}", expr.span.start, self.text)
        return max(-(1 << 63), min((1 << 63) - 1, round_half_away(seconds * 1000)))

    def target(self, expr: Expr, modifier: str) -> VectorSelector | Subquery:
        """What carries offset and @ of ``expr``."""
        if isinstance(expr, MatrixSelector):
            return expr.selector
        if isinstance(expr, (VectorSelector, Subquery)):
            return expr
        places = "an instant vector selector or range vector selector or a subquery"
        raise ParseError(f"{modifier} must be preceded by {places}", expr.span.start, self.text)


def _modified(
    expr: Expr,
    target: VectorSelector | Subquery,
    at: int | Literal["start", "end"] | None,
    offset_ms: int,
    spelling: str,
    end: int,
) -> Expr:
    """``expr`` with other modifiers at its ``target``, its span reaching to ``end``."""
    span = Span(expr.span.start, end)
    if isinstance(target, Subquery):
        return Subquery(target.expr, target.range_ms, target.step_ms, offset_ms, at, span, spelling)
    selector = VectorSelector(target.name, target.matchers, offset_ms, at, span, spelling)
    return MatrixSelector(selector, expr.range_ms, span) if isinstance(expr, MatrixSelector) else selector


def _is_text(value: str) -> bool:
    """Whether ``value`` is real text: lone surrogates stand for bytes that are no UTF-8."""
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)
