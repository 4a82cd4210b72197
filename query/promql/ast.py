"""What a PromQL expression is after parsing: immutable nodes with source positions.

Times and durations are integer milliseconds. A node's ``span`` is the half-open range of character positions it was
read from; :func:`line_col` turns a position into the ``line:col`` of an error message (both from 1, as Prometheus).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from tsdb.matchers import Matcher


class ValueType(StrEnum):
    """Type of an expression's value, in the words of the HTTP API."""

    SCALAR = "scalar"
    STRING = "string"
    VECTOR = "vector"  # instant vector
    MATRIX = "matrix"  # range vector


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open range of character positions in the query text."""

    start: int
    end: int


NOWHERE = Span(0, 0)


def line_col(text: str, pos: int) -> tuple[int, int]:
    """Line and column, both counted from 1, of character ``pos`` of ``text``."""
    line = text.count("\n", 0, pos) + 1
    return line, pos - (text.rfind("\n", 0, pos) + 1) + 1


@dataclass(frozen=True, slots=True)
class NumberLiteral:
    value: float
    duration: bool = False  # was written as a duration (``5m``): printed as one
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class StringLiteral:
    value: str
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class VectorSelector:
    """``name{matchers} offset o @ at``; ``matchers`` include the one for ``__name__`` that ``name`` stands for.

    ``offset_spelling`` is how the canonical text spells an offset that is no plain duration (``-(5)``), else empty.
    """

    name: str
    matchers: tuple[Matcher, ...]
    offset_ms: int = 0
    at: int | Literal["start", "end"] | None = None
    span: Span = field(default=NOWHERE, compare=False)
    offset_spelling: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class MatrixSelector:
    selector: VectorSelector
    range_ms: int
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Subquery:
    """``expr[range:step] offset o @ at``; ``step_ms`` is None when the default evaluation interval applies."""

    expr: Expr
    range_ms: int
    step_ms: int | None
    offset_ms: int = 0
    at: int | Literal["start", "end"] | None = None
    span: Span = field(default=NOWHERE, compare=False)
    offset_spelling: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Call:
    func: str
    args: tuple[Expr, ...]
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Aggregation:
    """``op by|without (grouping) (param, expr)``; neither by nor without is ``by ()``."""

    op: str
    expr: Expr
    param: Expr | None
    grouping: tuple[str, ...]
    without: bool
    span: Span = field(default=NOWHERE, compare=False)


class Card(StrEnum):
    """Cardinality of a vector match, in Prometheus' words."""

    ONE_TO_ONE = "one-to-one"
    MANY_TO_ONE = "many-to-one"  # group_left
    ONE_TO_MANY = "one-to-many"  # group_right
    MANY_TO_MANY = "many-to-many"  # and, or, unless


@dataclass(frozen=True, slots=True)
class VectorMatching:
    card: Card
    labels: tuple[str, ...]  # of on() or ignoring()
    on: bool
    include: tuple[str, ...] = ()  # of group_left() or group_right()


@dataclass(frozen=True, slots=True)
class Binary:
    op: str  # + - * / % ^ atan2 == != < <= > >= </ >/ and or unless (</ and >/ trim native histograms)
    lhs: Expr
    rhs: Expr
    return_bool: bool = False
    matching: VectorMatching | None = None  # set when both sides are vectors
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Unary:
    op: Literal["+", "-"]
    expr: Expr
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Paren:
    expr: Expr
    span: Span = field(default=NOWHERE, compare=False)


Expr = (
    NumberLiteral
    | StringLiteral
    | VectorSelector
    | MatrixSelector
    | Subquery
    | Call
    | Aggregation
    | Binary
    | Unary
    | Paren
)
