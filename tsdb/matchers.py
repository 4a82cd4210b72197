"""Label matchers: ``= != =~ !~`` with Prometheus' rules (a missing label is the empty value, regexes are anchored)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tsdb.errors import Reason, RejectedError

_META = frozenset(".^$*+?()[]{}|\\")


class MatchOp(StrEnum):
    """How a matcher compares."""

    EQUAL = "="
    NOT_EQUAL = "!="
    REGEX = "=~"
    NOT_REGEX = "!~"


class Shape(Enum):
    """What a regex amounts to; all but ANY need no regex engine."""

    LITERALS = "literals"  # a|b|c
    EVERYTHING = ".*"
    NOT_EMPTY = ".+"
    PREFIX = "text.*"
    SUFFIX = ".*text"
    INFIX = ".*text.*"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Regex:
    """A checked regex.

    Attributes
    ----------
    shape : Shape
    texts : the literals of LITERALS, the one text of PREFIX, SUFFIX and INFIX
    anchored : the RE2 expression as it is run
    matches_empty : whether it matches ``""``, hence series without the label
    """

    shape: Shape
    texts: tuple[str, ...]
    anchored: str
    matches_empty: bool

    def mask(self, values: pa.Array) -> NDArray[np.bool_]:
        """Which of the (n,) strings it matches, (n,) bool."""
        if self.shape is Shape.LITERALS:
            found = pc.is_in(values, value_set=pa.array(self.texts, values.type))
        elif self.shape is Shape.EVERYTHING:
            return np.ones(len(values), np.bool_)
        elif self.shape is Shape.NOT_EMPTY:
            found = pc.not_equal(values, pa.scalar("", values.type))
        elif self.shape is Shape.PREFIX:
            found = pc.starts_with(values, self.texts[0])
        elif self.shape is Shape.SUFFIX:
            found = pc.ends_with(values, self.texts[0])
        elif self.shape is Shape.INFIX:
            found = pc.match_substring(values, self.texts[0])
        else:
            found = pc.match_substring_regex(values, self.anchored)
        return np.asarray(found.to_numpy(zero_copy_only=False), np.bool_)


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

    @property
    def negated(self) -> bool:
        """Whether it is ``!=`` or ``!~``."""
        return self.op in (MatchOp.NOT_EQUAL, MatchOp.NOT_REGEX)

    @property
    def literals(self) -> tuple[str, ...] | None:
        """The only values that the matcher, or its opposite when it is negated, accepts; None = not a finite set."""
        if self.op in (MatchOp.EQUAL, MatchOp.NOT_EQUAL):
            return (self.value,)
        regex = self.regex()
        return regex.texts if regex.shape is Shape.LITERALS else None

    @property
    def matches_empty(self) -> bool:
        """Whether it selects series without the label."""
        if self.op in (MatchOp.EQUAL, MatchOp.NOT_EQUAL):
            return (self.value == "") != self.negated
        return self.regex().matches_empty != self.negated

    def regex(self) -> Regex:
        """The regex of ``=~`` and ``!~``.

        Raises
        ------
        RejectedError        bad_matcher: not an RE2 expression
        """
        return compile_regex(self.value)

    def matches(self, value: str) -> bool:
        """Whether one value (``""`` = no such label) satisfies the matcher."""
        return bool(self.mask([value])[0])

    def mask(self, values: Sequence[str] | pa.Array) -> NDArray[np.bool_]:
        """Which of n values satisfy the matcher, (n,) bool.

        Raises
        ------
        RejectedError        bad_matcher: not an RE2 expression
        """
        strings = values if isinstance(values, pa.Array) else pa.array(values, pa.string())
        if self.op in (MatchOp.EQUAL, MatchOp.NOT_EQUAL):
            equal = pc.equal(strings, pa.scalar(self.value, strings.type))
            found = np.asarray(equal.to_numpy(zero_copy_only=False), np.bool_)
        else:
            found = self.regex().mask(strings)
        return ~found if self.negated else found


def _literal(text: str) -> str | None:
    """What ``text`` matches when it is a regex for one string only, else None."""
    out: list[str] = []
    at = 0
    while at < len(text):
        char = text[at]
        if char == "\\":
            at += 1
            # RE2 lets any ASCII punctuation be escaped; letters and digits have meanings of their own.
            if at == len(text) or not text[at].isascii() or text[at].isalnum() or text[at] == "_":
                return None
            char = text[at]
        elif char in _META:
            return None
        out.append(char)
        at += 1
    return "".join(out)


def _alternatives(pattern: str) -> tuple[str, ...] | None:
    """The strings of ``a|b|c``, ``(a|b|c)`` or ``(?:a|b|c)``, else None."""
    for opening in ("(?:", "("):
        if pattern.startswith(opening) and pattern.endswith(")"):
            pattern = pattern[len(opening) : -1]
            break
    pieces = [_literal(piece) for piece in pattern.split("|")]  # an escaped | makes a piece end in a lone backslash
    return None if None in pieces else tuple(dict.fromkeys(p for p in pieces if p is not None))


def _shape(pattern: str) -> tuple[Shape, tuple[str, ...]]:
    """Recognise the regexes that dashboards are made of."""
    if pattern in (".*", ".+"):
        return Shape(pattern), ()
    texts = _alternatives(pattern)
    if texts is not None:
        return Shape.LITERALS, texts
    before = pattern.startswith(".*")
    after = pattern.endswith(".*") and not pattern.endswith("\\.*")
    text = _literal(pattern[2 if before else 0 : -2 if after else None])
    if text and (before or after):
        return Shape.INFIX if before and after else Shape.SUFFIX if before else Shape.PREFIX, (text,)
    return Shape.ANY, ()


@lru_cache(maxsize=1024)
def compile_regex(pattern: str) -> Regex:
    """Check a regex and find out what it amounts to.

    ``.`` matches newlines, as in Prometheus.

    Raises
    ------
    RejectedError        bad_matcher: not an RE2 expression
    """
    anchored = f"^(?s:{pattern})$"
    try:
        empty = pa.array([""], pa.string())
        pc.match_substring_regex(empty, pattern)  # alone first: "a)|(b" would be closed by the anchors' group
        matches_empty = bool(pc.match_substring_regex(empty, anchored)[0].as_py())
    except (pa.ArrowInvalid, UnicodeEncodeError) as error:
        raise RejectedError(Reason.BAD_MATCHER, f"{error}: {pattern!r}") from None
    shape, texts = _shape(pattern)
    return Regex(shape, texts, anchored, matches_empty)
