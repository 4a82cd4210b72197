"""Sorted runs of plain samples: search, merge, split, gather. Keys are (slot, time), times int64."""

from __future__ import annotations

from tsdb.kernels._jit import const, device, i64, kernel, mut, u8, u32, u64

REPEATED = u8(1)
DUPLICATE = u8(2)


@device
def lower_bound(slots, ts_ms, slot, time, first, last):
    """First place in ``[first, last)`` whose key is not below (slot, time)."""
    while first < last:
        middle = (first + last) >> 1
        if slots[middle] < slot or (slots[middle] == slot and ts_ms[middle] < time):
            first = middle + 1
        else:
            last = middle
    return first


@kernel(i64(const(u32), const(i64), const(u64), const(u32), const(i64), const(u64), mut(u8)))
def find_in_run(slots, ts_ms, bits, run_slots, run_ts_ms, run_bits, status):
    """Look samples up in a run.

    Parameters
    ----------
    slots, ts_ms, bits : (n,) const        samples, in any order
    run_slots, run_ts_ms, run_bits : (m,) const        the run, sorted by (slot, time)
    status : (n,) uint8, written where the key is found        REPEATED or DUPLICATE

    Returns
    -------
    int64        samples found
    """
    found = 0
    size = len(run_slots)
    for i in range(len(slots)):
        at = lower_bound(run_slots, run_ts_ms, slots[i], ts_ms[i], 0, size)
        if at < size and run_slots[at] == slots[i] and run_ts_ms[at] == ts_ms[i]:
            status[i] = REPEATED if run_bits[at] == bits[i] else DUPLICATE
            found += 1
    return found


@kernel(i64(const(u32), const(i64), const(u64), mut(u8), mut(u32), mut(i64), mut(u64)))
def keep_first(slots, ts_ms, bits, status, out_slots, out_ts_ms, out_bits):
    """Keep the first of each key of a stably sorted batch; the others repeat or contradict it.

    Parameters
    ----------
    slots, ts_ms, bits : (n,) const        sorted by (slot, time)
    status : (n,) uint8, written for all but the first of a key
    out_slots, out_ts_ms, out_bits : (n,) written

    Returns
    -------
    int64        samples kept
    """
    kept = 0
    for i in range(len(slots)):
        if kept and out_slots[kept - 1] == slots[i] and out_ts_ms[kept - 1] == ts_ms[i]:
            status[i] = REPEATED if out_bits[kept - 1] == bits[i] else DUPLICATE
        else:
            out_slots[kept] = slots[i]
            out_ts_ms[kept] = ts_ms[i]
            out_bits[kept] = bits[i]
            kept += 1
    return kept


@kernel(
    i64(
        const(u32), const(i64), const(u64), const(u32), const(i64), const(u64), mut(u32), mut(i64), mut(u64)
    )
)  # fmt: skip
def merge_runs(a_slots, a_ts_ms, a_bits, b_slots, b_ts_ms, b_bits, out_slots, out_ts_ms, out_bits):
    """Merge two runs; of equal keys the first run's sample stays.

    Parameters
    ----------
    out_slots, out_ts_ms, out_bits : (n_a + n_b,) written

    Returns
    -------
    int64        samples written
    """
    a = 0
    b = 0
    at = 0
    n_a = len(a_slots)
    n_b = len(b_slots)
    while a < n_a or b < n_b:
        if a == n_a:
            from_a = False
        elif b == n_b:
            from_a = True
        else:
            equal = a_slots[a] == b_slots[b]
            if equal and a_ts_ms[a] == b_ts_ms[b]:
                b += 1
                continue
            from_a = a_slots[a] < b_slots[b] or (equal and a_ts_ms[a] < b_ts_ms[b])
        if from_a:
            out_slots[at] = a_slots[a]
            out_ts_ms[at] = a_ts_ms[a]
            out_bits[at] = a_bits[a]
            a += 1
        else:
            out_slots[at] = b_slots[b]
            out_ts_ms[at] = b_ts_ms[b]
            out_bits[at] = b_bits[b]
            b += 1
        at += 1
    return at


@kernel(i64(const(u32), const(i64), const(u32), i64, i64, mut(i64), mut(i64)))
def locate(run_slots, run_ts_ms, slots, mint_ms, maxt_ms, begins, ends):
    """Where the samples of some slots within ``[mint_ms, maxt_ms]`` lie in a run.

    Parameters
    ----------
    slots : (m,) uint32, const
    begins, ends : (m,) int64, written

    Returns
    -------
    int64        samples in all
    """
    total = 0
    size = len(run_slots)
    for i in range(len(slots)):
        begin = lower_bound(run_slots, run_ts_ms, slots[i], mint_ms, 0, size)
        end = begin
        if begin < size and run_slots[begin] == slots[i] and run_ts_ms[begin] <= maxt_ms:
            end = lower_bound(run_slots, run_ts_ms, slots[i], maxt_ms, begin, size)
            if end < size and run_slots[end] == slots[i] and run_ts_ms[end] == maxt_ms:
                end += 1
        begins[i] = begin
        ends[i] = end
        total += end - begin
    return total


@kernel(i64(const(i64), const(u64), const(i64), const(i64), mut(u32), mut(i64), mut(u64)))
def gather(run_ts_ms, run_bits, begins, ends, out_rows, out_ts_ms, out_bits):
    """Copy ranges of a run, one after the other, numbered by their place.

    Parameters
    ----------
    begins, ends : (m,) int64, const        ranges of the run
    out_rows, out_ts_ms, out_bits : written, one element a sample

    Returns
    -------
    int64        samples written
    """
    at = 0
    for i in range(len(begins)):
        for k in range(begins[i], ends[i]):
            out_rows[at] = u32(i)
            out_ts_ms[at] = run_ts_ms[k]
            out_bits[at] = run_bits[k]
            at += 1
    return at
