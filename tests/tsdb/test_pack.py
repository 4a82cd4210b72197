"""PACK chunks: the same words as the plain twin, the same samples as before, and no trust in damaged words."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.pack import pack
from tsdb.assemble import assemble
from tsdb.batch import STALE_BITS
from tsdb.chunks import NO_LATE, ChunkKind, Chunks
from tsdb.errors import CorruptionError
from tsdb.gorilla import decode_rows, encode_rows, repack

T0 = 1_700_006_400_000


def bits_of(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


def chunk(times: list[int], bits: list[int]) -> Chunks:
    rows = np.zeros(len(times), np.int32)
    return encode_rows(rows, np.array(times, np.int64), np.array(bits, np.uint64), 1 << 62)


def unpacked(chunks: Chunks) -> tuple[list[int], list[int]]:
    ts_ms, bits = decode_rows(chunks)
    return ts_ms.tolist(), bits.tolist()


whole = st.integers(-(1 << 53), 1 << 53).map(float)
decimal = st.tuples(st.integers(-(10**9), 10**9), st.integers(0, 9)).map(lambda p: p[0] / 10.0 ** p[1])
special = st.sampled_from([0.0, -0.0, 1e300, 5e-324, float("inf"), 2.0**53, 2.0**53 - 1, 0.1 + 0.2, 1 / 3])
counters = st.lists(st.integers(0, 1000), min_size=1, max_size=120).map(lambda d: np.cumsum(d).astype(float).tolist())
values = counters | st.lists(whole, min_size=1, max_size=120) | st.lists(decimal | special, min_size=1, max_size=120)
late = st.lists(st.integers(-400, 400), min_size=120, max_size=120) | st.just([0] * 120)
steps = st.sampled_from([1000, 15_000, 60_000, 1 << 33])


@pytest.mark.kernel
@settings(deadline=None, max_examples=300)
@given(values, late, steps)
def test_words_are_those_of_the_twin_and_samples_stay(given: list[float], lateness: list[int], step: int) -> None:
    times = sorted({T0 + i * step + lateness[i] for i in range(len(given))})
    bits = [bits_of(v) for v in given[: len(times)]]
    plain = chunk(times, bits)
    packed = repack(plain)
    assert unpacked(packed) == (times, bits)
    expected = pack(times, bits)
    room = int(plain.word_counts[0]) * 9 // 8
    if expected is not None and len(expected) <= room:
        assert packed.kinds.tolist() == [ChunkKind.PACK]
        first = int(packed.word_offsets[0])
        assert packed.words[first : first + int(packed.word_counts[0])].tolist() == expected
    else:
        assert packed.kinds.tolist() == [ChunkKind.XOR]


@pytest.mark.kernel
@settings(deadline=None)
@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=120), st.integers(-(1 << 62), 1 << 62))
def test_any_bits_and_times_stay(bits: list[int], first: int) -> None:
    times = [first + 7 * i for i in range(len(bits))]
    assert unpacked(repack(chunk(times, bits))) == (times, bits)


@pytest.mark.kernel
@pytest.mark.parametrize("odd", [STALE_BITS, bits_of(-0.0), bits_of(float("nan")), bits_of(2.0**60)])
def test_one_value_that_is_no_scaled_integer_keeps_the_chunk_as_it_is(odd: int) -> None:
    bits = [bits_of(float(i)) for i in range(50)]
    bits[17] = odd
    times = [T0 + 15_000 * i for i in range(50)]
    packed = repack(chunk(times, bits))
    assert packed.kinds.tolist() == [ChunkKind.XOR]
    assert unpacked(packed) == (times, bits)


@pytest.mark.kernel
def test_many_chunks_of_both_kinds_assemble_within_a_range() -> None:
    rng = np.random.default_rng(3)
    n = 480
    rows = np.repeat(np.arange(6, dtype=np.int32), n)
    ts_ms = np.tile(T0 + np.arange(n) * 15_000, 6)
    table = np.vstack([np.cumsum(rng.poisson(60, (3, n)), 1), rng.normal(size=(2, n)), np.ones((1, n))])
    packed = repack(encode_rows(rows, ts_ms, table.ravel().view(np.uint64)))
    assert set(packed.kinds.tolist()) == {ChunkKind.XOR, ChunkKind.PACK}
    mint, maxt = T0 + 100 * 15_000, T0 + 299 * 15_000
    offsets, times, out = assemble(6, [(packed, NO_LATE)], mint, maxt)
    assert offsets.tolist() == [200 * k for k in range(7)]
    assert np.array_equal(out.reshape(6, 200), table[:, 100:300])
    assert np.array_equal(times.reshape(6, 200), np.tile(ts_ms[100:300], (6, 1)))


@pytest.mark.kernel
@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=2, max_size=12), st.integers(1, 120))
def test_damaged_words_are_refused_or_decoded_never_trusted(words: list[int], count: int) -> None:
    plain = chunk([T0 + i for i in range(count)], [bits_of(1.5)] * count)
    body = np.array([*words, 0, 0, 0, 0], np.uint64)
    sizes = np.array([len(words)], np.int32)
    kinds = np.array([ChunkKind.PACK], np.uint8)
    damaged = replace(plain, words=body, word_offsets=np.zeros(1, np.int64), word_counts=sizes, kinds=kinds)
    try:
        ts_ms, _ = decode_rows(damaged)
    except CorruptionError:
        return
    assert len(ts_ms) == count
