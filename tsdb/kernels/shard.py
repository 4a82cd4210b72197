"""Kernels that split a batch over shards, give series their slots and lay chunks side by side."""

from __future__ import annotations

from tsdb.kernels._jit import const, i32, i64, kernel, mut, u8, u32, u64

NO_SLOT = 0xFFFFFFFF


@kernel(i64(const(u32), const(i64), const(u64), const(u64), u64, mut(i64), mut(u32), mut(i64), mut(u64), mut(i64)))
def scatter(refs, ts_ms, bits, series_hash, mask, starts, out_refs, out_ts_ms, out_bits, out_index):
    """Counting sort of a batch by shard, stable, so that each shard reads its samples in log order.

    Parameters
    ----------
    refs, ts_ms, bits : (n,) the batch
    series_hash : (n_series,) uint64; shard of a series = hash & mask
    starts : (mask + 2,) int64, written     samples of shard k are ``[starts[k], starts[k + 1])``
    out_index : (n,) int64, written         place of the sample in the batch
    """
    n = refs.shape[0]
    for k in range(starts.shape[0]):
        starts[k] = 0
    for i in range(n):
        starts[i64(series_hash[refs[i]] & mask) + 1] += 1
    for k in range(1, starts.shape[0]):
        starts[k] += starts[k - 1]
    for i in range(n):
        shard = i64(series_hash[refs[i]] & mask)
        at = starts[shard]
        starts[shard] = at + 1
        out_refs[at] = refs[i]
        out_ts_ms[at] = ts_ms[i]
        out_bits[at] = bits[i]
        out_index[at] = i
    for k in range(starts.shape[0] - 1, 0, -1):
        starts[k] = starts[k - 1]
    starts[0] = 0
    return n


@kernel(i64(const(u32), u32, mut(u32), mut(u32)))
def unlogged(refs, segment, logged_in, out_refs):
    """Series of a batch that this log segment has no record of; they are marked as logged in it.

    Parameters
    ----------
    logged_in : (n_series,) uint32, written     1 + number of the last segment that defines the series
    out_refs : (n,) uint32, written
    """
    found = 0
    for i in range(refs.shape[0]):
        ref = refs[i]
        if logged_in[ref] != segment:
            logged_in[ref] = segment
            out_refs[found] = ref
            found += 1
    return found


@kernel(i64(const(u32), mut(i64), const(u32), mut(u32), mut(u32), mut(u32)))
def assign_slots(refs, counts, free, slot_of, ref_of, out_slots):
    """Slots of a batch's series in their shard; a new series gets one that was given back, or the next.

    Parameters
    ----------
    counts : (2,) int64, state        slots ever used, entries of ``free`` that are left
    free : uint32        slots that were given back; the last ones go first

    Returns
    -------
    int64        0, or -1 when the shard has none left (the batch is then untouched beyond it)
    """
    for i in range(refs.shape[0]):
        ref = refs[i]
        slot = slot_of[ref]
        if slot == u32(NO_SLOT):
            if counts[1] > 0:
                counts[1] -= 1
                slot = free[counts[1]]
            elif counts[0] < ref_of.shape[0]:
                slot = u32(counts[0])
                counts[0] += 1
            else:
                return -1
            slot_of[ref] = slot
            ref_of[slot] = ref
        out_slots[i] = slot
    return 0


@kernel(i64(const(u64), const(i64), const(i32), mut(u64), const(i64)))
def gather_words(words, word_offsets, word_counts, out, out_offsets):
    """Copy the payloads of chunks to their places in one array."""
    for i in range(word_offsets.shape[0]):
        source = word_offsets[i]
        target = out_offsets[i]
        for k in range(word_counts[i]):
            out[target + k] = words[source + k]
    return word_offsets.shape[0]


@kernel(i64(const(i32), const(i64), const(u64), const(i64), const(i64), const(u64), mut(u8)))
def compare_stored(rows, ts_ms, bits, offsets, stored_ms, stored_bits, out):
    """Look for the samples of a batch among stored ones: 0 = absent, 1 = same bits, 2 = other bits.

    Parameters
    ----------
    rows : (n,) int32      series of the sample
    offsets : (n_series + 1,) int64; stored_ms ascends within a series
    """
    for i in range(rows.shape[0]):
        low = offsets[rows[i]]
        high = offsets[rows[i] + 1]
        end = high
        while low < high:
            mid = (low + high) >> 1
            if stored_ms[mid] < ts_ms[i]:
                low = mid + 1
            else:
                high = mid
        if low < end and stored_ms[low] == ts_ms[i]:
            out[i] = 1 if stored_bits[low] == bits[i] else 2
        else:
            out[i] = 0
    return rows.shape[0]
