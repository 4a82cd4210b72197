"""Growable arrays that never move.

An arena reserves address space once and touches pages only when they are used, so it grows without copying
and a reader's view stays valid. Resident memory is what was written, rounded up to a page.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

PAGE_BYTES = mmap.PAGESIZE
_MAP_NORESERVE = 0x4000  # of Linux; the mmap module names it from Python 3.13 on


class Arena:
    """One reserved array.

    Parameters
    ----------
    dtype : element type
    capacity : most elements it can ever hold (address space only; bounded by the 128 TiB of x86-64)
    """

    __slots__ = ("_map", "array")

    def __init__(self, dtype: DTypeLike, capacity: int, columns: int = 0) -> None:
        item = np.dtype(dtype)
        n_bytes = max(capacity * item.itemsize * max(columns, 1), PAGE_BYTES)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._map = mmap.mmap(-1, -(-n_bytes // PAGE_BYTES) * PAGE_BYTES, flags=flags)
        flat: NDArray[Any] = np.frombuffer(self._map, item, capacity * max(columns, 1))
        self.array: NDArray[Any] = flat.reshape(capacity, columns) if columns else flat

    def release(self, first: int, last: int) -> None:
        """Give the pages wholly inside elements ``[first, last)`` back; they read as zeros afterwards."""
        stride = self.array.strides[0]
        begin = -(-first * stride // PAGE_BYTES) * PAGE_BYTES
        end = last * stride // PAGE_BYTES * PAGE_BYTES
        if end > begin:
            self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def use_huge_pages(self) -> None:
        """Ask for 2 MiB pages: worth it once an arena is large and read in random order (fewer TLB misses)."""
        self._map.madvise(mmap.MADV_HUGEPAGE)
