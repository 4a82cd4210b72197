"""The reads of the log benchmark: LogQL over HTTP, as Grafana asks it, against a server that has all lines in parts."""

from __future__ import annotations

import json
import statistics
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from benchmarks.peers import Server

TIMES = 5
STEADY_S = 25.0
"""Longer than two rounds of ``meshpulse.memory``."""

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
ALL = '{log="access"}'


@dataclass(frozen=True, slots=True)
class Asked:
    """One query, asked a few times.

    Attributes
    ----------
    walls, cpu : seconds of each time; CPU seconds of the server, the mean
    answer : the last one
    """

    walls: list[float]
    cpu: float
    answer: dict[str, Any]


class Client:
    """Asks a server over one connection."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connection = server.connect()

    def ask(self, path: str, params: dict[str, object], times: int = TIMES) -> Asked:
        """GET, a few times."""
        target = f"/loki/api/v1/{path}?{urllib.parse.urlencode(params)}"
        walls: list[float] = []
        cpu = self._server.cpu_seconds()
        body = b""
        for _ in range(times):
            begin = time.perf_counter()
            self._connection.request("GET", target)
            answer = self._connection.getresponse()
            body = answer.read()
            walls.append(time.perf_counter() - begin)
            if answer.status != 200:
                raise RuntimeError(f"{params}: {answer.status} {body[:500]!r}")
        return Asked(walls, (self._server.cpu_seconds() - cpu) / times, json.loads(body))


def entries(asked: Asked) -> int:
    """Lines of an answer."""
    return sum(len(stream["values"]) for stream in asked.answer["data"]["result"])


def series(asked: Asked) -> int:
    """Series of an answer."""
    return len(asked.answer["data"]["result"])


def print_row(name: str, bar_ms: float, asked: Asked, what: str) -> None:
    """One line of the table: the fastest of the walls as the peers' figures are, and the median."""
    best, median = 1e3 * min(asked.walls), 1e3 * statistics.median(asked.walls)
    met = "" if best <= bar_ms else " **missed**"
    note = f"median {median:,.1f} ms, CPU {1e3 * asked.cpu:,.0f} ms; {what}"
    print(f"| {name} | {best:,.1f} ms{met} | {bar_ms:,.0f} ms | {note} |", flush=True)


def print_reads(server: Server, raw: int, start_ns: int, end_ns: int) -> None:
    """Ask everything and print a row each."""
    client = Client(server)
    hour_ns = max(start_ns, end_ns - HOUR)

    def logs(query: str, limit: int = 1000, **more: object) -> Asked:
        span = {"start": start_ns, "end": end_ns, "direction": "backward"}
        return client.ask("query_range", {"query": query, "limit": limit, **span, **more})

    def metric(query: str, first_ns: int, step: str) -> Asked:
        return client.ask("query_range", {"query": query, "start": first_ns, "end": end_ns, "step": step})

    whole = f"{(end_ns - start_ns) // SECOND}s"
    middle_ns = (start_ns + end_ns) // 2
    some = logs(ALL, 1, end=middle_ns).answer["data"]["result"][0]
    needle = json.loads(some["values"][0][1])["request_id"]
    stream = "{" + ",".join(f'{name}="{some["stream"][name]}"' for name in ("site", "env", "host")) + "}"

    reads: list[tuple[str, float, Callable[[], Asked], Callable[[Asked], int], str]] = [
        ("needle: a request id, no field named", 30, lambda: logs(f'{ALL} |= "{needle}"'), entries, "line"),
        ("absent id", 30, lambda: logs(f'{ALL} |= "0123456789abcdef0123456789abcdef"'), entries, "lines"),
        ("absent word", 30, lambda: logs(f'{ALL} |= " nowhere "'), entries, "lines"),
        ("absent value of a field", 200, lambda: logs(f'{ALL} | json | path="/no/such/path"'), entries, "lines"),
        ("substring /api/v1/orders, newest 1,000", 66, lambda: logs(f'{ALL} |= "/api/v1/orders"'), entries, "lines"),
        ("rare status, newest 1,000", 200, lambda: logs(ALL + ' |= `"status":504,`'), entries, "lines"),
        ("rare status by label, newest 1,000", 200, lambda: logs(f"{ALL} | json | status=504"), entries, "lines"),
        ("count by status per minute, 1 h", 60,
         lambda: metric(f"sum by (status) (count_over_time({ALL} | json [1m]))", hour_ns, "1m"), series, "series"),
        ("count by status per minute, all", 300,
         lambda: metric(f"sum by (status) (count_over_time({ALL} | json [1m]))", start_ns, "1m"), series, "series"),
        ("count by site, all", 50,
         lambda: client.ask("query", {"query": f"sum by (site) (count_over_time({ALL}[{whole}]))", "time": end_ns}),
         series, "series"),
        ("count by site per minute, all", 300,
         lambda: metric(f"sum by (site) (count_over_time({ALL}[1m]))", start_ns, "1m"), series, "series"),
        ("p99 by site per 5 m, 1 h", 250,
         lambda: metric(f"quantile_over_time(0.99, {ALL} | json | unwrap request_time [5m]) by (site)", hour_ns, "5m"),
         series, "series"),
        ("p99 by site per 5 m, all", 1200,
         lambda: metric(f"quantile_over_time(0.99, {ALL} | json | unwrap request_time [5m]) by (site)", start_ns, "5m"),
         series, "series"),
        ("last 100 lines of a stream", 10, lambda: logs(stream, 100), entries, "lines"),
    ]  # fmt: skip
    for name, bar, run, count, unit in reads:
        asked = run()
        print_row(name, bar, asked, f"{count(asked):,} {unit}")
    for name, query in (
        ("full scan, by columns", '|= "nosuchtext"'),
        ("full scan, a text over two fields", '|= `"GET","path":"/nosuch`'),
        ("full scan, a regex without literals", "|~ `[#]{3}|[@]{3}`"),
        ("full scan, a regex for any case", "|~ `(?i)error|warn`"),
        ("full scan, a regex of many states", "|~ `(x|q).{6}[!$]`"),
        ("full scan, a regex for addresses", r"|~ `(?:[0-9]{1,3}\.){3}[0-9]{1,3}:99`"),
        ("full scan, a regex that has to read every number", r"|~ `\b5\d\d\b.*[!$]`"),
        ("full scan, a regex left to RE2 (too many states)", "|~ `[xq].{60}[!$]`"),
    ):
        asked = client.ask(
            "query_range", {"query": f"{ALL} {query}", "start": start_ns, "end": end_ns, "limit": 1000}, 2
        )
        rate = raw / asked.cpu / 1e9
        met = "" if rate >= 0.8 else " **missed**"
        note = f"{1e3 * min(asked.walls):,.0f} ms; {entries(asked)} lines"
        print(f"| {name} | {rate:.2f} GB/s/core{met} | 0.8 GB/s/core | {note} |", flush=True)
    assert server.process is not None
    for when, seconds in (("right after all of it", 0.0), ("a while later", STEADY_S)):
        time.sleep(seconds)
        memory = psutil.Process(server.process.pid).memory_info()
        print(
            f"\nRSS of the server {when}: {memory.rss / 1e6:.0f} MB, "
            f"of which {memory.shared / 1e6:.0f} MB are pages of files, parts among them"
        )
