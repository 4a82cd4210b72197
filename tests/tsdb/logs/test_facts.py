"""What the index says of columns and words is what the values and lines say."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsdb.kernels.log_words import FULL, enter_values, enter_words
from tsdb.logs.facts import (
    TABLE_SLOTS,
    ColumnFact,
    HashSet,
    Known,
    bounds_of,
    hash_of,
    letters_in,
    merged,
    seed_of,
)
from tsdb.logs.frame import Texts

texts = st.lists(
    st.one_of(st.binary(max_size=70), st.text("aB1 -\u00e9", max_size=20).map(str.encode)), min_size=1, max_size=12
)


def held(hashes: HashSet) -> set[bytes]:
    return {row.tobytes() for row in hashes.values().reshape(-1, 8)}


@pytest.mark.kernel
@settings(max_examples=200, deadline=None)
@given(texts)
def test_words_and_values_are_entered(values: list[bytes]) -> None:
    words = HashSet()
    words.add_words(Texts.of(values))
    wanted = {word for value in values for word in re.findall(rb"[A-Za-z]+", value)}
    assert held(words) == {hash_of(word).tobytes() for word in wanted}
    seed = seed_of(b"path", Known(0))
    whole = HashSet()
    data, offsets = Texts.of(values)
    assert whole.add_values(data, offsets[:-1], np.diff(offsets), seed)
    assert held(whole) == {hash_of(value, seed).tobytes() for value in values}
    assert len(held(whole)) == len(set(values))


def test_columns_of_one_name_do_not_share_values() -> None:
    seeds = [seed_of(b"a", Known(0)), seed_of(b"b", Known(0)), seed_of(b"a", Known.METADATA)]
    assert len({hash_of(b"x", seed).tobytes() for seed in seeds}) == 3


@pytest.mark.kernel
def test_a_full_table_says_so() -> None:
    many = Texts.of([f"value {k}".encode() for k in range(13)])
    table = np.zeros(16, np.uint64)
    assert enter_values(many.data, many.offsets[:-1], np.diff(many.offsets), np.uint64(1), 0, table) == FULL
    names = Texts.of([bytes([97 + k]) for k in range(13)])
    assert enter_words(names.data, names.offsets, 0, np.zeros(16, np.uint64)) == FULL


def test_a_group_with_too_many_words_claims_nothing() -> None:
    hashes = HashSet()
    assert hashes.words == 1
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    hashes.add_words(
        Texts.of([f"{a}{b}{c}{d}".encode() for a in alphabet for b in alphabet for c in alphabet for d in "xy"])
    )
    assert hashes.words == 0
    assert 0 < len(hashes.values()) <= 8 * TABLE_SLOTS


def test_literals_that_touch_values_make_words_unknown() -> None:
    hashes = HashSet()
    hashes.loose_letters = letters_in(b"Ab9")
    hashes.add_literals([b"took=", b" ms"])
    assert hashes.words == 1 | 0b11 << 1
    hashes.add_literals([b"took", b" ms"])
    assert hashes.words == 0


def test_bounds_and_merging() -> None:
    assert bounds_of([b"1", b"-2.5", b"007"]) == (-2.5, 7.0)
    assert bounds_of([b"1", b"1e3"]) is None
    assert bounds_of([b"1", b""]) is None
    assert bounds_of([]) is None
    both = Known.HASHED | Known.BOUNDED
    found = merged(
        [
            ColumnFact(b"a", both, 1, 2), ColumnFact(b"a", Known.BOUNDED, 0, 1), ColumnFact(b"b", Known.RAW, width=8),
            ColumnFact(b"a", Known.METADATA | Known.HASHED), ColumnFact(b"b", Known.RAW, width=16),
        ]
    )  # fmt: skip
    assert found == [
        ColumnFact(b"a", Known.BOUNDED, 0, 2), ColumnFact(b"b", Known(0), width=16),
        ColumnFact(b"a", Known.METADATA | Known.HASHED),
    ]  # fmt: skip
