"""An automaton over lines that are literals with values in between: no line is put together, most values are not read.

Rows of a pattern are in few states at a time. A literal takes each of these states to another one, once for all
rows; so does a column whose every value leads to the same state, whatever it is: digits between two words do not bring
a match of ``error|warn`` any nearer. Only where the values of a column tell rows apart are its codes read, and the way
of a row is then one look into a table of (state, distinct value). Byte by byte go the values that have neither a
dictionary nor a shape that helps, and these only for the rows that are still undecided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tsdb.kernels.log_regex import step_texts
from tsdb.logs.frame import Texts
from tsdb.logs.regex.automaton import FOUND, SEVERAL, UNKNOWN, UNRESOLVED, Automaton, Kind

UNDECIDED = -1
"""Beside 0 and 1: the line has other bytes than ASCII before a match, RE2 has to see it."""


class SpansLike(Protocol):
    """Texts as ranges of a buffer: :class:`tsdb.logs.columns.Spans`."""

    @property
    def data(self) -> NDArray[np.uint8]: ...

    @property
    def starts(self) -> NDArray[np.int64]: ...

    @property
    def lengths(self) -> NDArray[np.int64]: ...


class WalkedColumn(Protocol):
    """What has to be known of a column."""

    @property
    def kind(self) -> Kind | None:
        """What its regular texts have in common; None = nothing."""
        ...

    def dictionary(self) -> tuple[Texts, bool] | None:
        """Its distinct regular texts, and whether byte 0 in them stands for digits that differ from row to row."""
        ...

    def codes(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of these texts some rows have."""
        ...

    def odd(self) -> tuple[NDArray[np.int64], Texts]:
        """(rows, texts) of what is not regular."""
        ...

    def spans(self, rows: NDArray[np.int64]) -> SpansLike:
        """The whole texts of some rows."""
        ...


def run_texts(
    automaton: Automaton,
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    states: NDArray[np.int64],
    *,
    slots: bool = False,
) -> NDArray[np.int64]:
    """States behind texts; ``states`` is used up."""
    classes = automaton.slot_classes if slots else automaton.classes
    starts, lengths = np.ascontiguousarray(starts), np.ascontiguousarray(lengths)
    step_texts(automaton.table, classes, automaton.fixed, data, starts, lengths, states)
    return states


def verdicts(automaton: Automaton, states: NDArray[np.int64]) -> NDArray[np.int8]:
    """What the states at the ends of lines say: 1 a match, 0 none, UNDECIDED."""
    numbers = states >> automaton.shift
    return np.where(numbers == UNKNOWN, UNDECIDED, (numbers == FOUND) | automaton.ends[numbers]).astype(np.int8)


def search_texts(
    automaton: Automaton, data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.int8]:
    """Verdicts of whole lines, (n,) int8."""
    begin = np.full(len(starts), automaton.begin, np.int64)
    return verdicts(automaton, run_texts(automaton, data, starts, lengths, begin))


class _Walk:
    """Rows on their way through a line.

    Attributes
    ----------
    live : states that rows are in
    index : (n,) int64, which of these each row is in; None = all in the first
    """

    def __init__(self, automaton: Automaton, rows: NDArray[np.int64]) -> None:
        self.automaton = automaton
        self.rows = rows
        self._rows_end = int(rows.max()) + 1
        self.live = [automaton.begin]
        self.index: NDArray[np.int64] | None = None

    @property
    def done(self) -> bool:
        """Whether every row is decided."""
        return all(state < self.automaton.fixed for state in self.live)

    def states(self) -> NDArray[np.int64]:
        """(n,) int64, the state of each row."""
        live = np.array(self.live, np.int64)
        return np.full(len(self.rows), live[0]) if self.index is None else live[self.index]

    def literal(self, text: bytes) -> None:
        """Over a text that all rows have."""
        self._lead([self.automaton.over(text, state) for state in self.live])

    def _lead(self, to: list[int]) -> None:
        """Each live state to another one."""
        used = list(dict.fromkeys(to))
        if len(used) < len(to):
            place = np.array([used.index(state) for state in to])
            self.index = None if len(used) == 1 or self.index is None else place[self.index]
        self.live = used

    def _set(self, states: NDArray[np.int64]) -> None:
        """A state for each row."""
        numbers = states >> self.automaton.shift
        used = np.flatnonzero(np.bincount(numbers, minlength=self.automaton.states))
        self.live = (used << self.automaton.shift).tolist()
        self.index = None
        if len(used) > 1:
            place = np.empty(self.automaton.states, np.int64)
            place[used] = np.arange(len(used))
            self.index = place[numbers]

    def value(self, column: WalkedColumn, literal: bytes) -> None:
        """Over a value of each row and the literal behind it.

        Values are not read where they and the literal lead each live state to one state, whatever they are.
        """
        known = column.dictionary()
        odd_rows = column.odd()[0]
        if known is not None:
            to = self._by_dictionary(column, *known, literal, all_regular=not len(odd_rows))
        else:
            kind = column.kind
            ends = [self._behind(kind, literal, state) for state in self.live]
            if not len(odd_rows) and SEVERAL not in ends:
                self._lead(ends)
                return
            to = np.array(ends)[self.index] if self.index is not None else np.full(len(self.rows), ends[0])
        if to is None:
            return
        open_ = to == SEVERAL
        if len(odd_rows):
            odd = np.zeros(max(self._rows_end, int(odd_rows[-1]) + 1), np.bool_)
            odd[odd_rows] = True
            open_ |= odd[self.rows]
        if open_.all():
            to = self._by_bytes(column, literal, self.rows, self.states())
        elif open_.any():
            chosen = np.flatnonzero(open_)
            to[chosen] = self._by_bytes(column, literal, self.rows[chosen], self.states()[chosen])
        self._set(to)

    def _by_bytes(
        self, column: WalkedColumn, literal: bytes, rows: NDArray[np.int64], states: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        values = column.spans(rows)
        return self._over(literal, run_texts(self.automaton, values.data, values.starts, values.lengths, states))

    def _over(self, literal: bytes, states: NDArray[np.int64]) -> NDArray[np.int64]:
        """Behind a literal."""
        numbers = states >> self.automaton.shift
        to = np.zeros(self.automaton.states, np.int64)
        for number in np.flatnonzero(np.bincount(numbers, minlength=len(to))).tolist():
            to[number] = self.automaton.over(literal, number << self.automaton.shift)
        behind: NDArray[np.int64] = to[numbers]
        return behind

    def _behind(self, kind: Kind | None, literal: bytes, state: int) -> int:
        if state < self.automaton.fixed:
            return state
        return SEVERAL if kind is None else self.automaton.behind(kind, literal, state)

    def _by_dictionary(
        self, column: WalkedColumn, texts: Texts, slots: bool, literal: bytes, *, all_regular: bool
    ) -> NDArray[np.int64] | None:
        """States behind the values of a column of few texts and a literal, SEVERAL where their digits matter; None
        where no row had to be looked at."""
        count, many = len(texts.offsets) - 1, len(self.live)
        dense = 0 < many * count <= len(self.rows)
        if dense:
            live, code = np.divmod(np.arange(many * count), count)
            table = self._behind_texts(texts, slots, literal, live, code)
            matrix = table.reshape(many, count)
            if all_regular and (matrix == matrix[:, :1]).all() and not (matrix == SEVERAL).any():
                self._lead(matrix[:, 0].tolist())
                return None
        codes = column.codes(self.rows)
        pairs = codes if self.index is None else self.index * count + codes
        if dense:
            return table[pairs]
        some, inverse = np.unique(pairs, return_inverse=True)
        return self._behind_texts(texts, slots, literal, *np.divmod(some, count))[inverse]

    def _behind_texts(
        self, texts: Texts, slots: bool, literal: bytes, live: NDArray[np.int64], code: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """States behind pairs of a live state and a text of a dictionary, and a literal."""
        data, offsets = texts
        starts = offsets[code]
        before = np.array(self.live, np.int64)[live]
        behind = run_texts(self.automaton, data, starts, offsets[code + 1] - starts, before, slots=slots)
        to = self._over(literal, behind)
        for k in np.flatnonzero(behind == UNRESOLVED << self.automaton.shift).tolist():
            to[k] = self.automaton.behind(texts.text(code[k]), literal, self.live[live[k]])
        return to


def search_columns(
    automaton: Automaton, literals: Sequence[bytes], columns: Sequence[WalkedColumn], rows: NDArray[np.int64]
) -> NDArray[np.int8]:
    """Verdicts of some lines, (n,) int8.

    Parameters
    ----------
    literals : one more than there are columns; a line begins with the first and ends with the last
    rows : (n,) int64 numbers of the lines in their columns, at least one

    Raises
    ------
    CorruptionError
    """
    walk = _Walk(automaton, rows)
    walk.literal(literals[0])
    for column, literal in zip(columns, literals[1:], strict=True):
        if walk.done:
            break
        walk.value(column, literal)
    return verdicts(automaton, walk.states())
