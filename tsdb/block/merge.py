"""Merge blocks into one: series by series, within bounded memory, every sample bit for bit.

The labels of all sources are entered into a registry of the merge's own, so that the tenant's does not learn series
that have long ended. Payloads pass through a scratch file; what stays in memory is the labels and the descriptors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tsdb.assemble import assemble
from tsdb.block.block import BlockMeta, write_block
from tsdb.block.live import MAX_MS, MIN_MS, LiveBlock
from tsdb.blockstore import BlockStore
from tsdb.chunks import Chunks
from tsdb.gorilla import encode_rows, repack
from tsdb.index.registry import SeriesRegistry
from tsdb.index.static import StaticIndex
from tsdb.kernels.gorilla import PAD_WORDS
from tsdb.limits import SeriesLimits

MERGED_CHUNK_SAMPLES_MAX = 960
"""Most samples of a chunk of a merged block: 4 h at 15 s. A chunk costs 16 to 40 bytes of head and 21 of descriptor
whatever it holds; 120 samples leave half a byte a sample of that (``python -m benchmarks.compaction``). The price: a
narrow query decodes a whole chunk."""

SAMPLES_AT_ONCE_MAX = 1 << 19
"""Samples that a merge holds decoded: about 50 MB with their encoded form; one series may be more than that."""

ROWS_AT_ONCE_MAX = 1 << 14
"""Series whose labels are copied at once: about 7 MB."""


def merge_blocks(
    store: BlockStore, key: str, sources: Sequence[LiveBlock], span_ms: int, pause: Callable[[], None]
) -> BlockMeta | None:
    """Write what is left of some blocks as one, read back and verified; None when nothing is left.

    Their tombstones must not change meanwhile, or the result must not be used.

    Parameters
    ----------
    key : no manifest lists it
    sources : where two hold a sample of the same time, the first one's counts, as for a reader
    span_ms : no chunk crosses a multiple of it
    pause : called between two steps of some 10 ms to 100 ms

    Raises
    ------
    CorruptionError        a source is damaged
    OSError        the store cannot be written; nothing is left behind but what a start removes
    """
    rows_count = sum(len(live.block.index) for live in sources)
    registry = SeriesRegistry(SeriesLimits(active_series_max=rows_count), rows_count)
    places = [_enter(live, registry, pause) for live in sources]
    n_series = len(registry)
    weights = np.zeros(n_series, np.int64)
    for live, own in zip(sources, places, strict=True):
        weights[own] += live.block.samples_by_row()
    orders = [np.argsort(own).astype(np.int32) for own in places]
    sorted_places = [own[order] for own, order in zip(places, orders, strict=True)]

    made: list[Chunks] = []
    with store.scratch() as scratch:
        for first, last in _ranges(weights):
            wanted = np.arange(first, last, dtype=np.uint32)
            parts = []
            for live, own, order in zip(sources, sorted_places, orders, strict=True):
                a, b = np.searchsorted(own, (first, last))
                parts.append(live.part(order[a:b], own[a:b], wanted, MIN_MS, MAX_MS, None))
            offsets, ts_ms, values = assemble(last - first, parts, MIN_MS, MAX_MS, workers=1)
            rows = np.repeat(wanted, np.diff(offsets))
            chunks = repack(encode_rows(rows, ts_ms, values.view(np.uint64), span_ms, MERGED_CHUNK_SAMPLES_MAX))
            scratch.write(chunks.words[: int(chunks.word_counts.sum(dtype=np.int64))].data)
            made.append(replace(chunks, words=_NO_WORDS))
            pause()
        scratch.write(bytes(8 * PAD_WORDS))
        scratch.flush()
        if not any(len(chunks) for chunks in made):
            return None
        words = np.memmap(scratch, np.uint64, mode="r")
        chunks, used = _joined(made, words)
        index = StaticIndex.build(registry, used)
        pause()
        return write_block(store, key, index, chunks)


_NO_WORDS = np.zeros(0, np.uint64)


def _enter(live: LiveBlock, registry: SeriesRegistry, pause: Callable[[], None]) -> NDArray[np.uint32]:
    """Number of each row of a block in the registry."""
    index = live.block.index_in(registry.symbols)
    numbers = np.empty(len(index), np.uint32)
    for first in range(0, len(index), ROWS_AT_ONCE_MAX):
        rows = np.arange(first, min(first + ROWS_AT_ONCE_MAX, len(index)), dtype=np.uint32)
        numbers[rows] = registry.adopt(*index.canonical(rows))
        pause()
    return numbers


def _ranges(weights: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ranges of series of at most :data:`SAMPLES_AT_ONCE_MAX` samples; at least one series each."""
    ends = np.cumsum(weights)
    found, first, before = [], 0, 0
    while first < len(weights):
        last = max(int(np.searchsorted(ends, before + SAMPLES_AT_ONCE_MAX, "right")), first + 1)
        found.append((first, last))
        first, before = last, int(ends[last - 1])
    return found


def _joined(made: Sequence[Chunks], words: NDArray[np.uint64]) -> tuple[Chunks, NDArray[np.uint32]]:
    """All chunks, numbered by the series that are left, and those series."""
    rows, dense = np.unique(np.concatenate([chunks.rows for chunks in made]), return_inverse=True)
    word_counts = np.concatenate([chunks.word_counts for chunks in made])
    joined = Chunks(
        rows=dense.astype(np.int32),
        kinds=np.concatenate([chunks.kinds for chunks in made]),
        min_ms=np.concatenate([chunks.min_ms for chunks in made]),
        max_ms=np.concatenate([chunks.max_ms for chunks in made]),
        counts=np.concatenate([chunks.counts for chunks in made]),
        word_offsets=np.cumsum(word_counts, dtype=np.int64) - word_counts,
        word_counts=word_counts,
        words=words,
    )
    return joined, rows.astype(np.uint32)
