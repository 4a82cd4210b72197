"""Shows a block to a person: ``meshpulse inspect block FILE`` and ``meshpulse inspect chunk FILE SELECTOR``.

Looks only, and goes on past damage as far as the rest can be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tsdb.batch import STALE_BITS
from tsdb.block.block import Block, read_meta
from tsdb.block.container import FRAME_CRCS, Container
from tsdb.blockstore import FolderStore
from tsdb.chunks import Chunks
from tsdb.errors import CorruptionError
from tsdb.gorilla import decode_rows
from tsdb.index.symbols import SymbolTable
from tsdb.kernels.gorilla import PAD_WORDS
from tsdb.matchers import Matcher

SERIES_SHOWN = 20
_ALL_TIME = (-(1 << 63), (1 << 63) - 1)


def _time(ms: int) -> str:
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):  # any int64 is a sample time, not every one is a date
        return f"{ms} ms"


def _labels(labels: dict[str, str]) -> str:
    pairs = ",".join(f"{name}={json.dumps(value)}" for name, value in labels.items() if name != "__name__")
    return f"{labels.get('__name__', '')}{{{pairs}}}"


def _open(path: Path) -> tuple[FolderStore, str]:
    """A store of the file's folder; nothing is written to it, and nothing of it removed."""
    return _LookingStore(path.parent), path.name


class _LookingStore(FolderStore):
    """A folder store that does not clean up behind a crash when it is opened."""

    def __init__(self, root: Path) -> None:
        self.root = root


def _sections(container: Container) -> Iterator[str]:
    for name, section in container.sections.items():
        n_bytes = section.length * np.dtype(section.dtype).itemsize
        if section.crc >= 0:
            try:
                container.array(name)
                state = "ok"
            except CorruptionError:
                state = "DAMAGED"
        else:
            frames = container.frame_count(name)
            bad = int(np.count_nonzero(container.bad_frames(name, np.ones(frames, np.uint8))))
            state = f"{frames} frames, " + (f"{bad} DAMAGED" if bad else "ok")
        if not name.endswith(FRAME_CRCS):
            size = f"{section.dtype:>4} x {section.length:<10} {n_bytes:>12} bytes"
            yield f"  {name:24} {size} at {section.offset}, {state}"


def inspect_block(path: Path, series_shown: int = SERIES_SHOWN) -> Iterator[str]:
    """Lines about a block file: its facts, its sections with their checksums, its first series.

    Raises
    ------
    CorruptionError        it is no block, or so damaged that it cannot be read at all
    """
    store, key = _open(path)
    meta = read_meta(store, key)
    yield f"block {path.name}: {meta.series} series, {meta.chunks} chunks, {meta.samples} samples, {meta.bytes} bytes"
    yield f"  {meta.bytes / max(1, meta.samples):.2f} bytes a sample, {_time(meta.min_ms)} to {_time(meta.max_ms)}"
    yield from _sections(Container(store.open(key), key))
    block = Block(store, meta, SymbolTable())
    try:
        rows = np.arange(min(series_shown, len(block.index)), dtype=np.int32)
        table = block.index.label_table(rows.astype(np.uint32))
        chunks = block.chunks(rows, *_ALL_TIME, warnings=[])
    except CorruptionError as error:
        yield f"  ! {error}"
        return
    for row in range(len(table)):
        own = chunks.rows == row
        samples = int(chunks.counts[own].sum())
        yield f"  {_labels(table.labels(row))}: {np.count_nonzero(own)} chunks, {samples} samples"
    if len(block.index) > series_shown:
        yield f"  ... and {len(block.index) - series_shown} more series"


def inspect_chunks(path: Path, matchers: Sequence[Matcher], samples_shown: int = 0) -> Iterator[str]:
    """Lines about the chunks of the series that satisfy all matchers.

    Parameters
    ----------
    samples_shown : samples to print of each chunk; 0 = all

    Raises
    ------
    CorruptionError        it is no block, or its index is damaged
    """
    store, key = _open(path)
    block = Block(store, read_meta(store, key), SymbolTable())
    rows = block.index.find(matchers)
    if not len(rows):
        yield "no such series in this block"
        return
    table = block.index.label_table(rows.astype(np.uint32))
    for place, row in enumerate(rows.tolist()):
        warnings: list[str] = []
        chunks = block.chunks(np.array([row], np.int32), *_ALL_TIME, warnings=warnings)
        yield f"{_labels(table.labels(place))}: {len(chunks)} chunks"
        yield from (f"  ! {warning}" for warning in warnings)
        for at in range(len(chunks)):
            yield from _chunk(chunks, at, samples_shown)


def _chunk(chunks: Chunks, at: int, samples_shown: int) -> Iterator[str]:
    count, words = int(chunks.counts[at]), int(chunks.word_counts[at])
    yield (
        f"  chunk {at}: kind {int(chunks.kinds[at])}, {count} samples, {_time(int(chunks.min_ms[at]))} to "
        f"{_time(int(chunks.max_ms[at]))}, {8 * words} bytes ({8 * words / max(1, count):.2f} a sample)"
    )
    first = int(chunks.word_offsets[at])
    payload = np.zeros(words + PAD_WORDS, np.uint64)
    payload[:words] = chunks.words[first : first + words]
    one = slice(at, at + 1)
    alone = Chunks(
        rows=np.zeros(1, np.int32),
        kinds=chunks.kinds[one],
        min_ms=chunks.min_ms[one],
        max_ms=chunks.max_ms[one],
        counts=chunks.counts[one],
        word_offsets=np.zeros(1, np.int64),
        word_counts=chunks.word_counts[one],
        words=payload,
    )
    try:
        ts_ms, bits = decode_rows(alone)
    except CorruptionError as error:
        yield f"    ! {error}"
        return
    shown = count if samples_shown <= 0 else min(count, samples_shown)
    values = bits.view(np.float64)
    for time_ms, value, pattern in zip(
        ts_ms[:shown].tolist(), values[:shown].tolist(), bits[:shown].tolist(), strict=True
    ):
        text = "stale" if pattern == STALE_BITS else repr(value)
        yield f"    {time_ms} {_time(time_ms)} {text} (0x{pattern:016x})"
    if shown < count:
        yield f"    ... and {count - shown} more"
