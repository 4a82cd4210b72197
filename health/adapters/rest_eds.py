"""Envoy's REST xDS for endpoints: ``POST /v3/discovery:endpoints``, held until the assignment differs.

Envoy asks with the version it has; we answer when ours is another one, or 304 after a while, which counts neither as
failure nor as success there. The version is a digest of the content, so whatever changes it wakes the waiting proxies:
a verdict, the topology, the end of a lease.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from typing import TypeVar

import orjson

from health.adapters.eds import TYPE_URL, assignment, enforced, service_name
from health.api import Answer, ApiError, Receive, Request, Scope, Send, failure, read_request, send_answer
from health.board import Revision
from health.runner import HealthRunner
from health.topology import Facts

PATH = "/v3/discovery:endpoints"
HOLD_S = 25.0
"""Shorter than Envoy's ``request_timeout``, which must be 30 s or more."""
_LOOK_AGAIN_S = 5.0
"""How late the end of a lease may be noticed."""
_KEPT = 10_000
_ERROR_CHARS = 500

K = TypeVar("K")
V = TypeVar("V")
_Cause = tuple[Revision, Facts, int, tuple[bool, ...]]


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
        self._sent: OrderedDict[tuple[str, ...], str] = OrderedDict()
        self._refused: OrderedDict[tuple[str, ...], str] = OrderedDict()
        self._made: OrderedDict[tuple[str, ...], tuple[_Cause, tuple[str, bytes]]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        request = await read_request(scope, receive)
        if request is None or request.method != "POST":
            await send_answer(send, Answer(405 if request else 400, b"", ((b"allow", b"POST"),)))
            return
        try:
            answer = await self._answer(request)
        except ApiError as error:
            answer = failure(error.error_type, str(error))
        await send_answer(send, answer)

    async def _answer(self, request: Request) -> Answer:
        data = request.json()
        names, node = data.get("resource_names"), data.get("node") or {}
        if data.get("type_url", TYPE_URL) != TYPE_URL:
            raise ApiError("bad_data", f"type_url must be {TYPE_URL}")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ApiError("bad_data", "resource_names must be a list of cluster names")
        who = str(node.get("id", "")) if isinstance(node, dict) else ""
        seen = str(data.get("version_info", ""))
        key = (who, *names)
        if data.get("error_detail"):
            await self._note_refusal(key, data["error_detail"])
        known = ("", seen, self._refused.get(key, seen))

        def newer() -> bool:
            return self._resources(key[1:])[0] not in known

        board = self._runner.health.board
        until = time.monotonic() + self._hold_s
        while not newer() and not board.closed and (left := until - time.monotonic()) > 0:
            await board.wait(newer, min(left, _LOOK_AGAIN_S))
        version, body = self._resources(key[1:])
        if version in known:
            return Answer(304)
        _keep(self._sent, key, version)
        return Answer(200, body)

    def _resources(self, names: tuple[str, ...]) -> tuple[str, bytes]:
        """(version, body) of the assignments as they should be now; version "" when nobody lists these services."""
        health, lease, now_ms = self._runner.health, self._runner.lease, self._runner.clock.now_ms()
        snapshot, facts = health.board.now, health.facts
        ending = health.board.closed  # proxies would keep our last word for ever, so that must be that all are usable
        views = tuple(None if ending else enforced(snapshot, service_name(name), lease, now_ms) for name in names)
        cause = (snapshot.revision, facts, lease.term, tuple(view is not None for view in views))
        made = self._made.get(names)
        if made is not None and made[0][1] is facts and made[0] == cause:
            return made[1]
        resources = [
            assignment(name, facts[service_name(name)], view)
            for name, view in zip(names, views, strict=True)
            if facts.get(service_name(name))
        ]
        version = ""
        if resources:
            version = f"{lease.term}-{hashlib.sha256(orjson.dumps(resources)).hexdigest()[:16]}"
        body = orjson.dumps({"version_info": version, "resources": resources, "type_url": TYPE_URL})
        _keep(self._made, names, (cause, (version, body)))
        return version, body

    async def _note_refusal(self, key: tuple[str, ...], detail: object) -> None:
        """Remember what a proxy refused, or the two of us would spin; it is told only what is newer."""
        version = self._sent.get(key)
        if version is None or self._refused.get(key) == version:
            return
        _keep(self._refused, key, version)
        text = str(detail.get("message", "") if isinstance(detail, dict) else detail)[:_ERROR_CHARS]
        evidence = {"version": version, "error": text, "node": key[0]}
        await self._runner.call(self._runner.health.say, "nack", service_name(key[1]), "", f"node:{key[0]}", evidence)


def _keep(table: OrderedDict[K, V], key: K, value: V) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > _KEPT:
        table.popitem(last=False)
