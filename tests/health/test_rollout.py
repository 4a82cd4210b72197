"""Gates of nginx rollouts: what halts, waits and goes; on counts, on simulated fleets, and over stored series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.rollouts import ASKED_S, Fault, Fleet, broken, clean
from health.rollout import judge_rollout
from health.rollout_counts import RolloutCounts, Stretch, read_rollout
from tests.health.test_compare import ask as ask_api
from tests.health.test_compare import storage
from tests.ingest.nginx.builders import World
from tsdb.batch import SampleBatch

NOW = 1_000_000_000
HOSTS = ("web-1", "web-2", "web-3")


def side(seconds: float, requests: list[int], errors: list[int], slow: list[int] | None = None) -> Stretch:
    n = np.array([requests], float)
    slow_of = np.array([slow if slow else [r // 20 for r in requests]], float)
    buckets = np.stack((n - slow_of, np.zeros_like(n), slow_of), axis=2)
    return Stretch(seconds, n, np.array([errors], float), buckets)


def counts(before: Stretch, after: Stretch, **more: Any) -> RolloutCounts:
    return RolloutCounts(("a.example",), HOSTS, before, after, np.full(3, NOW), **{"loud": (), **more})


def judge(found: RolloutCounts, **more: Any) -> dict[str, Any]:
    return judge_rollout(found, **{"site": "a.example", "host": "web-1", "now_ms": NOW, **more})


CALM = side(600, [6000, 6000, 6000], [12, 12, 12])


def test_go() -> None:
    found = judge(counts(CALM, side(60, [600, 600, 600], [1, 1, 1])))
    assert (found["verdict"], found["peers"]) == ("go", ["web-2", "web-3"])
    assert found["requests_after"] == 600


def test_errors_after_the_change_halt() -> None:
    found = judge(counts(CALM, side(60, [410, 600, 600], [49, 1, 1])))
    assert found["verdict"] == "halt"
    assert found["reason"] == "a.example: 11.95 % 5xx of 410 after, 0.20 % before, peers 0.17 %"


def test_who_was_bad_before_is_not_made_bad_by_the_change() -> None:
    bad = side(600, [6000, 6000, 6000], [720, 12, 12])
    assert judge(counts(bad, side(60, [600, 600, 600], [72, 1, 1])))["verdict"] != "halt"


def test_rising_together_is_a_common_cause() -> None:
    found = judge(counts(CALM, side(60, [600, 600, 600], [90, 80, 95])))
    assert found["verdict"] == "wait"
    assert "common_cause" in found["reason"]
    # machines that were changed before are no peers: then nobody speaks for the change
    assert judge(counts(CALM, side(60, [600, 600, 600], [90, 80, 95])), updated=["web-2", "web-3"])["verdict"] == "halt"


def test_slower_than_before_and_than_the_peers_halts() -> None:
    found = judge(counts(CALM, side(60, [600, 600, 600], [1, 1, 1], slow=[300, 30, 30])))
    assert found["verdict"] == "halt"
    assert "slow requests" in found["reason"]


def test_traffic_that_vanished_halts_unless_it_vanished_everywhere() -> None:
    assert judge(counts(CALM, side(60, [2, 600, 600], [0, 0, 0])))["verdict"] == "halt"
    assert judge(counts(CALM, side(60, [2, 2, 2], [0, 0, 0])))["verdict"] == "wait"
    assert judge(counts(CALM, side(10, [0, 100, 100], [0, 0, 0])))["verdict"] == "wait", "lines arrive late"


def test_loud_lines_halt() -> None:
    found = judge(counts(CALM, side(60, [600, 600, 600], [1, 1, 1]), loud=(("", "[emerg] no"),)))
    assert (found["verdict"], found["reason"]) == ("halt", "[emerg] no")


def test_few_requests_and_old_counters_wait() -> None:
    found = judge(counts(CALM, side(5, [20, 50, 50], [0, 0, 0])))
    assert (found["verdict"], found["min_requests_missing"]) == ("wait", 30)
    old = judge(counts(CALM, side(60, [600, 600, 600], [1, 1, 1])), now_ms=NOW + 60_000)
    assert (old["verdict"], old["reason"]) == ("wait", "counters are old")
    nothing = side(600, [0, 0, 0], [0, 0, 0])
    assert "nothing to compare with" in judge(counts(nothing, side(60, [600, 0, 0], [0, 0, 0])))["reason"]


def test_one_broken_site_of_a_hundred_halts() -> None:
    assert all(broken(10, 3, Fault(errors=1.0)))
    assert all(broken(10, 3, Fault(slower=4.0)))
    assert all(broken(10, 3, Fault(traffic=0.0)))
    assert not any(broken(10, 3, Fault(errors=0.3, everywhere=True)))


def test_no_false_halt_in_a_thousand_clean_rollouts() -> None:
    found = clean(1000, 5, sites=3)  # `python -m benchmarks.rollouts` takes 100 sites each
    assert found["halt"] == 0
    assert found["go"] > 800, "a gate that never opens is none"


def test_a_site_by_itself_agrees() -> None:
    fleet = Fleet(np.random.default_rng(1), 20, 4, Fault(errors=1.0))
    assert fleet.ask(ASKED_S[1], fleet.sites[10]) == "halt"
    assert fleet.ask(ASKED_S[-1], fleet.sites[0]) == "go"


@pytest.fixture
def world(tmp_path: Path) -> Any:
    made = World(tmp_path)
    yield made
    made.close()


def write(world: World, name: str, labels: dict[str, str], samples: list[tuple[int, float]]) -> None:
    ref = world.tenant.registry.resolve({"__name__": name, **labels})
    times, values = zip(*samples, strict=True)
    batch = SampleBatch(
        np.full(len(times), ref, np.uint32),
        np.array(times, np.int64),
        np.array(values, np.float64).view(np.uint64),
        world.tenant.registry,
    )
    world.tenant.append(batch).result()


def test_counts_are_read_from_series_on_their_side_of_the_change(world: World) -> None:
    base = {"site": "a", "host": "web-1", "env": "prod"}
    # the increase of the interval with the change in it (100 -> 107) counts on no side; the counter begins anew at 25
    samples = [(0, 0.0), (5000, 50.0), (10_000, 100.0), (15_000, 107.0), (20_000, 117.0), (25_000, 4.0)]
    write(world, "nginx_requests_total", {**base, "status_class": "2xx"}, samples)
    write(world, "nginx_requests_total", {**base, "status_class": "5xx"}, [(15_000, 0.0), (20_000, 3.0)])
    write(world, "nginx_requests_total", {**base, "status_class": "none"}, [(15_000, 0.0), (20_000, 9.0)])
    for le, value in (("0.1", 5.0), ("+Inf", 8.0)):
        write(world, "nginx_request_time_seconds_bucket", {**base, "le": le}, [(15_000, 0.0), (20_000, value)])
    write(world, "nginx_requests_total", {**base, "site": "b", "host": "web-2", "status_class": "2xx"}, samples)
    stage = {**base, "env": "stage", "host": "stage-1", "status_class": "2xx"}
    write(world, "nginx_requests_total", stage, samples)
    found = read_rollout(
        world.tenant, world.logs, site="", host="web-1", changed_ms=12_000, baseline_ms=12_000, now_ms=26_000
    )
    assert (found.sites, found.hosts) == (("a",), ("web-1",))
    assert (found.before.requests.tolist(), found.after.requests.tolist()) == ([[100.0]], [[17.0]])
    assert (found.before.errors.tolist(), found.after.errors.tolist()) == ([[0.0]], [[3.0]])
    assert found.after.buckets.tolist() == [[[5.0, 3.0]]]
    assert found.newest_ms.tolist() == [25_000]


@pytest.mark.parametrize(
    "target",
    [
        "gates/r?site=a",
        "gates/r?site=a&changed_at=yesterday",
        "gates/r?host=a&changed_at=1",
        "gates/r?site=a&changed_at=1700000000&baseline=9d",
    ],
)
def test_bad_questions(tmp_path: Path, target: str) -> None:
    assert ask_api(storage({"a:1": 0.0}), tmp_path, "GET", target).status == 400
