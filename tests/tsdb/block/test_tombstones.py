"""Tombstones against sets of deleted (row, time)."""

from __future__ import annotations

import contextlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference.head import samples_of
from tsdb.block.tombstones import NOTHING, Tombstones, read_tombstones, write_tombstones
from tsdb.blockstore import FolderStore
from tsdb.errors import CorruptionError
from tsdb.gorilla import encode_rows, repack

ROWS, TIMES = 5, 400

deletions = st.lists(
    st.tuples(st.sets(st.integers(0, ROWS - 1)), st.integers(0, TIMES - 1), st.integers(0, TIMES - 1)), max_size=12
)


def of(deleted: list[tuple[set[int], int, int]]) -> Tombstones:
    tombstones = NOTHING
    for rows, mint, maxt in deleted:
        if mint <= maxt:
            tombstones = tombstones.add(np.array(sorted(rows), np.int32), mint, maxt)
    return tombstones


@given(deletions)
def test_spans_cover_what_was_deleted_and_are_as_few_as_can_be(deleted: list[tuple[set[int], int, int]]) -> None:
    tombstones = of(deleted)
    expected = {(r, t) for rows, mint, maxt in deleted for r in rows for t in range(mint, maxt + 1)}
    spans = list(zip(tombstones.rows.tolist(), tombstones.min_ms.tolist(), tombstones.max_ms.tolist(), strict=True))
    assert {(r, t) for r, mint, maxt in spans for t in range(mint, maxt + 1)} == expected
    assert spans == sorted(spans)
    assert all(a[0] < b[0] or a[2] + 1 < b[1] for a, b in pairwise(spans)), "touching spans"
    assert tombstones.same_as(of([*deleted, *deleted]))
    whole = [r for r in range(ROWS) if all((r, t) in expected for t in range(TIMES))]
    assert tombstones.rows_buried(0, TIMES - 1).tolist() == whole


@given(deletions, st.sets(st.tuples(st.integers(0, ROWS - 1), st.integers(0, TIMES - 1)), max_size=300))
def test_what_is_left_of_chunks(deleted: list[tuple[set[int], int, int]], extra: set[tuple[int, int]]) -> None:
    held = sorted({(r, t) for r in range(ROWS) for t in range(r, TIMES, r + 1)} | extra)
    columns = np.array(held, np.int64)
    chunks = encode_rows(columns[:, 0].astype(np.int32), columns[:, 1], columns[:, 1].astype(np.uint64) << np.uint64(4))
    for some in (chunks, repack(chunks)):
        left, plain = of(deleted).bury(some, some.rows)
        gone = {(r, t) for rows, mint, maxt in deleted for r in rows for t in range(mint, maxt + 1)}
        if some is chunks:  # the plain reader knows this encoding only
            found = sorted((r, t) for r, t, _ in samples_of(left, plain))
            assert found == [s for s in held if s not in gone]
            assert all(bits == t << 4 for _, t, bits in samples_of(left, plain))
        rows, times = plain.rows.tolist(), plain.ts_ms.tolist()
        assert list(zip(rows, times, strict=True)) == sorted(zip(rows, times, strict=True))
        assert int(left.counts.sum()) + len(plain) == len([s for s in held if s not in gone])


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    tombstones = of([({1, 3}, 5, 9), ({3}, 20, 30)])
    write_tombstones(store, "a", NOTHING)
    write_tombstones(store, "a", tombstones)
    assert read_tombstones(store, "a").same_as(tombstones)
    data = (tmp_path / "a").read_bytes()
    for offset in range(0, len(data), 3):
        bad = bytearray(data)
        bad[offset] ^= 4
        (tmp_path / "a").write_bytes(bad)
        with contextlib.suppress(CorruptionError):
            assert read_tombstones(store, "a").same_as(tombstones), f"byte {offset} changes what is deleted"
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(CorruptionError):
        read_tombstones(store, "a")
