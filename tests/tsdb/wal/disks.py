"""Disks for tests: one that fails when told to, and one that remembers, so that a power cut can be played back."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tsdb.io import Files

SECTOR = 512


class FailingFiles(Files):
    """Fails calls by name: ``fail("sync_data", after=3, times=2, number=errno.EIO)``."""

    def __init__(self) -> None:
        self._plans: dict[str, list[int]] = {}  # name -> [calls to let pass, calls to fail, errno]
        self.calls: list[str] = []

    def fail(self, name: str, *, after: int = 0, times: int = 1, number: int = errno.EIO) -> None:
        self._plans[name] = [after, times, number]

    def heal(self) -> None:
        self._plans.clear()

    def _passes(self, name: str) -> None:
        self.calls.append(name)
        plan = self._plans.get(name)
        if plan is None:
            return
        if plan[0]:
            plan[0] -= 1
        elif plan[1]:
            plan[1] -= 1
            raise OSError(plan[2], os.strerror(plan[2]))


def _wrap(name: str) -> Callable[..., object]:
    def method(self: FailingFiles, *args: object) -> object:
        self._passes(name)
        return getattr(Files, name)(self, *args)

    return method


MUTATING = (
    "create", "open", "write_at", "write_all", "preallocate", "truncate", "sync_data", "sync", "rename", "link",
    "remove", "sync_folder",
)  # fmt: skip
for _name in MUTATING:
    setattr(FailingFiles, _name, _wrap(_name))


@dataclass
class _Node:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[str, int, bytes]] = field(default_factory=list)


class RecordingFiles(Files):
    """The real disk, and a list of what was done to it in order; tests add marks of their own."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []
        self._node_of_fd: dict[int, int] = {}
        self._node_of_path: dict[Path, int] = {}
        self._nodes = 0

    def mark(self, what: object) -> None:
        self.events.append(("mark", what))

    def create(self, path: Path) -> int:
        fd = super().create(path)
        self._nodes += 1
        self._node_of_fd[fd] = self._node_of_path[path] = self._nodes
        self.events.append(("add", path, self._nodes))
        return fd

    def open(self, path: Path) -> int:
        fd = super().open(path)
        self._node_of_fd[fd] = self._node_of_path[path]
        return fd

    def write_at(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        super().write_at(fd, data, offset)
        self.events.append(("write", self._node_of_fd[fd], offset, bytes(data)))

    def write_all(self, fd: int, parts: object) -> int:  # type: ignore[override]
        offset = os.lseek(fd, 0, os.SEEK_CUR)
        size = super().write_all(fd, parts)  # type: ignore[arg-type]
        self.events.append(("write", self._node_of_fd[fd], offset, b"".join(bytes(p) for p in parts)))  # type: ignore[attr-defined]
        return size

    def preallocate(self, fd: int, size: int) -> None:
        super().preallocate(fd, size)
        self.events.append(("size", self._node_of_fd[fd], size))

    def truncate(self, fd: int, size: int) -> None:
        super().truncate(fd, size)
        self.events.append(("truncate", self._node_of_fd[fd], size))

    def sync_data(self, fd: int) -> None:
        super().sync_data(fd)
        self.events.append(("sync", self._node_of_fd[fd]))

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self.events.append(("sync", self._node_of_fd[fd]))

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        node = self._node_of_path.pop(source)
        self._node_of_path[target] = node
        self.events += [("move", source, target, node)]

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        self._node_of_path[target] = self._node_of_path[source]
        self.events.append(("add", target, self._node_of_path[source]))

    def remove(self, path: Path) -> None:
        super().remove(path)
        self._node_of_path.pop(path, None)
        self.events.append(("drop", path))

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        self.events.append(("sync_folder", path))


def _change(data: bytearray, kind: str, offset: int, piece: bytes) -> None:
    if kind == "truncate":
        del data[offset:]
        data.extend(bytes(offset - len(data)))
        return
    data.extend(bytes(max(0, offset + len(piece) - len(data))))
    data[offset : offset + len(piece)] = piece


def after_power_cut(events: list[tuple[object, ...]], chance: random.Random, root: Path, target: Path) -> list[object]:
    """Build in ``target`` what the disk may hold when power goes after ``events``; the marks set before it.

    Synced writes are there. Of unsynced ones, each 512-byte sector is there or not; of names changed since the last
    sync of their folder, some first ones.
    """
    nodes: dict[int, _Node] = {}
    names: dict[Path, int] = {}
    waiting: list[tuple[object, ...]] = []
    marks: list[object] = []

    def settle(change: tuple[object, ...]) -> None:
        if change[0] == "add":
            names[change[1]] = change[2]  # type: ignore[index,assignment]
        elif change[0] == "drop":
            names.pop(change[1], None)  # type: ignore[call-overload]
        else:
            names.pop(change[1], None)  # type: ignore[call-overload]
            names[change[2]] = change[3]  # type: ignore[index,assignment]

    for event in events:
        kind = event[0]
        if kind == "mark":
            marks.append(event[1])
        elif kind in ("add", "drop", "move"):
            waiting.append(event)
        elif kind == "sync_folder":
            for change in [w for w in waiting if w[1].parent == event[1]]:  # type: ignore[attr-defined]
                settle(change)
                waiting.remove(change)
        else:
            node = nodes.setdefault(event[1], _Node())  # type: ignore[call-overload]
            if kind == "sync":
                for pending in node.pending:
                    _change(node.durable, *pending)
                node.pending.clear()
            elif kind == "write":
                node.pending.append(("write", event[2], event[3]))  # type: ignore[arg-type]
            elif kind == "size":
                node.pending.append(("write", event[2], b""))  # type: ignore[arg-type]
            else:
                node.pending.append(("truncate", event[2], b""))  # type: ignore[arg-type]
    for change in waiting[: chance.randint(0, len(waiting))]:
        settle(change)
    share = chance.choice([0.0, 0.5, 1.0])
    for path, number in names.items():
        node = nodes.get(number, _Node())
        data = bytearray(node.durable)
        for kind, offset, piece in node.pending:
            if kind == "truncate" or not piece:
                if chance.random() < share:
                    _change(data, kind, offset, piece)
                continue
            start = 0
            while start < len(piece):
                end = start + SECTOR - (offset + start) % SECTOR
                if chance.random() < share:
                    _change(data, kind, offset + start, piece[start:end])
                start = end
        made = target / path.relative_to(root)
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(data)
    return marks
