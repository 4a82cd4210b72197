"""What each push protocol costs for the same series: remote-write 1.0, 2.0 and OTLP, end to end over HTTP.

    python -m benchmarks.senders [--series 40000]

The same labels and values, 2,000 samples a request, one connection; every request has a symbol table of its own (2.0)
and a point an attribute list of its own (OTLP). CPU seconds of the whole server, best of the measured groups.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cramjam
import numpy as np
from numpy.typing import NDArray

from benchmarks.bodies import HEADERS, mesh_labels
from benchmarks.peers import Server, meshpulse

PER_REQUEST = 2000
STEP_MS = 15_000
_SAMPLE = b"\x09" + bytes(8) + b"\x10" + bytes(6)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


@dataclass
class Body:
    """One request; values and times are patched in place.

    Attributes
    ----------
    value_at, time_at : (n,) int64        where they lie
    """

    raw: bytearray
    value_at: NDArray[np.int64]
    time_at: NDArray[np.int64]


def _write_v1(rows: list[list[tuple[str, str]]]) -> Body:
    raw, at = bytearray(), []
    for row in rows:
        labels = b"".join(_field(1, _field(1, n.encode()) + _field(2, v.encode())) for n, v in row)
        raw += _field(1, labels + _field(2, _SAMPLE))
        at.append(len(raw) - len(_SAMPLE) + 1)
    places = np.array(at)
    return Body(raw, places, places + 9)


def _write_v2(rows: list[list[tuple[str, str]]]) -> Body:
    symbols: dict[str, int] = {"": 0}
    series = []
    for row in rows:
        refs = [symbols.setdefault(text, len(symbols)) for pair in row for text in pair]
        said = b"\x08\x01\x18" + _varint(symbols.setdefault(f"Requests, {row[0][1]}.", len(symbols)))
        series.append(_field(1, b"".join(map(_varint, refs))) + _field(5, said) + _field(2, _SAMPLE))
    raw, at = bytearray(b"".join(_field(4, text.encode()) for text in symbols)), []
    for one in series:
        raw += _field(5, one)
        at.append(len(raw) - len(_SAMPLE) + 1)
    places = np.array(at)
    return Body(raw, places, places + 9)


def _otlp(rows: list[list[tuple[str, str]]]) -> Body:
    points: dict[str, list[bytes]] = {}
    for row in rows:
        pairs = b"".join(_field(7, _field(1, n.encode()) + _field(2, _field(1, v.encode()))) for n, v in row[1:])
        points.setdefault(row[0][1], []).append(b"\x19" + bytes(8) + b"\x21" + bytes(8) + pairs)
    metrics = b""
    at = []
    for name, own in points.items():
        head = _field(1, name.encode())
        data = b"".join(_field(1, point) for point in own) + b"\x10\x02\x18\x01"
        metrics += _field(2, head + _field(7, data))
    resource = _field(1, _field(1, b"service.name") + _field(2, _field(1, b"bench")))
    raw = bytearray(_field(1, _field(1, resource) + _field(2, metrics)))
    pos = raw.find(b"\x19" + bytes(8) + b"\x21" + bytes(8) + b"\x3a")
    while pos >= 0:
        at.append(pos)
        pos = raw.find(b"\x19" + bytes(8) + b"\x21" + bytes(8) + b"\x3a", pos + 18)
    assert len(at) == len(rows)
    places = np.array(at)
    return Body(raw, places + 10, places + 1)


@dataclass(frozen=True)
class Protocol:
    """How a sender speaks."""

    name: str
    path: str
    headers: Mapping[str, str]
    build: Callable[[list[list[tuple[str, str]]]], Body]
    time_bytes: Callable[[int], bytes]
    compress: Callable[[bytearray], bytes]


def _snappy(raw: bytearray) -> bytes:
    return bytes(cramjam.snappy.compress_raw(raw))


V2_TYPE = "application/x-protobuf;proto=io.prometheus.write.v2.Request"
PROTOCOLS = (
    Protocol("remote-write 1.0", "/api/v1/write", HEADERS, _write_v1, _varint, _snappy),
    Protocol("remote-write 2.0", "/api/v1/write", {**HEADERS, "Content-Type": V2_TYPE}, _write_v2, _varint, _snappy),
    Protocol(
        "OTLP",
        "/api/v1/otlp/v1/metrics",
        {"Content-Type": "application/x-protobuf"},
        _otlp,
        lambda ms: (ms * 1_000_000).to_bytes(8, "little"),
        bytes,
    ),
)


def measure(server: Server, protocol: Protocol, n_series: int, groups: int = 4, rounds: int = 4) -> float:
    """Nanoseconds of the server's CPU a sample of known series."""
    bodies = [
        protocol.build([mesh_labels(i) for i in range(first, min(first + PER_REQUEST, n_series))])
        for first in range(0, n_series, PER_REQUEST)
    ]
    rng = np.random.default_rng(7)
    now = int(time.time() * 1000) - (groups * rounds + 3) * STEP_MS
    values = np.floor(rng.uniform(0, 1e6, n_series))

    def one_round() -> list[bytes]:
        nonlocal now, values
        now += STEP_MS
        values += rng.poisson(40.0, n_series)
        stamp = np.frombuffer(protocol.time_bytes(now), np.uint8)
        out, first = [], 0
        for body in bodies:
            view = np.frombuffer(body.raw, np.uint8)
            own = values[first : first + len(body.value_at)].astype("<f8").view(np.uint8).reshape(-1, 8)
            view[body.value_at[:, None] + np.arange(8)] = own
            view[body.time_at[:, None] + np.arange(len(stamp))] = stamp
            out.append(protocol.compress(body.raw))
            first += len(body.value_at)
        return out

    connection = server.connect()

    def send(prepared: list[bytes]) -> None:
        for body in prepared:
            connection.request("POST", protocol.path, body, dict(protocol.headers))
            answer = connection.getresponse()
            text = answer.read()
            if answer.status // 100 != 2:
                raise RuntimeError(f"{protocol.name}: {answer.status}: {text[:500]!r}")

    for _ in range(3):
        send(one_round())
    server.settle()
    best = float("inf")
    for _ in range(groups):
        prepared = [one_round() for _ in range(rounds)]
        cpu = server.cpu_seconds()
        for one in prepared:
            send(one)
        best = min(best, (server.cpu_seconds() - cpu) / (rounds * n_series))
    connection.close()
    return best * 1e9


def measure_all(n_series: int = 40_000) -> dict[str, float]:
    """Figures by protocol, each on a fresh server."""
    figures = {}
    for protocol in PROTOCOLS:
        with meshpulse() as server:
            figures[protocol.name] = measure(server, protocol, n_series)
    return figures


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=40_000)
    figures = measure_all(parser.parse_args().series)
    print("| protocol | ns CPU a sample | of 1.0 |\n|---|---|---|")
    first = figures[PROTOCOLS[0].name]
    for name, figure in figures.items():
        print(f"| {name} | {figure:.0f} | {figure / first:.2f} |")


if __name__ == "__main__":
    main()
