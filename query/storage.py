"""What the engine asks of a store; :class:`tsdb.db.Tenant` is one, tests use a small one in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tsdb.frame import LabelTable, SeriesFrame, Symbols
from tsdb.limits import SelectLimits
from tsdb.matchers import Matcher


class Storage(Protocol):
    """Series of one tenant. All time bounds are inclusive milliseconds.

    Every table it returns uses the numbering of ``symbols``.
    """

    @property
    def symbols(self) -> Symbols: ...

    def select(self, matchers: Sequence[Matcher], mint_ms: int, maxt_ms: int, limits: SelectLimits) -> SeriesFrame:
        """Samples of all series that satisfy every matcher; series without a sample in the range may be left out.

        Raises
        ------
        tsdb.errors.LimitError        more series or samples than ``limits`` allow
        """
        ...

    def series(self, selectors: Sequence[Sequence[Matcher]], mint_ms: int, maxt_ms: int) -> LabelTable:
        """Labels of the series that satisfy any of the selectors and may have samples in the range, each once."""
        ...

    def label_names(self, selectors: Sequence[Sequence[Matcher]], mint_ms: int, maxt_ms: int) -> list[str]:
        """Sorted label names of the series of ``series``; of all series when there is no selector."""
        ...

    def label_values(self, name: str, selectors: Sequence[Sequence[Matcher]], mint_ms: int, maxt_ms: int) -> list[str]:
        """Sorted values of one label; ``[]`` when nobody has it."""
        ...
