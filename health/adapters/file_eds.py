"""Assignments as files that Envoy watches (``path_config_source`` with ``watched_directory``).

A file is replaced by renaming a complete one over it, and only when its content changes. When verdicts may not be
acted on any more, and when the program ends, it shows every endpoint as healthy. Nobody is left to do that when the
process is killed: keep the lease in mind before choosing this adapter.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import orjson

from health.adapters.eds import assignment, enforced, service_name
from health.lease import ActuatorLease
from health.loop import HealthLoop


@dataclass(frozen=True, slots=True)
class EdsFile:
    """One file for some clusters; its folder must be there."""

    path: Path
    clusters: tuple[str, ...]


class FileEds:
    """Keeps files up to date; called on the loop's thread after each tick.

    Attributes
    ----------
    writes : files written so far
    """

    def __init__(self, health: HealthLoop, lease: ActuatorLease, files: list[EdsFile]) -> None:
        self._health = health
        self._lease = lease
        self._files = files
        self._written: dict[Path, bytes] = {}
        self.writes = 0

    def follow(self, now_ms: int) -> None:
        """Write the files whose content changed.

        Raises
        ------
        OSError
        """
        for file in self._files:
            self._write(file, now_ms)

    def close(self) -> None:
        """Clear our ejections: from now on nobody would.

        Raises
        ------
        OSError
        """
        for file in self._files:
            self._write(file, None)

    def _write(self, file: EdsFile, now_ms: int | None) -> None:
        facts, snapshot = self._health.facts, self._health.board.now
        resources = []
        for cluster in file.clusters:
            service = service_name(cluster)
            if not facts.get(service):
                return  # not known yet, or not any more: what is there stays
            view = None if now_ms is None else enforced(snapshot, service, self._lease, now_ms)
            resources.append(assignment(cluster, facts[service], view))
        content = orjson.dumps(resources)
        if self._written.get(file.path) == content:
            return
        body = orjson.dumps({"version_info": f"{self._lease.term}-{snapshot.revision}", "resources": resources})
        replace_file(file.path, body)
        self._written[file.path] = content
        self.writes += 1


def replace_file(path: Path, body: bytes) -> None:
    """Let ``path`` hold ``body``: a complete file is renamed over it.

    Raises
    ------
    OSError        the old one still stands
    """
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("wb") as out:
            out.write(body)
            out.flush()
            os.fsync(out.fileno())
        new.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()


def parse_file(data: object) -> EdsFile:
    """A file of the configuration: ``{path: PATH, clusters: [NAME, ...]}``.

    Raises
    ------
    ValueError
    """
    if isinstance(data, dict) and data.keys() == {"path", "clusters"}:
        path, clusters = data["path"], data["clusters"]
        names = isinstance(clusters, list) and clusters and all(isinstance(name, str) for name in clusters)
        if isinstance(path, str) and path and names:
            return EdsFile(Path(path), tuple(clusters))
    raise ValueError("must be {path: PATH, clusters: [NAME, ...]}")
