"""Plain definitions of what tsdb.index does with arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tsdb.errors import Reason
from tsdb.limits import SeriesLimits
from tsdb.matchers import Matcher, MatchOp


def canonicalise(labels: Sequence[tuple[bytes, bytes]], limits: SeriesLimits) -> bytes | Reason:
    """Canonical bytes of one series as it was sent, or why it is refused."""
    kept: list[tuple[bytes, bytes]] = []
    for name, value in labels:
        if not name:
            return Reason.EMPTY_LABEL_NAME
        if len(name) > limits.label_name_bytes_max:
            return Reason.LABEL_NAME_TOO_LONG
        if len(value) > limits.label_value_bytes_max:
            return Reason.LABEL_VALUE_TOO_LONG
        try:
            name.decode(), value.decode()
        except UnicodeDecodeError:
            return Reason.INVALID_UTF8
        if value:
            kept.append((name, value))
            if len(kept) > limits.labels_max:
                return Reason.TOO_MANY_LABELS
            if sum(len(n) + len(v) for n, v in kept) > limits.series_bytes_max:
                return Reason.SERIES_TOO_LONG
    if not kept:
        return Reason.NO_LABELS
    kept.sort()
    names = [name for name, _ in kept]
    if len(set(names)) < len(names):
        return Reason.DUPLICATE_LABEL
    if b"__name__" not in names:
        return Reason.NO_METRIC_NAME
    return b"".join(name + b"\xff" + value + b"\xff" for name, value in kept)


def matches(matcher: Matcher, labels: Mapping[str, str]) -> bool:
    """Whether a series satisfies a matcher (its regex must mean the same in Python's dialect)."""
    value = labels.get(matcher.name, "")
    if matcher.op in (MatchOp.EQUAL, MatchOp.NOT_EQUAL):
        return (value == matcher.value) == (matcher.op is MatchOp.EQUAL)
    found = re.fullmatch(matcher.value, value, re.DOTALL) is not None
    return found == (matcher.op is MatchOp.REGEX)


def find(series: Sequence[Mapping[str, str]], matchers: Sequence[Matcher]) -> list[int]:
    """Places of the series that satisfy every matcher."""
    return [i for i, labels in enumerate(series) if all(matches(m, labels) for m in matchers)]
