"""The ring of exemplars beside a list."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tsdb.exemplars import ExemplarRing, ExemplarStatus
from tsdb.index.registry import SeriesRegistry
from tsdb.limits import SeriesLimits

Row = tuple[int, int, int, bytes]


class Plain:
    """Everything kept, oldest first."""

    def __init__(self, capacity: int, label_bytes: int) -> None:
        self.capacity = capacity
        self.label_bytes = label_bytes
        self.rows: list[Row] = []

    def append(self, row: Row) -> ExemplarStatus:
        own = [known for known in self.rows if known[0] == row[0]]
        if row in own:
            return ExemplarStatus.REPEATED
        if own and row[1] < own[-1][1]:
            return ExemplarStatus.OUT_OF_ORDER
        self.rows = self.rows[-self.capacity + 1 :] if self.capacity > 1 else []
        while sum(len(known[3]) for known in self.rows) + len(row[3]) > self.label_bytes:
            self.rows.pop(0)
        self.rows.append(row)
        return ExemplarStatus.KEPT


def append(ring: ExemplarRing, rows: list[Row]) -> list[int]:
    refs, ts_ms, bits, labels = zip(*rows, strict=True)
    status = ring.append(
        np.array(refs, np.uint32), np.array(ts_ms, np.int64), np.array(bits, np.uint64), list(labels), ring.registry
    )
    return status.tolist()


rows = st.tuples(
    st.integers(0, 3), st.integers(-3, 9), st.integers(0, 2), st.sampled_from([b"", b"a", b"bcd", b"x" * 9])
)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6), st.integers(9, 30), st.lists(st.lists(rows, min_size=1, max_size=5), max_size=12))
def test_the_ring_is_the_list(capacity: int, label_bytes: int, batches: list[list[Row]]) -> None:
    ring, plain = ExemplarRing(SeriesRegistry(SeriesLimits()), capacity, label_bytes), Plain(capacity, label_bytes)
    for batch in batches:
        assert append(ring, batch) == [plain.append(row) for row in batch]
        assert len(ring) == len(plain.rows)
        for refs, mint, maxt in (([0, 1, 2, 3], -9, 99), ([1, 3], 0, 5)):
            found = ring.select(np.array(refs, np.uint32), mint, maxt, ring.registry)
            assert found is not None
            wanted = [row for row in plain.rows if row[0] in refs and mint <= row[1] <= maxt]
            columns = zip(found.refs.tolist(), found.ts_ms.tolist(), found.bits.tolist(), found.labels, strict=True)
            assert list(columns) == sorted(wanted, key=lambda row: row[:2])


def test_a_resent_batch_is_a_repeat() -> None:
    ring = ExemplarRing(SeriesRegistry(SeriesLimits()))
    batch: list[Row] = [(1, t, 7, b"trace") for t in range(5)]
    assert append(ring, batch) == [ExemplarStatus.KEPT] * 5
    assert append(ring, batch) == [ExemplarStatus.REPEATED] * 5
    assert ring.kept == 5
