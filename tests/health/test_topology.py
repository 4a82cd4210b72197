"""Topology sources: what is read, what is refused, and that a bad reading keeps the last good one."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from health.lease import ActuatorLease
from health.policy import Policy
from health.runner import HealthRunner
from health.topology import (
    Fact,
    TopologySource,
    join_address,
    merged,
    parse_envoy_clusters,
    parse_source,
    parse_static,
    split_address,
)
from tests.health.mesh import Mesh
from tsdb.blockstore import FolderStore
from tsdb.clock import ManualClock

STATIC = """
services:
  checkout:
    endpoints:
      - {address: "10.0.0.1:80", zone: z1, weight: 100, priority: 1, version: v2}
      - 10.0.0.2:80
"""


def test_static() -> None:
    facts = parse_static(STATIC)
    assert facts["checkout"]["10.0.0.1:80"] == Fact("10.0.0.1:80", zone="z1", weight=100, priority=1, version="v2")
    assert facts["checkout"]["10.0.0.2:80"] == Fact("10.0.0.2:80")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is no YAML"),
        ("a: 1", "needs the mapping services"),
        ("services: {a: 1}", "services.a.endpoints must be a list"),
        ("services: {a: [x]}", "'x' is not HOST:PORT"),
        ("services: {a: [{address: 'x:1', weigth: 3}]}", r"endpoints\[0\].weigth: unknown key"),
        ("services: {a: [{address: 'x:1', weight: heavy}]}", "weight must be of type int"),
        ("services: {a: [{address: 'x:1', weight: 0}]}", "weight must be at least 1"),
        ("services: {a: [{zone: z}]}", "address is needed"),
    ],
)
def test_mistakes_in_a_file(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_static(text)


def test_envoys_clusters_page() -> None:
    host = {
        "address": {"socket_address": {"address": "::1", "port_value": 8080}},
        "health_status": {"eds_health_status": "UNHEALTHY", "failed_outlier_check": True},
        "weight": 5,
        "hostname": "pod-a",
        "priority": 1,
        "locality": {"region": "r", "zone": "z"},
    }
    ill = {
        **host,
        "address": {"socket_address": {"address": "10.0.0.2", "port_value": 1}},
        "health_status": {"failed_active_health_check": True},
    }
    pipe = {"address": {"pipe": {"path": "x"}}}
    page = {"cluster_statuses": [{"name": "g:a", "host_statuses": [host, ill, pipe]}, {"name": "empty"}]}
    facts = parse_envoy_clusters(json.dumps(page))
    assert facts["g_a"]["[::1]:8080"] == Fact(
        "[::1]:8080", region="r", zone="z", weight=5, priority=1, hostname="pod-a"
    )
    assert facts["g_a"]["10.0.0.2:1"].health == "UNHEALTHY"
    assert facts["empty"] == {}
    with pytest.raises(ValueError, match="is not Envoy's"):
        parse_envoy_clusters('{"cluster_statuses": [1]}')


def test_a_bad_reading_keeps_the_last_good_one(tmp_path: Path) -> None:
    file = tmp_path / "topology.yml"
    source = parse_source({"file": str(file)})
    assert not source.refresh()
    assert "No such file" in source.error
    file.write_text(STATIC)
    assert source.refresh()
    assert not source.refresh()
    file.write_text("services: [")
    assert not source.refresh()
    assert source.error
    assert "checkout" in merged([source, TopologySource("", "static")])


def test_addresses() -> None:
    assert split_address("[::1]:80") == ("::1", 80)
    assert join_address("::1", 80) == "[::1]:80"
    assert join_address("localhost", 80) == "localhost:80"
    with pytest.raises(ValueError, match="must be"):
        parse_source({"url": "x"})


def test_sources_may_change_under_way(tmp_path: Path) -> None:
    """What the old ones said holds until the new ones were read; without any, nothing is known."""
    files = [tmp_path / name for name in ("one.yml", "two.yml")]
    for file, port in zip(files, (1, 2), strict=True):
        file.write_text(f"services: {{svc: {{endpoints: ['h:{port}']}}}}")
    mesh = Mesh(tmp_path / "health", Policy())

    async def run() -> None:
        lease = ActuatorLease(FolderStore(tmp_path / "store"))
        with ThreadPoolExecutor(1) as executor:
            runner = HealthRunner(mesh.loop, ManualClock(mesh.now), 1000, executor, executor, [], 10, lease)
            for file, port in zip(files, (1, 2), strict=True):
                await runner.use_sources([parse_source({"file": str(file)})])
                while mesh.loop.facts.get("svc", {}).keys() != {f"h:{port}"}:
                    await asyncio.sleep(0.01)
            await runner.use_sources([])
            assert mesh.loop.facts == {}
            await runner.close()

    asyncio.run(asyncio.wait_for(run(), 60))
