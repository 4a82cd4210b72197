"""Every guard alone, and their order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from health import guards
from health.guards import GUARDS, Candidate, refusal
from health.policy import EnvoyRule, GuardRule, Policy, Rule
from health.verdicts import Action, Degraded, EndpointState, FleetBudget, Guard, Override, State
from tests.health.builders import (
    NOW,
    POLICY,
    docket,
    ejected,
    healthy,
    names,
    service,
    situation,
    stats,
    topology,
    verdicts,
)

CANDIDATE = Candidate(0, excess=0.15)


def first(state=None, found=None, facts=None, policy=POLICY, candidate=CANDIDATE):
    found = found or verdicts(flagged=(0,))
    return refusal(docket(state or service(len(found.endpoints)), found, facts or situation(), policy), candidate)


def test_nobody_refuses_a_plain_case():
    assert first() is None


def test_the_order_is_that_of_the_design_page():
    assert [guard for guard, _ in GUARDS] == list(Guard)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"data_as_of_ms": NOW - 6_000}, "stale data"),  # 3 x (1 s + 1 s)
        ({"reporting_observers": 3}, "observers missing"),
        ({"partial_result": True}, "partial result"),
    ],
)
def test_data_fresh(facts, reason):
    guard, evidence = first(facts=situation(**facts))
    assert guard is Guard.DATA_FRESH
    assert evidence["reason"] == reason
    assert first(facts=situation(data_as_of_ms=NOW - 5_999)) is None


def test_warm_up():
    guard, evidence = first(state=replace(service(), started_ms=NOW - 59_999))
    assert (guard, evidence["reason"]) == (Guard.DATA_FRESH, "warm-up")
    assert first(state=replace(service(), started_ms=NOW - 60_000)) is None


def test_common_cause():
    assert first(found=verdicts(flagged=(0,), incident=True))[0] is Guard.COMMON_CAUSE
    assert first(found=verdicts(flagged=(0,), rising_share=0.6))[0] is Guard.COMMON_CAUSE
    assert first(found=verdicts(flagged=(0,), rising_share=0.59)) is None
    zone = Degraded("zone", "z1", (0, 3), {})
    guard, evidence = first(found=verdicts(flagged=(0,), degraded=(zone,)))
    assert (guard, evidence["scope"]) == (Guard.COMMON_CAUSE, "zone")
    assert first(found=verdicts(flagged=(0,), degraded=(replace(zone, members=(1, 3)),))) is None


def test_partial_view():
    found = verdicts(flagged=(0,))
    finding = replace(found.findings[0], stats=stats(6, agreement=0.3), partial=(0,))
    guard, evidence = first(found=replace(found, findings=(finding,), partial={0: 0}))
    assert guard is Guard.PARTIAL_VIEW
    assert evidence["agreement"] == pytest.approx(0.3)


@pytest.mark.parametrize(("total", "allowed"), [(3, 1), (4, 1), (5, 2), (6, 2), (10, 4), (100, 49)])
def test_cap_keeps_below_the_panic_threshold(total, allowed):
    facts = situation(topology(total), rps=0.0)
    out = {f"e{h}": ejected(NOW * 2) for h in range(1, allowed)}
    found = verdicts(total, flagged=(0,))
    assert first(service(total, **out), found, facts) is None
    out[f"e{allowed}"] = ejected(NOW * 2)
    guard, evidence = first(service(total, **out), found, facts)
    assert guard is Guard.CAP
    assert evidence["allowed"] == allowed
    assert evidence["unavailable_after"] == allowed + 1
    assert (total - allowed) / total > 0.5


def test_cap_counts_what_others_took_out_and_who_is_on_probation():
    facts = situation(topology(6, unavailable=(False, True, True, False, False, False)), rps=0.0)
    assert first(facts=facts)[0] is Guard.CAP
    state = service(e1=healthy(state=State.PROBATION), e2=healthy(state=State.PROBATION))
    assert first(state, facts=situation(rps=0.0))[0] is Guard.CAP
    # what is not of the service any more is not counted
    facts = situation(topology(6, listed=(True, False, True, True, True, True)), rps=0.0)
    assert first(state, facts=facts) is None


def test_the_cap_says_what_it_counted():
    out = service(3, e1=ejected(NOW * 2))
    said = [first(out, verdicts(3, flagged=(0,)), situation(topology(3, told=told), rps=0.0)) for told in (True, False)]
    assert [guard for guard, _ in said] == [Guard.CAP, Guard.CAP]
    assert [evidence["counted"] for _, evidence in said] == ["listed", "seen in metrics, nobody lists them"]


def test_cap_of_zone_and_priority():
    facts = situation(topology(6, zones=("a", "a", "b", "b", "b", "b")), rps=0.0)
    assert first(facts=facts) is None  # one of two in a zone may go
    guard, evidence = first(service(e1=ejected(NOW * 2)), facts=facts)
    assert (guard, evidence["scope"]) == (Guard.CAP, "zone")
    facts = situation(topology(6, priorities=(0, 0, 1, 1, 1, 1)), rps=0.0)
    guard, evidence = first(facts=facts)
    assert (guard, evidence["scope"]) == (Guard.CAP, "priority")


def test_one_of_two_only_when_allowed():
    facts, found = situation(topology(2), rps=0.0), verdicts(2, flagged=(0,))
    assert first(found=found, facts=facts)[0] is Guard.CAP
    policy = replace(POLICY, guards=GuardRule(allow_one_of_two=True))
    assert first(found=found, facts=facts, policy=policy) is None


def test_envoys_own_cap_under_envoys_rule():
    policy = replace(POLICY, rule=Rule.ENVOY)
    facts = situation(rps=0.0)
    assert first(facts=facts, policy=policy)[0] is Guard.CAP  # 10 % of 6 is none: fact 1 of the design page
    policy = replace(policy, envoy=EnvoyRule(always_eject_one_host=True))
    assert first(facts=facts, policy=policy) is None
    facts, found = situation(topology(10), rps=0.0), verdicts(10, flagged=(0,))
    assert first(found=found, facts=facts, policy=replace(POLICY, rule=Rule.ENVOY)) is None


def test_last_healthy():
    """Even when every other guard would let it go."""
    order = Candidate(0, 0.0, forced=True)
    others = {f"e{h}": ejected(NOW * 2) for h in range(1, 6)}
    assert first(service(**others), candidate=order)[0] is Guard.LAST_HEALTHY
    others["e5"] = healthy()
    assert first(service(**others), candidate=order) is None
    others["e5"] = healthy(state=State.SUSPECT)
    assert first(service(**others), verdicts(flagged=(0, 5)), candidate=order)[0] is Guard.LAST_HEALTHY
    others["e5"] = EndpointState(State.UNKNOWN, 0, 0)
    found = verdicts(flagged=(0,))
    assert first(service(**others), found, candidate=order) is None
    quiet = replace(found, attempts_60s=np.zeros(6))
    assert first(service(**others), quiet, candidate=order)[0] is Guard.LAST_HEALTHY


def test_capacity():
    facts = situation(topology(4), rps=400.0, rps_peak=100.0)  # 133 per endpoint afterwards, 130 are known to work
    found = verdicts(4, flagged=(0,))
    guard, evidence = first(found=found, facts=facts)
    assert guard is Guard.CAPACITY
    assert evidence["rps_per_endpoint_after"] == pytest.approx(400 / 3)
    assert first(found=found, facts=replace(facts, rps_peak=103.0)) is None
    assert first(found=found, facts=facts, candidate=Candidate(0, excess=0.5)) is None  # it does hardly anything
    assert first(found=found, facts=replace(facts, rps_peak=0.0)) is None  # nothing is known


def test_rate_of_the_service_and_of_the_fleet():
    assert first(replace(service(), last_ejection_ms=NOW - 4_999))[0] is Guard.RATE
    assert first(replace(service(), last_ejection_ms=NOW - 5_000)) is None
    many = tuple(NOW - 1_000 * i for i in range(10, 0, -1))
    guard, evidence = first(facts=situation(fleet=FleetBudget(1000, many)))
    assert (guard, evidence["scope"], evidence["budget"]) == (Guard.RATE, "fleet", 10)
    assert first(facts=situation(fleet=FleetBudget(1100, many))) is None
    assert first(facts=situation(fleet=FleetBudget(3, (NOW - 59_000,))))[0] is Guard.RATE  # at least one a minute
    assert first(facts=situation(fleet=FleetBudget(3, (NOW - 60_000,)))) is None


def test_age():
    assert first(service(e0=healthy(NOW - 59_999)))[0] is Guard.AGE
    assert first(service(e0=healthy(NOW - 60_000))) is None
    facts = situation(topology(6, deploying=(True,) + (False,) * 5))
    assert first(facts=facts)[0] is Guard.AGE


@pytest.mark.parametrize("action", [Action.FREEZE, Action.FORCE_HEALTHY])
def test_override(action):
    order = Override(action, NOW + 1, "oncall", "ticket 123")
    guard, evidence = first(facts=situation(overrides={names(6)[0]: order}))
    assert (guard, evidence["author"]) == (Guard.OVERRIDE, "oncall")


def worst_case():
    """Everything that can be wrong is wrong; keyed by the guard that sees it."""
    found = verdicts(flagged=(0, 1, 2, 3, 4, 5), rising_share=1.0)
    finding = replace(found.findings[0], stats=stats(6, agreement=0.1))
    found = replace(found, findings=(finding,), partial={0: 0})
    state = replace(
        service(**{f"e{h}": ejected(NOW * 2) for h in range(1, 6)}, e0=healthy(NOW - 1)), last_ejection_ms=NOW - 1
    )
    order = Override(Action.FREEZE, NOW + 1, "oncall", "x")
    facts = situation(partial_result=True, rps=10_000.0, overrides={names(6)[0]: order})
    return state, found, facts


def test_the_first_guard_that_refuses_is_named():
    state, found, facts = worst_case()
    seen = []
    heal = {
        Guard.DATA_FRESH: lambda s, v, f: (s, v, replace(f, partial_result=False)),
        Guard.COMMON_CAUSE: lambda s, v, f: (s, replace(v, rising_share=0.0), f),
        Guard.PARTIAL_VIEW: lambda s, v, f: (s, replace(v, partial={}), f),
        Guard.CAP: lambda s, v, f: (
            replace(s, endpoints={n: replace(e, state=State.SUSPECT) for n, e in s.endpoints.items()}), v, f,
        ),
        Guard.LAST_HEALTHY: lambda s, v, f: (s, replace(v, flagged=(0,), leading={0: 0}), f),
        Guard.CAPACITY: lambda s, v, f: (s, v, replace(f, rps=0.0)),
        Guard.RATE: lambda s, v, f: (replace(s, last_ejection_ms=None), v, f),
        Guard.AGE: lambda s, v, f: (
            replace(s, endpoints={n: replace(e, first_seen_ms=0) for n, e in s.endpoints.items()}), v, f,
        ),
        Guard.OVERRIDE: lambda s, v, f: (s, v, replace(f, overrides={})),
    }  # fmt: skip
    while (refused := first(state, found, facts)) is not None:
        seen.append(refused[0])
        state, found, facts = heal[refused[0]](state, found, facts)
    assert seen == list(Guard)


def test_review_answers_for_every_guard():
    state, found, facts = worst_case()
    answers = guards.review(docket(state, found, facts), CANDIDATE)
    assert [guard for guard, _ in answers] == list(Guard)
    assert all(evidence is not None for _, evidence in answers)


@given(
    st.integers(1, 30),
    st.lists(st.integers(0, 29)),
    st.lists(st.integers(0, 29)),
    st.integers(0, 49),
    st.booleans(),
)
def test_what_the_cap_lets_pass_never_brings_panic(total, out, elsewhere, percent, one_of_two):
    """Below 50 % available Envoy would send to all again."""
    state = service(total, **{f"e{h}": ejected(NOW * 2) for h in out if 0 < h < total})
    unavailable = tuple(h in elsewhere for h in range(total))
    policy = Policy(guards=GuardRule(cap_percent=percent, allow_one_of_two=one_of_two))
    facts = situation(topology(total, unavailable=unavailable))
    case = docket(state, verdicts(total, flagged=(0,)), facts, policy)
    if guards.cap(case, CANDIDATE) is None:
        gone = {0, *(h for h in range(1, total) if case.is_out(h))}
        assert 2 * len(gone) <= total
        assert 2 * len(gone) < total or (total == 2 and one_of_two)
