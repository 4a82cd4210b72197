from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import index as plain
from tsdb.errors import Reason, RejectedError
from tsdb.matchers import Matcher, MatchOp, Shape, compile_regex

values = st.lists(st.text("ab.|\\\n(é-", max_size=5), max_size=8)
regexes = st.lists(
    st.sampled_from(
        ["a", "b", ".*", ".+", ".", "|", "(a|b)", "(?:a|)", "\\.", "\\|", "\\\\", "[ab]+", "-", "é", "\n", "(?i)A"]
    ),
    max_size=4,
).map("".join)


def _valid(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:  # (?i) anywhere but in front: RE2 takes it, Python does not
        return False
    return True


@pytest.mark.parametrize(
    ("pattern", "shape", "texts"),
    [
        ("", Shape.LITERALS, ("",)),
        ("abc", Shape.LITERALS, ("abc",)),
        ("a|b|", Shape.LITERALS, ("a", "b", "")),
        ("(a|b)", Shape.LITERALS, ("a", "b")),
        ("(?:10\\.0\\.0\\.1|x)", Shape.LITERALS, ("10.0.0.1", "x")),
        (".*", Shape.EVERYTHING, ()),
        (".+", Shape.NOT_EMPTY, ()),
        ("checkout-.*", Shape.PREFIX, ("checkout-",)),
        (".*-api", Shape.SUFFIX, ("-api",)),
        (".*-api-.*", Shape.INFIX, ("-api-",)),
        ("(a)|(b)", Shape.ANY, ()),
        ("a\\|b", Shape.ANY, ()),
        ("a\\.*", Shape.ANY, ()),
        ("\\d", Shape.ANY, ()),
        ("a.b", Shape.ANY, ()),
    ],
)
def test_shapes_that_need_no_regex_engine(pattern: str, shape: Shape, texts: tuple[str, ...]) -> None:
    assert (compile_regex(pattern).shape, compile_regex(pattern).texts) == (shape, texts)


@given(regexes, values)
def test_every_shape_matches_what_the_regex_matches(pattern: str, strings: list[str]) -> None:
    regex = compile_regex(pattern)
    array = pa.array(strings, pa.large_string())
    assert regex.mask(array).tolist() == pc.match_substring_regex(array, regex.anchored).to_pylist()
    assert regex.matches_empty == bool(regex.mask(pa.array([""]))[0])


@given(st.sampled_from(MatchOp), regexes.filter(_valid), values)
def test_matchers_agree_with_their_definition(op: MatchOp, value: str, strings: list[str]) -> None:
    matcher = Matcher("l", op, value)
    expected = [plain.matches(matcher, {"l": s}) for s in strings]
    assert matcher.mask(strings).tolist() == expected
    assert [matcher.matches(s) for s in strings] == expected
    assert matcher.matches_empty == plain.matches(matcher, {})


@pytest.mark.parametrize(
    ("op", "value", "given", "expected"),
    [
        (MatchOp.REGEX, "foo", "foo\n", False),
        (MatchOp.REGEX, "foo.bar", "foo\nbar", True),
        (MatchOp.REGEX, "FOO", "foo", False),
        (MatchOp.REGEX, "(?i)FOO", "foo", True),
        (MatchOp.NOT_REGEX, "fo", "foo", True),
        (MatchOp.EQUAL, ".*", "x", False),
        (MatchOp.REGEX, "\\pL+", "é", True),
    ],
)
def test_anchors_and_flags(op: MatchOp, value: str, given: str, expected: bool) -> None:
    assert Matcher("l", op, value).matches(given) is expected


@pytest.mark.parametrize("pattern", ["(", "a)|(b", "a**", "(?=a)", "\\8", "\ud800"])
def test_what_re2_does_not_take_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(RejectedError) as caught:
        Matcher("l", MatchOp.REGEX, pattern).mask(["a"])
    assert caught.value.reason is Reason.BAD_MATCHER
