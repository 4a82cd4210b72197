"""The remote-write kernel against its plain twin, on sound, strange and broken bodies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.kernels import remote_write as kernels
from tests.ingest.bodies import field, label, labels, metadata, sample, series, varint
from tests.reference import remote_write as reference
from tsdb.index.keys import KeyTable

pytestmark = pytest.mark.kernel

PAD = 64


class Walker:
    """Runs the kernel as the receiver does, with series numbered by their label pairs."""

    def __init__(self) -> None:
        self.table = KeyTable(1 << 16, 1 << 24)
        self.refs: dict[tuple[tuple[bytes, bytes], ...], int] = {}
        self.predicted = 0

    def walk(self, body: bytes, room: int = 64) -> reference.Request | None:
        """What the kernel sees, in the twin's shape (series without samples left out); None = malformed."""
        raw = np.frombuffer(body + bytes(PAD), np.uint8)
        facts = np.zeros(kernels.FACTS, np.int64)
        while True:
            refs, ts_ms, bits = np.empty(room, np.uint32), np.empty(room, np.int64), np.empty(room, np.uint64)
            misses = np.empty((room, kernels.MISS_COLUMNS), np.int64)
            entries = np.empty((room, 2), np.int64)
            count = kernels.parse_write(raw, len(body), *self.table.arrays(), refs, ts_ms, bits, misses, entries, facts)
            if count != kernels.FULL:
                break
            room *= 2
        if count == kernels.MALFORMED:
            assert 0 <= facts[kernels.FACT_ERROR_AT] <= len(body)
            return None
        misses = misses[: facts[kernels.FACT_MISSES]].copy()
        assert (refs[:count] == kernels.PENDING).sum() == misses[:, kernels.MISS_SAMPLES].sum()
        self.predicted = count - int(misses[:, kernels.MISS_SAMPLES].sum())
        self._resolve(raw, misses, refs)
        names = {ref: pairs for pairs, ref in self.refs.items()}
        request = reference.Request(metadata=[body[a:b] for a, b in entries[: facts[kernels.FACT_METADATA]].tolist()])
        for i in range(count):
            pairs = list(names[int(refs[i])])
            if not request.series or request.series[-1].labels != pairs:
                request.series.append(reference.Series(pairs))
            request.series[-1].samples.append((int(bits[i]), int(ts_ms[i])))
        request.v2_fields = int(facts[kernels.FACT_V2_FIELDS])
        self.facts = facts
        return request

    def _resolve(self, raw: np.ndarray, misses: np.ndarray, refs: np.ndarray) -> None:
        offsets = np.empty(len(misses) + 1, np.int64)
        spans = [np.empty(0, np.int64)] * 4
        while (total := kernels.label_spans(raw, misses, offsets, *spans)) > len(spans[0]):
            spans = [np.empty(total, np.int64) for _ in range(4)]
        for row, miss in enumerate(misses.tolist()):
            pairs = tuple(
                (raw[a:b].tobytes(), raw[c:d].tobytes())
                for a, b, c, d in zip(*(s[offsets[row] : offsets[row + 1]].tolist() for s in spans), strict=True)
            )
            ref = self.refs.setdefault(pairs, len(self.refs))
            first = miss[kernels.MISS_FIRST_SAMPLE]
            refs[first : first + miss[kernels.MISS_SAMPLES]] = ref
            begin, end = miss[kernels.MISS_KEY_BEGIN], miss[kernels.MISS_KEY_END]
            if end >= 0:
                key = self.table.add(raw[begin:end].tobytes(), ref)
                assert self.table.arrays().key_refs[key] == ref


def expected(body: bytes) -> reference.Request | None:
    """The twin's verdict, series without samples left out, neighbours of equal labels joined."""
    try:
        request = reference.parse_write(body)
    except reference.Malformed:
        return None
    merged: list[reference.Series] = []
    for one in request.series:
        if not one.samples:
            continue
        if merged and merged[-1].labels == one.labels:
            merged[-1].samples.extend(one.samples)
        else:
            merged.append(reference.Series(one.labels, list(one.samples)))
    return reference.Request(merged, request.metadata, request.v2_fields)


def check(walker: Walker, body: bytes) -> None:
    seen = walker.walk(body)
    assert seen == expected(body)
    if seen is not None:
        whole = reference.parse_write(body)
        assert walker.facts[kernels.FACT_SERIES] == len(whole.series)
        assert walker.facts[kernels.FACT_EXEMPLARS] == sum(s.exemplars for s in whole.series)
        assert walker.facts[kernels.FACT_HISTOGRAMS] == sum(s.histograms for s in whole.series)
        stamps = [[t for _, t in s.samples] for s in whole.series]
        assert walker.facts[kernels.FACT_UNSORTED] == sum(s != sorted(s) for s in stamps)
        if any(stamps):
            assert walker.facts[kernels.FACT_NEWEST_MS] == max(map(max, filter(None, stamps)))


small_bytes = st.sampled_from([b"", b"a", b"__name__", b"up", b"job", "zürich".encode(), b"\xff\x00", b"x" * 130])
u64s = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 0x7FF0000000000002, 2**63]))
times = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**42), st.just(0))


@st.composite
def unknown_fields(draw: st.DrawFn, first: int = 6) -> bytes:
    number = draw(st.integers(first, 40) | st.integers(first, 2**29 - 1))
    wire = draw(st.sampled_from([0, 1, 2, 3, 5]))
    tag = varint(number << 3 | wire)
    if wire == 0:
        return tag + varint(draw(u64s))
    if wire == 2:
        content = draw(st.binary(max_size=9))
        return tag + varint(len(content)) + content
    if wire == 3:
        inner = draw(st.sampled_from([b"", b"\x08\x01", b"\x0b\x0c", b"\x12\x02hi", b"\x0d1234", b"\x0912345678"]))
        return tag + inner + varint(number << 3 | 4)
    return tag + bytes(8 if wire == 1 else 4)


@st.composite
def label_fields(draw: st.DrawFn) -> bytes:
    parts = [field(1, draw(small_bytes)), field(2, draw(small_bytes))]
    shape = draw(st.integers(0, 9))
    if shape == 7:
        parts.reverse()
    elif shape == 8:
        parts.pop(draw(st.integers(0, 1)))
    elif shape == 9:
        parts.insert(draw(st.integers(0, 2)), draw(unknown_fields(3)))
    return field(1, b"".join(parts))


@st.composite
def sample_fields(draw: st.DrawFn) -> bytes:
    value = b"\x09" + draw(u64s).to_bytes(8, "little")
    time = b"\x10" + varint(draw(times))
    shape = draw(st.integers(0, 12))
    parts = {8: [time, value], 9: [time], 10: [value], 11: [value, time, value, time], 12: []}.get(shape, [value, time])
    if shape == 7:
        parts.insert(draw(st.integers(0, 2)), draw(unknown_fields(3)))
    return field(2, b"".join(parts))


@st.composite
def series_fields(draw: st.DrawFn) -> bytes:
    parts = draw(st.lists(label_fields(), max_size=4))
    parts += draw(st.lists(sample_fields(), max_size=4))
    parts += draw(st.lists(st.just(field(3, b"ex")) | st.just(field(4, b"")) | unknown_fields(5), max_size=1))
    if draw(st.integers(0, 5)) == 0:
        parts = draw(st.permutations(parts))
    return field(1, b"".join(parts))


bodies = st.lists(series_fields() | st.just(metadata(1, "m")) | unknown_fields(4), max_size=8).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(bodies, min_size=1, max_size=4))
def test_kernel_is_its_twin(batches: list[bytes]) -> None:
    walker = Walker()
    for body in batches + batches:  # the second round meets known keys and predictions
        check(walker, body)


@settings(max_examples=300, deadline=None)
@given(bodies, st.data())
def test_broken_bodies_get_the_twins_verdict(body: bytes, data: st.DataObject) -> None:
    walker = Walker()
    walker.walk(body)
    broken = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        if broken:
            at = data.draw(st.integers(0, len(broken) - 1))
            broken[at] = data.draw(
                st.sampled_from([0, 0x7F, 0x80, 0xFF, broken[at] ^ 1, broken[at] ^ 0x80, 0x0A, 0x12])
            )
    check(walker, bytes(broken))


@settings(max_examples=60, deadline=None)
@given(bodies)
def test_truncation_anywhere(body: bytes) -> None:
    walker = Walker()
    check(walker, body)
    for length in range(len(body)):
        check(walker, body[:length])


def mesh(round_: int, first: int = 0, last: int = 50) -> bytes:
    return b"".join(
        series([("__name__", "up"), ("job", f"j{i}")], [(float(i), 1000 * round_)]) for i in range(first, last)
    )


def test_second_request_needs_no_lookup() -> None:
    walker = Walker()
    for round_ in range(3):
        check(walker, mesh(round_))
        assert walker.predicted == (50 if round_ else 0)
    follows = walker.table.arrays().next_keys[:51].tolist()
    assert follows == [*range(1, 51), 0]  # the start of a request leads to the first series, each to the next


def test_prediction_survives_series_that_come_and_go() -> None:
    walker = Walker()
    for body in (mesh(0), mesh(1, 10), mesh(2, 0, 40) + mesh(2, 45), mesh(3)):
        check(walker, body)
    assert walker.predicted == 50


def test_a_key_that_is_a_prefix_of_another_is_not_taken_for_it() -> None:
    walker = Walker()
    short, long = [("a", "1")], [("a", "1"), ("b", "2")]
    for pairs in (short, long, short, long, long, short):
        check(walker, series(pairs, [(1.0, 5)]) * 2)


def test_labels_after_samples_are_never_taken_for_the_prefix() -> None:
    walker = Walker()
    odd = field(1, labels([("a", "1")]) + sample(1.0, 5) + label("b", "2"))
    for body in (series([("a", "1")], [(1.0, 5)]), odd, odd, series([("a", "1")], [(1.0, 5)])):
        check(walker, body)
    assert walker.refs == {((b"a", b"1"),): 0, ((b"a", b"1"), (b"b", b"2")): 1}


@pytest.mark.parametrize(
    "build",
    [
        lambda n: series([("a", "1")], [(1.0, t) for t in range(n)]),
        lambda n: b"".join(series([("a", str(t))], [(1.0, 5)]) for t in range(n)),
        lambda n: metadata(1, "family") * n,
    ],
)
def test_outputs_grow(build: Callable[[int], bytes]) -> None:
    check(Walker(), build(200))
