"""Answers of LogQL queries as JSON bytes in the shapes of Loki's API (compat.md 6.1, 6.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from query.json_out import dumps, joined, series_pieces
from query.logql.engine.engine import LogResult, LogStats
from query.logql.engine.entries import Entry, StreamEntries
from query.promql.literals import format_number
from query.result import MatrixResult, ScalarResult, VectorResult
from tsdb.logs.frame import IndexStats

CATEGORIZE = "categorize-labels"
"""The encoding flag that Grafana sends."""


def merged_streams(streams: list[StreamEntries]) -> list[tuple[dict[str, str], list[Entry]]]:
    """Streams by all labels of their entries: what is no label of the stream becomes one."""
    found: dict[tuple[tuple[str, str], ...], list[Entry]] = {}
    for stream in streams:
        for entry in stream.entries:
            labels = stream.labels | entry.metadata | entry.parsed
            found.setdefault(tuple(sorted(labels.items())), []).append(entry)
    return [(dict(labels), found[labels]) for labels in sorted(found)]


def categorized_entry(entry: Entry) -> list[Any]:
    """Time, line, and the labels by where they come from."""
    parts: dict[str, dict[str, str]] = {}
    if entry.metadata:
        parts["structuredMetadata"] = entry.metadata
    if entry.parsed:
        parts["parsed"] = entry.parsed
    return [str(entry.ts_ns), entry.line, parts]


def stream_objects(streams: list[StreamEntries], *, categorize: bool) -> list[dict[str, Any]]:
    """The members of ``result``, or of ``streams`` when tailing."""
    if categorize:
        return [{"stream": s.labels, "values": [categorized_entry(e) for e in s.entries]} for s in streams]
    return [
        {"stream": labels, "values": [[str(entry.ts_ns), entry.line] for entry in entries]}
        for labels, entries in merged_streams(streams)
    ]


def log_answer(result: LogResult, index: IndexStats, *, categorize: bool) -> Iterator[bytes]:
    """Body of a ``query`` or ``query_range`` answer, in pieces."""
    value = result.value
    tail = b',"stats":' + dumps(stats_object(result.stats, index)) + b"}}"
    if isinstance(value, list):
        flags = b'"encodingFlags":["categorize-labels"],' if categorize else b""
        head = b'{"status":"success","data":{"resultType":"streams",' + flags + b'"result":'
        yield head + dumps(stream_objects(value, categorize=categorize)) + tail
        return
    if isinstance(value, ScalarResult):
        point = f'[{format_number(value.time_ms / 1000)},"{format_number(value.value)}"]'
        yield b'{"status":"success","data":{"resultType":"scalar","result":' + point.encode() + tail
        return
    kind = b"vector" if isinstance(value, VectorResult) else b"matrix"
    head = b'{"status":"success","data":{"resultType":"%s","result":[' % kind
    pieces = series_pieces(value, len(value.labels)) if _is_plain(value) else _odd_pieces(value)
    yield from joined(head, pieces, b"]" + tail)


def _is_plain(value: MatrixResult | VectorResult) -> bool:
    """Whether Prometheus' way of writing numbers is Loki's: whole seconds, no exponents."""
    if (value.times_ms % 1000).any():
        return False
    size = np.abs(value.values[value.present])
    size = size[np.isfinite(size) & (size != 0)]
    return not ((size < 1e-6) | (size >= 1e21)).any()


def _odd_pieces(value: MatrixResult | VectorResult) -> Iterator[bytes]:
    """Series one by one: times as the shortest float, values without an exponent."""
    times = [format_number(ms / 1000) for ms in value.times_ms.tolist()]
    for row, labels in enumerate(value.labels):
        points = [
            f'[{time},"{format_number(number)}"]'
            for time, number, has in zip(times, value.values[row].tolist(), value.present[row].tolist(), strict=True)
            if has
        ]
        name = "value" if isinstance(value, VectorResult) else "values"
        body = points[0] if name == "value" else f"[{','.join(points)}]"
        comma = b"," if row else b""
        yield comma + b'{"metric":' + dumps(labels) + f',"{name}":{body}}}'.encode()


def stats_object(stats: LogStats, index: IndexStats) -> Mapping[str, Any]:
    """What a query cost; bytes are estimated from the share of lines that were looked at."""
    seconds = stats.seconds.get("total", 0.0)
    share = min(1.0, stats.lines / index.entries) if index.entries else 0.0
    size = round(index.bytes * share)
    summary = {
        "bytesProcessedPerSecond": round(size / seconds) if seconds else 0,
        "linesProcessedPerSecond": round(stats.lines / seconds) if seconds else 0,
        "totalBytesProcessed": size,
        "totalLinesProcessed": stats.lines,
        "execTime": seconds,
        "queueTime": stats.seconds.get("queue", 0.0),
        "subqueries": 0,
        "totalEntriesReturned": stats.entries,
        "splits": 0,
        "shards": 0,
        "totalPostFilterLines": stats.lines_kept,
    }
    store = {
        "totalChunksRef": index.chunks,
        "totalChunksDownloaded": index.chunks,
        "chunksDownloadTime": 0,
        "chunk": {
            "headChunkBytes": 0,
            "headChunkLines": 0,
            "decompressedBytes": size,
            "decompressedLines": stats.lines,
        },
    }
    ingester = {"totalReached": 0, "totalChunksMatched": 0, "totalBatches": 0, "totalLinesSent": 0}
    return {"summary": summary, "querier": {"store": store}, "ingester": ingester, "cache": {}, "index": {}}
