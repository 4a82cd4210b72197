"""The paths of ``json name="a.b[0][\\"c d\\"]"``."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

_STEP = re.compile(r'\.?([A-Za-z_][A-Za-z0-9_\-]*)|\[(\d+)\]|\["((?:[^"\\]|\\.)*)"\]')


@lru_cache(maxsize=512)
def parse_path(text: str) -> tuple[str | int, ...]:
    """Steps of a path: member names and places in arrays.

    Raises
    ------
    ValueError
    """
    steps: list[str | int] = []
    at = 0
    while at < len(text):
        step = _STEP.match(text, at)
        if step is None or (step[1] and (at == 0) == step[0].startswith(".")):
            raise ValueError(f"syntax error: unexpected {text[at]!r}")
        name, place, quoted = step.groups()
        steps.append(int(place) if place is not None else name or re.sub(r"\\(.)", r"\1", quoted or ""))
        at = step.end()
    if not steps:
        raise ValueError("syntax error: unexpected $end, expecting FIELD or [")
    return tuple(steps)


def follow(value: Any, path: tuple[str | int, ...]) -> Any:
    """What a path leads to; None when there is nothing."""
    for step in path:
        if isinstance(step, int):
            if not isinstance(value, list) or step >= len(value):
                return None
            value = value[step]
        else:
            if not isinstance(value, dict):
                return None
            value = value.get(step)
    return value
