"""Patterns, groups of regexes, and what every match of a regex holds."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from query.logql.patterns import named_groups, only_named, parse_pattern, required_literals


@pytest.mark.parametrize(
    ("pattern", "literals"),
    [
        ("upstream.*9999", ("upstream", "9999")),
        ("^GET /api", ("GET /api",)),
        ("a[bc]defg+h", ("defg",)),
        ("abcd?e", ("abc",)),
        ("abcd*", ("abc",)),
        (r"10\.0\.0\.1", ("10.0.0.1",)),
        (r"error: \d+ of \w+ failed$", ("error: ", " of ", " failed")),
        ("abc|def", ()),
        ("(?i)error", ()),
        ("x{3}yyy", ()),
        (r"[\]]abc", ()),
        ("[^]]abcd", ("abcd",)),
        (r"\Qabc\E", ()),
        ("ab", ()),
        ("", ()),
    ],
)
def test_required_literals(pattern: str, literals: tuple[str, ...]) -> None:
    assert required_literals(pattern) == literals


_pieces = st.sampled_from(
    ["a", "b", "abc", ".", "a*", "b+", "c?", "[ab]", "[^a]", r"\.", r"\d", "^", "$", "cab+", "ab?c"]
)


@given(st.lists(_pieces, max_size=6).map("".join), st.lists(st.text("abc.1", max_size=12), max_size=8))
def test_every_match_holds_it(pattern: str, texts: list[str]) -> None:
    for text in texts:
        if re.search(pattern, text):
            assert all(literal in text for literal in required_literals(pattern))


def test_groups() -> None:
    assert named_groups(r"(?P<a>x)(y)(?<b>z)") == ("a", "b")
    assert only_named(r"(?P<a>x)(y)(?<b>z)\((?:q)[(]") == r"(?P<a>x)(?:y)(?P<b>z)\((?:q)[(]"
    with pytest.raises(ValueError, match="at least one named capture"):
        named_groups("(x)")
    with pytest.raises(ValueError, match="duplicate capture"):
        named_groups("(?P<a>x)(?P<a>y)")


def test_patterns() -> None:
    pattern = parse_pattern('<ip> - <_> "<path>"', need_names=True)
    assert (pattern.literals, pattern.names) == ((b" - ", b' "', b'"'), ("ip", "_", "path"))
    assert (pattern.leads, pattern.trails) == (False, True)
    assert parse_pattern("a <_>", need_names=False).leads
    for text, names in (("<_>", True), ("<a>", False), ("<a><b>", True), ("<a> <a>", True)):
        with pytest.raises(ValueError, match="capture"):
            parse_pattern(text, need_names=names)
