from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsdb.errors import LimitError
from tsdb.index.symbols import SymbolTable

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@pytest.mark.kernel
@settings(deadline=None)
@given(st.lists(st.lists(texts, max_size=20), max_size=3))
def test_equal_strings_share_a_number(batches: list[list[str]]) -> None:
    table = SymbolTable(1000, 1 << 20)
    twin = {"": 0}
    for batch in batches:
        expected = [twin.setdefault(text, len(twin)) for text in batch]
        assert table.intern_all(batch).tolist() == expected
        assert table.texts(np.array(expected, np.int32)) == batch
    for text, number in twin.items():
        assert table.find(text) == number
        assert table.text(number) == text
    assert table.find("never") == -1
    assert table.find("\ud800") == -1
    assert len(table) == len(twin)


@pytest.mark.kernel
def test_the_table_grows() -> None:
    table = SymbolTable()
    words = [f"wörd {i}" for i in range(2500)]
    assert table.intern_all(words).tolist() == list(range(1, 2501))
    assert table.find("wörd 2499") == 2500
    assert table.intern("wörd 7") == 8
    assert table.lengths(np.array([0, 1], np.uint32)).tolist() == [0, 7]
    assert table.memory_bytes > 2500 * 8


def test_a_full_table_says_so() -> None:
    table = SymbolTable(3, 1 << 20)
    assert table.intern_all(["a", "b"]).tolist() == [1, 2]
    with pytest.raises(LimitError):
        table.intern("c")
    assert table.find("b") == 2
