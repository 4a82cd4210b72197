"""The JSON form of policies: complete, reversible, and every mistake named."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from health.policy import Mode, Policy
from health.policy_text import PolicyError, parse_duration_ms, parse_policy, policy_data


def test_the_default_survives_the_round_trip() -> None:
    text = json.dumps(policy_data(Policy()))
    assert parse_policy(json.loads(text)) == Policy()


def test_names_of_the_design_page() -> None:
    data = policy_data(Policy())
    assert data["match"] == {"service": "*"}
    assert (data["mode"], data["rule"], data["eval_interval"], data["windows"]) == (
        "dry_run",
        "mh",
        "1s",
        ["10s", "60s"],
    )
    assert (data["error"]["min_excess"], data["latency"]["quantiles"]) == (0.05, [0.9, 0.99])
    assert data["ejection"]["base"] == "30s"
    assert data["ejection"]["ramp"] == [10, 25, 50, 100]
    assert data["ejection"]["probe"]["timeout"] == "120s"
    assert (data["guards"]["service_gap"], data["lease"], data["hard"]["window"]) == ("5s", "90s", "5s")


def test_what_is_left_out_keeps_its_default() -> None:
    policy = parse_policy({"match": {"service": "check*"}, "mode": "enforce", "ejection": {"base": "10s"}}, "mine")
    assert policy == replace(
        Policy(), name="mine", service="check*", mode=Mode.ENFORCE, ejection=replace(Policy().ejection, base_ms=10_000)
    )


def test_every_mistake_is_named() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(
            {
                "mode": "maybe",
                "match": {"zone": "z"},
                "colour": 1,
                "windows": ["1.5s"],
                "ejection": {"base": "soon", "probe": {"z": "high"}, "ramp": "fast"},
                "hard": 3,
            }
        )
    text = "\n".join(caught.value.problems)
    for part in (
        "mode must be one of dry_run, enforce", "match must be", "colour: unknown key", "windows '1.5s' is not whole",
        "ejection.base 'soon' is no duration", "ejection.probe.z must be of type float",
        "ejection.ramp must be a list", "hard must be a mapping",
    ):  # fmt: skip
        assert part in text


def test_values_are_checked() -> None:
    with pytest.raises(PolicyError, match=r"guards\.cap_percent 60 is not below the panic threshold 50"):
        parse_policy({"guards": {"cap_percent": 60}})
    with pytest.raises(PolicyError, match="is not 'a'"):
        parse_policy({"name": "b"}, "a")
    with pytest.raises(PolicyError, match="must be a mapping"):
        parse_policy([])


def test_durations() -> None:
    assert [parse_duration_ms(text) for text in ("30s", "1.5m", "500ms", 2, "1h")] == [
        30_000,
        90_000,
        500,
        2_000,
        3_600_000,
    ]
