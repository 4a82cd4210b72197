"""From a store's frames to the windows of services: incremental, on arrays, safe against counter restarts.

A :class:`SeriesReader` follows the series of one mapping. What a series means is looked up once, when it first has a
sample; from then on a tick costs array operations only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from health.mapping import CHANNELS, SeriesMapping
from health.service import Service
from health.window import Channel, CounterTable
from tsdb.frame import LabelTable, SeriesFrame, SymbolOverlay, Symbols
from tsdb.limits import SelectLimits
from tsdb.matchers import Matcher, MatchOp

LOOKBACK_MS = 65_000
"""How late a sample may arrive and still count: the finest window, and a little more."""

_COUNTER, _BUCKET, _GAUGE = 0, 1, 2
_LIMITS = SelectLimits()

Integers = NDArray[np.int64]


class Frames(Protocol):
    """What is read of a tenant."""

    def select(self, matchers: Sequence[Matcher], mint_ms: int, maxt_ms: int, limits: SelectLimits) -> SeriesFrame: ...


ServiceOf = Callable[[str], "Service | None"]
"""Finds or makes a service by name; None = it is not judged."""


class SeriesReader:
    """Follows the series of one mapping in one tenant. Not thread-safe.

    Parameters
    ----------
    mapping : what to read, and what it means
    service_of : finds or makes services
    only : read this service alone
    """

    def __init__(self, mapping: SeriesMapping, service_of: ServiceOf, only: str = "") -> None:
        self.mapping = mapping
        self._service_of = service_of
        self._matchers = matchers_of(mapping, only)
        self._rules = {counter.metric: counter for counter in mapping.counters}
        self._counters = CounterTable()
        self._names: tuple[str, ...] = ()
        self._ids = np.zeros((0, 0), np.int32)  # numbers of label values in self._symbols
        self._symbols: Symbols | None = None
        self._services: list[Service] = []
        self._generations: list[int] = []
        self._numbers: dict[str, int] = {}
        self._service = np.zeros(0, np.int64)  # number in self._services, -1 = not looked up, -2 = not ours
        self._observer = np.zeros(0, np.int64)
        self._endpoint = np.zeros(0, np.int64)
        self._role = np.zeros(0, np.int8)
        self._bucket = np.zeros(0, np.int64)  # number in self._bounds
        self._adds = np.zeros((0, len(Channel)), np.bool_)
        self._bounds: list[str] = []

    def knows(self, service: str) -> bool:
        """Whether any series of this mapping belongs to that service."""
        return service in self._numbers

    def read(self, frames: Frames, mint_ms: int, now_ms: int) -> tuple[str, ...]:
        """Take in what is new since the last call; returns warnings of the store (a partial result).

        Services must be advanced to ``now_ms`` before, new ones are by ``service_of``.
        """
        frame = frames.select(self._matchers, mint_ms, now_ms, _LIMITS)
        if not len(frame):
            return frame.warnings
        self._renumber(frame.labels.symbols)
        self._align(frame.labels)
        self._forget_renumbered()
        counts = np.diff(frame.offsets)
        unknown = np.flatnonzero((counts > 0) & (self._service == -1))
        if len(unknown):
            self._look_up(frame.labels, unknown)
        before = self._counters.newest_ms().copy()
        rows, begin, times, deltas = self._counters.deltas(frame.offsets, frame.ts_ms, frame.values)
        fresh = np.flatnonzero((self._counters.newest_ms() > before) & (self._service >= 0))
        if not len(fresh):
            return frame.warnings
        newest = self._counters.newest_ms()[fresh]
        for number, at in _by(self._service[fresh]):
            self._services[number].note_seen(self._observer[fresh[at]], self._endpoint[fresh[at]], newest[at])
        ours = self._service[rows] >= 0
        rows, begin, times, deltas = rows[ours], begin[ours], times[ours], deltas[ours]
        self._count(rows, begin, times, deltas)
        self._note_usable(frame, fresh)
        return frame.warnings

    # -- increments ------------------------------------------------------------------------------------------------

    def _count(self, rows: Integers, begin: Integers, times: Integers, deltas: NDArray[np.float64]) -> None:
        role = self._role[rows]
        counted = np.flatnonzero(role == _COUNTER)
        for number, at in _by(self._service[rows[counted]]):
            some = counted[at]
            service = self._services[number]
            service.note_interval(begin[some], times[some])
            for channel in Channel:
                some_of = some[self._adds[rows[some], channel]]
                if len(some_of):
                    row = rows[some_of]
                    service.window.add(
                        channel,
                        self._observer[row],
                        self._endpoint[row],
                        begin[some_of],
                        times[some_of],
                        deltas[some_of],
                    )
        buckets = np.flatnonzero(role == _BUCKET)
        for number, at in _by(self._service[rows[buckets]]):
            some = buckets[at]
            row = rows[some]
            service = self._services[number]
            place = {text: i for i, text in enumerate(service.bounds)}
            numbers = np.array([place.get(text, -1) for text in self._bounds], dtype=np.int64)
            self._count_latency(
                service, self._observer[row], self._endpoint[row], numbers[self._bucket[row]],
                begin[some], times[some], deltas[some],
            )  # fmt: skip

    @staticmethod
    def _count_latency(
        service: Service,
        observers: Integers,
        endpoints: Integers,
        buckets: Integers,
        begin: Integers,
        times: Integers,
        deltas: NDArray[np.float64],
    ) -> None:
        """Cumulative buckets to plain ones: sorted by (observer, endpoint, time, bucket), each less the one before."""
        order = np.lexsort((buckets, times, endpoints, observers))
        observers, endpoints, buckets = observers[order], endpoints[order], buckets[order]
        begin, times, deltas = begin[order], times[order], deltas[order]
        same = np.zeros(len(order), np.bool_)
        same[1:] = (observers[1:] == observers[:-1]) & (endpoints[1:] == endpoints[:-1]) & (times[1:] == times[:-1])
        twice = same.copy()
        twice[1:] &= buckets[1:] == buckets[:-1]
        if twice.any():  # several histograms of one pair, e.g. by method: their sum is one too
            firsts = np.flatnonzero(~twice)
            deltas = np.add.reduceat(deltas, firsts)
            observers, endpoints, buckets = observers[firsts], endpoints[firsts], buckets[firsts]
            begin, times, same = begin[firsts], times[firsts], same[firsts]
        plain = deltas.copy()
        plain[1:] -= np.where(same[1:], deltas[:-1], 0.0)
        service.window.add_latency(service.groups[observers], endpoints, buckets, begin, times, plain)

    def _note_usable(self, frame: SeriesFrame, fresh: Integers) -> None:
        rows = fresh[self._role[fresh] == _GAUGE]
        if not len(rows):
            return
        last = frame.values[frame.offsets[rows + 1] - 1]
        usable = np.where(np.isnan(last), -1, last != 0).astype(np.int8)
        for number, at in _by(self._service[rows]):
            self._services[number].usable[self._observer[rows[at]], self._endpoint[rows[at]]] = usable[at]

    # -- series ----------------------------------------------------------------------------------------------------

    def _renumber(self, symbols: Symbols) -> None:
        """Take the numbers that another table gives label values: the store has forgotten those of ended series."""
        if symbols is self._symbols:
            return
        if self._symbols is not None and self._ids.size:
            known, place = np.unique(self._ids, return_inverse=True)
            overlay = SymbolOverlay(symbols)  # a value that is in no series any more has a number of its own
            numbers = [overlay.intern(text) for text in self._symbols.texts(known)]
            self._ids = np.array(numbers, np.int32)[place.reshape(-1)].reshape(self._ids.shape)
        self._symbols = symbols

    def _align(self, labels: LabelTable) -> None:
        """Let our rows be those of the frame; known series keep what is known of them."""
        n = len(self._ids)
        if labels.names == self._names and len(labels) >= n and np.array_equal(labels.ids[:n], self._ids):
            if len(labels) > n:
                self._rearrange(np.concatenate((np.arange(n), np.full(len(labels) - n, -1))))
                self._ids = labels.ids
            return
        names = tuple(sorted({*labels.names, *self._names}))
        old, new = _widened(self._names, self._ids, names), _widened(labels.names, labels.ids, names)
        _, number = np.unique(np.concatenate((old, new)), axis=0, return_inverse=True)
        number = number.reshape(-1)
        place = np.full(int(number.max(initial=-1)) + 1, -1, dtype=np.int64)
        place[number[:n]] = np.arange(n)
        self._rearrange(place[number[n:]])
        self._names, self._ids = labels.names, labels.ids

    def _rearrange(self, sources: Integers) -> None:
        fresh = sources < 0

        def moved(old: NDArray[np.int64], nothing: int) -> NDArray[np.int64]:
            return np.where(fresh, nothing, old[sources] if len(old) else nothing)

        self._counters = self._counters.rearranged(sources)
        self._service = moved(self._service, -1)
        self._observer = moved(self._observer, 0)
        self._endpoint = moved(self._endpoint, 0)
        self._bucket = moved(self._bucket, 0)
        self._role = moved(self._role.astype(np.int64), _COUNTER).astype(np.int8)
        adds = np.zeros((len(sources), len(Channel)), np.bool_)
        adds[~fresh] = self._adds[sources[~fresh]]
        self._adds = adds

    def _look_up(self, labels: LabelTable, rows: Integers) -> None:
        """Find out what new series mean; costs by the number of distinct services, endpoints and observers."""
        mapping = self.mapping
        metric = _distinct(labels, rows, ("__name__",))
        service = _distinct(labels, rows, (mapping.service,))
        endpoint = _distinct(labels, rows, (mapping.service, mapping.endpoint, mapping.zone, mapping.version))
        observer = _distinct(labels, rows, (mapping.service, mapping.observer_zone, *mapping.observer))
        names = [mapping.service_name or name for (name,) in service.texts]
        numbers = np.array([self._number(name) for name in names], dtype=np.int64)[service.number]
        columns = np.full(len(endpoint.texts), -1, dtype=np.int64)
        for i, (_, name, zone, version) in enumerate(endpoint.texts):
            number = int(numbers[endpoint.first[i]])
            if name and number >= 0:
                columns[i] = self._services[number].endpoint(name, zone, version)
        lines = np.full(len(observer.texts), -1, dtype=np.int64)
        for i, (_, zone, *parts) in enumerate(observer.texts):
            number = int(numbers[observer.first[i]])
            if number >= 0:
                lines[i] = self._services[number].observer(_observer(parts), zone)
        roles = np.array([self._role_of(name) for (name,) in metric.texts], dtype=np.int8)
        ours = (numbers >= 0) & (columns[endpoint.number] >= 0)
        self._service[rows] = np.where(ours, numbers, -2)
        self._endpoint[rows], self._observer[rows] = columns[endpoint.number], lines[observer.number]
        self._role[rows] = roles[metric.number]
        self._adds[rows] = self._channels(labels, rows, metric)
        self._look_up_bounds(rows, _distinct(labels, rows, ("le",)))
        for number in np.unique(numbers[ours]).tolist():
            self._services[number].fit()

    def _role_of(self, metric: str) -> int:
        if metric == self.mapping.latency:
            return _BUCKET
        return _GAUGE if metric == self.mapping.healthy else _COUNTER

    def _channels(self, labels: LabelTable, rows: Integers, metric: _Distinct) -> NDArray[np.bool_]:
        adds = np.zeros((len(rows), len(Channel)), np.bool_)
        for i, (name,) in enumerate(metric.texts):
            rule = self._rules.get(name)
            if rule is None:
                continue
            mine = np.flatnonzero(metric.number == i)
            columns = tuple(where.label for where in rule.where)
            if not columns:
                adds[mine[:, None], list(CHANNELS[rule.counts])] = True
                continue
            some = _distinct(labels, rows[mine], columns)
            table = np.zeros((len(some.texts), len(Channel)), np.bool_)
            for j, values in enumerate(some.texts):
                table[j, list(CHANNELS[rule.of(dict(zip(columns, values, strict=True)))])] = True
            adds[mine] = table[some.number]
        return adds

    def _look_up_bounds(self, rows: Integers, bound: _Distinct) -> None:
        for i, (text,) in enumerate(bound.texts):
            mine = rows[bound.number == i]
            mine = mine[(self._role[mine] == _BUCKET) & (self._service[mine] >= 0)]
            if not len(mine):
                continue
            if not _is_number(text):
                self._service[mine] = -2
                continue
            if text not in self._bounds:
                self._bounds.append(text)
            self._bucket[mine] = self._bounds.index(text)
            for number in np.unique(self._service[mine]).tolist():
                self._services[number].want_bounds([text])

    def _number(self, name: str) -> int:
        service = self._service_of(name) if name else None
        if service is None:
            return -2
        number = self._numbers.setdefault(name, len(self._services))
        if number == len(self._services):
            self._services.append(service)
            self._generations.append(service.generation)
        elif self._services[number] is not service:
            self._services[number], self._generations[number] = service, service.generation
        return number

    def _forget_renumbered(self) -> None:
        """Look up again what belongs to services whose rows and columns have other numbers now, or that ended."""
        for number, service in enumerate(self._services):
            if service.generation != self._generations[number]:
                self._generations[number] = service.generation
                self._service[self._service == number] = -1


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)
    except ValueError:
        return False


def _widened(names: tuple[str, ...], ids: NDArray[np.int32], wanted: tuple[str, ...]) -> NDArray[np.int32]:
    """Columns by the names wanted; absent labels are symbol 0."""
    out = np.zeros((len(ids), len(wanted)), np.int32)
    for i, name in enumerate(wanted):
        if name in names:
            out[:, i] = ids[:, names.index(name)]
    return out


class _Distinct(NamedTuple):
    """Distinct values of some labels over n rows.

    Attributes
    ----------
    texts : of each distinct combination
    number : (n,) int64    which of them each row has
    first : a row of each
    """

    texts: list[tuple[str, ...]]
    number: Integers
    first: list[int]


def _distinct(labels: LabelTable, rows: Integers, columns: tuple[str, ...]) -> _Distinct:
    """Distinct values of the labels ``columns``; "" names no label."""
    ids = _widened(labels.names, labels.ids, columns)[rows]
    distinct, first, number = np.unique(ids, axis=0, return_index=True, return_inverse=True)
    texts = [tuple(labels.symbols.texts(row)) for row in distinct]
    return _Distinct(texts, number.reshape(-1).astype(np.int64), first.tolist())


def matchers_of(mapping: SeriesMapping, only: str = "") -> list[Matcher]:
    """What selects the series of a mapping, of one service or (``only`` = "") of all."""
    matchers = [Matcher("__name__", MatchOp.REGEX, "|".join(map(re.escape, mapping.metrics)))]
    if only and mapping.service:
        matchers.append(Matcher(mapping.service, MatchOp.EQUAL, only))
    return matchers


def observers_of(labels: LabelTable, mapping: SeriesMapping) -> tuple[list[str], Integers]:
    """Names of the observers, and which of them each series comes from, (n,) int64."""
    found = _distinct(labels, np.arange(len(labels)), mapping.observer)
    return [_observer(parts) for parts in found.texts], found.number


def _observer(parts: Iterable[str]) -> str:
    return "/".join(filter(None, parts))


def _by(numbers: Integers) -> list[tuple[int, Integers]]:
    """Places of each distinct number."""
    if not len(numbers):
        return []
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    ends = np.append(starts[1:], len(order))
    return [(int(ordered[a]), order[a:b]) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
