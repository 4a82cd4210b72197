"""One immutable object of named, typed, checksummed arrays (docs/format/block.md).

Sections are plain little-endian arrays that a reader uses in place, from a memory map. Each is verified when it is
first touched: a whole section at once, a *framed* one 64 KiB by 64 KiB, so that one bad byte costs one frame.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsdb.errors import CorruptionError

MAGIC = b"MPBLOCK\n"
FORMAT_VERSION = 1
ALIGNMENT = 64
"""Of every section: a cache line, more than any element type or vector load asks for."""
FRAME_BYTES = 64 << 10
FRAME_CRCS = ".crc32"
"""Suffix of the section that holds the frame checksums of another."""

_HEADER = struct.Struct("<8sII")  # magic, version, 0
_TRAILER = struct.Struct("<QQII8s")  # TOC offset, TOC length, TOC CRC32, version, magic
_DTYPES = frozenset({"u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f8"})

_UNKNOWN, _GOOD, _BAD = 0, 1, 2


class Section(NamedTuple):
    """Where an array of ``length`` elements lies; ``crc`` is -1 for a framed section."""

    dtype: str
    offset: int
    length: int
    crc: int


def _dtype_name(array: NDArray[Any]) -> str:
    name = array.dtype.newbyteorder("<").str.replace("|", "")
    if name not in _DTYPES or array.ndim != 1:
        raise ValueError(f"a section is a plain 1-d array, not {array.dtype} with {array.ndim} dimensions")
    return name


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data.cast("B") if array.size else _NOTHING


_NOTHING = memoryview(b"")


def _frame_crcs(data: memoryview) -> NDArray[np.uint32]:
    starts = range(0, len(data), FRAME_BYTES)
    return np.array([zlib.crc32(data[start : start + FRAME_BYTES]) for start in starts], np.uint32)


def pack(
    arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any], framed: Collection[str] = ()
) -> tuple[list[memoryview | bytes], int]:
    """The parts of an object, to be written one after the other, and the checksum of its table of contents.

    Parameters
    ----------
    arrays : name -> (n,) array of an integer type or float64; not copied
    meta : JSON-able facts kept beside the sections
    framed : names of sections that are verified frame by frame
    """
    parts: list[memoryview | bytes] = [_HEADER.pack(MAGIC, FORMAT_VERSION, 0)]
    position = _HEADER.size
    toc: dict[str, list[Any]] = {}

    def put(name: str, array: NDArray[Any], crc: int) -> None:
        nonlocal position
        data = _bytes_of(array)
        padding = -position % ALIGNMENT
        parts.extend((bytes(padding), data))
        toc[name] = [_dtype_name(array), position + padding, array.size, crc]
        position += padding + len(data)

    for name, array in arrays.items():
        data = _bytes_of(array)
        if name in framed:
            crcs = _frame_crcs(data)
            put(name + FRAME_CRCS, crcs, zlib.crc32(_bytes_of(crcs)))
            put(name, array, -1)
        else:
            put(name, array, zlib.crc32(data))
    body = json.dumps({"meta": dict(meta), "sections": toc}, separators=(",", ":")).encode()
    crc = zlib.crc32(body)
    parts.append(body)
    parts.append(_TRAILER.pack(position, len(body), crc, FORMAT_VERSION, MAGIC))
    return parts, crc


class Container:
    """An object opened for reading.

    Parameters
    ----------
    data : the whole object; arrays are views of it
    name : for error messages

    Raises
    ------
    CorruptionError        header, trailer or table of contents do not check out
    """

    def __init__(self, data: memoryview, name: str) -> None:
        self._data = data
        self.size = len(data)
        self.name = name
        self._verified: set[str] = set()
        self._frames: dict[str, NDArray[np.uint8]] = {}  # state of each frame of the framed sections
        self.meta, self.sections, self.crc = self._read_toc()

    def _corrupt(self, offset: int, what: str) -> CorruptionError:
        return CorruptionError(self.name, offset, what)

    def _read_toc(self) -> tuple[dict[str, Any], dict[str, Section], int]:
        size = len(self._data)
        at = size - _TRAILER.size
        if at < _HEADER.size:
            raise self._corrupt(0, f"{size} bytes are too few for a block")
        if _HEADER.unpack_from(self._data) != (MAGIC, FORMAT_VERSION, 0):
            raise self._corrupt(0, "not a block of a version this program reads")
        offset, length, crc, version, magic = _TRAILER.unpack_from(self._data, at)
        if magic != MAGIC or version != FORMAT_VERSION or offset + length != at:
            raise self._corrupt(at, "trailer is damaged or the file is cut short")
        body = self._data[offset:at]
        if zlib.crc32(body) != crc:
            raise self._corrupt(offset, "table of contents fails its checksum")
        toc = json.loads(bytes(body))
        sections = {name: Section(*entry) for name, entry in toc["sections"].items()}
        for name, section in sections.items():
            end = section.offset + section.length * np.dtype(section.dtype).itemsize
            if section.dtype not in _DTYPES or section.offset % ALIGNMENT or not 0 <= section.offset <= end <= offset:
                raise self._corrupt(offset, f"section {name} lies outside of the file")
        return toc["meta"], sections, crc

    def _raw(self, section: Section) -> memoryview:
        return self._data[section.offset : section.offset + section.length * np.dtype(section.dtype).itemsize]

    def array(self, name: str) -> NDArray[Any]:
        """A section, read-only and in place; unless it is framed it is verified on the first call.

        Raises
        ------
        CorruptionError        no such section, or its checksum fails
        """
        section = self.sections.get(name)
        if section is None:
            raise self._corrupt(0, f"section {name} is missing")
        if section.crc >= 0 and name not in self._verified:
            if zlib.crc32(self._raw(section)) != section.crc:
                raise self._corrupt(section.offset, f"section {name} fails its checksum")
            self._verified.add(name)
        return np.frombuffer(self._raw(section), section.dtype)

    def arrays(self, prefix: str) -> dict[str, NDArray[Any]]:
        """All sections whose name begins with ``prefix``, by the rest of their names."""
        return {name[len(prefix) :]: self.array(name) for name in self.sections if name.startswith(prefix)}

    def frame_count(self, name: str) -> int:
        """Frames of a framed section."""
        return self.sections[name + FRAME_CRCS].length

    def bad_frames(self, name: str, wanted: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Verify some frames of a framed section, each once in the life of this object.

        Parameters
        ----------
        wanted : (n_frames,) uint8        non-zero: look at it

        Returns
        -------
        (n_frames,) bool        wanted and damaged
        """
        state = self._frames.setdefault(name, np.zeros(self.frame_count(name), np.uint8))
        # Not verified as a section: a damaged checksum condemns its frame alone.
        crcs = np.frombuffer(self._raw(self.sections[name + FRAME_CRCS]), np.uint32)
        data = self._raw(self.sections[name])
        for frame in np.flatnonzero((wanted != 0) & (state == _UNKNOWN)).tolist():
            start = frame * FRAME_BYTES
            good = zlib.crc32(data[start : start + FRAME_BYTES]) == int(crcs[frame])
            state[frame] = _GOOD if good else _BAD
        bad: NDArray[np.bool_] = (wanted != 0) & (state == _BAD)
        return bad

    def frame_offset(self, name: str, frame: int) -> int:
        """Offset of a frame in the file, for reports."""
        return self.sections[name].offset + frame * FRAME_BYTES

    def damage(self) -> Iterator[CorruptionError]:
        """Everything that fails its checksum (reads the whole object)."""
        for name, section in self.sections.items():
            if section.crc >= 0:
                try:
                    self.array(name)
                except CorruptionError as error:
                    yield error
            else:
                bad = self.bad_frames(name, np.ones(self.frame_count(name), np.uint8))
                for frame in np.flatnonzero(bad).tolist():
                    yield self._corrupt(self.frame_offset(name, frame), f"frame {frame} of {name} fails its checksum")
