"""Durations between brackets and behind ``offset``.

Standard are a signed number or duration, and (an oversight of Prometheus that queries may rely on) a signed one in
parentheses behind ``offset``. Arithmetic, ``step()``, ``range()``, ``min_of()`` and ``max_of()`` are experimental:
read, checked and refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from query.promql.cursor import NESTING_MAX, TOO_NESTED, TokenCursor
from query.promql.lexer import DURATION, DURATION_WORDS, IDENTIFIER, NUMBER, ParseError
from query.promql.literals import format_number, format_signed_duration, seconds_to_ms

_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "%": 2, "^": 3}
_POWER = 3
_SECONDS_MAX = (1 << 63) / 1e9  # what int64 nanoseconds hold
_COMPUTED_MS = 1  # stands for a duration that only evaluation could tell, in an expression that is refused anyway


@dataclass(slots=True)
class _Literal:
    seconds: float
    duration: bool  # written with units
    start: int

    def text(self) -> str:
        return format_signed_duration(seconds_to_ms(self.seconds)) if self.duration else format_number(self.seconds)


class DurationParser(TokenCursor):
    """Reads durations; None stands for one that has to be computed."""

    __slots__ = ()

    def positive_duration(self) -> int:
        """Milliseconds of a range or step."""
        literal = self._duration(0)
        if literal is None:
            return _COMPUTED_MS
        if literal.seconds <= 0:
            raise ParseError("duration must be greater than 0", literal.start, self.text)
        return seconds_to_ms(literal.seconds)

    def offset_duration(self) -> tuple[int, str]:
        """Milliseconds of an offset, and its canonical spelling where that is not simply the duration.

        Arithmetic is not part of an offset unless it begins with a parenthesis: ``foo offset 1m + 1m`` adds 60.
        """
        at = self.at
        start = self.starts[at]
        sign = self.kinds[at] if self.kinds[at] in ("+", "-") else ""
        self.at += bool(sign)
        spelling = ""
        if self.kinds[self.at] in (NUMBER, DURATION):
            literal: _Literal | None = self._literal(sign, start)
        elif sign and self.kinds[self.at] == "(":
            self.at += 1
            literal = self._duration(0)
            self.expect(")")
            if literal is not None:
                spelling = f"{sign.replace('+', '')}({literal.text()})"
                literal.seconds *= -1 if sign == "-" else 1
        elif self._at_word():
            self._word()
            literal = None
        else:
            self.at = at
            literal = self._duration(0)
        return (_COMPUTED_MS if literal is None else seconds_to_ms(literal.seconds)), spelling

    def _literal(self, sign: str, start: int) -> _Literal:
        seconds = self.seconds_at(self.at)
        literal = _Literal(-seconds if sign == "-" else seconds, self.kinds[self.at] == DURATION, start)
        if not abs(seconds) <= _SECONDS_MAX:
            raise ParseError("duration out of range", start, self.text)
        self.at += 1
        return literal

    def _at_word(self) -> bool:
        kind = self.kinds[self.at]
        return kind in DURATION_WORDS or (kind == IDENTIFIER and self.texts[self.at].lower() in DURATION_WORDS)

    def _word(self) -> None:
        """``step()``, ``range()``, ``min_of(a, b)`` or ``max_of(a, b)``."""
        self._refuse(self.starts[self.at])
        word = self.texts[self.at].lower()
        self.at += 1
        self.expect("(")
        if word in ("min_of", "max_of"):
            self._duration(0)
            self.expect(",")
            self._duration(0)
        self.expect(")")

    def _refuse(self, start: int) -> None:
        self.refuse("experimental duration expression is not enabled", start)

    def _duration(self, precedence_min: int) -> _Literal | None:
        """Duration arithmetic whose operators bind at least as strongly as ``precedence_min``."""
        start = self.starts[self.at]
        self.depth += 1
        if self.depth > NESTING_MAX:
            raise ParseError(TOO_NESTED, start, self.text)
        lhs = self._operand(start)
        while (precedence := _PRECEDENCE.get(self.kinds[self.at], -1)) >= precedence_min:
            op, op_start = self.kinds[self.at], self.starts[self.at]
            self.at += 1
            rhs = self._duration(precedence + (op != "^"))
            self._refuse(start)
            if op in ("/", "%") and rhs is not None and rhs.seconds == 0:
                what = "division" if op == "/" else "modulo"
                raise ParseError(f"{what} by zero", op_start, self.text)
            lhs = None
        self.depth -= 1
        return lhs

    def _operand(self, start: int) -> _Literal | None:
        kind = self.kinds[self.at]
        if kind in (NUMBER, DURATION):
            return self._literal("", start)
        if kind in ("+", "-"):
            self.at += 1
            literal = self._duration(_POWER)
            if literal is not None:
                literal.seconds *= -1 if kind == "-" else 1
                literal.start = start
            return literal
        if kind == "(":
            self._refuse(start)
            self.at += 1
            self._duration(0)
            self.expect(")")
            return None
        if not self._at_word():
            self.fail()
        self._word()
        return None
