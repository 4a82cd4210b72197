"""Compile or load every kernel of the program before the first request needs one."""

from __future__ import annotations

import fcntl
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import health
import ingest
import query
import tsdb
from tsdb.kernels import _jit

_ROOMS = (tsdb, ingest, query, health)


def kernel_modules() -> Iterator[str]:
    """Dotted names of all modules in folders named ``kernels``, in a stable order."""
    for room in _ROOMS:
        root = Path(room.__path__[0])
        for file in sorted(root.rglob("kernels/*.py")):
            if file.stem != "__init__":
                yield ".".join((room.__name__, *file.relative_to(root).with_suffix("").parts))


def warm(progress: Callable[[int, int, str], None] | None = None) -> float:
    """Import, compile (or load from the cache) and seal all kernels.

    One process at a time compiles: others wait for its lock and then load what it left in the cache.

    Parameters
    ----------
    progress : called with (done, total, name of the next kernel)

    Returns
    -------
    float        seconds it took
    """
    for name in kernel_modules():
        importlib.import_module(name)
    root = _jit.cache_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("a")
    except OSError:
        return _jit.warm(progress)  # a shipped, read-only cache: nobody compiles into it
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _jit.warm(progress)
