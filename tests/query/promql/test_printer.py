"""Literals in their canonical spelling, both ways."""

from __future__ import annotations

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from query.promql.literals import (
    format_duration,
    format_number,
    parse_duration,
    parse_number,
    quote,
    seconds_to_ms,
    unquote,
)
from query.promql.parser import parse
from query.promql.printer import to_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "-0"),
        (1e22, "10000000000000000000000"),
        (1e-7, "0.0000001"),
        (0.1, "0.1"),
        (inf, "+Inf"),
        (-inf, "-Inf"),
        (nan, "NaN"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert format_number(value) == text


@given(st.floats(min_value=0, allow_infinity=False))
def test_a_number_reads_back(value: float) -> None:
    assert parse_number(format_number(value)) == value


@pytest.mark.parametrize(
    ("duration_ms", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (90_000, "1m30s"),
        (90 * 86_400_000, "90d"),
        (14 * 86_400_000, "2w"),
        (365 * 86_400_000, "1y"),
        (366 * 86_400_000, "366d"),
        (3_600_001, "1h1ms"),
    ],
)
def test_durations(duration_ms: int, text: str) -> None:
    assert format_duration(duration_ms) == text


@given(st.integers(0, 9 * 10**12))
def test_a_duration_reads_back(duration_ms: int) -> None:
    assert parse_duration(format_duration(duration_ms)) == duration_ms
    assert seconds_to_ms(duration_ms / 1000) == duration_ms
    assert seconds_to_ms(-duration_ms / 1000) == -duration_ms


def test_a_duration_is_cut_below_the_millisecond() -> None:
    assert seconds_to_ms(1.0005) == 1000
    assert seconds_to_ms(-1.0009) == -1000


@given(st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"])))
def test_a_string_reads_back(text: str) -> None:
    assert unquote(quote(text)) == text


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("a\"b\\c'", '"a\\"b\\\\c\'"'),
        ("\a\b\f\n\r\t\v\x00\x7f", '"\\a\\b\\f\\n\\r\\t\\v\\x00\\x7f"'),
        ("é☺𐄑", '"é☺𐄑"'),
        ("\u200b\U000e0001", '"\\u200b\\U000e0001"'),
        ("\udcff", '"\\xff"'),
    ],
)
def test_quoting(text: str, quoted: str) -> None:
    assert quote(text) == quoted


def test_bytes_of_escapes_join_to_characters() -> None:
    assert unquote(r'"\xc3\xa9\303\251"') == "éé"
    assert unquote(r'"\xff"') == "\udcff"
    assert unquote(r"`\n`") == r"\n"


@pytest.mark.parametrize(
    "text",
    [
        'sum without ("a b", le) (foo{a!="b",c=~"d"} @ end() offset -1h)',
        "foo / ignoring (a) group_left () bar",
        "foo > bool on () bar",
        'count_values("v", min_over_time(foo[5m:30s] @ 1.500 offset 1w))',
        '{"a.b"="c",__name__="d e"}',
    ],
)
def test_canonical_texts_stay(text: str) -> None:
    assert to_text(parse(text)) == text
