"""The state machine: every arrow of the table, purity, back-off, orders by people, what survives a restart."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health.machine import Ejector, publication, resumed
from health.policy import EjectionRule, EnvoyRule, ErrorRule, GuardRule, Policy, Publish, Rule
from health.verdicts import (
    Action,
    Degraded,
    Detector,
    EndpointState,
    FleetBudget,
    Guard,
    Kind,
    Override,
    ServiceState,
    State,
)
from tests.health.builders import NOW, ejected, healthy, names, service, situation, stats, topology, verdicts

E0 = names(6)[0]


def step(state, found=None, facts=None, now=NOW, policy=None):
    found = found or verdicts()
    facts = facts or situation(topology(len(found.endpoints)))
    facts = replace(facts, data_as_of_ms=now - 500) if facts.data_as_of_ms == NOW - 500 else facts
    return Ejector("svc", policy or Policy()).step(state, found, facts, now)


def kinds(decisions):
    return [d.kind for d in decisions]


def probed(errors, attempts, **more):
    return verdicts(
        probe_errors=np.array([errors, 0, 0, 0, 0, 0.0]), probe_attempts=np.array([attempts, 0, 0, 0, 0, 0.0]), **more
    )


def test_two_flags_in_a_row_eject():
    state, decisions = step(service(), verdicts(flagged=(0,)))
    assert kinds(decisions) == [Kind.SUSPECT]
    assert state.endpoints[E0].state is State.SUSPECT
    assert decisions[0].evidence["excess"] == pytest.approx(0.15)
    state, decisions = step(state, verdicts(flagged=(0,)), now=NOW + 1000)
    assert kinds(decisions) == [Kind.EJECTED, Kind.CAPACITY_LOST]
    now = state.endpoints[E0]
    assert (now.state, now.ejections, now.weight, now.detector) == (State.EJECTED, 1, 0.0, Detector.ERROR_RATIO)
    assert decisions[0].resets
    assert decisions[0].until_ms == now.until_ms
    assert 24_000 <= now.until_ms - NOW - 1000 <= 36_000
    assert decisions[1].evidence == {"unavailable": 1, "total": 6, "share": 1 / 6}
    assert state.last_ejection_ms == NOW + 1000


def test_one_flag_is_only_an_event():
    state, _ = step(service(), verdicts(flagged=(0,)))
    state, decisions = step(state, now=NOW + 1000)
    assert kinds(decisions) == [Kind.CLEARED]
    assert state.endpoints[E0].state is State.HEALTHY
    state, decisions = step(state, verdicts(flagged=(0,)), now=NOW + 2000)
    assert kinds(decisions) == [Kind.SUSPECT]


def test_consecutive_is_the_policys():
    policy = Policy(error=ErrorRule(consecutive=3))
    state = service()
    for second in range(2):
        state, _ = step(state, verdicts(flagged=(0,)), now=NOW + 1000 * second, policy=policy)
    assert state.endpoints[E0].state is State.SUSPECT
    state, _ = step(state, verdicts(flagged=(0,)), now=NOW + 2000, policy=policy)
    assert state.endpoints[E0].state is State.EJECTED


def test_a_hard_failure_needs_no_second_look():
    state, decisions = step(service(), verdicts(flagged=(0,), detector=Detector.HARD_FAILURE))
    assert state.endpoints[E0].state is State.EJECTED
    assert kinds(decisions) == [Kind.SUSPECT, Kind.EJECTED, Kind.CAPACITY_LOST]


def test_a_guard_blocks_and_it_is_tried_again():
    state, found = service(e0=healthy(NOW - 30_000)), verdicts(flagged=(0,))
    state, _ = step(state, found)
    for second, repeated in ((1, False), (2, True)):
        state, decisions = step(state, found, now=NOW + 1000 * second)
        assert kinds(decisions) == [Kind.BLOCKED]
        assert (decisions[0].guard, decisions[0].repeated) == (Guard.AGE, repeated)
        assert decisions[0].evidence["guard_reason"] == "young"
        assert decisions[0].evidence["excess"] == pytest.approx(0.15)
        assert state.endpoints[E0].state is State.SUSPECT
    state, _ = step(state, found, now=NOW + 30_000)
    assert state.endpoints[E0].state is State.EJECTED
    assert state.endpoints[E0].blocked_by is None


def test_the_worst_goes_first_and_the_gap_holds_the_next():
    found = verdicts(10, flagged=(3, 1))
    facts = situation(topology(10))
    state, _ = step(service(10), found, facts)
    state, decisions = step(state, found, facts, NOW + 1000)
    assert [(d.kind, d.endpoint, d.guard) for d in decisions if d.endpoint] == [
        (Kind.EJECTED, names(10)[3], None),
        (Kind.BLOCKED, names(10)[1], Guard.RATE),
    ]
    state, decisions = step(state, verdicts(10, flagged=(1,)), facts, NOW + 6000)
    assert Kind.EJECTED in kinds(decisions)


def test_the_budget_of_the_fleet():
    budget = FleetBudget(100, (NOW - 70_000, NOW - 50_000))
    assert budget.spent(NOW) == 1
    state, _ = step(service(), verdicts(flagged=(0,)))
    _, decisions = step(state, verdicts(flagged=(0,)), now=NOW + 1000)
    assert budget.charged(decisions, NOW) == FleetBudget(100, (NOW - 50_000, NOW))


def test_the_sentence_ends_in_probation():
    state, decisions = step(service(e0=ejected(NOW + 1)))
    assert decisions == ()
    state, decisions = step(state, now=NOW + 1, facts=situation(rps=162.0))
    assert kinds(decisions) == [Kind.PROBATION]
    assert decisions[0].resets
    assert state.endpoints[E0].weight == pytest.approx(0.05)  # 27 rps per endpoint: 20 attempts in 15 s


@pytest.mark.parametrize(("rps", "weight"), [(6000.0, 0.05), (60.0, 20 / 150), (6.0, 0.25), (0.0, 0.05)])
def test_slow_services_are_probed_with_more(rps, weight):
    state, _ = step(service(e0=ejected(NOW)), facts=situation(rps=rps))
    assert state.endpoints[E0].weight == pytest.approx(weight)


@pytest.mark.parametrize(
    ("errors", "attempts", "after"),
    [
        (0, 19, State.PROBATION),
        (0, 20, State.RAMP),
        (1, 20, State.PROBATION),
        (1, 27, State.RAMP),
        (2, 37, State.RAMP),
        (2, 36, State.PROBATION),
        (1, 1, State.PROBATION),
        (2, 4, State.EJECTED),
        (3, 20, State.EJECTED),
    ],
)
def test_what_probation_decides(errors, attempts, after):
    """The figures of the design page: passes 0 of 20, 1 of 27, 2 of 37, with u near 0."""
    state = service(e0=healthy(NOW - 20_000, state=State.PROBATION, weight=0.05, ejections=1))
    state, decisions = step(state, probed(errors, attempts, baseline_hi=0.001))
    assert state.endpoints[E0].state is after
    if after is State.EJECTED:
        assert (decisions[0].detector, decisions[0].charged) == (Detector.PROBE, False)
        assert state.endpoints[E0].ejections == 2
        assert state.endpoints[E0].until_ms > NOW + 40_000


def test_probation_without_traffic_ends_too():
    start = healthy(NOW - 119_999, state=State.PROBATION, weight=0.05)
    assert step(service(e0=start))[0].endpoints[E0].state is State.PROBATION
    start = replace(start, since_ms=NOW - 120_000)
    assert step(service(e0=start), probed(1, 5))[0].endpoints[E0].state is State.PROBATION
    assert step(service(e0=start), probed(0, 5))[0].endpoints[E0].state is State.RAMP


def test_a_failed_probe_keeps_its_place_under_the_cap():
    """It counted as unavailable already, and needs neither capacity nor budget."""
    others = {"e1": ejected(NOW * 2)}
    state = replace(
        service(e0=healthy(NOW - 9000, state=State.PROBATION, weight=0.05), **others), last_ejection_ms=NOW - 1
    )
    state, _ = step(state, probed(9, 9), facts=situation(rps=1e6, fleet=FleetBudget(6, (NOW - 1,))))
    assert state.endpoints[E0].state is State.EJECTED
    assert state.last_ejection_ms == NOW - 1


def test_the_ramp_rises_to_healthy():
    state = service(e0=healthy(NOW, state=State.RAMP, weight=0.1, ejections=1))
    weights = []
    for second in range(1, 41):
        state, decisions = step(state, now=NOW + 1000 * second)
        if decisions:
            weights.append((second, decisions[0].kind, state.endpoints[E0].weight))
    assert weights == [
        (10, Kind.RAMP, 0.25),
        (20, Kind.RAMP, 0.5),
        (30, Kind.RAMP, 1.0),
        (40, Kind.RECOVERED, 1.0),
    ]
    assert state.endpoints[E0].state is State.HEALTHY


def test_the_ramp_falls_back():
    ramp = healthy(NOW - 5_000, first_seen_ms=0, state=State.RAMP, weight=0.5, ramp_step=2, ejections=1)
    state, _ = step(service(e0=ramp), verdicts(flagged=(0,)))
    assert state.endpoints[E0].state is State.RAMP
    state, decisions = step(state, verdicts(flagged=(0,)), now=NOW + 1000)
    assert state.endpoints[E0].state is State.EJECTED
    assert state.endpoints[E0].ejections == 2
    state, decisions = step(service(e0=ramp), probed(5, 20))
    assert state.endpoints[E0].state is State.EJECTED
    assert decisions[0].detector is Detector.PROBE


def test_back_off_jitter_and_decay():
    ejector = Ejector("svc", Policy())
    waits = [ejector.ejection_ms(E0, n) for n in range(1, 13)]
    for n, wait in enumerate(waits, start=1):
        assert 0.8 <= wait / min(30_000 * n, 300_000) <= 1.2
    assert waits == [Ejector("svc", Policy()).ejection_ms(E0, n) for n in range(1, 13)]
    assert waits != [Ejector("svc", Policy(seed=1)).ejection_ms(E0, n) for n in range(1, 13)]
    state = service(e0=healthy(NOW, ejections=2))
    seen = []
    for second in range(100):
        state, decisions = step(state, now=NOW + 1000 * second)
        assert decisions == ()
        seen.append(state.endpoints[E0].ejections)
    assert seen == [2] * 30 + [1] * 30 + [0] * 40


def test_a_flag_holds_the_decay():
    state = service(e0=healthy(NOW - 29_000, ejections=1))
    state, _ = step(state, verdicts(flagged=(0,)))
    state, _ = step(state, now=NOW + 1000)
    state, _ = step(state, now=NOW + 29_000)
    assert state.endpoints[E0].ejections == 1


def test_jitter_is_spread_evenly():
    ejector = Ejector("svc", Policy())
    draws = [ejector.jitter(f"e{i}", 1) for i in range(2000)]
    assert 0.0 <= min(draws) < 0.01
    assert 0.99 < max(draws) < 1.0
    assert np.mean(draws) == pytest.approx(0.5, abs=0.03)


def test_envoys_back_off_under_envoys_rule():
    policy = Policy(rule=Rule.ENVOY, envoy=EnvoyRule(max_ejection_time_jitter_ms=5_000))
    waits = [Ejector("svc", policy).ejection_ms(E0, n) for n in (1, 2, 20)]
    for wait, base in zip(waits, (30_000, 60_000, 300_000), strict=True):
        assert base <= wait <= base + 5_000


def test_publish_as_weight_keeps_it_healthy_for_eds():
    policy = Policy(ejection=EjectionRule(publish=Publish.WEIGHT))
    state, _ = step(service(), verdicts(flagged=(0,), detector=Detector.HARD_FAILURE), policy=policy)
    shown = publication(state.endpoints[E0], policy)
    assert (shown.verdict, shown.health_status, shown.weight) == ("EJECT", "HEALTHY", 0.01)


@pytest.mark.parametrize(
    ("state", "verdict", "status"),
    [
        (State.UNKNOWN, "UNKNOWN", "HEALTHY"),
        (State.HEALTHY, "HEALTHY", "HEALTHY"),
        (State.SUSPECT, "HEALTHY", "HEALTHY"),
        (State.EJECTED, "EJECT", "UNHEALTHY"),
        (State.PROBATION, "DEGRADED", "HEALTHY"),
        (State.RAMP, "DEGRADED", "HEALTHY"),
    ],
)
def test_what_is_published(state, verdict, status):
    shown = publication(healthy(state=state), Policy())
    assert (shown.verdict, shown.health_status) == (verdict, status)


def test_new_endpoints_become_healthy_with_traffic():
    quiet = verdicts(attempts_60s=np.array([9, 10, 0, 0, 0, 0.0]))
    state, decisions = step(ServiceState(started_ms=0), quiet)
    assert [state.endpoints[n].state for n in names(6)[:3]] == [State.UNKNOWN, State.HEALTHY, State.UNKNOWN]
    assert decisions == ()


def test_an_unknown_endpoint_may_be_suspected():
    state, decisions = step(ServiceState(started_ms=0), verdicts(flagged=(0,)))
    assert state.endpoints[E0].state is State.SUSPECT
    assert decisions[0].before is State.UNKNOWN


def gone(**more):
    return verdicts(present=np.array([False, True, True, True, True, True]), **more)


def test_series_that_end_make_it_unknown():
    state, decisions = step(service(), gone())
    assert kinds(decisions) == [Kind.GONE]
    assert state.endpoints[E0].state is State.UNKNOWN
    state, decisions = step(state, gone(), now=NOW + 600_001)
    assert E0 not in state.endpoints
    assert decisions == ()


def test_coming_back_makes_it_young_again():
    state, _ = step(service(), gone())
    state, _ = step(state, now=NOW + 90_000)
    assert state.endpoints[E0].state is State.HEALTHY
    assert state.endpoints[E0].first_seen_ms == NOW + 90_000


def test_registering_again_does_not_wash_an_ejection_away():
    five = names(6)[1:]
    found = replace(verdicts(5), endpoints=five)
    facts = situation(replace(topology(5), endpoints=five))
    start = service(e0=ejected(NOW + 50_000))
    without, _ = step(start, found, facts)
    assert without.endpoints[E0].state is State.UNKNOWN
    back, decisions = step(without, now=NOW + 10_000)
    assert kinds(decisions) == [Kind.RETURNED]
    assert (back.endpoints[E0].state, back.endpoints[E0].until_ms) == (State.EJECTED, NOW + 50_000)
    later, _ = step(without, now=NOW + 60_000)
    assert later.endpoints[E0].state is State.PROBATION
    assert later.endpoints[E0].ejections == 1
    forgotten, _ = step(without, found, replace(facts, data_as_of_ms=NOW + 600_500), NOW + 600_001)
    assert E0 not in forgotten.endpoints


def test_an_ejected_endpoint_without_series_stays_ejected_until_its_time():
    state, decisions = step(service(e0=ejected(NOW + 5_000)), gone())
    assert decisions == ()
    state, decisions = step(state, gone(), now=NOW + 5_000)
    assert kinds(decisions) == [Kind.PROBATION]
    state, decisions = step(state, gone(), now=NOW + 64_000)
    assert decisions == ()  # its series need a moment to begin again
    state, decisions = step(state, gone(), now=NOW + 65_000)
    assert kinds(decisions) == [Kind.GONE]
    assert state.endpoints[E0].returning is State.EJECTED


def test_without_data_only_sentences_end():
    stale = situation(data_as_of_ms=NOW - 60_000)
    start = service(
        e0=ejected(NOW),
        e1=healthy(NOW - 500_000, state=State.PROBATION),
        e2=healthy(state=State.RAMP),
        e3=healthy(state=State.SUSPECT, flags=1),
    )
    found = verdicts(flagged=(4,), present=np.zeros(6, dtype=np.bool_))
    state, decisions = step(start, found, stale)
    assert [(d.kind, d.guard) for d in decisions] == [
        (Kind.FREEZE, Guard.DATA_FRESH),
        (Kind.PROBATION, None),
        (Kind.BLOCKED, Guard.DATA_FRESH),
    ]
    assert [state.endpoints[n].state for n in names(6)] == [
        State.PROBATION, State.PROBATION, State.RAMP, State.SUSPECT, State.HEALTHY, State.HEALTHY,
    ]  # fmt: skip
    state, decisions = step(state, found, stale)
    assert [(d.kind, d.repeated) for d in decisions] == [(Kind.BLOCKED, True)]
    _, decisions = step(state)
    assert decisions[0].kind is Kind.THAW


def test_nothing_changes_while_it_warms_up():
    start = ServiceState(started_ms=NOW)
    state, decisions = step(start, verdicts(flagged=(0,)), now=NOW + 59_999)
    assert kinds(decisions) == [Kind.FREEZE]
    assert {e.state for e in state.endpoints.values()} == {State.UNKNOWN}
    state, decisions = step(state, verdicts(), now=NOW + 60_000)
    assert {e.state for e in state.endpoints.values()} == {State.HEALTHY}


def order(action, until=NOW + 60_000):
    return {E0: Override(action, until, "oncall", "ticket 123")}


def test_force_ejected_until_its_end():
    facts = situation(overrides=order(Action.FORCE_EJECTED), rps=1e6)
    state, decisions = step(service(e1=ejected(NOW * 2)), facts=facts)
    assert state.endpoints[E0].state is State.EJECTED
    assert (state.endpoints[E0].until_ms, state.endpoints[E0].ejections) == (NOW + 60_000, 0)
    assert decisions[0].evidence["author"] == "oncall"
    again, decisions = step(state, facts=facts, now=NOW + 1000)
    assert (again.endpoints[E0], decisions) == (state.endpoints[E0], ())
    state, decisions = step(again, facts=facts, now=NOW + 60_000)
    assert state.endpoints[E0].state is State.PROBATION
    # taken back early
    assert step(again, now=NOW + 2000)[0].endpoints[E0].state is State.PROBATION


def test_force_ejected_spares_the_last_healthy():
    others = {f"e{h}": ejected(NOW * 2) for h in range(1, 6)}
    state, decisions = step(service(**others), facts=situation(overrides=order(Action.FORCE_EJECTED)))
    assert state.endpoints[E0].state is State.HEALTHY
    assert (decisions[0].kind, decisions[0].guard) == (Kind.BLOCKED, Guard.LAST_HEALTHY)


def test_force_ejected_takes_over_an_ejection():
    facts = situation(overrides=order(Action.FORCE_EJECTED))
    state, decisions = step(service(e0=ejected(NOW + 5)), facts=facts)
    assert (state.endpoints[E0].forced, state.endpoints[E0].until_ms) == (True, NOW + 60_000)
    assert decisions == ()


@pytest.mark.parametrize("start", [State.EJECTED, State.PROBATION, State.RAMP])
def test_force_healthy(start):
    facts = situation(overrides=order(Action.FORCE_HEALTHY))
    state, decisions = step(service(e0=healthy(state=start, weight=0.05, until_ms=NOW * 2, ejections=1)), facts=facts)
    assert (state.endpoints[E0].state, state.endpoints[E0].weight) == (State.HEALTHY, 1.0)
    assert kinds(decisions) == [Kind.OVERRIDE]
    for second in (1, 2, 3):
        state, decisions = step(state, verdicts(flagged=(0,)), facts, NOW + 1000 * second)
    assert state.endpoints[E0].state is State.SUSPECT
    assert decisions[0].guard is Guard.OVERRIDE


def test_freeze_of_one_endpoint():
    facts = situation(overrides=order(Action.FREEZE))
    state, decisions = step(service(e0=ejected(NOW - 1)), verdicts(flagged=(0,)), facts)
    assert (state.endpoints[E0].state, decisions) == (State.EJECTED, ())


def test_an_order_that_is_over_orders_nothing():
    facts = situation(overrides=order(Action.FORCE_EJECTED, until=NOW))
    assert step(service(), facts=facts)[1] == ()


def test_events_about_the_service_are_said_once():
    row = {"errors": 60.0}
    found = verdicts(
        flagged=(),
        incident=True,
        broken={1: row},
        observers_split=True,
        degraded=(Degraded("zone", "z1", (0,), row), Degraded("version", "v2", (1,), row)),
    )
    state, decisions = step(service(), found)
    assert kinds(decisions) == [
        Kind.OBSERVER_BROKEN, Kind.OBSERVERS_SPLIT, Kind.ZONE_DEGRADED, Kind.VERSION_DEGRADED, Kind.INCIDENT,
    ]  # fmt: skip
    assert decisions[0].evidence == {"observer": "p1", "errors": 60.0}
    state, decisions = step(state, found, now=NOW + 1000)
    assert decisions == ()
    state, _ = step(state, now=NOW + 2000)
    assert len(step(state, found, now=NOW + 3000)[1]) == 5


def test_partial_view_is_an_event_and_a_guard():
    found = verdicts()
    finding = replace(found.findings[0], stats=stats(6, agreement=0.3, attempts=50.0), partial=(0,))
    found = replace(found, findings=(finding,), partial={0: 0})
    state, decisions = step(service(), found)
    assert [(d.kind, d.guard, d.repeated) for d in decisions] == [(Kind.PARTIAL_VIEW, Guard.PARTIAL_VIEW, False)]
    _, decisions = step(state, found, now=NOW + 1000)
    assert decisions[0].repeated


def test_restart():
    start = service(
        e0=ejected(NOW + 9_000),
        e1=healthy(state=State.PROBATION, weight=0.05, ejections=2),
        e2=healthy(state=State.RAMP, weight=0.5, ejections=1),
        e3=healthy(state=State.SUSPECT, flags=1),
    )
    state = resumed(start, NOW)
    assert [state.endpoints[n].state for n in names(6)] == [
        State.EJECTED, State.EJECTED, State.EJECTED, State.UNKNOWN, State.UNKNOWN, State.UNKNOWN,
    ]  # fmt: skip
    assert state.endpoints[E0].until_ms == NOW + 9_000
    state, _ = step(state, now=NOW + 1000)
    assert [state.endpoints[n].state for n in names(6)[:4]] == [
        State.EJECTED, State.PROBATION, State.PROBATION, State.UNKNOWN,
    ]  # fmt: skip
    assert state.endpoints[names(6)[1]].ejections == 2


FLAGS = st.lists(st.lists(st.integers(0, 5), unique=True, max_size=4), min_size=1, max_size=60)


@settings(deadline=None, max_examples=60)
@given(FLAGS, st.integers(0, 2**32))
def test_steps_are_pure_bounded_and_safe(history, seed):
    """Same inputs, same outputs; nothing changed in place; never above the cap; one change of verdict a step."""
    rng = np.random.default_rng(seed)
    policy = Policy(guards=GuardRule(service_gap_ms=0, fleet_percent_per_minute=100.0))
    state = service()
    for second, flagged in enumerate(history):
        now = NOW + 5_000 * second
        attempts = rng.integers(0, 40, 6).astype(float)
        found = verdicts(
            flagged=flagged, probe_attempts=attempts, probe_errors=np.floor(attempts * rng.random(6) * 0.3)
        )
        frozen = copy.deepcopy(state)
        after, decisions = step(state, found, now=now, policy=policy)
        assert state == frozen
        assert (after, decisions) == step(state, found, now=now, policy=policy)
        out = sum(e.state in (State.EJECTED, State.PROBATION) for e in after.endpoints.values())
        assert out <= 2  # 49 % of 6
        moved = [d.endpoint for d in decisions if d.after in (State.EJECTED, State.PROBATION, State.RAMP)]
        moved = [name for name in moved if after.endpoints[name].state is not state.endpoints[name].state]
        assert len(moved) == len(set(moved))
        shown = {d.endpoint: d.weight for d in decisions if d.endpoint}  # the last word of this step
        assert all(after.endpoints[name].weight == weight for name, weight in shown.items())
        state = after


def test_a_settled_service_stays_as_it_is():
    """What lets the simulation skip quiet seconds."""
    state, decisions = step(service())
    assert (state, decisions) == (service(), ())


def test_unseen_endpoints_of_a_topology_get_no_state():
    found = verdicts(present=np.array([True] * 5 + [False]))
    state, _ = step(ServiceState(started_ms=0), found)
    assert names(6)[5] not in state.endpoints
    assert isinstance(state.endpoints[E0], EndpointState)
