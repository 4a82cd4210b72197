"""Envoy's xDS for endpoints over gRPC: ``StreamEndpoints``, or ``StreamAggregatedResources`` for endpoints alone.

State of the world: each answer holds all clusters that the proxy named, has a nonce, and is acknowledged or refused
with it. Nothing here knows gRPC itself: messages come in as bytes and go out as bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any

from health.adapters.assignments import LOOK_AGAIN_S, Assignments
from health.adapters.eds import TYPE_URL
from health.adapters.xds import DiscoveryRequest, discovery_response, read_discovery_request, with_nonce
from health.runner import HealthRunner

METHODS = {
    "envoy.service.endpoint.v3.EndpointDiscoveryService": "StreamEndpoints",
    "envoy.service.discovery.v3.AggregatedDiscoveryService": "StreamAggregatedResources",
}


class Conversation:
    """What one stream has said so far.

    Attributes
    ----------
    names : clusters that the proxy wants, sorted
    version : that it has, refuses, or is about to read
    heard : set when it said something
    """

    def __init__(self) -> None:
        self.node = ""
        self.names: tuple[str, ...] = ()
        self.version = ""
        self.heard = asyncio.Event()
        self._nonce = ""
        self._answers = 0

    def hear(self, request: DiscoveryRequest) -> bool:
        """Take a request over; whether it is about the last answer, and not about an older one."""
        self.node = request.node or self.node
        if request.nonce != self._nonce:
            return False  # an answer to it is on its way: the proxy will speak again
        if not self._nonce:
            self.version = request.version  # of an earlier stream
        names = tuple(sorted(set(request.names)))
        if names != self.names:
            self.version = self.version if not self._nonce else ""  # what it dropped for a moment it lacks now
            self.names = names
        self.heard.set()
        return True

    def answer(self, version: str) -> str:
        """The nonce of an answer that goes out now."""
        self._answers += 1
        self._nonce = str(self._answers)
        self.version = version
        return self._nonce


class GrpcEds:
    """Serves assignments to proxies.

    Attributes
    ----------
    streams : open now
    acknowledged : answers that a proxy took over
    """

    def __init__(self, runner: HealthRunner) -> None:
        self._board = runner.health.board
        self._assignments = Assignments(runner, _answer)
        self.streams = 0
        self.acknowledged = 0

    async def serve(self, requests: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """Answer one stream until the proxy ends it, or the program does.

        Raises
        ------
        RejectedError        the proxy sent something else than ``DiscoveryRequest``
        """
        talk = Conversation()
        reading = asyncio.create_task(self._listen(requests, talk))
        self.streams += 1
        try:
            while not reading.done():
                talk.heard.clear()
                version, body = self._assignments.now(talk.names)
                if self._news(talk, version):
                    yield with_nonce(body, talk.answer(version))
                elif self._board.closed:
                    return  # the last word was that all are usable
                else:
                    await self._wait(talk, reading)
            reading.result()
        finally:
            self.streams -= 1
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    def _news(self, talk: Conversation, version: str) -> bool:
        return version not in ("", talk.version, self._assignments.refused(talk.node, talk.names))

    async def _wait(self, talk: Conversation, reading: asyncio.Task[None]) -> None:
        def newer() -> bool:
            return self._news(talk, self._assignments.now(talk.names)[0])

        waits = (
            asyncio.ensure_future(self._board.wait(newer, LOOK_AGAIN_S)),
            asyncio.ensure_future(talk.heard.wait()),
        )
        try:
            await asyncio.wait({*waits, reading}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _listen(self, requests: AsyncIterable[bytes], talk: Conversation) -> None:
        async for message in requests:
            request = read_discovery_request(message)
            if request.type_url not in ("", TYPE_URL):
                continue  # of an aggregated stream: of other things we know nothing
            before = (talk.names, talk.version)
            if not talk.hear(request) or not request.nonce:
                continue
            if request.error is None:
                self.acknowledged += 1
            else:
                await self._assignments.note_refusal(talk.node, *before, request.error)


def _answer(version: str, resources: Sequence[dict[str, Any]]) -> bytes:
    return discovery_response(version, resources, TYPE_URL)
