"""Whatever is sent is answered or refused, never an exception of another kind."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from query.errors import QueryError
from query.logql.ast import Expr, LogQuery
from query.logql.engine.engine import LogEngine
from query.logql.lexer import LogqlError
from query.logql.parser import parse
from query.logql.printer import to_text
from tests.query.logql.memory_logs import MemoryLogs
from tests.query.logql.trees import log_queries, metrics
from tsdb.clock import ManualClock

engine = LogEngine(clock=ManualClock(0))
LINES = ['{"level":"a","status_code":5,"_x":{"y":[1]}}', b"\xff\xfe{", "a=1 app=2 level=3ms"]
STORE = MemoryLogs(
    [
        ({"app": "web"}, [(i, line) for i, line in enumerate(LINES)]),
        (
            {"app": "api", "level": "b"},
            [(2, "10.0.0.7 - x"), (4, ""), (5, '{"_entry":"y","app":"z"}', {"level": "c"})],
        ),
    ]
)


def evaluate(expr: Expr) -> None:
    try:
        if isinstance(expr, LogQuery):
            engine.entries(STORE, expr, 0, 10, 10, backward=True)
        else:
            engine.range_of(STORE, expr, 0, 10**9, 10**8)
    except QueryError:
        pass


def parsed_or_refused(text: str) -> Expr | None:
    """The expression, None where the parser refuses with its own error."""
    try:
        return parse(text)
    except LogqlError:
        return None


@settings(max_examples=300, deadline=None)
@given(log_queries | metrics)
def test_every_expression_is_answered_or_refused(expr: Expr) -> None:
    evaluate(expr)


_noise = st.sampled_from(
    [*"{}()[]|=!~<>\"'`\\,.#-+*/^%@: \n\0é", "by", "or", "5m", "1KB", "|=", "unwrap", "offset", "ip("]
)


@settings(max_examples=300, deadline=None)
@given(log_queries | metrics, st.data())
def test_damaged_text_is_refused_with_words(expr: Expr, data: Any) -> None:
    text = to_text(expr)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(_noise | st.just("")) + text[at + data.draw(st.integers(0, 2)) :]
    damaged = parsed_or_refused(text)
    if damaged is not None:
        assert parse(to_text(damaged)) == damaged
        evaluate(damaged)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_any_text(text: str) -> None:
    parsed_or_refused(text)
