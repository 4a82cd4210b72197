"""Remote-write 2.0 without HTTP: a compressed body in, samples by series number out, true counts.

The walk is one kernel (:mod:`ingest.kernels.remote_write_v2`); Python sees series that are new, metadata that
changed and exemplars.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from ingest.buffers import RequestBuffers, Spares
from ingest.exemplars import Exemplar, keep_exemplars
from ingest.kernels import remote_write_v2 as kernels
from ingest.kernels.snappy import PAD_BYTES
from ingest.limits import WriteLimits
from ingest.reception import EXAMPLE_CHARS, Reception, Refusals, SampleWriter, labels_text, series_text
from ingest.remote_write import METADATA_TYPES
from ingest.replicas import LabelSpans, ReplicaLabels, first_message
from ingest.snappy import decompress
from ingest.store import Metadata, Tenant
from ingest.wire import fields, packed_varints
from tsdb.arena import Arena
from tsdb.batch import SampleBatch
from tsdb.errors import LimitError, Reason, RejectedError
from tsdb.index.keys import KeyTable
from tsdb.index.registry import REJECT_CODES, SPELLINGS_PER_SERIES, SeriesRegistry
from tsdb.index.symbols import SYMBOLS_MAX

log = logging.getLogger(__name__)

KEYS_MAX = SPELLINGS_PER_SERIES << 21
"""Spellings kept a tenant: four of each of two million series. The next one begins a new table."""

_KEY_BYTES_MAX = 4 << 30  # address space
_TABLES_MAX = 256  # requests whose tables are kept: at 2,000 series 250 kB each, 64 MB for half a million series
TABLE_BYTES_MIN = 4096  # smaller requests gain nothing
_SERIES_TAG = 0x2A
_REPLICAS_MAX = 10_000
_SUFFIXES = {"histogram": ("_bucket", "_count", "_sum"), "summary": ("_count", "_sum")}


class Spellings:
    """How the senders of one tenant spell its series, by the tenant's own symbols.

    Attributes
    ----------
    keys : runs of symbols -> series
    next_symbols : (symbols,) uint32      symbol that followed last time
    metadata : (keys,) uint32             hash of what was last said about a series
    replicas : names of senders of pairs that have a symbol
    """

    __slots__ = ("_lock", "_table_bytes_min", "_tables", "keys", "metadata", "next_symbols", "replicas")

    def __init__(self, keys_max: int, table_bytes_min: int) -> None:
        self.replicas: set[bytes] = set()
        self._table_bytes_min = table_bytes_min
        self._tables: dict[int, Table | None] = {}  # by the first bytes; None: seen once
        self._lock = threading.Lock()
        self.keys = KeyTable(keys_max, _KEY_BYTES_MAX)
        self.next_symbols: NDArray[np.uint32] = Arena(np.uint32, SYMBOLS_MAX).array
        self.metadata: NDArray[np.uint32] = Arena(np.uint32, keys_max + 1).array

    def find_table(self, raw: NDArray[np.uint8], size: int) -> tuple[int, Table | None]:
        """(what :meth:`keep_table` needs, the table that a body begins with); the table None when it is not known."""
        if size < self._table_bytes_min:
            return 0, None
        name = xxhash.xxh3_64_intdigest(raw[: self._table_bytes_min].data)
        table = self._tables.get(name)
        if table is not None and not (
            size > table.end
            and raw[table.end] == _SERIES_TAG
            and np.array_equal(raw[: table.end], table.body[: table.end])
        ):
            self._remember(name, None)
            return name, None
        return name, table

    def keep_table(self, name: int, size: int, scratch: _Scratch) -> None:
        """Keep the table of a parsed body if its beginning has been seen before."""
        seen = name in self._tables
        complete = not scratch.facts[kernels.FACT_MISSES]  # or else it would be without keys for ever
        self._remember(name, Table.of(size, scratch) if seen and complete else None)

    def _remember(self, name: int, table: Table | None) -> None:
        with self._lock:
            self._tables.pop(name, None)
            while len(self._tables) >= _TABLES_MAX:
                del self._tables[next(iter(self._tables))]
            self._tables[name] = table


@dataclass(frozen=True, slots=True)
class Table:
    """The symbols of a request that came more than once, and what it said.

    Attributes
    ----------
    body : (bytes,) uint8, padded       the request
    end : bytes of its symbols, which come first
    symbols, symbol_ids, series : as the kernel wrote them
    """

    body: NDArray[np.uint8]
    end: int
    symbols: NDArray[np.int64]
    symbol_ids: NDArray[np.uint32]
    series: NDArray[np.int64]

    @staticmethod
    def of(size: int, scratch: _Scratch) -> Table | None:
        """The table of the body that was parsed last; None when its symbols are not one run at the front."""
        n_symbols, n_series = (int(scratch.facts[i]) for i in (kernels.FACT_SYMBOLS, kernels.FACT_SERIES))
        symbols = scratch.symbols[:n_symbols]
        if not n_symbols:
            return None
        lengths = symbols[:, kernels.SYMBOL_END] - symbols[:, kernels.SYMBOL_BEGIN]
        heads = 2 + (lengths >= 1 << 7) + (lengths >= 1 << 14) + (lengths >= 1 << 21)
        end = int(symbols[-1, kernels.SYMBOL_END])
        if int((lengths + heads).sum()) != end:
            return None
        return Table(
            scratch.raw[: size + PAD_BYTES].copy(),
            end,
            symbols.copy(),
            scratch.symbol_ids[:n_symbols].copy(),
            scratch.series[:n_series].copy(),
        )


_NO_BODY: NDArray[np.uint8] = np.zeros(PAD_BYTES, np.uint8)
_NO_SERIES: NDArray[np.int64] = np.zeros((0, kernels.SERIES_COLUMNS), np.int64)


class _Scratch(RequestBuffers):
    """Buffers of one request."""

    def __init__(self) -> None:
        super().__init__()
        self.facts: NDArray[np.int64] = np.zeros(kernels.FACTS, np.int64)
        self.said_before: NDArray[np.uint64] = np.zeros((1 << kernels.SAID_BITS, 2), np.uint64)
        self.run: NDArray[np.uint8] = np.zeros(8 * kernels.RUN_PAIRS + PAD_BYTES, np.uint8)

    def set_room(self, samples: int) -> None:
        """Outputs for so many samples, symbols, missed series, exemplars and metadata entries."""
        self.symbols: NDArray[np.int64] = np.empty((samples, 2), np.int64)
        self.symbol_ids: NDArray[np.uint32] = np.empty(samples, np.uint32)
        self.refs: NDArray[np.uint32] = np.empty(samples, np.uint32)
        self.ts_ms: NDArray[np.int64] = np.empty(samples, np.int64)
        self.bits: NDArray[np.uint64] = np.empty(samples, np.uint64)
        self.series: NDArray[np.int64] = np.empty((samples, kernels.SERIES_COLUMNS), np.int64)
        self.misses: NDArray[np.int64] = np.empty((samples, kernels.MISS_COLUMNS), np.int64)
        self.exemplars: NDArray[np.int64] = np.empty((samples, kernels.EXEMPLAR_COLUMNS), np.int64)
        self.metadata: NDArray[np.int64] = np.empty((samples, kernels.METADATA_COLUMNS), np.int64)


class RemoteWriteV2Receiver:
    """Reads remote-write 2.0 requests of any tenant; used by many threads at once.

    Parameters
    ----------
    writer : hands samples to the store
    limits : what one request may be
    pairs : labels of pairs of senders; None = there are none
    keys_max : spellings kept a tenant
    table_bytes_min : smallest request whose symbols are kept for the next one
    """

    def __init__(
        self,
        writer: SampleWriter,
        limits: WriteLimits | None = None,
        pairs: ReplicaLabels | None = None,
        keys_max: int = KEYS_MAX,
        table_bytes_min: int = TABLE_BYTES_MIN,
    ) -> None:
        self._keys_max = keys_max
        self._table_bytes_min = table_bytes_min
        self._writer = writer
        self._limits = limits or WriteLimits()
        self._pairs = pairs
        self._scratch = Spares(_Scratch)
        self._spellings: weakref.WeakKeyDictionary[SeriesRegistry, Spellings] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._warned_native = False

    def receive(self, tenant: Tenant, body: bytes) -> Reception:
        """Parse a snappy-compressed body and hand its samples to the store.

        Raises
        ------
        RejectedError       the whole body is refused: MALFORMED or BODY_TOO_LARGE; nothing of it was kept
        UnavailableError    the store cannot take it now; nothing of it was kept
        """
        scratch = self._scratch.take()
        try:
            scratch.raw, size = decompress(body, scratch.raw, self._limits.decoded_bytes_max)
            return self._take(tenant, size, scratch)
        finally:
            scratch.trim()
            self._scratch.give(scratch)

    def _take(self, tenant: Tenant, size: int, scratch: _Scratch) -> Reception:
        registry = tenant.registry
        spellings = self._spellings_of(registry)
        name, table = spellings.find_table(scratch.raw, size)
        n_samples = self._parse(registry, spellings, size, scratch, table) if table else kernels.AGAIN
        if n_samples == kernels.AGAIN:
            table = None
            n_samples = self._parse(registry, spellings, size, scratch, None)
            if n_samples == kernels.AGAIN:
                n_samples = self._parse(registry, spellings, size, scratch, None, scattered=True)
            elif name:
                spellings.keep_table(name, size, scratch)
        facts: list[int] = scratch.facts.tolist()
        if not facts[kernels.FACT_OWN_FIELDS] and facts[kernels.FACT_V1_FIELDS]:
            raise RejectedError(Reason.MALFORMED, "the body is a remote-write 1.0 request under the 2.0 type")
        texts = _Texts(scratch.raw, table or scratch, facts[kernels.FACT_SYMBOLS])
        refusals = Refusals()
        refs = scratch.refs[:n_samples].copy()
        keep: NDArray[np.bool_] | None = None
        exemplars = scratch.exemplars[: facts[kernels.FACT_EXEMPLARS]]
        if facts[kernels.FACT_MISSES]:
            misses = scratch.misses[: facts[kernels.FACT_MISSES]]
            keep = self._resolve(registry, spellings, misses, refs, exemplars, refusals, texts)
        if facts[kernels.FACT_HISTOGRAMS]:
            self._warn_native()
            shown = _ranges(facts, kernels.FACT_NATIVE_RANGES, facts[kernels.FACT_NATIVE_SERIES])
            refusals.add(Reason.NATIVE_HISTOGRAM, facts[kernels.FACT_HISTOGRAMS], map(texts.series, shown))
        if facts[kernels.FACT_EMPTY_SERIES]:
            shown = _ranges(facts, kernels.FACT_EMPTY_RANGES, facts[kernels.FACT_EMPTY_SERIES])
            refusals.add(Reason.NO_SAMPLES, facts[kernels.FACT_EMPTY_SERIES], map(texts.series, shown))
        said = scratch.metadata[: facts[kernels.FACT_METADATA]]
        source = None
        if self._pairs:  # the first series tells: a sender puts its labels on all of them
            first = texts.pairs(first_message(scratch.raw, size, 5)) or ()
            source = self._pairs.source(first, self._writer.clock.now_ms())
        reception = self._writer.write(
            tenant,
            SampleBatch(refs, scratch.ts_ms[:n_samples].copy(), scratch.bits[:n_samples].copy(), registry),
            keep,
            refusals,
            sent=n_samples + facts[kernels.FACT_HISTOGRAMS] + facts[kernels.FACT_EMPTY_SERIES],
            newest_ms=facts[kernels.FACT_NEWEST_MS],
            unsorted=bool(facts[kernels.FACT_UNSORTED]),
            metadata=_metadata(said, texts),
            source=source,
        )
        known = said[said[:, kernels.METADATA_KEY] > 0]
        spellings.metadata[known[:, kernels.METADATA_KEY]] = known[:, kernels.METADATA_HASH]
        if len(exemplars) and source is not None and not tenant.replicas.would_keep(source):
            reception.exemplars_written = len(exemplars)  # the other one of the pair sends them
        elif len(exemplars):
            rows = [row for row in map(texts.exemplar, exemplars.tolist()) if row is not None]
            kept = keep_exemplars(tenant.exemplars, registry, rows, self._writer.tally)
            reception.exemplars_written = kept.written
            if kept.out_of_order:
                shown_refs = (series_text(registry, ref) for ref in kept.out_of_order)
                refusals.add(Reason.EXEMPLAR_OUT_OF_ORDER, len(kept.out_of_order), shown_refs)
                reception.sent += len(kept.out_of_order)
        return reception

    def _spellings_of(self, registry: SeriesRegistry) -> Spellings:
        found = self._spellings.get(registry)
        if found is None:
            with self._lock:
                found = self._spellings.setdefault(registry, Spellings(self._keys_max, self._table_bytes_min))
        return found

    def _parse(
        self,
        registry: SeriesRegistry,
        spellings: Spellings,
        size: int,
        scratch: _Scratch,
        table: Table | None,
        scattered: bool = False,
    ) -> int:
        symbols = registry.symbols.arrays()
        known = (table.end, len(table.symbols), table.body, table.series) if table else (0, 0, _NO_BODY, _NO_SERIES)
        while True:
            n_samples = int(
                kernels.parse_write_v2(
                    scratch.raw, size,
                    symbols.sym_bytes, symbols.sym_offsets, symbols.slots, spellings.next_symbols,
                    *spellings.keys.arrays(), spellings.metadata,
                    int(scattered), *known,
                    (table or scratch).symbols, (table or scratch).symbol_ids, scratch.said_before, scratch.run,
                    scratch.refs, scratch.ts_ms, scratch.bits,
                    scratch.series, scratch.misses, scratch.exemplars, scratch.metadata, scratch.facts,
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
                raise LimitError(Reason.BODY_TOO_LARGE, f"more than {limit:,} samples or symbols in one request")
            scratch.set_room(room)

    def _resolve(
        self,
        registry: SeriesRegistry,
        spellings: Spellings,
        misses: NDArray[np.int64],
        refs: NDArray[np.uint32],
        exemplars: NDArray[np.int64],
        refusals: Refusals,
        texts: _Texts,
    ) -> NDArray[np.bool_] | None:
        """Find or create the missed series, fill in their refs; which samples stay, None = all."""
        sound = misses[:, kernels.MISS_BAD] == 0
        asked = np.ascontiguousarray(misses[sound])
        labels = texts.label_ranges(asked)
        n_labels = len(labels.name_begin)
        if self._pairs:
            texts.intern_replicas(registry, spellings, labels, self._pairs)
            labels = labels.without_replica(texts.raw, self._pairs)
        found: NDArray[np.int64] = np.zeros(len(misses), np.int64)  # of refs that make no labels: MALFORMED
        found[sound] = registry.resolve_spans(texts.raw, *labels)
        good = sound & (found >= 0)
        if good.any():
            ends = texts.key_runs(registry, np.ascontiguousarray(misses[good]), n_labels)
            begins = np.concatenate((np.zeros(1, np.int64), ends[:-1]))
            has_key = ends > begins
            of_key = found[good][has_key].astype(np.uint32)
            keys = spellings.keys.add_batch(texts.runs, begins[has_key], ends[has_key], of_key)
            if (keys < 0).any():  # full of series that are long gone: those that are alive come back at once
                with self._lock:
                    self._spellings[registry] = Spellings(self._keys_max, self._table_bytes_min)
        per_sample = np.repeat(np.where(good, found, -1), misses[:, kernels.MISS_SAMPLES])
        pending = np.flatnonzero(refs == kernels.PENDING)
        refs[pending] = np.maximum(per_sample, 0).astype(np.uint32)
        per_exemplar = np.repeat(np.where(good, found, -1), misses[:, kernels.MISS_EXEMPLARS])
        exemplars[exemplars[:, kernels.EXEMPLAR_REF] == kernels.PENDING, kernels.EXEMPLAR_REF] = per_exemplar
        if good.all():
            return None
        for code in np.unique(found[~good]).tolist():
            rows = np.flatnonzero(~good & (found == code))
            shown = (texts.series(miss[:2]) for miss in misses[rows].tolist())
            refusals.add(REJECT_CODES[-code], int(misses[rows, kernels.MISS_SAMPLES].sum()), shown)
        keep = np.ones(len(refs), np.bool_)
        keep[pending[per_sample < 0]] = False
        return keep

    def _warn_native(self) -> None:
        if not self._warned_native:
            self._warned_native = True
            log.warning("a sender writes native histograms, which are refused: disable them at the sender")


def _ranges(facts: Sequence[int], first: int, count: int) -> Iterable[Sequence[int]]:
    return [facts[first + 2 * i : first + 2 * i + 2] for i in range(min(count, kernels.SHOWN))]


class _Texts:
    """The texts of one request, for what is not a known series."""

    def __init__(self, raw: NDArray[np.uint8], symbols: Table | _Scratch, n_symbols: int) -> None:
        self.raw = raw
        self._symbols = symbols.symbols
        self._symbol_ids = symbols.symbol_ids
        self._n_symbols = n_symbols
        self.runs: NDArray[np.uint8] = np.zeros(0, np.uint8)

    def symbol(self, ref: int) -> bytes:
        """Text of a symbol; empty outside the table."""
        if ref >= self._n_symbols:
            return b""
        begin, end = self._symbols[ref].tolist()
        return bytes(self.raw[begin:end].tobytes())

    def pairs(self, message: bytes) -> list[tuple[bytes, bytes]] | None:
        """Labels of a message whose field 1 holds refs; None when the refs make none."""
        refs: list[int] = []
        for number, value in fields(message):
            if number == 1:
                refs += packed_varints(value) if isinstance(value, bytes) else [value]
        if len(refs) % 2 or any(ref >= self._n_symbols for ref in refs):
            return None
        return [(self.symbol(name), self.symbol(value)) for name, value in zip(refs[::2], refs[1::2], strict=True)]

    def series(self, where: Sequence[int]) -> str:
        """A series as people write it."""
        pairs = self.pairs(self.raw[where[0] : where[1]].tobytes())
        if pairs is None:
            return "label refs that are odd in number or outside the symbol table"
        shown = [(_text(name), _text(value)) for name, value in pairs[:16]]
        return labels_text(shown)

    def exemplar(self, row: Sequence[int]) -> Exemplar | None:
        """An exemplar; None when its series is refused or it does not hold together."""
        ref, begin, end = row
        if ref < 0:
            return None
        message = self.raw[begin:end].tobytes()
        try:
            known: Mapping[int, int | bytes] = dict(fields(message))
            pairs = self.pairs(message)
        except RejectedError:
            return None
        bits, stamp = known.get(2, bytes(8)), known.get(3, 0)
        if pairs is None or not isinstance(bits, bytes) or len(bits) != 8 or not isinstance(stamp, int):
            return None
        ts_ms = stamp - (1 << 64) if stamp >> 63 else stamp
        return Exemplar(ref, ts_ms, struct.unpack("<Q", bits)[0], pairs)

    def label_ranges(self, misses: NDArray[np.int64]) -> LabelSpans:
        """Where the labels of missed series lie."""
        offsets: NDArray[np.int64] = np.empty(len(misses) + 1, np.int64)
        room = 32 * len(misses)
        while True:
            spans: list[NDArray[np.int64]] = [np.empty(room, np.int64) for _ in range(4)]
            count = int(kernels.label_spans_v2(self.raw, misses, self._symbols, self._n_symbols, offsets, *spans))
            if count <= room:
                return LabelSpans(offsets, *(span[:count] for span in spans))
            room = count

    def intern_replicas(
        self, registry: SeriesRegistry, spellings: Spellings, labels: LabelSpans, pairs: ReplicaLabels
    ) -> None:
        """Number the replica labels: no series has them any more, but the keys of what senders write do."""
        dropped = labels.named(self.raw, pairs.replica)
        spans = zip(labels.value_begin[dropped].tolist(), labels.value_end[dropped].tolist(), strict=True)
        for begin, end in set(spans):
            value = self.raw[begin:end].tobytes()
            if value not in spellings.replicas and len(spellings.replicas) < _REPLICAS_MAX and len(value) < 256:
                spellings.replicas.add(value)
                with contextlib.suppress(UnicodeDecodeError):
                    registry.symbols.intern_all([pairs.replica.decode(), value.decode()])

    def key_runs(self, registry: SeriesRegistry, misses: NDArray[np.int64], n_labels: int) -> NDArray[np.int64]:
        """Write the keys of resolved series into ``runs``; the end of each, (m,) int64."""
        self.runs = np.empty(8 * n_labels + PAD_BYTES, np.uint8)
        ends: NDArray[np.int64] = np.empty(len(misses), np.int64)
        symbols = registry.symbols.arrays()
        kernels.key_runs(
            self.raw, misses, self._symbols, self._n_symbols,
            symbols.sym_bytes, symbols.sym_offsets, symbols.slots, self._symbol_ids, self.runs, ends,
        )  # fmt: skip
        return ends


def _text(raw: bytes) -> str:
    return raw[:EXAMPLE_CHARS].decode("utf-8", "replace")


def _metadata(rows: NDArray[np.int64], texts: _Texts) -> list[Metadata]:
    """Families of the series that say something new; the series of a histogram are one family."""
    entries: dict[str, Metadata] = {}
    for _, _, begin, end, series_begin, series_end in rows.tolist():
        pairs = texts.pairs(texts.raw[series_begin:series_end].tobytes())
        said = dict(fields(texts.raw[begin:end].tobytes()))
        number, help_ref, unit_ref = (value if isinstance(value := said.get(n, 0), int) else 0 for n in (1, 3, 4))
        kind = METADATA_TYPES[number] if number < len(METADATA_TYPES) else "unknown"
        name = dict(pairs or ()).get(b"__name__", b"").decode("utf-8", "replace")
        for suffix in _SUFFIXES.get(kind, ()):
            if name.endswith(suffix):
                name = name.removesuffix(suffix)
                break
        if name and (number or help_ref or unit_ref):
            helps, unit = (texts.symbol(ref).decode("utf-8", "replace") for ref in (help_ref, unit_ref))
            entries[name] = Metadata(name, kind, helps, unit)
    return list(entries.values())
