"""Regular expressions in RE2's syntax as trees of sets of ASCII bytes.

Only what a pattern does on ASCII text is kept: a set of characters is the ASCII part of it, and whoever runs the tree
must not ask it about other text. What is not understood here is refused, never guessed; RE2 itself has to have
accepted the pattern. Greedy and lazy forms, and names of groups, make no difference to whether there is a match.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

DEPTH_MAX = 100
"""Groups inside of each other: far beyond what is written by hand, and far below Python's own limit."""

ASCII: Final = 128
EVERY: Final = (1 << ASCII) - 1


class UnsupportedError(Exception):
    """A construct that is left to RE2."""


class Assertion(IntEnum):
    """A condition on the place between two bytes."""

    TEXT_BEGIN = 0
    TEXT_END = 1
    LINE_BEGIN = 2
    LINE_END = 3
    WORD_BORDER = 4
    NO_WORD_BORDER = 5


@dataclass(frozen=True, slots=True)
class Chars:
    """One character; bit b of ``mask`` is set where it may be the ASCII byte b."""

    mask: int


@dataclass(frozen=True, slots=True)
class Sequence:
    """All of them, one behind the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Any of them."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """At least ``low`` times, at most ``high`` (None = any number)."""

    part: Node
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class At:
    """A place where an assertion holds."""

    what: Assertion


Node = Chars | Sequence | Choice | Repeat | At


def _mask(text: bytes) -> int:
    return sum(1 << byte for byte in set(text))


def _span(low: int, high: int) -> int:
    """Bytes from low to high, both included."""
    return (1 << (high + 1)) - (1 << low) if low <= high else 0


_DIGIT, _UPPER, _LOWER = _span(0x30, 0x39), _span(0x41, 0x5A), _span(0x61, 0x7A)
_ALPHA = _UPPER | _LOWER
WORD: Final = _ALPHA | _DIGIT | _mask(b"_")
_NEWLINE = _mask(b"\n")
_PERL = {"d": _DIGIT, "s": _mask(b"\t\n\f\r "), "w": WORD}
_POSIX = {
    "alnum": _ALPHA | _DIGIT,
    "alpha": _ALPHA,
    "ascii": EVERY,
    "blank": _mask(b"\t "),
    "cntrl": _span(0, 0x1F) | _mask(b"\x7f"),
    "digit": _DIGIT,
    "graph": _span(0x21, 0x7E),
    "lower": _LOWER,
    "print": _span(0x20, 0x7E),
    "punct": _span(0x21, 0x2F) | _span(0x3A, 0x40) | _span(0x5B, 0x60) | _span(0x7B, 0x7E),
    "space": _mask(b"\t\n\v\f\r "),
    "upper": _UPPER,
    "word": WORD,
    "xdigit": _DIGIT | _mask(b"abcdefABCDEF"),
}
_ESCAPES = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_GROUP = re.compile(r"\(\?P?<\w+>")
_FLAGS = re.compile(r"\(\?([imsU]*)(?:-([imsU]+))?([:)])")
_TIMES = re.compile(r"\{(\d+)(,?)(\d*)\}")
_POSIX_NAME = re.compile(r"\[:(\^?)(\w+):\]")
_HEX = re.compile(r"x(?:([0-9A-Fa-f]{2})|\{([0-9A-Fa-f]{1,6})\})")


def _folded(mask: int) -> int:
    """With the other case of every letter."""
    return mask | (mask & _UPPER) << 32 | (mask & _LOWER) >> 32


def parse(pattern: str) -> Node:
    """The tree of a pattern that RE2 accepts.

    Raises
    ------
    UnsupportedError
    """
    reader = _Reader(pattern)
    tree = reader.choice(0)
    if reader.at < len(pattern):
        raise UnsupportedError("a parenthesis that closes nothing")
    return tree


class _Reader:
    """Recursive descent; ``flags`` are those in force at the place."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.flags: frozenset[str] = frozenset()

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def choice(self, depth: int) -> Node:
        """Alternatives up to the end or the parenthesis that closes them."""
        if depth > DEPTH_MAX:
            raise UnsupportedError("groups too deep")
        found = []
        parts: list[Node] = []
        while (c := self._peek()) not in ("", ")"):
            if c == "|":
                self.at += 1
                found.append(Sequence(tuple(parts)))
                parts = []
            else:
                parts.append(self._repeated(self._atom(depth)))
        found.append(Sequence(tuple(parts)))
        return found[0] if len(found) == 1 else Choice(tuple(found))

    def _repeated(self, node: Node) -> Node:
        while True:
            c = self._peek()
            times = _TIMES.match(self.text, self.at)
            if c and c in "*+?":
                self.at += 1
                low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[c]
            elif times is not None and (times[2] or not times[3]):
                self.at = times.end()
                low = int(times[1])
                high = None if times[2] and not times[3] else int(times[3] or low)
            else:
                return node
            if self._peek() == "?":
                self.at += 1  # lazy: the same matches exist
            node = Repeat(node, low, high)

    def _atom(self, depth: int) -> Node:
        c = self._peek()
        if c == "(":
            return self._group(depth)
        if c == "[":
            return Chars(self._set())
        if c == "\\":
            return self._escape()
        self.at += 1
        if c == ".":
            return Chars(EVERY if "s" in self.flags else EVERY & ~_NEWLINE)
        if c == "^":
            return At(Assertion.LINE_BEGIN if "m" in self.flags else Assertion.TEXT_BEGIN)
        if c == "$":
            return At(Assertion.LINE_END if "m" in self.flags else Assertion.TEXT_END)
        return Chars(self._of_char(ord(c)))

    def _group(self, depth: int) -> Node:
        before = self.flags
        named = _GROUP.match(self.text, self.at)
        flags = _FLAGS.match(self.text, self.at)
        if named is not None:
            self.at = named.end()
        elif flags is not None:
            self.at = flags.end()
            self.flags = (before | set(flags[1])) - set(flags[2] or "")
            if flags[3] == ")":
                return Sequence(())
        elif self.text.startswith("(?", self.at):
            raise UnsupportedError("a group of an unknown kind")
        else:
            self.at += 1
        tree = self.choice(depth + 1)
        if self._peek() != ")":
            raise UnsupportedError("a group without end")
        self.at += 1
        self.flags = before
        return tree

    def _of_char(self, code: int) -> int:
        return self._of_range(code, code)

    def _of_range(self, low: int, high: int) -> int:
        if high >= ASCII and "i" in self.flags:
            raise UnsupportedError("other letters than ASCII's without their case")
        if 0xD800 <= high < 0xE000:
            raise UnsupportedError("a pattern that is not UTF-8")
        mask = _span(low, min(high, ASCII - 1))
        return _folded(mask) if "i" in self.flags else mask

    def _char_escape(self) -> int:
        """The character of an escape that means one, behind its backslash."""
        c = self._peek()
        code = _HEX.match(self.text, self.at)
        if code is not None:
            self.at = code.end()
            return int(code[1] or code[2], 16)
        self.at += 1
        if c in _ESCAPES:
            return _ESCAPES[c]
        if c and c.isascii() and not c.isalnum():
            return ord(c)
        raise UnsupportedError(f"the escape \\{c}")

    def _class_escape(self) -> int | None:
        """The mask of a class such as ``\\d`` or ``\\W``, behind its backslash."""
        c = self._peek()
        known = _PERL.get(c.lower())
        if known is None:
            return None
        self.at += 1
        return known if c.islower() else EVERY & ~known

    def _escape(self) -> Node:
        self.at += 1
        places = {
            "A": Assertion.TEXT_BEGIN,
            "z": Assertion.TEXT_END,
            "b": Assertion.WORD_BORDER,
            "B": Assertion.NO_WORD_BORDER,
        }
        if (c := self._peek()) in places:
            self.at += 1
            return At(places[c])
        mask = self._class_escape()
        return Chars(self._of_char(self._char_escape()) if mask is None else mask)

    def _set(self) -> int:
        self.at += 1
        negated = self._peek() == "^"
        self.at += negated
        first, mask = True, 0
        while first or self._peek() != "]":
            first = False
            mask |= self._set_item()
        self.at += 1
        return EVERY & ~mask if negated else mask

    def _set_item(self) -> int:
        if self.text.startswith("[:", self.at):
            name = _POSIX_NAME.match(self.text, self.at)
            if name is None or name[2] not in _POSIX:
                raise UnsupportedError("a class of an unknown name")
            self.at = name.end()
            # Negated behind the folding: what is no lower-case letter is, without its case, no letter.
            mask = _folded(_POSIX[name[2]]) if "i" in self.flags else _POSIX[name[2]]
            return EVERY & ~mask if name[1] else mask
        if self._peek() == "\\":
            self.at += 1
            mask_or_none = self._class_escape()
            if mask_or_none is not None:
                return mask_or_none
            low = self._char_escape()
        else:
            low = self._set_char()
        if self._peek() != "-" or self.text[self.at + 1 : self.at + 2] in ("", "]"):
            return self._of_char(low)
        self.at += 1
        if self._peek() == "\\":
            self.at += 1
            return self._of_range(low, self._char_escape())
        return self._of_range(low, self._set_char())

    def _set_char(self) -> int:
        c = self._peek()
        if not c:
            raise UnsupportedError("a class without end")
        self.at += 1
        return ord(c)
