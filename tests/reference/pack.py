"""The PACK codec in plain Python: lists of numbers instead of kernels."""

from __future__ import annotations

import math
import struct
from itertools import pairwise

EXPONENTS = range(16)
HEAD_WORDS = 5


def double(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", bits))[0])


def scaled(bits: list[int]) -> tuple[int, list[int]] | None:
    """(exponent, integers) of the least power of ten whose quotients are bit for bit the values, or None."""
    values = [double(b) for b in bits]
    if not all(math.isfinite(v) for v in values):
        return None
    for exponent in EXPONENTS:
        scale = 10.0**exponent
        if any(not abs(v * scale) < 2.0**53 for v in values):
            return None
        integers = [round(v * scale) for v in values]  # both round half to even
        back = [struct.unpack("<Q", struct.pack("<d", q / scale))[0] for q in integers]
        if back == bits:
            return exponent, integers
    return None


def pack_bits(numbers: list[int], width: int) -> list[int]:
    """Numbers of one width, least significant bit first, as 64-bit words."""
    whole = sum(n << (i * width) for i, n in enumerate(numbers))
    return [whole >> (64 * k) & (1 << 64) - 1 for k in range(-(-len(numbers) * width // 64))]


def pack(times: list[int], bits: list[int]) -> list[int] | None:
    """Words of a chunk, or None when it is no PACK chunk whatever the room."""
    found = scaled(bits)
    if found is None:
        return None
    exponent, integers = found
    n = len(times)
    span = (times[-1] - times[0] + (1 << 63)) % (1 << 64) - (1 << 63)
    step = span // max(n - 1, 1)
    if not 0 <= step < 1 << 32:
        return None
    late = [t - times[0] - i * step for i, t in enumerate(times)]
    if min(late) < -(1 << 31) or max(late) >= 1 << 31:
        return None
    deltas = [b - a for a, b in pairwise(integers)]
    by_delta = bool(max(deltas, default=0) - min(deltas, default=0) < max(integers) - min(integers))
    numbers = deltas if by_delta else integers
    base = min(numbers)
    time_width = (max(late) - min(late)).bit_length()
    value_width = (max(numbers) - base).bit_length()
    mask = (1 << 64) - 1
    return [
        exponent | by_delta << 8 | time_width << 16 | value_width << 24,
        times[0] & mask,
        step | (min(late) & 0xFFFFFFFF) << 32,
        integers[0] & mask,
        base & mask,
        *pack_bits([x - min(late) for x in late], time_width),
        *pack_bits([x - base for x in numbers], value_width),
    ]
