"""Totals of a service over a stretch of time, read from the store as the loop reads it: for comparisons and gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from health.mapping import SeriesMapping
from health.policy import Policy
from health.service import Service
from health.signals import Frames, SeriesReader
from health.verdicts import ServiceState
from health.window import Channel, ServiceWindow

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Totals:
    """What was counted of one service.

    Attributes
    ----------
    observers, endpoints, zones, versions : names of rows and columns, labels of columns
    errors, attempts : (P, H) float64
    buckets : (G, H, J) float64, not cumulative; J = 0 without latency
    warnings : of the store
    """

    observers: tuple[str, ...]
    endpoints: tuple[str, ...]
    zones: tuple[str, ...]
    versions: tuple[str, ...]
    errors: Floats
    attempts: Floats
    buckets: Floats
    warnings: tuple[str, ...]


class _TotalWindow(ServiceWindow):
    """A window without an end: sums of everything added."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy, 0, 0)
        self.totals = {channel: np.zeros((0, 0)) for channel in Channel}
        self.buckets = np.zeros((0, 0, 0))

    def add(
        self,
        channel: Channel,
        observers: NDArray[np.int64],
        endpoints: NDArray[np.int64],
        begin_ms: NDArray[np.int64],  # noqa: ARG002
        times_ms: NDArray[np.int64],  # noqa: ARG002
        deltas: Floats,
    ) -> None:
        np.add.at(self.totals[channel], (observers, endpoints), deltas)

    def add_latency(
        self,
        groups: NDArray[np.int64],
        endpoints: NDArray[np.int64],
        buckets: NDArray[np.int64],
        begin_ms: NDArray[np.int64],  # noqa: ARG002
        times_ms: NDArray[np.int64],  # noqa: ARG002
        deltas: Floats,
    ) -> None:
        np.add.at(self.buckets, (groups, endpoints, buckets), np.maximum(deltas, 0.0))

    def rearrange(self, observers: NDArray[np.int64], endpoints: NDArray[np.int64]) -> None:
        super().rearrange(observers, endpoints)
        p, h = (int(np.count_nonzero(sources >= 0)) for sources in (observers, endpoints))
        for channel, old in self.totals.items():
            new = np.zeros((len(observers), len(endpoints)))
            new[:p, :h] = old
            self.totals[channel] = new

    def divide_latency(self, n_groups: int, n_buckets: int, zones: tuple[str, ...]) -> None:
        super().divide_latency(n_groups, n_buckets, zones)
        self.buckets = np.zeros((n_groups, self.shape[1], n_buckets))


class _SecondsWindow(ServiceWindow):
    """Counts of each endpoint by the second in which an increment began."""

    def __init__(self, policy: Policy, start_ms: int, seconds: int) -> None:
        super().__init__(policy, 0, 0)
        self._start_ms = start_ms
        self.seconds = {channel: np.zeros((0, seconds)) for channel in Channel}

    def add(
        self,
        channel: Channel,
        observers: NDArray[np.int64],  # noqa: ARG002
        endpoints: NDArray[np.int64],
        begin_ms: NDArray[np.int64],
        times_ms: NDArray[np.int64],  # noqa: ARG002
        deltas: Floats,
    ) -> None:
        at = np.maximum(begin_ms - self._start_ms, 0) // 1000
        np.add.at(self.seconds[channel], (endpoints, at), deltas)

    def rearrange(self, observers: NDArray[np.int64], endpoints: NDArray[np.int64]) -> None:
        super().rearrange(observers, endpoints)
        for channel, old in self.seconds.items():
            new = np.zeros((len(endpoints), old.shape[1]))
            new[: len(old)] = old
            self.seconds[channel] = new


def read_seconds(
    frames: Frames, mappings: Sequence[SeriesMapping], service: str, endpoint: str, start_ms: int, end_ms: int
) -> tuple[Floats, Floats]:
    """Errors and attempts of an endpoint in each second of (start, end], (seconds,) float64 both.

    An increment counts where it began: of several seconds between two scrapes nobody knows better.

    Raises
    ------
    tsdb.errors.LimitError        more series or samples than one selection may read
    """
    policy = Policy()
    found = Service(service, policy, ServiceState(start_ms))
    window = found.window = _SecondsWindow(policy, start_ms, (end_ms - start_ms) // 1000 + 1)
    window.advance(end_ms)
    for mapping in mappings:
        SeriesReader(mapping, lambda name: found if name == service else None, only=service).read(
            frames, start_ms, end_ms
        )
    column = found.column(endpoint)
    if column is None:
        return window.seconds[Channel.ERRORS].sum(axis=0), window.seconds[Channel.ATTEMPTS].sum(axis=0)
    return window.seconds[Channel.ERRORS][column], window.seconds[Channel.ATTEMPTS][column]


def read_totals(frames: Frames, mappings: Sequence[SeriesMapping], service: str, start_ms: int, end_ms: int) -> Totals:
    """Sum what one service's series counted in (start, end]; several mappings are added up.

    Raises
    ------
    tsdb.errors.LimitError        more series or samples than one selection may read
    """
    policy = Policy()
    found = Service(service, policy, ServiceState(start_ms))
    window = found.window = _TotalWindow(policy)
    window.advance(end_ms)
    warnings: tuple[str, ...] = ()
    for mapping in mappings:
        reader = SeriesReader(mapping, lambda name: found if name == service else None, only=service)
        warnings += reader.read(frames, start_ms, end_ms)
    return Totals(
        tuple(found.observers),
        tuple(found.endpoints),
        tuple(found.zones),
        tuple(found.versions),
        window.totals[Channel.ERRORS],
        window.totals[Channel.ATTEMPTS],
        window.buckets,
        warnings,
    )
