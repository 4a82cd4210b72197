"""Protobuf in plain Python, for the rare messages that no kernel reads (metadata)."""

from __future__ import annotations

from collections.abc import Iterator

from tsdb.errors import Reason, RejectedError


def read_varint(data: bytes, pos: int) -> tuple[int, int]:
    """(value, position after it) of the varint at ``pos``; ``ValueError`` when it is cut off or too long."""
    if pos < len(data) and data[pos] < 0x80:  # most of them
        return data[pos], pos + 1
    value = 0
    for i in range(10):
        if pos + i >= len(data):
            break
        byte = data[pos + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, pos + i + 1
    raise ValueError(f"varint cut off at byte {pos}")


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of each field in order: an int of a varint, bytes of anything else.

    Raises
    ------
    RejectedError    MALFORMED when the message does not hold together
    """
    pos = 0
    try:
        while pos < len(message):
            tag, pos = read_varint(message, pos)
            number, wire = tag >> 3, tag & 7
            if wire == 0:
                value, pos = read_varint(message, pos)
                yield number, value
                continue
            size = {1: 8, 5: 4}.get(wire)
            if wire == 2:
                size, pos = read_varint(message, pos)
            if size is None or pos + size > len(message) or number == 0:
                raise ValueError(f"field {number} of wire type {wire} at byte {pos}")  # noqa: TRY301
            yield number, message[pos : pos + size]
            pos += size
    except ValueError as error:
        raise RejectedError(Reason.MALFORMED, f"malformed protobuf: {error}") from None


def packed_varints(content: bytes) -> list[int]:
    """Values of a packed repeated varint field.

    Raises
    ------
    RejectedError    MALFORMED
    """
    values = []
    pos = 0
    try:
        while pos < len(content):
            value, pos = read_varint(content, pos)
            values.append(value)
    except ValueError as error:
        raise RejectedError(Reason.MALFORMED, f"malformed protobuf: {error}") from None
    return values
