"""What proxies are told: the owner's list, our verdicts on top, nothing of ours when we may not."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from health.adapters.eds import TYPE_URL, assignment, scaled_weight
from health.adapters.file_eds import EdsFile, FileEds, parse_file
from health.adapters.rest_eds import PATH, RestEds
from health.lease import ActuatorLease
from health.policy import Mode, Policy
from health.runner import HealthRunner
from health.topology import Fact
from tests.health.mesh import Mesh
from tests.health.test_loop import QUICK
from tests.query.asgi import Reply, call
from tsdb.blockstore import FolderStore
from tsdb.clock import ManualClock


class Bench:
    """A mesh with one ejected endpoint, its runner and its adapters."""

    def __init__(self, folder: Path, policy: Policy = QUICK, service: str = "svc") -> None:
        policy = replace(policy, ejection=replace(policy.ejection, base_ms=300_000))
        self.mesh = Mesh(folder / "health", policy, service=service)
        facts = {name: Fact(name, zone="z1", weight=2) for name in self.mesh.names}
        self.mesh.loop.use_facts({service: facts})
        self.mesh.run(40)
        self.mesh.failing[2] = 0.6
        self.mesh.run(8)
        self.ill = self.mesh.names[2]
        self.store = FolderStore(folder / "store")
        self.lease = ActuatorLease(self.store)
        self.lease.refresh(self.mesh.now)
        self.clock = ManualClock(self.mesh.now)
        executor = ThreadPoolExecutor(1)
        self.runner = HealthRunner(self.mesh.loop, self.clock, 1000, executor, executor, [], 1000, self.lease)
        self.eds = RestEds(self.runner, hold_s=0.2)
        self.file = folder / "eds.json"

    async def ask(self, version: str = "", node: str = "n1", port: int = 0, **more: Any) -> Reply:
        body = {"version_info": version, "resource_names": ["svc"], "node": {"id": node}, "type_url": TYPE_URL, **more}
        self.mesh.loop.board.bind(asyncio.get_running_loop())
        client = ("10.0.0.1", port) if port else None
        return await call(self.eds, "POST", PATH, {}, json.dumps(body).encode(), client=client)


def statuses(reply: Any) -> dict[str, str]:
    data = reply.json() if isinstance(reply, Reply) else reply
    (resource,) = data["resources"]
    assert resource["cluster_name"] == "svc"
    (group,) = resource["endpoints"]
    assert group["locality"] == {"zone": "z1"}
    out = {}
    for endpoint in group["lb_endpoints"]:
        place = endpoint["endpoint"]["address"]["socket_address"]
        assert endpoint["load_balancing_weight"] == 200
        out[f"{place['address']}:{place['port_value']}"] = endpoint["health_status"]
    return out


def test_the_ejected_endpoint_is_unhealthy_and_the_proxy_waits_for_more(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def main() -> None:
        first = await bench.ask()
        assert first.status == 200
        assert {a for a, status in statuses(first).items() if status == "UNHEALTHY"} == {bench.ill}
        version = first.json()["version_info"]
        assert (await bench.ask(version)).status == 304
        bench.eds._hold_s = 20
        held = asyncio.create_task(bench.ask(version))
        await asyncio.sleep(0.05)
        assert not held.done()
        bench.mesh.loop.put_policy(replace(bench.mesh.policy, mode=Mode.DRY_RUN), "me")
        bench.mesh.run(1)
        reply = await asyncio.wait_for(held, 5)
        assert set(statuses(reply).values()) == {"HEALTHY"}

    asyncio.run(main())


@pytest.mark.parametrize("what", ["dry_run", "no lease", "silence"])
def test_fail_open(tmp_path: Path, what: str) -> None:
    bench = Bench(tmp_path, replace(QUICK, mode=Mode.DRY_RUN) if what == "dry_run" else QUICK)
    assert bench.mesh.state(2) == "ejected"
    if what == "no lease":
        bench.lease.release(bench.mesh.now)
    if what == "silence":  # the loop has stopped, or the data have: the lease of the board runs out
        bench.clock.ms += QUICK.lease_ms
        bench.lease.refresh(bench.clock.ms)

    async def main() -> None:
        assert set(statuses(await bench.ask()).values()) == {"HEALTHY"}

    asyncio.run(main())


def test_a_held_request_hears_of_the_end_of_the_lease(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def main() -> None:
        version = (await bench.ask()).json()["version_info"]
        bench.eds._hold_s = 20
        held = asyncio.create_task(bench.ask(version))
        await asyncio.sleep(0.05)
        bench.clock.ms += QUICK.lease_ms
        assert set(statuses(await asyncio.wait_for(held, 10)).values()) == {"HEALTHY"}

    asyncio.run(main())


def test_the_last_word_of_a_program_that_ends_is_healthy(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def main() -> None:
        version = (await bench.ask()).json()["version_info"]
        bench.eds._hold_s = 20
        held = asyncio.create_task(bench.ask(version))
        await asyncio.sleep(0.05)
        bench.mesh.loop.board.close()
        assert set(statuses(await asyncio.wait_for(held, 5)).values()) == {"HEALTHY"}

    asyncio.run(main())


def test_a_refused_version_is_not_sent_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def main() -> None:
        first = (await bench.ask()).json()["version_info"]
        for _ in range(2):
            assert (await bench.ask("", error_detail={"code": 3, "message": "weights"})).status == 304
        nacks = bench.mesh.loop.events.find(type="nack")
        assert [n.data["evidence"]["version"] for n in nacks] == [first]
        assert (await bench.ask("", node="n2")).status == 200

    asyncio.run(main())


def test_a_refusal_that_is_not_said(tmp_path: Path) -> None:
    """Envoy's REST client asks again on the same connection, with the version it had."""
    bench = Bench(tmp_path)

    async def main() -> None:
        sent = (await bench.ask(port=1)).json()["version_info"]
        again = await bench.ask(port=2)  # a proxy that started anew, or of the same name
        assert (again.status, again.json()["version_info"]) == (200, sent)
        assert bench.mesh.loop.events.find(type="nack") == []
        for _ in range(2):
            assert (await bench.ask(port=2)).status == 304
        (nack,) = bench.mesh.loop.events.find(type="nack")
        assert (nack.data["evidence"]["version"], nack.data["by"]) == (sent, "node:n1")
        bench.mesh.loop.put_policy(replace(bench.mesh.policy, mode=Mode.DRY_RUN), "me")
        bench.mesh.run(1)
        newer = (await bench.ask(port=2)).json()["version_info"]
        assert newer != sent
        assert (await bench.ask(newer, port=2)).status == 304
        assert len(bench.mesh.loop.events.find(type="nack")) == 1

    asyncio.run(main())


def test_bad_requests(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def main() -> None:
        assert (await call(bench.eds, "GET", PATH)).status == 405
        assert (await call(bench.eds, "POST", PATH, {}, b"{")).status == 400
        assert (await call(bench.eds, "POST", PATH, {}, b"{}")).status == 400
        other = json.dumps({"resource_names": ["svc"], "type_url": "x"}).encode()
        assert (await call(bench.eds, "POST", PATH, {}, other)).status == 400
        nobody = json.dumps({"resource_names": ["nobody"]}).encode()
        assert (await call(bench.eds, "POST", PATH, {}, nobody)).status == 304  # held: it may be listed later

    asyncio.run(main())


def test_files(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    adapter = FileEds(bench.mesh.loop, bench.lease, [EdsFile(bench.file, ("svc",))])
    for _ in range(3):
        adapter.follow(bench.mesh.now)
    assert adapter.writes == 1
    data = json.loads(bench.file.read_text())
    assert {a for a, status in statuses(data).items() if status == "UNHEALTHY"} == {bench.ill}
    adapter.follow(bench.mesh.now + QUICK.lease_ms)
    assert set(statuses(json.loads(bench.file.read_text())).values()) == {"HEALTHY"}
    adapter.follow(bench.mesh.now)
    adapter.close()
    assert set(statuses(json.loads(bench.file.read_text())).values()) == {"HEALTHY"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_what_the_owner_says_is_kept() -> None:
    facts = {
        "a:1": Fact("a:1", health="DRAINING", priority=1, hostname="h", region="r"),
        "[::1]:2": Fact("[::1]:2"),
    }
    made = assignment("c", facts, None)
    first, second = made["endpoints"]
    assert first["lb_endpoints"][0]["endpoint"]["address"]["socket_address"] == {"address": "::1", "port_value": 2}
    assert "priority" not in first
    assert (second["priority"], second["locality"]) == (1, {"region": "r"})
    assert second["lb_endpoints"][0]["health_status"] == "DRAINING"
    assert second["lb_endpoints"][0]["endpoint"]["hostname"] == "h"


def test_weights_are_never_zero() -> None:
    assert [scaled_weight(1, f) for f in (1.0, 0.25, 0.05, 0.001, 0.0)] == [100, 25, 5, 1, 100]


def test_files_of_the_configuration() -> None:
    assert parse_file({"path": "x", "clusters": ["a"]}) == EdsFile(Path("x"), ("a",))
    for bad in ({}, {"path": "x", "clusters": []}, {"path": "x", "clusters": ["a"], "z": 1}, []):
        with pytest.raises(ValueError, match="must be"):
            parse_file(bad)
