"""``POST /api/v1/write``: the receiver rules W1 to W28 of the compatibility contract, version 1 of the protocol."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Iterator

import cramjam
import numpy as np
import pytest

from ingest.api import Answer, DisconnectedError, PushRequest
from ingest.limits import WriteLimits
from ingest.store import Metadata
from tests.ingest.bodies import Pairs, field, labels, metadata, sample, series, snappy, varint
from tests.ingest.fakes import NOW, WINDOW_MS, Server
from tsdb.errors import DiskFullError, LogFailedError, OverloadedError, Reason
from tsdb.limits import TimeLimits

UP = [("__name__", "up"), ("job", "a")]
ONE = snappy(series(UP, [(1.0, NOW)]))
KEY = (("__name__", "up"), ("job", "a"))


def bits(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.executor.shutdown()


def write(server: Server, *timeseries: bytes) -> tuple[int, str]:
    status, _, text = server.post(snappy(b"".join(timeseries)))
    return status, text


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/x-protobuf",
        "application/x-protobuf;proto=prometheus.WriteRequest",
        "application/x-protobuf; proto=prometheus.WriteRequest",
        'application/x-protobuf ; Proto="prometheus.WriteRequest" ; charset=utf-8',
        "Application/X-Protobuf;charset=utf-8",
    ],
)
def test_w1_w2_content_type_picks_the_schema(server: Server, content_type: str) -> None:
    assert server.post(ONE, content_type=content_type, x_prometheus_remote_write_version="2.0.0")[0] == 204
    assert server.tenant.series() == {KEY: {NOW: bits(1.0)}}


@pytest.mark.parametrize(
    "content_type", ["image/png", "application/json", "application/x-protobuf;proto=other.Message", "x"]
)
def test_w1_w4_other_types_are_415_before_anything_else(server: Server, content_type: str) -> None:
    status, headers, text = server.post(b"garbage", content_type=content_type)
    assert (status, headers["content-type"]) == (415, "text/plain; charset=utf-8")
    assert text


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "deflate", "snappy, gzip"])
def test_w3_other_encodings_are_415(server: Server, encoding: str) -> None:
    assert server.post(ONE, content_encoding=encoding)[0] == 415
    assert server.post(ONE, content_encoding="Snappy")[0] == 204


def test_w4_other_verbs_are_405(server: Server) -> None:
    status, headers, text = asyncio.run(server.apost(ONE, method="GET", content_type="image/png"))
    assert (status, headers["allow"], text) == (405, "POST", "Method Not Allowed\n")


def test_w5_framed_snappy_and_length_bombs_are_400(server: Server) -> None:
    framed = bytes(cramjam.snappy.compress(series(UP, [(1.0, NOW)])))
    assert server.post(framed)[::2] == (400, "snappy framed format; the block format is needed\n")
    status, _, text = server.post(varint(4 << 30) + b"x")
    assert status == 400
    assert "4,294,967,296 bytes, the limit is 67,108,864" in text
    assert server.tally.snapshot() == {Reason.MALFORMED: 1, Reason.BODY_TOO_LARGE: 1}


def test_w6_corruption_is_400_and_keeps_nothing(server: Server) -> None:
    raw = series(UP, [(1.0, NOW)])
    for cut in range(1, len(raw)):
        assert write(server, raw[:cut])[0] == 400, cut
    whole = snappy(raw)
    for cut in range(len(whole)):
        assert server.post(whole[:cut])[0] == 400, cut
    assert not server.tenant.stored


def test_w6_unknown_fields_are_skipped(server: Server) -> None:
    unknown = field(9, b"?") + varint(10 << 3) + varint(7) + varint(11 << 3 | 1) + bytes(8)
    assert write(server, unknown, field(1, labels(UP) + unknown + sample(2.0, NOW)), unknown) == (204, "")
    assert server.tenant.series() == {KEY: {NOW: bits(2.0)}}


def test_w7_success_is_empty(server: Server) -> None:
    assert server.post(ONE) == (204, {}, "")


def test_w9_the_good_rest_is_kept(server: Server) -> None:
    status, text = write(
        server,
        series(UP, [(1.0, NOW)]),
        series([("job", "no name")], [(1.0, NOW), (2.0, NOW + 1)]),
        series([("__name__", "ok")], [(3.0, NOW)]),
    )
    assert status == 400
    assert text.startswith("2 of 4 samples refused")
    assert 'series without a metric name: 2, first: {job="no name"}' in text
    assert server.tenant.series() == {KEY: {NOW: bits(1.0)}, (("__name__", "ok"),): {NOW: bits(3.0)}}


def test_w10_only_204_400_415(server: Server) -> None:
    rng = random.Random(7)
    raw = series(UP, [(1.0, NOW)]) * 3 + metadata(1, "up")
    for _ in range(300):
        broken = bytearray(raw)
        for _ in range(3):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        body = bytearray(snappy(bytes(broken)))
        if rng.random() < 0.3:
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        assert server.post(bytes(body))[0] in (204, 400, 415)


def test_w10_oversize_is_400_before_and_after_decompression() -> None:
    server = Server(WriteLimits(body_bytes_max=1000, decoded_bytes_max=5000))
    assert server.post(b"x" * 10, content_length="1001")[0] == 400
    assert server.post([b"x" * 600, b"x" * 600])[0] == 400
    status, _, text = server.post(snappy(series(UP, [(1.0, NOW)]) * 200))
    assert status == 400
    assert "limits.ingest.decoded_bytes_max" in text
    assert server.post(snappy(series(UP, [(1.0, NOW)]) * 100))[0] == 204


def test_w10_a_small_body_of_very_many_samples_is_400() -> None:
    server = Server(WriteLimits(samples_max=8192))
    assert server.post(snappy(field(1, field(2, b"")) * 8192))[0] == 400  # no labels
    status, _, text = server.post(snappy(field(1, field(2, b"")) * 40_000))
    assert (status, text) == (400, "more than 8,192 samples in one request\n")
    assert server.post(ONE)[0] == 204


@pytest.mark.parametrize(
    ("error", "retry_after"),
    [(OverloadedError("the queue is full"), "1"), (DiskFullError("disk"), "10"), (LogFailedError("log"), "5")],
)
def test_w11_w12_unavailable_is_503_and_the_same_body_passes_later(
    server: Server, error: Exception, retry_after: str
) -> None:
    server.tenant.fail = error
    status, headers, text = server.post(ONE)
    assert (status, headers["retry-after"], text) == (503, retry_after, f"{error}\n")
    server.tenant.fail = None
    assert server.post(ONE)[0] == 204
    assert server.tenant.series() == {KEY: {NOW: bits(1.0)}}


def test_w11_a_log_that_fails_after_submit_is_503_and_a_bug_is_500(server: Server) -> None:
    server.tenant.held = []

    async def fail(error: Exception) -> int:
        request = asyncio.create_task(server.apost(ONE))
        while not server.tenant.held:
            await asyncio.sleep(0.001)
        server.tenant.held.pop()[0].set_exception(error)
        return (await request)[0]

    assert asyncio.run(fail(LogFailedError("sync failed"))) == 503
    assert asyncio.run(fail(ZeroDivisionError("bug"))) == 500


def test_w12_too_many_requests_are_503_not_429() -> None:
    server = Server(WriteLimits(requests_max=2))
    server.tenant.held = []

    async def run() -> None:
        waiting = [asyncio.create_task(server.apost(ONE)) for _ in range(2)]
        while len(server.tenant.held or ()) < 2:
            await asyncio.sleep(0.001)
        status, headers, _ = await server.apost(ONE)
        assert (status, headers["retry-after"]) == (503, "1")
        server.tenant.release()
        assert [(await task)[0] for task in waiting] == [204, 204]
        assert (await server.apost(ONE))[0] == 204

    asyncio.run(run())


def test_w12_bodies_on_their_way_are_bounded() -> None:
    server = Server(WriteLimits(inflight_bytes_max=100))
    assert server.post(ONE, content_length="101")[0] == 503
    assert server.post([b"x" * 99, b"x" * 99, b"x"])[0] == 503
    assert server.post(ONE)[0] == 204


def test_w13_repeats_pass_stale_markers_included(server: Server) -> None:
    stale = 0x7FF0000000000002
    body = snappy(series(UP, [(1.0, NOW), (stale, NOW + 1)]))
    assert [server.post(body)[0] for _ in range(3)] == [204, 204, 204]
    assert server.tenant.series() == {KEY: {NOW: bits(1.0), NOW + 1: stale}}  # w25: bits as sent


def test_w14_another_value_is_refused_and_the_first_stays(server: Server) -> None:
    assert server.post(ONE)[0] == 204
    status, text = write(server, series(UP, [(2.0, NOW), (3.0, NOW + 1)]))
    assert status == 400
    assert text == (
        "1 of 2 samples refused, the rest was stored\n"
        f'duplicate sample for timestamp: 1, first: {{__name__="up",job="a"}} at {NOW} ms\n'
    )
    assert server.tenant.series() == {KEY: {NOW: bits(1.0), NOW + 1: bits(3.0)}}


def test_w15_too_old(server: Server) -> None:
    assert server.post(ONE)[0] == 204
    assert write(server, series(UP, [(1.0, NOW - WINDOW_MS)])) == (204, "")
    status, text = write(server, series(UP, [(1.0, NOW - WINDOW_MS - 1)]))
    assert status == 400
    assert "too old sample: 1" in text


def test_w15_without_a_window_late_is_out_of_order() -> None:
    server = Server(times=TimeLimits(out_of_order_window_ms=0))
    assert server.post(ONE)[0] == 204
    status, text = write(server, series(UP, [(1.0, NOW - WINDOW_MS - 1)]))
    assert status == 400
    assert "out of order sample: 1, first: {" in text


def test_w16_far_future(server: Server) -> None:
    minute = 60_000
    assert write(server, series(UP, [(1.0, NOW + 9 * minute)])) == (204, "")
    status, text = write(server, series(UP, [(1.0, NOW + 11 * minute), (1.0, NOW)]))
    assert status == 400
    assert "out of bounds: timestamp is too far in the future: 1, first: {" in text
    assert server.tenant.series() == {KEY: {NOW + 9 * minute: bits(1.0), NOW: bits(1.0)}}
    assert server.tally.snapshot() == {Reason.FAR_FUTURE: 1}


@pytest.mark.parametrize(
    ("pairs", "stored"),
    [
        ([("job", "a"), ("__name__", "up")], KEY),
        ([("__name__", "up"), ("empty", ""), ("job", "a")], KEY),
        ([("__name__", "a.b c\nd"), ("grüße", "🎉")], (("__name__", "a.b c\nd"), ("grüße", "🎉"))),
    ],
)
def test_w17_labels_are_put_in_order(
    server: Server, pairs: list[tuple[str, str]], stored: tuple[tuple[str, str], ...]
) -> None:
    for round_ in range(3):
        assert write(server, series(pairs, [(1.0, NOW + round_)])) == (204, "")
    assert list(server.tenant.series()) == [stored]


@pytest.mark.parametrize(
    ("pairs", "what"),
    [
        ([("__name__", "up"), ("a", "1"), ("a", "2")], "duplicate label name"),
        ([("a", "1")], "series without a metric name"),
        ([("__name__", "")], "series without"),
        ([], "series without labels"),
        ([(b"__name__", b"\xff")], "label name or value is not valid UTF-8"),
        ([(b"__name__", b"up"), (b"\xc0\x80", b"x")], "label name or value is not valid UTF-8"),
        ([("__name__", "up"), ("", "x")], "empty label name"),
    ],
)
def test_w17_bad_labels_are_400(server: Server, pairs: list[tuple[str, str]], what: str) -> None:
    for _ in range(2):
        status, text = write(server, series(pairs, [(1.0, NOW)]), series(UP, [(1.0, NOW)]))
        assert status == 400
        assert f"\n{what}" in text
    assert list(server.tenant.series()) == [KEY]


def test_w18_w20_samples_of_a_series_are_sorted_and_joined(server: Server) -> None:
    stamps = [NOW + 5, NOW, NOW + 9, NOW + 1]
    body = series(UP, [(float(t), t) for t in stamps]) + series([("__name__", "b")], [(1.0, 7), (2.0, 3)])
    server.tenant.held = []

    async def run() -> None:
        request = asyncio.create_task(server.apost(snappy(body)))
        while not server.tenant.held:
            await asyncio.sleep(0.001)
        batch = server.tenant.held[0][1]
        assert batch.ts_ms.tolist() == [*sorted(stamps), 3, 7]
        assert batch.bits[:4].tolist() == [bits(float(t)) for t in sorted(stamps)]
        server.tenant.newest = 0
        server.tenant.release()
        await request

    asyncio.run(run())
    split = Server()
    assert write(split, *(series(UP, [(float(t), t)]) for t in stamps)) == (204, "")
    assert split.tenant.series()[KEY] == server.tenant.series()[KEY]


def test_w18_the_first_of_equal_times_stays_first(server: Server) -> None:
    status, text = write(server, series(UP, [(1.0, NOW + 1), (2.0, NOW), (3.0, NOW), (2.0, NOW)]))
    assert status == 400
    assert "duplicate sample for timestamp: 1" in text
    assert server.tenant.series() == {KEY: {NOW: bits(2.0), NOW + 1: bits(1.0)}}


def test_w20_w21_empty_series_empty_requests_and_metadata_are_204(server: Server) -> None:
    assert write(server) == (204, "")
    assert write(server, series(UP, [])) == (204, "")
    assert write(server, field(1, b"")) == (204, "")
    assert write(server, metadata(1, "up", "Whether it is up."), metadata(5, "s", "", "seconds")) == (204, "")
    assert write(server, metadata(99, "odd")) == (204, "")
    assert server.tenant.metadata == [
        Metadata("up", "counter", "Whether it is up.", ""),
        Metadata("s", "summary", "", "seconds"),
        Metadata("odd", "unknown", "", ""),
    ]
    assert len(server.tenant.registry) == 0
    assert write(server, field(3, b"\x12\x7f")) == (400, "malformed protobuf: field 2 of wire type 2 at byte 2\n")


def test_w22_exemplars_are_kept(server: Server) -> None:
    def exemplar(pairs: Pairs, value: float, ts_ms: int) -> bytes:
        return field(3, labels(pairs) + b"\x11" + struct.pack("<d", value) + b"\x18" + varint(ts_ms))

    trace = exemplar([("trace_id", "ab")], 0.5, NOW)
    late = exemplar([("trace_id", "aa")], 0.5, NOW - 1)
    long = exemplar([("trace_id", "x" * 200)], 0.5, NOW + 1)
    # Prometheus sends an exemplar as a series of its own, behind the one with the sample
    body = [series(UP, [(1.0, NOW)]), field(1, labels(UP) + trace), field(1, labels(UP) + late + long)]
    body.append(field(1, labels([("__name__", "new")]) + trace))
    assert write(server, *body) == (204, "")
    assert write(server, *body) == (204, "")
    rows = server.tenant.exemplars.select(np.arange(2, dtype=np.uint32), 0, NOW + 10, server.tenant.registry)
    assert rows is not None
    assert rows.labels == [b"trace_id\xffab\xff"] * 2
    assert (rows.refs.tolist(), rows.ts_ms.tolist(), rows.bits.tolist()) == ([0, 1], [NOW] * 2, [bits(0.5)] * 2)
    assert server.tally.snapshot() == {Reason.EXEMPLAR_OUT_OF_ORDER: 2, Reason.EXEMPLAR_TOO_LONG: 2}


def test_w23_native_histograms_are_refused_by_name(server: Server) -> None:
    histogram = field(1, labels([("__name__", "h")]) + field(4, b"\x08\x01"))
    status, text = write(server, series(UP, [(1.0, NOW)]), histogram, histogram)
    assert status == 400
    assert text.startswith("2 of 3 samples refused")
    assert 'native histograms are not supported: 2, first: {__name__="h"}; {__name__="h"}' in text
    assert list(server.tenant.series()) == [KEY]


def test_w24_a_v2_body_under_the_v1_type_is_400(server: Server) -> None:
    body = field(4, b"") + field(4, b"__name__") + field(5, b"")
    assert write(server, body)[0] == 400


def test_w26_sixteen_writers(server: Server) -> None:
    async def sender(number: int) -> None:
        for round_ in range(10):
            rows = [
                series([("__name__", "m"), ("w", str(number)), ("i", str(i))], [(1.0, NOW + round_)]) for i in range(30)
            ]
            assert (await server.apost(snappy(b"".join(rows))))[0] == 204

    async def run() -> None:
        await asyncio.gather(*(sender(number) for number in range(16)))

    asyncio.run(run())
    stored = server.tenant.series()
    assert len(stored) == 16 * 30
    assert all(sorted(samples) == [NOW + r for r in range(10)] for samples in stored.values())


def test_w28_error_bodies_are_bounded(server: Server) -> None:
    bad = [series([("job", f"{'x' * 500}{i}")], [(1.0, NOW)]) for i in range(5000)]
    bad += [series([("__name__", f"n{i}"), ("a", "1"), ("a", "2")], [(1.0, NOW)]) for i in range(5000)]
    status, headers, text = server.post(snappy(b"".join(bad)))
    assert (status, headers["content-length"]) == (400, str(len(text)))
    assert text.startswith("10000 of 10000 samples refused")
    assert len(text) < 4096


def test_tenants_are_apart(server: Server) -> None:
    assert server.post(ONE, x_scope_orgid="other")[0] == 204
    assert (len(server.tenant.registry), len(server.tenants.by_name["other"].registry)) == (0, 1)
    assert server.post(ONE, x_scope_orgid="nobody")[::2] == (400, "tenant 'nobody' does not exist\n")


def test_a_sender_that_goes_away_costs_nothing(server: Server) -> None:
    async def run() -> None:
        parts = [b"x" * 10, b"more"]
        messages = [{"type": "http.request", "body": parts[0], "more_body": True}, {"type": "http.disconnect"}]

        async def receive() -> dict[str, object]:
            return messages.pop(0)

        async def send(message: object) -> None:
            raise AssertionError("nobody is listening")

        await server.api({"type": "http", "method": "POST", "path": "/api/v1/write", "headers": []}, receive, send)

    asyncio.run(run())
    assert server.post(ONE)[0] == 204
    stats = server.api.stats
    assert (dict(stats.responses), stats.samples_accepted) == ({("/api/v1/write", 204): 1}, 1)


def test_large_requests_after_small_ones(server: Server) -> None:
    big = b"".join(series([("__name__", "m"), ("i", str(i))], [(float(i), NOW)]) for i in range(60_000))
    assert len(big) > 1 << 20
    assert server.post(snappy(big)) == (204, {}, "")
    assert server.post(snappy(big)) == (204, {}, "")
    assert len(server.tenant.registry) == 60_000


def test_a_request_served_on_the_calling_thread_is_answered_alike(server: Server) -> None:
    good, bad = ONE, snappy(series([("x", "no name")], [(1.0, NOW)]))
    plain = PushRequest(content_type="application/x-protobuf", encoding="snappy")
    for body in (good, bad, good[:-1], b""):
        status, _, text = server.post(body)
        answer = server.api.serve("/api/v1/write", plain, len(body), lambda body=body: body)  # type: ignore[misc]
        assert (answer.status, answer.body.decode()) == (status, text)
    before = server.api.stats.samples_accepted
    answer = server.api.serve("/api/v1/write", plain, len(good), lambda: good)
    assert answer == Answer(204)
    assert server.api.stats.samples_accepted == before + 1
    other = PushRequest(content_type="text/plain")
    assert server.api.serve("/api/v1/write", other, 3, never).status == 415
    server.tenant.fail = OverloadedError("full")
    assert server.api.serve("/api/v1/write", plain, len(good), lambda: good).status == 503

    def gone() -> bytes:
        raise DisconnectedError

    with pytest.raises(DisconnectedError):
        server.api.serve("/api/v1/write", plain, 3, gone)
    assert (server.api._requests, server.api._inflight_bytes) == (0, 0)


def test_requests_in_steps_are_counted_until_they_are_finished_or_given_up(server: Server) -> None:
    api, path = server.api, "/api/v1/write"
    plain = PushRequest(content_type="application/x-protobuf", encoding="snappy")
    given_up, good, bad, refused = (
        api.admit(path, PushRequest(content_type=kind, encoding="snappy"), len(ONE))
        for kind in (*[plain.content_type] * 3, "text/plain")
    )
    assert (api._requests, api._inflight_bytes) == (3, 3 * len(ONE))
    with api.gathering():
        api.parse(good, ONE)
        api.parse(bad, ONE[:-1])
        api.parse(refused, ONE)
    api.give_up(given_up)
    assert [api.finish(push).status for push in (good, bad, refused)] == [204, 400, 415]
    assert (api._requests, api._inflight_bytes) == (0, 0)
    assert api.stats.responses == {(path, 204): 1, (path, 400): 1, (path, 415): 1}
    assert api.stats.samples_accepted == 1
    assert server.tally.snapshot()[Reason.TRUNCATED] == 1


def test_a_length_is_refused_before_the_body_is_read() -> None:
    plain = PushRequest(content_type="application/x-protobuf", encoding="snappy")
    limited = Server(WriteLimits(body_bytes_max=100))
    assert limited.api.serve("/api/v1/write", plain, 101, never).status == 400
    limited = Server(WriteLimits(inflight_bytes_max=100))
    assert limited.api.serve("/api/v1/write", plain, 101, never).status == 503
    limited = Server(WriteLimits(requests_max=0))
    assert limited.api.serve("/api/v1/write", plain, 3, never).status == 503


def never() -> bytes:
    raise AssertionError
