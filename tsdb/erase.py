"""Take series out of the arrays of a head (tsdb.kernels.head says what they hold).

Plain numpy: it runs when somebody deletes, over many series at a time; a kernel would have to be compiled by everyone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tsdb.kernels import head as kernels

Words = NDArray[np.uint64]

_LOW_32 = np.uint64(0xFFFFFFFF)
_1 = np.uint64(1)


def _rows(state: Words) -> Words:
    return state.reshape(-1, kernels.STATE_WORDS)


def has_chunks(state: Words, n: int) -> NDArray[np.bool_]:
    """Which of the first ``n`` series have a chunk, open or sealed."""
    rows = _rows(state)[:n]
    found: NDArray[np.bool_] = (rows[:, kernels.PACKED] | rows[:, kernels.NEWEST_CHUNK]) != 0
    return found


def forget_rows(state: Words, slots: NDArray[np.uint32]) -> None:
    """Forget series without a chunk."""
    _rows(state)[slots] = 0


def forget_newest(state: Words, slots: NDArray[np.uint32], low: np.uint64, high: np.uint64) -> None:
    """Forget the newest sample of series that have no chunk, where it lies within biased times ``[low, high]``.

    It is in a block; the row remembers it only to recognise repeats.
    """
    rows = _rows(state)[slots]
    idle = (rows[:, kernels.PACKED] == 0) & (rows[:, kernels.NEWEST_CHUNK] == 0)
    within = (rows[:, kernels.LAST] >= low) & (rows[:, kernels.LAST] <= high)
    _rows(state)[slots[idle & within]] = 0


def unlink_all(
    slots: NDArray[np.uint32], state: Words, blocks: Words, chunks: Words, slabs: Words, control: Words
) -> None:
    """Forget everything of some series, each given once; slabs without a living chunk are for the caller to collect."""
    rows = _rows(state)[slots]
    _free_open(rows[rows[:, kernels.PACKED] != 0], blocks, control)
    table = chunks.reshape(-1, kernels.CHUNK_WORDS)
    links = rows[:, kernels.NEWEST_CHUNK]
    while len(links := links[links != 0]):  # the newest of each series, then the one before ...
        own = links - _1
        payload = table[own, kernels.PAYLOAD]
        slab_words = np.uint64(kernels.SLAB_WORDS)
        np.subtract.at(slabs, (payload >> np.uint64(24)) // slab_words * np.uint64(2), _1)
        control[kernels.SAMPLES] -= (payload & np.uint64(255)).sum()
        control[kernels.CHUNKS_USED] -= np.uint64(len(own))
        older = table[own, kernels.NEXT]
        table[own, kernels.NEXT] = np.concatenate((control[kernels.FREE_CHUNK : kernels.FREE_CHUNK + 1], links[:-1]))
        control[kernels.FREE_CHUNK] = links[-1]
        links = older
    _rows(state)[slots] = 0


def _free_open(rows: Words, blocks: Words, control: Words) -> None:
    """Put the blocks of open chunks on the free list."""
    if not len(rows):
        return
    packed, place = rows[:, kernels.PACKED], rows[:, kernels.PLACE]
    full_words = (packed >> np.uint64(27)) & np.uint64(1023)
    last = (place & _LOW_32) >> np.uint64(4)
    heads = (place >> np.uint64(32)) + _1
    links = blocks.reshape(-1, kernels.BLOCK_WORDS)[:, -1]
    links[last] = np.concatenate((control[kernels.FREE_BLOCK : kernels.FREE_BLOCK + 1], heads[:-1]))
    control[kernels.FREE_BLOCK] = heads[-1]
    per_block = np.uint64(kernels.BLOCK_WORDS - 1)
    control[kernels.BLOCKS_USED] -= ((full_words + per_block - _1) // per_block).sum()
    control[kernels.OPEN_CHUNKS] -= np.uint64(len(rows))
    control[kernels.SAMPLES] -= ((packed >> np.uint64(19)) & np.uint64(255)).sum()
