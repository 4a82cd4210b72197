"""From discovered labels to targets, against what Prometheus does (its populateLabels and target tests)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.relabel import RelabelConfig, Rules
from ingest.scraping.groups import TargetGroup
from ingest.scraping.targets import Aim, Target, TargetError, TargetRules, aim, discovered_labels, resolve
from meshpulse.scraping import seen_from_elsewhere


def rule(source: str = "", **more: Any) -> RelabelConfig:
    return RelabelConfig(tuple(source.split()), **more)


def job(*relabel: RelabelConfig, **more: Any) -> TargetRules:
    return TargetRules(**({"job_name": "job", "relabel": Rules(relabel)} | more))


def found(rules: TargetRules, address: str = "h:1", **labels: str) -> Aim:
    made = aim(rules, discovered_labels(rules, address, labels))
    assert made is not None
    return made


DISCOVERED = {
    "__address__": "h:1",
    "__metrics_path__": "/metrics",
    "__scheme__": "http",
    "__scrape_interval__": "15s",
    "__scrape_timeout__": "10s",
    "job": "job",
}


def test_labels_before_relabelling() -> None:
    assert discovered_labels(job(), "h:1", {}) == DISCOVERED
    named = {"job": "other", "__scheme__": "https", "zone": "a", "empty": "", "__address__": "x"}
    rules = job(params={"p": ["1", "2"], "q": ["3"], "none": []}, scrape_interval=90.0, scrape_timeout=0.5)
    assert discovered_labels(rules, "h:1", {**named, "__param_q": "own"}) == DISCOVERED | {
        "job": "other",
        "__scheme__": "https",
        "zone": "a",
        "__param_p": "1",
        "__param_q": "own",
        "__scrape_interval__": "1m30s",
        "__scrape_timeout__": "500ms",
    }
    assert discovered_labels(job(), "h:1", {"job": "", "__metrics_path__": ""}) == DISCOVERED  # empty is not there


def test_labels_after_relabelling() -> None:
    plain = found(job(), __meta_x="m", __tmp="t", zone="a")
    assert plain.labels == {"instance": "h:1", "job": "job", "zone": "a"}
    assert "__meta_x" not in plain.internal
    assert plain.internal["__tmp"] == "t"
    moved = found(
        job(
            rule("__meta_host", target_label="__address__", replacement="$1:9"),
            rule("__meta_path", target_label="__metrics_path__"),
            rule(target_label="__scheme__", replacement="https"),
            rule(target_label="__param_module", replacement="icmp v4"),
            rule(target_label="__scrape_interval__", replacement="3s"),
            rule(target_label="__scrape_timeout__", replacement="2s"),
            rule("__address__", target_label="instance", regex="(.*):.*"),
            params={"module": ["http", "second"], "a": ["ü"]},
        ),
        __meta_host="[::1]",
        __meta_path="probe?x",
    )
    assert str(moved.url) == "https://[::1]:9/probe%3Fx?a=%C3%BC&module=icmp+v4&module=second"
    assert (moved.labels["instance"], moved.scrape_interval, moved.scrape_timeout) == ("[::1]", 3.0, 2.0)


def test_external_labels_are_given_to_those_without() -> None:
    rules = job(rule("__address__", target_label="own"), external_labels={"mesh": "m", "own": "x"})
    assert found(rules).labels == {"instance": "h:1", "job": "job", "mesh": "m", "own": "h:1"}
    assert "mesh" not in discovered_labels(rules, "h:1", {})


@pytest.mark.parametrize(
    ("label", "value", "words"),
    [
        ("__address__", "", "no address"),
        ("__address__", "http://h:1", '"http://h:1" is not a valid hostname'),
        ("__scrape_interval__", "", "error parsing scrape interval: empty duration string"),
        ("__scrape_interval__", "soon", 'error parsing scrape interval: not a valid duration string: "soon"'),
        ("__scrape_timeout__", "1", 'error parsing scrape timeout: not a valid duration string: "1"'),
        ("__scrape_interval__", "0", "scrape interval cannot be 0"),
        ("__scrape_timeout__", "0s", "scrape timeout cannot be 0"),
        ("__scrape_timeout__", "16s", 'scrape timeout cannot be greater than scrape interval ("16s" > "15s")'),
    ],
)
def test_what_is_no_target_has_prometheus_words(label: str, value: str, words: str) -> None:
    rules = job(rule(target_label=label, replacement=value))
    with pytest.raises(TargetError) as caught:
        found(rules)
    assert str(caught.value) == words


@pytest.mark.parametrize("address", ["127.0.0.1:abc", "localhost:99999", "::1", "[x:1", "ü:80"])
def test_what_is_no_address_is_refused_before_it_is_asked(address: str) -> None:
    with pytest.raises(TargetError, match="is not a valid hostname"):
        found(job(), address)


@given(st.text(max_size=12), st.text(max_size=8), st.text(max_size=8))
def test_any_text_is_a_target_or_none(address: str, path: str, value: str) -> None:
    made = resolve(job(), [TargetGroup([address], {"__metrics_path__": path, "__param_x": value, "__scheme__": value})])
    assert len(made.aims) + len(made.errors) == 1
    for one, discovered in made.aims.values():
        target = Target("job", one, discovered).status()
        assert seen_from_elsewhere(target["scrapeUrl"])
        assert one.offset_ms() >= 0


def test_targets_are_dropped_told_apart_and_counted() -> None:
    rules = job(
        rule("zone", regex="bad", action="drop"),
        rule("zone", regex="none", target_label="__address__", replacement=""),
        rule(regex="zone", action="labeldrop"),
    )
    groups = [
        TargetGroup(["h:1", "h:2", "h:1"], {"zone": "a"}, "one"),
        TargetGroup(["h:2", "h:3"], {"zone": "b"}, "two"),
        TargetGroup(["h:4"], {"zone": "bad"}, "three"),
        TargetGroup(["h:5", "h:6"], {"zone": "none"}, "four"),
    ]
    made = resolve(rules, groups)
    assert [str(one.url) for one, _ in made.aims.values()] == [f"http://h:{i}/metrics" for i in (1, 2, 3)]
    assert [labels["zone"] for _, labels in made.aims.values()] == ["a", "a", "b"]  # of equal ones the first
    assert [labels["__address__"] for labels in made.dropped] == ["h:4"]
    assert made.errors == ["instance 0 in group four: no address", "instance 1 in group four: no address"]


def test_who_is_who() -> None:
    one = found(job())
    assert found(job(scrape_interval=30.0)).identity == one.identity  # how often does not count
    for other in (
        found(job(), "h:2"),
        found(job(), zone="a"),
        found(job(), __tmp="t"),
        found(job(), __metrics_path__="/m"),
    ):
        assert other.identity != one.identity


def test_offsets_spread_and_stay() -> None:
    offsets = [found(job(), f"h:{i}").offset_ms() for i in range(200)]
    assert offsets == [found(job(), f"h:{i}").offset_ms() for i in range(200)]
    assert all(0 <= offset < 15_000 for offset in offsets)
    assert min(sum(k * 3750 <= offset < (k + 1) * 3750 for offset in offsets) for k in range(4)) > 20


def test_targets_in_prometheus_shape() -> None:
    rules = job(scrape_interval=90.0, scrape_timeout=0.5, params={"usedonly": ["1"]})
    discovered = discovered_labels(rules, "h:1", {"zone": "a", "__metrics_path__": "stats/prometheus"})
    target = Target("pool", found(rules, zone="a", __metrics_path__="stats/prometheus"), discovered)
    assert target.status() == {
        "discoveredLabels": {
            "__address__": "h:1",
            "__metrics_path__": "stats/prometheus",
            "__param_usedonly": "1",
            "__scheme__": "http",
            "__scrape_interval__": "1m30s",
            "__scrape_timeout__": "500ms",
            "job": "job",
            "zone": "a",
        },
        "labels": {"instance": "h:1", "job": "job", "zone": "a"},
        "scrapePool": "pool",
        "scrapeUrl": "http://h:1/stats/prometheus?usedonly=1",
        "globalUrl": "http://h:1/stats/prometheus?usedonly=1",
        "lastError": "",
        "lastScrape": "0001-01-01T00:00:00Z",
        "lastScrapeDuration": 0.0,
        "health": "unknown",
        "scrapeInterval": "1m30s",
        "scrapeTimeout": "500ms",
    }
    target.last_scrape_ms = 1_795_000_000_123
    assert target.status()["lastScrape"] == "2026-11-18T11:06:40.123000Z"
