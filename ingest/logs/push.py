"""Loki pushes: bytes in, a batch of entries for the log store out, and what was refused of them.

One kernel walks the protobuf; a stream that was seen before costs a look-up of its label string and no Python object.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ingest.kernels import loki as kernels
from ingest.kernels.loki import ENTRIES, LEVEL_NAMES, PAIRS, STREAMS, UNKNOWN_STREAM
from ingest.logs.inflate import too_large
from ingest.logs.json_form import read_json
from ingest.logs.labels import parse_labels, show, stream_labels
from ingest.logs.limits import PushLimits
from ingest.logs.otlp import OtlpLogReader
from ingest.logs.spans import LEAD_BYTES, Spans
from ingest.snappy import decompress
from tsdb.clock import Clock
from tsdb.errors import LimitError, Reason, RejectedError
from tsdb.index.registry import SeriesRegistry
from tsdb.labels import Labels
from tsdb.logs.batch import LogBatch
from tsdb.logs.frame import DETECTED_LEVEL, PAD_BYTES, gather
from tsdb.tally import Tally

NO_STREAMS = "error at least one valid stream is required for ingestion"
KeyTableParts = tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint64]]
"""What a kernel needs to look a key up: bytes, offsets, lengths, numbers, slots."""

_OTHER_LEVEL = 255
_WORDS = {
    "trace": 2, "trc": 2, "debug": 3, "dbg": 3, "info": 4, "inf": 4, "information": 4, "warn": 5, "wrn": 5,
    "warning": 5, "error": 6, "err": 6, "critical": 7, "fatal": 8,
}  # fmt: skip
_SECOND = 1_000_000_000


class Streams(Protocol):
    """What a push needs of a tenant's log store (:class:`tsdb.logs.store.LogStore`)."""

    @property
    def registry(self) -> SeriesRegistry: ...

    def resolve(self, labels: Labels) -> int: ...

    def append(self, batch: LogBatch) -> Future[int]: ...


class Tagger(Protocol):
    """Adds structured metadata to entries."""

    def tag(self, spans: Spans, rows: NDArray[np.int64], refs: NDArray[np.int64]) -> Spans:
        """The same entries in the same order.

        Parameters
        ----------
        rows, refs : (n,) the entries that will be stored, and the stream of each
        """
        ...


class NoStreamsError(RejectedError):
    """A push without any stream: 422."""


class RateError(LimitError):
    """More bytes than the tenant may send: 429, the sender comes again."""


@dataclass(slots=True)
class Refusals:
    """What is wrong with some entries of a push; the others are kept."""

    reasons: Counter[Reason] = field(default_factory=Counter)
    messages: dict[str, int] = field(default_factory=dict)

    def add(self, reason: Reason, message: str, count: int = 1) -> None:
        """Count refused entries."""
        self.reasons[reason] += count
        if message in self.messages or len(self.messages) < 10:  # a thousand bad lines need no thousand messages
            self.messages[message] = self.messages.get(message, 0) + 1

    def text(self) -> str:
        """Everything that was wrong, "" when nothing was."""
        return "; ".join(m if n == 1 else f"{n} errors like: {m}" for m, n in self.messages.items())


class Received(NamedTuple):
    """A push on its way into the store; ``future`` is None when no entry was good."""

    entries: int
    line_bytes: int
    refusals: Refusals
    future: Future[int] | None


class PushReceiver:
    """Turns bodies into batches. Thread-safe.

    Parameters
    ----------
    clock : says what is too old or ahead
    tally : counts of what was refused

    Attributes
    ----------
    taggers : by tenant
    """

    def __init__(self, clock: Clock, tally: Tally, limits: PushLimits | None = None) -> None:
        self.limits = limits or PushLimits()
        self.taggers: dict[str, Tagger] = {}
        self._clock = clock
        self._tally = tally
        self._local = threading.local()
        self._otlp = OtlpLogReader()
        self._rates: dict[str, tuple[float, float]] = {}
        self._rates_lock = threading.Lock()
        # Level that the labels of a stream state: by tenant's registry and stream; 0 = look at the line.
        self._stream_levels: dict[tuple[int, int], int | str] = {}

    # -- bodies

    def protobuf(self, store: Streams, tenant: str, body: bytes) -> Received:
        """A snappy block of a PushRequest.

        Raises
        ------
        RejectedError        nothing of the body was kept
        UnavailableError     ... because the store cannot take it now
        """
        raw = getattr(self._local, "raw", None)
        if raw is None:
            raw = np.zeros(PAD_BYTES, np.uint8)
        raw, size = decompress(body, raw, self.limits.decoded_bytes_max)
        self._local.raw = raw if len(raw) <= 8 << 20 else None
        keys = store.registry.keys.arrays()
        table = (keys.key_bytes, keys.key_offsets, keys.key_lengths, keys.key_refs, keys.slots)
        spans, label_starts, label_ends, refs = self._walk(raw, size, table)
        refusals = Refusals()
        per_stream = np.bincount(spans.streams, minlength=len(refs))
        for number in np.flatnonzero(refs == UNKNOWN_STREAM).tolist():
            key = raw[label_starts[number] : label_ends[number]].tobytes()
            try:
                refs[number] = self._resolve(store, parse_labels(key.decode("utf-8", "replace")))
                store.registry.keys.add(key, int(refs[number]))
            except RejectedError as error:
                refusals.add(error.reason, str(error), max(1, int(per_stream[number])))
        return self._receive(store, tenant, spans, refs, refusals)

    def _walk(
        self, raw: NDArray[np.uint8], size: int, table: KeyTableParts
    ) -> tuple[Spans, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Everything's place in a body, and (begin, end, number) of each stream's labels."""
        room = getattr(self._local, "room", (64, 1024, 0))  # as much as the push before needed
        counts = np.zeros(3, np.int64)
        while True:
            streams, entries, pairs = room
            label_starts, label_ends, refs = (np.empty(streams, np.int64) for _ in range(3))
            spans = Spans(
                raw, np.empty(entries, np.int32), np.empty(entries, np.int64), np.empty(entries, np.int64),
                np.empty(entries, np.int64), np.zeros(entries + 1, np.int64), np.empty((pairs, 4), np.int64),
            )  # fmt: skip
            if kernels.walk_push(
                raw, size, *table, label_starts, label_ends, refs, spans.streams, spans.ts_ns, spans.line_starts,
                spans.line_sizes, spans.first_pairs, spans.pairs, counts,
            ):  # fmt: skip
                raise RejectedError(Reason.MALFORMED, "malformed protobuf: not a push request")
            streams, entries, pairs = (int(counts[k]) for k in (STREAMS, ENTRIES, PAIRS))
            self._check_entries(entries)
            if streams <= room[0] and entries <= room[1] and pairs <= room[2]:
                break
            room = (streams, entries, pairs)
        self._local.room = (streams + streams // 4 + 64, entries + entries // 4 + 64, pairs + pairs // 4)
        cut = Spans(
            raw, spans.streams[:entries], spans.ts_ns[:entries], spans.line_starts[:entries],
            spans.line_sizes[:entries], spans.first_pairs[: entries + 1], spans.pairs[:pairs],
        )  # fmt: skip
        return cut, label_starts[:streams], label_ends[:streams], refs[:streams]

    def json(self, store: Streams, tenant: str, body: bytes, *, legacy: bool = False) -> Received:
        """The JSON form; ``legacy`` allows the shape of ``/api/prom/push`` besides.

        Raises
        ------
        RejectedError, UnavailableError        nothing of the body was kept
        """
        if len(body) > self.limits.decoded_bytes_max:
            raise LimitError(Reason.BODY_TOO_LARGE, too_large(len(body), self.limits.decoded_bytes_max))
        streams, spans = read_json(body, legacy=legacy)
        return self.labelled(store, tenant, streams, spans)

    def otlp(self, store: Streams, tenant: str, body: bytes) -> Received:
        """An ExportLogsServiceRequest in protobuf.

        Raises
        ------
        RejectedError, UnavailableError        nothing of the body was kept
        """
        if len(body) > self.limits.decoded_bytes_max:
            raise LimitError(Reason.BODY_TOO_LARGE, too_large(len(body), self.limits.decoded_bytes_max))
        streams, spans = self._otlp.read(body, self._clock.now_ms() * 1_000_000)
        return self.labelled(store, tenant, streams, spans)

    def labelled(
        self, store: Streams, tenant: str, streams: Sequence[Sequence[tuple[str, str]]], spans: Spans
    ) -> Received:
        """Entries of streams whose labels are spelled out.

        Raises
        ------
        RejectedError, UnavailableError        nothing was kept
        """
        self._check_entries(len(spans.ts_ns))
        refusals = Refusals()
        refs = np.full(len(streams), UNKNOWN_STREAM, np.int64)
        per_stream = np.bincount(spans.streams, minlength=len(streams))
        for number, pairs in enumerate(streams):
            try:
                refs[number] = self._resolve(store, pairs)
            except RejectedError as error:
                refusals.add(error.reason, str(error), max(1, int(per_stream[number])))
        return self._receive(store, tenant, spans, refs, refusals)

    def entries(self, store: Streams, tenant: str, spans: Spans, refs: NDArray[np.int64]) -> Received:
        """Entries that came another way than by a push, of streams that are resolved.

        Parameters
        ----------
        refs : number of each stream that ``spans.streams`` names

        Raises
        ------
        RateError, UnavailableError        nothing was kept
        """
        return self._receive(store, tenant, spans, refs, Refusals())

    def _check_entries(self, entries: int) -> None:
        if entries > self.limits.entries_max:
            raise LimitError(
                Reason.BODY_TOO_LARGE,
                f"a push of {entries:,} entries, the limit is {self.limits.entries_max:,} (limits.logs.entries_max)",
            )

    # -- streams

    def _resolve(self, store: Streams, pairs: Sequence[tuple[str, str]]) -> int:
        labels = stream_labels(pairs, self.limits)
        ref = store.resolve(labels)
        level = next((value for name in LEVEL_NAMES if (value := labels.get(name))), "")
        if level and self.limits.detect_level:
            self._stream_levels[id(store.registry), ref] = _WORDS.get(level.lower(), level)
        return ref

    # -- entries

    def _receive(
        self, store: Streams, tenant: str, spans: Spans, refs: NDArray[np.int64], refusals: Refusals
    ) -> Received:
        if not len(refs):
            raise NoStreamsError(Reason.NO_LABELS, NO_STREAMS)
        entry_refs = refs[spans.streams]
        good = entry_refs != UNKNOWN_STREAM
        self._check_times(store, spans, entry_refs, good, refusals)
        self._check_sizes(store, spans, entry_refs, good, refusals)
        rows = np.flatnonzero(good)
        line_bytes = int(spans.line_sizes[rows].sum())
        self._check_rate(tenant, len(rows), line_bytes)
        self._tally.add_all(refusals.reasons)
        if not len(rows):
            return Received(0, 0, refusals, None)
        tagger = self.taggers.get(tenant)
        if tagger is not None:
            spans = tagger.tag(spans, rows, entry_refs[rows])
        batch = self._batch(store, spans, rows, entry_refs[rows])
        return Received(len(rows), line_bytes, refusals, store.append(batch))

    def _check_times(
        self,
        store: Streams,
        spans: Spans,
        refs: NDArray[np.int64],
        good: NDArray[np.bool_],
        refusals: Refusals,
    ) -> None:
        now_s = self._clock.now_ms() / 1000
        bounds = (
            (spans.ts_ns < (now_s - self.limits.age_max_s) * _SECOND, self.limits.age_max_s, Reason.TOO_OLD),
            (spans.ts_ns > (now_s + self.limits.ahead_max_s) * _SECOND, self.limits.ahead_max_s, Reason.FAR_FUTURE),
        )
        for wrong, limit, reason in bounds:
            wrong &= good
            if not limit or not wrong.any():
                continue
            good &= ~wrong
            rows = np.flatnonzero(wrong)
            for row in rows[:10].tolist():
                stamp = _rfc3339(int(spans.ts_ns[row]) // _SECOND)
                stream = self._show(store, int(refs[row]))
                if reason is Reason.TOO_OLD:
                    oldest = _rfc3339(int(now_s) - limit)
                    text = (
                        f"entry for stream '{stream}' has timestamp too old: {stamp}, "
                        f"oldest acceptable timestamp is: {oldest}"
                    )
                else:
                    text = f"entry for stream '{stream}' has timestamp too new: {stamp}"
                refusals.add(reason, text)
            refusals.reasons[reason] += max(0, len(rows) - 10)

    def _check_sizes(
        self,
        store: Streams,
        spans: Spans,
        refs: NDArray[np.int64],
        good: NDArray[np.bool_],
        refusals: Refusals,
    ) -> None:
        limits = self.limits
        wrong = (spans.line_sizes > limits.line_bytes_max) & good
        for row in np.flatnonzero(wrong).tolist():
            refusals.add(
                Reason.LINE_TOO_LONG,
                f"max entry size '{limits.line_bytes_max}' bytes exceeded for stream "
                f"'{self._show(store, int(refs[row]))}' while adding an entry with length "
                f"'{int(spans.line_sizes[row])}' bytes",
            )
        good &= ~wrong
        if not len(spans.pairs):
            return
        counts = np.diff(spans.first_pairs)
        sizes = spans.pairs[:, 1] - spans.pairs[:, 0] + spans.pairs[:, 3] - spans.pairs[:, 2]
        ends = np.concatenate([[0], np.cumsum(sizes)])
        per_entry = ends[spans.first_pairs[1:]] - ends[spans.first_pairs[:-1]]
        wrong = ((per_entry > limits.metadata_bytes_max) | (counts > limits.metadata_pairs_max)) & good
        for row in np.flatnonzero(wrong).tolist():
            stream = self._show(store, int(refs[row]))
            if per_entry[row] > limits.metadata_bytes_max:
                text = (
                    f"stream '{stream}' has structured metadata too large: '{int(per_entry[row])}' bytes, "
                    f"limit: '{limits.metadata_bytes_max}' bytes. Please see `limits.logs.metadata_bytes_max`"
                )
            else:
                text = (
                    f"stream '{stream}' has too many structured metadata labels: '{int(counts[row])}', "
                    f"limit: '{limits.metadata_pairs_max}'. Please see `limits.logs.metadata_pairs_max`"
                )
            refusals.add(Reason.METADATA_TOO_LARGE, text)
        good &= ~wrong

    def _check_rate(self, tenant: str, entries: int, line_bytes: int) -> None:
        rate = self.limits.rate_bytes_max
        if not rate:
            return
        now = self._clock.now_ms() / 1000
        with self._rates_lock:
            left, since = self._rates.get(tenant, (10.0 * rate, now))
            left = min(10.0 * rate, left + (now - since) * rate)
            if left < min(line_bytes, 10 * rate):
                raise RateError(
                    Reason.RATE_LIMITED,
                    f"ingestion rate limit exceeded for user {tenant} (limit: {rate} bytes/sec) while attempting to "
                    f"ingest '{entries}' lines totaling '{line_bytes}' bytes, reduce log volume or contact your "
                    "administrator to see if the limit can be increased (limits.logs.rate_bytes_max)",
                )
            self._rates[tenant] = (left - line_bytes, now)

    def _show(self, store: Streams, ref: int) -> str:
        labels = store.registry.label_table(np.array([ref], np.uint32)).labels(0)
        return show(list(labels.items()))

    def _batch(self, store: Streams, spans: Spans, rows: NDArray[np.int64], refs: NDArray[np.int64]) -> LogBatch:
        sizes = spans.line_sizes[rows]
        starts = spans.line_starts[rows]
        lead = np.concatenate([[LEAD_BYTES], sizes])
        lines = gather(spans.body, np.concatenate([[0], starts]), lead)
        line_offsets = lines.offsets[1:]
        n = len(rows)
        levels = np.zeros(n, np.uint8) if spans.levels is None else spans.levels[rows]
        meta_offsets, meta = np.zeros(n + 1, np.int64), np.zeros(PAD_BYTES, np.uint8)
        if len(spans.pairs):
            room = int((spans.pairs[:, 1] - spans.pairs[:, 0] + spans.pairs[:, 3] - spans.pairs[:, 2] + 2).sum())
            meta = np.zeros(room + PAD_BYTES, np.uint8)
            if kernels.pack_metadata(spans.body, spans.pairs, spans.first_pairs, rows, meta, meta_offsets):
                meta, meta_offsets = _packed_anew(spans, rows)
        if self.limits.detect_level:
            others: dict[int, str] = {}
            if len(spans.pairs):
                kernels.metadata_levels(spans.body, spans.pairs, spans.first_pairs, rows, levels)
                if spans.levels is not None:
                    levels = np.where(spans.levels[rows], spans.levels[rows], levels)
                others.update(_other_levels(spans, rows, levels))
            self._levels_of_streams(store, refs, levels, others)
            levels[list(others)] = 1
            kernels.detect_levels(lines.data, line_offsets, levels)
            levels[list(others)] = 0
            if others:
                meta, meta_offsets = _with_levels(meta, meta_offsets, others)
        return LogBatch(refs.astype(np.uint32), spans.ts_ns[rows], line_offsets, lines.data, meta_offsets, meta, levels)

    def _levels_of_streams(
        self, store: Streams, refs: NDArray[np.int64], levels: NDArray[np.uint8], others: dict[int, str]
    ) -> None:
        """What the labels say comes before what the entries say."""
        if not self._stream_levels:
            return
        registry = id(store.registry)
        for ref in np.unique(refs).tolist():
            level = self._stream_levels.get((registry, ref))
            if isinstance(level, int):
                levels[refs == ref] = level
            elif level is not None:
                others.update(dict.fromkeys(np.flatnonzero(refs == ref).tolist(), level))


def _rfc3339(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError):
        return f"{seconds}s"


# -- structured metadata


def _pairs_of(spans: Spans, row: int) -> list[tuple[bytes, bytes]]:
    out = []
    for a, b, c, d in spans.pairs[spans.first_pairs[row] : spans.first_pairs[row + 1]].tolist():
        out.append((spans.body[a:b].tobytes(), spans.body[c:d].tobytes()))
    return out


def _join(blobs: Iterable[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    parts = list(blobs)
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return np.frombuffer(b"".join(parts) + bytes(PAD_BYTES), np.uint8), offsets


def _packed_anew(spans: Spans, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """As ``pack_metadata``, with what is no UTF-8 replaced (slow path)."""

    def clean(text: bytes) -> bytes:
        return text.decode("utf-8", "replace").encode() + b"\xff"

    return _join(b"".join(clean(k) + clean(v) for k, v in _pairs_of(spans, row)) for row in rows.tolist())


def _other_levels(spans: Spans, rows: NDArray[np.int64], levels: NDArray[np.uint8]) -> dict[int, str]:
    """Levels that metadata states with a word of their own, by place in ``rows`` (slow path)."""
    out = {}
    names = {name.encode() for name in LEVEL_NAMES}
    for place in np.flatnonzero(levels == _OTHER_LEVEL).tolist():
        value = next((v for k, v in _pairs_of(spans, int(rows[place])) if k in names), b"")
        levels[place] = 0
        if value:
            out[place] = value.decode("utf-8", "replace")
    return out


def _with_levels(
    meta: NDArray[np.uint8], offsets: NDArray[np.int64], others: Mapping[int, str]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Structured metadata with a level of its own where ``others`` has one (slow path)."""
    ends = offsets.tolist()

    def blobs() -> Iterable[bytes]:
        for place in range(len(ends) - 1):
            own = meta[ends[place] : ends[place + 1]].tobytes()
            if place in others:
                own += f"{DETECTED_LEVEL}\0{others[place]}\0".encode().replace(b"\0", b"\xff")
            yield own

    return _join(blobs())
