"""LogQL text to a checked expression tree."""

from __future__ import annotations

from query.logql.ast import (
    Binary,
    Expr,
    Grouping,
    LabelReplace,
    Literal,
    LogQuery,
    LogRange,
    MetricExpr,
    RangeAggregation,
    Stage,
    Unwrap,
    Vector,
    VectorAggregation,
)
from query.logql.lexer import IDENTIFIER, NUMBER, RANGE, LogqlError
from query.logql.printer import to_text
from query.logql.stages import StageParser
from query.promql.ast import Card, Span, VectorMatching
from query.promql.literals import format_number
from tsdb.matchers import Matcher

UNWRAPPED = frozenset(
    [
        "avg_over_time",
        "first_over_time",
        "last_over_time",
        "max_over_time",
        "min_over_time",
        "quantile_over_time",
        "rate",
        "rate_counter",
        "stddev_over_time",
        "stdvar_over_time",
        "sum_over_time",
        "absent_over_time",
    ]
)
"""Range aggregations of values."""

COUNTED = frozenset(["absent_over_time", "bytes_over_time", "bytes_rate", "count_over_time", "rate"])
"""Range aggregations of lines."""

RANGE_OPS = UNWRAPPED | COUNTED
_GROUPED = frozenset(
    [
        "avg_over_time",
        "first_over_time",
        "last_over_time",
        "max_over_time",
        "min_over_time",
        "quantile_over_time",
        "stddev_over_time",
        "stdvar_over_time",
    ]
)
_WITH_PARAM = frozenset(("approx_topk", "bottomk", "topk"))
VECTOR_OPS = frozenset(
    ["approx_topk", "avg", "bottomk", "count", "max", "min", "sort", "sort_desc", "stddev", "stdvar", "sum", "topk"]
)
_UNSUPPORTED = frozenset(("variants",))
_PRECEDENCE = {
    "or": 1,
    "and": 2,
    "unless": 2,
    "==": 3,
    "!=": 3,
    "<": 3,
    "<=": 3,
    ">": 3,
    ">=": 3,
    "+": 4,
    "-": 4,
    "*": 5,
    "/": 5,
    "%": 5,
    "^": 6,
}
_SETS = frozenset(("or", "and", "unless"))
_COMPARED = frozenset(("==", "!=", "<", "<=", ">", ">="))


class Parser(StageParser):
    """Recursive descent; binary operators by precedence climbing."""

    __slots__ = ()

    def parse(self) -> Expr:
        """The whole text."""
        expr = self.expression(0)
        if not self.at_end():
            self.unexpected()
        return expr

    def expression(self, precedence: int) -> Expr:
        """A log query, or a metric expression with operators that bind tighter than ``precedence``."""
        start = self.starts[self.at]
        left = self.operand()
        while True:
            op = self.word if self.word in _SETS else self.kind
            binds = _PRECEDENCE.get(op, 0)
            if isinstance(left, LogQuery) or binds <= precedence:
                return left
            left = self.binary(op, binds, left, start)

    def metric(self, precedence: int = 0) -> MetricExpr:
        """A metric expression."""
        start = self.starts[self.at]
        if self.kind == "{":
            self.unexpected()
        expr = self.expression(precedence)
        if isinstance(expr, LogQuery):
            self.fail("syntax error: unexpected {", start)
        return expr

    def binary(self, op: str, binds: int, left: MetricExpr, start: int) -> Binary:
        """An operator, its modifiers and right side."""
        at = self.starts[self.at]
        self.at += 1
        return_bool = self.take_word("bool")
        if return_bool and op not in _COMPARED:
            raise LogqlError(f"bool modifier can only be used on comparison operators: {op}", at, self.text)
        card = Card.MANY_TO_MANY if op in _SETS else Card.ONE_TO_ONE
        labels: tuple[str, ...] = ()
        include: tuple[str, ...] = ()
        on = False
        if self.word in ("on", "ignoring"):
            on = self.word == "on"
            self.at += 1
            labels = self.labels()
            if self.word in ("group_left", "group_right"):
                if op in _SETS:
                    self.fail(f"no grouping allowed for {op} operation", self.starts[self.at])
                card = Card.MANY_TO_ONE if self.word == "group_left" else Card.ONE_TO_MANY
                self.at += 1
                include = self.labels() if self.kind == "(" else ()
        right = self.metric(binds - 1 if op == "^" else binds)
        if op in _SETS:
            for side, leg in (("left", left), ("right", right)):
                if _is_scalar(leg):
                    what = f"unexpected literal for {side} leg of logical/set binary operation ({op}): "
                    raise LogqlError(what + to_text(leg))
        return Binary(op, left, right, return_bool, VectorMatching(card, labels, on, include), Span(start, self.end()))

    def operand(self) -> Expr:
        """What stands between operators."""
        start = self.starts[self.at]
        kind = self.kind
        if kind == "{":
            return self.log_query()
        if kind == "(":
            self.nested()
            self.at += 1
            inner = self.expression(0)
            self.expect(")")
            self.depth -= 1
            return inner
        if kind in (NUMBER, "+", "-"):
            return Literal(self.number(), Span(start, self.end()))
        word = self.word
        behind = str(self.values[min(self.at + 1, len(self.values) - 1)]).lower()
        if kind == IDENTIFIER and (self.behind() == "(" or behind in ("by", "without")):
            self.nested()
            call = self.call(word, start)
            self.depth -= 1
            return call
        return self.unexpected()

    def call(self, word: str, start: int) -> MetricExpr:
        """A function by its name."""
        if word in RANGE_OPS and self.behind() == "(":
            self.at += 1
            return self.range_aggregation(word, start)
        if word in VECTOR_OPS:
            self.at += 1
            return self.vector_aggregation(word, start)
        if word == "vector" and self.behind() == "(":
            self.at += 2
            value = self.number()
            return Vector(value, Span(start, self.expect(")")))
        if word == "label_replace" and self.behind() == "(":
            self.at += 2
            return self.label_replace(start)
        if word in _UNSUPPORTED:
            self.fail(f"unsupported: {word}()", start)
        return self.unexpected()

    def label_replace(self, start: int) -> LabelReplace:
        """``(expr, "target", "template", "source", "regex")``, behind the left parenthesis."""
        expr = self.metric()
        texts = []
        for _ in range(4):
            self.expect(",")
            texts.append(self.string())
        self.check_regex(texts[3], start)
        return LabelReplace(expr, texts[0], texts[1], texts[2], texts[3], Span(start, self.expect(")")))

    def labels(self) -> tuple[str, ...]:
        """``(name, ...)``."""
        self.expect("(")
        names = []
        while self.kind != ")":
            names.append(self.name())
            if self.kind != ",":
                break
            self.at += 1
        if self.kind != ")":
            self.unexpected(",", ")")
        self.at += 1
        return tuple(names)

    def grouping(self) -> Grouping | None:
        """``by (names)``, ``without (names)`` or nothing."""
        if self.word not in ("by", "without"):
            return None
        without = self.word == "without"
        self.at += 1
        return Grouping(self.labels(), without)

    def param(self) -> float | None:
        """A number and the comma behind it, if they are there."""
        at = self.at
        if self.kind not in (NUMBER, "+", "-"):
            return None
        value = self.number()
        if self.kind == ",":
            self.at += 1
            return value
        self.at = at
        return None

    def vector_aggregation(self, op: str, start: int) -> VectorAggregation:
        """Behind the name."""
        grouping = self.grouping()
        self.expect("(")
        param = self.param()
        expr = self.metric()
        self.expect(")")
        if grouping is None:
            grouping = self.grouping()
        if op in _WITH_PARAM:
            if param is None:
                raise LogqlError(f"parameter required for operation {op}")
            if param != int(param) or param <= 0:
                raise LogqlError(f"invalid parameter (must be greater than 0) {op}({format_number(param)}")
        elif param is not None:
            raise LogqlError(f"unsupported parameter for operation {op}({format_number(param)},")
        if op in ("approx_topk", "sort", "sort_desc") and grouping is not None:
            raise LogqlError(f"grouping not allowed for {op} aggregation")
        return VectorAggregation(op, expr, param, grouping, Span(start, self.end()))

    def range_aggregation(self, op: str, start: int) -> RangeAggregation:
        """Behind the name."""
        self.expect("(")
        param = self.param()
        log_range = self.log_range()
        self.expect(")")
        grouping = self.grouping()
        if op == "quantile_over_time" and param is None:
            raise LogqlError(f"parameter required for operation {op}")
        if op != "quantile_over_time" and param is not None:
            raise LogqlError(f"parameter {format_number(param)} not supported for operation {op}")
        if grouping is not None and op not in _GROUPED:
            raise LogqlError(f"grouping not allowed for {op} aggregation")
        if log_range.unwrap is not None and op not in UNWRAPPED:
            raise LogqlError(f"invalid aggregation {op} with unwrap")
        if log_range.unwrap is None and op not in COUNTED:
            raise LogqlError(f"invalid aggregation {op} without unwrap")
        return RangeAggregation(op, log_range, param, grouping, Span(start, self.end()))

    def log_range(self) -> LogRange:
        """A selector with stages, range, offset and unwrap, which people write in several orders and parentheses."""
        start = self.starts[self.at]
        depth = 0
        while self.take("("):
            depth += 1
        if self.kind != "{":
            self.unexpected()
        matchers = self.selector()
        stages: list[Stage] = []
        range_ns: int | None = None
        offset_ns: int | None = None
        unwrap: Unwrap | None = None
        while True:
            if self.kind == RANGE and range_ns is None:
                value = self.values[self.at]
                assert isinstance(value, int)
                range_ns = value
                self.at += 1
            elif self.word == "offset" and range_ns is not None and offset_ns is None:
                self.at += 1
                offset_ns = self.duration_ns()
            elif unwrap is None and self.at_unwrap():
                unwrap = self.unwrap()
            elif unwrap is None and self.at_stage():
                stages.append(self.stage())
            elif depth and self.kind == ")":
                self.at += 1
                depth -= 1
            else:
                break
        if range_ns is None or depth:
            self.unexpected()
        if range_ns <= 0:
            self.fail("duration must be greater than 0", start)
        query = LogQuery(matchers, tuple(stages), Span(start, self.end()))
        return LogRange(query, range_ns, offset_ns or 0, unwrap)


def _is_scalar(expr: MetricExpr) -> bool:
    """Whether an expression is a number: a literal, or an operator between numbers."""
    while isinstance(expr, Binary) and _is_scalar(expr.rhs):
        expr = expr.lhs
    return isinstance(expr, Literal)


def parse(text: str) -> Expr:
    """The expression of a query.

    Raises
    ------
    LogqlError        with Loki's words
    """
    return Parser(text).parse()


def parse_selector(text: str) -> tuple[Matcher, ...]:
    """The matchers of ``{...}`` alone, ``{}`` = everything.

    Raises
    ------
    LogqlError
    """
    parser = Parser(text)
    matchers = parser.selector(checked=False)
    if not parser.at_end():
        parser.unexpected()
    return matchers
