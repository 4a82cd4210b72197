"""The container of a block: typed sections in place, and no damaged byte goes unnoticed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsdb.block.container import FRAME_BYTES, Container, pack
from tsdb.errors import CorruptionError

DTYPES = ["u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f8"]


def packed(arrays: dict[str, np.ndarray], meta: dict[str, object] | None = None, framed: tuple[str, ...] = ()) -> bytes:
    parts, crc = pack(arrays, meta or {}, framed)
    data = b"".join(bytes(p) for p in parts)
    assert Container(memoryview(data), "x").crc == crc
    return data


@given(st.dictionaries(st.text(max_size=12), st.tuples(st.sampled_from(DTYPES), st.binary(max_size=200)), max_size=8))
@settings(deadline=None, max_examples=60)
def test_sections_come_back_typed_aligned_and_read_only(given_arrays: dict[str, tuple[str, bytes]]) -> None:
    arrays = {name: np.frombuffer(data[: len(data) // 8 * 8], dtype) for name, (dtype, data) in given_arrays.items()}
    arrays = {n: a for n, a in arrays.items() if not n.endswith(".crc32")}
    container = Container(memoryview(packed(arrays, {"a": 1}, tuple(list(arrays)[:2]))), "x")
    assert container.meta == {"a": 1}
    for name, array in arrays.items():
        got = container.array(name)
        assert got.dtype == array.dtype
        assert got.tobytes() == array.tobytes()
        assert not got.flags.writeable
        assert container.sections[name].offset % 64 == 0
    assert not list(container.damage())


def small() -> bytes:
    arrays = {
        "a": np.arange(7, dtype=np.int64),
        "b": np.arange(5, dtype=np.uint8),
        "w": np.arange(40, dtype=np.uint64),
        "none": np.zeros(0, np.uint32),
    }
    return packed(arrays, {"min_ms": 5}, ("w",))


def test_every_bit_flip_is_found_or_hits_padding() -> None:
    data = small()
    good = Container(memoryview(data), "x")
    content = {name: good.array(name).tobytes() for name in good.sections}
    used = set(range(16)) | set(range(good.sections["none"].offset, len(data)))
    for section in good.sections.values():
        used |= set(range(section.offset, section.offset + section.length * np.dtype(section.dtype).itemsize))
    for offset in range(len(data)):
        for bit in range(8):
            bad = bytearray(data)
            bad[offset] ^= 1 << bit
            try:
                container = Container(memoryview(bytes(bad)), "x")
                found = bool(list(container.damage()))
            except CorruptionError:
                found = True
            if not found:
                assert offset not in used
                assert {n: container.array(n).tobytes() for n in container.sections} == content


def test_every_truncation_is_refused() -> None:
    data = small()
    for size in range(len(data)):
        with pytest.raises(CorruptionError):
            Container(memoryview(data[:size]), "x")


def test_one_bad_byte_costs_one_section_or_one_frame() -> None:
    words = np.random.default_rng(1).integers(1 << 60, size=5 * FRAME_BYTES // 8 + 11).astype(np.uint64)
    data = bytearray(packed({"a": np.arange(9), "words": words, "b": np.arange(9)}, framed=("words",)))
    sections = Container(memoryview(bytes(data)), "x").sections
    data[sections["words"].offset + 3 * FRAME_BYTES + 17] ^= 4
    data[sections["a"].offset] ^= 1
    container = Container(memoryview(bytes(data)), "key")
    assert container.array("b").tolist() == list(range(9))
    with pytest.raises(CorruptionError, match=r"key at byte \d+: section a fails"):
        container.array("a")
    assert container.frame_count("words") == 6
    wanted = np.array([1, 0, 0, 0, 1, 1], np.uint8)
    assert not container.bad_frames("words", wanted).any()
    wanted[:] = 1
    assert container.bad_frames("words", wanted).tolist() == [False, False, False, True, False, False]
    assert len(list(container.damage())) == 2


def test_only_plain_columns_are_sections() -> None:
    for array in (np.zeros((2, 2)), np.array(["x"]), np.zeros(3, np.complex128), np.zeros(3, bool)):
        with pytest.raises(ValueError, match="plain 1-d array"):
            pack({"x": array}, {})
    with pytest.raises(CorruptionError, match="section y is missing"):
        Container(memoryview(packed({})), "x").array("y")
