"""Defaults of the design page, and what cannot be used."""

from __future__ import annotations

from dataclasses import replace

import pytest

from health.policy import EjectionRule, EnvoyRule, ErrorRule, GuardRule, LatencyRule, Mode, Policy, ProbeRule


def test_the_default_can_be_used_and_changes_nothing():
    assert Policy().problems() == []
    assert Policy().mode is Mode.DRY_RUN


def test_defaults_of_the_design_page():
    policy = Policy()
    assert (policy.error.z, policy.error.min_excess, policy.error.min_ratio, policy.error.consecutive) == (
        4,
        0.05,
        2,
        2,
    )
    assert (policy.windows_s, policy.sparse_window_s, policy.agreement) == ((10, 60), 300, 0.6)
    assert (policy.ejection.base_ms, policy.ejection.max_ms, policy.ejection.ramp_percent) == (
        30_000,
        300_000,
        (10, 25, 50, 100),
    )
    assert (policy.guards.cap_percent, policy.guards.capacity_factor, policy.lease_ms) == (49, 1.3, 90_000)


def test_defaults_of_envoy():
    """Field for field those of ``cluster.v3.OutlierDetection``."""
    rule = EnvoyRule()
    assert rule.interval_ms == 10_000
    assert (rule.base_ejection_time_ms, rule.max_ejection_time_ms, rule.max_ejection_time_jitter_ms) == (
        30_000,
        300_000,
        0,
    )
    assert (rule.max_ejection_percent, rule.always_eject_one_host) == (10, False)
    assert (rule.success_rate_minimum_hosts, rule.success_rate_request_volume) == (5, 100)
    assert (rule.success_rate_stdev_factor, rule.enforcing_success_rate) == (1900, 100)
    assert (rule.failure_percentage_threshold, rule.enforcing_failure_percentage) == (85, 0)
    assert (rule.failure_percentage_minimum_hosts, rule.failure_percentage_request_volume) == (5, 50)


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (Policy(guards=GuardRule(cap_percent=60)), "guards.cap_percent 60 is not below the panic threshold 50"),
        (Policy(windows_s=()), "windows must be ascending and not empty"),
        (Policy(windows_s=(60, 10)), "windows must be ascending and not empty"),
        (Policy(windows_s=(10, 90)), "windows must lie between 1s and 60s"),
        (Policy(sparse_window_s=45), "sparse_window must be 0, or above 60s, at most 600s, in steps of 10s"),
        (
            Policy(latency=LatencyRule(quantiles=(0.9,))),
            "latency.min_excess needs one value for each of latency.quantiles",
        ),
        (Policy(latency=LatencyRule(quantiles=(0.9, 1.0))), "latency.quantiles must lie between 0 and 1"),
        (Policy(latency=LatencyRule(min_excess=(0.1, 0.0))), "latency.min_excess must lie between 0 and 1"),
        (Policy(latency=LatencyRule(windows_s=(90,))), "latency.windows must lie between 1s and 60s"),
        (Policy(ejection=EjectionRule(max_ms=1_000)), "ejection.max is below ejection.base"),
        (Policy(ejection=EjectionRule(ramp_percent=(50, 25, 100))), "ejection.ramp must rise to 100"),
        (
            Policy(ejection=EjectionRule(probe=ProbeRule(weight_percent=30))),
            "ejection.probe.max_weight_percent is below ejection.probe.weight_percent",
        ),
        (Policy(lease_ms=3_000), "lease must be at least four evaluations"),
        (Policy(error=ErrorRule(z=0.0)), "error.z 0 is not between 1 and 100"),
        (Policy(error=ErrorRule(min_excess=float("nan"))), "error.min_excess nan is not between 0.001 and 1"),
        (Policy(eval_interval_ms=1), "eval_interval 1 is not between 100 and 60000"),
    ],
)
def test_what_cannot_be_used_is_named(policy, problem):
    assert policy.problems() == [problem]


def test_all_problems_are_told_at_once():
    policy = replace(Policy(windows_s=()), guards=GuardRule(cap_percent=50), agreement=2.0)
    assert len(policy.problems()) == 3
