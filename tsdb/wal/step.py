"""A step between two writes of the log: it writes nothing itself."""

from __future__ import annotations

from collections.abc import Callable

from tsdb.wal.framing import Record


class Step:
    """Something that has to run between two writes."""

    n_bytes = 0

    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step

    def records(self, segment: int) -> list[Record]:  # noqa: ARG002
        """Nothing to log."""
        return []

    def apply(self, position: int) -> None:  # noqa: ARG002
        """Run it."""
        self._step()
