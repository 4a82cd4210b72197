"""How the process gives memory to its threads, and when it looks for garbage."""

from __future__ import annotations

import ctypes
import gc

_M_ARENA_MAX = -8  # of glibc's malloc.h
ARENAS_MAX = 2


def limit_arenas() -> None:
    """Let all threads share two of malloc's arenas; otherwise each keeps the largest that it ever needed.

    Where there is no glibc there is nothing to limit.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, ARENAS_MAX)


def pause_collection() -> None:
    """Look for no garbage while modules and kernels are loaded: they make none, looking takes a tenth of the start."""
    gc.disable()


def settle_objects() -> None:
    """Look for garbage again, but never among what is there now.

    A million objects of modules and kernels live as long as the process; to walk them holds every thread up for a
    tenth of a second each time.
    """
    gc.freeze()
    gc.enable()
