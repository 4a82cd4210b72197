"""Interned label names and values of one tenant: each string once, known by number."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsdb.arena import Arena
from tsdb.errors import LimitError, Reason
from tsdb.kernels.symbols import gather_symbols, intern_texts, look_up_symbol, rehash_symbols

SYMBOLS_MAX = 1 << 28
"""Most symbols of a tenant: below tsdb.frame.OVERLAY_FIRST, and 2 GiB of address space for the offsets."""

SYMBOL_BYTES_MAX = 16 << 30
"""Most bytes of all symbols: address space only, far above the memory of a machine."""

_SLOTS_FIRST = 1024
_NO_BYTES: NDArray[np.uint8] = np.zeros(0, np.uint8)


class SymbolArrays(NamedTuple):
    """The table as kernels see it: bytes and offsets never move, ``slots`` is replaced when it grows.

    Attributes
    ----------
    sym_bytes : uint8; sym_offsets : uint64 (symbols + 1); slots : uint64 (see tsdb.kernels.keys)
    counts : (2,) int64        symbols and bytes in use
    """

    sym_bytes: NDArray[np.uint8]
    sym_offsets: NDArray[np.uint64]
    slots: NDArray[np.uint64]
    counts: NDArray[np.int64]


class SymbolTable:
    """Strings by number, append-only; implements :class:`tsdb.frame.Symbols`. Symbol 0 is ``""``.

    Readers take no lock. Writers hold :attr:`lock`.
    """

    def __init__(self, symbols_max: int = SYMBOLS_MAX, bytes_max: int = SYMBOL_BYTES_MAX) -> None:
        self._bytes = Arena(np.uint8, bytes_max)
        self._offsets = Arena(np.uint64, symbols_max + 1)
        self._slots: NDArray[np.uint64] = np.zeros(_SLOTS_FIRST, np.uint64)
        self._counts = np.array([1, 0], np.int64)
        self.lock = threading.Lock()

    def __len__(self) -> int:
        """Symbols held, the empty string included."""
        return int(self._counts[0])

    @property
    def memory_bytes(self) -> int:
        """Bytes in use, tables included."""
        return int(self._counts[1]) + len(self) * 8 + self._slots.nbytes

    def arrays(self) -> SymbolArrays:
        """The table for a kernel; one that writes needs :attr:`lock`."""
        return SymbolArrays(self._bytes.array, self._offsets.array, self._slots, self._counts)

    def text(self, symbol: int) -> str:
        """The string of one symbol."""
        begin, end = self._offsets.array[symbol : symbol + 2].tolist()
        return str(self._bytes.array[begin:end].tobytes(), "utf-8")

    def texts(self, symbols: NDArray[np.int32]) -> list[str]:
        """The strings of many symbols, in order, repeats allowed."""
        data, offsets = self.gather(symbols.astype(np.uint32))
        edges = offsets.tolist()
        raw = data.tobytes()
        if raw.isascii():
            whole = raw.decode("ascii")
            return [whole[a:b] for a, b in pairwise(edges)]
        return [str(raw[a:b], "utf-8") for a, b in pairwise(edges)]

    def lengths(self, symbols: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Bytes of each of many symbols."""
        offsets = self._offsets.array
        lengths: NDArray[np.int64] = (offsets[symbols.astype(np.int64) + 1] - offsets[symbols]).astype(np.int64)
        return lengths

    def gather(self, symbols: NDArray[np.uint32]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Bytes of many symbols, one behind the other.

        Returns
        -------
        (n_bytes,) uint8, (n + 1,) int64 offsets
        """
        offsets: NDArray[np.int64] = np.empty(len(symbols) + 1, np.int64)
        total = gather_symbols(self._bytes.array, self._offsets.array, symbols, offsets, _NO_BYTES)
        data: NDArray[np.uint8] = np.empty(total, np.uint8)
        if total:
            gather_symbols(self._bytes.array, self._offsets.array, symbols, offsets, data)
        return data, offsets

    def find(self, text: str) -> int:
        """Number of ``text``, or -1 when it was never interned."""
        raw = text.encode("utf-8", "surrogatepass")
        buf: NDArray[np.uint8] = np.frombuffer(raw, np.uint8)
        return int(look_up_symbol(buf, 0, len(raw), self._bytes.array, self._offsets.array, self._slots))

    def intern(self, text: str) -> int:
        """Number of ``text``, a new one when it is new."""
        return int(self.intern_all([text])[0])

    def intern_all(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Numbers of many strings, (n,) int64."""
        raw = [text.encode() for text in texts]
        offsets: NDArray[np.int64] = np.zeros(len(raw) + 1, np.int64)
        np.cumsum([len(r) for r in raw], out=offsets[1:])
        return self.intern_bytes(np.frombuffer(b"".join(raw), np.uint8), offsets)

    def intern_bytes(self, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the strings ``data[offsets[i]:offsets[i + 1]]`` (valid UTF-8).

        Raises
        ------
        LimitError        the table is full
        """
        starts = np.ascontiguousarray(offsets[:-1])
        ends = np.ascontiguousarray(offsets[1:])
        symbols: NDArray[np.int64] = np.empty(len(starts), np.int64)
        with self.lock:
            done = 0
            while True:
                done = intern_texts(data, starts, ends, done, *self.arrays(), symbols)
                if done == len(starts):
                    break
                self.grow()
        if len(symbols) and int(symbols.min()) < 0:
            raise LimitError(Reason.SERIES_LIMIT, "the tenant's table of label names and values is full")
        return symbols

    def grow(self) -> None:
        """Double the slots. The caller holds :attr:`lock`."""
        slots: NDArray[np.uint64] = np.zeros(len(self._slots) * 2, np.uint64)
        rehash_symbols(self._bytes.array, self._offsets.array, 1, len(self), slots)
        self._slots = slots
