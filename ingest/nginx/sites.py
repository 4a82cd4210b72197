"""Names of sites that lines bring, bounded: who sends a request chooses the name in ``$host``."""

from __future__ import annotations

from tsdb.errors import Reason
from tsdb.tally import Tally

OTHER = "other"
SITE_BYTES_MAX = 253  # the longest name DNS has


class SiteNames:
    """At most so many names; the rest is one site, ``other``, and counted as refused."""

    def __init__(self, names_max: int, tally: Tally) -> None:
        self._names_max = names_max
        self._tally = tally
        self._known: set[str] = set()

    def bounded(self, name: str) -> str:
        """The name, or ``other``."""
        if name in self._known:
            return name
        if len(self._known) >= self._names_max or len(name.encode()) > SITE_BYTES_MAX:
            self._tally.add(Reason.SERIES_LIMIT)
            return OTHER
        self._known.add(name)
        return name
