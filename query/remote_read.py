"""Prometheus' remote-read protocol (compat.md 5.4): snappy protobuf in, raw samples out.

Only the response type SAMPLES is spoken: every reader takes it, those of Prometheus 2.42 send no accepted types at all.
A request is a handful of matchers, so that plain Python reads it; the samples are written by a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cramjam
import numpy as np

from query.engine.grid import sort_order
from query.errors import BadDataError
from query.json_out import distinct_symbols, flatten
from query.kernels.remote_read import measure_result, write_result
from tsdb.frame import SeriesFrame
from tsdb.matchers import Matcher, MatchOp

REQUEST_BYTES_MAX = 4 << 20
"""Largest request after decompression; real ones have a few hundred bytes."""

_OPS = (MatchOp.EQUAL, MatchOp.NOT_EQUAL, MatchOp.REGEX, MatchOp.NOT_REGEX)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class ReadQuery:
    """What a reader wants: the series of a selector in an inclusive range of milliseconds."""

    start_ms: int
    end_ms: int
    matchers: tuple[Matcher, ...]


def _varint(data: memoryview, pos: int) -> tuple[int, int]:
    """An unsigned varint and the position behind it."""
    value = shift = 0
    while True:
        if pos >= len(data) or shift > 63:
            raise BadDataError("unable to parse the read request: truncated or overlong varint")
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, pos
        shift += 7


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of every field; numbers of fixed width, which no field of ours has, are passed over."""
    pos = 0
    while pos < len(data):
        tag, pos = _varint(data, pos)
        kind = tag & 7
        if kind == _VARINT:
            value, pos = _varint(data, pos)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            size, pos = _varint(data, pos)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise BadDataError(f"unable to parse the read request: wire type {kind}")
        if size > len(data) - pos:
            raise BadDataError("unable to parse the read request: truncated field")
        if kind == _BYTES:
            yield tag >> 3, data[pos : pos + size]
        pos += size


def _signed(value: int | memoryview) -> int:
    if isinstance(value, memoryview):
        raise BadDataError("unable to parse the read request: a number is due")
    return value - (1 << 64) if value >> 63 else value


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise BadDataError("unable to parse the read request: a message is due")
    return value


def _text(value: int | memoryview) -> str:
    try:
        return str(_message(value), "utf-8")
    except UnicodeDecodeError:
        raise BadDataError("unable to parse the read request: text is no UTF-8") from None


def _matcher(data: memoryview) -> Matcher:
    op, name, text = 0, "", ""
    for number, value in _fields(data):
        if number == 1:
            op = _signed(value)
        elif number == 2:
            name = _text(value)
        elif number == 3:
            text = _text(value)
    if not 0 <= op < len(_OPS):
        raise BadDataError(f"unable to parse the read request: matcher type {op}")
    matcher = Matcher(name, _OPS[op], text)
    if op >= 2:
        matcher.regex()
    return matcher


def _query(data: memoryview) -> ReadQuery:
    start_ms = end_ms = 0
    matchers = []
    for number, value in _fields(data):
        if number == 1:
            start_ms = _signed(value)
        elif number == 2:
            end_ms = _signed(value)
        elif number == 3:
            matchers.append(_matcher(_message(value)))
    return ReadQuery(start_ms, end_ms, tuple(matchers))


def parse_read_request(body: bytes) -> list[ReadQuery]:
    """Queries of a snappy-compressed ReadRequest; hints and accepted response types are ignored.

    Raises
    ------
    BadDataError         no snappy block, no such protobuf, too large
    RejectedError        bad_matcher: a regex that is none
    """
    claimed, _ = _varint(memoryview(body), 0)
    if claimed > REQUEST_BYTES_MAX:  # looked at before anything is allocated
        raise BadDataError(f"read request of {claimed:,} bytes, the limit is {REQUEST_BYTES_MAX:,}")
    try:
        data = memoryview(bytes(cramjam.snappy.decompress_raw(body)))
    except cramjam.DecompressionError as error:
        raise BadDataError(f"unable to decompress the read request: {error}") from None
    return [_query(_message(value)) for number, value in _fields(data) if number == 1]


def _varint_bytes(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(tag: int, text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return bytes((tag,)) + _varint_bytes(len(data)) + data


def encode_result(frame: SeriesFrame, bytes_max: int) -> bytes:
    """A frame as field 1 of a ReadResponse: series with samples, sorted by labels; samples ascending, exact bits.

    Raises
    ------
    BadDataError        more than ``bytes_max`` bytes
    """
    labels = frame.labels
    order = np.zeros(0, np.int64)
    if len(frame):
        order = sort_order(labels).astype(np.int64)
        order = order[np.diff(frame.offsets)[order] > 0]
    names, name_offsets, _ = flatten([_field(0x0A, name) for name in labels.names])
    distinct, cells = distinct_symbols(labels.ids)
    texts, text_offsets, _ = flatten([_field(0x12, text) for text in labels.symbols.texts(distinct)])
    times = np.ascontiguousarray(frame.ts_ms).view(np.uint64)
    bits = np.ascontiguousarray(frame.values).view(np.uint64)
    sizes = np.empty(len(order), np.int64)
    size = int(measure_result(name_offsets, cells, text_offsets, times, frame.offsets, order, sizes))
    if size > bytes_max:
        raise BadDataError(f"the answer would have {size:,} bytes, the limit is {bytes_max:,}")
    head = b"\x0a" + _varint_bytes(size)
    out = np.empty(len(head) + size, np.uint8)
    out[: len(head)] = np.frombuffer(head, np.uint8)
    written = write_result(
        names, name_offsets, cells, texts, text_offsets, times, bits, frame.offsets, order, sizes, len(head), out
    )
    assert written == len(out), "the measure and the message agree"
    return out.tobytes()


def read_response(results: list[bytes]) -> bytes:
    """The results of all queries, in order, as a snappy-compressed ReadResponse."""
    return bytes(cramjam.snappy.compress_raw(b"".join(results)))
