"""What the read APIs share of HTTP: answers in pieces, made in a thread, compressed, sent while anybody listens."""

from __future__ import annotations

import asyncio
import functools
import itertools
import zlib
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import zstandard

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

DEFAULT_TENANT = "default"
FORM_BYTES_MAX = 10 << 20
"""Largest form; Go's servers, hence the clients, know this number."""

COMPRESS_BYTES_MIN = 2048
"""Smaller answers fit into one or two packets anyway."""

QUERY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the seconds of queries in ``/metrics``."""

TEXT = b"text/plain; charset=utf-8"
CORS: Headers = [
    (b"access-control-allow-headers", b"Accept, Authorization, Content-Type, Origin"),
    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"Date"),
    (b"vary", b"Origin"),
]
_WATCH_AFTER_S = 0.05  # a client that hangs up earlier costs less than finding out


@dataclass(frozen=True, slots=True)
class Answer:
    """First piece of an answer, and the rest when there is more."""

    status: int
    first: bytes
    content_type: bytes
    rest: Iterator[bytes] | None = None
    encoding: bytes = b""


GONE = Answer(499, b"", TEXT)
"""Of a request whose client has gone; it is counted, not sent."""


def in_pieces(pieces: Iterator[bytes], content_type: bytes, encoding: bytes) -> Answer:
    """An answer whose first piece is made now, and compressed when it is worth it."""
    first = next(pieces)
    second = next(pieces, None)
    if second is None:
        if encoding and len(first) >= COMPRESS_BYTES_MIN:
            return Answer(200, compress(first, encoding), content_type, None, encoding)
        return Answer(200, first, content_type)
    rest: Iterator[bytes] = itertools.chain((second,), pieces)
    if encoding:
        rest = compressed_pieces(itertools.chain((first,), rest), encoding)
        first = next(rest)
    return Answer(200, first, content_type, rest, encoding)


async def run(executor: Executor, job: Callable[[], Answer], receive: Receive) -> Answer:
    """Run a job in a worker thread; :data:`GONE` when the client hangs up before it is done."""
    future = asyncio.get_running_loop().run_in_executor(executor, job)
    done, _ = await asyncio.wait((future,), timeout=_WATCH_AFTER_S)
    if not done:
        gone = asyncio.ensure_future(disconnected(receive))
        await asyncio.wait((future, gone), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not future.done():
            future.cancel()  # one that waits for a thread never begins
            return GONE
    return future.result()


async def send_answer(
    executor: Executor, answer: Answer, receive: Receive, send: Send, more: Headers, *, with_body: bool = True
) -> None:
    """Send an answer with ``more`` headers; its pieces are made in worker threads while the client is there."""
    headers: Headers = [(b"content-type", answer.content_type), *more]
    if answer.encoding:
        headers += [(b"content-encoding", answer.encoding), (b"vary", b"Accept-Encoding")]
    rest = answer.rest
    if rest is None:
        headers.append((b"content-length", str(len(answer.first)).encode()))
    start = {"type": "http.response.start", "status": answer.status, "headers": headers}
    if not await delivered(send, start):
        return
    if rest is None or not with_body:
        await delivered(send, {"type": "http.response.body", "body": answer.first if with_body else b""})
        return
    loop = asyncio.get_running_loop()
    gone = asyncio.ensure_future(disconnected(receive))
    piece = answer.first
    try:
        while not gone.done() and await delivered(
            send, {"type": "http.response.body", "body": piece, "more_body": bool(piece)}
        ):
            if not piece:
                break
            piece = await loop.run_in_executor(executor, next, rest, b"")
    finally:
        gone.cancel()


async def send_no_content(send: Send, headers: Headers) -> None:
    """204: the answer to OPTIONS."""
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def compress(data: bytes, encoding: bytes) -> bytes:
    """Quickly rather than well: gzip level 1 takes 7 ns a byte, level 6 40 for 15 % less, zstd level 1 about 2."""
    return zlib.compress(data, 1, wbits=31) if encoding == b"gzip" else zstandard.ZstdCompressor(1).compress(data)


def compressed_pieces(pieces: Iterator[bytes], encoding: bytes) -> Iterator[bytes]:
    """The pieces as one compressed stream."""
    compressor = zlib.compressobj(1, wbits=31) if encoding == b"gzip" else zstandard.ZstdCompressor(1).compressobj()
    for piece in pieces:
        compressed = compressor.compress(piece)
        if compressed:
            yield compressed
    yield compressor.flush()


@functools.lru_cache(maxsize=64)
def chosen_encoding(accept_encoding: bytes) -> bytes:
    """``zstd`` or ``gzip``, whichever an ``Accept-Encoding`` header asks for more, else ``b""``."""
    wanted: dict[bytes, float] = {}
    for item in accept_encoding.lower().split(b","):
        coding, _, parameters = item.partition(b";")
        quality = parameters.replace(b" ", b"").removeprefix(b"q=")
        try:
            wanted[coding.strip()] = float(quality) if quality else 1.0
        except ValueError:
            wanted[coding.strip()] = 1.0
    zstd = wanted.get(b"zstd", 0.0)  # not by "*": who can read it says so
    gzip = wanted.get(b"gzip", wanted.get(b"*", 0.0))
    if max(zstd, gzip) <= 0:
        return b""
    return b"zstd" if zstd >= gzip else b"gzip"


async def read_form(receive: Receive) -> bytes | None:
    """The body of a request, None when the client has gone; what is far too large is not kept."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        if len(body) <= FORM_BYTES_MAX:
            body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


async def delivered(send: Send, message: MutableMapping[str, Any]) -> bool:
    """Send; False when the client has hung up, which uvloop may notice only now, by an error."""
    try:
        await send(message)
    except (OSError, RuntimeError):
        return False
    return True


async def disconnected(receive: Receive) -> None:
    """Return when the client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass
