"""Counters and histograms made of nginx' lines: arrays that batches of lines are added to.

A table has a row per label set (a site on a machine, an endpoint that a site was proxied to) and a column per metric
and status class or bucket. Everything counts attempts where it speaks of upstreams: a request that was tried three
times is three attempts, each charged to its own endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingest.nginx.columns import Columns, Words
from ingest.nginx.error_log import ErrorLine

CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx", "none")
"""Status classes; ``none`` = no answer, as when the client went away first."""

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Default bounds: Prometheus' client default, and one for what waits for a time limit."""

_SEPARATOR = re.compile(r", | : ")
_NONE = len(CLASSES) - 1

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Metric(NamedTuple):
    """One column of a table as a series."""

    name: str
    labels: Mapping[str, str]


class Table:
    """Rows of counters by label values.

    Parameters
    ----------
    labels : names of the labels that tell the rows apart
    classed : counter by status class, "" = none
    plain : names of further counters, one column each
    histogram : name of a histogram, "" = none
    bounds : its bounds in seconds
    rows_max : most rows; more are refused

    Attributes
    ----------
    values : (capacity, columns) float64; buckets are not cumulative
    keys : label values -> row
    changed_ms : (capacity,) int64, when a row last grew
    """

    def __init__(
        self,
        labels: tuple[str, ...],
        rows_max: int,
        *,
        classed: str = "",
        plain: Sequence[str] = (),
        histogram: str = "",
        bounds: Sequence[float] = (),
    ) -> None:
        self.labels = labels
        self.rows_max = rows_max
        self.metrics: list[Metric] = []
        if classed:
            self.metrics += [Metric(classed, {"status_class": text}) for text in CLASSES]
        self.plain_at = len(self.metrics)
        self.metrics += [Metric(name, {}) for name in plain]
        self.histogram_at = len(self.metrics)
        self.bounds = np.array(bounds if histogram else (), np.float64)
        if histogram:
            self.metrics += [Metric(f"{histogram}_sum", {}), Metric(f"{histogram}_count", {})]
            self.metrics += [Metric(f"{histogram}_bucket", {"le": text}) for text in [*map(bound_text, bounds), "+Inf"]]
        self.keys: dict[tuple[str, ...], int] = {}
        self.refused = 0
        self.values: Floats = np.zeros((16, len(self.metrics)))
        self.changed_ms: Integers = np.zeros(16, np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def row(self, key: tuple[str, ...]) -> int:
        """The row of label values, made if there is room; -1 when there is none."""
        known = self.keys.get(key)
        if known is not None:
            return known
        if len(self.keys) >= self.rows_max:
            return -1
        row = self.keys[key] = len(self.keys)
        if row == len(self.values):
            self.values = np.concatenate((self.values, np.zeros_like(self.values)))
            self.changed_ms = np.concatenate((self.changed_ms, np.zeros_like(self.changed_ms)))
        return row

    def add(
        self,
        rows: Integers,
        now_ms: int,
        *,
        classes: Integers | None = None,
        plain: Sequence[Floats] = (),
        seconds: Floats | None = None,
    ) -> None:
        """Count n events.

        Parameters
        ----------
        rows : (n,) row of each, -1 = refused
        classes : (n,) number in CLASSES
        plain : (n,) increments of each plain counter
        seconds : (n,) observation of each, NaN = none
        """
        kept = rows >= 0
        if not kept.all():
            self.refused += int(np.count_nonzero(~kept))
            rows = rows[kept]
            classes = None if classes is None else classes[kept]
            plain = [values[kept] for values in plain]
            seconds = None if seconds is None else seconds[kept]
        if not len(rows):
            return
        distinct, place = np.unique(rows, return_inverse=True)
        n = len(distinct)
        sums = np.zeros((n, len(self.metrics)))
        if classes is not None:
            width = len(CLASSES)
            sums[:, :width] = np.bincount(place * width + classes, minlength=n * width).reshape(n, width)
        for i, values in enumerate(plain):
            sums[:, self.plain_at + i] = np.bincount(place, np.nan_to_num(values), n)
        if seconds is not None:
            seen = np.flatnonzero(~np.isnan(seconds))
            at, width = self.histogram_at, len(self.bounds) + 1
            bucket = np.searchsorted(self.bounds, seconds[seen], side="left")
            sums[:, at] = np.bincount(place[seen], seconds[seen], n)
            sums[:, at + 1] = np.bincount(place[seen], minlength=n)
            sums[:, at + 2 :] = np.bincount(place[seen] * width + bucket, minlength=n * width).reshape(n, width)
        self.values[distinct] += sums
        self.changed_ms[distinct] = now_ms

    def shown(self) -> tuple[Floats, NDArray[np.bool_]]:
        """Values as series have them (buckets cumulative), and which of them exist: (rows, columns) each.

        A status class exists once it was seen, a histogram once it has an observation.
        """
        values = self.values[: len(self)].copy()
        exists = values > 0
        exists[:, self.plain_at : self.histogram_at] = True
        if len(self.bounds):
            at = self.histogram_at
            exists[:, at:] = values[:, at + 1 : at + 2] > 0
            np.cumsum(values[:, at + 2 :], axis=1, out=values[:, at + 2 :])
        return values, exists

    def forget(self, gone: NDArray[np.bool_]) -> Integers:
        """Remove rows, (rows,) bool; the others move together. Returns where each kept row was."""
        kept = np.flatnonzero(~gone)
        place = {int(old): new for new, old in enumerate(kept)}
        self.keys = {key: place[row] for key, row in self.keys.items() if row in place}
        self.values[: len(kept)] = self.values[kept]
        self.values[len(kept) :] = 0
        self.changed_ms[: len(kept)] = self.changed_ms[kept]
        return kept


def bound_text(bound: float) -> str:
    """A bound as the label ``le`` has it."""
    return f"{bound:g}"


class Counters:
    """All tables of one tenant. Not thread-safe.

    Parameters
    ----------
    bounds : of both histograms, seconds
    series_max : most series of all tables together, about; a table stops when it has its share
    """

    def __init__(self, bounds: Sequence[float] = BUCKETS_S, series_max: int = 500_000) -> None:
        where = ("site", "env", "host")
        width = len(bounds) + 3
        # Half for endpoints, a quarter for sites, the rest for what has one series a row.
        self.sites = Table(
            where, max(1, series_max // 4 // (width + 4)), classed="nginx_requests_total",
            plain=("nginx_response_bytes_total",), histogram="nginx_request_time_seconds", bounds=bounds,
        )  # fmt: skip
        self.attempts = Table(
            (*where, "upstream_addr"), max(1, series_max // 2 // (width + 4)),
            classed="nginx_upstream_requests_total", plain=("nginx_upstream_connect_failures_total",),
            histogram="nginx_upstream_response_time_seconds", bounds=bounds,
        )  # fmt: skip
        single = max(1, series_max // 12)
        self.no_live = Table((*where, "upstream"), single, plain=("nginx_upstream_no_live_total",))
        self.levels = Table((*where, "level"), single, plain=("nginx_error_log_lines_total",))
        self.blamed = Table((*where, "upstream_addr", "kind"), single, plain=("nginx_upstream_error_log_lines_total",))

    @property
    def tables(self) -> tuple[Table, ...]:
        """All of them."""
        return self.sites, self.attempts, self.no_live, self.levels, self.blamed

    def access(self, keys: Sequence[tuple[str, str, str]], place: Integers, columns: Columns, now_ms: int) -> None:
        """Count access lines.

        Parameters
        ----------
        keys : distinct (site, env, host)
        place : (n,) number in ``keys`` of each line, -1 = not to be counted
        """
        counted = (place >= 0) & columns.good
        used = np.unique(place[counted])
        row_of = np.full(len(keys) + 1, -1, np.int64)
        row_of[used] = [self.sites.row(keys[number]) for number in used.tolist()]
        rows = row_of[place]
        status = columns.numbers("status")
        classes = _classes(status if status is not None else np.full(len(place), np.nan))
        size = columns.numbers("bytes")
        seconds = columns.numbers("request_time")
        nothing: Floats = np.zeros(len(place))
        self.sites.add(
            rows[counted],
            now_ms,
            classes=classes[counted],
            plain=[(nothing if size is None else size)[counted]],
            seconds=None if seconds is None else seconds[counted],
        )
        tries = attempts_of(columns, counted)
        if len(tries.line):
            self._attempts(keys, place[tries.line], tries, now_ms)

    def _attempts(self, keys: Sequence[tuple[str, str, str]], place: Integers, tries: Attempts, now_ms: int) -> None:
        pairs, which = np.unique(place * len(tries.texts) + tries.address, return_inverse=True)
        named = [(*keys[p // len(tries.texts)], tries.texts[p % len(tries.texts)]) for p in pairs.tolist()]
        live = np.array([is_address(key[3]) for key in named], np.bool_)
        rows = np.array([self.attempts.row(k) if a else -2 for k, a in zip(named, live, strict=True)], np.int64)[which]
        to = rows != -2
        self.attempts.add(
            rows[to], now_ms, classes=tries.classes[to], plain=[tries.refused[to]], seconds=tries.seconds[to]
        )
        if not to.all():  # the name of a group none of whose servers was alive
            rows = np.array([-1 if a else self.no_live.row(k) for k, a in zip(named, live, strict=True)], np.int64)
            rows = rows[which][~to]
            self.no_live.add(rows, now_ms, plain=[np.ones(len(rows))])

    def errors(self, keys: Iterable[tuple[str, str, str]], lines: Iterable[ErrorLine], now_ms: int) -> None:
        """Count lines of error logs; a key (site, env, host) a line."""
        levels, blamed = [], []
        for key, line in zip(keys, lines, strict=True):
            levels.append(self.levels.row((*key, line.level)))
            if line.kind:
                blamed.append(self.blamed.row((*key, line.upstream, line.kind)))
        for table, rows in ((self.levels, levels), (self.blamed, blamed)):
            table.add(np.array(rows, np.int64), now_ms, plain=[np.ones(len(rows))])


class Attempts(NamedTuple):
    """Tries of requests at upstreams, m of them.

    Attributes
    ----------
    line : (m,) the line each belongs to
    address : (m,) number in ``texts``
    classes : (m,) number in CLASSES
    seconds : (m,) response time, NaN = none
    refused : (m,) 1.0 = no connection came about
    """

    line: Integers
    address: Integers
    classes: Integers
    seconds: Floats
    refused: Floats
    texts: list[str]


def is_address(text: str) -> bool:
    """Whether it is an endpoint, and not the name of a group without a live server."""
    return ":" in text


def attempts_of(columns: Columns, counted: NDArray[np.bool_]) -> Attempts:
    """The upstream lists of lines taken apart in step: ", " between tries, " : " between internal redirects."""
    address = columns.words("upstream_addr")
    if address is None:
        none: Integers = np.zeros(0, np.int64)
        return Attempts(none, none, none, none.astype(np.float64), none.astype(np.float64), [])
    status, seconds, connect = (
        columns.words(f"upstream_{what}") for what in ("status", "response_time", "connect_time")
    )
    texts = list(address.texts)
    some = address.take(np.array([text not in ("", "-") for text in texts], np.bool_), nothing=False) & counted
    many = address.take(np.array([_SEPARATOR.search(text) is not None for text in texts], np.bool_), nothing=False)
    one = np.flatnonzero(some & ~many)
    n = len(counted)
    class_of = np.full(n, _NONE) if status is None else _classes(status.numbers())
    took = np.full(n, np.nan) if seconds is None else seconds.numbers()
    refused = np.zeros(n)
    if status is not None and connect is not None:
        bad = status.take(np.array([text == "502" for text in status.texts], np.bool_), nothing=False)
        refused = (bad & connect.take(np.array([text == "-" for text in connect.texts], np.bool_), nothing=False)) * 1.0
    parts = [(one, address.codes[one], class_of[one], took[one], refused[one])]
    listed = np.flatnonzero(some & many)
    if len(listed):
        parts.append(_listed(listed, address, status, seconds, connect, texts))
    line, codes, classes, took, refused = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Attempts(line, codes, classes, took, refused, texts)


def _listed(
    lines: Integers,
    address: Words,
    status: Words | None,
    seconds: Words | None,
    connect: Words | None,
    texts: list[str],
) -> tuple[Integers, Integers, Integers, Floats, Floats]:
    """Attempts of the lines that have several; addresses that ``texts`` lacks are added to it."""
    numbers = {text: i for i, text in enumerate(texts)}
    rows: list[tuple[int, int, int, float, float]] = []
    for line in lines.tolist():
        addresses = _SEPARATOR.split(address.texts[address.codes[line]])
        codes, times, connects = (_items(words, line, len(addresses)) for words in (status, seconds, connect))
        for name, code, time, connected in zip(addresses, codes, times, connects, strict=True):
            if name in ("", "-"):
                continue
            number = numbers.setdefault(name, len(texts))
            if number == len(texts):
                texts.append(name)
            refused = code == "502" and connected == "-"
            rows.append((line, number, _class(code), _seconds(time), float(refused)))
    line_of, numbers_of, classes, took, refused_of = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    return (
        np.array(line_of, np.int64),
        np.array(numbers_of, np.int64),
        np.array(classes, np.int64),
        np.array(took, np.float64),
        np.array(refused_of, np.float64),
    )


def _items(words: Words | None, line: int, count: int) -> Iterator[str]:
    """The items of one list, as many as there are addresses."""
    code = -1 if words is None else int(words.codes[line])
    items = _SEPARATOR.split(words.texts[code]) if words is not None and code >= 0 else []
    yield from (items + [""] * count)[:count]


def _class(status: str) -> int:
    known = len(status) == 3 and status.isascii() and status.isdigit() and "1" <= status[0] <= "5"
    return int(status[0]) - 1 if known else _NONE


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _classes(status: Floats) -> Integers:
    known = (status >= 100) & (status < 600)
    return np.where(known, np.where(known, status, 100.0) // 100 - 1, _NONE).astype(np.int64)
