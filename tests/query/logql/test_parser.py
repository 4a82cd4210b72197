"""LogQL's parser: what it accepts, how it nests, and Loki's words where it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from query.logql import ast
from query.logql.lexer import LogqlError
from query.logql.parser import parse, parse_selector
from query.logql.printer import to_text
from tests.query.logql.trees import log_queries, metrics
from tsdb.matchers import Matcher, MatchOp

NEEDS = (
    "parse error : queries require at least one regexp or equality matcher that does not have an empty-compatible "
    'value. For instance, app=~".*" does not meet this requirement, but app=~".+" will'
)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{app="a"', "parse error at line 1, col 9: syntax error: unexpected $end, expecting } or ,"),
        ("{", "parse error at line 1, col 2: syntax error: unexpected $end, expecting IDENTIFIER or }"),
        ("{app}", "parse error at line 1, col 5: syntax error: unexpected }, expecting = or =~ or !~ or !="),
        ('{foo="bar}', "parse error at line 1, col 6: literal not terminated"),
        ('{foo="bar"} |~', "parse error at line 1, col 15: syntax error: unexpected $end, expecting STRING or ip"),
        ('{foo="bar"} "foo"', "parse error at line 1, col 13: syntax error: unexpected STRING"),
        ('{foo="bar"}\n foo', "parse error at line 2, col 2: syntax error: unexpected IDENTIFIER"),
        ('{app=~".*"}', NEEDS),
        ("{}", NEEDS),
        ("", "parse error at line 1, col 1: syntax error: unexpected $end"),
        ('topk(rate({a="b"}[1m]))', "parse error : parameter required for operation topk"),
        ('sum(5, rate({a="b"}[1m]))', "parse error : unsupported parameter for operation sum(5,"),
        ('count_over_time({a="b"} | unwrap x [1m])', "parse error : invalid aggregation count_over_time with unwrap"),
        ('avg_over_time({a="b"}[1m])', "parse error : invalid aggregation avg_over_time without unwrap"),
        ('rate({a="b"}[1m]) by (x)', "parse error : grouping not allowed for rate aggregation"),
        ('rate({a="b"}[1q])', 'parse error at line 1, col 13: unknown unit "q" in duration "1q"'),
        ('rate({a="b"})', "parse error at line 1, col 13: syntax error: unexpected )"),
        (
            '1 and rate({a="b"}[1m])',
            "parse error : unexpected literal for left leg of logical/set binary operation (and): 1",
        ),
        ('{a="b"} | regexp "x+"', "parse error at line 1, col 9: at least one named capture must be supplied"),
        ('{a="b"} | label_format x=y, __error__=y', "parse error at line 1, col 9: __error__ cannot be formatted"),
        (
            '{a="b"} | label_format x=y, x=z',
            "parse error at line 1, col 9: multiple label name 'x' not allowed in a single format operation",
        ),
        (
            '{a="b"} | approx > ip("x")',
            "parse error at line 1, col 20: syntax error: unexpected ip, expecting BYTES or NUMBER or DURATION",
        ),
        ('variants(rate({a="b"}[1m])) of ({a="b"}[1m])', "parse error at line 1, col 1: unsupported: variants()"),
        (
            'approx_topk by (a) (5, rate({a="b"}[1m]))',
            "parse error : grouping not allowed for approx_topk aggregation",
        ),
        ('{a="b"} | xml', "parse error at line 1, col 9: unsupported: the xml parser"),
        ('{a=~"("}', 'parse error at line 1, col 2: error parsing regexp: missing ): (: "("'),
        (
            '{a="b"} | pattern "<a><b>"',
            "parse error at line 1, col 9: invalid expression: found consecutive capture '<a><b>'",
        ),
    ],
)
def test_refusals_have_lokis_words(text: str, error: str) -> None:
    with pytest.raises(LogqlError) as caught:
        parse(text)
    assert str(caught.value) == error


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(LogqlError, match="nested more than"):
        parse("(" * 5000 + "1" + ")" * 5000)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("{a=`x\\d`}", '{a="x\\\\d"}'),
        ('( {a="b"} |= "x" )', '{a="b"} |= "x"'),
        ('sum(count_over_time({a="b"}[1m])) by (x)', 'sum by (x) (count_over_time({a="b"} [1m]))'),
        ('rate(({a="b"} |= "x")[5m] offset 1h)', 'rate({a="b"} |= "x" [5m] offset 1h)'),
        ('rate({a="b"}[5m] |= "x" | json)', 'rate({a="b"} |= "x" | json [5m])'),
        ("1+2*3^2^2", "(1 + (2 * (3 ^ (2 ^ 2))))"),
        ("1-2-3", "((1 - 2) - 3)"),
        ('{a="b"} | x > 5 y="z", w=1', '{a="b"} | (x>5 and (y="z" and w==1))'),
        ('{a="b"} | x=1 or y=2 and z=3', '{a="b"} | (x==1 or (y==2 and z==3))'),
        ('{a="b"} | json != "x"', '{a="b"} | json != "x"'),
        ('{a="b"} | json="x"', '{a="b"} | json="x"'),
        ('{a="b"} # all\n|= "x"', '{a="b"} |= "x"'),
        ('{a="b"} | size > 5KB', '{a="b"} | size>5KB'),
        ('{a="b"} | took > 1.5h', '{a="b"} | took>1h30m'),
        ('SUM(rate({a="b"}[1d]))', 'sum(rate({a="b"} [1d]))'),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert to_text(parse(text)) == canonical
    assert to_text(parse(canonical)) == canonical


def test_volume_query_of_grafana() -> None:
    expr = parse('sum by (level, detected_level) (count_over_time({app="a"} | drop __error__ [1m]))')
    assert isinstance(expr, ast.VectorAggregation)
    assert expr.grouping == ast.Grouping(("level", "detected_level"))
    assert isinstance(expr.expr, ast.RangeAggregation)
    assert expr.expr.range.query.stages == (ast.DropLabels(("__error__",)),)


def test_selectors_alone_may_be_empty() -> None:
    assert parse_selector("{}") == ()
    assert parse_selector('{a!="b"}') == (Matcher("a", MatchOp.NOT_EQUAL, "b"),)


@settings(max_examples=150, deadline=None)
@given(log_queries | metrics)
def test_printed_text_reads_back(expr: ast.Expr) -> None:
    assert parse(to_text(expr)) == expr
