"""Where the parser stands in the tokens of a query, and how it says what it did not expect there."""

from __future__ import annotations

from typing import NoReturn

from query.promql.lexer import (
    AGGREGATORS,
    DURATION,
    END_OF_INPUT,
    ERROR,
    FILL_MODIFIERS,
    IDENTIFIER,
    METRIC_IDENTIFIER,
    MODIFIERS,
    NUMBER,
    SET_OPERATORS,
    STRING,
    ParseError,
    Tokens,
)
from query.promql.literals import parse_duration, parse_number, quote

NESTING_MAX = 128
"""Most parentheses, calls and signs inside each other: the parser takes up to four Python frames for each."""

TOO_NESTED = f"expression is nested more than {NESTING_MAX} levels deep"

_DESCRIBED = frozenset({IDENTIFIER, METRIC_IDENTIFIER, STRING, NUMBER, DURATION})
_KEYWORDS = MODIFIERS | FILL_MODIFIERS
_OPERATORS = SET_OPERATORS | {"atan2", "@", "=~", "!~", *"+-*/%^<>", "==", "!=", "<=", ">=", "</", ">/"}


class UnexpectedTokenError(ParseError):
    """A token that fits nowhere; a construct around it may know better what should have stood there."""


class TokenCursor:
    """The tokens of one query and the position ``at`` of the next one to read."""

    __slots__ = ("at", "depth", "kinds", "refusal", "starts", "text", "texts")

    def __init__(self, text: str) -> None:
        tokens = Tokens(text)
        self.text = text
        self.kinds = tokens.kinds
        self.texts = tokens.texts
        self.starts = tokens.starts
        self.at = 0
        self.depth = 0
        self.refusal: ParseError | None = None  # the first experimental construct read

    def fail(self, context: str = "", expected: str = "") -> NoReturn:
        """Refuse the next token.

        Raises
        ------
        UnexpectedTokenError        without a context, for the construct around it to say more
        ParseError
        """
        start = self.starts[self.at]
        if self.kinds[self.at] == ERROR:
            raise ParseError(self.texts[self.at], start, self.text)
        what = f"unexpected {self._describe()}"
        if not context:
            raise UnexpectedTokenError(what, start, self.text)
        wanted = f", expected {expected}" if expected else ""
        raise ParseError(f"{what} in {context}{wanted}", start, self.text)

    def _describe(self) -> str:
        """The next token in Prometheus' words."""
        kind, text = self.kinds[self.at], self.texts[self.at]
        if kind == END_OF_INPUT:
            return kind
        if kind in _KEYWORDS:
            return f"<{text}>"
        if kind in _OPERATORS:
            return f"<op:{text}>"
        if kind in AGGREGATORS:
            return f"<aggr:{text}>"
        if kind not in (IDENTIFIER, METRIC_IDENTIFIER) and len(text) > 10:
            shown = f"{quote(text[:10])}..."
        else:
            shown = quote(text)
        return f"{kind} {shown}" if kind in _DESCRIBED else shown

    def expect(self, kind: str) -> int:
        """Step over a token of one character; the position behind it."""
        if self.kinds[self.at] != kind:
            self.fail()
        self.at += 1
        return self.starts[self.at - 1] + 1

    def end(self) -> int:
        """Position behind the token read last."""
        return self.starts[self.at - 1] + len(self.texts[self.at - 1])

    def refuse(self, what: str, start: int) -> None:
        """Remember that the expression needs an experimental feature, which is said when nothing else is wrong."""
        if self.refusal is None:
            self.refusal = ParseError(what, start, self.text)

    def seconds_at(self, at: int) -> float:
        """Value of the number, or seconds of the duration, at token ``at``."""
        text = self.texts[at]
        try:
            return parse_duration(text) / 1000 if self.kinds[at] == DURATION else parse_number(text)
        except ValueError as error:
            what = str(error) if self.kinds[at] == DURATION else f"error parsing number: {error}"
            raise ParseError(what, self.starts[at], self.text) from None
