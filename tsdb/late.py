"""Samples that came too late for the chunk stream of their series: sorted runs, merged like an LSM tree.

Runs are immutable and at least halve in size from one to the next, so a sample is copied O(log n) times whatever
the order of arrival, a search looks into O(log n) runs, and a reader keeps a consistent view by holding a tuple.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsdb.chunks import LateSamples
from tsdb.kernels import late as kernels

BYTES_PER_SAMPLE = 20
_MAX_MS = (1 << 63) - 1


class Run(NamedTuple):
    """Samples sorted by (slot, time), each key once.

    Attributes
    ----------
    slots : (n,) uint32; ts_ms : (n,) int64; bits : (n,) uint64
    """

    slots: NDArray[np.uint32]
    ts_ms: NDArray[np.int64]
    bits: NDArray[np.uint64]

    def chosen(self, mask: NDArray[np.bool_]) -> Run:
        """The samples of the mask, in order."""
        return Run(self.slots[mask], self.ts_ms[mask], self.bits[mask])

    def first(self, n: int) -> Run:
        """The first ``n`` samples, without copying."""
        return Run(self.slots[:n], self.ts_ms[:n], self.bits[:n])


def _empty(n: int) -> Run:
    return Run(np.empty(n, np.uint32), np.empty(n, np.int64), np.empty(n, np.uint64))


def merge(first: Run, second: Run) -> Run:
    """One run of both; of equal keys the sample of ``first`` stays."""
    if not len(first.slots) or not len(second.slots):
        return first if len(first.slots) else second
    out = _empty(len(first.slots) + len(second.slots))
    n = kernels.merge_runs(*first, *second, *out)
    return out.first(n)


def merge_all(runs: tuple[Run, ...] | list[Run]) -> Run:
    """One run of all, smallest first so that few samples are copied often; earlier runs win."""
    merged = _empty(0)
    for run in reversed(runs):
        merged = merge(run, merged)
    return merged


def gather(runs: tuple[Run, ...], slots: NDArray[np.uint32], mint_ms: int, maxt_ms: int) -> LateSamples:
    """Samples of some slots within ``[mint_ms, maxt_ms]``; rows number the given slots."""
    parts = []
    for run in runs:
        begins, ends = np.empty(len(slots), np.int64), np.empty(len(slots), np.int64)
        total = kernels.locate(run.slots, run.ts_ms, slots, mint_ms, maxt_ms, begins, ends)
        if total:
            part = _empty(total)
            kernels.gather(run.ts_ms, run.bits, begins, ends, *part)
            parts.append(part)
    merged = merge_all(parts)
    return LateSamples(merged.slots.view(np.int32), merged.ts_ms, merged.bits)


class LateStore:
    """Late samples of one head. One writer at a time; :attr:`runs` may be read from any thread."""

    __slots__ = ("_cut", "_live", "count", "oldest_ms")

    def __init__(self) -> None:
        self._live: tuple[Run, ...] = ()  # oldest and largest first
        self._cut = _empty(0)  # taken by a cut, not dropped yet; still readable
        self.count = 0
        self.oldest_ms = _MAX_MS  # least time of all samples, or above

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, the ones taken by a cut included; no key is in two of them."""
        return (self._cut, *self._live) if len(self._cut.slots) else self._live

    @property
    def memory_bytes(self) -> int:
        """Bytes of the samples."""
        return self.count * BYTES_PER_SAMPLE

    def find(
        self, slots: NDArray[np.uint32], ts_ms: NDArray[np.int64], bits: NDArray[np.uint64], status: NDArray[np.uint8]
    ) -> None:
        """Write REPEATED or DUPLICATE into ``status`` (n,) for the samples that are here; leave the others alone."""
        for run in self.runs:
            kernels.find_in_run(slots, ts_ms, bits, *run, status)

    def add(
        self, slots: NDArray[np.uint32], ts_ms: NDArray[np.int64], bits: NDArray[np.uint64], status: NDArray[np.uint8]
    ) -> int:
        """Store samples that :meth:`find` did not find; of equal keys within the batch the first stays.

        Parameters
        ----------
        slots : (n,) uint32; ts_ms : (n,) int64; bits : (n,) uint64        in the order of arrival
        status : (n,) uint8, written        ACCEPTED, REPEATED or DUPLICATE

        Returns
        -------
        int        samples stored
        """
        order = np.lexsort((ts_ms, slots))
        decided = np.zeros(len(order), np.uint8)
        out = _empty(len(order))
        n: int = kernels.keep_first(slots[order], ts_ms[order], bits[order], decided, *out)
        status[order] = decided
        if not n:
            return 0
        self.count += n
        newest = out.first(n)
        self.oldest_ms = min(self.oldest_ms, int(newest.ts_ms.min()))
        runs = list(self._live)
        while runs and len(runs[-1].slots) < 2 * len(newest.slots):
            newest = merge(runs.pop(), newest)
        self._live = (*runs, newest)
        return n

    def cut(self, border_ms: int) -> Run:
        """Everything older than the border; it stays readable until :meth:`drop`.

        What arrives for that range after this call belongs to the next cut. A cut that is repeated before its drop
        returns the same again, and what has arrived since.
        """
        kept, taken = [], [self._cut]
        for run in self._live:
            older = run.ts_ms < border_ms
            if older.any():
                taken.append(run.chosen(older))
                kept.append(run.chosen(~older))
            else:
                kept.append(run)
        self._cut = merge_all(taken)
        self._live = tuple(run for run in kept if len(run.slots))
        return self._cut.chosen(self._cut.ts_ms < border_ms)

    def drop(self, border_ms: int) -> int:
        """Forget what the cut at this border took; returns the number of samples."""
        stays = self._cut.ts_ms >= border_ms
        dropped = int(len(stays) - stays.sum())
        self._cut = self._cut.chosen(stays)
        self.count -= dropped
        self.oldest_ms = min((int(run.ts_ms.min()) for run in self.runs), default=_MAX_MS)
        return dropped

    def erase(
        self, slots: NDArray[np.uint32], mint_ms: int, maxt_ms: int, moved: NDArray[np.uint32], moved_from_ms: int
    ) -> None:
        """Forget the samples of some slots within ``[mint_ms, maxt_ms]``, and those that have moved into chunks.

        Parameters
        ----------
        slots, moved : ascending
        moved_from_ms : samples of ``moved`` from here on are in chunks now
        """

        def left(run: Run) -> Run:
            gone = np.isin(run.slots, slots) & (run.ts_ms >= mint_ms) & (run.ts_ms <= maxt_ms)
            gone |= np.isin(run.slots, moved) & (run.ts_ms >= moved_from_ms)
            return run.chosen(~gone) if gone.any() else run

        self._cut = left(self._cut)
        self._live = tuple(run for run in map(left, self._live) if len(run.slots))
        self.count = sum(len(run.slots) for run in self.runs)
        self.oldest_ms = min((int(run.ts_ms.min()) for run in self.runs), default=_MAX_MS)
