"""What every sub-expression evaluates to: points of many series at all steps, and operations on their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from query.kernels.group import group_rows
from query.storage import Selection
from tsdb.frame import LabelTable, SymbolOverlay

NAME = "__name__"
Index = NDArray[np.integer[Any]] | NDArray[np.bool_]
"""Row numbers, or a mask of rows."""

METADATA_LABELS = (NAME, "__type__", "__unit__")
"""Labels that describe the metric: gone once an operation makes its values something else."""


@dataclass(slots=True)
class Grid:
    """Points of n series at all steps of an evaluation.

    Attributes
    ----------
    labels : LabelTable            n rows, no two alike
    values : (n, steps) float64    C order; undefined where absent (NaN elsewhere is a value)
    present : (n, steps) bool      C order; which points exist
    drop_name : (n,) bool          the metadata labels are to be dropped when the query ends (delayed name removal)
    """

    labels: LabelTable
    values: NDArray[np.float64]
    present: NDArray[np.bool_]
    drop_name: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Index) -> Grid:
        """Selected series, in the order of ``index``."""
        return Grid(take(self.labels, index), self.values[index], self.present[index], self.drop_name[index])

    def without_empty(self) -> Grid:
        """Only the series with at least one point."""
        if self.present.all():
            return self
        return self.rows(np.flatnonzero(self.present.any(axis=1)))

    def derived(self, values: NDArray[np.float64], present: NDArray[np.bool_] | None = None) -> Grid:
        """The same series with other values: no longer the metric they came from."""
        return Grid(
            self.labels, values, self.present if present is None else present, np.ones(len(self.labels), np.bool_)
        )


@dataclass(slots=True)
class Scalar:
    """A scalar at all steps: (steps,) float64."""

    values: NDArray[np.float64]


@dataclass(slots=True)
class RangeVector:
    """Samples from which windows are cut.

    Attributes
    ----------
    labels : LabelTable            n series
    samples : Selection            their samples, of all windows together
    size : most samples there are
    drop_name : (n,) bool          as in :class:`Grid`
    range_ms : width of a window
    end_ms : end of the first window
    step_ms : distance of the windows that follow; 0 when the range is pinned by ``@``
    """

    labels: LabelTable
    samples: Selection
    size: int
    drop_name: NDArray[np.bool_]
    range_ms: int
    end_ms: int
    step_ms: int


def take(table: LabelTable, index: Index) -> LabelTable:
    """Rows of a table."""
    return LabelTable(table.names, table.ids[index], table.symbols)


def overlay_of(table: LabelTable) -> SymbolOverlay:
    """The symbols of the query a table belongs to."""
    return cast(SymbolOverlay, table.symbols)


def empty_table(symbols: SymbolOverlay, rows: int = 0) -> LabelTable:
    """``rows`` series without any label."""
    return LabelTable((), np.zeros((rows, 0), np.int32), symbols)


def keep_labels(table: LabelTable, names: Sequence[str]) -> LabelTable:
    """Only the columns of ``names``."""
    kept = [i for i, name in enumerate(table.names) if name in names]
    if len(kept) == len(table.names):
        return table
    return LabelTable(tuple(table.names[i] for i in kept), np.ascontiguousarray(table.ids[:, kept]), table.symbols)


def drop_labels(table: LabelTable, names: Sequence[str]) -> LabelTable:
    """All columns but those of ``names``."""
    if not any(name in table.names for name in names):
        return table
    return keep_labels(table, [name for name in table.names if name not in names])


def set_label(table: LabelTable, name: str, symbols: NDArray[np.int32]) -> LabelTable:
    """Table with column ``name`` set, added where it is missing."""
    if name in table.names:
        ids = table.ids.copy()
        ids[:, table.names.index(name)] = symbols
        return replace(table, ids=ids)
    names = tuple(sorted((*table.names, name), key=str.encode))
    at = names.index(name)
    return LabelTable(names, np.insert(table.ids, at, symbols, axis=1), table.symbols)


def column(table: LabelTable, name: str) -> NDArray[np.int32]:
    """Symbols of one label, zeros when no series has it."""
    if name in table.names:
        return table.ids[:, table.names.index(name)]
    return np.zeros(len(table), np.int32)


def columns(table: LabelTable, names: Sequence[str]) -> NDArray[np.int32]:
    """(n, len(names)) int32, C order: the columns of ``names`` in that order, zeros for missing ones."""
    if tuple(names) == table.names:
        return table.ids
    out = np.zeros((len(table), len(names)), np.int32)
    for i, name in enumerate(names):
        if name in table.names:
            out[:, i] = table.ids[:, table.names.index(name)]
    return out


def stack(tables: Sequence[LabelTable]) -> LabelTable:
    """All rows of several tables of one query, over the union of their columns."""
    names = tables[0].names
    if any(table.names != names for table in tables[1:]):
        names = tuple(sorted({name for table in tables for name in table.names}, key=str.encode))
    return LabelTable(names, np.concatenate([columns(table, names) for table in tables]), tables[0].symbols)


def group_ids(keys: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Number the distinct rows of ``keys``.

    Returns
    -------
    group : (n,) int32            number of each row's group, in order of first appearance
    first : (groups,) int32       first row of each group
    """
    n = len(keys)
    if n == 0 or keys.shape[1] == 0:
        return np.zeros(n, np.int32), np.zeros(min(n, 1), np.int32)
    group = np.empty(n, np.int32)
    first = np.empty(n, np.int32)
    slots = np.zeros(1 << (2 * n - 1).bit_length(), np.int32)
    count = group_rows(np.ascontiguousarray(keys), slots, group, first)
    return group, first[:count]


def by_group(group: NDArray[np.int32], groups: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows ordered by group (order, bounds): rows of group g are ``order[bounds[g]:bounds[g + 1]]``, in order."""
    order = np.argsort(group, kind="stable").astype(np.int64, copy=False)
    bounds = np.zeros(groups + 1, np.int64)
    np.cumsum(np.bincount(group, minlength=groups), out=bounds[1:])
    return order, bounds


def sort_order(table: LabelTable) -> NDArray[np.intp]:
    """Order of the rows by their labels, as Prometheus compares label sets.

    Label by label in order of names: at the first difference the smaller name comes first, of equal names the smaller
    value; a label set that ends comes before one that goes on.
    """
    keys: list[NDArray[np.int64]] = []
    later = np.zeros(len(table), np.bool_)  # has a label in a column further right
    for at in range(len(table.names) - 1, -1, -1):
        ids = table.ids[:, at]
        if not later.any() and (ids == ids[0]).all():
            later |= ids != 0
            continue
        distinct, inverse = np.unique(ids, return_inverse=True)
        texts = table.symbols.texts(distinct)
        ranks = np.empty(len(distinct), np.int64)
        ranks[sorted(range(len(texts)), key=texts.__getitem__)] = np.arange(1, len(distinct) + 1)
        key = ranks[inverse]
        absent = ids == 0
        key[absent] = np.where(later[absent], len(distinct) + 1, 0)
        keys.append(key)
        later |= ~absent
    if not keys:
        return np.arange(len(table))
    return np.lexsort(keys)


def describe(table: LabelTable, row: int, names: Sequence[str] | None = None) -> str:
    """One label set as Prometheus writes it: ``{a="1", b="2"}``."""
    labels = table.labels(row)
    shown = labels.items() if names is None else [(n, labels[n]) for n in sorted(names) if n in labels]
    return "{" + ", ".join(f"{_label_name(name)}={quote(value)}" for name, value in shown) + "}"


def _label_name(name: str) -> str:
    plain = name.isascii() and name.replace("_", "a").isalnum() and not name[0].isdigit()
    return name if plain else quote(name)


_ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "\n": "\\n",
    "\t": "\\t",
    "\r": "\\r",
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\v": "\\v",
}


def quote(text: str) -> str:
    """A Go string literal (``strconv.Quote``)."""
    out = []
    for c in text:
        if c in _ESCAPES:
            out.append(_ESCAPES[c])
        elif c.isprintable():
            out.append(c)
        elif ord(c) < 0x80:
            out.append(f"\\x{ord(c):02x}")
        else:
            out.append(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}")
    return '"' + "".join(out) + '"'
