"""Log pushes over HTTP as a bare ASGI application: Loki's ``/loki/api/v1/push``, its old name, and ``/otlp/v1/logs``.

Shippers drop what gets a 4xx other than 429, so that the good entries of a bad push are kept, and a busy store says
503. Success is exactly 204.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ingest.api import Answer, Receive, Scope, Send
from ingest.logs.inflate import inflate, too_large
from ingest.logs.limits import PushLimits
from ingest.logs.push import NoStreamsError, PushReceiver, RateError, Received, Streams
from ingest.otlp_json import LOGS_REQUEST, rpc_status, to_protobuf
from ingest.store import DEFAULT_TENANT
from tsdb.errors import LimitError, OverloadedError, Reason, RejectedError, UnavailableError
from tsdb.tally import Tally

log = logging.getLogger(__name__)

LOKI_PATH = "/loki/api/v1/push"
LEGACY_PATH = "/api/prom/push"
OTLP_PATH = "/otlp/v1/logs"
PATHS = (LOKI_PATH, LEGACY_PATH, OTLP_PATH)
_PLAIN = ("", "identity")
_LOKI_ENCODINGS = (*_PLAIN, "snappy", "gzip", "deflate")  # snappy is part of the protobuf form: nothing to undo
_OTLP_ENCODINGS = (*_PLAIN, "gzip", "zstd", "lz4")


@dataclass(slots=True)
class LogPushStats:
    """Totals since the start, for ``/metrics``."""

    responses: Counter[tuple[str, int]] = field(default_factory=Counter)
    body_bytes: int = 0
    entries_accepted: int = 0
    line_bytes_accepted: int = 0


class _Head(NamedTuple):
    """What is known of a request before its body is read."""

    path: str
    is_json: bool
    encoding: str
    tenant: str
    length: int


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
                answer = _answer(path, _status(error), str(error))
            except UnavailableError as error:
                self._tally.add(error.reason)
                retry = (b"retry-after", str(error.retry_after_s).encode())
                answer = _answer(path, 503, str(error))._replace(headers=(retry,))
            except _DisconnectedError:
                self._tally.add(Reason.TRUNCATED)
                return
            except Exception:
                log.exception("log push failed")
                # Exporters of OTLP come again after 503, not after 500.
                answer = _answer(path, 503 if path == OTLP_PATH else 500, "internal error")
        self.stats.responses[path, answer.status] += 1
        fields = list(answer.headers)
        if answer.body:
            fields += [(b"content-type", answer.content_type), (b"content-length", str(len(answer.body)).encode())]
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        await send({"type": "http.response.body", "body": answer.body})

    async def _push(self, head: _Head, receive: Receive) -> Answer:
        if head.encoding not in (_OTLP_ENCODINGS if head.path == OTLP_PATH else _LOKI_ENCODINGS):
            raise RejectedError(Reason.UNSUPPORTED_TYPE, f'Content-Encoding "{head.encoding}" not supported')
        parts: list[bytes] = []
        with self._entered():
            try:
                await self._body(receive, head.length, parts)
                body = parts[0] if len(parts) == 1 else b"".join(parts)
                received = await self._take(head, body)
            finally:
                self._inflight_bytes -= sum(map(len, parts))
        refused = received.refusals.text()
        return _answer(head.path, 400, refused) if refused else Answer(204)

    async def otlp(self, tenant: str, body: bytes) -> Received:
        """Take an OTLP request in protobuf that came another way than HTTP.

        Raises
        ------
        RejectedError, UnavailableError        nothing of the body was kept
        """
        with self._entered():
            return await self._take(_Head(OTLP_PATH, False, "", tenant, len(body)), body)

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        """Count a push that is on its way."""
        if self._requests >= self._limits.requests_max:
            raise OverloadedError(f"{self._requests} pushes are already on their way (limits.logs.requests_max)")
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def _take(self, head: _Head, body: bytes) -> Received:
        """Parse on a worker thread and wait for the log."""
        loop = asyncio.get_running_loop()
        decided: asyncio.Future[Received] = loop.create_future()
        self._executor.submit(self._receive, head, body, loop, decided)
        received = await decided
        self.stats.body_bytes += len(body)
        self.stats.entries_accepted += received.entries
        self.stats.line_bytes_accepted += received.line_bytes
        return received

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
            if head.encoding not in (*_PLAIN, "snappy"):
                body = inflate(body, head.encoding, self._limits.decoded_bytes_max)
            if head.path == OTLP_PATH:
                plain = to_protobuf(body, LOGS_REQUEST) if head.is_json else body
                received = self._receiver.otlp(logs, head.tenant, plain)
            elif head.is_json:
                received = self._receiver.json(logs, head.tenant, body, legacy=head.path == LEGACY_PATH)
            else:
                received = self._receiver.protobuf(logs, head.tenant, body)
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
    return _Head(scope["path"], is_json, encoding, tenant, length)


def _status(error: RejectedError) -> int:
    if isinstance(error, NoStreamsError):
        return 422
    if isinstance(error, RateError):
        return 429
    return 413 if error.reason is Reason.BODY_TOO_LARGE else 400


def _answer(path: str, status: int, text: str) -> Answer:
    """What went wrong: as text, or as the ``google.rpc.Status`` that exporters of OTLP read."""
    if path != OTLP_PATH:
        return Answer(status, f"{text}\n".encode("utf-8", "replace"))
    return Answer(status, rpc_status(text), b"application/octet-stream")


def _settle(decided: asyncio.Future[Any], outcome: Any, error: BaseException | None) -> None:
    if decided.done():
        return  # the request was cancelled while the log was busy
    if error is not None:
        decided.set_exception(error)
    else:
        decided.set_result(outcome)
