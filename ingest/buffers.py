"""Buffers that are used again by whichever thread needs some next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


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
