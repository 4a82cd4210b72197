"""Unmodified agents that scrape, keep what they could not send, and send it when we are back: nothing is lost."""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.prometheus import Exporter, Prometheus, need
from tests.e2e.server import Server

SCRAPES = 4
"""Scrapes that each part of a test waits for: before the outage, in it and after it."""
FULL_DISK = "storage: {free_bytes_min: 1048576TiB}\n"
"""No disk has as much free, so that every write is answered 503."""


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    made = Exporter()
    yield made
    made.end()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: Callable[[], bool], seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.2)


def wait_scrapes(exporter: Exporter) -> None:
    goal = len(exporter.pages) + SCRAPES
    wait_for(lambda: len(exporter.pages) >= goal)


Page = dict[tuple[tuple[str, str], ...], bytes]
"""Labels of each series -> the bits of its value, every NaN alike."""


def bits(value: str) -> bytes:
    number = float(value)
    return struct.pack("<d", number) if number == number else b"NaN"


def parse(page: str) -> Page:
    """A page of the exporter as it is scraped; its lines are simple ones."""
    found: Page = {}
    for line in page.splitlines():
        if line.startswith("#"):
            continue
        series, _, value = line.rpartition(" ")
        name, _, labels = series.partition("{")
        pairs = [pair.split("=", 1) for pair in labels.rstrip("}").split(",") if pair]
        found[tuple(sorted([("__name__", name), *((k, v.strip('"')) for k, v in pairs)]))] = bits(value)
    return found


def stored(server: Server, job: str) -> tuple[dict[float, bool], dict[float, Page]]:
    """(time of each scrape -> whether it succeeded), (time -> what was scraped) as the server has them."""
    up = server.query(f'up{{job="{job}"}}[1h]')
    scrapes = {at: value == "1" for at, value in up[0]["values"]} if up else {}
    pages: dict[float, Page] = {}
    for row in server.query(f'{{__name__=~"demo_.+",job="{job}"}}[1h]'):
        metric = {name: value for name, value in row["metric"].items() if name not in ("job", "instance")}
        for at, value in row["values"]:
            pages.setdefault(at, {})[tuple(sorted(metric.items()))] = bits(value)
    return scrapes, pages


def assert_nothing_is_lost(server: Server, exporter: Exporter, job: str) -> None:
    """Every page that was scraped is stored, at the time of its scrape, bit by bit."""
    sent = len(exporter.pages)
    wait_for(lambda: len(stored(server, job)[0]) >= sent)
    scrapes, pages = stored(server, job)
    times = sorted(scrapes)[:sent]
    assert sum(scrapes[at] for at in times) >= 3 * SCRAPES - 2, "a slow machine may fail a scrape or two"
    for at, page in zip(times, exporter.pages, strict=False):
        if scrapes[at]:
            assert pages[at] == parse(page)


def test_prometheus_in_agent_mode(tmp_path: Path, exporter: Exporter) -> None:
    folders = [tmp_path / name for name in ("server", "agent")]
    for folder in folders:
        folder.mkdir()
    same_port = ("--listen", f"127.0.0.1:{free_port()}")
    with Server(folders[0], flags=same_port) as server:
        agent = Prometheus(folders[1], exporter.target, f"{server.url}/api/v1/write", agent=True)
        agent.__enter__()
        try:
            wait_scrapes(exporter)
            wait_for(lambda: len(stored(server, "demo")[0]) > 1)
            server.end()
            wait_scrapes(exporter)  # into its log
            with Server(folders[0], flags=same_port) as again:
                wait_scrapes(exporter)
                assert_nothing_is_lost(again, exporter, "demo")
        finally:
            agent.__exit__()


@pytest.fixture
def vmagent(tmp_path: Path, exporter: Exporter) -> Iterator[str]:
    """A vmagent that scrapes the exporter; the address that it writes to, where nobody listens yet."""
    address = f"127.0.0.1:{free_port()}"
    config = tmp_path / "scrape.yml"
    config.write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        f"scrape_configs: [{{job_name: vm, static_configs: [{{targets: ['{exporter.target}']}}]}}]\n"
    )
    command = [need("vmagent"), f"-promscrape.config={config}", f"-remoteWrite.url=http://{address}/api/v1/write"]
    command += [f"-httpListenAddr=127.0.0.1:{free_port()}", f"-remoteWrite.tmpDataPath={tmp_path / 'queue'}"]
    command += ["-remoteWrite.flushInterval=200ms", "-loggerLevel=WARN"]
    with (tmp_path / "vmagent.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield address
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers_503(server: Server) -> float:
    try:
        return server.metric('meshpulse_http_responses_total{code="503",path="/api/v1/write"}')
    except KeyError:
        return 0.0


def test_vmagent_repeats_what_is_answered_503(tmp_path: Path, exporter: Exporter, vmagent: str) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    same_port = ("--listen", vmagent)
    with Server(folder, FULL_DISK, same_port) as full:
        wait_for(lambda: answers_503(full) >= 2)
        wait_scrapes(exporter)
        assert full.metric('meshpulse_rejected_total{reason="disk_nearly_full"}') >= 2
        assert full.metric("meshpulse_received_samples_total") == 0
    with Server(folder, flags=same_port) as again:
        wait_scrapes(exporter)
        wait_scrapes(exporter)
        assert_nothing_is_lost(again, exporter, "vm")
