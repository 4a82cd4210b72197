"""The JSON form of policies: complete, reversible, and every mistake named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from health.mapping import parse_mapping
from health.policy import Mode, Policy
from health.policy_text import PolicyError, parse_duration_ms, parse_policy, policy_data
from health.topology import parse_source, parse_static


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


ROOT = Path(__file__).parents[2]


def leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def test_every_key_is_documented_with_its_default() -> None:
    text = (ROOT / "docs/api/health-policy.md").read_text()
    rows = dict(re.findall(r"^\| `([\w.]+)` \| `(.*?)` \| .+ \|$", text, re.MULTILINE))
    assert rows == dict(leaves(policy_data(Policy())))


def test_examples_of_the_documentation_can_be_used() -> None:
    seen = set()
    for name in ("health-policy.md", "health.md"):
        for block in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/api" / name).read_text(), re.DOTALL):
            data = yaml.safe_load(block)
            health = data.get("health", {}) if isinstance(data, dict) else {}
            for key, parse in (("policies", parse_policy), ("mappings", parse_mapping), ("topology", parse_source)):
                for entry in health.get(key, ()):
                    parse(entry)
                    seen.add(key)
            if isinstance(data, dict) and "services" in data:
                assert parse_static(block)
                seen.add("services")
    assert seen == {"policies", "mappings", "topology", "services"}
