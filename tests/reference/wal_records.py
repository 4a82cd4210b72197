"""Plain-Python twin of the record body codec, written from docs/format/wal.md."""

from __future__ import annotations


def put_varint(value: int) -> bytes:
    """Zigzag LEB128 of a 64-bit two's complement difference."""
    value &= (1 << 64) - 1
    signed = value - (1 << 64) if value >> 63 else value
    rest = (signed << 1) ^ (signed >> 63)
    rest &= (1 << 64) - 1
    out = bytearray()
    while rest >= 128:
        out.append(rest & 127 | 128)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def get_varint(data: bytes, pos: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[pos]
        value |= (byte & 127) << shift
        pos, shift = pos + 1, shift + 7
        if byte < 128:
            value &= (1 << 64) - 1
            return (value >> 1) ^ -(value & 1), pos


def put_deltas(values: list[int], last: int = 0) -> bytes:
    out = b""
    for value in values:
        out += put_varint(value - last)
        last = value
    return out


def encode_samples(refs: list[int], ts_ms: list[int], bits: list[int]) -> bytes:
    first = ts_ms[0] if ts_ms else 0
    one_time = all(t == first for t in ts_ms)
    out = bytes([1, one_time]) + len(refs).to_bytes(4, "little") + first.to_bytes(8, "little", signed=True)
    out += put_deltas(refs)
    if not one_time:
        out += put_deltas(ts_ms[1:], first)
    values = [b.to_bytes(8, "little") for b in bits]
    return out + bytes(value[plane] for plane in range(8) for value in values)


def decode_samples(body: bytes) -> tuple[list[int], list[int], list[int]]:
    n = int.from_bytes(body[2:6], "little")
    first = int.from_bytes(body[6:14], "little", signed=True)
    pos, last = 14, 0
    refs = []
    for _ in range(n):
        delta, pos = get_varint(body, pos)
        last += delta
        refs.append(last)
    times = [first] * n
    if not body[1] & 1:
        last = first
        for i in range(1, n):
            delta, pos = get_varint(body, pos)
            last = (last + delta + (1 << 63)) % (1 << 64) - (1 << 63)
            times[i] = last
    planes = [body[pos + k * n : pos + (k + 1) * n] for k in range(8)]
    return refs, times, [int.from_bytes(bytes(p[i] for p in planes), "little") for i in range(n)]


def encode_series(refs: list[int], labels: list[bytes]) -> bytes:
    out = bytes([1]) + len(refs).to_bytes(4, "little") + put_deltas(refs)
    return out + put_deltas([len(text) for text in labels]) + b"".join(labels)
