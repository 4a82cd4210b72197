"""What sites on machines counted before and after a change: read from the counters made of nginx' access lines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from health.signals import Frames
from tsdb.frame import SeriesFrame
from tsdb.limits import SelectLimits
from tsdb.logs.frame import LogReader
from tsdb.matchers import Matcher, MatchOp

Floats = NDArray[np.float64]

REQUESTS = "nginx_requests_total"
SECONDS_BUCKET = "nginx_request_time_seconds_bucket"
LOUD = ("emerg", "alert", "crit")
"""Levels of an error log that stop a rollout by one line."""

_LIMITS = SelectLimits()
_LOUD = re.compile(rb"\[(?:" + "|".join(LOUD).encode() + rb")\] ")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Counts of S sites on H machines over a stretch of time.

    Attributes
    ----------
    seconds : its length
    requests, errors : (S, H) float64; errors are answers with 5xx
    buckets : (S, H, J) float64, requests by their time, not cumulative; J = 0 = not known
    """

    seconds: float
    requests: Floats
    errors: Floats
    buckets: Floats


@dataclass(frozen=True, slots=True)
class RolloutCounts:
    """Everything a gate looks at.

    Attributes
    ----------
    newest_ms : (H,) int64, last sample of each machine; 0 = none
    loud : (site or "", line) of an error log after the change, in the order of time
    """

    sites: tuple[str, ...]
    hosts: tuple[str, ...]
    before: Stretch
    after: Stretch
    newest_ms: NDArray[np.int64]
    loud: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...] = ()


def read_rollout(
    frames: Frames, logs: LogReader | None, *, site: str, host: str, changed_ms: int, baseline_ms: int, now_ms: int
) -> RolloutCounts:
    """Count a site, or all sites of a machine, on all machines of its environment, before and after a change.

    Raises
    ------
    tsdb.errors.LimitError        more series or samples than one selection may read
    """
    site_matcher = [Matcher("site", MatchOp.EQUAL, site)] if site else []
    start_ms = changed_ms - baseline_ms
    found = [
        frames.select([Matcher("__name__", MatchOp.EQUAL, name), *site_matcher], start_ms, now_ms, _LIMITS)
        for name in (REQUESTS, SECONDS_BUCKET)
    ]
    rows_of = [_labels(frame) for frame in found]
    names = [[(row.get("site", ""), row.get("host", "")) for row in rows] for rows in rows_of]
    # a stage machine is no peer of one in production
    envs = {row.get("env", "") for rows in rows_of for row in rows if not host or row.get("host", "") == host}
    of_host = {s for rows in names for s, h in rows if not host or h == host}
    sites = tuple(sorted(of_host))
    wanted = [row for rows in rows_of for row in rows if row.get("site", "") in of_host and row.get("env", "") in envs]
    hosts = tuple(sorted({row.get("host", "") for row in wanted}))
    bounds = sorted({row["le"] for row in wanted if "le" in row}, key=float)
    shape = (len(sites), len(hosts))
    requests, errors = np.zeros((2, *shape)), np.zeros((2, *shape))
    cumulative = np.zeros((2, *shape, len(bounds)))
    newest = np.zeros(len(hosts), np.int64)
    edges = (start_ms, changed_ms, now_ms)
    for frame, rows, keys in zip(found, rows_of, names, strict=True):
        sums, last = _increases(frame, edges)
        for i, (labels, (s, h)) in enumerate(zip(rows, keys, strict=True)):
            if s not in of_host or labels.get("env", "") not in envs:
                continue
            at = (sites.index(s), hosts.index(h))
            if "le" in labels:
                cumulative[(slice(None), *at, bounds.index(labels["le"]))] += sums[:, i]
                continue
            newest[at[1]] = max(newest[at[1]], last[i])
            if labels.get("status_class") != "none":
                requests[(slice(None), *at)] += sums[:, i]
            if labels.get("status_class") == "5xx":
                errors[(slice(None), *at)] += sums[:, i]
    buckets = np.maximum(np.diff(cumulative, axis=3, prepend=0.0), 0.0) if bounds else cumulative
    lengths = (baseline_ms / 1000, max(0, now_ms - changed_ms) / 1000)
    before, after = (Stretch(lengths[k], requests[k], errors[k], buckets[k]) for k in (0, 1))
    loud = _loud_lines(logs, site, host, changed_ms, now_ms) if logs is not None else ()
    warnings = tuple(warning for frame in found for warning in frame.warnings)
    return RolloutCounts(sites, hosts, before, after, newest, loud, warnings)


def _labels(frame: SeriesFrame) -> Sequence[dict[str, str]]:
    return [frame.labels.labels(i) for i in range(len(frame))]


def _increases(frame: SeriesFrame, edges: tuple[int, int, int]) -> tuple[Floats, NDArray[np.int64]]:
    """(2, n) what each counter grew by before and after, and (n,) the time of its last sample.

    An increase counts on that side of the change where its whole interval lies; that of the interval with the change
    in it counts on none.
    """
    n = len(frame)
    out = np.zeros((2, n))
    last = np.zeros(n, np.int64)
    filled = np.flatnonzero(np.diff(frame.offsets) > 0)
    last[filled] = frame.ts_ms[frame.offsets[filled + 1] - 1]
    if not len(frame.values):
        return out, last
    series = np.repeat(np.arange(n), np.diff(frame.offsets))
    grown = np.diff(frame.values)
    grown = np.where(grown < 0, frame.values[1:], grown)  # the counter began anew
    valid = (series[1:] == series[:-1]) & ~np.isnan(grown)
    begin, end = frame.ts_ms[:-1], frame.ts_ms[1:]
    for side in (0, 1):
        inside = valid & (begin >= edges[side]) & (end <= edges[side + 1])
        np.add.at(out[side], series[1:][inside], grown[inside])
    return out, last


def _loud_lines(logs: LogReader, site: str, host: str, changed_ms: int, now_ms: int) -> tuple[tuple[str, str], ...]:
    """Lines of the error log that stop a rollout: of the site, and those that name none."""
    matchers = [Matcher("log", MatchOp.EQUAL, "error")]
    matchers += [Matcher("host", MatchOp.EQUAL, host)] if host else []
    found: list[tuple[int, str, str]] = []
    for level in LOUD:
        needle = f"[{level}] ".encode()
        for frame in logs.select(matchers, changed_ms * 1_000_000, now_ms * 1_000_000, needles=[needle]):
            for i in np.flatnonzero(frame.contains(needle)).tolist():
                line = frame.take(np.array([i])).lines().text(0)
                if not _LOUD.search(line[:64]):
                    continue  # the words stand in the message
                of = frame.labels.labels(int(frame.stream_row[i])).get("site", "")
                if not site or of in ("", site):
                    found.append((int(frame.ts_ns[i]), of, line.decode("utf-8", "replace")))
    return tuple((of, line) for _, of, line in sorted(found))
