"""Entries in memory as a frame reads them: lines, structured metadata and levels in flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tsdb.logs.frame import DETECTED_LEVEL, LEVELS, PAD_BYTES, Column, FieldKind, Format, Texts, contains, gather
from tsdb.logs.regex.automaton import Automaton
from tsdb.logs.regex.walk import search_texts

SEPARATOR = 0xFF
"""Behind each name and each value of structured metadata; never occurs in UTF-8."""

_LEVEL_TEXTS = Texts.of([level.encode() for level in LEVELS])


class Pairs(NamedTuple):
    """Structured metadata of many rows, taken apart: pair k is of ``rows[k]``, named ``names[codes[k]]``."""

    names: tuple[str, ...]
    codes: NDArray[np.int64]
    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


def split_metadata(blob: Texts) -> Pairs:
    """Take ``name 0xFF value 0xFF ...`` blobs apart."""
    used = blob.data[: int(blob.offsets[-1])]
    ends = np.flatnonzero(used == SEPARATOR)
    name_ends, value_ends = ends[0::2], ends[1::2]
    name_starts = np.concatenate([blob.offsets[:1], value_ends[:-1] + 1]) if len(value_ends) else value_ends
    names = gather(blob.data, name_starts, name_ends - name_starts)
    size = int(names.offsets[-1])
    array = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(name_ends), [None, pa.py_buffer(names.offsets), pa.py_buffer(names.data[:size])]
    ).dictionary_encode()
    texts = tuple(value.decode("utf-8", "replace") for value in array.dictionary.to_pylist())
    rows = np.searchsorted(blob.offsets, name_starts, "right") - 1
    return Pairs(texts, array.indices.to_numpy().astype(np.int64), rows, name_ends + 1, value_ends)


def pair_column(pairs: Pairs, name: str, blob: Texts, n: int) -> Column | None:
    """The column of one name over n rows; the last of repeated names counts."""
    if name not in pairs.names:
        return None
    chosen = np.flatnonzero(pairs.codes == pairs.names.index(name))
    rows = pairs.rows[chosen]
    starts, lengths = np.zeros(n, np.int64), np.zeros(n, np.int64)
    present = np.zeros(n, np.bool_)
    starts[rows] = pairs.starts[chosen]
    lengths[rows] = pairs.ends[chosen] - pairs.starts[chosen]
    present[rows] = True
    return Column(FieldKind.TEXT, plain=gather(blob.data, starts, lengths), present=None if present.all() else present)


def level_column(levels: NDArray[np.uint8], explicit: Column | None) -> Column | None:
    """``detected_level``: what the sender said, else what was derived."""
    if explicit is None:
        if not levels.any():
            return None
        present = levels != 0
        return Column(
            FieldKind.TEXT,
            dictionary=_LEVEL_TEXTS,
            codes=levels.astype(np.int32),
            present=None if present.all() else present,
        )
    if explicit.present is None or not levels.any():
        return explicit
    texts = explicit.texts()
    data = np.concatenate([_LEVEL_TEXTS.data, texts.data])
    starts = np.where(explicit.present, texts.offsets[:-1] + len(_LEVEL_TEXTS.data), _LEVEL_TEXTS.offsets[levels])
    lengths = np.where(explicit.present, np.diff(texts.offsets), np.diff(_LEVEL_TEXTS.offsets)[levels])
    present = explicit.present | (levels != 0)
    return Column(FieldKind.TEXT, plain=gather(data, starts, lengths), present=None if present.all() else present)


def join_columns(parts: list[tuple[NDArray[np.int64], Column | None]], n: int) -> Column | None:
    """One column over n rows from columns over some of them."""
    held = [(at, column) for at, column in parts if column is not None]
    if not held:
        return None
    if len(parts) == 1 and len(held[0][0]) == n:
        return held[0][1]
    starts, lengths, present = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.bool_)
    pools = []
    base = 0
    for at, column in held:
        texts = column.texts()
        starts[at], lengths[at] = texts.offsets[:-1] + base, np.diff(texts.offsets)
        present[at] = True if column.present is None else column.present
        pools.append(texts.data)
        base += len(texts.data)
    return Column(
        max(column.kind for _, column in held) if len({c.kind for _, c in held}) > 1 else held[0][1].kind,
        plain=gather(np.concatenate(pools), starts, lengths),
        present=None if present.all() else present,
        escaped=any(column.escaped for _, column in held),
    )


def join_texts(parts: Sequence[Texts]) -> Texts:
    """Texts of many one behind the other."""
    sizes = np.concatenate([np.diff(part.offsets) for part in parts])
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    used = [part.data[int(part.offsets[0]) : int(part.offsets[-1])] for part in parts]
    return Texts(np.concatenate([*used, np.zeros(PAD_BYTES, np.uint8)]), offsets)


class PlainRows:
    """Uncompressed entries.

    Parameters
    ----------
    line_data, line_offsets : the lines, one behind the other, with ``PAD_BYTES`` readable behind them
    meta_data, meta_offsets : structured metadata, ``name 0xFF value 0xFF ...`` a row
    levels : (n,) uint8        code of the derived level, see ``frame.LEVELS``
    """

    __slots__ = ("_levels", "_line_data", "_line_offsets", "_meta_data", "_meta_offsets")

    def __init__(
        self,
        line_data: NDArray[np.uint8],
        line_offsets: NDArray[np.int64],
        meta_data: NDArray[np.uint8],
        meta_offsets: NDArray[np.int64],
        levels: NDArray[np.uint8],
    ) -> None:
        self._line_data = line_data
        self._line_offsets = line_offsets
        self._meta_data = meta_data
        self._meta_offsets = meta_offsets
        self._levels = levels

    @staticmethod
    def of(lines: list[bytes], metadata: list[dict[str, str]] | None = None) -> PlainRows:
        """From Python values (slow path: tests)."""
        line_data, line_offsets = Texts.of(lines)
        pairs = metadata or [{} for _ in lines]
        blobs = [b"".join(f"{k}\x00{v}\x00".encode().replace(b"\0", b"\xff") for k, v in p.items()) for p in pairs]
        meta_data, meta_offsets = Texts.of(blobs)
        return PlainRows(line_data, line_offsets, meta_data, meta_offsets, np.zeros(len(lines), np.uint8))

    @property
    def format(self) -> Format:
        return Format.UNKNOWN

    @property
    def field_names(self) -> tuple[str, ...]:
        return ()

    @property
    def metadata_names(self) -> tuple[str, ...]:
        n = len(self._meta_offsets) - 1
        names = set(split_metadata(Texts(self._meta_data, self._meta_offsets)).names) if n else set()
        if self._levels[:n].any():
            names.add(DETECTED_LEVEL)
        return tuple(sorted(names))

    def _blobs(self, rows: NDArray[np.int64]) -> Texts:
        starts = self._meta_offsets[rows]
        return gather(self._meta_data, starts, self._meta_offsets[rows + 1] - starts)

    def lines(self, rows: NDArray[np.int64]) -> Texts:
        starts = self._line_offsets[rows]
        return gather(self._line_data, starts, self._line_offsets[rows + 1] - starts)

    def line_sizes(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.diff(self._line_offsets)[rows]

    def field(self, name: str, rows: NDArray[np.int64]) -> Column | None:  # noqa: ARG002
        return None

    def metadata(self, name: str, rows: NDArray[np.int64]) -> Column | None:
        blob = self._blobs(rows)
        column = pair_column(split_metadata(blob), name, blob, len(rows))
        return level_column(self._levels[rows], column) if name == DETECTED_LEVEL else column

    def matches(self, needle: bytes, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        return contains(self.lines(rows), needle)

    def search(self, automaton: Automaton, rows: NDArray[np.int64]) -> NDArray[np.int8]:
        starts = self._line_offsets[rows]
        return search_texts(automaton, self._line_data, starts, self._line_offsets[rows + 1] - starts)
