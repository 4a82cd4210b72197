"""The country of a client's address, from a MaxMind database, and lines of pushed streams that get it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import maxminddb
import numpy as np
from numpy.typing import NDArray

from ingest.logs.spans import Spans
from ingest.nginx.columns import Words
from ingest.nginx.derive import Rule
from ingest.nginx.entries import COUNTRY, countries_of
from tsdb.logs.frame import PAD_BYTES, gather

log = logging.getLogger(__name__)

CHECK_S = 10.0
"""How often the file is looked at; geoipupdate replaces it twice a week."""

_CACHED = 1 << 16
"""Addresses whose country is remembered: a look-up costs 2 us, and clients come again."""


class Countries:
    """Looks addresses up in a database with ``country.iso_code`` (GeoLite2-Country, GeoIP2-City, DB-IP and the like).

    A file that changes is read again; one that cannot be used leaves the old one in force. Thread-safe.

    Raises
    ------
    ValueError        the file cannot be read or is no such database
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp = self._stamps()
        self._look_up = _opened(path)
        self._next = time.monotonic() + CHECK_S

    def of(self, address: str) -> str:
        """Two letters; "" = not known, or no address."""
        if time.monotonic() >= self._next:
            self.refresh()
        return self._look_up(address)

    def refresh(self) -> None:
        """Read the file again if it has changed."""
        with self._lock:
            self._next = time.monotonic() + CHECK_S
            stamp = self._stamps()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                self._look_up = _opened(self._path)
            except ValueError as error:
                log.warning("the database of countries cannot be used, the old one stays: %s", error)
            else:
                log.info("database of countries read again: %s", self._path)

    def _stamps(self) -> tuple[int, ...]:
        """What changes when the file is written or replaced; () = it is not there."""
        try:
            status = self._path.stat()
        except OSError:
            return ()
        return status.st_mtime_ns, status.st_ino, status.st_size


def _opened(path: Path) -> Callable[[str], str]:
    try:
        # A copy in memory: who overwrites the file itself would take pages from under the reader, which kills us.
        copy = os.memfd_create("mmdb")
        try:
            with open(copy, "wb", closefd=False) as file:
                file.write(path.read_bytes())
            reader = maxminddb.open_database(f"/proc/self/fd/{copy}")
        finally:
            os.close(copy)
    except (OSError, ValueError, maxminddb.InvalidDatabaseError) as error:
        raise ValueError(f"{path}: {error}") from None

    def look_up(address: str) -> str:
        try:
            found = reader.get(address)
        except ValueError:
            return ""
        country = found.get("country") if isinstance(found, dict) else None
        code = country.get("iso_code") if isinstance(country, dict) else None
        return code if isinstance(code, str) else ""

    return lru_cache(maxsize=_CACHED)(look_up)


class Rules(Protocol):
    """Who knows how the lines of pushed streams are read (:class:`ingest.nginx.derive.Deriver`)."""

    @property
    def pushed(self) -> Sequence[Rule]: ...

    def pushed_rules(self, refs: NDArray[np.int64]) -> NDArray[np.int64]: ...


class CountryTagger:
    """Gives access lines of pushed streams the metadata that those of followed files get."""

    def __init__(self, rules: Rules, countries: Countries) -> None:
        self._rules = rules
        self._countries = countries

    def tag(self, spans: Spans, rows: NDArray[np.int64], refs: NDArray[np.int64]) -> Spans:
        """See :class:`ingest.logs.push.Tagger`."""
        numbers = self._rules.pushed_rules(refs)
        for number in np.unique(numbers[numbers >= 0]).tolist():
            line_format = self._rules.pushed[number].format
            if line_format is None:
                continue
            some = rows[numbers == number]
            some = some[~_told(spans, some)]
            lines = gather(spans.body, spans.line_starts[some], spans.line_sizes[some])
            words = countries_of(line_format.read(lines, ("client", "country")), self._countries)
            if words is not None:
                spans = _with_words(spans, some, words)
        return spans


def _told(spans: Spans, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which entries bring this metadata themselves, (n,) bool."""
    name = np.frombuffer(COUNTRY.encode(), np.uint8)
    begins = spans.pairs[:, 0]
    like = np.flatnonzero(spans.pairs[:, 1] - begins == len(name))
    same = (spans.body[begins[like, None] + np.arange(len(name))] == name).all(axis=1)
    owners = np.searchsorted(spans.first_pairs, like[same], "right") - 1
    return np.isin(rows, owners)


def _with_words(spans: Spans, rows: NDArray[np.int64], words: Words) -> Spans:
    """The entries with one more pair where their word is not empty."""
    texts = [text.encode() for text in words.texts]
    lengths = np.array([len(text) for text in texts], np.int64)
    base = len(spans.body)
    begins = base + len(COUNTRY) + np.cumsum(lengths) - lengths
    known = np.flatnonzero((words.codes >= 0) & (np.append(lengths, 0)[words.codes] > 0))
    if not len(known):
        return spans
    codes, rows = words.codes[known], rows[known]
    name = np.full(len(rows), base, np.int64)
    pairs = np.stack((name, name + len(COUNTRY), begins[codes], begins[codes] + lengths[codes]), axis=1)
    more = np.zeros(len(spans.first_pairs), np.int64)
    more[rows + 1] = 1
    added = np.frombuffer(COUNTRY.encode() + b"".join(texts) + bytes(PAD_BYTES), np.uint8)
    return spans._replace(
        body=np.concatenate((spans.body, added)),
        pairs=np.insert(spans.pairs, spans.first_pairs[rows + 1], pairs, axis=0),
        first_pairs=spans.first_pairs + np.cumsum(more),
    )
