"""What one scrape target contributes: its samples, its staleness, its own health series. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

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

EXTRA_REPORT_NAMES = ("scrape_timeout_seconds", "scrape_sample_limit", "scrape_body_size_bytes")
"""Further ones with ``extra_scrape_metrics``."""

_NO_REFS: NDArray[np.uint32] = np.zeros(0, np.uint32)


class Answer(NamedTuple):
    """What is known of an answer beside its samples.

    Attributes
    ----------
    seconds : float       from the request to the last byte, or to the failure
    timeout_s : float     how long it might have taken
    body_bytes : int      decompressed; 0 when no page came, -1 when it was too large
    scraped, kept : int   samples of a page beyond a limit, before and after relabelling
    """

    seconds: float
    timeout_s: float
    body_bytes: int = 0
    scraped: int = 0
    kept: int = 0


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
        self._sample_limit = options.sample_limit
        self._future_max_ms = options.future_max_ms
        self._report_names = REPORT_NAMES + EXTRA_REPORT_NAMES if options.extra_scrape_metrics else REPORT_NAMES
        self._report_refs = _NO_REFS
        self._seen = _NO_REFS  # series of the last good scrape, without those that bring times of their own
        self._alive = False  # whether they are still without a stale marker

    def take_over(self, before: TargetSeries) -> None:
        """Go on where another left, whose options were others: what is not written any more becomes stale."""
        self.renew()
        before.renew()
        self._seen, self._alive = before._seen, before._alive
        if self._alive:
            self._seen = np.concatenate((self._seen, before._report_refs[len(self._report_names) :]))

    def renew(self) -> None:
        """Take the numbers that the tenant's series have now."""
        if not self._registry.is_current:
            registry, self._seen = self._registry.renumbered(self._seen)
            self._report_refs = _NO_REFS
            self._registry = registry
            self._parser.renew(registry)

    def success(self, text: bytes, openmetrics: bool, scrape_ms: int, answer: Answer) -> Round:
        """Take in a scraped page.

        Parameters
        ----------
        text : the page with :data:`ingest.exposition.PAD` behind it
        openmetrics : its format
        scrape_ms : when it was asked for

        Raises
        ------
        ExpositionError    the page cannot be read
        PageLimitError     it is beyond a limit
        """
        self.renew()
        seen = self._parser.parse(text, scrape_ms, openmetrics)
        if seen.own_times:
            seen = seen.until(scrape_ms + self._future_max_ms)
        # A series with times of its own may pause without being gone, so it gets no stale marker.
        own_times = seen.own_times and not self._track_own_times
        refs = seen.refs[seen.ts_ms == scrape_ms] if own_times else seen.refs
        vanished, added = _NO_REFS, 0
        if not np.array_equal(refs, self._seen):
            added = len(np.setdiff1d(refs, self._seen))
            if self._alive:
                vanished = np.setdiff1d(self._seen, refs)
        self._seen, self._alive = refs, True
        report = self._report(1.0, answer, seen.scraped, seen.kept, added)
        batch = self._batch(seen.refs, seen.ts_ms, seen.bits, vanished, scrape_ms, report)
        return Round(batch, seen.scraped, seen.refused, seen.metadata, seen.exemplars)

    def metadata(self) -> list[Metadata]:
        """The metric families that its pages have described; called on any thread."""
        return self._parser.metadata()

    def failure(self, scrape_ms: int, answer: Answer) -> Round:
        """The target could not be read: everything it had is stale, ``up`` is 0."""
        report = self._report(0.0, answer, answer.scraped, answer.kept, 0)
        return Round(self._batch_of_stale(scrape_ms, report))

    def tell_again(self) -> None:
        """What was read last could not be stored: metadata and exemplars count as new."""
        self._parser.tell_again()

    def _report(self, up: float, answer: Answer, scraped: int, kept: int, added: int) -> tuple[float, ...]:
        values = (up, answer.seconds, scraped, kept, added, answer.timeout_s, self._sample_limit, answer.body_bytes)
        return values[: len(self._report_names)]

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
            rows = [self._registry.resolve({**self._labels, "__name__": name}) for name in self._report_names]
            self._report_refs = np.array(rows, np.uint32)
        n_stale, n_report = len(vanished), len(self._report_names)
        report_bits: NDArray[np.uint64] = np.full(n_report, STALE_BITS, np.uint64)
        if report is not None:
            report_bits = np.array(report, np.float64).view(np.uint64)
        return SampleBatch(
            np.concatenate((refs, vanished, self._report_refs)),
            np.concatenate((ts_ms, np.full(n_stale + n_report, now_ms, np.int64))),
            np.concatenate((bits, np.full(n_stale, STALE_BITS, np.uint64), report_bits)),
            self._registry,
        )
