"""Taking lines apart: which bytes of a line belong to its pattern, and which are a value.

A line becomes literals with values between them. JSON objects are split at their scalar members; any other text at
quoted values, at values behind ``=``, and at words that hold a digit. Every split gives the line back byte for byte,
because it only says where the values are.
"""

from __future__ import annotations

import numpy as np

from tsdb.kernels._jit import const, device, i64, kernel, mut, u8, u64
from tsdb.kernels.bits import prefetch, trailing_zeros
from tsdb.kernels.keys import equal_bytes, hash_bytes, mum
from tsdb.kernels.log_scan import copy_text
from tsdb.kernels.vector import string_stops

VALUES_MAX = 128
"""Most values of one line; a line with more is kept raw."""

RAW, TEXT, JSON_LOOSE, JSON = 0, 1, 2, 3
"""How a line was split; JSON only where it is one valid object without arrays, JSON_LOOSE where it looks like one."""

LEAD = 3
"""Lines fetched ahead of the one that is taken apart."""

_DEPTH_MAX = 16
_MIX = np.uint64(0x9E3779B97F4A7C15)
_BAD = -1
STRICT, ESCAPED = 1, 2


@device
def _is_space(c):
    return c == 32 or c == 9 or c == 10 or c == 13


@device
def _is_digit(c):
    return c >= 48 and c <= 57


@device
def _string_end(data, at, end):
    """Where the string whose text begins at ``at`` ends, and what is in it.

    Returns
    -------
    (place of its quote or -1, STRICT where it is plain JSON | ESCAPED where it holds a backslash)
    """
    flags = i64(STRICT)
    while at < end:
        stops = string_stops(data, at)
        if stops == np.uint64(0):
            at += 32
            continue
        at += i64(trailing_zeros(stops))
        if at >= end:
            break
        c = data[at]
        if c == 34:
            return at, flags
        if c == 92:
            flags |= ESCAPED
            at += 1
            if at >= end:
                break
            e = data[at]
            if e == 117:  # four hex digits
                for k in range(1, 5):
                    h = data[at + k] if at + k < end else u8(0)
                    if not (_is_digit(h) or (h >= 97 and h <= 102) or (h >= 65 and h <= 70)):
                        flags &= ~STRICT
            elif not (e == 34 or e == 92 or e == 47 or e == 98 or e == 102 or e == 110 or e == 114 or e == 116):
                flags &= ~STRICT
        else:
            flags &= ~STRICT
        at += 1
    return i64(_BAD), i64(0)


@device
def _bare_ok(data, at, end):
    """Whether ``data[at:end]`` is a JSON number, true, false or null."""
    n = end - at
    c = data[at]
    if n == 4 and c == 116:
        return data[at + 1] == 114 and data[at + 2] == 117 and data[at + 3] == 101
    if n == 4 and c == 110:
        return data[at + 1] == 117 and data[at + 2] == 108 and data[at + 3] == 108
    if n == 5 and c == 102:
        return data[at + 1] == 97 and data[at + 2] == 108 and data[at + 3] == 115 and data[at + 4] == 101
    if c == 45:
        at += 1
    if at >= end or not _is_digit(data[at]):
        return False
    if data[at] == 48 and at + 1 < end and _is_digit(data[at + 1]):
        return False
    while at < end and _is_digit(data[at]):
        at += 1
    if at < end and data[at] == 46:
        at += 1
        if at >= end or not _is_digit(data[at]):
            return False
        while at < end and _is_digit(data[at]):
            at += 1
    if at < end and (data[at] == 101 or data[at] == 69):
        at += 1
        if at < end and (data[at] == 43 or data[at] == 45):
            at += 1
        if at >= end or not _is_digit(data[at]):
            return False
        while at < end and _is_digit(data[at]):
            at += 1
    return at == end


@device
def _array_end(data, at, end):
    """Place behind the array that begins at ``at``, or -1; brackets inside strings do not count."""
    depth = i64(0)
    while at < end:
        c = data[at]
        if c == 34:
            at, _ = _string_end(data, at + 1, end)
            if at < 0:
                return i64(_BAD)
        elif c == 91 or c == 123:
            depth += 1
        elif c == 93 or c == 125:
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return i64(_BAD)


@device
def _split_json(data, start, end, first, value_starts, value_ends):
    """(values, JSON or JSON_LOOSE, flags of its strings) of an object, or (-1, 0, 0) when it is none."""
    at = start
    n = i64(0)
    depth = i64(0)
    how = i64(JSON)
    seen = i64(0)
    # 0: a value is next; 1: a key or the end of the object; 2: a key; 3: a comma or the end of the object
    state = i64(0)
    while at < end:
        c = data[at]
        if _is_space(c):
            at += 1
            continue
        if state == 0:
            if c == 123:
                depth += 1
                if depth > _DEPTH_MAX:
                    return i64(_BAD), i64(0), i64(0)
                at += 1
                state = i64(1)
                continue
            if n >= VALUES_MAX or depth == 0:
                return i64(_BAD), i64(0), i64(0)
            if c == 34:
                stop, flags = _string_end(data, at + 1, end)
                if stop < 0:
                    return i64(_BAD), i64(0), i64(0)
                if not flags & STRICT:
                    how = i64(JSON_LOOSE)
                seen |= flags
                value_starts[first + n] = at + 1
                value_ends[first + n] = stop
                at = stop + 1
            elif c == 91:
                stop = _array_end(data, at, end)
                if stop < 0:
                    return i64(_BAD), i64(0), i64(0)
                how = i64(JSON_LOOSE)
                value_starts[first + n] = at
                value_ends[first + n] = stop
                at = stop
            else:
                stop = at
                while stop < end and data[stop] != 44 and data[stop] != 125 and not _is_space(data[stop]):
                    stop += 1
                if not _bare_ok(data, at, stop):
                    return i64(_BAD), i64(0), i64(0)
                value_starts[first + n] = at
                value_ends[first + n] = stop
                at = stop
            n += 1
            state = i64(3)
        elif c == 125 and (state == 1 or state == 3):
            depth -= 1
            at += 1
            state = i64(3)
            if depth == 0:
                while at < end:
                    if not _is_space(data[at]):
                        return i64(_BAD), i64(0), i64(0)
                    at += 1
                return n, how, seen
        elif c == 44 and state == 3:
            at += 1
            state = i64(2)
        elif c == 34 and (state == 1 or state == 2):
            stop, _ = _string_end(data, at + 1, end)
            if stop < 0:
                return i64(_BAD), i64(0), i64(0)
            at = stop + 1
            while at < end and _is_space(data[at]):
                at += 1
            if at >= end or data[at] != 58:
                return i64(_BAD), i64(0), i64(0)
            at += 1
            state = i64(0)
        else:
            return i64(_BAD), i64(0), i64(0)
    return i64(_BAD), i64(0), i64(0)


@device
def _split_like(data, start, end, first, model_start, model_end, model_first, n, value_starts, value_ends):
    """(1, flags of its strings) when a line has the literals of the JSON line ``model`` and JSON values, else (0, 0).

    Lines of one source look alike: comparing with the last one costs a third of taking a line apart.
    """
    at = start
    other = model_start
    seen = i64(0)
    for c in range(n):
        size = value_starts[model_first + c] - other
        if at + size > end or not equal_bytes(data, at, data, other, size):
            return i64(0), i64(0)
        at += size
        stop = at
        if data[at - 1] == 34:
            stop, flags = _string_end(data, at, end)
            if stop < 0 or not flags & STRICT:
                return i64(0), i64(0)
            seen |= flags
        else:
            while stop < end and data[stop] != 44 and data[stop] != 125 and not _is_space(data[stop]):
                stop += 1
            if stop == at or not _bare_ok(data, at, stop):
                return i64(0), i64(0)
        value_starts[first + c] = at
        value_ends[first + c] = stop
        at = stop
        other = value_ends[model_first + c]
    if end - at != model_end - other or not equal_bytes(data, at, data, other, end - at):
        return i64(0), i64(0)
    return i64(1), seen


@device
def _is_border(c):
    """Whether a byte separates words: blanks, quotes, brackets, ``, ; = |``."""
    return (
        c <= 32 or c == 34 or c == 39 or c == 44 or c == 59 or c == 61 or c == 124 or c == 40 or c == 41
        or c == 91 or c == 93 or c == 123 or c == 125 or c == 60 or c == 62
    )  # fmt: skip


@device
def _split_text(data, start, end, first, value_starts, value_ends):
    """(values, flags of its quoted values) of a text, or (-1, 0) when there are too many."""
    at = start
    n = i64(0)
    seen = i64(0)
    after_key = False
    while at < end:
        c = data[at]
        if after_key and c == 34:
            stop, flags = _string_end(data, at + 1, end)
            if stop >= 0:
                seen |= flags
                if n >= VALUES_MAX:
                    return i64(_BAD), i64(0)
                value_starts[first + n] = at + 1
                value_ends[first + n] = stop
                n += 1
                at = stop + 1
                after_key = False
                continue
        if _is_border(c):
            after_key = c == 61 and at > start and not _is_border(data[at - 1])
            at += 1
            continue
        stop = at
        digits = False
        while stop < end and not _is_border(data[stop]):
            digits |= _is_digit(data[stop])
            stop += 1
        is_key = stop < end and data[stop] == 61
        if after_key or (digits and not is_key):
            if n >= VALUES_MAX:
                return i64(_BAD), i64(0)
            value_starts[first + n] = at
            value_ends[first + n] = stop
            n += 1
        after_key = False
        at = stop
    return n, seen


@kernel(
    i64(const(u8), const(i64), const(i64), i64, mut(i64), mut(i64), mut(i64), mut(u8), mut(u8), mut(u64))
)  # fmt: skip
def split_lines(data, starts, ends, row, value_starts, value_ends, first_value, how, escaped, shape):
    """Split lines from ``row`` on.

    Parameters
    ----------
    data : uint8, readable 32 bytes behind the last line
    starts, ends : (n,) int64        bytes of each line
    value_starts, value_ends : (capacity,) int64        bytes of each value
    first_value : (n + 1,) int64     values of line i are ``[first_value[i], first_value[i + 1])``; written
    how : (n,) uint8                 RAW, TEXT, JSON_LOOSE or JSON
    escaped : (n,) uint8             1 where a quoted value holds a backslash
    shape : (n,) uint64              equal for lines with the same literals (a hash: compare before you trust it)

    Returns
    -------
    int64        lines split; fewer than there are when the values need more room
    """
    n_rows = i64(len(starts))
    model = i64(-1)
    if row == 0:
        first_value[0] = 0
    while row < n_rows:
        first = first_value[row]
        if first + VALUES_MAX > len(value_starts):
            return row
        start = starts[row]
        end = ends[row]
        if row + LEAD < n_rows:  # neighbours here were far apart in the order of arrival
            for line in range(starts[row + LEAD], ends[row + LEAD], 64):
                prefetch(data, line)
        if model >= 0:
            begin = first_value[model]
            n = first_value[model + 1] - begin
            alike, flags = _split_like(
                data, start, end, first, starts[model], ends[model], begin, n, value_starts, value_ends
            )
            if alike:
                shape[row] = shape[model]
                how[row] = u8(JSON)
                escaped[row] = u8(1) if flags & ESCAPED else u8(0)
                first_value[row + 1] = first + n
                model = row
                row += 1
                continue
        n = i64(_BAD)
        kind = i64(RAW)
        flags = i64(0)
        if end - start >= 2 and data[start] == 123:
            n, kind, flags = _split_json(data, start, end, first, value_starts, value_ends)
        if n < 0:
            n, flags = _split_text(data, start, end, first, value_starts, value_ends)
            kind = i64(TEXT)
        if n < 0:
            n = i64(0)
            kind = i64(RAW)
        h = _MIX ^ u64(kind)
        at = start
        for k in range(first, first + n):
            h = mum(h ^ hash_bytes(data, at, value_starts[k]), _MIX)
            at = value_ends[k]
        h = mum(h ^ hash_bytes(data, at, end), _MIX)
        shape[row] = h
        how[row] = u8(kind)
        escaped[row] = u8(1) if flags & ESCAPED else u8(0)
        first_value[row + 1] = first + n
        if kind == JSON and n > 0:
            model = row
        row += 1
    return row


@kernel(i64(const(u8), const(i64), const(i64), const(i64), const(i64), const(i64), const(i64), i64, mut(i64), mut(i64),
            mut(u8)))  # fmt: skip
def pick_values(data, starts, ends, value_starts, value_ends, first_value, rows, model, out_starts, out_lengths, same):
    """Values of lines with one pattern, column by column.

    Parameters
    ----------
    rows : (m,) int64        lines that seem to have the pattern of line ``model``
    out_starts, out_lengths : (n_values * m,) int64        value c of the k-th line is at ``c * m + k``
    same : (m,) uint8        1 where the line really has the literals of the model

    Returns
    -------
    int64        lines that have it
    """
    m = i64(len(rows))
    base = first_value[model]
    width = first_value[model + 1] - base
    count = i64(0)
    for k in range(m):
        row = rows[k]
        own = first_value[row]
        good = first_value[row + 1] - own == width
        at = starts[row]
        other = starts[model]
        for c in range(width + 1):
            if not good:
                break
            stop = value_starts[own + c] if c < width else ends[row]
            other_stop = value_starts[base + c] if c < width else ends[model]
            good = stop - at == other_stop - other and equal_bytes(data, at, data, other, stop - at)
            if c < width:
                out_starts[c * m + k] = stop
                out_lengths[c * m + k] = value_ends[own + c] - stop
                at = value_ends[own + c]
                other = value_ends[base + c]
        same[k] = u8(1) if good else u8(0)
        count += 1 if good else 0
    return count


@kernel(i64(const(u8), const(i64), const(i64), const(i64), i64, mut(u8)))
def copy_columns(data, starts, lengths, offsets, n_rows, out):
    """Copy values so that those of a column lie together, reading line by line.

    Parameters
    ----------
    data : uint8, readable 16 bytes behind the last value
    starts, lengths : (n_values * n_rows,) int64        value c of line k is at ``c * n_rows + k``
    offsets : (n_values * n_rows,) int64        where it goes: ascending within a column, 16 bytes between two columns
    out : uint8
    """
    for k in range(n_rows):
        for at in range(k, len(starts), n_rows):
            copy_text(data, starts[at], out, offsets[at], lengths[at])
    return i64(len(starts))
