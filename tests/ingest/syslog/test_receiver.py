"""Doors, bounds, a busy store and a reload, over real sockets of this machine."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ingest.logs.limits import PushLimits
from ingest.logs.push import PushReceiver
from ingest.syslog import receiver as module
from ingest.syslog.entries import ListenerSettings
from ingest.syslog.receiver import SyslogReceiver
from tsdb.clock import SystemClock
from tsdb.db import TSDB, StoreConfig
from tsdb.errors import OverloadedError, Reason
from tsdb.matchers import Matcher, MatchOp
from tsdb.tally import Tally

PATIENCE_S = 60.0
UDP = ListenerSettings("127.0.0.1", 0)
TCP = ListenerSettings("127.0.0.1", 0, "tcp")


def until(what: str, done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.01)


class World:
    def __init__(self, folder: Path) -> None:
        self.tally = Tally()
        config = StoreConfig(path=folder, min_free_bytes=0, min_free_fraction=0, maintenance_seconds=3600)
        self.db = TSDB(config)
        self.db.open()
        self.logs = self.db.tenant("default").logs
        pushes = PushReceiver(SystemClock(), self.tally, PushLimits())
        self.receiver = SyslogReceiver(lambda name: self.db.tenant(name).logs, pushes, self.tally, streams_max=20)
        self.receiver.start()

    def listen(self, *settings: ListenerSettings) -> None:
        self.receiver.apply(settings)

    def to(self, settings: ListenerSettings) -> tuple[str, int]:
        return self.receiver.addresses[settings.address]

    def udp(self, *messages: bytes, settings: ListenerSettings = UDP) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for message in messages:
                sender.sendto(message, self.to(settings))

    def tcp(self, data: bytes, settings: ListenerSettings = TCP) -> None:
        with socket.create_connection(self.to(settings), timeout=PATIENCE_S) as sender:
            sender.sendall(data)

    def stored(self, count: int) -> None:
        until(f"{count} messages", lambda: self.receiver.stats.messages >= count)

    def refused(self, reason: Reason, count: int) -> None:
        until(f"{count} {reason}", lambda: self.tally.snapshot().get(reason, 0) >= count)

    def entries(self, **labels: str) -> list[tuple[bytes, dict[str, str], dict[str, str]]]:
        """(line, labels, metadata) of stored entries, oldest first."""
        matchers = [Matcher(name, MatchOp.EQUAL, value) for name, value in labels.items()]
        out = []
        for frame in self.logs.select(matchers, 0, 1 << 62, backward=False):
            columns = {name: frame.metadata(name) for name in frame.metadata_names}
            texts = {name: column.texts().to_list() for name, column in columns.items() if column is not None}
            for i, text in enumerate(frame.lines().to_list()):
                metadata = {name: column[i].decode() for name, column in texts.items() if column[i]}
                out.append((text, dict(frame.labels.labels(int(frame.stream_row[i]))), metadata))
        return out


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.receiver.close()
    made.db.close()


def test_labels_metadata_and_level(world: World) -> None:
    world.listen(UDP)
    world.udp(
        b"<165>1 2001-11-26T01:02:03.000003Z web-1 shop - - - long ago",
        b"<187>Nov 26 01:02:03 web-2 nginx: broken \xff",
        b"nothing known",
    )
    world.stored(2)
    world.refused(Reason.TOO_OLD, 1)
    found = {line: (labels, metadata) for line, labels, metadata in world.entries()}
    labels, metadata = found["broken \N{REPLACEMENT CHARACTER}".encode()]
    assert labels == {"job": "syslog", "host": "web-2", "app": "nginx", "service_name": "nginx"}
    assert metadata == {
        "facility": "local7",
        "severity": "err",
        "sender": "127.0.0.1",
        "detected_level": "error",
    }
    labels, metadata = found[b"nothing known"]
    assert (labels["host"], "app" in labels, metadata["severity"]) == ("127.0.0.1", False, "notice")
    assert world.receiver.unparsed == 1


def test_structured_data_becomes_metadata(world: World) -> None:
    world.listen(replace(TCP, label_parts={"unit": "facility"}, labels={"job": "x"}))
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    world.tcp(f'<165>1 {stamp}.5Z web-1 shop 8710 ID47 [origin@1 ip="192.0.2.1" x-y="2"] \ufeffpaid\n'.encode())
    world.stored(1)
    [(line, labels, metadata)] = world.entries()
    assert (line, labels) == (b"paid", {"job": "x", "unit": "local4", "service_name": "x"})
    assert metadata == {
        "hostname": "web-1",
        "app_name": "shop",
        "proc_id": "8710",
        "msg_id": "ID47",
        "severity": "notice",
        "sender": "127.0.0.1",
        "sd_origin_1_ip": "192.0.2.1",
        "sd_origin_1_x_y": "2",
        "detected_level": "info",
    }


@pytest.mark.parametrize("stamp", [b"-", b"now"])
def test_messages_that_are_alike_are_all_kept(world: World, stamp: bytes) -> None:
    world.listen(TCP)
    if stamp == b"now":
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()).encode()
    world.tcp(b"<13>1 %s h a - - - same\n" % stamp * 500)
    world.stored(500)
    assert [line for line, _, _ in world.entries(app="a")] == [b"same"] * 500


def test_bounds_are_counted_by_reason(world: World) -> None:
    tcp = replace(TCP, message_bytes_max=500, connections_max=2)
    world.listen(replace(UDP, message_bytes_max=500, rate_max=3), tcp)
    time.sleep(0.5)  # tokens come with time
    world.udp(b"<13>a: " + b"x" * 600)
    world.refused(Reason.LINE_TOO_LONG, 1)
    world.tcp(b"700 <13>" + b"x" * 696 + b"6 <13>ok" + b"<13>" + b"y" * 700 + b"\n")
    world.refused(Reason.LINE_TOO_LONG, 3)
    world.stored(1)
    until("connections are gone", lambda: world.receiver.connections == 0)
    with (
        socket.create_connection(world.to(tcp)),
        socket.create_connection(world.to(tcp)),
        socket.create_connection(world.to(tcp)) as third,
    ):
        third.settimeout(PATIENCE_S)
        assert third.recv(1) == b""
        world.refused(Reason.CONNECTIONS, 1)
    world.udp(*[b"<13>a: x"] * 50)
    world.refused(Reason.RATE_LIMITED, 40)


def test_rate_makes_connections_wait_and_loses_nothing(world: World) -> None:
    world.listen(replace(TCP, rate_max=200))
    begin = time.monotonic()
    world.tcp(b"".join(b"<13>a: %d\n" % i for i in range(300)))
    world.stored(300)
    assert time.monotonic() - begin > 0.5
    assert Reason.RATE_LIMITED not in world.tally.snapshot()


def test_who_is_not_allowed_is_refused(world: World) -> None:
    nets = (ipaddress.ip_network("192.0.2.0/24"),)
    world.listen(replace(UDP, allow=nets), replace(TCP, allow=nets))
    world.udp(b"<13>a: x")
    world.tcp(b"<13>a: x\n")
    world.refused(Reason.FORBIDDEN, 2)
    world.listen(replace(UDP, allow=(ipaddress.ip_network("127.0.0.0/8"),)), replace(TCP, allow=nets))
    world.udp(b"<13>a: x")
    world.stored(1)


def test_too_many_streams_become_one(world: World) -> None:
    world.listen(TCP)
    world.tcp(b"".join(b"<13>app%d: x\n" % i for i in range(30)))
    world.stored(30)
    assert sorted({labels["app"] for _, labels, _ in world.entries()}) == sorted(
        [*(f"app{i}" for i in range(20)), "other"]
    )


def test_a_busy_store_stops_senders_and_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE_BYTES", 64 << 10)
    monkeypatch.setattr(module, "BUSY_S", 0.05)
    world.listen(TCP)

    def busy(*_: object) -> Any:
        raise OverloadedError("full")

    text = b"".join(b"<13>a: %06d %s\n" % (i, b"x" * 1000) for i in range(20_000))
    with socket.create_connection(world.to(TCP), timeout=PATIENCE_S) as sender:
        with monkeypatch.context() as patch:
            patch.setattr(world.logs, "append", busy)
            sender.setblocking(False)
            sent, quiet_since = 0, time.monotonic()
            while time.monotonic() - quiet_since < 1.0 and sent < len(text):
                try:
                    sent += sender.send(text[sent : sent + (1 << 16)])
                    quiet_since = time.monotonic()
                except BlockingIOError:
                    time.sleep(0.01)
            assert sent < len(text), "the sender is made to wait"
            assert world.receiver.stats.queued_bytes < 1 << 20
            until("it is counted", lambda: world.receiver.stats.busy > 1)
        sender.settimeout(PATIENCE_S)
        sender.sendall(text[sent:])
    world.stored(20_000)
    lines = [line for line, _, _ in world.entries(app="a")]
    assert lines == [b"%06d %s" % (i, b"x" * 1000) for i in range(20_000)]


def test_datagrams_that_the_kernel_drops_are_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE_BYTES", 1 << 10)
    monkeypatch.setattr(module, "BUSY_S", 0.05)
    monkeypatch.setattr(module, "RECEIVE_BUFFER", 64 << 10)
    world.listen(UDP)

    def busy(*_: object) -> Any:
        raise OverloadedError("full")

    with monkeypatch.context() as patch:
        patch.setattr(world.logs, "append", busy)
        world.udp(b"<13>a: begin")
        until("the store is busy", lambda: world.receiver.stats.busy > 0)
        world.udp(*[b"<13>a: %d " % i + b"x" * 500 for i in range(3000)])
    until("the queue is empty", lambda: world.receiver.stats.queued_bytes == 0)
    world.udp(b"<13>a: end")  # each datagram comes with the count of those before it that were dropped
    world.refused(Reason.RECEIVE_BUFFER, 1)
    until(
        "all are stored or counted",
        lambda: world.receiver.stats.messages + world.tally.snapshot()[Reason.RECEIVE_BUFFER] == 3002,
    )


def test_another_configuration_keeps_what_stays(world: World) -> None:
    world.listen(TCP)
    port = world.to(TCP)[1]
    here = replace(TCP, port=port)
    world.listen()
    world.listen(here, UDP)
    with socket.create_connection(("127.0.0.1", port)) as sender:
        sender.sendall(b"<13>a: 1\n")
        world.stored(1)
        world.listen(replace(here, labels={"job": "other"}))
        sender.sendall(b"<13>a: 2\n")
        world.stored(2)
        assert [line for line, _, _ in world.entries(job="other")] == [b"2"]
        assert UDP.address not in world.receiver.addresses
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(OSError, match="syslog: cannot listen on"):
                world.listen(replace(here, port=taken.getsockname()[1]), UDP)
        assert list(world.receiver.addresses) == [here.address], "nothing has changed"
        world.listen(replace(here, protocol="tls"))  # who spoke plain text may not go on doing so
        sender.settimeout(PATIENCE_S)
        assert sender.recv(1) == b""
    world.listen()
    assert not world.receiver.addresses


def test_the_end_stores_what_was_taken(world: World) -> None:
    world.listen(TCP)
    world.tcp(b"".join(b"<13>a: %d\n" % i for i in range(5000)))
    until("taken", lambda: world.receiver.stats.queued_bytes > 0 or world.receiver.stats.messages == 5000)
    until("read", lambda: world.receiver.connections == 0)
    world.receiver.close()
    assert world.receiver.stats.messages == 5000
