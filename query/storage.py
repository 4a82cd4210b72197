"""What the engine asks of a store; :class:`tsdb.tenant.Tenant` is one, tests use a small one in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tsdb.frame import LabelTable, NewestSamples, SeriesFrame, Symbols
from tsdb.limits import SelectLimits
from tsdb.matchers import Matcher


class RowReader(Protocol):
    """Decodes ranges of rows of a selection into buffers that it uses again; for one thread."""

    def read(self, begin: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """(offsets, ts_ms, values) of rows ``[begin, end)`` as in a SeriesFrame, valid until the next call."""
        ...


class Selection(Protocol):
    """A selection whose samples are still encoded; several threads may each have a reader."""

    @property
    def labels(self) -> LabelTable: ...

    @property
    def warnings(self) -> tuple[str, ...]: ...

    @property
    def samples_max(self) -> NDArray[np.int64]:
        """(n_rows,) most samples of each row."""
        ...

    def frame(self) -> SeriesFrame:
        """All samples, decoded."""
        ...

    def reader(self, batch: int) -> RowReader:
        """A reader of at most ``batch`` rows at once."""
        ...


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

    def open(self, matchers: Sequence[Matcher], mint_ms: int, maxt_ms: int, limits: SelectLimits) -> Selection:
        """What ``select`` returns, to be decoded a few series at a time.

        Raises
        ------
        tsdb.errors.LimitError        more series or samples than ``limits`` allow
        """
        ...

    def newest(
        self, matchers: Sequence[Matcher], oldest_ms: int, at_ms: int, limits: SelectLimits
    ) -> NewestSamples | None:
        """The newest sample at ``at_ms``, not older than ``oldest_ms``, of all series that satisfy every matcher.

        Returns
        -------
        NewestSamples, or None when the store would have to decode chunks for it: use ``open`` then

        Raises
        ------
        tsdb.errors.LimitError        more series than ``limits`` allow
        """
        ...

    def is_light(self, matchers: Sequence[Matcher], oldest_ms: int) -> bool:
        """Whether reading these series since ``oldest_ms`` is a matter of microseconds: few, by name, in memory."""
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


class FrameSelection:
    """A selection that is decoded already."""

    __slots__ = ("_frame",)

    def __init__(self, frame: SeriesFrame) -> None:
        self._frame = frame

    @property
    def labels(self) -> LabelTable:
        return self._frame.labels

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._frame.warnings

    @property
    def samples_max(self) -> NDArray[np.int64]:
        return np.diff(self._frame.offsets)

    def frame(self) -> SeriesFrame:
        return self._frame

    def reader(self, batch: int) -> FrameSelection:  # noqa: ARG002
        return self

    def read(self, begin: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        frame = self._frame
        if begin == 0 and end == len(frame):
            return frame.offsets, frame.ts_ms, frame.values
        first, last = frame.offsets[begin], frame.offsets[end]
        return frame.offsets[begin : end + 1] - first, frame.ts_ms[first:last], frame.values[first:last]
