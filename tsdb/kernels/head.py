"""The writable window: open chunks as bit streams in pooled blocks, sealed chunks in slabs.

Arrays of one head, all uint64 (tsdb.head.Head owns them; 0 stands for "none" in every link):

``state``    8 words a series, one cache line: see ``LAST`` ... ``LINKS``
``blocks``   16 words a block: 15 words of payload, then 1 + number of the next block
``sealed``   payloads of sealed chunks, contiguous, in slabs of ``SLAB_WORDS``
``chunks``   4 words a sealed chunk: see ``MIN`` ... ``NEXT``; a series' chunks are linked, newest first
``slabs``    2 words a slab: living chunks, 1 + next free slab
``control``  counters and list heads: see ``FREE_BLOCK`` ...

Times are kept biased (``time ^ BIAS``) in ``state`` and ``control``, so that they compare unsigned.
"""

from __future__ import annotations

import numpy as np

from tsdb.kernels._jit import const, device, i64, kernel, mut, u8, u32, u64
from tsdb.kernels.bits import prefetch
from tsdb.kernels.gorilla import (
    BIAS,
    NO_WINDOW,
    SAMPLES_MAX,
    decode_chunk,
    encode_sample,
    span_end,
)
from tsdb.kernels.shard import NO_SLOT

SLAB_WORDS = 1 << 17
"""Words of a slab, 1 MiB: about 3,500 chunks; the unit in which memory of dropped chunks is given back."""
BLOCK_WORDS = 16
STATE_WORDS = 8
CHUNK_WORDS = 4
CONTROL_WORDS = 22

# control
FREE_BLOCK = 0  # 1 + first free block
NEXT_BLOCK = 1  # first block never used
BLOCKS_USED = 2
SEALED_AT = 3  # next free word of the current slab
SEALED_END = 4  # end of the current slab
FREE_SLAB = 5  # 1 + first free slab
NEXT_SLAB = 6
FREE_CHUNK = 7  # 1 + first free chunk row
NEXT_CHUNK = 8
CHUNKS_USED = 9
SLOTS = 10  # 1 + highest slot that ever got an in-order sample
OPEN_CHUNKS = 11
SAMPLES = 12  # in open and sealed chunks
NEWEST = 13  # biased; 0 = none yet
OLDEST = 14  # biased
SPAN = 15  # milliseconds; no chunk crosses a multiple of it
FREE_SLABS = 20  # length of the free list
OLDEST_LEFT = 21  # biased; what OLDEST becomes at the end of a drop
SPILL = 16  # 4 words of scratch: full words on their way into a block

PENDING = 255
"""Status of a sample that is not newer than its series, or below a floor: to be looked up."""

# words of a state row
LAST = 0
PACKED = 4
PLACE = 5
NEWEST_CHUNK = 7
_LAST = np.uint64(LAST)  # biased time of the newest in-order sample; 0 = none ever
_DELTA = np.uint64(1)
_VALUE = np.uint64(2)
_WORD = np.uint64(3)  # word being filled
_PACKED = np.uint64(PACKED)  # bits used 0-5, trail 6-11, lead 12-18, samples 19-26, full words 27-36
_PLACE = np.uint64(PLACE)  # next word in blocks (low 32 bits), first block (high 32 bits)
_END = np.uint64(6)  # biased time from which on a new chunk starts; 0 = no open chunk, or a full one
_NEWEST_CHUNK = np.uint64(NEWEST_CHUNK)  # 1 + row of the newest sealed chunk

# words of a chunk row
PAYLOAD = 2
NEXT = 3
_MIN = np.uint64(0)  # unbiased times
_MAX = np.uint64(1)
_PAYLOAD = np.uint64(PAYLOAD)  # samples 0-7, words 8-23, first word 24-63
_NEXT = np.uint64(NEXT)  # 1 + row of the next older chunk of the series, or of the next free row

_FREE_BLOCK = np.uint64(FREE_BLOCK)
_NEXT_BLOCK = np.uint64(NEXT_BLOCK)
_BLOCKS_USED = np.uint64(BLOCKS_USED)
_SEALED_AT = np.uint64(SEALED_AT)
_SEALED_END = np.uint64(SEALED_END)
_FREE_SLAB = np.uint64(FREE_SLAB)
_NEXT_SLAB = np.uint64(NEXT_SLAB)
_FREE_CHUNK = np.uint64(FREE_CHUNK)
_NEXT_CHUNK = np.uint64(NEXT_CHUNK)
_CHUNKS_USED = np.uint64(CHUNKS_USED)
_SLOTS = np.uint64(SLOTS)
_OPEN_CHUNKS = np.uint64(OPEN_CHUNKS)
_SAMPLES = np.uint64(SAMPLES)
_NEWEST = np.uint64(NEWEST)
_OLDEST = np.uint64(OLDEST)
_OLDEST_LEFT = np.uint64(OLDEST_LEFT)
_SPAN = np.uint64(SPAN)
_SPILL = np.uint64(SPILL)
_FREE_SLABS = np.uint64(FREE_SLABS)

_0 = np.uint64(0)
_1 = np.uint64(1)
_2 = np.uint64(2)
_3 = np.uint64(3)
_4 = np.uint64(4)
_6 = np.uint64(6)
_8 = np.uint64(8)
_12 = np.uint64(12)
_15 = np.uint64(15)
_16 = np.uint64(16)
_19 = np.uint64(19)
_24 = np.uint64(24)
_27 = np.uint64(27)
_32 = np.uint64(32)
_6_BITS = np.uint64(63)
_7_BITS = np.uint64(127)
_8_BITS = np.uint64(255)
_10_BITS = np.uint64(1023)
_16_BITS = np.uint64(0xFFFF)
_LOW_32 = np.uint64(0xFFFFFFFF)
_SAMPLES_MAX = np.uint64(SAMPLES_MAX)
_SLAB_WORDS = np.uint64(SLAB_WORDS)
_FRESH = np.uint64(NO_WINDOW << 12 | 1 << 19 | 2 << 27)  # _PACKED of a chunk with its first sample
_STATE_AHEAD = 12  # samples between asking for a state row and using it: about 600 ns
_WORD_AHEAD = 5

ACCEPTED = u8(0)
REPEATED = u8(1)
DUPLICATE = u8(2)
_PENDING = u8(PENDING)


@device
def take_block(blocks, control):
    """Number of a free block, now in use. The caller has made sure that there is one."""
    free = control[_FREE_BLOCK]
    control[_BLOCKS_USED] += _1
    if free != _0:
        block = free - _1
        control[_FREE_BLOCK] = blocks[block * _16 + _15]
        return block
    block = control[_NEXT_BLOCK]
    control[_NEXT_BLOCK] = block + _1
    return block


@device
def copy_open(row, state, blocks, out, at):
    """Copy the payload of a series' open chunk to ``out[at]`` on.

    Parameters
    ----------
    row : uint64        first word of the series in ``state``

    Returns
    -------
    uint64        words of the payload
    """
    packed = state[row + _PACKED]
    words = (packed >> _27) & _10_BITS
    block = state[row + _PLACE] >> _32
    copied = _0
    while copied < words:
        first = block * _16
        n = min(words - copied, _15)
        for k in range(n):
            out[at + copied + u64(k)] = blocks[first + u64(k)]
        copied += n
        block = blocks[first + _15] - _1
    if packed & _6_BITS != _0:
        out[at + copied] = state[row + _WORD]
        copied += _1
    return copied


@device
def seal_open(row, state, blocks, sealed, chunks, slabs, control):
    """Move a series' open chunk into the current slab and free its blocks.

    The caller has made sure of space for the words and the chunk row.
    """
    packed = state[row + _PACKED]
    place = state[row + _PLACE]
    first_block = place >> _32
    at = control[_SEALED_AT]
    if at + ((packed >> _27) & _10_BITS) + _1 > control[_SEALED_END]:
        free = control[_FREE_SLAB]
        if free != _0:
            slab = free - _1
            control[_FREE_SLAB] = slabs[slab * _2 + _1]
            control[_FREE_SLABS] -= _1
        else:
            slab = control[_NEXT_SLAB]
            control[_NEXT_SLAB] = slab + _1
        at = slab * _SLAB_WORDS
        control[_SEALED_END] = at + _SLAB_WORDS
    words = copy_open(row, state, blocks, sealed, at)
    control[_SEALED_AT] = at + words
    slabs[at // _SLAB_WORDS * _2] += _1
    free = control[_FREE_CHUNK]
    if free != _0:
        chunk = free - _1
        control[_FREE_CHUNK] = chunks[chunk * _4 + _NEXT]
    else:
        chunk = control[_NEXT_CHUNK]
        control[_NEXT_CHUNK] = chunk + _1
    control[_CHUNKS_USED] += _1
    chunks[chunk * _4 + _MIN] = sealed[at]
    chunks[chunk * _4 + _MAX] = state[row + _LAST] ^ BIAS
    chunks[chunk * _4 + _PAYLOAD] = ((packed >> _19) & _8_BITS) | (words << _8) | (at << _24)
    chunks[chunk * _4 + _NEXT] = state[row + _NEWEST_CHUNK]
    state[row + _NEWEST_CHUNK] = chunk + _1
    full_words = (packed >> _27) & _10_BITS
    last_block = (place & _LOW_32) >> _4
    blocks[last_block * _16 + _15] = control[_FREE_BLOCK]
    control[_FREE_BLOCK] = first_block + _1
    control[_BLOCKS_USED] -= (full_words + _15 - _1) // _15
    control[_OPEN_CHUNKS] -= _1
    state[row + _PACKED] = _0
    state[row + _END] = _0


_HEAD = (mut(u64),) * 6  # state, blocks, sealed, chunks, slabs, control
_READ = (const(u64),) * 4  # state, blocks, sealed, chunks


@kernel(i64(const(u32), u64, u64, const(u64), mut(u8), mut(u64), mut(u64)))
def newest_samples(slots, oldest, at, state, present, times, values):
    """Copy the newest sample of each slot that lies within ``[oldest, at]``.

    Parameters
    ----------
    slots : (n,) uint32        ``NO_SLOT`` has no sample
    oldest, at : uint64        biased
    present : (n,) uint8; times, values : (n,) uint64, written

    Returns
    -------
    int64        0, or -1 when a series has gone on since: its sample at that time is in a chunk
    """
    for i in range(len(slots)):
        present[i] = 0
        if slots[i] != u32(NO_SLOT):
            row = u64(slots[i]) * _8
            last = state[row]
            if last > at:
                return -1
            if last >= oldest and last != _0:
                present[i] = 1
                times[i] = last ^ BIAS
                values[i] = state[row + _VALUE]
    return 0


@kernel(i64(const(u32), const(u64), const(u64), u64, *_HEAD, mut(u8)))
def append_samples(slots, times, values, floor, state, blocks, sealed, chunks, slabs, control, status):
    """Append the samples that are newer than their series; decide on repeats of the newest; leave the rest pending.

    Parameters
    ----------
    slots : (n,) uint32; times, values : (n,) uint64, const
    floor : uint64        biased; older samples are left pending
    status : (n,) uint8, written     ``SampleStatus`` codes or ``PENDING``

    Returns
    -------
    int64        pending samples
    """
    n = len(slots)
    pending = 0
    appended = _0
    newest = control[_NEWEST]
    for i in range(n):
        ahead = i + _STATE_AHEAD
        if ahead < n:
            prefetch(state, u64(slots[ahead]) * _8)
            prefetch(blocks, state[u64(slots[i + _WORD_AHEAD]) * _8 + _PLACE] & _LOW_32)
        row = u64(slots[i]) * _8
        time = times[i] ^ BIAS
        value = values[i]
        last = state[row]
        if time > last and time >= floor:
            if time < state[row + _END]:
                packed = state[row + _PACKED]
                used = packed & _6_BITS
                trail = (packed >> _6) & _6_BITS
                lead = (packed >> _12) & _7_BITS
                word = state[row + _WORD]
                delta, lead, trail, word, used, spilled = encode_sample(
                    time,
                    value,
                    last,
                    state[row + _DELTA],
                    state[row + _VALUE],
                    lead,
                    trail,
                    word,
                    used,
                    control,
                    _SPILL,
                )
                spilled -= _SPILL
                if spilled != _0:
                    place = state[row + _PLACE]
                    at = place & _LOW_32
                    for k in range(spilled):
                        if at & _15 == _15:
                            block = take_block(blocks, control)
                            blocks[at] = block + _1
                            at = block * _16
                        blocks[at] = control[_SPILL + u64(k)]
                        at += _1
                    state[row + _PLACE] = (place >> _32 << _32) | at
                count = ((packed >> _19) & _8_BITS) + _1
                packed = (packed >> _27 << _27) + (spilled << _27)
                state[row + _DELTA] = delta
                state[row + _WORD] = word
                state[row + _PACKED] = packed | (count << _19) | (lead << _12) | (trail << _6) | used
                if count == _SAMPLES_MAX:
                    state[row + _END] = _0  # the next sample starts a new chunk, whatever its time
            else:
                if state[row + _PACKED] != _0:
                    seal_open(row, state, blocks, sealed, chunks, slabs, control)
                block = take_block(blocks, control)
                blocks[block * _16] = times[i]
                blocks[block * _16 + _1] = value
                state[row + _DELTA] = _0
                state[row + _WORD] = _0
                state[row + _PACKED] = _FRESH
                state[row + _PLACE] = (block << _32) | (block * _16 + _2)
                state[row + _END] = span_end(time, control[_SPAN])
                control[_OPEN_CHUNKS] += _1
                control[_OLDEST] = min(control[_OLDEST], time)
                control[_OLDEST_LEFT] = min(control[_OLDEST_LEFT], time)
                control[_SLOTS] = max(control[_SLOTS], u64(slots[i]) + _1)
            state[row + _LAST] = time
            state[row + _VALUE] = value
            newest = max(newest, time)
            appended += _1
            status[i] = ACCEPTED
        elif time == last and last != _0:
            status[i] = REPEATED if value == state[row + _VALUE] else DUPLICATE
        else:
            status[i] = _PENDING
            pending += 1
    control[_NEWEST] = newest
    control[_SAMPLES] += appended
    return pending


@kernel(i64(const(u32), const(u64), const(u64), *_READ, mut(u64), mut(u64), mut(u64), mut(u8)))
def find_samples(slots, times, values, state, blocks, sealed, chunks, words, chunk_times, chunk_values, status):
    """Look samples up in the chunks of their series.

    Parameters
    ----------
    slots : (n,) uint32; times, values : (n,) uint64, const
    words : (WORDS_MAX + PAD_WORDS,), chunk_times, chunk_values : (SAMPLES_MAX,) uint64, scratch
    status : (n,) uint8, written where a sample of that time is found     REPEATED or DUPLICATE

    Returns
    -------
    int64        samples found, or ``TRUNCATED`` when a chunk is damaged
    """
    found = 0
    # The chunk decoded last is kept: a repeated request often asks for the samples of one chunk in a row.
    held_row = ~_0
    held = 0
    held_min = _0
    held_max = _0
    held_count = _0
    for i in range(len(slots)):
        row = u64(slots[i]) * _8
        time = times[i] ^ BIAS
        if time > state[row]:
            continue
        if row != held_row or time < held_min or time > held_max:
            held_row = ~_0
            packed = state[row + _PACKED]
            place = state[row + _PLACE]
            if packed != _0 and time >= blocks[(place >> _32) * _16] ^ BIAS:
                n_words = copy_open(row, state, blocks, words, _0)
                held_count = (packed >> _19) & _8_BITS
                if decode_chunk(words, _0, n_words, held_count, chunk_times, chunk_values, _0) < 0:
                    return -1
            else:
                link = state[row + _NEWEST_CHUNK]
                while link != _0 and time < chunks[(link - _1) * _4 + _MIN] ^ BIAS:
                    link = chunks[(link - _1) * _4 + _NEXT]
                if link == _0 or time > chunks[(link - _1) * _4 + _MAX] ^ BIAS:
                    continue
                payload = chunks[(link - _1) * _4 + _PAYLOAD]
                held_count = payload & _8_BITS
                n_words = (payload >> _8) & _16_BITS
                if decode_chunk(sealed, payload >> _24, n_words, held_count, chunk_times, chunk_values, _0) < 0:
                    return -1
            held_row = row
            held_min = chunk_times[_0] ^ BIAS
            held_max = chunk_times[held_count - _1] ^ BIAS
            held = 0
        if held > 0 and chunk_times[held - 1] ^ BIAS >= time:
            held = 0
        while u64(held) < held_count and chunk_times[held] ^ BIAS < time:
            held += 1
        if u64(held) < held_count and chunk_times[held] ^ BIAS == time:
            status[i] = REPEATED if chunk_values[held] == values[i] else DUPLICATE
            found += 1
    return found


@kernel(i64(const(u32), u64, u64, const(u64), const(u64), mut(i64)))
def measure_snapshot(slots, low, high, state, chunks, totals):
    """Count the chunks of some series that overlap biased times ``[low, high]``, and their words.

    Parameters
    ----------
    totals : (1,) int64, written        words

    Returns
    -------
    int64        chunks
    """
    n_chunks = 0
    n_words = _0
    n = len(slots)
    for i in range(n):
        if i + _STATE_AHEAD < n:
            prefetch(state, u64(slots[i + _STATE_AHEAD]) * _8)
        row = u64(slots[i]) * _8
        packed = state[row + _PACKED]
        if packed != _0 and state[row] >= low:
            n_chunks += 1
            n_words += ((packed >> _27) & _10_BITS) + _1
        link = state[row + _NEWEST_CHUNK]
        while link != _0:
            chunk = (link - _1) * _4
            if chunks[chunk + _MAX] ^ BIAS < low:
                break
            if chunks[chunk + _MIN] ^ BIAS <= high:
                n_chunks += 1
                n_words += (chunks[chunk + _PAYLOAD] >> _8) & _16_BITS
            link = chunks[chunk + _NEXT]
    totals[0] = i64(n_words)
    return n_chunks


@device
def put_descriptor(out, at, row, low, high, count, offset, n_words):
    """Write one row of descriptors: row, min, max (unbiased), samples, first word, words."""
    out[at, 0] = row
    out[at, 1] = i64(low)
    out[at, 2] = i64(high)
    out[at, 3] = i64(count)
    out[at, 4] = i64(offset)
    out[at, 5] = i64(n_words)


@kernel(i64(const(u32), u64, u64, *_READ, mut(i64, 2), mut(u64)))
def copy_snapshot(slots, low, high, state, blocks, sealed, chunks, out, words):
    """Copy out what :func:`measure_snapshot` counted, sealed or open.

    Parameters
    ----------
    out : (n_chunks, 6) int64, written       descriptors, by (place of the series in ``slots``, time)
    words : (n_words,) uint64, written       payloads

    Returns
    -------
    int64        chunks written; the open chunk of a series that starts after ``high`` is left out
    """
    n = len(slots)
    at = 0
    word = _0
    for i in range(n):
        if i + _STATE_AHEAD < n:
            prefetch(state, u64(slots[i + _STATE_AHEAD]) * _8)
        row = u64(slots[i]) * _8
        first = at
        packed = state[row + _PACKED]
        if packed != _0 and state[row] >= low:
            begin = blocks[(state[row + _PLACE] >> _32) * _16]
            if begin ^ BIAS <= high:
                copied = copy_open(row, state, blocks, words, word)
                put_descriptor(out, at, i, begin, state[row] ^ BIAS, (packed >> _19) & _8_BITS, word, copied)
                at += 1
                word += copied
        link = state[row + _NEWEST_CHUNK]
        while link != _0:
            chunk = (link - _1) * _4
            if chunks[chunk + _MAX] ^ BIAS < low:
                break
            if chunks[chunk + _MIN] ^ BIAS <= high:
                payload = chunks[chunk + _PAYLOAD]
                n_words = (payload >> _8) & _16_BITS
                source = payload >> _24
                for k in range(n_words):
                    words[word + u64(k)] = sealed[source + u64(k)]
                put_descriptor(out, at, i, chunks[chunk], chunks[chunk + _MAX], payload & _8_BITS, word, n_words)
                at += 1
                word += n_words
            link = chunks[chunk + _NEXT]
        last = at - 1
        while first < last:  # the list runs from new to old
            for k in range(6):
                kept = out[first, k]
                out[first, k] = out[last, k]
                out[last, k] = kept
            first += 1
            last -= 1
    return at


@kernel(i64(i64, i64, u64, *_HEAD))
def seal_below(begin, end, border, state, blocks, sealed, chunks, slabs, control):
    """Seal the open chunks of slots ``[begin, end)`` that end at or before the biased border, and full ones.

    Returns
    -------
    int64        sealed chunks of these slots that lie wholly below the border
    """
    below = 0
    for slot in range(begin, end):
        row = u64(slot) * _8
        if state[row + _PACKED] != _0 and state[row + _END] <= border:
            seal_open(row, state, blocks, sealed, chunks, slabs, control)
        link = state[row + _NEWEST_CHUNK]
        while link != _0:
            if chunks[(link - _1) * _4 + _MAX] ^ BIAS < border:
                below += 1
            link = chunks[(link - _1) * _4 + _NEXT]
    return below


@kernel(i64(i64, i64, u64, const(u64), const(u64), mut(i64, 2), i64))
def list_below(begin, end, border, state, chunks, out, at):
    """Describe the sealed chunks of slots ``[begin, end)`` that lie wholly below the biased border.

    Parameters
    ----------
    out : (n_chunks, 6) int64, written from row ``at`` on       as in :func:`copy_snapshot`; row = slot

    Returns
    -------
    int64        next row of ``out``
    """
    for slot in range(begin, end):
        first = at
        link = state[u64(slot) * _8 + _NEWEST_CHUNK]
        while link != _0:
            chunk = (link - _1) * _4
            if chunks[chunk + _MAX] ^ BIAS < border:
                payload = chunks[chunk + _PAYLOAD]
                put_descriptor(
                    out, at, slot, chunks[chunk], chunks[chunk + _MAX], payload & _8_BITS, payload >> _24,
                    (payload >> _8) & _16_BITS,
                )  # fmt: skip
                at += 1
            link = chunks[chunk + _NEXT]
        last = at - 1
        while first < last:
            for k in range(6):
                kept = out[first, k]
                out[first, k] = out[last, k]
                out[last, k] = kept
            first += 1
            last -= 1
    return at


@kernel(i64(i64, i64, u64, mut(u64), const(u64), mut(u64), mut(u64), mut(u64)))
def drop_below(begin, end, border, state, blocks, chunks, slabs, control):
    """Forget the sealed chunks of slots ``[begin, end)`` that lie wholly below the biased border.

    ``control[OLDEST_LEFT]`` becomes the least of itself and the first time that is left; slabs without a living chunk
    are for the caller to collect.

    Returns
    -------
    int64        chunks dropped
    """
    dropped = 0
    oldest = control[_OLDEST_LEFT]
    for slot in range(begin, end):
        row = u64(slot) * _8
        if state[row + _PACKED] != _0:
            oldest = min(oldest, blocks[(state[row + _PLACE] >> _32) * _16] ^ BIAS)
        link = state[row + _NEWEST_CHUNK]
        newer = _0
        while link != _0 and chunks[(link - _1) * _4 + _MAX] ^ BIAS >= border:
            oldest = min(oldest, chunks[(link - _1) * _4] ^ BIAS)
            newer = link
            link = chunks[(link - _1) * _4 + _NEXT]
        if link == _0:
            continue
        if newer == _0:
            state[row + _NEWEST_CHUNK] = _0
        else:
            chunks[(newer - _1) * _4 + _NEXT] = _0
        while link != _0:
            chunk = (link - _1) * _4
            payload = chunks[chunk + _PAYLOAD]
            slabs[(payload >> _24) // _SLAB_WORDS * _2] -= _1
            control[_SAMPLES] -= payload & _8_BITS
            older = chunks[chunk + _NEXT]
            chunks[chunk + _NEXT] = control[_FREE_CHUNK]
            control[_FREE_CHUNK] = link
            link = older
            dropped += 1
    control[_CHUNKS_USED] -= u64(dropped)
    control[_OLDEST_LEFT] = oldest
    return dropped
