"""What a proxy that asks for some clusters is told now, its version, and what was refused: shared by REST and gRPC."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import orjson

from health.adapters.eds import assignment, enforced, service_name
from health.board import Revision
from health.runner import HealthRunner
from health.topology import Facts
from health.verdicts import Kind

LOOK_AGAIN_S = 5.0
"""How late a waiting proxy may hear of the end of a lease, which nothing announces."""
KEPT = 10_000
"""Proxies, or lists of clusters, that something is remembered of: more than any mesh has."""
_ERROR_CHARS = 500
"""The end of a refusal is kept: Envoy puts the assignment first and the reason last."""

K = TypeVar("K")
V = TypeVar("V")
_Cause = tuple[Revision, Facts, int, tuple[bool, ...]]


class Assignments:
    """Makes answers; on the event loop.

    The version is a digest of the content, so whatever changes it wakes the waiting proxies: a verdict, the topology,
    the end of a lease.

    Parameters
    ----------
    runner : whose board is shown
    encode : (version, assignments in their JSON form) -> answer

    Attributes
    ----------
    refusals : versions refused by proxies
    """

    def __init__(self, runner: HealthRunner, encode: Callable[[str, Sequence[dict[str, Any]]], bytes]) -> None:
        self._runner = runner
        self._encode = encode
        self._made: OrderedDict[tuple[str, ...], tuple[_Cause, tuple[str, bytes]]] = OrderedDict()
        self._refused: OrderedDict[tuple[str, ...], str] = OrderedDict()
        self.refusals = 0

    def now(self, names: tuple[str, ...]) -> tuple[str, bytes]:
        """(version, answer) of the assignments as they should be now; version "" when nobody lists these services."""
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
        answer = (version, self._encode(version, resources))
        keep(self._made, names, (cause, answer))
        return answer

    def refused(self, node: str, names: tuple[str, ...]) -> str:
        """The version that this proxy refused last; "" = none."""
        return self._refused.get((node, *names), "")

    async def note_refusal(self, node: str, names: tuple[str, ...], version: str, error: str) -> None:
        """Remember what a proxy refused, or the two of us would spin; it is told only what is newer."""
        key = (node, *names)
        if self._refused.get(key) == version:
            return
        keep(self._refused, key, version)
        self.refusals += 1
        service = service_name(names[0]) if names else ""
        evidence = {"version": version, "error": error[-_ERROR_CHARS:], "node": node}
        await self._runner.call(self._runner.health.say, Kind.NACK, service, "", f"node:{node}", evidence)


def keep(table: OrderedDict[K, V], key: K, value: V) -> None:
    """Remember something of one of many; the one that was named least recently makes room."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > KEPT:
        table.popitem(last=False)
