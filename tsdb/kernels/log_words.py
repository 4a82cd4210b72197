"""Distinct hashes of values and words: what goes into the bloom filter of a group of log rows."""

from __future__ import annotations

import numpy as np

from tsdb.kernels._jit import const, device, i64, kernel, mut, u8, u64
from tsdb.kernels.keys import hash_bytes, mum

_P = np.uint64(0xE7037ED1A0B428DB)
_U0 = np.uint64(0)
_U1 = np.uint64(1)
FULL = -1


@device
def _enter(h, count, table):
    """Enter a hash; the number of hashes, FULL where three quarters of the table are taken."""
    mask = u64(len(table) - 1)
    at = (h >> np.uint64(20)) & mask
    while table[at] != _U0:
        if table[at] == h:
            return count
        at = (at + _U1) & mask
    if 4 * (count + 1) > 3 * i64(len(table)):
        return i64(FULL)
    table[at] = h
    return count + 1


@kernel(i64(const(u8), const(i64), const(i64), u64, i64, mut(u64)))
def enter_values(data, starts, lengths, seed, count, table):
    """Enter the hashes of whole texts.

    Parameters
    ----------
    data : uint8, 8 bytes readable behind each text
    starts, lengths : (n,) int64
    seed : tells the values of one column from those of another
    count : hashes that the table holds
    table : uint64, an open-addressing set (power of two, 0 = empty)

    Returns
    -------
    int64        hashes that it holds now; FULL (-1) = it has no room for all
    """
    for i in range(len(starts)):
        h = mum(hash_bytes(data, starts[i], starts[i] + lengths[i]) ^ seed, _P) | _U1
        count = _enter(h, count, table)
        if count == FULL:
            break
    return count


@kernel(i64(const(u8), const(i64), i64, mut(u64)))
def enter_words(data, offsets, count, table):
    """Enter the hashes of all longest runs of ASCII letters in texts; as :func:`enter_values` with seed 0."""
    for i in range(len(offsets) - 1):
        end = offsets[i + 1]
        at = offsets[i]
        while at < end:
            first = at
            while at < end and ((data[at] | u8(32)) >= 97 and (data[at] | u8(32)) <= 122):
                at += 1
            if at > first:
                count = _enter(mum(hash_bytes(data, first, at), _P) | _U1, count, table)
                if count == FULL:
                    return count
            at += 1
    return count
