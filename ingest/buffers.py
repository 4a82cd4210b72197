"""Buffers that are used again by whichever thread needs some next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ingest.kernels.snappy import PAD_BYTES

T = TypeVar("T")

ROOM_FIRST = 4096
"""Samples that the outputs of a request have room for at first; senders write 500 to 2,000 at once."""
_RAW_BYTES_FIRST = 1 << 20
_KEPT_BYTES_MAX = 8 << 20  # larger buffers are given back after the request that needed them


class Spares(Generic[T]):
    """Objects for one thread at a time; what was given back last is taken first: its pages are still in the cache.

    There are as many as were ever taken at once, so that the number of threads does not matter.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._free: list[T] = []

    def take(self) -> T:
        """One that nobody else has until :meth:`give`."""
        try:
            return self._free.pop()
        except IndexError:
            return self._make()

    def give(self, spare: T) -> None:
        """Give it back."""
        self._free.append(spare)


class RequestBuffers(ABC):
    """What one request is read into: fresh pages would cost more than the work done in them.

    Attributes
    ----------
    raw : uint8        the body, with ``PAD_BYTES`` readable bytes behind it
    misses : int64     series that have to be looked up the slow way; every protocol's largest output
    """

    misses: NDArray[np.int64]

    def __init__(self) -> None:
        self.raw: NDArray[np.uint8] = np.zeros(_RAW_BYTES_FIRST + PAD_BYTES, np.uint8)
        self.set_room(ROOM_FIRST)

    @abstractmethod
    def set_room(self, samples: int) -> None:
        """Make outputs for so many samples."""

    def trim(self) -> None:
        """Let go of what an unusually large request needed."""
        if self.raw.nbytes > _KEPT_BYTES_MAX:
            self.raw = np.zeros(_RAW_BYTES_FIRST + PAD_BYTES, np.uint8)
        if self.misses.nbytes > _KEPT_BYTES_MAX:
            self.set_room(ROOM_FIRST)
