"""Every system call that changes the disk, in one place.

The log and the block store reach files only through :class:`Files`, so that a test can hand in one that records
what was written and synced, or that fails where a disk fails (storage.md section 12.2).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

IOV_MAX = 1024
"""Most buffers of one ``pwritev`` (Linux ``UIO_MAXIOV``)."""


class Files:
    """The real disk. All methods raise :class:`OSError` as the system does."""

    def create(self, path: Path) -> int:
        """Descriptor of a new file; :class:`FileExistsError` when there is one."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def open(self, path: Path) -> int:
        """Descriptor of an existing file, for reading and writing in place."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def write_at(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``."""
        view = memoryview(data)
        while view:
            done = os.pwrite(fd, view, offset)
            view = view[done:]
            offset += done

    def write_all(self, fd: int, parts: Sequence[bytes | memoryview]) -> int:
        """Append the parts at the descriptor's position; bytes written."""
        total = 0
        for first in range(0, len(parts), IOV_MAX):
            views = [memoryview(part).cast("B") for part in parts[first : first + IOV_MAX] if len(part)]
            while views:
                done = os.writev(fd, views)
                total += done
                while views and done >= len(views[0]):
                    done -= len(views[0])
                    del views[0]
                if done:
                    views[0] = views[0][done:]
        return total

    def preallocate(self, fd: int, size: int) -> None:
        """Give the file ``size`` bytes that belong to it from now on, so that writing them cannot meet ENOSPC."""
        os.posix_fallocate(fd, 0, size)

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file."""
        os.ftruncate(fd, size)

    def sync_data(self, fd: int) -> None:
        """Wait until the file's bytes, and its length if that grew, are on the device."""
        os.fdatasync(fd)

    def sync(self, fd: int) -> None:
        """Wait until the file and its attributes are on the device."""
        os.fsync(fd)

    def forget_cache(self, fd: int) -> None:
        """Drop the synced pages from the cache, so that the next read comes from the device."""
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Rename, replacing ``target``; durable after :meth:`sync_folder`."""
        os.rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        """Second name for a file; :class:`FileExistsError` when ``target`` is there: the atomic put-if-absent."""
        os.link(source, target)

    def remove(self, path: Path) -> None:
        """Remove one name of a file."""
        os.unlink(path)

    def sync_folder(self, path: Path) -> None:
        """Make creations, renames and removals inside the folder durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def make_folder(self, path: Path) -> None:
        """Create a folder and its missing parents, each entry durable."""
        missing = []
        while not path.is_dir():
            missing.append(path)
            path = path.parent
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            self.sync_folder(folder.parent)
