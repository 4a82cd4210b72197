"""Hostile senders over the wire, in every push protocol: cut off, blown up, damaged, slow, ten thousand at once."""

from __future__ import annotations

import contextlib
import gzip
import re
import resource
import select
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import cramjam
import grpc
import psutil
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.damage import Cut, damaged, damages
from tests.e2e.bodies import write_body
from tests.e2e.server import Server
from tests.pushes import PUSHES, SERIES, Push

CONFIG = """
storage: {free_bytes_min: 0, free_fraction_min: 0}
server: {header_timeout: 2s, body_timeout: 2s}
otlp: {grpc_listen: "127.0.0.1:0"}
limits:
  ingest: {body_bytes_max: 16MiB, decoded_bytes_max: 8MiB}
  logs: {body_bytes_max: 16MiB, decoded_bytes_max: 8MiB}
"""
MIB = 1 << 20
EVERY = pytest.mark.parametrize("name", list(PUSHES))
PACKED = pytest.mark.parametrize("name", [name for name, push in PUSHES.items() if push.is_packed])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("edge"), CONFIG) as running:
        yield running


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def refused(server: Server, reason: str) -> float:
    return server.metric(f'meshpulse_rejected_total{{reason="{reason}"}}')


def stored(server: Server) -> float:
    """Samples and log entries so far."""
    return server.metric("meshpulse_samples_appended_total") + server.metric("meshpulse_log_entries_total")


def head(push: Push, *more: str) -> bytes:
    lines = [f"POST {push.path} HTTP/1.1", "Host: x", *(f"{k}: {v}" for k, v in push.headers.items()), *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


@EVERY
def test_a_body_that_is_cut_off_leaves_nothing(server: Server, name: str) -> None:
    push = PUSHES[name]
    body = push.body(now_ms())
    cut, before = refused(server, "truncated_body"), stored(server)
    for begin in (0, 1, len(body) - 1):
        with connect(server) as connection:
            connection.sendall(head(push, f"Content-Length: {len(body)}") + body[:begin])
    with connect(server) as connection:
        piece = b"%x\r\n%s\r\n" % (len(body), body)
        connection.sendall(head(push, "Transfer-Encoding: chunked") + piece)  # and no last chunk
    wait_for(lambda: refused(server, "truncated_body") == cut + 4)
    assert stored(server) == before
    reply = server.request("POST", push.path, push.body(now_ms()), push.headers)
    assert reply.status in (200, 204), reply.body
    wait_for(lambda: stored(server) >= before + SERIES)


@PACKED
def test_a_compressed_body_that_is_cut_off_leaves_nothing(server: Server, name: str) -> None:
    push = PUSHES[name]
    body = push.body(now_ms())
    before, malformed = stored(server), refused(server, "malformed_body")
    cuts = sorted({0, 1, 5, *range(10, len(body), max(1, len(body) // 12)), len(body) - 1})
    for cut in cuts[1:]:
        reply = server.request("POST", push.path, body[:cut], push.headers)
        assert 400 <= reply.status < 500, (cut, reply.body)
    assert refused(server, "malformed_body") == malformed + len(cuts) - 1
    assert stored(server) == before


def bombs() -> Mapping[str, bytes]:
    """Compressed zeros by Content-Encoding: 512 MiB of them, 96 of snappy, which packs less densely."""
    packer, deflate = zlib.compressobj(1, wbits=31), zlib.compressobj(1)
    zstd = zstandard.ZstdCompressor(1).compressobj(size=512 * MIB)
    anonymous = zstandard.ZstdCompressor(1).compressobj()  # does not say how long it is
    zeros = bytes(MIB)
    parts: dict[str, list[bytes]] = {"gzip": [], "deflate": [], "zstd": [], "zstd of no length": []}
    for _ in range(512):
        for key, engine in zip(parts, (packer, deflate, zstd, anonymous), strict=True):
            parts[key].append(engine.compress(zeros))
    for key, engine in zip(parts, (packer, deflate, zstd, anonymous), strict=True):
        parts[key].append(engine.flush())
    return {
        **{key: b"".join(pieces) for key, pieces in parts.items()},
        "lz4": bytes(cramjam.lz4.compress(bytes(512 * MIB))),
        "snappy": bytes(cramjam.snappy.compress_raw(bytes(96 * MIB))),
    }


@contextlib.contextmanager
def peak_rss(server: Server) -> Iterator[list[int]]:
    """The most resident memory while the block runs, as the only element of a list."""
    process = psutil.Process(server.pid)
    peak = [process.memory_info().rss]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield peak
    finally:
        done.set()
        watching.join()


def test_bombs_are_refused_within_bounded_memory(server: Server) -> None:
    made = bombs()
    assert all(len(bomb) < 8 * MIB for bomb in made.values()), "they have to get through the limit of the body itself"
    pushes = []
    for push in PUSHES.values():
        encoding = push.headers.get("Content-Encoding", "snappy" if push.is_packed else "")
        if not encoding:
            continue
        keys = ("zstd", "zstd of no length") if encoding == "zstd" else (encoding,)
        pushes += [(push, made[key]) for key in keys]
        if encoding == "snappy":
            pushes.append((push, b"\xff\xff\xff\xff\x0f" + bytes(100)))  # says 4 GiB
            pushes.append((push, b"\x80\x80\x80\x04" + made[encoding][4:]))  # says 8 MiB, which it may have
    assert len({id(bomb) for _, bomb in pushes}) > len(made), "each encoding is one that something takes"
    before, rss = stored(server), psutil.Process(server.pid).memory_info().rss
    with peak_rss(server) as peak, ThreadPoolExecutor(4) as senders:
        replies = list(senders.map(lambda one: server.request("POST", one[0].path, one[1], one[0].headers), pushes * 4))
    assert {reply.status for reply in replies} <= {400, 413}, {reply.status: reply.body for reply in replies}
    assert refused(server, "body_too_large") > 0
    assert stored(server) == before
    print(f"{(peak[0] - rss) / MIB:.0f} MiB more while {len(pushes) * 4} bombs came")
    # Four at once of 5 MB and 8 MiB plain, in copies, on three thread pools; one bomb that went off would be 512 MiB.
    assert peak[0] - rss < 400 * MIB, f"{(peak[0] - rss) / MIB:.0f} MiB"


def test_a_bomb_by_grpc_is_refused(server: Server) -> None:
    found = re.search(r"OTLP over gRPC.*port=(\d+)", server.log)
    assert found
    options = [("grpc.max_send_message_length", -1)]
    with peak_rss(server) as peak, grpc.insecure_channel(f"127.0.0.1:{found[1]}", options) as channel:
        before = peak[0]
        export = channel.unary_unary("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export")
        with pytest.raises(grpc.RpcError) as refusal:
            export(bytes(512 * MIB), compression=grpc.Compression.Gzip, timeout=120)
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert peak[0] - before < 256 * MIB, f"{(peak[0] - before) / MIB:.0f} MiB"


NESTED = {
    "Loki JSON": b'{"streams":' + b"[" * 1_000_000,
    "OTLP JSON": gzip.compress(b'{"resourceMetrics":[{"resource":{"attributes":' + b'[{"key":"a","value":' * 200_000),
    "Loki": cramjam.snappy.compress_raw(b"\x0a\xff\xff\x03" * 200_000),
    "remote-write 1.0": cramjam.snappy.compress_raw(b"\x0a\xff\xff\x03" * 200_000),
}


@pytest.mark.parametrize("name", list(NESTED))
def test_deep_nesting_is_refused(server: Server, name: str) -> None:
    push = PUSHES[name]
    assert server.request("POST", push.path, bytes(NESTED[name]), push.headers).status == 400


@pytest.mark.parametrize("name", ["remote-write 1.0", "OTLP", "Loki", "OTLP logs"])
def test_bodies_above_the_limit_are_refused_before_they_are_read(server: Server, name: str) -> None:
    push = PUSHES[name]
    too_large = refused(server, "body_too_large")
    with connect(server) as connection:  # by what it says
        connection.sendall(head(push, f"Content-Length: {17 * MIB}"))
        status = connection.recv(1000).split()[1]
        assert status in (b"400", b"413")
    with connect(server) as connection:  # by what comes
        connection.sendall(head(push, "Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError):
            for _ in range(17):
                connection.sendall(b"100000\r\n" + bytes(MIB) + b"\r\n")
        assert connection.recv(1000).split()[1] == status
    assert refused(server, "body_too_large") == too_large + 2


@EVERY
def test_a_damaged_body_is_never_an_error_of_ours(server: Server, name: str) -> None:
    """What parses, and what is decompressed: the server answers 2xx or 4xx, and takes the next good body."""
    push = PUSHES[name]

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(damages, st.booleans())
    def check(damage: list[Cut], is_outside: bool) -> None:
        now = now_ms()
        body = damaged(push.body(now), damage) if is_outside else push.pack(damaged(push.plain(now), damage))
        reply = server.request("POST", push.path, body, push.headers)
        assert reply.status in (200, 204, 400, 413, 422), (reply.status, reply.body)

    check()
    reply = server.request("POST", push.path, push.body(now_ms()), push.headers)
    assert reply.status in (200, 204), reply.body


HEADS = st.lists(
    st.sampled_from(
        [
            b"POST /api/v1/write HTTP/1.1", b"GET /api/v1/query?query=up HTTP/1.1", b"\r\n", b"Host: x\r\n",
            b"Content-Length: 3\r\n", b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999\r\n",
            b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Content-Encoding: \xff\r\n",
            b"Content-Type: application/x-protobuf;proto=\r\n", b"Content-Type: \x80;=;\r\n",
            b"X-Scope-OrgID: ../..\r\n", b"X-Scope-OrgID: \xff\xfe\r\n", b"Authorization: Basic \xff\r\n",
            b"Upgrade: websocket\r\n", b"Connection: upgrade\r\n", b"Expect: 100-continue\r\n",
            b"Accept-Encoding: gzip;q=x\r\n",
            b"GET http:// HTTP/1.1", b"GET * HTTP/1.1", b"CONNECT x:1 HTTP/1.1", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET /%ff%00/../ HTTP/1.1", b"GET /api/v1/label/%ff/values HTTP/1.1", b"0\r\n\r\n",
            b"ffffffffffffffff\r\n",
        ]
    )
    | st.binary(max_size=20),
    max_size=10,
)  # fmt: skip


def test_damaged_headers(server: Server) -> None:
    """Whatever comes, each answer is one of HTTP, none is an error of ours, and the server goes on."""

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(HEADS)
    def check(parts: list[bytes]) -> None:
        with connect(server) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"".join(parts) + b"\r\n\r\n")
                connection.shutdown(socket.SHUT_WR)
            got = b""
            with contextlib.suppress(ConnectionError):
                while piece := connection.recv(65536):
                    got += piece
        statuses = [line.split()[1] for line in got.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
        assert not got or got.startswith(b"HTTP/1.1 ")
        assert all(status[:1] in b"1234" or status == b"501" for status in statuses), got

    check()
    assert "Traceback" not in server.log, server.log.partition("Traceback")[2][:5000]
    assert server.get("/-/ready").status == 200


@pytest.mark.parametrize("begin", [b"", b"\x05"])
def test_slow_senders_are_told_and_take_nothing_from_others(server: Server, begin: bytes) -> None:
    """Two hundred that trickle, on both roads, beside one that does not."""
    push = PUSHES["remote-write 1.0"]
    timeouts = refused(server, "request_timeout")
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(200)]
        for i, connection in enumerate(slow):
            whole = head(push, "Content-Length: 5000")
            connection.sendall(whole + begin if i % 2 else whole[:30])
        until = time.monotonic() + 60
        open_ones = list(slow)
        while open_ones and time.monotonic() < until:
            reply = server.request("POST", push.path, push.body(now_ms()), push.headers)
            assert reply.status == 204, reply.body
            ready, _, _ = select.select(open_ones, [], [], 0.1)
            for connection in ready:
                assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
                open_ones.remove(connection)
            for i, connection in enumerate(open_ones):
                connection.sendall(b"x" if i % 2 else b"a")
        assert not open_ones
    wait_for(lambda: refused(server, "request_timeout") == timeouts + 200)


CONNECTIONS = 10_000


def ask_health(connections: list[socket.socket]) -> None:
    for connection in connections:
        connection.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n")
    for connection in connections:
        got = b""
        while not got.endswith(b"Healthy.\n"):
            piece = connection.recv(1000)
            assert piece, got
            got += piece
        assert got.startswith(b"HTTP/1.1 200 ")


def test_ten_thousand_connections(server: Server) -> None:
    """All open at once; pushes and queries work beside them, and each of them still works after that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = CONNECTIONS + 600
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"needs {needed} open files, the limit here is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    wait_for(lambda: server.metric("meshpulse_connections") < 5)
    rss = psutil.Process(server.pid).memory_info().rss
    push = PUSHES["remote-write 1.0"]
    surplus = refused(server, "too_many_connections")
    idle: list[socket.socket] = []
    try:
        while len(idle) < CONNECTIONS - 4:  # room for the requests of this test
            idle.append(connect(server))
            ask_health(idle[-1:])
        assert server.metric("meshpulse_connections") >= CONNECTIONS - 4
        now = now_ms()
        for i in range(20):
            sample = write_body([({"__name__": "crowded"}, [(now + i, float(i))])])
            assert server.write(sample).status == 204
            assert server.query("crowded", time=(now + i) / 1000)[0]["value"][1] == str(i)
        ask_health(idle[::10])
        grown = psutil.Process(server.pid).memory_info().rss - rss
        print(f"{grown / CONNECTIONS / 1024:.1f} KiB a connection")
        assert grown < CONNECTIONS * 40 * 1024, f"{grown / CONNECTIONS / 1024:.1f} KiB a connection"
        idle += [connect(server) for _ in range(8)]
        idle[-1].sendall(head(push, "Content-Length: 0"))
        assert idle[-1].recv(1000).startswith(b"HTTP/1.1 503 ")
    finally:
        for connection in idle:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wait_for(lambda: refused(server, "too_many_connections") > surplus)
    wait_for(lambda: server.metric("meshpulse_connections") < 5)
