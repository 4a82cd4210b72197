"""Latency of a one-series query while four senders write at full speed, and when nobody does.

    python -m benchmarks.mixed [--series 100000] [--groups 10]

The senders are a process of their own with bodies made beforehand; the asker asks over one connection, and rests a
little after each answer: otherwise it would take the core that the senders need for their full speed. Percentiles of
all questions that were asked while the senders wrote, in milliseconds of wall time: on two cores asker, senders and
server share them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import numpy as np

from benchmarks.bodies import Bodies
from benchmarks.ingest import SENDERS, Senders, send
from benchmarks.peers import Server, all_servers, meshpulse

METRIC = "envoy_cluster_upstream_rq_0000_total"
QUERY = f'{METRIC}{{pod="service-007-7c9f8d6b5-00007"}}'
STEP_MS = 15_000
ROUNDS = 20
"""Rounds of all series a group: as many bodies as fit into memory beside everything else."""
REST_S = 0.004
IDLE_QUERIES = 1500
WARM_QUERIES = 100


@dataclass
class MixedFigures:
    """What one server needed; milliseconds."""

    server: str
    idle_p50: float
    idle_p99: float
    busy_p50: float
    busy_p99: float
    busy_max: float
    queries: int
    samples_per_second: float  # written meanwhile


def write_in_groups(server: Server, n_series: int, groups: int, start_ms: int, control: Connection) -> None:
    """The process of the senders: makes the bodies of a group, waits to be told, writes them, says how long it took."""
    bodies = Bodies(n_series, pods=1000)
    at_ms = start_ms
    for k in range(3):  # makes the series, then settles
        send(server, bodies.round(at_ms + k * STEP_MS), SENDERS)
    at_ms += 3 * STEP_MS
    with Senders(server, SENDERS) as senders:
        for _ in range(groups):
            prepared = [body for k in range(ROUNDS) for body in bodies.round(at_ms + k * STEP_MS)]
            at_ms += ROUNDS * STEP_MS
            control.send(None)
            control.recv()
            begin = time.perf_counter()
            senders.send(prepared)
            control.send(ROUNDS * n_series / (time.perf_counter() - begin))


def questions(server: Server, time_s: float) -> Iterator[float]:
    """Ask for ever; milliseconds of each question."""
    path = "/api/v1/query?" + urllib.parse.urlencode({"query": QUERY, "time": str(time_s), **server.query_extra})
    connection = server.connect()
    while True:
        begin = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        seconds = time.perf_counter() - begin
        time.sleep(REST_S)
        if answer.status != 200 or b'"value"' not in body:
            raise RuntimeError(f"{server.name} answered {answer.status}: {body[:300]!r}")
        yield seconds * 1e3


def measure(server: Server, n_series: int = 100_000, groups: int = 10) -> MixedFigures:
    """Ask while nobody writes, then while the senders do."""
    start_ms = int(time.time() * 1000) - (groups * ROUNDS + 3) * STEP_MS
    control, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    told = (replace(server, process=None), n_series, groups, start_ms, theirs)
    writing = context.Process(target=write_in_groups, args=told)
    writing.start()
    try:
        control.recv()
        server.settle()
        ask = questions(server, (start_ms + 2 * STEP_MS) / 1e3)
        idle = np.array([next(ask) for _ in range(IDLE_QUERIES)])[WARM_QUERIES:]
        busy: list[float] = []
        speeds = []
        for k in range(groups):
            if k:
                control.recv()
            control.send(None)
            while not control.poll():
                busy.append(next(ask))
            speeds.append(control.recv())
    finally:
        if writing.is_alive():
            writing.join(30)
    fifty, most = (np.percentile(busy, p) for p in (50, 99))
    return MixedFigures(
        server.name,
        float(np.percentile(idle, 50)),
        float(np.percentile(idle, 99)),
        float(fifty),
        float(most),
        float(max(busy)),
        len(busy),
        float(np.median(speeds)),
    )


def show(figures: MixedFigures) -> str:
    """One line."""
    f = figures
    return (
        f"{f.server}: idle p50 {f.idle_p50:.2f} ms, p99 {f.idle_p99:.2f} ms; while {f.samples_per_second / 1e6:.2f} M "
        f"samples/s are written p50 {f.busy_p50:.2f} ms, p99 {f.busy_p99:.2f} ms "
        f"({f.busy_p99 / f.idle_p99:.1f}x idle), most {f.busy_max:.1f} ms of {f.queries:,} questions"
    )


def main() -> None:
    """Print a line a server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=100_000)
    parser.add_argument("--groups", type=int, default=10)
    parser.add_argument("--peers", action="store_true", help="measure the peers too")
    given = parser.parse_args()
    for server in all_servers() if given.peers else [meshpulse()]:
        with server:
            print(show(measure(server, given.series, given.groups)), flush=True)


if __name__ == "__main__":
    main()
