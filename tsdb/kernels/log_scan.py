"""Finding literals in many texts, and putting texts one behind the other."""

from __future__ import annotations

import numpy as np

from tsdb.kernels._jit import const, device, i64, kernel, mut, u8
from tsdb.kernels.bits import trailing_zeros
from tsdb.kernels.vector import copy16, match_pair

_COMMON = b' etaoinsrhldcu0123456789",:._-/pmfgwybvk{}=TESHP'
"""Bytes of log lines, the most frequent first."""


def _frequencies() -> list[int]:
    table = [0] * 256
    for rank, byte in enumerate(_COMMON):
        table[byte] = len(_COMMON) - rank
    return table


_FREQUENCY = _frequencies()


def pick_pair(needle: bytes) -> tuple[int, int]:
    """Places of the two rarest bytes of a literal: what a scan looks for first.

    A byte of the same value as the other is taken only when there is no other.
    """
    order = sorted(range(len(needle)), key=lambda i: (_FREQUENCY[needle[i]], i))
    first = order[0]
    second = next((i for i in order if needle[i] != needle[first]), order[-1])
    return first, second


@device
def copy_text(source, at, target, to, n):
    """Copy n bytes 16 at a time; up to 15 more are written behind them, and read behind the source."""
    k = i64(0)
    while k < n:
        copy16(source, at + k, target, to + k)
        k += 16


@kernel(i64(const(u8), const(i64), const(i64), mut(u8)))
def gather_texts(data, starts, offsets, out):
    """Copy text i from ``data[starts[i]:]`` to ``out[offsets[i]:offsets[i + 1]]``.

    Parameters
    ----------
    data : uint8, readable 16 bytes behind the last text
    starts : (n,) int64
    offsets : (n + 1,) int64
    out : uint8, writable 16 bytes behind the last text
    """
    for i in range(len(starts)):
        copy_text(data, starts[i], out, offsets[i], offsets[i + 1] - offsets[i])
    return i64(len(starts))


@device
def same_at(data, at, needle):
    """Whether ``needle`` stands at ``at``."""
    same = True
    for k in range(len(needle)):
        if data[at + k] != needle[k]:
            same = False
            break
    return same


@kernel(i64(const(u8), const(i64), const(i64), const(u8), i64, mut(u8)))
def find_at_begin(data, starts, lengths, needle, whole, found):
    """Mark the texts that begin with a literal, or (``whole`` = 1) are it.

    Parameters
    ----------
    data : uint8; starts, lengths : (n,) int64
    needle : (m,) uint8
    found : (n,) uint8, written
    """
    count = i64(0)
    m = i64(len(needle))
    for i in range(len(starts)):
        good = lengths[i] == m if whole else lengths[i] >= m
        if good:
            good = same_at(data, starts[i], needle)
        found[i] = u8(1) if good else u8(0)
        count += 1 if good else 0
    return count


@kernel(i64(const(u8), const(i64), const(u8), i64, i64, mut(u8)))
def find_in_rows(data, offsets, needle, first, second, found):
    """Mark the texts that hold a literal.

    The whole buffer is scanned for two bytes of the literal, 64 places at a time; what both bytes point to is
    compared. Texts lie one behind the other.

    Parameters
    ----------
    data : uint8, readable 64 bytes behind the last text
    offsets : (n + 1,) int64
    needle : (m,) uint8, not empty
    first, second : places of the needle's two rarest bytes
    found : (n,) uint8, zeros; 1 where the text holds the literal

    Returns
    -------
    int64        texts found
    """
    n = i64(len(offsets)) - 1
    count = i64(0)
    row = i64(0)
    a = needle[first]
    b = needle[second]
    m = i64(len(needle))
    last = offsets[n] - m  # last place the literal can stand at
    at = offsets[0]
    while at <= last:
        hits = match_pair(data, at + first, a, at + second, b)
        step = i64(64)
        while hits != np.uint64(0):
            place = at + i64(trailing_zeros(hits))
            if place > last:
                break
            if same_at(data, place, needle):
                while offsets[row + 1] <= place:
                    row += 1
                if place + m <= offsets[row + 1]:
                    found[row] = u8(1)
                    count += 1
                    step = offsets[row + 1] - at  # one hit a text is enough
                    break
            hits &= hits - np.uint64(1)
        at += step
    return count
