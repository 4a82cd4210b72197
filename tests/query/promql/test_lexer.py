"""Tokens: what each mode of the lexer finds and how it words what it does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from query.promql.lexer import (
    DURATION,
    END_OF_INPUT,
    ERROR,
    IDENTIFIER,
    METRIC_IDENTIFIER,
    NUMBER,
    STRING,
    Tokens,
)


def kinds(text: str) -> list[str]:
    return Tokens(text).kinds


def error_of(text: str) -> tuple[str, int]:
    tokens = Tokens(text)
    assert tokens.kinds[-1] == ERROR
    return tokens.texts[-1], tokens.starts[-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("foo", [IDENTIFIER]),
        ("foo:bar", [METRIC_IDENTIFIER]),
        ("SuM", ["sum"]),
        ("fill", [IDENTIFIER]),
        ("fill (", ["fill", "(", ERROR]),
        ("1 .5 5. 1e3 0x1F 0_1 1_2 NaN InF 5m 1h30m 1y2w3d", [NUMBER] * 9 + [DURATION] * 3),
        ("<= < </ >= > >/ == != = !=", ["<=", "<", "</", ">=", ">", ">/", "==", "!=", "=", "!="]),
        ("{sum='a', on=~\"b\", `c d`!~'e'}", ["{", IDENTIFIER, "=", STRING, ",", IDENTIFIER, "=~", STRING, ","]),
        ("foo[5m:1m]", [IDENTIFIER, "[", DURATION, ":", DURATION, "]"]),
        ("foo[ - STEP() * 5 : Max_of]", [IDENTIFIER, "[", "-", "step", "(", ")", "*", NUMBER, ":", "max_of", "]"]),
        ("a # b\n+ c # d", [IDENTIFIER, "+", IDENTIFIER]),
    ],
)
def test_kinds(text: str, expected: list[str]) -> None:
    assert kinds(text)[: len(expected)] == expected
    if ERROR not in expected:
        assert kinds(text)[-1] == END_OF_INPUT


@pytest.mark.parametrize(
    ("text", "message", "start"),
    [
        ("foo }", "unexpected character: '}'", 4),
        ("ü", "unexpected character: 'ü'", 0),
        ("a !~ b", "unexpected character after '!': '~'", 2),
        ("a ~", "unexpected character: '~'", 2),
        ("a ]", "unexpected right bracket ']'", 2),
        ("a)", "unexpected right parenthesis ')'", 2),
        ("(a", "unclosed left parenthesis", 2),
        ("a[5m", "unclosed left bracket", 4),
        ("a[5m[", "unexpected left bracket '['", 4),
        ("a[", "unexpected end of input in duration expression", 2),
        ("a[:5m]", "unexpected colon before duration in duration expression", 3),
        ("a[foo]", "unexpected character in duration expression: 'f'", 2),
        ("a[5m foo]", "unexpected character: 'f', expected ':'", 5),
        ("{a", "unexpected end of input inside braces", 2),
        ("{{", "unexpected left brace '{'", 1),
        ("{a!b}", "unexpected character after '!' inside braces: 'b'", 2),
        ("1_", 'bad number or duration syntax: "1_"', 0),
        ("1e", 'bad number or duration syntax: "1e"', 0),
        ("1.2.3", 'bad number or duration syntax: "1.2."', 0),
        ("0x1.8", 'bad number or duration syntax: "0x1."', 0),
        ("5mx", 'bad number or duration syntax: "5mx"', 0),
        ("'a", "unterminated quoted string", 0),
        ("'a\nb'", "unterminated quoted string", 0),
        ("`a", "unterminated raw string", 0),
        ("'\ufffd'", "invalid UTF-8 rune", 0),
        (f"'{chr(0xDCFF)}'", "invalid UTF-8 rune", 0),
        (r"'\"'", "unknown escape sequence U+0022 '\"'", 0),
        (r"'\400'", "escape sequence is an invalid Unicode code point", 0),
        (r"'\ud800'", "escape sequence is an invalid Unicode code point", 0),
        (r"'\U00110000'", "escape sequence is an invalid Unicode code point", 0),
        (r"'\u12", "escape sequence not terminated", 0),
        (r"'\xzz'", "illegal character U+007A 'z' in escape sequence", 0),
    ],
)
def test_errors(text: str, message: str, start: int) -> None:
    assert error_of(text) == (message, start)


@given(st.text(st.sampled_from("afosum5.e_x0 \t\n#\"'`\\{}[]()=!~<>:,+-@é\ufffd")))
def test_lexing_always_ends_and_tokens_are_pieces_of_the_text(text: str) -> None:
    tokens = Tokens(text)
    assert tokens.kinds[-1] in (END_OF_INPUT, ERROR)
    end = 0
    for token, start in zip(tokens.texts[:-1], tokens.starts[:-1], strict=True):
        assert text[start : start + len(token)] == token
        assert start >= end
        end = start + len(token)
    assert 0 <= tokens.starts[-1] <= len(text)
