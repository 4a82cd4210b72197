"""What a LogQL expression is after parsing: immutable nodes with source positions.

Times and durations are integer nanoseconds, as log lines carry them. Spans are those of :mod:`query.promql.ast`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from query.promql.ast import NOWHERE, Span, VectorMatching
from tsdb.matchers import Matcher


class FilterOp(StrEnum):
    """How a line filter looks at a line."""

    CONTAINS = "|="
    NOT_CONTAINS = "!="
    MATCHES = "|~"
    NOT_MATCHES = "!~"
    PATTERN = "|>"
    NOT_PATTERN = "!>"

    @property
    def negated(self) -> bool:
        """Whether it keeps the lines without a hit."""
        return self.value[0] == "!"


@dataclass(frozen=True, slots=True)
class LineTerm:
    """One text, regex, pattern, or with ``ip`` an address, range or network."""

    value: str
    ip: bool = False


@dataclass(frozen=True, slots=True)
class LineFilter:
    """``|= "a" or "b"``: any term hits (of a negated filter: none may)."""

    op: FilterOp
    terms: tuple[LineTerm, ...]
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Extraction:
    """``name="expression"`` of the json and logfmt parsers."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class JsonParser:
    extractions: tuple[Extraction, ...] = ()
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class LogfmtParser:
    extractions: tuple[Extraction, ...] = ()
    strict: bool = False
    keep_empty: bool = False
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class RegexpParser:
    pattern: str
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class PatternParser:
    pattern: str
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class UnpackParser:
    span: Span = field(default=NOWHERE, compare=False)


class Unit(StrEnum):
    """What the value of a comparison counts."""

    NUMBER = "number"
    DURATION = "duration"  # nanoseconds
    BYTES = "bytes"


@dataclass(frozen=True, slots=True)
class TextFilter:
    """``label = "text"`` and its kin."""

    matcher: Matcher


@dataclass(frozen=True, slots=True)
class NumberFilter:
    """``label >= 250ms``; ``value`` counts in ``unit``."""

    name: str
    op: str  # == != > >= < <=
    value: float
    unit: Unit


@dataclass(frozen=True, slots=True)
class IpFilter:
    """``label = ip("10.0.0.0/8")``."""

    name: str
    negated: bool
    addresses: str


@dataclass(frozen=True, slots=True)
class BothFilter:
    op: str  # and or
    left: LabelPredicate
    right: LabelPredicate


LabelPredicate = TextFilter | NumberFilter | IpFilter | BothFilter


@dataclass(frozen=True, slots=True)
class LabelFilter:
    predicate: LabelPredicate
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class LineFormat:
    template: str
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class LabelAssignment:
    """``target=source`` renames, ``target="template"`` computes."""

    target: str
    value: str
    rename: bool


@dataclass(frozen=True, slots=True)
class LabelFormat:
    assignments: tuple[LabelAssignment, ...]
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class DropLabels:
    """Labels by name, or only where a matcher holds."""

    items: tuple[str | Matcher, ...]
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class KeepLabels:
    items: tuple[str | Matcher, ...]
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Decolorize:
    span: Span = field(default=NOWHERE, compare=False)


Parser = JsonParser | LogfmtParser | RegexpParser | PatternParser | UnpackParser
Stage = LineFilter | Parser | LabelFilter | LineFormat | LabelFormat | DropLabels | KeepLabels | Decolorize


@dataclass(frozen=True, slots=True)
class LogQuery:
    """``{matchers} stage stage ...``: lines."""

    matchers: tuple[Matcher, ...]
    stages: tuple[Stage, ...] = ()
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Unwrap:
    """``| unwrap conversion(label) | filters``: the label whose value is the sample."""

    name: str
    conversion: str = ""  # bytes, duration, duration_seconds
    filters: tuple[LabelFilter, ...] = ()
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class LogRange:
    """Lines of the windows of a range aggregation."""

    query: LogQuery
    range_ns: int
    offset_ns: int = 0
    unwrap: Unwrap | None = None


@dataclass(frozen=True, slots=True)
class Grouping:
    names: tuple[str, ...]
    without: bool = False


@dataclass(frozen=True, slots=True)
class RangeAggregation:
    op: str
    range: LogRange
    param: float | None = None
    grouping: Grouping | None = None
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class VectorAggregation:
    """``sum``, ``topk`` and the others; ``sort`` and ``sort_desc`` too, as in Loki."""

    op: str
    expr: MetricExpr
    param: float | None = None
    grouping: Grouping | None = None
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Binary:
    op: str
    lhs: MetricExpr
    rhs: MetricExpr
    return_bool: bool
    matching: VectorMatching
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Literal:
    value: float
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Vector:
    """``vector(1)``: one series without labels."""

    value: float
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class LabelReplace:
    expr: MetricExpr
    target: str
    template: str
    source: str
    pattern: str
    span: Span = field(default=NOWHERE, compare=False)


MetricExpr = RangeAggregation | VectorAggregation | Binary | Literal | Vector | LabelReplace
Expr = LogQuery | MetricExpr
