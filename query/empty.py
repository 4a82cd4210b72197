"""The store of a tenant that does not exist: reads find nothing and create nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from query.storage import FrameSelection
from tsdb.frame import LabelTable, SeriesFrame, SymbolOverlay, Symbols, empty_frame
from tsdb.limits import SelectLimits
from tsdb.matchers import Matcher


class EmptyStorage:
    """A :class:`query.storage.Storage` without series."""

    __slots__ = ("_symbols",)

    def __init__(self) -> None:
        self._symbols = SymbolOverlay()

    @property
    def symbols(self) -> Symbols:
        """No symbols."""
        return self._symbols

    def select(self, matchers: Sequence[Matcher], mint_ms: int, maxt_ms: int, limits: SelectLimits) -> SeriesFrame:  # noqa: ARG002
        """No samples."""
        return empty_frame()

    def open(
        self,
        matchers: Sequence[Matcher],  # noqa: ARG002
        mint_ms: int,  # noqa: ARG002
        maxt_ms: int,  # noqa: ARG002
        limits: SelectLimits,  # noqa: ARG002
    ) -> FrameSelection:
        """No samples."""
        return FrameSelection(empty_frame())

    def newest(
        self,
        matchers: Sequence[Matcher],  # noqa: ARG002
        oldest_ms: int,  # noqa: ARG002
        at_ms: int,  # noqa: ARG002
        limits: SelectLimits,  # noqa: ARG002
    ) -> None:
        """Nothing to tell: ``open`` says that there are no series."""
        return

    def is_light(self, matchers: Sequence[Matcher], oldest_ms: int) -> bool:  # noqa: ARG002
        """Nothing is read."""
        return True

    def series(self, selectors: Sequence[Sequence[Matcher]], mint_ms: int, maxt_ms: int) -> LabelTable:  # noqa: ARG002
        """No series."""
        return LabelTable((), np.zeros((0, 0), np.int32), self._symbols)

    def label_names(self, selectors: Sequence[Sequence[Matcher]], mint_ms: int, maxt_ms: int) -> list[str]:  # noqa: ARG002
        """No names."""
        return []

    def label_values(
        self,
        name: str,  # noqa: ARG002
        selectors: Sequence[Sequence[Matcher]],  # noqa: ARG002
        mint_ms: int,  # noqa: ARG002
        maxt_ms: int,  # noqa: ARG002
    ) -> list[str]:
        """No values."""
        return []
