"""Shortest text of a float64 that reads back to the same bits, in the notation of the Prometheus API.

The digits are those of Schubfach (Raffaello Giulietti, "The Schubfach way to render doubles", 2020): of all
decimals inside the rounding interval one with the fewest digits, of these the nearest. The notation is compat.md 2:
integral values without a point, an exponent only below 1e-6 and from 1e21 on, signed and of at least two digits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from query.kernels.words import leading_zeros, load8, mulhi, mullo, store8, trailing_zeros
from tsdb.kernels._jit import device

FLOAT_TEXT_MAX = 40
"""Bytes that :func:`write_float` may touch from its position; the text itself is at most 24."""

_K_MIN, _K_MAX = -292, 324
_u64 = np.uint64


def _powers() -> tuple[Any, Any]:
    """10**k for k in [-292, 324] as 128-bit significands with the top bit set, rounded up; (617,) uint64 each."""
    high, low = [], []
    for k in range(_K_MIN, _K_MAX + 1):
        power = 10 ** abs(k)
        if k >= 0:
            shift = power.bit_length() - 128
            g = power << -shift if shift <= 0 else -(-power >> shift)
        else:
            shift = power.bit_length() + 127
            g = -(-(1 << shift) // power)  # 1/power lies in (2^-bits, 2^(1-bits)]
            if g >> 128:
                g = -(-(1 << (shift - 1)) // power)
        high.append(g >> 64)
        low.append(g & 0xFFFF_FFFF_FFFF_FFFF)
    return np.array(high, _u64), np.array(low, _u64)


_HIGH, _LOW = _powers()
_TEN = np.array([10**i for i in range(20)], _u64)

_ZERO, _ONE, _TWO, _FOUR, _TEN1 = _u64(0), _u64(1), _u64(2), _u64(4), _u64(10)
_FRACTION = _u64((1 << 52) - 1)
_HIDDEN = _u64(1 << 52)
_ASCII = _u64(0x3030303030303030)
_E4, _E8, _E16, _HUNDRED, _FORTY = _u64(10**4), _u64(10**8), _u64(10**16), _u64(100), _u64(40)
_LANES2 = _u64(0x0000007F_0000007F)
_LANES1 = _u64(0x000F000F_000F000F)


@device
def digits8(x: Any) -> Any:
    """Eight decimal digits of ``x`` < 10^8 as the bytes 0..9 of a word, the first digit lowest."""
    q = x // _E4
    x = q | ((x - q * _E4) << _u64(32))
    q = ((x * _u64(5243)) >> _u64(19)) & _LANES2
    x = q | ((x - q * _HUNDRED) << _u64(16))
    q = ((x * _u64(103)) >> _TEN1) & _LANES1
    return q | ((x - q * _TEN1) << _u64(8))


@device
def _round_to_odd(high: Any, low: Any, c: Any) -> Any:
    """Floor of (high, low) * c / 2^128, with the lowest bit set when the fraction is not (nearly) zero."""
    y = mullo(high, c)
    z = y + mulhi(low, c)
    result = mulhi(high, c)
    if z < y:
        result += _ONE
    if z > _ONE:
        result |= _ONE
    return result


@device
def _shortest(bits: Any) -> Any:
    """Digits and decimal exponent of a finite, non-zero float64 (its sign is ignored)."""
    fraction = bits & _FRACTION
    biased = np.int64((bits >> _u64(52)) & _u64(0x7FF))
    if biased != 0:
        c = fraction | _HIDDEN
        q = biased - 1075
        if -52 <= q <= 0 and (c & ((_ONE << _u64(-q)) - _ONE)) == _ZERO:
            return c >> _u64(-q), 0  # an integer below 2^53
    else:
        c = fraction
        q = -1074
    closer = fraction == _ZERO and biased > 1
    odd = c & _ONE
    left = _FOUR * c - _TWO
    if closer:
        left += _ONE
        k = (q * 1262611 - 524031) >> 22
    else:
        k = (q * 1262611) >> 22
    h = _u64(q + ((-k * 1741647) >> 19) + 1)
    high = _HIGH[-k - _K_MIN]
    low = _LOW[-k - _K_MIN]
    lower = _round_to_odd(high, low, left << h) + odd
    v = _round_to_odd(high, low, (_FOUR * c) << h)
    upper = _round_to_odd(high, low, (_FOUR * c + _TWO) << h) - odd
    s = v >> _TWO
    if s >= _TEN1:
        tens = s // _TEN1
        down = lower <= _FORTY * tens
        up = _FORTY * tens + _FORTY <= upper
        if down != up:
            if up:
                tens += _ONE
            return tens, k + 1
    down = lower <= _FOUR * s
    up = _FOUR * s + _FOUR <= upper
    if down != up:
        if up:
            s += _ONE
        return s, k
    middle = _FOUR * s + _TWO
    if v > middle or (v == middle and (s & _ONE) == _ONE):
        s += _ONE
    return s, k


@device
def write_float(out: Any, pos: Any, bits: Any) -> Any:
    """Write the text of one float64.

    Parameters
    ----------
    out : (n,) uint8, written       at least :data:`FLOAT_TEXT_MAX` bytes from ``pos``; bytes after the text are garbage
    pos : int64
    bits : uint64                   the float's bits

    Returns
    -------
    int64        position after the text
    """
    magnitude = bits & _u64(0x7FFF_FFFF_FFFF_FFFF)
    if magnitude >= _u64(0x7FF0_0000_0000_0000):
        if magnitude > _u64(0x7FF0_0000_0000_0000):
            store8(out, pos, _u64(0x4E614E))  # NaN
            return pos + 3
        store8(out, pos, _u64(0x666E492B) if bits == magnitude else _u64(0x666E492D))  # +Inf, -Inf
        return pos + 4
    if bits != magnitude:
        out[pos] = 45
        pos += 1
    if magnitude == _ZERO:
        out[pos] = 48
        return pos + 1
    digits, exponent = _shortest(magnitude)
    if exponent == 0 and digits < _E8:
        word = digits8(digits)
        lead = trailing_zeros(word) >> 3
        store8(out, pos, (word | _ASCII) >> _u64(lead * 8))
        return pos + 8 - lead

    # Left-align to 17 digits; ``point`` digits stand before the decimal point, ``count`` digits matter.
    length = ((64 - leading_zeros(digits)) * 1233) >> 12
    if digits >= _TEN[length]:
        length += 1
    point = length + exponent
    digits *= _TEN[17 - length]
    first = digits // _E16
    digits -= first * _E16
    word1 = digits8(digits // _E8)
    word2 = digits8(digits % _E8)
    if word2 != _ZERO:
        count = 17 - (leading_zeros(word2) >> 3)
    elif word1 != _ZERO:
        count = 9 - (leading_zeros(word1) >> 3)
    else:
        count = 1
    first |= _u64(48)
    word1 |= _ASCII
    word2 |= _ASCII

    if 0 < point <= 21:
        out[pos] = first
        store8(out, pos + 1, word1)
        store8(out, pos + 9, word2)
        if count <= point:
            if point > 17:
                store8(out, pos + 17, _ASCII)
            return pos + point
        word1 = load8(out, pos + point)
        word2 = load8(out, pos + point + 8)
        out[pos + point] = 46
        store8(out, pos + point + 1, word1)
        store8(out, pos + point + 9, word2)
        return pos + count + 1
    if -6 < point <= 0:
        store8(out, pos, _ASCII)
        out[pos + 1] = 46
        pos += 2 - point
        out[pos] = first
        store8(out, pos + 1, word1)
        store8(out, pos + 9, word2)
        return pos + count
    out[pos] = first
    pos += 1
    if count > 1:
        out[pos] = 46
        store8(out, pos + 1, word1)
        store8(out, pos + 9, word2)
        pos += count
    exponent = point - 1
    out[pos] = 101
    out[pos + 1] = 45 if exponent < 0 else 43
    exponent = abs(exponent)
    pos += 2
    if exponent >= 100:
        out[pos] = 48 + exponent // 100
        exponent %= 100
        pos += 1
    out[pos] = 48 + exponent // 10
    out[pos + 1] = 48 + exponent % 10
    return pos + 2


@device
def write_time(out: Any, pos: Any, ts_ms: Any) -> Any:
    """Write a time as seconds: an integer, or with exactly three decimals when there are milliseconds.

    Parameters
    ----------
    out : (n,) uint8, written       at least 32 bytes from ``pos``; bytes after the text are garbage
    pos, ts_ms : int64

    Returns
    -------
    int64        position after the text
    """
    ms = _u64(ts_ms)
    if ts_ms < 0:
        out[pos] = 45
        pos += 1
        ms = _ZERO - ms  # right for the smallest int64 as well
    seconds = ms // _u64(1000)
    rest = ms - seconds * _u64(1000)
    if seconds == _ZERO:
        out[pos] = 48
        pos += 1
    else:
        high = seconds // _E8
        if high == _ZERO:
            word = digits8(seconds)
            lead = trailing_zeros(word) >> 3
            store8(out, pos, (word | _ASCII) >> _u64(lead * 8))
            pos += 8 - lead
        else:
            word = digits8(high)  # at most 8 digits: 9223372036854775 // 10^8
            lead = trailing_zeros(word) >> 3
            store8(out, pos, (word | _ASCII) >> _u64(lead * 8))
            pos += 8 - lead
            store8(out, pos, digits8(seconds - high * _E8) | _ASCII)
            pos += 8
    if rest != _ZERO:
        out[pos] = 46
        store8(out, pos + 1, (digits8(rest) | _ASCII) >> _u64(40))
        pos += 4
    return pos
