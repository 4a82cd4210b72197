"""What one scrape target contributes: its samples, its staleness, its own health series. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ingest.exemplars import Exemplar
from ingest.exposition import ExpositionParser, PageOptions
from ingest.store import Metadata
from tsdb.batch import STALE_BITS, SampleBatch
from tsdb.errors import Reason
from tsdb.index.registry import SeriesRegistry

REPORT_NAMES = (
    "up",
    "scrape_duration_seconds",
    "scrape_samples_scraped",
    "scrape_samples_post_metric_relabeling",
    "scrape_series_added",
)
"""Series about the scrape itself, written for every scrape, in the order of their values."""

_NO_REFS: NDArray[np.uint32] = np.zeros(0, np.uint32)


@dataclass(frozen=True, slots=True)
class Round:
    """Outcome of one scrape, ready to be stored.

    Attributes
    ----------
    batch : scraped samples, then stale markers, then the series about the scrape
    scraped : int                samples in the text
    refused : reason -> samples  series that may not be stored
    metadata : families whose HELP, TYPE or UNIT changed
    exemplars : those that are new
    """

    batch: SampleBatch
    scraped: int = 0
    refused: Mapping[Reason, int] = field(default_factory=dict)
    metadata: list[Metadata] = field(default_factory=list)
    exemplars: list[Exemplar] = field(default_factory=list)


class TargetSeries:
    """The series of one target from scrape to scrape; one scrape at a time.

    Parameters
    ----------
    registry : series of the tenant
    labels : labels of the target, ``job`` and ``instance`` among them
    options : what is done with its pages
    """

    def __init__(self, registry: SeriesRegistry, labels: Mapping[str, str], options: PageOptions | None = None) -> None:
        self._registry = registry
        self._labels = dict(labels)
        options = options or PageOptions()
        self._parser = ExpositionParser(registry, labels, options)
        self._track_own_times = options.track_timestamps_staleness
        self._report_refs = _NO_REFS
        self._seen = _NO_REFS  # series of the last good scrape, without those that bring times of their own
        self._alive = False  # whether they are still without a stale marker

    def take_over(self, before: TargetSeries) -> None:
        """Go on where another left, whose options were others: what is not written any more becomes stale."""
        self._seen, self._alive = before._seen, before._alive

    def success(self, text: bytes, openmetrics: bool, scrape_ms: int, seconds: float) -> Round:
        """Take in a scraped page.

        Parameters
        ----------
        text : the page with :data:`ingest.exposition.PAD` behind it
        openmetrics : its format
        scrape_ms, seconds : when it was asked for, and how long the answer took

        Raises
        ------
        ExpositionError    the page cannot be read
        PageLimitError     it is beyond a limit
        """
        seen = self._parser.parse(text, scrape_ms, openmetrics)
        # A series with times of its own may pause without being gone, so it gets no stale marker.
        own_times = seen.own_times and not self._track_own_times
        refs = seen.refs[seen.ts_ms == scrape_ms] if own_times else seen.refs
        vanished, added = _NO_REFS, 0
        if not np.array_equal(refs, self._seen):
            added = len(np.setdiff1d(refs, self._seen))
            if self._alive:
                vanished = np.setdiff1d(self._seen, refs)
        self._seen, self._alive = refs, True
        report = (1.0, seconds, seen.scraped, seen.kept, added)
        batch = self._batch(seen.refs, seen.ts_ms, seen.bits, vanished, scrape_ms, report)
        return Round(batch, seen.scraped, seen.refused, seen.metadata, seen.exemplars)

    def metadata(self) -> list[Metadata]:
        """The metric families that its pages have described; called on any thread."""
        return self._parser.metadata()

    def failure(self, scrape_ms: int, seconds: float, scraped: int = 0, kept: int = 0) -> Round:
        """The target could not be read: everything it had is stale, ``up`` is 0.

        Parameters
        ----------
        scraped, kept : samples of a page that was beyond a limit, before and after relabelling
        """
        return Round(self._batch_of_stale(scrape_ms, (0.0, seconds, scraped, kept, 0.0)))

    def end(self, now_ms: int) -> Round:
        """The target is no longer scraped: everything is stale, the series about the scrape included."""
        return Round(self._batch_of_stale(now_ms, None))

    def _batch_of_stale(self, now_ms: int, report: tuple[float, ...] | None) -> SampleBatch:
        vanished = np.unique(self._seen) if self._alive else _NO_REFS
        self._alive = False
        return self._batch(_NO_REFS, np.zeros(0, np.int64), np.zeros(0, np.uint64), vanished, now_ms, report)

    def _batch(
        self,
        refs: NDArray[np.uint32],
        ts_ms: NDArray[np.int64],
        bits: NDArray[np.uint64],
        vanished: NDArray[np.uint32],
        now_ms: int,
        report: tuple[float, ...] | None,
    ) -> SampleBatch:
        if not len(self._report_refs):
            rows = [self._registry.resolve({**self._labels, "__name__": name}) for name in REPORT_NAMES]
            self._report_refs = np.array(rows, np.uint32)
        n_stale, n_report = len(vanished), len(REPORT_NAMES)
        report_bits: NDArray[np.uint64] = np.full(n_report, STALE_BITS, np.uint64)
        if report is not None:
            report_bits = np.array(report, np.float64).view(np.uint64)
        return SampleBatch(
            np.concatenate((refs, vanished, self._report_refs)),
            np.concatenate((ts_ms, np.full(n_stale + n_report, now_ms, np.int64))),
            np.concatenate((bits, np.full(n_stale, STALE_BITS, np.uint64), report_bits)),
        )
