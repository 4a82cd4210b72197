"""The log store of one tenant: buffers of the newest rows in front of immutable parts, behind the process' one log.

A push is logged, synced, and then appended to the newest buffer on the log's committer thread. A full buffer is sealed
and becomes a part; the manifest generation that names the part is the commit, then the buffer goes and the log may
forget its records.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tsdb.blockstore import BlockStore
from tsdb.disk import DiskGuard
from tsdb.errors import CorruptionError, LimitError, OverloadedError, Reason
from tsdb.index.registry import SeriesRegistry
from tsdb.labels import Labels
from tsdb.limits import SeriesLimits
from tsdb.logs.batch import LogBatch, decode_rows
from tsdb.logs.buffer import BATCH_BYTES_MAX, BATCH_ROWS_MAX, LINE_BYTES_FULL, ROWS_FULL, Buffer
from tsdb.logs.deletions import DELETIONS_MAX, Deletion, Eraser, decode_deletion, encode_cancel, encode_deletion
from tsdb.logs.frame import gather
from tsdb.logs.operations import LOG_SHARD, AppendOperation, DeleteOperation
from tsdb.logs.part import Part, Rows, write_part
from tsdb.logs.reads import LogReads
from tsdb.logs.repeats import Repeats
from tsdb.logs.rows import join_texts
from tsdb.logs.select import Selection, View, part_without
from tsdb.logs.settings import Follower, LogLimits, LogStoreStats
from tsdb.manifest import ManifestStore
from tsdb.matchers import Matcher, MatchOp
from tsdb.wal.framing import Record
from tsdb.wal.log import LocalLog
from tsdb.wal.records import Kind, decode_series, encode_series
from tsdb.wal.step import Step

log = logging.getLogger(__name__)

SEALED_MAX = 2
"""Full buffers that may wait to become parts; further pushes wait, then are told to come again."""

WAIT_S = 5.0
COMPACT_PARTS_MIN = 4
MIN_MS = MIN_NS = -(1 << 63)
MAX_NS = (1 << 63) - 1


class _Replaying:
    """Numbers of the streams in the segment that is being replayed."""

    def __init__(self) -> None:
        self.segment = -1
        self.refs: dict[int, int] = {}


class LogStore(LogReads):
    """All log streams of one tenant.

    Parameters
    ----------
    name : of the tenant
    on_full : called when a buffer waits to become a part (by :meth:`maintain`)
    """

    def __init__(
        self,
        name: str,
        store: BlockStore,
        log: LocalLog,
        disk: DiskGuard,
        limits: LogLimits | None = None,
        on_full: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.limits = limits or LogLimits()
        self.registry = SeriesRegistry(SeriesLimits(active_series_max=self.limits.streams_max))
        self._store = store
        self._log = log
        self._disk = disk
        self._on_full = on_full
        self._prefix = f"tenants/{name}/logs"
        self._manifests = ManifestStore(store, self._prefix, 1)
        self.manifest = self._manifests.load()
        self.damage: list[str] = []
        for damage in self._manifests.damage:
            self._report(damage)
        if self.damage:
            self._report(
                f"requests to delete rows are those of manifest generation {self.manifest.generation} and the log"
            )
        # Buffers and parts that hold each row once: replaced as a whole, so that a reader needs no lock. The newest
        # buffer is the last and the only one written.
        parts = self._open_parts()
        self._deletions = tuple(Deletion.of_json(fields) for fields in self.manifest.deletions)
        self._view = View((Buffer(self.manifest.next_position - 1),), tuple(parts))
        self._repeats = Repeats(self.registry, self._report)
        for part in parts:
            self._repeats.saw(part.runs.ref, part.runs.max_ns)
        self._changed = threading.Condition()
        self._maintaining = threading.Lock()
        self._logged: NDArray[np.int64] = np.zeros(1024, np.int64)  # segment + 1 in which a stream was defined last
        self._replaying = _Replaying()
        self.follower: Follower | None = None
        self.entries_appended = 0
        self.repeated = 0
        self.flushes = 0
        self.compactions = 0

    def _open_parts(self) -> list[Part]:
        parts = []
        for meta in self.manifest.blocks:
            try:
                parts.append(Part(self._store, meta, self.registry))
            except (CorruptionError, FileNotFoundError) as error:
                self._report(f"log part {meta.key} cannot be opened: {error}")
        return parts

    @property
    def first_position(self) -> int:
        """Least position of a new record: above what manifests have published and, were they lost, what parts hold."""
        return max(self.manifest.next_position, *(part.position + 1 for part in self._view.parts), 0)

    def _report(self, damage: str) -> None:
        """Tell of damage once, however often it is met."""
        if damage not in self.damage:
            self.damage.append(damage)
            log.error("damage: log store of %s: %s", self.name, damage)

    # -- writing

    def resolve(self, labels: Labels) -> int:
        """Number of a stream, made if it is new; what its labels may be is the receiver's business.

        Raises
        ------
        LimitError        the tenant has its most streams
        """
        if len(self.registry) >= self.limits.streams_max and not self._is_known(labels):
            raise LimitError(
                Reason.SERIES_LIMIT,
                f"the tenant has {self.limits.streams_max:,} log streams, the limit is (limits.logs.streams_max)",
            )
        canonical = np.frombuffer(labels.canonical, np.uint8)
        return int(self.registry.adopt(canonical, np.array([0, len(canonical)], np.int64))[0])

    def _is_known(self, labels: Labels) -> bool:
        found = self.registry.find([Matcher(name, MatchOp.EQUAL, value) for name, value in labels.pairs])
        return len(labels.pairs) in [len(self.registry.label_names(found[i : i + 1])) for i in range(len(found))]

    def append(self, batch: LogBatch) -> Future[int]:
        """Log a batch and append it; the future is the number of entries that were not there already.

        It resolves after the records are on disk and the entries are readable. Waits a few seconds where full buffers
        wait to become parts.

        Raises
        ------
        DiskFullError, OverloadedError, LogFailedError        nothing of the batch was kept
        """
        assert len(batch) <= BATCH_ROWS_MAX, "the receiver bounds a batch"
        assert int(batch.line_offsets[-1] + batch.meta_offsets[-1]) <= BATCH_BYTES_MAX, "the receiver bounds a batch"
        self._disk.check()
        if len(self._view.buffers) > SEALED_MAX:
            with self._changed:
                if not self._changed.wait_for(lambda: len(self._view.buffers) <= SEALED_MAX, WAIT_S):
                    raise OverloadedError("log buffers wait to be written to disk")
        if self.follower and not self.follower.wait(WAIT_S):
            raise OverloadedError("log entries wait to be counted")
        return self._log.submit(AppendOperation(self, batch))

    def stream_records(self, refs: NDArray[np.uint32], segment: int) -> list[Record]:
        """The STREAM record of those streams that a log segment does not define yet, if any (committer thread)."""
        if len(self.registry) > len(self._logged):
            grown = np.zeros(max(len(self.registry), 2 * len(self._logged)), np.int64)
            grown[: len(self._logged)] = self._logged
            self._logged = grown
        new = np.unique(refs[self._logged[refs] != segment + 1])
        if not len(new):
            return []
        self._logged[new] = segment + 1
        labels, offsets = self.registry.canonical(new)
        return [Record(Kind.STREAM, self.name, LOG_SHARD, encode_series(new, labels, offsets), MIN_MS)]

    def apply(self, batch: LogBatch, position: int) -> int:
        """Append a logged batch (committer thread, or the replay)."""
        if self._view.buffers[-1].is_full:
            self._seal()
            self._on_full()
        deletions = self._deletions  # before the view, as of reads
        view = self._view
        buffer = view.buffers[-1]
        before = buffer.count
        stored = self._repeats.stored(batch, view, deletions, position)
        added = buffer.append(batch if stored is None else _keep(batch, ~stored), position)
        if added and self.follower:
            self.follower.take(buffer, before, before + added)
        self.entries_appended += added
        self.repeated += len(batch) - added
        return added

    # -- deleting

    def deletions(self) -> tuple[Deletion, ...]:
        """All requests that are kept, in the order they came."""
        return self._deletions

    def delete(self, deletion: Deletion) -> Future[None]:
        """Delete rows: when the future resolves the request is on disk and reads leave the rows out.

        Raises
        ------
        LimitError        too many requests are waiting to be carried out
        DiskFullError, OverloadedError, LogFailedError        nothing was kept
        """
        if sum(not known.processed for known in self._deletions) >= DELETIONS_MAX:
            raise LimitError(Reason.DELETE_LIMIT, f"{DELETIONS_MAX:,} delete requests wait to be carried out")
        self._disk.check()
        body = encode_deletion(deletion)
        apply = partial(self._begin_deletion, deletion)
        return self._log.submit(DeleteOperation(self.name, body, deletion.created_ms, apply))

    def cancel(self, request_id: str, now_ms: int) -> Future[None]:
        """Take a request back that was not carried out; the future is as that of :meth:`delete`."""
        apply = partial(self._end_deletion, request_id)
        return self._log.submit(DeleteOperation(self.name, encode_cancel(request_id), now_ms, apply))

    def _begin_deletion(self, deletion: Deletion, position: int) -> None:
        """A request is in force: rows from here on are none of its business (committer thread, or the replay)."""
        with self._changed:
            self._begin_buffer(position)
            if all(known.request_id != deletion.request_id for known in self._deletions):
                history = self._deletions
                while len(history) >= 2 * DELETIONS_MAX:  # the oldest that is done goes
                    oldest = next(known for known in history if known.processed)
                    history = tuple(known for known in history if known is not oldest)
                self._deletions = (*history, replace(deletion, position=position))
        if len(self._view.buffers) > 1:
            self._on_full()

    def _end_deletion(self, request_id: str, position: int) -> None:  # noqa: ARG002
        with self._changed:
            self._deletions = tuple(
                known for known in self._deletions if known.request_id != request_id or known.processed
            )

    def _carry_out_deletions(self) -> None:
        """Write parts anew without the rows of requests that can no longer be taken back."""
        latest_ms = time.time() * 1000 - 1000 * self.limits.cancel_s
        due = [known for known in self._deletions if not known.processed and known.created_ms <= latest_ms]
        if not due:
            return
        parts: list[Part] = []
        gone: list[Part] = []
        for part in self._view.parts:
            wanted = np.ones(len(self.registry), np.uint8)
            try:
                rest = part_without(part, Eraser(due, self.registry, wanted, MIN_NS, MAX_NS), self.registry)
            except CorruptionError as error:  # reads go on leaving out what they can read of it
                self._report(f"rows cannot be deleted from log part {part.meta.key}: {error}")
                return
            if rest is None:
                parts.append(part)
                continue
            gone.append(part)
            if len(rest.refs):
                key = f"{part.meta.key}-{self.manifest.generation}"
                parts.append(Part(self._store, write_part(self._store, key, rest, self.registry), self.registry))
        self._commit(tuple(parts), processed=frozenset(known.request_id for known in due))
        for part in gone:
            self._store.delete(part.meta.key)

    # -- replay

    def replay_deletion(self, body: bytes, position: int) -> None:
        """Take over a LOG_DELETE record that no manifest knows yet."""
        if position < self.manifest.next_position:
            return
        request = decode_deletion(body)
        if isinstance(request, str):
            self._end_deletion(request, position)
            return
        self._begin_deletion(request, position)
        if len(self._view.buffers) > 1:
            self._flush_oldest()

    def replay_streams(self, body: bytes, segment: int) -> None:
        """Take over a STREAM record."""
        state = self._replaying
        if state.segment != segment:
            state.segment, state.refs = segment, {}
        refs, labels, offsets = decode_series(body)
        state.refs.update(zip(refs.tolist(), self.registry.adopt(labels, offsets).tolist(), strict=True))

    def replay_rows(self, body: bytes, segment: int, position: int) -> int:
        """Take over a LOG_ROWS record that is in no part yet; the rows whose STREAM record is lost."""
        if position < self.manifest.next_position:
            return 0
        batch = decode_rows(body)
        state = self._replaying
        known = state.refs if state.segment == segment else {}
        distinct, inverse = np.unique(batch.refs, return_inverse=True)
        mapped = np.array([known.get(ref, -1) for ref in distinct.tolist()], np.int64)[inverse]
        lost = int(np.count_nonzero(mapped < 0))
        if lost:
            keep = mapped >= 0
            batch, mapped = _keep(batch, keep), mapped[keep]
        if len(mapped):
            self.apply(replace(batch, refs=mapped.astype(np.uint32)), position)
        if len(self._view.buffers) > 1:
            self._flush_oldest()
        return lost

    # -- maintenance

    def maintain(self) -> None:
        """Turn full and old buffers into parts, join small parts, drop what is past retention."""
        with self._maintaining:
            while len(self._view.buffers) > 1:
                self._flush_oldest()
            newest = self._view.buffers[-1]
            if newest.count and time.monotonic() - newest.born > self.limits.idle_flush_s:
                self._flush_all()
            elif not newest.count and newest.after >= self.manifest.next_position:  # a request behind all rows
                self._commit(self._view.parts)
            self._carry_out_deletions()
            self._compact()
            self._enforce_retention()

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Keep the files of parts and manifests as they are; pushes go on until the buffers are full."""
        with self._maintaining:
            yield

    def flush(self) -> None:
        """Turn everything into parts now."""
        with self._maintaining:
            self._flush_all()

    def _flush_all(self) -> None:
        if self._view.buffers[-1].count:
            self._log.submit(Step(self._seal)).result()
        while len(self._view.buffers) > 1:
            self._flush_oldest()

    def _seal(self) -> None:
        """Begin a new buffer; between two appends."""
        newest = self._view.buffers[-1]
        if newest.count:
            with self._changed:
                self._begin_buffer(newest.position)

    def _begin_buffer(self, after: int) -> None:
        """The newest buffer takes no more (and goes if it has nothing); what comes now is after a log position."""
        buffers = self._view.buffers
        newest = buffers[-1]
        self._repeats.saw(newest.refs(), newest.ts_ns())
        self._view = View((*(buffers if newest.count else buffers[:-1]), Buffer(after)), self._view.parts)

    def _flush_oldest(self) -> None:
        """Write the oldest buffer as a part, commit, let go of it."""
        buffer = self._view.buffers[0]
        rows = Rows(buffer.refs(), buffer.ts_ns(), buffer.lines(), buffer.metadata(), buffer.levels())
        meta = write_part(self._store, f"{self._prefix}/block-{buffer.position:020d}", rows, self.registry)
        part = Part(self._store, meta, self.registry)
        self._commit((*self._view.parts, part), flushed=1)
        self.flushes += 1

    def _commit(self, parts: tuple[Part, ...], *, flushed: int = 0, processed: frozenset[str] = frozenset()) -> None:
        """Make a list of parts live, on disk first; ``flushed`` buffers go, and requests are done, in the same moment.

        Of the log all is done that the buffers left are after, also where a request found a buffer without rows: what
        was repeated there must not come back by a replay once the request has been carried out.
        """
        with self._changed:
            done, deletions = self._view.buffers[flushed].after + 1, _marked(self._deletions, processed)
        opened = {part.meta.key for part in self._view.parts}
        unreadable = [meta for meta in self.manifest.blocks if meta.key not in opened]  # they stay listed
        manifest = self._manifests.commit(
            replace(
                self.manifest,
                generation=self.manifest.generation + 1,
                blocks=(*(part.meta for part in parts), *unreadable),
                next_position=max(self.manifest.next_position, done),
                deletions=tuple(known.to_json() for known in deletions),
            )
        )
        if {known["request_id"] for known in self.manifest.deletions} != {known.request_id for known in deletions}:
            # Parts tell of themselves, requests do not, and the log lets go of them now: both generations that are
            # kept hold them, so that damage to one neither forgets a request nor brings back one that was taken back.
            manifest = self._manifests.commit(replace(manifest, generation=manifest.generation + 1))
        self.manifest = manifest
        with self._changed:
            self._view = View(self._view.buffers[flushed:], parts)
            self._deletions = _marked(self._deletions, processed)  # after the view: until then the old parts are read
            self._changed.notify_all()

    def _compact(self) -> None:
        """Join neighbouring small parts, newest positions last.

        Parts on two sides of a request to delete stay apart until it is carried out.
        """
        borders = [known.position for known in self._deletions if not known.processed]
        run: list[Part] = []
        for part in [*self._view.parts, None]:
            total = sum(p.meta.samples for p in run)
            size = sum(int(p.runs.bytes.sum()) for p in run)
            if (
                part is not None
                and not any(run and run[-1].position < border <= part.position for border in borders)
                and total + part.meta.samples <= ROWS_FULL
                and size + int(part.runs.bytes.sum()) <= LINE_BYTES_FULL
            ):
                run.append(part)
                continue
            if len(run) >= COMPACT_PARTS_MIN:
                try:
                    self._join(run)
                except CorruptionError as error:  # they stay as they are: reads go on with what they can read
                    self._report(f"log parts up to {run[-1].meta.key} cannot be joined: {error}")
            run = [part] if part is not None else []

    def _join(self, run: list[Part]) -> None:
        pieces = [part.all_rows() for part in run]
        rows = Rows(
            np.concatenate([p.refs for p in pieces]),
            np.concatenate([p.ts_ns for p in pieces]),
            join_texts([p.lines for p in pieces]),
            join_texts([p.metadata for p in pieces]),
            np.concatenate([p.levels for p in pieces]),
        )
        whole = _buffer_of(rows)  # drops what was pushed twice
        rows = Rows(whole.refs(), whole.ts_ns(), whole.lines(), whole.metadata(), whole.levels())
        key = f"{run[-1].meta.key}-{self.manifest.generation}"
        meta = write_part(self._store, key, rows, self.registry)
        parts = self._view.parts
        at = parts.index(run[0])
        self._commit((*parts[:at], Part(self._store, meta, self.registry), *parts[at + len(run) :]))
        for part in run:
            self._store.delete(part.meta.key)
        self.compactions += 1

    def _enforce_retention(self) -> None:
        parts = self._view.parts
        if not self.limits.retention_ms or not parts:
            return
        floor = max(part.meta.max_ms for part in parts) - self.limits.retention_ms
        old = [part for part in parts if part.meta.max_ms < floor]
        if old:
            self._commit(tuple(part for part in parts if part.meta.max_ms >= floor))
            for part in old:
                self._store.delete(part.meta.key)

    # -- reading

    def _selection(self, matchers: Sequence[Matcher], start_ns: int, end_ns: int) -> Selection:
        deletions = self._deletions  # before the view: what is newer than a request must not be held against it
        return Selection(self._view, self.registry, deletions, matchers, start_ns, end_ns)

    def store_stats(self) -> LogStoreStats:
        """Counters."""
        buffers, parts = self._view
        return LogStoreStats(
            streams=len(self.registry),
            entries_appended=self.entries_appended,
            repeated=self.repeated,
            buffered_entries=sum(b.count for b in buffers),
            buffered_bytes=sum(b.line_bytes + b.meta_bytes for b in buffers),
            parts=len(parts),
            part_bytes=sum(p.meta.bytes for p in parts),
            part_entries=sum(p.meta.samples for p in parts),
            flushes=self.flushes,
            compactions=self.compactions,
        )


def _marked(deletions: tuple[Deletion, ...], processed: frozenset[str]) -> tuple[Deletion, ...]:
    """Requests, of which some have been carried out."""
    return tuple(replace(known, processed=True) if known.request_id in processed else known for known in deletions)


def _buffer_of(rows: Rows) -> Buffer:
    """Rows of parts, each once."""
    buffer = Buffer()
    buffer.append(LogBatch(rows.refs, rows.ts_ns, *rows.lines[::-1], *rows.metadata[::-1], rows.levels), 0)
    return buffer


def _keep(batch: LogBatch, keep: NDArray[np.bool_]) -> LogBatch:
    """Some rows of a batch."""
    rows = np.flatnonzero(keep)
    lines = gather(batch.line_bytes, batch.line_offsets[rows], np.diff(batch.line_offsets)[rows])
    meta = gather(batch.meta_bytes, batch.meta_offsets[rows], np.diff(batch.meta_offsets)[rows])
    return LogBatch(
        batch.refs[rows], batch.ts_ns[rows], lines.offsets, lines.data, meta.offsets, meta.data, batch.levels[rows]
    )
