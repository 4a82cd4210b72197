"""The query log: one JSON line per query, so that somebody can find out what made the store busy."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import orjson
import structlog

from query.endpoints import QueryRecord

log = structlog.get_logger(__name__)


def _seconds(ms: int) -> float | int:
    return ms // 1000 if ms % 1000 == 0 else ms / 1000


def line_of(record: QueryRecord) -> bytes:
    """A record as its line, newline included."""
    line: dict[str, Any] = {
        "ts": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "tenant": record.tenant,
        "query": record.query.encode("utf-8", "replace").decode(),
        "start": _seconds(record.start_ms),
        "end": _seconds(record.end_ms),
        "step": _seconds(record.step_ms),
        "seconds": round(record.seconds, 6),
    }
    if record.stats is not None:
        stats = record.stats
        line |= {"samples": stats.samples, "samples_total": stats.samples_total, "peak_samples": stats.peak_samples}
        line |= {"series": stats.series, "phases": {name: round(s, 6) for name, s in stats.seconds.items()}}
    if record.error:
        line["error"] = record.error.encode("utf-8", "replace").decode()
    return orjson.dumps(line) + b"\n"


class QueryLog:
    """Appends to a file; when the file is moved or deleted (``logrotate``), the next query begins a new one.

    A file that cannot be written never fails a query: it is said once in our own log, and tried again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._identity = (0, 0)
        self._failed = False

    def write(self, record: QueryRecord) -> None:
        """Append one line."""
        line = line_of(record)
        with self._lock:
            try:
                self._current().write(line)
            except OSError as error:
                if not self._failed:
                    log.warning("query log cannot be written", file=str(self._path), reason=str(error))
                self._failed = True
            else:
                self._failed = False

    def _current(self) -> IO[bytes]:
        """The open file, as long as the path still leads to it."""
        if self._file is not None:
            if self._identity == self._found():
                return self._file
            self._file.close()
        self._file = self._path.open("ab", buffering=0)
        self._identity = self._found()
        return self._file

    def _found(self) -> tuple[int, int]:
        """Device and inode of what the path leads to now."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return (0, 0)
        return found.st_dev, found.st_ino
