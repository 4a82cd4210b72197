"""The parser against Prometheus' own cases, against its printer, and at its limits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from query.promql.ast import (
    Aggregation,
    Binary,
    Call,
    MatrixSelector,
    NumberLiteral,
    Span,
    Subquery,
    Unary,
    ValueType,
    VectorSelector,
)
from query.promql.check import DEPTH_MAX
from query.promql.cursor import NESTING_MAX
from query.promql.functions import FUNCTIONS
from query.promql.parser import ParseError, parse, parse_duration_ms, parse_selector, type_of
from query.promql.printer import to_text
from query.promql.tree import to_tree
from tests.query.promql.trees import expressions
from tests.shared import shared_path
from tsdb.matchers import Matcher, MatchOp


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    """Expressions with the verdict, type, canonical text and tree of Prometheus."""
    with shared_path("conformance/promql/parse_cases.jsonl").open() as lines:
        return [json.loads(line) for line in lines]


def refusal(text: str) -> str:
    with pytest.raises(ParseError) as caught:
        parse(text)
    return str(caught.value)


def test_every_standard_case_has_prometheus_text_type_and_tree(cases: list[dict[str, Any]]) -> None:
    standard = [case for case in cases if case["valid_default"]]
    assert len(standard) == 2241
    for case in standard:
        expr = parse(case["expr"])
        assert to_text(expr) == case["canonical"]
        assert type_of(expr) == case["type"], case["expr"]
        if "offset +(5)" in case["expr"] or "offset -(5)" in case["expr"]:
            continue  # Prometheus shows this offset as an expression, we show its value
        assert to_tree(expr) == case["ast"], case["expr"]


def test_every_other_case_is_refused(cases: list[dict[str, Any]]) -> None:
    refused = [case for case in cases if not case["valid_default"]]
    assert len(refused) == 497
    for case in refused:
        with pytest.raises(ParseError):
            parse(case["expr"])


def test_error_texts_are_those_of_prometheus(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        if case["error"]:
            assert refusal(case["expr"]) == case["error"]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(ValueType).flatmap(expressions))
def test_canonical_text_parses_to_the_same_tree(tree: Any) -> None:
    text = to_text(tree)
    parsed = parse(text)
    assert parsed == tree
    assert to_text(parsed) == text


_PIECES = [
    "foo",
    "sum",
    "by",
    "(",
    ")",
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    ",",
    "=",
    "=~",
    "!=",
    "!",
    "~",
    "@",
    "+",
    "-",
    "*",
    "/",
    "%",
    "^",
    "<",
    ">",
    "</",
    "==",
    "and",
    "or",
    "unless",
    "on",
    "ignoring",
    "group_left",
    "offset",
    "bool",
    "5m",
    "5",
    "0x1f",
    "1_0",
    ".5",
    "1e3",
    "5m1",
    "inf",
    "start()",
    "end()",
    "step()",
    "rate",
    "max_of(1,2)",
    "fill(1)",
    ":",
    "'a'",
    '"b"',
    "`c`",
    '"\\xff"',
    "#",
    "\n",
    "�",
    "ü",
]


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(_PIECES), max_size=12), st.sampled_from(["", " "]))
def test_any_text_parses_or_is_refused_and_what_parses_prints_to_itself(pieces: list[str], gap: str) -> None:
    text = gap.join(pieces)
    try:
        tree = parse(text)
    except ParseError:
        return
    canonical = to_text(tree)
    # Prometheus' spelling of what it refuses itself, and of what it reads as a sign before a power
    if not any(spelling in canonical for spelling in ("offset -(", "offset (", "+Inf ^")):
        assert to_text(parse(canonical)) == canonical


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("2 ^ 3 ^ 2", "2 ^ 3 ^ 2"),
        ("foo offset 1m + 1m", "foo offset 1m + 1m"),
        ("a</b", "a </ b"),
        ("SUM(foo) BY (Job)", "sum by (Job) (foo)"),
        ("foo[5m # a comment\n]", "foo[5m]"),
        ("foo # and bar", "foo"),
        ("foo{# c\n a='b', }", 'foo{a="b"}'),
        ("1_000", "1000"),
        ("0x_1F", "31"),
        ("07_7", "63"),
        ("9223372036854775808", "9223372036854776000"),
        ("iNf", "+Inf"),
        ("5m + 1h30m", "5m + 1h30m"),
        ("-5m", "-5m"),
        ('{"a b"=~"c", "up"}', '{"a b"=~"c",__name__="up"}'),
        ("foo offset 1.5", "foo offset 1s500ms"),
        ("foo @ 1.0005", "foo @ 1.001"),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert to_text(parse(text)) == canonical


def test_precedence() -> None:
    assert isinstance(parse("-a ^ 2"), Unary)
    product = parse("-a * 2")
    assert isinstance(product, Binary)
    assert isinstance(product.lhs, Unary)
    power = parse("2 ^ 3 ^ 4")
    assert isinstance(power, Binary)
    assert isinstance(power.rhs, Binary)
    difference = parse("1 - 2 - 3")
    assert isinstance(difference, Binary)
    assert isinstance(difference.lhs, Binary)
    assert parse("-1") == NumberLiteral(-1.0)


def test_spans_point_at_the_text() -> None:
    text = "sum by (job) (rate(http_requests[5m] offset 1m)) / 2"
    ratio = parse(text)
    assert isinstance(ratio, Binary)
    assert ratio.span == Span(0, len(text))
    total = ratio.lhs
    assert isinstance(total, Aggregation)
    assert text[total.span.start : total.span.end] == text[:-4]
    rate = total.expr
    assert isinstance(rate, Call)
    assert text[rate.span.start : rate.span.end] == "rate(http_requests[5m] offset 1m)"
    window = rate.args[0]
    assert isinstance(window, MatrixSelector)
    assert text[window.span.start : window.span.end] == "http_requests[5m] offset 1m"
    assert window.selector.offset_ms == 60_000
    assert window.range_ms == 300_000


def test_modifiers_in_any_order() -> None:
    expected = VectorSelector("foo", (Matcher("__name__", MatchOp.EQUAL, "foo"),), 60_000, "start")
    assert parse("foo offset 1m @ start()") == parse("foo @ start() offset 1m") == expected
    subquery = parse("foo[5m:1m] @ 7 offset -1s")
    assert isinstance(subquery, Subquery)
    assert (subquery.range_ms, subquery.step_ms, subquery.at, subquery.offset_ms) == (300_000, 60_000, 7000, -1000)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("foo\n  + bar(", "2:9: parse error: unclosed left parenthesis"),
        ('foo{a=~"("}', "1:5: parse error: error parsing regexp: missing ): ("),
        ("foo[5m + 5m]", "1:5: parse error: experimental duration expression is not enabled"),
        ("foo[step()]", "1:5: parse error: experimental duration expression is not enabled"),
        ("foo offset (5m)", "1:12: parse error: experimental duration expression is not enabled"),
        ("rate(foo[5m] anchored)", "1:6: parse error: anchored modifier is experimental and not enabled"),
        ("mad_over_time(foo[5m])", '1:1: parse error: function "mad_over_time" is not enabled'),
        (
            "1 + limitk(1, foo)",
            "1:5: parse error: limitk() is experimental and must be enabled with"
            " --enable-feature=promql-experimental-functions",
        ),
        ("a + fill(0) b", "1:1: parse error: binop fill modifiers are experimental and not enabled"),
        ("sum(foo bar)", '1:9: parse error: unexpected identifier "bar" in aggregation'),
        ('foo "a long string"', '1:5: parse error: unexpected string "\\"a long st"...'),
        ('{a="\\xff"}', '1:2: parse error: matcher value is not valid UTF-8: "\\xff"'),
        ('sum by ("\\xff") (foo)', '1:9: parse error: invalid label name for grouping: "\\xff"'),
        ("foo[5m][5m]", "1:8: parse error: ranges only allowed for vector selectors"),
        ("foo[1:1:1]", "1:8: parse error: unexpected colon ':'"),
        ("foo @ 1 @ 2", "1:1: parse error: @ <timestamp> may not be set multiple times"),
        ("08_.5", '1:1: parse error: bad number or duration syntax: "08_."'),
        ("0x1e+5", '1:1: parse error: error parsing number: strconv.ParseFloat: parsing "0x1e+5": invalid syntax'),
    ],
)
def test_refusals(text: str, error: str) -> None:
    assert refusal(text) == error


def test_error_says_where() -> None:
    with pytest.raises(ParseError) as caught:
        parse("foo and\n  + *")
    assert (caught.value.line, caught.value.col, caught.value.pos) == (2, 5, 12)
    assert caught.value.what == "unexpected <op:*>"


@pytest.mark.parametrize(
    ("opening", "core", "closing"),
    [
        ("(", "a", ")"),
        ("-", "a", ""),
        ("abs(", "a", ")"),
        ("sum(", "a", ")"),
        ("1 ^ ", "a", ""),
        ("", "a", " + a"),
        ("last_over_time(", "a", "[1m:])"),
    ],
)
def test_nesting_is_limited_and_said(opening: str, core: str, closing: str) -> None:
    deep = NESTING_MAX - 2
    to_text(parse(opening * deep + core + closing * deep))
    for times in (2 * NESTING_MAX + 3, 3000):
        error = refusal(opening * times + core + closing * times)
        assert f"nested more than {NESTING_MAX} levels" in error or f"more than {DEPTH_MAX} operations" in error


def test_deep_duration_expression_is_refused() -> None:
    assert "nested more than" in refusal(f"foo[{'(' * 3000}5m{')' * 3000}]")


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_number_of_arguments(name: str) -> None:
    function = FUNCTIONS[name]
    sample = {"vector": "foo", "matrix": "foo[5m]", "scalar": "1", "string": '"x"'}
    args = [sample[t] for t in function.arg_types]
    if name == "info":
        args[-1] = "{a='b'}"
    if function.experimental:
        assert refusal(f"{name}({', '.join(args)})").endswith(f'function "{name}" is not enabled')
    else:
        assert type_of(parse(f"{name}({', '.join(args)})")) == function.return_type
    if function.args_max is not None:
        too_many = [*args, *["1"] * (function.args_max - len(args) + 1)]
        assert "argument(s) in call to" in refusal(f"{name}({', '.join(too_many)})")
    if function.args_min:
        assert "argument(s) in call to" in refusal(f"{name}({', '.join(args[: function.args_min - 1])})")


def test_selector_of_match_parameter() -> None:
    assert parse_selector('up{job!="x"}') == (
        Matcher("job", MatchOp.NOT_EQUAL, "x"),
        Matcher("__name__", MatchOp.EQUAL, "up"),
    )
    assert parse_selector("{}") == ()
    for text in ("up[5m]", "up offset 5m", "sum(up)", "1", "", "up{"):
        with pytest.raises(ParseError):
            parse_selector(text)


def test_duration_of_a_parameter() -> None:
    assert parse_duration_ms("1h30m") == 5_400_000
    for text in ("", "5", "1m1h", "5x", "300y"):
        with pytest.raises(ParseError):
            parse_duration_ms(text)
