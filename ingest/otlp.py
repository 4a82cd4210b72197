"""OTLP metrics without HTTP or gRPC: a request in, samples by series number out.

The walk is one kernel (:mod:`ingest.kernels.otlp`); data points that are new go through
:mod:`ingest.otlp_points`, as do those that no fast way reads (summaries).
"""

from __future__ import annotations

import struct
import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ingest.buffers import RequestBuffers, Spares
from ingest.exemplars import Exemplar, keep_exemplars
from ingest.kernels import otlp as kernels
from ingest.kernels.snappy import PAD_BYTES
from ingest.limits import WriteLimits
from ingest.otlp_points import (
    Metric,
    Point,
    Resource,
    float_bits,
    point_bounds,
    read_exemplars,
    read_metric,
    read_point,
    read_resource,
)
from ingest.reception import Reception, Refusals, SampleWriter, labels_text
from ingest.store import Metadata, Tenant
from tsdb.arena import Arena
from tsdb.batch import SampleBatch
from tsdb.errors import LimitError, Reason, RejectedError
from tsdb.index.keys import KeyTable
from tsdb.index.registry import REJECT_CODES, SeriesRegistry

KEYS_MAX = 1 << 23
"""Data points that are known by their bytes, a tenant. The next one begins a new table."""

_KEY_BYTES_MAX = 4 << 30  # address space, like the following
_FAMILIES_MAX = 1 << 26
_RESOURCES_MAX = 1 << 16
_SCRATCH_BYTES = 1 << 16
_ONE = float_bits(1.0)
_NO_SERIES = 0xFFFFFFFF


class Spellings:
    """How the senders of one tenant spell its series.

    Attributes
    ----------
    resources : whole Resource messages -> place in ``known_resources``
    keys : data points without values -> place in ``families``
    families : (n,) uint32        runs of series, one run a key
    totals, newest_values, newest_ms : (series,) running totals of deltas, see ``kernels.accumulate``
    """

    def __init__(self, series_max: int, keys_max: int) -> None:
        self.lock = threading.Lock()
        self.full = False  # some table has no room: to be begun anew
        self.resources = KeyTable(_RESOURCES_MAX, _KEY_BYTES_MAX)
        self.known_resources: list[tuple[Resource, int]] = []  # with the ref of target_info, or _NO_SERIES
        self.keys = KeyTable(keys_max, _KEY_BYTES_MAX)
        self.families: NDArray[np.uint32] = Arena(np.uint32, _FAMILIES_MAX).array
        self.families_used = 0
        self.totals: NDArray[np.float64] = Arena(np.float64, series_max).array
        self.newest_values: NDArray[np.float64] = Arena(np.float64, series_max).array
        self.newest_ms: NDArray[np.int64] = Arena(np.int64, series_max).array

    def renewed(self, keys_max: int) -> Spellings:
        """Empty tables with the same totals: what is alive comes back at once, what is long gone does not."""
        fresh = Spellings(0, keys_max)
        fresh.lock = self.lock
        fresh.totals, fresh.newest_values, fresh.newest_ms = self.totals, self.newest_values, self.newest_ms
        return fresh

    def take_totals(self, former: Spellings, refs: NDArray[np.int64], numbers: NDArray[np.uint32]) -> None:
        """Go on with the totals of a registry that has given way; a request that is on its way there adds to the old.

        Parameters
        ----------
        refs, numbers : (n,) of each series there and here
        """
        with former.lock:
            self.totals[numbers] = former.totals[refs]
            self.newest_values[numbers] = former.newest_values[refs]
            self.newest_ms[numbers] = former.newest_ms[refs]

    def add_families(self, runs: Sequence[Sequence[int]]) -> NDArray[np.uint32]:
        """Places of new runs; ``_NO_SERIES`` when there is no room."""
        places = np.full(len(runs), _NO_SERIES, np.uint32)
        with self.lock:
            for i, run in enumerate(runs):
                at = self.families_used
                if at + len(run) <= _FAMILIES_MAX:
                    self.families[at : at + len(run)] = run
                    self.families_used = at + len(run)
                    places[i] = at
        return places


class _Scratch(RequestBuffers):
    """Buffers of one request."""

    def __init__(self) -> None:
        super().__init__()
        self.facts: NDArray[np.int64] = np.zeros(kernels.FACTS, np.int64)
        self.key: NDArray[np.uint8] = np.zeros(_SCRATCH_BYTES, np.uint8)

    def set_room(self, samples: int) -> None:
        """Outputs for so many samples, missed points, resources and points with exemplars."""
        self.refs: NDArray[np.uint32] = np.empty(samples, np.uint32)
        self.ts_ms: NDArray[np.int64] = np.empty(samples, np.int64)
        self.bits: NDArray[np.uint64] = np.empty(samples, np.uint64)
        self.delta: NDArray[np.uint8] = np.empty(samples, np.uint8)
        self.misses: NDArray[np.int64] = np.empty((samples, kernels.MISS_COLUMNS), np.int64)
        self.resources: NDArray[np.int64] = np.empty((samples, kernels.RESOURCE_COLUMNS), np.int64)
        self.exemplars: NDArray[np.int64] = np.empty((samples, kernels.EXEMPLAR_COLUMNS), np.int64)

    def load(self, body: bytes) -> None:
        """Copy a body to where bytes may be read behind it."""
        if len(body) + PAD_BYTES > len(self.raw):
            self.raw = np.zeros(2 * len(body) + PAD_BYTES, np.uint8)
        self.raw[: len(body)] = np.frombuffer(body, np.uint8)


class OtlpReceiver:
    """Reads OTLP metrics requests (protobuf, decompressed) of any tenant; used by many threads at once.

    Parameters
    ----------
    writer : hands samples to the store
    limits : what one request may be
    keys_max : data points known by their bytes, a tenant
    accept_delta : whether points of delta temporality are added up to running totals; otherwise they are refused
    """

    def __init__(
        self,
        writer: SampleWriter,
        limits: WriteLimits | None = None,
        accept_delta: bool = False,
        keys_max: int = KEYS_MAX,
    ) -> None:
        self._keys_max = keys_max
        self._writer = writer
        self._limits = limits or WriteLimits()
        self._accept_delta = accept_delta
        self._scratch = Spares(_Scratch)
        self._spellings: weakref.WeakKeyDictionary[SeriesRegistry, Spellings] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    @property
    def decoded_bytes_max(self) -> int:
        """Most bytes of a request after decompression."""
        return self._limits.decoded_bytes_max

    def receive(self, tenant: Tenant, body: bytes) -> Reception:
        """Parse a request and hand its samples to the store.

        Raises
        ------
        RejectedError       the whole body is refused: MALFORMED or BODY_TOO_LARGE; nothing of it was kept
        UnavailableError    the store cannot take it now; nothing of it was kept
        """
        scratch = self._scratch.take()
        try:
            scratch.load(body)
            registry = tenant.registry
            spellings = self._spellings_of(registry)
            n_samples = self._parse(spellings, len(body), scratch)
            return _Request(tenant, registry, spellings, scratch, n_samples).store(self._writer)
        finally:
            scratch.trim()
            self._scratch.give(scratch)

    def _spellings_of(self, registry: SeriesRegistry) -> Spellings:
        found = self._spellings.get(registry)
        if found is None or found.full:
            with self._lock:
                found = self._spellings.get(registry)
                if found is None:
                    found = Spellings(len(registry.series_hash), self._keys_max)
                    for former, spellings in list(self._spellings.items()):
                        moved = former.moved_to(registry)
                        if moved is not None:
                            found.take_totals(spellings, *moved)
                elif found.full:
                    found = found.renewed(self._keys_max)
                self._spellings[registry] = found
        return found

    def _parse(self, spellings: Spellings, size: int, scratch: _Scratch) -> int:
        resources = spellings.resources.arrays()
        while True:
            n_samples = int(
                kernels.parse_otlp(
                    scratch.raw, size, int(self._accept_delta),
                    resources.key_bytes, resources.key_offsets, resources.key_lengths, resources.key_refs,
                    resources.slots,
                    *spellings.keys.arrays(), spellings.families, scratch.key,
                    scratch.refs, scratch.ts_ms, scratch.bits, scratch.bits.view(np.float64), scratch.delta,
                    scratch.misses, scratch.resources, scratch.exemplars, scratch.facts,
                )
            )  # fmt: skip
            if n_samples == kernels.MALFORMED:
                at = int(scratch.facts[kernels.FACT_ERROR_AT])
                raise RejectedError(Reason.MALFORMED, f"malformed protobuf in the field at byte {at} of {size}")
            if n_samples != kernels.FULL:
                return n_samples
            room = 2 * len(scratch.refs)
            if room > 2 * self._limits.samples_max:
                limit = self._limits.samples_max
                raise LimitError(Reason.BODY_TOO_LARGE, f"more than {limit:,} samples in one request")
            scratch.set_room(room)


class _Request:
    """One request on its way from the kernel's outputs to the store."""

    def __init__(
        self, tenant: Tenant, registry: SeriesRegistry, spellings: Spellings, scratch: _Scratch, n_samples: int
    ) -> None:
        self._tenant = tenant
        self._registry = registry
        self._spellings = spellings
        self._raw = scratch.raw
        self._facts: list[int] = scratch.facts.tolist()
        self._refs = scratch.refs[:n_samples].copy()
        self._ts_ms = scratch.ts_ms[:n_samples].copy()
        self._bits = scratch.bits[:n_samples].copy()
        self._delta = scratch.delta[:n_samples].copy()
        self._misses = scratch.misses[: self._facts[kernels.FACT_MISSES]]
        self._resource_rows: list[list[int]] = scratch.resources[: self._facts[kernels.FACT_RESOURCES]].tolist()
        self._exemplar_rows: list[list[int]] = scratch.exemplars[: self._facts[kernels.FACT_EXEMPLARS]].tolist()
        self._resources: list[tuple[Resource, int]] = []
        self._refusals = Refusals()
        self._sent = n_samples
        self._metadata: dict[str, Metadata] = {}
        self._exemplars: list[Exemplar] = []

    def store(self, writer: SampleWriter) -> Reception:
        """Resolve what is new, then write everything."""
        self._refuse_kinds()
        self._find_resources()
        new_keys = self._take_misses() if len(self._misses) else None
        self._add_target_info()
        batch = SampleBatch(self._refs, self._ts_ms, self._bits, self._registry)
        keep = self._accumulate(batch) if self._delta.any() else None
        reception = writer.write(
            self._tenant,
            batch,
            keep,
            self._refusals,
            sent=self._sent,
            newest_ms=int(self._ts_ms.max(initial=kernels.OLDEST_MS)),
            unsorted=_descends(batch),
            metadata=list(self._metadata.values()),
        )
        # Only now: what a busy store did not take has to be new again when it is repeated.
        if new_keys is not None:
            self._add_keys(*new_keys)
        for first, flags, begin, end in self._exemplar_rows:
            message = self._raw[begin:end].tobytes()
            bounds = point_bounds(message) if flags & 0xFF == kernels.HISTOGRAM else []
            for place, exemplar in read_exemplars(message, flags, bounds):
                self._exemplars.append(exemplar._replace(ref=int(batch.refs[first + place])))
        if self._exemplars:
            kept = keep_exemplars(self._tenant.exemplars, self._registry, self._exemplars, writer.tally)
            reception.exemplars_written = kept.written
        return reception

    def _refuse_kinds(self) -> None:
        for reason, count, begin, end in (
            (
                Reason.EXPONENTIAL_HISTOGRAM,
                kernels.FACT_EXPONENTIAL,
                kernels.FACT_EXPONENTIAL_BEGIN,
                kernels.FACT_EXPONENTIAL_END,
            ),
            (Reason.TEMPORALITY, kernels.FACT_DELTA, kernels.FACT_DELTA_BEGIN, kernels.FACT_DELTA_END),
        ):
            if self._facts[count]:
                metric = read_metric(self._raw[self._facts[begin] : self._facts[end]].tobytes(), kernels.HISTOGRAM)
                name = metric.sent_name.encode("utf-8", "replace").decode()
                self._refusals.add(reason, self._facts[count], [name])
                self._sent += self._facts[count]

    def _find_resources(self) -> None:
        """Read the resources that are new; remember them."""
        spellings = self._spellings
        for begin, end, number, _ in self._resource_rows:
            if number >= 0:
                self._resources.append(spellings.known_resources[number])
                continue
            message = self._raw[begin:end].tobytes()
            resource = read_resource(message)
            ref = _NO_SERIES
            if resource.info is not None:
                try:
                    ref = self._registry.resolve(resource.info)
                except RejectedError as error:
                    self._refusals.add(error.reason, 1, [labels_text(resource.info.items())])
                    self._sent += 1
            entry = (resource, ref)
            self._resources.append(entry)
            if resource.info is None or ref != _NO_SERIES:
                with spellings.lock:
                    spellings.known_resources.append(entry)
                    spellings.full |= spellings.resources.add(message, len(spellings.known_resources) - 1) < 0

    def _add_target_info(self) -> None:
        """One sample for each resource that has a description, at the time of its newest point."""
        rows = [
            (ref, row[kernels.RESOURCE_NEWEST_MS])
            for row, (_, ref) in zip(self._resource_rows, self._resources, strict=True)
            if ref != _NO_SERIES and row[kernels.RESOURCE_NEWEST_MS] != kernels.OLDEST_MS
        ]
        if rows:
            rows = list(dict.fromkeys(rows))
            refs, ts_ms = zip(*rows, strict=True)
            self._append(refs, ts_ms, [_ONE] * len(rows), 0)
            self._sent += len(rows)
            self._metadata.setdefault("target_info", Metadata("target_info", "gauge", "Target metadata", ""))

    def _append(self, refs: Sequence[int], ts_ms: Sequence[int], bits: Sequence[int], delta: int) -> None:
        self._refs = np.concatenate((self._refs, np.array(refs, np.uint32)))
        self._ts_ms = np.concatenate((self._ts_ms, np.array(ts_ms, np.int64)))
        self._bits = np.concatenate((self._bits, np.array(bits, np.uint64)))
        self._delta = np.concatenate((self._delta, np.full(len(refs), delta, np.uint8)))

    def _take_misses(self) -> tuple[list[list[int]], list[list[int]]]:
        """Read the points that are new; (their rows, their series) of those that get a key."""
        rows: list[list[int]] = self._misses.tolist()
        points = self._read_points(rows)
        found = self._resolve(points)
        keyed: tuple[list[list[int]], list[list[int]]] = ([], [])
        at = 0
        refs: list[int] = []
        ts_ms: list[int] = []
        bits: list[int] = []
        deltas: list[int] = []
        for row, point in zip(rows, points, strict=True):
            own = found[at : at + len(point.series)]
            at += len(point.series)
            is_delta = int(bool(row[kernels.MISS_FLAGS] & kernels.FLAG_DELTA))
            for ref, value in zip(own, point.bits, strict=True):
                if ref >= 0:
                    refs.append(ref)
                    ts_ms.append(point.ts_ms)
                    bits.append(value)
                    deltas.append(is_delta)
            self._exemplars += [one._replace(ref=own[place]) for place, one in point.exemplars if own[place] >= 0]
            if row[kernels.MISS_ATTRIBUTES_END] >= 0 and min(own) >= 0:
                keyed[0].append(row)
                keyed[1].append(own)
        self._sent += at
        self._append(refs, ts_ms, bits, 0)
        self._delta[len(self._delta) - len(deltas) :] = deltas
        return keyed

    def _read_points(self, rows: Sequence[Sequence[int]]) -> list[Point]:
        metrics: dict[tuple[int, int], Metric] = {}
        points = []
        for row in rows:
            flags = row[kernels.MISS_FLAGS]
            begin, end = row[kernels.MISS_METRIC_BEGIN], row[kernels.MISS_METRIC_END]
            what = (begin, flags & ~kernels.FLAG_HAS_SUM)
            metric = metrics.get(what)
            if metric is None:
                metric = metrics[what] = read_metric(self._raw[begin:end].tobytes(), flags)
                if metric.name:
                    self._metadata[metric.name] = metric.metadata
            resource, _ = self._resources[row[kernels.MISS_RESOURCE]]
            message = self._raw[row[kernels.MISS_BEGIN] : row[kernels.MISS_END]].tobytes()
            points.append(read_point(message, flags, metric, resource))
        return points

    def _resolve(self, points: Sequence[Point]) -> list[int]:
        """Series of all samples of some points, made where they are new; -1 = refused."""
        parts: list[bytes] = []
        offsets = [0]
        for point in points:
            for labels in point.series:
                for name, value in labels.items():
                    parts += (name.encode("utf-8", "surrogateescape"), value.encode("utf-8", "surrogateescape"))
                offsets.append(len(parts) // 2)
        edges: NDArray[np.int64] = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=edges[1:])
        found = self._registry.resolve_spans(
            np.frombuffer(b"".join(parts) + bytes(PAD_BYTES), np.uint8),
            np.array(offsets, np.int64),
            edges[:-1:2].copy(),
            edges[1::2].copy(),
            edges[1::2].copy(),
            edges[2::2].copy(),
        ).tolist()
        refused: Counter[int] = Counter(code for code in found if code < 0)
        if refused:
            labels_of_all: list[Mapping[str, str]] = [labels for point in points for labels in point.series]
            for code, count in refused.items():
                shown = (labels_text(labels_of_all[i].items()) for i, ref in enumerate(found) if ref == code)
                self._refusals.add(REJECT_CODES[-code], count, (_shown(text) for text in shown))
        return [max(ref, -1) for ref in found]

    def _add_keys(self, rows: Sequence[Sequence[int]], runs: Sequence[Sequence[int]]) -> None:
        """Remember how the sender spells resolved points."""
        numbers = self._spellings.resources
        parts: list[bytes] = []
        kept: list[Sequence[int]] = []
        for row, run in zip(rows, runs, strict=True):
            begin, end = self._resource_rows[row[kernels.MISS_RESOURCE]][:2]
            known = numbers.find(self._raw[begin:end].tobytes())
            if known <= 0:
                continue
            number = int(numbers.arrays().key_refs[known])
            prefix = struct.pack("<IIQ", number, row[kernels.MISS_FLAGS], row[kernels.MISS_COUNTS] % (1 << 64))
            pieces = [
                self._raw[row[first] : row[first + 1]].tobytes()
                for first in (kernels.MISS_HEADER_BEGIN, kernels.MISS_BOUNDS_BEGIN, kernels.MISS_ATTRIBUTES_BEGIN)
            ]
            parts.append(prefix + b"".join(pieces))
            kept.append(run)
        if not parts:
            return
        places = self._spellings.add_families(kept)
        ends = np.cumsum([len(part) for part in parts])
        begins = ends - np.array([len(part) for part in parts])
        room = places != _NO_SERIES
        data: NDArray[np.uint8] = np.frombuffer(b"".join(parts) + bytes(PAD_BYTES), np.uint8)
        keys = self._spellings.keys.add_batch(data, begins[room], ends[room], places[room])
        if not room.all() or (keys < 0).any():
            self._spellings.full = True

    def _accumulate(self, batch: SampleBatch) -> NDArray[np.bool_]:
        """Turn the deltas of a batch into totals, in place; which samples to store."""
        spellings = self._spellings
        keep: NDArray[np.uint8] = np.empty(len(batch), np.uint8)
        with spellings.lock:
            refused = kernels.accumulate(
                batch.refs,
                batch.ts_ms,
                self._delta,
                batch.bits,
                batch.bits.view(np.float64),
                spellings.totals,
                spellings.newest_values,
                spellings.newest_ms,
                keep,
            )
        if refused:
            self._refusals.add(Reason.OUT_OF_ORDER, int(refused))
        return keep.astype(np.bool_)


def _descends(batch: SampleBatch) -> bool:
    """Whether a series has a sample right behind a later one."""
    same = batch.refs[1:] == batch.refs[:-1]
    return bool((same & (batch.ts_ms[1:] < batch.ts_ms[:-1])).any())


def _shown(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
