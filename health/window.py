"""What was counted lately: rings of counter increments with running sums over sliding windows.

An increment belongs to the second of its *sample time*. Increments whose interval began before an endpoint's
``valid_from`` never count for it, so that an ejected endpoint is not convicted again by its own past.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from health.kernels import ring as kernels
from health.policy import Policy

FINE_S = 60
"""Seconds kept one by one; the longest fine window."""
COARSE_S = 10
"""Length of a bin of the sparse window and of the history."""
HISTORY_S = 600
"""How far back an endpoint's own past reaches (guards ``common_cause`` and ``capacity``)."""
NEVER_MS = -(1 << 62)
"""Before any time."""


class Channel(IntEnum):
    """What is counted per (observer, endpoint); attempts are errors + successes, never requests."""

    ERRORS = 0
    ATTEMPTS = 1
    CONNECT_FAILS = 2


class Ring:
    """Increments of many cells in bins of equal length, with running sums over several windows.

    Parameters
    ----------
    cells : how many counters
    n_bins : bins kept
    spans : window lengths in bins, each at most ``n_bins``

    Attributes
    ----------
    sums : (n_windows, cells) float64     sums of the bins ``(now - span, now]``
    now_bin : newest bin, None before the first :meth:`advance`
    """

    __slots__ = ("_ring", "_spans", "now_bin", "sums")

    def __init__(self, cells: int, n_bins: int, spans: tuple[int, ...]) -> None:
        assert all(1 <= span <= n_bins for span in spans)
        self._ring = np.zeros((n_bins, cells), dtype=np.int32)
        self._spans = np.array(spans, dtype=np.int64)
        self.sums = np.zeros((len(spans), cells), dtype=np.float64)
        self.now_bin: int | None = None

    def advance(self, now_bin: int) -> None:
        """Move the windows forward to end at ``now_bin``; going back is ignored."""
        n_bins = len(self._ring)
        if self.now_bin is None or now_bin - self.now_bin >= n_bins:
            self._ring[:] = 0
            self.sums[:] = 0.0
            self.now_bin = now_bin
            return
        for new in range(self.now_bin + 1, now_bin + 1):
            for window, span in enumerate(self._spans.tolist()):
                self.sums[window] -= self._ring[(new - span) % n_bins]
            self._ring[new % n_bins] = 0
            self.now_bin = new

    def add(self, cells: NDArray[np.int64], bins: NDArray[np.int64], values: NDArray[np.float64]) -> int:
        """Add increments; returns how many were older than the ring. Those ahead of now count as now."""
        assert self.now_bin is not None, "advance first"
        return int(kernels.ring_add(cells, bins, values, self.now_bin, self._spans, self._ring, self.sums))

    def add_all(self, at_bin: int, values: NDArray[np.int32]) -> None:
        """Add one increment to every cell in one bin, ``values`` (cells,) int32."""
        assert self.now_bin is not None, "advance first"
        age = self.now_bin - at_bin
        if 0 <= age < len(self._ring):
            self._ring[at_bin % len(self._ring)] += values
            for window, span in enumerate(self._spans.tolist()):
                if age < span:
                    self.sums[window] += values

    def clear(self, cells: NDArray[np.int64]) -> None:
        """Forget some cells."""
        self._ring[:, cells] = 0
        self.sums[:, cells] = 0.0

    def rearranged(self, sources: NDArray[np.int64]) -> Ring:
        """The same ring with other cells: cell i is the old cell ``sources[i]``, or empty where that is -1."""
        new = Ring(len(sources), len(self._ring), tuple(self._spans.tolist()))
        new.now_bin = self.now_bin
        kept = np.flatnonzero(sources >= 0)
        new._ring[:, kept] = self._ring[:, sources[kept]]
        new.sums[:, kept] = self.sums[:, sources[kept]]
        return new


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums of one window.

    Attributes
    ----------
    errors, attempts : (P, H) float64
    """

    window_s: int
    errors: NDArray[np.float64]
    attempts: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LatencySums:
    """Attempts per latency bucket of one window.

    Attributes
    ----------
    buckets : (G, H, J) float64     not cumulative, the last bucket is unbounded
    """

    window_s: int
    buckets: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Signals:
    """All that the detectors look at, for one service at one time.

    Attributes
    ----------
    windows : ascending; the one of 60 s is always among them
    hard : errors = failed connects, of the short window of D3
    latency : ascending windows; empty when nobody reports latency
    latency_zones : (G,) zone of each observer group
    past_errors, past_attempts : (H,) float64   of the last 10 minutes before the last 60 s
    probe_errors, probe_attempts : (P, H) float64   since the endpoint's counters were restarted
    present : (H,) bool
    rps, rps_peak : attempts per second of the service, and the most per active endpoint in the last 10 minutes
    """

    windows: tuple[Sums, ...]
    hard: Sums
    latency: tuple[LatencySums, ...]
    latency_zones: tuple[str, ...]
    past_errors: NDArray[np.float64]
    past_attempts: NDArray[np.float64]
    probe_errors: NDArray[np.float64]
    probe_attempts: NDArray[np.float64]
    present: NDArray[np.bool_]
    rps: float
    rps_peak: float


class ServiceWindow:
    """The recent counters of one service: P observers (rows) and H endpoints (columns).

    Rows and columns are numbers the caller assigns; :meth:`rearrange` grows, shrinks or reorders them. Latency is
    kept per observer *group*. Not thread-safe.

    Parameters
    ----------
    n_observers, n_endpoints : P, H
    n_groups, n_buckets : G, J of the latency histograms; 0 = no latency
    latency_zones : (G,) zones of the groups, "" = unknown

    Attributes
    ----------
    valid_from_ms : (H,) int64     increments that began earlier do not count
    """

    def __init__(
        self,
        policy: Policy,
        n_observers: int,
        n_endpoints: int,
        *,
        n_groups: int = 0,
        n_buckets: int = 0,
        latency_zones: tuple[str, ...] = (),
    ) -> None:
        self._policy = policy
        self._shape = (n_observers, n_endpoints)
        self._latency_shape = (n_groups, n_endpoints, n_buckets)
        self._latency_zones = latency_zones or ("",) * n_groups
        cells = n_observers * n_endpoints
        self._windows_s = tuple(sorted({*policy.windows_s, FINE_S}))
        fine = (policy.hard.window_s, *self._windows_s)
        self._fine = {
            Channel.ERRORS: Ring(cells, FINE_S, fine),
            Channel.ATTEMPTS: Ring(cells, FINE_S, fine),
            Channel.CONNECT_FAILS: Ring(cells, FINE_S, fine[:1]),
        }
        self._coarse: dict[Channel, Ring] = {}
        if policy.sparse_window_s:
            bins = policy.sparse_window_s // COARSE_S
            self._coarse = {c: Ring(cells, bins, (bins,)) for c in (Channel.ERRORS, Channel.ATTEMPTS)}
        self._latency: Ring | None = None
        if n_groups and n_buckets and policy.latency.enabled:
            self._latency = Ring(n_groups * n_endpoints * n_buckets, FINE_S, policy.latency.windows_s)
        past = (HISTORY_S // COARSE_S, FINE_S // COARSE_S)
        self._past = {c: Ring(n_endpoints, past[0], past) for c in (Channel.ERRORS, Channel.ATTEMPTS)}
        self._since = np.zeros((2, cells))
        self._peaks: dict[int, float] = {}
        self._last_seen_ms = np.full(n_endpoints, NEVER_MS, dtype=np.int64)
        self._restarted_ms = np.full(n_endpoints, NEVER_MS, dtype=np.int64)
        self.valid_from_ms = np.full(n_endpoints, NEVER_MS, dtype=np.int64)
        self.late = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(P, H)."""
        return self._shape

    @property
    def last_seen_ms(self) -> NDArray[np.int64]:
        """Time of the newest sample of each endpoint, (H,) int64; ``NEVER_MS`` = none yet."""
        return self._last_seen_ms

    def advance(self, now_ms: int) -> None:
        """Let the windows end at the second of ``now_ms``. Call before adding what was scraped up to then."""
        second = now_ms // 1000
        for ring in self._rings(fine=True):
            ring.advance(second)
        for ring in self._rings(fine=False):
            ring.advance(second // COARSE_S)

    def add(
        self,
        channel: Channel,
        observers: NDArray[np.int64],
        endpoints: NDArray[np.int64],
        begin_ms: NDArray[np.int64],
        times_ms: NDArray[np.int64],
        deltas: NDArray[np.float64],
    ) -> None:
        """Count increments, all arrays (n,): of which cell, over which interval (begin, time], by how much.

        Increments of nothing count too: they show that the endpoint is there.
        """
        self.seen(endpoints, times_ms)
        if channel is not Channel.CONNECT_FAILS:  # an endpoint's own past outlives its ejections
            self._past[channel].add(endpoints, times_ms // (1000 * COARSE_S), deltas)
        cells = observers * self._shape[1] + endpoints
        valid = (begin_ms >= self.valid_from_ms[endpoints]) & (deltas > 0)
        cells, endpoints, begin_ms = cells[valid], endpoints[valid], begin_ms[valid]
        seconds, deltas = times_ms[valid] // 1000, deltas[valid]
        self.late += self._fine[channel].add(cells, seconds, deltas)
        if channel in self._coarse:
            self._coarse[channel].add(cells, seconds // COARSE_S, deltas)
        if channel is not Channel.CONNECT_FAILS:
            counted = begin_ms >= self._restarted_ms[endpoints]
            np.add.at(self._since[channel], cells[counted], deltas[counted])

    def add_latency(
        self,
        groups: NDArray[np.int64],
        endpoints: NDArray[np.int64],
        buckets: NDArray[np.int64],
        begin_ms: NDArray[np.int64],
        times_ms: NDArray[np.int64],
        deltas: NDArray[np.float64],
    ) -> None:
        """Count increments of latency buckets (not cumulative), all arrays (n,)."""
        if self._latency is None:
            return
        valid = (begin_ms >= self.valid_from_ms[endpoints]) & (deltas > 0)
        _, n_endpoints, n_buckets = self._latency_shape
        cells = (groups * n_endpoints + endpoints) * n_buckets + buckets
        self.late += self._latency.add(cells[valid], times_ms[valid] // 1000, deltas[valid])

    def seen(self, endpoints: NDArray[np.int64], times_ms: NDArray[np.int64]) -> None:
        """Note that endpoints had samples, also where these give no increment (the first of a series)."""
        np.maximum.at(self._last_seen_ms, endpoints, times_ms)

    def clear(self, endpoint: int, now_ms: int) -> None:
        """Forget what was counted for an endpoint; what began before ``now_ms`` will not count either."""
        cells = self._column(endpoint)
        for ring in (*self._fine.values(), *self._coarse.values()):
            ring.clear(cells)
        if self._latency is not None:
            groups, n_endpoints, n_buckets = self._latency_shape
            places = np.arange(groups * n_endpoints * n_buckets).reshape(self._latency_shape)
            self._latency.clear(places[:, endpoint].ravel())
        self.valid_from_ms[endpoint] = now_ms
        self.restart(endpoint, now_ms)

    def restart(self, endpoint: int, now_ms: int) -> None:
        """Let only the counters of probation begin at zero."""
        self._since[:, self._column(endpoint)] = 0.0
        self._restarted_ms[endpoint] = now_ms

    def rearrange(self, observers: NDArray[np.int64], endpoints: NDArray[np.int64]) -> None:
        """Change rows and columns: new row i is old row ``observers[i]`` (-1 = new and empty), columns alike.

        Latency groups stay as they are.
        """
        old_h = self._shape[1]
        self._shape = (len(observers), len(endpoints))
        cells = np.where(
            (observers[:, None] >= 0) & (endpoints[None, :] >= 0), observers[:, None] * old_h + endpoints[None, :], -1
        ).ravel()
        self._fine = {c: ring.rearranged(cells) for c, ring in self._fine.items()}
        self._coarse = {c: ring.rearranged(cells) for c, ring in self._coarse.items()}
        self._past = {c: ring.rearranged(endpoints) for c, ring in self._past.items()}
        if self._latency is not None:
            groups, _, buckets = self._latency_shape
            g, j = np.arange(groups)[:, None, None], np.arange(buckets)[None, None, :]
            h = endpoints[None, :, None]
            self._latency = self._latency.rearranged(np.where(h >= 0, (g * old_h + h) * buckets + j, -1).ravel())
        self._latency_shape = (self._latency_shape[0], len(endpoints), self._latency_shape[2])
        since = np.zeros((2, len(cells)))
        since[:, cells >= 0] = self._since[:, cells[cells >= 0]]
        self._since = since
        fresh = endpoints < 0
        for name in ("_last_seen_ms", "_restarted_ms", "valid_from_ms"):
            old = getattr(self, name)
            setattr(self, name, np.where(fresh, NEVER_MS, old[endpoints] if len(old) else NEVER_MS))

    def divide_latency(self, n_groups: int, n_buckets: int, zones: tuple[str, ...]) -> None:
        """Keep latency in other groups or buckets from now on; what was counted so far is forgotten."""
        self._latency_shape = (n_groups, self._shape[1], n_buckets)
        self._latency_zones = zones
        if self._policy.latency.enabled:
            now_bin = self._fine[Channel.ERRORS].now_bin
            self._latency = Ring(n_groups * self._shape[1] * n_buckets, FINE_S, self._policy.latency.windows_s)
            if now_bin is not None:
                self._latency.advance(now_bin)

    def signals(self, now_ms: int) -> Signals:
        """What the detectors look at; the arrays are views that the next :meth:`advance` changes."""
        policy = self._policy
        errors, attempts = self._fine[Channel.ERRORS].sums, self._fine[Channel.ATTEMPTS].sums
        windows = [
            Sums(span, errors[i].reshape(self._shape), attempts[i].reshape(self._shape))
            for i, span in enumerate(self._windows_s, start=1)
        ]
        last_minute = float(attempts[-1].sum())
        past_errors, past_attempts = (self._past[c].sums for c in (Channel.ERRORS, Channel.ATTEMPTS))
        active = max(1, int(np.count_nonzero(past_attempts[1])))
        if self._coarse and last_minute < policy.sparse_rps * FINE_S * active:
            sparse = (self._coarse[c].sums[0].reshape(self._shape) for c in (Channel.ERRORS, Channel.ATTEMPTS))
            windows.append(Sums(policy.sparse_window_s, *sparse))
        latency: tuple[LatencySums, ...] = ()
        if self._latency is not None:
            latency = tuple(
                LatencySums(span, self._latency.sums[i].reshape(self._latency_shape))
                for i, span in enumerate(policy.latency.windows_s)
            )
        # the newest bin of the last minute has only just begun
        covered_s = FINE_S - COARSE_S + now_ms // 1000 % COARSE_S + 1
        rps = float(past_attempts[1].sum()) / covered_s
        now_bin = now_ms // (1000 * COARSE_S)
        self._peaks[now_bin] = max(self._peaks.get(now_bin, 0.0), rps / active)
        self._peaks = {at: peak for at, peak in self._peaks.items() if at > now_bin - HISTORY_S // COARSE_S}
        return Signals(
            windows=tuple(windows),
            hard=Sums(
                policy.hard.window_s,
                self._fine[Channel.CONNECT_FAILS].sums[0].reshape(self._shape),
                attempts[0].reshape(self._shape),
            ),
            latency=latency,
            latency_zones=self._latency_zones,
            past_errors=past_errors[0] - past_errors[1],
            past_attempts=past_attempts[0] - past_attempts[1],
            probe_errors=self._since[Channel.ERRORS].reshape(self._shape),
            probe_attempts=self._since[Channel.ATTEMPTS].reshape(self._shape),
            present=self._last_seen_ms > now_ms - policy.ejection.gone_ms,
            rps=rps,
            rps_peak=max(self._peaks.values()),
        )

    def _rings(self, *, fine: bool) -> list[Ring]:
        if not fine:
            return [*self._coarse.values(), *self._past.values()]
        return [*self._fine.values(), *([self._latency] if self._latency is not None else [])]

    def _column(self, endpoint: int) -> NDArray[np.int64]:
        return np.arange(self._shape[0], dtype=np.int64) * self._shape[1] + endpoint


class CounterTable:
    """The newest sample of each counter, to make increments from the samples that follow.

    A decrease is a restart from zero: the increment is the new value. The first sample of a series gives none. A NaN
    (a staleness marker) ends the series.
    """

    __slots__ = ("_ms", "_value")

    def __init__(self, rows: int = 0) -> None:
        self._ms = np.full(rows, NEVER_MS, dtype=np.int64)
        self._value = np.full(rows, np.nan)

    def __len__(self) -> int:
        return len(self._ms)

    def grow(self, rows: int) -> None:
        """Make room for ``rows`` counters in all; known ones keep theirs."""
        if rows > len(self._ms):
            more = rows - len(self._ms)
            self._ms = np.concatenate((self._ms, np.full(more, NEVER_MS, dtype=np.int64)))
            self._value = np.concatenate((self._value, np.full(more, np.nan)))

    def rearranged(self, sources: NDArray[np.int64]) -> CounterTable:
        """The same table with other counters: counter i is the old ``sources[i]``, or unknown where that is -1."""
        new = CounterTable(len(sources))
        kept = np.flatnonzero(sources >= 0)
        new._ms[kept] = self._ms[sources[kept]]
        new._value[kept] = self._value[sources[kept]]
        return new

    def newest_ms(self) -> NDArray[np.int64]:
        """Time of the newest sample of each counter, (rows,) int64; ``NEVER_MS`` before the first."""
        return self._ms

    def deltas(
        self, offsets: NDArray[np.int64], times_ms: NDArray[np.int64], values: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Increments of the samples that are newer than what was seen.

        Parameters
        ----------
        offsets : (rows + 1,) int64    samples of counter r are ``[offsets[r], offsets[r + 1])`` (as in a frame)
        times_ms, values : (n,)        ascending times within a counter

        Returns
        -------
        rows, begin_ms, times_ms, deltas : (m,)    of which counter, over which interval (begin, time], by how much
        """
        assert len(offsets) - 1 == len(self._ms), "grow first"
        n = len(times_ms)
        rows, begin, times = (np.empty(n, dtype=np.int64) for _ in range(3))
        deltas = np.empty(n)
        m = kernels.counter_deltas(offsets, times_ms, values, self._ms, self._value, rows, begin, times, deltas)
        return rows[:m], begin[:m], times[:m], deltas[:m]
