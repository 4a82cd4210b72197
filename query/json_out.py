"""Query results as JSON bytes in the shapes of the Prometheus API, in pieces of bounded size.

Large answers are written by one kernel into a buffer that is used again for every piece; nothing here makes a Python
object per point, and label texts are escaped once per distinct value.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import orjson
from numpy.typing import NDArray

from query.engine.gofloat import format_sample
from query.engine.grid import sort_order
from query.kernels.json import LABELS, MATRIX, POINT_BYTES_MAX, RAGGED, TIME_SLOT, VECTOR, write_series
from query.promql.literals import format_number
from query.result import (
    MatrixResult,
    QueryResult,
    QueryStats,
    RawMatrix,
    ResultValue,
    ScalarResult,
    StringResult,
    VectorResult,
)
from tsdb.frame import OVERLAY_FIRST, LabelTable, SymbolOverlay, Symbols

PIECE_BYTES = 512 << 10
"""Size of one piece of a large answer: about a millisecond of work, and small enough to stay in the L2 cache."""

ANNOTATIONS_MAX = 10
"""Warnings (and infos) sent with one answer; Prometheus' number."""

TRUNCATED = "results truncated due to limit"

_SURROGATE = re.compile("[\ud800-\udfff]")
_SPARE = bytes(8)  # the kernel copies eight bytes at a time
_NO_TIMES = np.zeros(0, np.int64)
_NO_BITS = np.zeros(0, np.uint64)
_NO_FLAGS = np.zeros(0, np.bool_)


class _LabelTexts(NamedTuple):
    """A label table as the kernel wants it: escaped names and distinct values, and which cell has which value."""

    names: NDArray[np.uint8]
    name_offsets: NDArray[np.int64]
    cells: NDArray[np.int32]
    texts: NDArray[np.uint8]
    text_offsets: NDArray[np.int64]
    row_bytes_max: int


def flatten(parts: list[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64], int]:
    """Parts one after the other, their offsets and the length of the longest."""
    lengths = list(map(len, parts))
    offsets = np.array(list(itertools.accumulate(lengths, initial=0)), np.int64)
    return np.frombuffer(b"".join(parts) + _SPARE, np.uint8), offsets, max(lengths, default=0)


def _quoted(texts: list[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64], int]:
    """The texts as JSON strings, like :func:`flatten`."""
    joined = '"' + '""'.join(texts) + '"'
    plain = joined.isascii() and joined.isprintable() and "\\" not in joined and joined.count('"') == 2 * len(texts)
    if len(texts) < 256 or not plain:
        return flatten(list(map(dumps, texts)))
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 2, out=offsets[1:])
    return np.frombuffer(joined.encode() + _SPARE, np.uint8), offsets, int(np.diff(offsets).max())


@functools.lru_cache(maxsize=256)
def _flat_names(names: tuple[str, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """``"name":`` of every column; dashboards ask for the same few sets of names."""
    return flatten([dumps(name) + b":" for name in names])[:2]


def distinct_symbols(ids: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Distinct symbols, 0 always the first, and for each cell the place of its symbol among them."""
    if ids.size < 256:
        place = {0: 0}
        cells = [place.setdefault(symbol, len(place)) for symbol in ids.reshape(-1).tolist()]
        return np.array(list(place), np.int32), np.array(cells, np.int32).reshape(ids.shape)
    # Mark what is used, which is far cheaper than sorting. The query's own symbols lie far above the store's.
    own = ids >= OVERLAY_FIRST
    first_own = int(ids.max(where=~own, initial=0)) + 1
    dense = np.where(own, ids - np.int32(OVERLAY_FIRST - first_own), ids) if own.any() else ids
    highest = int(dense.max())
    if highest > 64 * ids.size:
        distinct, inverse = np.unique(np.append(ids, np.int32(0)), return_inverse=True)
        return distinct, inverse[:-1].astype(np.int32).reshape(ids.shape)
    places = np.zeros(highest + 1, np.int32)
    places[dense] = 1
    places[0] = 1
    used = np.flatnonzero(places).astype(np.int32)
    places[used] = np.arange(len(used), dtype=np.int32)
    return np.where(used >= first_own, used + np.int32(OVERLAY_FIRST - first_own), used), places[dense]


def _label_texts(table: LabelTable, rows: int) -> _LabelTexts:
    """Escaped texts of the first ``rows`` series of a table."""
    names, name_offsets = _flat_names(table.names)
    distinct, cells = distinct_symbols(table.ids[:rows])
    texts, text_offsets, longest = _quoted(table.symbols.texts(distinct))
    row_bytes_max = len(names) + len(table.names) * (longest + 1) + 64
    return _LabelTexts(names, name_offsets, cells, texts, text_offsets, row_bytes_max)


def _pieces(
    table: LabelTable,
    rows: int,
    mode: int,
    ts_ms: NDArray[np.int64],
    bits: NDArray[np.uint64],
    present: NDArray[np.bool_],
    offsets: NDArray[np.int64],
) -> Iterator[bytes]:
    """The series as JSON objects, comma separated, without the brackets around them."""
    if not rows:
        return
    label_texts = _label_texts(table, rows)
    estimate = rows * label_texts.row_bytes_max + (len(bits) + 1) * POINT_BYTES_MAX
    out = np.empty(max(label_texts.row_bytes_max + 2 * POINT_BYTES_MAX, min(PIECE_BYTES, estimate)), np.uint8)
    times_text = np.empty((1 if mode == RAGGED else max(1, len(ts_ms))) * TIME_SLOT, np.uint8)
    cursor = np.array([0, -1, 0], np.int64)
    while cursor[0] < rows:
        written = write_series(*label_texts[:5], ts_ms, bits, present, offsets, mode, cursor, times_text, out)
        assert written > 0, "one series and one point always fit"
        yield out[:written].tobytes()


METRICS_MAX = 1024
"""Label sets of one store whose text is kept, about 1 KiB each."""

_metrics: WeakKeyDictionary[Symbols, dict[tuple[tuple[str, ...], tuple[int, ...]], bytes]] = WeakKeyDictionary()


def _metric(table: LabelTable, row: int) -> bytes:
    """One label set as JSON; those of a store are kept, since there a number means the same string for ever."""
    base = table.symbols.base if isinstance(table.symbols, SymbolOverlay) else None
    ids = tuple(table.ids[row].tolist())
    if base is None or max(ids, default=OVERLAY_FIRST) >= OVERLAY_FIRST:
        return dumps(table.labels(row))
    kept = _metrics.setdefault(base, {})
    key = table.names, ids
    text = kept.get(key)
    if text is None:
        text = dumps(table.labels(row))
        if len(kept) >= METRICS_MAX:
            kept.clear()
        kept[key] = text
    return text


FEW_ROWS = 4
"""Series of an instant vector that are written faster one by one (8 us each) than by the kernel (60 us)."""


def _few_samples(value: VectorResult, rows: int) -> Iterator[bytes]:
    """A small instant vector, in the very bytes that the kernel writes."""
    seconds, milliseconds = divmod(abs(int(value.times_ms[0])), 1000)
    sign = "-" if value.times_ms[0] < 0 else ""
    time = f"{sign}{seconds}.{milliseconds:03d}" if milliseconds else f"{sign}{seconds}"
    parts = []
    for row, number in enumerate(value.values[:rows, 0].tolist()):
        labels = _metric(value.labels, row)
        parts.append(b'{"metric":%b,"value":[%b,"%b"]}' % (labels, time.encode(), format_sample(number).encode()))
    if parts:
        yield b",".join(parts)


def series_pieces(value: VectorResult | MatrixResult | RawMatrix, rows: int) -> Iterator[bytes]:
    """The first ``rows`` series as JSON objects, comma separated, without the brackets around them."""
    if isinstance(value, VectorResult) and rows <= FEW_ROWS and value.present[:rows].all():
        return _few_samples(value, rows)
    if isinstance(value, RawMatrix):
        frame = value.frame
        bits = np.ascontiguousarray(frame.values).view(np.uint64)
        return _pieces(frame.labels, rows, RAGGED, frame.ts_ms, bits, _NO_FLAGS, frame.offsets)
    steps = value.values.shape[1]
    mode = VECTOR if isinstance(value, VectorResult) else MATRIX
    return _pieces(
        value.labels,
        rows,
        mode,
        np.ascontiguousarray(value.times_ms),
        np.ascontiguousarray(value.values[:rows]).reshape(-1).view(np.uint64),
        np.ascontiguousarray(value.present[:rows]).reshape(-1),
        np.arange(rows + 1, dtype=np.int64) * steps,
    )


def dumps(data: Any) -> bytes:
    """JSON of small data; what is no UTF-8 (a lone surrogate stands for such a byte) becomes U+FFFD."""
    try:
        return orjson.dumps(data)
    except TypeError:
        return _SURROGATE.sub("\ufffd", json.dumps(data, ensure_ascii=False, separators=(",", ":"))).encode()


def shown_annotations(texts: Sequence[str], kind: str) -> list[str]:
    """At most :data:`ANNOTATIONS_MAX` texts, then how many more there were; ``kind`` is ``warning`` or ``info``."""
    more = len(texts) - ANNOTATIONS_MAX
    if more <= 0:
        return list(texts)
    return [*texts[:ANNOTATIONS_MAX], f"{more} more {kind} annotations omitted"]


def envelope_tail(warnings: Sequence[str] = (), infos: Sequence[str] = ()) -> bytes:
    """What closes ``{"status":"success","data":...``: the annotations, left out when there are none."""
    tail = b""
    if warnings:
        tail += b',"warnings":' + dumps(shown_annotations(warnings, "warning"))
    if infos:
        tail += b',"infos":' + dumps(shown_annotations(infos, "info"))
    return tail + b"}"


def success(data: Any, warnings: Sequence[str] = ()) -> bytes:
    """The whole envelope around small data."""
    return b'{"status":"success","data":' + dumps(data) + envelope_tail(warnings)


def _stats(stats: QueryStats) -> bytes:
    seconds = stats.seconds
    evaluated = seconds.get("eval", 0.0)  # reading the series included
    selected = seconds.get("select", 0.0)
    sort = seconds.get("sort", 0.0)
    samples: dict[str, Any] = {}
    if stats.samples_per_step is not None:
        times_ms, counts = (column.tolist() for column in stats.samples_per_step)
        pairs = zip(times_ms, counts, strict=True)
        samples["totalQueryableSamplesPerStep"] = [[t // 1000 if t % 1000 == 0 else t / 1000, n] for t, n in pairs]
    samples |= {"totalQueryableSamples": stats.samples_total, "peakSamples": stats.peak_samples}
    return dumps(
        {
            "timings": {
                "evalTotalTime": evaluated + sort,
                "resultSortTime": sort,
                "queryPreparationTime": selected,
                "innerEvalTime": max(0.0, evaluated - selected),
                "execQueueTime": seconds.get("queue", 0.0),
                "execTotalTime": seconds.get("total", 0.0),
            },
            "samples": samples,
        }
    )


def joined(head: bytes, pieces: Iterator[bytes], tail: bytes) -> Iterator[bytes]:
    """``head``, the pieces and ``tail``, the ends joined to their neighbours: a small answer is one piece."""
    last = head + next(pieces, b"")
    for piece in pieces:
        yield last
        last = piece
    yield last + tail


def query_answer(result: QueryResult, *, limit: int = 0, stats: bool = False) -> Iterator[bytes]:
    """Body of a ``query`` or ``query_range`` answer.

    Parameters
    ----------
    result : QueryResult
    limit : most series to send, 0 = all; a warning says that some were left out
    stats : whether to send what the query cost

    Yields
    ------
    bytes        pieces of about :data:`PIECE_BYTES`; a small answer is one piece
    """
    value: ResultValue = result.value
    warnings = result.warnings
    tail = b',"stats":' + _stats(result.stats) + b"}" if stats else b"}"
    head = b'{"status":"success","data":{"resultType":"%s","result":[' % result.result_type.encode()
    if isinstance(value, ScalarResult):
        text = format_number(value.value)
        last = f'{format_number(value.time_ms / 1000)},"{text}"]'.encode()
        pieces: Iterator[bytes] = iter(())
    elif isinstance(value, StringResult):
        last = format_number(value.time_ms / 1000).encode() + b"," + dumps(value.value) + b"]"
        pieces = iter(())
    else:
        labels = value.frame.labels if isinstance(value, RawMatrix) else value.labels
        rows = len(labels)
        if 0 < limit < rows:
            rows = limit
            warnings = (*warnings, TRUNCATED)
        last = b"]"
        pieces = series_pieces(value, rows)
    return joined(head, pieces, last + tail + envelope_tail(warnings, result.infos))


def series_answer(table: LabelTable, *, limit: int = 0) -> Iterator[bytes]:
    """Body of a ``series`` answer: the label sets, sorted; pieces as in :func:`query_answer`."""
    rows = len(table)
    if rows > 1:
        table = LabelTable(table.names, table.ids[sort_order(table)], table.symbols)
    warnings: tuple[str, ...] = ()
    if 0 < limit < rows:
        rows = limit
        warnings = (TRUNCATED,)
    offsets = np.zeros(rows + 1, np.int64)
    pieces = _pieces(table, rows, LABELS, _NO_TIMES, _NO_BITS, _NO_FLAGS, offsets)
    return joined(b'{"status":"success","data":[', pieces, b"]" + envelope_tail(warnings))
