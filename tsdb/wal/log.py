"""The local write-ahead log: group commit, acknowledged = on the device (storage.md section 5, decisions 1-4)."""

from __future__ import annotations

import contextlib
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tsdb.disk import DiskGuard
from tsdb.errors import LogFailedError, OverloadedError
from tsdb.io import Files
from tsdb.wal.framing import Framer, Record
from tsdb.wal.promise import Promise
from tsdb.wal.replay import DamageReport, LogReader, Quarantine, ReplayedRecord
from tsdb.wal.segments import Segment, SegmentFolder

__all__ = [
    "QUEUE_BYTES_MAX",
    "SEGMENT_BYTES",
    "SYNC_BUCKETS_S",
    "LocalLog",
    "Log",
    "LogStats",
    "Operation",
    "Record",
    "ReplayedRecord",
    "SyncMode",
]

R = TypeVar("R", covariant=True)
T = TypeVar("T")

SEGMENT_BYTES = 64 << 20
QUEUE_BYTES_MAX = 256 << 20  # a second of very heavy ingest; what is queued is not acknowledged yet
QUEUE_OPS_MAX = 65_536
GROUP_BYTES_MAX = 8 << 20  # bounds the buffer of one write, and how long the first of a group waits for the last
RETRY_S = 5.0  # how long a failed log refuses before it tries the disk again
SYNC_BUCKETS_S = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5)


GATHER_S = 2e-3
"""How long what is queued may wait for those who are preparing: about what a sync takes."""
FOLLOW_S = 1e-2  # after which a follower looks whether anybody leads


class SyncMode(StrEnum):
    """When a write is acknowledged (decision 4)."""

    ALWAYS = "always"  # after fdatasync: nothing acknowledged is ever lost
    INTERVAL = "interval"  # after write; synced at least every interval: a power cut loses that much
    OFF = "off"  # after write; the kernel decides: only for tests and throw-away data


class Operation(Protocol[R]):
    """One thing to be logged, then done."""

    @property
    def n_bytes(self) -> int:
        """About how much memory it holds while it is queued."""
        ...

    def records(self, segment: int) -> Sequence[Record]:
        """What to log, dictionary records first; called on the committing thread just before writing.

        Dictionary numbers are known to a segment only after a record of it defined them. Called again with another
        segment when the first could not be written.
        """
        ...

    def apply(self, position: int) -> R:
        """Do it; called on the committing thread in log order, when the records are durable.

        ``position`` is that of the operation's last record.
        """
        ...


class Log(Protocol):
    """What a shard's writer needs of a log; a cluster's partitioned log is another one."""

    def submit(self, op: Operation[T]) -> Future[T]: ...

    def replay(self) -> Iterator[ReplayedRecord]: ...

    def free(self, is_published: Callable[[str, int, int, int], bool]) -> int: ...


@dataclass(slots=True)
class LogStats:
    """Counters since the start, read without a lock; ``sync_counts`` has one more bucket than SYNC_BUCKETS_S."""

    records: int = 0
    raw_bytes: int = 0
    written_bytes: int = 0
    groups: int = 0
    syncs: int = 0
    sync_failures: int = 0
    sync_seconds: float = 0.0
    sync_counts: list[int] = field(default_factory=lambda: [0] * (len(SYNC_BUCKETS_S) + 1))
    write_failures: int = 0
    segments: int = 0
    queued_ops: int = 0
    queued_bytes: int = 0
    failed: bool = False


Entry = tuple[Operation[Any], int, "Future[Any]"]


class _Follower:
    """A thread that waits for an operation, and commits when it is told to.

    Attributes
    ----------
    gate : held while the thread is to wait
    is_leader : it was let go to commit; the role is its own
    """

    __slots__ = ("future", "gate", "is_leader")

    def __init__(self, future: Future[Any]) -> None:
        self.future = future
        self.gate = threading.Lock()
        self.is_leader = False

    def let_go(self, _: Future[Any]) -> None:
        if not self.is_leader:  # who leads does not wait any more
            self.gate.release()


class Leader(threading.local):
    """Makes the submitting thread commit: ``with log.leader(): ... log.submit(op) ...``.

    At the end of the block the thread writes and syncs what is queued as one group, unless another thread is
    committing, after which a thread in :meth:`LocalLog.result` or the committer thread goes on with it. Futures
    resolve there, so nobody may wait for one inside the block. For threads that may wait for the disk, never for an
    event loop's.
    """

    depth = 0

    def __init__(self, commit: Callable[[], None]) -> None:
        self._commit = commit

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if not self.depth:
            self._commit()


class Gatherer:
    """Makes threads that prepare at the same time share one sync: ``with log.gatherer(): ... log.submit(op) ...``.

    A thread that leaves the block while others are inside leaves the commit to the last of them, for
    :data:`GATHER_S` at most: nobody ever waits for a submission that has not begun. A sync costs as much CPU as
    parsing a thousand samples.
    """

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._begin = begin
        self._end = end

    def __enter__(self) -> None:
        self._begin()

    def __exit__(self, *_: object) -> None:
        self._end()


class LocalLog:
    """Write-ahead log of one process.

    Construct, iterate :meth:`replay` to its end, :meth:`start`, :meth:`submit`, :meth:`close`. One thread at a time
    writes whatever is queued, syncs once, applies each operation in order and resolves its future; while it syncs
    the next group gathers, so it never sleeps to gather one. That is the thread that submitted, when it asked for
    it (:meth:`leader`) and nobody else commits: a hand-over to another thread costs two switches and as many waits
    for the interpreter. Otherwise it is the committer thread.

    Parameters
    ----------
    folder : of the segments; the caller holds the data folder's lock
    sync, interval_ms : when writes are acknowledged
    segment_bytes : size of a segment file; at seven eighths of it the next is begun
    queue_bytes_max, queue_ops_max : more than this is refused with OverloadedError
    guard : refuses submissions when the disk is nearly full
    quarantine : where damaged bytes go, default ``folder/quarantine``
    files : the disk
    retry_s : how long a failed log refuses before it tries again
    """

    def __init__(
        self,
        folder: Path,
        *,
        sync: SyncMode = SyncMode.ALWAYS,
        segment_bytes: int = SEGMENT_BYTES,
        interval_ms: int = 200,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
        queue_ops_max: int = QUEUE_OPS_MAX,
        guard: DiskGuard | None = None,
        quarantine: Path | None = None,
        files: Files | None = None,
        retry_s: float = RETRY_S,
    ) -> None:
        self._files = files or Files()
        self._folder = SegmentFolder(folder, segment_bytes, self._files)
        # A group still fits behind it, so that no write grows the file and meets ENOSPC.
        self._roll_bytes = segment_bytes - min(GROUP_BYTES_MAX, segment_bytes // 8)
        self._sync_mode = SyncMode(sync)
        self._interval_s = interval_ms / 1000
        self._queue_bytes_max = queue_bytes_max
        self._queue_ops_max = queue_ops_max
        self._guard = guard
        self._quarantine = Quarantine(quarantine or folder / "quarantine", self._files)
        self._retry_s = retry_s
        self._framer = Framer()
        self.stats = LogStats()

        self._closed_segments = self._folder.existing()  # oldest first; guarded by _segments_lock
        self._segments_lock = threading.Lock()
        self._next_segment = self._closed_segments[-1].number + 1 if self._closed_segments else 1
        self._reader = LogReader(list(self._closed_segments), self._quarantine)
        self._replayed = False

        # the committing thread's own
        self._segment: Segment | None = None
        self._position = 0  # last given to a record
        self._acknowledged = 0
        self._unsynced_since: float | None = None

        self._queue: deque[Entry] = deque()
        self._lock = threading.Lock()  # of the queue and the role
        self._wake = threading.Condition(self._lock)
        self._idle = False  # the committer thread waits
        self._committing = False  # some thread holds the role
        self._leader = Leader(self._lead)
        self._gatherer = Gatherer(self._begin_preparing, self._end_preparing)
        self._preparing = 0  # threads inside of it
        self._queued_since = 0.0  # when the oldest of the queue came
        self._followers: deque[_Follower] = deque()
        self._closing = False
        self._failed_until = 0.0
        self._thread: threading.Thread | None = None
        self._spare_wanted = threading.Event()
        self._stop_spares = threading.Event()
        self._spares_thread = threading.Thread(target=self._prepare_spares, name="log-spares", daemon=True)

    # -- start and end

    def replay(self) -> Iterator[ReplayedRecord]:
        """Every readable record in order, once, before :meth:`start`; damage is set aside and reported."""
        assert self._thread is None, "replay comes before start"
        yield from self._reader
        self._replayed = True

    @property
    def damage(self) -> list[DamageReport]:
        """What replay could not read."""
        return self._reader.damage

    @property
    def torn_tails(self) -> list[DamageReport]:
        """Unfinished last records found by replay: the ordinary trace of a crash, nothing acknowledged is in them."""
        return self._reader.torn

    def set_aside(self, record: ReplayedRecord, reason: str) -> None:
        """Keep a record that replay delivered and the store cannot apply (R4), and report it."""
        path = next(segment.path for segment in self._reader.segments if segment.number == record.segment)
        name = f"record-{record.segment:020d}-{record.position}"
        note = {**record._replace(body=b"")._asdict(), "body": f"{name}.bin", "reason": reason}
        kept = self._quarantine.put(name, record.body, note)
        self._reader.damage.append(
            DamageReport(
                str(path),
                record.offset,
                len(record.body),
                record.position,
                record.position,
                record.max_ms,
                record.max_ms,
                reason,
                kept,
            )
        )

    def start(self, first_position: int = 1) -> None:
        """Open a new segment, never the old tail (R6), and accept operations.

        Parameters
        ----------
        first_position : least position of a new record; the largest ``next_position`` of the manifests, so that
            records are not taken for published ones after the log's files were lost

        Raises
        ------
        LogFailedError        the disk does not give a segment
        """
        if not self._replayed:
            for _ in self.replay():
                pass
        self._position = max(self._reader.position, first_position - 1)
        self._acknowledged = self._position
        self._folder.trim(self._closed_segments)
        try:
            self._open_segment()
        except OSError as error:
            raise LogFailedError(f"cannot begin a log segment in {self._folder.path}: {error}") from error
        self._folder.reserve()
        self._thread = threading.Thread(target=self._run, name="log-committer", daemon=True)
        self._thread.start()
        self._spares_thread.start()

    def close(self) -> None:
        """Write what is queued, sync, stop."""
        with self._lock:
            self._closing = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._stop_spares.set()
            self._spare_wanted.set()
            self._spares_thread.join()

    # -- any thread

    def submit(self, op: Operation[T]) -> Future[T]:
        """Queue an operation.

        Returns
        -------
        Future        resolves to what ``op.apply`` returned, when the records are durable and applied

        Raises
        ------
        DiskFullError, OverloadedError, LogFailedError        nothing was queued
        """
        if self._guard is not None:
            self._guard.check()
        future: Promise[T] = Promise()
        n_bytes = op.n_bytes
        stats = self.stats
        with self._lock:
            if self._closing or self._thread is None:
                raise LogFailedError("the log is closed")
            if stats.failed and time.monotonic() < self._failed_until:
                raise LogFailedError("the write-ahead log cannot be written; it is tried again in a few seconds")
            if stats.queued_ops >= self._queue_ops_max or (
                stats.queued_bytes + n_bytes > self._queue_bytes_max and stats.queued_ops
            ):
                raise OverloadedError(f"{stats.queued_ops} writes wait for the log")
            if not self._queue:
                self._queued_since = time.monotonic()
            self._queue.append((op, n_bytes, future))
            stats.queued_ops += 1
            stats.queued_bytes += n_bytes
            if self._idle and not self._committing and not self._leader.depth:
                self._wake.notify()
        return future

    def free(self, is_published: Callable[[str, int, int, int], bool]) -> int:
        """Recycle the oldest segments that nobody needs any more.

        Parameters
        ----------
        is_published : (tenant, shard, max_ms, position) -> whether the shard's records up to ``position``, of which
            the newest sample is of ``max_ms`` (-2^63: none has samples), are kept elsewhere

        Returns
        -------
        int        segments freed; they go in order, so the log stays without gaps
        """
        with self._segments_lock:
            freed: list[Segment] = []
            for segment in self._closed_segments:
                if not all(is_published(*partition) for partition in segment.partitions.items()):
                    break
                freed.append(segment)
            del self._closed_segments[: len(freed)]
            self._folder.recycle(freed)
            self.stats.segments = len(self._closed_segments) + (self._segment is not None)
        return len(freed)

    def bytes_on_disk(self) -> int:
        """Space taken by segments and spares."""
        return self._folder.bytes_on_disk()

    def _prepare_spares(self) -> None:
        while not self._stop_spares.is_set():
            self._spare_wanted.wait()
            self._spare_wanted.clear()
            self._folder.refill(self._stop_spares)

    def leader(self) -> Leader:
        """A context whose thread commits, at its end, what it submitted inside; see :class:`Leader`."""
        return self._leader

    def gatherer(self) -> Gatherer:
        """A context as :meth:`leader`, of threads that call :meth:`result` behind it; see :class:`Gatherer`."""
        return self._gatherer

    def result(self, future: Future[T]) -> T:
        """Wait for an operation and commit meanwhile if it is this thread's turn: nobody needs to be woken for that.

        The thread that ends a group hands over to one that waits here for an operation of the next group.
        """
        if future.done():
            return future.result()
        follower = _Follower(future)
        with self._lock:
            if not future.done():
                self._followers.append(follower)
                follower.gate.acquire()
                future.add_done_callback(follower.let_go)
        while not follower.gate.acquire(timeout=FOLLOW_S):
            with self._lock:  # whom it waits for takes long to prepare
                if self._queue and not self._committing and not future.done():
                    self._committing = follower.is_leader = True
                    self._followers.remove(follower)
                    break
        if follower.is_leader:
            self._commit_group()
        return future.result()

    # -- committing, on the one thread that holds the role

    def _run(self) -> None:
        """The committer thread: commits whatever no submitting thread commits itself."""
        while self._await_role():
            self._commit_queue()
        if self._unsynced_since is not None:
            self._sync_late()
        segment = self._segment
        if segment is not None:
            with contextlib.suppress(OSError):
                self._files.truncate(segment.fd, segment.offset)
                if self._sync_mode is not SyncMode.OFF:
                    self._files.sync_data(segment.fd)
        self._abandon()

    def _await_role(self) -> bool:
        """Wait until something is to be done and nobody does it, and take the role; False when it is the end."""
        with self._lock:
            while True:
                timeout = None
                if not self._committing:
                    due = self._unsynced_since
                    timeout = None if due is None else due + self._interval_s - time.monotonic()
                    if self._queue or self._closing or (timeout is not None and timeout <= 0):
                        self._committing = True
                        return bool(self._queue) or not self._closing
                self._idle = True
                self._wake.wait(timeout)
                self._idle = False

    def _lead(self) -> None:
        """Commit one group on the calling thread, unless another one commits: it will see what was submitted."""
        with self._lock:
            if self._committing or not self._queue:
                return
            self._committing = True
        self._commit_group()

    def _begin_preparing(self) -> None:
        with self._lock:
            self._preparing += 1
        self._leader.depth += 1

    def _end_preparing(self) -> None:
        """Lead, unless others are about to submit: then the last of them does it for all."""
        self._leader.depth -= 1
        with self._lock:
            self._preparing -= 1
            if self._committing or not self._queue or self._is_gathering():
                return
            self._committing = True
        self._commit_group()

    def _is_gathering(self) -> bool:
        """Whether the queue may wait for those who are preparing; the lock is held."""
        return self._preparing > 0 and time.monotonic() - self._queued_since < GATHER_S

    def _commit_group(self) -> None:
        """Commit one group and hand the role over: a leader has its own caller to answer."""
        was_synced = self._unsynced_since is None
        try:
            self._commit()
        finally:
            with self._lock:
                is_left = bool(self._queue) and not self._is_gathering()
                if not is_left or not self._hand_over():
                    self._give_up_role()
                    is_due_later = was_synced and self._unsynced_since is not None
                    if self._idle and (is_left or self._closing or is_due_later):
                        self._wake.notify()

    def _hand_over(self) -> bool:
        """Make a thread that waits for a queued operation the next leader, if there is one; the lock is held."""
        while self._followers:
            follower = self._followers.popleft()
            if not follower.future.done():
                follower.is_leader = True
                follower.gate.release()
                return True
        return False

    def _commit_queue(self) -> None:
        """Commit group after group until nothing is queued, then give up the role."""
        try:
            while True:
                if self._queue:
                    self._commit()
                if self._unsynced_since is not None and time.monotonic() - self._unsynced_since >= self._interval_s:
                    self._sync_late()
                with self._lock:
                    if not self._queue:
                        return
        finally:
            with self._lock:
                self._give_up_role()

    def _give_up_role(self) -> None:
        """The lock is held. With an empty queue nobody waits any more for what was submitted."""
        self._committing = False
        if not self._queue:
            self._followers.clear()

    def _take(self) -> Entry | None:
        """The next operation whose caller still waits."""
        while self._queue:
            with self._lock:
                entry = self._queue.popleft()
                self.stats.queued_ops -= 1
                self.stats.queued_bytes -= entry[1]
            if entry[2].set_running_or_notify_cancel():
                return entry
        return None

    def _commit(self) -> None:
        """Write and sync one group, then apply it."""
        group: list[Entry] = []
        done: list[tuple[Entry, int]] = []
        for attempt in (1, 2):  # R7: a segment that failed once is dead, a new one gets one chance
            try:
                if self._segment is None or self._segment.offset >= self._roll_bytes:
                    self._roll()
                done = self._write(group)
                break
            except Exception as error:  # noqa: BLE001  # a fault of ours, too, must not leave callers waiting
                self._abandon()
                if attempt == 2:
                    self._fail(group, error)
                    return
        self.stats.failed = False
        self._acknowledged = self._position
        for (op, _, future), position in done:
            try:
                future.set_result(op.apply(position))
            except Exception as error:  # noqa: BLE001  # the operation's own fault is its caller's to see
                future.set_exception(error)

    def _write(self, group: list[Entry]) -> list[tuple[Entry, int]]:
        """Log the group, or what is queued when it is empty; (operation, position) of those that are durable."""
        segment = self._segment
        assert segment is not None
        parts: list[bytes] = []
        n_bytes = 0
        logged: list[tuple[str, int, int, int]] = []
        done: list[tuple[Entry, int]] = []
        waiting = deque(group)
        while n_bytes < GROUP_BYTES_MAX or waiting:
            if waiting:
                entry = waiting.popleft()
            elif (taken := self._take()) is not None:
                entry = taken
                group.append(entry)
            else:
                break
            try:
                records = entry[0].records(segment.number)
                frames = [self._framer.frame(r, segment.salt, self._position + i) for i, r in enumerate(records, 1)]
            except Exception as error:  # noqa: BLE001  # not logged, not applied; the others go on
                entry[2].set_exception(error)
                group.remove(entry)
                continue
            for record, frame in zip(records, frames, strict=True):
                self._position += 1
                parts.extend(frame)
                n_bytes += len(frame[0]) + len(frame[1]) + len(frame[2])
                self.stats.raw_bytes += len(record.body)
                logged.append((record.tenant, record.shard, record.max_ms, self._position))
            done.append((entry, self._position))
        if n_bytes:
            try:
                self._files.write_at(segment.fd, b"".join(parts), segment.offset)
            except OSError:
                self.stats.write_failures += 1
                raise
            segment.offset += n_bytes
            if self._sync_mode is SyncMode.ALWAYS:
                self._sync(segment)
            elif self._sync_mode is SyncMode.INTERVAL and self._unsynced_since is None:
                self._unsynced_since = time.monotonic()
            for partition in logged:
                segment.partitions.add(*partition)
            self.stats.groups += 1
            self.stats.records += len(logged)
            self.stats.written_bytes += n_bytes
        return done

    def _sync(self, segment: Segment) -> None:
        begin = time.perf_counter()
        try:
            self._files.sync_data(segment.fd)
        except OSError:
            self.stats.sync_failures += 1
            raise
        took = time.perf_counter() - begin
        self.stats.syncs += 1
        self.stats.sync_seconds += took
        self.stats.sync_counts[bisect_left(SYNC_BUCKETS_S, took)] += 1

    def _sync_late(self) -> None:
        """Sync what was acknowledged before (mode ``interval``); its loss bound is the mode's, so only go on."""
        self._unsynced_since = None
        if self._segment is not None:
            try:
                self._sync(self._segment)
            except OSError:
                self._abandon()

    def _is_roll_due(self) -> bool:
        """Whether the segment is full, or was begun in a hurry and a better file is ready now."""
        segment = self._segment
        if segment is None or segment.offset >= self._folder.segment_bytes:
            return True
        return not segment.is_written and self._folder.has_written_spare

    def _roll(self) -> None:
        """Close the full segment and begin the next."""
        segment = self._segment
        if segment is not None:
            if self._unsynced_since is not None:
                self._sync_late()
            self._abandon()
        self._open_segment()

    def _open_segment(self) -> None:
        number = self._next_segment
        self._next_segment += 1
        segment = self._folder.open_next(number, self._position + 1, self._acknowledged)
        with self._segments_lock:
            self._segment = segment
            self.stats.segments = len(self._closed_segments) + 1
        self._spare_wanted.set()

    def _abandon(self) -> None:
        """Stop writing to the current segment; it stays in the log."""
        segment = self._segment
        if segment is None:
            return
        with contextlib.suppress(OSError):
            self._files.close(segment.fd)
        segment.fd = -1
        with self._segments_lock:
            self._closed_segments.append(segment)
            self._segment = None

    def _fail(self, group: list[Entry], error: Exception) -> None:
        """Refuse what was taken and what is queued; nothing of it was acknowledged."""
        with self._lock:
            self.stats.failed = True
            self._failed_until = time.monotonic() + self._retry_s
        failure = LogFailedError(f"the write-ahead log cannot be written: {error}")
        while (entry := self._take()) is not None:
            group.append(entry)
        for _, _, future in group:
            future.set_exception(failure)
