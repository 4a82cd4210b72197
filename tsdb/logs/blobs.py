"""Byte runs one behind the other, each compressed when that helps: the inside of a group of rows."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from tsdb.errors import CorruptionError
from tsdb.kernels.log_columns import DELTA, PLAIN, put_planes, reduce_ints, take_planes
from tsdb.logs.frame import PAD_BYTES, Texts

LEVEL = 3
COMPRESS_BYTES_MIN = 32
BLOB_BYTES_MAX = 256 << 20
"""Largest raw run: a length above it is damage, not a reason to allocate."""

_local = threading.local()
NO_INTS: NDArray[np.int64] = np.zeros(0, np.int64)


Place = list[int]
"""[offset, stored bytes, raw bytes] of a run; it is compressed where stored < raw. A list, for it goes into JSON."""


class BlobWriter:
    """Collects runs."""

    def __init__(self) -> None:
        self.parts: list[bytes | memoryview] = []
        self.size = 0
        if not hasattr(_local, "compressor"):
            _local.compressor = zstandard.ZstdCompressor(
                level=LEVEL, write_checksum=False, write_content_size=True, write_dict_id=False
            )

    def put(self, data: bytes | NDArray[np.uint8]) -> Place:
        """Add a run; compressed unless that gains less than a thirty-second."""
        raw = data if isinstance(data, bytes) else data.data
        stored: bytes | memoryview = raw
        if len(raw) >= COMPRESS_BYTES_MIN:
            packed = _local.compressor.compress(raw)
            if len(packed) < len(raw) - len(raw) // 32:
                stored = packed
        place = [self.size, len(stored), len(raw)]
        self.parts.append(stored)
        self.size += len(stored)
        return place

    def put_texts(self, texts: Texts) -> list[Any]:
        """Add texts: their lengths and their bytes."""
        first, last = int(texts.offsets[0]), int(texts.offsets[-1])
        return [len(texts.offsets) - 1, self.put_ints(np.diff(texts.offsets)), self.put(texts.data[first:last])]

    def put_ints(self, values: NDArray[np.int64], how: int = PLAIN, others: NDArray[np.int64] = NO_INTS) -> list[Any]:
        """Add numbers, reduced as ``how`` says (``tsdb.kernels.log_columns``)."""
        base = int(values.min()) if how == PLAIN and len(values) else 0
        words = np.empty(len(values), np.uint64)
        width = int(reduce_ints(values, others, how, base, words))
        planes = np.empty(width * len(values), np.uint8)
        put_planes(words, width, planes)
        return [how, base, width, self.put(planes)]


class BlobReader:
    """Reads runs.

    Parameters
    ----------
    data : what the parts of a :class:`BlobWriter` are one behind the other
    name : for error messages
    """

    def __init__(self, data: memoryview, name: str) -> None:
        self._data = data
        self._name = name

    def get(self, place: Any, pad: int = PAD_BYTES) -> NDArray[np.uint8]:
        """One run, with ``pad`` bytes more behind it; without padding it may be read-only.

        Raises
        ------
        CorruptionError
        """
        offset, stored, raw = place
        if not (0 <= offset <= offset + stored <= len(self._data)) or not 0 <= raw <= BLOB_BYTES_MAX:
            raise CorruptionError(self._name, offset, "a run lies outside of its group")
        source: bytes | memoryview = self._data[offset : offset + stored]
        if stored != raw:
            if not hasattr(_local, "decompressor"):
                _local.decompressor = zstandard.ZstdDecompressor()
            try:
                source = _local.decompressor.decompress(source, max_output_size=raw)
            except zstandard.ZstdError as error:
                raise CorruptionError(self._name, offset, f"a run does not decompress: {error}") from error
            if len(source) != raw:
                raise CorruptionError(self._name, offset, f"a run has {len(source)} bytes where {raw} are stated")
        data = np.frombuffer(source, np.uint8)
        if not pad:
            return data
        out = np.empty(raw + pad, np.uint8)
        out[:raw] = data
        out[raw:] = 0
        return out

    def texts(self, entry: Any) -> Texts:
        """What :meth:`BlobWriter.put_texts` added."""
        n, lengths, place = entry
        offsets = np.zeros(n + 1, np.int64)
        sizes = self.ints(lengths, n)
        sizes.cumsum(out=offsets[1:])
        data = self.get(place)
        if n and (int(offsets[-1]) != place[2] or int(sizes.min()) < 0):
            raise CorruptionError(self._name, place[0], "lengths of texts do not add up")
        return Texts(data, offsets)

    def ints(self, entry: Any, n: int, others: NDArray[np.int64] = NO_INTS) -> NDArray[np.int64]:
        """What :meth:`BlobWriter.put_ints` added."""
        how, base, width, place = entry
        planes = self.get(place, 0)
        if place[2] != width * n or not 0 <= width <= 8:
            raise CorruptionError(self._name, place[0], "a column of numbers has the wrong length")
        out = np.empty(n, np.int64)
        take_planes(planes, width, others, how, base, out)
        return out

    def some_ints(
        self, entry: Any, n: int, rows: NDArray[np.int64], others: NDArray[np.int64] = NO_INTS
    ) -> NDArray[np.int64] | None:
        """As :meth:`ints`, of some rows, also in ``others``; None where each number needs the one before it."""
        how, base, width, place = entry
        if how == DELTA:
            return None
        planes = self.get(place, 0)
        if place[2] != width * n or not 0 <= width <= 8:
            raise CorruptionError(self._name, place[0], "a column of numbers has the wrong length")
        out = np.empty(len(rows), np.int64)
        take_planes(np.ascontiguousarray(planes.reshape(width, n)[:, rows]).reshape(-1), width, others, how, base, out)
        return out
