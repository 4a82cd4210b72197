"""The index of an immutable block: the arrays of a registry for a fixed set of series, in sorted order."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsdb.index.registry import SeriesRegistry
from tsdb.index.series import NONE, Postings, Recent, Rows, SeriesIndex
from tsdb.index.symbols import SymbolTable
from tsdb.kernels.postings import gather_rows
from tsdb.matchers import Matcher, Regex

SECTIONS: Mapping[str, type[np.generic]] = {
    "symbol_bytes": np.uint8,  # names and values, sorted by their bytes, one behind the other; symbol 0 is ""
    "symbol_offsets": np.uint64,  # (symbols + 1,)
    "name_symbols": np.uint32,  # (names,) ascending
    "name_pairs": np.uint32,  # (names + 1,) first pair of each name
    "pair_values": np.uint32,  # (pairs,) value symbol; pairs are sorted by (name, value)
    "row_offsets": np.uint32,  # (series + 1,)
    "rows": np.uint32,  # pairs of each series, ascending
    "posting_offsets": np.uint32,  # (pairs + 1,)
    "postings": np.uint32,  # ascending rows of each pair
    "series_hash": np.uint64,  # (series,) XXH3-64 of the canonical bytes
}
"""Arrays of a stored index and their types."""

CACHED_ENTRIES_MAX = 1 << 16
"""Most numbers that the results kept by one block's index hold together (256 KiB; there are many blocks)."""


class StaticIndex(SeriesIndex):
    """Series of one block by row number.

    The block's symbols are entered into the tenant's table at the first use, so that label tables of blocks and of
    the registry share one numbering.

    Parameters
    ----------
    arrays : the sections, see :data:`SECTIONS` (read-only memory maps are fine)
    symbols : the tenant's table
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]], symbols: SymbolTable) -> None:
        super().__init__(symbols)
        self._arrays = {name: np.asarray(arrays[name], dtype) for name, dtype in SECTIONS.items()}
        self._rows: Rows | None = None
        self._number_of_name: dict[int, int] = {}
        self._hash_order: NDArray[np.int64] | None = None
        self._postings = Postings(0, len(self), self._arrays["posting_offsets"], self._arrays["postings"])
        self._found: Recent[None] = Recent(CACHED_ENTRIES_MAX)
        self._lock = threading.Lock()

    @staticmethod
    def build(registry: SeriesRegistry | StaticIndex, refs: NDArray[np.uint32]) -> dict[str, NDArray[Any]]:
        """Arrays of an index over some series of a registry or another block; row i is series ``refs[i]``.

        Returns
        -------
        the sections by name, see :data:`SECTIONS`
        """
        refs = np.ascontiguousarray(refs, np.uint32)
        source = registry.snapshot()
        row_offsets: NDArray[np.uint32] = np.empty(len(refs) + 1, np.uint32)
        rows: NDArray[np.uint32] = np.empty(0, np.uint32)
        n = gather_rows(refs, source.rows, source.row_offsets, row_offsets, rows)
        if n:
            rows = np.empty(n, np.uint32)
            gather_rows(refs, source.rows, source.row_offsets, row_offsets, rows)
        old_pairs, rows_by_old = _distinct(rows, source.pairs)
        names = source.name_symbols[source.pair_names[old_pairs]]
        values = source.pair_values[old_pairs]
        old_symbols = np.unique(np.concatenate((np.zeros(1, np.uint32), names, values)))
        data, offsets = registry.symbols.gather(old_symbols)
        raw = data.tobytes()
        edges = offsets.tolist()
        order = sorted(range(len(old_symbols)), key=lambda i: raw[edges[i] : edges[i + 1]])
        rank: NDArray[np.uint32] = np.empty(len(order), np.uint32)
        rank[order] = np.arange(len(order), dtype=np.uint32)
        symbol_bytes, symbol_offsets = registry.symbols.gather(old_symbols[order])
        names = rank[np.searchsorted(old_symbols, names)]
        values = rank[np.searchsorted(old_symbols, values)]
        pair_order = np.lexsort((values, names))
        new_pairs: NDArray[np.uint32] = np.empty(len(old_pairs), np.uint32)
        new_pairs[pair_order] = np.arange(len(old_pairs), dtype=np.uint32)
        rows = new_pairs[rows_by_old]
        name_symbols, first_pairs = np.unique(names[pair_order], return_index=True)
        # Names sorted by bytes, as the rows are: a row's pairs ascend.
        made = Rows(len(refs), len(old_pairs), len(name_symbols), rows, row_offsets, NONE, NONE, NONE)
        postings = Postings.build(made, 0, len(refs))
        return {
            "symbol_bytes": symbol_bytes,
            "symbol_offsets": symbol_offsets.astype(np.uint64),
            "name_symbols": name_symbols,
            "name_pairs": np.append(first_pairs, len(old_pairs)).astype(np.uint32),
            "pair_values": values[pair_order],
            "row_offsets": row_offsets,
            "rows": rows,
            "posting_offsets": postings.offsets,
            "postings": postings.refs,
            "series_hash": registry.series_hash[refs],
        }

    def __len__(self) -> int:
        """Series of the block."""
        return len(self._arrays["series_hash"])

    @property
    def series_hash(self) -> NDArray[np.uint64]:
        """XXH3-64 of the canonical bytes by row."""
        return self._arrays["series_hash"]

    def snapshot(self) -> Rows:
        if self._rows is None:
            with self._lock:
                if self._rows is None:
                    self._rows = self._translate()
        return self._rows

    def _translate(self) -> Rows:
        """The rows with names and values as symbols of the tenant."""
        a = self._arrays
        symbols = self.symbols.intern_bytes(a["symbol_bytes"], a["symbol_offsets"].astype(np.int64)).astype(np.uint32)
        name_symbols = symbols[a["name_symbols"]]
        self._number_of_name = {symbol: number for number, symbol in enumerate(name_symbols.tolist())}
        names = len(name_symbols)
        pair_names = np.repeat(np.arange(names, dtype=np.uint32), np.diff(a["name_pairs"]))
        pair_values = symbols[a["pair_values"]]
        return Rows(
            len(self), len(pair_values), names, a["rows"], a["row_offsets"], pair_names, pair_values, name_symbols
        )

    def name_number(self, name: str) -> int:
        self.snapshot()
        return self._number_of_name.get(self.symbols.find(name), -1)

    def _pair_range(self, number: int) -> tuple[int, int]:
        first, last = self._arrays["name_pairs"][number : number + 2].tolist()
        return first, last

    def pairs_of_name(self, number: int, _rows: Rows) -> NDArray[np.uint32]:
        return np.arange(*self._pair_range(number), dtype=np.uint32)

    def pairs_with(self, number: int, values: Sequence[str], rows: Rows) -> NDArray[np.uint32]:
        first, last = self._pair_range(number)
        wanted = np.array([self.symbols.find(value) for value in values], np.int64)
        return (np.flatnonzero(np.isin(rows.pair_values[first:last], wanted)) + first).astype(np.uint32)

    def accepted_pairs(self, number: int, regex: Regex, rows: Rows) -> NDArray[np.uint32]:
        pairs = self.pairs_of_name(number, rows)
        return pairs[regex.mask(self._strings(pairs, rows))]

    def find(self, matchers: Sequence[Matcher]) -> NDArray[np.int32]:
        """Ascending rows of the series that satisfy every matcher; all of them when there is none.

        Returns
        -------
        (n,) int32, read-only

        Raises
        ------
        RejectedError        bad_matcher: an invalid regex
        """
        key = tuple(matchers)
        kept = self._found.get(key)
        if kept is None:
            rows = self.snapshot()
            choices = [self.choose(matcher, rows) for matcher in matchers]
            found = NONE
            if all(len(choice.pairs) or not choice.wanted for choice in choices):
                found = self.find_in(self._postings, choices, rows).copy()  # not a view that keeps the map alive
            self._found.put(key, None, found)
            kept = None, found
        return kept[1].view(np.int32)

    def rows_of_hashes(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Row of the series with each hash, -1 when the block has none.

        Equal hashes are not yet equal labels: compare the labels before trusting a row.

        Parameters
        ----------
        hashes : (n,) uint64

        Returns
        -------
        (n,) int32
        """
        own = self.series_hash
        if not len(own):
            return np.full(len(hashes), -1, np.int32)
        if self._hash_order is None:
            self._hash_order = np.argsort(own)
        order = self._hash_order
        places = np.minimum(np.searchsorted(own, hashes, sorter=order), len(own) - 1)
        rows = order[places]
        return np.where(own[rows] == hashes, rows, -1).astype(np.int32)


def _distinct(rows: NDArray[np.uint32], pairs: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Ascending pairs that occur, and the place in them of each row entry."""
    seen: NDArray[np.bool_] = np.zeros(pairs, np.bool_)
    seen[rows] = True
    distinct = np.flatnonzero(seen).astype(np.uint32)
    place: NDArray[np.uint32] = np.empty(pairs, np.uint32)
    place[distinct] = np.arange(len(distinct), dtype=np.uint32)
    return distinct, place[rows]
