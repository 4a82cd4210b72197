"""How far the compiler is, for the person who waits for it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import structlog

log = structlog.get_logger(__name__)

Report = Callable[[int, int, str], None]
"""Called with (done, total, name of the next kernel)."""

_SAY_EVERY_S = 5.0


@contextlib.contextmanager
def kernel_bar() -> Iterator[Report]:
    """A bar on a terminal, which vanishes when it is through; elsewhere a line in the log every few seconds."""
    if not sys.stderr.isatty():
        yield _Lines().report
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("kernels"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TextColumn("{task.description}"), console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=name)


class _Lines:
    def __init__(self) -> None:
        self._said = time.monotonic()

    def report(self, done: int, total: int, name: str) -> None:
        now = time.monotonic()
        if now - self._said >= _SAY_EVERY_S and name:
            self._said = now
            log.info("compiling kernels", done=done, total=total, next=name)
