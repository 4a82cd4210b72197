"""Label matchers: ``= != =~ !~`` with Prometheus' rules (a missing label is the empty value, regexes are anchored)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class MatchOp(StrEnum):
    """How a matcher compares."""

    EQUAL = "="
    NOT_EQUAL = "!="
    REGEX = "=~"
    NOT_REGEX = "!~"


@dataclass(frozen=True, slots=True)
class Matcher:
    """One matcher of a selector.

    Attributes
    ----------
    name : label name, any non-empty UTF-8; ``__name__`` is the metric name
    op : MatchOp
    value : literal or RE2 expression, implicitly anchored at both ends
    """

    name: str
    op: MatchOp
    value: str
