"""Small upstreams, one of which falls ill, and bounded traffic for them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass

import aiohttp

REQUESTS_PER_SECOND = 60.0
"""Through each proxy."""
IN_FLIGHT_MAX = 16
SECONDS_MAX = 3600.0
"""The traffic ends by itself after this long, whatever happens to the demo."""


class Upstream:
    """A small HTTP server that answers ``200`` until it is told to fail.

    Attributes
    ----------
    name, port : what it is called, where it listens
    failing : fraction of requests answered with 500
    served : requests answered so far
    """

    def __init__(self, name: str, latency_s: float) -> None:
        self.name = name
        self.port = 0
        self.failing = 0.0
        self.served = 0
        self._latency_s = latency_s
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(random.expovariate(1 / self._latency_s))
                self.served += 1
                failed = random.random() < self.failing  # noqa: S311
                status = b"500 Internal Server Error" if failed else b"200 OK"
                writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 3\r\n\r\nok\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass  # the proxy is done with the connection, or the demo with us
        finally:
            self._connections.discard(task)
            writer.close()

    async def end(self) -> None:
        """Stop listening and close every connection."""
        if self._server:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


@dataclass(slots=True)
class Tally:
    """What clients saw: requests that were answered, and those of them that failed (or were not answered at all)."""

    sent: int = 0
    failed: int = 0


async def send_traffic(
    front: str, client: aiohttp.ClientSession, tally: Tally, rps: float = REQUESTS_PER_SECOND, host: str = ""
) -> None:
    """Send a steady stream of requests to the proxy, bounded in rate, number at once and time.

    Parameters
    ----------
    host : the site asked for; "" = the proxy's address
    """
    headers = {"Host": host} if host else None
    room = asyncio.Semaphore(IN_FLIGHT_MAX)
    running: set[asyncio.Task[None]] = set()

    async def one(number: int) -> None:
        status = 0
        # a request that fails is what the demo shows: Envoy counts it
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with client.get(f"http://{front}/cart/{number % 100}", headers=headers) as response:
                status = response.status
                await response.read()
        tally.sent += 1
        tally.failed += status != 200
        room.release()

    begin = time.monotonic()
    number = 0
    try:
        while time.monotonic() - begin < SECONDS_MAX:
            due = (time.monotonic() - begin) * rps
            while number < due:
                number += 1
                if room.locked():
                    continue  # behind: these requests are left out rather than sent in a burst
                await room.acquire()
                task = asyncio.create_task(one(number))
                running.add(task)
                task.add_done_callback(running.discard)
            await asyncio.sleep(0.02)
    finally:
        for task in list(running):
            task.cancel()
