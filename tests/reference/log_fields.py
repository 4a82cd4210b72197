"""Plain twins of the kernels for log lines."""

from __future__ import annotations

import json
import re
from typing import Any

Field = tuple[tuple[str, ...], str]
"""(path of the member, its value as it is spelled)."""


class _Number(str):
    __slots__ = ()


def _refuse(text: str) -> None:
    raise ValueError(text)


def _walk(path: tuple[str, ...], value: Any) -> list[Field]:
    found: list[Field] = []
    for name, member in value:
        if isinstance(member, str):
            found.append(((*path, name), str(member)))
        elif isinstance(member, bool):
            found.append(((*path, name), "true" if member else "false"))
        elif isinstance(member, _Object):
            found += _walk((*path, name), member.pairs)
    return found


class _Object:
    """An object as opposed to an array, which the parser leaves out."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def json_members(line: bytes) -> list[Field] | None:
    """Scalar members of an object in order, strings unescaped; None where the line is no object."""
    try:
        whole = json.loads(
            line.decode(), parse_float=_Number, parse_int=_Number, parse_constant=_refuse, object_pairs_hook=_Object
        )
    except ValueError:
        return None
    return _walk((), whole.pairs) if isinstance(whole, _Object) else None


def logfmt_pairs(line: str) -> list[tuple[str, str]]:
    """Pairs of a well-formed logfmt line."""
    pairs = re.finditer(r'([^\s="]+)(?:=(?:"((?:[^"\\]|\\.)*)"|([^\s"]*)))?', line)
    return [(pair[1], pair[2] if pair[2] is not None else pair[3] or "") for pair in pairs]


def captures(line: bytes, literals: list[bytes], leads: bool, count: int) -> tuple[list[bytes | None], bool]:
    """What the captures of a pattern hold, and whether the whole line has its shape."""
    found: list[bytes | None] = [None] * count
    rest = line
    todo = list(literals)
    if leads:
        if not rest.startswith(todo[0]):
            return found, False
        rest = rest[len(todo.pop(0)) :]
    whole = True
    for c in range(count):
        if not todo:
            found[c] = rest
            return found, whole and bool(rest)
        before, literal, after = rest.partition(todo.pop(0))
        found[c] = before
        if not literal:
            return found, False
        whole = whole and bool(before)
        rest = after
    return found, whole and not rest and not todo


def windows(
    ts: list[int], series: list[int], weights: list[float], first: int, step: int, width: int, steps: int, rows: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Count and weight of the lines of each series in each window ``(end - width, end]``."""
    counts = [[0.0] * steps for _ in range(rows)]
    sums = [[0.0] * steps for _ in range(rows)]
    for t, row, weight in zip(ts, series, weights, strict=True):
        for s in range(steps):
            end = first + s * step
            if row >= 0 and end - width < t <= end:
                counts[row][s] += 1
                sums[row][s] += weight
    return counts, sums
