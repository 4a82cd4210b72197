"""The closed loop with real Envoys, beside the same mesh that has only Envoy's own detectors.

    python -m benchmarks.health_live [--fault 120]

Two meshes run side by side: four Envoys at 40 requests/s, six upstreams, scraped every 2 s. In both every detector of
Envoy's is enforced with its default volumes, may eject a third of the hosts and always one. In the first meshpulse
enforces its default policy through EDS, in the second it only watches (dry run). One upstream then fails 15 % for two
minutes and heals. Printed are the errors that clients saw in both, when the endpoint was ejected and when it was back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from meshpulse.demo.envoy import CLUSTER, Envoy
from meshpulse.demo.mesh import Tally, Upstream, send_traffic
from meshpulse.demo.serve import Mesh, free_port, start_meshpulse

ENVOYS, UPSTREAMS, RPS = 4, 6, 40.0
FAILING = 0.15
SCRAPE = "2s"
OWN_DETECTORS = {
    "max_ejection_percent": 34,
    "always_eject_one_host": True,
    "enforcing_consecutive_5xx": 100,
    "enforcing_consecutive_gateway_failure": 100,
    "enforcing_success_rate": 100,
    "enforcing_failure_percentage": 100,
}
"""All of them, as strict as Envoy lets one be without touching volumes and thresholds."""
_HEALTHY_S = 30.0
_RECOVERY_S = 300.0
"""After two minutes of fault the third ejection may still have 108 s to go, then come probation and ramp."""


@dataclass(slots=True)
class Arm:
    """One of the two meshes while it runs."""

    mesh: Mesh
    envoys: list[Envoy]
    upstreams: list[Upstream]
    tally: Tally = field(default_factory=Tally)

    @property
    def sick(self) -> Upstream:
        return self.upstreams[2]

    async def states(self, client: aiohttp.ClientSession) -> dict[str, str]:
        """State of each endpoint as meshpulse publishes it."""
        async with client.get(f"{self.mesh.url}/api/v1/health/endpoints", params={"service": CLUSTER}) as reply:
            rows = (await reply.json())["data"]["endpoints"]
        return {row["endpoint"]: row["state"] for row in rows}

    async def own_ejections(self, client: aiohttp.ClientSession) -> int:
        """How often Envoys ejected somebody by themselves."""
        total = 0
        for envoy in self.envoys:
            wanted = {"filter": f"cluster.{CLUSTER}.outlier_detection.ejections_enforced_total", "format": "json"}
            async with client.get(f"http://{envoy.admin}/stats", params=wanted) as reply:
                total += sum(row.get("value", 0) for row in (await reply.json(content_type=None))["stats"])
        return total


async def started(
    stack: contextlib.AsyncExitStack, folder: Path, name: str, mode: str, client: aiohttp.ClientSession
) -> Arm:
    """Start one mesh with its traffic; ``stack`` ends it."""
    folder = folder / name
    folder.mkdir()
    upstreams = [Upstream(letter, 0.003) for letter in "abcdef"[:UPSTREAMS]]
    for upstream in upstreams:
        await upstream.start()
        stack.push_async_callback(upstream.end)
    port = free_port()
    envoys = []
    for i in range(ENVOYS):
        envoys.append(await Envoy.start(folder, f"{name}-{i}", port, OWN_DETECTORS))
        stack.push_async_callback(envoys[-1].child.end)
    mesh = Mesh(folder, port, envoys, upstreams, {"name": "default", "mode": mode}, SCRAPE)
    child = await start_meshpulse(mesh, client, lambda _: None)
    stack.push_async_callback(child.end)
    await asyncio.gather(*(envoy.wait_ready(client) for envoy in envoys))
    arm = Arm(mesh, envoys, upstreams)
    for envoy in envoys:
        task = asyncio.create_task(send_traffic(envoy.front, client, arm.tally, RPS))
        stack.callback(task.cancel)
    return arm


async def waited(done: Callable[[], Awaitable[bool]], limit_s: float) -> float:
    """Seconds until something holds; inf when it does not within the limit."""
    begin = time.monotonic()
    while not await done():
        if time.monotonic() - begin > limit_s:
            return float("inf")
        await asyncio.sleep(0.1)
    return time.monotonic() - begin


async def live(fault_s: float) -> bool:
    """Run it and print what happened; whether the bars of the issue hold."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meshpulse-bench-")))
        client = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)))
        ours = await started(stack, folder, "ours", "enforce", client)
        theirs = await started(stack, folder, "alone", "dry_run", client)
        address = f"127.0.0.1:{ours.sick.port}"

        async def everybody_healthy() -> bool:
            found = await ours.states(client)
            return len(found) == UPSTREAMS and set(found.values()) == {"healthy"}

        async def is_in(*states: str) -> bool:
            return (await ours.states(client)).get(address) in states

        assert await waited(everybody_healthy, 120) < 120, "the mesh did not become healthy"
        await asyncio.sleep(60 + _HEALTHY_S)  # the policy's own warm-up, and a healthy past
        before = [(arm.tally.sent, arm.tally.failed) for arm in (ours, theirs)]
        began = time.monotonic()
        for arm in (ours, theirs):
            arm.sick.failing = FAILING
        ejected_s = await waited(lambda: is_in("ejected"), fault_s)
        until_ejected = ours.tally.failed - before[0][1]
        await asyncio.sleep(max(0.0, fault_s - (time.monotonic() - began)))
        for arm in (ours, theirs):
            arm.sick.failing = 0.0
        await asyncio.sleep(1)  # what is under way is counted too
        (sent, failed), (sent_alone, failed_alone) = (
            (arm.tally.sent - s, arm.tally.failed - f) for arm, (s, f) in zip((ours, theirs), before, strict=True)
        )
        recovered_s = await waited(lambda: is_in("healthy"), _RECOVERY_S)
        own = [await arm.own_ejections(client) for arm in (ours, theirs)]
    ratio = failed_alone / max(1, failed)
    held = ejected_s <= 10 and ratio >= 5 and recovered_s < _RECOVERY_S
    for line in (
        f"live: {ENVOYS} Envoys at {RPS:g} rps, 1 of {UPSTREAMS} endpoints fails {FAILING:.0%} for {fault_s:g} s, "
        f"scraped every {SCRAPE}",
        f"  ejected {ejected_s:.1f} s after the onset (bar 10 s), after {until_ejected} errors",
        f"  errors with meshpulse {failed} of {sent:,}, with Envoy's detectors alone {failed_alone} of "
        f"{sent_alone:,}: {ratio:.1f}x fewer (bar 5x)",
        f"  hosts that Envoys ejected by themselves: {own[0]} with meshpulse, {own[1]} alone",
        f"  healthy again {recovered_s:.1f} s after it healed" + ("" if held else "   MISSED"),
    ):
        print(line)
    return held


def main() -> int:
    """Print the figures; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", type=float, default=120.0, help="seconds")
    return 0 if asyncio.run(live(parser.parse_args().fault)) else 1


if __name__ == "__main__":
    sys.exit(main())
