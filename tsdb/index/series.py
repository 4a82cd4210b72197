"""What the registry of a tenant and the index of a block have in common: matchers and labels over rows of pairs.

A *row* is the run of pair numbers of one series in the order of its label names; a *pair* is (label name number,
value symbol). A *posting list* holds the ascending series of one pair.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tsdb.frame import LabelTable
from tsdb.index.symbols import SymbolTable
from tsdb.kernels.postings import build_postings, filter_rows, intersect, unite
from tsdb.kernels.registry import fill_labels, names_of, pairs_of, write_canonical
from tsdb.matchers import Matcher, Regex, Shape

NONE: NDArray[np.uint32] = np.zeros(0, np.uint32)
NONE.flags.writeable = False

CACHED_ENTRIES_MAX = 1 << 20
"""Most series numbers that the results kept by one index hold together (4 MiB)."""

UNION_FACTOR = 8
"""Checking a candidate's row touches about a dozen pairs, uniting a list one entry: above this many entries a
candidate the rows are cheaper."""

TABLE_ROWS_MAX = 64
"""Series of a label table that is kept: what a light query reads (tsdb.reader.LIGHT_SERIES_MAX)."""

TABLES_MAX = 256
"""Label tables that are kept, about 5 KiB each at 64 series of 20 labels."""

NAME_SETS_MAX = 256
"""Sets of label names whose columns are kept; a metric has one or two."""

T = TypeVar("T")


class Rows(NamedTuple):
    """Labels of the first ``series`` series; a snapshot: nothing in it changes any more.

    Attributes
    ----------
    series, pairs, names : how many of each are valid
    rows : uint32           pairs of all series, one series behind the other
    row_offsets : (series + 1,) uint32
    pair_names, pair_values : (pairs,) uint32      label name number, value symbol
    name_symbols : (names,) uint32
    """

    series: int
    pairs: int
    names: int
    rows: NDArray[np.uint32]
    row_offsets: NDArray[np.uint32]
    pair_names: NDArray[np.uint32]
    pair_values: NDArray[np.uint32]
    name_symbols: NDArray[np.uint32]


class Postings(NamedTuple):
    """Postings of series ``[first, last)``: those of pair p are ``refs[offsets[p]:offsets[p + 1]]``, ascending.

    Pairs that came later have no offsets and no series in the run.
    """

    first: int
    last: int
    offsets: NDArray[np.uint32]
    refs: NDArray[np.uint32]

    @staticmethod
    def build(rows: Rows, first: int, last: int) -> Postings:
        """Sort the rows of a run of series by pair."""
        offsets: NDArray[np.uint32] = np.zeros(rows.pairs + 1, np.uint32)
        refs: NDArray[np.uint32] = np.empty(int(rows.row_offsets[last]) - int(rows.row_offsets[first]), np.uint32)
        build_postings(rows.rows, rows.row_offsets, first, last, offsets, refs)
        return Postings(first, last, offsets, refs)

    def sizes(self, pairs: NDArray[np.uint32]) -> int:
        """Entries of many pairs together."""
        return int((self.offsets[pairs + np.uint32(1)] - self.offsets[pairs]).sum())

    def union(self, pairs: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Ascending series that have any of the pairs."""
        if len(pairs) == 1:
            pair = int(pairs[0])
            return self.refs[self.offsets[pair] : self.offsets[pair + 1]]
        bits: NDArray[np.uint64] = np.zeros((self.last - self.first + 63) // 64, np.uint64)
        out: NDArray[np.uint32] = np.empty(min(self.sizes(pairs), self.last - self.first), np.uint32)
        return out[: unite(pairs, self.offsets, self.refs, self.first, bits, out)]


class Choice(NamedTuple):
    """A matcher as pairs: a series satisfies it if and only if having one of ``pairs`` (ascending) is ``wanted``."""

    wanted: bool
    name: int
    pairs: NDArray[np.uint32]


class Recent(Generic[T]):
    """Arrays made lately by key; the ones unused longest go first. Thread-safe."""

    def __init__(self, entries_max: int = CACHED_ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._entries = 0
        self._kept: OrderedDict[Any, tuple[T, NDArray[np.uint32]]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> tuple[T, NDArray[np.uint32]] | None:
        """What was put under ``key``."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: Any, mark: T, array: NDArray[np.uint32]) -> None:
        """Keep a read-only array with a mark of what it was made from."""
        array.flags.writeable = False
        with self._lock:
            old = self._kept.pop(key, None)
            if old is not None:
                self._entries -= len(old[1]) + 64  # an entry costs about 64 numbers more than its array
            self._kept[key] = (mark, array)
            self._entries += len(array) + 64
            while self._entries > self._entries_max:
                _, (_, dropped) = self._kept.popitem(last=False)
                self._entries -= len(dropped) + 64


class SeriesIndex(ABC):
    """Series by number with their labels: finds them by matchers, shows their labels."""

    def __init__(self, symbols: SymbolTable) -> None:
        self.symbols = symbols
        self._columns: dict[bytes, tuple[tuple[str, ...], NDArray[np.int32]]] = {}
        self._tables: dict[bytes, LabelTable] = {}

    @abstractmethod
    def snapshot(self) -> Rows:
        """The rows as they are now."""

    @abstractmethod
    def name_number(self, name: str) -> int:
        """Number of a label name, or -1."""

    @abstractmethod
    def pairs_of_name(self, number: int, rows: Rows) -> NDArray[np.uint32]:
        """Ascending pairs of a label name."""

    @abstractmethod
    def pairs_with(self, number: int, values: Sequence[str], rows: Rows) -> NDArray[np.uint32]:
        """Ascending pairs of a label name with one of the values; values nobody has are left out."""

    @abstractmethod
    def accepted_pairs(self, number: int, regex: Regex, rows: Rows) -> NDArray[np.uint32]:
        """Ascending pairs of a label name whose value the regex matches."""

    # -- matchers

    def choose(self, matcher: Matcher, rows: Rows) -> Choice:
        """Turn a matcher into pairs, by looking at the distinct values of its label only."""
        number = self.name_number(matcher.name)
        wanted = not matcher.matches_empty
        if number < 0:
            return Choice(wanted, number, NONE)
        literals = matcher.literals
        if literals is not None:
            accepted = self.pairs_with(number, literals, rows)
        elif (regex := matcher.regex()).shape in (Shape.EVERYTHING, Shape.NOT_EMPTY):
            accepted = self.pairs_of_name(number, rows)  # no pair has an empty value
        else:
            accepted = self.accepted_pairs(number, regex, rows)
        # Wanted are the pairs that satisfy the matcher, or those that do not where the absence of the label does.
        if wanted != matcher.negated:
            return Choice(wanted, number, accepted)
        return Choice(wanted, number, np.setdiff1d(self.pairs_of_name(number, rows), accepted, assume_unique=True))

    def find_in(self, postings: Postings, choices: Sequence[Choice], rows: Rows) -> NDArray[np.uint32]:
        """Ascending series of a run with postings that satisfy all choices."""
        known = np.uint32(len(postings.offsets) - 1)
        sized = []
        for choice in choices:
            pairs = choice.pairs
            if len(pairs) and pairs[-1] >= known:
                pairs = pairs[: int(np.searchsorted(pairs, known))]
            sized.append((not choice.wanted, postings.sizes(pairs), choice.name, pairs))
        sized.sort(key=lambda item: item[:2])  # wanted ones first, the shortest of them before all
        if sized and not sized[0][0]:
            _, size, _, pairs = sized.pop(0)
            found = postings.union(pairs) if size else NONE
        else:
            found = np.arange(postings.first, postings.last, dtype=np.uint32)
        for unwanted, size, name, pairs in sized:
            if not len(found):
                break
            wanted = 0 if unwanted else 1
            out: NDArray[np.uint32] = np.empty(len(found), np.uint32)
            if len(pairs) <= 1 or size <= UNION_FACTOR * len(found):
                others = postings.union(pairs) if size else NONE
                n = intersect(found, others, wanted, out)
            else:
                n = filter_rows(found, rows.rows, rows.row_offsets, rows.pair_names, name, pairs, wanted, out)
            found = out[:n]
        return found

    @staticmethod
    def scan(first: int, last: int, choices: Sequence[Choice], rows: Rows) -> NDArray[np.uint32]:
        """Ascending series of a run without postings that satisfy all choices."""
        found: NDArray[np.uint32] = np.arange(first, last, dtype=np.uint32)
        for choice in sorted(choices, key=lambda c: (not c.wanted, len(c.pairs))):
            if not len(found):
                break
            out: NDArray[np.uint32] = np.empty(len(found), np.uint32)
            n = filter_rows(
                found, rows.rows, rows.row_offsets, rows.pair_names, choice.name, choice.pairs, int(choice.wanted), out
            )
            found = out[:n]
        return found

    # -- labels

    def label_table(self, refs: NDArray[np.uint32]) -> LabelTable:
        """Labels of some series as a matrix of symbols, read-only; texts are decoded when asked for.

        Tables of few series are kept: the labels of a series never change, and dashboards repeat their queries.
        """
        refs = np.ascontiguousarray(refs, np.uint32)
        if len(refs) > TABLE_ROWS_MAX:
            return self._make_table(refs)
        key = refs.tobytes()
        table = self._tables.get(key)
        if table is None:
            table = self._make_table(refs)
            if len(self._tables) >= TABLES_MAX:
                self._tables.clear()
            self._tables[key] = table
        return table

    def _make_table(self, refs: NDArray[np.uint32]) -> LabelTable:
        rows = self.snapshot()
        names, columns = self._columns_of(self._names_used(refs, rows), rows)
        ids: NDArray[np.int32] = np.zeros((len(refs), len(names)), np.int32)
        if names:
            fill_labels(refs, rows.rows, rows.row_offsets, rows.pair_names, rows.pair_values, columns, ids)
        ids.flags.writeable = False
        return LabelTable(names, ids, self.symbols)

    def _names_used(self, refs: NDArray[np.uint32], rows: Rows) -> NDArray[np.uint32]:
        out: NDArray[np.uint32] = np.empty(rows.names, np.uint32)
        seen: NDArray[np.uint8] = np.zeros(rows.names, np.uint8)
        return out[: names_of(refs, rows.rows, rows.row_offsets, rows.pair_names, seen, out)]

    def _columns_of(self, used: NDArray[np.uint32], rows: Rows) -> tuple[tuple[str, ...], NDArray[np.int32]]:
        """Sorted texts of label names, and the column of each name number."""
        used.sort()
        key = used.tobytes()
        kept = self._columns.get(key)
        if kept is None:
            texts = self.symbols.texts(rows.name_symbols[used].astype(np.int32))
            order = sorted(range(len(texts)), key=texts.__getitem__)
            columns: NDArray[np.int32] = np.full(rows.names, -1, np.int32)
            columns[used[order]] = np.arange(len(order), dtype=np.int32)
            kept = tuple(texts[i] for i in order), columns
            if len(self._columns) >= NAME_SETS_MAX:
                self._columns.clear()
            self._columns[key] = kept
        return kept

    def canonical(self, refs: NDArray[np.uint32]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Canonical label bytes (tsdb.labels) of some series, one behind the other.

        Returns
        -------
        (n_bytes,) uint8, (n + 1,) int64 offsets
        """
        refs = np.ascontiguousarray(refs, np.uint32)
        rows = self.snapshot()
        table = self.symbols.arrays()
        offsets: NDArray[np.int64] = np.empty(len(refs) + 1, np.int64)
        out: NDArray[np.uint8] = np.empty(0, np.uint8)
        for measure_only in (1, 0):
            total = write_canonical(
                refs, rows.rows, rows.row_offsets, rows.pair_names, rows.pair_values, rows.name_symbols, measure_only,
                table.sym_bytes, table.sym_offsets, offsets, out,
            )  # fmt: skip
            if measure_only:
                out = np.empty(total, np.uint8)
        return out, offsets

    def label_names(self, refs: NDArray[np.uint32] | None = None) -> list[str]:
        """Sorted label names of some series, or of all."""
        rows = self.snapshot()
        used = rows.name_symbols[: rows.names]
        if refs is not None:
            used = rows.name_symbols[self._names_used(np.ascontiguousarray(refs, np.uint32), rows)]
        return sorted(self.symbols.texts(used.astype(np.int32)))

    def label_values(self, name: str, refs: NDArray[np.uint32] | None = None) -> list[str]:
        """Sorted values of one label of some series, or of all; ``[]`` when nobody has it."""
        rows = self.snapshot()
        number = self.name_number(name)
        if number < 0:
            return []
        if refs is None:
            pairs = self.pairs_of_name(number, rows)
        else:
            refs = np.ascontiguousarray(refs, np.uint32)
            seen: NDArray[np.uint8] = np.zeros(rows.pairs, np.uint8)
            out: NDArray[np.uint32] = np.empty(len(refs), np.uint32)
            pairs = out[: pairs_of(refs, rows.rows, rows.row_offsets, rows.pair_names, number, seen, out)]
        return sorted(self.symbols.texts(rows.pair_values[pairs].astype(np.int32)))

    def _strings(self, pairs: NDArray[np.uint32], rows: Rows) -> pa.Array:
        """Values of some pairs as an Arrow array."""
        data, offsets = self.symbols.gather(rows.pair_values[pairs])
        return pa.LargeStringArray.from_buffers(len(pairs), pa.py_buffer(offsets), pa.py_buffer(data))
