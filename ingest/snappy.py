"""Snappy blocks into buffers that are used again: fresh pages would cost more than the decompression."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ingest.kernels.snappy import PAD_BYTES as PAD_BYTES
from ingest.kernels.snappy import decompress_block
from ingest.wire import read_varint
from tsdb.errors import LimitError, Reason, RejectedError

_FRAMED = b"\xff\x06\x00\x00sNaPpY"


def decompress(body: bytes, raw: NDArray[np.uint8], limit: int) -> tuple[NDArray[np.uint8], int]:
    """Decompress a block into ``raw``, or into a larger buffer when it does not fit.

    Parameters
    ----------
    raw : (capacity,) uint8, written
    limit : most uncompressed bytes

    Returns
    -------
    the buffer, and the bytes used of it; at least ``PAD_BYTES`` follow them

    Raises
    ------
    RejectedError        MALFORMED
    LimitError           BODY_TOO_LARGE
    """
    if body.startswith(_FRAMED):
        raise RejectedError(Reason.MALFORMED, "snappy framed format; the block format is needed")
    try:
        size, begin = read_varint(body, 0)
    except ValueError:
        raise RejectedError(Reason.MALFORMED, "snappy: no uncompressed length") from None
    if size > limit:  # before anything is allocated: the length is the sender's claim
        raise LimitError(
            Reason.BODY_TOO_LARGE,
            f"uncompressed body of {size:,} bytes, the limit is {limit:,} (limits.ingest.decoded_bytes_max)",
        )
    if size + PAD_BYTES > len(raw):
        raw = np.zeros(min(2 * size, limit) + PAD_BYTES, np.uint8)
    if decompress_block(np.frombuffer(body, np.uint8), begin, raw, size) < 0:
        raise RejectedError(Reason.MALFORMED, "snappy: the block is corrupt")
    return raw, size
