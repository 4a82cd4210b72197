"""From whole lines of a file to entries of the log store: their times, their streams, what is added to them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingest.nginx.columns import LINE_FEED, Columns, LineFormat, Numbers, Words
from ingest.nginx.error_log import parse_error
from tsdb.logs.frame import PAD_BYTES, Texts, gather

if TYPE_CHECKING:
    from ingest.nginx.geo import Countries

COUNTRY = "geoip_country"
"""Structured metadata of an entry whose client's country was looked up."""

_SECOND = 1_000_000_000
_MILLISECOND = 1_000_000
_MS_FROM = 1e11  # a number of seconds beyond the year 5000 is one of milliseconds


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """One entry of ``nginx.files``.

    Attributes
    ----------
    paths : globs
    log : ``access`` or ``error``
    format : of access lines; None = error log
    labels : of every stream: job, env, host, and site if it is always the same
    site_by_line : the role ``site`` of a line, or ``server:`` of an error line, names the site
    site_pattern : a path's group ``site`` does
    from_end : begin a file that is there at the first start at its end
    """

    paths: Sequence[str]
    log: str = "access"
    format: LineFormat | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    site_by_line: bool = False
    site_pattern: re.Pattern[str] | None = None
    from_end: bool = False
    tenant: str = "default"

    def site_of(self, path: str) -> str:
        """The site that a path or the labels name; "" = none."""
        found = self.site_pattern.search(path) if self.site_pattern else None
        return (found["site"] or "") if found else self.labels.get("site", "")


class Lines(NamedTuple):
    """Lines of one chunk, without the empty ones.

    Attributes
    ----------
    texts : with their line feeds taken off, valid UTF-8
    ts_ns : (n,) int64
    last_ns : time of the last line as it tells it
    sites : site of each
    countries : of each line's client; None = nothing was looked up
    replaced : lines that were no UTF-8
    """

    texts: Texts
    ts_ns: NDArray[np.int64]
    last_ns: int
    sites: Words
    countries: Words | None
    replaced: int


def read_lines(
    data: bytes, begin: int, last_ns: int, settings: SourceSettings, site: str, countries: Countries | None
) -> Lines:
    """Read what a file holds.

    A line's time is what it says, to which its place in the file is added as nanoseconds: two requests that are
    written alike are two entries, and a line that is read again is the same entry.

    Parameters
    ----------
    data : whole lines
    begin : where they lie in the file
    last_ns : the time of lines that tell none, until one does
    site : of lines that name none
    """
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == LINE_FEED)
    starts = np.concatenate(([0], ends[:-1] + 1)).astype(np.int64)
    kept = ends > starts
    starts, sizes = starts[kept], (ends - starts)[kept]
    places = begin + starts
    replaced = 0
    try:
        data.decode()
        texts = gather(np.frombuffer(data + bytes(PAD_BYTES), np.uint8), starts, sizes)
    except UnicodeDecodeError:
        raw = [data[a : a + n] for a, n in zip(starts.tolist(), sizes.tolist(), strict=True)]
        fixed = [line.decode("utf-8", "replace").encode() for line in raw]
        replaced = sum(a != b for a, b in zip(raw, fixed, strict=True))
        texts = Texts.of(fixed)
    n = len(starts)
    if settings.format is None:
        parsed = [parse_error(texts.text(i)) for i in range(n)]
        times = np.array([0 if line is None else line.second * _SECOND for line in parsed], np.int64)
        units = np.full(n, _SECOND)
        named = Words.of([site or (line.site if line is not None else "") for line in parsed])
        found: Words | None = None
    else:
        columns = settings.format.read(texts, ("time", "site", "client", "country"))
        times, units = _times(columns, n)
        named = _sites(columns, n, site, by_line=settings.site_by_line)
        found = countries_of(columns, countries) if countries else None
    times = _filled(times, last_ns)
    return Lines(texts, times + places % units, int(times[-1]) if n else last_ns, named, found, replaced)


def _times(columns: Columns, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Times of lines, 0 = none, and the unit below which each says nothing."""
    column = columns.of.get("time")
    if column is None:
        return np.zeros(n, np.int64), np.full(n, _SECOND)
    if isinstance(column, Numbers):
        return _from_seconds(column), np.full(n, _MILLISECOND)
    read = np.array([_time(text) for text in column.texts], np.int64).reshape(-1, 2)
    return column.take(read[:, 0], 0), column.take(read[:, 1], _SECOND)


def _from_seconds(column: Numbers) -> NDArray[np.int64]:
    values = np.nan_to_num(column.values, nan=0.0, posinf=0.0, neginf=0.0)
    ms = np.where(np.abs(values) < _MS_FROM, values * 1000, values)
    return np.rint(np.where(np.abs(ms) < 9e12, ms, 0)).astype(np.int64) * _MILLISECOND


def _time(text: str) -> tuple[int, int]:
    """(nanoseconds or 0, unit) of ``$msec``, ``$time_iso8601`` or ``$time_local``."""
    try:
        return int(_from_seconds(Numbers(np.array([float(text)])))[0]), _MILLISECOND
    except ValueError:
        pass
    for read in (datetime.fromisoformat, _local):
        try:
            when = read(text)
        except ValueError:
            continue
        if when.tzinfo is not None:
            return int(when.timestamp() * 1000) * _MILLISECOND, _SECOND
    return 0, _SECOND


def _local(text: str) -> datetime:
    return datetime.strptime(text, "%d/%b/%Y:%H:%M:%S %z")


def _sites(columns: Columns, n: int, site: str, *, by_line: bool) -> Words:
    words = columns.words("site") if by_line else None
    if words is None:
        return Words(np.zeros(n, np.int64), [site])
    texts = [text.lower() for text in words.texts]
    return Words(np.where(words.codes < 0, len(texts), words.codes), [*texts, site])


def countries_of(columns: Columns, countries: Countries) -> Words | None:
    """Countries of the lines whose own field for it is absent or empty."""
    client, own = columns.words("client"), columns.words("country")
    if client is None:
        return None
    codes = client.codes
    if own is not None:
        told = own.take(np.array([text not in ("", "-") for text in own.texts], np.bool_), False)
        codes = np.where(told, -1, codes)
    return Words(codes, [countries.of(text) for text in client.texts])


def _filled(times: NDArray[np.int64], last_ns: int) -> NDArray[np.int64]:
    """Lines without a time get that of the line before."""
    known = times != 0
    newest = np.maximum.accumulate(np.where(known, np.arange(len(times)), -1))
    return np.where(newest < 0, last_ns, times[newest])
