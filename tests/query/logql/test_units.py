"""Durations and byte counts, as Go and humanize read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from query.logql.units import (
    format_bytes,
    format_duration_ns,
    parse_bytes,
    parse_duration_ns,
    parse_go_duration_ns,
)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1.5h", 5_400_000_000_000),
        ("-2ms", -2_000_000),
        ("1h2m3s4ms5us6ns", 3_723_004_005_006),
        ("5µs", 5_000),
        ("0", 0),
        (".5s", 500_000_000),
        ("1d", None),
        ("", None),
        ("5", None),
        ("s", None),
        ("1e3s", None),
        ("300000h", 1_080_000_000_000_000_000),
        ("3000000h", None),
    ],
)
def test_go_durations(text: str, ns: int | None) -> None:
    assert parse_go_duration_ns(text) == ns


def test_durations_of_the_language_know_days() -> None:
    assert parse_duration_ns("1d12h") == 129_600_000_000_000
    assert parse_duration_ns("1.5d") is None


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("5KB", 5000),
        ("5KiB", 5120),
        ("1.5 MiB", 1_572_864),
        ("10", 10),
        ("1,000b", 1000),
        ("2g", 2 * 10**9),
        ("x", None),
        ("1 QB", None),
    ],
)
def test_bytes(text: str, count: int | None) -> None:
    assert parse_bytes(text) == count


@given(st.integers(-(10**18), 10**18))
def test_durations_read_back(ns: int) -> None:
    assert parse_go_duration_ns(format_duration_ns(ns)) == ns


@given(st.integers(0, 10**6), st.sampled_from([1, 1000, 1024, 10**6, 1 << 20, 10**9]))
def test_bytes_read_back(count: int, unit: int) -> None:
    assert parse_bytes(format_bytes(count * unit)) == count * unit
