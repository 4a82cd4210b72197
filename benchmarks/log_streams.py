"""Many streams with few lines each: what issue 5 calls "200k streams work well", measured through the API.

    python -m benchmarks.log_streams [--streams 200000] [--rounds 3]

Every round pushes one line to each stream (snappy protobuf, one sender). Then labels, series and lines are asked for,
the newest rows in memory and the others in parts, as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator

import cramjam

from benchmarks.log_reads import Client, entries, print_row, series
from benchmarks.logs import BODY_LINES, SECOND, Peak, encode_push, push, row
from benchmarks.peers import Server, meshpulse
from meshpulse.warm import warm

APPS = 500
Labels = tuple[tuple[str, str], ...]


def labels_of(stream: int) -> Labels:
    """A pod of an application in a cluster."""
    app = stream % APPS
    return (
        ("app", f"app-{app:03d}"),
        ("cluster", f"c{app % 7}"),
        ("namespace", f"team-{app % 40:02d}"),
        ("pod", f"app-{app:03d}-{stream // APPS:05d}"),
    )


def bodies(streams: int, rounds: int, start_s: int) -> Iterator[tuple[int, bytes]]:
    """(bytes of the lines, body) of each push."""
    for round_number in range(rounds):
        for first in range(0, streams, BODY_LINES):
            made: dict[Labels, list[tuple[int, bytes]]] = {}
            for stream in range(first, min(first + BODY_LINES, streams)):
                ts_ns = (start_s + round_number * 60) * SECOND + stream
                line = f'level=info msg="tick" round={round_number} took={stream % 977}ms'.encode()
                made[labels_of(stream)] = [(ts_ns, line)]
            raw = sum(len(line) for rows in made.values() for _, line in rows)
            yield raw, bytes(cramjam.snappy.compress_raw(encode_push(made)))


def reads(server: Server, streams: int, start_s: int, end_s: int) -> None:
    """Ask what Grafana asks of so many streams."""
    client = Client(server)
    span: dict[str, object] = {"start": start_s * SECOND, "end": end_s * SECOND}
    names = client.ask("labels", span)
    print_row("label names", 50, names, f"{len(names.answer['data'])} names")
    values = client.ask("label/pod/values", span)
    print_row("values of a label that differs in each stream", 1000, values, f"{len(values.answer['data']):,} values")
    some = client.ask("series", {**span, "match[]": '{app="app-007"}'})
    print_row("series of one application", 100, some, f"{len(some.answer['data']):,} series")
    newest = client.ask("query_range", {**span, "query": '{app="app-007"}', "limit": 100})
    print_row("last 100 lines of one application", 100, newest, f"{entries(newest)} lines")
    one = client.ask("query_range", {**span, "query": f'{{pod="{dict(labels_of(streams - 1))["pod"]}"}}', "limit": 100})
    print_row("all lines of one stream", 100, one, f"{entries(one)} lines")
    count = f"sum by (app) (count_over_time({{cluster=~`c[0-6]`}}[{end_s - start_s}s]))"
    counted = client.ask("query", {"query": count, "time": end_s * SECOND})
    print_row("count by application, all streams", 500, counted, f"{series(counted)} series")


def main() -> None:
    """Push, read; print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    warm()
    start_s = int(time.time()) - 60 * given.rounds
    server = meshpulse()
    with server:
        server.settle()
        idle = server.rss_bytes()
        print(f"\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {given.streams:,} streams\n")
        print("| figure | ours | aim | result |\n|---|---|---|---|")
        made = bodies(given.streams, given.rounds, start_s)
        for name, rounds in (("first round: every stream is new", 1), ("later rounds", given.rounds - 1)):
            lines = rounds * given.streams
            some = (next(made) for _ in range(rounds * -(-given.streams // BODY_LINES)))
            cpu = server.cpu_seconds()
            with Peak(server) as peak:
                _, waited = push(server, some)
            cpu = server.cpu_seconds() - cpu
            note = f"{lines / waited:,.0f} lines/s, RSS {peak.bytes / 1e6:.0f} MB"
            row(name, f"{cpu / lines * 1e6:.1f} us CPU a line", "", note)
        server.settle(0.5, 20.0)
        row("RSS above idle", f"{(server.rss_bytes() - idle) / 1e6:.0f} MB", "", f"idle {idle / 1e6:.0f} MB")
        reads(server, given.streams, start_s, start_s + 60 * given.rounds)
        status, body = server.get("/metrics")
        assert status == 200
        refused = [
            line for line in body.decode().splitlines() if "rejected_total{" in line and not line.endswith(" 0.0")
        ]
        assert not refused, json.dumps(refused)


if __name__ == "__main__":
    main()
