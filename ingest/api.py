"""The push endpoints over HTTP, as one bare ASGI application: remote-write, text import, OTLP.

The rules are those of the specifications and of the senders that exist: bad data is always exactly 400 (415 for a
wrong type or encoding of remote-write), a busy server says 503, and what is good in a request is kept whatever is
wrong with the rest.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from email.message import Message as MimeMessage
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

from ingest.gunzip import gunzip
from ingest.import_text import ImportOptions, TextImporter
from ingest.limits import WriteLimits
from ingest.negotiation import OPENMETRICS, media_type
from ingest.otlp import OtlpReceiver
from ingest.otlp_json import to_protobuf
from ingest.reception import Reception
from ingest.store import DEFAULT_TENANT, Tenant, Tenants
from tsdb.batch import AppendResult
from tsdb.errors import LimitError, OverloadedError, Reason, RejectedError, UnavailableError
from tsdb.tally import Tally

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receiver = Callable[[Tenant, bytes], Reception]
"""Parses one body and hands it to the store; called on a worker thread."""

V1_MESSAGE = "prometheus.WriteRequest"
V2_MESSAGE = "io.prometheus.write.v2.Request"
_ERROR_CHARS_MAX = 4000
_TEXT = b"text/plain; charset=utf-8"
_PROTOBUF = "application/x-protobuf"
_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class PushRequest:
    """What is known of a request before its body is read."""

    content_type: str = ""
    encoding: str = ""  # lower case
    tenant: str = DEFAULT_TENANT
    length: int = 0
    query: bytes = b""


class Answer(NamedTuple):
    """A complete response."""

    status: int
    body: bytes = b""
    content_type: bytes = _TEXT
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def fields(self) -> list[tuple[bytes, bytes]]:
        """All header fields of the response."""
        fields = list(self.headers)
        if self.body or self.status == 200:
            fields += [(b"content-type", self.content_type), (b"content-length", str(len(self.body)).encode())]
        return fields


class Outcome(NamedTuple):
    """What became of one request."""

    samples: int  # stored, or there already
    exemplars: int  # likewise
    refused: str  # text of what was refused; "" when everything is stored


class Endpoint(Protocol):
    """What one push protocol adds to the common way of a request.

    Attributes
    ----------
    is_short : whether its bodies are parsed by kernels alone, within milliseconds
    """

    is_short: bool

    def plan(self, request: PushRequest) -> Receiver:
        """How to read the body; raises :class:`RejectedError` when type, encoding or parameters are wrong."""
        ...

    def done(self, request: PushRequest, outcome: Outcome, /) -> Answer:
        """The answer once everything is decided."""
        ...

    def rejected(self, request: PushRequest, error: RejectedError, /) -> Answer:
        """The answer to a request of which nothing was kept."""
        ...


@dataclass(slots=True)
class Push:
    """One request on its way through :class:`PushApi`, in steps.

    Attributes
    ----------
    length : bytes of the body
    answer : when it is refused already
    is_inside : counted among those on their way
    """

    endpoint: Endpoint
    path: str
    request: PushRequest
    length: int
    receiver: Receiver | None = None
    reception: Reception | None = None
    answer: Answer | None = None
    is_inside: bool = False


@dataclass(slots=True)
class PushStats:
    """Totals of all push endpoints since the start, for ``/metrics``.

    Attributes
    ----------
    responses : (path, HTTP status) -> count
    body_bytes : as they arrived
    samples_accepted : stored, or there already
    """

    responses: Counter[tuple[str, int]] = field(default_factory=Counter)
    body_bytes: int = 0
    samples_accepted: int = 0


class PushApi:
    """Serves every push endpoint.

    Parameters
    ----------
    tenants : where samples go
    endpoints : path -> what is special about it
    executor : threads that parse; kernels run there without the GIL, so that queries stay quick
    limits, tally : sizes and numbers; counts of what was refused
    """

    def __init__(
        self,
        tenants: Tenants,
        endpoints: Mapping[str, Endpoint],
        executor: Executor,
        tally: Tally,
        limits: WriteLimits | None = None,
    ) -> None:
        self._tenants = tenants
        self._endpoints = endpoints
        self._executor = executor
        self._tally = tally
        self._limits = limits or WriteLimits()
        self._parsers: SimpleQueue[None] = SimpleQueue()  # one token a core, however many threads push
        for _ in range(os.cpu_count() or 1):
            self._parsers.put(None)
        self._lock = threading.Lock()
        self._requests = 0
        self._inflight_bytes = 0
        self.stats = PushStats()

    @property
    def paths(self) -> list[str]:
        """The paths that it serves."""
        return list(self._endpoints)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        path = scope["path"]
        endpoint = self._endpoints[path]
        request = push_request(scope["headers"], scope.get("query_string", b""))
        if scope["method"] != "POST":
            answer = Answer(405, b"Method Not Allowed\n", headers=((b"allow", b"POST"),))
        else:
            try:
                answer = await self._push(endpoint, request, receive)
            except DisconnectedError:
                self._tally.add(Reason.TRUNCATED)
                return
            except Exception as error:  # noqa: BLE001 - told to the sender, and logged when it is ours
                answer = self._refusal(endpoint, request, error)
        self.stats.responses[path, answer.status] += 1
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.fields()})
        await send({"type": "http.response.body", "body": answer.body})

    def serve(self, path: str, request: PushRequest, length: int, read: Callable[[], bytes]) -> Answer:
        """Serve one request on the calling thread, which waits for the sender and the disk: never an event loop's.

        Parameters
        ----------
        length : bytes of the body
        read : reads it, or raises :class:`DisconnectedError`; not called when it is refused for its length

        Raises
        ------
        DisconnectedError        the sender went away; nothing was kept
        """
        push = self.admit(path, request, length)
        if push.answer is None:
            try:
                with self._tenants.gatherer():
                    self.parse(push, read())
            except DisconnectedError:
                self.give_up(push)
                raise
        return self.finish(push)

    # -- the same in steps, for a thread that serves many: admit, parse inside of gathering, finish or give up

    def is_short(self, path: str) -> bool:
        """Whether requests are parsed by kernels alone, so that others may wait for one."""
        return self._endpoints[path].is_short

    def admit(self, path: str, request: PushRequest, length: int) -> Push:
        """Begin a request whose body, of ``length`` bytes, is still to be read; with an answer when it is refused."""
        push = Push(self._endpoints[path], path, request, length)
        try:
            push.receiver = push.endpoint.plan(request)
            self._check_size(length)
            with self._lock:
                self._check_inflight(length)
                self._enter()
                self._inflight_bytes += length
            push.is_inside = True
        except Exception as error:  # noqa: BLE001 - told to the sender, and logged when it is ours
            push.answer = self._refusal(push.endpoint, request, error)
        return push

    def gathering(self) -> AbstractContextManager[None]:
        """Requests that are parsed inside share one sync."""
        return self._tenants.gatherer()

    def parse(self, push: Push, body: bytes) -> None:
        """Read the body and hand it to the store, unless the request is refused."""
        if push.answer is not None:
            return
        assert push.receiver is not None
        try:
            push.reception = self._parse(push.receiver, push.request.tenant, body)
        except Exception as error:  # noqa: BLE001 - told to the sender, and logged when it is ours
            push.answer = self._refusal(push.endpoint, push.request, error)

    def finish(self, push: Push) -> Answer:
        """The answer, when the log has decided; outside of :meth:`gathering`."""
        endpoint, request, reception = push.endpoint, push.request, push.reception
        accepted = 0
        answer = push.answer
        if answer is None:
            assert reception is not None
            try:
                result = self._tenants.result(reception.future) if reception.future else None
                accepted = result.accepted if result else 0
                refused = reception.refused(result)
                answer = endpoint.done(request, Outcome(accepted, reception.exemplars_written, refused))
            except Exception as error:  # noqa: BLE001 - told to the sender, and logged when it is ours
                answer = self._refusal(endpoint, request, error)
        with self._lock:
            self._leave(push)
            if reception is not None:
                self.stats.body_bytes += push.length
                self.stats.samples_accepted += accepted
            self.stats.responses[push.path, answer.status] += 1
        return answer

    def give_up(self, push: Push) -> None:
        """End a request whose sender went away."""
        with self._lock:
            self._leave(push)
        self._tally.add(Reason.TRUNCATED)

    def _leave(self, push: Push) -> None:
        """The lock is held."""
        if push.is_inside:
            push.is_inside = False
            self._requests -= 1
            self._inflight_bytes -= push.length

    def _refusal(self, endpoint: Endpoint, request: PushRequest, error: Exception) -> Answer:
        """The answer to a request that failed as a whole."""
        if isinstance(error, RejectedError):
            self._tally.add(error.reason)
            return endpoint.rejected(request, error)
        if isinstance(error, UnavailableError):
            self._tally.add(error.reason)
            retry = (b"retry-after", str(error.retry_after_s).encode())
            return Answer(503, f"{error}\n".encode(), headers=(retry,))
        log.error("write request failed", exc_info=error)
        return Answer(500, b"internal error\n")

    async def _push(self, endpoint: Endpoint, request: PushRequest, receive: Receive) -> Answer:
        receiver = endpoint.plan(request)
        parts: list[bytes] = []
        try:
            await self._body(receive, request.length, parts)
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            reception, result = await self.take(receiver, request.tenant, body)
        finally:
            with self._lock:
                self._inflight_bytes -= sum(map(len, parts))
        accepted = result.accepted if result else 0
        return endpoint.done(request, Outcome(accepted, reception.exemplars_written, reception.refused(result)))

    async def _body(self, receive: Receive, length: int, parts: list[bytes]) -> None:
        """Read the whole body into ``parts``; refused as soon as it is known to be too large."""
        size = 0
        more = True
        while more:
            self._check_size(max(size, length))
            self._check_inflight(max(0, length - size))
            message = await receive()
            if message["type"] == "http.disconnect":
                raise DisconnectedError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            with self._lock:
                self._inflight_bytes += len(parts[-1])
            more = message.get("more_body", False)
        self._check_size(size)

    def _check_inflight(self, more: int) -> None:
        if self._inflight_bytes + more > self._limits.inflight_bytes_max:
            raise OverloadedError("the writes on their way fill their memory (limits.ingest.inflight_bytes_max)")

    def _check_size(self, size: int) -> None:
        limit = self._limits.body_bytes_max
        if size > limit:
            text = f"body of {size:,} bytes, the limit is {limit:,} (limits.ingest.body_bytes_max)"
            raise LimitError(Reason.BODY_TOO_LARGE, text)

    async def take(self, receiver: Receiver, tenant_name: str, body: bytes) -> tuple[Reception, AppendResult | None]:
        """Parse on a worker thread, wait for the log; the loop is woken once, when everything is decided.

        Raises
        ------
        RejectedError, UnavailableError        nothing of the body was kept
        """
        with self._lock:
            self._enter()
        loop = asyncio.get_running_loop()
        decided: asyncio.Future[tuple[Reception, AppendResult | None]] = loop.create_future()
        try:
            self._executor.submit(self._receive, receiver, tenant_name, body, loop, decided)
            reception, result = await decided
        finally:
            with self._lock:
                self._requests -= 1
        self._count(body, result)
        return reception, result

    def _enter(self) -> None:
        """Count a request that is on its way; the caller holds the lock."""
        if self._requests >= self._limits.requests_max:
            raise OverloadedError(f"{self._requests} writes are already on their way (limits.ingest.requests_max)")
        self._requests += 1

    def _count(self, body: bytes, result: AppendResult | None) -> int:
        """Count a request that was decided; samples accepted."""
        accepted = result.accepted if result else 0
        with self._lock:
            self.stats.body_bytes += len(body)
            self.stats.samples_accepted += accepted
        return accepted

    def _parse(self, receiver: Receiver, tenant_name: str, body: bytes) -> Reception:
        self._parsers.get()
        try:
            return receiver(self._tenants.tenant(tenant_name), body)
        finally:
            self._parsers.put(None)

    def _receive(
        self,
        receiver: Receiver,
        tenant_name: str,
        body: bytes,
        loop: asyncio.AbstractEventLoop,
        decided: asyncio.Future[tuple[Reception, AppendResult | None]],
    ) -> None:
        with self._tenants.leader():
            try:
                reception = self._parse(receiver, tenant_name, body)
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


class DisconnectedError(Exception):
    """The sender went away before its request was complete."""


def push_request(headers: Iterable[tuple[bytes, bytes]], query: bytes = b"") -> PushRequest:
    """What header fields (names in lower case) say about a request."""
    content_type = encoding = b""
    tenant = DEFAULT_TENANT
    length = 0
    for name, value in headers:
        if name == b"content-type":
            content_type = value
        elif name == b"content-encoding":
            encoding = value
        elif name == b"content-length":
            length = int(value) if value.isdigit() else 0
        elif name == b"x-scope-orgid":
            tenant = value.decode("latin-1") or DEFAULT_TENANT
    return PushRequest(
        content_type.decode("latin-1"),
        encoding.decode("latin-1").strip().lower(),
        tenant,
        length,
        query,
    )


def _text(text: str) -> bytes:
    return text[:_ERROR_CHARS_MAX].encode("utf-8", "replace")


def _settle(decided: asyncio.Future[Any], outcome: Any, error: BaseException | None) -> None:
    if decided.done():
        return  # the request was cancelled while the log was busy
    if error is not None:
        decided.set_exception(error)
    else:
        decided.set_result(outcome)


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


class RemoteWriteEndpoint:
    """``POST /api/v1/write``: the Content-Type alone picks the version.

    Parameters
    ----------
    v1, v2 : read the bodies of each version
    """

    is_short = True

    def __init__(self, v1: Receiver, v2: Receiver) -> None:
        self._receivers = {V1_MESSAGE: v1, V2_MESSAGE: v2}

    def plan(self, request: PushRequest) -> Receiver:
        """Pick the version; refuse other types and encodings."""
        receiver = self._receivers[message_of(request.content_type)]
        if request.encoding not in ("", "snappy"):
            raise RejectedError(
                Reason.UNSUPPORTED_TYPE, f"unsupported content encoding {request.encoding[:100]!r}, send snappy"
            )
        return receiver

    def done(self, request: PushRequest, outcome: Outcome) -> Answer:
        """204, or 400 with what was refused."""
        written = self._written(request, outcome.samples, outcome.exemplars)
        return Answer(400 if outcome.refused else 204, _text(outcome.refused), headers=written)

    def rejected(self, request: PushRequest, error: RejectedError) -> Answer:
        """415 for a wrong type or encoding, else 400."""
        status = 415 if error.reason is Reason.UNSUPPORTED_TYPE else 400
        return Answer(status, _text(f"{error}\n"), headers=self._written(request, 0, 0))

    @staticmethod
    def _written(request: PushRequest, samples: int, exemplars: int) -> tuple[tuple[bytes, bytes], ...]:
        """What a 2.0 sender needs to know: without these headers it takes everything for lost, even on 204."""
        try:
            if message_of(request.content_type) != V2_MESSAGE:
                return ()
        except RejectedError:
            return ()
        counts = ((b"samples", samples), (b"histograms", 0), (b"exemplars", exemplars))
        return tuple((b"x-prometheus-remote-write-%s-written" % what, b"%d" % count) for what, count in counts)


class TextImportEndpoint:
    """``POST /api/v1/import/prometheus``: an exposition in text, gzip allowed.

    Parameters
    ----------
    importer : reads the bodies
    """

    is_short = False

    def __init__(self, importer: TextImporter) -> None:
        self._importer = importer

    def plan(self, request: PushRequest) -> Receiver:
        """Read ``extra_label=name=value`` (repeatable) and ``timestamp`` (milliseconds)."""
        if request.encoding not in ("", "identity", "gzip"):
            raise RejectedError(
                Reason.UNSUPPORTED_TYPE, f"unsupported content encoding {request.encoding[:100]!r}, send gzip"
            )
        labels: dict[str, str] = {}
        time_ms: int | None = None
        for key, text in parse_qsl(request.query.decode("latin-1"), keep_blank_values=True):
            if key == "extra_label":
                name, equals, value = text.partition("=")
                if not name or not equals:
                    raise RejectedError(Reason.MALFORMED, f"extra_label={text[:100]!r} is not of the form name=value")
                labels[name] = value
            elif key == "timestamp" and text:
                try:
                    time_ms = int(text)
                except ValueError:
                    raise RejectedError(Reason.MALFORMED, f"timestamp={text[:100]!r} is no number") from None
                if not -(1 << 63) <= time_ms < 1 << 63:
                    raise RejectedError(Reason.MALFORMED, f"timestamp={text[:100]!r} does not fit into 64 bits")
        openmetrics = media_type(request.content_type) == OPENMETRICS
        options = ImportOptions(tuple(sorted(labels.items())), time_ms, request.encoding == "gzip", openmetrics)
        return lambda tenant, body: self._importer.receive(tenant, body, options)

    def done(self, _request: PushRequest, outcome: Outcome) -> Answer:
        """204, or 400 with what was refused."""
        return Answer(400 if outcome.refused else 204, _text(outcome.refused))

    def rejected(self, _request: PushRequest, error: RejectedError) -> Answer:
        """415 for a wrong encoding, else 400."""
        return Answer(415 if error.reason is Reason.UNSUPPORTED_TYPE else 400, _text(f"{error}\n"))


class OtlpEndpoint:
    """``POST /api/v1/otlp/v1/metrics``: OTLP over HTTP, protobuf or JSON, gzip allowed.

    Parameters
    ----------
    receiver : reads the bodies
    """

    is_short = False

    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def plan(self, request: PushRequest) -> Receiver:
        """Refuse other types and encodings."""
        media_type = _media_type(request)
        if media_type not in (_PROTOBUF, _JSON):
            raise RejectedError(
                Reason.UNSUPPORTED_TYPE,
                f"unsupported media type {request.content_type[:200]!r}, send {_PROTOBUF} or {_JSON}",
            )
        if request.encoding not in ("", "identity", "gzip"):
            raise RejectedError(
                Reason.UNSUPPORTED_TYPE, f"unsupported content encoding {request.encoding[:100]!r}, send gzip"
            )

        def receive(tenant: Tenant, body: bytes) -> Reception:
            if request.encoding == "gzip":
                body = gunzip(body, self._receiver.decoded_bytes_max)
            return self._receiver.receive(tenant, to_protobuf(body) if media_type == _JSON else body)

        return receive

    def done(self, request: PushRequest, outcome: Outcome) -> Answer:
        """200 with an empty message, or 400 with what was refused."""
        if outcome.refused:
            return Answer(400, _text(outcome.refused))
        media_type = _media_type(request)
        return Answer(200, b"{}" if media_type == _JSON else b"", media_type.encode())

    def rejected(self, _request: PushRequest, error: RejectedError) -> Answer:
        """400: OTLP clients drop what gets it."""
        return Answer(400, _text(f"{error}\n"))


def _media_type(request: PushRequest) -> str:
    return request.content_type.partition(";")[0].strip().lower()
