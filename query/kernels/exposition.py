"""Newest samples as a page in Prometheus' text format, written without a Python object per series."""

from __future__ import annotations

from typing import Any

import numpy as np

from query.kernels.float_text import write_float
from tsdb.kernels._jit import const, device, i32, i64, kernel, mut, u8, u64

SAMPLE_BYTES_MAX = 112
"""Room for the value, the time, the signs around labels and what stands around the name in a TYPE line."""

_HEAD = np.frombuffer(b"# TYPE ", np.uint8)
_TAIL = np.frombuffer(b" untyped\n", np.uint8)


@device
def _copy(out: Any, pos: Any, source: Any, start: Any, end: Any) -> Any:
    for i in range(start, end):
        out[pos] = source[i]
        pos += 1
    return pos


@device
def _write_integer(out: Any, pos: Any, value: Any) -> Any:
    """Digits of an integer beyond the smallest int64."""
    if value < 0:
        out[pos] = 45
        pos += 1
        value = -value
    size = 1
    rest = value // 10
    while rest > 0:
        size += 1
        rest //= 10
    for place in range(size - 1, -1, -1):
        out[pos + place] = 48 + value % 10
        value //= 10
    return pos + size


@kernel(
    i64(
        const(u8),
        const(i64),
        const(i32, 2),
        const(i32),
        const(u8),
        const(i64),
        const(u8),
        const(i64),
        const(i64),
        const(u64),
        mut(u8),
    )
)
def write_page(
    names: Any,
    name_offsets: Any,
    cells: Any,
    metrics: Any,
    metric_texts: Any,
    metric_offsets: Any,
    texts: Any,
    text_offsets: Any,
    ts_ms: Any,
    bits: Any,
    out: Any,
) -> Any:
    """Write one line a series, and a TYPE line before the first of each metric.

    Parameters
    ----------
    names : (bytes,) uint8, const            ``name=`` of every label column, one after the other
    name_offsets : (columns + 1,) int64, const
    cells : (series, columns) int32, const   which text a label has; 0 = the series has no such label
    metrics : (series,) int32, const         which metric name a series has; those of one name stand together
    metric_texts, metric_offsets             metric names, as ``names``
    texts : (bytes,) uint8, const            ``"value"`` of every distinct label value, escaped
    text_offsets : (texts + 1,) int64, const
    ts_ms : (series,) int64, const
    bits : (series,) uint64, const           float64 bits
    out : (bytes,) uint8, written            holds all texts and :data:`SAMPLE_BYTES_MAX` bytes a series more

    Returns
    -------
    int64        bytes written
    """
    pos = 0
    last = -1
    columns = cells.shape[1]
    for row in range(len(metrics)):
        metric = metrics[row]
        begin, end = metric_offsets[metric], metric_offsets[metric + 1]
        if metric != last:
            pos = _copy(out, pos, _HEAD, 0, len(_HEAD))
            pos = _copy(out, pos, metric_texts, begin, end)
            pos = _copy(out, pos, _TAIL, 0, len(_TAIL))
            last = metric
        quoted = metric_texts[begin] == 34  # a name beyond the old alphabet stands inside the braces
        if not quoted:
            pos = _copy(out, pos, metric_texts, begin, end)
        out[pos] = 123
        pos += 1
        start = pos
        if quoted:
            pos = _copy(out, pos, metric_texts, begin, end)
        for column in range(columns):
            text = cells[row, column]
            if text:
                if pos > start:
                    out[pos] = 44
                    pos += 1
                pos = _copy(out, pos, names, name_offsets[column], name_offsets[column + 1])
                pos = _copy(out, pos, texts, text_offsets[text], text_offsets[text + 1])
        if pos == start:
            pos -= 1
        else:
            out[pos] = 125
            pos += 1
        out[pos] = 32
        pos = write_float(out, pos + 1, bits[row])
        out[pos] = 32
        pos = _write_integer(out, pos + 1, ts_ms[row])
        out[pos] = 10
        pos += 1
    return pos
