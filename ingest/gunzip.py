"""Gzip bodies, never beyond a limit of memory."""

from __future__ import annotations

import zlib

from tsdb.errors import LimitError, Reason, RejectedError

_GZIP = 31  # window bits: a gzip header and the largest window


def gunzip(body: bytes, limit: int) -> bytes:
    """Decompress one or more gzip members.

    Parameters
    ----------
    limit : most uncompressed bytes

    Raises
    ------
    RejectedError        MALFORMED
    LimitError           BODY_TOO_LARGE
    """
    parts: list[bytes] = []
    size = 0
    rest = body
    try:
        while rest:
            member = zlib.decompressobj(_GZIP)
            parts.append(member.decompress(rest, limit + 1 - size))
            size += len(parts[-1])
            if size > limit:
                raise LimitError(
                    Reason.BODY_TOO_LARGE,
                    f"uncompressed body of more than {limit:,} bytes (limits.ingest.decoded_bytes_max)",
                )
            if not member.eof:
                raise RejectedError(Reason.MALFORMED, "the gzip body is cut off")
            rest = member.unused_data
    except zlib.error as error:
        raise RejectedError(Reason.MALFORMED, f"gzip: {error}") from None
    return b"".join(parts)
