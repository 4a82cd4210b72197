"""Remote-write 1.0 in plain Python: what the kernel must make of a body."""

from __future__ import annotations

from dataclasses import dataclass, field


class Malformed(ValueError):
    """The body does not hold together."""


@dataclass
class Series:
    labels: list[tuple[bytes, bytes]] = field(default_factory=list)
    samples: list[tuple[int, int]] = field(default_factory=list)  # (bits, ts_ms)
    exemplars: int = 0
    histograms: int = 0


@dataclass
class Request:
    series: list[Series] = field(default_factory=list)
    metadata: list[bytes] = field(default_factory=list)
    v2_fields: int = 0


def varint(data: bytes, pos: int) -> tuple[int, int]:
    value = 0
    for i in range(10):
        if pos + i >= len(data):
            raise Malformed
        value |= (data[pos + i] & 0x7F) << 7 * i
        if data[pos + i] < 0x80:
            return value % 2**64, pos + i + 1
    raise Malformed


def payload(data: bytes, pos: int, wire: int) -> tuple[bytes, int]:
    """(payload, position after it) of one field."""
    if wire == 0:
        _, end = varint(data, pos)
        return data[pos:end], end
    if wire == 3:
        begin = pos
        while True:
            tag, pos = varint(data, pos)
            if tag < 8:
                raise Malformed
            if tag & 7 == 4:
                return data[begin:pos], pos
            _, pos = payload(data, pos, tag & 7)
    if wire not in (1, 2, 5):
        raise Malformed
    size = {1: 8, 5: 4}.get(wire, 0)
    if wire == 2:
        size, pos = varint(data, pos)
    if pos + size > len(data):
        raise Malformed
    return data[pos : pos + size], pos + size


def fields(data: bytes) -> list[tuple[int, int, bytes]]:
    """(number, wire type, payload) of each field."""
    out = []
    pos = 0
    while pos < len(data):
        tag, pos = varint(data, pos)
        if not 1 <= tag >> 3 < 1 << 29:
            raise Malformed
        content, pos = payload(data, pos, tag & 7)
        out.append((tag >> 3, tag & 7, content))
    return out


def expect(wire: int, wanted: int) -> None:
    if wire != wanted:
        raise Malformed


def parse_label(data: bytes) -> tuple[bytes, bytes]:
    name = value = b""
    for number, wire, content in fields(data):
        if number <= 2:
            expect(wire, 2)
            name, value = (content, value) if number == 1 else (name, content)
    return name, value


def parse_sample(data: bytes) -> tuple[int, int]:
    bits = stamp = 0
    for number, wire, content in fields(data):
        if number == 1:
            expect(wire, 1)
            bits = int.from_bytes(content, "little")
        elif number == 2:
            expect(wire, 0)
            stamp, _ = varint(content, 0)
    return bits, stamp - 2**64 if stamp >= 2**63 else stamp


def parse_series(data: bytes) -> Series:
    series = Series()
    for number, wire, content in fields(data):
        if number > 4:
            continue
        expect(wire, 2)
        if number == 1:
            series.labels.append(parse_label(content))
        elif number == 2:
            series.samples.append(parse_sample(content))
        elif number == 3:
            series.exemplars += 1
        else:
            series.histograms += 1
    return series


def parse_write(body: bytes) -> Request:
    """Parse a whole body; :class:`Malformed` when any part the kernel looks into does not hold together."""
    request = Request()
    for number, wire, content in fields(body):
        if number == 1:
            expect(wire, 2)
            request.series.append(parse_series(content))
        elif number == 3:
            expect(wire, 2)
            request.metadata.append(content)
        elif number in (4, 5):
            request.v2_fields += 1
    return request
