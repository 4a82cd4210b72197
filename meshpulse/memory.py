"""How the process gives memory to its threads, and when it looks for garbage."""

from __future__ import annotations

import ctypes
import gc
import threading
import time

_M_ARENA_MAX = -8  # of glibc's malloc.h
ARENAS_MAX = 2
COMPILING_S = 5.0
"""A start whose kernels take longer compiled some: loading all of them takes one."""
_USUAL = gc.get_threshold()
_LOADING = (200_000, 20, 100)
"""Thresholds of the garbage collector while modules and kernels are loaded: with the usual ones, looking for it takes
a tenth of a start and a fifth of compiling; without collecting, compiling needs 600 MB more."""


GIVE_BACK_S = 10.0
"""How often memory is given back: a round takes 1 to 50 ms (300 ms for a GB), during which an arena is locked."""
BUSY_S = 0.1
"""CPU seconds since the last round that make another one worth it."""


def give_back() -> None:
    """Return to the system what malloc holds and nobody uses: after large log queries up to a GB, in small holes.

    Neither fewer arenas nor a lower limit for mmap avoids it (measured): the blocks are small, and one in use keeps all
    below it. Where there is no glibc there is nothing to do.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class MemoryKeeper:
    """Calls :func:`give_back` every :data:`GIVE_BACK_S` while the process is busy."""

    def __init__(self, every_s: float = GIVE_BACK_S) -> None:
        self._every_s = every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End, if it began."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        last = 0.0
        while not self._done.wait(self._every_s):
            used = time.process_time()
            if used - last >= BUSY_S:
                give_back()
                last = time.process_time()


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
