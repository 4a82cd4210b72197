"""Remote-write 1.0 without HTTP: a compressed body in, samples by series number out.

The walk is one kernel (:mod:`ingest.kernels.remote_write`). Series that the key table does not know are
resolved all at once afterwards; what is wrong with a series refuses that series and keeps the rest.
"""

from __future__ import annotations

import logging
import struct

import numpy as np
from numpy.typing import NDArray

from ingest.buffers import RequestBuffers, Spares
from ingest.exemplars import Exemplar, keep_exemplars
from ingest.kernels import remote_write as kernels
from ingest.kernels.exemplars import FOUND_COLUMNS, find_exemplars
from ingest.limits import WriteLimits
from ingest.reception import EXAMPLE_CHARS, Reception, Refusals, SampleWriter, labels_text
from ingest.replicas import LabelSpans, ReplicaLabels, first_message
from ingest.snappy import decompress
from ingest.store import Metadata, Tenant
from ingest.wire import fields
from tsdb.batch import SampleBatch
from tsdb.errors import LimitError, Reason, RejectedError
from tsdb.index.registry import REJECT_CODES, SeriesRegistry
from tsdb.replicas import ReplicaSource

log = logging.getLogger(__name__)

METADATA_TYPES = ("unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset")


class _Scratch(RequestBuffers):
    """Buffers of one request."""

    def __init__(self) -> None:
        super().__init__()
        self.facts: NDArray[np.int64] = np.zeros(kernels.FACTS, np.int64)

    def set_room(self, samples: int) -> None:
        """Outputs for so many samples, missed series and metadata entries."""
        self.refs: NDArray[np.uint32] = np.empty(samples, np.uint32)
        self.ts_ms: NDArray[np.int64] = np.empty(samples, np.int64)
        self.bits: NDArray[np.uint64] = np.empty(samples, np.uint64)
        self.misses: NDArray[np.int64] = np.empty((samples, kernels.MISS_COLUMNS), np.int64)
        self.metadata: NDArray[np.int64] = np.empty((samples, 2), np.int64)


class RemoteWriteReceiver:
    """Reads remote-write requests of any tenant; used by many threads at once.

    Parameters
    ----------
    writer : hands samples to the store
    limits : what one request may be
    pairs : labels of pairs of senders; None = there are none
    """

    def __init__(
        self, writer: SampleWriter, limits: WriteLimits | None = None, pairs: ReplicaLabels | None = None
    ) -> None:
        self._writer = writer
        self._limits = limits or WriteLimits()
        self._pairs = pairs
        self._scratch = Spares(_Scratch)
        self._warned_native = False

    def receive(self, tenant: Tenant, body: bytes) -> Reception:
        """Parse a snappy-compressed v1 body and hand its samples to the store.

        Raises
        ------
        RejectedError       the whole body is refused: MALFORMED or BODY_TOO_LARGE; nothing of it was kept
        UnavailableError    the store cannot take it now; nothing of it was kept
        """
        scratch = self._scratch.take()
        try:
            scratch.raw, size = decompress(body, scratch.raw, self._limits.decoded_bytes_max)
            registry = tenant.registry
            n_samples = self._parse(registry, size, scratch)
            facts: list[int] = scratch.facts.tolist()
            if not facts[kernels.FACT_OWN_FIELDS] and facts[kernels.FACT_V2_FIELDS]:
                raise RejectedError(Reason.MALFORMED, "the body is a remote-write 2.0 request under the 1.0 type")
            entries = self._metadata(scratch, facts[kernels.FACT_METADATA])
            return self._hand_over(tenant, registry, size, n_samples, facts, entries, scratch)
        finally:
            scratch.trim()
            self._scratch.give(scratch)

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
            number = kind if isinstance(kind, int) and kind < len(METADATA_TYPES) else 0
            entries.append(Metadata(texts[0], METADATA_TYPES[number], texts[1], texts[2]))
        return entries

    def _hand_over(
        self,
        tenant: Tenant,
        registry: SeriesRegistry,
        size: int,
        n_samples: int,
        facts: list[int],
        entries: list[Metadata],
        scratch: _Scratch,
    ) -> Reception:
        refusals = Refusals()
        refs = scratch.refs[:n_samples].copy()
        ts_ms = scratch.ts_ms[:n_samples].copy()
        bits = scratch.bits[:n_samples].copy()
        keep: NDArray[np.bool_] | None = None
        if facts[kernels.FACT_MISSES]:
            keep = self._resolve(registry, facts[kernels.FACT_MISSES], refs, refusals, scratch)
        if facts[kernels.FACT_HISTOGRAMS]:
            self._refuse_histograms(facts, refusals, scratch)
        source = self._source(scratch.raw, size) if self._pairs else None
        reception = self._writer.write(
            tenant,
            SampleBatch(refs, ts_ms, bits, registry),
            keep,
            refusals,
            sent=n_samples + facts[kernels.FACT_HISTOGRAMS],
            newest_ms=facts[kernels.FACT_NEWEST_MS],
            unsorted=bool(facts[kernels.FACT_UNSORTED]),
            metadata=entries,
            source=source,
        )
        if facts[kernels.FACT_EXEMPLARS] and (source is None or tenant.replicas.would_keep(source)):
            rows = _exemplars(registry, scratch.raw, size, facts[kernels.FACT_EXEMPLARS])
            keep_exemplars(tenant.exemplars, registry, rows, self._writer.tally)
        return reception

    def _source(self, raw: NDArray[np.uint8], size: int) -> ReplicaSource | None:
        """Who sends, by the labels of the first series: a sender puts its own on all of them."""
        assert self._pairs is not None
        labels = map(_label, _submessages(first_message(raw, size, 1), 1))
        return self._pairs.source(labels, self._writer.clock.now_ms())

    def _resolve(
        self, registry: SeriesRegistry, count: int, refs: NDArray[np.uint32], refusals: Refusals, scratch: _Scratch
    ) -> NDArray[np.bool_] | None:
        """Find or create the missed series, fill in their refs; which samples stay, None = all."""
        misses = scratch.misses[:count]
        offsets, spans = label_ranges(scratch.raw, misses)
        asked = LabelSpans(offsets, *spans)
        if self._pairs:
            asked = asked.without_replica(scratch.raw, self._pairs)
        found = registry.resolve_spans(scratch.raw, *asked)
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
            raw[first[i] : last[i]][:EXAMPLE_CHARS].tobytes().decode("utf-8", "replace")
            for first, last in ((spans[0], spans[1]), (spans[2], spans[3]))
        )
        pairs.append((name, value))
    return labels_text(pairs)


def _exemplars(registry: SeriesRegistry, raw: NDArray[np.uint8], size: int, count: int) -> list[Exemplar]:
    """The exemplars of a body, those without a value or with unreadable labels left out."""
    found: NDArray[np.int64] = np.empty((count, FOUND_COLUMNS), np.int64)
    table = registry.keys.arrays()
    find_exemplars(raw, size, table.key_bytes, table.key_offsets, table.key_lengths, table.key_refs, table.slots, found)
    rows = []
    for ref, begin, end, series_begin, series_end in found.tolist():
        message = raw[begin:end].tobytes()
        if ref == kernels.PENDING:  # a series without samples so far, or with labels in odd places
            pairs = [_label(inner) for inner in _submessages(raw[series_begin:series_end].tobytes(), 1)]
            try:
                labels = {name.decode(): value.decode() for name, value in pairs}
                ref = registry.resolve(labels)
            except (RejectedError, UnicodeDecodeError):
                continue  # its samples, if there are any, have been refused and counted
        known = dict(fields(message))
        bits, stamp = known.get(2, bytes(8)), known.get(3, 0)
        if isinstance(bits, bytes) and len(bits) == 8 and isinstance(stamp, int):
            ts_ms = stamp - (1 << 64) if stamp >> 63 else stamp
            labels_of = [_label(inner) for inner in _submessages(message, 1)]
            rows.append(Exemplar(ref, ts_ms, struct.unpack("<Q", bits)[0], labels_of))
    return rows


def _submessages(message: bytes, number: int) -> list[bytes]:
    return [value for field, value in fields(message) if field == number and isinstance(value, bytes)]


def _label(message: bytes) -> tuple[bytes, bytes]:
    texts = {number: value for number, value in fields(message) if isinstance(value, bytes)}
    return texts.get(1, b""), texts.get(2, b"")
