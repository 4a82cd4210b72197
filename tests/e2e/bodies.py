"""Remote-write 1.0 bodies, written by hand: the code under test must not make its own input."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

import cramjam


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def write_request(series: Iterable[tuple[Mapping[str, str], Sequence[tuple[int, float]]]]) -> bytes:
    """A WriteRequest: labels and (milliseconds, value) pairs of each series."""
    out = bytearray()
    for labels, samples in series:
        body = b"".join(
            _field(1, _field(1, name.encode()) + _field(2, value.encode())) for name, value in sorted(labels.items())
        )
        for ts_ms, value in samples:
            body += _field(2, b"\x09" + struct.pack("<d", value) + b"\x10" + _varint(ts_ms))
        out += _field(1, body)
    return bytes(out)


def write_body(series: Iterable[tuple[Mapping[str, str], Sequence[tuple[int, float]]]]) -> bytes:
    """The same, snappy-compressed as it goes over the wire."""
    return bytes(cramjam.snappy.compress_raw(write_request(series)))
