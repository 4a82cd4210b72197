"""How fast a sender catches up after an hour in which we were away.

    python -m benchmarks.catchup [--series 100000] [--minutes 60]

A sender of 100,000 series every 15 s, as a Prometheus with its log: it has written for a while, we are stopped and
started again, and it sends the hour that we missed, 2,000 samples a request over four connections, in the order of its
scrapes. Times real time is the hour divided by the seconds of sending; afterwards every sample is counted by a query.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from dataclasses import dataclass

from benchmarks.bodies import Bodies
from benchmarks.ingest import SENDERS, Senders, send
from benchmarks.peers import Server, all_servers, meshpulse
from benchmarks.query import ask

STEP_MS = 15_000
GROUP = 20
"""Rounds whose bodies are made at once, while nothing is measured."""
BEFORE = 3
"""Rounds before we are away."""


@dataclass
class CatchupFigures:
    """What one server needed."""

    server: str
    times_real_time: float
    samples_per_second: float
    sample_ns: float  # CPU of the server
    samples: int


def restart(server: Server) -> None:
    """End it as a deployment does, and start it on the same folder."""
    assert server.process is not None
    server.process.terminate()
    try:
        server.process.wait(60)
    except subprocess.TimeoutExpired:
        server.process.kill()
        raise
    server.__enter__()


def measure(server: Server, n_series: int = 100_000, minutes: float = 60.0) -> CatchupFigures:
    """Write, go away, come back, be sent what was missed."""
    rounds = round(minutes * 60_000 / STEP_MS)
    bodies = Bodies(n_series)
    start_ms = int(time.time() * 1000) // STEP_MS * STEP_MS - (rounds + BEFORE) * STEP_MS
    for k in range(BEFORE):
        send(server, bodies.round(start_ms + k * STEP_MS), SENDERS)
    restart(server)
    server.settle()
    cpu, seconds = server.cpu_seconds(), 0.0
    with Senders(server, SENDERS) as senders:
        for first in range(BEFORE, rounds + BEFORE, GROUP):
            last = min(first + GROUP, rounds + BEFORE)
            prepared = [body for k in range(first, last) for body in bodies.round(start_ms + k * STEP_MS)]
            begin = time.perf_counter()
            senders.send(prepared)
            seconds += time.perf_counter() - begin
    server.settle()
    cpu = server.cpu_seconds() - cpu
    sent = n_series * rounds
    end_s = (start_ms + (rounds + BEFORE - 1) * STEP_MS) / 1e3
    text = f'sum(count_over_time({{__name__=~"envoy_.+"}}[{rounds * STEP_MS // 1000}s]))'
    counted = float(
        json.loads(ask(server, "/api/v1/query", query=text, time=str(end_s)))["data"]["result"][0]["value"][1]
    )
    if server.name == "meshpulse" and counted != sent:
        raise RuntimeError(f"{counted:,.0f} samples are there of {sent:,} that were sent")
    return CatchupFigures(server.name, minutes * 60 / seconds, sent / seconds, cpu / sent * 1e9, sent)


def show(figures: CatchupFigures) -> str:
    """One line."""
    f = figures
    return (
        f"{f.server}: {f.times_real_time:.0f}x real time, {f.samples_per_second / 1e6:.2f} M samples/s, "
        f"{f.sample_ns:.0f} ns CPU a sample, {f.samples / 1e6:.1f} M samples"
    )


def main() -> None:
    """Print a line a server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--peers", action="store_true", help="measure the peers too")
    given = parser.parse_args()
    for server in all_servers() if given.peers else [meshpulse()]:
        with server:
            print(show(measure(server, given.series, given.minutes)), flush=True)


if __name__ == "__main__":
    main()
