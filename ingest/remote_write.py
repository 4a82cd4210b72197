"""Remote-write 1.0 without HTTP: a compressed body in, samples by series number out.

The walk is one kernel (:mod:`ingest.kernels.remote_write`). Series that the key table does not know are
resolved all at once afterwards; what is wrong with a series refuses that series and keeps the rest.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future

import cramjam
import numpy as np
from numpy.typing import NDArray

from ingest.kernels import remote_write as kernels
from ingest.limits import WriteLimits
from ingest.store import Metadata, Tenant
from ingest.wire import fields, read_varint
from tsdb.batch import STATUS_REASON, AppendResult, SampleBatch
from tsdb.clock import Clock
from tsdb.errors import LimitError, Reason, RejectedError
from tsdb.index.registry import REJECT_CODES, SeriesRegistry
from tsdb.limits import TimeLimits
from tsdb.tally import Tally

log = logging.getLogger(__name__)

PAD_BYTES = 64  # kernels load eight bytes at a time and may look past a body's end
_KEPT_BYTES_MAX = 8 << 20  # a thread keeps its buffers below this; a larger body gets its own
_FRAMED = b"\xff\x06\x00\x00sNaPpY"
_METADATA_TYPES = ("unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset")

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
}
_EXAMPLES_A_REASON = 3
_EXAMPLES_A_REQUEST = 10
_EXAMPLE_CHARS = 240


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
            shown.append(text if len(text) <= _EXAMPLE_CHARS else text[:_EXAMPLE_CHARS] + "...")

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
    """

    __slots__ = ("_batch", "_late_reason", "_registry", "future", "refusals", "sent")

    def __init__(
        self, registry: SeriesRegistry, batch: SampleBatch, sent: int, refusals: Refusals, late_reason: Reason
    ) -> None:
        self._registry = registry
        self._late_reason = late_reason
        self._batch = batch
        self.future: Future[AppendResult] | None = None
        self.sent = sent
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
            yield sample_text(self._registry, self._batch, int(i))


class _Scratch(threading.local):
    """Buffers of one thread: fresh pages would cost more than the work done in them."""

    def __init__(self) -> None:
        self.raw: NDArray[np.uint8] = np.zeros((1 << 20) + PAD_BYTES, np.uint8)
        self.facts: NDArray[np.int64] = np.zeros(kernels.FACTS, np.int64)
        self.set_room(4096)

    def set_room(self, samples: int) -> None:
        """Outputs for so many samples, missed series and metadata entries."""
        self.refs: NDArray[np.uint32] = np.empty(samples, np.uint32)
        self.ts_ms: NDArray[np.int64] = np.empty(samples, np.int64)
        self.bits: NDArray[np.uint64] = np.empty(samples, np.uint64)
        self.misses: NDArray[np.int64] = np.empty((samples, kernels.MISS_COLUMNS), np.int64)
        self.metadata: NDArray[np.int64] = np.empty((samples, 2), np.int64)

    def trim(self) -> None:
        """Let go of what an unusually large request needed."""
        if self.raw.nbytes > _KEPT_BYTES_MAX:
            self.raw = np.zeros((1 << 20) + PAD_BYTES, np.uint8)
        if self.misses.nbytes > _KEPT_BYTES_MAX:
            self.set_room(4096)


class RemoteWriteReceiver:
    """Reads remote-write requests of any tenant; used by many threads at once.

    Parameters
    ----------
    clock : for the check of far-future samples, made at receive only
    tally : counts of what was refused
    limits, times : see their classes
    """

    def __init__(
        self, clock: Clock, tally: Tally, limits: WriteLimits | None = None, times: TimeLimits | None = None
    ) -> None:
        self._clock = clock
        self._tally = tally
        self._limits = limits or WriteLimits()
        times = times or TimeLimits()
        self._future_max_ms = times.future_max_ms
        # Without a window, whatever is late is out of order; with one, it is too old.
        self._late_reason = Reason.TOO_OLD if times.out_of_order_window_ms else Reason.OUT_OF_ORDER
        self._scratch = _Scratch()
        self._warned_native = False

    def receive(self, tenant: Tenant, body: bytes) -> Reception:
        """Parse a snappy-compressed v1 body and hand its samples to the store.

        Raises
        ------
        RejectedError       the whole body is refused: MALFORMED or BODY_TOO_LARGE; nothing of it was kept
        UnavailableError    the store cannot take it now; nothing of it was kept
        """
        scratch = self._scratch
        try:
            size = self._decompress(body, scratch)
            n_samples = self._parse(tenant.registry, size, scratch)
            facts: list[int] = scratch.facts.tolist()
            if not facts[kernels.FACT_OWN_FIELDS] and facts[kernels.FACT_V2_FIELDS]:
                raise RejectedError(Reason.MALFORMED, "the body is a remote-write 2.0 request under the 1.0 type")
            entries = self._metadata(scratch, facts[kernels.FACT_METADATA])
            return self._hand_over(tenant, n_samples, facts, entries, scratch)
        finally:
            scratch.trim()

    def _decompress(self, body: bytes, scratch: _Scratch) -> int:
        if body.startswith(_FRAMED):
            raise RejectedError(Reason.MALFORMED, "snappy framed format; the block format is needed")
        try:
            size, _ = read_varint(body, 0)
        except ValueError:
            raise RejectedError(Reason.MALFORMED, "snappy: no uncompressed length") from None
        limit = self._limits.decoded_bytes_max
        if size > limit:  # before anything is allocated: the length is the sender's claim
            raise LimitError(
                Reason.BODY_TOO_LARGE,
                f"uncompressed body of {size:,} bytes, the limit is {limit:,} (limits.ingest.decoded_bytes_max)",
            )
        if size + PAD_BYTES > len(scratch.raw):
            scratch.raw = np.zeros(min(2 * size, limit) + PAD_BYTES, np.uint8)
        try:
            cramjam.snappy.decompress_raw_into(body, scratch.raw.data)
        except cramjam.DecompressionError as error:
            raise RejectedError(Reason.MALFORMED, str(error)) from None
        return size

    def _parse(self, registry: SeriesRegistry, size: int, scratch: _Scratch) -> int:
        table = registry.keys.arrays()
        while True:
            n_samples = int(
                kernels.parse_write(
                    scratch.raw,
                    size,
                    *table,
                    scratch.refs,
                    scratch.ts_ms,
                    scratch.bits,
                    scratch.misses,
                    scratch.metadata,
                    scratch.facts,
                )
            )
            if n_samples == kernels.MALFORMED:
                at = int(scratch.facts[kernels.FACT_ERROR_AT])
                raise RejectedError(Reason.MALFORMED, f"malformed protobuf in the field at byte {at} of {size}")
            if n_samples != kernels.FULL:
                return n_samples
            room, limit = len(scratch.refs), self._limits.samples_max
            if room >= limit:
                raise LimitError(Reason.BODY_TOO_LARGE, f"more than {limit:,} samples in one request")
            scratch.set_room(min(2 * room, limit))

    @staticmethod
    def _metadata(scratch: _Scratch, count: int) -> list[Metadata]:
        entries = []
        for begin, end in scratch.metadata[:count].tolist():
            found: dict[int, int | bytes] = dict(fields(scratch.raw[begin:end].tobytes()))
            kind = found.get(1)
            texts = [
                value.decode("utf-8", "replace") if isinstance(value := found.get(number, b""), bytes) else ""
                for number in (2, 4, 5)
            ]
            number = kind if isinstance(kind, int) and kind < len(_METADATA_TYPES) else 0
            entries.append(Metadata(texts[0], _METADATA_TYPES[number], texts[1], texts[2]))
        return entries

    def _hand_over(
        self, tenant: Tenant, n_samples: int, facts: list[int], entries: list[Metadata], scratch: _Scratch
    ) -> Reception:
        refusals = Refusals()
        refs = scratch.refs[:n_samples].copy()
        ts_ms = scratch.ts_ms[:n_samples].copy()
        bits = scratch.bits[:n_samples].copy()
        keep: NDArray[np.bool_] | None = None
        if facts[kernels.FACT_MISSES]:
            keep = self._resolve(tenant.registry, facts[kernels.FACT_MISSES], refs, refusals, scratch)
        latest = self._clock.now_ms() + self._future_max_ms
        if facts[kernels.FACT_NEWEST_MS] > latest:
            near = ts_ms <= latest
            far = ~near if keep is None else keep & ~near
            keep = near if keep is None else keep & near
            batch = SampleBatch(refs, ts_ms, bits)
            texts = (sample_text(tenant.registry, batch, int(i)) for i in np.flatnonzero(far))
            if far.any():
                refusals.add(Reason.FAR_FUTURE, int(far.sum()), texts)
        if keep is not None and not keep.all():
            refs, ts_ms, bits = refs[keep], ts_ms[keep], bits[keep]
        if facts[kernels.FACT_UNSORTED]:
            refs, ts_ms, bits = sort_within_series(refs, ts_ms, bits)
        if facts[kernels.FACT_HISTOGRAMS]:
            self._refuse_histograms(facts, refusals, scratch)
        if facts[kernels.FACT_EXEMPLARS]:
            self._tally.add(Reason.EXEMPLAR, facts[kernels.FACT_EXEMPLARS])
        batch = SampleBatch(refs, ts_ms, bits)
        sent = n_samples + facts[kernels.FACT_HISTOGRAMS]
        reception = Reception(tenant.registry, batch, sent, refusals, self._late_reason)
        if entries:
            tenant.put_metadata(entries)
        if len(refs):
            reception.future = tenant.append(batch)
        if refusals.counts:
            self._tally.add_all(refusals.counts)
        return reception

    @staticmethod
    def _resolve(
        registry: SeriesRegistry, count: int, refs: NDArray[np.uint32], refusals: Refusals, scratch: _Scratch
    ) -> NDArray[np.bool_] | None:
        """Find or create the missed series, fill in their refs; which samples stay, None = all."""
        misses = scratch.misses[:count]
        offsets, spans = label_ranges(scratch.raw, misses)
        found = registry.resolve_spans(scratch.raw, offsets, *spans)
        ends = misses[:, kernels.MISS_KEY_END]
        as_key = (found >= 0) & (ends >= 0)
        begins = misses[:, kernels.MISS_KEY_BEGIN]
        registry.keys.add_batch(scratch.raw, begins[as_key], ends[as_key], found[as_key].astype(np.uint32))
        per_sample = np.repeat(found, misses[:, kernels.MISS_SAMPLES])
        pending = np.flatnonzero(refs == kernels.PENDING)
        refs[pending] = np.maximum(per_sample, 0).astype(np.uint32)
        bad = np.flatnonzero(found < 0)
        if not len(bad):
            return None
        for code in np.unique(found[bad]).tolist():
            rows = np.flatnonzero(found == code)
            texts = (_spans_text(scratch.raw, offsets, spans, int(row)) for row in rows)
            refusals.add(REJECT_CODES[-code], int(misses[rows, kernels.MISS_SAMPLES].sum()), texts)
        keep = np.ones(len(refs), np.bool_)
        keep[pending[per_sample < 0]] = False
        return keep

    def _refuse_histograms(self, facts: list[int], refusals: Refusals, scratch: _Scratch) -> None:
        if not self._warned_native:
            self._warned_native = True
            log.warning("a sender writes native histograms, which are refused: disable them at the sender")
        shown = min(facts[kernels.FACT_NATIVE_SERIES], kernels.NATIVE_RANGES)
        ranges = np.zeros((shown, kernels.MISS_COLUMNS), np.int64)
        first = kernels.FACT_NATIVE_RANGES
        ranges[:, : kernels.MISS_SERIES_END + 1] = scratch.facts[first : first + 2 * shown].reshape(shown, 2)
        offsets, spans = label_ranges(scratch.raw, ranges)
        texts = (_spans_text(scratch.raw, offsets, spans, row) for row in range(shown))
        refusals.add(Reason.NATIVE_HISTOGRAM, facts[kernels.FACT_HISTOGRAMS], texts)


Spans = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def label_ranges(raw: NDArray[np.uint8], misses: NDArray[np.int64]) -> tuple[NDArray[np.int64], Spans]:
    """Where the labels of missed series lie: (offsets (m + 1,), (name begin, name end, value begin, value end))."""
    offsets: NDArray[np.int64] = np.empty(len(misses) + 1, np.int64)
    room = 32 * len(misses)
    while True:
        spans = tuple(np.empty(room, np.int64) for _ in range(4))
        count = int(kernels.label_spans(raw, misses, offsets, *spans))
        if count <= room:
            return offsets, (spans[0][:count], spans[1][:count], spans[2][:count], spans[3][:count])
        room = count


def _spans_text(raw: NDArray[np.uint8], offsets: NDArray[np.int64], spans: Spans, row: int) -> str:
    begin, end = int(offsets[row]), int(min(offsets[row + 1], offsets[row] + 16))
    pairs = []
    for i in range(begin, end):
        name, value = (
            raw[first[i] : last[i]][:_EXAMPLE_CHARS].tobytes().decode("utf-8", "replace")
            for first, last in ((spans[0], spans[1]), (spans[2], spans[3]))
        )
        pairs.append((name, value))
    return labels_text(pairs)


def labels_text(pairs: Iterable[tuple[str, str]]) -> str:
    """A series as people write it: ``{__name__="up",job="x"}``."""
    return "{" + ",".join(f'{name}="{value}"' for name, value in pairs) + "}"


def sample_text(registry: SeriesRegistry, batch: SampleBatch, index: int) -> str:
    """Series and time of one sample of a batch."""
    data, offsets = registry.canonical(batch.refs[index : index + 1])
    texts = data[: int(offsets[1])].tobytes().split(b"\xff")[:-1]
    names = [text.decode("utf-8", "replace") for text in texts]
    return f"{labels_text(zip(names[::2], names[1::2], strict=True))} at {batch.ts_ms[index]} ms"


def sort_within_series(
    refs: NDArray[np.uint32], ts_ms: NDArray[np.int64], bits: NDArray[np.uint64]
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.uint64]]:
    """Neighbouring samples of one series in ascending time; equal times keep their order."""
    run = np.zeros(len(refs), np.int64)
    np.cumsum(refs[1:] != refs[:-1], out=run[1:])
    order = np.lexsort((ts_ms, run))
    return refs[order], ts_ms[order], bits[order]
