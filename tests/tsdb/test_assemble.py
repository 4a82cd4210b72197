"""Assembling several sources against a dict: overlaps, ranges, extremes, exact bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.head import Sample
from tests.reference.head import assemble as reference
from tsdb.assemble import assemble
from tsdb.batch import STALE_BITS
from tsdb.chunks import Chunks, LateSamples
from tsdb.errors import CorruptionError
from tsdb.gorilla import encode_rows

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

MIN_MS, MAX_MS = -(1 << 63), (1 << 63) - 1
ROWS = 5
Part = tuple[Chunks, LateSamples]

times = st.one_of(st.integers(-100, 400), st.sampled_from([MIN_MS, MIN_MS + 1, MAX_MS - 1, MAX_MS]))
bit_patterns = st.sampled_from([0, 1 << 63, STALE_BITS, 0x7FF8000000000001, 5])
points = st.tuples(st.integers(0, ROWS - 1), times)


def plain(samples: list[Sample]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    samples = sorted(samples)
    return (
        np.array([r for r, _, _ in samples], np.int32),
        np.array([t for _, t, _ in samples], np.int64),
        np.array([v for _, _, v in samples], np.uint64),
    )


def late_of(samples: dict[tuple[int, int], int]) -> LateSamples:
    return LateSamples(*plain([(*k, v) for k, v in samples.items()]))


def chunks_of(samples: dict[tuple[int, int], int], span_ms: int = 150) -> Chunks:
    return encode_rows(*plain([(*k, v) for k, v in samples.items()]), span_ms)


@st.composite
def dense(draw: st.DrawFn) -> dict[tuple[int, int], int]:
    """Runs of samples in several rows, with the odd one far away."""
    samples = draw(st.dictionaries(points, bit_patterns, max_size=8))
    for row in range(ROWS):
        if draw(st.booleans()):
            first, step, bits = draw(st.integers(-50, 200)), draw(st.sampled_from([1, 3])), draw(bit_patterns)
            samples |= {(row, first + step * k): bits ^ k for k in range(draw(st.integers(1, 150)))}
    return samples


def check(parts: list[Part], mint: int, maxt: int, workers: int = 2) -> None:
    offsets, ts_ms, values = assemble(ROWS, parts, mint, maxt, workers)
    bits = values.view(np.uint64)
    expected = reference(ROWS, parts, mint, maxt)
    assert offsets.tolist() == [0, *np.cumsum([len(row) for row in expected]).tolist()]
    assert list(zip(ts_ms.tolist(), bits.tolist(), strict=True)) == [sample for row in expected for sample in row]
    assert (ts_ms.dtype, values.dtype) == (np.int64, np.float64)


@pytest.mark.kernel
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_sources_are_merged_as_a_dict_would(data: st.DataObject) -> None:
    parts = []
    for _ in range(data.draw(st.integers(0, 4))):
        chunks = chunks_of(data.draw(dense()), data.draw(st.sampled_from([30, 150, 10_000])))
        late = late_of(data.draw(st.one_of(st.just({}), dense())))
        parts.append((chunks, late))
    for mint, maxt in [(MIN_MS, MAX_MS), data.draw(st.tuples(times, times))]:
        check(parts, mint, maxt)


@pytest.mark.kernel
@settings(max_examples=30, deadline=None)
@given(dense(), dense(), st.tuples(times, times))
def test_chunks_of_one_row_may_overlap_within_a_part(
    first: dict[tuple[int, int], int], second: dict[tuple[int, int], int], bounds: tuple[int, int]
) -> None:
    """A block also holds what came late, encoded: its chunks then overlap others of their row."""
    a, b = chunks_of(first), chunks_of(second)
    order = np.argsort(np.concatenate([a.rows, b.rows]), kind="stable")
    both = Chunks(
        rows=np.concatenate([a.rows, b.rows])[order],
        kinds=np.concatenate([a.kinds, b.kinds])[order],
        min_ms=np.concatenate([a.min_ms, b.min_ms])[order],
        max_ms=np.concatenate([a.max_ms, b.max_ms])[order],
        counts=np.concatenate([a.counts, b.counts])[order],
        word_offsets=np.concatenate([a.word_offsets, b.word_offsets + len(a.words)])[order],
        word_counts=np.concatenate([a.word_counts, b.word_counts])[order],
        words=np.concatenate([a.words, b.words]),
    )
    check([(both, late_of({}))], *bounds)
    check([(both, late_of({}))], MIN_MS, MAX_MS)


@pytest.mark.kernel
def test_words_without_padding_and_read_only_decode() -> None:
    samples = {(row, 15_000 * k): k << 40 | row for row in range(ROWS) for k in range(100)}
    chunks = chunks_of(samples, 7_200_000)
    end = int(chunks.word_offsets[-1] + chunks.word_counts[-1])
    tight = chunks.words[:end].copy()
    tight.setflags(write=False)
    check([(replace(chunks, words=tight), late_of({}))], MIN_MS, MAX_MS)
    check([(replace(chunks, words=tight), late_of({(2, 7): 1, (9 % ROWS, -1): 2}))], 1000, 1_000_000)


@pytest.mark.kernel
def test_equal_times_keep_the_first_source() -> None:
    parts = [(chunks_of({(0, t): n for t in range(5)}), late_of({(0, 7): n})) for n in (1, 2, 3)]
    offsets, ts_ms, values = assemble(ROWS, parts, MIN_MS, MAX_MS)
    assert ts_ms.tolist() == [0, 1, 2, 3, 4, 7]
    assert values.view(np.uint64).tolist() == [1] * 6
    assert offsets.tolist() == [0] + [6] * ROWS


@pytest.mark.parametrize("workers", [1, 2])
def test_two_threads_leave_no_gap(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr("tsdb.assemble.SAMPLES_PER_THREAD_MIN", 1)
    rng = np.random.default_rng(6)
    n, m = 60, 500
    rows = np.repeat(np.arange(n, dtype=np.int32), m)
    ts_ms = np.cumsum(rng.integers(1, 30_000, (n, m)), axis=1).reshape(-1)
    bits = rng.integers(0, 1 << 63, n * m, dtype=np.uint64)
    late = LateSamples(np.arange(0, n, 7, dtype=np.int32), np.full(9, 4_000_000), np.zeros(9, np.uint64))
    for mint, maxt in [(MIN_MS, MAX_MS), (1_000_000, 5_000_000), (0, 10), (9, 3)]:
        offsets, out_ts, values = assemble(n, [(encode_rows(rows, ts_ms, bits), late)], mint, maxt, workers)
        chosen = (ts_ms >= mint) & (ts_ms <= maxt)
        late_chosen = (late.ts_ms >= mint) & (late.ts_ms <= maxt)
        all_rows = np.concatenate([rows[chosen], late.rows[late_chosen]])
        all_ts = np.concatenate([ts_ms[chosen], late.ts_ms[late_chosen]])
        all_bits = np.concatenate([bits[chosen], late.bits[late_chosen]])
        order = np.lexsort((all_ts, all_rows))
        assert np.array_equal(out_ts, all_ts[order])
        assert np.array_equal(values.view(np.uint64), all_bits[order])
        assert np.array_equal(np.diff(offsets), np.bincount(all_rows, minlength=n))


def test_nothing_to_assemble() -> None:
    for n_rows in (0, 3):
        offsets, ts_ms, values = assemble(n_rows, [], MIN_MS, MAX_MS)
        assert (offsets.tolist(), len(ts_ms), len(values)) == ([0] * (n_rows + 1), 0, 0)


@pytest.mark.parametrize(
    ("column", "value"), [("rows", ROWS), ("rows", -1), ("counts", 0), ("word_offsets", -5), ("word_counts", 10_000)]
)
def test_lying_descriptors_are_refused(column: str, value: int) -> None:
    chunks = chunks_of({(1, t): t for t in range(50)})
    getattr(chunks, column)[0] = value
    with pytest.raises(CorruptionError):
        assemble(ROWS, [(chunks, late_of({}))], MIN_MS, MAX_MS)


def test_a_damaged_payload_is_refused() -> None:
    chunks = chunks_of({(1, 17 * t): t for t in range(100)}, 7_200_000)
    chunks.counts[0] = 60_000
    with pytest.raises(CorruptionError, match="decode"):
        assemble(ROWS, [(chunks, late_of({}))], MIN_MS, MAX_MS)
