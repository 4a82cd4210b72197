"""Query results as the JSON of the Prometheus API, written without a Python object per point."""

from __future__ import annotations

from typing import Any

import numpy as np

from query.kernels.float_text import FLOAT_TEXT_MAX, write_float, write_time
from query.kernels.words import load8, store8
from tsdb.kernels._jit import const, device, i32, i64, kernel, mut, u1, u8, u64

TIME_SLOT = 32
"""Bytes kept for the text ``,[<time>,"`` of one evaluation time; the longest is 25."""

POINT_BYTES_MAX = TIME_SLOT + FLOAT_TEXT_MAX + 16
"""Room one point may need in the output, its brackets and those of its series included."""

LABELS, VECTOR, MATRIX, RAGGED = 0, 1, 2, 3
"""Modes of :func:`write_series`: label sets alone, one point a series, a grid of shared times, raw samples with times
of their own."""

_FRAME_BYTES_MAX = 32
"""Room for what stands around the labels of a series: 23 bytes."""

_METRIC = np.frombuffer(b'{"metric":{      ', np.uint8)
_VALUES = np.frombuffer(b'},"values":      ', np.uint8)
_VALUE = np.frombuffer(b'},"value":       ', np.uint8)


@device
def _copy(out: Any, pos: Any, source: Any, start: Any, count: Any) -> Any:
    """Copy bytes, eight at a time: up to 7 bytes beyond both ends are touched."""
    for i in range(0, count, 8):
        store8(out, pos + i, load8(source, start + i))
    return pos + count


@device
def _write_time_slot(times_text: Any, slot: Any, ts_ms: Any) -> Any:
    pos = slot * TIME_SLOT
    times_text[pos] = 44
    times_text[pos + 1] = 91
    pos = write_time(times_text, pos + 2, ts_ms)
    times_text[pos] = 44
    times_text[pos + 1] = 34
    times_text[slot * TIME_SLOT + TIME_SLOT - 1] = pos + 2 - slot * TIME_SLOT
    return pos


@kernel(
    i64(
        const(u8),
        const(i64),
        const(i32, 2),
        const(u8),
        const(i64),
        const(i64),
        const(u64),
        const(u1),
        const(i64),
        i64,
        mut(i64),
        mut(u8),
        mut(u8),
    )
)
def write_series(
    names: Any,
    name_offsets: Any,
    cells: Any,
    texts: Any,
    text_offsets: Any,
    ts_ms: Any,
    bits: Any,
    present: Any,
    offsets: Any,
    mode: Any,
    cursor: Any,
    times_text: Any,
    out: Any,
) -> Any:
    """Write series with their labels and points, comma separated, until all are written or the output is full.

    Parameters
    ----------
    names : (bytes,) uint8, const           ``"name":`` of every column, escaped, one after the other, 8 spare bytes
    name_offsets : (columns + 1,) int64, const
    cells : (series, columns) int32, const  which text a label has; 0 = the series has no such label
    texts : (bytes,) uint8, const           ``"value"`` of every distinct text, escaped, 8 spare bytes
    text_offsets : (texts + 1,) int64, const
    ts_ms : int64, const                    (1,) in VECTOR, (steps,) in MATRIX, (points,) in RAGGED, unused in LABELS
    bits : (points,) uint64, const          float64 bits of the values
    present : (points,) bool, const         looked at in MATRIX only
    offsets : (series + 1,) int64, const    points of series i are ``[offsets[i], offsets[i + 1])``
    mode : int64                            LABELS, VECTOR, MATRIX or RAGGED
    cursor : (3,) int64, state              next series, next point, has the series points; first ``[0, -1, 0]``
    times_text : (slots * TIME_SLOT,) uint8, state   one slot a time; RAGGED needs one only
    out : (bytes,) uint8, written           must hold the labels of any one series and 2 POINT_BYTES_MAX more

    Returns
    -------
    int64        bytes written; all is written when ``cursor[0]`` is the number of series
    """
    series_count, columns = cells.shape
    limit = len(out) - POINT_BYTES_MAX
    row = cursor[0]
    point = cursor[1]
    if row == 0 and point < 0 and mode != RAGGED:
        for slot in range(len(ts_ms)):
            _write_time_slot(times_text, slot, ts_ms[slot])
    pos = 0
    opened = cursor[2] != 0
    while row < series_count:
        if point < 0:
            size = 0
            for column in range(columns):
                text = cells[row, column]
                if text:
                    size += name_offsets[column + 1] - name_offsets[column]
                    size += text_offsets[text + 1] - text_offsets[text] + 1
            if pos + size + _FRAME_BYTES_MAX > limit:
                break  # labels and first point stay together, the colon before a vector's point is written twice
            if row > 0:
                out[pos] = 44
                pos += 1
            if mode == LABELS:
                out[pos] = 123
                pos += 1
            else:
                pos = _copy(out, pos, _METRIC, 0, 11)
            start = pos
            for column in range(columns):
                text = cells[row, column]
                if text:
                    if pos > start:
                        out[pos] = 44
                        pos += 1
                    begin = name_offsets[column]
                    pos = _copy(out, pos, names, begin, name_offsets[column + 1] - begin)
                    begin = text_offsets[text]
                    pos = _copy(out, pos, texts, begin, text_offsets[text + 1] - begin)
            if mode == VECTOR:
                pos = _copy(out, pos, _VALUE, 0, 10)
            elif mode != LABELS:
                pos = _copy(out, pos, _VALUES, 0, 11)
            point = offsets[row]
            opened = False
        end = offsets[row + 1]
        while point < end and pos <= limit:
            if mode == MATRIX and not present[point]:
                point += 1
                continue
            slot = 0
            if mode == MATRIX:
                slot = point - offsets[row]
            elif mode == RAGGED:
                _write_time_slot(times_text, 0, ts_ms[point])
            # The slot begins with the comma of a second point; the first has a bracket there, a vector neither.
            start = pos
            if mode == VECTOR:
                start -= 1
            slot *= TIME_SLOT
            store8(out, start, load8(times_text, slot))
            store8(out, start + 8, load8(times_text, slot + 8))
            store8(out, start + 16, load8(times_text, slot + 16))
            store8(out, start + 24, load8(times_text, slot + 24))
            pos = start + np.int64(times_text[slot + TIME_SLOT - 1])
            if mode == VECTOR:
                out[start] = 58
            elif not opened:
                out[start] = 91
                opened = True
            pos = write_float(out, pos, bits[point])
            out[pos] = 34
            out[pos + 1] = 93
            pos += 2
            point += 1
        if point < end:
            break
        if mode >= MATRIX:
            if not opened:
                out[pos] = 91
                pos += 1
            out[pos] = 93
            pos += 1
        out[pos] = 125
        pos += 1
        row += 1
        point = -1
    cursor[0] = row
    cursor[1] = point
    cursor[2] = 1 if opened else 0
    return pos
