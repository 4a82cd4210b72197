"""Which labels a metric query looks at: parsers make no others."""

from __future__ import annotations

from query.logql.ast import (
    BothFilter,
    DropLabels,
    Grouping,
    IpFilter,
    JsonParser,
    KeepLabels,
    LabelFilter,
    LabelFormat,
    LabelPredicate,
    LineFormat,
    LogfmtParser,
    NumberFilter,
    PatternParser,
    RegexpParser,
    Stage,
    TextFilter,
    UnpackParser,
    Unwrap,
)
from query.logql.engine.batch import ERROR, ERROR_DETAILS
from query.logql.engine.stages import template_fields
from tsdb.matchers import Matcher

_PARSERS = (JsonParser, LogfmtParser, PatternParser, RegexpParser, UnpackParser)


def predicate_labels(predicate: LabelPredicate) -> set[str]:
    """Labels that a filter compares."""
    match predicate:
        case TextFilter():
            return {predicate.matcher.name}
        case NumberFilter() | IpFilter():
            return {predicate.name}
        case BothFilter():
            return predicate_labels(predicate.left) | predicate_labels(predicate.right)


def wanted_labels(stages: tuple[Stage, ...], unwrap: Unwrap | None, grouping: Grouping | None) -> frozenset[str] | None:
    """Labels that the stages, the unwrap or the series look at; None = all."""
    if grouping is None or grouping.without:
        return None
    found = {ERROR, ERROR_DETAILS, *grouping.names}
    if unwrap is not None:
        found.add(unwrap.name)
        for later in unwrap.filters:
            found |= predicate_labels(later.predicate)
    for k, stage in enumerate(stages):
        if isinstance(stage, LabelFilter):
            found |= predicate_labels(stage.predicate)
        elif isinstance(stage, LineFormat):
            fields = template_fields(stage.template)
            if fields is None:
                return None
            found |= fields
        elif isinstance(stage, LabelFormat):
            if any(isinstance(later, _PARSERS) for later in stages[k + 1 :]):
                found |= {assignment.target for assignment in stage.assignments}  # it decides how a field is called
            for assignment in stage.assignments:
                fields = frozenset((assignment.value,)) if assignment.rename else template_fields(assignment.value)
                if fields is None:
                    return None
                found |= fields
        elif isinstance(stage, DropLabels | KeepLabels):
            found |= {item.name for item in stage.items if isinstance(item, Matcher)}
    return frozenset(found)
