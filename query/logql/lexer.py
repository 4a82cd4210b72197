"""LogQL text to tokens.

Lexing never raises: the first error becomes the last token, because a syntax error before it is reported first.
Words are plain ``IDENTIFIER`` tokens; which of them are keywords depends on where the parser stands.
"""

from __future__ import annotations

import re

from query.errors import BadDataError
from query.logql.units import parse_bytes, parse_duration_ns
from query.promql.ast import line_col
from query.promql.literals import parse_duration, unquote

IDENTIFIER = "IDENTIFIER"
STRING = "STRING"
NUMBER = "NUMBER"
DURATION = "DURATION"
BYTES = "BYTES"
RANGE = "RANGE"
FLAG = "FUNCTION_FLAG"
END = "$end"
ERROR = "error"

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_WORD = re.compile(r"[^\W\d]\w*(?::[\w:]*)?")
_QUANTITY = re.compile(r"-?(?:\d[\d.]*|\.\d[\d.]*)[nuµmshdwyBikKMGTP\d.]*")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F_]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`', re.DOTALL)
_BAD_ESCAPE = re.compile(
    r'\\(?![abfnrtv\\"]|[0-3][0-7]{2}|x[0-9a-fA-F]{2}|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}'
    r"|U(?!0000[dD][89a-fA-F])(?:000[0-9a-fA-F]|0010)[0-9a-fA-F]{4}).?",
    re.DOTALL,
)
"""A backslash that begins none of Go's escapes: no byte above 255, no surrogate, nothing beyond Unicode."""
_OPERATOR = re.compile(r"\|[=~>]|![=~>]|=[=~]|[<>]=|[-{}()|,=<>+*/%^.]")
_FLAGS = ("--strict", "--keep-empty")


class LogqlError(BadDataError):
    """An expression that is no LogQL; ``str()`` is Loki's text.

    Attributes
    ----------
    what : the error without its place
    pos : character position in the query, None = the expression as a whole is wrong
    """

    def __init__(self, what: str, pos: int | None = None, text: str = "") -> None:
        self.what = what
        self.pos = pos
        if pos is None:
            super().__init__(f"parse error : {what}")
        else:
            line, col = line_col(text, pos)
            super().__init__(f"parse error at line {line}, col {col}: {what}")


class Tokens:
    """The tokens of one query as parallel lists: ``kinds``, ``values``, ``starts``, ``ends`` (character positions).

    Operators are their own kind. Values are what the token says: text of strings, nanoseconds of durations and ranges,
    the spelling of everything else. The last token is ``END`` or ``ERROR``; an error's value is its message.
    """

    __slots__ = ("ends", "kinds", "starts", "text", "values")

    def __init__(self, text: str) -> None:
        self.text = text
        self.kinds: list[str] = []
        self.values: list[str | int] = []
        self.starts: list[int] = []
        self.ends: list[int] = []
        pos = 0
        while pos >= 0:
            blank = _BLANK.match(text, pos)
            pos = self._next(blank.end() if blank else pos)

    def _add(self, kind: str, value: str | int, start: int, end: int) -> int:
        self.kinds.append(kind)
        self.values.append(value)
        self.starts.append(start)
        self.ends.append(end)
        return end

    def _error(self, message: str, start: int) -> int:
        self._add(ERROR, message, start, start)
        return -1

    def _next(self, at: int) -> int:
        """Lex one token; the position behind it, -1 after the last one."""
        text = self.text
        if at == len(text):
            self._add(END, "", at, at)
            return -1
        char = text[at]
        if char in "\"`'":
            return self._string(at)
        if char == "[":
            return self._range(at)
        if char.isdecimal() or char in ".-":
            end = self._quantity(at)
            if end > at:
                return end
        if char == "-":
            for flag in _FLAGS:
                if text.startswith(flag, at):
                    return self._add(FLAG, flag, at, at + len(flag))
        word = _WORD.match(text, at)
        if word:
            return self._add(IDENTIFIER, word[0], at, word.end())
        operator = _OPERATOR.match(text, at)
        if operator:
            return self._add(operator[0], operator[0], at, operator.end())
        return self._add(char, char, at, at + 1)

    def _quantity(self, at: int) -> int:
        """A duration, byte count or number; ``at`` itself when there is none."""
        quantity = _QUANTITY.match(self.text, at)
        if quantity:
            spelled = quantity[0]
            if not spelled[-1].isdecimal() and spelled[-1] != ".":
                ns = parse_duration_ns(spelled)
                if ns is not None:
                    return self._add(DURATION, ns, at, quantity.end())
                size = None if spelled[0] == "-" else parse_bytes(spelled)
                if size is not None:
                    return self._add(BYTES, size, at, quantity.end())
        number = _NUMBER.match(self.text, at)
        return self._add(NUMBER, number[0], at, number.end()) if number else at

    def _string(self, at: int) -> int:
        found = _STRING.match(self.text, at)
        if found is None:
            return self._error("literal not terminated", at)
        if found[0][0] == '"' and _BAD_ESCAPE.search(found[0].replace("\\\\", "")):
            return self._error("invalid syntax", at)
        return self._add(STRING, unquote(found[0]), at, found.end())

    def _range(self, at: int) -> int:
        end = self.text.find("]", at)
        if end < 0:
            return self._error("missing closing ']' in duration", at)
        try:
            ms = parse_duration(self.text[at + 1 : end].strip())
        except ValueError as error:
            return self._error(str(error), at)
        return self._add(RANGE, ms * 1_000_000, at, end + 1)
