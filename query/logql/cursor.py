"""Where the parser stands in the tokens of a query, and how it says what it did not expect there."""

from __future__ import annotations

from typing import NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from query.logql.lexer import DURATION, END, ERROR, IDENTIFIER, NUMBER, STRING, LogqlError, Tokens
from query.promql.literals import parse_number, quote
from tsdb.matchers import Matcher, MatchOp

NESTING_MAX = 128
"""Most parentheses and calls inside each other: the parser takes a few Python frames for each."""

KEYWORDS = frozenset(
    [
        "and",
        "bool",
        "by",
        "decolorize",
        "drop",
        "group_left",
        "group_right",
        "ignoring",
        "ip",
        "json",
        "keep",
        "label_format",
        "line_format",
        "logfmt",
        "offset",
        "on",
        "or",
        "pattern",
        "regexp",
        "unless",
        "unpack",
        "unwrap",
        "without",
    ]
)
MATCH_OPS = {"=": MatchOp.EQUAL, "!=": MatchOp.NOT_EQUAL, "=~": MatchOp.REGEX, "!~": MatchOp.NOT_REGEX}


class TokenCursor:
    """The tokens of one query and the position ``at`` of the next one to read."""

    __slots__ = ("at", "depth", "ends", "kinds", "starts", "text", "values")

    def __init__(self, text: str) -> None:
        tokens = Tokens(text)
        self.text = text
        self.kinds = tokens.kinds
        self.values = tokens.values
        self.starts = tokens.starts
        self.ends = tokens.ends
        self.at = 0
        self.depth = 0

    @property
    def kind(self) -> str:
        """Kind of the next token."""
        return self.kinds[self.at]

    @property
    def word(self) -> str:
        """The next token in lower case when it is a word, else empty."""
        return str(self.values[self.at]).lower() if self.kinds[self.at] == IDENTIFIER else ""

    def behind(self) -> str:
        """Kind of the token after the next one."""
        return self.kinds[min(self.at + 1, len(self.kinds) - 1)]

    def unexpected(self, *expected: str) -> NoReturn:
        """Refuse the next token; more than four alternatives are not listed, as in Loki.

        Raises
        ------
        LogqlError
        """
        kind = self.kind
        start = self.starts[self.at]
        if kind == ERROR:
            raise LogqlError(str(self.values[self.at]), start, self.text)
        found = self.word if self.word in KEYWORDS else kind
        wanted = f", expecting {' or '.join(expected)}" if 0 < len(expected) <= 4 else ""
        raise LogqlError(f"syntax error: unexpected {found}{wanted}", start, self.text)

    def fail(self, what: str, start: int) -> NoReturn:
        """Refuse something at a position.

        Raises
        ------
        LogqlError
        """
        raise LogqlError(what, start, self.text)

    def expect(self, kind: str) -> int:
        """Step over a token; the position behind it."""
        if self.kind != kind:
            self.unexpected(kind)
        self.at += 1
        return self.ends[self.at - 1]

    def string(self) -> str:
        """Step over a string."""
        self.expect(STRING)
        return str(self.values[self.at - 1])

    def name(self) -> str:
        """Step over a label name."""
        self.expect(IDENTIFIER)
        return str(self.values[self.at - 1])

    def take_word(self, word: str) -> bool:
        """Step over a keyword if it is there."""
        if self.word == word:
            self.at += 1
            return True
        return False

    def take(self, kind: str) -> bool:
        """Step over a token if it is there."""
        if self.kind == kind:
            self.at += 1
            return True
        return False

    def end(self) -> int:
        """Position behind the token read last."""
        return self.ends[self.at - 1]

    def number(self) -> float:
        """Step over a number with an optional sign."""
        sign = -1.0 if self.kind == "-" else 1.0
        if self.kind in ("+", "-"):
            self.at += 1
        if self.kind != NUMBER:
            self.unexpected(NUMBER)
        self.at += 1
        try:
            return sign * parse_number(str(self.values[self.at - 1]))
        except ValueError:
            return sign * float(str(self.values[self.at - 1]))

    def duration_ns(self) -> int:
        """Step over a duration."""
        self.expect(DURATION)
        value = self.values[self.at - 1]
        assert isinstance(value, int)
        return value

    def matcher(self) -> Matcher:
        """``name op "value"``, checked."""
        start = self.starts[self.at]
        name = self.name()
        op = MATCH_OPS.get(self.kind)
        if op is None:
            self.unexpected("=", "=~", "!~", "!=")
        self.at += 1
        value = self.string()
        if op in (MatchOp.REGEX, MatchOp.NOT_REGEX):
            self.check_regex(value, start)
        return Matcher(name, op, value)

    def check_regex(self, pattern: str, start: int) -> None:
        """Refuse what is no RE2 expression.

        Raises
        ------
        LogqlError
        """
        try:
            pc.match_substring_regex(pa.array([""], pa.string()), pattern)
        except (pa.ArrowInvalid, UnicodeEncodeError) as error:
            problem = str(error).removeprefix("Invalid regular expression: ")
            self.fail(f"error parsing regexp: {problem}: {quote(pattern)}", start)

    def nested(self) -> None:
        """Count one level deeper.

        Raises
        ------
        LogqlError
        """
        self.depth += 1
        if self.depth > NESTING_MAX:
            self.fail(f"expression is nested more than {NESTING_MAX} levels deep", self.starts[self.at])

    def at_end(self) -> bool:
        """Whether everything is read."""
        return self.kind == END
