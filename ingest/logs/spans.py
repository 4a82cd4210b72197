"""Where the entries of a push lie in its body: what each form of a push is read into."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
