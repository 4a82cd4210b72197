"""A real nginx before faulty upstreams, its logs followed: verdicts, gates, and every line exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from meshpulse.demo.mesh import Upstream
from meshpulse.demo.nginx import find_nginx, nginx_command, nginx_config, nginx_files
from tests.e2e.envoys import free_ports, until
from tests.e2e.server import Server

NGINX = find_nginx()
pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx")

HOST = "nginx-1"
POLICY = {"name": "test", "mode": "enforce", "guards": {"warmup": "6s", "min_age": "6s"}}


def configuration(folder: Path) -> str:
    nginx: dict[str, Any] = nginx_files(folder)
    nginx["files"].append(
        {
            "paths": [str(folder / "*.combined.log")],
            "format": "combined",
            "site_pattern": r"(?P<site>[^/]+)\.combined\.log",
            "labels": {"env": "demo", "host": "combined"},
        }
    )
    return yaml.safe_dump(
        {
            "storage": {"free_bytes_min": 0, "free_fraction_min": 0},
            "nginx": nginx,
            "health": {"policies": [POLICY], "mappings": ["nginx_upstream"]},
        }
    )


class Front:
    """nginx, the upstreams of its sites, and clients.

    Attributes
    ----------
    sent : requests that were answered, by site
    """

    def __init__(self, folder: Path, sites: Mapping[str, int]) -> None:
        self.folder = folder
        (self.port,) = free_ports(1)
        self._held = socket.socket()  # bound, so that nobody else gets the port, and not listening
        self._held.bind(("127.0.0.1", 0))
        self.closed = self._held.getsockname()[1]
        self.upstreams = {site: [Upstream(f"{site}-{i}", 0.002) for i in range(n)] for site, n in sites.items()}
        self.all_upstreams = [upstream for group in self.upstreams.values() for upstream in group]
        self.sent = dict.fromkeys(sites, 0)
        self._process: subprocess.Popen[bytes] | None = None
        self._traffic: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Front]:
        assert NGINX is not None
        try:
            for upstream in self.all_upstreams:
                await upstream.start()
            self.configure({site: self.addresses(site) for site in self.upstreams})
            log = self.folder / "nginx.out"
            with log.open("wb") as out:
                command = nginx_command(NGINX, self.folder)
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            await until("nginx listens", 20, lambda: (self.folder / "nginx.pid").exists() and self._answers())
            yield self
        finally:
            await self.stop_traffic()
            if self._process is not None:
                self._process.terminate()
                await asyncio.to_thread(self._process.wait, 20)
            self._held.close()
            for upstream in self.all_upstreams:
                await upstream.end()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "nginx.out").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def addresses(self, site: str) -> list[str]:
        return [f"127.0.0.1:{upstream.port}" for upstream in self.upstreams[site]]

    def configure(self, sites: Mapping[str, Sequence[str]]) -> None:
        (self.folder / "nginx.conf").write_text(nginx_config(self.folder, self.port, sites))
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def reopen(self) -> None:
        """What logrotate does: rename, then tell nginx."""
        log = self.folder / "access.json"
        log.rename(f"{log}.{len(list(self.folder.glob('access.json*')))}")
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)

    async def request(self, client: aiohttp.ClientSession, site: str, path: str = "/") -> None:
        async with client.get(f"http://127.0.0.1:{self.port}{path}", headers={"Host": site}) as response:
            await response.read()
        self.sent[site] += 1

    def start_traffic(self, client: aiohttp.ClientSession, rps: float) -> None:
        self._traffic = [asyncio.create_task(self._steady(client, site, rps)) for site in self.sent]

    async def _steady(self, client: aiohttp.ClientSession, site: str, rps: float) -> None:
        begin, done = time.monotonic(), 0
        while time.monotonic() - begin < 180:
            while done < (time.monotonic() - begin) * rps:
                done += 1
                await self.request(client, site, f"/item/{done}")
            await asyncio.sleep(0.01)

    async def stop_traffic(self) -> None:
        """End after the requests that are on their way: a request that is given up is logged too."""
        for task in self._traffic:
            task.cancel()
        await asyncio.gather(*self._traffic, return_exceptions=True)
        self._traffic = []


def states(server: Server, service: str) -> dict[str, str]:
    data = server.get("/api/v1/health/endpoints", service=service).json()["data"]
    return {e["endpoint"]: e["state"] for e in data["endpoints"]}


def total(server: Server, query: str) -> float:
    return sum(float(row["value"][1]) for row in server.query(query))


def logged(server: Server, selector: str) -> int:
    reply = server.get("/loki/api/v1/query", query=f"sum(count_over_time({selector}[1h]))")
    assert reply.status == 200, reply.body
    return sum(int(row["value"][1]) for row in reply.json()["data"]["result"])


async def closed_loop(folder: Path) -> None:
    async with aiohttp.ClientSession() as client, Front(folder, {"a.example": 6, "b.example": 3}).running() as front:
        server = await asyncio.to_thread(Server(folder, configuration(folder)).__enter__)
        try:
            front.start_traffic(client, 60.0)
            await until("everybody healthy", 60, lambda: set(states(server, "a.example").values()) == {"healthy"})
            assert sorted(states(server, "a.example")) == sorted(front.addresses("a.example"))
            await asyncio.sleep(8)

            bad = front.upstreams["a.example"][2]
            address = f"127.0.0.1:{bad.port}"
            bad.failing = 0.7  # over half, where the guard `capacity` no longer asks what the others can carry
            await until("ejected", 60, lambda: states(server, "a.example")[address] == "ejected")
            assert [a for a, s in states(server, "a.example").items() if s == "ejected"] == [address]
            told = server.get("/api/v1/health/explain", service="a.example", endpoint=address).json()["data"]
            assert "of attempts fail" in told["reason"]
            ejected = next(event for event in told["events"] if event["type"] == "ejected")
            assert (ejected["evidence"]["detector"], ejected["evidence"]["errors"] >= 5) == ("error_ratio", True)
            # clients saw next to nothing of it: nginx tried again elsewhere, and the lists tell who failed
            query = 'sum(nginx_upstream_requests_total{site="a.example",status_class="5xx"}) by (upstream_addr)'
            assert {row["metric"]["upstream_addr"] for row in server.query(query)} == {address}
            assert server.query('nginx_upstream_response_time_seconds_count{site="a.example"}')

            bad.failing = 0.0
            changed_at = f"{time.time():.3f}"
            front.configure({"a.example": front.addresses("a.example"), "b.example": [f"127.0.0.1:{front.closed}"]})
            # the combined format is written by the same machine: it is no peer of itself
            gate = {"host": HOST, "changed_at": changed_at, "baseline": "10s", "updated": "combined"}

            def halted() -> bool:
                reply = server.get("/api/v1/health/gates/test", site="b.example", **gate)
                assert reply.status in (412, 425), reply.body
                return reply.status == 412

            await until("the broken site halts", 60, halted)
            found = server.get("/api/v1/health/gates/test", status="200", **gate)
            assert (found.status, found.json()["data"]["verdict"]) == (200, "halt")
            assert "b.example: " in found.json()["data"]["reason"]
            command = [Path(sys.executable).parent / "meshpulse", "health", "gate", "test", "--site", "b.example"]
            command += [
                "--host",
                HOST,
                "--changed-at",
                changed_at,
                "--baseline",
                "10s",
                "--updated",
                "combined",
                "--url",
                server.url,
            ]
            said = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
            assert (said.returncode, said.stdout[:5]) == (1, "halt:"), said
            await until(
                "the other site goes",
                60,
                lambda: server.get("/api/v1/health/gates/test", site="a.example", **gate).status == 200,
            )

            failures = f'nginx_upstream_connect_failures_total{{upstream_addr="127.0.0.1:{front.closed}"}}'
            await until("connect failures are counted", 20, lambda: total(server, failures) > 0)
            blamed = 'nginx_upstream_error_log_lines_total{site="b.example",kind="connect"}'
            await until("the error log is counted", 20, lambda: total(server, blamed) > 0)
            assert logged(server, '{log="error",site="b.example"} |= "Connection refused"') > 0
            ratio = (
                'sum(count_over_time({log="access",site="b.example",host="nginx-1"} | json | status >= 500 [1m])) / '
                'sum(count_over_time({log="access",site="b.example",host="nginx-1"}[1m]))'
            )
            assert 0 < float(server.get("/loki/api/v1/query", query=ratio).json()["data"]["result"][0]["value"][1]) <= 1
            combined = 'sum(nginx_requests_total{host="combined",site="b.example",status_class="5xx"})'
            assert total(server, combined) > 0
            labels = server.get("/loki/api/v1/series", match='{job="nginx"}').json()["data"]
            assert {name for row in labels for name in row} == {"job", "site", "env", "host", "log"}
        finally:
            await asyncio.to_thread(server.__exit__)


def test_a_faulty_upstream_and_a_broken_configuration(tmp_path: Path) -> None:
    asyncio.run(closed_loop(tmp_path))


async def exactly_once(folder: Path) -> None:
    async with aiohttp.ClientSession() as client, Front(folder, {"a.example": 2}).running() as front:
        server = await asyncio.to_thread(Server(folder, configuration(folder)).__enter__)
        try:
            front.start_traffic(client, 200.0)
            read = '{log="access",host="nginx-1"}'
            await until("lines arrive", 30, lambda: logged(server, read) > 300)
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(0.5)
            front.reopen()
            await asyncio.sleep(1)
            server = await asyncio.to_thread(Server(folder, configuration(folder)).__enter__)
            before = logged(server, read)
            await until("lines arrive again", 30, lambda: logged(server, read) > before + 300)
            front.reopen()
            await asyncio.sleep(1)
            await front.stop_traffic()
            lines = 0
            for _ in range(100):
                lines = sum(file.read_bytes().count(b"\n") for file in folder.glob("access.json*"))
                if logged(server, read) == lines:
                    break
                await asyncio.sleep(0.2)
            assert logged(server, read) == lines >= front.sent["a.example"]
            ids = server.get(
                "/loki/api/v1/query",
                query=f"count(sum by (request_id) (count_over_time({read} | json request_id [1h])))",
            )
            if ids.status == 200:  # below the limit of series of a query
                assert int(ids.json()["data"]["result"][0]["value"][1]) == lines
        finally:
            await asyncio.to_thread(server.__exit__)


def test_kill_and_rotation_lose_and_double_nothing(tmp_path: Path) -> None:
    asyncio.run(exactly_once(tmp_path))
    assert os.path.exists(tmp_path / "data/nginx/positions.json")
