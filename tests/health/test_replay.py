"""A replay decides as the loop did, says what another policy would have done, and touches nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest

from health.api import HealthApi
from health.events import EventList
from health.judgements import Judgements
from health.lease import ActuatorLease
from health.loop import NotFoundError
from health.past import Past, Plan
from health.policy import ErrorRule, Mode, Policy
from health.replay import explain_past, onset, replay
from health.runner import HealthRunner
from health.topology import Fact
from health.verdicts import Action, Override
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


def past_of(mesh: Mesh, live: EventList | None = None, folder: Path | None = None, facts: Any = None) -> Past:
    return Past(mesh.storage, mesh.loop.mappings, facts or {}, live or mesh.loop.events, folder)


def rerun(mesh: Mesh, policy: Policy, live: EventList | None = None) -> dict[str, Any]:
    return replay(Plan("svc", policy, START_MS + 50_000, mesh.now, 1000), past_of(mesh, live))


def moves(events: Iterable[Any]) -> list[tuple[Any, ...]]:
    return [(e["time"], e["type"], e["endpoint"], e["until"], e["detector"], e["guard"]) for e in events]


def live_moves(mesh: Mesh, start_ms: int) -> list[tuple[Any, ...]]:
    found = mesh.loop.events.find(start_ms=start_ms, service="svc", limit=10_000)
    return moves(e.data for e in found if e.data["endpoint"])


def test_the_same_policy_decides_the_same(mesh: Mesh) -> None:
    told = rerun(mesh, DRY)
    assert moves(told["decisions"]) == live_moves(mesh, START_MS + 50_000)
    assert told["diff_vs_live"] == {"added": 0, "removed": 0}
    assert told["ejected_endpoint_seconds"] > 10
    assert told["errors_avoided_real"] > 20
    assert told["errors_avoided"] - told["errors_avoided_real"] <= 10  # in dry run nothing was kept away from it
    assert told["peak_ejected_percent"] == pytest.approx(16.7)
    assert told["exact"] is False  # nobody wrote down when samples arrived
    assert "when samples arrived is not known" in told["approximations"][0]
    first = next(e for e in mesh.loop.events.find(type="ejected"))
    assert told["time_to_detect_s"]["count"] >= 1
    assert abs(told["time_to_detect_s"]["p50"] - (first.time_ms - START_MS - 60_000) / 1000) <= 2


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    """Two proxies whose samples come late, one of them later and later, beside a fault; all arrivals are noted."""
    mesh = Mesh(tmp_path_factory.mktemp("late"), DRY, observers=3, storage=MemoryStorage(), arrivals=True, seed=3)
    mesh.delays_s = [0, 2, 4]
    mesh.run(90, scrape_s=2)
    mesh.failing[4] = 0.12
    mesh.run(40, scrape_s=2)
    mesh.delays_s = [1, 6, 3]
    mesh.failing[4] = 0.0
    mesh.run(60, scrape_s=2)
    return mesh


def test_with_arrivals_it_is_exact(late: Mesh) -> None:
    plan = Plan("svc", DRY, START_MS + 30_000, late.now, 1000)
    told = replay(plan, past_of(late, folder=late.folder))
    assert told["approximations"] == []
    assert told["exact"] is True
    assert moves(told["decisions"]) == live_moves(late, plan.start_ms)
    assert "ejected" in [d["type"] for d in told["decisions"]]
    blind = replay(plan, past_of(late))  # samples count from their own time: it sees the fault before anybody could
    ejected = [next(d["time"] for d in out["decisions"] if d["type"] == "ejected") for out in (blind, told)]
    assert ejected[0] < ejected[1]
    part = replay(replace(plan, start_ms=START_MS + 100_000), past_of(late, folder=late.folder))
    assert part["exact"] is True
    assert moves(part["decisions"]) == live_moves(late, START_MS + 100_000)


def test_errors_that_were_avoided_are_estimated(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, QUICK, storage=MemoryStorage(), arrivals=True)
    mesh.run(60)
    mesh.failing[1] = 0.3
    mesh.run(15)
    told = replay(Plan("svc", QUICK, START_MS + 50_000, mesh.now, 1000), past_of(mesh, folder=tmp_path))
    seconds = told["ejected_endpoint_seconds"]
    assert told["errors_avoided_real"] <= 15  # of the second in which it went
    true = seconds * 4 * 40 / 5 * 0.3
    assert 0.25 * true < told["errors_avoided"] < 1.2 * true  # low: the window that convicts is partly healthy


def test_what_is_not_known_is_said(late: Mesh, tmp_path: Path) -> None:
    plan = Plan("svc", DRY, START_MS + 30_000, late.now, 1000)
    facts = {"svc": {late.names[0]: Fact(late.names[0])}}
    told = replay(plan, past_of(late, folder=late.folder, facts=facts))
    assert told["exact"] is True  # live, nobody listed endpoints, so the replay does not either
    thin = MemoryStorage()
    for key, samples in late.storage._series.items():
        kept = [(at, value) for i, (at, value) in enumerate(samples.items()) if not 30 <= i < 33]
        thin.add(dict(key), kept)
    gone = replay(plan, replace(past_of(late, folder=late.folder), frames=thin))
    assert gone["exact"] is False
    assert "evaluations saw other samples" in gone["approximations"][0]

    again = Mesh(tmp_path, DRY, storage=MemoryStorage(), arrivals=True)
    again.run(30)
    order = Override(Action.FREEZE, again.now + 5_000, "oncall", "ticket 1")
    again.loop.put_override("svc", again.names[0], order)
    again.loop.put_policy(replace(DRY, name="other", service="nobody"), "me")
    again.run(10)
    again.loop = again.start()
    again.run(30)
    reasons = replay(Plan("svc", DRY, START_MS + 20_000, again.now, 1000), past_of(again, folder=tmp_path))
    assert [reason.partition(" at 2")[0] for reason in reasons["approximations"]] == [
        "the program started again",
        "people gave orders, which are not repeated",
        "policies were changed, the run uses one for all of the time",
    ]
    after = replay(Plan("svc", DRY, START_MS + 60_000, again.now, 1000), past_of(again, folder=tmp_path))
    assert after["approximations"][0].endswith("with remembered ejections")


def test_facts_of_a_topology_count_from_when_they_were_known(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, DRY, storage=MemoryStorage(), arrivals=True)
    facts = {"svc": {name: Fact(name, zone="z1") for name in mesh.names}}
    mesh.run(3)
    mesh.loop.use_facts(facts)
    mesh.run(40)
    plan = Plan("svc", DRY, START_MS + 30_000, mesh.now, 1000)
    assert replay(plan, past_of(mesh, folder=tmp_path, facts=facts))["exact"] is True
    other = {"svc": {name: Fact(name, zone="z2") for name in mesh.names}}
    told = replay(plan, past_of(mesh, folder=tmp_path, facts=other))
    assert told["approximations"] == ["during 40 evaluations the topology was another than it is now"]


def test_an_explanation_of_another_time(late: Mesh) -> None:
    first = next(e for e in late.loop.events.find(type="ejected"))
    name = late.names[4]
    plan = Plan("svc", DRY, first.time_ms - 2000, first.time_ms - 1000, 1000)
    told, approximations = explain_past(plan, past_of(late, folder=late.folder), name)
    assert approximations == []
    assert (told["state"], told["flagged"]) == ("suspect", True)
    suspect = next(e for e in late.loop.events.find(type="suspect", endpoint=name) if e.time_ms == plan.end_ms)
    assert told["statistics"]["errors"] == suspect.data["evidence"]["errors"]
    assert told["statistics"]["z"] == suspect.data["evidence"]["mh_z"]
    with pytest.raises(NotFoundError):
        explain_past(plan, past_of(late), "1.2.3.4:5")


def test_the_onset_is_the_likeliest_change() -> None:
    attempts = np.full(120, 20.0)
    errors = np.zeros(120)
    errors[[10, 50]] = 1.0  # noise before
    errors[100:] = 3.0
    errors[104] = 0.0
    assert onset(errors, attempts, 0.001, 0.15) == 100


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
            if "time" in data:
                return await call(api, "GET", f"/api/v1/health/explain?{urlencode(data)}")
            return await call(api, "POST", "/api/v1/health/replay", {}, json.dumps(data).encode())

    start = START_MS / 1000 + 90
    reply = asyncio.run(ask(service="svc", start=start, policy={"name": "x", "error": {"min_excess": 0.02}}))
    assert reply.status == 200, reply.text
    assert reply.data["policy"] == "x"
    told = asyncio.run(ask(service="svc", endpoint=mesh.names[2], time=start - 40))
    assert (told.status, told.data["state"]) == (200, "healthy")
    assert told.json()["warnings"]
    for status, data in (
        (404, {"service": "svc", "endpoint": "1.1.1.1:1", "time": start}),
        (400, {"service": "svc", "endpoint": mesh.names[2], "time": "soon"}),
        (400, {"start": start}),
        (400, {"service": "svc"}),
        (400, {"service": "svc", "start": start, "end": start - 1}),
        (400, {"service": "svc", "start": start, "step": "1h"}),
        (400, {"service": "svc", "start": start, "policy": {"colour": 1}}),
        (400, {"service": "svc", "start": start, "colour": 1}),
        (422, {"service": "svc", "start": start - 86_400}),
    ):
        assert asyncio.run(ask(**data)).status == status, data
