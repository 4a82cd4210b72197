"""Frames, scans and columns in memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsdb.frame import LabelTable
from tsdb.logs.frame import LogFrame, Texts, contains, gather
from tsdb.logs.rows import PlainRows, level_column

texts = st.lists(st.binary(max_size=200) | st.text("ab", max_size=90).map(str.encode), max_size=30)


@pytest.mark.kernel
@settings(max_examples=200, deadline=None)
@given(texts, st.binary(max_size=3) | st.text("ab", max_size=70).map(str.encode))
def test_contains_is_in(lines: list[bytes], needle: bytes) -> None:
    assert contains(Texts.of(lines), needle).tolist() == [needle in line for line in lines]


@pytest.mark.kernel
@settings(max_examples=100, deadline=None)
@given(texts, st.data())
def test_gather_copies_ranges(lines: list[bytes], data: st.DataObject) -> None:
    source = Texts.of(lines)
    picks = data.draw(st.lists(st.integers(0, len(lines) - 1), max_size=20)) if lines else []
    rows = np.array(picks, np.int64)
    got = gather(source.data, source.offsets[rows], np.diff(source.offsets)[rows])
    assert got.to_list() == [lines[i] for i in picks]


def frame_of(lines: list[bytes], metadata: list[dict[str, str]] | None = None) -> LogFrame:
    n = len(lines)
    return LogFrame(
        np.array([7], np.uint32), LabelTable.of([{"app": "x"}]), np.zeros(n, np.int32), np.arange(n, dtype=np.int64),
        PlainRows.of(lines, metadata), np.arange(n, dtype=np.int64), n,
    )  # fmt: skip


def test_a_frame_takes_rows_without_decoding() -> None:
    frame = frame_of([b"a 1", b"", b"b\x00\xff", b"a 2"], [{"k": "v"}, {}, {"k": "", "x": "y"}, {}])
    taken = frame.take(frame.contains(b"a"))
    assert taken.lines().to_list() == [b"a 1", b"a 2"]
    assert taken.ts_ns.tolist() == [0, 3]
    assert frame.metadata_names == ("k", "x")
    column = frame.metadata("k")
    assert column is not None
    assert column.texts().to_list() == [b"v", b"", b"", b""]
    assert column.present is not None
    assert column.present.tolist() == [True, False, True, False]
    assert frame.metadata("nope") is None
    assert taken.metadata("x") is None


def test_levels_fill_in_where_the_sender_said_nothing() -> None:
    explicit = frame_of([b"", b""], [{"detected_level": "odd"}, {}]).metadata("detected_level")
    column = level_column(np.array([0, 4], np.uint8), explicit)
    assert column is not None
    assert column.texts().to_list() == [b"odd", b"info"]
    derived = level_column(np.array([0, 4], np.uint8), None)
    assert derived is not None
    assert derived.texts().to_list() == [b"", b"info"]
