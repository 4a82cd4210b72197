"""Counts of what was refused, by reason: nothing is dropped silently."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

from tsdb.errors import Reason


class Tally:
    """Refusals by reason since the start; ``meshpulse_rejected_total`` shows them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[Reason] = Counter()

    def add(self, reason: Reason, count: int = 1) -> None:
        """Count ``count`` refused samples, series or requests."""
        with self._lock:
            self._counts[reason] += count

    def add_all(self, counts: Mapping[Reason, int]) -> None:
        """Count many at once."""
        with self._lock:
            self._counts.update(counts)

    def snapshot(self) -> dict[Reason, int]:
        """A copy of the counts."""
        with self._lock:
            return dict(self._counts)
