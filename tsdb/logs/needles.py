"""Where a literal can stand in lines that are literals with values in between: questions about single columns.

Lines of a pattern differ in their values alone. An occurrence lies in one of the pattern's own literals, or in one
value, or it begins in a literal or a value and goes on over the following ones; each case asks of some columns whether
their value holds, begins with, ends with or is a text. So a search needs no line to be put together.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

CASES_MAX = 64
"""More cases than this, and putting the lines together is the cheaper way."""


class Place(IntEnum):
    """Where in a value a text has to stand."""

    ANYWHERE = 0
    BEGIN = 1
    END = 2
    WHOLE = 3


class Question(NamedTuple):
    """Whether the value of a column has a text at a place."""

    column: int
    place: Place
    text: bytes


Case = tuple[Question, ...]
"""All of them have to hold."""


@lru_cache(maxsize=4096)
def cases_of(literals: tuple[bytes, ...], needle: bytes) -> tuple[Case, ...] | None:
    """Ways in which a line can hold ``needle`` beyond a literal or a value alone; None where there are too many.

    Parameters
    ----------
    literals : one more than there are columns; the line begins with the first and ends with the last
    """
    found: list[Case] = []
    for case in _cases(literals, needle):
        found.append(case)
        if len(found) > CASES_MAX:
            return None
    return tuple(found)


class Plan(NamedTuple):
    """Where a literal can stand in the lines of a pattern.

    Attributes
    ----------
    everywhere : one of the pattern's own literals holds it
    inside : columns whose value alone may hold it
    cases : the ways beyond that
    """

    everywhere: bool
    inside: tuple[int, ...]
    cases: tuple[Case, ...]


@lru_cache(maxsize=4096)
def plan_of(literals: tuple[bytes, ...], quotable: tuple[bool, ...] | None, needle: bytes) -> Plan | None:
    """What has to be asked to know which lines of a pattern hold ``needle``; None where that is too much.

    Parameters
    ----------
    quotable : of each value, whether it may hold a double quote; None = all may
    """
    if any(needle in literal for literal in literals):
        return Plan(everywhere=True, inside=(), cases=())
    found = cases_of(literals, needle)
    if found is None:
        return None

    def can_hold(column: int, text: bytes) -> bool:
        return quotable is None or quotable[column] or b'"' not in text

    inside = tuple(k for k in range(len(literals) - 1) if can_hold(k, needle))
    cases = tuple(case for case in found if all(can_hold(question.column, question.text) for question in case))
    return Plan(everywhere=False, inside=inside, cases=cases)


def _cases(literals: tuple[bytes, ...], needle: bytes) -> Iterator[Case]:
    for k in range(len(literals) - 1):
        literal = literals[k]
        for at in range(max(0, len(literal) - len(needle) + 1), len(literal)):
            if needle.startswith(literal[at:]):
                yield from _from_value(literals, k, needle[len(literal) - at :])
        for size in range(1, len(needle)):  # an occurrence that begins inside value k, its last ``size`` bytes
            for rest in _behind(literals, k, needle[size:]):
                yield (Question(k, Place.END, needle[:size]), *rest)


def _from_value(literals: tuple[bytes, ...], k: int, rest: bytes) -> Iterator[Case]:
    """Ways in which a line goes on with ``rest`` from the begin of value k."""
    if not rest:
        return
    yield (Question(k, Place.BEGIN, rest),)
    for size in range(len(rest)):
        for behind in _behind(literals, k, rest[size:]):
            yield (Question(k, Place.WHOLE, rest[:size]), *behind)


def _behind(literals: tuple[bytes, ...], k: int, rest: bytes) -> Iterator[Case]:
    """Ways in which a line goes on with ``rest``, which is not empty, from the end of value k."""
    literal = literals[k + 1]
    if literal.startswith(rest):
        yield ()
    elif rest.startswith(literal) and k + 2 < len(literals):
        yield from _from_value(literals, k + 1, rest[len(literal) :])
