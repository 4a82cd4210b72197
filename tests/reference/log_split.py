"""Taking a line apart in plain Python: one regular expression a rule, Python's own JSON parser for what is JSON."""

from __future__ import annotations

import json
import re
from typing import Any

BORDER = r"\x00-\x20\"',;=|()\[\]{}<>"
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
WORD = re.compile(f"[^{BORDER}]+")


def text_values(line: str) -> list[str]:
    """Values of free text: what is quoted behind ``=``, any word behind it, and words with a digit."""
    values = []
    at, after_key = 0, False
    while at < len(line):
        if after_key and (match := QUOTED.match(line, at)):
            values.append(match[1])
            at, after_key = match.end(), False
        elif word := WORD.match(line, at):
            is_key = line[word.end() : word.end() + 1] == "="
            if after_key or (re.search("[0-9]", word[0]) and not is_key):
                values.append(word[0])
            at, after_key = word.end(), False
        else:
            after_key = line[at] == "=" and at > 0 and WORD.fullmatch(line[at - 1]) is not None
            at += 1
    return values


def json_fields(line: str) -> dict[str, Any] | None:
    """Scalar members of an object, nested names joined by ``_``; None: no object, arrays in it, or a name twice."""
    out: dict[str, Any] = {}

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("repeated")
        return dict(pairs)

    def walk(value: Any, path: list[str]) -> None:
        if isinstance(value, list):
            raise TypeError("array")
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, [*path, key])
            return
        name = "_".join(path)
        if name in out:
            raise ValueError("repeated")
        out[name] = value

    try:
        parsed = json.loads(line, object_pairs_hook=unique, parse_constant=lambda c: 1 / 0)
        if not isinstance(parsed, dict):
            return None
        walk(parsed, [])
    except (ValueError, TypeError, ZeroDivisionError):
        return None
    return out
