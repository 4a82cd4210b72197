"""The XOR chunk codec: delta-of-delta milliseconds and XORed values in 64-bit words, most significant bit first.

Everything is uint64 with wrapping arithmetic, so that any pair of 64-bit time and 64-bit pattern survives:
times are int64 seen as uint64, values are float64 bit patterns that no float instruction ever touches.

Source: docs/format/chunk.md; Pelkonen et al., "Gorilla", VLDB 2015, section 4.1, with wider time codes.
"""

from __future__ import annotations

import numpy as np

from tsdb.kernels._jit import const, device, i32, i64, kernel, mut, u32, u64
from tsdb.kernels.bits import leading_zeros, trailing_zeros

SAMPLES_MAX = 120
"""Most samples of one chunk (tsdb.chunks.CHUNK_SAMPLES_MAX; kernels know nothing but kernels)."""
WORDS_MAX = 272
"""Most words of one chunk: 128 bits, then 119 samples of at most 145 bits."""
PAD_WORDS = 4
"""Words behind a payload that :func:`decode_chunk` may read (and ignore); they must exist."""
NO_WINDOW = 64
"""Window start that no XOR fits into: the first sample that differs opens a window."""
TRUNCATED = -1
"""Status: the payload ends before its last sample, or a window is wider than a word."""

_0 = np.uint64(0)
_1 = np.uint64(1)
_2 = np.uint64(2)
_3 = np.uint64(3)
_4 = np.uint64(4)
_6 = np.uint64(6)
_9 = np.uint64(9)
_11 = np.uint64(11)
_12 = np.uint64(12)
_13 = np.uint64(13)
_15 = np.uint64(15)
_24 = np.uint64(24)
_31 = np.uint64(31)
_44 = np.uint64(44)
_51 = np.uint64(51)
_52 = np.uint64(52)
_57 = np.uint64(57)
_62 = np.uint64(62)
_63 = np.uint64(63)
_64 = np.uint64(64)
_128 = np.uint64(128)
_NO_WINDOW = np.uint64(NO_WINDOW)
_7_BITS = np.uint64((1 << 7) - 1)
_12_BITS = np.uint64((1 << 12) - 1)
_20_BITS = np.uint64((1 << 20) - 1)
_HALF_7 = np.uint64(1 << 6)
_HALF_12 = np.uint64(1 << 11)
_HALF_20 = np.uint64(1 << 19)
_CODE_7 = np.uint64(0b10 << 7)
_CODE_12 = np.uint64(0b110 << 12)
_CODE_20 = np.uint64(0b1110 << 20)
_CODE_64 = np.uint64(0b1111)
_OLD_WINDOW = np.uint64(0b10)
_NEW_WINDOW = np.uint64(0b11 << 11)
BIAS = np.uint64(1 << 63)
"""``time ^ BIAS`` orders int64 times as unsigned numbers; 0 stands below every time but the lowest."""
_NO_END = np.uint64((1 << 64) - 1)


@device
def span_end(biased, span):
    """First multiple of ``span`` above a biased time, biased; the highest number where that is no int64."""
    phase = (biased % span + span - BIAS % span) % span
    left = span - phase
    return biased + left if biased <= _NO_END - left else _NO_END


@device
def put_bits(out, at, word, used, value, n):
    """Append the ``n`` (1-64) low bits of ``value``; full words go to ``out[at]``. ``value`` has no higher bits."""
    free = _64 - used
    if n < free:
        return at, word | (value << (free - n)), used + n
    rest = n - free
    out[at] = word | (value >> rest)
    return at + _1, (value << _1) << (_63 - rest), rest


@device
def encode_sample(time, value, last_time, delta, last_value, lead, trail, word, used, out, at):
    """Append one sample to a chunk that has its first one.

    Parameters
    ----------
    time, value : uint64             the sample
    last_time, delta, last_value : uint64   sample before it and the time step that led to that
    lead, trail : uint64             zero bits above and below the window; ``NO_WINDOW`` = none yet
    word, used : uint64              word being filled and its bits in use (0-63)
    out, at : uint64[], uint64       full words go to ``out[at]`` on; at most 3

    Returns
    -------
    (delta, lead, trail, word, used, at)
    """
    step = time - last_time
    change = step - delta
    xor = value ^ last_value
    if change == _0:
        code, n = _0, _1
    elif change + _HALF_7 < _HALF_7 + _HALF_7:
        code, n = _CODE_7 | (change & _7_BITS), _9
    elif change + _HALF_12 < _HALF_12 + _HALF_12:
        code, n = _CODE_12 | (change & _12_BITS), _15
    elif change + _HALF_20 < _HALF_20 + _HALF_20:
        code, n = _CODE_20 | (change & _20_BITS), _24
    else:
        at, word, used = put_bits(out, at, word, used, _CODE_64, _4)
        at, word, used = put_bits(out, at, word, used, change, _64)
        code, n = _0, _0
    if xor == _0:
        code = code << _1
        n += _1
    else:
        new_lead = min(leading_zeros(xor), _31)
        new_trail = trailing_zeros(xor)
        new_size = _64 - new_lead - new_trail
        size = _64 - lead - trail
        # An old window is kept unless a new one is shorter in spite of the 11 bits that describe it.
        if new_lead >= lead and new_trail >= trail and size <= new_size + _11:
            code = (code << _2) | _OLD_WINDOW
            n += _2
        else:
            lead, trail, size = new_lead, new_trail, new_size
            code = (code << _13) | _NEW_WINDOW | (lead << _6) | (size - _1)
            n += _13
        payload = xor >> trail
        if n + size <= _64:
            code = (code << size) | payload
            n += size
        else:
            at, word, used = put_bits(out, at, word, used, code, n)
            code, n = payload, size
    at, word, used = put_bits(out, at, word, used, code, n)
    return step, lead, trail, word, used, at


@device
def peek(words, bit):
    """64 bits from bit number ``bit`` on; reads one word further than that."""
    index = bit >> _6
    offset = bit & _63
    return (words[index] << offset) | ((words[index + _1] >> _1) >> (_63 - offset))


@device
def signed(bits, shift):
    """``bits >> shift`` with the sign bit repeated, as uint64."""
    sign = _0 - (bits >> _63)
    return (bits >> shift) | ((sign << _1) << (_63 - shift))


@device
def decode_chunk(words, first, n_words, count, out_times, out_values, at):
    """Decode one chunk into ``out_times[at:at + count]`` and ``out_values[...]``.

    Never reads before ``first`` nor past ``first + n_words + PAD_WORDS``, whatever the bits are.

    Parameters
    ----------
    words : uint64[]; first, n_words, count, at : uint64   payload (``n_words >= 2``, ``count >= 1``)
    out_times, out_values : uint64[], written

    Returns
    -------
    int64        0, or ``TRUNCATED``
    """
    time = words[first]
    value = words[first + _1]
    out_times[at] = time
    out_values[at] = value
    bit = (first << _6) + _128
    limit = (first + n_words) << _6
    delta = _0
    trail = _0
    size = _64
    end = at + count
    at += _1
    while at < end:
        ahead = peek(words, bit)
        if ahead >> _62 == _0:  # same step, same value: the commonest sample
            bit += _2
        else:
            if ahead >> _63 == _0:
                n = _1
                change = _0
            elif ahead >> _62 == _2:
                n = _9
                change = signed(ahead << _2, _57)
            elif (ahead >> _62) == _3 and (ahead << _2) >> _63 == _0:
                n = _15
                change = signed(ahead << _3, _52)
            elif (ahead << _3) >> _63 == _0:
                n = _24
                change = signed(ahead << _4, _44)
            else:
                change = peek(words, bit + _4)
                bit += _4 + _64
                ahead = peek(words, bit)
                n = _0
            delta += change
            ahead = ahead << n
            bit += n + _1
            if ahead >> _63 != _0:
                bit += _1
                if ahead >> _62 == _3:
                    lead = (ahead >> _57) & _31
                    size = ((ahead >> _51) & _63) + _1
                    bit += _11
                    if lead + size > _64:
                        return TRUNCATED
                    trail = _64 - lead - size
                value ^= (peek(words, bit) >> (_64 - size)) << trail
                bit += size
        if bit > limit:
            return TRUNCATED
        time += delta
        out_times[at] = time
        out_values[at] = value
        at += _1
    return 0


@kernel(
    i64(
        const(u32), const(u64), const(u64), u64, i64, mut(i32), mut(i64), mut(i64), mut(i32), mut(i64), mut(i32),
        mut(u64),
    )
)  # fmt: skip
def encode_rows(
    rows, times, values, span, samples_max, out_rows, out_min, out_max, out_counts, out_offsets, out_words, words
):  # fmt: skip
    """Encode plain samples, sorted by (row, time), into chunks of one row and one span.

    Parameters
    ----------
    rows : (n,) uint32; times, values : (n,) uint64, const
    span : uint64        milliseconds; no chunk crosses a multiple of it
    samples_max : int64        most samples of a chunk
    out_rows ... out_words : (n,) written   descriptor columns of tsdb.chunks.Chunks
    words : (3 * n + PAD_WORDS,) uint64, written

    Returns
    -------
    int64        chunks written; the payload ends with the last chunk's
    """
    n = len(rows)
    chunk = 0
    at = _0
    i = 0
    while i < n:
        row = rows[i]
        time = times[i]
        value = values[i]
        end = span_end(time ^ BIAS, span)
        begin = at
        out_min[chunk] = i64(time)
        words[at] = time
        words[at + _1] = value
        at += _2
        delta = _0
        lead = _NO_WINDOW
        trail = _0
        word = _0
        used = _0
        count = 1
        i += 1
        while i < n and rows[i] == row and count < samples_max and (times[i] ^ BIAS) < end:
            delta, lead, trail, word, used, at = encode_sample(
                times[i], values[i], time, delta, value, lead, trail, word, used, words, at
            )
            time = times[i]
            value = values[i]
            count += 1
            i += 1
        if used > _0:
            words[at] = word
            at += _1
        out_rows[chunk] = i32(row)
        out_max[chunk] = i64(time)
        out_counts[chunk] = count
        out_offsets[chunk] = i64(begin)
        out_words[chunk] = i32(at - begin)
        chunk += 1
    return chunk
