"""From stored log lines to samples: counters of nginx' lines, however they came in.

A :class:`Deriver` follows a tenant's log store. It sees each entry once, after it is on disk: what a sender repeats is
not counted again. Counting runs on a thread of its own; a store whose deriver is behind makes senders wait.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ingest.nginx.columns import Columns, LineFormat
from ingest.nginx.counters import BUCKETS_S, Counters, Table
from ingest.nginx.error_log import parse_error
from ingest.nginx.sites import SiteNames
from ingest.store import Metadata, Tenant
from tsdb.batch import STALE_BITS, SampleBatch
from tsdb.clock import Clock
from tsdb.errors import Reason, RejectedError, UnavailableError
from tsdb.index.registry import SeriesRegistry
from tsdb.logs.buffer import Buffer
from tsdb.logs.frame import Texts, gather
from tsdb.matchers import Matcher
from tsdb.tally import Tally

log = logging.getLogger(__name__)

PENDING_ROWS_MAX = 1 << 20
"""Entries that may wait to be counted, about a second of the fastest sender."""

BATCH_ROWS = 1 << 15
"""Entries counted at once."""

ACCESS_ROLES = (
    "status", "bytes", "request_time", "upstream_addr", "upstream_status", "upstream_response_time",
    "upstream_connect_time",
)  # fmt: skip

METADATA = tuple(
    Metadata(name, kind, text, "")
    for name, kind, text in (
        ("nginx_requests_total", "counter", "Requests by status class, from access lines"),
        ("nginx_response_bytes_total", "counter", "Bytes of response bodies"),
        ("nginx_request_time_seconds", "histogram", "Time from the first byte of a request to the last of its answer"),
        ("nginx_upstream_requests_total", "counter", "Attempts at an endpoint by status class"),
        ("nginx_upstream_connect_failures_total", "counter", "Attempts that found no connection"),
        ("nginx_upstream_response_time_seconds", "histogram", "Time of one attempt"),
        ("nginx_upstream_no_live_total", "counter", "Requests for a group of which no server was alive"),
        ("nginx_error_log_lines_total", "counter", "Lines of error logs by level"),
        ("nginx_upstream_error_log_lines_total", "counter", "Lines of error logs that blame an endpoint"),
    )
)


@dataclass(frozen=True, slots=True)
class Rule:
    """How the lines of some streams are read.

    Attributes
    ----------
    matchers : which pushed streams; followed files name their streams themselves
    format : of access lines; None = error log
    by_line : the site is told by each line, if the stream has no label ``site``
    """

    format: LineFormat | None
    matchers: tuple[Matcher, ...] = ()
    by_line: bool = False


@dataclass(frozen=True, slots=True)
class DeriveSettings:
    """How counters become samples.

    Attributes
    ----------
    interval_ms : between two samples of a counter
    stale_ms : a row that has not grown for this long is given up
    sites_max : most values of ``site`` that lines may bring; the rest is counted as ``other``
    """

    rules: Sequence[Rule] = ()
    interval_ms: int = 5000
    stale_ms: int = 3_600_000
    bounds: Sequence[float] = BUCKETS_S
    series_max: int = 500_000
    sites_max: int = 1000


@dataclass(slots=True)
class DeriveStats:
    """Totals since the start, for ``/metrics``."""

    lines: int = 0
    unparsed: int = 0
    writes: int = 0
    busy: int = 0


class Streams(Protocol):
    """The log store that is followed."""

    @property
    def registry(self) -> SeriesRegistry: ...


@dataclass(slots=True)
class _Known:
    """What is known of the streams, by their number; -1 = not looked at yet, -2 = not ours."""

    rule: NDArray[np.int64] = field(default_factory=lambda: np.full(64, -1, np.int64))
    place: NDArray[np.int64] = field(default_factory=lambda: np.full(64, -1, np.int64))

    def fit(self, streams: int) -> None:
        while streams > len(self.rule):
            self.rule = np.concatenate((self.rule, np.full_like(self.rule, -1)))
            self.place = np.concatenate((self.place, np.full_like(self.place, -1)))


class Deriver:
    """Counts a tenant's lines and writes the counters as samples of the same tenant.

    Parameters
    ----------
    tenant : where samples go
    streams : the tenant's log store
    clock, tally : times of samples; counts of what was refused
    """

    def __init__(self, tenant: Tenant, streams: Streams, settings: DeriveSettings, clock: Clock, tally: Tally) -> None:
        self.stats = DeriveStats()
        self._tenant = tenant
        self._streams = streams
        self._settings = settings
        self._clock = clock
        self._tally = tally
        self._rules: list[Rule] = list(settings.rules)
        self._known = _Known()
        self._streams_lock = threading.Lock()
        self._keys: list[tuple[str, str, str]] = []
        self._key_numbers: dict[tuple[str, str, str], int] = {}
        self._sites = SiteNames(settings.sites_max, tally)
        self._counters = Counters(settings.bounds, settings.series_max)
        self._series = [TableSeries(table, tenant.registry, tally) for table in self._counters.tables]
        self._started_ms = clock.now_ms()
        self._pending: deque[tuple[Buffer, int, int]] = deque()
        self._rows = 0
        self._changed = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None

    # -- following the store

    def take(self, buffer: Buffer, first: int, last: int) -> None:
        """See :class:`tsdb.logs.store.Follower`."""
        with self._changed:
            self._pending.append((buffer, first, last))
            self._rows += last - first
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """See :class:`tsdb.logs.store.Follower`."""
        if self._rows <= PENDING_ROWS_MAX:
            return True
        with self._changed:
            return self._changed.wait_for(lambda: self._rows <= PENDING_ROWS_MAX or self._stopped, seconds)

    def add_rule(self, rule: Rule) -> int:
        """A rule for streams that :meth:`assign` names; its number. Before :meth:`start`."""
        self._rules.append(rule)
        return len(self._rules) - 1

    def assign(self, ref: int, rule: int) -> None:
        """The lines of a stream are read by that rule, whatever its labels match. Before its first line."""
        with self._streams_lock:
            self._known.fit(ref + 1)
            self._known.rule[ref] = rule

    @property
    def pushed(self) -> Sequence[Rule]:
        """Rules of pushed streams, by their numbers."""
        return self._settings.rules

    def pushed_rules(self, refs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of ``pushed`` holds for each stream, -1 = none. On any thread."""
        unique = np.unique(refs)
        with self._streams_lock:
            self._known.fit(int(unique[-1]) + 1)
            self._find_rules(unique)
            rules = self._known.rule[refs]
        return np.where(rules < len(self._settings.rules), rules, -1)

    def start(self) -> None:
        """Begin to count."""
        self._tenant.put_metadata(METADATA)
        self._thread = threading.Thread(target=self._run, name="nginx-derive", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Count what is there, write it, end. No stale markers: a quick restart leaves no gap."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        interval_ms = self._settings.interval_ms
        due_ms = self._clock.now_ms() // interval_ms * interval_ms + interval_ms
        while True:
            with self._changed:
                left_s = (due_ms - self._clock.now_ms()) / 1000
                if not self._pending and not self._stopped and left_s > 0:
                    self._changed.wait(left_s)
                item = self._pending.popleft() if self._pending else None
                stopped = self._stopped
            try:
                if item is not None:
                    self.count(*item)
                now_ms = self._clock.now_ms()
                if now_ms >= due_ms or (stopped and item is None):
                    self.write(now_ms if stopped else now_ms // interval_ms * interval_ms)
                    due_ms = now_ms // interval_ms * interval_ms + interval_ms
            except Exception:
                log.exception("nginx lines were not counted")
            finally:
                if item is not None:
                    with self._changed:
                        self._rows -= item[2] - item[1]
                        self._changed.notify_all()
            if stopped and item is None:
                return

    # -- counting

    def count_pending(self) -> None:
        """Count everything that waits, on the caller's thread: for those who do not :meth:`start`."""
        while self._pending:
            buffer, first, last = self._pending.popleft()
            self._rows -= last - first
            self.count(buffer, first, last)

    def count(self, buffer: Buffer, first: int, last: int) -> None:
        """Count rows of a buffer."""
        refs, lines = buffer.refs()[first:last], buffer.lines()
        self._look_up(np.unique(refs))
        rules = self._known.rule[refs]
        for number in np.unique(rules).tolist():
            if number < 0:
                continue
            rows = np.flatnonzero(rules == number)
            for begin in range(0, len(rows), BATCH_ROWS):
                some = rows[begin : begin + BATCH_ROWS]
                self._count(self._rules[number], refs[some], _texts(lines, first + some))

    def _look_up(self, refs: NDArray[np.uint32]) -> None:
        """Rule and place of streams that are new to us."""
        if not len(refs):
            return
        with self._streams_lock:  # :meth:`assign` may replace the arrays meanwhile
            self._known.fit(int(refs[-1]) + 1)
            new = refs[self._known.place[refs] == -1]
            if not len(new):
                return
            self._find_rules(new)
            labels = self._streams.registry.label_table(np.ascontiguousarray(new))
            for i, ref in enumerate(new.tolist()):
                own = labels.labels(i)
                self._known.place[ref] = self._place(own.get("site", ""), own.get("env", ""), own.get("host", ""))

    def _find_rules(self, refs: NDArray[np.integer[Any]]) -> None:
        """Rules of streams that are new to us; under the lock."""
        new = np.ascontiguousarray(refs[self._known.rule[refs] == -1], np.uint32)
        if len(new):
            labels = self._streams.registry.label_table(new)
            for i, ref in enumerate(new.tolist()):
                self._known.rule[ref] = self._rule_of(labels.labels(i))

    def _rule_of(self, labels: Mapping[str, str]) -> int:
        for number, rule in enumerate(self._settings.rules):
            if rule.matchers and all(matcher.matches(labels.get(matcher.name, "")) for matcher in rule.matchers):
                return number
        return -2

    def _place(self, *key: str) -> int:
        site, env, host = key
        number = self._key_numbers.setdefault((site, env, host), len(self._keys))
        if number == len(self._keys):
            self._keys.append((site, env, host))
        return number

    def _count(self, rule: Rule, refs: NDArray[np.uint32], lines: Texts) -> None:
        now_ms = self._clock.now_ms()
        place = self._known.place[refs]
        self.stats.lines += len(refs)
        if rule.format is None:
            parsed = [parse_error(lines.text(i)) for i in range(len(refs))]
            good = [i for i, line in enumerate(parsed) if line is not None]
            found = [line for line in parsed if line is not None]
            keys = []
            for i, line in zip(good, found, strict=True):
                key = self._keys[place[i]]
                keys.append(key if key[0] or not line.site else (self._sites.bounded(line.site), key[1], key[2]))
            self.stats.unparsed += len(refs) - len(good)
            self._counters.errors(keys, found, now_ms)
        else:
            roles = (*ACCESS_ROLES, "site") if rule.by_line else ACCESS_ROLES
            columns = rule.format.read(lines, roles)
            self.stats.unparsed += int(np.count_nonzero(~columns.good))
            if rule.by_line:
                place = self._places_by_line(place, columns)
            self._counters.access(self._keys, place, columns, now_ms)
        for table in self._counters.tables:
            if table.refused:
                self._tally.add(Reason.SERIES_LIMIT, table.refused)
                table.refused = 0

    def _places_by_line(self, place: NDArray[np.int64], columns: Columns) -> NDArray[np.int64]:
        """Where the stream names no site, the one that the line names."""
        sites = columns.words("site")
        if sites is None:
            return place
        nameless = np.array([not key[0] for key in self._keys], np.bool_)[place]
        rows = np.flatnonzero(nameless & (sites.codes >= 0))
        pairs, which = np.unique(place[rows] * len(sites.texts) + sites.codes[rows], return_inverse=True)
        new = []
        for pair in pairs.tolist():
            _, env, host = self._keys[pair // len(sites.texts)]
            new.append(self._place(self._sites.bounded(sites.texts[pair % len(sites.texts)]), env, host))
        out = place.copy()
        out[rows] = np.array(new, np.int64)[which] if len(rows) else out[rows]
        return out

    # -- samples

    def write(self, now_ms: int) -> None:
        """Append one sample of every counter, of what is new a zero before; give up what is old."""
        # never before our start: an earlier process may have written until then, and a zero between its samples
        # would count all of them twice
        before_ms = max(now_ms - self._settings.interval_ms, min(self._started_ms, now_ms - 1))
        registry = self._tenant.registry
        for series in self._series:
            series.renew(registry)
        parts = [series.samples(before_ms, now_ms) for series in self._series]
        gone_ms = now_ms - self._settings.stale_ms
        parts += [series.give_up(gone_ms, now_ms) for series in self._series]
        refs, ts_ms, bits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        batch = SampleBatch(refs, ts_ms, bits, registry)
        if not len(batch):
            return
        try:
            self._tally.add_all(self._tenant.append(batch).result().rejected)
        except UnavailableError as error:
            self.stats.busy += 1  # counters only grow: the next write says it all
            self._tally.add(error.reason)
        else:
            self.stats.writes += 1


Samples = tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.uint64]]


class TableSeries:
    """The series of a table: which number each cell has in the tenant's registry."""

    def __init__(self, table: Table, registry: SeriesRegistry, tally: Tally) -> None:
        self._table = table
        self._registry = registry
        self._tally = tally
        self._refs: NDArray[np.int64] = np.full(table.values.shape, -1, np.int64)  # -1 = none yet, -2 = refused

    def renew(self, registry: SeriesRegistry) -> None:
        """Take the numbers of the tenant's registry of now: all tables of a write have the same ones."""
        if registry is not self._registry:
            self._registry = registry
            cells = np.argwhere(self._refs >= 0)
            self._refs[self._refs >= 0] = -2
            self._resolve(cells)

    def samples(self, before_ms: int, now_ms: int) -> Samples:
        """A sample of each series, and a zero at ``before_ms`` of each that is new: else its first events are lost."""
        table = self._table
        values, exists = table.shown()
        if len(self._refs) < len(table.values):
            more = len(table.values) - len(self._refs)
            self._refs = np.concatenate((self._refs, np.full((more, self._refs.shape[1]), -1, np.int64)))
        refs = self._refs[: len(values)]
        new = exists & (refs == -1)
        if new.any():
            self._resolve(np.argwhere(new))
        new &= refs >= 0
        shown = exists & (refs >= 0)
        zeros = np.zeros(int(np.count_nonzero(new)), np.uint64)
        return (
            np.concatenate((refs[new], refs[shown])).astype(np.uint32),
            np.concatenate((np.full(len(zeros), before_ms), np.full(int(np.count_nonzero(shown)), now_ms))).astype(
                np.int64
            ),
            np.concatenate((zeros, values[shown].view(np.uint64))),
        )

    def _resolve(self, cells: NDArray[np.int64]) -> None:
        table = self._table
        keys = list(table.keys)
        for row, column in cells.tolist():
            metric = table.metrics[column]
            labels = {**dict(zip(table.labels, keys[row], strict=True)), **metric.labels, "__name__": metric.name}
            try:
                self._refs[row, column] = self._registry.resolve(labels)
            except RejectedError as error:
                self._refs[row, column] = -2
                self._tally.add(error.reason)

    def give_up(self, gone_ms: int, now_ms: int) -> Samples:
        """Stale markers of the rows that have not grown since, which are then forgotten."""
        table = self._table
        rows = len(table)
        gone = table.changed_ms[:rows] < gone_ms
        if not gone.any():
            return np.zeros(0, np.uint32), np.zeros(0, np.int64), np.zeros(0, np.uint64)
        refs = self._refs[:rows][gone]
        stale = refs[refs >= 0].astype(np.uint32)
        kept = table.forget(gone)
        self._refs[: len(kept)] = self._refs[kept]
        self._refs[len(kept) :] = -1
        # one millisecond later: a series that was just written has its last value at this time
        return stale, np.full(len(stale), now_ms + 1, np.int64), np.full(len(stale), STALE_BITS, np.uint64)


def _texts(lines: Texts, rows: NDArray[np.int64]) -> Texts:
    """Some lines; those in a row are not copied."""
    if len(rows) and int(rows[-1]) - int(rows[0]) == len(rows) - 1:
        return Texts(lines.data, lines.offsets[rows[0] : rows[-1] + 2])
    return gather(lines.data, lines.offsets[rows], np.diff(lines.offsets)[rows])
