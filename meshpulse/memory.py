"""How the process gives memory to its threads, and when it looks for garbage."""

from __future__ import annotations

import ctypes
import gc

_M_ARENA_MAX = -8  # of glibc's malloc.h
ARENAS_MAX = 2
COMPILING_S = 5.0
"""A start whose kernels take longer compiled some: loading all of them takes one."""
_USUAL = gc.get_threshold()
_LOADING = (200_000, 20, 100)
"""Thresholds of the garbage collector while modules and kernels are loaded: with the usual ones, looking for it takes
a tenth of a start and a fifth of compiling; without collecting, compiling needs 600 MB more."""


def limit_arenas() -> None:
    """Let all threads share two of malloc's arenas; otherwise each keeps the largest that it ever needed.

    Where there is no glibc there is nothing to limit.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, ARENAS_MAX)


def collect_seldom() -> None:
    """Look for garbage seldom: while the program loads it makes little."""
    gc.set_threshold(*_LOADING)


def settle_objects(*, compiled: bool) -> None:
    """Look for garbage as usual again, but never among what is there now.

    A million objects of modules and kernels live as long as the process; to walk them holds every thread up for a
    tenth of a second each time.

    Parameters
    ----------
    compiled : whether kernels were compiled, which leaves garbage that must not stay
    """
    if compiled:
        gc.collect()
    gc.freeze()
    gc.set_threshold(*_USUAL)
