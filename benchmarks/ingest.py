"""Remote-write ingestion, end to end over HTTP, beside the peers.

    python -m benchmarks.ingest [--series 100000] [--rounds 30]

100,000 active series with 12 labels, 2,000 samples a request, four connections. CPU seconds of the whole server
process; best of the measured groups of rounds. Everything is acknowledged: fsynced where the server does that.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.bodies import HEADERS, Bodies
from benchmarks.peers import Server, all_servers

SENDERS = 4
"""Connections that write at once: the least shards a Prometheus of this size runs."""


@dataclass
class IngestFigures:
    """What one server needed."""

    server: str
    new_series_us: float
    sample_ns: float
    rss_per_series: float
    wall_samples_per_second: float


class Senders:
    """Connections that stay open from round to round, as those of a Prometheus do.

    Each has its own share of the series, as the shards of a Prometheus have: the requests of a sender follow each
    other, those of different senders overlap.
    """

    def __init__(self, server: Server, count: int) -> None:
        self._server = server
        self._connections = [server.connect() for _ in range(count)]
        self._pool = ThreadPoolExecutor(count)

    def __enter__(self) -> Senders:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        for connection in self._connections:
            connection.close()

    def send(self, bodies: list[bytes]) -> None:
        """Post every body; anything but 2xx is an error."""
        count = len(self._connections)
        for done in [self._pool.submit(self._post, k, bodies[k::count]) for k in range(count)]:
            done.result()

    def _post(self, number: int, share: list[bytes]) -> None:
        connection = self._connections[number]
        for body in share:
            connection.request("POST", self._server.write_path, body, HEADERS)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status // 100 != 2:
                raise RuntimeError(f"{self._server.name} answered {answer.status}: {text[:500]!r}")


def send(server: Server, bodies: list[bytes], senders: int = 1) -> None:
    """Post every body over connections of their own."""
    with Senders(server, senders) as connections:
        connections.send(bodies)


def measure(server: Server, n_series: int, rounds: int, senders: int = SENDERS, group: int = 5) -> IngestFigures:
    """Send ``rounds`` rounds; the first makes the series, the next two settle, the rest are measured."""
    bodies = Bodies(n_series)
    start_ms = int(time.time() * 1000) - rounds * 15_000
    send(server, Bodies(2000, first=10_000_000).round(start_ms))  # connections, buffers, first segment
    server.settle()
    rss = server.rss_bytes()
    cpu = server.cpu_seconds()
    send(server, bodies.round(start_ms))
    server.settle()
    first_cpu = server.cpu_seconds() - cpu
    for k in (1, 2):
        send(server, bodies.round(start_ms + 15_000 * k))
    best_cpu, best_wall = float("inf"), float("inf")
    k = 3
    with Senders(server, senders) as connections:
        while k + group <= rounds:
            prepared = [bodies.round(start_ms + 15_000 * (k + j)) for j in range(group)]
            cpu, wall = server.cpu_seconds(), time.perf_counter()
            for one_round in prepared:
                connections.send(one_round)
            wall = time.perf_counter() - wall
            server.settle(0.5, 5.0)
            best_cpu = min(best_cpu, (server.cpu_seconds() - cpu) / (group * n_series))
            best_wall = min(best_wall, wall / (group * n_series))
            k += group
    while k < rounds:
        send(server, bodies.round(start_ms + 15_000 * k))
        k += 1
    server.settle()
    growth = (server.rss_bytes() - rss) / n_series
    return IngestFigures(server.name, (first_cpu / n_series - best_cpu) * 1e6, best_cpu * 1e9, growth, 1.0 / best_wall)


def main() -> list[IngestFigures]:
    """Measure every server that is installed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--senders", type=int, default=SENDERS)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    figures = []
    for server in all_servers():
        if given.only and given.only != server.name:
            continue
        with server:
            figures.append(measure(server, given.series, given.rounds, given.senders))
        print(figures[-1], flush=True)
    print("\n| server | new series, us CPU | ns CPU a sample | RSS B a series | samples/s |")
    print("|---|---|---|---|---|")
    for f in figures:
        print(
            f"| {f.server} | {f.new_series_us:.1f} | {f.sample_ns:.0f} | {f.rss_per_series:.0f} "
            f"| {f.wall_samples_per_second:,.0f} |"
        )
    return figures


if __name__ == "__main__":
    main()
