"""Rows of the log head, and filters over values: append without repeats, choose, look up."""

from __future__ import annotations

import numpy as np

from tsdb.kernels._jit import const, device, i32, i64, kernel, mut, u8, u32, u64
from tsdb.kernels.keys import equal_bytes, hash_bytes, mum
from tsdb.kernels.log_scan import copy_text

_P = np.uint64(0xA0761D6478BD642F)
_U1 = np.uint64(1)
PROBES = 6
"""Bits a value sets in a bloom filter of BITS_PER_VALUE bits a value: 0.9 % false positives."""

BITS_PER_VALUE = 10


@kernel(
    i64(
        const(u32), const(i64), const(i64), const(u8), const(i64), const(u8), const(u8), i64,
        mut(i32), mut(u64), mut(u32), mut(i64), mut(i64), mut(u8), mut(i64), mut(u8), mut(u8),
    )
)  # fmt: skip
def append_rows(
    refs, ts_ns, line_offsets, line_bytes, meta_offsets, meta_bytes, levels, count,
    slots, hashes, out_refs, out_ts, out_line_offsets, out_lines, out_meta_offsets, out_meta, out_levels,
):  # fmt: skip
    """Append a batch to the head, without what is there already.

    The same stream, time, line and metadata make the same entry; all of it is compared.

    Parameters
    ----------
    refs, ts_ns, line_offsets, line_bytes, meta_offsets, meta_bytes, levels : the batch
    count : rows in the head
    slots : int32, open addressing (power of two, more than twice the rows), row + 1, 0 = empty
    hashes, out_* : columns of the head

    Returns
    -------
    int64        rows in the head now
    """
    mask = u64(len(slots) - 1)
    for i in range(len(refs)):
        first = line_offsets[i]
        size = line_offsets[i + 1] - first
        meta_first = meta_offsets[i]
        meta_size = meta_offsets[i + 1] - meta_first
        h = mum(hash_bytes(line_bytes, first, first + size) ^ u64(ts_ns[i]), _P ^ u64(refs[i]))
        if meta_size:
            h = mum(h ^ hash_bytes(meta_bytes, meta_first, meta_first + meta_size), _P)
        h |= _U1
        at = (h >> np.uint64(20)) & mask
        known = False
        while slots[at]:
            row = i64(slots[at]) - 1
            if hashes[row] == h and out_refs[row] == refs[i] and out_ts[row] == ts_ns[i]:
                begin = out_line_offsets[row]
                meta_begin = out_meta_offsets[row]
                if (
                    out_line_offsets[row + 1] - begin == size
                    and out_meta_offsets[row + 1] - meta_begin == meta_size
                    and equal_bytes(line_bytes, first, out_lines, begin, size)
                    and equal_bytes(meta_bytes, meta_first, out_meta, meta_begin, meta_size)
                ):
                    known = True
                    break
            at = (at + _U1) & mask
        if known:
            continue
        slots[at] = i32(count + 1)
        hashes[count] = h
        out_refs[count] = refs[i]
        out_ts[count] = ts_ns[i]
        out_levels[count] = levels[i]
        to = out_line_offsets[count]
        copy_text(line_bytes, first, out_lines, to, size)
        out_line_offsets[count + 1] = to + size
        to = out_meta_offsets[count]
        copy_text(meta_bytes, meta_first, out_meta, to, meta_size)
        out_meta_offsets[count + 1] = to + meta_size
        count += 1
    return count


@kernel(i64(const(u64), i64, mut(i32)))
def rehash_rows(hashes, count, slots):
    """Enter rows 0 to ``count`` into an empty, larger table."""
    mask = u64(len(slots) - 1)
    for row in range(count):
        at = (hashes[row] >> np.uint64(20)) & mask
        while slots[at]:
            at = (at + _U1) & mask
        slots[at] = i32(row + 1)
    return count


@kernel(i64(const(u32), const(i64), const(u8), i64, i64, mut(i64)))
def choose_rows(refs, ts_ns, wanted, start_ns, end_ns, out):
    """Rows of wanted streams with ``start_ns <= ts_ns < end_ns``.

    Parameters
    ----------
    wanted : uint8 by stream number; streams beyond it are not wanted
    out : (n,) int64
    """
    count = i64(0)
    for i in range(len(refs)):
        ref = i64(refs[i])
        if ref < len(wanted) and wanted[ref] and ts_ns[i] >= start_ns and ts_ns[i] < end_ns:
            out[count] = i
            count += 1
    return count


@kernel(i64(const(u8), const(i64), mut(i64)))
def longest_words(data, offsets, longest):
    """Raise ``longest`` to the longest runs in any of the texts: (of ASCII letters and digits, of these and dashes)."""
    for i in range(len(offsets) - 1):
        run = i64(0)
        dashed = i64(0)
        for k in range(offsets[i], offsets[i + 1]):
            c = data[k]
            if (c >= 48 and c <= 57) or (c >= 65 and c <= 90) or (c >= 97 and c <= 122):
                run += 1
                dashed += 1
                longest[0] = max(longest[0], run)
                longest[1] = max(longest[1], dashed)
            elif c == 45:
                run = i64(0)
                dashed += 1
                longest[1] = max(longest[1], dashed)
            else:
                run = i64(0)
                dashed = i64(0)
    return longest[0]


@device
def _bloom_hash(data, at, size):
    return mum(hash_bytes(data, at, at + size) ^ _P, _P ^ u64(size))


@kernel(i64(const(u8), i64, mut(u8)))
def bloom_add(values, size, bits):
    """Set the bits of values of ``size`` bytes each; ``bits`` is a multiple of 8 bytes."""
    n_bits = u64(len(bits) * 8)
    for i in range(len(values) // size):
        h = _bloom_hash(values, i * size, size)
        step = (h >> np.uint64(33)) | _U1
        for _ in range(PROBES):
            bit = (h & np.uint64(0xFFFFFFFF)) % n_bits
            bits[bit >> np.uint64(3)] |= u8(_U1 << (bit & np.uint64(7)))
            h += step
    return i64(len(bits))


@kernel(i64(const(u8), const(u8), const(i64), const(i64), mut(u8)))
def bloom_ask(value, bits, firsts, sizes, found):
    """In which of many filters a value may be.

    Parameters
    ----------
    value : uint8
    bits : the filters; firsts, sizes : (n,) int64, bytes of each in ``bits`` (size 0 = no filter, not found)
    found : (n,) uint8, written
    """
    base = _bloom_hash(value, i64(0), i64(len(value)))
    step = (base >> np.uint64(33)) | _U1
    count = i64(0)
    for i in range(len(firsts)):
        hit = sizes[i] > 0
        if hit:
            n_bits = u64(sizes[i] * 8)
            h = base
            for _ in range(PROBES):
                bit = (h & np.uint64(0xFFFFFFFF)) % n_bits
                if not bits[firsts[i] + i64(bit >> np.uint64(3))] & u8(_U1 << (bit & np.uint64(7))):
                    hit = False
                    break
                h += step
        found[i] = u8(1) if hit else u8(0)
        count += 1 if hit else 0
    return count
