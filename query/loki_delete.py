"""Loki's delete requests without HTTP: make one, list them, take one back."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from query.endpoints import Body
from query.errors import BadDataError
from query.json_out import dumps
from query.logql.ast import FilterOp, LineFilter, LogQuery
from query.logql.engine.engine import parsed
from query.loki_endpoints import PREFIX, LokiRequest
from query.loki_params import time_ns
from tsdb.clock import Clock
from tsdb.logs.deletions import Deletion, LineTest

DELETE_PATH = f"{PREFIX}delete"
METHODS = frozenset(("GET", "POST", "PUT", "DELETE"))
WAIT_S = 30.0
"""How long a request waits for the log; a sync takes milliseconds."""

_LITERALS = (FilterOp.CONTAINS, FilterOp.NOT_CONTAINS)
_REGEXES = (FilterOp.MATCHES, FilterOp.NOT_MATCHES)


class NoSuchRequestError(Exception):
    """A request that is not known (any more)."""


class LogDeleter(Protocol):
    """What this needs of a tenant's log store (:class:`tsdb.logs.store.LogStore`)."""

    def deletions(self) -> tuple[Deletion, ...]: ...

    def delete(self, deletion: Deletion) -> Future[None]: ...

    def cancel(self, request_id: str, now_ms: int) -> Future[None]: ...


class LokiDelete:
    """What ``delete`` answers. Every method may raise :class:`query.errors.QueryError` and the store's errors.

    Parameters
    ----------
    deleter_for : tenant -> its logs, None when there are none
    """

    def __init__(self, deleter_for: Callable[[str], LogDeleter | None], clock: Clock) -> None:
        self._deleter_for = deleter_for
        self._clock = clock

    def handler(self, method: str) -> Callable[[LokiRequest], Body]:
        """What answers a request of one of :data:`METHODS`."""
        return {"GET": self.list, "DELETE": self.cancel}.get(method, self.make)

    def make(self, request: LokiRequest) -> Body:
        """A new request; in force when this returns."""
        now_ms = self._clock.now_ms()
        params = request.params
        text = params.get("query")
        query = parsed(text)
        if not isinstance(query, LogQuery):
            raise BadDataError("only log queries can be deleted by")
        if not params.get("start"):
            raise BadDataError("start time not set")
        start_ns = time_ns(params, "start", 0)
        end_ns = time_ns(params, "end", now_ms * 1_000_000)
        if end_ns > (now_ms + 1) * 1_000_000:
            raise BadDataError("deletes in the future are not allowed")
        if start_ns > end_ns:
            raise BadDataError("start time can't be greater than end time")
        deleter = self._deleter_for(request.tenant)
        if deleter is None:
            raise BadDataError("the tenant has no logs")
        known = {deletion.request_id for deletion in deleter.deletions()}
        request_id = next(name for name in iter(lambda: secrets.token_hex(4), "") if name not in known)
        tests = line_tests(query)
        deletion = Deletion(request_id, text, query.matchers, tests, start_ns, end_ns, now_ms)
        deleter.delete(deletion).result(WAIT_S)
        return b""

    def list(self, request: LokiRequest) -> Body:
        """All requests that are kept, as they came."""
        deleter = self._deleter_for(request.tenant)
        return dumps(
            [
                {
                    "request_id": deletion.request_id,
                    "start_time": deletion.start_ns / 1e9,
                    "end_time": deletion.end_ns / 1e9,
                    "query": deletion.query,
                    "status": "processed" if deletion.processed else "received",
                    "created_at": deletion.created_ms / 1e3,
                }
                for deletion in (deleter.deletions() if deleter else ())
            ]
        )

    def cancel(self, request: LokiRequest) -> Body:
        """Take a request back."""
        request_id = request.params.get("request_id")
        if not request_id:
            raise BadDataError("request_id not set")
        deleter = self._deleter_for(request.tenant)
        found = [known for known in (deleter.deletions() if deleter else ()) if known.request_id == request_id]
        if deleter is None or not found:
            raise NoSuchRequestError("could not find delete request with given id")
        if found[0].processed:
            raise BadDataError("deletion of request which is in process or already processed is not allowed")
        deleter.cancel(request_id, self._clock.now_ms()).result(WAIT_S)
        return b""


def line_tests(query: LogQuery) -> tuple[LineTest, ...]:
    """The line filters of a query.

    Raises
    ------
    BadDataError        another stage: what it keeps cannot be told of a stored line
    """
    tests = []
    for stage in query.stages:
        if not isinstance(stage, LineFilter):
            raise BadDataError(f"unsupported: {type(stage).__name__} in a delete request; only line filters are")
        if stage.op not in (*_LITERALS, *_REGEXES) or any(term.ip for term in stage.terms):
            raise BadDataError("unsupported: patterns and ip() in a delete request; only |=, !=, |~ and !~ are")
        texts = tuple(term.value for term in stage.terms)
        tests.append(LineTest(texts, stage.op in _REGEXES, stage.op.negated))
    return tuple(tests)
