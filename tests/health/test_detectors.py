"""What the detectors say about whole services: observers, zones, windows that disagree, Envoy's rules."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from health.detectors import broken_observers, detect, hard_failures, rising_share
from health.envoy import envoy_flags
from health.evidence import conditions, counterfactual, sentence, summary
from health.policy import EnvoyRule, HardRule, LatencyRule, Policy, Rule
from health.verdicts import Detector, Kind, ServiceState, State
from health.window import LatencySums
from tests.health.builders import POLICY, counts, ejected, healthy, service, signals, topology
from tests.reference.health_window import envoy_failure_percentage, envoy_success_rate

P, H = 20, 6


def traffic(per_pair: float = 10.0, observers: int = P, endpoints: int = H):
    n = np.full((observers, endpoints), per_pair)
    return np.zeros((observers, endpoints)), n


def judge(found, state=None, top=None, policy=POLICY):
    p, h = found.windows[0].errors.shape
    return detect(found, top or topology(h, p), state or service(h), policy)


def both(k, n):
    return signals(counts(k, n), counts(k * 6, n * 6, 60))


def test_a_grey_failure_is_flagged_with_its_evidence():
    k, n = traffic()
    k[:, 2] = [2, 1] * 10
    found = judge(both(k, n))
    assert found.flagged == (2,)
    finding = found.findings[found.leading[2]]
    assert (finding.detector, finding.window_s) == (Detector.ERROR_RATIO, 60)  # the larger z
    shown = summary(finding, 2, POLICY)
    assert (shown["errors"], shown["attempts"], shown["ratio"]) == (180, 1200, 0.15)
    assert all(gate.ok for gate in conditions(finding.stats.row(2), POLICY))
    assert counterfactual(finding.stats.row(2), POLICY) == "at min_excess 0.15 this endpoint stays healthy"
    assert not all(gate.ok for gate in conditions(finding.stats.row(1), POLICY))
    assert "z > 4" in counterfactual(finding.stats.row(1), POLICY)


def test_no_data_is_no_verdict():
    k, n = traffic(0.0)
    found = judge(both(k, n))
    assert (found.flagged, found.incident, found.partial) == ((), False, {})
    assert found.baseline_hi == 0.05


def test_a_majority_is_an_incident():
    k, n = traffic(endpoints=3)
    k[:, 0], k[:, 1] = 3, 4
    found = judge(both(k, n))
    assert (found.flagged, found.incident) == ((), True)
    k[:, 1] = 3  # equally bad, neither is twice as bad as its peers
    found = judge(both(k, n))
    assert (found.flagged, found.incident) == ((), False)


def test_an_observer_that_blames_everybody_is_not_asked():
    k, n = traffic()
    k[3] = 4
    k[:, 1] += 0.0
    found = judge(both(k, n))
    assert list(found.broken) == [3]
    assert found.flagged == ()
    assert found.attempts_60s.tolist() == [19 * 60.0] * H


def test_too_many_broken_observers_are_a_split():
    k, n = traffic()
    k[:6] = 4
    asked, broken, split = broken_observers(both(k, n).windows, POLICY)
    assert (asked.all(), broken, split) == (True, {}, True)


def test_a_bad_endpoint_convicts_no_observer_and_a_bad_pair_neither():
    k, n = traffic()
    k[:, 1] = 10
    assert not broken_observers(both(k, n).windows, POLICY)[1]
    k, n = traffic()
    k[4, 1] = 10
    k[4, 2] = 1  # a stray error elsewhere must not make it "everybody"
    assert not broken_observers(both(k, n).windows, POLICY)[1]


def zoned():
    zones = tuple(f"z{p % 3}" for p in range(21))
    return replace(topology(H, 21), observer_zones=zones), np.arange(21) % 3


def test_a_partition_is_a_partial_view():
    top, zone = zoned()
    k, n = traffic(observers=21)
    k[zone == 0, 1] = 10
    k[zone == 1, 1] = [1, 1, 1, 0, 0, 0, 0]  # strays in another zone are no view
    found = judge(both(k, n), top=top)
    assert found.flagged == ()
    assert list(found.partial) == [1]


def test_without_zones_there_is_nothing_to_disagree():
    k, n = traffic(observers=21)
    k[np.arange(21) % 3 == 0, 1] = 10
    assert judge(both(k, n)).flagged == (1,)


def test_a_minority_view_in_one_window_is_enough_to_wait():
    top, zone = zoned()
    k, n = traffic(observers=21)
    k[:, 1] = 2
    short = counts(k, n)
    k = k.copy()
    k[zone != 0, 1] = 0
    k[zone == 0, 1] = 9
    found = judge(signals(short, counts(k * 6, n * 6, 60)), top=top)
    assert found.flagged == ()
    assert list(found.partial) == [1]


def test_a_fault_that_is_over_is_not_punished():
    k, n = traffic()
    old = k.copy()
    old[:, 2] = 8
    found = judge(signals(counts(k, n), counts(old, n * 6, 60)))
    assert found.flagged == ()
    assert found.findings[1].chain == (2,)  # the minute still shows it
    # with too little traffic to know, the long window is believed
    few_k, few_n = traffic(0.5)
    assert judge(signals(counts(few_k, few_n), counts(old, n * 6, 60))).flagged == (2,)


def test_hard_failures():
    k, n = traffic(1.0)
    refused = k.copy()
    refused[:, 0] = 1.0
    refused[:, 1] = 1.0
    refused[0, 1] = 0.0  # one could connect
    refused[:2, 2], n[:, 2] = 1.0, [1, 1] + [0] * 18  # only two observers tried
    everyone = np.ones(P, dtype=np.bool_)
    assert hard_failures(counts(refused, n, 5), everyone, 3, 5).tolist() == [True] + [False] * 5
    few = np.arange(P) < 4
    assert not hard_failures(counts(refused, n, 5), few, 3, 5).any()  # fewer than 5 attempts
    k, n = traffic()
    found = judge(signals(counts(k, n), counts(k, n, 60), hard=counts(refused, traffic(1.0)[1], 5)))
    assert found.flagged == (0,)
    assert found.hard == {0}
    policy = Policy(hard=HardRule(enabled=False))
    assert judge(signals(counts(k, n), counts(k, n, 60), hard=counts(refused, n, 5)), policy=policy).flagged == ()


def test_hard_failures_everywhere_are_an_incident():
    k, n = traffic()
    found = judge(signals(counts(k, n), counts(k, n, 60), hard=counts(n, n, 5)))
    assert (found.flagged, found.hard, found.incident) == ((), frozenset(), True)


def test_more_refused_connections_than_attempts_are_a_hard_failure():
    k, n = traffic()
    refused = k.copy()
    refused[:, 0] = 25.0  # preconnects fail too
    assert judge(signals(counts(k, n), counts(k, n, 60), hard=counts(refused, n, 5))).hard == {0}


def test_ejected_endpoints_are_no_peers():
    k, n = traffic()
    k[:, 0] = 10  # an old ejection that still gets traffic, as in a dry run
    k[:, 1] = 1
    found = judge(both(k, n), service(e0=ejected(10**12)))
    assert found.flagged[0] == 0 or 0 in found.findings[0].others
    assert 1 in found.flagged


def test_a_zone_that_is_bad_as_a_whole():
    top = topology(H, P, zones=("a", "a", "b", "b", "b", "b"))
    k, n = traffic()
    k[:, :2] = 2
    found = judge(both(k, n), top=top)
    assert [(g.label, g.value, g.members) for g in found.degraded] == [("zone", "a", (0, 1))]
    k[:, 1] = 0
    assert judge(both(k, n), top=top).degraded == ()  # one endpoint is not a zone


def test_a_zone_of_one_endpoint_is_an_endpoint():
    k, n = traffic()
    k[:, 0] = 2
    found = judge(both(k, n), top=topology(H, P, zones=("a", "b", "b", "b", "b", "b")))
    assert found.degraded == ()
    assert found.flagged == (0,)


def test_a_version_that_is_bad_as_a_whole():
    k, n = traffic()
    k[:, 3:5] = 2
    found = judge(both(k, n), top=topology(H, P, versions=("v1", "v1", "v1", "v2", "v2", "v1")))
    assert [(g.label, g.value) for g in found.degraded] == [("version", "v2")]


def test_rising_share():
    k, n = traffic()
    k[:, :4] = 1
    everyone = np.ones(P, dtype=np.bool_)
    past = {"past_attempts": np.full(H, 6000.0), "past_errors": np.full(H, 6.0)}
    assert rising_share(signals(counts(k, n), **past), everyone, POLICY) == pytest.approx(4 / 6)
    assert rising_share(signals(counts(k, n)), everyone, POLICY) == 0.0  # no past to compare with
    past["past_errors"] = np.full(H, 500.0)
    assert rising_share(signals(counts(k, n), **past), everyone, POLICY) == 0.0


def test_slow_endpoints():
    k, n = traffic()
    buckets = np.zeros((4, H, 4))
    buckets[:, :, 0], buckets[:, :, 1], buckets[:, :, 2] = 200.0, 60.0, 1.0
    buckets[:, 5] = [150.0, 60.0, 60.0, 0.0]
    latency = tuple(LatencySums(w, buckets) for w in (10, 30, 60))
    found = judge(signals(counts(k, n), counts(k, n, 60), latency=latency))
    assert found.flagged == (5,)
    finding = found.findings[found.leading[5]]
    assert finding.detector is Detector.SLOW_FRACTION
    shown = summary(finding, 5, POLICY)
    assert shown["threshold_excess"] == {0.9: 0.05, 0.99: 0.02}[finding.quantile]
    assert all(gate.ok for gate in conditions(finding.stats.row(5), POLICY, quantile=finding.quantile))
    # when most attempts of the peers lie beyond the last bound, nothing can be said
    beyond = np.zeros((4, H, 2))
    beyond[:, :, 1] = 100.0
    latency = (LatencySums(10, beyond),)
    policy = Policy(latency=LatencyRule(windows_s=(10,)))
    assert judge(signals(counts(k, n), counts(k, n, 60), latency=latency), policy=policy).flagged == ()


def test_probation_is_measured_against_the_healthy():
    k, n = traffic()
    k[:, 0] = 10
    found = judge(both(k, n), service(e0=healthy(state=State.PROBATION)))
    assert found.baseline_hi < 0.002
    found = judge(both(k, n), service())
    assert 0.15 < found.baseline_hi < 0.2


def test_state_is_needed_by_name_only():
    k, n = traffic()
    assert judge(both(k, n), ServiceState(started_ms=0)).flagged == ()


HOSTS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)).map(sorted).map(tuple), min_size=1, max_size=12)


@given(st.lists(HOSTS, min_size=1, max_size=3), st.integers(0, 6), st.sampled_from([1, 50, 100]))
def test_envoys_rules_agree_with_their_source(observers, minimum_hosts, volume):
    width = max(len(hosts) for hosts in observers)
    padded = [[*hosts, *[(0, 0)] * (width - len(hosts))] for hosts in observers]
    counted = np.array(padded, dtype=float)
    rule = EnvoyRule(
        success_rate_minimum_hosts=minimum_hosts,
        success_rate_request_volume=volume,
        failure_percentage_minimum_hosts=minimum_hosts,
        failure_percentage_request_volume=volume,
        failure_percentage_threshold=85,
    )
    by_success, by_percentage, thresholds = envoy_flags(counted[:, :, 0], counted[:, :, 1], rule)
    for p, hosts in enumerate(padded):
        expected, threshold = envoy_success_rate(hosts, minimum_hosts, volume, 1900)
        assert np.isnan(thresholds[p]) == (threshold is None)
        if threshold is not None:
            assert thresholds[p] == pytest.approx(threshold)
            edge = any(n >= volume and abs(100 * (n - k) / n - threshold) < 1e-9 for k, n in hosts if n)
            assert edge or np.flatnonzero(by_success[p]).tolist() == expected
        assert np.flatnonzero(by_percentage[p]).tolist() == envoy_failure_percentage(hosts, minimum_hosts, volume, 85)


def test_envoys_rule_as_a_policy():
    n = np.full((4, 6), 150.0)
    k = np.zeros((4, 6))
    k[:, 5] = 60
    everything = signals(counts(k, n), counts(k * 6, n * 6, 60))
    found = judge(everything, policy=Policy(rule=Rule.ENVOY))
    assert found.flagged == (5,)
    assert found.findings[0].detector is Detector.SUCCESS_RATE
    each = Policy(rule=Rule.ENVOY, envoy=EnvoyRule(fleet=False))
    assert judge(everything, policy=each).flagged == (5,)
    # one of four Envoys alone is no verdict of the mesh
    alone = np.zeros((4, 6))
    alone[0, 5] = 60
    assert judge(signals(counts(alone, n), counts(alone, n, 60)), policy=each).flagged == ()
    # failure percentage is off by default
    k[:, 5] = 150
    dead = signals(counts(k, n), counts(k, n, 60))
    only = EnvoyRule(enforcing_success_rate=0)
    assert judge(dead, policy=Policy(rule=Rule.ENVOY, envoy=only)).flagged == ()
    only = replace(only, enforcing_failure_percentage=100)
    found = judge(dead, policy=Policy(rule=Rule.ENVOY, envoy=only))
    assert found.findings[found.leading[5]].detector is Detector.FAILURE_PERCENTAGE


def test_two_of_nine_equal_outliers_escape_envoys_rule():
    """Fact 3 of the design page: z = sqrt((n - k) / k) is below 1.9 from 21.7 % on; ours sees them."""
    n = np.full((20, 9), 50.0)
    k = np.zeros((20, 9))
    k[:, :2] = 25
    found = signals(counts(k, n), counts(k, n, 60))
    assert judge(found, policy=Policy(rule=Rule.ENVOY)).flagged == ()
    assert set(judge(found).flagged) == {0, 1}


def test_what_a_real_envoy_decided():
    """Eight sweeps of Envoy 1.40.0 with its default volumes, hosts, stdev factor and threshold (record_envoy.py)."""
    trace = json.loads((Path(__file__).parent / "data/envoy_outliers.json").read_text())
    rule = EnvoyRule()
    decided = set()
    for sweep in trace["sweeps"]:
        counted = np.array(sweep["hosts"], dtype=float)[None]
        by_success, by_percentage, thresholds = envoy_flags(counted[:, :, 0], counted[:, :, 1], rule)
        told = {(event["type"], event["host"]) for event in sweep["events"]}
        ours = {("SUCCESS_RATE", h) for h in np.flatnonzero(by_success[0]).tolist()}
        ours |= {("FAILURE_PERCENTAGE", h) for h in np.flatnonzero(by_percentage[0]).tolist()}
        assert ours == told
        decided |= {kind for kind, _ in told}
        for event in sweep["events"]:
            if event["type"] == "SUCCESS_RATE":  # whole numbers in the event log
                assert event["cluster_success_rate_ejection_threshold"] == int(thresholds[0])
    assert decided == {"SUCCESS_RATE", "FAILURE_PERCENTAGE"}


def test_a_step_says_what_probes_met_also_when_there_were_none():
    met = {"errors": 1, "attempts": 40, "baseline_hi": 0.1}
    assert sentence(Kind.RAMP, None, met) == "1 of 40 probes failed"
    assert sentence(Kind.RAMP, None, {**met, "errors": 0, "attempts": 0}) == "no attempt seen since the last step"
