"""What the index of a part says of a group's columns, so that a search need not open the group (docs/format/logs.md).

Of a column: the bounds of its numbers, or that all its values are in the group's bloom filter. Of the lines: that all
their words, the runs of ASCII letters, are in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntFlag
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsdb.kernels.log_words import FULL, enter_values, enter_words
from tsdb.logs.frame import Texts

TABLE_SLOTS = 1 << 15
"""At most three quarters of so many distinct values and words of a group go to its filter: 30 KB."""

EXACT_INT = 1 << 53
"""Integers below it are float64 exactly, so that their bounds are those of what a query compares."""

_NUMBER = re.compile(rb"-?[0-9]{1,15}(\.[0-9]{1,15})?")


class Known(IntFlag):
    """What is known of a column."""

    METADATA = 1  # structured metadata, not a field of the lines
    HASHED = 2  # every value is in the filter, under the name of the column
    BOUNDED = 4  # every value is a decimal number from ``low`` to ``high``
    RAW = 8  # every value is a hex id or UUID of ``width`` bytes, in the filter as its bytes


def letters_in(bytes_: Iterable[int]) -> int:
    """Bit k is set where letter k of the alphabet, of either case, is among some bytes."""
    return sum({1 << (c | 0x20) - 0x61 for c in bytes_ if 0x61 <= c | 0x20 <= 0x7A})


class ColumnFact(NamedTuple):
    """Of one column of a group; ``low`` and ``high`` count where ``known`` has BOUNDED, ``width`` where it has RAW."""

    name: bytes
    known: Known
    low: float = 0.0
    high: float = 0.0
    width: int = 0


def seed_of(name: bytes, known: Known) -> np.uint64:
    """What tells the values of a column from those of others in one filter."""
    kind = b"m" if known & Known.METADATA else b"f"
    return np.uint64(int.from_bytes(blake2b(kind + name, digest_size=8).digest(), "little"))


def hash_of(text: bytes, seed: np.uint64 = np.uint64(0)) -> NDArray[np.uint8]:
    """The 8 bytes under which a value, or with seed 0 a word, is in the filter."""
    table = np.zeros(4, np.uint64)
    data, offsets = Texts.of([text])
    enter_values(data, offsets[:-1], np.diff(offsets), seed, 0, table)
    value: NDArray[np.uint8] = table[table != 0].view(np.uint8)
    return value


class HashSet:
    """Distinct hashes of a group's values and words.

    Attributes
    ----------
    loose_letters : letters (:func:`letters_in`) of values that are not looked at, such as ids: words made of these
        alone may stand in the lines and not be here
    """

    def __init__(self) -> None:
        self._table = np.zeros(TABLE_SLOTS, np.uint64)
        self._count = 0
        self._words = True
        self.loose_letters = 0

    def add_values(
        self, data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64], seed: np.uint64
    ) -> bool:
        """Enter values; False where there is no room for all."""
        starts, lengths = np.ascontiguousarray(starts), np.ascontiguousarray(lengths)
        return self._took(enter_values(data, starts, lengths, seed, self._count, self._table))

    @property
    def words(self) -> int:
        """1, if all words but those of ``loose_letters`` alone are here, and twice these letters; else 0."""
        return 1 | self.loose_letters << 1 if self._words else 0

    def add_words(self, texts: Texts) -> None:
        """Enter the words of texts that stand between other bytes than letters."""
        if self._words:
            self._words = self._took(enter_words(*texts, self._count, self._table))

    def add_literals(self, literals: list[bytes]) -> None:
        """Enter the words of what stands around values, which must not grow together with those of the values."""
        inner = [(a[-1:], b[:1]) for a, b in pairwise(literals)]
        if any(before.isalpha() or after.isalpha() for before, after in inner):
            self._words = False
        self.add_words(Texts.of(literals))

    def _took(self, count: int) -> bool:
        if count == FULL:
            self._count = int(np.count_nonzero(self._table))
            return False
        self._count = int(count)
        return True

    def values(self) -> NDArray[np.uint8]:
        """All hashes, 8 bytes each."""
        values: NDArray[np.uint8] = self._table[self._table != 0].view(np.uint8)
        return values


def merged(facts: Iterable[ColumnFact]) -> list[ColumnFact]:
    """What holds of all columns of each name: the lines of a group may be of several patterns."""
    found: dict[tuple[bytes, Known], ColumnFact] = {}
    for fact in facts:
        key = (fact.name, fact.known & Known.METADATA)
        other = found.get(key, fact)
        known = fact.known & other.known
        if fact.width != other.width:
            known &= ~Known.RAW
        low, high = min(fact.low, other.low), max(fact.high, other.high)
        found[key] = ColumnFact(fact.name, known, low, high, fact.width)
    return list(found.values())


def bounds_of(texts: list[bytes]) -> tuple[float, float] | None:
    """Smallest and largest of decimal numbers; None where some text is none."""
    if not texts or not all(map(_NUMBER.fullmatch, texts)):
        return None
    numbers = list(map(float, texts))
    return min(numbers), max(numbers)
