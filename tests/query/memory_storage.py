"""A Storage in memory for tests: series as dicts, samples as lists, selection by the plain rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from query.storage import FrameSelection
from tsdb.errors import LimitError, Reason
from tsdb.frame import LabelTable, SeriesFrame
from tsdb.limits import SelectLimits
from tsdb.matchers import Matcher

STALE = float(np.uint64(0x7FF0000000000002).view(np.float64))


class MemorySymbols:
    """A base symbol table: strings numbered from 0, which is the empty one."""

    def __init__(self) -> None:
        self._texts = [""]
        self._ids = {"": 0}

    def text(self, symbol: int) -> str:
        return self._texts[symbol]

    def texts(self, symbols: NDArray[np.int32]) -> list[str]:
        return [self._texts[symbol] for symbol in symbols.tolist()]

    def find(self, text: str) -> int:
        return self._ids.get(text, -1)

    def intern(self, text: str) -> int:
        if text not in self._ids:
            self._ids[text] = len(self._texts)
            self._texts.append(text)
        return self._ids[text]


Samples = Iterable[tuple[int, float]]


class MemoryStorage:
    """Keeps ``{labels: {time_ms: value}}``; another value for the same time is ignored (the real store refuses it)."""

    def __init__(self, series: Iterable[tuple[dict[str, str], Samples]] = ()) -> None:
        self._symbols = MemorySymbols()
        self._series: dict[tuple[tuple[str, str], ...], dict[int, float]] = {}
        self.selections: list[tuple[tuple[Matcher, ...], int, int]] = []
        for labels, samples in series:
            self.add(labels, samples)

    def add(self, labels: dict[str, str], samples: Samples) -> None:
        """Add samples to a series, in any order."""
        key = tuple(sorted((name, value) for name, value in labels.items() if value))
        held = self._series.setdefault(key, {})
        for time_ms, value in samples:
            held.setdefault(time_ms, value)

    @property
    def symbols(self) -> MemorySymbols:
        return self._symbols

    def _matching(self, matchers: Sequence[Matcher]) -> list[tuple[dict[str, str], dict[int, float]]]:
        found = [(dict(key), samples) for key, samples in self._series.items()]
        for matcher in matchers:
            mask = matcher.mask([labels.get(matcher.name, "") for labels, _ in found]) if found else []
            found = [entry for entry, hit in zip(found, mask, strict=True) if hit]
        return found

    def select(self, matchers: Sequence[Matcher], mint_ms: int, maxt_ms: int, limits: SelectLimits) -> SeriesFrame:
        self.selections.append((tuple(matchers), mint_ms, maxt_ms))
        rows, times, values = [], [], []
        for labels, samples in self._matching(matchers):
            inside = sorted(t for t in samples if mint_ms <= t <= maxt_ms)
            if inside:
                rows.append(labels)
                times.append(inside)
                values.append([samples[t] for t in inside])
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(t) for t in times], out=offsets[1:])
        if len(rows) > limits.series_max:
            raise LimitError(Reason.SERIES_LIMIT, f"{len(rows)} series, more than {limits.series_max}")
        if offsets[-1] > limits.samples_max:
            raise LimitError(Reason.SERIES_LIMIT, f"{offsets[-1]} samples, more than {limits.samples_max}")
        return SeriesFrame(
            LabelTable.of(rows, self._symbols),
            offsets,
            np.array([t for row in times for t in row], np.int64),
            np.array([v for row in values for v in row], np.float64),
        )

    def open(self, matchers: Sequence[Matcher], mint_ms: int, maxt_ms: int, limits: SelectLimits) -> FrameSelection:
        return FrameSelection(self.select(matchers, mint_ms, maxt_ms, limits))

    def newest(self, matchers: Sequence[Matcher], oldest_ms: int, at_ms: int, limits: SelectLimits) -> None:
        return None

    def is_light(self, matchers: Sequence[Matcher], oldest_ms: int) -> bool:
        return False

    def series(self, selectors: Sequence[Sequence[Matcher]], mint_ms: int, maxt_ms: int) -> LabelTable:
        found = {
            tuple(labels.items()): labels
            for selector in selectors
            for labels, samples in self._matching(selector)
            if any(mint_ms <= t <= maxt_ms for t in samples)
        }
        return LabelTable.of(list(found.values()), self._symbols)

    def label_names(self, selectors: Sequence[Sequence[Matcher]], mint_ms: int, maxt_ms: int) -> list[str]:
        table = self.series(selectors or [[]], mint_ms, maxt_ms)
        return sorted({name for labels in table for name in labels})

    def label_values(self, name: str, selectors: Sequence[Sequence[Matcher]], mint_ms: int, maxt_ms: int) -> list[str]:
        table = self.series(selectors or [[]], mint_ms, maxt_ms)
        return sorted({labels[name] for labels in table if name in labels})
