"""Envoy's REST xDS for endpoints: ``POST /v3/discovery:endpoints``, held until the assignment differs.

Envoy asks with the version it has; we answer when ours is another one, or 304 after a while, which counts neither as
failure nor as success there. Of an assignment that it refuses Envoy's REST client says nothing (1.40): it asks again
with the version it had. On the same connection that cannot be an answer that was lost.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import orjson

from health.adapters.assignments import LOOK_AGAIN_S, Assignments, keep
from health.adapters.eds import TYPE_URL
from health.api import Answer, ApiError, Receive, Request, Scope, Send, failure, read_request, send_answer
from health.runner import HealthRunner

PATH = "/v3/discovery:endpoints"
HOLD_S = 25.0
"""Shorter than Envoy's ``request_timeout``, which must be 30 s or more."""
_AGAIN_S = 1.0
"""Between two equal answers to equal requests of one proxy, over whatever connections: a refusal must not spin."""
_UNSAID = "asked again for what it had been sent; its log says why"

_Key = tuple[str, ...]


class RestEds:
    """Serves assignments to proxies.

    Parameters
    ----------
    runner : whose board is shown
    hold_s : how long a request may be held
    """

    def __init__(self, runner: HealthRunner, hold_s: float = HOLD_S) -> None:
        self._runner = runner
        self._hold_s = hold_s
        self._sent: OrderedDict[_Key, tuple[str, str, float]] = OrderedDict()
        self._sent_there: OrderedDict[tuple[object, _Key], tuple[str, str]] = OrderedDict()
        self._assignments = Assignments(runner, _answer_body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        request = await read_request(scope, receive)
        if request is None or request.method != "POST":
            await send_answer(send, Answer(405 if request else 400, b"", ((b"allow", b"POST"),)))
            return
        try:
            answer = await self._answer(request, scope.get("client"))
        except ApiError as error:
            answer = failure(error.error_type, str(error))
        await send_answer(send, answer)

    async def _answer(self, request: Request, client: object) -> Answer:
        data = request.json()
        names, node = data.get("resource_names"), data.get("node") or {}
        if data.get("type_url", TYPE_URL) != TYPE_URL:
            raise ApiError("bad_data", f"type_url must be {TYPE_URL}")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ApiError("bad_data", "resource_names must be a list of cluster names")
        who = str(node.get("id", "")) if isinstance(node, dict) else ""
        seen = str(data.get("version_info", ""))
        key: _Key = (who, *names)
        sent, asked, at_s = self._sent.get(key, ("", "", 0.0))
        if sent and data.get("error_detail"):
            await self._assignments.note_refusal(who, key[1:], sent, _message(data["error_detail"]))
        elif client is not None and self._sent_there.get((client, key)) == (sent, seen) == (sent, asked):
            await self._assignments.note_refusal(who, key[1:], sent, _UNSAID)
        known = ("", seen, self._assignments.refused(who, key[1:]))

        def newer() -> bool:
            return self._assignments.now(key[1:])[0] not in known

        board = self._runner.health.board
        until = time.monotonic() + self._hold_s
        while not newer() and not board.closed and (left := until - time.monotonic()) > 0:
            await board.wait(newer, min(left, LOOK_AGAIN_S))
        if (self._assignments.now(key[1:])[0], seen) == (sent, asked) and not board.closed:
            await asyncio.sleep(at_s + _AGAIN_S - time.monotonic())
        version, body = self._assignments.now(key[1:])
        if version in known:
            return Answer(304)
        keep(self._sent, key, (version, seen, time.monotonic()))
        keep(self._sent_there, (client, key), (version, seen))
        return Answer(200, body)


def _message(detail: object) -> str:
    return str(detail.get("message", "") if isinstance(detail, dict) else detail)


def _answer_body(version: str, resources: Sequence[dict[str, Any]]) -> bytes:
    return orjson.dumps({"version_info": version, "resources": resources, "type_url": TYPE_URL})
