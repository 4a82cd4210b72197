"""Queries over HTTP beside the peers: a large aggregation, a one-series instant query, a large JSON matrix.

    python -m benchmarks.query [--series 10000] [--hours 6]

10,000 series x 6 h at 15 s (14.4 M samples) written by remote-write to each server; caches of answers off.
"""

from __future__ import annotations

import argparse
import statistics
import time
import urllib.parse
from dataclasses import dataclass

from benchmarks.bodies import Bodies
from benchmarks.ingest import send
from benchmarks.peers import Server, all_servers

METRIC = "envoy_cluster_upstream_rq_0000_total"
STEP_MS = 15_000

INSTANTS = 5000
"""Instant queries in a row: the kernel's books count CPU in hundredths of a second."""


@dataclass
class QueryFigures:
    """What one server needed; milliseconds."""

    server: str
    sum_rate_wall_ms: float
    sum_rate_cpu_ms: float
    instant_p50_ms: float
    instant_cpu_us: float
    matrix_cpu_ms: float
    matrix_wall_ms: float


def ask(server: Server, path: str, **parameters: str) -> bytes:
    """Body of a successful query."""
    status, body = server.get(path + "?" + urllib.parse.urlencode({**parameters, **server.query_extra}))
    if status != 200:
        raise RuntimeError(f"{server.name} answered {status}: {body[:500]!r}")
    return body


def best_range(server: Server, query: str, start: float, end: float, step: str, tries: int) -> tuple[float, float, int]:
    """Least wall and CPU milliseconds of a range query, and the size of its answer."""
    wall, cpu, size = float("inf"), float("inf"), 0
    for _ in range(tries):
        cpu_before, begin = server.cpu_seconds(), time.perf_counter()
        size = len(ask(server, "/api/v1/query_range", query=query, start=str(start), end=str(end), step=step))
        wall = min(wall, time.perf_counter() - begin)
        cpu = min(cpu, server.cpu_seconds() - cpu_before)
    return wall * 1e3, cpu * 1e3, size


def measure(server: Server, n_series: int, hours: float, tries: int = 5) -> QueryFigures:
    """Load the data, let the server settle, ask."""
    bodies = Bodies(n_series, pods=n_series)
    rounds = int(hours * 3_600_000 / STEP_MS)
    end_ms = int(time.time() * 1000) // STEP_MS * STEP_MS - STEP_MS
    start_ms = end_ms - (rounds - 1) * STEP_MS
    for k in range(rounds):
        send(server, bodies.round(start_ms + k * STEP_MS))
    server.settle()
    start, end = start_ms / 1e3, end_ms / 1e3
    wall, cpu, _ = best_range(server, f"sum by (namespace) (rate({METRIC}[5m]))", start, end, "60", tries)

    one = f'{METRIC}{{pod="service-007-7c9f8d6b5-00007"}}'
    path = "/api/v1/query?" + urllib.parse.urlencode({"query": one, "time": str(end), **server.query_extra})
    connection = server.connect()
    seconds = []
    cpu_before = server.cpu_seconds()
    for _ in range(INSTANTS):
        begin = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse().read()
        seconds.append(time.perf_counter() - begin)
    instant_cpu_us = (server.cpu_seconds() - cpu_before) / INSTANTS * 1e6
    assert b'"value"' in answer, answer[:300]

    few = f'{METRIC}{{pod=~"service-...-7c9f8d6b5-00[0-9]{{3}}"}}'
    matrix_wall, matrix_cpu, _ = best_range(server, few, end - 999 * 15, end, "15", tries)
    instant_p50_ms = statistics.median(seconds[INSTANTS // 10 :]) * 1e3
    return QueryFigures(server.name, wall, cpu, instant_p50_ms, instant_cpu_us, matrix_cpu, matrix_wall)


def main() -> list[QueryFigures]:
    """Measure every server that is installed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--hours", type=float, default=6)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    figures = []
    for server in all_servers():
        if given.only and given.only != server.name:
            continue
        with server:
            figures.append(measure(server, given.series, given.hours))
        print(figures[-1], flush=True)
    print(
        "\n| server | sum by (rate), ms wall | ms CPU | one series, p50 ms | us CPU "
        "| 1000 x 1000 matrix, ms CPU | wall |"
    )
    print("|---|---|---|---|---|---|---|")
    for f in figures:
        print(
            f"| {f.server} | {f.sum_rate_wall_ms:.0f} | {f.sum_rate_cpu_ms:.0f} | {f.instant_p50_ms:.2f} "
            f"| {f.instant_cpu_us:.0f} | {f.matrix_cpu_ms:.0f} | {f.matrix_wall_ms:.0f} |"
        )
    return figures


if __name__ == "__main__":
    main()
