"""Remote-write 2.0: the kernel beside its plain twin, and the receiver rules of the compatibility contract."""

from __future__ import annotations

import asyncio
import struct
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.kernels.remote_write_v2 import FACT_MISSES, SERIES_KEY
from ingest.reception import SampleWriter
from ingest.remote_write_v2 import RemoteWriteV2Receiver
from ingest.store import Metadata
from tests.ingest.bodies import field, labels, mesh_series, series, snappy, varint
from tests.ingest.bodies_v2 import TYPE, Body, refs, sample
from tests.ingest.fakes import NOW, FakeTenant, Server
from tests.reference import remote_write_v2 as reference
from tests.reference.remote_write import Malformed
from tsdb.batch import STALE_BITS
from tsdb.clock import ManualClock
from tsdb.errors import OverloadedError, Reason, RejectedError
from tsdb.limits import TimeLimits
from tsdb.tally import Tally

Pairs = tuple[tuple[str, str], ...]
UP = [("__name__", "up"), ("job", "a")]
KEY = (("__name__", "up"), ("job", "a"))
COUNTS = "x-prometheus-remote-write-{}-written"


def bits(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


class Recorder(FakeTenant):
    """Takes every sample and forgets it once it was looked at."""

    def take(self) -> dict[Pairs, list[tuple[int, int]]]:
        found = {key: sorted((t, v) for t, v in samples.items()) for key, samples in self.series().items()}
        self.stored.clear()
        self.newest = 0
        return found


def stored_as(pairs: list[tuple[bytes, bytes]] | None) -> Pairs | None:
    """Labels as the registry keeps them; None when it refuses them."""
    if pairs is None or any(not name for name, _ in pairs):
        return None
    try:
        texts = sorted((name.decode(), value.decode()) for name, value in pairs)
    except UnicodeDecodeError:
        return None
    texts = [(name, value) for name, value in texts if value]
    names = [name for name, _ in texts]
    return tuple(texts) if len(set(names)) == len(names) and "__name__" in names else None


class Beside:
    """A receiver beside the twin."""

    def __init__(self) -> None:
        self.tenant = Recorder()
        self.tally = Tally()
        writer = SampleWriter(ManualClock(NOW), self.tally, TimeLimits(1 << 60, 1 << 60))
        self.receiver = RemoteWriteV2Receiver(writer, table_bytes_min=24)

    def check(self, body: bytes) -> None:
        try:
            request = reference.parse_write(body)
        except Malformed:
            request = None
        if request is None or (request.v1_fields and not request.symbols and not request.series):
            with pytest.raises(RejectedError):
                self.receiver.receive(self.tenant, snappy(body))
            return
        reception = self.receiver.receive(self.tenant, snappy(body))
        wanted: dict[Pairs, dict[int, int]] = defaultdict(dict)
        refused = histograms = empty = sent = 0
        for one in request.series:
            key = stored_as(one.labels(request.symbols))
            sent += len(one.samples)
            histograms += one.histograms
            empty += not one.samples and not one.histograms and not one.exemplars
            if key is None:
                refused += len(one.samples)
                continue
            for value, time in sorted(one.samples, key=lambda s: s[1]):
                wanted[key].setdefault(time, value)
        assert self.tenant.take() == {key: sorted(samples.items()) for key, samples in wanted.items() if samples}
        assert reception.sent >= sent + histograms + empty
        counts = reception.refusals.counts
        assert counts[Reason.NATIVE_HISTOGRAM] == histograms
        assert counts[Reason.NO_SAMPLES] == empty
        own = {Reason.NATIVE_HISTOGRAM, Reason.NO_SAMPLES, Reason.EXEMPLAR_OUT_OF_ORDER, Reason.DUPLICATE}
        assert sum(count for reason, count in counts.items() if reason not in own) == refused


texts = st.sampled_from([b"__name__", b"up", b"job", "zürich".encode(), b"\xff\x00", b"x" * 130, b"instance"])
u64s = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, STALE_BITS, 2**63]))
times = st.integers(0, 2**42) | st.integers(0, 3)
numbers = st.integers(0, 9) | st.integers(0, 300)


@st.composite
def sample_fields(draw: st.DrawFn) -> bytes:
    value = b"\x09" + draw(u64s).to_bytes(8, "little")
    time = b"\x10" + varint(draw(times))
    start = b"\x18" + varint(draw(times))
    shapes = [[value, time], [value, time], [time, value], [time], [value], [], [value, time, start], [start, value]]
    return field(2, b"".join(draw(st.sampled_from(shapes))))


@st.composite
def series_fields(draw: st.DrawFn) -> bytes:
    run = draw(st.lists(numbers, max_size=6))
    if draw(st.integers(0, 9)):
        run = [1, 2, *run[: len(run) // 2 * 2]]  # mostly a name and whole pairs
    shape = draw(st.integers(0, 9))
    parts = [refs(run)]
    if shape == 8:
        parts = [b"\x08" + varint(ref) for ref in run]
    elif shape == 9:
        parts = [refs(run[:2]), refs(run[2:])]
    parts += draw(st.lists(sample_fields(), max_size=3))
    said = b"\x08" + varint(draw(numbers)) + b"\x18" + varint(draw(numbers))
    extra = [field(3, b""), field(4, refs([1, 2]) + b"\x18\x05"), field(5, said), field(6, b"?"), b"\x30\x05"]
    parts += draw(st.lists(st.sampled_from(extra), max_size=1))
    if draw(st.integers(0, 5)) == 0:
        parts = draw(st.permutations(parts))
    return field(5, b"".join(parts))


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    symbols = [b"", b"__name__", b"up", *draw(st.lists(texts | st.just(b""), max_size=8))]
    rows = draw(st.lists(series_fields(), max_size=6))
    odd = draw(st.lists(st.sampled_from([field(9, b"?"), b"\x50\x05", field(1, b"v1")]), max_size=1))
    out = [field(4, symbol) for symbol in symbols] + rows + odd
    return b"".join(draw(st.permutations(out)) if draw(st.integers(0, 9)) == 0 else out)


@pytest.mark.kernel
@settings(max_examples=120, deadline=None)
@given(st.lists(bodies(), min_size=1, max_size=4))
def test_receiver_is_the_twin(batches: list[bytes]) -> None:
    beside = Beside()
    for body in batches * 3:  # the second round meets known keys and predictions, the third known tables
        beside.check(body)


@pytest.mark.kernel
@settings(max_examples=200, deadline=None)
@given(bodies(), st.data())
def test_broken_bodies_get_the_twins_verdict(body: bytes, data: st.DataObject) -> None:
    beside = Beside()
    for _ in range(data.draw(st.sampled_from([1, 3]))):  # three times: its table is known
        beside.check(body)
    broken = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(broken) - 1))
        broken[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, broken[at] ^ 1, broken[at] ^ 0x80, 0x0A, 0x12]))
    beside.check(bytes(broken))


@pytest.mark.kernel
@settings(max_examples=20, deadline=None)
@given(bodies())
def test_truncation_anywhere(body: bytes) -> None:
    beside = Beside()
    for length in range(len(body)):
        beside.check(body[:length])


@pytest.mark.kernel
def test_known_series_are_found_whatever_the_symbol_table() -> None:
    beside = Beside()
    rows = mesh_series(60)
    tables = beside.receiver._spellings_of(beside.tenant.registry)
    for round_, order in enumerate((rows, rows, rows[::-1], rows[20:] + rows[:20])):
        body = Body("first" if round_ % 2 else "")
        for i, pairs in enumerate(order):
            body.add(pairs, [(float(i), NOW + round_)])
        beside.check(body.raw())
        assert len(tables.keys) == len(beside.tenant.registry) == 60
    assert beside.receiver._scratch.take().facts[FACT_MISSES] == 0


@pytest.mark.kernel
def test_a_table_that_comes_again_is_known() -> None:
    beside = Beside()
    rows = mesh_series(40)
    tables = beside.receiver._spellings_of(beside.tenant.registry)

    def body(round_: int, last: int = 40) -> Body:
        out = Body()
        for i, pairs in enumerate(rows[:last]):
            out.add(pairs, [(float(i), NOW + round_)], metadata=(2, "help", ""))
        return out

    for round_ in range(4):
        beside.check(body(round_).raw())
        known = [table for table in tables._tables.values() if table]
        assert len(known) == (round_ >= 1)
    assert (known[0].series[:, SERIES_KEY] > 0).all()
    # the same table, other series; then one symbol more, which makes it another table
    swapped = body(5)
    swapped.series_fields[3:9] = reversed(swapped.series_fields[3:9])
    beside.check(swapped.raw())
    longer = body(6).add([("__name__", "new"), ("job", "new")], [(1.0, NOW)])
    for _ in range(4):
        beside.check(longer.raw())
        beside.check(longer.raw() + field(4, b"late symbol"))
        beside.check(body(7, 20).raw())
    assert len(tables.keys) == 41


@pytest.mark.kernel
def test_outputs_grow() -> None:
    beside = Beside()
    scratch = beside.receiver._scratch.take()
    scratch.set_room(2)
    beside.receiver._scratch.give(scratch)
    body = Body()
    for i in range(40):
        body.add([("__name__", "up"), ("i", str(i))], [(1.0, 5), (2.0, 6)], metadata=(2, f"help {i}", ""))
    beside.check(body.raw())
    long = Body().add([("__name__", "up"), *((f"n{i}", "x") for i in range(1100))], [(1.0, 5)])
    assert len(reference.parse_write(long.raw()).series[0].refs) == 2202
    reception = beside.receiver.receive(beside.tenant, snappy(long.raw()))
    assert reception.refusals.counts == {Reason.TOO_MANY_LABELS: 1}


# -- the rules


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.executor.shutdown()


def write(server: Server, body: Body | bytes, content_type: str = TYPE) -> tuple[int, tuple[int, ...], str]:
    """(status, samples, histograms and exemplars written, text)."""
    raw = body if isinstance(body, bytes) else snappy(body.raw())
    status, headers, text = server.post(raw, content_type=content_type)
    return status, tuple(int(headers[COUNTS.format(w)]) for w in ("samples", "histograms", "exemplars")), text


@pytest.mark.parametrize(
    "content_type", [TYPE, TYPE.replace(";", "; "), TYPE.upper().split(";")[0] + f';PROTO="{TYPE.split("=")[1]}"']
)
def test_w1_w2_w8_a_sample_is_stored_and_counted(server: Server, content_type: str) -> None:
    body = Body().add(UP, [(1.0, NOW)])
    assert write(server, body, content_type) == (204, (1, 0, 0), "")
    assert write(server, body, content_type) == (204, (1, 0, 0), "")  # W13: a repeat is fine
    assert server.tenant.series() == {KEY: {NOW: bits(1.0)}}
    _, headers, _ = server.post(snappy(series(UP, [(1.0, NOW)])))
    assert not headers  # v1 replies carry no counts


def test_w8_every_refusal_carries_counts(server: Server) -> None:
    assert write(server, b"garbage")[:2] == (400, (0, 0, 0))
    status, headers, _ = server.post(b"x", content_type=TYPE, content_encoding="zstd")
    assert (status, headers[COUNTS.format("samples")]) == (415, "0")
    body = Body().add(UP, [(1.0, NOW)]).add([("job", "x")], [(1.0, NOW)]).add([("__name__", "b")], [(2.0, NOW)])
    status, counts, text = write(server, body)
    assert (status, counts) == (400, (2, 0, 0))
    assert text.startswith("1 of 3 samples refused")
    assert 'series without a metric name: 1, first: {job="x"}' in text


def test_w12_a_busy_server_is_503(server: Server) -> None:
    server.tenant.fail = OverloadedError("full")
    assert server.post(snappy(Body().add(UP, [(1.0, NOW)]).raw()), content_type=TYPE)[0] == 503


def test_w14_w16_w18(server: Server) -> None:
    body = Body().add(UP, [(2.0, NOW + 1), (1.0, NOW), (9.0, NOW), (1.0, NOW + 700_000)])
    status, counts, text = write(server, body)
    assert (status, counts) == (400, (2, 0, 0))
    assert "duplicate sample for timestamp: 1" in text
    assert "too far in the future: 1" in text
    assert server.tenant.series() == {KEY: {NOW: bits(1.0), NOW + 1: bits(2.0)}}


def test_w17_labels(server: Server) -> None:
    body = Body()
    body.add([("job", "a"), ("gone", ""), ("__name__", "up")], [(1.0, NOW)])
    body.add([("__name__", "d"), ("a", "1"), ("a", "2")], [(1.0, NOW)])
    body.add([("__name__", b"\xff")], [(1.0, NOW)])
    status, counts, text = write(server, body)
    assert (status, counts) == (400, (1, 0, 0))
    assert "duplicate label name: 1" in text
    assert "not valid UTF-8: 1" in text
    assert list(server.tenant.series()) == [KEY]


@pytest.mark.parametrize("run", [[1], [1, 99], [1, 2, 3]])
def test_w19_refs_that_make_no_labels(server: Server, run: list[int]) -> None:
    good = Body("first symbol may be anything").add([("__name__", "ok")], [(1.0, NOW)])
    raw = good.raw() + field(5, refs(run) + sample(1.0, NOW))
    status, counts, text = write(server, snappy(raw))
    assert (status, counts) == (400, (1, 0, 0))
    assert "outside the symbol table" in text
    assert len(server.tenant.registry) == 1


def test_w20_a_split_series_and_an_empty_one(server: Server) -> None:
    assert write(server, Body().add(UP, [(1.0, NOW)]).add(UP, [(2.0, NOW + 1)])) == (204, (2, 0, 0), "")
    status, counts, text = write(server, Body().add(UP).add(UP, [(3.0, NOW + 2)], metadata=(2, "", "")))
    assert (status, counts) == (400, (1, 0, 0))
    assert 'TimeSeries must contain at least one sample or histogram: 1, first: {__name__="up",job="a"}' in text
    assert write(server, b"\x00") == (204, (0, 0, 0), "")


def test_w21_metadata_is_taken_over_once(server: Server) -> None:
    for _ in range(2):
        for help_text in ("Whether it is up.", "Changed."):
            body = Body().add(UP, [(1.0, NOW)], metadata=(2, help_text, "bool"))
            body.add([("__name__", "h_bucket"), ("le", "1")], [(1.0, NOW)], metadata=(3, "A histogram.", ""))
            for _ in range(3):  # the first time, the series has no key yet
                assert write(server, body)[0] == 204
    up = [Metadata("up", "gauge", text, "bool") for text in ("Whether it is up.", "Changed.")]
    histogram = Metadata("h", "histogram", "A histogram.", "")
    assert server.tenant.metadata == [up[0], histogram, up[0], histogram, up[1], up[0], up[1]]


def test_w21_metadata_survives_a_refused_write(server: Server) -> None:
    body = Body().add(UP, [(1.0, NOW)], metadata=(2, "Help.", ""))
    server.tenant.fail = OverloadedError("full")
    assert server.post(snappy(body.raw()), content_type=TYPE)[0] == 503
    server.tenant.fail = None
    server.tenant.metadata.clear()
    assert write(server, body)[0] == 204
    assert server.tenant.metadata == [Metadata("up", "gauge", "Help.", "")]


def test_w22_exemplars_are_kept_and_counted(server: Server) -> None:
    body = Body()
    body.add(UP, [(1.0, NOW)], body.exemplar([("trace_id", "ab")], 0.5, NOW), body.exemplar([], 0.7, NOW + 1))
    assert write(server, body) == (204, (1, 0, 2), "")
    assert write(server, body) == (204, (1, 0, 2), "")
    alone = Body()
    alone.add(UP, [], alone.exemplar([("trace_id", "cd")], 0.6, NOW + 2))  # as Prometheus sends them
    alone.add([("job", "x")], [], alone.exemplar([("trace_id", "cd")], 0.6, NOW + 2))
    assert write(server, alone)[1] == (0, 0, 1)
    late = Body()
    late.add(UP, [(1.0, NOW)], late.exemplar([("trace_id", "old")], 0.5, NOW - 5))
    late.add(UP, [(1.0, NOW)], late.exemplar([("trace_id", "x" * 129)], 0.5, NOW + 9))
    status, counts, text = write(server, late)
    assert (status, counts) == (400, (2, 0, 0))
    assert 'out of order exemplar: 1, first: {__name__="up",job="a"}' in text
    rows = server.tenant.exemplars.select(np.array([0], np.uint32), 0, NOW + 10, server.tenant.registry)
    assert rows is not None
    assert rows.labels == [b"trace_id\xffab\xff", b"", b"trace_id\xffcd\xff"]


def test_w23_native_histograms_are_refused_by_name(server: Server) -> None:
    body = Body().add(UP, [(1.0, NOW)]).add([("__name__", "h")], [], field(3, b"\x08\x01"))
    status, counts, text = write(server, body)
    assert (status, counts) == (400, (1, 0, 0))
    assert 'native histograms are not supported: 1, first: {__name__="h"}' in text


def test_w24_a_v1_body_under_the_v2_type(server: Server) -> None:
    assert write(server, snappy(series(UP, [(1.0, NOW)])))[:2] == (400, (0, 0, 0))
    assert write(server, snappy(field(3, b"")))[0] == 400


def test_w25_the_bits_of_a_stale_marker_stay(server: Server) -> None:
    assert write(server, Body().add(UP, [(STALE_BITS, NOW)]))[0] == 204
    assert server.tenant.series() == {KEY: {NOW: STALE_BITS}}


def test_w28_error_bodies_are_bounded(server: Server) -> None:
    body = Body()
    for i in range(5000):
        body.add([("job", f"{'x' * 500}{i}")], [(1.0, NOW)])
    status, _, text = write(server, body)
    assert status == 400
    assert text.startswith("5000 of 5000 samples refused")
    assert len(text) < 4096


def test_both_versions_write_the_same_series(server: Server) -> None:
    async def run() -> None:
        for i in range(20):
            body = Body().add(UP, [(float(i), NOW + i)])
            one = snappy(series(UP, [(float(i), NOW + i)]))
            both = await asyncio.gather(server.apost(one), server.apost(snappy(body.raw()), content_type=TYPE))
            assert [status for status, _, _ in both] == [204, 204]

    asyncio.run(run())
    assert len(server.tenant.registry) == 1
    assert len(server.tenant.series()[KEY]) == 20
    assert labels(UP)
