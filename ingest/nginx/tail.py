"""Follows nginx' log files into the log store.

A round reads what is new in all files, appends it as one batch a tenant, and waits until that is on disk; only then the
positions move. What a crash leaves unsaid is read again, becomes the same entries, and is dropped where the store has
them. A store that is busy keeps the positions where they are: the files are the queue.
"""

from __future__ import annotations

import glob
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ingest.logs.push import PushReceiver, RateError, Streams
from ingest.nginx.entries import Lines, SourceSettings, read_lines
from ingest.nginx.file import Chunk, TailedFile, find_copy, find_moved
from ingest.nginx.positions import Position, load_positions, save_positions
from ingest.nginx.sites import SiteNames
from ingest.nginx.spans import Part, already_stored, spans_of
from tsdb.errors import LimitError, Reason, UnavailableError
from tsdb.labels import Labels
from tsdb.logs.frame import LogReader
from tsdb.tally import Tally

if TYPE_CHECKING:
    from ingest.nginx.geo import Countries

log = logging.getLogger(__name__)

ROUND_BYTES = 8 << 20
"""Most that is read before it is stored: the memory of the tail, and what one slow sync holds up."""

SCAN_S = 5.0
"""How often globs are looked at for new files; a rotation of a known file is seen at once."""

SAVE_S = 1.0
"""How often positions are saved; a crash reads so much again."""

MOVED_S = 30.0
"""How long a file without its name is watched for more lines: nginx writes on until it is told to reopen its logs."""

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""Ends of names that a careless glob finds; such files are left alone."""

BUSY_S = 1.0
"""Pause after the store was busy."""


class Store(Streams, LogReader, Protocol):
    """A tenant's log store."""


class Follow(Protocol):
    """Who counts the lines of a stream (:class:`ingest.nginx.derive.Deriver`)."""

    def assign(self, ref: int, rule: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of the configuration and where its lines go."""

    settings: SourceSettings
    store: Store
    follow: Follow | None = None
    rule: int = -1


@dataclass(slots=True)
class TailStats:
    """Totals since the start, for ``/metrics``."""

    lines: int = 0
    bytes: int = 0
    replaced: int = 0
    busy: int = 0
    rotations: int = 0
    truncations: int = 0
    unsaved: int = 0
    files: int = 0
    unread_bytes: int = 0


class Tailer:
    """Reads files on a thread of its own.

    Parameters
    ----------
    sources : what to read, and into which stores
    receiver : checks and appends entries, as it does pushed ones
    positions : the file that remembers how far we are
    poll_s : pause between two looks at all files
    files_max : most files followed at once; more are refused
    """

    def __init__(
        self,
        sources: Sequence[Source],
        receiver: PushReceiver,
        positions: Path,
        tally: Tally,
        *,
        poll_s: float = 0.5,
        files_max: int = 4096,
        sites_max: int = 1000,
        countries: Countries | None = None,
    ) -> None:
        self.stats = TailStats()
        self._sources = sources
        self._receiver = receiver
        self._positions = positions
        self._tally = tally
        self._poll_s = poll_s
        self._files_max = files_max
        self._countries = countries
        self._sites = SiteNames(sites_max, tally)
        self._refs: dict[tuple[int, str], int] = {}
        self._current: dict[str, TailedFile] = {}
        self._moved: list[TailedFile] = []
        self._awaited: dict[str, int] = {}  # renamed, and nothing there yet: looked for in each round
        self._refused: set[str] = set()
        self._said: set[str] = set()
        self._scanned_at = self._saved_at = -1e9
        self._dirty = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._stored: list[Position] | None = None  # None = we run for the first time; [] after the first scan

    # -- life

    def start(self) -> None:
        """Take up where we were; after :meth:`load`."""
        self._thread = threading.Thread(target=self._run, name="nginx-tail", daemon=True)
        self._thread.start()

    def load(self) -> None:
        """Read where we were; before the first :meth:`poll`.

        Raises
        ------
        ValueError        the positions cannot be read
        """
        self._stored = load_positions(self._positions)

    def close(self) -> None:
        """End after the round that runs; positions are saved."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._dirty:
            self._try_to_save()
        for file in self._files():
            file.close()
        self._current, self._moved = {}, []

    def _run(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            try:
                pause = 0.0 if self.poll() else self._poll_s
            except (UnavailableError, RateError) as error:
                self.stats.busy += 1
                self._tally.add(error.reason)
                self._say(f"nginx logs wait: {error}")
                pause = max(BUSY_S, self._poll_s)
            except Exception:
                log.exception("nginx logs are not read")
                pause = max(BUSY_S, self._poll_s)

    def _say(self, text: str) -> None:
        """Once per kind of trouble, not once per round."""
        if text not in self._said and len(self._said) < 1000:
            self._said.add(text)
            log.warning(text)

    def _files(self) -> list[TailedFile]:
        return [*self._moved, *self._current.values()]

    # -- one round

    def poll(self) -> bool:
        """Look at all files, store what is new; whether there is more to read at once.

        Raises
        ------
        UnavailableError, RateError        nothing was stored, no position has moved
        """
        now = time.monotonic()
        if now - self._scanned_at >= SCAN_S:
            self._scan()
            self._scanned_at = now
        waiting = self._look(now)
        chunks: list[Chunk] = []
        size = 0
        again = False
        for file, final in waiting:
            if size >= ROUND_BYTES:
                break
            chunk = file.read(final=final)
            if file.too_long:
                self._tally.add(Reason.LINE_TOO_LONG, file.too_long)
                file.too_long = 0
            if chunk is None:
                again |= file.skips
                continue
            if file.is_cut(chunk.end):  # after reading, so that what was read is what had been there
                self._on_cut(file)
                again = True
                continue
            chunks.append(chunk)
            size += len(chunk.data)
        if chunks:
            self._store(chunks)
        if self._dirty and now - self._saved_at >= SAVE_S:
            self._try_to_save()
        return again or bool(chunks)

    def _try_to_save(self) -> None:
        """A disk that is full keeps the old positions: a crash then reads more again, and nothing is lost."""
        try:
            self.save()
        except OSError as error:
            self._saved_at = time.monotonic()
            self.stats.unsaved += 1
            self._say(f"positions of log files are not saved: {error}")

    def save(self) -> None:
        """Write down how far each file is read."""
        save_positions(self._positions, [file.position() for file in self._files()])
        self._dirty = False
        self._saved_at = time.monotonic()

    def _look(self, now: float) -> list[tuple[TailedFile, bool]]:
        """Files with something to read, and whether nobody writes to them any more."""
        waiting: list[tuple[TailedFile, bool]] = []
        total = 0
        for path in [path for path in self._awaited if os.path.exists(path)]:
            self._open(path, self._awaited.pop(path))
        for path, file in list(self._current.items()):
            try:
                status = os.stat(path)
            except OSError:
                self._leave(file, now)
                self._awaited[path] = file.source
                continue
            if (status.st_dev, status.st_ino) != file.identity:
                self._leave(file, now)
                self._open(path, file.source)
                if path not in self._current:
                    continue
                file = self._current[path]
            touched = status.st_mtime_ns != file.mtime_ns
            file.mtime_ns = status.st_mtime_ns
            unread = file.unread(status.st_size)
            if touched and not unread and file.is_cut(status.st_size):
                self._on_cut(file)
                unread = file.unread(status.st_size)
            total += unread
            if unread:
                waiting.append((file, False))
        for file in list(self._moved):
            unread = file.unread(file.size())
            total += unread
            quiet = now - max(file.quiet_since, file.moved_at or 0) >= MOVED_S
            if unread:
                waiting.append((file, quiet))
            elif quiet:
                file.close()
                self._moved.remove(file)
                self._dirty = True
        # who was read last comes last, so that a file that never ends does not hold up the others
        waiting.sort(key=lambda item: item[0].quiet_since)
        self.stats.files = len(self._current) + len(self._moved)
        self.stats.unread_bytes = total
        return waiting

    def _leave(self, file: TailedFile, now: float) -> None:
        """The path leads elsewhere: read the rest of the file by its descriptor."""
        file.moved_at = now
        del self._current[file.path]
        self._moved.append(file)
        self.stats.rotations += 1

    def _on_cut(self, file: TailedFile) -> None:
        """A file was truncated; what was not read of it may stand in a copy beside it."""
        self.stats.truncations += 1
        self._follow_copy(file.position(), file.source)
        file.begin_anew()
        self._dirty = True

    def _say_gone(self, position: Position) -> None:
        """Rotated away and compressed while we were away: what was not read of it is not read any more."""
        self._say(
            f"{position.path} is another file than before, and that one is gone: what its rotated copies hold behind "
            f"byte {position.offset} was not read"
        )

    def _follow_copy(self, position: Position, source: int) -> bool:
        """Whether there is a copy."""
        path = find_copy(position)
        copy = self._opened(path, source) if path else None
        if copy is not None:
            copy.resume(position)
            copy.moved_at = copy.quiet_since = time.monotonic() - MOVED_S  # nobody writes to it
            self._moved.append(copy)
        return copy is not None

    # -- which files

    def _scan(self) -> None:
        """Find files that are new; at the first time also those that went elsewhere while we were away."""
        for number, source in enumerate(self._sources):
            for path in (path for pattern in source.settings.paths for path in sorted(glob.glob(pattern))):
                if path not in self._current and path not in self._refused and os.path.isfile(path):
                    self._awaited.pop(path, None)
                    self._open(path, number)
        if self._stored is not None:
            for position in self._stored:  # of paths that lead nowhere now, or elsewhere
                self._follow_moved(position)
            self._stored = []
        else:
            self._stored = []
            self._dirty = True

    def _follow_moved(self, position: Position) -> None:
        source = next(
            (i for i, s in enumerate(self._sources) if any(fnmatch(position.path, p) for p in s.settings.paths)), -1
        )
        if source < 0:
            return
        path = find_moved(position)
        if path is None:
            self._say_gone(position)
        file = self._opened(path, source) if path else None
        if file is None:
            return
        if any(file.identity == other.identity for other in self._files()):
            file.close()
            return
        file.resume(position)
        file.path = position.path
        file.moved_at = time.monotonic()
        self._moved.append(file)

    def _open(self, path: str, number: int) -> None:
        """Follow a file from where we were, from its end, or from its begin."""
        if path.endswith(COMPRESSED):
            self._refused.add(path)
            return
        if len(self._current) + len(self._moved) >= self._files_max:
            self._tally.add(Reason.OVERLOADED)
            self._say(f"more than {self._files_max} log files (nginx.files_max)")
            return
        file = self._opened(path, number)
        if file is None:
            return
        if any(file.identity == other.identity for other in self._files()):
            file.close()  # a rotated file that a glob matches too, or a second name
            return
        if self._stored is None and self._sources[number].settings.from_end:
            file.to_last_line()
        for position in [p for p in self._stored or () if (p.device, p.inode) == file.identity]:
            if file.continues(position):
                file.resume(position)
                self._stored = [p for p in self._stored or () if p is not position]
            elif position.path == path:  # truncated while we were away
                if not self._follow_copy(position, number):
                    self._say_gone(position)
                self._stored = [p for p in self._stored or () if p is not position]
        self._current[path] = file
        self._dirty = True

    def _opened(self, path: str, number: int) -> TailedFile | None:
        try:
            return TailedFile.open(path, number)
        except OSError as error:
            self._tally.add(Reason.FILE_UNREADABLE)
            self._say(f"cannot read {path}: {error}")
            return None

    # -- storing

    def _store(self, chunks: Sequence[Chunk]) -> None:
        """Append lines, wait until they are on disk, move the positions."""
        by_store: dict[int, list[Part]] = {}
        for chunk in chunks:
            source, file = self._sources[chunk.file.source], chunk.file
            site = source.settings.site_of(file.path)
            lines = read_lines(chunk.data, chunk.begin, file.last_ns, source.settings, site, self._countries)
            part = Part(chunk, lines, self._streams(file.source, lines))
            by_store.setdefault(id(source.store), []).append(part)
        for parts in by_store.values():
            self._append(self._sources[parts[0].chunk.file.source], parts)

    def _append(self, source: Source, parts: Sequence[Part]) -> None:
        keep = []
        refused = 0
        for chunk, lines, refs in parts:
            good = refs >= 0
            refused += int(np.count_nonzero(~good))
            if chunk.file.unsure:
                stored = already_stored(source.store, source.store.registry, lines, refs)
                chunk.file.unsure = bool(stored.any())
                good &= ~stored
            keep.append(good)
        if any(good.any() for good in keep):
            received = self._receiver.entries(source.store, source.settings.tenant, *spans_of(parts, keep))
            if received.future is not None:
                received.future.result()
            self.stats.lines += received.entries
        self._tally.add(Reason.SERIES_LIMIT, refused)
        for chunk, lines, _ in parts:
            self.stats.bytes += chunk.end - chunk.begin
            self.stats.replaced += lines.replaced
            chunk.file.advance(chunk.end, lines.last_ns)
        self._dirty = True

    def _streams(self, number: int, lines: Lines) -> NDArray[np.int64]:
        """Stream of each line, -1 = refused."""
        refs = np.array([self._stream(number, site) for site in lines.sites.texts], np.int64)
        return lines.sites.take(refs, -1)

    def _stream(self, number: int, site: str) -> int:
        source = self._sources[number]
        site = self._sites.bounded(site) if site else ""
        known = self._refs.get((number, site))
        if known is None:
            settings = source.settings
            try:
                known = source.store.resolve(Labels.of({**settings.labels, "site": site, "log": settings.log}))
            except LimitError as error:
                self._say(str(error))
                return -1
            if source.follow is not None:
                source.follow.assign(known, source.rule)
            self._refs[number, site] = known
        return known
