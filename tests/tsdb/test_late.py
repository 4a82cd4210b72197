"""Late samples: sorted runs that grow like an LSM tree, whatever the order of arrival."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.head import Sample
from tsdb.batch import SampleStatus
from tsdb.chunks import LateSamples
from tsdb.late import LateStore, Run, gather, merge

MIN_MS, MAX_MS = -(1 << 63), (1 << 63) - 1

keys = st.tuples(st.integers(0, 6), st.one_of(st.integers(-20, 20), st.sampled_from([MIN_MS, MAX_MS])))
samples = st.tuples(keys, st.sampled_from([0, 1, 1 << 63])).map(lambda s: (*s[0], s[1]))


def columns(batch: list[Sample]) -> Run:
    return Run(
        np.array([s for s, _, _ in batch], np.uint32),
        np.array([t for _, t, _ in batch], np.int64),
        np.array([v for _, _, v in batch], np.uint64),
    )


def triples(late: LateSamples | Run) -> list[Sample]:
    first = late.rows if isinstance(late, LateSamples) else late.slots
    return list(zip(first.tolist(), late.ts_ms.tolist(), late.bits.tolist(), strict=True))


def put(store: LateStore, batch: list[Sample]) -> list[int]:
    """Find, then add what was not found, as the head does."""
    run = columns(batch)
    status = np.full(len(batch), 255, np.uint8)
    store.find(*run, status)
    new = np.flatnonzero(status == 255)
    decided = np.zeros(len(new), np.uint8)
    assert store.add(run.slots[new], run.ts_ms[new], run.bits[new], decided) == (decided == 0).sum()
    status[new] = decided
    return status.tolist()


class Model:
    """The same as dicts."""

    def __init__(self) -> None:
        self.live: dict[tuple[int, int], int] = {}
        self.cut: dict[tuple[int, int], int] = {}

    def put(self, slot: int, time: int, bits: int) -> SampleStatus:
        known = (self.live | self.cut).get((slot, time))
        if known is None:
            self.live[slot, time] = bits
            return SampleStatus.ACCEPTED
        return SampleStatus.REPEATED if known == bits else SampleStatus.DUPLICATE


def check_same(store: LateStore, model: Model) -> None:
    held = model.live | model.cut
    assert store.count == len(held)
    assert store.oldest_ms == min((t for _, t in held), default=MAX_MS)
    everything = gather(store.runs, np.arange(8, dtype=np.uint32), MIN_MS, MAX_MS)
    assert triples(everything) == sorted((slot, time, bits) for (slot, time), bits in held.items())


@pytest.mark.kernel
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_store_is_a_sorted_dict_through_cuts(data: st.DataObject) -> None:
    store, model = LateStore(), Model()
    for _ in range(data.draw(st.integers(1, 12))):
        batch = data.draw(st.lists(samples, min_size=1, max_size=15))
        assert put(store, batch) == [model.put(*sample) for sample in batch]
        if data.draw(st.integers(0, 3)) == 0:
            border = data.draw(st.integers(-21, 21))
            taken = store.cut(border)
            model.cut |= {k: v for k, v in model.live.items() if k[1] < border}
            model.live = {k: v for k, v in model.live.items() if k[1] >= border}
            expected = sorted((*k, v) for k, v in model.cut.items() if k[1] < border)
            assert triples(taken) == expected
            check_same(store, model)
            if data.draw(st.booleans()):
                assert store.drop(border) == len(expected)
                model.cut = {k: v for k, v in model.cut.items() if k[1] >= border}
        check_same(store, model)


@pytest.mark.kernel
@settings(max_examples=60, deadline=None)
@given(st.lists(samples, max_size=60), st.lists(st.integers(0, 7), unique=True), st.data())
def test_gather_takes_the_range_of_the_asked_slots(batch: list[Sample], slots: list[int], data: st.DataObject) -> None:
    store = LateStore()
    for i in range(0, len(batch), 7):
        put(store, batch[i : i + 7])
    edge = st.one_of(st.integers(-21, 21), st.sampled_from([MIN_MS, MAX_MS]))
    mint, maxt = data.draw(edge), data.draw(edge)
    stored = {(s, t): v for s, t, v in triples(gather(store.runs, np.arange(8, dtype=np.uint32), MIN_MS, MAX_MS))}
    late = gather(store.runs, np.array(slots, np.uint32), mint, maxt)
    assert late.rows.dtype == np.int32
    assert triples(late) == sorted(
        (slots.index(s), t, v) for (s, t), v in stored.items() if s in slots and mint <= t <= maxt
    )


@pytest.mark.kernel
def test_merge_keeps_the_first_of_equal_keys() -> None:
    first, second = columns([(0, 1, 5), (2, 7, 5)]), columns([(0, 1, 6), (0, 2, 6), (2, 7, 6), (3, MIN_MS, 6)])
    assert triples(merge(first, second)) == [(0, 1, 5), (0, 2, 6), (2, 7, 5), (3, MIN_MS, 6)]
    assert triples(merge(second, first)) == triples(second)


def test_runs_stay_few() -> None:
    store = LateStore()
    rng = np.random.default_rng(5)
    order = rng.permutation(3000)
    for time in order.tolist():
        put(store, [(0, time, 1)])
    assert len(store.runs) <= 12
    assert store.count == 3000
    sizes = [len(run.slots) for run in store.runs]
    assert all(a >= 2 * b for a, b in itertools.pairwise(sizes))
