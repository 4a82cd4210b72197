"""Set algebra on postings against Python sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsdb.index.series import Postings, Rows
from tsdb.kernels.postings import intersect

sets = st.one_of(st.sets(st.integers(0, 400)), st.sets(st.integers(0, 30)), st.sets(st.integers(350, 2**32 - 1)))
rows_of_pairs = st.lists(st.sets(st.integers(0, 9), max_size=6), max_size=150)


def ascending(numbers: set[int]) -> np.ndarray:
    return np.array(sorted(numbers), np.uint32)


@pytest.mark.kernel
@settings(deadline=None)
@given(sets, sets)
def test_intersection_and_difference(one: set[int], other: set[int]) -> None:
    out = np.empty(len(one), np.uint32)
    n = intersect(ascending(one), ascending(other), 1, out)
    assert out[:n].tolist() == sorted(one & other)
    n = intersect(ascending(one), ascending(other), 0, out)
    assert out[:n].tolist() == sorted(one - other)


@pytest.mark.kernel
@settings(deadline=None)
@given(rows_of_pairs, st.data())
def test_postings_of_a_run_and_their_unions(series: list[set[int]], data: st.DataObject) -> None:
    offsets = np.concatenate(([0], np.cumsum([len(pairs) for pairs in series]))).astype(np.uint32)
    entries = np.array([pair for pairs in series for pair in sorted(pairs)], np.uint32)
    none = np.zeros(0, np.uint32)
    first = data.draw(st.integers(0, len(series)))
    last = data.draw(st.integers(first, len(series)))
    postings = Postings.build(Rows(len(series), 10, 0, entries, offsets, none, none, none), first, last)
    for pair in range(10):
        expected = [ref for ref in range(first, last) if pair in series[ref]]
        assert postings.union(np.array([pair], np.uint32)).tolist() == expected
    wanted = data.draw(st.sets(st.integers(0, 9)))
    if len(wanted) != 1:
        expected = [ref for ref in range(first, last) if wanted & series[ref]]
        assert postings.union(ascending(wanted)).tolist() == expected
        assert postings.sizes(ascending(wanted)) == sum(len(wanted & series[ref]) for ref in range(first, last))
