"""The canonical text of a LogQL expression: one spelling for everything that means the same."""

from __future__ import annotations

from typing import assert_never

from query.logql.ast import (
    Binary,
    BothFilter,
    Decolorize,
    DropLabels,
    Expr,
    Extraction,
    Grouping,
    IpFilter,
    JsonParser,
    KeepLabels,
    LabelFilter,
    LabelFormat,
    LabelPredicate,
    LabelReplace,
    LineFilter,
    LineFormat,
    LineTerm,
    Literal,
    LogfmtParser,
    LogQuery,
    LogRange,
    NumberFilter,
    PatternParser,
    RangeAggregation,
    RegexpParser,
    Stage,
    TextFilter,
    Unit,
    UnpackParser,
    Unwrap,
    Vector,
    VectorAggregation,
)
from query.logql.units import format_bytes, format_duration_ns, format_range_ns
from query.promql.ast import Card
from query.promql.literals import format_number, quote
from tsdb.matchers import Matcher


def to_text(expr: Expr) -> str:
    """Canonical text; parsing it gives the same expression again."""
    match expr:
        case LogQuery():
            return selector_text(expr.matchers) + stages_text(expr.stages)
        case RangeAggregation():
            param = "" if expr.param is None else f"{format_number(expr.param)}, "
            return f"{expr.op}({param}{_range(expr.range)}){_grouping(expr.grouping)}"
        case VectorAggregation():
            param = "" if expr.param is None else f"{format_number(expr.param)}, "
            grouping = _grouping(expr.grouping)
            return f"{expr.op}{grouping}{' ' if grouping else ''}({param}{to_text(expr.expr)})"
        case Binary():
            return f"({to_text(expr.lhs)} {expr.op}{_modifiers(expr)} {to_text(expr.rhs)})"
        case Literal():
            return format_number(expr.value)
        case Vector():
            return f"vector({format_number(expr.value)})"
        case LabelReplace():
            texts = ", ".join(map(quote, (expr.target, expr.template, expr.source, expr.pattern)))
            return f"label_replace({to_text(expr.expr)}, {texts})"
        case _ as unreachable:
            assert_never(unreachable)


def selector_text(matchers: tuple[Matcher, ...]) -> str:
    """``{a="b", c!="d"}``."""
    return "{" + ", ".join(map(_matcher, matchers)) + "}"


def stages_text(stages: tuple[Stage, ...]) -> str:
    """All stages, a blank before each."""
    return "".join(f" {_stage(stage)}" for stage in stages)


def _matcher(matcher: Matcher) -> str:
    return f"{matcher.name}{matcher.op.value}{quote(matcher.value)}"


def _stage(stage: Stage) -> str:
    match stage:
        case LineFilter():
            return f"{stage.op.value} " + " or ".join(map(_term, stage.terms))
        case JsonParser():
            return "| json" + _extractions(stage.extractions)
        case LogfmtParser():
            flags = (" --strict" if stage.strict else "") + (" --keep-empty" if stage.keep_empty else "")
            return f"| logfmt{flags}{_extractions(stage.extractions)}"
        case RegexpParser():
            return f"| regexp {quote(stage.pattern)}"
        case PatternParser():
            return f"| pattern {quote(stage.pattern)}"
        case UnpackParser():
            return "| unpack"
        case LabelFilter():
            return f"| {_predicate(stage.predicate)}"
        case LineFormat():
            return f"| line_format {quote(stage.template)}"
        case LabelFormat():
            made = [f"{a.target}={a.value if a.rename else quote(a.value)}" for a in stage.assignments]
            return f"| label_format {', '.join(made)}"
        case DropLabels() | KeepLabels():
            word = "drop" if isinstance(stage, DropLabels) else "keep"
            return f"| {word} " + ", ".join(i if isinstance(i, str) else _matcher(i) for i in stage.items)
        case Decolorize():
            return "| decolorize"
        case _ as unreachable:
            assert_never(unreachable)


def _term(term: LineTerm) -> str:
    return f"ip({quote(term.value)})" if term.ip else quote(term.value)


def _extractions(extractions: tuple[Extraction, ...]) -> str:
    return (" " if extractions else "") + ", ".join(f"{e.name}={quote(e.path)}" for e in extractions)


def _predicate(predicate: LabelPredicate) -> str:
    match predicate:
        case TextFilter():
            return _matcher(predicate.matcher)
        case NumberFilter():
            if predicate.unit is Unit.DURATION:
                value = format_duration_ns(int(predicate.value))
            elif predicate.unit is Unit.BYTES:
                value = format_bytes(int(predicate.value))
            else:
                value = format_number(predicate.value)
            return f"{predicate.name}{predicate.op}{value}"
        case IpFilter():
            return f"{predicate.name}{'!=' if predicate.negated else '='}ip({quote(predicate.addresses)})"
        case BothFilter():
            return f"({_predicate(predicate.left)} {predicate.op} {_predicate(predicate.right)})"
        case _ as unreachable:
            assert_never(unreachable)


def _unwrap(unwrap: Unwrap | None) -> str:
    if unwrap is None:
        return ""
    label = f"{unwrap.conversion}({unwrap.name})" if unwrap.conversion else unwrap.name
    return f" | unwrap {label}" + stages_text(unwrap.filters)


def _range(log_range: LogRange) -> str:
    offset = f" offset {format_duration_ns(log_range.offset_ns)}" if log_range.offset_ns else ""
    return f"{to_text(log_range.query)}{_unwrap(log_range.unwrap)} [{format_range_ns(log_range.range_ns)}]{offset}"


def _grouping(grouping: Grouping | None) -> str:
    if grouping is None:
        return ""
    return f" {'without' if grouping.without else 'by'} ({', '.join(grouping.names)})"


def _modifiers(expr: Binary) -> str:
    text = " bool" if expr.return_bool else ""
    matching = expr.matching
    grouped = matching.card in (Card.MANY_TO_ONE, Card.ONE_TO_MANY)
    if matching.labels or matching.on or grouped:
        text += f" {'on' if matching.on else 'ignoring'} ({', '.join(matching.labels)})"
    if grouped:
        side = "left" if matching.card is Card.MANY_TO_ONE else "right"
        text += f" group_{side} ({', '.join(matching.include)})"
    return text
