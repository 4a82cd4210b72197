"""Stops writes before the disk is full, while compaction, retention and the log's reserve still have room."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tsdb.errors import DiskFullError

FREE_FRACTION_MIN = 0.05
FREE_BYTES_MIN = 1 << 30
REFRESH_S = 0.5
"""How old a look at the free space may be: at 200 MB/s the disk moves by a tenth of the reserve in that time."""


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """One look at the disk, bytes."""

    total_bytes: int
    free_bytes: int
    reserve_bytes: int

    @property
    def is_low(self) -> bool:
        return self.free_bytes < self.reserve_bytes


class DiskGuard:
    """Free space of the file system a folder lies on.

    Parameters
    ----------
    folder : any existing folder of the file system
    min_free_fraction, min_free_bytes : the reserve is the larger of the two
    """

    def __init__(
        self,
        folder: Path,
        min_free_fraction: float = FREE_FRACTION_MIN,
        min_free_bytes: int = FREE_BYTES_MIN,
        refresh_s: float = REFRESH_S,
    ) -> None:
        self._folder = folder
        self._fraction = min_free_fraction
        self._bytes = min_free_bytes
        self._refresh_s = refresh_s
        self._lock = threading.Lock()
        self._space = self._look()
        self._looked_s = time.monotonic()

    def _look(self) -> DiskSpace:
        stat = os.statvfs(self._folder)
        total = stat.f_blocks * stat.f_frsize
        # f_bavail: what is left to a process that is not root, the rest is the file system's own reserve
        return DiskSpace(total, stat.f_bavail * stat.f_frsize, max(int(total * self._fraction), self._bytes))

    @property
    def space(self) -> DiskSpace:
        """Space as of at most ``refresh_s`` ago."""
        now = time.monotonic()
        if now - self._looked_s >= self._refresh_s and self._lock.acquire(blocking=False):
            try:
                self._space = self._look()
                self._looked_s = now
            finally:
                self._lock.release()
        return self._space

    def check(self) -> None:
        """Refuse a write while space is low.

        Raises
        ------
        DiskFullError
        """
        space = self.space
        if space.is_low:
            raise DiskFullError(
                f"{space.free_bytes >> 20} MiB free of {space.total_bytes >> 20} MiB on {self._folder}, "
                f"writes stop below {space.reserve_bytes >> 20} MiB"
            )
