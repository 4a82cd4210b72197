"""``meshpulse serve`` beside the Envoys: it scrapes them and itself, and tells them their endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from meshpulse.demo.envoy import CLUSTER, Envoy
from meshpulse.demo.mesh import Upstream
from meshpulse.demo.processes import Child, DemoError, console_script

_READY_S = 180.0


@dataclass(frozen=True, slots=True)
class Mesh:
    """What a server is told of its surroundings.

    Attributes
    ----------
    folder : of its files
    port : where it will listen
    policy : of its health verdicts, as in the configuration
    scrape_interval : of all jobs
    more : further sections of the configuration
    """

    folder: Path
    port: int
    envoys: Sequence[Envoy]
    upstreams: Sequence[Upstream]
    policy: Mapping[str, Any]
    scrape_interval: str
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where it can be asked."""
        return f"http://127.0.0.1:{self.port}"

    def write(self) -> Path:
        """Write the topology and the configuration; where the latter is."""
        addresses = [f"127.0.0.1:{upstream.port}" for upstream in self.upstreams]
        topology = self.folder / "topology.yml"
        topology.write_text(yaml.safe_dump({"services": {CLUSTER: {"endpoints": addresses}}}))
        admins = [envoy.admin for envoy in self.envoys]
        jobs = [
            {"job_name": "envoy", "metrics_path": "/stats/prometheus", "static_configs": [{"targets": admins}]},
            {"job_name": "meshpulse", "static_configs": [{"targets": [f"127.0.0.1:{self.port}"]}]},
        ]
        config = self.folder / "meshpulse.yml"
        config.write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": self.scrape_interval, "scrape_timeout": self.scrape_interval},
                    "storage": {"free_bytes_min": 0, "free_fraction_min": 0},  # minutes of samples fit anywhere
                    "scrape_configs": jobs,
                    "health": {"policies": [dict(self.policy)], "topology": [{"file": str(topology)}]},
                    **self.more,
                }
            )
        )
        return config


async def start_meshpulse(mesh: Mesh, client: aiohttp.ClientSession, say: Callable[[str], None]) -> Child:
    """Start the server and wait until it is ready.

    Parameters
    ----------
    say : is told how far it is

    Raises
    ------
    DemoError        it ended, or was not ready in time
    """
    own = f"127.0.0.1:{mesh.port}"
    command = [console_script("meshpulse"), "serve", "--data-dir", str(mesh.folder / "data"), "--listen", own]
    child = await Child.start("meshpulse", [*command, "--config", str(mesh.write())], mesh.folder)
    said = ""
    try:
        async with asyncio.timeout(_READY_S):
            while True:
                child.check()
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with client.get(f"{mesh.url}/-/ready") as response:
                        if response.status == 200:
                            return child
                        phase = (await response.text()).partition(": ")[2].partition("(")[0].strip()
                        text = f"meshpulse is {phase} ..."
                    if text != said:
                        say(text)
                        said = text
                await asyncio.sleep(0.2)
    except TimeoutError:
        await child.end()
        raise DemoError(f"meshpulse was not ready within {_READY_S:g} s") from None
    except BaseException:
        await child.end()
        raise


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
