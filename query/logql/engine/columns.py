"""One label of a batch of lines as a dictionary and codes: what is done to a value is done once per distinct value."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from tsdb.frame import LabelTable
from tsdb.logs.frame import Column, FieldKind, Texts
from tsdb.matchers import Matcher

_NULL = b"null"


def decode(text: bytes) -> str:
    """UTF-8, what is none replaced."""
    return text.decode("utf-8", "replace")


def unescape(text: bytes) -> str:
    """The value of a JSON string between its quotes."""
    if b"\\" in text:
        try:
            value: str = orjson.loads(b'"' + text + b'"')
        except orjson.JSONDecodeError:
            return decode(text)
        return value
    return decode(text)


def arrow_texts(texts: Texts) -> pa.Array:
    """The texts as Arrow binary, without a copy."""
    size = int(texts.offsets[-1])
    buffers = [None, pa.py_buffer(np.ascontiguousarray(texts.offsets)), pa.py_buffer(texts.data[:size])]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(texts.offsets) - 1, buffers)


def _encoded(texts: Texts) -> tuple[list[bytes], NDArray[np.int32]]:
    """Distinct texts, and which of them each text is."""
    found = arrow_texts(texts).dictionary_encode()
    return found.dictionary.to_pylist(), found.indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)


class Values:
    """(n,) texts of one label; an absent label is the empty text, as in every matcher.

    Attributes
    ----------
    codes : (n,) int32      which of ``texts``; -1 = absent
    texts : distinct texts, some of which may be unused
    """

    __slots__ = ("codes", "texts")

    def __init__(self, codes: NDArray[np.int32], texts: Sequence[str]) -> None:
        self.codes = codes
        self.texts = texts

    def __len__(self) -> int:
        return len(self.codes)

    @classmethod
    def absent(cls, n: int) -> Values:
        """Nobody has it."""
        return cls(np.full(n, -1, np.int32), ())

    @classmethod
    def constant(cls, n: int, text: str) -> Values:
        """Everybody has the same."""
        return cls(np.zeros(n, np.int32), (text,))

    @classmethod
    def of(cls, texts: Sequence[str | None]) -> Values:
        """From one value a row (slow path: templates)."""
        known: dict[str, int] = {}
        codes = [-1 if not text else known.setdefault(text, len(known)) for text in texts]
        return cls(np.array(codes, np.int32), list(known))

    @classmethod
    def of_texts(cls, texts: Texts, present: NDArray[np.bool_] | None, *, escaped: bool) -> Values:
        """From bytes, one text a row; empty texts are absent."""
        distinct, codes = _encoded(texts)
        read = unescape if escaped else decode
        keep = np.array([bool(text) for text in distinct], np.bool_)
        if not keep.all():
            codes = np.where(keep[codes], codes, np.int32(-1)) if len(keep) else codes
        if present is not None:
            codes = np.where(present, codes, np.int32(-1))
        return cls(codes, [read(text) for text in distinct])

    @classmethod
    def of_column(cls, column: Column) -> Values:
        """A stored field or metadata; null and arrays are absent, as the json parser leaves them out."""
        if column.kind == FieldKind.RAW:
            return cls.absent(len(column))
        if column.codes is not None and column.dictionary is not None:
            distinct, codes = column.dictionary.to_list(), column.codes
        else:
            distinct, codes = _encoded(column.texts())
        dropped = [not text or (column.kind == FieldKind.BARE and text == _NULL) for text in distinct]
        if any(dropped):
            codes = np.where(np.array(dropped)[codes], np.int32(-1), codes)
        if column.present is not None:
            codes = np.where(column.present, codes, np.int32(-1))
        read = unescape if column.escaped and column.kind == FieldKind.TEXT else decode
        return cls(codes.astype(np.int32, copy=False), [read(text) for text in distinct])

    @classmethod
    def of_labels(cls, table: LabelTable, name: str, stream_row: NDArray[np.int32]) -> Values:
        """A label of the streams."""
        ids = table.ids[:, table.names.index(name)]
        distinct, inverse = np.unique(ids, return_inverse=True)
        texts = table.symbols.texts(distinct.astype(np.int32))
        codes = np.where(distinct[inverse] == 0, -1, inverse).astype(np.int32)
        return cls(codes[stream_row], texts)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Values:
        """Some rows."""
        return Values(self.codes[rows], self.texts)

    @property
    def present(self) -> NDArray[np.bool_]:
        """(n,) bool."""
        return self.codes >= 0

    def used(self) -> NDArray[np.int32]:
        """Codes that occur, -1 excluded."""
        seen = np.zeros(len(self.texts) + 1, np.bool_)
        seen[self.codes] = True  # -1 is the last
        return np.flatnonzero(seen[:-1]).astype(np.int32)

    def map(self, function: Callable[[str], float], absent: float) -> NDArray[np.float64]:
        """(n,) float64: a number per row, the function called once per distinct text that occurs."""
        out = np.full(len(self.texts) + 1, absent)
        for code in self.used().tolist():
            out[code] = function(self.texts[code])
        return out[self.codes]

    def matches(self, matcher: Matcher) -> NDArray[np.bool_]:
        """Which rows satisfy a matcher, (n,) bool."""
        used = self.used()
        out = np.zeros(len(self.texts) + 1, np.bool_)
        if len(used):
            out[used] = matcher.mask([self.texts[code] for code in used.tolist()])
        out[-1] = matcher.matches_empty
        return out[self.codes]

    def without(self, mask: NDArray[np.bool_]) -> Values:
        """Absent where the mask is set."""
        return Values(np.where(mask, np.int32(-1), self.codes), self.texts) if mask.any() else self

    def where(self, mask: NDArray[np.bool_], other: Values) -> Values:
        """Of ``self`` where the mask is set, of ``other`` elsewhere."""
        if mask.all():
            return self
        shift = np.int32(len(self.texts))
        codes = np.where(mask, self.codes, np.where(other.codes < 0, np.int32(-1), other.codes + shift))
        return Values(codes, [*self.texts, *other.texts])

    def to_list(self) -> list[str]:
        """One text a row, empty = absent (slow path: results)."""
        texts = [*self.texts, ""]
        return [texts[code] for code in self.codes.tolist()]
