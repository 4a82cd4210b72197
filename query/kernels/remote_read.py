"""A remote-read result as protobuf, written without a Python object per series or sample."""

from __future__ import annotations

from typing import Any

import numpy as np

from query.kernels.words import store8
from tsdb.kernels._jit import const, device, i32, i64, kernel, mut, u8, u64


@device
def _varint_bytes(value: Any) -> Any:
    size = 1
    while value >= np.uint64(128):
        value >>= np.uint64(7)
        size += 1
    return size


@device
def _write_varint(out: Any, pos: Any, value: Any) -> Any:
    while value >= np.uint64(128):
        out[pos] = np.uint8((value & np.uint64(127)) | np.uint64(128))
        value >>= np.uint64(7)
        pos += 1
    out[pos] = np.uint8(value)
    return pos + 1


@device
def _copy(out: Any, pos: Any, source: Any, start: Any, end: Any) -> Any:
    for i in range(start, end):
        out[pos] = source[i]
        pos += 1
    return pos


@kernel(i64(const(i64), const(i32, 2), const(i64), const(u64), const(i64), const(i64), mut(i64)))
def measure_result(
    name_offsets: Any, cells: Any, text_offsets: Any, times: Any, offsets: Any, order: Any, sizes: Any
) -> Any:
    """Bytes that :func:`write_result` will write.

    Parameters
    ----------
    name_offsets, cells, text_offsets, times, offsets, order : as for :func:`write_result`
    sizes : (len(order),) int64, written        bytes of each TimeSeries message

    Returns
    -------
    int64        bytes of the QueryResult message: the messages with their tags and lengths
    """
    total = 0
    columns = cells.shape[1]
    for place in range(len(order)):
        row = order[place]
        size = 0
        for column in range(columns):
            text = cells[row, column]
            if text:
                label = name_offsets[column + 1] - name_offsets[column] + text_offsets[text + 1] - text_offsets[text]
                size += 1 + _varint_bytes(np.uint64(label)) + label
        for at in range(offsets[row], offsets[row + 1]):
            size += 12 + _varint_bytes(times[at])
        sizes[place] = size
        total += 1 + _varint_bytes(np.uint64(size)) + size
    return total


@kernel(
    i64(
        const(u8),
        const(i64),
        const(i32, 2),
        const(u8),
        const(i64),
        const(u64),
        const(u64),
        const(i64),
        const(i64),
        const(i64),
        i64,
        mut(u8),
    )
)
def write_result(
    names: Any,
    name_offsets: Any,
    cells: Any,
    texts: Any,
    text_offsets: Any,
    times: Any,
    bits: Any,
    offsets: Any,
    order: Any,
    sizes: Any,
    pos: Any,
    out: Any,
) -> Any:
    """Write a QueryResult: one TimeSeries a row, in the given order; columns are sorted by name, so labels are.

    Parameters
    ----------
    names : (bytes,) uint8, const           every column's name as field 1 of a Label, one after the other
    name_offsets : (columns + 1,) int64, const
    cells : (series, columns) int32, const  which text a label has; 0 = the series has no such label
    texts : (bytes,) uint8, const           every distinct value as field 2 of a Label
    text_offsets : (texts + 1,) int64, const
    times : (samples,) uint64, const        milliseconds, two's complement
    bits : (samples,) uint64, const         float64 bits, stale markers like any others
    offsets : (series + 1,) int64, const    samples of series i are ``[offsets[i], offsets[i + 1])``
    order : (rows,) int64, const            which series, in which order
    sizes : (rows,) int64, const            by :func:`measure_result`
    pos : int64                             where to begin
    out : (bytes,) uint8, written           holds the message

    Returns
    -------
    int64        position behind the last byte
    """
    columns = cells.shape[1]
    for place in range(len(order)):
        row = order[place]
        out[pos] = 10  # QueryResult.timeseries
        pos = _write_varint(out, pos + 1, np.uint64(sizes[place]))
        for column in range(columns):
            text = cells[row, column]
            if text:
                begin, end = name_offsets[column], name_offsets[column + 1]
                start, stop = text_offsets[text], text_offsets[text + 1]
                out[pos] = 10  # TimeSeries.labels
                pos = _write_varint(out, pos + 1, np.uint64(end - begin + stop - start))
                pos = _copy(out, pos, names, begin, end)
                pos = _copy(out, pos, texts, start, stop)
        for at in range(offsets[row], offsets[row + 1]):
            out[pos] = 18  # TimeSeries.samples
            out[pos + 2] = 9  # Sample.value
            store8(out, pos + 3, bits[at])
            out[pos + 11] = 16  # Sample.timestamp
            end = _write_varint(out, pos + 12, times[at])
            out[pos + 1] = np.uint8(end - pos - 2)
            pos = end
    return pos
