"""What a tenant's log store answers: frames of entries, and what its index knows without reading any."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tsdb.errors import CorruptionError
from tsdb.frame import LabelTable
from tsdb.index.registry import SeriesRegistry
from tsdb.logs.frame import Alike, IndexStats, LogFrame, RunCounts
from tsdb.logs.pruning import Clause
from tsdb.logs.select import Selection
from tsdb.matchers import Matcher


class LogReads(ABC):
    """Implements ``tsdb.logs.frame.LogReader`` over whatever a selection is made of."""

    registry: SeriesRegistry

    @abstractmethod
    def _selection(self, matchers: Sequence[Matcher], start_ns: int, end_ns: int) -> Selection:
        """One read of what there is at this moment."""

    @abstractmethod
    def _report(self, damage: str) -> None:
        """Tell of damage once, however often it is met."""

    def _told(self, frames: Iterator[LogFrame]) -> Iterator[LogFrame]:
        try:
            yield from frames
        except CorruptionError as error:
            self._report(str(error))
            raise

    def select(
        self,
        matchers: Sequence[Matcher],
        start_ns: int,
        end_ns: int,
        *,
        needles: Sequence[bytes] = (),
        clauses: Sequence[Clause] = (),
        backward: bool = True,
        ordered: bool = True,
    ) -> Iterator[LogFrame]:
        """Entries with ``start_ns <= ts_ns < end_ns`` in frames, newest (oldest) first: see ``LogReader.select``.

        Raises
        ------
        CorruptionError        a damaged group; what was yielded before is good
        """
        selection = self._selection(matchers, start_ns, end_ns)
        return self._told(selection.frames(needles=needles, clauses=clauses, backward=backward, ordered=ordered))

    def condensed(
        self, matchers: Sequence[Matcher], start_ns: int, end_ns: int, alike: Alike
    ) -> tuple[RunCounts, Iterator[LogFrame]]:
        """Runs that need not be read, and frames of the other entries: see ``LogReader.condensed``.

        Raises
        ------
        CorruptionError        as :meth:`select`
        """
        counts, frames = self._selection(matchers, start_ns, end_ns).condensed(alike)
        return counts, self._told(frames)

    def _counts(
        self, matchers: Sequence[Matcher], start_ns: int, end_ns: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """(entries, raw bytes) by stream number, and groups of rows, from the index only."""
        return self._selection(matchers, start_ns, end_ns).counts()

    def _refs_in_range(self, selectors: Sequence[Sequence[Matcher]], start_ns: int, end_ns: int) -> NDArray[np.uint32]:
        hit = np.zeros(len(self.registry), np.bool_)
        for selector in selectors or [()]:
            entries, _, _ = self._counts(selector, start_ns, end_ns)
            hit[: len(entries)] |= entries[: len(hit)] > 0
        return np.flatnonzero(hit).astype(np.uint32)

    def streams(self, selectors: Sequence[Sequence[Matcher]], start_ns: int, end_ns: int) -> LabelTable:
        """Labels of the streams of any selector (none = all) that may have entries in the range."""
        return self.registry.label_table(self._refs_in_range(selectors, start_ns, end_ns))

    def label_names(self, selectors: Sequence[Sequence[Matcher]], start_ns: int, end_ns: int) -> list[str]:
        """Sorted label names of those streams."""
        return self.registry.label_names(self._refs_in_range(selectors, start_ns, end_ns))

    def label_values(self, name: str, selectors: Sequence[Sequence[Matcher]], start_ns: int, end_ns: int) -> list[str]:
        """Sorted values of one label of those streams."""
        return self.registry.label_values(name, self._refs_in_range(selectors, start_ns, end_ns))

    def stats(self, matchers: Sequence[Matcher], start_ns: int, end_ns: int) -> IndexStats:
        """What a selector covers, from the index only."""
        entries, size, chunks = self._counts(matchers, start_ns, end_ns)
        return IndexStats(int(np.count_nonzero(entries)), chunks, int(size.sum()), int(entries.sum()))

    def volume(
        self, matchers: Sequence[Matcher], start_ns: int, end_ns: int
    ) -> tuple[LabelTable, NDArray[np.int64], NDArray[np.int64]]:
        """(labels, entries, raw bytes) of each stream, from the index only."""
        entries, size, _ = self._counts(matchers, start_ns, end_ns)
        refs = np.flatnonzero(entries).astype(np.uint32)
        return self.registry.label_table(refs), entries[refs], size[refs]
