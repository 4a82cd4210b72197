"""When samples arrived: what each evaluation could see, so that a replay sees exactly that (docs/format/health.md).

A sample's time says when it was taken, not when it came. For every evaluation the log keeps how far each observer's
samples reached, and how many series had new ones; a replay hides what was not there yet, and checks the number.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from health.service import Service
from health.topology import Fact
from health.window import NEVER_MS

log = logging.getLogger(__name__)

SEGMENT_BYTES = 8 << 20
SEGMENTS_KEPT = 8
"""64 MiB: a week of four proxies scraped every 2 s, half a day of 500 scraped every 5 s."""
_PREFIX = "arrivals-"


def facts_digest(facts: Mapping[str, Fact]) -> int:
    """A number that changes with what a topology source says of a service; 0 = nothing."""
    return zlib.crc32(repr(sorted(facts.items())).encode()) if facts else 0


class ArrivalLog:
    """Writes the log; used by the loop's thread alone. What cannot be written is a gap, and replays say so.

    Parameters
    ----------
    folder : that of the journal
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        self._size = 0
        self._number = max((_number(path) for path in _segments(folder)), default=-1)
        self._services: dict[str, _Written] = {}
        self._fleet = -1

    def begin(self, now_ms: int, *, remembers: bool) -> None:
        """A start: what came before was judged by another process.

        Parameters
        ----------
        remembers : it goes on with ejections of the one before
        """
        self._open({"start": now_ms, "remembers": remembers})

    def note(self, now_ms: int, services: Iterable[Service], digests: Mapping[str, int], fleet: int) -> None:
        """Write down one evaluation of everything.

        Parameters
        ----------
        digests : of the facts each service is judged by
        fleet : endpoints of all services
        """
        if self._file is None or self._size > SEGMENT_BYTES:
            self._open({"goes_on" if self._file is not None else "gap": now_ms})
        lines: list[Any] = []
        if fleet != self._fleet:
            self._fleet = fleet
            lines.append({"fleet": fleet})
        news: list[Any] = []
        for service in services:
            written = self._services.get(service.name)
            if written is None:
                written = self._services[service.name] = _Written(len(self._services))
                lines.append({"service": service.name, "number": written.number})
            digest = digests.get(service.name, 0)
            if digest != written.digest:
                written.digest = digest
                lines.append({"facts": digest, "number": written.number})
            rows, names = written.news(service)
            if names:
                lines.append({"observers": names, "number": written.number})
            if rows or service.arrived:
                news.append([written.number, service.arrived, [(n, now_ms - ms) for n, ms in rows]])
        lines.append([now_ms, news])
        self._write(lines)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, head: Mapping[str, Any]) -> None:
        self.close()
        self._number += 1
        self._services, self._fleet, self._size = {}, -1, 0  # each segment can be read alone
        try:
            self._file = (self._folder / f"{_PREFIX}{self._number:08d}.log").open("ab", buffering=0)
            for old in _segments(self._folder)[:-SEGMENTS_KEPT]:
                old.unlink()
        except OSError as error:
            log.warning("arrivals are not written down, replays will be approximate: %s", error)
        self._write([head])

    def _write(self, lines: list[Any]) -> None:
        if self._file is None:
            return
        data = b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)
        try:
            self._file.write(data)
            self._size += len(data)
        except OSError as error:
            log.warning("arrivals are not written down, replays will be approximate: %s", error)
            self.close()


class _Written:
    """What a segment already says of a service."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.digest = 0
        self._numbers: dict[str, int] = {}
        self._of_row: list[int] = []
        self._generation = -1
        self._seen = np.zeros(0, np.int64)

    def news(self, service: Service) -> tuple[list[tuple[int, int]], list[str]]:
        """(number of the observer, its newest sample) where that moved, and observers not named yet."""
        names: list[str] = []
        if service.generation != self._generation or len(service.observers) != len(self._of_row):
            before = dict(zip(self._of_row, self._seen.tolist(), strict=True))
            names = [name for name in service.observers if name not in self._numbers]
            self._numbers |= {name: len(self._numbers) + i for i, name in enumerate(names)}
            self._of_row = [self._numbers[name] for name in service.observers]
            self._seen = np.array([before.get(n, NEVER_MS) for n in self._of_row], np.int64)
            self._generation = service.generation
        moved = np.flatnonzero(service.seen_ms > self._seen)
        self._seen = service.seen_ms.copy()
        return [(self._of_row[p], int(service.seen_ms[p])) for p in moved.tolist()], names


@dataclass(frozen=True, slots=True)
class Tick:
    """One evaluation.

    Attributes
    ----------
    arrived : series of the service with new samples
    moved : observer -> time of its newest sample, where that moved
    facts : digest of what was known of the topology
    """

    now_ms: int
    arrived: int
    moved: Mapping[str, int]
    facts: int


@dataclass(slots=True)
class Arrivals:
    """What is known of the evaluations of one service in a span of time.

    Attributes
    ----------
    before : observer -> time of its newest sample, before the first tick
    ticks : ascending
    starts : (time, whether it remembered ejections) of the starts of the loop inside
    gaps : times at which writing went on after a failure
    fleet : most endpoints of all services
    oldest_ms : the log reaches back so far; None = there is none
    """

    before: dict[str, int] = field(default_factory=dict)
    ticks: list[Tick] = field(default_factory=list)
    starts: list[tuple[int, bool]] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)
    fleet: int = 0
    oldest_ms: int | None = None


def read_arrivals(folder: Path, service: str, begin_ms: int, end_ms: int) -> Arrivals:
    """Read (begin, end] of the log; damaged ends of segments are left out.

    Raises
    ------
    OSError
    """
    out = Arrivals()
    for path in _segments(folder):
        _read_segment(path, service, begin_ms, end_ms, out)
    return out


def _read_segment(path: Path, service: str, begin_ms: int, end_ms: int, out: Arrivals) -> None:
    number: int | None = None
    names: list[str] = []
    digest = fleet = 0
    for line in _lines(path):
        if isinstance(line, dict):
            at = next((int(line[key]) for key in ("start", "gap", "goes_on") if key in line), 0)
            if at and out.oldest_ms is None:
                out.oldest_ms = at
            if "start" in line:
                out.before.clear()
                if begin_ms < at <= end_ms:
                    out.starts.append((at, bool(line["remembers"])))
            elif "gap" in line and begin_ms < at <= end_ms:
                out.gaps.append(at)
            elif line.get("service") == service:
                number = line["number"]
            elif "fleet" in line:
                fleet = line["fleet"]
            elif line.get("number") == number and "observers" in line:
                names += line["observers"]
            elif line.get("number") == number and "facts" in line:
                digest = line["facts"]
            continue
        now_ms, news = line
        if now_ms > end_ms:
            return
        mine = next((row for row in news if row[0] == number), (None, 0, ()))
        moved = {names[n]: now_ms - lag for n, lag in mine[2]}
        if now_ms <= begin_ms:
            out.before |= moved
        else:
            out.fleet = max(out.fleet, fleet)
            out.ticks.append(Tick(now_ms, mine[1], moved, digest))


def _lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return  # being written, or torn
            try:
                yield json.loads(line)
            except ValueError:
                log.warning("%s is damaged, the rest of it is left out", path)
                return


def _segments(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}*.log"))


def _number(path: Path) -> int:
    return int(path.stem.removeprefix(_PREFIX))
