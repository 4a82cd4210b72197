"""Lines of several files as one push."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingest.logs.spans import Spans
from ingest.nginx.entries import COUNTRY, Lines
from ingest.nginx.file import Chunk
from tsdb.index.registry import SeriesRegistry
from tsdb.logs.frame import PAD_BYTES, LogReader
from tsdb.matchers import Matcher, MatchOp


class Part(NamedTuple):
    """Lines of one file and the number of the stream of each, -1 = refused."""

    chunk: Chunk
    lines: Lines
    refs: NDArray[np.int64]


def spans_of(parts: Sequence[Part], keep: Sequence[NDArray[np.bool_]]) -> tuple[Spans, NDArray[np.int64]]:
    """One body that holds all lines to keep, and the numbers of the streams that it names."""
    texts: list[NDArray[np.uint8]] = []
    starts, sizes, refs, times, pairs, first_pairs = [], [], [], [], [], [np.zeros(1, np.int64)]
    base = n_pairs = 0
    for (_, lines, streams), kept in zip(parts, keep, strict=True):
        offsets = lines.texts.offsets
        data = lines.texts.data[: int(offsets[-1])]
        starts.append((base + offsets[:-1])[kept])
        sizes.append(np.diff(offsets)[kept])
        refs.append(streams[kept])
        times.append(lines.ts_ns[kept])
        texts.append(data)
        base += len(data)
        found, counts = _countries(lines, kept, base)
        if len(found):
            words = COUNTRY + "".join(lines.countries.texts if lines.countries else ())
            texts.append(np.frombuffer(words.encode(), np.uint8))
            base += len(texts[-1])
            pairs.append(found)
        first_pairs.append(n_pairs + np.cumsum(counts))
        n_pairs += len(found)
    texts.append(np.zeros(PAD_BYTES, np.uint8))
    numbers, which = np.unique(np.concatenate(refs), return_inverse=True)
    return (
        Spans(
            np.concatenate(texts),
            which.astype(np.int32),
            np.concatenate(times),
            np.concatenate(starts),
            np.concatenate(sizes),
            np.concatenate(first_pairs),
            np.ascontiguousarray(np.concatenate(pairs)) if pairs else np.zeros((0, 4), np.int64),
        ),
        numbers,
    )


def _countries(lines: Lines, kept: NDArray[np.bool_], base: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Metadata of the kept lines as (begin, end) of name and value in a body whose words begin at ``base``."""
    words = lines.countries
    counts = np.zeros(int(np.count_nonzero(kept)), np.int64)
    if words is None:
        return np.zeros((0, 4), np.int64), counts
    lengths = np.array([len(text.encode()) for text in words.texts], np.int64)
    begins = base + len(COUNTRY) + np.cumsum(lengths) - lengths
    codes = words.codes[kept]
    some = np.flatnonzero((codes >= 0) & (np.append(lengths, 0)[codes] > 0))
    counts[some] = 1
    value, length = begins[codes[some]], lengths[codes[some]]
    name = np.full(len(some), base, np.int64)
    return np.stack((name, name + len(COUNTRY), value, value + length), axis=1), counts


def already_stored(
    logs: LogReader, registry: SeriesRegistry, lines: Lines, refs: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which lines the store has, (n,) bool: exact, and therefore only asked after a start."""
    known: set[tuple[int, int, bytes]] = set()
    out = np.zeros(len(refs), np.bool_)
    for ref in np.unique(refs[refs >= 0]).tolist():
        labels = registry.label_table(np.array([ref], np.uint32)).labels(0)
        matchers = [Matcher(name, MatchOp.EQUAL, value) for name, value in labels.items()]
        times = lines.ts_ns[refs == ref]
        for frame in logs.select(matchers, int(times.min()), int(times.max()) + 1, ordered=False):
            texts = frame.lines()
            streams = frame.refs[frame.stream_row].tolist()
            known.update(
                (stream, ts, texts.text(i))
                for i, (stream, ts) in enumerate(zip(streams, frame.ts_ns.tolist(), strict=True))
            )
    if known:
        rows = zip(refs.tolist(), lines.ts_ns.tolist(), strict=True)
        out[:] = [(ref, ts, lines.texts.text(i)) in known for i, (ref, ts) in enumerate(rows)]
    return out
