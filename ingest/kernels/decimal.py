"""Decimal text to the nearest float64, by integers only.

The algorithm multiplies the decimal significand by a 128-bit truncated power of ten and rounds the product; the
few texts where the truncation could matter are handed back (D. Lemire, "Number Parsing at a Gigabyte per Second",
Software: Practice and Experience 51(8), 2021, sections 5 to 7).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tsdb.kernels._jit import device, i64, u64

POWER_MIN, POWER_MAX = -342, 308  # below and above, a 19-digit significand rounds to zero or infinity
DIGITS_MAX = 19  # decimal digits that always fit a uint64

MINUS, PLUS, POINT, ZERO, NINE = ord("-"), ord("+"), ord("."), ord("0"), ord("9")
LOWER_E, UPPER_E = ord("e"), ord("E")


def _powers() -> NDArray[np.uint64]:
    """Most significant 128 bits of 10^e, rounded down: row e - POWER_MIN is (high, low)."""
    rows = []
    for e in range(POWER_MIN, POWER_MAX + 1):
        if e >= 0:
            power = 10**e
            shift = power.bit_length() - 128
            bits = power >> shift if shift > 0 else power << -shift
        else:
            divisor = 10**-e
            bits = (1 << (127 + divisor.bit_length())) // divisor
            if bits >> 128:
                bits >>= 1
        rows.append((bits >> 64, bits & 0xFFFFFFFFFFFFFFFF))
    return np.array(rows, np.uint64)


POWERS = _powers()

_LOW32 = np.uint64(0xFFFFFFFF)
_U32 = np.uint64(32)
_SIGN = np.uint64(1 << 63)
_NINE_BITS = np.uint64(0x1FF)
_U0, _U1, _U3, _U9 = np.uint64(0), np.uint64(1), np.uint64(3), np.uint64(9)
_U10, _U52, _U53, _U63 = np.uint64(10), np.uint64(52), np.uint64(53), np.uint64(63)
_FRACTION = np.uint64((1 << 52) - 1)


@device
def multiply_high(a, b):
    """Upper half of the 128-bit product of two uint64."""
    a0, a1 = a & _LOW32, a >> _U32
    b0, b1 = b & _LOW32, b >> _U32
    low = a0 * b0
    cross = a1 * b0 + (low >> _U32)
    other = a0 * b1 + (cross & _LOW32)
    return a1 * b1 + (cross >> _U32) + (other >> _U32)


@device
def nearest_float(significand, exponent):
    """(bits of the float64 nearest to ``significand * 10**exponent``, whether they are certain)."""
    if significand == _U0:
        return _U0, True
    if exponent < POWER_MIN or exponent > POWER_MAX:
        return _U0, False
    shift = i64(0)
    width = i64(32)
    while width > 0:  # normalise: the highest bit becomes bit 63
        if significand >> u64(64 - width) == _U0:
            significand = significand << u64(width)
            shift += width
        width >>= 1
    # floor(log2(10^e)) = e * 217706 >> 16 over the whole range of the table
    binary = ((217706 * exponent) >> 16) + 64 + 1023 - shift
    row = exponent - POWER_MIN
    high = multiply_high(significand, POWERS[row, 0])
    low = significand * POWERS[row, 0]
    if high & _NINE_BITS == _NINE_BITS and low + significand < significand:
        # the bits below could carry into the ones that decide: add the lower half of the power
        second = multiply_high(significand, POWERS[row, 1])
        rest = significand * POWERS[row, 1]
        merged = low + second
        if merged < low:
            high += _U1
        low = merged
        if high & _NINE_BITS == _NINE_BITS and low + _U1 == _U0 and rest + significand < significand:
            return _U0, False
    top = high >> _U63
    mantissa = high >> (top + _U9)
    binary -= i64(_U1 ^ top)
    if low == _U0 and high & _NINE_BITS == _U0 and mantissa & _U3 == _U1:
        return _U0, False  # exactly half-way as far as these bits can tell
    mantissa = (mantissa + (mantissa & _U1)) >> _U1
    if mantissa >> _U53 > _U0:
        mantissa >>= _U1
        binary += 1
    if binary < 1 or binary > 2046:
        return _U0, False  # subnormal or infinite
    return (u64(binary) << _U52) | (mantissa & _FRACTION), True


@device
def parse_decimal(text, begin, end):
    """(float64 bits of ``text[begin:end]``, whether that is certain); uncertain texts are for the slow path.

    Certain are decimal numbers of at most 19 significant digits that round to a normal number or are zero.
    """
    pos = begin
    sign = _U0
    if pos < end and (text[pos] == MINUS or text[pos] == PLUS):
        if text[pos] == MINUS:
            sign = _SIGN
        pos += 1
    significand = _U0
    exponent = i64(0)
    digits = i64(0)  # significant ones
    seen = False
    point = False
    while pos < end:
        c = i64(text[pos])
        if c >= ZERO and c <= NINE:
            seen = True
            if significand != _U0 or c != ZERO:
                digits += 1
            significand = significand * _U10 + u64(c - ZERO)
            if point:
                exponent -= 1
        elif c == POINT and not point:
            point = True
        else:
            break
        pos += 1
    if not seen or digits > DIGITS_MAX:
        return _U0, False
    if pos < end:
        if text[pos] != LOWER_E and text[pos] != UPPER_E:
            return _U0, False
        pos += 1
        negative = False
        if pos < end and (text[pos] == MINUS or text[pos] == PLUS):
            negative = text[pos] == MINUS
            pos += 1
        if pos >= end or end - pos > 4:
            return _U0, False
        scale = i64(0)
        while pos < end:
            c = i64(text[pos])
            if c < ZERO or c > NINE:
                return _U0, False
            scale = scale * 10 + (c - ZERO)
            pos += 1
        exponent += -scale if negative else scale
    bits, certain = nearest_float(significand, exponent)
    return bits | sign, certain
