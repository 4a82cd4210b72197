"""One file that grows: whole lines from where we were, whatever logrotate does to it."""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path
from typing import NamedTuple

from ingest.nginx.positions import HEAD_BYTES, Position

CHUNK_BYTES = 1 << 20
"""Most that is read of a file at once; longer lines are skipped, whatever the limits say."""

_BACK_BYTES = CHUNK_BYTES  # how far back the begin of the last line is looked for


class Chunk(NamedTuple):
    """Whole lines of a file.

    Attributes
    ----------
    data : each line with its line feed
    begin, end : where it lies in the file; ``end`` is where the next one begins
    """

    file: TailedFile
    data: bytes
    begin: int
    end: int


class TailedFile:
    """A file by its descriptor, so that it can be read on when it has another name or none.

    Attributes
    ----------
    path : where it was found
    source : number of the configuration's entry
    offset : everything before is stored
    last_ns : time of the last stored line
    moved_at : monotonic time since when the path leads elsewhere; None = it is the current file
    mtime_ns : its time of change at the last look
    unsure : its last lines may be stored already, because we ended without saying so
    too_long : lines that were skipped since somebody asked last
    """

    def __init__(self, path: str, descriptor: int, source: int, offset: int, last_ns: int = 0) -> None:
        status = os.fstat(descriptor)
        self.path = path
        self.source = source
        self.device, self.inode = status.st_dev, status.st_ino
        self.offset = offset
        self.last_ns = last_ns or status.st_mtime_ns // 1_000_000_000 * 1_000_000_000
        self.moved_at: float | None = None
        self.quiet_since = time.monotonic()
        self.mtime_ns = 0
        self.unsure = False
        self.too_long = 0
        self._descriptor = descriptor
        self._at = offset  # behind ``offset`` while a line that is too long is skipped
        self._head = b""
        self._note_head()

    @classmethod
    def open(cls, path: str, source: int, offset: int = 0, last_ns: int = 0) -> TailedFile:
        """Open a file.

        Raises
        ------
        OSError
        """
        return cls(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), source, offset, last_ns)

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode."""
        return self.device, self.inode

    @property
    def skips(self) -> bool:
        """Whether we are inside a line that is too long."""
        return self._at > self.offset

    def size(self) -> int:
        """Its size now."""
        return os.fstat(self._descriptor).st_size

    def unread(self, size: int) -> int:
        """Bytes that wait."""
        return max(0, size - self._at)

    def is_cut(self, size: int) -> bool:
        """Whether it is shorter than what was read of it, or begins with something else."""
        return size < self._at or os.pread(self._descriptor, len(self._head), 0) != self._head

    def continues(self, position: Position) -> bool:
        """Whether this is the file of a position, and not a shorter one or another one under its number."""
        begin = os.pread(self._descriptor, HEAD_BYTES, 0)
        return (
            self.identity == (position.device, position.inode)
            and self.size() >= position.offset
            and position.is_begin_of(begin)
        )

    def resume(self, position: Position) -> None:
        """Read on where we were; the lines behind may be stored already."""
        self.offset = self._at = position.offset
        self.last_ns = position.last_ns
        self.unsure = True
        self._note_head()

    def begin_anew(self) -> None:
        """It was truncated: read it from its begin."""
        self.offset = self._at = 0
        self._head = b""

    def to_last_line(self) -> None:
        """Begin behind the last whole line."""
        size = self.size()
        begin = max(0, size - _BACK_BYTES)
        tail = os.pread(self._descriptor, size - begin, begin)
        self.offset = self._at = begin + tail.rfind(b"\n") + 1
        self._note_head()

    def read(self, *, final: bool = False) -> Chunk | None:
        """The next whole lines, at most ``CHUNK_BYTES``; None = there is none.

        Parameters
        ----------
        final : nobody writes to it any more: what stands behind the last line feed is a line too
        """
        data = os.pread(self._descriptor, CHUNK_BYTES, self._at)
        if self.skips:
            end = data.find(b"\n") + 1
            if not end:
                self._at += len(data)
                return None
            self.offset = self._at = self._at + end
            self.too_long += 1
            data = os.pread(self._descriptor, CHUNK_BYTES, self._at)
        end = data.rfind(b"\n") + 1
        if not end and final and data:
            return Chunk(self, data + b"\n", self.offset, self.offset + len(data))
        if not end:
            if len(data) == CHUNK_BYTES:
                self._at += len(data)
            return None
        return Chunk(self, data[:end], self.offset, self.offset + end)

    def advance(self, end: int, last_ns: int) -> None:
        """Everything before ``end`` is stored."""
        self.offset = self._at = end
        self.last_ns = last_ns
        self.quiet_since = time.monotonic()
        self._note_head()

    def _note_head(self) -> None:
        if len(self._head) < min(HEAD_BYTES, self.offset):
            self._head = os.pread(self._descriptor, min(HEAD_BYTES, self.offset), 0)

    def position(self) -> Position:
        """What is remembered of it."""
        return Position(
            self.path, self.device, self.inode, len(self._head), zlib.crc32(self._head), self.offset, self.last_ns
        )

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)


def head_of(path: str) -> bytes:
    """Its first bytes; b"" when it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def find_moved(position: Position) -> str | None:
    """The file that a path led to, under its new name in the same folder; None = it is gone."""
    folder = os.path.dirname(position.path) or "."
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return None
    for entry in entries:
        if entry.inode() == position.inode and entry.path != position.path:
            status = entry.stat()
            if (
                status.st_dev == position.device
                and status.st_size >= position.offset
                and position.is_begin_of(head_of(entry.path))
            ):
                return entry.path
    return None


def find_copy(position: Position) -> str | None:
    """The copy that logrotate's ``copytruncate`` made of a file; None = there is none, or nothing was read of it."""
    if not position.head_bytes:
        return None
    folder = os.path.dirname(position.path) or "."
    name = os.path.basename(position.path)
    best: tuple[int, str] | None = None
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return None
    for entry in entries:
        if not entry.name.startswith(name) or entry.path == position.path or not entry.is_file():
            continue
        status = entry.stat()
        if status.st_size >= position.offset and position.is_begin_of(head_of(entry.path)):
            best = max(best or (0, ""), (status.st_mtime_ns, entry.path))
    return best[1] if best else None
