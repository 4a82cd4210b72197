"""``make bench``: every figure of the README, beside the peers that are installed, with the bar it is held to."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from benchmarks import catchup, ingest, mixed, query, scrape, senders, startup
from benchmarks.peers import all_servers, meshpulse

SERIES = 100_000
QUERY_SERIES = 10_000
QUERY_HOURS = 6.0


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _row(what: str, ours: str, bar: str, peers: str) -> None:
    print(f"| {what} | {ours} | {bar} | {peers} |")


def _peers(figures: dict[str, float], form: str) -> str:
    """Peers' figures and ours as a multiple of theirs."""
    ours = figures["meshpulse"]
    return "; ".join(
        f"{name} {format(value, form)} ({ours / value:.2f}x)" for name, value in figures.items() if name != "meshpulse"
    )


def main() -> None:
    """Measure everything and print one table."""
    print(f"{_cpu()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}\n")
    written: dict[str, ingest.IngestFigures] = {}
    asked: dict[str, query.QueryFigures] = {}
    for server in all_servers():
        print(f"ingest: {server.name}", file=sys.stderr)
        with server:
            written[server.name] = ingest.measure(server, SERIES, 30)
    for server in all_servers():
        print(f"query: {server.name}", file=sys.stderr)
        with server:
            asked[server.name] = query.measure(server, QUERY_SERIES, QUERY_HOURS)
    cold, warm = startup.measure()

    mine, my = written["meshpulse"], asked["meshpulse"]
    print("| figure | meshpulse | bar | peers (ours / theirs) |")
    print("|---|---|---|---|")
    _row(
        "ingest, ns CPU a sample, HTTP to fsynced WAL",
        f"{mine.sample_ns:.0f}",
        "0.20x VictoriaMetrics, 0.05x Prometheus",
        _peers({n: f.sample_ns for n, f in written.items()}, ".0f"),
    )
    _row(
        "new series, us CPU",
        f"{mine.new_series_us:.1f}",
        "20",
        _peers({n: f.new_series_us for n, f in written.items()}, ".1f"),
    )
    _row(
        "RSS a series after 30 samples, B",
        f"{mine.rss_per_series:.0f}",
        "900",
        _peers({n: f.rss_per_series for n, f in written.items()}, ".0f"),
    )
    _row(
        f"samples/s, {ingest.SENDERS} connections",
        f"{mine.wall_samples_per_second:,.0f}",
        "2,500,000",
        _peers({n: f.wall_samples_per_second for n, f in written.items()}, ",.0f"),
    )
    with meshpulse() as server:
        both = mixed.measure(server, SERIES)
    _row(
        f"one series, instant, p99 ms while {both.samples_per_second / 1e6:.2f} M samples/s are written",
        f"{both.busy_p99:.1f} ({both.busy_p99 / both.idle_p99:.1f}x idle)",
        "20",
        "",
    )
    with meshpulse() as server:
        caught = catchup.measure(server, SERIES)
    _row(
        "catch-up after an hour, times real time",
        f"{caught.times_real_time:.0f} ({caught.sample_ns:.0f} ns CPU a sample)",
        "10",
        "",
    )
    protocols = senders.measure_all()
    first = protocols["remote-write 1.0"]
    for name, bar in (("remote-write 2.0", "1.0x remote-write 1.0"), ("OTLP", "2.0x remote-write 1.0")):
        _row(f"{name}, ns CPU a sample", f"{protocols[name]:.0f} ({protocols[name] / first:.2f}x)", bar, "")
    scraped = scrape.measure_all()
    _row(
        f"scraping {scrape.TARGETS} targets x {scrape.SERIES} series every {scrape.INTERVAL_S} s, % of a core",
        f"{scraped['meshpulse']:.1f}",
        "10",
        _peers(scraped, ".1f"),
    )
    _row(
        "sum by (rate[5m]), 14.4 M samples, ms wall",
        f"{my.sum_rate_wall_ms:.0f}",
        "0.50x VictoriaMetrics, 0.10x Prometheus",
        _peers({n: f.sum_rate_wall_ms for n, f in asked.items()}, ".0f"),
    )
    _row(
        "the same, ms CPU",
        f"{my.sum_rate_cpu_ms:.0f}",
        "",
        _peers({n: f.sum_rate_cpu_ms for n, f in asked.items()}, ".0f"),
    )
    _row(
        "one series, instant, p50 ms",
        f"{my.instant_p50_ms:.2f}",
        "1.5x the peers",
        _peers({n: f.instant_p50_ms for n, f in asked.items()}, ".2f"),
    )
    _row(
        "1,000 x 1,000 matrix as JSON, ms CPU of the whole query",
        f"{my.matrix_cpu_ms:.0f}",
        "100",
        _peers({n: f.matrix_cpu_ms for n, f in asked.items()}, ".0f"),
    )
    _row("start to ready, warm kernel cache, CPU s", f"{warm:.2f}", "2", "")
    _row("start to ready, kernels compiled, CPU s", f"{cold:.1f}", "60", "")


if __name__ == "__main__":
    main()
