"""Comparisons and gates: pass, fail, not enough evidence, and not to blame when all rise together."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from health.api import HealthApi
from health.compare import Side, compare
from health.history import read_totals
from health.judgements import Judgements
from health.lease import ActuatorLease
from health.mapping import BUILT_IN
from health.policy import Policy
from health.runner import HealthRunner
from health.topology import Fact
from query.engine.engine import Engine
from query.limits import QueryLimits
from tests.health.mesh import Mesh
from tests.health.test_loop import QUICK
from tests.query.asgi import Reply, call
from tests.query.memory_storage import MemoryStorage
from tsdb.blockstore import FolderStore
from tsdb.clock import ManualClock

NOW = 1_700_000_000_000


def storage(failing: dict[str, float], attempts: int = 2000, observers: int = 4, **labels: str) -> MemoryStorage:
    """Counters of ten minutes; endpoints ``a``, ``b`` run v1, ``c`` runs v2."""
    out = MemoryStorage()
    for observer in range(observers):
        for endpoint, rate in failing.items():
            names = {"envoy_cluster_name": "svc", "envoy_endpoint_address": endpoint, "instance": f"p{observer}"}
            for metric, total in (("rq_success", attempts * (1 - rate)), ("rq_error", attempts * rate)):
                samples = [(NOW - 540_000 + 60_000 * i, 500.0 + round(total * i / 9)) for i in range(10)]
                out.add({"__name__": f"envoy_cluster_endpoint_{metric}", **names, **labels}, samples)
    return out


FACTS = {"svc": {a: Fact(a, version="v2" if a == "c:1" else "v1") for a in ("a:1", "b:1", "c:1")}}


def ask(frames: MemoryStorage, folder: Path, method: str, target: str, body: bytes = b"") -> Reply:
    async def main() -> Reply:
        mesh = Mesh(folder / "health", QUICK)
        mesh.run(25)
        mesh.loop.use_facts(FACTS)
        with ThreadPoolExecutor(1) as executor:
            lease = ActuatorLease(FolderStore(folder / "store"))
            clock = ManualClock(NOW)
            runner = HealthRunner(mesh.loop, clock, 1000, executor, executor, [], 1000, lease)
            api = HealthApi(runner)
            Judgements(runner, frames, executor, Engine(QueryLimits())).add_to(api)
            return await call(api, method, f"/api/v1/health/{target}", {}, body)

    return asyncio.run(main())


def test_totals_are_those_of_the_counters() -> None:
    frames = storage({"a:1": 0.01, "c:1": 0.1})
    totals = read_totals(frames, [BUILT_IN["envoy_endpoint"]], "svc", NOW - 600_000, NOW)
    at = totals.endpoints.index("c:1")
    assert totals.attempts[:, at].tolist() == [2000.0] * 4
    assert totals.errors[:, at].tolist() == [200.0] * 4
    half = read_totals(frames, [BUILT_IN["envoy_endpoint"]], "svc", NOW - 240_000, NOW)
    assert half.attempts[0, at] == pytest.approx(2000 * 4 / 9, abs=2)


@pytest.mark.parametrize(
    ("bad", "attempts", "verdict", "status"),
    [
        (0.1, 2000, "fail", 412),
        (0.001, 2000, "pass", 200),
        (0.0, 20, "inconclusive", 425),
        (0.012, 400, "inconclusive", 425),
    ],
)
def test_three_answers(tmp_path: Path, bad: float, attempts: int, verdict: str, status: int) -> None:
    frames = storage({"a:1": 0.001, "b:1": 0.001, "c:1": bad}, attempts)
    reply = ask(frames, tmp_path, "GET", 'compare?service=svc&candidate=version="v2"&baseline=version="v1"')
    assert reply.status == 200, reply.text
    assert reply.data["verdict"] == verdict
    assert reply.data["errors"]["candidate"]["requests"] == 4 * attempts
    assert reply.data["endpoints"] == {"candidate": 1, "baseline": 2}
    if verdict == "inconclusive" and bad == 0.0:
        assert reply.data["min_requests_missing"] > 0
    gate = ask(frames, tmp_path, "POST", "gates/canary", b'{"service": "svc", "version": "v2"}')
    assert gate.status == status
    assert gate.data["verdict"] == {412: "halt", 200: "go", 425: "wait"}[status]
    assert gate.data["rollout"] == "canary"
    always = ask(frames, tmp_path, "GET", "gates/canary?service=svc&version=v2&status=200")
    assert (always.status, always.data["verdict"]) == (200, gate.data["verdict"])


def test_nobody_runs_that_version(tmp_path: Path) -> None:
    frames = storage({"a:1": 0.001, "b:1": 0.001})
    assert ask(frames, tmp_path, "GET", "gates/r?service=svc&version=v9").status == 425


@pytest.mark.parametrize(
    "target",
    [
        "compare?service=svc",
        "compare?service=svc&candidate=x",
        "gates/r?service=svc",
        "gates/r?service=svc&version=v&window=9d",
    ],
)
def test_bad_questions(tmp_path: Path, target: str) -> None:
    assert ask(storage({"a:1": 0.0}), tmp_path, "GET", target).status == 400


def test_few_attempts_without_errors_do_not_pass() -> None:
    def verdict(n: float) -> Any:
        return compare(np.array([[0.0, 0.0]]), np.array([[n, 16_400.0]]), Policy(), 0.005)

    assert verdict(50).verdict == "inconclusive"
    assert verdict(600).verdict == "pass"
    missing = verdict(50).missing
    assert missing is not None
    assert verdict(50 + 2 * missing).verdict == "pass"


def test_sides() -> None:
    assert Side.parse('version="v2"') == Side.parse("version=v2") == Side("version", "v2")
    with pytest.raises(ValueError, match="is not"):
        Side.parse("colour=red")


def test_burn_rates(tmp_path: Path) -> None:
    frames = storage({"a:1": 0.01, "b:1": 0.03}, 9000)
    slo = ask(frames, tmp_path, "GET", "slo?service=svc&objective=0.99").data
    assert slo["burn"]["5m"] == pytest.approx(2.0, rel=0.01)
    assert slo["burn"]["3d"] == pytest.approx(2.0, rel=0.01)
    assert slo["budget_left"] == pytest.approx(-1.0, rel=0.02)
    assert [(a["severity"], a["windows"]) for a in slo["alerts"]] == [("ticket", ["3d", "6h"])]
    strict = ask(frames, tmp_path, "GET", "slo?service=svc").data
    assert [a["severity"] for a in strict["alerts"]] == ["page", "page", "ticket"]
    nobody = ask(frames, tmp_path, "GET", "slo?service=nobody").data
    assert set(nobody["burn"].values()) == {None}
    assert nobody["alerts"] == []
    assert ask(frames, tmp_path, "GET", "slo?service=svc&objective=2").status == 400
