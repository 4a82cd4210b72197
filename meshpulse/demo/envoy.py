"""A real Envoy with statistics per endpoint, on free ports."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from meshpulse.demo.processes import Child, DemoError, console_script

CLUSTER = "checkout"
_START_S = 20.0
_HTTP = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "envoy.extensions.filters.http.router.v3.Router"


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def bootstrap(upstream_ports: Sequence[int]) -> dict[str, Any]:
    """Envoy's configuration: one listener, one cluster, statistics per endpoint; port 0 takes a free one."""
    manager = {
        "@type": f"type.googleapis.com/{_HTTP}",
        "stat_prefix": "front",
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": CLUSTER}}]}
            ]
        },
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"type.googleapis.com/{_ROUTER}"}}
        ],
    }
    connection = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    endpoints = [{"endpoint": {"address": _address(port)}} for port in upstream_ports]
    return {
        "node": {"id": "demo", "cluster": "demo"},
        "admin": {"address": _address(0)},
        "static_resources": {
            "listeners": [{"name": "front", "address": _address(0), "filter_chains": [{"filters": [connection]}]}],
            "clusters": [
                {
                    "name": CLUSTER,
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "lb_policy": "ROUND_ROBIN",
                    "track_cluster_stats": {"per_endpoint_stats": True},
                    "load_assignment": {"cluster_name": CLUSTER, "endpoints": [{"lb_endpoints": endpoints}]},
                }
            ],
        },
    }


class Envoy:
    """A running Envoy.

    Attributes
    ----------
    child : Child
    admin : ``HOST:PORT`` of its admin page, where ``/stats/prometheus`` is scraped
    front : ``HOST:PORT`` where it takes requests
    """

    def __init__(self, child: Child, admin: str, front: str) -> None:
        self.child = child
        self.admin = admin
        self.front = front

    @classmethod
    async def start(cls, folder: Path, upstream_ports: Sequence[int], client: aiohttp.ClientSession) -> Envoy:
        """Start Envoy and wait until it takes requests.

        Raises
        ------
        DemoError        it is not installed, ended, or did not start in time
        """
        config = folder / "envoy.json"
        config.write_text(json.dumps(bootstrap(upstream_ports)))
        admin_file = folder / "envoy.admin"
        command = [console_script("envoy"), "-c", str(config), "--admin-address-path", str(admin_file)]
        options = ["--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"]
        child = await Child.start("envoy", [*command, *options], folder)
        try:
            async with asyncio.timeout(_START_S):
                while not admin_file.exists() or not (admin := admin_file.read_text().strip()):
                    child.check()
                    await asyncio.sleep(0.1)
                while True:
                    child.check()
                    async with client.get(f"http://{admin}/listeners", params={"format": "json"}) as response:
                        listeners = (await response.json(content_type=None)).get("listener_statuses", [])
                    if listeners:
                        place = listeners[0]["local_address"]["socket_address"]
                        return cls(child, admin, f"{place['address']}:{place['port_value']}")
                    await asyncio.sleep(0.1)
        except TimeoutError:
            await child.end()
            raise DemoError(f"envoy did not start within {_START_S:g} s") from None
        except BaseException:
            await child.end()
            raise
