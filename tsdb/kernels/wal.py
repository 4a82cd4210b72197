"""Kernels of the log's record bodies: zigzag delta varints and byte planes (docs/format/wal.md)."""

from __future__ import annotations

from tsdb.kernels._jit import const, device, i64, kernel, mut, u8, u32, u64

SAMPLES_HEAD_BYTES = 14  # version u8, flags u8, count u32, first time i64
ONE_TIME = 1  # flag: all samples have the first time
BODY_VERSION = 1
SAMPLE_BYTES_MAX = 5 + 10 + 8  # reference delta of 33 bits, time delta of 64 bits, value
TRUNCATED = -1
OVERLONG = -2
TRAILING = -3


@device
def put_delta(out, pos, delta):
    """Write one signed difference as a zigzag LEB128 varint of at most 10 bytes; the position behind it."""
    rest = u64((delta << i64(1)) ^ (delta >> i64(63)))
    while rest >= u64(128):
        out[pos] = u8((rest & u64(127)) | u64(128))
        rest >>= u64(7)
        pos += 1
    out[pos] = u8(rest)
    return pos + 1


@device
def get_delta(data, pos, end):
    """Read what put_delta wrote: (difference, position behind it, or a negative status).

    One exit only: with several, the reference count of ``data`` is moved around every call (12 ns instead of 1).
    """
    value = u64(0)
    shift = u64(0)
    byte = u64(128)
    while byte >= u64(128) and pos >= 0:
        if pos >= end:
            pos = i64(TRUNCATED)
        elif shift > u64(63):
            pos = i64(OVERLONG)
        else:
            byte = u64(data[pos])
            value |= (byte & u64(127)) << shift
            shift += u64(7)
            pos += 1
    return i64(value >> u64(1)) ^ -i64(value & u64(1)), pos


@device
def put_samples(refs, ts_ms, bits, begin, end, out, pos):
    """Write the body of a SAMPLES record of samples ``[begin, end)``; the position behind it."""
    n = end - begin
    first = ts_ms[begin] if n else i64(0)
    one_time = True
    for i in range(begin, end):
        one_time &= ts_ms[i] == first
    out[pos] = u8(BODY_VERSION)
    out[pos + 1] = u8(ONE_TIME) if one_time else u8(0)
    for k in range(4):
        out[pos + 2 + k] = u8((n >> (8 * k)) & 255)
    for k in range(8):
        out[pos + 6 + k] = u8((first >> i64(8 * k)) & i64(255))
    pos += i64(SAMPLES_HEAD_BYTES)
    last = i64(0)
    for i in range(begin, end):
        ref = i64(refs[i])
        pos = put_delta(out, pos, ref - last)
        last = ref
    if not one_time:
        last = first
        for i in range(begin + 1, end):
            pos = put_delta(out, pos, ts_ms[i] - last)
            last = ts_ms[i]
    for k in range(8):
        shift = u64(8 * k)
        for i in range(n):
            out[pos + i] = u8((bits[begin + i] >> shift) & u64(255))
        pos += n
    return pos


@kernel(i64(const(u32), const(i64), const(u64), const(i64), mut(u8), mut(i64), mut(i64)))
def encode_samples(refs, ts_ms, bits, starts, out, ends, max_ms):
    """Write the bodies of SAMPLES records, one for each part of the samples, one behind the other.

    Parameters
    ----------
    refs, ts_ms, bits : (n,)
    starts : (parts + 1,) int64, const      part k is samples ``[starts[k], starts[k + 1])``
    out : (at least 14 parts + 23 n,) uint8, written
    ends : (parts,) int64, written          where the body of each part ends in ``out``
    max_ms : (parts,) int64, written        newest time of each part, -2^63 when it is empty

    Returns
    -------
    int64        bytes written
    """
    pos = i64(0)
    for k in range(ends.shape[0]):
        newest = i64(-(1 << 63))
        for i in range(starts[k], starts[k + 1]):
            newest = max(newest, ts_ms[i])
        max_ms[k] = newest
        pos = put_samples(refs, ts_ms, bits, starts[k], starts[k + 1], out, pos)
        ends[k] = pos
    return pos


@kernel(i64(const(u8), mut(u32), mut(i64), mut(u64)))
def decode_samples(body, refs, ts_ms, bits):
    """Read the columns of a SAMPLES body; the caller has checked its version and that ``n`` can be true.

    Returns
    -------
    int64        n, or a negative status: TRUNCATED, OVERLONG, TRAILING
    """
    n = refs.shape[0]
    end = i64(body.shape[0]) - 8 * n
    first = u64(0)
    for k in range(8):
        first |= u64(body[6 + k]) << u64(8 * k)
    pos = i64(SAMPLES_HEAD_BYTES)
    last = i64(0)
    for i in range(n):
        delta, pos = get_delta(body, pos, end)
        if pos < 0:
            return pos
        last += delta
        refs[i] = u32(last & i64(0xFFFFFFFF))
    last = i64(first)
    if n:
        ts_ms[0] = last
    if body[1] & u8(ONE_TIME):
        for i in range(1, n):
            ts_ms[i] = last
    else:
        for i in range(1, n):
            delta, pos = get_delta(body, pos, end)
            if pos < 0:
                return pos
            last += delta
            ts_ms[i] = last
    if pos != end:
        return i64(TRAILING)
    for i in range(n):
        bits[i] = u64(body[end + i])
    for k in range(1, 8):
        shift = u64(8 * k)
        plane = end + k * n
        for i in range(n):
            bits[i] |= u64(body[plane + i]) << shift
    return n


@kernel(i64(const(i64), i64, mut(u8)))
def encode_deltas(values, pos, out):
    """Write a column as zigzag varints of the differences, from 0; the position behind it."""
    last = i64(0)
    for i in range(values.shape[0]):
        pos = put_delta(out, pos, values[i] - last)
        last = values[i]
    return pos


@kernel(i64(const(u8), i64, mut(i64)))
def decode_deltas(data, pos, values):
    """Read a column of encode_deltas; the position behind it, or a negative status."""
    last = i64(0)
    for i in range(values.shape[0]):
        delta, pos = get_delta(data, pos, i64(data.shape[0]))
        if pos < 0:
            return pos
        last += delta
        values[i] = last
    return pos
