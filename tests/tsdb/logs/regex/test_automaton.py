"""An automaton says of a text what RE2 says, or says that it cannot know; and it knows where the text is ASCII."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tsdb.kernels.log_regex import step_texts
from tsdb.logs.frame import Texts
from tsdb.logs.regex import automaton as automata
from tsdb.logs.regex.automaton import DIGITS, SEVERAL, SLOT_DIGITS, UNRESOLVED, Run, automaton_of, build
from tsdb.logs.regex.syntax import UnsupportedError
from tsdb.logs.regex.walk import UNDECIDED, run_texts, search_texts


def re2(pattern: str, texts: list[bytes]) -> list[bool] | None:
    """What RE2 says; None where it does not take the pattern."""
    try:
        return pc.match_substring_regex(pa.array(texts, pa.large_binary()).view(pa.large_string()), pattern).to_pylist()
    except pa.ArrowInvalid:
        return None


def check(pattern: str, texts: list[bytes]) -> bool:
    """Whether the pattern was one of ours; fails where a verdict is not RE2's."""
    wanted, automaton = re2(pattern, texts), automaton_of(pattern)
    if wanted is None or automaton is None:
        return False
    data, offsets = Texts.of(texts)
    found = search_texts(automaton, data, offsets[:-1], np.diff(offsets)).tolist()
    for text, ours, theirs in zip(texts, found, wanted, strict=True):
        if ours == UNDECIDED:
            assert not text.isascii(), (pattern, text)
        else:
            assert bool(ours) == theirs, (pattern, text)
    return True


chars = st.sampled_from("abcdkKsSA_019 -.\n")
escapes = st.sampled_from(
    [
        r"\d",
        r"\D",
        r"\w",
        r"\W",
        r"\s",
        r"\S",
        r"\.",
        r"\n",
        r"\t",
        r"\x41",
        r"\x{62}",
        r"\-",
        r"\\",
        r"\[",
        "é",
        "ſ",
        ".",
    ]
)
places = st.sampled_from(["^", "$", r"\A", r"\z", r"\b", r"\B"])
in_class = st.one_of(
    chars.filter(lambda c: c not in "-\n"),
    st.sampled_from(
        ["a-c", "0-9", "A-K", r"\d", r"\W", r"\s", "[:alpha:]", "[:^lower:]", "[:upper:]", "[:punct:]", "[:^space:]",
         r"\x61-\x64", r"\]", "é", "^", "[", "[:word:]", "[:xdigit:]"]
    ),
)  # fmt: skip
classes = st.builds(
    lambda negated, first, items, last: f"[{negated}{first}{''.join(items)}{last}]",
    st.sampled_from(["", "^"]), st.sampled_from(["", "]", "-"]), st.lists(in_class, min_size=1, max_size=3),
    st.sampled_from(["", "-"]),
)  # fmt: skip
flags = st.sampled_from(["(?i)", "(?s)", "(?m)", "(?U)", "(?is)", "(?-i)", "(?i-s)", "(?mi)"])
literals = chars.filter(lambda c: c not in ".") | st.sampled_from(["a{", "b{,2}", "c}", "{", "]", "é{2}"])
leaves = st.one_of(literals, literals, escapes, places, classes, flags)
times = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "{0}", "{0,1}"])


def extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    groups = st.builds(
        lambda begin, text: f"{begin}{text})",
        st.sampled_from(["(", "(?:", "(?P<name>", "(?<name>", "(?i:", "(?m:", "(?s-i:"]),
        inner,
    )
    return st.one_of(
        st.builds("".join, st.lists(inner, min_size=2, max_size=4)),
        st.builds("|".join, st.lists(inner | st.just(""), min_size=2, max_size=3)),
        groups,
        st.builds(lambda text, count, lazy: f"(?:{text}){count}{lazy}", inner, times, st.sampled_from(["", "?"])),
        st.builds(lambda text, count: f"{text}{count}", chars.filter(str.isalpha) | classes, times),
    )


patterns = st.recursive(leaves, extend, max_leaves=12)
ascii_texts = st.text("abcdkKsSA_019 -.\n", max_size=12).map(str.encode)
texts = st.one_of(
    ascii_texts,
    ascii_texts,
    st.text("abkKs.\n\u212a\u017féÉ世", max_size=8).map(str.encode),
    st.lists(st.sampled_from([b"a", b"b", b"k", b"\xff", b"\xc3", b"\xa9", b"\n", b"\x00"]), max_size=8).map(b"".join),
)


@pytest.mark.kernel
@settings(max_examples=1500, deadline=None)
@given(patterns, st.lists(texts, min_size=4, max_size=12))
@example("(?i)k", [b"K", b"k", "\u212a".encode(), b"x"])
@example(r"(?m)^a$", [b"b\na", b"b\na\nc", b"ba", b"a\n"])
@example(r"a$", [b"a\n", b"a"])
@example(r"\Ba\B|\b\b", [b"", b"a", b"bab"])
@example(r"(?:^a|b)*c", [b"abc", b"xbc", b"c"])
@example(r"(?:$)*(?:\b)+a", [b"a", b"ba"])
@example(r"^(?:^^a)", [b"a", b"aa"])
@example(r"a|(?i)b|c", [b"A", b"B", b"C"])
@example(r"(?i)[[:^lower:]]", [b"A", b"a", b"0"])
@example(r"(?i)[^\Wk]", [b"K", b"k", b"a"])
@example(r"x*", [b"", "é".encode()])
@example("[^a]", ["é".encode(), b"a\n"])
@example("(?P<a>b)(?<c>d)", [b"bd", b"b"])
def test_verdicts_are_those_of_re2(pattern: str, some: list[bytes]) -> None:
    check(pattern, some)


@pytest.mark.kernel
@pytest.mark.parametrize(
    "pattern",
    [
        r"[#]{3}|[@]{3}", r'status":5\d\d', "(?i)error|warn", r"\d{3}\.\d{3}", "(a|b)*a(a|b){6}", r"\b5\d\d\b", "^foo",
        r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}", r'(GET|POST) /v\d+/\w+ HTTP/1\.[01]" 5\d\d', r"(?s)a.*z", r"a\z", r"(?m)^b$",
    ],
)  # fmt: skip
def test_usual_patterns_are_taken(pattern: str) -> None:
    lines = [
        b"",
        b"an Error",
        b'POST /v1/x HTTP/1.1" 503',
        b'"status":504',
        b"10.0.0.1",
        b"foo ###",
        b"a\nb\nz",
        b"aaabbbbbb",
    ]
    assert check(pattern, lines)


@pytest.mark.parametrize(
    "pattern", [r"\pL", r"\C", r"\Qa.b\E", "(?i)é", "[[:foo:]]", r"\101", "(" * 200 + ")" * 200, "a{1000}{1000}"]
)
def test_what_is_not_understood_is_left_to_re2(pattern: str) -> None:
    with pytest.raises(UnsupportedError):
        build(pattern)


@pytest.mark.parametrize("pattern", ["x.{100}y", "(?:a{50}b{50}){30}", "(a|b)*a(a|b){20}"])
def test_large_automata_are_given_up(pattern: str) -> None:
    assert automaton_of(pattern) is None


def test_an_anchored_pattern_dies_early() -> None:
    automaton = build("^foo")
    assert automaton.over(b"x", automaton.begin) == automata.DEAD << automaton.shift
    assert automaton.over(b"foo", automaton.begin) == automata.FOUND << automaton.shift


def test_tables_stay_within_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(build("abcdefgh").table)
    monkeypatch.setattr(automata, "TABLE_MAX", size)
    with pytest.raises(UnsupportedError):
        build("abcdefghi")


@pytest.mark.kernel
@settings(max_examples=150, deadline=None)
@given(patterns, ascii_texts, ascii_texts)
def test_steps_over_literals_alphabets_and_shapes(pattern: str, before: bytes, text: bytes) -> None:
    automaton = automaton_of(pattern)
    if automaton is None:
        return
    state = automaton.over(before, automaton.begin)
    assert automaton.over(text, state) == automaton.over(before + text, automaton.begin)
    shape = tuple(frozenset([byte]) for byte in text)
    assert automaton.images(shape, state) == {automaton.over(text, state)}
    texts_ = Texts.of([b"0", b"12", b"345", b"7890123456", b"\x00"])
    starts, lengths = texts_.offsets[:-1], np.diff(texts_.offsets)
    found = run_texts(automaton, texts_.data, starts, lengths, np.full(5, state), slots=True)
    images = automaton.images(SLOT_DIGITS, state)
    short = automaton.images(Run(DIGITS, 2), state)
    assert not images or short <= images
    assert not short or short == {automaton.over(b"%d" % k, state) for k in range(100)} | {
        automaton.over(b"%02d" % k, state) for k in range(100)
    }
    behind = automaton.behind(SLOT_DIGITS, text, state)
    assert behind == SEVERAL or {automaton.over(end + text, state) for end in (b"7", b"0123456789")} == {behind}
    if len(images) == 1:
        assert set(found.tolist()) == images
    else:
        assert found[4] == UNRESOLVED << automaton.shift
        assert not images or images >= set(found[:4].tolist())
    skeleton = automaton.images(text + b"\x00x\x00", state)
    some = [b"0x0", b"12x345", b"9x88888888", b"1234567x0"]
    assert not skeleton or skeleton >= {automaton.over(text + end, state) for end in some}
    fixed = automaton.images((DIGITS, frozenset(b"ab"), DIGITS), state)
    assert not fixed or fixed == {automaton.over(b"%da%d" % (k // 10, k % 10), state) for k in range(100)} | {
        automaton.over(b"%db%d" % (k // 10, k % 10), state) for k in range(100)
    }


def _plain_steps(table: list[int], classes: list[int], fixed: int, text: bytes, state: int) -> int:
    for byte in text:
        if state < fixed:
            break
        state = table[state + classes[byte]]
    return state


@pytest.mark.kernel
@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=9), max_size=11), st.integers(0, 2**32 - 1))
def test_kernel_does_what_its_twin_does(some: list[bytes], seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = (rng.integers(0, 9, 9 * 4) * 4).astype(np.uint32)
    classes = rng.integers(0, 4, 256).astype(np.uint8)
    before = rng.integers(0, 9, len(some)) * 4
    data, offsets = Texts.of(some)
    states = before.copy()
    # States below the limit stay only where the table says so, as it does for all automata.
    table[:8] = np.repeat([0, 4], 4)
    assert step_texts(table, classes, 8, data, offsets[:-1], np.diff(offsets), states) == len(some)
    wanted = [
        _plain_steps(table.tolist(), classes.tolist(), 8, text, int(state))
        for text, state in zip(some, before, strict=True)
    ]
    assert states.tolist() == wanted
