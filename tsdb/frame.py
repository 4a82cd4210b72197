"""The unit of all reading: many series, flattened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Symbols(Protocol):
    """Interned strings by number; symbol 0 is ``""`` (an absent label). Equal number = equal string."""

    def text(self, symbol: int) -> str:
        """The string of one symbol."""
        ...

    def texts(self, symbols: NDArray[np.int32]) -> list[str]:
        """The strings of many symbols, in order, repeats allowed."""
        ...

    def find(self, text: str) -> int:
        """Number of ``text``, or -1 when it was never interned."""
        ...


OVERLAY_FIRST = 1 << 30
"""First symbol number of an overlay; a base table never grows so far."""


class SymbolOverlay:
    """Symbols of one query: a shared base that it only reads, and the strings the query itself makes."""

    __slots__ = ("__weakref__", "_base", "_ids", "_texts")

    def __init__(self, base: Symbols | None = None) -> None:
        self._base = base
        self._ids: dict[str, int] = {}
        self._texts: list[str] = []

    @property
    def base(self) -> Symbols | None:
        """The shared table, None when there is none."""
        return self._base

    def text(self, symbol: int) -> str:
        if symbol >= OVERLAY_FIRST:
            return self._texts[symbol - OVERLAY_FIRST]
        return self._base.text(symbol) if self._base and symbol else ""

    def texts(self, symbols: NDArray[np.int32]) -> list[str]:
        if self._base is not None and (not len(symbols) or int(symbols.max()) < OVERLAY_FIRST):
            return self._base.texts(symbols)
        return [self.text(s) for s in symbols.tolist()]

    def find(self, text: str) -> int:
        if not text:
            return 0
        known = self._base.find(text) if self._base else -1
        return known if known >= 0 else self._ids.get(text, -1)

    def intern(self, text: str) -> int:
        """Number of ``text``; a new one when neither the base nor this query knows it."""
        symbol = self.find(text)
        if symbol < 0:
            symbol = OVERLAY_FIRST + len(self._texts)
            self._ids[text] = symbol
            self._texts.append(text)
        return symbol


@dataclass(frozen=True, slots=True)
class LabelTable:
    """Labels of many series as a dense matrix of symbols.

    Attributes
    ----------
    names : column names, sorted by their UTF-8 bytes, each once; ``__name__`` is a column like any other
    ids : (n_series, n_names) int32, C order   value symbols; 0 = the series has no such label
    symbols : what the numbers stand for; all tables of one query share one numbering
    """

    names: tuple[str, ...]
    ids: NDArray[np.int32]
    symbols: Symbols

    def __len__(self) -> int:
        return len(self.ids)

    def labels(self, row: int) -> dict[str, str]:
        """Labels of one series, names sorted (slow path: errors, explain, tests)."""
        return {n: self.symbols.text(i) for n, i in zip(self.names, self.ids[row].tolist(), strict=True) if i}

    def __iter__(self) -> Iterator[dict[str, str]]:
        return (self.labels(row) for row in range(len(self)))

    @staticmethod
    def of(rows: list[dict[str, str]], symbols: SymbolOverlay | None = None) -> LabelTable:
        """A table from dicts (slow path: single series, tests)."""
        overlay = symbols or SymbolOverlay()
        names = tuple(sorted({name for row in rows for name in row}, key=str.encode))
        ids = np.zeros((len(rows), len(names)), np.int32)
        for i, row in enumerate(rows):
            for j, name in enumerate(names):
                ids[i, j] = overlay.intern(row.get(name, ""))
        return LabelTable(names, ids, overlay)


@dataclass(frozen=True, slots=True)
class SeriesFrame:
    """Samples of many series, flattened.

    Attributes
    ----------
    labels : LabelTable            one row a series, in no promised order
    offsets : (n_series + 1,) int64   samples of series i are ``[offsets[i], offsets[i + 1])``
    ts_ms : (n_samples,) int64     strictly ascending within a series
    values : (n_samples,) float64  bits exactly as stored, stale markers included
    warnings : what a reader must be told, e.g. that a damaged frame was left out
    """

    labels: LabelTable
    offsets: NDArray[np.int64]
    ts_ms: NDArray[np.int64]
    values: NDArray[np.float64]
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True, slots=True)
class NewestSamples:
    """The newest sample of each of many series.

    Attributes
    ----------
    labels : LabelTable          one row a series
    present : (n,) bool          whether there is one
    ts_ms : (n,) int64; values : (n,) float64, bits exactly as stored; undefined where absent
    """

    labels: LabelTable
    present: NDArray[np.bool_]
    ts_ms: NDArray[np.int64]
    values: NDArray[np.float64]


def empty_frame() -> SeriesFrame:
    """No series at all."""
    labels = LabelTable((), np.zeros((0, 0), np.int32), SymbolOverlay())
    return SeriesFrame(labels, np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float64))
