"""How the process gives memory to its threads."""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8  # of glibc's malloc.h
ARENAS_MAX = 2


def limit_arenas() -> None:
    """Let all threads share two of malloc's arenas; otherwise each keeps the largest that it ever needed.

    Where there is no glibc there is nothing to limit.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, ARENAS_MAX)
