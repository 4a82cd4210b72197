"""The PACK chunk codec: scaled integers, bit-packed, for chunks that rest in blocks.

Most series are counters and decimal gauges. Their values are exact integers after scaling by a power of ten, and
their times lie close to a line, so both are small numbers of one width each: reading them takes shifts instead of
the branches of the XOR stream. A chunk that is not of this kind stays XOR.

Source: docs/format/chunk.md; storage.md section 6.2.
"""

from __future__ import annotations

import numpy as np

from tsdb.kernels._jit import const, device, i32, i64, kernel, mut, u8, u64
from tsdb.kernels.gorilla import TRUNCATED, decode_chunk

XOR = 1  # tsdb.chunks.ChunkKind.XOR
PACK = 2  # tsdb.chunks.ChunkKind.PACK

HEAD_WORDS = 5
EXPONENT_MAX = 15
"""Largest power of ten of the scale: 10^15 still is an exact float64 whose quotients are decimals."""
TIME_WIDTH_MAX = 32
VALUE_WIDTH_MAX = 54
"""Differences of two integers below 2^53."""
LARGEST = 9007199254740992.0
"""2^53: from here on a float64 no longer holds every integer."""

_SCALES = np.array([10.0**e for e in range(EXPONENT_MAX + 1)])

_1 = np.uint64(1)
_6 = np.uint64(6)
_63 = np.uint64(63)
_64 = np.uint64(64)
_8_BITS = np.uint64(0xFF)
_32_BITS = np.uint64(0xFFFFFFFF)


@device
def put_packed(words, bit, value, width):
    """OR ``width`` (1-63) bits at bit number ``bit``, least significant first; the words there are zero."""
    at = bit >> _6
    shift = bit & _63
    words[at] |= value << shift
    if shift + width > _64:
        words[at + _1] |= (value >> _1) >> (_63 - shift)


@device
def get_packed(words, bit, mask):
    """The bits under ``mask`` from bit number ``bit`` on; reads one word further than that."""
    at = bit >> _6
    shift = bit & _63
    return ((words[at] >> shift) | ((words[at + _1] << _1) << (_63 - shift))) & mask


@device
def width_of(value):
    """Bits of an unsigned number."""
    width = u64(0)
    while value:
        width += _1
        value = value >> _1
    return width


@device
def words_of(count, width):
    """Words that ``count`` numbers of ``width`` bits fill."""
    return (count * width + _63) >> _6


@device
def scale_values(values, bits, count, integers):
    """Find the least power of ten that makes all values exact integers.

    The test runs the decoder's own expression: the quotient must have the identical bits. NaN, infinities and -0.0
    have no integer.

    Returns
    -------
    int64        the exponent, or -1
    """
    for exponent in range(EXPONENT_MAX + 1):
        scale = _SCALES[exponent]
        exact = True
        for i in range(count):
            scaled = values[i] * scale
            if not (-LARGEST < scaled < LARGEST):
                return -1  # a larger exponent only makes it larger; NaN never fits
            integer = np.rint(scaled)
            if integer / scale != values[i] or (integer == 0.0 and bits[i] != u64(0)):
                exact = False
                break
            integers[i] = i64(integer)
        if exact:
            return exponent
    return -1


@device
def pack_chunk(times, bits, values, count, integers, out, at, room):
    """Write one chunk as PACK into the zeroed words ``out[at:at + room]``.

    Parameters
    ----------
    times, bits : (>= count,) uint64; values : float64 view of ``bits``
    integers : (>= count,) int64, scratch
    room : most words it may take

    Returns
    -------
    int64        words written, or -1 when the chunk is no scaled integers or does not fit
    """
    exponent = scale_values(values, bits, count, integers)
    if exponent < 0:
        return -1
    first_time = i64(times[0])
    step = (i64(times[count - 1]) - first_time) // max(count - 1, 1)
    if step < 0 or step > i64(_32_BITS):
        return -1
    low_time = i64(0)
    high_time = i64(0)
    low = integers[0]
    high = low
    low_delta = i64(0)
    high_delta = i64(0)
    for i in range(count):
        late = i64(times[i]) - first_time - i * step
        low_time = min(low_time, late)
        high_time = max(high_time, late)
        low = min(low, integers[i])
        high = max(high, integers[i])
        if i > 0:
            delta = integers[i] - integers[i - 1]
            low_delta = delta if i == 1 else min(low_delta, delta)
            high_delta = delta if i == 1 else max(high_delta, delta)
    if low_time < -(1 << 31) or high_time >= (1 << 31):
        return -1
    by_delta = high_delta - low_delta < high - low
    base = low_delta if by_delta else low
    time_width = width_of(u64(high_time - low_time))
    value_width = width_of(u64(high_delta - low_delta if by_delta else high - low))
    n = u64(count)
    numbers = n - _1 if by_delta else n
    first_value = HEAD_WORDS + i64(words_of(n, time_width))
    size = first_value + i64(words_of(numbers, value_width))
    if size > room:
        return -1
    out[at] = u64(exponent) | (u64(by_delta) << u64(8)) | (time_width << u64(16)) | (value_width << u64(24))
    out[at + 1] = u64(first_time)
    out[at + 2] = u64(step) | (u64(low_time) << u64(32))
    out[at + 3] = u64(integers[0])
    out[at + 4] = u64(base)
    if time_width:
        bit = u64(at + HEAD_WORDS) << _6
        for i in range(count):
            put_packed(out, bit, u64(i64(times[i]) - first_time - i * step - low_time), time_width)
            bit += time_width
    if value_width:
        bit = u64(at + first_value) << _6
        for i in range(1 if by_delta else 0, count):
            number = integers[i] - integers[i - 1] - base if by_delta else integers[i] - base
            put_packed(out, bit, u64(number), value_width)
            bit += value_width
    return size


@device
def unpack_chunk(words, first, n_words, count, out_times, out_bits, at):
    """Decode one PACK chunk into ``out_times[at:at + count]`` and ``out_bits[...]``.

    Never reads before ``first`` nor past ``first + n_words + 1``, whatever the bits are.

    Returns
    -------
    int64        0, or ``TRUNCATED``
    """
    if n_words < HEAD_WORDS:
        return TRUNCATED
    head = words[first]
    exponent = head & _8_BITS
    by_delta = (head >> u64(8)) & _8_BITS
    time_width = (head >> u64(16)) & _8_BITS
    value_width = (head >> u64(24)) & _8_BITS
    if exponent > EXPONENT_MAX or by_delta > _1 or time_width > TIME_WIDTH_MAX or value_width > VALUE_WIDTH_MAX:
        return TRUNCATED
    n = u64(count)
    first_value = u64(first + HEAD_WORDS) + words_of(n, time_width)
    numbers = n - _1 if by_delta else n
    if first_value + words_of(numbers, value_width) > u64(first + n_words):
        return TRUNCATED
    step = words[first + 2] & _32_BITS
    time = words[first + 1] + u64(i64(words[first + 2]) >> i64(32))
    # Unsigned indices: of a signed one the compiler must ask whether it counts from the end, in every turn.
    to = u64(at)
    if time_width:
        mask = (_1 << time_width) - _1
        bit = u64(first + HEAD_WORDS) << _6
        for i in range(n):
            out_times[to + i] = time + get_packed(words, bit, mask)
            time += step
            bit += time_width
    else:
        for i in range(n):
            out_times[to + i] = time + i * step
    scale = _SCALES[exponent]
    out = out_bits.view(np.float64)
    base = words[first + 4]
    mask = (_1 << value_width) - _1
    bit = first_value << _6
    integer = words[first + 3]
    if by_delta:
        out[to] = float(i64(integer))
        if value_width:
            for i in range(_1, n):
                integer += base + get_packed(words, bit, mask)
                out[to + i] = float(i64(integer))
                bit += value_width
        else:
            for i in range(_1, n):
                out[to + i] = float(i64(integer + i * base))
    elif value_width:
        for i in range(n):
            out[to + i] = float(i64(base + get_packed(words, bit, mask)))
            bit += value_width
    else:
        constant = float(i64(base))
        for i in range(n):
            out[to + i] = constant
    if exponent:
        for i in range(n):
            out[to + i] /= scale
    return 0


@device
def decode_any(kind, words, first, n_words, count, out_times, out_bits, at):
    """Decode one chunk of either kind; 0, or ``TRUNCATED``."""
    if kind == PACK:
        return unpack_chunk(words, first, n_words, count, out_times, out_bits, at)
    return decode_chunk(words, u64(first), u64(n_words), u64(count), out_times, out_bits, u64(at))


@kernel(
    i64(
        const(u64), const(i64), const(i32), const(i32), const(u8), mut(u64), mut(u64), mut(i64),
        mut(u64), mut(i64), mut(i32), mut(u8),
    )
)  # fmt: skip
def pack_chunks(
    words, offsets, word_counts, counts, kinds, times, bits, integers, out_words, out_offsets, out_counts, out_kinds
):  # fmt: skip
    """Repack chunks: PACK where that takes at most an eighth more words than XOR (it decodes several times faster).

    Parameters
    ----------
    words : uint64, const        payloads with ``PAD_WORDS`` readable words behind the last
    offsets, word_counts, counts, kinds : (n,) const        descriptor columns of tsdb.chunks.Chunks
    times, bits, integers : (longest chunk,) scratch
    out_words : uint64, zeros, written        at least 9/8 of all payloads
    out_offsets, out_counts, out_kinds : (n,) written

    Returns
    -------
    int64        words written, or -1 - number of the chunk that does not decode
    """
    at = 0
    values = bits.view(np.float64)
    for chunk in range(len(offsets)):
        first = offsets[chunk]
        size = i64(word_counts[chunk])
        count = i64(counts[chunk])
        made = i64(-1)
        if kinds[chunk] == XOR:
            if decode_chunk(words, u64(first), u64(size), u64(count), times, bits, u64(0)) < 0:
                return -1 - chunk
            made = pack_chunk(times, bits, values, count, integers, out_words, at, size + (size >> 3))
        if made < 0:
            for k in range(size):
                out_words[at + k] = words[first + k]
            out_kinds[chunk] = kinds[chunk]
            made = size
        else:
            out_kinds[chunk] = u8(PACK)
        out_offsets[chunk] = at
        out_counts[chunk] = i32(made)
        at += made
    return at


@kernel(i64(const(u64), const(i64), const(i32), const(i32), const(u8), mut(u64), mut(u64)))
def decode_chunks(words, offsets, word_counts, counts, kinds, out_times, out_values):
    """Decode chunks one after the other into one pair of arrays.

    Parameters
    ----------
    words : (n_words,) uint64, const   each payload is followed by ``PAD_WORDS`` words of anything
    offsets : (n_chunks,) int64, const; word_counts, counts : (n_chunks,) int32, const
    kinds : (n_chunks,) uint8, const   XOR or PACK
    out_times, out_values : (sum of counts,) uint64, written

    Returns
    -------
    int64        samples written, or ``TRUNCATED``
    """
    at = 0
    for chunk in range(len(offsets)):
        count = i64(counts[chunk])
        size = i64(word_counts[chunk])
        if decode_any(i64(kinds[chunk]), words, offsets[chunk], size, count, out_times, out_values, at) < 0:
            return TRUNCATED
        at += count
    return at
