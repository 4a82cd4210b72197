"""Protobuf wire format in kernels: fields of a byte range, every read checked against the range's end.

Source: protobuf.dev/programming-guides/encoding. Buffers are padded by their owner, so that an eight-byte load
inside the range never leaves the array.
"""

from __future__ import annotations

import numpy as np

from tsdb.kernels._jit import device, i64, u64
from tsdb.kernels.keys import load64

WIRE_VARINT = 0
WIRE_FIXED64 = 1
WIRE_BYTES = 2
WIRE_GROUP = 3
WIRE_GROUP_END = 4
WIRE_FIXED32 = 5
FIELD_MAX = (1 << 29) - 1

_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
_HIGHS = np.uint64(0x8080808080808080)


@device
def read_varint(buf, pos, end):
    """(value as uint64, position after it); position -1 when it is cut off or longer than ten bytes."""
    if pos < end and buf[pos] < 0x80:  # a tag, a short length: most varints
        return u64(buf[pos]), i64(pos + 1)
    value = u64(0)
    shift = u64(0)
    stop = min(end, pos + 10)
    while pos < stop:
        byte = u64(buf[pos])
        pos += 1
        value |= (byte & u64(0x7F)) << shift
        if byte < u64(0x80):
            return value, i64(pos)
        shift += u64(7)
    return value, i64(-1)


@device
def read_exact_varint(buf, pos, end):
    """(value, whether it fills ``[pos, end)`` exactly); for at most eight bytes, nothing depends on its length.

    Longer ones are "not exact": they take :func:`read_varint`.
    """
    n = end - pos
    if n < 1 or n > 8:
        return u64(0), False
    mask = _ONES >> u64(64 - 8 * n)
    word = load64(buf, pos) & mask
    # All bytes but the last say that another one follows.
    exact = word & _HIGHS == (_HIGHS & mask) >> u64(8)
    word &= ~_HIGHS
    word = (word & np.uint64(0x007F007F007F007F)) | ((word & np.uint64(0x7F007F007F007F00)) >> u64(1))
    word = (word & np.uint64(0x00003FFF00003FFF)) | ((word & np.uint64(0x3FFF00003FFF0000)) >> u64(2))
    word = (word & np.uint64(0x000000000FFFFFFF)) | ((word & np.uint64(0x0FFFFFFF00000000)) >> u64(4))
    return word, exact


@device
def next_field(buf, pos, end):
    """(field number, wire type, payload begin, payload end); payload end -1 when the range is malformed there.

    The payload of a length-delimited field is its content; of a group, everything up to its end tag's end.
    """
    tag, pos = read_varint(buf, pos, end)
    field = i64(tag >> u64(3))
    wire = i64(tag & u64(7))
    if pos < 0 or field < 1 or field > FIELD_MAX:
        return field, wire, pos, i64(-1)
    if wire == WIRE_BYTES:
        length, pos = read_varint(buf, pos, end)
        if pos < 0 or length > u64(end - pos):
            return field, wire, pos, i64(-1)
        return field, wire, pos, i64(pos + i64(length))
    begin = pos
    if wire == WIRE_VARINT:
        _, pos = read_varint(buf, pos, end)
        return field, wire, begin, i64(pos)
    depth = 1 if wire == WIRE_GROUP else 0
    if depth == 0:  # a fixed width, or something that cannot start a field
        width = 8 if wire == WIRE_FIXED64 else 4
        if (wire != WIRE_FIXED64 and wire != WIRE_FIXED32) or end - pos < width:
            return field, wire, begin, i64(-1)
        return field, wire, begin, i64(pos + width)
    while depth > 0:  # groups nest; their contents are nobody's business
        tag, pos = read_varint(buf, pos, end)
        if pos < 0 or tag < u64(8):
            return field, wire, begin, i64(-1)
        inner = i64(tag & u64(7))
        if inner == WIRE_GROUP:
            depth += 1
        elif inner == WIRE_GROUP_END:
            depth -= 1
        elif inner == WIRE_VARINT:
            _, pos = read_varint(buf, pos, end)
        elif inner == WIRE_BYTES:
            length, pos = read_varint(buf, pos, end)
            if pos >= 0:
                pos = i64(-1) if length > u64(end - pos) else i64(pos + i64(length))
        elif inner in (WIRE_FIXED64, WIRE_FIXED32):
            width = 8 if inner == WIRE_FIXED64 else 4
            pos = i64(-1) if end - pos < width else i64(pos + width)
        else:
            pos = i64(-1)
        if pos < 0:
            return field, wire, begin, i64(-1)
    return field, wire, begin, i64(pos)
