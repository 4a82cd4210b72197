from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsdb.index.keys import KeyTable

keys = st.lists(st.one_of(st.binary(max_size=20), st.binary(min_size=40, max_size=120)), max_size=40)


def add_all(table: KeyTable, raw: list[bytes], refs: list[int]) -> list[int]:
    edges = np.concatenate(([0], np.cumsum([len(key) for key in raw]))).astype(np.int64)
    buf = np.frombuffer(b"".join(raw), np.uint8)
    starts, ends = np.ascontiguousarray(edges[:-1]), np.ascontiguousarray(edges[1:])
    return table.add_batch(buf, starts, ends, np.array(refs, np.uint32)).tolist()


@pytest.mark.kernel
@settings(deadline=None)
@given(st.lists(keys, max_size=4))
def test_keys_are_found_by_their_bytes(batches: list[list[bytes]]) -> None:
    table = KeyTable(1000, 1 << 20)
    twin: dict[bytes, int] = {}
    refs: dict[bytes, int] = {}
    for batch in batches:
        numbers = add_all(table, batch, list(range(len(batch))))
        for place, key in enumerate(batch):
            twin.setdefault(key, len(twin) + 1)
            refs.setdefault(key, place)
            assert numbers[place] == twin[key]
    arrays = table.arrays()
    for key, number in twin.items():
        assert table.find(key) == number
        assert arrays.key_refs[number] == refs[key]
        assert table.find(key + b"x") == twin.get(key + b"x", -1)
    assert len(table) == len(twin)


@pytest.mark.kernel
def test_the_table_grows() -> None:
    table = KeyTable(10_000, 1 << 20)
    raw = [b"key %d of some length" % i for i in range(3000)]
    assert add_all(table, raw, list(range(3000))) == list(range(1, 3001))
    assert [table.find(key) for key in raw[::97]] == list(range(1, 3001, 97))
    assert table.find(b"another") == -1
    assert len(table.arrays().slots) >= 2 * 3000
    assert table.memory_bytes > 3000 * 20


def test_a_full_table_keeps_what_it_has() -> None:
    table = KeyTable(2, 1 << 20)
    assert add_all(table, [b"a", b"b", b"c", b"a"], [7, 8, 9, 7]) == [1, 2, -1, 1]
    assert table.add(b"c", 9) == -1
    few_bytes = KeyTable(100, 5)
    assert add_all(few_bytes, [b"abc", b"defg", b"hi"], [0, 1, 2]) == [1, -1, 2]
