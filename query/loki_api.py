"""Loki's read side over HTTP, as a bare ASGI application (compat.md 1, 2, 6, 7).

Like :mod:`query.api`, with Loki's manners: errors are plain text, every path takes GET and POST.
"""

from __future__ import annotations

import functools
import logging
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from query.asgi import (
    CORS,
    DEFAULT_TENANT,
    FORM_BYTES_MAX,
    GONE,
    QUERY_BUCKETS_S,
    TEXT,
    Answer,
    Receive,
    Scope,
    Send,
    chosen_encoding,
    in_pieces,
    read_form,
    run,
    send_answer,
    send_no_content,
)
from query.endpoints import Body
from query.errors import ErrorType, QueryError, QueryTimeoutError
from query.json_out import dumps
from query.logql.engine.engine import LogEngine, LogStats
from query.loki_delete import DELETE_PATH, LogDeleter, LokiDelete, NoSuchRequestError
from query.loki_delete import METHODS as DELETE_METHODS
from query.loki_endpoints import (
    FIELD_PREFIX,
    LABEL_PREFIX,
    PREFIX,
    VALUES_SUFFIX,
    InvalidQueryError,
    LokiEndpoints,
    LokiRequest,
)
from query.loki_json import CATEGORIZE
from query.loki_tail import LokiTail, deny
from query.params import Params
from tsdb.clock import Clock, SystemClock
from tsdb.errors import RejectedError, UnavailableError
from tsdb.logs.frame import LogReader

log = logging.getLogger(__name__)

_JSON = b"application/json; charset=UTF-8"
_FLAGS = b"x-loki-response-encoding-flags"
_METHODS = frozenset(("GET", "POST"))
_STATUS = {
    ErrorType.BAD_DATA: 400,
    ErrorType.EXECUTION: 400,
    ErrorType.TIMEOUT: 504,
    ErrorType.CANCELED: 499,
    ErrorType.INTERNAL: 500,
    ErrorType.UNAVAILABLE: 503,
}
TIMED_OUT = (
    "request timed out, decrease the duration of the request or add more label matchers (prefer exact match over "
    "regex match) to reduce the amount of data processed"
)

Handler = Callable[[LokiRequest], Body]


@dataclass(slots=True)
class LokiApiStats:
    """Counts since the start, for ``/metrics``; changed on the event loop only.

    Attributes
    ----------
    responses : (path, HTTP status) -> answers; 499 = the client had gone
    query_seconds : queries per bucket of :data:`query.asgi.QUERY_BUCKETS_S`, the last one beyond all bounds
    query_seconds_sum : seconds of all queries
    query_lines : lines that queries looked at
    """

    responses: Counter[tuple[str, int]] = field(default_factory=Counter)
    query_seconds: list[int] = field(default_factory=lambda: [0] * (len(QUERY_BUCKETS_S) + 1))
    query_seconds_sum: float = 0.0
    query_lines: int = 0


class LokiApi:
    """All read endpoints below ``/loki/api/v1/``.

    Parameters
    ----------
    engine : evaluates queries
    reader_for : tenant -> its logs, None when there are none (a read never creates a tenant)
    executor : threads that evaluate; the event loop never does
    build_info : of ``status/buildinfo``
    limits : of ``drilldown-limits``, over the defaults
    clock : what "now" is
    deleter_for : tenant -> what deletes its logs, None when there are none

    Attributes
    ----------
    paths : every path that is read; :data:`DELETE_PATH` is served too
    stats : LokiApiStats
    """

    def __init__(
        self,
        engine: LogEngine,
        reader_for: Callable[[str], LogReader | None],
        executor: Executor,
        build_info: Mapping[str, str],
        limits: Mapping[str, Any] | None = None,
        clock: Clock | None = None,
        deleter_for: Callable[[str], LogDeleter | None] = lambda _: None,
    ) -> None:
        clock = clock or SystemClock()
        endpoints = LokiEndpoints(engine, reader_for, build_info, limits or {}, clock)
        self._delete = LokiDelete(deleter_for, clock)
        self._executor = executor
        self._tail = LokiTail(engine, endpoints, executor)
        self.stats = LokiApiStats()
        self._named: dict[str, Handler] = {
            LABEL_PREFIX: endpoints.label_values,
            FIELD_PREFIX: endpoints.detected_field_values,
        }
        self._routes: dict[str, Handler] = {
            f"{PREFIX}query": endpoints.query,
            f"{PREFIX}query_range": endpoints.query_range,
            f"{PREFIX}labels": endpoints.labels,
            f"{PREFIX}label": endpoints.labels,
            f"{PREFIX}series": endpoints.series,
            f"{PREFIX}index/stats": endpoints.stats,
            f"{PREFIX}index/volume": endpoints.volume,
            f"{PREFIX}index/volume_range": endpoints.volume_range,
            f"{PREFIX}detected_labels": endpoints.detected_labels,
            f"{PREFIX}detected_fields": endpoints.detected_fields,
            f"{PREFIX}patterns": endpoints.patterns,
            f"{PREFIX}format_query": endpoints.format_query,
            f"{PREFIX}drilldown-limits": endpoints.drilldown_limits,
            f"{PREFIX}status/buildinfo": endpoints.build_info,
        }

    @property
    def paths(self) -> list[str]:
        """Every path that is read."""
        return [*self._routes, *(f"{prefix}{{name}}{VALUES_SUFFIX}" for prefix in self._named)]

    def _find(self, path: str) -> tuple[str, Handler | None]:
        """The name of a path in the statistics, and what answers it."""
        handler = self._routes.get(path)
        if handler is not None:
            return path, handler
        for prefix, named in self._named.items():
            if path.startswith(prefix) and path.endswith(VALUES_SUFFIX):
                return f"{prefix}{{name}}{VALUES_SUFFIX}", named
        return path, None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or one WebSocket of ``tail`` (ASGI)."""
        headers = dict(scope["headers"])
        cors = CORS if b"origin" in headers else []
        path, handler = self._find(scope["path"].removeprefix(scope.get("root_path", "")))
        if scope["type"] == "websocket":
            if path == f"{PREFIX}tail":
                await self._tail(scope, receive, send)
            else:
                await deny(scope, receive, send, 404, "404 page not found\n")
            return
        if path == f"{PREFIX}tail":
            await send_answer(self._executor, _text(400, "tail takes a WebSocket"), receive, send, cors)
            return
        method = scope["method"]
        if path == DELETE_PATH:
            await self._serve_delete(scope, headers, receive, send, cors)
        elif handler is None:
            await send_answer(self._executor, _text(404, "404 page not found\n"), receive, send, cors)
        elif method == "OPTIONS":
            await send_no_content(send, cors)
        elif method not in _METHODS:
            allow = [(b"allow", b"GET, OPTIONS, POST")]
            await send_answer(self._executor, _text(405, "Method Not Allowed\n"), receive, send, [*cors, *allow])
        else:
            answer = await self._answer(scope, headers, handler, receive)
            self.stats.responses[path, answer.status] += 1
            if answer.status != 499:
                await send_answer(self._executor, answer, receive, send, cors)

    async def _serve_delete(
        self,
        scope: Scope,
        headers: Mapping[bytes, bytes],
        receive: Receive,
        send: Send,
        cors: list[tuple[bytes, bytes]],
    ) -> None:
        """``delete``: the one path that changes something, with verbs of its own."""
        method = scope["method"]
        if method == "OPTIONS":
            await send_no_content(send, cors)
            return
        if method not in DELETE_METHODS:
            allow = [(b"allow", b"DELETE, GET, OPTIONS, POST, PUT")]
            await send_answer(self._executor, _text(405, "Method Not Allowed\n"), receive, send, [*cors, *allow])
            return
        answer = await self._answer(scope, headers, self._delete.handler(method), receive)
        done = answer.status == 200 and method != "GET"
        self.stats.responses[DELETE_PATH, 204 if done else answer.status] += 1
        if done:
            await send_no_content(send, cors)
        elif answer.status != 499:
            await send_answer(self._executor, answer, receive, send, cors)

    async def _answer(self, scope: Scope, headers: Mapping[bytes, bytes], handler: Handler, receive: Receive) -> Answer:
        """Read the request and compute its answer; status 499 when the client has gone."""
        begin = time.perf_counter()
        body = b""
        if scope["method"] in ("POST", "PUT"):
            form = await read_form(receive)
            if form is None:
                return GONE
            if len(form) > FORM_BYTES_MAX:
                return _text(400, "http: POST too large")
            body = form
        stats: list[LogStats] = []
        flags = headers.get(_FLAGS, b"").decode("latin-1").split(",")
        request = LokiRequest(
            (scope.get("raw_path") or scope["path"].encode()).removeprefix(scope.get("root_path", "").encode()),
            Params.read(scope["query_string"], headers.get(b"content-type", b"").decode("latin-1"), body),
            headers.get(b"x-scope-orgid", b"").decode("latin-1") or DEFAULT_TENANT,
            CATEGORIZE in [flag.strip() for flag in flags],
            stats.append,
        )
        encoding = chosen_encoding(headers.get(b"accept-encoding", b""))
        answer = await run(self._executor, functools.partial(_compute, handler, request, encoding), receive)
        if stats:
            seconds = time.perf_counter() - begin
            self.stats.query_seconds[bisect_left(QUERY_BUCKETS_S, seconds)] += 1
            self.stats.query_seconds_sum += seconds
            self.stats.query_lines += stats[0].lines
        return answer


def _text(status: int, message: str) -> Answer:
    return Answer(status, message.encode("utf-8", "replace"), TEXT)


def _compute(handler: Handler, request: LokiRequest, encoding: bytes) -> Answer:
    """Call a handler, make the first piece of its answer and compress it; every error becomes an answer."""
    try:
        body = handler(request)
        return in_pieces(iter((body,)) if isinstance(body, bytes) else body, _JSON, encoding)
    except InvalidQueryError as error:
        return Answer(400, dumps({"status": "invalid-query", "error": str(error)}), _JSON)
    except NoSuchRequestError as error:
        return _text(404, str(error))
    except QueryTimeoutError:
        return _text(504, TIMED_OUT)
    except QueryError as error:
        return _text(_STATUS[error.error_type], str(error))
    except RejectedError as error:
        return _text(400, str(error))
    except UnavailableError as error:
        return _text(503, str(error))
    except Exception:
        log.exception("%s failed", request.raw_path.decode("latin-1"))
        return _text(500, "internal error, see the server's log")
