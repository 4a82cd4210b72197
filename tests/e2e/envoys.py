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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from meshpulse.demo.mesh import Upstream

CLUSTER = "checkout"
ENVOY = Path(sys.executable).parent / "envoy"
_HTTP = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_PROTOCOL = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_ROUTER = "envoy.extensions.filters.http.router.v3.Router"


def free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(n)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def listener(front: int, routes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A front door: path prefix -> route action."""
    manager = {
        "@type": f"type.googleapis.com/{_HTTP}",
        "stat_prefix": "front",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": prefix}, "route": action} for prefix, action in routes.items()],
                }
            ]
        },
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"type.googleapis.com/{_ROUTER}"}}
        ],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {"name": "front", "address": _address(front), "filter_chains": [{"filters": filters}]}


REST = {
    "resource_api_version": "V3",
    "api_config_source": {
        "api_type": "REST",
        "transport_api_version": "V3",
        "cluster_names": ["meshpulse"],
        "refresh_delay": "0.01s",
        "request_timeout": "30s",
    },
}
"""Where endpoints come from: REST EDS of the cluster ``meshpulse``."""
GRPC_SERVICE = {
    "api_type": "GRPC",
    "transport_api_version": "V3",
    "grpc_services": [{"envoy_grpc": {"cluster_name": "meshpulse_grpc"}}],
}
GRPC = {"resource_api_version": "V3", "api_config_source": GRPC_SERVICE}
ADS = {"resource_api_version": "V3", "ads": {}}


def eds_cluster(name: str, source: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A cluster whose endpoints come from that source."""
    return {
        "name": name,
        "type": "EDS",
        "connect_timeout": "1s",
        "lb_policy": "ROUND_ROBIN",
        "eds_cluster_config": {"eds_config": dict(source)},
        **more,
    }


def static_cluster(name: str, *ports: int, http2: bool = False) -> dict[str, Any]:
    """A cluster of fixed endpoints."""
    endpoints = [{"endpoint": {"address": _address(port)}} for port in ports]
    cluster: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    }
    if http2:
        options = {"@type": f"type.googleapis.com/{_PROTOCOL}", "explicit_http_config": {"http2_protocol_options": {}}}
        cluster["typed_extension_protocol_options"] = {_PROTOCOL: options}
    return cluster


def document(name: str, admin: int, front: dict[str, Any], clusters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A whole bootstrap."""
    return {
        "node": {"id": name, "cluster": "test"},
        "admin": {"address": _address(admin)},
        "static_resources": {"listeners": [front], "clusters": list(clusters)},
    }


def bootstrap(name: str, admin: int, front: int, meshpulse: int, retries: int, grpc: int = 0) -> dict[str, Any]:
    """One proxy of the mesh: endpoints by REST and counters to be scraped; or, with a port, both by gRPC."""
    action: dict[str, Any] = {"cluster": CLUSTER}
    if retries:
        action["retry_policy"] = {"retry_on": "5xx", "num_retries": retries}
    more: dict[str, Any] = {"outlier_detection": {}}  # with all its defaults, and blind to what is tried here
    if not grpc:  # it excludes load reports
        more["track_cluster_stats"] = {"per_endpoint_stats": True}
    clusters = [
        eds_cluster(CLUSTER, GRPC if grpc else REST, **more),
        static_cluster("meshpulse", meshpulse),
        static_cluster("meshpulse_grpc", grpc or 1, http2=True),
    ]
    made = document(name, admin, listener(front, {"/": action}), clusters)
    if grpc:
        made["cluster_manager"] = {"load_stats_config": GRPC_SERVICE}
    return made


@contextlib.contextmanager
def envoy(folder: Path, config: Mapping[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """A running Envoy."""
    name = config["node"]["id"]
    file = folder / f"{name}.json"
    file.write_text(json.dumps(config))
    command = [ENVOY, "-c", file, "--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


class EnvoyMesh:
    """Envoys, upstreams and traffic; ``async with`` ends all of them.

    Attributes
    ----------
    upstreams : ``failing`` of each may be changed
    sent, failed : requests so far, and those that were not answered by 200
    """

    def __init__(self, folder: Path, envoys: int, upstreams: int, rps: float, *, grpc: bool = False) -> None:
        self.folder = folder
        self.rps = rps
        self.upstreams = [Upstream(chr(ord("a") + i), 0.002) for i in range(upstreams)]
        ports = free_ports(2 * envoys + 2)
        self.meshpulse, self.grpc = ports[0], ports[1] if grpc else 0
        self.admins, self.fronts = ports[2 : envoys + 2], ports[envoys + 2 :]
        self.sent = self.failed = 0
        self._envoys = contextlib.ExitStack()
        self._traffic: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> EnvoyMesh:
        for upstream in self.upstreams:
            await upstream.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._traffic:
            task.cancel()
        await asyncio.gather(*self._traffic, return_exceptions=True)
        self._envoys.close()
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
        health = {"policies": [policy], "topology": [{"file": str(topology)}], "topology_interval": "1s"}
        if self.grpc:
            health["grpc_listen"] = f"127.0.0.1:{self.grpc}"
        return json.dumps(
            {
                "global": {"scrape_interval": "2s", "scrape_timeout": "2s"},
                "storage": {"free_bytes_min": 0, "free_fraction_min": 0},
                "scrape_configs": [] if self.grpc else [job],
                "health": health,
            }
        )

    def start_envoys(self, retries: int = 0) -> None:
        for i, (admin, front) in enumerate(zip(self.admins, self.fronts, strict=True)):
            config = bootstrap(f"envoy-{i}", admin, front, self.meshpulse, retries, self.grpc)
            self._envoys.enter_context(envoy(self.folder, config))

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
