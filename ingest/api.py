"""``POST /api/v1/write``: remote-write over HTTP, as a bare ASGI application.

The rules are those of the remote-write specification and of the senders that exist: bad data is always exactly
400 (415 for a wrong type or encoding), a busy server says 503, and what is good in a request is kept whatever is
wrong with the rest.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Executor, Future
from email.message import Message as MimeMessage
from typing import Any

from ingest.limits import WriteLimits
from ingest.remote_write import Reception, RemoteWriteReceiver
from ingest.store import DEFAULT_TENANT, Tenants
from tsdb.batch import AppendResult
from tsdb.errors import LimitError, OverloadedError, Reason, RejectedError, UnavailableError
from tsdb.tally import Tally

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

V1_MESSAGE = "prometheus.WriteRequest"
V2_MESSAGE = "io.prometheus.write.v2.Request"
_ERROR_CHARS_MAX = 4000


@functools.lru_cache(maxsize=64)
def message_of(content_type: str) -> str:
    """Which protobuf message a Content-Type names (RFC 9110: case, blanks, quotes and extra parameters).

    Raises
    ------
    RejectedError    UNSUPPORTED_TYPE
    """
    if not content_type.strip():
        return V1_MESSAGE
    header = MimeMessage()
    header["content-type"] = content_type
    proto = header.get_param("proto", V1_MESSAGE)
    if content_type.partition(";")[0].strip().lower() != "application/x-protobuf":
        raise RejectedError(Reason.UNSUPPORTED_TYPE, f"unsupported media type {content_type[:200]!r}")
    if proto not in (V1_MESSAGE, V2_MESSAGE):
        raise RejectedError(Reason.UNSUPPORTED_TYPE, f"unknown protobuf message {str(proto)[:200]!r}")
    return str(proto)


class WriteApi:
    """The write endpoint.

    Parameters
    ----------
    tenants : where samples go
    receiver : parses bodies
    executor : threads that parse; kernels run there without the GIL, so that queries stay quick
    limits, tally : sizes and numbers; counts of what was refused

    Attributes
    ----------
    responses : HTTP status -> count
    body_bytes, samples_accepted : totals since the start, for ``/metrics``
    """

    def __init__(
        self,
        tenants: Tenants,
        receiver: RemoteWriteReceiver,
        executor: Executor,
        tally: Tally,
        limits: WriteLimits | None = None,
    ) -> None:
        self._tenants = tenants
        self._receiver = receiver
        self._executor = executor
        self._tally = tally
        self._limits = limits or WriteLimits()
        self._requests = 0
        self._inflight_bytes = 0
        self.responses: Counter[int] = Counter()
        self.body_bytes = 0
        self.samples_accepted = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["method"] != "POST":
            await self._answer(send, 405, "Method Not Allowed\n", [(b"allow", b"POST")])
            return
        try:
            text = await self._write(scope, receive)
        except RejectedError as error:
            self._tally.add(error.reason)
            await self._answer(send, 415 if error.reason is Reason.UNSUPPORTED_TYPE else 400, f"{error}\n")
        except UnavailableError as error:
            self._tally.add(error.reason)
            await self._answer(send, 503, f"{error}\n", [(b"retry-after", str(error.retry_after_s).encode())])
        except _DisconnectedError:
            return
        except Exception:
            log.exception("write request failed")
            await self._answer(send, 500, "internal error\n")
        else:
            await self._answer(send, 400 if text else 204, text)

    async def _write(self, scope: Scope, receive: Receive) -> str:
        """Take a request in; what was refused, "" when everything is stored."""
        content_type = encoding = b""
        tenant_name = DEFAULT_TENANT
        length = 0
        for name, value in scope["headers"]:
            if name == b"content-type":
                content_type = value
            elif name == b"content-encoding":
                encoding = value
            elif name == b"content-length":
                length = int(value) if value.isdigit() else 0
            elif name == b"x-scope-orgid":
                tenant_name = value.decode("latin-1") or DEFAULT_TENANT
        if message_of(content_type.decode("latin-1")) == V2_MESSAGE:
            raise RejectedError(Reason.UNSUPPORTED_TYPE, "remote-write 2.0 is not supported, send 1.0")
        if encoding.strip().lower() not in (b"", b"snappy"):
            raise RejectedError(
                Reason.UNSUPPORTED_TYPE, f"unsupported content encoding {encoding[:100]!r}, send snappy"
            )
        parts: list[bytes] = []
        try:
            await self._body(receive, length, parts)
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            reception, result = await self._decide(tenant_name, body)
        finally:
            self._inflight_bytes -= sum(map(len, parts))
        self.body_bytes += len(body)
        self.samples_accepted += result.accepted if result else 0
        return reception.refused(result)

    async def _body(self, receive: Receive, length: int, parts: list[bytes]) -> None:
        """Read the whole body into ``parts``; refused as soon as it is known to be too large."""
        size = 0
        more = True
        while more:
            self._check_size(max(size, length))
            if self._inflight_bytes + max(0, length - size) > self._limits.inflight_bytes_max:
                raise OverloadedError("the writes on their way fill their memory (limits.ingest.inflight_bytes_max)")
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _DisconnectedError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            self._inflight_bytes += len(parts[-1])
            more = message.get("more_body", False)
        self._check_size(size)

    def _check_size(self, size: int) -> None:
        limit = self._limits.body_bytes_max
        if size > limit:
            text = f"body of {size:,} bytes, the limit is {limit:,} (limits.ingest.body_bytes_max)"
            raise LimitError(Reason.BODY_TOO_LARGE, text)

    async def _decide(self, tenant_name: str, body: bytes) -> tuple[Reception, AppendResult | None]:
        """Parse on a worker thread, wait for the log; the loop is woken once, when everything is decided."""
        if self._requests >= self._limits.requests_max:
            raise OverloadedError(f"{self._requests} writes are already on their way (limits.ingest.requests_max)")
        loop = asyncio.get_running_loop()
        decided: asyncio.Future[tuple[Reception, AppendResult | None]] = loop.create_future()
        self._requests += 1
        try:
            self._executor.submit(self._receive, tenant_name, body, loop, decided)
            return await decided
        finally:
            self._requests -= 1

    def _receive(
        self,
        tenant_name: str,
        body: bytes,
        loop: asyncio.AbstractEventLoop,
        decided: asyncio.Future[tuple[Reception, AppendResult | None]],
    ) -> None:
        try:
            reception = self._receiver.receive(self._tenants.tenant(tenant_name), body)
        except BaseException as error:  # noqa: BLE001 - it is raised where the request waits
            loop.call_soon_threadsafe(_settle, decided, None, error)
            return
        if reception.future is None:
            loop.call_soon_threadsafe(_settle, decided, (reception, None), None)
            return

        def logged(future: Future[AppendResult]) -> None:
            error = future.exception()
            outcome = None if error else (reception, future.result())
            loop.call_soon_threadsafe(_settle, decided, outcome, error)

        reception.future.add_done_callback(logged)

    async def _answer(
        self, send: Send, status: int, text: str, headers: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        self.responses[status] += 1
        body = text[:_ERROR_CHARS_MAX].encode("utf-8", "replace")
        fields = headers or []
        if body:
            fields = [
                *fields,
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", str(len(body)).encode()),
            ]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": body})


class _DisconnectedError(Exception):
    """The sender went away before its request was complete."""


def _settle(decided: asyncio.Future[Any], outcome: Any, error: BaseException | None) -> None:
    if decided.done():
        return  # the request was cancelled while the log was busy
    if error is not None:
        decided.set_exception(error)
    else:
        decided.set_result(outcome)
