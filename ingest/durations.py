"""Durations as Prometheus writes them: ``500ms``, ``15s``, ``1h30m``, ``15d``."""

from __future__ import annotations

import re

_UNITS_MS = {"y": 31_536_000_000, "w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_DURATION = re.compile("".join(rf"(?:([0-9]+){unit})?" for unit in _UNITS_MS))


def parse_duration_ms(text: str) -> int | None:
    """Milliseconds of a duration, None when the text is none; ``0`` needs no unit."""
    if text == "0":
        return 0
    found = _DURATION.fullmatch(text) if text else None
    if found is None:
        return None
    return sum(int(n) * size for n, size in zip(found.groups(), _UNITS_MS.values(), strict=True) if n)


def format_duration(ms: int) -> str:
    """The shortest text, as Prometheus chooses it: years, weeks and days only when nothing is left over."""
    if not ms:
        return "0s"
    text = ""
    for unit, size in _UNITS_MS.items():
        if ms >= size and (unit not in "ywd" or ms % size == 0):
            text += f"{ms // size}{unit}"
            ms %= size
    return text
