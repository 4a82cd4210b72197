"""Plain-Python twin of the snappy block decoder, written from google/snappy's format_description.txt."""

from __future__ import annotations


def decompress(block: bytes, pos: int, size: int) -> bytes | None:
    """The content of the elements from ``pos`` on, None when they are not of ``size`` bytes or corrupt."""
    out = bytearray()
    while pos < len(block):
        tag = block[pos]
        pos += 1
        kind, upper = tag & 3, tag >> 2
        extra = max(upper - 59, 0) if kind == 0 else (1, 2, 4)[kind - 1]
        number = block[pos : pos + extra]
        if len(number) < extra:
            return None
        pos += extra
        value = int.from_bytes(number, "little")
        if kind == 0:
            length = (value if extra else upper) + 1
            if length > len(block) - pos:
                return None
            out += block[pos : pos + length]
            pos += length
        else:
            length = 4 + (upper & 7) if kind == 1 else upper + 1
            offset = (upper >> 3) << 8 | value if kind == 1 else value
            if not 0 < offset <= len(out):
                return None
            for _ in range(length):
                out.append(out[-offset])
        if len(out) > size:
            return None
    return bytes(out) if len(out) == size else None
