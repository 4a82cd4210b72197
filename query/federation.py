"""``/federate``: the newest samples of selected series, as a page that another Prometheus scrapes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from query.json_out import distinct_symbols, flatten
from query.kernels.exposition import SAMPLE_BYTES_MAX, write_page
from tsdb.frame import LabelTable, SeriesFrame

ASCII_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
UTF8_TYPE = b"text/plain; version=1.0.0; charset=utf-8; escaping=allow-utf-8"

_NO_LABEL_CHAR = re.compile("[^A-Za-z0-9_]")
_NO_METRIC_CHAR = re.compile("[^A-Za-z0-9_:]")
_STALE = np.uint64(0x7FF0000000000002)
_NAME = "__name__"


def _escaped(text: str) -> bytes:
    """In double quotes, with the three escapes of the text format."""
    quoted = text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
    return f'"{quoted}"'.encode("utf-8", "replace")


def _spelled(name: str, unusual: re.Pattern[str], *, utf8: bool) -> bytes:
    """A name as it is; one beyond the old alphabet in quotes, or with ``_`` for what older scrapers cannot read."""
    plain = unusual.sub("_", name)
    if plain[:1].isdigit():
        plain = f"_{plain[1:]}"
    return plain.encode() if plain == name or not utf8 else _escaped(name)


def _newest(frame: SeriesFrame) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.uint64]]:
    """Label symbols, time and bits of each series whose newest sample is no stale marker."""
    rows = np.flatnonzero(np.diff(frame.offsets))
    last = frame.offsets[rows + 1] - 1
    bits = np.ascontiguousarray(frame.values).view(np.uint64)[last]
    live = bits != _STALE
    return frame.labels.ids[rows[live]], frame.ts_ms[last[live]], bits[live]


def _joined(frames: Sequence[SeriesFrame]) -> tuple[LabelTable, NDArray[np.int64], NDArray[np.uint64]]:
    """The newest samples of all frames, each series once."""
    names = tuple(sorted({name for frame in frames for name in frame.labels.names}, key=str.encode))
    parts = []
    for frame in frames:
        own, ts_ms, bits = _newest(frame)
        ids = np.zeros((len(own), len(names)), np.int32)
        ids[:, [names.index(name) for name in frame.labels.names]] = own
        parts.append((ids, ts_ms, bits))
    ids, ts_ms, bits = (np.concatenate(column) for column in zip(*parts, strict=True))
    if len(frames) > 1 and len(ids):
        _, first = np.unique(ids, axis=0, return_index=True)
        ids, ts_ms, bits = ids[first], ts_ms[first], bits[first]
    return LabelTable(names, ids, frames[0].labels.symbols), ts_ms, bits


def reads_utf8(accept: bytes) -> bool:
    """Whether a scraper says that it knows quoted names (Prometheus 3 does)."""
    return b"escaping=allow-utf-8" in accept.replace(b" ", b"")


def federation_page(frames: Sequence[SeriesFrame], *, utf8: bool = True) -> bytes:
    """The page: metrics sorted by name, untyped, with times in milliseconds; empty when there is nothing."""
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return b""
    labels, ts_ms, bits = _joined(frames)
    if not len(labels):
        return b""
    at = labels.names.index(_NAME) if _NAME in labels.names else -1
    metric_ids = labels.ids[:, at] if at >= 0 else np.zeros(len(labels), np.int32)
    metrics, metric_of = np.unique(metric_ids, return_inverse=True)
    metric_names = labels.symbols.texts(metrics)
    rank = np.empty(len(metrics), np.int32)
    rank[sorted(range(len(metrics)), key=metric_names.__getitem__)] = np.arange(len(metrics), dtype=np.int32)
    others = [column for column in range(len(labels.names)) if column != at]
    ids = labels.ids[:, others]
    order = np.lexsort((*(ids[:, column] for column in range(ids.shape[1] - 1, -1, -1)), rank[metric_of]))
    distinct, cells = distinct_symbols(np.ascontiguousarray(ids[order]))
    texts, text_offsets, _ = flatten([_escaped(text) for text in labels.symbols.texts(distinct)])
    names, name_offsets, _ = flatten(
        [_spelled(labels.names[column], _NO_LABEL_CHAR, utf8=utf8) + b"=" for column in others]
    )
    metric_texts, metric_offsets, _ = flatten(
        [_spelled(name, _NO_METRIC_CHAR, utf8=utf8) for name in sorted(metric_names)]
    )
    metric_order = rank[metric_of][order]
    size = len(order) * (len(names) + len(others) + SAMPLE_BYTES_MAX)
    size += int(np.diff(text_offsets)[cells].sum()) + 2 * int(np.diff(metric_offsets)[metric_order].sum())
    out = np.empty(size, np.uint8)
    written = write_page(
        names, name_offsets, cells, metric_order, metric_texts, metric_offsets, texts, text_offsets,
        ts_ms[order], bits[order], out,
    )  # fmt: skip
    return out[:written].tobytes()
