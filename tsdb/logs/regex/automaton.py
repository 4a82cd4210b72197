"""A regular expression as a deterministic automaton over bytes: what tells whether a text holds a match, byte by byte.

Defined on ASCII alone. A byte beyond it, met before the answer is certain, leads to UNKNOWN: of such a text somebody
else has to decide. So folding of other letters, ``.`` over a character of many bytes, and what is no UTF-8 are none of
its business, and its answers are exact.

A state is a set of places in the pattern together with what the byte before was, which is all that ``^``, ``$`` and
``\\b`` ask; they are resolved when the byte behind them is known. The search is not anchored: every set holds the
begin of the pattern too, unless it can only begin where the text does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsdb.kernels.log_columns import DIGITS_MAX, SLOT
from tsdb.logs.regex.syntax import (
    ASCII,
    WORD,
    Assertion,
    At,
    Chars,
    Choice,
    Node,
    Repeat,
    Sequence,
    UnsupportedError,
    parse,
)

PLACES_MAX = 2000
"""Places of a pattern: counted repetitions are written out, and RE2 allows a thousand of them."""

TABLE_MAX = 1 << 18
"""Entries of a table of transitions: a table beyond the second-level cache (1 MiB) is no faster than RE2."""

WORK_MAX = 200_000
"""Places looked at while sets are built: about 0.1 s, what RE2 takes for some 30 MB of lines."""

DEAD, FOUND, UNKNOWN, UNRESOLVED = 0, 1, 2, 3
"""States that are never left: no match, a match, a byte beyond ASCII, a slot that leads to several states."""

FIXED = 4
"""How many of these there are; they come first."""

SEVERAL = -1
"""In place of a state: which one it is depends on a value, which has to be read."""

IMAGES_MAX = 64
"""States behind all texts of a kind that are worth following: a long list costs more than it often saves."""

MEMORY_MAX = 1 << 14
"""Answers of each sort that one automaton remembers; then it begins anew."""


class _Before(IntEnum):
    """What stands beside a place."""

    OTHER = 0
    WORD = 1
    NEWLINE = 2
    BORDER = 3  # of the text


def _holds(what: Assertion, before: int, behind: int) -> bool:
    if what is Assertion.TEXT_BEGIN:
        return before == _Before.BORDER
    if what is Assertion.TEXT_END:
        return behind == _Before.BORDER
    if what is Assertion.LINE_BEGIN:
        return before in (_Before.BORDER, _Before.NEWLINE)
    if what is Assertion.LINE_END:
        return behind in (_Before.BORDER, _Before.NEWLINE)
    return ((before == _Before.WORD) != (behind == _Before.WORD)) == (what is Assertion.WORD_BORDER)


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class _Places:
    """The pattern as places with edges (Thompson's construction), written from its end.

    Attributes
    ----------
    chars : bytes that lead on from a place, or None
    what : assertion that leads on, or None
    out : where to; several for a place that is neither
    """

    MATCH = 0

    def __init__(self, tree: Node) -> None:
        self.chars: list[int | None] = [None]
        self.what: list[Assertion | None] = [None]
        self.out: list[list[int]] = [[]]
        self.begin = self._add(tree, self.MATCH)
        self.near = [self._reached(place) for place in range(len(self.out))]

    def _new(self, out: list[int], chars: int | None = None, what: Assertion | None = None) -> int:
        if len(self.out) == PLACES_MAX:
            raise UnsupportedError("too long a pattern")
        self.chars.append(chars)
        self.what.append(what)
        self.out.append(out)
        return len(self.out) - 1

    def _add(self, node: Node, behind: int) -> int:
        match node:
            case Chars(mask):
                return self._new([behind], chars=mask)
            case At(what):
                return self._new([behind], what=what)
            case Sequence(parts):
                for part in reversed(parts):
                    behind = self._add(part, behind)
                return behind
            case Choice(parts):
                return self._new([self._add(part, behind) for part in parts])
            case Repeat(part, low, high):
                if high is None:
                    place = self._new([behind])
                    self.out[place].append(self._add(part, place))
                else:
                    place = behind
                    for _ in range(high - low):
                        place = self._new([behind, self._add(part, place)])
                for _ in range(low):
                    place = self._add(part, place)
                return place

    def _reached(self, place: int) -> int:
        """Set of the places with a condition, or the match, that are reached without one."""
        seen, todo, found = {place}, [place], 0
        while todo:
            at = todo.pop()
            if at == self.MATCH or self.chars[at] is not None or self.what[at] is not None:
                found |= 1 << at
                continue
            for to in self.out[at]:
                if to not in seen:
                    seen.add(to)
                    todo.append(to)
        return found

    def later(self) -> int:
        """Set of the places from which a match is reached where the text does not begin any more."""
        back: list[list[int]] = [[] for _ in self.out]
        for place, targets in enumerate(self.out):
            if self.what[place] is not Assertion.TEXT_BEGIN:
                for to in targets:
                    back[to].append(place)
        seen, todo, found = {self.MATCH}, [self.MATCH], 0
        while todo:
            at = todo.pop()
            found |= 1 << at
            for place in back[at]:
                if place not in seen:
                    seen.add(place)
                    todo.append(place)
        return found


def _classes(places: _Places) -> tuple[NDArray[np.uint8], list[int]]:
    """(class of each ASCII byte, one byte of each class): bytes that no place tells apart are one class."""
    masks = sorted({mask for mask in places.chars if mask is not None})
    if any(what is not None for what in places.what):
        masks += [WORD, 1 << 0x0A]
    numbers: dict[tuple[int, ...], int] = {}
    models: list[int] = []
    class_of = np.zeros(ASCII, np.uint8)
    for byte in range(ASCII):
        key = tuple(mask >> byte & 1 for mask in masks)
        if key not in numbers:
            numbers[key] = len(models)
            models.append(byte)
        class_of[byte] = numbers[key]
    return class_of, models


def _kind_of(byte: int) -> int:
    if byte == 0x0A:
        return _Before.NEWLINE
    return _Before.WORD if WORD >> byte & 1 else _Before.OTHER


class Run(NamedTuple):
    """All texts of an alphabet but the empty one and those of more than ``most`` bytes."""

    alphabet: frozenset[int]
    most: int


Kind = Run | bytes | tuple[frozenset[int], ...]
"""Texts: a run; what a skeleton stands for; or those whose byte k is of the k-th alphabet."""

DIGITS = frozenset(b"0123456789")
SLOT_DIGITS = Run(DIGITS, DIGITS_MAX)
"""What a slot stands for: a longer run of digits is no number to a skeleton."""


@dataclass(frozen=True, slots=True)
class Automaton:
    """What runs.

    Attributes
    ----------
    table : (states << shift,) uint32        the state behind state s and a byte of class c is ``table[s + c]``; here
        and in all arguments a state s is its number shifted by ``shift``
    classes : (256,) uint8        class of a byte
    slot_classes : (256,) uint8        the same for texts in which byte 0 stands for one digit or more
    shift : bits
    begin : state before the first byte
    ends : (states,) bool        by number: whether a text that ends here holds a match
    """

    table: NDArray[np.uint32]
    classes: NDArray[np.uint8]
    slot_classes: NDArray[np.uint8]
    shift: int
    begin: int
    ends: NDArray[np.bool_]
    _overs: dict[tuple[bytes, int], int] = field(default_factory=dict, repr=False)
    _behinds: dict[tuple[Kind, bytes, int], int] = field(default_factory=dict, repr=False)

    @property
    def fixed(self) -> int:
        """States below this one are never left."""
        return FIXED << self.shift

    @property
    def states(self) -> int:
        """How many states there are."""
        return len(self.ends)

    def _step(self, state: int, byte: int) -> int:
        return int(self.table[state + int(self.classes[byte])])

    def over(self, text: bytes, state: int) -> int:
        """The state behind a text that will be asked for again."""
        known = self._overs.get((text, state))
        if known is None:
            known = state
            for byte in text:
                known = self._step(known, byte)
            if len(self._overs) >= MEMORY_MAX:
                self._overs.clear()
            self._overs[text, state] = known
        return known

    def behind(self, kind: Kind, literal: bytes, state: int) -> int:
        """The state behind every text of a kind and a literal; SEVERAL where it depends on the text."""
        known = self._behinds.get((kind, literal, state))
        if known is None:
            ends = {self.over(literal, image) for image in self.images(kind, state)}
            known = ends.pop() if len(ends) == 1 else SEVERAL
            if len(self._behinds) >= MEMORY_MAX:
                self._behinds.clear()
            self._behinds[kind, literal, state] = known
        return known

    def images(self, kind: Kind, state: int) -> frozenset[int]:
        """All states that are behind some text of a kind; none where that were more than IMAGES_MAX."""
        states = frozenset([state])
        if isinstance(kind, Run):
            states = self._run_of(kind, states)
        else:
            for part in kind:
                if part == SLOT:
                    states = self._run_of(SLOT_DIGITS, states)
                else:
                    states = self._stepped(states, [part] if isinstance(part, int) else part)
                if len(states) > IMAGES_MAX:
                    break
        return states if len(states) <= IMAGES_MAX else frozenset()

    def _stepped(self, states: frozenset[int], alphabet: Iterable[int]) -> frozenset[int]:
        return frozenset([self._step(state, byte) for state in states for byte in alphabet])

    def _run_of(self, run: Run, states: frozenset[int]) -> frozenset[int]:
        found = new = self._stepped(states, run.alphabet)
        for _ in range(run.most - 1):
            new = self._stepped(new, run.alphabet) - found
            if not new or len(found) > IMAGES_MAX:
                break
            found |= new
        return found


def build(pattern: str) -> Automaton:
    """The automaton of a pattern that RE2 accepts.

    Raises
    ------
    UnsupportedError        the pattern holds what is not understood here, or becomes too large
    """
    places = _Places(parse(pattern))
    class_of, models = _classes(places)
    count = len(models)
    members = {
        mask: [c for c, byte in enumerate(models) if mask >> byte & 1] for mask in places.chars if mask is not None
    }
    asserts = sum(1 << place for place, what in enumerate(places.what) if what is not None)
    kinds = [_kind_of(byte) if asserts else 0 for byte in models]
    shift = (count + 1).bit_length()
    match, begin, later = 1 << _Places.MATCH, places.near[places.begin], places.later()
    numbers: dict[tuple[int, int], int] = {}
    order: list[tuple[int, int]] = []
    work = 0

    def number(places_of: int, before: int) -> int:
        if places_of & match:
            return FOUND
        if not places_of:
            return DEAD
        key = (places_of, before if places_of & asserts else 0)
        if key not in numbers:
            if (FIXED + len(order)) << shift >= TABLE_MAX:
                raise UnsupportedError("too many states")
            numbers[key] = FIXED + len(order)
            order.append(key)
        return numbers[key]

    def resolved(places_of: int, before: int, behind: int) -> int:
        """With what the assertions that hold lead to."""
        todo, done = places_of & asserts, 0
        while todo:
            done |= todo
            for place in _bits(todo):
                what = places.what[place]
                if what is not None and _holds(what, before, behind):
                    places_of |= places.near[places.out[place][0]]
            todo = places_of & asserts & ~done
        return places_of

    def follow(places_of: int) -> list[int]:
        """Places behind each class of bytes."""
        nonlocal work
        behind = [0] * count
        for place in _bits(places_of & ~match):
            mask = places.chars[place]
            if mask is not None:
                near = places.near[places.out[place][0]]
                work += 1 + len(members[mask])
                for c in members[mask]:
                    behind[c] |= near
        if work > WORK_MAX:
            raise UnsupportedError("too much to build")
        return behind

    first = number(begin, _Before.BORDER if asserts else 0)
    rows: list[list[int]] = []
    ends = [False, True, False, False]
    for places_of, before in order:  # grows while it is walked
        row = [DEAD] * count
        for kind in set(kinds):
            now = resolved(places_of, before, kind)
            behind = follow(now)
            for c in range(count):
                if kinds[c] == kind:
                    row[c] = FOUND if now & match else number((behind[c] | begin) & later, kind)
        rows.append(row)
        ends.append(bool(resolved(places_of, before, _Before.BORDER) & match))
    return _packed(class_of, count, shift, rows, ends, first)


def _packed(
    class_of: NDArray[np.uint8], count: int, shift: int, rows: list[list[int]], ends: list[bool], first: int
) -> Automaton:
    """The table, with a class for bytes beyond ASCII and one for slots behind the others."""
    states = len(ends)
    table = np.zeros((states, 1 << shift), np.uint32)
    table[:FIXED] = np.arange(FIXED)[:, None]
    if rows:
        table[FIXED:, :count] = rows
        table[FIXED:, count] = UNKNOWN
    table <<= np.uint32(shift)
    classes = np.full(256, count, np.uint8)
    classes[:ASCII] = class_of
    slot_classes = classes.copy()
    slot_classes[0] = count + 1
    made = Automaton(table.reshape(-1), classes, slot_classes, shift, first << shift, np.array(ends))
    for state in range(FIXED, states):
        behind = made.behind(SLOT_DIGITS, b"", state << shift)
        table[state, count + 1] = UNRESOLVED << shift if behind == SEVERAL else behind
    return made


@lru_cache(maxsize=32)
def automaton_of(pattern: str) -> Automaton | None:
    """The automaton of a pattern that RE2 accepts, or None where only RE2 can tell."""
    try:
        return build(pattern)
    except UnsupportedError:
        return None
