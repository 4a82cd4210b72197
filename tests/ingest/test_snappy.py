"""Snappy blocks: what the plain twin and the library say, for good blocks and broken ones."""

from __future__ import annotations

import contextlib

import cramjam
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.kernels.snappy import PAD_BYTES
from ingest.snappy import decompress
from ingest.wire import read_varint
from tests.reference import snappy as twin
from tsdb.errors import LimitError, RejectedError

LIMIT = 1 << 22


def ours(block: bytes, capacity: int = 0) -> bytes | None:
    """The content; None = refused. The bytes behind the buffer's promised room must stay as they were."""
    raw = np.full(capacity + PAD_BYTES, 0xAA, np.uint8)
    try:
        raw, size = decompress(block, raw, LIMIT)
    except RejectedError:
        return None
    assert len(raw) >= size + PAD_BYTES
    return raw[:size].tobytes()


def theirs(block: bytes) -> bytes | None:
    try:
        size, pos = read_varint(block, 0)
    except ValueError:
        return None
    return None if size > LIMIT else twin.decompress(block, pos, size)


def varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


BYTES_CUT = st.integers(0, 9)
TEXTS = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from([b"__name__", b"cluster", b"a", b"0123456789" * 8, bytes(90)]), max_size=120).map(
        b"".join
    ),
    st.tuples(st.binary(min_size=1, max_size=9), st.integers(1, 400)).map(lambda g: g[0] * g[1]),
)


@pytest.mark.kernel
@given(TEXTS)
@settings(deadline=None, max_examples=200)
def test_what_was_compressed_comes_back(text: bytes) -> None:
    block = bytes(cramjam.snappy.compress_raw(text))
    assert ours(block) == text
    assert ours(block, len(text)) == text


@pytest.mark.kernel
@given(
    TEXTS.filter(bool), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=3), st.integers(0, 9)
)
@settings(deadline=None, max_examples=300)
def test_broken_blocks_are_judged_as_by_the_twin(text: bytes, edits: list[tuple[int, int]], cut: int) -> None:
    block = bytearray(cramjam.snappy.compress_raw(text))
    for at, byte in edits:
        block[at % len(block)] = byte
    data = bytes(block[: len(block) - cut if cut < 5 else len(block)])
    if data:
        compare(data)


ELEMENTS = st.one_of(
    st.binary(min_size=1, max_size=60).map(lambda b: bytes([(len(b) - 1) << 2]) + b),
    st.tuples(st.binary(min_size=1, max_size=200), st.integers(1, 4)).map(
        lambda g: bytes([(59 + g[1]) << 2]) + (len(g[0]) - 1).to_bytes(g[1], "little") + g[0]
    ),
    st.tuples(st.integers(4, 11), st.integers(0, 300)).map(
        lambda g: bytes([g[1] >> 8 << 5 | (g[0] - 4) << 2 | 1, g[1] & 255])
    ),
    st.tuples(st.integers(1, 64), st.integers(0, 300)).map(
        lambda g: bytes([(g[0] - 1) << 2 | 2]) + g[1].to_bytes(2, "little")
    ),
    st.tuples(st.integers(1, 64), st.integers(0, 300)).map(
        lambda g: bytes([(g[0] - 1) << 2 | 3]) + g[1].to_bytes(4, "little")
    ),
)


@pytest.mark.kernel
@given(st.lists(ELEMENTS, max_size=40), st.integers(-2, 2))
@settings(deadline=None, max_examples=400)
def test_any_elements_are_judged_as_by_the_twin(elements: list[bytes], wrong: int) -> None:
    body = b"".join(elements)
    size = 0
    for element in elements:
        tag = element[0]
        size += 4 + (tag >> 2 & 7) if tag & 3 == 1 else len(element) - 1 if tag & 3 == 0 and tag >> 2 < 60 else 0
        if tag & 3 > 1:
            size += (tag >> 2) + 1
        elif tag & 3 == 0 and tag >> 2 >= 60:
            size += len(element) - 1 - ((tag >> 2) - 59)
    compare(varint(max(size + wrong, 0)) + body)
    compare(varint(max(size, 0)) + body)


def compare(block: bytes) -> None:
    expected = theirs(block)
    try:
        found = ours(block)
    except LimitError:  # an edit of the length
        found = None
    assert found == expected
    if expected is not None:
        with contextlib.suppress(cramjam.DecompressionError):  # it is stricter about literals with long lengths
            assert bytes(cramjam.snappy.decompress_raw(block)) == expected


def test_an_empty_body_is_refused_and_an_empty_block_is_not() -> None:
    assert ours(b"") is None
    assert ours(b"\x00") == b""
