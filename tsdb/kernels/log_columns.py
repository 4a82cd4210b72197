"""Typed columns of log values: recognise, parse, pack, and write the identical text again."""

from __future__ import annotations

import numpy as np

from tsdb.kernels._jit import const, device, i32, i64, kernel, mut, u8, u64
from tsdb.kernels.bits import leading_zeros
from tsdb.kernels.keys import equal_bytes, hash_bytes
from tsdb.kernels.vector import copy16

DICT_MAX = 256
"""Most values of a dictionary: a code is one byte."""

DIGITS_MAX = 18
"""Most digits of a number: it fits an int64 with room for differences."""

SCALE_MAX = 9
NUMBER_BYTES_MAX = 21
SLOT = 0
"""Byte that stands for a number in a skeleton; a text that holds it keeps its plain form."""

# stats of :func:`measure`
EQUAL, HEX, IPS, NUMBERS = 0, 1, 2, 3
STATS = NUMBERS + SCALE_MAX + 1

_POW10 = np.array([10**k for k in range(19)], np.int64)
_NIBBLE = np.array([int(chr(c), 16) if chr(c) in "0123456789abcdef" else 16 for c in range(256)], np.uint8)
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


@device
def _is_digit(c):
    return c >= 48 and c <= 57


@kernel(i64(const(u8), const(i64), const(i64), i64, mut(i64), mut(u8), mut(i64)))
def measure(data, starts, lengths, hex_length, ints, scales, stats):
    """Look at the values of a column once.

    Parameters
    ----------
    data : uint8; starts, lengths : (n,) int64
    hex_length : bytes of a hex value that is counted
    ints : (n,) int64        number without its point, where the value is one
    scales : (n,) uint8      its decimals, 255 where it is no number that can be written back from these two
    stats : (STATS,) int64, zeros        EQUAL: values equal to the first; HEX: lower-case hex of ``hex_length``;
        IPS: dotted quads; NUMBERS + d: numbers with d decimals
    """
    n = i64(len(starts))
    for i in range(n):
        at = starts[i]
        size = lengths[i]
        end = at + size
        scales[i] = u8(255)
        ints[i] = 0
        if size == lengths[0] and equal_bytes(data, at, data, starts[0], size):
            stats[EQUAL] += 1
        digits = i64(0)
        letters = i64(0)
        dots = i64(0)
        point = i64(-1)
        value = i64(0)
        good = size > 0
        k = at
        if good and data[at] == 45:
            k += 1
        while k < end:
            c = data[k]
            if _is_digit(c):
                digits += 1
                if digits <= DIGITS_MAX:
                    value = value * 10 + i64(c) - 48
            elif c >= 97 and c <= 102:
                letters += 1
            elif c == 46:
                dots += 1
                point = k
            else:
                good = False
                break
            k += 1
        if not good:
            continue
        negative = data[at] == 45
        if size == hex_length and digits + letters == size:
            stats[HEX] += 1
        if letters or digits == 0 or digits > DIGITS_MAX:
            continue
        if dots == 3 and not negative:
            stats[IPS] += 1
            continue
        if dots > 1:
            continue
        begin = at + 1 if negative else at
        whole = (point if dots else end) - begin
        decimals = end - point - 1 if dots else i64(0)
        if whole < 1 or (dots and decimals < 1) or decimals > SCALE_MAX:
            continue
        if (whole > 1 and data[begin] == 48) or (negative and value == 0):
            continue
        ints[i] = -value if negative else value
        scales[i] = u8(decimals)
        stats[NUMBERS + decimals] += 1
    return n


@kernel(i64(const(u8), const(i64), const(i64)))
def all_equal(data, starts, lengths):
    """1 when all values are the same."""
    for i in range(1, len(starts)):
        if lengths[i] != lengths[0] or not equal_bytes(data, starts[i], data, starts[0], lengths[0]):
            return i64(0)
    return i64(1)


@kernel(i64(const(u8), const(i64), const(i64), mut(i32), mut(i32), mut(i32)))
def build_dict(data, starts, lengths, slots, firsts, codes):
    """Number the distinct values in the order they come.

    Parameters
    ----------
    slots : (power of two >= 2 * DICT_MAX,) int32, filled with -1
    firsts : (DICT_MAX,) int32       row of the first of each value
    codes : (n,) int32               -1 where the value came after the dictionary was full

    Returns
    -------
    int64        distinct values numbered
    """
    count = i64(0)
    mask = u64(len(slots) - 1)
    for i in range(len(starts)):
        at = starts[i]
        size = lengths[i]
        if i and size == lengths[i - 1] and codes[i - 1] >= 0 and equal_bytes(data, at, data, starts[i - 1], size):
            codes[i] = codes[i - 1]
            continue
        slot = hash_bytes(data, at, at + size) & mask
        code = i64(-1)
        while slots[slot] >= 0:
            known = i64(slots[slot])
            row = firsts[known]
            if lengths[row] == size and equal_bytes(data, at, data, starts[row], size):
                code = known
                break
            slot = (slot + np.uint64(1)) & mask
        if code < 0 and count < DICT_MAX:
            code = count
            slots[slot] = i32(count)
            firsts[count] = i32(i)
            count += 1
        codes[i] = i32(code)
    return count


@kernel(i64(const(u8), const(i64), const(i64), mut(i64), mut(u8)))
def parse_ips(data, starts, lengths, out, good):
    """Dotted quads as numbers; ``good`` is 0 where writing the number would not give the same text."""
    count = i64(0)
    for i in range(len(starts)):
        at = starts[i]
        end = at + lengths[i]
        value = i64(0)
        fields = i64(0)
        ok = lengths[i] >= 7
        while ok and at < end:
            begin = at
            part = i64(0)
            while at < end and _is_digit(data[at]) and at - begin < 4:
                part = part * 10 + i64(data[at]) - 48
                at += 1
            size = at - begin
            ok = size >= 1 and size <= 3 and part <= 255 and not (size > 1 and data[begin] == 48)
            value = value * 256 + part
            fields += 1
            if at < end:
                ok = ok and data[at] == 46 and fields < 4 and at + 1 < end
                at += 1
        ok = ok and fields == 4
        out[i] = value if ok else i64(0)
        good[i] = u8(1) if ok else u8(0)
        count += 1 if ok else 0
    return count


@kernel(i64(const(u8), const(i64), const(i64), i64, mut(u8), mut(u8)))
def parse_hex(data, starts, lengths, width, out, good):
    """Lower-case hex of ``width`` digits as bytes, row by row; zeros and ``good`` = 0 for anything else."""
    half = width // 2
    count = i64(0)
    for i in range(len(starts)):
        ok = lengths[i] == width
        at = starts[i]
        bad = u8(0)
        for k in range(half):
            byte = i64(0)
            if ok:
                high = _NIBBLE[data[at + 2 * k]]
                low = _NIBBLE[data[at + 2 * k + 1]]
                bad |= high | low
                byte = i64(high) * 16 + i64(low)
            out[i * half + k] = u8(byte & 255)
        if bad > 15:
            ok = False
        if not ok:
            for k in range(half):
                out[i * half + k] = u8(0)
        good[i] = u8(1) if ok else u8(0)
        count += 1 if ok else 0
    return count


@kernel(i64(const(u8), const(i64), const(i64), mut(u8), mut(i64), mut(i64), mut(i64), mut(u8)))
def make_skeletons(data, starts, lengths, out, offsets, ints, first_int, good):
    """Texts with their numbers taken out.

    A run of digits without a leading zero becomes one SLOT byte.

    Parameters
    ----------
    out, offsets : uint8 (at least the bytes of the texts), (n + 1,) int64        the skeletons
    ints, first_int : (bytes of the texts,), (n + 1,) int64   numbers of text i: ``[first_int[i], first_int[i + 1])``
    good : (n,) uint8        0 where the text holds a SLOT byte itself; its skeleton is empty

    Returns
    -------
    int64        numbers taken out
    """
    to = i64(0)
    count = i64(0)
    offsets[0] = 0
    first_int[0] = 0
    for i in range(len(starts)):
        at = starts[i]
        end = at + lengths[i]
        begin = to
        begin_count = count
        ok = True
        while at < end:
            c = data[at]
            if c == SLOT:
                ok = False
                break
            if not _is_digit(c):
                out[to] = c
                to += 1
                at += 1
                continue
            stop = at
            value = i64(0)
            while stop < end and _is_digit(data[stop]):
                if stop - at < DIGITS_MAX:
                    value = value * 10 + i64(data[stop]) - 48
                stop += 1
            if stop - at > DIGITS_MAX or (c == 48 and stop - at > 1):
                while at < stop:
                    out[to] = data[at]
                    to += 1
                    at += 1
            else:
                out[to] = u8(SLOT)
                to += 1
                ints[count] = value
                count += 1
                at = stop
        if not ok:
            to = begin
            count = begin_count
        good[i] = u8(1) if ok else u8(0)
        offsets[i + 1] = to
        first_int[i + 1] = count
    return count


@device
def _bit_length(value):
    """Bits of the zigzag form of a number."""
    bits = (u64(value) << np.uint64(1)) ^ u64(value >> 63)
    return 64 - i64(leading_zeros(bits))


@kernel(i64(const(i64), const(i64), mut(i64)))
def int_costs(values, others, costs):
    """Bits of a column's numbers: less their minimum, as differences of neighbours, and less another column's.

    Parameters
    ----------
    values, others : (n,) int64, n > 0
    costs : (3,) int64, written
    """
    low = values[0]
    for i in range(len(values)):
        low = min(low, values[i])
    costs[:] = 0
    last = i64(0)
    for i in range(len(values)):
        costs[0] += _bit_length(values[i] - low) - 1
        costs[1] += _bit_length(values[i] - last)
        costs[2] += _bit_length(values[i] - others[i])
        last = values[i]
    return i64(0)


PLAIN, DELTA, OTHER = 0, 1, 2
"""How numbers are packed: less ``base``, as zigzag differences of neighbours, as zigzag differences to a column."""


@kernel(i64(const(i64), const(i64), i64, i64, mut(u64)))
def reduce_ints(values, others, how, base, out):
    """Numbers as small uint64; returns the bytes that the largest needs."""
    last = i64(0)
    every = np.uint64(0)
    for i in range(len(values)):
        if how == PLAIN:
            word = u64(values[i] - base)
        else:
            diff = values[i] - last if how == DELTA else values[i] - others[i]
            word = (u64(diff) << np.uint64(1)) ^ u64(diff >> 63)
        last = values[i]
        out[i] = word
        every |= word
    width = i64(0)
    while every:
        every >>= np.uint64(8)
        width += 1
    return width


@kernel(i64(const(u64), i64, mut(u8)))
def put_planes(words, width, out):
    """Byte b of word i goes to ``out[b * n + i]``: like bytes lie together."""
    n = i64(len(words))
    for b in range(width):
        shift = u64(8 * b)
        for i in range(n):
            out[b * n + i] = u8((words[i] >> shift) & np.uint64(255))
    return width * n


@kernel(i64(const(u8), i64, const(i64), i64, i64, mut(i64)))
def take_planes(planes, width, others, how, base, out):
    """The numbers again: the inverse of :func:`reduce_ints` and :func:`put_planes`."""
    n = i64(len(out))
    shift_base = base if how == PLAIN else i64(0)
    for i in range(n):
        word = i64(planes[i]) if width else i64(0)
        if width > 1:
            word |= i64(planes[n + i]) << i64(8)
        out[i] = word + shift_base if width < 3 else word
    for b in range(2, width):
        shift = i64(8 * b)
        last_base = shift_base if b == width - 1 else i64(0)
        for i in range(n):
            out[i] = (out[i] | i64(planes[b * n + i]) << shift) + last_base
    if how != PLAIN:
        last = i64(0)
        for i in range(n):
            word = out[i]
            diff = i64(u64(word) >> np.uint64(1)) ^ -(word & i64(1))
            last = last + diff if how == DELTA else others[i] + diff
            out[i] = last
    return n


@kernel(i64(const(u8), mut(i64)))
def count_codes(codes, counts):
    """How often each code occurs; ``counts`` is (DICT_MAX,) int64, zeros."""
    for code in codes:
        counts[code] += 1
    return i64(len(codes))


@kernel(i64(const(u8), mut(u8), mut(u8)))
def move_to_front(codes, recent, out):
    """Each code as its place in the list of codes by last use: streaks and small working sets become small numbers.

    ``recent`` is (DICT_MAX,) uint8, 0, 1, 2, ... at first.
    """
    for i in range(len(codes)):
        code = codes[i]
        k = i64(0)
        held = recent[0]
        while held != code:
            k += 1
            following = recent[k]
            recent[k] = held
            held = following
        recent[0] = code
        out[i] = u8(k)
    return i64(len(codes))


@kernel(i64(const(u8), mut(u8), mut(u8)))
def move_back(places, recent, out):
    """The inverse of :func:`move_to_front`."""
    front = recent[0]
    for i in range(len(places)):
        place = i64(places[i])
        if place:  # most places are 0: then nothing moves
            front = recent[place]
            for k in range(place, 0, -1):
                recent[k] = recent[k - 1]
            recent[0] = front
        out[i] = front
    return i64(len(places))


@device
def _put_number(value, scale, out, to):
    """Write a number; the place behind it."""
    if value < 0:
        out[to] = u8(45)
        to += 1
        value = -value
    size = i64(1)
    while size <= DIGITS_MAX and value >= _POW10[size]:
        size += 1
    size = max(size, scale + 1)
    end = to + size + (1 if scale else 0)
    at = end - 1
    for k in range(size):
        if scale and k == scale:
            out[at] = u8(46)
            at -= 1
        out[at] = u8(48 + value % 10)
        value //= 10
        at -= 1
    return end


@kernel(i64(const(i64), i64, mut(u8), mut(i64)))
def format_numbers(values, scale, out, offsets):
    """Decimal texts, one behind the other.

    Parameters
    ----------
    values : (n,) int64, at most DIGITS_MAX digits; scale : decimals
    out : (NUMBER_BYTES_MAX * n,) uint8; offsets : (n + 1,) int64
    """
    to = i64(0)
    offsets[0] = 0
    for i in range(len(values)):
        to = _put_number(values[i], scale, out, to)
        offsets[i + 1] = to
    return to


@kernel(i64(const(i64), mut(u8), mut(i64)))
def format_ips(values, out, offsets):
    """Dotted quads, one behind the other; ``out`` has 16 bytes a value."""
    to = i64(0)
    offsets[0] = 0
    for i in range(len(values)):
        for k in range(4):
            if k:
                out[to] = u8(46)
                to += 1
            to = _put_number((values[i] >> (24 - 8 * k)) & 255, i64(0), out, to)
        offsets[i + 1] = to
    return to


@kernel(i64(const(u8), mut(u8)))
def format_hex(data, out):
    """Two lower-case hex digits a byte."""
    for i in range(len(data)):
        out[2 * i] = _HEX[data[i] >> 4]
        out[2 * i + 1] = _HEX[data[i] & u8(15)]
    return 2 * i64(len(data))


@kernel(i64(const(u8), const(i64), const(u8), const(i64), const(i64), const(i64), mut(u8), mut(i64)))
def fill_skeletons(data, skeleton_offsets, codes, rows, ints, first_int, out, offsets):
    """Texts from skeletons and numbers, the inverse of :func:`make_skeletons`, for some rows.

    Parameters
    ----------
    data, skeleton_offsets : the distinct skeletons; codes : (n,) uint8
    rows : (k,) int64        rows wanted
    ints, first_int : as :func:`make_skeletons` left them
    out : uint8, large enough; offsets : (k + 1,) int64
    """
    to = i64(0)
    offsets[0] = 0
    for i in range(len(rows)):
        row = rows[i]
        code = i64(codes[row])
        next_int = first_int[row]
        for at in range(skeleton_offsets[code], skeleton_offsets[code + 1]):
            c = data[at]
            if c == SLOT:
                to = _put_number(ints[next_int], i64(0), out, to)
                next_int += 1
            else:
                out[to] = c
                to += 1
        offsets[i + 1] = to
    return to


@device
def _copy_within(source, at, target, to, size, limit):
    """Copy a text without writing at or behind ``limit``."""
    k = i64(0)
    while k < size and to + k + 16 <= limit:
        copy16(source, at + k, target, to + k)
        k += 16
    while k < size:
        target[to + k] = source[at + k]
        k += 1


@kernel(i64(const(u8), const(i64), const(i64), const(u8), const(i64), const(i64), const(i64), mut(u8)))
def assemble_lines(pool, starts, lengths, literals, literal_offsets, targets, target_ends, out):
    """Lines of one pattern from their literals and values.

    Parameters
    ----------
    pool : uint8, readable 16 bytes behind the last value
    starts, lengths : (n_values * m,) int64        value c of line k is at ``c * m + k``
    literals : uint8, readable 16 bytes behind; literal_offsets : (n_values + 2,) int64
    targets, target_ends : (m,) int64      where each line lies in ``out``
    """
    m = i64(len(targets))
    n_values = i64(len(literal_offsets)) - 2
    for k in range(m):
        to = targets[k]
        limit = target_ends[k]
        for c in range(n_values + 1):
            at = literal_offsets[c]
            size = literal_offsets[c + 1] - at
            _copy_within(literals, at, out, to, size, limit)
            to += size
            if c < n_values:
                size = lengths[c * m + k]
                _copy_within(pool, starts[c * m + k], out, to, size, limit)
                to += size
    return m
