"""Real Envoys that get their endpoints from meshpulse by REST EDS, six small upstreams, and steady traffic."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

from meshpulse.demo.mesh import Upstream

CLUSTER = "checkout"
ENVOY = Path(sys.executable).parent / "envoy"
_HTTP = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "envoy.extensions.filters.http.router.v3.Router"


def free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(n)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def bootstrap(name: str, admin: int, front: int, meshpulse: int, retries: int) -> dict[str, Any]:
    action: dict[str, Any] = {"cluster": CLUSTER}
    if retries:
        action["retry_policy"] = {"retry_on": "5xx", "num_retries": retries}
    route = {"match": {"prefix": "/"}, "route": action}
    manager = {
        "@type": f"type.googleapis.com/{_HTTP}",
        "stat_prefix": "front",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"type.googleapis.com/{_ROUTER}"}}
        ],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    control = {
        "api_type": "REST",
        "transport_api_version": "V3",
        "cluster_names": ["meshpulse"],
        "refresh_delay": "0.01s",
        "request_timeout": "30s",
    }
    cluster: dict[str, Any] = {
        "name": CLUSTER,
        "type": "EDS",
        "connect_timeout": "1s",
        "lb_policy": "ROUND_ROBIN",
        "outlier_detection": {},  # with all its defaults, and blind to what is tried here
        "track_cluster_stats": {"per_endpoint_stats": True},
        "eds_cluster_config": {"eds_config": {"resource_api_version": "V3", "api_config_source": control}},
    }
    static = {
        "name": "meshpulse",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": "meshpulse",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(meshpulse)}}]}],
        },
    }
    return {
        "node": {"id": name, "cluster": "test"},
        "admin": {"address": _address(admin)},
        "static_resources": {
            "listeners": [{"name": "front", "address": _address(front), "filter_chains": [{"filters": filters}]}],
            "clusters": [cluster, static],
        },
    }


class EnvoyMesh:
    """Envoys, upstreams and traffic; ``async with`` ends all of them.

    Attributes
    ----------
    upstreams : ``failing`` of each may be changed
    sent, failed : requests so far, and those that were not answered by 200
    """

    def __init__(self, folder: Path, envoys: int, upstreams: int, rps: float) -> None:
        self.folder = folder
        self.rps = rps
        self.upstreams = [Upstream(chr(ord("a") + i), 0.002) for i in range(upstreams)]
        ports = free_ports(2 * envoys + 1)
        self.meshpulse, self.admins, self.fronts = ports[0], ports[1 : envoys + 1], ports[envoys + 1 :]
        self.sent = self.failed = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._traffic: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> EnvoyMesh:
        for upstream in self.upstreams:
            await upstream.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._traffic:
            task.cancel()
        await asyncio.gather(*self._traffic, return_exceptions=True)
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(10)
        for upstream in self.upstreams:
            await upstream.end()

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{upstream.port}" for upstream in self.upstreams]

    def topology(self) -> str:
        return json.dumps({"services": {CLUSTER: {"endpoints": self.addresses}}})

    def config(self, policy: dict[str, Any]) -> str:
        topology = self.folder / "topology.yml"
        topology.write_text(self.topology())
        targets = [f"127.0.0.1:{admin}" for admin in self.admins]
        job = {"job_name": "envoy", "metrics_path": "/stats/prometheus", "params": {"filter": ["endpoint"]},
               "static_configs": [{"targets": targets}]}  # fmt: skip
        return json.dumps(
            {
                "global": {"scrape_interval": "2s", "scrape_timeout": "2s"},
                "storage": {"free_bytes_min": 0, "free_fraction_min": 0},
                "scrape_configs": [job],
                "health": {"policies": [policy], "topology": [{"file": str(topology)}], "topology_interval": "1s"},
            }
        )

    def start_envoys(self, retries: int = 0) -> None:
        for i, (admin, front) in enumerate(zip(self.admins, self.fronts, strict=True)):
            file = self.folder / f"envoy-{i}.json"
            file.write_text(json.dumps(bootstrap(f"envoy-{i}", admin, front, self.meshpulse, retries)))
            command = [ENVOY, "-c", file, "--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"]
            with (self.folder / f"envoy-{i}.log").open("wb") as log:
                self._processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    async def start_traffic(self, client: aiohttp.ClientSession) -> None:
        """Send to every Envoy, as soon as all of them answer."""
        until = time.monotonic() + 30
        for front in self.fronts:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with client.get(f"http://127.0.0.1:{front}/") as reply:
                        if reply.status == 200:
                            break
                assert time.monotonic() < until, "envoy does not answer"
                await asyncio.sleep(0.2)
        self._traffic = [asyncio.create_task(self._send(front, client)) for front in self.fronts]

    async def _send(self, front: int, client: aiohttp.ClientSession) -> None:
        running: set[asyncio.Task[None]] = set()

        async def one() -> None:
            status = 0
            # RuntimeError: the session is closed at the end
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, RuntimeError):
                async with client.get(f"http://127.0.0.1:{front}/") as reply:
                    status = reply.status
                    await reply.read()
            self.sent += 1
            self.failed += status != 200

        while True:
            await asyncio.sleep(random.expovariate(self.rps))
            if len(running) < 32:
                task = asyncio.create_task(one())
                running.add(task)
                task.add_done_callback(running.discard)


async def until(what: str, seconds: float, done: Any, every: float = 0.25) -> float:
    """Wait for something; how long it took."""
    begin = time.monotonic()
    while not await asyncio.to_thread(done):
        assert time.monotonic() - begin < seconds, f"{what}: not within {seconds} s"
        await asyncio.sleep(every)
    return time.monotonic() - begin
