"""Real Envoys with statistics per endpoint, on free ports, that learn their endpoints from meshpulse."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from meshpulse.demo.processes import Child, DemoError, console_script

CLUSTER = "checkout"
_CONTROL = "meshpulse"
_START_S = 20.0
_HTTP = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "envoy.extensions.filters.http.router.v3.Router"


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def bootstrap(name: str, control_port: int, detectors: Mapping[str, Any]) -> dict[str, Any]:
    """Envoy's configuration: one listener, one cluster by REST EDS, outlier detection of its own.

    Parameters
    ----------
    control_port : where meshpulse will listen
    detectors : ``outlier_detection`` of the cluster, what is left out has Envoy's defaults
    """
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
    control = {
        "api_type": "REST",
        "transport_api_version": "V3",
        "cluster_names": [_CONTROL],
        "refresh_delay": "0.01s",
        "request_timeout": "30s",
    }
    return {
        "node": {"id": name, "cluster": "demo"},
        "admin": {"address": _address(0)},
        "static_resources": {
            "listeners": [{"name": "front", "address": _address(0), "filter_chains": [{"filters": [connection]}]}],
            "clusters": [
                {
                    "name": CLUSTER,
                    "type": "EDS",
                    "connect_timeout": "1s",
                    "lb_policy": "ROUND_ROBIN",
                    "track_cluster_stats": {"per_endpoint_stats": True},
                    "outlier_detection": dict(detectors),
                    "eds_cluster_config": {
                        "eds_config": {
                            "resource_api_version": "V3",
                            "initial_fetch_timeout": "0s",
                            "api_config_source": control,
                        }
                    },
                },
                {
                    "name": _CONTROL,
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "load_assignment": {
                        "cluster_name": _CONTROL,
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(control_port)}}]}],
                    },
                },
            ],
        },
    }


class Envoy:
    """A running Envoy.

    Attributes
    ----------
    child : Child
    admin : ``HOST:PORT`` of its admin page, where ``/stats/prometheus`` is scraped
    front : ``HOST:PORT`` where it takes requests; "" until :meth:`wait_ready` is through
    """

    def __init__(self, child: Child, admin: str) -> None:
        self.child = child
        self.admin = admin
        self.front = ""

    @classmethod
    async def start(
        cls, folder: Path, name: str, control_port: int, detectors: Mapping[str, Any] | None = None
    ) -> Envoy:
        """Start Envoy and wait until its admin page is there.

        Raises
        ------
        DemoError        it is not installed, ended, or did not start in time
        """
        config = folder / f"{name}.json"
        config.write_text(json.dumps(bootstrap(name, control_port, detectors or {})))
        admin_file = folder / f"{name}.admin"
        command = [console_script("envoy"), "-c", str(config), "--admin-address-path", str(admin_file)]
        options = ["--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]
        child = await Child.start(name, [*command, *options], folder)
        try:
            async with asyncio.timeout(_START_S):
                while not admin_file.exists() or not (admin := admin_file.read_text().strip()):
                    child.check()
                    await asyncio.sleep(0.1)
        except TimeoutError:
            await child.end()
            raise DemoError(f"{name} did not start within {_START_S:g} s") from None
        except BaseException:
            await child.end()
            raise
        return cls(child, admin)

    async def wait_ready(self, client: aiohttp.ClientSession) -> None:
        """Wait until it knows its endpoints and takes requests.

        Raises
        ------
        DemoError        it ended, or did not get so far in time
        """
        try:
            async with asyncio.timeout(_START_S):
                while True:
                    self.child.check()
                    async with client.get(f"http://{self.admin}/listeners", params={"format": "json"}) as response:
                        listeners = (await response.json(content_type=None)).get("listener_statuses", [])
                    if listeners:
                        place = listeners[0]["local_address"]["socket_address"]
                        self.front = f"{place['address']}:{place['port_value']}"
                        return
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise DemoError(f"{self.child.name} got no endpoints within {_START_S:g} s") from None
