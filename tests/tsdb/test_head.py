"""The head against a model of dicts, its limits, and readers beside a writer."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from numpy.typing import NDArray

from tests.reference.head import HeadModel, Sample, samples_of
from tsdb.assemble import assemble
from tsdb.batch import STALE_BITS, SampleStatus
from tsdb.chunks import CHUNK_SAMPLES_MAX, CHUNK_SPAN_MS
from tsdb.errors import OverloadedError
from tsdb.head import MAX_MS, MIN_MS, Head

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

SPAN = 10_000
SLOTS = 12
START = 1_700_000_000_000 // CHUNK_SPAN_MS * CHUNK_SPAN_MS


def columns(samples: list[Sample]) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.uint64]]:
    return (
        np.array([s for s, _, _ in samples], np.uint32),
        np.array([t for _, t, _ in samples], np.int64),
        np.array([v for _, _, v in samples], np.uint64),
    )


def append(head: Head, samples: list[Sample], window: int = MIN_MS, cut: int = MIN_MS) -> list[int]:
    status = np.full(len(samples), 77, np.uint8)
    accepted = head.append(*columns(samples), status, window, cut)
    assert accepted == np.isin(status, [SampleStatus.ACCEPTED, SampleStatus.REPEATED]).sum()
    return status.tolist()


def append_late(head: Head, samples: list[Sample]) -> list[int]:
    status = np.full(len(samples), 77, np.uint8)
    head.append_late(*columns(samples), status)
    return status.tolist()


def held(head: Head, mint: int = MIN_MS, maxt: int = MAX_MS, slots: int = SLOTS) -> dict[tuple[int, int], int]:
    chunks, late = head.snapshot(np.arange(slots, dtype=np.uint32), mint, maxt)
    assert np.all(np.diff(chunks.rows) >= 0)
    found = samples_of(chunks, late)
    result = {(slot, t): bits for slot, t, bits in found}
    assert len(result) == len(found), "a sample is there twice"
    return result


times = st.one_of(
    st.integers(-3, 12).map(lambda k: k * SPAN // 4),
    st.integers(-SPAN, 3 * SPAN),
    st.sampled_from([MIN_MS, MIN_MS + 1, MAX_MS - 1, MAX_MS]),
)
bit_patterns = st.sampled_from([0, 1, STALE_BITS, 0x7FF8000000000001, 1 << 63, (1 << 64) - 1, 0x3FF0000000000000])
samples = st.tuples(st.integers(0, SLOTS - 1), times, bit_patterns)


class HeadMachine(RuleBasedStateMachine):
    """Batches, late batches, cuts and drops in any order; after each step head and model hold the same."""

    cuts = Bundle("cuts")

    @initialize()
    def begin(self) -> None:
        self.head = Head(SLOTS, span_ms=SPAN)
        self.model = HeadModel()
        self.is_cut = False

    @rule(
        batch=st.lists(samples, min_size=1, max_size=20),
        window=st.one_of(st.just(MIN_MS), times),
        cut=st.one_of(st.just(MIN_MS), times),
    )
    def batch(self, batch: list[Sample], window: int, cut: int) -> None:
        assert append(self.head, batch, window, cut) == self.model.append(batch, window, cut)

    @rule(
        slot=st.integers(0, SLOTS - 1),
        first=st.integers(-SPAN, 3 * SPAN),
        step=st.sampled_from([1, 17, 999]),
        n=st.integers(1, 300),
    )
    def run_of_samples(self, slot: int, first: int, step: int, n: int) -> None:
        batch = [(slot, first + k * step, k * 0x0123456789ABCDEF % (1 << 64)) for k in range(n)]
        assert append(self.head, batch) == self.model.append(batch, MIN_MS, MIN_MS)

    @rule(batch=st.lists(samples, min_size=1, max_size=8))
    def late_batch(self, batch: list[Sample]) -> None:
        # What comes after the newest of its series is no late sample: the caller never sends it.
        late = [s for s in batch if s[1] <= self.model.newest.get(s[0], (MIN_MS, 0))[0] or s[1] < self.model.border_ms]
        if late:
            assert append_late(self.head, late) == self.model.append_late(late)

    @rule(border=st.integers(-2, 5), target=cuts)
    def cut(self, border: int) -> object:
        border_ms = border * SPAN
        if border_ms < self.model.border_ms:
            return multiple()
        slots, chunks, late = self.head.cut(border_ms)
        found = samples_of(chunks, late)
        assert {(int(slots[row]), t): v for row, t, v in found} == self.model.cut(border_ms)
        assert slots.tolist() == sorted({int(slots[row]) for row, _, _ in found})
        self.is_cut = True
        return border_ms

    @rule(slots=st.lists(st.integers(0, SLOTS - 1), max_size=4), mint=times, maxt=st.one_of(st.just(MAX_MS), times))
    def erase(self, slots: list[int], mint: int, maxt: int) -> None:
        self.is_cut = False  # a cut that failed before it must be repeated before anything is dropped
        self.head.erase(np.array(slots, np.uint32), mint, maxt)
        self.model.erase(slots, mint, maxt)

    @rule(border_ms=cuts)
    def drop(self, border_ms: int) -> None:
        if border_ms == self.model.border_ms and self.is_cut:
            self.head.drop(border_ms)
            self.model.drop(border_ms)

    @rule(mint=times, maxt=times)
    def read_range(self, mint: int, maxt: int) -> None:
        slots = np.arange(SLOTS, dtype=np.uint32)[::-1].copy()
        offsets, ts_ms, values = assemble(SLOTS, [self.head.snapshot(slots, mint, maxt)], mint, maxt)
        rows = np.repeat(slots, np.diff(offsets)).tolist()
        found = dict(zip(zip(rows, ts_ms.tolist(), strict=True), values.view(np.uint64).tolist(), strict=True))
        assert found == {k: v for k, v in self.model.held().items() if mint <= k[1] <= maxt}

    @invariant()
    def same(self) -> None:
        model = self.model.held()
        assert held(self.head) == model
        assert self.head.sample_count == len(model)
        assert self.head.newest_ms == self.model.newest_ms
        assert self.head.oldest_ms == min((t for _, t in model), default=MAX_MS)


HeadMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestHeadAgainstModel = pytest.mark.kernel(HeadMachine.TestCase)


def test_repeats_and_conflicts_are_told_apart() -> None:
    head = Head(4)
    assert append(head, [(0, START + 1, 5), (0, START + 2, 6), (0, START + 3, 7)]) == [0, 0, 0]
    statuses = append(head, [(0, START + 3, 7), (0, START + 3, 8), (0, START + 1, 5), (0, START + 1, 6)])
    assert statuses == [
        SampleStatus.REPEATED,
        SampleStatus.DUPLICATE,
        SampleStatus.REPEATED,
        SampleStatus.DUPLICATE,
    ]
    # -0.0 is not 0.0, and a stale marker is not another NaN: bits decide.
    assert append(head, [(1, 1, 0), (1, 1, 1 << 63), (2, 1, STALE_BITS), (2, 1, STALE_BITS)]) == [0, 2, 0, 1]


def test_floors() -> None:
    head = Head(4)
    assert append(head, [(0, 100, 1), (1, 100, 1)], window=50, cut=80) == [0, 0]
    got = append(head, [(0, 49, 1), (0, 79, 1), (0, 80, 1), (2, 49, 1), (2, 79, 1), (2, 80, 1)], window=50, cut=80)
    old, below, ok = SampleStatus.TOO_OLD, SampleStatus.BELOW_CUT, SampleStatus.ACCEPTED
    assert got == [old, below, ok, old, below, ok]
    assert append_late(head, [(0, 79, 1), (0, 79, 1), (0, 79, 2), (0, 100, 1)]) == [0, 1, 2, 1]
    # What is stored stays known below a floor: a sender's retry is harmless.
    assert append(head, [(0, 79, 1), (0, 80, 1), (0, 79, 3)], window=90, cut=90) == [1, 1, 2]


def test_chunks_close_at_120_samples_and_at_spans() -> None:
    head = Head(2)
    n = 3 * CHUNK_SAMPLES_MAX + 5
    append(head, [(0, START + 1000 * k, k) for k in range(n)])
    append(head, [(1, START + CHUNK_SPAN_MS - 1, 1), (1, START + CHUNK_SPAN_MS, 2)])
    chunks, late = head.snapshot(np.arange(2, dtype=np.uint32), MIN_MS, MAX_MS)
    assert chunks.rows.tolist() == [0] * 4 + [1] * 2
    assert chunks.counts.tolist() == [120, 120, 120, 5, 1, 1]
    assert len(late) == 0
    assert head.chunk_count == 6
    assert head.stats.open_chunks == 2


def test_snapshot_takes_only_chunks_of_the_range() -> None:
    head = Head(1)
    append(head, [(0, 1000 * k, k) for k in range(600)])
    slot = np.zeros(1, np.uint32)
    for mint, maxt, first, last in [
        (0, 0, 0, 0),
        (119_000, 120_000, 0, 1),
        (500_000, 10**9, 4, 4),
        (10**9, 10**9, 5, 4),
    ]:
        chunks, _ = head.snapshot(slot, mint, maxt)
        assert (chunks.min_ms // 120_000).tolist() == list(range(first, last + 1))


def test_one_series_takes_little_memory_after_30_samples() -> None:
    n = 2000
    head = Head(n)
    slots, status = np.arange(n, dtype=np.uint32), np.zeros(n, np.uint8)
    for k in range(30):
        head.append(slots, np.full(n, START + 15_000 * k), np.full(n, 4.0 + k).view(np.uint64), status)
    assert head.memory_bytes / n <= 64 + 2 * 128


def test_dropped_memory_is_used_again() -> None:
    head = Head(1000)
    slots, status = np.arange(1000, dtype=np.uint32), np.zeros(1000, np.uint8)
    rng = np.random.default_rng(3)
    sizes = []
    for span in range(6):
        for k in range(120):
            ts_ms = np.full(1000, START + span * CHUNK_SPAN_MS + 60_000 * k)
            head.append(slots, ts_ms, rng.random(1000).view(np.uint64), status)
            assert not status.any()
        border = START + (span + 1) * CHUNK_SPAN_MS
        cut_slots, chunks, late = head.cut(border)
        assert (len(cut_slots), len(chunks), len(late)) == (1000, 1000, 0)
        head.drop(border)
        sizes.append(head.memory_bytes)
        assert (head.sample_count, head.chunk_count, head.oldest_ms) == (0, 0, MAX_MS)
    assert sizes[-1] <= sizes[0] + (1 << 20)


def test_a_full_head_refuses_before_anything_is_stored_and_can_be_cut() -> None:
    head = Head(100, sealed_bytes_max=3 << 20)
    rng = np.random.default_rng(4)
    slots, status = np.arange(100, dtype=np.uint32), np.zeros(100, np.uint8)
    stored = 0

    def fill() -> None:
        nonlocal stored
        for k in range(10_000):
            head.append(slots, np.full(100, START + 50 * k), rng.random(100).view(np.uint64), status)
            stored += 100

    with pytest.raises(OverloadedError):
        fill()
    assert head.sample_count == stored
    assert 1.5e6 < 8 * stored < 3.2e6
    border = START + CHUNK_SPAN_MS
    _, chunks, _ = head.cut(border)
    assert chunks.counts.sum() == stored
    head.drop(border)
    assert append(head, [(0, border, 1)]) == [0]


def test_late_samples_are_bounded() -> None:
    head = Head(2, late_samples_max=10)
    append(head, [(0, 1000, 1)])
    append(head, [(0, k, 1) for k in range(5)])
    before = held(head, slots=2)
    with pytest.raises(OverloadedError, match="late"):
        append(head, [(0, 100 + k, 1) for k in range(6)])
    assert held(head, slots=2) == before


def test_many_slots_are_read_in_several_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsdb.head.SLOTS_PER_HOLD", 3)
    head = Head(SLOTS, span_ms=SPAN)
    batch = [(slot, 7 * slot + k * 100, slot * k) for slot in range(SLOTS) for k in range(slot * 20)]
    append(head, batch)
    assert held(head) == {(s, t): v for s, t, v in batch}
    slots, chunks, late = head.cut(SPAN)
    assert {(int(slots[r]), t): v for r, t, v in samples_of(chunks, late)} == {
        (s, t): v for s, t, v in batch if t < SPAN
    }
    head.drop(SPAN)
    assert held(head) == {(s, t): v for s, t, v in batch if t >= SPAN}


def test_a_late_sample_after_the_cut_survives_the_drop() -> None:
    head = Head(2, span_ms=SPAN)
    append(head, [(0, 1, 1), (0, SPAN + 1, 2)])
    _, chunks, late = head.cut(SPAN)
    assert samples_of(chunks, late) == [(0, 1, 1)]
    assert append(head, [(0, 2, 9), (1, 2, 9)]) == [SampleStatus.BELOW_CUT] * 2
    assert append_late(head, [(0, 2, 9)]) == [0]
    head.drop(SPAN)
    assert held(head, slots=2) == {(0, 2): 9, (0, SPAN + 1): 2}
    slots, chunks, late = head.cut(SPAN)
    assert (slots.tolist(), len(chunks), samples_of(chunks, late)) == ([0], 0, [(0, 2, 9)])


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(400)))
def test_samples_in_any_order_are_all_kept(order: list[int]) -> None:
    head = Head(1)
    batch = [(0, 15_000 * k, k * 3) for k in order]
    for i in range(0, len(batch), 37):
        assert set(append(head, batch[i : i + 37])) == {0}
    offsets, ts_ms, values = assemble(1, [head.snapshot(np.zeros(1, np.uint32), MIN_MS, MAX_MS)], MIN_MS, MAX_MS)
    assert ts_ms.tolist() == [15_000 * k for k in range(400)]
    assert values.view(np.uint64).tolist() == [3 * k for k in range(400)]
    assert offsets.tolist() == [0, 400]


def test_readers_beside_a_writer_and_cuts() -> None:
    """Every snapshot holds, for each series, all samples from the published border to some recent one, exact."""
    n, span, rounds = 300, 1000, 1500
    head = Head(n, span_ms=span)
    slots = np.arange(n, dtype=np.uint32)
    published = [0]  # everything below is in a "block"
    written = [-1]  # every sample up to this time is stored
    errors: list[BaseException] = []
    done = threading.Event()

    def bits_at(ts_ms: NDArray[np.int64]) -> NDArray[np.uint64]:
        mixed = (ts_ms.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        return np.where(ts_ms % 3 == 0, mixed, np.uint64(STALE_BITS))

    def write() -> None:
        status = np.zeros(n, np.uint8)
        for k in range(rounds):
            ts_ms = np.full(n, 10 * k, np.int64)
            if k % 5 == 4:  # the second half comes late by one round
                head.append(slots, ts_ms, bits_at(ts_ms), status)
                assert not status.any()
                head.append(slots[n // 2 :], ts_ms[n // 2 :] - 10, bits_at(ts_ms[n // 2 :] - 10), status[n // 2 :])
                assert not status.any()
                written[0] = 10 * k
            elif k % 5 == 3:
                head.append(slots[: n // 2], ts_ms[: n // 2], bits_at(ts_ms[: n // 2]), status[: n // 2])
            else:
                head.append(slots, ts_ms, bits_at(ts_ms), status)
                written[0] = 10 * k
            if k % 150 == 149:
                border = (10 * k - 200) // span * span
                _, chunks, late = head.cut(border)
                assert int(chunks.counts.sum()) + len(late) == n * (border - published[0]) // 10
                published[0] = border
                head.drop(border)

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not done.is_set():
            until = written[0]
            some = rng.permutation(n)[: rng.integers(1, n)].astype(np.uint32)
            part = head.snapshot(some, MIN_MS, MAX_MS)
            border = published[0]  # read after the head, as a shard does
            offsets, ts_ms, values = assemble(len(some), [part], border, MAX_MS)
            for row in range(len(some)):
                times = ts_ms[offsets[row] : offsets[row + 1]]
                assert len(times) >= (until - border) // 10 + 1
                known = times[times <= until]
                assert np.array_equal(known, np.arange(border, until + 1, 10)), (border, until, known)
            assert np.array_equal(values.view(np.uint64), bits_at(ts_ms))

    def guard(work: threading.Thread) -> threading.Thread:
        work.start()
        return work

    def run(target: object, *args: object) -> None:
        try:
            target(*args)  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001  # shown by the main thread
            errors.append(error)

    readers = [guard(threading.Thread(target=run, args=(read, seed))) for seed in range(3)]
    writer = guard(threading.Thread(target=run, args=(write,)))
    begin = time.monotonic()
    writer.join()
    done.set()
    for reader in readers:
        reader.join()
    if errors:
        raise errors[0]
    assert time.monotonic() - begin < 60
