"""``interval`` of a log query: lines at least so far apart, whatever streams they are of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tsdb.logs.frame import LogFrame


class Spaced:
    """Picks lines in the order of their times while frames come in.

    The newest (oldest) line is taken, then each first one that is at least ``interval_ns`` behind the last one taken.
    What is taken is known as soon as no later frame can have a line before it.
    """

    def __init__(self, interval_ns: int, limit: int, *, backward: bool) -> None:
        self._interval_ns = interval_ns
        self._limit = limit
        self._sign = -1 if backward else 1
        self._waiting: list[LogFrame] = []
        self._next: int | None = None  # earliest time (mirrored where backward) of the next line
        self._count = 0
        self.taken: list[LogFrame] = []

    @property
    def is_full(self) -> bool:
        """Whether the answer is complete."""
        return self._count >= self._limit

    def add(self, frame: LogFrame, frontier_ns: int) -> None:
        """Lines of a frame, in any order; all lines beyond the frontier have come."""
        if len(frame):
            self._waiting.append(frame)
        self._settle(self._sign * frontier_ns)

    def finish(self) -> list[LogFrame]:
        """Frames of all lines that are taken, when no more come."""
        self._settle(None)
        return self.taken

    def _settle(self, frontier: int | None) -> None:
        """Choose among the lines before a (mirrored) time."""
        frames = self._waiting
        if not frames:
            return
        times = self._sign * np.concatenate([frame.ts_ns for frame in frames])
        known = np.ones(len(times), np.bool_) if frontier is None else times < frontier
        if not known.any():
            return
        rows = np.flatnonzero(known)
        rows = rows[np.argsort(times[rows], kind="stable")]
        chosen = rows[self._choose(times[rows])]
        taken, left = np.zeros(len(times), np.bool_), ~known
        taken[chosen] = True
        self._count += len(chosen)
        self._waiting = []
        at = 0
        for frame in frames:
            mine = slice(at, at + len(frame))
            at += len(frame)
            if taken[mine].any():
                self.taken.append(frame.take(taken[mine]))
            if left[mine].any():
                self._waiting.append(frame.take(left[mine]))

    def _choose(self, times: NDArray[np.int64]) -> list[int]:
        """Places in ascending times of the lines to take."""
        chosen: list[int] = []
        place = 0 if self._next is None else int(np.searchsorted(times, self._next))
        while place < len(times) and self._count + len(chosen) < self._limit:
            chosen.append(place)
            self._next = int(times[place]) + self._interval_ns
            place = int(np.searchsorted(times, self._next))
        return chosen
