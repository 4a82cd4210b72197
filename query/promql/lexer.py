"""PromQL text to tokens.

One compiled expression finds the tokens of ordinary text, a second one those between braces, where keywords are label
names. What neither matches is looked at again character by character, to say what is wrong in Prometheus' words.
Lexing never raises: the first error becomes the last token, because a syntax error before it is reported first.
"""

from __future__ import annotations

import re

from query.errors import BadDataError
from query.promql.ast import line_col
from query.promql.literals import quote, quote_char

# Kinds of token. Operators and punctuation are their own kind (as texts), keywords too, in lower case.
IDENTIFIER = "identifier"
METRIC_IDENTIFIER = "metric identifier"  # holds a colon: names recording rules, never labels or functions
NUMBER = "number"
DURATION = "duration"
STRING = "string"
END_OF_INPUT = "end of input"
ERROR = "error"

_SIMPLE_AGGREGATORS = {"avg", "count", "group", "max", "min", "stddev", "stdvar", "sum"}
AGGREGATORS_WITH_PARAM = frozenset({"bottomk", "count_values", "limit_ratio", "limitk", "quantile", "topk"})
AGGREGATORS = AGGREGATORS_WITH_PARAM | _SIMPLE_AGGREGATORS
SET_OPERATORS = frozenset({"and", "or", "unless"})
FILL_MODIFIERS = frozenset({"fill", "fill_left", "fill_right"})
MODIFIERS = frozenset(
    {"offset", "smoothed", "anchored", "by", "without", "on", "ignoring", "group_left", "group_right", "bool"}
)  # printed <so> in errors
PREPROCESSORS = frozenset({"start", "end", "step", "range"})  # of @ and of durations; printed "so" in errors
DURATION_WORDS = frozenset({"step", "range", "min_of", "max_of"})  # the only words between brackets

_KEYWORDS = {
    word: word for word in AGGREGATORS | SET_OPERATORS | FILL_MODIFIERS | MODIFIERS | PREPROCESSORS | {"atan2"}
} | {"inf": NUMBER, "nan": NUMBER}

# U+FFFD and lone surrogates stand for bytes that were no UTF-8.
_NOT_TEXT = "\ufffd\ud800-\udfff"
_BLANK = r"(?>[ \t\r\n]*(?:\#[^\r\n]*[ \t\r\n]*)*)"  # atomic: no word is found inside a comment
_QUOTED = rf"""("[^"\\\n{_NOT_TEXT}]*"|'[^'\\\n{_NOT_TEXT}]*'|`[^`{_NOT_TEXT}]*`)"""
_WORD, _NUMBER, _DURATION, _OPERATOR, _STRING = 1, 2, 3, 4, 5
_TOKEN = re.compile(
    _BLANK
    + r"(?:([A-Za-z_:][A-Za-z0-9_:]*)"
    + r"|(\d+(?:\.\d+)?(?![\w.]))"
    + r"|(\d+[smhdwy]s?(?:\d+[smhdw]s?)*(?!\w))"
    + r"|([()\[\],+*/%^@{-]|[=!<>]=|[<>]/?|=(?!~))"
    + rf"|{_QUOTED})",
    re.ASCII,
)
_LABEL, _MATCH_OPERATOR, _VALUE = 1, 2, 3
_BRACE_TOKEN = re.compile(_BLANK + r"(?:([A-Za-z_][A-Za-z0-9_]*)|(=~|![=~]|[=,}])" + rf"|{_QUOTED})", re.ASCII)
_SKIP = re.compile(_BLANK)
_SPACES = re.compile(r"[ \t\r\n]*")
_BAD_DURATION = re.compile(r"[smhdwy]s?(?:\d+[smhdw]s?)*(?:\d+|\w?)", re.ASCII)
_LETTERS = re.compile(r"[A-Za-z_]+")


class ParseError(BadDataError):
    """An expression that is no PromQL; ``str()`` is ``line:col: parse error: what``.

    Attributes
    ----------
    what : the error without its place
    pos : character position in the query text, from 0
    line, col : the same place, both from 1 (Prometheus counts bytes in ``col``, we count characters)
    """

    def __init__(self, what: str, pos: int, text: str) -> None:
        self.what = what
        self.pos = pos
        self.line, self.col = line_col(text, pos)
        place = f"{self.line}:{self.col}" if text else "unknown position"
        super().__init__(f"{place}: parse error: {what}")


class Tokens:
    """The tokens of one query as parallel lists: ``kinds``, ``texts`` as written, ``starts`` as character positions.

    The last token is ``END_OF_INPUT`` or ``ERROR``; an error's text is its message, its start where it is reported.
    """

    __slots__ = ("kinds", "starts", "texts")

    def __init__(self, text: str) -> None:
        self.kinds: list[str] = []
        self.texts: list[str] = []
        self.starts: list[int] = []
        _Lexer(text, self).run()


class _Lexer:
    __slots__ = ("got_colon", "got_duration", "in_bracket", "paren_depth", "text", "tokens")

    def __init__(self, text: str, tokens: Tokens) -> None:
        self.text = text
        self.tokens = tokens
        self.paren_depth = 0
        self.in_bracket = False
        self.got_colon = False  # since the bracket
        self.got_duration = False  # in any bracket so far

    def run(self) -> None:
        """Lex everything."""
        text = self.text
        match = _TOKEN.match
        add_kind, add_text, add_start = (
            self.tokens.kinds.append,
            self.tokens.texts.append,
            self.tokens.starts.append,
        )
        pos = 0
        while True:
            found = match(text, pos)
            if found is None:
                end = self._irregular(pos)
                if end < 0:
                    return
                pos = end
                continue
            group = found.lastindex or 0
            word = found[group]
            start = found.start(group)
            pos = found.end()
            if group == _WORD:
                if self.in_bracket:
                    pos = self._in_bracket_word(word, start)
                    if pos < 0:
                        return
                    continue
                kind = _KEYWORDS.get(word.lower()) or (METRIC_IDENTIFIER if ":" in word else IDENTIFIER)
                if kind in FILL_MODIFIERS and not text.startswith("(", _end(_SPACES, text, pos)):
                    kind = IDENTIFIER
                add_kind(kind)
            elif group == _OPERATOR:
                if word == "(":
                    self.paren_depth += 1
                elif word == ")":
                    self.paren_depth -= 1
                    if self.paren_depth < 0:
                        self._error("unexpected right parenthesis ')'", pos)
                        return
                elif word == "[":
                    if self.in_bracket:
                        self._error("unexpected left bracket '['", start)
                        return
                    self.in_bracket = True
                    self.got_colon = False
                elif word == "]":
                    if not self.in_bracket:
                        self._error("unexpected right bracket ']'", start)
                        return
                    self.in_bracket = False
                add_kind(word)
                add_text(word)
                add_start(start)
                if word == "{":
                    pos = self._braces(pos)
                elif word == "[":
                    pos = self._duration_start(pos)
                if pos < 0:
                    return
                continue
            else:
                add_kind(STRING if group == _STRING else NUMBER if group == _NUMBER else DURATION)
            add_text(word)
            add_start(start)

    def _add(self, kind: str, word: str, start: int) -> int:
        self.tokens.kinds.append(kind)
        self.tokens.texts.append(word)
        self.tokens.starts.append(start)
        return start + len(word)

    def _error(self, message: str, start: int) -> int:
        self._add(ERROR, message, start)
        return -1

    def _braces(self, pos: int) -> int:
        """Lex up to and with the closing brace; the position behind it, or -1 after an error."""
        text = self.text
        match = _BRACE_TOKEN.match
        while True:
            found = match(text, pos)
            if found is None:
                pos = self._irregular_in_braces(pos)
                if pos < 0:
                    return -1
                continue
            group = found.lastindex or 0
            word = found[group]
            kind = IDENTIFIER if group == _LABEL else STRING if group == _VALUE else word
            pos = self._add(kind, word, found.start(group))
            if word == "}" and group == _MATCH_OPERATOR:
                return pos

    def _irregular_in_braces(self, pos: int) -> int:
        text = self.text
        start = _end(_SKIP, text, pos)
        if start == len(text):
            return self._error("unexpected end of input inside braces", start)
        char = text[start]
        if char in "\"'`":
            return self._irregular_string(start)
        if char == "!":
            return self._error(f"unexpected character after '!' inside braces: {self._char_at(start + 1)}", start)
        if char == "{":
            return self._error("unexpected left brace '{'", start)
        return self._error(f"unexpected character inside braces: {quote_char(char)}", start)

    def _duration_start(self, pos: int) -> int:
        """Lex what stands between a left bracket and the first number; the position behind, or -1 after an error."""
        text = self.text
        while True:
            start = _end(_SPACES, text, pos)
            if start == len(text):
                return self._error("unexpected end of input in duration expression", start)
            char = text[start]
            if char in "0123456789" or (char == "." and text[start + 1 : start + 2].isdecimal()):
                self.got_duration = True
                return start
            if char == "]":
                self.in_bracket = False
                return self._add(char, char, start)
            if char == ":":
                if not self.got_duration or self.got_colon:
                    what = "repeated colon" if self.got_duration else "colon before duration"
                    return self._error(f"unexpected {what} in duration expression", start + 1)
                self.got_colon = True
            elif char == "(":
                self.paren_depth += 1
            elif char == ")":
                self.paren_depth -= 1
                if self.paren_depth < 0:
                    return self._error("unexpected right parenthesis ')'", start + 1)
            elif char not in "+-*/%^,":
                word = _LETTERS.match(text, start)
                if word is None or word[0].lower() not in DURATION_WORDS:
                    return self._error(f"unexpected character in duration expression: {quote_char(char)}", start)
                pos = self._add(word[0].lower(), word[0], start)
                continue
            pos = self._add(char, char, start)

    def _in_bracket_word(self, word: str, start: int) -> int:
        """A word, or a colon and perhaps a word behind it, after the first number between brackets."""
        if word[0] == ":":
            if self.got_colon:
                return self._error("unexpected colon ':'", start)
            self.got_colon = True
            return self._add(":", ":", start)
        word = word.partition(":")[0]
        if word.lower() in DURATION_WORDS:
            return self._add(word.lower(), word, start)
        return self._error(f"unexpected character: {quote_char(word[0])}, expected ':'", start)

    def _irregular(self, pos: int) -> int:
        """The end of the input, a rare form of token or an error; the position behind it, or -1 at the end."""
        text = self.text
        start = _end(_SKIP, text, pos)
        if start == len(text):
            if self.paren_depth:
                return self._error("unclosed left parenthesis", start)
            if self.in_bracket:
                return self._error("unclosed left bracket", start)
            self._add(END_OF_INPUT, "", start)
            return -1
        char = text[start]
        if char in "0123456789" or (char == "." and text[start + 1 : start + 2] in "0123456789"):
            if start + 1 < len(text) or char != ".":
                return self._irregular_number(start)
        elif char in "\"'`":
            return self._irregular_string(start)
        elif char in "=!":
            return self._error(f"unexpected character after '{char}': {self._char_at(start + 1)}", start)
        return self._error(f"unexpected character: {quote_char(char)}", start)

    def _char_at(self, pos: int) -> str:
        """The character as an error shows it; U+FFFD (Go's print of EOF, rune -1) where the text has ended."""
        return quote_char(self.text[pos]) if pos < len(self.text) else "'�'"

    def _irregular_number(self, start: int) -> int:
        """A number with underscores, exponent or hexadecimal digits, or a broken one."""
        end, complete = _scan_number(self.text, start)
        if complete:
            return self._add(NUMBER, self.text[start:end], start)
        end = _end(_BAD_DURATION, self.text, end)
        return self._error(f"bad number or duration syntax: {quote(self.text[start:end])}", start)

    def _irregular_string(self, start: int) -> int:
        """A string with escapes, or a broken one."""
        end, problem = _scan_string(self.text, start)
        if problem:
            return self._error(problem, start)
        return self._add(STRING, self.text[start:end], start)


def _end(pattern: re.Pattern[str], text: str, pos: int) -> int:
    """End of what ``pattern`` matches at ``pos``; ``pos`` itself where it does not match."""
    found = pattern.match(text, pos)
    return pos if found is None else found.end()


def _scan_number(text: str, start: int) -> tuple[int, bool]:
    """End of the longest run that Prometheus' number scanner accepts at ``start``, and whether it is a number.

    The scanner is looser than the language (``1_2e3_4``); what is no number after all is found when it is read.
    """
    size = len(text)
    pos = start
    digits = "0123456789"

    def at(chars: str) -> bool:
        return pos < size and text[pos] in chars

    if at("0"):
        pos += 1
        if at("xX"):
            pos += 1
            if at("_"):
                pos += 1
            digits = "0123456789abcdefABCDEF"
    if at("."):
        pos += 1
    if at(digits):
        pos += 1
    got_dot = got_exponent = False
    while at(digits + "._eE"):
        if at("."):
            pos += 1
            if got_dot:
                return pos, False
            got_dot = True
            if at("_."):
                return pos + 1, False
            if len(digits) > 10:
                return pos, False
        elif at("eE"):
            pos += 1
            if got_exponent:
                return pos, False
            got_exponent = True
            if at("+-"):
                pos += 1
            if at("._eE"):
                return pos + 1, False
            if pos == size:
                return pos, False
        elif at("_"):
            pos += 1
            if at("._eE"):
                return pos + 1, False
            if pos == size:
                return pos, False
        else:
            while at(digits):
                pos += 1
    return pos, not (pos < size and text[pos].isascii() and (text[pos].isalnum() or text[pos] == "_"))


def _scan_string(text: str, start: int) -> tuple[int, str]:
    """End of the string that begins at ``start`` and what is wrong with it (empty: nothing)."""
    mark = text[start]
    size = len(text)
    pos = start + 1
    while pos < size:
        char = text[pos]
        pos += 1
        if char == mark:
            return pos, ""
        if char == "\ufffd" or "\ud800" <= char <= "\udfff":
            return pos, "invalid UTF-8 rune"
        if mark == "`":
            continue
        if char == "\n":
            return pos, "unterminated quoted string"
        if char == "\\":
            pos, problem = _scan_escape(text, pos, mark)
            if problem:
                return pos, problem
    return pos, "unterminated raw string" if mark == "`" else "unterminated quoted string"


def _scan_escape(text: str, pos: int, mark: str) -> tuple[int, str]:
    """End of the escape whose backslash stands before ``pos`` and what is wrong with it."""
    size = len(text)
    if pos == size:
        return pos, "escape sequence not terminated"
    char = text[pos]
    if char in "abfnrtv\\" or char == mark:
        return pos + 1, ""
    if char in "01234567":
        count, base, largest = 3, 8, 255
    elif char in "xuU":
        count, base, largest = {"x": 2, "u": 4, "U": 8}[char], 16, 255 if char == "x" else 0x10FFFF
        pos += 1
    else:
        return pos, f"unknown escape sequence {_code_point(char)}"
    digits = "01234567" if base == 8 else "0123456789abcdefABCDEF"
    code = 0
    for _ in range(count):
        if pos == size:
            return pos, "escape sequence not terminated"
        if text[pos] not in digits:
            return pos, f"illegal character {_code_point(text[pos])} in escape sequence"
        code = code * base + int(text[pos], 16)
        pos += 1
    if code > largest or 0xD800 <= code < 0xE000:
        return pos, "escape sequence is an invalid Unicode code point"
    return pos, ""


def _code_point(char: str) -> str:
    shown = f" '{char}'" if char.isprintable() else ""
    return f"U+{ord(char):04X}{shown}"
