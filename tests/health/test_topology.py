"""Topology sources: what is read, what is refused, and that a bad reading keeps the last good one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
