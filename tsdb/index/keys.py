"""From the bytes a sender spells a series with to the series, and which series it sends next.

A key is raw input: the label bytes of a protobuf TimeSeries, or the text left of a value in an exposition.
Two spellings of one series are two keys with one ref. Ingest kernels read :class:`KeyArrays` directly.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsdb.arena import Arena
from tsdb.kernels.keys import add_keys, find_keys, rehash_keys

START_KEY = 0
"""The reserved key whose prediction is the first series of a request; it has no bytes and is never found."""

_SLOTS_FIRST = 1024


class KeyArrays(NamedTuple):
    """A key table as kernels see it. Arrays never move; ``slots`` is replaced when it grows, so take a fresh
    :meth:`KeyTable.arrays` for each request.

    Attributes
    ----------
    key_bytes : uint8            all keys, one behind the other
    key_offsets : uint64         first byte of each key
    key_lengths : uint32         its length
    key_refs : uint32            its series
    next_keys : uint32           the key that followed it last time; 0 = none. Written by the ingest kernels:
                                 a race loses a prediction at most, since every prediction is compared byte by byte
    slots : uint64               hash bits << 32 | key + 1; 0 = empty; a power of two, at most half full
    """

    key_bytes: NDArray[np.uint8]
    key_offsets: NDArray[np.uint64]
    key_lengths: NDArray[np.uint32]
    key_refs: NDArray[np.uint32]
    next_keys: NDArray[np.uint32]
    slots: NDArray[np.uint64]


class KeyTable:
    """Raw key bytes -> series ref, append-only, with the successor of each key.

    One writer at a time (a lock inside), any number of readers.

    Parameters
    ----------
    keys_max : most keys; further keys are not kept, so that their series take the slow path each time
    bytes_max : most key bytes, likewise
    """

    def __init__(self, keys_max: int, bytes_max: int) -> None:
        self._keys_max = keys_max + 1
        self._bytes_max = bytes_max
        self._bytes = Arena(np.uint8, bytes_max)
        self._offsets = Arena(np.uint64, self._keys_max)
        self._lengths = Arena(np.uint32, self._keys_max)
        self._refs = Arena(np.uint32, self._keys_max)
        self._next = Arena(np.uint32, self._keys_max)
        self._slots: NDArray[np.uint64] = np.zeros(_SLOTS_FIRST, np.uint64)
        self._counts = np.array([1, 0], np.int64)  # key 0 is START_KEY
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Keys held."""
        return int(self._counts[0]) - 1

    @property
    def memory_bytes(self) -> int:
        """Bytes in use, tables included."""
        return int(self._counts[1]) + int(self._counts[0]) * 20 + self._slots.nbytes

    def arrays(self) -> KeyArrays:
        """The table for the kernels of one request."""
        return KeyArrays(
            self._bytes.array,
            self._offsets.array,
            self._lengths.array,
            self._refs.array,
            self._next.array,
            self._slots,
        )

    def add_batch(
        self,
        buf: NDArray[np.uint8],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        refs: NDArray[np.uint32],
    ) -> NDArray[np.int64]:
        """Remember keys; known ones (also earlier in the same batch) keep their number.

        Parameters
        ----------
        buf : (n_bytes,) uint8            key i is ``buf[starts[i]:ends[i]]``
        starts, ends : (n,) int64
        refs : (n,) uint32                series of each key

        Returns
        -------
        (n,) int64        number of each key, -1 when the table is full
        """
        keys: NDArray[np.int64] = np.empty(len(starts), np.int64)
        with self._lock:
            done = 0
            while True:
                done = add_keys(
                    buf, starts, ends, refs, done, self._keys_max, self._bytes_max,
                    self._bytes.array, self._offsets.array, self._lengths.array, self._refs.array,
                    self._slots, self._counts, keys,
                )  # fmt: skip
                if done == len(starts):
                    return keys
                self._grow()

    def copy_from(self, other: KeyTable, numbers: NDArray[np.uint32]) -> None:
        """Take over the keys of another table, in their order.

        Parameters
        ----------
        numbers : uint32        by the series of the other table their number here; what is beyond it is left out, and
            what has none: ``0xFFFFFFFF``
        """
        table = other.arrays()
        count = len(other) + 1
        refs = table.key_refs[1:count]
        known = np.flatnonzero(refs < len(numbers))
        renumbered = numbers[refs[known]]
        kept = renumbered != np.uint32(0xFFFFFFFF)
        starts = table.key_offsets[1:count][known[kept]].astype(np.int64)
        ends = starts + table.key_lengths[1:count][known[kept]]
        self.add_batch(table.key_bytes, starts, ends, renumbered[kept])

    def add(self, key: bytes, ref: int) -> int:
        """Remember one key; its number, -1 when the table is full."""
        buf: NDArray[np.uint8] = np.frombuffer(key, np.uint8)
        edges = np.array([0, len(key)], np.int64)
        return int(self.add_batch(buf, edges[:1], edges[1:], np.array([ref], np.uint32))[0])

    def find(self, key: bytes) -> int:
        """Number of a key, or -1."""
        edges = np.array([0, len(key)], np.int64)
        found: NDArray[np.int64] = np.empty(1, np.int64)
        table = self.arrays()
        find_keys(
            np.frombuffer(key, np.uint8), edges[:1], edges[1:],
            table.key_bytes, table.key_offsets, table.key_lengths, table.slots, found,
        )  # fmt: skip
        return int(found[0])

    def _grow(self) -> None:
        slots: NDArray[np.uint64] = np.zeros(len(self._slots) * 2, np.uint64)
        rehash_keys(self._bytes.array, self._offsets.array, self._lengths.array, 1, int(self._counts[0]), slots)
        self._slots = slots
