"""One process per data folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FolderLockedError(Exception):
    """Another process uses the data folder."""


class FolderLock:
    """An exclusive lock on a folder, held until :meth:`release` or the end of the process, however it ends.

    Raises
    ------
    FolderLockedError        names the process that holds it
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "LOCK"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise FolderLockedError(f"data folder {folder} is in use by process {owner}") from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the folder back; the file stays, because removing it would race with the next owner."""
        os.close(self._fd)
