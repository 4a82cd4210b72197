"""LogQL expressions for tests: a strategy of well-typed trees."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from query.logql import ast
from query.promql.ast import Card, VectorMatching
from tsdb.matchers import Matcher, MatchOp

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
names = st.sampled_from(["app", "level", "by", "json", "status_code", "ip", "_x", "drop"])
_plain_names = st.sampled_from(["app", "level", "status_code", "_x"])
_regexes = st.sampled_from([".+", "a|b", "5..", "(?i)err"])
matchers = st.builds(Matcher, _plain_names, st.sampled_from([MatchOp.EQUAL, MatchOp.NOT_EQUAL]), texts) | st.builds(
    Matcher, _plain_names, st.sampled_from([MatchOp.REGEX, MatchOp.NOT_REGEX]), _regexes
)
_selectors = st.lists(matchers, max_size=2).map(lambda more: (Matcher("app", MatchOp.EQUAL, "web"), *more))


@st.composite
def line_filters(draw: st.DrawFn) -> ast.LineFilter:
    op = draw(st.sampled_from(ast.FilterOp))
    if op in (ast.FilterOp.MATCHES, ast.FilterOp.NOT_MATCHES):
        term = st.builds(ast.LineTerm, _regexes)
    elif op in (ast.FilterOp.PATTERN, ast.FilterOp.NOT_PATTERN):
        term = st.builds(ast.LineTerm, st.sampled_from(["<_> x", "a <_> b", "<_>"]))
    else:
        term = st.builds(ast.LineTerm, texts) | st.just(ast.LineTerm("10.0.0.0/8", ip=True))
    return ast.LineFilter(op, tuple(draw(st.lists(term, min_size=1, max_size=3))))


_numbers = st.one_of(
    st.tuples(st.sampled_from([0.0, 1.5, -3.0, 200.0, 1e21]), st.just(ast.Unit.NUMBER)),
    st.tuples(st.integers(0, 10**14).map(float), st.just(ast.Unit.DURATION)),
    st.tuples(st.sampled_from([1.0, 999.0, 1000.0, 1024.0, 5e6, 1048576.0, 1e15]), st.just(ast.Unit.BYTES)),
)
_number_filters = st.builds(
    lambda name, op, value: ast.NumberFilter(name, op, *value),
    _plain_names,
    st.sampled_from(["==", "!=", ">", ">=", "<", "<="]),
    _numbers,
)
predicates: st.SearchStrategy[Any] = st.recursive(
    st.builds(ast.TextFilter, matchers)
    | _number_filters
    | st.builds(ast.IpFilter, _plain_names, st.booleans(), st.sampled_from(["10.0.0.1", "::1", "1.1.1.1-1.1.1.9"])),
    lambda inner: st.builds(ast.BothFilter, st.sampled_from(["and", "or"]), inner, inner),
    max_leaves=4,
)
_extractions = st.lists(
    st.builds(ast.Extraction, _plain_names, st.sampled_from(["a", "a.b", 'a["x y"][0]'])), max_size=2
)
_templates = st.sampled_from(["", "{{.app}} x", '{{ if eq .a "b" }}y{{ else }}{{ .c | ToUpper }}{{ end }}'])
_items = st.lists(_plain_names | matchers, min_size=1, max_size=3).map(tuple)
label_filters = st.builds(ast.LabelFilter, predicates)
stages: st.SearchStrategy[Any] = st.one_of(
    line_filters(),
    st.builds(ast.JsonParser, _extractions.map(tuple)),
    st.builds(ast.LogfmtParser, _extractions.map(tuple), st.booleans(), st.booleans()),
    st.just(ast.RegexpParser("(?P<a>x+)")),
    st.just(ast.PatternParser("<ip> - <_>")),
    st.just(ast.UnpackParser()),
    label_filters,
    st.builds(ast.LineFormat, _templates),
    st.builds(
        lambda made: ast.LabelFormat(tuple(made)),
        st.lists(
            st.builds(ast.LabelAssignment, _plain_names, _templates, st.just(False))
            | st.builds(ast.LabelAssignment, _plain_names, _plain_names, st.just(True)),
            min_size=1,
            max_size=2,
            unique_by=lambda a: a.target,
        ),
    ),
    st.builds(ast.DropLabels, _items),
    st.builds(ast.KeepLabels, _items),
    st.just(ast.Decolorize()),
)


def _unambiguous(made: list[Any]) -> tuple[Any, ...]:
    """``| drop app != "x"`` reads as a matcher, not as a line filter behind ``drop app``."""
    kept: list[Any] = []
    for stage in made:
        last = kept[-1] if kept else None
        behind_name = isinstance(last, ast.DropLabels | ast.KeepLabels) and isinstance(last.items[-1], str)
        if not (behind_name and isinstance(stage, ast.LineFilter)):
            kept.append(stage)
    return tuple(kept)


log_queries = st.builds(ast.LogQuery, _selectors, st.lists(stages, max_size=4).map(_unambiguous))
_durations = st.integers(1, 10**8).map(lambda ms: ms * 1_000_000)
_groupings = st.builds(ast.Grouping, st.lists(_plain_names, max_size=2).map(tuple), st.booleans())
_GROUPED = ["avg_over_time", "first_over_time", "last_over_time", "max_over_time", "min_over_time", "stddev_over_time"]


@st.composite
def range_aggregations(draw: st.DrawFn) -> ast.RangeAggregation:
    offset = draw(st.just(0) | _durations | _durations.map(lambda ns: -ns))
    query, range_ns = draw(log_queries), draw(_durations)
    if draw(st.booleans()):
        op = draw(st.sampled_from(["absent_over_time", "bytes_over_time", "bytes_rate", "count_over_time", "rate"]))
        return ast.RangeAggregation(op, ast.LogRange(query, range_ns, offset))
    unwrap = ast.Unwrap(
        draw(_plain_names),
        draw(st.sampled_from(["", "bytes", "duration", "duration_seconds"])),
        tuple(draw(st.lists(label_filters, max_size=2))),
    )
    op = draw(st.sampled_from([*_GROUPED, "quantile_over_time", "rate", "rate_counter", "sum_over_time"]))
    grouping = draw(st.none() | _groupings) if op in (*_GROUPED, "quantile_over_time") else None
    param = 0.95 if op == "quantile_over_time" else None
    return ast.RangeAggregation(op, ast.LogRange(query, range_ns, offset, unwrap), param, grouping)


def _is_scalar(expr: Any) -> bool:
    return isinstance(expr, ast.Literal) or (
        isinstance(expr, ast.Binary) and _is_scalar(expr.lhs) and _is_scalar(expr.rhs)
    )


def _binaries(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    sets = st.builds(
        lambda op, lhs, rhs, on: ast.Binary(op, lhs, rhs, False, VectorMatching(Card.MANY_TO_MANY, ("app",), on)),
        st.sampled_from(["and", "or", "unless"]),
        inner.filter(lambda e: not _is_scalar(e)),
        inner.filter(lambda e: not _is_scalar(e)),
        st.booleans(),
    )
    plain = VectorMatching(Card.ONE_TO_ONE, (), False)
    grouped = VectorMatching(Card.MANY_TO_ONE, ("app",), True, ("level",))
    compared = st.builds(
        lambda op, lhs, rhs, b, m: ast.Binary(op, lhs, rhs, b, m),
        st.sampled_from(["==", ">", "<="]),
        inner,
        inner,
        st.booleans(),
        st.sampled_from([plain, grouped]),
    )
    arithmetic = st.builds(
        lambda op, lhs, rhs, m: ast.Binary(op, lhs, rhs, False, m),
        st.sampled_from(["+", "-", "*", "/", "%", "^"]),
        inner,
        inner,
        st.sampled_from([plain, grouped]),
    )
    return sets | compared | arithmetic


metrics: st.SearchStrategy[Any] = st.recursive(
    range_aggregations()
    | st.builds(ast.Literal, st.sampled_from([0.0, 1.0, -2.5, 1e-9]))
    | st.builds(ast.Vector, st.sampled_from([1.0, -0.5])),
    lambda inner: st.one_of(
        st.builds(
            ast.VectorAggregation, st.sampled_from(["sum", "avg", "count"]), inner, st.none(), st.none() | _groupings
        ),
        st.builds(ast.VectorAggregation, st.just("topk"), inner, st.just(3.0), st.none() | _groupings),
        st.builds(ast.VectorAggregation, st.just("sort"), inner),
        _binaries(inner),
        st.builds(ast.LabelReplace, inner, _plain_names, texts, _plain_names, _regexes),
    ),
    max_leaves=4,
)
