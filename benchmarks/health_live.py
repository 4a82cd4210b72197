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
import math
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    stack: contextlib.AsyncExitStack,
    folder: Path,
    name: str,
    policy: Mapping[str, Any],
    client: aiohttp.ClientSession,
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
    mesh = Mesh(folder, port, envoys, upstreams, policy, SCRAPE)
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


@dataclass(frozen=True, slots=True)
class Result:
    """What happened.

    Attributes
    ----------
    ejected_s, recovered_s : from the onset, from the healing; inf = not while it was watched
    errors_until_ejected, errors, errors_alone : that clients saw; alone = with Envoy's own detectors only
    own_ejections : by Envoys themselves, with meshpulse and alone
    """

    ejected_s: float
    recovered_s: float
    errors_until_ejected: int
    errors: int
    errors_alone: int
    sent: int
    own_ejections: tuple[int, int]

    @property
    def ratio(self) -> float:
        """How many times fewer errors."""
        return self.errors_alone / max(1, self.errors)


async def compared(
    fault_s: float, policy: Mapping[str, Any], healthy_s: float, recovery_s: float = _RECOVERY_S
) -> Result:
    """Run both meshes.

    Parameters
    ----------
    policy : of the first; the second has the same in dry run
    healthy_s : before the fault, after everybody is healthy
    recovery_s : how long to watch it recover
    """
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meshpulse-bench-")))
        client = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)))
        ours = await started(stack, folder, "ours", {**policy, "mode": "enforce"}, client)
        theirs = await started(stack, folder, "alone", {**policy, "mode": "dry_run"}, client)
        address = f"127.0.0.1:{ours.sick.port}"

        async def everybody_healthy() -> bool:
            found = await ours.states(client)
            return len(found) == UPSTREAMS and set(found.values()) == {"healthy"}

        async def is_in(state: str) -> bool:
            return (await ours.states(client)).get(address) == state

        assert await waited(everybody_healthy, 120) < 120, "the mesh did not become healthy"
        await asyncio.sleep(healthy_s)
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
        failed, alone = (arm.tally.failed - f for arm, (_, f) in zip((ours, theirs), before, strict=True))
        sent = ours.tally.sent - before[0][0]
        recovered_s = await waited(lambda: is_in("healthy"), recovery_s)
        own = (await ours.own_ejections(client), await theirs.own_ejections(client))
    return Result(ejected_s, recovered_s, until_ejected, failed, alone, sent, own)


async def live(fault_s: float) -> bool:
    """Run it with the default policy and print what happened; whether the bars of the issue hold."""
    got = await compared(fault_s, {"name": "default"}, 60 + _HEALTHY_S)  # the policy's warm-up, and a healthy past
    held = got.ejected_s <= 10 and got.ratio >= 5 and math.isfinite(got.recovered_s)
    for line in (
        f"live: {ENVOYS} Envoys at {RPS:g} rps, 1 of {UPSTREAMS} endpoints fails {FAILING:.0%} for {fault_s:g} s, "
        f"scraped every {SCRAPE}",
        f"  ejected {got.ejected_s:.1f} s after the onset (bar 10 s), after {got.errors_until_ejected} errors",
        f"  errors with meshpulse {got.errors} of {got.sent:,}, with Envoy's detectors alone {got.errors_alone}: "
        f"{got.ratio:.1f}x fewer (bar 5x)",
        f"  ejections by Envoys themselves: {got.own_ejections[0]} with meshpulse, {got.own_ejections[1]} alone",
        f"  healthy again {got.recovered_s:.1f} s after it healed" + ("" if held else "   MISSED"),
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
