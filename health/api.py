"""The health API over HTTP, as one bare ASGI application below ``/api/v1/health`` (design page 9)."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, unquote

import orjson

from health.answers import lease_of, observers_data, service_data, snapshot_data, zones_data
from health.board import Revision, ServiceView, Snapshot
from health.events import KEPT, Event, time_text
from health.evidence import reason_text
from health.explain import conviction, explanation
from health.loop import NotFoundError
from health.policy_text import PolicyError, parse_duration_ms, parse_policy, policy_data
from health.runner import HealthRunner
from health.verdicts import Action, Override
from tsdb.db import DEFAULT_TENANT

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]

PREFIX = "/api/v1/health"
WAIT_MS_MAX = 60_000
BODY_BYTES_MAX = 1 << 20
_TTL_MS_MAX = 30 * 86_400_000
_TEXT_CHARS_MAX = 1_000
_STREAM_BEAT_S = 15.0
_TOLD, _EXPLAINED = 1_000, 20
"""Events of an endpoint that are searched for its conviction, and those that an explanation shows."""
_JSON = b"application/json"
_STATUS = {"bad_data": 400, "not_found": 404, "precondition_failed": 412, "execution": 422, "unavailable": 503}


class ApiError(Exception):
    """An answer in Prometheus' error envelope."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


@dataclass(frozen=True, slots=True)
class Request:
    """A request as handlers see it; header names are lower case."""

    method: str
    path: str
    params: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""

    def param(self, name: str, default: str = "") -> str:
        """One parameter of the query."""
        return self.params.get(name, default)

    @property
    def service(self) -> str:
        """The service asked for; ``cluster`` is another word for it."""
        return self.param("service") or self.param("cluster")

    def needed(self, name: str) -> str:
        """A parameter that must be there."""
        value = self.service if name == "service" else self.param(name)
        if not value:
            raise ApiError("bad_data", f"parameter {name} is needed")
        return value

    def json(self) -> dict[str, Any]:
        """The body, which must be a JSON object."""
        try:
            data = orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise ApiError("bad_data", f"the body is no JSON: {error}") from None
        if not isinstance(data, dict):
            raise ApiError("bad_data", "the body must be a JSON object")
        return data


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response; without a body for 204 and 304."""

    status: int
    body: bytes = b""
    headers: Headers = field(default=())
    content_type: bytes = _JSON


def success(data: Any, status: int = 200, headers: Headers = (), warnings: list[str] | None = None) -> Answer:
    """Data in Prometheus' envelope."""
    body = orjson.dumps({"status": "success", "data": data, "warnings": warnings or []}, option=_OPTIONS)
    return Answer(status, body, headers)


_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def failure(error_type: str, message: str) -> Answer:
    """An error in Prometheus' envelope."""
    return Answer(_STATUS[error_type], orjson.dumps({"status": "error", "errorType": error_type, "error": message}))


Handler = Callable[[Request, re.Match[str]], Awaitable[Answer]]


class HealthApi:
    """Serves the board; everything but the snapshot asks the loop's thread.

    Parameters
    ----------
    runner : the running loop
    tenant : whose endpoints are judged; nobody else is told of them

    Attributes
    ----------
    explain_past : answers explanations of another time than now
    """

    def __init__(self, runner: HealthRunner, tenant: str = DEFAULT_TENANT) -> None:
        self._tenant = tenant
        self._runner = runner
        self._board = runner.health.board
        self.explain_past: Handler | None = None
        self._cached: tuple[Snapshot | None, dict[tuple[str, ...], bytes]] = (None, {})
        table: tuple[tuple[str, str, Handler], ...] = (
            ("GET", "endpoints", self._endpoints),
            ("GET", "services", self._services),
            ("GET", "zones", self._zones),
            ("GET", "observers", self._observers),
            ("GET", "explain", self._explain),
            ("GET", "events", self._events),
            ("GET", "policies", self._policies),
            ("GET", r"policies/(?P<name>[^/:]+)", self._policy),
            ("PUT", r"policies/(?P<name>[^/:]+)", self._put_policy),
            ("DELETE", r"policies/(?P<name>[^/:]+)", self._delete_policy),
            ("POST", r"policies/(?P<name>[^/:]+):validate", self._validate_policy),
            ("GET", "overrides", self._overrides),
            ("POST", "overrides", self._put_override),
            ("DELETE", r"overrides/(?P<id>[^/]+)", self._delete_override),
        )
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = [
            (method, re.compile(f"{PREFIX}/{path}"), handler) for method, path, handler in table
        ]

    def add_route(self, method: str, path: str, handler: Handler) -> None:
        """Serve another path below the prefix; ``path`` is a regular expression."""
        self._routes.append((method, re.compile(f"{PREFIX}/{path}"), handler))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        request = await read_request(scope, receive)
        if request is None:
            await send_answer(send, failure("bad_data", f"the body is larger than {BODY_BYTES_MAX} bytes"))
            return
        if (request.headers.get("x-scope-orgid") or DEFAULT_TENANT) != self._tenant:
            await send_answer(send, failure("not_found", f"only endpoints of tenant {self._tenant} are judged"))
            return
        if request.path == f"{PREFIX}/events/stream" and request.method == "GET":
            await self._stream(request, receive, send)
            return
        answer = await self._answer(request)
        if request.method == "HEAD":
            answer = Answer(answer.status, b"", answer.headers, answer.content_type)
        await send_answer(send, answer)

    async def _answer(self, request: Request) -> Answer:
        method = "GET" if request.method == "HEAD" else request.method
        allowed = set()
        for verb, pattern, handler in self._routes:
            found = pattern.fullmatch(request.path)
            if found and verb == method:
                try:
                    return await handler(request, found)
                except ApiError as error:
                    return failure(error.error_type, str(error))
                except NotFoundError as error:
                    return failure("not_found", str(error))
                except OSError as error:
                    log.exception("the health state could not be written")
                    return failure("unavailable", str(error))
            elif found:
                allowed.add(verb)
        if allowed:
            allow = ", ".join(sorted(allowed)).encode()
            return Answer(
                405, failure("bad_data", f"method {request.method} is not for this").body, ((b"allow", allow),)
            )
        return failure("not_found", f"no such path: {request.path}")

    # -- what is published -----------------------------------------------------------------------------------------

    async def _endpoints(self, request: Request, _: re.Match[str]) -> Answer:
        seen, wait_ms, applied = waiting(request)
        service = request.service
        if seen is not None and wait_ms:
            held_s = wait_ms / 1000 * random.uniform(0.8, 1.0)  # noqa: S311  # so that they do not all come back at once
            await self._board.wait(lambda: self._board.now.changed_since(seen, service), held_s)
        snapshot = self._board.now
        services = self._wanted(snapshot, request)
        valid_until, data_as_of = lease_of(snapshot, services)
        headers = (
            (b"etag", f'"{snapshot.revision}"'.encode()),
            (b"mesh-health-valid-until", time_text(valid_until).encode()),
            (b"mesh-health-data-as-of", time_text(data_as_of).encode()),
            (b"cache-control", b"no-cache"),
            *applied,
        )
        if seen is not None and not snapshot.changed_since(seen, service):
            return Answer(304, b"", headers)
        key = (service, *(request.param(name) for name in ("zone", "state", "mode", "summary")))
        if self._cached[0] is not snapshot:
            self._cached = (snapshot, {})
        body = self._cached[1].get(key)
        if body is None:
            data = snapshot_data(
                snapshot,
                services,
                zone=request.param("zone"),
                state=request.param("state"),
                summary=request.param("summary") == "true",
            )
            body = self._cached[1][key] = success(data).body
        return Answer(200, body, headers)

    @staticmethod
    def _wanted(snapshot: Snapshot, request: Request) -> list[ServiceView]:
        mode = request.param("mode")
        if mode not in ("", "enforce", "dry_run"):
            raise ApiError("bad_data", "mode must be enforce or dry_run")
        return [
            view
            for name, view in sorted(snapshot.services.items())
            if (not request.service or name == request.service) and (not mode or view.mode == mode)
        ]

    async def _services(self, request: Request, _: re.Match[str]) -> Answer:
        snapshot = self._board.now
        rows = [service_data(view) for view in self._wanted(snapshot, request)]
        return success({"revision": str(snapshot.revision), "services": rows})

    async def _zones(self, request: Request, _: re.Match[str]) -> Answer:
        def rows() -> list[dict[str, Any]]:
            names = [request.service] if request.service else sorted(self._runner.health.evaluations)
            return [row for name in names for row in zones_data(self._runner.health.evaluation(name)[0])]

        return success({"zones": await self._runner.call(rows)})

    async def _observers(self, request: Request, _: re.Match[str]) -> Answer:
        def rows() -> dict[str, Any]:
            health, now_ms = self._runner.health, self._runner.clock.now_ms()
            names = [request.service] if request.service else sorted(health.evaluations)
            parts = [observers_data(health.evaluation(name)[0], now_ms) for name in names]
            state = request.param("state")
            return {
                "observers": [row for part in parts for row in part["observers"] if not state or row["state"] == state],
                "known": sum(part["known"] for part in parts),
                "reporting": sum(part["reporting"] for part in parts),
                "split": any(part["split"] for part in parts),
            }

        return success(await self._runner.call(rows))

    async def _explain(self, request: Request, found: re.Match[str]) -> Answer:
        service, endpoint = request.needed("service"), request.needed("endpoint")
        if request.param("time"):
            if self.explain_past is None:
                raise ApiError("unavailable", "there is no history to explain")
            return await self.explain_past(request, found)

        def explain() -> dict[str, Any]:
            health = self._runner.health
            evaluation, column = health.evaluation(service, endpoint)
            return explanation(evaluation, column, health.mapping_of(service))

        data = await self._runner.call(explain)
        view = self._board.now.services.get(service)
        shown = view.endpoint(endpoint) if view else None
        events = [e.data for e in self._runner.health.events.find(service=service, endpoint=endpoint, limit=_TOLD)]
        data["reason"] = reason_text(shown.evidence) if shown else ""
        data["conviction"] = conviction(events) if shown and shown.state not in ("healthy", "unknown") else None
        data["events"] = events[-_EXPLAINED:]
        return success(data)

    # -- events ----------------------------------------------------------------------------------------------------

    async def _events(self, request: Request, _: re.Match[str]) -> Answer:
        try:
            limit = int(request.param("limit", "1000"))
        except ValueError:
            raise ApiError("bad_data", "limit must be a number") from None
        found = self._runner.health.events.find(
            start_ms=time_ms(request.param("start"), "start"),
            end_ms=time_ms(request.param("end"), "end"),
            limit=max(0, limit),
            service=request.service,
            endpoint=request.param("endpoint"),
            type=request.param("type"),
        )
        rows = [event.data for event in found]
        if "ndjson" in request.headers.get("accept", "") or request.param("format") == "ndjson":
            body = b"".join(orjson.dumps(row) + b"\n" for row in rows)
            return Answer(200, body, (), b"application/x-ndjson")
        return success({"events": rows})

    async def _stream(self, request: Request, receive: Receive, send: Send) -> None:
        """Server-sent events, for user interfaces: proxies buffer them, and nothing acknowledges them."""
        events = self._runner.health.events
        after = events.count
        last = request.headers.get("last-event-id", "").rpartition("-")[2]
        if last.isdigit():
            after = int(last)
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            while not gone.done() and not self._board.closed:
                count = events.count
                found = [e for e in events.find(after=after, service=request.service, limit=KEPT) if e.number <= count]
                after = count
                body = "".join(_event_text(event) for event in found) or ": still here\n\n"
                await send({"type": "http.response.body", "body": body.encode(), "more_body": True})
                told = asyncio.ensure_future(self._board.wait(partial(events.more_than, count), _STREAM_BEAT_S))
                await asyncio.wait({told, gone}, return_when=asyncio.FIRST_COMPLETED)
                told.cancel()
            if not gone.done():
                await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()

    # -- policies and orders ---------------------------------------------------------------------------------------

    async def _policies(self, _request: Request, _: re.Match[str]) -> Answer:
        policies = await self._runner.call(lambda: self._runner.health.policies)
        return success({"policies": [policy_data(p) for _, p in sorted(policies.items())]})

    async def _policy(self, _request: Request, found: re.Match[str]) -> Answer:
        name = unquote(found["name"])
        policies = await self._runner.call(lambda: self._runner.health.policies)
        if name not in policies:
            raise NotFoundError(f"no policy {name}")
        data = policy_data(policies[name])
        return success(data, headers=((b"etag", _etag(data)),))

    async def _put_policy(self, request: Request, found: re.Match[str]) -> Answer:
        name = unquote(found["name"])
        try:
            policy = parse_policy(request.json(), name)
        except PolicyError as error:
            raise ApiError("bad_data", str(error)) from None
        expected = request.headers.get("if-match")

        def put() -> bool:
            health = self._runner.health
            old = health.policies.get(name)
            if expected not in (None, "*", _etag(policy_data(old)).decode() if old else ""):
                raise ApiError("precondition_failed", f"policy {name} was changed meanwhile")
            return health.put_policy(policy, _author(request))

        new = await self._runner.call(put)
        data = policy_data(policy)
        return success(data, 201 if new else 200, ((b"etag", _etag(data)),))

    async def _delete_policy(self, request: Request, found: re.Match[str]) -> Answer:
        await self._runner.call(self._runner.health.delete_policy, unquote(found["name"]), _author(request))
        return Answer(204)

    async def _validate_policy(self, request: Request, found: re.Match[str]) -> Answer:
        try:
            parse_policy(request.json(), unquote(found["name"]))
        except PolicyError as error:
            return success({"valid": False, "problems": error.problems})
        return success({"valid": True, "problems": []})

    async def _overrides(self, request: Request, _: re.Match[str]) -> Answer:
        health = self._runner.health
        rows = await self._runner.call(lambda: [health.override_data(o) for o in health.overrides.values()])
        return success({"overrides": [row for row in rows if not request.service or row["service"] == request.service]})

    async def _put_override(self, request: Request, _: re.Match[str]) -> Answer:
        data = request.json()
        unknown = data.keys() - {"service", "endpoint", "action", "ttl", "author", "comment"}
        if unknown:
            raise ApiError("bad_data", f"unknown key {min(unknown)}")
        texts = {key: data.get(key) for key in ("service", "endpoint", "action", "author", "comment")}
        for key, value in texts.items():
            if not isinstance(value, str) or not value.strip() or len(value) > _TEXT_CHARS_MAX:
                raise ApiError("bad_data", f"{key} is needed, as text of at most {_TEXT_CHARS_MAX} characters")
        if texts["action"] not in list(Action):
            raise ApiError("bad_data", f"action must be one of {', '.join(Action)}")
        try:
            ttl_ms = parse_duration_ms(data.get("ttl"))
        except ValueError as error:
            raise ApiError("bad_data", f"ttl is needed: {error}") from None
        if not 0 < ttl_ms <= _TTL_MS_MAX:
            raise ApiError("bad_data", "ttl must lie above 0 and be at most 30d")
        health = self._runner.health
        order = Override(
            Action(str(texts["action"])),
            self._runner.clock.now_ms() + ttl_ms,
            str(texts["author"]),
            str(texts["comment"]),
        )
        stored = await self._runner.call(health.put_override, str(texts["service"]), str(texts["endpoint"]), order)
        return success(health.override_data(stored), 201)

    async def _delete_override(self, request: Request, found: re.Match[str]) -> Answer:
        await self._runner.call(self._runner.health.delete_override, found["id"], _author(request))
        return Answer(204)


def waiting(request: Request) -> tuple[Revision | None, int, Headers]:
    """The revision a reader has seen, how long it wants to wait for another, and the header that says so.

    Raises
    ------
    ApiError        a revision or a wait that cannot be read
    """
    seen_text = request.headers.get("if-none-match") or request.param("revision")
    seen = None
    if seen_text and seen_text.strip() != "*":
        try:
            seen = Revision.parse(seen_text)
        except ValueError as error:
            raise ApiError("bad_data", str(error)) from None
    prefer = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?([^\s,;\"]*)", request.headers.get("prefer", ""))
    text = prefer[1] if prefer else request.param("wait")
    if not text:
        return seen, 0, ()
    try:
        wait_ms = parse_duration_ms(int(text) if text.isdigit() else text)
    except ValueError as error:
        raise ApiError("bad_data", f"wait: {error}") from None
    if wait_ms <= 0:
        raise ApiError("bad_data", "wait must be positive")
    wait_ms = min(wait_ms, WAIT_MS_MAX)
    applied: Headers = ((b"preference-applied", f"wait={wait_ms // 1000}".encode()),) if prefer else ()
    return seen, wait_ms, applied


def time_ms(text: str, name: str) -> int | None:
    """A time as RFC 3339 or unix seconds; None when there is none.

    Raises
    ------
    ApiError
    """
    if not text:
        return None
    try:
        return round(float(text) * 1000)
    except (ValueError, OverflowError):
        pass
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise ApiError("bad_data", f"{name} must be RFC 3339 or unix seconds")
    return round(when.timestamp() * 1000)


def _author(request: Request) -> str:
    return request.headers.get("x-author", "api")[:_TEXT_CHARS_MAX]


def _etag(data: Mapping[str, Any]) -> bytes:
    text = orjson.dumps(data, option=orjson.OPT_SORT_KEYS)
    return f'"{hashlib.sha256(text).hexdigest()[:16]}"'.encode()


async def read_request(scope: Scope, receive: Receive) -> Request | None:
    """The whole request; None when its body is too large."""
    headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
    params = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    body = b""
    if scope["method"] not in ("GET", "HEAD"):
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message["type"] == "http.request" and bool(message.get("more_body"))
            if len(body) > BODY_BYTES_MAX:
                return None
    return Request(scope["method"], scope["path"], params, headers, body)


async def send_answer(send: Send, answer: Answer) -> None:
    """Send a complete response."""
    headers = list(answer.headers)
    if answer.status not in (204, 304):
        headers += [(b"content-type", answer.content_type), (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _event_text(event: Event) -> str:
    return f"id: {event.data['id']}\nevent: {event.data['type']}\ndata: {orjson.dumps(event.data).decode()}\n\n"


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
