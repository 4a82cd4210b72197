"""The loop from samples to a published board: ejection, recovery, restart, silence, orders, policies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from health.board import Revision
from health.loop import NotFoundError
from health.policy import EjectionRule, GuardRule, Mode, Policy, ProbeRule
from health.verdicts import Action, Override
from tests.health.mesh import Mesh, kinds

QUICK = Policy(
    mode=Mode.ENFORCE,
    ejection=EjectionRule(base_ms=10_000, ramp_step_ms=3_000, probe=ProbeRule(weight_percent=10.0)),
    guards=GuardRule(warmup_ms=20_000, min_age_ms=20_000),
)


def test_a_grey_failure_is_ejected_and_let_back_when_it_heals(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, QUICK)
    before = mesh.run(40)
    assert [event["type"] for event in before] == ["freeze", "thaw"]  # the warm-up
    assert {mesh.state(h) for h in range(6)} == {"healthy"}
    revision = mesh.loop.board.now.revision
    mesh.run(5)
    assert mesh.loop.board.now.revision == revision  # evidence moves, verdicts do not
    mesh.failing[2] = 0.15
    events = mesh.run(12)
    assert kinds(events, mesh.names[2])[:2] == ["suspect", "ejected"]
    assert not [e for e in events if e["type"] == "ejected" and e["endpoint"] != mesh.names[2]]
    ejected = next(e for e in events if e["type"] == "ejected")
    assert ejected["evidence"]["errors"] >= 5
    assert ejected["detector"] == "error_ratio"
    assert mesh.loop.board.now.revision > revision
    assert ejected["revision"] <= str(mesh.loop.board.now.revision)
    mesh.failing[2] = 0.0
    assert "recovered" in kinds(mesh.run(60), mesh.names[2])
    assert mesh.state(2) == "healthy"


def test_dry_run_decides_the_same_and_says_so(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, replace(QUICK, mode=Mode.DRY_RUN))
    mesh.run(40)
    mesh.failing[1] = 0.3
    events = mesh.run(10)
    assert {e["mode"] for e in events} == {"dry_run"}
    assert "ejected" in kinds(events, mesh.names[1])
    assert mesh.loop.board.now.services["svc"].mode is Mode.DRY_RUN


def test_an_ejection_survives_a_restart_and_the_revision_goes_on(tmp_path: Path) -> None:
    policy = replace(QUICK, ejection=replace(QUICK.ejection, base_ms=60_000))
    mesh = Mesh(tmp_path, policy)
    mesh.run(40)
    mesh.failing[3] = 0.5
    mesh.run(10)
    assert mesh.state(3) == "ejected"
    until = mesh.loop.services["svc"].state.endpoints[mesh.names[3]].until_ms
    revision, events = mesh.loop.board.now.revision, mesh.loop.events.count
    mesh.loop = mesh.start()
    mesh.run(3)
    assert mesh.state(3) == "ejected"
    assert mesh.loop.services["svc"].state.endpoints[mesh.names[3]].until_ms == until
    assert mesh.loop.board.now.revision.epoch == revision.epoch
    assert mesh.loop.board.now.revision > revision
    assert mesh.loop.events.count >= events
    assert any(e.data["type"] == "ejected" for e in mesh.loop.events.find())


def test_damaged_state_raises_the_epoch(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, QUICK)
    mesh.run(25)
    file = tmp_path / "state.json"
    file.write_bytes(file.read_bytes().replace(b"healthy", b"hea1thy"))
    mesh.loop = mesh.start()
    assert mesh.loop.board.now.revision.epoch == mesh.now // 1000
    assert (tmp_path / "state.damaged").exists()


def test_silence_freezes_and_ends_the_lease(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, QUICK)
    mesh.run(40)
    mesh.failing[0] = 0.5
    mesh.silent = {0, 1, 2, 3}
    events = mesh.run(30)
    assert [e["type"] for e in events if e["type"] in ("freeze", "ejected")] == ["freeze"]
    view = mesh.loop.board.now.services["svc"]
    assert view.frozen
    assert view.valid_until_ms == mesh.now - 30_000 + QUICK.lease_ms


def test_the_end_of_a_lease_is_said_once(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, QUICK)
    mesh.run(40)
    mesh.silent = {0, 1, 2, 3}
    events = mesh.run(QUICK.lease_ms // 1000 + 20)
    (expired,) = [e for e in events if e["type"] == "lease_expired"]
    assert (expired["service"], expired["endpoint"], expired["mode"]) == ("svc", "", None)
    assert expired["evidence"] == {"data_age_ms": QUICK.lease_ms}
    mesh.silent = set()
    mesh.run(5)
    mesh.silent = {0, 1, 2, 3}
    again = [e for e in mesh.run(QUICK.lease_ms // 1000 + 5) if e["type"] == "lease_expired"]
    assert len(again) == 1


def test_a_bad_majority_ejects_nobody_and_the_cap_holds(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, QUICK, endpoints=3)
    mesh.run(40)
    mesh.failing[:2] = 0.3
    events = mesh.run(40)
    assert sum(e["type"] == "ejected" for e in events) <= 1
    states = [mesh.state(h) for h in range(3)]
    assert states.count("ejected") <= 1


def test_orders_have_an_end(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, QUICK)
    mesh.run(30)
    order = Override(Action.FORCE_EJECTED, mesh.now + 10_000, "oncall", "ticket 1")
    stored = mesh.loop.put_override("svc", mesh.names[0], order)
    mesh.run(2)
    assert mesh.state(0) == "ejected"
    mesh.run(10)
    assert mesh.state(0) in ("probation", "ramp")
    assert not mesh.loop.overrides
    with pytest.raises(NotFoundError):
        mesh.loop.delete_override(stored.id, "oncall")
    with pytest.raises(NotFoundError):
        mesh.loop.put_override("svc", "1.2.3.4:5", order)
    events = mesh.loop.events.find(type="override")
    assert events[0].data["by"] == "oncall"


def test_the_most_exact_policy_counts_and_survives(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, QUICK)
    mesh.run(25)
    strict = replace(QUICK, name="strict", service="sv*", mode=Mode.DRY_RUN)
    assert mesh.loop.put_policy(strict, "me")
    mesh.run(1)
    assert mesh.loop.board.now.services["svc"].policy == "strict"
    mesh.loop = mesh.start()
    assert mesh.loop.policy_of("svc") == strict
    assert mesh.loop.policy_of("other") == QUICK
    mesh.loop.delete_policy("strict", "me")
    assert mesh.loop.policy_of("svc") == QUICK
    with pytest.raises(NotFoundError):
        mesh.loop.delete_policy("default", "me")


def test_two_second_scrapes_of_four_proxies_find_it_within_ten(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, QUICK, seed=7)
    mesh.run(60, scrape_s=2)
    mesh.failing[4] = 0.15
    begin = mesh.now
    events = mesh.run(20, scrape_s=2)
    ejected = next(e for e in events if e["type"] == "ejected")
    assert ejected["endpoint"] == mesh.names[4]
    assert ejected["time_ms"] - begin <= 10_000


def test_revisions_are_read_in_every_spelling() -> None:
    assert Revision.parse("7.42") == Revision.parse('W/"7.42"') == Revision.parse('"7.42"') == (7, 42)
    for text in ("7", "a.b", "", "7.4.2"):
        with pytest.raises(ValueError, match="is no revision"):
            Revision.parse(text)


def test_what_is_gone_makes_room_and_may_come_back(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, QUICK)
    mesh.run(30)
    gone, mesh.names = mesh.names[0], [*mesh.names[1:], "10.0.9.9:80"]  # a pod with another address
    mesh.silent = {0}
    mesh.run(5)
    assert gone in mesh.loop.services["svc"].endpoints
    for _ in range(3):  # unknown, forgotten by the state machine, forgotten altogether
        mesh.now += 1_300_000
        mesh.run(2)
    mesh.run(70)
    service = mesh.loop.services["svc"]
    assert gone not in service.endpoints
    assert service.observers == ["envoy-1", "envoy-2", "envoy-3"]
    assert sorted(service.endpoints) == sorted(mesh.names)
    assert {mesh.state(h) for h in range(6)} == {"healthy"}
    mesh.failing[5] = 0.5
    assert "ejected" in kinds(mesh.run(10), "10.0.9.9:80")  # what is counted goes to the right columns
    mesh.silent = {0, 1, 2, 3}
    for _ in range(4):
        mesh.now += 1_300_000
        mesh.run(2)
    assert "svc" not in mesh.loop.services
    mesh.silent = set()
    mesh.run(5)
    assert len(mesh.loop.services["svc"].endpoints) == 6


def test_slow_scrapes_are_no_silence(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, replace(QUICK, guards=GuardRule()))
    events = mesh.run(120, scrape_s=15)
    assert [event["type"] for event in events] == ["freeze", "thaw"]  # the warm-up


def test_configured_policies_may_change(tmp_path: Path) -> None:
    said: list[tuple[str, str]] = []
    mesh = Mesh(tmp_path, QUICK, listener=lambda events: said.extend((e["type"], e["by"]) for e in events))
    mesh.run(3)
    loop = mesh.loop
    loop.put_policy(Policy(name="made", service="svc", mode=Mode.DRY_RUN), "me")
    said.clear()
    loop.use_configured({"strict": Policy(name="strict", service="s*", mode=Mode.ENFORCE)})
    assert set(loop.policies) == {"made", "strict"}
    assert loop.policy_of("svc").name == "made"  # what was made through the API still wins
    loop.delete_policy("made", "me")
    assert loop.services["svc"].policy.name == "strict"
    assert sorted(said) == [
        ("policy_changed", "configuration"),
        ("policy_deleted", "configuration"),
        ("policy_deleted", "me"),
    ]
    loop.use_configured({})
    assert set(loop.policies) == {"default"}
    said.clear()
    loop.use_configured({})
    assert said == []
