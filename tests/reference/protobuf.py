"""Plain protobuf of Prometheus' messages: a writer and a reader of remote-read, by the public message definitions."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, payload: bytes | int) -> bytes:
    """A length-delimited field, or a varint one."""
    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value (int, 8 bytes or bytes) of each field."""
    pos = 0

    def number() -> int:
        nonlocal pos
        value = shift = 0
        while True:
            byte = data[pos]
            pos += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while pos < len(data):
        tag = number()
        if tag & 7 == 0:
            yield tag >> 3, number()
            continue
        size = {1: 8, 5: 4}[tag & 7] if tag & 7 != 2 else number()
        assert pos + size <= len(data)
        yield tag >> 3, data[pos : pos + size]
        pos += size


def query_result(series: Iterable[tuple[Mapping[str, str], Sequence[tuple[int, int]]]]) -> bytes:
    """A QueryResult of (labels, [(milliseconds, bits of the value)])."""
    out = b""
    for labels, samples in series:
        body = b"".join(
            field(1, field(1, name.encode()) + field(2, value.encode())) for name, value in sorted(labels.items())
        )
        for ts_ms, bits in samples:
            body += field(2, b"\x09" + struct.pack("<Q", bits) + field(2, ts_ms))
        out += field(1, body)
    return out


def read_request(queries: Iterable[tuple[int, int, Sequence[tuple[int, str, str]]]], more: bytes = b"") -> bytes:
    """A ReadRequest of (start, end, [(matcher type, name, value)]); ``more`` follows each query's own fields."""
    out = b""
    for start_ms, end_ms, matchers in queries:
        body = field(1, start_ms) + field(2, end_ms)
        for kind, name, value in matchers:
            body += field(3, field(1, kind) + field(2, name.encode()) + field(3, value.encode()))
        out += field(1, body + more)
    return out


Series = dict[tuple[tuple[str, str], ...], list[tuple[int, int]]]


def read_response(data: bytes) -> list[Series]:
    """Results of a ReadResponse: sorted label pairs -> [(milliseconds, bits)], in the order of the message."""
    results = []
    for number, result in fields(data):
        assert number == 1
        series: Series = {}
        for number, body in fields(result):
            assert number == 1
            labels, samples = [], []
            for number, inner in fields(body):
                parts = dict(fields(inner))
                if number == 1:
                    labels.append((parts[1].decode(), parts[2].decode()))
                else:
                    ts_ms = parts[2] - (1 << 64) if parts[2] >> 63 else parts[2]
                    samples.append((ts_ms, struct.unpack("<Q", parts[1])[0]))
            assert tuple(labels) not in series
            series[tuple(labels)] = samples
        results.append(series)
    return results
