"""Where immutable objects live: a folder now, an object store later (decision 10).

Everything a shard publishes goes through five calls, and :meth:`BlockStore.create` is put-if-absent: two writers
of one key cannot both succeed, which makes a manifest generation the only commit there is.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

from tsdb.errors import MeshpulseError
from tsdb.io import Files

TEMPORARY = ".tmp-"
"""Prefix of files that are not objects yet; what a crash leaves of them is removed at the next start."""

Buffer = bytes | memoryview


class AlreadyExistsError(MeshpulseError):
    """Somebody created this key before."""


class BlockStore(Protocol):
    """Immutable objects by key; keys are relative paths with ``/``."""

    def create(self, key: str, parts: Sequence[Buffer]) -> int:
        """Store a new object, durable on return; its size in bytes.

        Raises
        ------
        AlreadyExistsError        there is one; nothing was changed
        """
        ...

    def open(self, key: str) -> memoryview:
        """The whole object, read-only, loaded as it is touched; it stays valid when the key is deleted.

        Raises
        ------
        FileNotFoundError
        """
        ...

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        """Bytes ``[first, last)`` of each range; shorter where the object ends."""
        ...

    def list(self, prefix: str) -> list[str]:
        """Keys that begin with ``prefix``, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; none there is fine."""
        ...

    def scratch(self) -> IO[bytes]:
        """A file without a name on the store's disk, gone when it is closed or the process ends."""
        ...


class FolderStore:
    """Objects as files below one folder.

    An object is written under a temporary name, synced, then linked to its own: a reader sees all of it or nothing,
    also after a power cut. The caller holds the data folder's lock.
    """

    def __init__(self, root: Path, files: Files | None = None) -> None:
        self.root = root
        self._files = files or Files()
        self._files.make_folder(root)
        for stale in root.rglob(f"{TEMPORARY}*"):
            with contextlib.suppress(OSError):
                self._files.remove(stale)

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if any(part in ("", ".", "..") or part.startswith(TEMPORARY) or "\0" in part for part in parts):
            raise ValueError(f"not a key: {key!r}")
        return self.root.joinpath(*parts)

    def create(self, key: str, parts: Sequence[Buffer]) -> int:
        path = self._path(key)
        if path.exists():  # spares the writing; the link below decides
            raise AlreadyExistsError(key)
        self._files.make_folder(path.parent)
        temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
        fd = self._files.create(temporary)
        try:
            try:
                size = self._files.write_all(fd, parts)
                self._files.sync(fd)
                self._files.forget_cache(fd)  # so that whoever verifies it reads what the device holds
            finally:
                self._files.close(fd)
            try:
                self._files.link(temporary, path)
            except FileExistsError:
                raise AlreadyExistsError(key) from None
        finally:
            with contextlib.suppress(OSError):
                self._files.remove(temporary)
        try:
            self._files.sync_folder(path.parent)
        except OSError:
            with contextlib.suppress(OSError):  # it may not outlive a power cut, so it was not created
                self._files.remove(path)
            raise
        return size

    def open(self, key: str) -> memoryview:
        with self._path(key).open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return memoryview(b"")  # an empty file cannot be mapped
            return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        whole = self.open(key)
        return [whole[first:last] for first, last in ranges]

    def list(self, prefix: str) -> list[str]:
        # only the folder the prefix names is walked, not the whole store
        folder = self.root.joinpath(*prefix.split("/")[:-1])
        found = []
        for base, _, names in os.walk(folder):
            relative = Path(base).relative_to(self.root).as_posix()
            stem = "" if relative == "." else f"{relative}/"
            found += [f"{stem}{name}" for name in names if not name.startswith(TEMPORARY)]
        return sorted(key for key in found if key.startswith(prefix))

    def delete(self, key: str) -> None:
        path = self._path(key)
        try:
            self._files.remove(path)
        except FileNotFoundError:
            return
        self._files.sync_folder(path.parent)

    def scratch(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self.root, prefix=TEMPORARY)
