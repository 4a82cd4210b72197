"""What every push has in common once its bytes are parsed: hand samples to the store, say what was refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from ingest.store import Metadata, Tenant
from tsdb.batch import STATUS_REASON, AppendResult, SampleBatch
from tsdb.clock import Clock
from tsdb.errors import Reason
from tsdb.index.registry import SeriesRegistry
from tsdb.limits import TimeLimits
from tsdb.replicas import ReplicaSource
from tsdb.tally import Tally

REASON_TEXTS = {
    Reason.DUPLICATE: "duplicate sample for timestamp",
    Reason.OUT_OF_ORDER: "out of order sample",
    Reason.TOO_OLD: "too old sample",
    Reason.FAR_FUTURE: "out of bounds: timestamp is too far in the future",
    Reason.NATIVE_HISTOGRAM: "native histograms are not supported",
    Reason.NO_METRIC_NAME: "series without a metric name",
    Reason.NO_LABELS: "series without labels",
    Reason.DUPLICATE_LABEL: "duplicate label name",
    Reason.INVALID_UTF8: "label name or value is not valid UTF-8",
    Reason.SERIES_LIMIT: "too many active series of this tenant",
    Reason.EXPONENTIAL_HISTOGRAM: "exponential histograms are not supported",
    Reason.TEMPORALITY: "data points of delta or unspecified temporality are not accepted (otlp.delta)",
    Reason.NO_SAMPLES: "TimeSeries must contain at least one sample or histogram",
    Reason.EXEMPLAR_OUT_OF_ORDER: "out of order exemplar",
}
_EXAMPLES_A_REASON = 3
_EXAMPLES_A_REQUEST = 10
EXAMPLE_CHARS = 240


class Refusals:
    """What of one request was refused: counts by reason and the first few names."""

    __slots__ = ("_examples", "counts")

    def __init__(self) -> None:
        self.counts: Counter[Reason] = Counter()
        self._examples: dict[Reason, list[str]] = {}

    def add(self, reason: Reason, count: int, examples: Iterable[str] = ()) -> None:
        """Count ``count`` refused samples; ``examples`` is only read as far as names are still wanted."""
        self.counts[reason] += count
        shown = self._examples.setdefault(reason, [])
        room = min(_EXAMPLES_A_REASON - len(shown), _EXAMPLES_A_REQUEST - sum(map(len, self._examples.values())))
        for _, text in zip(range(room), examples, strict=False):
            shown.append(text if len(text) <= EXAMPLE_CHARS else text[:EXAMPLE_CHARS] + "...")

    def text(self, sent: int) -> str:
        """The body of the 400: one line a reason, below 4 KiB whatever was sent."""
        lines = [f"{sum(self.counts.values())} of {sent} samples refused, the rest was stored"]
        for reason, count in self.counts.most_common():
            names = "; ".join(self._examples.get(reason, ()))
            what = REASON_TEXTS.get(reason, reason.replace("_", " "))
            lines.append(f"{what}: {count}" + (f", first: {names}" if names else ""))
        return "\n".join(lines) + "\n"


class Reception:
    """One request, parsed and handed to the store.

    Attributes
    ----------
    future : outcome of the samples; None when there were none to store
    sent : samples in the request, native histograms included
    refusals : what was refused before the store saw it
    exemplars_written : exemplars kept, or there already
    """

    __slots__ = ("_batch", "_late_reason", "exemplars_written", "future", "refusals", "sent")

    def __init__(self, batch: SampleBatch, sent: int, refusals: Refusals, late_reason: Reason) -> None:
        self._late_reason = late_reason
        self._batch = batch
        self.future: Future[AppendResult] | None = None
        self.sent = sent
        self.exemplars_written = 0
        self.refusals = refusals

    def refused(self, result: AppendResult | None) -> str:
        """Text of what was refused, by us or by the store; "" when everything is stored."""
        if result is not None and result.rejected:
            for reason, count in result.rejected.items():
                shown = self._late_reason if reason is Reason.TOO_OLD else reason
                self.refusals.add(shown, count, self._examples(reason, result.status))
        return self.refusals.text(self.sent) if self.refusals.counts else ""

    def _examples(self, reason: Reason, status: NDArray[np.uint8]) -> Iterable[str]:
        codes = [code for code, known in STATUS_REASON.items() if known == reason]
        for i in np.flatnonzero(np.isin(status, codes))[:_EXAMPLES_A_REASON]:
            yield sample_text(self._batch, int(i))


class SampleWriter:
    """Hands parsed samples to the store; used by many threads at once.

    Parameters
    ----------
    clock : for the check of far-future samples, made at receive only
    tally : counts of what was refused
    times : which times are writable
    """

    def __init__(self, clock: Clock, tally: Tally, times: TimeLimits | None = None) -> None:
        times = times or TimeLimits()
        self.clock = clock
        self.tally = tally
        self._future_max_ms = times.future_max_ms
        # Without a window, whatever is late is out of order; with one, it is too old.
        self._late_reason = Reason.TOO_OLD if times.out_of_order_window_ms else Reason.OUT_OF_ORDER

    def write(
        self,
        tenant: Tenant,
        batch: SampleBatch,
        keep: NDArray[np.bool_] | None,
        refusals: Refusals,
        *,
        sent: int,
        newest_ms: int,
        unsorted: bool,
        metadata: Sequence[Metadata] = (),
        source: ReplicaSource | None = None,
    ) -> Reception:
        """Log and store the samples of one request.

        Parameters
        ----------
        keep : (n,) bool, which samples to store; None = all
        refusals : what was refused so far; goes into the tally
        sent : samples in the request, those refused included
        newest_ms : no sample is later
        unsorted : whether times within a series may descend
        metadata : of families, kept too
        source : who of a pair of senders it is

        Raises
        ------
        UnavailableError    the store cannot take it now; nothing of it was kept
        """
        refs, ts_ms, bits = batch.refs, batch.ts_ms, batch.bits
        latest = self.clock.now_ms() + self._future_max_ms
        if newest_ms > latest:
            near = ts_ms <= latest
            far = ~near if keep is None else keep & ~near
            keep = near if keep is None else keep & near
            texts = (sample_text(batch, int(i)) for i in np.flatnonzero(far))
            if far.any():
                refusals.add(Reason.FAR_FUTURE, int(far.sum()), texts)
        if keep is not None and not keep.all():
            refs, ts_ms, bits = refs[keep], ts_ms[keep], bits[keep]
        if unsorted:
            refs, ts_ms, bits = sort_within_series(refs, ts_ms, bits)
        batch = SampleBatch(refs, ts_ms, bits, batch.registry)
        reception = Reception(batch, sent, refusals, self._late_reason)
        if metadata:
            tenant.put_metadata(metadata)
        if len(refs):
            reception.future = tenant.append(batch, source)
        if refusals.counts:
            self.tally.add_all(refusals.counts)
        return reception


def labels_text(pairs: Iterable[tuple[str, str]]) -> str:
    """A series as people write it: ``{__name__="up",job="x"}``."""
    return "{" + ",".join(f'{name}="{value}"' for name, value in pairs) + "}"


def sample_text(batch: SampleBatch, index: int) -> str:
    """Series and time of one sample of a batch."""
    return f"{series_text(batch.registry, int(batch.refs[index]))} at {batch.ts_ms[index]} ms"


def series_text(registry: SeriesRegistry, ref: int) -> str:
    """Labels of a series by its number."""
    data, offsets = registry.canonical(np.array([ref], np.uint32))
    texts = data[: int(offsets[1])].tobytes().split(b"\xff")[:-1]
    names = [text.decode("utf-8", "replace") for text in texts]
    return labels_text(zip(names[::2], names[1::2], strict=True))


def sort_within_series(
    refs: NDArray[np.uint32], ts_ms: NDArray[np.int64], bits: NDArray[np.uint64]
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.uint64]]:
    """Neighbouring samples of one series in ascending time; equal times keep their order."""
    run = np.zeros(len(refs), np.int64)
    np.cumsum(refs[1:] != refs[:-1], out=run[1:])
    order = np.lexsort((ts_ms, run))
    return refs[order], ts_ms[order], bits[order]
