"""Tests of single labels that a part's index can deny for whole groups (``tsdb.logs.facts`` says what it knows)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsdb.errors import CorruptionError
from tsdb.logs.blobs import NO_INTS, BlobReader, BlobWriter
from tsdb.logs.facts import ColumnFact, Known, hash_of, seed_of
from tsdb.logs.frame import Format, Texts
from tsdb.logs.text_types import is_uuid

_CAN: dict[str, Callable[..., Any]] = {
    ">": np.greater, ">=": np.greater_equal, "<": np.less, "<=": np.less_equal,
}  # fmt: skip
_HEX = re.compile(rb"(?:[0-9a-f]{2})+")
_NUMBER = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?")


@dataclass(frozen=True, slots=True)
class LabelTest:
    """What a label must be for an entry to pass.

    Attributes
    ----------
    label : its name; a stream that has it decides alone, and its entries are not denied
    is_name_of : whether a field or key of structured metadata becomes the label
    format : of the lines whose fields become labels; None = no fields do
    texts : it is one of these; None = ``op`` counts
    op, value : it is a number for which ``number op value`` holds, with op one of == > >= < <=
    """

    label: str
    is_name_of: Callable[[str], bool]
    format: Format | None
    texts: tuple[bytes, ...] | None = None
    op: str = ""
    value: float = 0.0


Clause = tuple[LabelTest, ...]
"""At least one of them holds for every wanted entry."""

Ask = Callable[[NDArray[np.uint8], NDArray[np.int64]], NDArray[np.bool_]]
"""(bytes of a value, groups) -> in the filters of which it may be."""


def put_facts(blobs: BlobWriter, columns: Sequence[tuple[int, ColumnFact]]) -> dict[str, Any]:
    """What :class:`ColumnIndex` reads: (group, fact) each."""
    names = sorted({fact.name for _, fact in columns})
    place = {name: k for k, name in enumerate(names)}
    bounds = np.array([[fact.low for _, fact in columns], [fact.high for _, fact in columns]], np.float64)

    def put(values: list[int]) -> list[Any]:
        return blobs.put_ints(np.array(values, np.int64))

    return {
        "n": len(columns),
        "names": blobs.put_texts(Texts.of(names)),
        "group": put([group for group, _ in columns]),
        "name": put([place[fact.name] for _, fact in columns]),
        "known": put([int(fact.known) for _, fact in columns]),
        "width": put([fact.width for _, fact in columns]),
        "bounds": blobs.put(bounds.reshape(-1).view(np.uint8)),
    }


class ColumnIndex:
    """The columns of all groups of a part.

    Parameters
    ----------
    entry : what :func:`put_facts` returned; None = nothing is known of any column
    formats : (n_groups,) int64        format of the lines of each group

    Raises
    ------
    CorruptionError
    """

    def __init__(self, blobs: BlobReader, entry: dict[str, Any] | None, formats: NDArray[np.int64]) -> None:
        self._formats = formats
        self._is_known = entry is not None
        self._names: list[str] = []
        self._group = self._name = self._known = self._width = NO_INTS
        self._low = self._high = np.zeros(0, np.float64)
        if entry is None:
            return
        n = entry["n"]
        self._names = [name.decode("utf-8", "surrogateescape") for name in blobs.texts(entry["names"]).to_list()]
        self._group, self._name, self._known, self._width = (
            blobs.ints(entry[key], n) for key in ("group", "name", "known", "width")
        )
        bounds = blobs.get(entry["bounds"], 0)
        if len(bounds) != 16 * n or (n and int(self._name.max()) >= len(self._names)):
            raise CorruptionError("index", 0, "what is known of the columns does not fit")
        self._low, self._high = bounds.view(np.float64).reshape(2, n)

    def may_pass(self, clause: Clause, groups: NDArray[np.int64], ask: Ask) -> NDArray[np.bool_]:
        """Which of some groups, ascending, may have an entry for which one of the tests holds."""
        if not self._is_known:
            return np.ones(len(groups), np.bool_)
        maybe = np.zeros(len(groups), np.bool_)
        for test in clause:
            maybe |= self._may_hold(test, groups, ask)
        return maybe

    def _may_hold(self, test: LabelTest, groups: NDArray[np.int64], ask: Ask) -> NDArray[np.bool_]:
        maybe = np.zeros(len(groups), np.bool_)
        if test.format is not None:
            maybe |= self._formats[groups] != test.format
        for number in [k for k, name in enumerate(self._names) if test.is_name_of(name)]:
            for metadata in (0, Known.METADATA):
                if not metadata and test.format is None:
                    continue
                columns = np.flatnonzero((self._name == number) & (self._known & Known.METADATA == metadata))
                at = np.searchsorted(groups, self._group[columns])
                at[at == len(groups)] = 0
                chosen = groups[at] == self._group[columns] if len(groups) else np.zeros(len(columns), np.bool_)
                columns, at = columns[chosen], at[chosen]
                if len(columns):
                    maybe[at] |= self._can_be(
                        test, self._names[number].encode("utf-8", "surrogateescape"), columns, ask
                    )
        return maybe

    def _can_be(self, test: LabelTest, name: bytes, columns: NDArray[np.int64], ask: Ask) -> NDArray[np.bool_]:
        """Which of some columns of one name may have a wanted value."""
        known = self._known[columns]
        bounded = known & Known.BOUNDED != 0
        if test.texts is None:
            return np.asarray(~bounded | self._within(test.op, test.value, columns), np.bool_)
        out = np.zeros(len(columns), np.bool_)
        groups = self._group[columns]
        for text in test.texts:
            can = np.ones(len(columns), np.bool_)
            if (known & Known.HASHED).any():
                seed = seed_of(name, Known(int(known[0]) & Known.METADATA))
                can &= (known & Known.HASHED == 0) | ask(hash_of(text, seed), groups)
            if (known & Known.RAW).any():
                can &= (known & Known.RAW == 0) | self._is_raw(text, columns, ask)
            if bounded.any():
                number = _NUMBER.fullmatch(text) is not None
                can &= ~bounded | (self._within("==", float(text), columns) if number else False)
            out |= can
        return out

    def _within(self, op: str, value: float, columns: NDArray[np.int64]) -> Any:
        """Whether a number between the bounds can hold against a value."""
        low, high = self._low[columns], self._high[columns]
        if op == "==":
            return (low <= value) & (value <= high)
        return _CAN[op](high if op[0] == ">" else low, value)

    def _is_raw(self, text: bytes, columns: NDArray[np.int64], ask: Ask) -> NDArray[np.bool_]:
        """Which columns of hex ids or UUIDs may have a text."""
        if is_uuid(text):
            value = bytes.fromhex(text.replace(b"-", b"").decode())
        elif _HEX.fullmatch(text):
            value = bytes.fromhex(text.decode())
        else:
            return np.zeros(len(columns), np.bool_)
        fits = self._width[columns] == len(value)
        return np.asarray(fits & ask(np.frombuffer(value, np.uint8), self._group[columns]), np.bool_)
