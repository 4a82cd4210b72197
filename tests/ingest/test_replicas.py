"""Pairs of senders over the write endpoint: the replica label is dropped, one of the two is listened to."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from ingest.replicas import ReplicaLabels, first_message
from tests.ingest.bodies import field, series, snappy
from tests.ingest.bodies_v2 import TYPE, Body
from tests.ingest.fakes import FAILOVER_MS, NOW, Server

PAIR = ReplicaLabels(b"cluster", b"__replica__")
KEY = (("__name__", "up"), ("cluster", "c"), ("job", "a"))


def bits(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(pairs=PAIR)
    yield server
    server.executor.shutdown()


def labels(replica: str, job: str = "a") -> list[tuple[str, str]]:
    return [("__name__", "up"), ("__replica__", replica), ("cluster", "c"), ("job", job)]


def v1(rows: Sequence[tuple[Sequence[tuple[str, str]], float, int]]) -> tuple[bytes, str]:
    return snappy(field(3, b"") + b"".join(series(pairs, [(value, ms)]) for pairs, value, ms in rows)), ""


def v2(rows: Sequence[tuple[Sequence[tuple[str, str]], float, int]]) -> tuple[bytes, str]:
    body = Body()
    for pairs, value, ms in rows:
        trace = body.exemplar([("trace_id", str(ms))], value, ms)
        body.add(pairs, [(value, ms)], trace)
    return snappy(body.raw()), TYPE


@pytest.mark.parametrize("build", [v1, v2])
def test_one_of_a_pair_is_listened_to(server: Server, build) -> None:
    def push(replica: str, value: float, ms: int) -> int:
        body, content_type = build([(labels(replica, job), value, ms) for job in "ab"])
        return server.post(body, content_type=content_type)[0]

    for round_ in range(3):  # the first time, no key is known
        ms = NOW + 10 * round_
        assert (push("one", 1.0, ms), push("two", 2.0, ms + 1)) == (204, 204)
    assert server.tenant.series()[KEY] == {NOW: bits(1.0), NOW + 10: bits(1.0), NOW + 20: bits(1.0)}
    assert len(server.tenant.registry) == 2
    server.clock.ms += FAILOVER_MS + 1
    assert (push("two", 2.0, NOW + 31), push("one", 1.0, NOW + 32)) == (204, 204)
    assert server.tenant.series()[KEY][NOW + 31] == bits(2.0)
    assert NOW + 32 not in server.tenant.series()[KEY]
    assert server.tenant.replicas.elected() == {"c": "two"}


def test_replicas_of_known_series_need_no_lookup(server: Server) -> None:
    receiver = server.v2
    for round_ in range(2):
        for replica in ("one", "two"):
            body, _ = v2([(labels(replica, str(i)), 1.0, NOW + round_) for i in range(20)])
            receiver.receive(server.tenant, body)
            tables = receiver._spellings_of(server.tenant.registry)
            assert len(tables.keys) == (20 if (round_, replica) == (0, "one") else 40)


def test_exemplars_of_the_other_replica_are_passed_over(server: Server) -> None:
    for replica, ms in (("one", NOW), ("two", NOW + 1)):
        body, content_type = v2([(labels(replica), 1.0, ms)])
        _, headers, _ = server.post(body, content_type=content_type)
        assert headers["x-prometheus-remote-write-samples-written"] == "1"
        assert headers["x-prometheus-remote-write-exemplars-written"] == "1"
    rows = server.tenant.exemplars.select(np.array([0], np.uint32), 0, NOW + 9, server.tenant.registry)
    assert rows is not None
    assert rows.ts_ms.tolist() == [NOW]


@pytest.mark.parametrize("build", [v1, v2])
def test_without_both_labels_nothing_is_dropped(server: Server, build) -> None:
    rows = [[("__name__", "a"), ("__replica__", "one")], [("__name__", "b"), ("cluster", "c")]]
    for _ in range(2):
        body, content_type = build([(pairs, 1.0, NOW) for pairs in rows])
        assert server.post(body, content_type=content_type)[0] == 204
    assert sorted(server.tenant.series()) == [tuple(pairs) for pairs in rows]


def test_first_message() -> None:
    raw = np.frombuffer(
        b"\x08\x01" + b"\x11" + bytes(8) + field(3, b"x") + field(1, b"one") + field(1, b"two"), np.uint8
    )
    assert first_message(raw, len(raw), 1) == b"one"
    assert first_message(raw, len(raw), 7) == b""
    assert first_message(raw, 0, 1) == b""
