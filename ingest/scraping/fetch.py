"""One page of one target over HTTP, never more bytes than allowed."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from ingest.exposition import PAD
from ingest.negotiation import ScrapeError, ScrapeProtocol, is_openmetrics
from tsdb.errors import LimitError, Reason

_PIECE_BYTES = 1 << 20  # of decompressed text at a time: a bomb is noticed before it has grown


@dataclass(frozen=True, slots=True)
class Page:
    """What a target answered.

    Attributes
    ----------
    text : bytes          the page with :data:`ingest.exposition.PAD` behind it
    openmetrics : bool    whether it is OpenMetrics; else it is the text format
    """

    text: bytes
    openmetrics: bool


async def fetch(
    session: aiohttp.ClientSession,
    url: URL,
    arguments: Mapping[str, Any],
    timeout_s: float,
    body_bytes_max: int,
    fallback: ScrapeProtocol | None,
) -> Page:
    """Get a page.

    Parameters
    ----------
    arguments : of the session's ``get``: headers, TLS, proxy
    timeout_s : of everything until the last byte
    body_bytes_max : of the body, compressed as well as decompressed; 0 = any number
    fallback : see :func:`is_openmetrics`

    Raises
    ------
    ScrapeError    no page came
    LimitError     SCRAPE_LIMIT: the body is too large
    """
    try:
        async with (
            asyncio.timeout(timeout_s),
            session.get(url, timeout=aiohttp.ClientTimeout(total=None), **arguments) as response,
        ):
            if response.status != 200:
                raise ScrapeError(f"server returned HTTP status {response.status} {response.reason}")
            encoding = response.headers.get("Content-Encoding", "identity").lower()
            if encoding not in ("identity", "gzip"):
                raise ScrapeError(f"unexpected content encoding {encoding!r}")
            openmetrics = is_openmetrics(response.headers.get("Content-Type", ""), fallback)
            body = _Body(encoding == "gzip", body_bytes_max)
            async for chunk in response.content.iter_any():
                body.add(chunk)
            return Page(body.text(), openmetrics)
    except TimeoutError:
        raise ScrapeError(f"no answer within {timeout_s:g} s") from None
    except (aiohttp.ClientError, zlib.error, OSError, ValueError) as error:
        raise ScrapeError(f"{type(error).__name__}: {error}") from None


class _Body:
    """A body as it comes in, unpacked piece by piece and never above its limit."""

    def __init__(self, gzip: bool, limit: int) -> None:
        self._unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS) if gzip else None
        self._limit = limit
        self._parts: list[bytes] = []
        self._received = 0
        self._size = 0

    def add(self, chunk: bytes) -> None:
        """Take in what arrived."""
        self._received += len(chunk)
        self._check(self._received)
        if self._unpacker is None:
            self._keep(chunk)
            return
        while chunk:
            self._keep(self._unpacker.decompress(chunk, _PIECE_BYTES))
            chunk = self._unpacker.unconsumed_tail

    def _keep(self, text: bytes) -> None:
        self._parts.append(text)
        self._size += len(text)
        self._check(self._size)

    def _check(self, size: int) -> None:
        if 0 < self._limit < size:
            raise LimitError(Reason.SCRAPE_LIMIT, "body size limit exceeded")

    def text(self) -> bytes:
        """The whole text with :data:`ingest.exposition.PAD` behind it."""
        if self._unpacker is not None:
            self._keep(self._unpacker.flush())
            if not self._unpacker.eof:
                raise ScrapeError("the gzip body is cut off")
        return b"".join((*self._parts, PAD))
