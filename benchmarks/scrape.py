"""What scraping costs: 100 Envoys of 1,000 series each, every 5 s, as CPU of the whole server in percent of one core.

    python -m benchmarks.scrape [--targets 100] [--series 1000] [--seconds 30] [--gzip]

The targets are one process of their own, a port each; its CPU does not count. Values of half of the series change from
scrape to scrape. Prometheus and VictoriaMetrics scrape the same targets one after the other where they are installed.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import http.client
import itertools
import json
import multiprocessing
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from benchmarks.peers import Server, all_servers, meshpulse

TARGETS, SERIES, INTERVAL_S, SECONDS = 100, 1000, 5, 30
_CHANGING = 2  # every so many-th series changes between two scrapes
_BOUNDS = ("0.5", "1", "5", "10", "25", "50", "100", "250", "500", "1000", "+Inf")
_COUNTERS = (
    "upstream_rq_completed", "upstream_rq_total", "upstream_rq_retry", "upstream_rq_timeout", "upstream_rq_rx_reset",
    "upstream_cx_total", "upstream_cx_connect_fail", "upstream_cx_rx_bytes_total", "upstream_cx_tx_bytes_total",
    "upstream_rq_pending_total", "upstream_rq_cancelled", "membership_change", "update_success", "lb_healthy_panic",
)  # fmt: skip
_GAUGES = (
    "upstream_cx_active", "upstream_rq_active", "upstream_rq_pending_active", "membership_healthy",
    "membership_total", "circuit_breakers_default_remaining_rq", "version", "max_host_weight",
)  # fmt: skip


class EnvoyPage:
    """The page of one Envoy, with values that move."""

    def __init__(self, series: int, seed: int) -> None:
        self._random = random.Random(seed)
        keys = list(itertools.islice(self._keys(), series))
        families: dict[str, list[str]] = {}
        for kind, family, key in keys:
            families.setdefault(f"# TYPE {family} {kind}\n", []).append(key)
        self._lines: list[str] = []  # text left of each value, with the comment before it
        for comment, members in families.items():
            self._lines += [(comment if i == 0 else "") + key for i, key in enumerate(members)]
        self._values = [self._random.randrange(10 ** self._random.randrange(1, 8)) for _ in self._lines]

    @staticmethod
    def _keys() -> Iterator[tuple[str, str, str]]:
        for number in itertools.count():
            label = f'envoy_cluster_name="outbound|8080||service-{number:03d}.payments.svc.cluster.local"'
            for name in _COUNTERS:
                yield "counter", f"envoy_cluster_{name}", f"envoy_cluster_{name}{{{label}}}"
            for code in ("200", "404", "503"):
                key = f'envoy_cluster_upstream_rq{{envoy_response_code="{code}",{label}}}'
                yield "counter", "envoy_cluster_upstream_rq", key
            for name in _GAUGES:
                yield "gauge", f"envoy_cluster_{name}", f"envoy_cluster_{name}{{{label}}}"
            family = "envoy_cluster_upstream_rq_time"
            for bound in _BOUNDS:
                yield "histogram", family, f'{family}_bucket{{{label},le="{bound}"}}'
            yield "histogram", family, f"{family}_sum{{{label}}}"
            yield "histogram", family, f"{family}_count{{{label}}}"

    def text(self) -> bytes:
        """The page now; every call moves some values."""
        first = self._random.randrange(_CHANGING)
        for i in range(first, len(self._values), _CHANGING):
            self._values[i] += self._random.randrange(1, 200)
        return "".join(f"{line} {value}\n" for line, value in zip(self._lines, self._values, strict=True)).encode()


async def _serve(targets: int, series: int, compress: bool, pipe: Connection) -> None:
    def answer(page: EnvoyPage) -> bytes:
        body = page.text()
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=UTF-8\r\n"
        if compress:
            body = gzip.compress(body, 1)
            head += "Content-Encoding: gzip\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def start(seed: int) -> int:
        page = EnvoyPage(series, seed)

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(answer(page))
                    await writer.drain()
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        return int(server.sockets[0].getsockname()[1])

    pipe.send([await start(seed) for seed in range(targets)])
    await asyncio.Event().wait()


def _serve_forever(targets: int, series: int, compress: bool, pipe: Connection) -> None:
    asyncio.run(_serve(targets, series, compress, pipe))


@contextmanager
def envoys(targets: int, series: int, compress: bool) -> Iterator[list[int]]:
    """A process that plays the targets; yields their ports."""
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve_forever, args=(targets, series, compress, theirs), daemon=True
    )
    process.start()
    try:
        yield mine.recv()
    finally:
        process.terminate()
        process.join()


def _configure(server: Server, ports: list[int]) -> None:
    """Make a server that has not started yet scrape the targets."""
    job = {
        "job_name": "envoy",
        "scrape_interval": f"{INTERVAL_S}s",
        "scrape_timeout": f"{INTERVAL_S}s",
        "metrics_path": "/stats/prometheus",
        "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}],
    }
    text = f"scrape_configs: {json.dumps([job])}\n"  # JSON is YAML
    if server.name == "meshpulse":
        file = server.folder / "config.yaml"
        file.write_text(file.read_text() + text)
    elif server.name == "Prometheus":
        (server.folder / "prometheus.yml").write_text(text)
    else:
        (server.folder / "scrape.yml").write_text(text)
        server.command.append(f"-promscrape.config={server.folder / 'scrape.yml'}")


def _fresh(server: Server, targets: int) -> int:
    """Targets that were scraped well within the last interval and a half."""
    path = f"/api/v1/query?query=count(count_over_time(up%5B{int(INTERVAL_S * 1.5)}s%5D)%3E0+and+up%3D%3D1)"
    try:
        status, body = server.get(path)
    except (OSError, http.client.HTTPException):
        return 0
    result = json.loads(body)["data"]["result"] if status == 200 else []
    return min(targets, int(float(result[0]["value"][1]))) if result else 0


def _core_percent(server: Server, seconds: float) -> float:
    """CPU of the whole process over a while, in percent of one core."""
    before, begin = server.cpu_seconds(), time.monotonic()
    time.sleep(seconds)
    return 100 * (server.cpu_seconds() - before) / (time.monotonic() - begin)


def measure(server: Server, ports: list[int], seconds: float = SECONDS) -> float:
    """Let a server scrape until every target is known, then look at its CPU (percent of one core) for a while."""
    _configure(server, ports)
    with server:
        deadline = time.monotonic() + 120
        while _fresh(server, len(ports)) < len(ports):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{server.name} scrapes {_fresh(server, len(ports))} of {len(ports)} targets")
            time.sleep(0.5)
        time.sleep(2 * INTERVAL_S)
        percent = _core_percent(server, seconds)
        if _fresh(server, len(ports)) < len(ports):
            raise RuntimeError(f"{server.name} lost targets")
    return percent


def measure_idle(seconds: float = SECONDS) -> float:
    """CPU of a meshpulse that nobody asks anything, in percent of one core."""
    with meshpulse() as server:
        server.settle()
        return _core_percent(server, seconds)


def measure_all(
    targets: int = TARGETS, series: int = SERIES, seconds: float = SECONDS, compress: bool = False
) -> dict[str, float]:
    """CPU of every server that is installed, by name, in percent of one core."""
    figures = {}
    with envoys(targets, series, compress) as ports:
        for server in all_servers():
            print(f"scrape: {server.name}", file=sys.stderr)
            figures[server.name] = measure(server, ports, seconds)
    return figures


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, default=TARGETS)
    parser.add_argument("--series", type=int, default=SERIES)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--gzip", action="store_true", help="targets compress their pages")
    options = parser.parse_args()
    figures = measure_all(options.targets, options.series, options.seconds, options.gzip)
    idle = measure_idle(options.seconds)
    print(f"{options.targets} targets x {options.series} series every {INTERVAL_S} s, % of one core\n")
    print("| server | CPU | ours / theirs |")
    print("|---|---|---|")
    ours = figures["meshpulse"]
    for name, percent in figures.items():
        print(f"| {name} | {percent:.1f} % | {ours / percent:.2f}x |")
    print(f"| meshpulse, idle | {idle:.1f} % | |")


if __name__ == "__main__":
    main()
