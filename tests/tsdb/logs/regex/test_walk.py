"""Searching columns finds the lines that RE2 finds in the lines."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tsdb.logs.regex.test_automaton import patterns, re2
from tests.tsdb.logs.test_group import COLUMNS, group_of, json_lines, text_lines
from tsdb.logs.group import StoredRows
from tsdb.logs.regex.automaton import automaton_of
from tsdb.logs.regex.walk import UNDECIDED


def check(rows: StoredRows, texts: list[bytes], pattern: str) -> None:
    wanted, automaton = re2(pattern, texts), automaton_of(pattern)
    if wanted is None or automaton is None:
        return
    some = np.flatnonzero(np.random.default_rng(len(texts)).random(rows.n) < 0.4)
    for chosen in (rows.every_row, some, some[:1]):
        if not len(chosen):
            continue
        for row, verdict in zip(chosen.tolist(), rows.search(automaton, chosen).tolist(), strict=True):
            if verdict == UNDECIDED:
                assert not texts[row].isascii(), (pattern, texts[row])
            else:
                assert bool(verdict) == wanted[row], (pattern, texts[row])


@st.composite
def near(draw: st.DrawFn, texts: list[bytes]) -> str:
    """A pattern that some part of a line, or something close to one, is a match of."""
    source = draw(st.sampled_from(texts)).decode("utf-8", "ignore")
    first = draw(st.integers(0, max(0, len(source) - 1)))
    out = []
    for c in source[first : first + draw(st.integers(1, 14))]:
        kinds = [re.escape(c) if c.isascii() else c, re.escape(c) if c.isascii() else c, "."]
        if c.isascii() and c.isdigit():
            kinds += [r"\d", r"\d+", "[0-4]", r"\d{1,2}"]
        elif c.isascii() and c.isalpha():
            kinds += [r"\w", "[a-f]+", f"(?i:{c})"]
        elif c.isascii() and c.isprintable():
            kinds += [r"\W", rf"\{c}?", r"\b"] if not c.isspace() else [r"\s", r"\s*"]
        out.append(draw(st.sampled_from(kinds)))
    text = "".join(out)
    return draw(st.sampled_from([text, text, f"^.{{0,40}}{text}", f"{text}[^,]*$", f"{text}|zz", rf"{text}.*\d\d"]))


@pytest.mark.kernel
@pytest.mark.parametrize("kind", list(COLUMNS))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_columns_of_each_type(kind: str, data: st.DataObject) -> None:
    n = data.draw(st.integers(16, 60))
    seeds = data.draw(st.lists(COLUMNS[kind], min_size=1, max_size=n))
    texts = [
        json.dumps({"n": 1000 + i, "v": seeds[i % len(seeds)], "w": ["GET", "PUT"][i % 3 % 2]}).encode()
        for i in range(n)
    ]
    rows = group_of(texts)
    for _ in range(6):
        check(rows, texts, data.draw(near(texts) | patterns))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(json_lines | text_lines | st.binary(max_size=20), min_size=1, max_size=5), st.data())
def test_lines_of_several_patterns_and_raw_ones(samples: list[str | bytes], data: st.DataObject) -> None:
    texts = [s if isinstance(s, bytes) else s.encode("utf-8", "surrogatepass") for s in samples] * 17
    rows = group_of(texts)
    for _ in range(4):
        check(rows, texts, data.draw(near(texts) | patterns))


USUAL = [
    r"[#]{3}|[@]{3}", r'"v":5\d\d\b', "(?i)error|warn", r"\d{3}\.\d{3}", r"(?:\d{1,3}\.){3}7\b", r"[0-9a-f]{32}",
    r"[0-9a-f]{33}", "(a|b)[0-9]*c", r"/p/\d+7\"", r"GET.*-|PUT", r"^\{\"v\":\d*3,", r"[A-Z]\w+T1\d:", r"\d{5,}",
    "é|never", r"[^ -~]", r"T22:0[0-4]:\d\d\.\d{3}Z", r"[a-f]-[0-9]", r"db8::[0-9a-f]:", r"\[x?\]", r'0{8}-0',
    r'"-"|#', r"\d, 2[.]\d\"", r"^.{60,90}\"-\"",
]  # fmt: skip


def typed_lines() -> list[bytes]:
    """Lines with columns of all types, exceptions in each, and letters beyond ASCII."""
    out = []
    for i in range(900):
        odd = i % 29 == 0
        values = {
            "v": 504 if i % 7 else i * 7919, "s": "GET" if i % 3 else "PUT", "h": f"{i * 7919**8:032x}",
            "ip": "-" if odd else f"10.0.{i % 251}.{i % 199}", "p": f"/p/{i}" if i % 11 else "[x]",
            "d": "1.0, 2.0" if odd else f"{i * 37 / 1000:.3f}", "t": f"2026-11-25T22:{i % 60:02d}:07.{i % 1000:03d}Z",
            "u": f"{i * 7919**2:08x}-0000-0000-0000-{i:012x}"[-36:], "a": f"2001:db8::{i:x}:{i * 7 % 65521:x}",
            "m": f"é{i * i} x" if i % 50 == 3 else f"user {i * i} {'did' * (i % 5)}", "e": "Error" if i == 77 else "",
        }  # fmt: skip
        out.append(json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode())
    return out


@pytest.mark.parametrize("pattern", USUAL)
def test_usual_patterns_over_typed_columns(pattern: str) -> None:
    texts = typed_lines()
    assert automaton_of(pattern) is not None
    check(group_of(texts), texts, pattern)


def test_values_that_cannot_matter_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [b'{"id":"%032x","n":%d,"w":"%s"}' % (i * 7919**8, i * i, [b"GET", b"PUT"][i % 2]) for i in range(400)]
    rows = group_of(texts)
    automaton = automaton_of("[#]{3}|TUP|PUT")
    assert automaton is not None
    read: list[str] = []
    original = type(rows._patterns[0].column(0)).spans

    def spans(column: object, chosen: np.ndarray) -> object:
        read.append(column.type)  # type: ignore[attr-defined]
        return original(column, chosen)  # type: ignore[arg-type]

    monkeypatch.setattr(type(rows._patterns[0].column(0)), "spans", spans)
    assert (rows.search(automaton, rows.every_row) == np.arange(400) % 2).all()
    assert read == []
