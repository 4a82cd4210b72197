"""The walk over a Loki push body, and the level that a line states.

``PushRequest {1 streams* {1 labels, 2 entries* {1 Timestamp {1 seconds, 2 nanos}, 2 line, 3 structuredMetadata*
{1 name, 2 value}}}}`` (grafana/loki ``pkg/push/push.proto``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic

from ingest.kernels.protobuf import WIRE_BYTES, WIRE_VARINT, next_field, read_varint
from tsdb.kernels._jit import const, device, i32, i64, kernel, mut, u8, u32, u64
from tsdb.kernels.bits import trailing_zeros
from tsdb.kernels.keys import find_key

MALFORMED = -1
UNKNOWN_STREAM = -1
STREAMS, ENTRIES, PAIRS = 0, 1, 2


@device
def _read_time(buf, at, end):
    """(nanoseconds, whether the Timestamp holds together)."""
    seconds = i64(0)
    nanos = i64(0)
    while at < end:
        field, wire, begin, at = next_field(buf, at, end)
        if at < 0:
            return i64(0), False
        if wire == WIRE_VARINT and field <= 2:
            value, _ = read_varint(buf, begin, end)
            if field == 1:
                seconds = i64(value)
            else:
                nanos = i64(value)
    return seconds * 1_000_000_000 + nanos, True


@kernel(
    i64(
        const(u8), i64, const(u8), const(u64), const(u32), const(u32), const(u64),
        mut(i64), mut(i64), mut(i64), mut(i32), mut(i64), mut(i64), mut(i64), mut(i64), mut(i64, 2), mut(i64),
    )
)  # fmt: skip
def walk_push(
    body, n_bytes, key_bytes, key_offsets, key_lengths, key_refs, slots,
    label_starts, label_ends, stream_refs, entry_streams, ts_ns, line_starts, line_sizes, first_pairs, pairs, counts,
):  # fmt: skip
    """Say where everything in a decompressed PushRequest lies.

    What does not fit the arrays is counted only: call again with arrays of the size that ``counts`` says.

    Parameters
    ----------
    body : (>= n_bytes + 64,) uint8
    key_bytes, key_offsets, key_lengths, key_refs, slots : of ``KeyTable.arrays()``; keys are label strings
    label_starts, label_ends : (streams,) int64      the label string of each stream
    stream_refs : (streams,) int64                   UNKNOWN_STREAM where the key table does not know it
    entry_streams : (entries,) int32
    ts_ns, line_starts, line_sizes : (entries,) int64
    first_pairs : (entries + 1,) int64               metadata of entry i: pairs ``[first_pairs[i], first_pairs[i + 1])``
    pairs : (pairs, 4) int64                         begin and end of the name, begin and end of the value
    counts : (3,) int64                              written: streams, entries, pairs

    Returns
    -------
    int64        0 or MALFORMED
    """
    streams = i64(0)
    entries = i64(0)
    n_pairs = i64(0)
    at = i64(0)
    first_pairs[0] = 0
    while at < n_bytes:
        field, wire, begin, at = next_field(body, at, n_bytes)
        if at < 0:
            return i64(MALFORMED)
        if field != 1:
            continue
        if wire != WIRE_BYTES:
            return i64(MALFORMED)
        inner = begin
        label_start = begin
        label_end = begin
        while inner < at:
            field, wire, begin, inner = next_field(body, inner, at)
            if inner < 0 or (field <= 2 and wire != WIRE_BYTES):
                return i64(MALFORMED)
            if field == 1:
                label_start = begin
                label_end = inner
            elif field == 2:
                time = i64(0)
                line_start = begin
                line_end = begin
                place = begin
                while place < inner:
                    part, wire, start, place = next_field(body, place, inner)
                    if place < 0 or (part <= 3 and wire != WIRE_BYTES):
                        return i64(MALFORMED)
                    if part == 1:
                        time, good = _read_time(body, start, place)
                        if not good:
                            return i64(MALFORMED)
                    elif part == 2:
                        line_start = start
                        line_end = place
                    elif part == 3:
                        name_start = start
                        name_end = start
                        value_start = start
                        value_end = start
                        here = start
                        while here < place:
                            piece, wire, start, here = next_field(body, here, place)
                            if here < 0 or (piece <= 2 and wire != WIRE_BYTES):
                                return i64(MALFORMED)
                            if piece == 1:
                                name_start = start
                                name_end = here
                            elif piece == 2:
                                value_start = start
                                value_end = here
                        if n_pairs < len(pairs):
                            pairs[n_pairs, 0] = name_start
                            pairs[n_pairs, 1] = name_end
                            pairs[n_pairs, 2] = value_start
                            pairs[n_pairs, 3] = value_end
                        n_pairs += 1
                if entries < len(ts_ns):
                    entry_streams[entries] = i32(streams)
                    ts_ns[entries] = time
                    line_starts[entries] = line_start
                    line_sizes[entries] = line_end - line_start
                    first_pairs[entries + 1] = n_pairs
                entries += 1
        if streams < len(label_starts):
            label_starts[streams] = label_start
            label_ends[streams] = label_end
            key = find_key(body, label_start, label_end, key_bytes, key_offsets, key_lengths, slots)
            stream_refs[streams] = i64(key_refs[key]) if key >= 0 else i64(UNKNOWN_STREAM)
        streams += 1
    counts[STREAMS] = streams
    counts[ENTRIES] = entries
    counts[PAIRS] = n_pairs
    return i64(0)


@kernel(i64(const(u8), const(i64, 2), const(i64), const(i64), mut(u8), mut(i64)))
def pack_metadata(body, pairs, first_pairs, rows, out, offsets):
    """Structured metadata of some entries as ``name 0xFF value 0xFF ...``.

    Parameters
    ----------
    pairs, first_pairs : of :func:`walk_push`; rows : (n,) int64
    out : uint8, large enough; offsets : (n + 1,) int64

    Returns
    -------
    int64        bytes 0xFF inside of names and values, which no UTF-8 has
    """
    to = i64(0)
    bad = i64(0)
    offsets[0] = 0
    for i in range(len(rows)):
        row = rows[i]
        for p in range(first_pairs[row], first_pairs[row + 1]):
            for part in range(2):
                for k in range(pairs[p, 2 * part], pairs[p, 2 * part + 1]):
                    c = body[k]
                    bad += 1 if c == 255 else 0
                    out[to] = c
                    to += 1
                out[to] = u8(255)
                to += 1
        offsets[i + 1] = to
    return bad


# -- levels

_ALIASES = (
    ("trace", 2), ("trc", 2), ("debug", 3), ("dbg", 3), ("info", 4), ("inf", 4), ("warn", 5), ("wrn", 5),
    ("warning", 5), ("error", 6), ("err", 6), ("critical", 7), ("fatal", 8),
)  # fmt: skip
"""Words of a level and their place in ``tsdb.logs.frame.LEVELS``; "information" is looked for apart."""

_WORDS = np.array([int.from_bytes(word.encode(), "little") for word, _ in _ALIASES], np.uint64)
_WORD_SIZES = np.array([len(word) for word, _ in _ALIASES], np.int64)
_WORD_CODES = np.array([code for _, code in _ALIASES], np.int64)
_INFORMAT = np.uint64(int.from_bytes(b"informat", "little"))

LEVEL_NAMES = (
    "level", "LEVEL", "Level", "log.level", "severity", "SEVERITY", "Severity", "SeverityText", "lvl", "LVL", "Lvl",
    "severity_text", "Severity_Text", "SEVERITY_TEXT",
)  # fmt: skip
_NAMES = np.frombuffer("".join(LEVEL_NAMES).encode(), np.uint8)
_NAME_ENDS = np.cumsum([len(name) for name in LEVEL_NAMES])
_BLOCK = 32
_DEPTH_MAX = 2

if config.DISABLE_JIT:

    def _level_starts(data: Any, at: int) -> Any:
        """Bit k is set where a word like a level or a level's name may begin at ``data[at + k]``, at >= 1."""
        now, then, before = (
            data[at : at + _BLOCK] | 32,
            data[at + 1 : at + 1 + _BLOCK] | 32,
            data[at - 1 : at - 1 + _BLOCK],
        )
        first = np.isin(now, list(b"tdiwecfls"))
        second = np.isin(then, list(b"rebnavo"))
        lower = before | 32
        inside = ((lower >= 97) & (lower <= 122)) | ((before >= 48) & (before <= 57)) | (before == 95)
        return np.uint64(int.from_bytes(np.packbits(first & second & ~inside, bitorder="little").tobytes(), "little"))

else:

    @intrinsic
    def _level_starts(_typing: Any, data: Any, _at: Any) -> Any:
        """Bit k is set where a word like a level or a level's name may begin at ``data[at + k]``, at >= 1."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            vector = ir.VectorType(ir.IntType(8), _BLOCK)
            base = context.make_array(signature.args[0])(context, builder, args[0]).data

            def every(byte: int) -> Any:
                return ir.Constant(vector, [byte] * _BLOCK)

            def load(shift: int) -> Any:
                place = builder.add(args[1], ir.Constant(ir.IntType(64), shift))
                return builder.load(builder.bitcast(builder.gep(base, [place]), vector.as_pointer()), align=1)

            def any_of(block: Any, letters: bytes) -> Any:
                hit = builder.icmp_unsigned("==", block, every(letters[0]))
                for letter in letters[1:]:
                    hit = builder.or_(hit, builder.icmp_unsigned("==", block, every(letter)))
                return hit

            def between(block: Any, low: int, high: int) -> Any:
                return builder.icmp_unsigned("<=", builder.sub(block, every(low)), every(high - low))

            before = load(-1)
            first = any_of(builder.or_(load(0), every(32)), b"tdiwecfls")
            second = any_of(builder.or_(load(1), every(32)), b"rebnavo")
            inside = builder.or_(between(builder.or_(before, every(32)), 97, 122), between(before, 48, 57))
            inside = builder.or_(inside, builder.icmp_unsigned("==", before, every(95)))
            hits = builder.and_(builder.and_(first, second), builder.not_(inside))
            return builder.zext(builder.bitcast(hits, ir.IntType(_BLOCK)), ir.IntType(64))

        return types.uint64(data, types.int64), codegen


@device
def _is_word(c):
    lower = c | u8(32)
    return (lower >= 97 and lower <= 122) or (c >= 48 and c <= 57) or c == 95


@device
def level_of(data, start, end):
    """Code of the level that ``data[start:end]`` spells in any case, or 0."""
    size = end - start
    if size < 3 or size > 11 or (size > 8 and size < 11):
        return i64(0)
    word = u64(0)
    for k in range(min(size, 8)):
        word |= u64(data[start + k] | u8(32)) << u64(8 * k)
    if size == 11:
        last = data[end - 3] | u8(32), data[end - 2] | u8(32), data[end - 1] | u8(32)
        return i64(4) if word == _INFORMAT and last[0] == 105 and last[1] == 111 and last[2] == 110 else i64(0)
    for k in range(len(_WORDS)):
        if _WORDS[k] == word and _WORD_SIZES[k] == size:
            return _WORD_CODES[k]
    return i64(0)


@device
def name_size(data, start, end):
    """Length of the level name that stands at ``start``, or 0; the longest one."""
    best = i64(0)
    begin = i64(0)
    for k in range(len(_NAME_ENDS)):
        size = _NAME_ENDS[k] - begin
        if size > best and start + size <= end:
            same = True
            for b in range(size):
                if data[start + b] != _NAMES[begin + b]:
                    same = False
                    break
            if same:
                best = size
        begin = _NAME_ENDS[k]
    return best


@device
def _depth_at(data, start, place):
    """How many braces are open at ``place``; those inside strings do not count."""
    depth = i64(0)
    inside = False
    at = start
    while at < place:
        c = data[at]
        if inside:
            if c == 92:
                at += 1
            elif c == 34:
                inside = False
        elif c == 34:
            inside = True
        elif c == 123:
            depth += 1
        elif c == 125:
            depth -= 1
        at += 1
    return depth


@device
def _keyed_level(data, start, end, place):
    """Code of the level that the member or pair whose name begins at ``place`` states, or 0."""
    size = name_size(data, place, end)
    if size == 0:
        return i64(0)
    at = place + size
    json = data[start] == 123
    if json:
        if at >= end or data[at] != 34 or data[place - 1] != 34 or _depth_at(data, start, place) > _DEPTH_MAX:
            return i64(0)
        at += 1
        while at < end and data[at] <= 32:
            at += 1
    separator = u8(58) if json else u8(61)
    if at >= end or data[at] != separator:
        return i64(0)
    at += 1
    while json and at < end and data[at] <= 32:
        at += 1
    if at < end and data[at] == 34:
        at += 1
    stop = at
    while stop < end and _is_word(data[stop]):
        stop += 1
    return level_of(data, at, stop)


@kernel(i64(const(u8), const(i64), mut(u8)))
def detect_levels(data, offsets, levels):
    """The level that each line states: by a key of its JSON or logfmt, else by the first word that is a level.

    Parameters
    ----------
    data : uint8, one readable byte before the first line, 64 behind the last
    offsets : (n + 1,) int64
    levels : (n,) uint8        0 = to be found; 1 (unknown) where the line says nothing

    Returns
    -------
    int64        lines looked at
    """
    count = i64(0)
    for i in range(len(levels)):
        if levels[i]:
            continue
        count += 1
        start = offsets[i]
        end = offsets[i + 1]
        found = i64(0)
        keyed = i64(0)
        at = start
        while at < end and not keyed:
            hits = _level_starts(data, at)
            if at == start:  # the byte before belongs to another line
                hits |= np.uint64(1)
            while hits != np.uint64(0):
                place = at + i64(trailing_zeros(hits))
                hits &= hits - np.uint64(1)
                if place >= end:
                    break
                c = data[place] | u8(32)
                if c == 108 or c == 115:  # l, s
                    keyed = _keyed_level(data, start, end, place)
                    if keyed:
                        break
                elif not found:
                    stop = place
                    while stop < end and _is_word(data[stop]) and stop - place < 12:
                        stop += 1
                    found = level_of(data, place, stop)
            at += 32
        levels[i] = u8(keyed if keyed else (found if found else 1))
    return count


@kernel(i64(const(u8), const(i64, 2), const(i64), const(i64), mut(u8)))
def metadata_levels(body, pairs, first_pairs, rows, levels):
    """Levels that structured metadata states.

    Parameters
    ----------
    levels : (n,) uint8        written where a pair is named like a level: its code, or 255 for a word that is none
    """
    count = i64(0)
    for i in range(len(rows)):
        for p in range(first_pairs[rows[i]], first_pairs[rows[i] + 1]):
            start = pairs[p, 0]
            end = pairs[p, 1]
            if name_size(body, start, end) == end - start and end > start:
                code = level_of(body, pairs[p, 2], pairs[p, 3])
                levels[i] = u8(code) if code else u8(255)
                count += 1
                break
    return count
