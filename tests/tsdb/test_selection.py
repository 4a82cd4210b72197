"""A selection gives the same samples whether it is decoded whole or a few rows at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tsdb.test_assemble import ROWS, chunks_of, dense, late_of, times
from tsdb.assemble import Selection, assemble
from tsdb.frame import LabelTable

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]

LABELS = LabelTable.of([{"row": str(row)} for row in range(ROWS)])


@settings(max_examples=60, deadline=None)
@given(dense(), dense(), dense(), st.tuples(times, times), st.integers(1, ROWS + 1))
def test_batches_are_the_frame(first, second, third, bounds, batch) -> None:
    parts = [(chunks_of(first), late_of(second)), (chunks_of(third), late_of({}))]
    selection = Selection(LABELS, parts, *bounds, ("note",))
    frame = selection.frame()
    offsets, ts_ms, values = assemble(ROWS, parts, *bounds)
    assert frame.warnings == selection.warnings == ("note",)
    assert frame.labels is selection.labels
    np.testing.assert_array_equal(frame.offsets, offsets)
    assert (np.diff(offsets) <= selection.samples_max).all()
    one, other = selection.reader(batch), selection.reader(ROWS)
    for begin in range(0, ROWS, batch):
        end = min(ROWS, begin + batch)
        for reader in (one, other):
            some_offsets, some_times, some_values = reader.read(begin, end)
            at = slice(offsets[begin], offsets[end])
            assert some_offsets.tolist() == (offsets[begin : end + 1] - offsets[begin]).tolist()
            np.testing.assert_array_equal(some_times, ts_ms[at])
            np.testing.assert_array_equal(some_values.view(np.uint64), values[at].view(np.uint64))


def test_nothing_selected() -> None:
    selection = Selection(LabelTable.of([]), [], 0, 1, ())
    assert len(selection.frame()) == 0
    assert [len(a) for a in selection.reader(1).read(0, 0)] == [1, 0, 0]


def test_rows_in_any_order() -> None:
    samples = {(row, 10 * k): k for row in range(ROWS) for k in range(50 * row)}
    selection = Selection(LABELS, [(chunks_of(samples), late_of({}))], 0, 10_000, ())
    reader = selection.reader(2)
    for begin, end in itertools.chain([(3, 5), (0, 1), (4, 5), (1, 3)]):
        offsets, _, _ = reader.read(begin, end)
        assert np.diff(offsets).tolist() == [50 * row for row in range(begin, end)]
