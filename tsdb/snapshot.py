"""A copy of the store at one moment, on the same disk, while it goes on (docs/operations.md says how to restore it).

Blocks never change, so they are hard links: a snapshot costs the log and nothing else. What was acknowledged before it
began is in it; a later sample may be.
"""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tsdb.wal.framing import Record
from tsdb.wal.segments import SUFFIX

if TYPE_CHECKING:
    from tsdb.db import TSDB

FOLDER = "snapshots"
"""Below the data folder: hard links need the same file system."""

_PARTIAL = "partial-"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A finished snapshot.

    Attributes
    ----------
    name : of its folder below ``snapshots/``
    linked_bytes : of blocks, shared with the store until that deletes them
    copied_bytes : of manifests and log segments
    """

    name: str
    path: Path
    linked_bytes: int
    copied_bytes: int


class _Barrier:
    """Resolves when everything submitted before it is in the log."""

    n_bytes = 0

    def records(self, segment: int) -> list[Record]:  # noqa: ARG002
        """Nothing to log."""
        return []

    def apply(self, position: int) -> None:
        """Nothing to do."""


def take_snapshot(db: TSDB, *, with_head: bool = True) -> Snapshot:
    """Link the blocks, copy manifests and log.

    Cuts, retention and the freeing of log segments wait meanwhile; writes and reads go on.

    Parameters
    ----------
    with_head : also copy the log, in which everything is that no block holds yet

    Raises
    ------
    OSError, UnavailableError        nothing is left behind
    """
    root = db.config.path
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(8)}"
    partial = root / FOLDER / f"{_PARTIAL}{name}"
    target = root / FOLDER / name
    for stale in (root / FOLDER).glob(f"{_PARTIAL}*"):
        shutil.rmtree(stale, ignore_errors=True)
    linked = copied = 0
    try:
        partial.mkdir(parents=True)
        if with_head:
            db.log.submit(_Barrier()).result()  # not with the locks held: an append may wait for a part to be written
        with db.unchanged():
            for key in db.store.list("tenants/"):
                source, place = root / key, partial / key
                place.parent.mkdir(parents=True, exist_ok=True)
                if "/manifest-" in key:
                    copied += _copy(source, place)
                else:
                    linked += _link(source, place)
            if with_head:
                (partial / "wal").mkdir()
                # In their order: one that is begun meanwhile is left out, a gap never comes about.
                for source in sorted((root / "wal").glob(f"*{SUFFIX}")):
                    if source.stem.isdigit():
                        copied += _copy(source, partial / "wal" / source.name)
        _sync_folders(partial)
        partial.rename(target)
        _sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Snapshot(name, target, linked, copied)


def _link(source: Path, target: Path) -> int:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        return _copy(source, target)
    return target.stat().st_size


def _copy(source: Path, target: Path) -> int:
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_folders(root: Path) -> None:
    for base, _, _ in os.walk(root):
        _sync_folder(Path(base))
