"""What a control plane pays for the snapshot: latency while samples are pushed, and CPU of requests that wait.

    python -m benchmarks.health_api [--rounds 5] [--rate 100000]

1,000 endpoints in 20 services, seen by two observers. Polls go over one connection, one after the other with a pause
between them: p50 and p99 of 120 polls, the best round of ``--rounds``, idle and while another process pushes 100,000
samples/s by remote-write. And 1,000 requests are held for 60 s at a time: CPU of the server with them less without.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import multiprocessing
import sys
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Event

import aiohttp
import numpy as np

from benchmarks.bodies import Bodies
from benchmarks.ingest import Senders
from benchmarks.peers import Server, meshpulse

SERVICES, ENDPOINTS, OBSERVERS = 20, 50, 2
POLLS, PAUSE_S = 120, 0.05
WAITERS, WATCHED_S = 1_000, 50.0
PATH = "/api/v1/health/endpoints"


class Traffic(threading.Thread):
    """Keeps the counters of all endpoints moving, a push a second."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._over = threading.Event()

    def run(self) -> None:
        connection = self._server.connect()
        count = 0
        while not self._over.wait(1.0 - time.time() % 1.0):
            count += 20
            body = self._page(count).encode()
            connection.request("POST", "/api/v1/import/prometheus", body)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status // 100 != 2:
                raise RuntimeError(f"the push was answered {answer.status}: {text[:300]!r}")
        connection.close()

    @staticmethod
    def _page(count: int) -> str:
        return "".join(
            f'endpoint_attempts_{kind}_total{{service="s{s:02d}",endpoint="10.1.{s}.{h}:80",instance="p{p}"}} {value}\n'
            for kind, value in (("success", count), ("error", 0))
            for s in range(SERVICES)
            for h in range(ENDPOINTS)
            for p in range(OBSERVERS)
        )

    def end(self) -> None:
        self._over.set()
        self.join(10)


def load(server: Server, rate: int, ready: Event, seconds: int) -> None:
    """Push ``rate`` samples every second for a while (a process of its own); all of it is made before."""
    bodies = Bodies(rate)
    first_ms = int(time.time() * 1000) - 60_000
    rounds = [bodies.round(first_ms + 1_000 * k) for k in range(seconds)]
    with Senders(server, 2) as senders:
        senders.send(rounds[0])  # makes the series
        ready.set()
        due = time.monotonic()
        for one in rounds[1:]:
            senders.send(one)
            due += 1.0
            time.sleep(max(0.0, due - time.monotonic()))


@dataclass(frozen=True, slots=True)
class Polls:
    """Milliseconds of one round."""

    p50: float
    p99: float


def polled(connection: http.client.HTTPConnection) -> Polls:
    """One round of polls."""
    took = []
    for _ in range(POLLS):
        started = time.perf_counter()
        connection.request("GET", PATH)
        answer = connection.getresponse()
        body = answer.read()
        took.append((time.perf_counter() - started) * 1e3)
        assert answer.status == 200, body[:300]
        time.sleep(PAUSE_S)
    return Polls(float(np.percentile(took, 50)), float(np.percentile(took, 99)))


def best(server: Server, rounds: int) -> Polls:
    """The round with the lowest p99."""
    connection = server.connect()
    try:
        return min((polled(connection) for _ in range(rounds)), key=lambda polls: polls.p99)
    finally:
        connection.close()


def samples_appended(server: Server) -> float:
    """Counter of samples appended so far."""
    text = server.get("/metrics")[1].decode()
    return sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("meshpulse_samples_appended_total")
    )


async def waited(server: Server) -> tuple[float, float]:
    """CPU of one core without and with the requests that wait, as shares."""
    began, cpu = time.monotonic(), server.cpu_seconds()
    await asyncio.sleep(WATCHED_S)
    without = (server.cpu_seconds() - cpu) / (time.monotonic() - began)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
        url = f"http://127.0.0.1:{server.port}{PATH}"
        async with client.get(url) as reply:
            etag = reply.headers["etag"]
            await reply.read()

        async def wait() -> None:
            while True:
                async with client.get(url, headers={"If-None-Match": etag, "Prefer": "wait=60"}) as reply:
                    await reply.read()

        tasks = [asyncio.create_task(wait()) for _ in range(WAITERS)]
        await asyncio.sleep(5)  # all are connected and held
        began, cpu = time.monotonic(), server.cpu_seconds()
        await asyncio.sleep(WATCHED_S)
        held = (server.cpu_seconds() - cpu) / (time.monotonic() - began)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return without, held


def api(rounds: int = 5, rate: int = 100_000) -> bool:
    """Measure and print; whether the bars of the issue hold."""
    with meshpulse() as server:
        traffic = Traffic(server)
        traffic.start()
        time.sleep(75)  # everybody is healthy, nothing moves any more
        status, body = server.get(PATH)
        assert status == 200
        idle = best(server, rounds)
        without, held = asyncio.run(waited(server))
        spawn = multiprocessing.get_context("spawn")
        ready = spawn.Event()
        seconds = round(rounds * POLLS * (PAUSE_S + 0.015)) + 20
        sender = spawn.Process(target=load, args=(replace(server, process=None), rate, ready, seconds))
        sender.start()
        ready.wait(300)
        time.sleep(3)
        began, appended = time.monotonic(), samples_appended(server)
        busy = best(server, rounds)
        pushed = (samples_appended(server) - appended) / (time.monotonic() - began)
        sender.terminate()
        sender.join(30)
        traffic.end()
    waiting = held - without
    fits = busy.p99 <= 10 and waiting < 0.01
    for line in (
        f"{SERVICES * ENDPOINTS:,} endpoints, {len(body) // 1000} kB, best of {rounds} rounds of {POLLS} polls:",
        f"  idle p50 {idle.p50:.1f} ms, p99 {idle.p99:.1f} ms",
        f"  while {pushed:,.0f} samples/s are pushed p50 {busy.p50:.1f} ms, p99 {busy.p99:.1f} ms (bar 10 ms), "
        f"{busy.p99 / idle.p99:.1f}x idle",
        f"  {WAITERS:,} requests held: {100 * waiting:.2f} % of a core (bar 1 %), {100 * held:.1f} % with them, "
        f"{100 * without:.1f} % without" + ("" if fits else "   MISSED"),
    ):
        print(line)
    return fits


def main() -> int:
    """Print the figures; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=int, default=100_000, help="samples a second")
    given = parser.parse_args()
    return 0 if api(given.rounds, given.rate) else 1


if __name__ == "__main__":
    sys.exit(main())
