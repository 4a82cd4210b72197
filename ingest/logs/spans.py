"""Where the entries of a push lie in its body: what each form of a push is read into."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsdb.logs.frame import PAD_BYTES

LEAD_BYTES = 64
"""Bytes before the first line of a batch: a scan for words looks at the byte before each. The body has as many."""


class Spans(NamedTuple):
    """Where the entries of a push lie in its body.

    Attributes
    ----------
    body : uint8, padded
    streams, ts_ns, line_starts, line_sizes : (n,) of each entry
    first_pairs, pairs : metadata, as of ``walk_push``
    levels : (n,) uint8            levels that entries state themselves (0 = look for it); None = none does
    """

    body: NDArray[np.uint8]
    streams: NDArray[np.int32]
    ts_ns: NDArray[np.int64]
    line_starts: NDArray[np.int64]
    line_sizes: NDArray[np.int64]
    first_pairs: NDArray[np.int64]
    pairs: NDArray[np.int64]
    levels: NDArray[np.uint8] | None = None


Entry = tuple[int, int, bytes, Iterable[tuple[bytes, bytes]]]
"""Number of the stream, nanoseconds, line, metadata."""


def spans_of(entries: Iterable[Entry], levels: NDArray[np.uint8] | None = None) -> Spans:
    """Entries as one body."""
    texts: list[bytes] = [bytes(LEAD_BYTES)]
    streams: list[int] = []
    stamps: list[int] = []
    places: list[int] = []
    first_pairs = [0]
    pairs: list[int] = []  # numbers of texts
    for stream, stamp, line, metadata in entries:
        streams.append(stream)
        stamps.append(stamp)
        places.append(len(texts))
        texts.append(line)
        for name, value in metadata:
            pairs += [len(texts), len(texts) + 1]
            texts += [name, value]
        first_pairs.append(len(pairs) // 2)
    ends = np.cumsum([len(text) for text in texts])
    starts = np.concatenate([[0], ends[:-1]])
    lines = np.array(places, np.int64)
    named = np.array(pairs, np.int64).reshape(-1, 2)
    bounds = np.stack([starts[named[:, 0]], ends[named[:, 0]], starts[named[:, 1]], ends[named[:, 1]]], axis=1)
    return Spans(
        np.frombuffer(b"".join(texts) + bytes(PAD_BYTES), np.uint8),
        np.array(streams, np.int32),
        np.array(stamps, np.int64),
        starts[lines],
        (ends - starts)[lines],
        np.array(first_pairs, np.int64),
        np.ascontiguousarray(bounds, np.int64),
        levels,
    )
