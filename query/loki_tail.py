"""``GET /loki/api/v1/tail``: new lines over a WebSocket, as bare ASGI (compat.md 7).

The store is asked again and again, a little into the past each time, because lines arrive late; what was sent already
is remembered for as long. Nothing is read before the last frame is sent, so that a slow reader costs no memory.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass

import orjson

from query.asgi import DEFAULT_TENANT, Receive, Scope, Send
from query.errors import BadDataError, QueryError
from query.json_out import dumps
from query.logql.ast import LogQuery
from query.logql.engine.engine import ENTRIES_MAX, LogEngine, parsed
from query.logql.engine.entries import Entry, StreamEntries
from query.logql.units import NS
from query.loki_endpoints import LokiEndpoints
from query.loki_json import CATEGORIZE, stream_objects
from query.loki_params import DEFAULT_LIMIT, DEFAULT_RANGE_NS, positive, time_ns
from query.params import Params, int64
from tsdb.errors import MeshpulseError
from tsdb.logs.frame import LogReader

log = logging.getLogger(__name__)

FRAME_ENTRIES_MAX = 100
DELAY_S_MAX = 5
POLL_S = 0.5
OVERLAP_NS = 10 * NS
"""How far behind the newest line sent a line may arrive and still be shown."""

LAG_NS_MAX = 60 * NS
"""A reader further behind than this loses lines and is told so."""

NORMAL, FAILED = 1000, 1011
_REASON_BYTES_MAX = 120  # of a close frame: 123 by RFC 6455


@dataclass(frozen=True, slots=True)
class TailRequest:
    """What a client wants to see."""

    query: LogQuery
    start_ns: int
    limit: int
    delay_ns: int
    categorize: bool
    tenant: str


def read_request(scope: Scope, now_ns: int) -> TailRequest:
    """The parameters of a tail.

    Raises
    ------
    BadDataError
    """
    headers = dict(scope["headers"])
    params = Params.read(scope["query_string"])
    expr = parsed(params.get("query"))
    if not isinstance(expr, LogQuery):
        raise BadDataError("only log queries can be tailed")
    delay = params.get("delay_for") or "0"
    if not delay.isdecimal():
        raise BadDataError(f"invalid delay_for {delay}")
    seconds = int64(delay)
    if seconds is None or seconds > DELAY_S_MAX:
        raise BadDataError(f"delay_for can't be greater than {DELAY_S_MAX}")
    flags = headers.get(b"x-loki-response-encoding-flags", b"").decode("latin-1").split(",")
    return TailRequest(
        expr,
        time_ns(params, "start", now_ns - DEFAULT_RANGE_NS),
        min(positive(params, "limit", DEFAULT_LIMIT), ENTRIES_MAX),
        seconds * NS,
        CATEGORIZE in [flag.strip() for flag in flags],
        headers.get(b"x-scope-orgid", b"").decode("latin-1") or DEFAULT_TENANT,
    )


class Follower:
    """Reads what is new for one client."""

    def __init__(self, engine: LogEngine, reader: LogReader, request: TailRequest) -> None:
        self._engine = engine
        self._reader = reader
        self._request = request
        self._next_ns = request.start_ns
        self._seen: dict[tuple[int, str, str], None] = {}

    def backlog(self, now_ns: int) -> list[StreamEntries]:
        """The newest lines before now, each stream ascending."""
        end_ns = now_ns - self._request.delay_ns
        self._next_ns = max(self._request.start_ns, end_ns)
        # what is there already and beyond the limit is not news
        self._new(self._read(max(self._request.start_ns, end_ns - OVERLAP_NS), end_ns, ENTRIES_MAX, backward=True))
        streams = self._read(self._request.start_ns, end_ns, self._request.limit, backward=True)
        self._new(streams)
        for stream in streams:
            stream.entries.reverse()
        return streams

    def more(self, now_ns: int) -> tuple[list[StreamEntries], int | None]:
        """Lines not seen yet, and from when on lines were left out because the client is too slow (None: none)."""
        end_ns = now_ns - self._request.delay_ns
        dropped = None
        if end_ns - self._next_ns > LAG_NS_MAX:
            dropped = self._next_ns
            self._next_ns = end_ns - OVERLAP_NS
        start_ns = max(self._request.start_ns, self._next_ns - OVERLAP_NS)
        streams = self._read(start_ns, end_ns, ENTRIES_MAX, backward=False)
        count = sum(len(stream.entries) for stream in streams)
        if count == ENTRIES_MAX:
            # there is more: go on from here, not from the same lines again
            last_ns = max(stream.entries[-1].ts_ns for stream in streams)
            self._next_ns = max(last_ns + OVERLAP_NS if last_ns > start_ns else last_ns + OVERLAP_NS + 1, self._next_ns)
        else:
            self._next_ns = max(self._next_ns, end_ns)
        return self._new(streams), dropped

    def _read(self, start_ns: int, end_ns: int, limit: int, *, backward: bool) -> list[StreamEntries]:
        if end_ns <= start_ns:
            return []
        query = self._request.query
        value = self._engine.entries(self._reader, query, start_ns, end_ns, limit, backward=backward).value
        assert isinstance(value, list)
        return value

    def _new(self, streams: list[StreamEntries]) -> list[StreamEntries]:
        """Without what was sent; what is too old to come again is forgotten."""
        fresh = []
        for stream in streams:
            name = orjson.dumps(stream.labels).decode()
            entries = []
            for entry in stream.entries:
                key = (entry.ts_ns, name, entry.line)
                if key not in self._seen:
                    self._seen[key] = None
                    entries.append(entry)
            if entries:
                fresh.append(StreamEntries(stream.labels, entries))
        oldest_ns = self._next_ns - OVERLAP_NS
        self._seen = {key: None for key in self._seen if key[0] >= oldest_ns}
        return fresh


def frames(streams: list[StreamEntries], dropped_ns: int | None, *, categorize: bool) -> Iterator[str]:
    """The text frames of some lines, oldest first, at most :data:`FRAME_ENTRIES_MAX` lines each."""
    rows: list[tuple[int, dict[str, str], Entry]] = [
        (entry.ts_ns, stream.labels, entry) for stream in streams for entry in stream.entries
    ]
    rows.sort(key=lambda row: row[0])
    for at in range(0, max(len(rows), 1 if dropped_ns is not None else 0), FRAME_ENTRIES_MAX):
        found: dict[bytes, StreamEntries] = {}
        for _, labels, entry in rows[at : at + FRAME_ENTRIES_MAX]:
            found.setdefault(orjson.dumps(labels), StreamEntries(labels)).entries.append(entry)
        body: dict[str, object] = {"streams": stream_objects(list(found.values()), categorize=categorize)}
        if dropped_ns is not None and at == 0:
            body["dropped_entries"] = [{"timestamp": str(dropped_ns), "labels": {}}]
        if categorize:
            body["encodingFlags"] = [CATEGORIZE]
        yield dumps(body).decode()


class LokiTail:
    """Serves WebSockets (ASGI).

    Parameters
    ----------
    engine, endpoints, executor : those of the API
    """

    def __init__(self, engine: LogEngine, endpoints: LokiEndpoints, executor: Executor) -> None:
        self._engine = engine
        self._endpoints = endpoints
        self._executor = executor
        self.open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        try:
            request = read_request(scope, self._endpoints.now_ns())
        except QueryError as error:
            await deny(scope, receive, send, 400, str(error))
            return
        await receive()  # websocket.connect
        await send({"type": "websocket.accept"})
        follower = Follower(self._engine, self._endpoints.reader(request.tenant), request)
        gone = asyncio.ensure_future(_disconnected(receive))
        self.open += 1
        try:
            await self._follow(request, follower, send, gone)
        except (OSError, RuntimeError):
            log.debug("a tailing client has gone while it was sent to")
        except (QueryError, MeshpulseError) as error:
            await _close(send, FAILED, str(error))
        except Exception:
            log.exception("tailing failed")
            await _close(send, FAILED, "internal error, see the server's log")
        finally:
            self.open -= 1
            gone.cancel()

    async def _follow(self, request: TailRequest, follower: Follower, send: Send, gone: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        job = functools.partial(follower.backlog, self._endpoints.now_ns())
        streams, dropped_ns = await loop.run_in_executor(self._executor, job), None
        while not gone.done():
            for text in frames(streams, dropped_ns, categorize=request.categorize):
                await send({"type": "websocket.send", "text": text})
            await asyncio.wait((gone,), timeout=POLL_S)
            if not gone.done():
                more = functools.partial(follower.more, self._endpoints.now_ns())
                streams, dropped_ns = await loop.run_in_executor(self._executor, more)


async def deny(scope: Scope, receive: Receive, send: Send, status: int, message: str) -> None:
    """Refuse before the upgrade, in plain text where the server can."""
    await receive()  # websocket.connect
    if "websocket.http.response" in scope.get("extensions", {}):
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": message.encode("utf-8", "replace")})
    else:
        await send({"type": "websocket.close", "code": NORMAL})


async def _close(send: Send, code: int, reason: str) -> None:
    text = reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore")
    with suppress(OSError, RuntimeError):  # the client may have gone
        await send({"type": "websocket.close", "code": code, "reason": text})


async def _disconnected(receive: Receive) -> None:
    """Return when the client hangs up."""
    while (await receive())["type"] != "websocket.disconnect":
        pass
