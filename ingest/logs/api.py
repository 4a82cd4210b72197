"""Log pushes over HTTP as a bare ASGI application: ``POST /loki/api/v1/push`` and its old name ``/api/prom/push``.

Shippers drop what gets a 4xx other than 429, so that the good entries of a bad push are kept, and a busy store says
503. Success is exactly 204.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ingest.api import Answer, Receive, Scope, Send
from ingest.logs.limits import PushLimits
from ingest.logs.push import NoStreamsError, PushReceiver, RateError, Received, Streams, too_large
from ingest.store import DEFAULT_TENANT
from tsdb.errors import LimitError, OverloadedError, Reason, RejectedError, UnavailableError
from tsdb.tally import Tally

log = logging.getLogger(__name__)

PATHS = ("/loki/api/v1/push", "/api/prom/push")
LEGACY_PATH = "/api/prom/push"
_ENCODINGS = {"": None, "identity": None, "snappy": None, "gzip": 31, "deflate": 15}
"""Content-Encoding -> zlib window bits; None = not compressed beyond the format itself."""


@dataclass(slots=True)
class LogPushStats:
    """Totals since the start, for ``/metrics``."""

    responses: Counter[tuple[str, int]] = field(default_factory=Counter)
    body_bytes: int = 0
    entries_accepted: int = 0
    line_bytes_accepted: int = 0


class _Head(NamedTuple):
    """What is known of a request before its body is read."""

    is_json: bool
    encoding: str
    tenant: str
    length: int
    legacy: bool


class _DisconnectedError(Exception):
    """The sender went away before its request was complete."""


class LokiPushApi:
    """Serves the push paths.

    Parameters
    ----------
    logs_of : tenant name -> its log store; raises ``RejectedError`` when the tenant may not be created
    receiver : parses and checks
    executor : threads that parse; the event loop only waits
    """

    paths = PATHS

    def __init__(
        self,
        logs_of: Callable[[str], Streams],
        receiver: PushReceiver,
        executor: Executor,
        tally: Tally,
        limits: PushLimits | None = None,
    ) -> None:
        self._logs_of = logs_of
        self._receiver = receiver
        self._executor = executor
        self._tally = tally
        self._limits = limits or receiver.limits
        self._requests = 0
        self._inflight_bytes = 0
        self.stats = LogPushStats()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        path = scope["path"]
        if scope["method"] != "POST":
            answer = Answer(405, b"Method Not Allowed\n", headers=((b"allow", b"POST"),))
        else:
            try:
                answer = await self._push(_head(scope), receive)
            except RejectedError as error:
                self._tally.add(error.reason)
                answer = _refused(error)
            except UnavailableError as error:
                self._tally.add(error.reason)
                retry = (b"retry-after", str(error.retry_after_s).encode())
                answer = Answer(503, f"{error}\n".encode(), headers=(retry,))
            except _DisconnectedError:
                return
            except Exception:
                log.exception("log push failed")
                answer = Answer(500, b"internal error\n")
        self.stats.responses[path, answer.status] += 1
        fields = list(answer.headers)
        if answer.body:
            fields += [(b"content-type", answer.content_type), (b"content-length", str(len(answer.body)).encode())]
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        await send({"type": "http.response.body", "body": answer.body})

    async def _push(self, head: _Head, receive: Receive) -> Answer:
        if head.encoding not in _ENCODINGS:
            raise RejectedError(Reason.UNSUPPORTED_TYPE, f'Content-Encoding "{head.encoding}" not supported')
        if self._requests >= self._limits.requests_max:
            raise OverloadedError(f"{self._requests} pushes are already on their way (limits.logs.requests_max)")
        parts: list[bytes] = []
        self._requests += 1
        try:
            await self._body(receive, head.length, parts)
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            loop = asyncio.get_running_loop()
            decided: asyncio.Future[Received] = loop.create_future()
            self._executor.submit(self._receive, head, body, loop, decided)
            received = await decided
        finally:
            self._requests -= 1
            self._inflight_bytes -= sum(map(len, parts))
        self.stats.body_bytes += len(body)
        self.stats.entries_accepted += received.entries
        self.stats.line_bytes_accepted += received.line_bytes
        refused = received.refusals.text()
        return Answer(400, f"{refused}\n".encode("utf-8", "replace")) if refused else Answer(204)

    async def _body(self, receive: Receive, length: int, parts: list[bytes]) -> None:
        """Read the whole body into ``parts``; refused as soon as it is known to be too large."""
        size = 0
        more = True
        while more:
            known = max(size, length)
            if known > self._limits.body_bytes_max:
                raise LimitError(Reason.BODY_TOO_LARGE, too_large(known, self._limits.body_bytes_max))
            if self._inflight_bytes + max(0, length - size) > self._limits.inflight_bytes_max:
                raise OverloadedError("the pushes on their way fill their memory (limits.logs.inflight_bytes_max)")
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _DisconnectedError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            self._inflight_bytes += len(parts[-1])
            more = message.get("more_body", False)
        if size > self._limits.body_bytes_max:
            raise LimitError(Reason.BODY_TOO_LARGE, too_large(size, self._limits.body_bytes_max))

    def _receive(
        self, head: _Head, body: bytes, loop: asyncio.AbstractEventLoop, decided: asyncio.Future[Received]
    ) -> None:
        """Parse on a worker thread; the loop is woken once, when everything is on disk."""
        try:
            logs = self._logs_of(head.tenant)
            bits = _ENCODINGS[head.encoding]
            plain = inflate(body, bits, self._limits.decoded_bytes_max) if bits else body
            if head.is_json:
                received = self._receiver.json(logs, head.tenant, plain, legacy=head.legacy)
            else:
                received = self._receiver.protobuf(logs, head.tenant, plain)
        except BaseException as error:  # noqa: BLE001 - it is raised where the request waits
            loop.call_soon_threadsafe(_settle, decided, None, error)
            return
        if received.future is None:
            loop.call_soon_threadsafe(_settle, decided, received, None)
            return

        def logged(future: Future[int]) -> None:
            error = future.exception()
            loop.call_soon_threadsafe(_settle, decided, None if error else received, error)

        received.future.add_done_callback(logged)


def _head(scope: Scope) -> _Head:
    content_type = encoding = ""
    tenant = DEFAULT_TENANT
    length = 0
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value.decode("latin-1")
        elif name == b"content-encoding":
            encoding = value.decode("latin-1").strip().lower()
        elif name == b"content-length":
            length = int(value) if value.isdigit() else 0
        elif name == b"x-scope-orgid":
            tenant = value.decode("latin-1") or DEFAULT_TENANT
    is_json = content_type.partition(";")[0].strip().lower() == "application/json"
    return _Head(is_json, encoding, tenant, length, scope["path"] == LEGACY_PATH)


def inflate(body: bytes, window_bits: int, limit: int) -> bytes:
    """Decompress gzip (window bits 31) or deflate (15: with zlib's header, or bare) up to ``limit`` bytes.

    Raises
    ------
    RejectedError        MALFORMED
    LimitError           BODY_TOO_LARGE
    """
    for bits in (window_bits, -15) if window_bits == 15 else (window_bits,):
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


def _refused(error: RejectedError) -> Answer:
    status = 400
    if isinstance(error, NoStreamsError):
        status = 422
    elif isinstance(error, RateError):
        status = 429
    elif error.reason is Reason.BODY_TOO_LARGE:
        status = 413
    return Answer(status, f"{error}\n".encode("utf-8", "replace"))


def _settle(decided: asyncio.Future[Any], outcome: Any, error: BaseException | None) -> None:
    if decided.done():
        return  # the request was cancelled while the log was busy
    if error is not None:
        decided.set_exception(error)
    else:
        decided.set_result(outcome)
