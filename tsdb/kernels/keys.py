"""Byte keys in an open-addressing table: hash, compare, find, add.

A table is a power of two of 8-byte slots, at most half full: the upper 32 bits of the hash, then key number + 1
(0 = empty slot). A slot only says where to look; the bytes decide.

The hash is never sent, and stored in the filters of log parts only (docs/format/logs.md): changing it makes these say
no to everything. It is of the wyhash class: 128-bit products folded to 64 bits
over three lanes (https://github.com/wangyi-fudan/wyhash describes the family).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic

from tsdb.kernels._jit import const, device, i64, kernel, mut, u8, u32, u64

_SEED = np.uint64(0x9E3779B97F4A7C15)
_P0 = np.uint64(0xA0761D6478BD642F)
_P1 = np.uint64(0xE7037ED1A0B428DB)
_P2 = np.uint64(0x8EBC6AF09CCC5D95)
_P3 = np.uint64(0x589965CC75374CC3)
_LOW32 = np.uint64(0xFFFFFFFF)
_U32 = np.uint64(32)
_U1 = np.uint64(1)
_U0 = np.uint64(0)

if config.DISABLE_JIT:

    def load64(buf: Any, at: int) -> Any:
        """The 8 bytes at ``at`` as a little-endian uint64; the caller has checked the bounds."""
        return np.uint64(int.from_bytes(bytes(buf[at : at + 8]), "little"))

    def load32(buf: Any, at: int) -> Any:
        """The 4 bytes at ``at`` as a uint64."""
        return np.uint64(int.from_bytes(bytes(buf[at : at + 4]), "little"))

    def mum(a: Any, b: Any) -> Any:
        """Upper xor lower half of the 128-bit product of two uint64."""
        product = int(a) * int(b)
        return np.uint64((product >> 64) ^ (product & 0xFFFFFFFFFFFFFFFF))

else:

    def _load(width: int) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            array = context.make_array(signature.args[0])(context, builder, args[0])
            pointer = builder.gep(array.data, [args[1]])
            word = builder.load(builder.bitcast(pointer, ir.IntType(width).as_pointer()), align=1)
            return builder.zext(word, ir.IntType(64)) if width < 64 else word

        return codegen

    @intrinsic
    def load64(_typing: Any, buf: Any, _at: Any) -> Any:
        """The 8 bytes at ``at`` as a little-endian uint64; the caller has checked the bounds."""
        return types.uint64(buf, types.int64), _load(64)

    @intrinsic
    def load32(_typing: Any, buf: Any, _at: Any) -> Any:
        """The 4 bytes at ``at`` as a uint64."""
        return types.uint64(buf, types.int64), _load(32)

    @intrinsic
    def mum(_typing: Any, _a: Any, _b: Any) -> Any:
        """Upper xor lower half of the 128-bit product of two uint64."""

        def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            wide = ir.IntType(128)
            product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
            upper = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))
            return builder.xor(upper, builder.trunc(product, ir.IntType(64)))

        return types.uint64(types.uint64, types.uint64), codegen


@device
def hash_bytes(buf, start, end):
    """Hash of ``buf[start:end]``.

    Parameters
    ----------
    buf : (n,) uint8
    start, end : int64, ``0 <= start <= end <= n``

    Returns
    -------
    uint64
    """
    n = end - start
    h = _SEED ^ u64(n)
    at = start
    if n > 48:
        h1 = h
        h2 = h
        while end - at > 48:
            h = mum(load64(buf, at) ^ _P0, load64(buf, at + 8) ^ h)
            h1 = mum(load64(buf, at + 16) ^ _P1, load64(buf, at + 24) ^ h1)
            h2 = mum(load64(buf, at + 32) ^ _P2, load64(buf, at + 40) ^ h2)
            at += 48
        h ^= h1 ^ h2
    while end - at > 16:
        h = mum(load64(buf, at) ^ _P0, load64(buf, at + 8) ^ h)
        at += 16
    a = _U0
    b = _U0
    if n >= 16:  # the last 16 bytes once more rather than a loop over a tail
        a = load64(buf, end - 16)
        b = load64(buf, end - 8)
    elif n >= 8:
        a = load64(buf, start)
        b = load64(buf, end - 8)
    elif n >= 4:
        a = load32(buf, start)
        b = load32(buf, end - 4)
    elif n > 0:
        a = u64(buf[start])
        b = (u64(buf[start + (n >> 1)]) << np.uint64(8)) | u64(buf[end - 1])
    return mum(mum(a ^ _P1, b ^ h) ^ _P3, _P2 ^ h)


@device
def equal_bytes(a, a_off, b, b_off, n):
    """Whether ``a[a_off:a_off + n]`` and ``b[b_off:b_off + n]`` are the same bytes (offsets int64, both in bounds)."""
    if n < 8:
        same = True
        for k in range(n):
            same &= a[a_off + k] == b[b_off + k]
        return same
    last = n - 8
    k = i64(0)
    while k < last:
        if load64(a, a_off + k) != load64(b, b_off + k):
            return False
        k += 8
    return load64(a, a_off + last) == load64(b, b_off + last)


@device
def copy_bytes(source, start, target, to, n):
    """Copy ``source[start:start + n]`` to ``target[to:to + n]`` (offsets int64, both in bounds)."""
    for k in range(n):
        target[to + k] = source[start + k]


@device
def find_key_hashed(h, buf, start, end, key_bytes, key_offsets, key_lengths, slots):
    """:func:`find_key` for a caller that has the hash already."""
    n = end - start
    mask = u64(len(slots) - 1)
    tag = h >> _U32
    at = h & mask
    while True:
        slot = slots[at]
        if slot == _U0:
            return i64(-1)
        if slot >> _U32 == tag:
            key = i64(slot & _LOW32) - 1
            if i64(key_lengths[key]) == n and equal_bytes(buf, start, key_bytes, i64(key_offsets[key]), n):
                return key
        at = (at + _U1) & mask


@device
def find_key(buf, start, end, key_bytes, key_offsets, key_lengths, slots):
    """Number of the key ``buf[start:end]``, or -1.

    Parameters
    ----------
    buf : (n,) uint8
    start, end : int64
    key_bytes (u8), key_offsets (u64), key_lengths (u32), slots (u64) : of :class:`tsdb.index.keys.KeyArrays`

    Returns
    -------
    int64
    """
    h = hash_bytes(buf, start, end)
    return find_key_hashed(h, buf, start, end, key_bytes, key_offsets, key_lengths, slots)


@device
def put_slot(slots, h, number):
    """Enter ``number`` (int64) under hash ``h`` into a table that has room."""
    mask = u64(len(slots) - 1)
    at = h & mask
    while slots[at] != _U0:
        at = (at + _U1) & mask
    slots[at] = (h >> _U32 << _U32) | u64(number + 1)


@kernel(
    i64(
        const(u8), const(i64), const(i64), const(u32), i64, i64, i64,
        mut(u8), mut(u64), mut(u32), mut(u32), mut(u64), mut(i64), mut(i64),
    )
)  # fmt: skip
def add_keys(
    buf, starts, ends, refs, first, keys_max, bytes_max,
    key_bytes, key_offsets, key_lengths, key_refs, slots, counts, out_keys,
):  # fmt: skip
    """Add keys to a key table, each once; a key that is there already keeps its number and its ref.

    Parameters
    ----------
    buf : (n_bytes,) uint8, const
    starts, ends : (n,) int64, const      key i is ``buf[starts[i]:ends[i]]``
    refs : (n,) uint32, const             series of each key
    first : int64                         where to begin (to go on after the table has grown)
    keys_max, bytes_max : int64           a key that would pass these is not added
    key_bytes ... slots : the table
    counts : (2,) int64, state            keys and key bytes in use
    out_keys : (n,) int64, written        number of each key, -1 when it did not fit

    Returns
    -------
    int64        how many keys are done; fewer than n means that ``slots`` is half full
    """
    for i in range(first, len(starts)):
        if (counts[0] + 1) * 2 > len(slots):
            return i
        start = starts[i]
        n = ends[i] - start
        h = hash_bytes(buf, start, ends[i])
        key = find_key_hashed(h, buf, start, ends[i], key_bytes, key_offsets, key_lengths, slots)
        if key < 0 and counts[0] < keys_max and counts[1] + n <= bytes_max:
            key = counts[0]
            at = counts[1]
            copy_bytes(buf, start, key_bytes, at, n)
            key_offsets[key] = u64(at)
            key_lengths[key] = u32(n)
            key_refs[key] = refs[i]
            put_slot(slots, h, key)  # last: a reader that sees the slot sees the key
            counts[0] = key + 1
            counts[1] = at + n
        out_keys[i] = key
    return len(starts)


@kernel(i64(const(u8), const(u64), const(u32), i64, i64, mut(u64)))
def rehash_keys(key_bytes, key_offsets, key_lengths, first, last, slots):
    """Enter keys ``[first, last)`` into an empty, larger table.

    Returns
    -------
    int64        keys entered
    """
    for key in range(first, last):
        at = i64(key_offsets[key])
        put_slot(slots, hash_bytes(key_bytes, at, at + i64(key_lengths[key])), key)
    return last - first


@kernel(i64(const(u8), const(i64), const(i64), const(u8), const(u64), const(u32), const(u64), mut(i64)))
def find_keys(buf, starts, ends, key_bytes, key_offsets, key_lengths, slots, out_keys):
    """Numbers of many keys, -1 where unknown.

    Returns
    -------
    int64        how many were found
    """
    found = 0
    for i in range(len(starts)):
        key = find_key(buf, starts[i], ends[i], key_bytes, key_offsets, key_lengths, slots)
        out_keys[i] = key
        if key >= 0:
            found += 1
    return found
