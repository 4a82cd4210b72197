"""Reading a log back: streams records, sets damage aside, never stops at it (storage.md section 5, R1-R6)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import zstandard

from tsdb.io import Files
from tsdb.wal.framing import CODEC_RAW, CODEC_ZSTD, TIME_NONE, Frame, Hole, SegmentHeader, Tail, parse_header, scan
from tsdb.wal.segments import Segment

READ_BYTES = 1 << 20
"""Granularity of reading: a read error costs this much, not the file."""
TORN_BYTES_MAX = 4 << 20
"""How much of a torn tail is copied to quarantine."""


class ReplayedRecord(NamedTuple):
    """One record as it was logged; ``segment`` is the scope of its dictionary numbers."""

    position: int
    segment: int
    kind: int
    tenant: str
    shard: int
    body: bytes
    max_ms: int
    offset: int  # in the segment file


@dataclass(frozen=True, slots=True)
class DamageReport:
    """What could not be read, and which positions are missing because of it.

    Attributes
    ----------
    path : file; offset, n_bytes : where in it (0 bytes: the file or records behind it are gone)
    first_position, last_position : missing records, inclusive; last < first when none is known to be missing
    before_ms, after_ms : newest sample times of the records around it (-2^63: unknown)
    quarantine : copy of the bytes, "" when there was nothing to copy or no space for it
    """

    path: str
    offset: int
    n_bytes: int
    first_position: int
    last_position: int
    before_ms: int
    after_ms: int
    reason: str
    quarantine: str = ""

    def __str__(self) -> str:
        """One line for a person."""
        missing = f", log positions {self.first_position} to {self.last_position} are missing"
        kept = f", copied to {self.quarantine}" if self.quarantine else ""
        where = f"{self.path}, byte {self.offset:,}, {self.n_bytes:,} bytes"
        return f"{where}: {self.reason}{missing if self.last_position >= self.first_position else ''}{kept}"


class Quarantine:
    """Folder where damaged bytes are kept, each with a note; what is already there is left alone."""

    def __init__(self, path: Path, files: Files) -> None:
        self.path = path
        self._files = files

    def put(self, name: str, data: bytes, note: dict[str, object]) -> str:
        """Keep ``data`` as ``<name>.bin`` with the note ``<name>.json`` beside it; the path of the copy, or ``""``."""
        target = self.path / f"{name}.bin"
        note = {**note, "quarantine": target.name, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        try:
            if not target.with_suffix(".json").exists():
                self._files.make_folder(self.path)
                if data:
                    target.write_bytes(data)
                target.with_suffix(".json").write_text(json.dumps(note, indent=1), encoding="utf-8")
        except OSError:
            return ""  # a full disk must not stop the start; the report is still made
        return str(target) if data else ""


def _is_zero(data: memoryview, offset: int) -> bool:
    while offset < len(data):
        piece = bytes(data[offset : offset + READ_BYTES])
        if piece.strip(b"\0"):
            return False
        offset += len(piece)
    return True


class LogReader:
    """Streams the records of segment files; memory is one segment whatever the log's size.

    Parameters
    ----------
    segments : files, oldest first; their salts and partitions are filled in on the way
    quarantine : where damaged bytes go; None when only looking (``inspect``)
    """

    def __init__(self, segments: list[Segment], quarantine: Quarantine | None) -> None:
        self.segments = segments
        self._quarantine = quarantine
        self._buffer = bytearray()
        self._decompressor = zstandard.ZstdDecompressor()
        self._max_ms = TIME_NONE  # of the last record delivered
        self._tail: tuple[Segment, int] | None = None  # where the records of the last segment ended
        self.damage: list[DamageReport] = []
        self.torn: list[DamageReport] = []
        self.position = 0  # of the last record delivered

    def __iter__(self) -> Iterator[ReplayedRecord]:
        for segment in self.segments:
            yield from self.read(segment)
        self._buffer = bytearray()  # 64 MiB that a running process has no use for

    def _load(self, segment: Segment) -> int:
        """Bytes of the file, now in the buffer; what cannot be read is zeros and reported."""
        fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if len(self._buffer) < size:
                self._buffer = bytearray(size)
            offset = 0
            with memoryview(self._buffer) as view:
                while offset < size:
                    with view[offset : min(offset + READ_BYTES, size)] as piece:
                        try:
                            done = os.preadv(fd, [piece], offset)
                        except OSError as error:
                            done = len(piece)
                            piece[:] = bytes(done)
                            self._report(segment, offset, f"{done} bytes cannot be read: {error}")
                    if not done:  # the file shrank meanwhile
                        break
                    offset += done
        finally:
            os.close(fd)
        return offset

    def read(self, segment: Segment) -> Iterator[ReplayedRecord]:
        """Records of the next segment; segments are read in order."""
        try:
            size = self._load(segment)
        except OSError as error:
            self._report(segment, 0, f"segment cannot be opened: {error}")
            return
        with memoryview(self._buffer) as whole, whole[:size] as data:
            header = parse_header(data)
            if header is None or header.number != segment.number:
                reason = "both copies of the segment header are damaged" if size else "segment is empty"
                self._report(segment, 0, reason, bytes(data).rstrip(b"\0"))
                return
            segment.salt = header.salt
            self._continue_from(header)
            hole: Hole | None = None
            for found in scan(self._buffer, size, header.salt, self.position):
                if isinstance(found, Hole):
                    hole = found
                elif isinstance(found, Tail):
                    self._end(segment, found, hole, data)
                elif (body := self._body(data, found)) is None:
                    hole = Hole(hole.offset if hole else found.offset, found.end)
                else:
                    if hole:
                        piece = bytes(data[hole.offset : hole.end])
                        missing = (self.position + 1, found.position - 1)
                        self._report(segment, hole.offset, "damaged record", piece, missing, found.max_ms)
                        hole = None
                    elif found.position > max(self.position + 1, header.first_position):
                        missing = (self.position + 1, found.position - 1)
                        self._report(segment, found.offset, "records are missing", b"", missing, found.max_ms)
                    self.position, self._max_ms = found.position, found.max_ms
                    segment.partitions.add(found.tenant, found.shard, found.max_ms, found.position)
                    yield ReplayedRecord(
                        found.position, segment.number, found.kind, found.tenant, found.shard, body, found.max_ms,
                        found.offset,
                    )  # fmt: skip

    def _continue_from(self, header: SegmentHeader) -> None:
        """Compare where the last segment ended with what had been acknowledged when this one was begun."""
        if self._tail is None:  # the oldest segment: what was before it has been freed
            self.position = header.first_position - 1
        elif self.position < header.acknowledged:
            segment, offset = self._tail
            piece = segment.path.read_bytes()[offset:].rstrip(b"\0")
            missing = (self.position + 1, header.acknowledged)
            self._report(segment, offset, "acknowledged records at the end of a segment are damaged", piece, missing)
            self.position = header.acknowledged

    def _end(self, segment: Segment, tail: Tail, hole: Hole | None, data: memoryview) -> None:
        offset = hole.offset if hole else tail.offset
        self._tail = (segment, offset)
        segment.offset = tail.offset
        segment.zeros_behind = not hole and tail.offset < len(data) and _is_zero(data, tail.offset)
        if tail.torn or hole:
            piece = bytes(data[offset : min(len(data), max(tail.offset, offset) + TORN_BYTES_MAX)]).rstrip(b"\0")
            self._report(segment, offset, "torn tail: a record was begun and never finished", piece, into=self.torn)

    def _body(self, data: memoryview, frame: Frame) -> bytes | None:
        """Raw body of a checked record; None when this version cannot read it."""
        stored = data[frame.body_offset : frame.end]
        if frame.codec == CODEC_RAW:
            return bytes(stored)
        if frame.codec != CODEC_ZSTD:
            return None
        try:
            body: bytes = self._decompressor.decompress(stored, max_output_size=frame.raw_length)
        except zstandard.ZstdError:
            return None
        return body if len(body) == frame.raw_length else None

    def _report(
        self,
        segment: Segment,
        offset: int,
        reason: str,
        piece: bytes = b"",
        missing: tuple[int, int] = (0, -1),
        after_ms: int = TIME_NONE,
        into: list[DamageReport] | None = None,
    ) -> None:
        report = DamageReport(str(segment.path), offset, len(piece), *missing, self._max_ms, after_ms, reason)
        if self._quarantine is not None:
            kept = self._quarantine.put(f"wal-{segment.number:020d}-{offset}", piece, asdict(report))
            report = replace(report, quarantine=kept)
        (self.damage if into is None else into).append(report)
