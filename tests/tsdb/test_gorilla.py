"""The XOR codec: exact for every time and bit pattern, the same bits as its plain twin, safe on damaged bytes."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import gorilla as reference
from tests.shared import shared_path
from tsdb.batch import STALE_BITS
from tsdb.chunks import CHUNK_SPAN_MS, Chunks
from tsdb.errors import CorruptionError
from tsdb.gorilla import decode_rows, encode_rows
from tsdb.kernels.gorilla import WORDS_MAX

# With the JIT off, numpy warns where arithmetic wraps on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

SPECIAL = [
    0x0000000000000000,  # 0.0
    0x8000000000000000,  # -0.0
    0x7FF0000000000000,  # inf
    0xFFF0000000000000,  # -inf
    0x0000000000000001,  # least subnormal
    0x800FFFFFFFFFFFFF,  # largest negative subnormal
    0x433FFFFFFFFFFFFF,  # 2^53 - 1
    0x4340000000000000,  # 2^53
    0x4340000000000001,  # 2^53 + 2
    0x7FEFFFFFFFFFFFFF,  # max double
    0x7FF8000000000000,  # quiet NaN
    0x7FF8000000000123,  # quiet NaN with a payload
    0xFFF8000000000001,
    0x7FF0000000000001,  # signalling NaN
    STALE_BITS,
    0xFFFFFFFFFFFFFFFF,
    0x3FF0000000000000,  # 1.0
]
MIN, MAX = -(1 << 63), (1 << 63) - 1
STEPS = [0, 1, -64, 63, -65, 64, -2048, 2047, -2049, 2048, -524288, 524287, -524289, 524288, 15_000, 1 << 40]
values = st.one_of(
    st.sampled_from(SPECIAL),
    st.integers(0, (1 << 64) - 1),
    st.floats().map(lambda x: int(np.float64(x).view(np.uint64))),
    st.integers(0, 1000).map(lambda x: int(np.float64(x).view(np.uint64))),
)


def encoded(rows: list[int], samples: list[tuple[int, int]], span_ms: int = CHUNK_SPAN_MS) -> Chunks:
    ts_ms = np.array([t for t, _ in samples], np.int64)
    bits = np.array([v for _, v in samples], np.uint64)
    return encode_rows(np.array(rows, np.uint32), ts_ms, bits, span_ms)


def decoded(chunks: Chunks) -> list[tuple[int, int]]:
    ts_ms, bits = decode_rows(chunks)
    return list(zip(ts_ms.tolist(), bits.tolist(), strict=True))


def check_against_twin(rows: list[int], samples: list[tuple[int, int]], span_ms: int = CHUNK_SPAN_MS) -> None:
    chunks = encoded(rows, samples, span_ms)
    assert decoded(chunks) == samples
    expected = reference.chunks_of(rows, samples, span_ms)
    assert chunks.rows.tolist() == [row for row, _ in expected]
    assert chunks.counts.tolist() == [len(part) for _, part in expected]
    assert chunks.min_ms.tolist() == [part[0][0] for _, part in expected]
    assert chunks.max_ms.tolist() == [part[-1][0] for _, part in expected]
    for i, (_, part) in enumerate(expected):
        first = chunks.word_offsets[i]
        words = chunks.words[first : first + chunks.word_counts[i]].tolist()
        assert words == reference.encode_chunk(part)
        assert len(words) <= WORDS_MAX
        assert reference.decode_chunk(words, len(part)) == part


@st.composite
def series(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Samples of one series inside one span, in any order of time: order is a rule of the layer above."""
    start = draw(st.one_of(st.integers(MIN, MAX), st.sampled_from([0, MIN, MAX, -1, 1_700_000_000_000])))
    time = start
    samples = []
    for _ in range(draw(st.integers(1, 130))):
        samples.append((time, draw(values)))
        step = draw(st.one_of(st.sampled_from(STEPS), st.integers(-600_000, 600_000), st.integers(MIN, MAX)))
        time = reference.as_signed(time + step, 64)
    return samples


@pytest.mark.kernel
@settings(max_examples=60, deadline=None)
@given(series())
def test_any_samples_round_trip_with_the_bits_of_the_twin(samples: list[tuple[int, int]]) -> None:
    span = (1 << 63) - 1  # one span for all but the lowest and highest times: the codec itself does not care
    chunks = encoded([0] * len(samples), samples, span)
    assert decoded(chunks) == samples
    at = 0
    for i, count in enumerate(chunks.counts.tolist()):
        words = chunks.words[chunks.word_offsets[i] : chunks.word_offsets[i] + chunks.word_counts[i]].tolist()
        assert words == reference.encode_chunk(samples[at : at + count])
        assert reference.decode_chunk(words, count) == samples[at : at + count]
        at += count
    assert at == len(samples)


@pytest.mark.kernel
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rows_split_at_120_samples_and_at_spans(data: st.DataObject) -> None:
    span = data.draw(st.sampled_from([CHUNK_SPAN_MS, 60_000, 7]))
    rows: list[int] = []
    samples: list[tuple[int, int]] = []
    for row in data.draw(st.lists(st.integers(0, 5), unique=True).map(sorted)):
        time = data.draw(st.integers(-3 * span, 3 * span))
        for _ in range(data.draw(st.integers(1, 200))):
            rows.append(row)
            samples.append((time, data.draw(values) if len(samples) % 7 == 0 else SPECIAL[len(samples) % 3]))
            time += data.draw(st.sampled_from([1, 2, 15_000]))
    check_against_twin(rows, samples, span)


@pytest.mark.kernel
def test_every_transition_between_special_values_and_steps() -> None:
    transitions = [v for pair in itertools.product(SPECIAL, SPECIAL) for v in pair]
    samples = []
    time = 0
    for i, value in enumerate(transitions):
        samples.append((time, value))
        time += abs(STEPS[i % len(STEPS)]) % 5_000 + 1
    check_against_twin([0] * len(samples), samples)


@pytest.mark.kernel
@pytest.mark.parametrize("first", [MIN, MIN + 1, MAX - 200, MAX, 0, -1])
def test_extreme_times_have_borders(first: int) -> None:
    samples = [(t, 5) for t in range(first, min(first + 150, MAX) + 1)]
    check_against_twin([3] * len(samples), samples)


@pytest.mark.kernel
def test_the_example_of_the_format_page() -> None:
    page = (Path(__file__).parents[2] / "docs/format/chunk.md").read_text(encoding="utf-8")
    payload = re.search(r"```\n((?:[0-9a-f]{16}[ \n])+)```", page)
    assert payload
    start = 1_700_000_000_000
    one, two = 0x3FF0000000000000, 0x4000000000000000
    chunks = encoded(
        [0] * 4, [(start, one), (start + 15_000, one), (start + 30_000, two), (start + 45_003, STALE_BITS)]
    )
    assert chunks.words[: chunks.word_counts[0]].tolist() == [int(word, 16) for word in payload[1].split()]


def test_no_samples() -> None:
    chunks = encoded([], [])
    assert len(chunks) == 0
    assert decoded(chunks) == []


@pytest.mark.kernel
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_payloads_decode_as_the_twin_says(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 40))
    samples = [(i * 15_000 + data.draw(st.integers(0, 3)), data.draw(values)) for i in range(n)]
    chunks = encoded([0] * n, samples)
    words = chunks.words[: chunks.word_counts[0]].copy()
    if data.draw(st.booleans()):
        bit = data.draw(st.integers(0, 64 * len(words) - 1))
        words[bit // 64] ^= np.uint64(1 << (63 - bit % 64))
    words = words[: data.draw(st.integers(2, len(words)))]
    count = data.draw(st.integers(1, 3 * n))
    damaged = Chunks(
        rows=chunks.rows,
        kinds=chunks.kinds,
        min_ms=chunks.min_ms,
        max_ms=chunks.max_ms,
        counts=np.array([count], np.int32),
        word_offsets=np.zeros(1, np.int64),
        word_counts=np.array([len(words)], np.int32),
        words=words,
    )
    try:
        expected = reference.decode_chunk(words.tolist(), count)
    except ValueError:
        with pytest.raises(CorruptionError):
            decode_rows(damaged)
    else:
        assert decoded(damaged) == expected


@pytest.mark.parametrize(
    ("column", "value"), [("word_offsets", -1), ("word_offsets", MAX), ("word_counts", 1), ("counts", 0), ("kinds", 16)]
)
def test_lying_descriptors_are_refused(column: str, value: int) -> None:
    chunks = encoded([0] * 10, [(i, i) for i in range(10)])
    getattr(chunks, column)[0] = value
    with pytest.raises(CorruptionError, match="NATIVE_HISTOGRAM" if column == "kinds" else "payload"):
        decode_rows(chunks)


@pytest.mark.parametrize(
    ("file", "step_ms", "bytes_max"),
    [("envoy_1.40_scrapes.npz", 2000, 1.50), ("node_exporter_1.5_scrapes.npz", 1000, 2.60)],
)
def test_captures_round_trip_small(file: str, step_ms: int, bytes_max: float) -> None:
    archive = np.load(shared_path(f"data/{file}"))
    taken, values = archive["T"], np.ascontiguousarray(archive["M"])
    late = (taken - taken[0]) - np.round((taken - taken[0]) / step_ms) * step_ms
    ts_ms = 1_700_000_000_000 + np.arange(len(taken)) * 15_000 + np.clip(late, -2000, 2000).astype(np.int64)
    times, bits = np.tile(ts_ms, len(values)), values.view(np.uint64).reshape(-1)
    chunks = encode_rows(np.repeat(np.arange(len(values), dtype=np.uint32), len(taken)), times, bits)
    out_times, out_bits = decode_rows(chunks)
    assert np.array_equal(out_times, times)
    assert np.array_equal(out_bits, bits)
    assert 8 * chunks.word_counts.sum() / len(bits) < bytes_max
