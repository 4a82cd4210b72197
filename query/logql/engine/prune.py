"""What the label filters of a pipeline demand of every line that passes, for the store to leave blocks out.

Only what holds whatever the lines are. A filter on a number lets lines with an error pass, so it counts only while
none can have got one: behind nothing but one parser that the store knows to succeed, and before any other number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from query.logql.ast import (
    BothFilter,
    JsonParser,
    LabelFilter,
    LabelPredicate,
    LineFilter,
    LogfmtParser,
    NumberFilter,
    Stage,
    TextFilter,
    Unit,
)
from query.logql.engine.batch import EXTRACTED, label_name
from tsdb.logs.frame import DETECTED_LEVEL, Format
from tsdb.logs.pruning import Clause, LabelTest

TEXTS_MAX = 64
"""Most alternatives of a filter that are looked up: each is looked for in the filter of every group."""


def clauses_of(stages: Sequence[Stage]) -> list[Clause]:
    """Clauses of which each has to hold for a line to pass all stages."""
    found: list[Clause] = []
    format_: Format | None = None
    numbers_before = False
    for stage in stages:
        if isinstance(stage, LineFilter):
            continue
        if isinstance(stage, JsonParser) and not stage.extractions and format_ is None:
            format_ = Format.JSON
        elif isinstance(stage, LogfmtParser) and stage == LogfmtParser() and format_ is None:
            format_ = Format.LOGFMT
        elif isinstance(stage, LabelFilter):
            found += _clauses(stage.predicate, format_, numbers=not numbers_before)
            numbers_before |= _has_numbers(stage.predicate)
        else:
            break
    return found


def _has_numbers(predicate: LabelPredicate) -> bool:
    match predicate:
        case BothFilter():
            return _has_numbers(predicate.left) or _has_numbers(predicate.right)
        case _:
            return isinstance(predicate, NumberFilter)


def _clauses(predicate: LabelPredicate, format_: Format | None, *, numbers: bool) -> list[Clause]:
    match predicate:
        case TextFilter():
            matcher = predicate.matcher
            texts = None if matcher.negated or matcher.matches_empty else matcher.literals
            if texts is None or len(texts) > TEXTS_MAX or not all(map(str.isascii, texts)):
                return []  # bytes that are no UTF-8 come out as U+FFFD
            return _one(matcher.name, format_, texts=tuple(map(str.encode, texts)))
        case NumberFilter():
            if not numbers or predicate.unit is not Unit.NUMBER or predicate.op == "!=":
                return []
            return _one(predicate.name, format_, op=predicate.op, value=predicate.value)
        case BothFilter():
            left = _clauses(predicate.left, format_, numbers=numbers)
            right = _clauses(
                predicate.right, format_, numbers=numbers and (predicate.op == "or" or not _has_numbers(predicate.left))
            )
            if predicate.op == "or":
                return [left[0] + right[0]] if left and right else []
            return left + right
        case _:
            return []


def _one(
    name: str, format_: Format | None, *, texts: tuple[bytes, ...] | None = None, op: str = "", value: float = 0.0
) -> list[Clause]:
    if name.startswith("__") or name.endswith(EXTRACTED) or name == DETECTED_LEVEL:
        return []  # these are made of more than the field or key of that name
    is_name_of: Callable[[str], bool] = partial(_becomes, name)
    return [(LabelTest(name, is_name_of, format_, texts, op, value),)]


def _becomes(label: str, name: str) -> bool:
    return label_name(name) == label
