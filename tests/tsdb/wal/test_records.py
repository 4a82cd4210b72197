"""Record bodies: the kernels against their plain twin, and decoders that refuse whatever is not a body."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import wal_records as twin
from tsdb.errors import CorruptionError
from tsdb.wal.records import (
    decode_metadata,
    decode_samples,
    decode_series,
    encode_metadata,
    encode_parts,
    encode_samples,
    encode_series,
)

REFS = st.integers(0, (1 << 32) - 1)
TIMES = st.one_of(
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.integers(1_700_000_000_000, 1_700_000_100_000),
    st.sampled_from([0, -1, (1 << 63) - 1, -(1 << 63)]),
)
BITS = st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from([0, 1 << 63, 0x7FF0000000000002, (1 << 64) - 1]))
SAMPLES = st.lists(st.tuples(REFS, TIMES, BITS), max_size=80)
ONE_TIME = st.tuples(st.lists(st.tuples(REFS, BITS), max_size=80), TIMES).map(lambda g: [(r, g[1], b) for r, b in g[0]])


def body_of(rows: list[tuple[int, int, int]]) -> bytes:
    refs, ts_ms, bits = ([row[i] for row in rows] for i in range(3))
    return encode_samples(np.array(refs, np.uint32), np.array(ts_ms, np.int64), np.array(bits, np.uint64))


@pytest.mark.kernel
@given(st.one_of(SAMPLES, ONE_TIME))
@settings(deadline=None, max_examples=150)
def test_samples_are_the_twin_s_bytes_and_come_back(rows: list[tuple[int, int, int]]) -> None:
    refs, ts_ms, bits = ([row[i] for row in rows] for i in range(3))
    body = body_of(rows)
    assert body == twin.encode_samples(refs, ts_ms, bits)
    decoded = decode_samples(body)
    assert [column.tolist() for column in decoded] == [refs, ts_ms, bits]
    assert list(twin.decode_samples(body)) == [refs, ts_ms, bits]


@pytest.mark.kernel
@given(st.lists(SAMPLES, min_size=1, max_size=5))
@settings(deadline=None, max_examples=60)
def test_the_parts_of_a_batch_are_records_of_their_own(parts: list[list[tuple[int, int, int]]]) -> None:
    rows = [row for part in parts for row in part]
    starts = np.cumsum([0, *map(len, parts)]).astype(np.int64)
    columns = (np.array([row[i] for row in rows], kind) for i, kind in enumerate((np.uint32, np.int64, np.uint64)))
    encoded = encode_parts(*columns, starts)
    assert encoded.bodies == [body_of(part) for part in parts]
    assert encoded.max_ms == [max((row[1] for row in part), default=-(1 << 63)) for part in parts]


@pytest.mark.kernel
@given(st.lists(st.tuples(REFS, st.binary(max_size=40)), max_size=40))
@settings(deadline=None, max_examples=100)
def test_series_are_the_twin_s_bytes_and_come_back(rows: list[tuple[int, bytes]]) -> None:
    refs, labels = [r for r, _ in rows], [text for _, text in rows]
    offsets = np.cumsum([0, *map(len, labels)]).astype(np.int64)
    # offsets need not begin at 0: the registry hands out a piece of its arena
    joined = np.frombuffer(b"xyz" + b"".join(labels), np.uint8)
    body = encode_series(np.array(refs, np.uint32), joined, offsets + 3)
    assert body == twin.encode_series(refs, labels)
    got_refs, got, at = decode_series(body)
    assert got_refs.tolist() == refs
    assert [got[a:b].tobytes() for a, b in pairwise(at)] == labels


@pytest.mark.kernel
@given(st.one_of(SAMPLES, ONE_TIME), st.data())
@settings(deadline=None, max_examples=150)
def test_damaged_samples_are_refused_or_decode_but_never_read_outside(
    rows: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    body = bytearray(body_of(rows))
    if data.draw(st.booleans()):
        del body[data.draw(st.integers(0, len(body) - 1)) :]
    else:
        body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        refs, ts_ms, bits = decode_samples(bytes(body))
    except CorruptionError:
        return
    assert len(refs) == len(ts_ms) == len(bits)


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=200)
def test_random_bytes_raise_corruption_only(data: bytes) -> None:
    for decode in (decode_samples, decode_series, decode_metadata):
        for body in (data, b"\x01" + data):
            try:
                decode(body)
            except CorruptionError:
                continue


def test_a_count_that_lies_is_refused_before_memory_is_taken() -> None:
    body = bytearray(body_of([(1, 2, 3)]))
    body[2:6] = b"\xff\xff\xff\xff"
    with pytest.raises(CorruptionError, match="do not fit"):
        decode_samples(bytes(body))


def test_a_later_version_is_named() -> None:
    with pytest.raises(CorruptionError, match="version 9"):
        decode_samples(b"\x09" + bytes(30))


def test_metadata_come_back() -> None:
    rows = [("up", "gauge", '1 = reachable, ünïcode\n"quoted"', ""), ("latency", "histogram", "", "seconds")]
    assert decode_metadata(encode_metadata(rows)) == rows
    assert decode_metadata(encode_metadata([])) == []
