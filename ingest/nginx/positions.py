"""How far each followed file was read: one small file, replaced as a whole (docs/format/nginx-positions.md)."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

VERSION = 1
HEAD_BYTES = 1024
"""Bytes at the begin of a file that tell it from another one with its inode number."""


@dataclass(frozen=True, slots=True)
class Position:
    """One file.

    Attributes
    ----------
    path : where it was found
    device, inode : which file it is
    head_bytes, head_crc : length and CRC32 of its begin
    offset : everything before is stored
    last_ns : time of the last line that told one
    """

    path: str
    device: int
    inode: int
    head_bytes: int
    head_crc: int
    offset: int
    last_ns: int

    def is_begin_of(self, head: bytes) -> bool:
        """Whether a file that begins so can be this one."""
        return len(head) >= self.head_bytes and zlib.crc32(head[: self.head_bytes]) == self.head_crc


def load_positions(path: Path) -> list[Position] | None:
    """The stored positions; None when there are none.

    Raises
    ------
    ValueError        the file is there and cannot be used
    """
    try:
        data = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        if data["version"] != VERSION:
            raise ValueError(f"{path}: version {data['version']}, this program reads {VERSION}")
        files = data["files"]
        if zlib.crc32(orjson.dumps(files)) != data["crc32"]:
            raise ValueError(f"{path}: the checksum does not match")
        return [Position(**row) for row in files]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a file of positions ({error})") from None


def save_positions(path: Path, positions: Iterable[Position]) -> None:
    """Replace the file; after this returns, a power cut cannot take it back."""
    files = [asdict(position) for position in positions]
    body = orjson.dumps({"version": VERSION, "crc32": zlib.crc32(orjson.dumps(files)), "files": files})
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
