"""Bytes of a segment file: its header, and the frame around every record (docs/format/wal.md)."""

from __future__ import annotations

import secrets
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import zstandard

MAGIC = b"MPWALSEG"
FORMAT_VERSION = 1
HEADER_COPIES = (0, 4096)
"""Where the header lies: twice, in two pages, because nothing in the segment can be read without its salt."""
RECORDS_FIRST = 8192
"""Offset of the first record."""

TENANT_BYTES_MAX = 255
BODY_BYTES_MAX = 64 << 20
"""Largest raw body; a stored length above it is a lie, not a reason to allocate."""
TIME_NONE = -(1 << 63)
"""``max_ms`` of a record without samples."""

CODEC_RAW = 0
CODEC_ZSTD = 1
ZSTD_LEVEL = -1
"""Without an entropy stage for literals: half the CPU of level 1 for about a tenth more bytes, which live for hours."""
COMPRESS_BYTES_MIN = 96
"""Shorter bodies are stored raw: zstd's own frame costs about 13 bytes and 3 us."""

_HEADER = struct.Struct("<8sIIQQQQ")  # magic, version, flags, number, salt, first position, acknowledged position
_HEADER_BYTES = _HEADER.size + 4  # and its CRC32
_FRAME = struct.Struct("<QIIIBBHQqHH")  # marker, crc, stored, raw, kind, codec, shard, position, max_ms, tenant, 0
FRAME_BYTES = _FRAME.size
_CRC_FROM = 12  # the checksum covers everything behind itself


class Record(NamedTuple):
    """What an operation asks the log to keep."""

    kind: int
    tenant: str
    shard: int
    body: bytes
    max_ms: int = TIME_NONE  # newest sample time in it: says when the segment may be freed


class SegmentHeader(NamedTuple):
    """First bytes of a segment.

    ``acknowledged`` is the newest position that was acknowledged when the segment was made: records up to it must
    be found in earlier segments, records between it and ``first_position`` may be missing without any loss.
    """

    number: int
    salt: int
    first_position: int
    acknowledged: int


def new_salt() -> int:
    """A random marker for one use of one file: 64 bits, never zero (fresh files are full of zeros)."""
    return secrets.randbits(64) or 1


def pack_header(header: SegmentHeader) -> bytes:
    """One copy of the header."""
    head = _HEADER.pack(
        MAGIC, FORMAT_VERSION, 0, header.number, header.salt, header.first_position, header.acknowledged
    )
    return head + zlib.crc32(head).to_bytes(4, "little")


def parse_header(data: memoryview) -> SegmentHeader | None:
    """The header from whichever copy checks out, or None."""
    for offset in HEADER_COPIES:
        head = data[offset : offset + _HEADER_BYTES]
        if len(head) < _HEADER_BYTES:
            continue
        magic, version, _flags, number, salt, first, acknowledged = _HEADER.unpack_from(head)
        crc = int.from_bytes(head[_HEADER.size :], "little")
        if magic == MAGIC and version == FORMAT_VERSION and crc == zlib.crc32(head[: _HEADER.size]):
            return SegmentHeader(number, salt, first, acknowledged)
    return None


class Framer:
    """Puts frames around records; used by one thread at a time (the compressor is not shareable)."""

    def __init__(self, level: int = ZSTD_LEVEL) -> None:
        self._compressor = zstandard.ZstdCompressor(level=level, write_checksum=False)
        self._tenants: dict[str, bytes] = {}

    def frame(self, record: Record, salt: int, position: int) -> tuple[bytes, bytes, bytes]:
        """Header, tenant and stored body of one record; written one after the other."""
        kind, tenant, shard, body, max_ms = record
        tenant_bytes = self._tenants.get(tenant)
        if tenant_bytes is None:
            tenant_bytes = self._tenants[tenant] = tenant.encode()
            assert len(tenant_bytes) <= TENANT_BYTES_MAX, tenant
        assert len(body) <= BODY_BYTES_MAX, len(body)
        stored, codec = body, CODEC_RAW
        if len(body) >= COMPRESS_BYTES_MIN:
            packed = self._compressor.compress(body)
            if len(packed) < len(body):
                stored, codec = packed, CODEC_ZSTD
        fields = (len(stored), len(body), kind, codec, shard, position, max_ms, len(tenant_bytes), 0)
        covered = _FRAME.pack(salt, 0, *fields)[_CRC_FROM:] + tenant_bytes
        crc = zlib.crc32(stored, zlib.crc32(covered))
        return _FRAME.pack(salt, crc, *fields), tenant_bytes, stored


class Frame(NamedTuple):
    """One record as it lies in a segment; ``offset`` and ``end`` are bytes of the file."""

    offset: int
    end: int
    position: int
    kind: int
    codec: int
    tenant: str
    shard: int
    max_ms: int
    body_offset: int
    raw_length: int


class Hole(NamedTuple):
    """Bytes between two good records that are no good record."""

    offset: int
    end: int


class Tail(NamedTuple):
    """Where the records of a segment end; ``torn`` when a record was begun there."""

    offset: int
    torn: bool


def _frame_at(data: memoryview, offset: int, salt: int, after: int) -> Frame | None:
    """The record at ``offset`` if its marker, lengths, checksum and position hold."""
    if offset + FRAME_BYTES > len(data):
        return None
    marker, crc, stored, raw, kind, codec, shard, position, max_ms, tenant_length, _ = _FRAME.unpack_from(data, offset)
    if marker != salt or position <= after or raw > BODY_BYTES_MAX:
        return None
    body = offset + FRAME_BYTES + tenant_length
    end = body + stored
    if end > len(data) or zlib.crc32(data[offset + _CRC_FROM : end]) != crc:
        return None
    tenant = str(data[offset + FRAME_BYTES : body], "utf-8")
    return Frame(offset, end, position, kind, codec, tenant, shard, max_ms, body, raw)


def scan(buffer: Any, size: int, salt: int, after: int) -> Iterator[Frame | Hole | Tail]:
    """Records of one segment in order, the holes between them, and the end (storage.md section 5, R1, R2, R5).

    Parameters
    ----------
    buffer : bytearray, bytes or mmap with the whole file
    size : bytes of it that belong to the file
    salt : the segment's marker
    after : position of the last record before this segment
    """
    marker = salt.to_bytes(8, "little")
    with memoryview(buffer) as whole, whole[:size] as data:
        offset = RECORDS_FIRST
        while True:
            frame = _frame_at(data, offset, salt, after)
            start = offset
            while frame is None:  # what follows is the tail, or a hole that ends at the next good record
                start = buffer.find(marker, start, size)
                if start < 0:
                    yield Tail(offset, bytes(data[offset : offset + 8]) == marker)
                    return
                frame = _frame_at(data, start, salt, after)
                start += 1
            if frame.offset > offset:
                yield Hole(offset, frame.offset)
            yield frame
            offset, after = frame.end, frame.position
