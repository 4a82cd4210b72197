"""A replay decides as the loop did, says what another policy would have done, and touches nothing."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from health.api import HealthApi
from health.events import EventList
from health.judgements import Judgements
from health.lease import ActuatorLease
from health.policy import ErrorRule, Mode, Policy
from health.replay import ReplayPlan, replay
from health.runner import HealthRunner
from query.engine.engine import Engine
from query.limits import QueryLimits
from tests.health.mesh import START_MS, Mesh
from tests.health.test_loop import QUICK
from tests.query.asgi import Reply, call
from tests.query.memory_storage import MemoryStorage
from tsdb.blockstore import FolderStore
from tsdb.clock import ManualClock

DRY = replace(QUICK, mode=Mode.DRY_RUN)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    """A fault of 40 s in dry run, all samples kept."""
    mesh = Mesh(tmp_path_factory.mktemp("health"), DRY, observers=2, storage=MemoryStorage())
    mesh.run(60)
    mesh.failing[2] = 0.3
    mesh.run(40)
    mesh.failing[2] = 0.0
    mesh.run(40)
    return mesh


def rerun(mesh: Mesh, policy: Policy, live: EventList | None = None) -> dict[str, Any]:
    plan = ReplayPlan("svc", policy, START_MS + 50_000, mesh.now, 1000)
    return replay(plan, mesh.storage, mesh.loop.mappings, {}, live or mesh.loop.events)


def test_the_same_policy_decides_the_same(mesh: Mesh) -> None:
    told = rerun(mesh, DRY)
    live = [e.data for e in mesh.loop.events.find(start_ms=START_MS + 50_000, service="svc") if e.data["endpoint"]]
    assert [(d["time"], d["type"], d["endpoint"], d["until"]) for d in told["decisions"]] == [
        (e["time"], e["type"], e["endpoint"], e["until"]) for e in live
    ]
    assert told["diff_vs_live"] == {"added": 0, "removed": 0}
    assert told["ejected_endpoint_seconds"] > 10
    assert told["errors_avoided"] > 20
    assert told["peak_ejected_percent"] == pytest.approx(16.7)
    assert told["exact"] is False


def test_another_policy_decides_otherwise(mesh: Mesh) -> None:
    blind = rerun(mesh, replace(DRY, error=ErrorRule(min_excess=0.9)))
    assert not [d for d in blind["decisions"] if d["type"] == "ejected"]
    assert blind["diff_vs_live"]["removed"] >= 1
    assert blind["errors_avoided"] == 0
    assert rerun(mesh, DRY, EventList())["diff_vs_live"]["added"] >= 1


def test_over_http(mesh: Mesh, tmp_path: Path) -> None:
    async def ask(**data: Any) -> Reply:
        with ThreadPoolExecutor(1) as executor:
            lease = ActuatorLease(FolderStore(tmp_path))
            runner = HealthRunner(mesh.loop, ManualClock(mesh.now), 1000, executor, executor, [], 1000, lease)
            api = HealthApi(runner)
            Judgements(runner, mesh.storage, executor, Engine(QueryLimits())).add_to(api)
            return await call(api, "POST", "/api/v1/health/replay", {}, json.dumps(data).encode())

    start = START_MS / 1000 + 90
    reply = asyncio.run(ask(service="svc", start=start, policy={"name": "x", "error": {"min_excess": 0.02}}))
    assert reply.status == 200, reply.text
    assert reply.data["policy"] == "x"
    for status, data in (
        (400, {"start": start}),
        (400, {"service": "svc"}),
        (400, {"service": "svc", "start": start, "end": start - 1}),
        (400, {"service": "svc", "start": start, "step": "1h"}),
        (400, {"service": "svc", "start": start, "policy": {"colour": 1}}),
        (400, {"service": "svc", "start": start, "colour": 1}),
        (422, {"service": "svc", "start": start - 86_400}),
    ):
        assert asyncio.run(ask(**data)).status == status, data
