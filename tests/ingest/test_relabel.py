"""Relabelling: the cases of Prometheus' own relabel_test.go as a table, and more where they are silent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.relabel import ACTIONS, RelabelConfig, RelabelError, compile_rules, lower, upper
from tests.reference.relabel import relabel

Labels = dict[str, str]
ABC = {"a": "foo", "b": "bar", "c": "baz"}
LINES = {"a": "line1\nline2", "b": "bar", "c": "baz"}
PORTS = {"__tmp_port": "1234", "__port1": "1234", "__port2": "5678"}
TAGS = {"__meta_sd_tags": "path:/secret,job:some-job,label:foo=bar"}
POD = {"__meta_pod_port_name": "foo", "__meta_pod_annotation_metrics_port": "9091"}


def rule(source: str = "", regex: str = "(.*)", **more: Any) -> RelabelConfig:
    return RelabelConfig(source_labels=tuple(source.split()), regex=regex, **more)


def run(labels: Labels, *rules: RelabelConfig) -> Labels | None:
    return compile_rules(rules).apply(labels)


UPSTREAM: list[tuple[Labels, list[RelabelConfig], Labels | None]] = [
    (ABC, [rule("a", "f(.*)", target_label="d", replacement="ch${1}-ch${1}")], ABC | {"d": "choo-choo"}),
    (
        ABC,
        [
            rule("a b", "f(.*);(.*)r", target_label="a", replacement="b${1}${2}m"),
            rule("c a", "(b).*b(.*)ba(.*)", target_label="d", replacement="$1$2$2$3"),
        ],
        ABC | {"a": "boobam", "d": "boooom"},
    ),
    (
        {"a": "foo"},
        [rule("a", ".*o.*", action="drop"), rule("a", "f(.*)", target_label="d", replacement="ch$1-ch$1")],
        None,
    ),
    ({"a": "foo", "b": "bar"}, [rule("a", ".*o.*", action="drop")], None),
    ({"a": "abc"}, [rule("a", ".*(b).*", target_label="d")], {"a": "abc", "d": "b"}),
    ({"a": "foo"}, [rule("a", "no-match", action="drop")], {"a": "foo"}),
    ({"a": "foo"}, [rule("a", "f|o", action="drop")], {"a": "foo"}),
    ({"a": "foo"}, [rule("a", "no-match", action="keep")], None),
    ({"a": "foo"}, [rule("a", "f.*", action="keep")], {"a": "foo"}),
    ({"a": "boo"}, [rule("a", "f", target_label="b", replacement="bar")], {"a": "boo"}),
    ({"a": "foo", "f": "baz"}, [rule("a", "(f).*", target_label="$1", replacement="$2")], {"a": "foo"}),
    (ABC, [rule("c", target_label="d", action="hashmod", modulus=1000)], ABC | {"d": "976"}),
    (
        {"a": "foo\nbar"},
        [rule("a", target_label="b", action="hashmod", modulus=1000)],
        {"a": "foo\nbar", "b": "734"},
    ),
    (
        {"a": "foo", "b1": "bar", "b2": "baz"},
        [rule(regex="(b.*)", replacement="bar_${1}", action="labelmap")],
        {"a": "foo", "b1": "bar", "b2": "baz", "bar_b1": "bar", "bar_b2": "baz"},
    ),
    (
        {"a": "foo", "__meta_my_bar": "aaa", "__meta_my_baz": "bbb", "__meta_other": "ccc"},
        [rule(regex="__meta_(my.*)", replacement="${1}", action="labelmap")],
        {"a": "foo", "__meta_my_bar": "aaa", "__meta_my_baz": "bbb", "__meta_other": "ccc"}
        | {"my_bar": "aaa", "my_baz": "bbb"},
    ),
    (
        {"a": "some-name-value"},
        [rule("a", "some-([^-]+)-([^,]+)", replacement="${2}", target_label="${1}")],
        {"a": "some-name-value", "name": "value"},
    ),
    (
        {"a": "some-name-value"},
        [rule("a", "some-([^-]+)-([^,]+)", replacement="${3}", target_label="${1}")],
        {"a": "some-name-value"},
    ),
    (
        {"a": "some-name-0"},
        [
            rule("a", "some-([^-]+)-([^,]+)", replacement="${1}", target_label="${3}"),
            rule("a", "some-([^-]+)(-[^,]+)", replacement="${1}", target_label="${3}"),
        ],
        {"a": "some-name-0"},
    ),
    (
        TAGS,
        [
            rule("__meta_sd_tags", "(?:.+,|^)path:(/[^,]+).*", replacement="${1}", target_label="__metrics_path__"),
            rule("__meta_sd_tags", "(?:.+,|^)job:([^,]+).*", replacement="${1}", target_label="job"),
            rule("__meta_sd_tags", "(?:.+,|^)label:([^=]+)=([^,]+).*", replacement="${2}", target_label="${1}"),
        ],
        TAGS | {"__metrics_path__": "/secret", "job": "some-job", "foo": "bar"},
    ),
    (
        POD,
        [
            rule(regex="^__meta_pod_port_name$", action="labeldrop"),
            rule("__meta_pod_annotation_metrics_port", "(.+)", replacement="m", target_label="__meta_pod_port_name"),
            rule("__meta_pod_port_name", "^m$", action="keep"),
        ],
        POD | {"__meta_pod_port_name": "m"},
    ),
    ({"a": "foo", "b1": "bar", "b2": "baz"}, [rule(regex="(b.*)", action="labelkeep")], {"b1": "bar", "b2": "baz"}),
    ({"a": "foo", "b1": "bar", "b2": "baz"}, [rule(regex="(b.*)", action="labeldrop")], {"a": "foo"}),
    (
        {"foo": "bAr123Foo"},
        [rule("foo", action="uppercase", target_label="up"), rule("foo", action="lowercase", target_label="low")],
        {"foo": "bAr123Foo", "low": "bar123foo", "up": "BAR123FOO"},
    ),
    (PORTS, [rule("__tmp_port", action="keepequal", target_label="__port1")], PORTS),
    (PORTS, [rule("__tmp_port", action="dropequal", target_label="__port1")], None),
    (PORTS, [rule("__tmp_port", action="dropequal", target_label="__port2")], PORTS),
    (PORTS, [rule("__tmp_port", action="keepequal", target_label="__port2")], None),
    (LINES, [rule("a", "line1.*line2", target_label="d", replacement="match${1}")], LINES | {"d": "match"}),
    (
        {"utf-8.label": "line1\nline2"},
        [rule("utf-8.label", "line1.*line2", target_label="d", replacement="match${1}")],
        {"utf-8.label": "line1\nline2", "d": "match"},
    ),
    (LINES, [rule("a", "line1.*line2", target_label="utf-8.label", replacement="m")], LINES | {"utf-8.label": "m"}),
    (LINES, [rule("a", "line1.*line2", target_label="utf-8.l${1}", replacement="m")], LINES | {"utf-8.l": "m"}),
    (
        LINES,
        [
            rule("a", "(line1).*(?<second>line2)", target_label="label1_${1}", replacement="val_${second}"),
            rule("a", "(line1).*(?<second>line2)", target_label="label2_$1", replacement="val_$second"),
        ],
        LINES | {"label1_line1": "val_line2", "label2_line1": "val_line2"},
    ),
    (
        {"__name__": "http_requests_total"},
        [rule("__name__", ".*_total$", target_label="__type__", replacement="counter")],
        {"__name__": "http_requests_total", "__type__": "counter"},
    ),
    # its benchmark's rules, with what they come to
    (
        {"__meta_dns_name": "example-some-x.com", "abc": "def", "job": "foo"},
        [
            rule("job __meta_dns_name", "(.*)some-[regex]", target_label="job", replacement="foo-${1}"),
            rule("abc", target_label="cde"),
            rule(replacement="static", target_label="abc"),
            rule(regex="", replacement="static2", target_label="abc"),
        ],
        {"__meta_dns_name": "example-some-x.com", "abc": "static2", "cde": "def", "job": "foo"},
    ),
    (
        {"__address__": "10.132.183.40:80", "__meta_port": "9102"},
        [rule("__address__ __meta_port", r"(.+?)(\:\d+)?;(\d+)", replacement="$1:$3", target_label="__address__")],
        {"__address__": "10.132.183.40:9102", "__meta_port": "9102"},
    ),
]


@pytest.mark.parametrize(("labels", "rules", "expected"), UPSTREAM)
def test_upstream(labels: Labels, rules: list[RelabelConfig], expected: Labels | None) -> None:
    before = dict(labels)
    assert run(labels, *rules) == expected
    assert labels == before


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("$1", "x"),
        ("${1}a", "xa"),
        ("$1a", ""),  # the longest name
        ("$$1", "$1"),
        ("$", "$"),
        ("a$", "a$"),
        ("$-$1", "$-x"),
        ("${", "${"),
        ("${1", "${1"),
        ("${}", "${}"),
        ("${1.}", "${1.}"),
        ("$0", "x-yü"),
        ("$01", ""),  # a name, since a number has no zero in front
        ("$n", "y"),
        ("${n}ü$nü", "yü"),  # ü is a letter, hence part of the name
        ("$9", ""),
        ("$99999999999", ""),
        ("$3|", "|"),  # a group that took no part
    ],
)
def test_templates_follow_go(template: str, text: str) -> None:
    made = run({"a": "x-yü"}, rule("a", "(x)-(?P<n>y)ü(z)?", target_label="t", replacement=f"<{template}>"))
    assert made is not None
    assert made["t"] == f"<{text}>"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (rule(action=""), "relabel action cannot be empty"),
        (rule(action="rename"), 'unknown relabel action "rename"'),
        (rule(), "relabel configuration for replace action requires 'target_label' value"),
        (rule(action="Lowercase"), "relabel configuration for lowercase action requires 'target_label' value"),
        (rule(action="hashmod", target_label="a"), "relabel configuration for hashmod requires non-zero modulus"),
        (rule(action="hashmod", modulus=2), "relabel configuration for hashmod action requires 'target_label' value"),
        (rule(action="hashmod", modulus=1 << 64), "is no unsigned number of 64 bits"),
        (rule(action="uppercase", target_label="a", replacement="b"), "'replacement' can not be set for uppercase"),
        (rule(action="keepequal", target_label="a", replacement="b"), "'replacement' can not be set for keepequal"),
        (rule(action="keepequal", target_label="a", regex="b"), "keepequal action requires only 'source_labels' and"),
        (rule(action="dropequal", target_label="a", separator=""), "dropequal action requires only 'source_labels'"),
        (rule(action="labelmap", replacement=""), "\"\" is invalid 'replacement' for labelmap action"),
        (rule("x", action="labeldrop"), "labeldrop action requires only 'regex', and no other fields"),
        (rule(action="labelkeep", target_label="x"), "labelkeep action requires only 'regex', and no other fields"),
        (rule(target_label="\ud800"), "is invalid 'target_label' for replace action"),
        (RelabelConfig(source_labels=("",), target_label="x"), '"" is not a valid label name'),
        (rule(regex="(", action="keep"), "error parsing regexp: missing ): ^(?s:()$ in `(`"),
        (rule(regex="(?=a)", action="keep"), "error parsing regexp: invalid perl operator: (?="),
        (rule(regex="\udfff", action="keep"), "error parsing regexp: invalid UTF-8"),
    ],
)
def test_refusals_have_prometheus_words(config: RelabelConfig, words: str) -> None:
    with pytest.raises(RelabelError) as caught:
        compile_rules([config])
    assert words in str(caught.value)


@pytest.mark.parametrize("target", ["${3}", "0${3}", "-${3}", "ü.$x"])
def test_any_utf8_is_a_target(target: str) -> None:
    assert compile_rules([rule("a", "some-([^-]+)-([^,]+)", target_label=target)])
    assert compile_rules([rule("a", action="lowercase", target_label=target)])


def test_of_two_labels_with_one_new_name_the_last_wins() -> None:
    both = {"x_2": "two", "x_1": "one"}
    mapped = rule(regex="x_.", replacement="y", action="labelmap")
    assert run(both, mapped) == both | {"y": "two"}
    assert run(both, rule("x_1", target_label="x_1"), mapped) == both | {"y": "one"}  # what was set comes later


def test_an_expression_can_leave_its_anchors_as_in_prometheus() -> None:
    labels = {"ab": "1", "cb": "2", "xy": "3"}
    assert run(labels, rule(regex="a)|(b", action="labeldrop")) == {"xy": "3"}
    assert run({"cb": "2"}, rule(regex="a)|(b", action="labelmap", replacement="[$1]")) == {"cb": "2", "c[b]": "2"}


def test_letters_change_one_by_one() -> None:
    assert (lower("ÀΣΑΣ İ"), upper("straße ŉ ﬁ ᾳ ǆ ÿ")) == ("àσασ i", "STRAßE ŉ ﬁ ᾼ Ǆ Ÿ")


def test_no_expression_hangs() -> None:
    """Each of these would take Python's regexes longer than the age of the universe."""
    text = "a" * 50_000
    for evil in ("(a*)*b", "(a|a)*b", "(a+)+$b", "(.*a){12}b", "(x+x+)+y|a*b"):
        assert run({"a": text}, rule("a", evil, action="keep")) is None


NAMES = st.sampled_from(["a", "b", "c", "__tmp", "ü"])
VALUES = st.text("ab;-ü\n", max_size=4)
REGEXES = st.sampled_from(["(.*)", "", "a", "a|b", "(a)(b)?", "(a*)(?P<n>[^;]*);?(.*)", ".+", "[^a]*", "(__)?(.+)"])
TEMPLATES = st.lists(st.sampled_from(["$1", "${2}", "$n", "${n}", "x", "$$", "$0", "$3", "ü", "_"]), min_size=1).map(
    "".join
)


@st.composite
def rules(draw: st.DrawFn) -> RelabelConfig:
    action = draw(st.sampled_from(ACTIONS))
    source = tuple(draw(st.lists(NAMES, max_size=3)))
    match action:
        case "labeldrop" | "labelkeep":
            return RelabelConfig(regex=draw(REGEXES), action=action)
        case "labelmap":
            return RelabelConfig(regex=draw(REGEXES), replacement=draw(TEMPLATES) + "$0", action=action)
        case "replace":
            return RelabelConfig(
                source, draw(VALUES), draw(REGEXES), target_label=draw(TEMPLATES), replacement=draw(TEMPLATES)
            )
        case "hashmod":
            return RelabelConfig(
                source, draw(VALUES), modulus=draw(st.integers(1, 2**64 - 1)), target_label=draw(NAMES), action=action
            )
        case "keep" | "drop":
            return RelabelConfig(source, draw(VALUES), draw(REGEXES), action=action)
    return RelabelConfig(source, target_label=draw(NAMES), action=action)


@given(st.dictionaries(NAMES, VALUES), st.lists(rules(), max_size=5))
def test_equal_to_the_plain_twin(labels: Labels, chain: list[RelabelConfig]) -> None:
    assert run(labels, *chain) == relabel(labels, chain)


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5)), st.text(max_size=9), st.text(min_size=1, max_size=9))
def test_any_text_is_refused_or_runs(labels: Labels, regex: str, template: str) -> None:
    for config in (
        rule("a", regex, target_label=template, replacement=template),
        rule(regex=regex, replacement=template, action="labelmap"),
    ):
        try:
            compiled = compile_rules([config])
        except RelabelError:
            continue
        made = compiled.apply(labels)
        assert made is not None
        assert all(made.values())
