"""Compressed log pushes, never beyond a limit of memory."""

from __future__ import annotations

import zlib

import cramjam
import numpy as np
import zstandard

from tsdb.errors import LimitError, Reason, RejectedError

_GZIP = 31  # zlib window bits: a gzip header and the largest window
_ZLIB, _BARE = 15, -15
_ZSTD_WINDOW_BYTES_MAX = 1 << 26  # what the reader may have to hold; encoders use 8 MiB at most


def too_large(size: int, limit: int) -> str:
    """What senders are told about a body beyond the limit."""
    return f"request body too large: {size} bytes, limit: {limit} bytes"


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """Decompress a body of ``Content-Encoding`` gzip, deflate (with zlib's header, or bare), zstd or lz4 (a frame).

    Raises
    ------
    RejectedError        MALFORMED
    LimitError           BODY_TOO_LARGE: more than ``limit`` bytes
    """
    if encoding == "zstd":
        return _zstd(body, limit)
    if encoding == "lz4":
        return _lz4(body, limit)
    for bits in (_GZIP,) if encoding == "gzip" else (_ZLIB, _BARE):
        engine = zlib.decompressobj(bits)
        try:
            plain = engine.decompress(body, limit + 1)
        except zlib.error as error:
            wrong = error
            continue
        if len(plain) > limit:
            raise LimitError(Reason.BODY_TOO_LARGE, too_large(len(plain), limit))
        if not engine.eof:
            raise RejectedError(Reason.MALFORMED, "the compressed body is cut off")
        return plain
    raise RejectedError(Reason.MALFORMED, f"the body does not decompress: {wrong}")


def _zstd(body: bytes, limit: int) -> bytes:
    try:
        size = zstandard.frame_content_size(body)  # -1 when the sender does not say
        if size > limit:
            raise LimitError(Reason.BODY_TOO_LARGE, too_large(size, limit))
        engine = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX)
        return engine.decompress(body, max_output_size=limit, allow_extra_data=False)
    except zstandard.ZstdError as error:
        text = f"the body does not decompress, or to more than {limit} bytes: {error}"
        raise RejectedError(Reason.MALFORMED, text) from None


def _lz4(body: bytes, limit: int) -> bytes:
    plain = np.empty(limit, np.uint8)  # pages that are not written cost nothing
    try:
        size = int(cramjam.lz4.decompress_into(body, plain.data))
    except cramjam.DecompressionError as error:
        text = f"the body does not decompress, or to more than {limit} bytes: {error}"
        raise RejectedError(Reason.MALFORMED, text) from None
    return plain[:size].tobytes()
