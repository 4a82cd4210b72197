"""The patterns of ``| pattern "<ip> - <_>"`` and ``|> "<_> error <_>"``, and the groups of ``| regexp``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_CAPTURE = re.compile(r"<([A-Za-z_][A-Za-z0-9_]*)>")
_GROUP = re.compile(r"(?<!\\)(?:\\\\)*\(\?P?<([A-Za-z_][A-Za-z0-9_]*)>")


@dataclass(frozen=True, slots=True)
class Pattern:
    """Literals and captures in turn.

    Attributes
    ----------
    literals : UTF-8 literals in order
    names : of the captures, ``_`` = unnamed
    leads : whether a literal comes first
    trails : whether a literal comes last
    """

    literals: tuple[bytes, ...]
    names: tuple[str, ...]
    leads: bool
    trails: bool


@lru_cache(maxsize=512)
def parse_pattern(text: str, *, need_names: bool) -> Pattern:
    """Literals and captures of a pattern; a parser needs a named capture, a line filter must have none.

    Raises
    ------
    ValueError        with Loki's words
    """
    literals: list[bytes] = []
    names: list[str] = []
    at = 0
    leads = trails = False
    for capture in _CAPTURE.finditer(text):
        if capture.start() > at or (at == 0 and capture.start()):
            literals.append(text[at : capture.start()].encode("utf-8", "surrogateescape"))
            leads |= not names
        elif names:
            raise ValueError(f"invalid expression: found consecutive capture '<{names[-1]}>{capture[0]}'")
        names.append(capture[1])
        at = capture.end()
    if at < len(text):
        literals.append(text[at:].encode("utf-8", "surrogateescape"))
        leads |= not names
        trails = True
    named = [name for name in names if name != "_"]
    if need_names:
        if not named:
            raise ValueError("invalid expression: at least one capture is required")
        for name in named:
            if named.count(name) > 1:
                raise ValueError(f"duplicate capture name ({name})")
    elif named:
        raise ValueError(f"invalid expression: named captures are not allowed in pattern filters: <{named[0]}>")
    return Pattern(tuple(literals), tuple(names), leads, trails)


def named_groups(pattern: str) -> tuple[str, ...]:
    """Names of the capture groups of a regex.

    Raises
    ------
    ValueError        with Loki's words
    """
    names = _GROUP.findall(pattern)
    if not names:
        raise ValueError("at least one named capture must be supplied")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"duplicate capture name {name!r}")
    return tuple(names)


_TOKEN = re.compile(r"\\Q.*?(?:\\E|$)|\\.|\[\^?\]?(?:\[:[^\]]*:\]|\\.|[^\]\\])*\]?|\(\?<(?![=!])|\(\?|\(", re.DOTALL)


@lru_cache(maxsize=512)
def only_named(pattern: str) -> str:
    """The regex with all groups but the named ones non-capturing, the names spelled ``(?P<name>``."""
    spelled = {"(": "(?:", "(?<": "(?P<"}
    return _TOKEN.sub(lambda token: spelled.get(token[0], token[0]), pattern)


_LITERAL_MIN = 3
"""Bytes of a literal that make it worth looking for first."""


@lru_cache(maxsize=512)
def required_literals(pattern: str) -> tuple[str, ...]:
    """Texts that every match of a regex holds, as far as they are certain.

    Only what is plainly there is found: a regex with alternatives, groups or flags has none.
    """
    if any(char in pattern for char in "|(){}"):
        return ()
    runs = [""]
    at = 0
    while at < len(pattern):
        char = pattern[at]
        width = 1
        literal = char
        if char == "\\":
            width = 2
            escaped = pattern[at + 1 : at + 2]
            literal = escaped if escaped and not escaped.isalnum() else ""
            if escaped in ("Q", "p", "P", "x") or escaped.isdigit():
                return ()
        elif char == "[":
            end = pattern.find("]", at + (3 if pattern[at + 1 : at + 2] == "^" else 2))
            if end < 0 or "[" in pattern[at + 1 : end]:
                return ()
            width = end + 1 - at
            if "\\" in pattern[at:end]:
                return ()
            literal = ""
        elif char in ".^$*+?":
            literal = ""
        behind = pattern[at + width : at + width + 1]
        if not literal or behind in ("*", "?"):
            runs.append("")
        else:
            runs[-1] += literal
            if behind == "+":
                runs.append("")
        at += width
    return tuple(run for run in dict.fromkeys(runs) if len(run.encode("utf-8", "surrogateescape")) >= _LITERAL_MIN)
