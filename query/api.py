"""The Prometheus read side over HTTP, as a bare ASGI application (compat.md 1 to 4, 5.4).

Everything a client can send is read by hand (:mod:`query.params`), because clients depend on statuses and on the words
of the errors: Grafana repeats a POST as GET on 400 and 405 only. Queries run in worker threads, so that the event loop
never waits for one; large answers are made and sent piece by piece.
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

from query.asgi import (
    CORS,
    DEFAULT_TENANT,
    FORM_BYTES_MAX,
    GONE,
    QUERY_BUCKETS_S,
    TEXT,
    Answer,
    Headers,
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
from query.endpoints import FEDERATE, LABEL_PREFIX, LABEL_SUFFIX, PREFIX, Body, Endpoints, Plain, Providers, Request
from query.engine.engine import Engine
from query.errors import ErrorType, QueryError
from query.json_out import dumps
from query.params import Params
from query.result import QueryStats
from query.storage import Storage
from tsdb.clock import Clock, SystemClock
from tsdb.errors import RejectedError, UnavailableError

log = logging.getLogger(__name__)

_LABEL_PATH = f"{LABEL_PREFIX}{{name}}{LABEL_SUFFIX}"

_JSON = b"application/json"
_STATUS = {
    ErrorType.BAD_DATA: 400,
    ErrorType.EXECUTION: 422,
    ErrorType.TIMEOUT: 503,
    ErrorType.CANCELED: 499,
    ErrorType.INTERNAL: 500,
    ErrorType.UNAVAILABLE: 500,
}


@dataclass(slots=True)
class ApiStats:
    """Counts since the start, for ``/metrics``; changed on the event loop only.

    Attributes
    ----------
    responses : (path, HTTP status) -> answers; 499 = the client had gone
    query_seconds : queries per bucket of :data:`QUERY_BUCKETS_S`, the last one beyond all bounds
    query_seconds_sum : seconds from reading the request to having the first piece of the answer
    query_samples : samples that queries read from the store
    in_flight : requests being answered
    """

    responses: Counter[tuple[str, int]] = field(default_factory=Counter)
    query_seconds: list[int] = field(default_factory=lambda: [0] * (len(QUERY_BUCKETS_S) + 1))
    query_seconds_sum: float = 0.0
    query_samples: int = 0
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class _Route:
    """``methods`` without OPTIONS, which every path answers; ``inline`` handlers only read what is at hand.

    ``text_errors`` answer errors as plain text, as their clients show them. ``is_light`` says of a request whether it
    is answered faster than it is handed to a thread.
    """

    handler: Callable[[Request], Body | Plain]
    methods: frozenset[str]
    inline: bool = False
    text_errors: bool = False
    is_light: Callable[[Request], bool] | None = None


class QueryApi:
    """All read endpoints below ``/api/v1/``, and ``/federate``.

    Parameters
    ----------
    engine : evaluates queries
    storage_for : tenant -> its store, None when there is none (a read never creates one)
    executor : threads that evaluate; the event loop only does what takes less than handing it over
    providers : everything that is not a query
    clock : what "now" is

    Attributes
    ----------
    paths : path -> methods, as documented in docs/api/query.md
    stats : ApiStats
    """

    def __init__(
        self,
        engine: Engine,
        storage_for: Callable[[str], Storage | None],
        executor: Executor,
        providers: Providers,
        clock: Clock | None = None,
    ) -> None:
        endpoints = Endpoints(engine, storage_for, providers, clock or SystemClock())
        self._executor = executor
        self.stats = ApiStats()
        get, post, both = frozenset({"GET"}), frozenset({"POST"}), frozenset({"GET", "POST"})
        self._label_values_route = _Route(endpoints.label_values, get)
        self._routes = {
            f"{PREFIX}query": _Route(endpoints.query, both, is_light=endpoints.is_light_query),
            f"{PREFIX}query_range": _Route(endpoints.query_range, both),
            f"{PREFIX}query_exemplars": _Route(endpoints.query_exemplars, both),
            f"{PREFIX}read": _Route(endpoints.remote_read, post, text_errors=True),
            FEDERATE: _Route(endpoints.federate, get, text_errors=True),
            f"{PREFIX}format_query": _Route(endpoints.format_query, both),
            f"{PREFIX}parse_query": _Route(endpoints.parse_query, both),
            f"{PREFIX}labels": _Route(endpoints.labels, both),
            f"{PREFIX}series": _Route(endpoints.series, both),
            f"{PREFIX}metadata": _Route(endpoints.metadata, get),
            f"{PREFIX}rules": _Route(endpoints.rules, get, inline=True),
            f"{PREFIX}alerts": _Route(endpoints.alerts, get, inline=True),
            # Grafana asks these of a Loki data source; rules over logs are not evaluated either.
            "/prometheus/api/v1/rules": _Route(endpoints.rules, get, inline=True),
            "/prometheus/api/v1/alerts": _Route(endpoints.alerts, get, inline=True),
            f"{PREFIX}alertmanagers": _Route(endpoints.alertmanagers, get, inline=True),
            f"{PREFIX}targets": _Route(endpoints.targets, get, inline=True),
            f"{PREFIX}scrape_pools": _Route(endpoints.scrape_pools, get, inline=True),
            f"{PREFIX}targets/metadata": _Route(endpoints.targets_metadata, get),
            f"{PREFIX}status/buildinfo": _Route(endpoints.build_info, get, inline=True),
            f"{PREFIX}status/tsdb": _Route(endpoints.status_tsdb, get),
        }
        for name in providers.status:
            page = functools.partial(endpoints.status_page, name)
            self._routes[f"{PREFIX}status/{name}"] = _Route(page, get, inline=True)

    @property
    def paths(self) -> dict[str, frozenset[str]]:
        """Every path with its methods."""
        paths = {path: route.methods for path, route in self._routes.items()}
        return paths | {_LABEL_PATH: self._label_values_route.methods}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))  # Starlette's mounts leave the whole path
        route = self._routes.get(path)
        if route is None:
            if not (path.startswith(LABEL_PREFIX) and path.endswith(LABEL_SUFFIX)):
                await _send_text(send, 404, "404 page not found\n")
                return
            path, route = _LABEL_PATH, self._label_values_route
        method = scope["method"]
        headers = dict(scope["headers"])
        cors = CORS if b"origin" in headers else []
        if method == "OPTIONS":
            await send_no_content(send, cors)
            return
        if method not in route.methods and not (method == "HEAD" and route.inline):
            allow = ", ".join(sorted({*route.methods, "OPTIONS"}))
            await _send_text(send, 405, "Method Not Allowed\n", [(b"allow", allow.encode()), *cors])
            return
        self.stats.in_flight += 1
        try:
            answer = await self._answer(scope, headers, route, receive)
            self._count(path, answer)
            if answer.status != 499:
                await send_answer(self._executor, answer, receive, send, cors, with_body=method != "HEAD")
        finally:
            self.stats.in_flight -= 1

    async def _answer(self, scope: Scope, headers: Mapping[bytes, bytes], route: _Route, receive: Receive) -> Answer:
        """Read the request and compute its answer; status 499 when the client has gone."""
        begin = time.perf_counter()
        body = b""
        if scope["method"] == "POST":
            form = await read_form(receive)
            if form is None:
                return GONE
            if len(form) > FORM_BYTES_MAX:
                return _error(route, ErrorType.BAD_DATA, "http: POST too large")
            body = form
        stats: list[QueryStats] = []
        request = Request(
            (scope.get("raw_path") or scope["path"].encode()).removeprefix(scope.get("root_path", "").encode()),
            Params.read(scope["query_string"], headers.get(b"content-type", b"").decode("latin-1"), body),
            headers.get(b"x-scope-orgid", b"").decode("latin-1") or DEFAULT_TENANT,
            stats.append,
            body,
            headers.get(b"accept", b""),
        )
        inline = route.inline
        if route.is_light is not None and route.is_light(request):
            inline = request.is_light = True
        job = functools.partial(_compute, route, request, chosen_encoding(headers.get(b"accept-encoding", b"")))
        answer = job() if inline else await run(self._executor, job, receive)
        if stats:
            seconds = time.perf_counter() - begin
            self.stats.query_seconds[bisect_left(QUERY_BUCKETS_S, seconds)] += 1
            self.stats.query_seconds_sum += seconds
            self.stats.query_samples += stats[0].samples
        return answer

    def _count(self, path: str, answer: Answer) -> None:
        self.stats.responses[path, answer.status] += 1


def _error(route: _Route, error_type: ErrorType, message: str) -> Answer:
    if route.text_errors:
        return Answer(_STATUS[error_type], f"{message}\n".encode("utf-8", "replace"), TEXT)
    body = dumps({"status": "error", "errorType": error_type, "error": message})
    return Answer(_STATUS[error_type], body, _JSON)


def _compute(route: _Route, request: Request, encoding: bytes) -> Answer:
    """Call a handler, make the first piece of its answer and compress it; every error becomes an answer."""
    content_type = _JSON
    try:
        body = route.handler(request)
        if isinstance(body, Plain):
            if body.encoding:
                return Answer(200, body.body, body.content_type, None, body.encoding)
            content_type, body = body.content_type, body.body
        return in_pieces(iter((body,)) if isinstance(body, bytes) else body, content_type, encoding)
    except QueryError as error:
        return _error(route, error.error_type, str(error))
    except RejectedError as error:
        return _error(route, ErrorType.BAD_DATA, str(error))
    except UnavailableError as error:
        return _error(route, ErrorType.UNAVAILABLE, str(error))
    except Exception:
        log.exception("%s failed", request.raw_path.decode("latin-1"))
        return _error(route, ErrorType.INTERNAL, "internal error, see the server's log")


async def _send_text(send: Send, status: int, text: str, headers: Headers | None = None) -> None:
    body = text.encode()
    fields = [(b"content-type", TEXT), (b"content-length", str(len(body)).encode()), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
