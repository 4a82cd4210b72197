"""Fields of log lines: JSON members, logfmt pairs, and the captures of patterns, as places in the lines.

Nothing is copied: a field is the number of its name and the bytes of its value. Names are numbered as they appear; a
member of a nested object has the number of the object as its parent.
"""

from __future__ import annotations

from tsdb.kernels._jit import const, device, i32, i64, kernel, mut, u8, u64
from tsdb.kernels.bits import trailing_zeros
from tsdb.kernels.keys import equal_bytes, hash_bytes
from tsdb.kernels.vector import STRING, string_stops

PLAIN, ESCAPED, BARE = 0, 1, 2
"""Kind of a value: text between quotes without and with escapes, number or word."""

DEPTH_MAX = 64
"""Most objects inside each other."""

COUNTS = DEPTH_MAX + 3
_FULL = -1  # no room for another name


@device
def _is_space(c):
    return c == 32 or c == 9 or c == 10 or c == 13


@device
def _is_digit(c):
    return c >= 48 and c <= 57


@device
def _string_end(data, at, end):
    """(place of the closing quote, whether there are escapes); -1 where it is not closed."""
    escapes = i64(0)
    while at < end:
        stops = string_stops(data, at)
        if stops == 0:
            at += STRING
            continue
        at += i64(trailing_zeros(stops))
        if at >= end:
            break
        c = data[at]
        if c == 34:
            return at, escapes
        if c == 92:
            escapes = i64(1)
            at += 1
        at += 1
    return i64(-1), escapes


@device
def _is_bare(data, at, end):
    """Whether ``data[at:end]`` is a JSON number, true or false (1) or null (2), else 0."""
    n = end - at
    if n == 4 and data[at] == 116 and data[at + 1] == 114 and data[at + 2] == 117 and data[at + 3] == 101:
        return i64(1)
    if n == 4 and data[at] == 110 and data[at + 1] == 117 and data[at + 2] == 108 and data[at + 3] == 108:
        return i64(2)
    if (
        n == 5
        and data[at] == 102
        and data[at + 1] == 97
        and data[at + 2] == 108
        and data[at + 3] == 115
        and data[at + 4] == 101
    ):
        return i64(1)
    if at < end and data[at] == 45:
        at += 1
    digits = i64(0)
    while at < end and _is_digit(data[at]):
        at += 1
        digits += 1
    if digits == 0:
        return i64(0)
    if at < end and data[at] == 46:
        at += 1
        digits = i64(0)
        while at < end and _is_digit(data[at]):
            at += 1
            digits += 1
        if digits == 0:
            return i64(0)
    if at < end and (data[at] == 101 or data[at] == 69):
        at += 1
        if at < end and (data[at] == 43 or data[at] == 45):
            at += 1
        digits = i64(0)
        while at < end and _is_digit(data[at]):
            at += 1
            digits += 1
        if digits == 0:
            return i64(0)
    return i64(1) if at == end else i64(0)


@device
def _array_end(data, at, end):
    """Place behind the array that begins at ``at``, or -1."""
    depth = i64(0)
    while at < end:
        c = data[at]
        if c == 34:
            stop, _ = _string_end(data, at + 1, end)
            if stop < 0:
                return i64(-1)
            at = stop
        elif c == 91 or c == 123:
            depth += 1
        elif c == 93 or c == 125:
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return i64(-1)


@device
def _name_id(data, start, end, parent, guess, slots, name_parent, name_start, name_end, counts):
    """Number of a name below a parent, a new one when it was not seen before; ``_FULL`` when there is no room.

    Senders repeat their order and names are numbered as they appear, so that the ``guess`` of the number behind the
    last one is mostly right: no hash then.
    """
    if (
        guess < counts[1]
        and name_parent[guess] == parent
        and name_end[guess] - name_start[guess] == end - start
        and equal_bytes(data, start, data, name_start[guess], end - start)
    ):
        return i64(guess)
    mask = i64(len(slots) - 1)
    at = i64((hash_bytes(data, start, end) ^ (u64(parent + 1) << u64(24))) >> u64(20)) & mask
    while slots[at] > 0:
        known = slots[at] - 1
        if (
            name_parent[known] == parent
            and name_end[known] - name_start[known] == end - start
            and equal_bytes(data, start, data, name_start[known], end - start)
        ):
            return i64(known)
        at = (at + 1) & mask
    if counts[1] >= len(name_parent):
        return i64(_FULL)
    new = counts[1]
    slots[at] = new + 1
    name_parent[new] = parent
    name_start[new] = start
    name_end[new] = end
    counts[1] = new + 1
    return i64(new)


_SIGNATURE = i64(
    const(u8), const(i64), i64, mut(i64), mut(i64), mut(i64), mut(i64), mut(i64), mut(i32), mut(i32), mut(i64),
    mut(i64), mut(u8), mut(u8),
)  # fmt: skip


@kernel(_SIGNATURE)
def json_fields(
    data, offsets, row, slots, name_parent, name_start, name_end, counts, rows, names, starts, ends, kinds, bad
):
    """Scalar members of JSON objects, one object a line, from line ``row`` on.

    Arrays and null are left out. A line that is no object has no fields and is marked.

    Parameters
    ----------
    data : uint8, readable 32 bytes behind the last line
    offsets : (n + 1,) int64         bytes of each line
    slots : int64, a power of two, at least twice the room for names; zeros at the start
    name_parent, name_start, name_end : (names_max,) int64     parent (-1 = none) and bytes of each name, state
    counts : (COUNTS,) int64         fields written, names known, and the parents of the open objects; state
    rows, names, starts, ends, kinds : (capacity,)     line, name, bytes and kind of each field, written
    bad : (n,) uint8                 1 where a line is no JSON object, written

    Returns
    -------
    int64        lines done (fewer when there is no more room for fields), -1 when there is none for names
    """
    n_rows = i64(len(offsets) - 1)
    while row < n_rows:
        at = offsets[row]
        end = offsets[row + 1]
        n = counts[0]
        if n + (end - at) // 4 + 1 > len(rows):
            return row
        first = n
        depth = i64(0)
        name = i64(-1)
        # 0: a value is next; 1: a key or the end of the object; 2: a key; 3: a comma or an end; 4: done; 5: wrong
        state = i64(0)
        while at < end and state < 5:
            c = data[at]
            if _is_space(c):
                at += 1
            elif state == 0 and c == 123:
                depth += 1
                state = i64(1 if depth <= DEPTH_MAX else 5)
                counts[2 + min(depth, DEPTH_MAX)] = name
                at += 1
            elif state == 0 and depth == 0:
                state = i64(5)
            elif state == 0 and c == 34:
                stop, escapes = _string_end(data, at + 1, end)
                if stop < 0:
                    state = i64(5)
                else:
                    rows[n] = row
                    names[n] = name
                    starts[n] = at + 1
                    ends[n] = stop
                    kinds[n] = u8(ESCAPED if escapes else PLAIN)
                    n += 1
                    at = stop + 1
                    state = i64(3)
            elif state == 0 and c == 91:
                at = _array_end(data, at, end)
                state = i64(3 if at >= 0 else 5)
            elif state == 0:
                stop = at
                while stop < end and data[stop] != 44 and data[stop] != 125 and not _is_space(data[stop]):
                    stop += 1
                what = _is_bare(data, at, stop)
                if what == 1:
                    rows[n] = row
                    names[n] = name
                    starts[n] = at
                    ends[n] = stop
                    kinds[n] = u8(BARE)
                    n += 1
                at = stop
                state = i64(3 if what else 5)
            elif c == 125 and (state == 1 or state == 3):
                depth -= 1
                at += 1
                state = i64(3 if depth else 4)
            elif c == 44 and state == 3:
                at += 1
                state = i64(2)
            elif c == 34 and (state == 1 or state == 2):
                stop, _ = _string_end(data, at + 1, end)
                if stop < 0:
                    state = i64(5)
                    continue
                name = _name_id(
                    data, at + 1, stop, counts[2 + depth], name + 1, slots, name_parent, name_start, name_end, counts
                )  # fmt: skip
                if name < 0:
                    return i64(_FULL)
                at = stop + 1
                while at < end and _is_space(data[at]):
                    at += 1
                state = i64(0 if at < end and data[at] == 58 else 5)
                at += 1
            else:
                state = i64(5)
        good = state == 4
        bad[row] = u8(0 if good else 1)
        counts[0] = n if good else first
        row += 1
    return row


@kernel(_SIGNATURE)
def logfmt_fields(
    data, offsets, row, slots, name_parent, name_start, name_end, counts, rows, names, starts, ends, kinds, bad
):
    """Pairs ``key=value`` and keys alone (an empty value) of logfmt lines, from line ``row`` on.

    Parameters and result are those of :func:`json_fields`; ``bad`` marks lines with a stray quote or equals sign, whose
    other pairs are there nevertheless.
    """
    n_rows = i64(len(offsets) - 1)
    while row < n_rows:
        at = offsets[row]
        end = offsets[row + 1]
        n = counts[0]
        if n + (end - at) // 2 + 1 > len(rows):
            return row
        bad[row] = u8(0)
        name = i64(-1)
        while at < end:
            if data[at] <= 32:
                at += 1
                continue
            start = at
            while at < end and data[at] > 32 and data[at] != 61 and data[at] != 34:
                at += 1
            stop = at
            if stop == start:
                bad[row] = u8(1)
                at += 1
                continue
            kind = i64(PLAIN)
            value_start = at
            value_end = at
            if at < end and data[at] == 61:
                at += 1
                value_start = at
                value_end = at
                if at < end and data[at] == 34:
                    close, escapes = _string_end(data, at + 1, end)
                    if close < 0:
                        bad[row] = u8(1)
                        break
                    value_start = at + 1
                    value_end = close
                    kind = i64(ESCAPED if escapes else PLAIN)
                    at = close + 1
                else:
                    while at < end and data[at] > 32:
                        if data[at] == 34 or data[at] == 61:
                            bad[row] = u8(1)
                        at += 1
                    value_end = at
                    kind = i64(BARE)
            elif at < end and data[at] == 34:
                bad[row] = u8(1)
            name = _name_id(data, start, stop, i64(-1), name + 1, slots, name_parent, name_start, name_end, counts)
            if name < 0:
                return i64(_FULL)
            rows[n] = row
            names[n] = name
            starts[n] = value_start
            ends[n] = value_end
            kinds[n] = u8(kind)
            n += 1
        counts[0] = n
        row += 1
    return row


@device
def _find(data, at, end, literals, first, stop):
    """First place from ``at`` where ``literals[first:stop]`` stands, or -1."""
    n = stop - first
    while at + n <= end:
        k = i64(0)
        while k < n and data[at + k] == literals[first + k]:
            k += 1
        if k == n:
            return at
        at += 1
    return i64(-1)


@kernel(i64(const(u8), const(i64), const(u8), const(i64), i64, i64, mut(i64, 2), mut(i64, 2), mut(u8)))
def pattern_captures(data, offsets, literals, literal_offsets, leads, captures, starts, ends, matched):
    """What the captures of a pattern hold in each line.

    Each capture reaches to the first place of the literal behind it, the last one to the end of the line. Where a
    literal is missing, the capture before it takes the rest and those behind it nothing.

    Parameters
    ----------
    data, offsets : lines, as in :func:`json_fields`
    literals, literal_offsets : literals of the pattern, one behind the other
    leads : 1 when a literal comes before the first capture
    captures : number of captures
    starts, ends : (captures, n) int64, written; -1 where there is nothing
    matched : (n,) uint8, written        1 where the whole line has the shape of the pattern, no capture empty

    Returns
    -------
    int64        lines matched
    """
    count = i64(0)
    n_literals = i64(len(literal_offsets) - 1)
    for row in range(len(offsets) - 1):
        at = offsets[row]
        end = offsets[row + 1]
        matched[row] = u8(0)
        for c in range(captures):
            starts[c, row] = -1
            ends[c, row] = -1
        literal = i64(0)
        whole = True
        if leads == 1:
            size = literal_offsets[1]
            if end - at < size or _find(data, at, at + size, literals, i64(0), size) != at:
                continue
            at += size
            literal = i64(1)
        for c in range(captures):
            starts[c, row] = at
            if literal == n_literals:
                ends[c, row] = end
                whole &= end > at
                at = end
                break
            found = _find(data, at, end, literals, literal_offsets[literal], literal_offsets[literal + 1])
            if found < 0:
                ends[c, row] = end
                whole = False
                break
            whole &= found > at
            ends[c, row] = found
            at = found + literal_offsets[literal + 1] - literal_offsets[literal]
            literal += 1
        if whole and at == end and literal == n_literals:
            matched[row] = u8(1)
            count += 1
    return count
