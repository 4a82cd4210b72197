"""Interned strings: UTF-8 checks, byte order, a table of symbols, and gathering their bytes.

Symbol s is ``sym_bytes[sym_offsets[s]:sym_offsets[s + 1]]``; its slots are those of tsdb.kernels.keys.
"""

from __future__ import annotations

import numpy as np

from tsdb.kernels._jit import const, device, i64, kernel, mut, u8, u32, u64
from tsdb.kernels.keys import copy_bytes, equal_bytes, hash_bytes, load64, put_slot

_HIGH_BITS = np.uint64(0x8080808080808080)
_U0 = np.uint64(0)
_U1 = np.uint64(1)
_U32 = np.uint64(32)
_LOW32 = np.uint64(0xFFFFFFFF)


@device
def valid_utf8(buf, start, end):
    """Whether ``buf[start:end]`` is well-formed UTF-8 (Unicode table 3-7: no overlong form, no surrogate)."""
    at = start
    while at < end:
        if at + 8 <= end and load64(buf, at) & _HIGH_BITS == _U0:
            at += 8
            continue
        lead = i64(buf[at])
        if lead < 0x80:
            at += 1
            continue
        low = i64(0x80)
        high = i64(0xBF)
        if 0xC2 <= lead <= 0xDF:
            more = 1
        elif 0xE0 <= lead <= 0xEF:
            more = 2
            if lead == 0xE0:
                low = i64(0xA0)
            elif lead == 0xED:
                high = i64(0x9F)
        elif 0xF0 <= lead <= 0xF4:
            more = 3
            if lead == 0xF0:
                low = i64(0x90)
            elif lead == 0xF4:
                high = i64(0x8F)
        else:
            return False
        if at + more >= end or i64(buf[at + 1]) < low or i64(buf[at + 1]) > high:
            return False
        for k in range(2, more + 1):
            if i64(buf[at + k]) & 0xC0 != 0x80:
                return False
        at += more + 1
    return True


@device
def compare_bytes(a, a_start, a_end, b, b_start, b_end):
    """Order of two byte strings: negative, 0 or positive int64."""
    a_n = a_end - a_start
    b_n = b_end - b_start
    for k in range(min(a_n, b_n)):
        difference = i64(a[a_start + k]) - i64(b[b_start + k])
        if difference != 0:
            return difference
    return a_n - b_n


@device
def symbol_is(symbol, buf, start, n, sym_bytes, sym_offsets):
    """Whether the symbol's bytes are ``buf[start:start + n]``."""
    at = i64(sym_offsets[symbol])
    return i64(sym_offsets[symbol + 1]) - at == n and equal_bytes(buf, start, sym_bytes, at, n)


@device
def find_symbol(h, buf, start, end, sym_bytes, sym_offsets, sym_slots):
    """Number of the symbol ``buf[start:end]`` with hash ``h``, or -1; the empty string is symbol 0."""
    n = end - start
    if n == 0:
        return i64(0)
    mask = u64(len(sym_slots) - 1)
    tag = h >> _U32
    at = h & mask
    while True:
        slot = sym_slots[at]
        if slot == _U0:
            return i64(-1)
        if slot >> _U32 == tag:
            symbol = i64(slot & _LOW32) - 1
            if symbol_is(symbol, buf, start, n, sym_bytes, sym_offsets):
                return symbol
        at = (at + _U1) & mask


@device
def intern_symbol(buf, start, end, sym_bytes, sym_offsets, sym_slots, sym_counts):
    """Number of the symbol ``buf[start:end]``, made if it is new; -1 when an arena is full.

    The caller leaves room in the slots. ``sym_counts`` (int64) holds symbols and symbol bytes in use.
    """
    h = hash_bytes(buf, start, end)
    symbol = find_symbol(h, buf, start, end, sym_bytes, sym_offsets, sym_slots)
    if symbol < 0:
        n = end - start
        symbol = sym_counts[0]
        at = sym_counts[1]
        if symbol + 1 >= len(sym_offsets) or at + n > len(sym_bytes):
            return i64(-1)
        copy_bytes(buf, start, sym_bytes, at, n)
        sym_offsets[symbol + 1] = u64(at + n)
        put_slot(sym_slots, h, symbol)  # last: a reader that sees the slot sees the symbol
        sym_counts[0] = symbol + 1
        sym_counts[1] = at + n
    return symbol


@kernel(i64(const(u8), const(i64), const(i64), i64, mut(u8), mut(u64), mut(u64), mut(i64), mut(i64)))
def intern_texts(buf, starts, ends, first, sym_bytes, sym_offsets, sym_slots, sym_counts, out_symbols):
    """Intern many strings.

    Parameters
    ----------
    buf : (n_bytes,) uint8, const         string i is ``buf[starts[i]:ends[i]]``
    starts, ends : (n,) int64, const
    first : int64                         where to begin (to go on after the table has grown)
    sym_bytes, sym_offsets, sym_slots, sym_counts : the table
    out_symbols : (n,) int64, written     symbols; -1 when an arena is full

    Returns
    -------
    int64        how many strings are done; fewer than n means that the slots are half full
    """
    for i in range(first, len(starts)):
        if (sym_counts[0] + 1) * 2 > len(sym_slots):
            return i
        out_symbols[i] = intern_symbol(buf, starts[i], ends[i], sym_bytes, sym_offsets, sym_slots, sym_counts)
    return len(starts)


@kernel(i64(const(u8), const(u64), i64, i64, mut(u64)))
def rehash_symbols(sym_bytes, sym_offsets, first, last, slots):
    """Enter symbols ``[first, last)`` into an empty, larger table.

    Returns
    -------
    int64        symbols entered
    """
    for symbol in range(first, last):
        put_slot(slots, hash_bytes(sym_bytes, i64(sym_offsets[symbol]), i64(sym_offsets[symbol + 1])), symbol)
    return last - first


@kernel(i64(const(u8), i64, i64, const(u8), const(u64), const(u64)))
def look_up_symbol(buf, start, end, sym_bytes, sym_offsets, sym_slots):
    """Number of the symbol ``buf[start:end]``, or -1."""
    return find_symbol(hash_bytes(buf, start, end), buf, start, end, sym_bytes, sym_offsets, sym_slots)


@kernel(i64(const(u8), const(u64), const(u32), mut(i64), mut(u8)))
def gather_symbols(sym_bytes, sym_offsets, symbols, offsets, out):
    """Concatenate the bytes of many symbols; with an empty ``out`` only their offsets.

    Parameters
    ----------
    symbols : (n,) uint32, const
    offsets : (n + 1,) int64, written
    out : (n_bytes,) uint8, written       enough for all, or empty

    Returns
    -------
    int64        bytes of all
    """
    at = i64(0)
    offsets[0] = 0
    for i in range(len(symbols)):
        begin = i64(sym_offsets[symbols[i]])
        n = i64(sym_offsets[symbols[i] + u32(1)]) - begin
        if len(out):
            copy_bytes(sym_bytes, begin, out, at, n)
        at += n
        offsets[i + 1] = at
    return at
