"""Lines of nginx' error log: when, how bad, for which site, and which upstream is blamed."""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

LEVELS = ("debug", "info", "notice", "warn", "error", "crit", "alert", "emerg")

_LINE = re.compile(rb"(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) \[([a-z]+)\] ")
_SERVER = re.compile(rb", server: ([^,\s]+)")
_UPSTREAM = re.compile(rb', upstream: "(?:[a-z]+://)?([^/"]+)')
_KINDS = (
    (b"connect() ", "connect"),
    (b"no live upstreams", "no_live"),
    (b"upstream timed out", "timeout"),
    (b"upstream prematurely closed", "closed"),
)


class ErrorLine(NamedTuple):
    """What a line says; site, upstream and kind are "" where it says nothing of them."""

    second: int  # since 1970, the time of the log taken as local time, as nginx writes it
    level: str
    site: str
    upstream: str
    kind: str  # connect, timeout, closed, no_live, other


@lru_cache(maxsize=64)
def _second(text: bytes) -> int | None:
    try:
        return int(datetime.strptime(text.decode(), "%Y/%m/%d %H:%M:%S").timestamp())  # local time
    except (ValueError, OverflowError):
        return None


def parse_error(line: bytes) -> ErrorLine | None:
    """One line; None when it has another form (the continuation of a message)."""
    found = _LINE.match(line)
    second = _second(found[1]) if found else None
    if found is None or second is None:
        return None
    level = found[2].decode()
    server = _SERVER.search(line)
    upstream = _UPSTREAM.search(line)
    kind = ""
    if upstream is not None:
        kind = next((kind for text, kind in _KINDS if text in line), "other")
    return ErrorLine(
        second,
        level if level in LEVELS else "other",
        server[1].decode("utf-8", "replace") if server else "",
        upstream[1].decode("utf-8", "replace") if upstream else "",
        kind,
    )
