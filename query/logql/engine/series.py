"""Series of a metric query: label sets numbered as they appear."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from query.engine.grid import columns, group_ids
from query.errors import BadDataError
from query.logql.ast import Grouping
from query.logql.engine.batch import ERROR, ERROR_DETAILS, Batch
from query.promql.literals import quote
from tsdb.frame import LabelTable, SymbolOverlay


class SeriesNumbers:
    """Numbers of label sets.

    Parameters
    ----------
    grouping : which labels make a series, None = all
    without : labels that never do
    series_max : most series
    """

    def __init__(self, grouping: Grouping | None, without: Sequence[str], series_max: int) -> None:
        self._grouping = grouping
        self._without = frozenset(without)
        self._series_max = series_max
        self._numbers: dict[tuple[tuple[str, str], ...], int] = {}
        self._of_ref = np.full(1, -1, np.int32)  # series of a stream, where only its own labels count

    def __len__(self) -> int:
        return len(self._numbers)

    def names(self, batch: Batch) -> list[str]:
        """Labels that make a series of a batch's lines."""
        grouping = self._grouping
        if grouping is not None and not grouping.without:
            return sorted(set(grouping.names))
        left_out = self._without | set(grouping.names if grouping else ())
        return [name for name in batch.names() if name not in left_out]

    def number(self, batch: Batch) -> NDArray[np.int32]:
        """(n,) int32: the series of every line.

        Raises
        ------
        BadDataError        too many series, or lines that carry an error
        """
        names = self.names(batch)
        if self._grouping is not None and not self._grouping.without and batch.is_of_streams((*names, ERROR)):
            frame = batch.frame
            return self.number_streams(frame.refs, frame.labels, frame.stream_row, names)
        columns = [batch.get(name) for name in names]
        errors = batch.errors()
        if errors is not None:
            row = int(np.flatnonzero(errors)[0])
            raise pipeline_error(batch, row)
        if not columns:
            self._numbers.setdefault((), len(self._numbers))
            return np.zeros(len(batch), np.int32) + np.int32(self._numbers[()])
        if len(columns) == 1:
            return self._number_one(names[0], columns[0].codes, columns[0].texts)
        keys = np.stack([column.codes for column in columns], axis=1)
        group, first = group_ids(keys)
        numbers = np.empty(len(first), np.int32)
        for at, row in enumerate(first.tolist()):
            key = tuple(
                (name, column.texts[column.codes[row]])
                for name, column in zip(names, columns, strict=True)
                if column.codes[row] >= 0
            )
            numbers[at] = self._of(key)
        return numbers[group]

    def number_streams(
        self, refs: NDArray[np.uint32], labels: LabelTable, stream_row: NDArray[np.int32], names: Sequence[str]
    ) -> NDArray[np.int32]:
        """(n,) int32: the series of entries by some labels of their streams, numbered once in a query.

        Parameters
        ----------
        refs, labels, stream_row : as of a :class:`tsdb.logs.frame.LogFrame`
        """
        highest = int(refs.max(initial=0))
        if highest >= len(self._of_ref):
            grown = np.full(max(highest + 1, 2 * len(self._of_ref)), -1, np.int32)
            grown[: len(self._of_ref)] = self._of_ref
            self._of_ref = grown
        numbers = self._of_ref[refs]
        if (numbers < 0).any():
            seen = np.zeros(len(refs), np.bool_)
            seen[stream_row] = True  # only streams that have a line make a series
            rows = np.flatnonzero(seen & (numbers < 0))
            group, first = group_ids(np.ascontiguousarray(columns(labels, names)[rows]))
            made = np.empty(len(first), np.int32)
            for at, row in enumerate(rows[first].tolist()):
                own = labels.labels(row)
                made[at] = self._of(tuple((name, own[name]) for name in names if name in own))
            numbers[rows] = made[group]
            self._of_ref[refs] = numbers
        return numbers[stream_row]

    def _number_one(self, name: str, codes: NDArray[np.int32], texts: Sequence[str]) -> NDArray[np.int32]:
        numbers = np.array([self._numbers.get(((name, text),), -1) for text in texts] + [-1], np.int32)
        numbers[-1] = self._numbers.get((), -1)
        found = numbers.take(codes, mode="wrap")  # -1 is the last
        if (found < 0).any():  # only values that a line has make a series
            for code in np.unique(codes[found < 0]).tolist():
                numbers[code] = self._of(((name, texts[code]),) if code >= 0 else ())
            found = numbers.take(codes, mode="wrap")
        return found

    def _of(self, key: tuple[tuple[str, str], ...]) -> int:
        number = self._numbers.setdefault(key, len(self._numbers))
        if number >= self._series_max:
            raise BadDataError(
                f"maximum number of series ({self._series_max}) reached for a single query; consider reducing query "
                "cardinality by adding more specific stream selectors, reducing the time range, or aggregating results "
                "with functions like sum(), count() or topk()"
            )
        return number

    def table(self, symbols: SymbolOverlay) -> LabelTable:
        """Labels of all series, by number."""
        return LabelTable.of([dict(key) for key in self._numbers], symbols)


def pipeline_error(batch: Batch, row: int) -> BadDataError:
    """The error of a metric query whose lines could not be read, in Loki's words."""
    labels = {name: batch.get(name).to_list()[row] for name in {*batch.names(), ERROR, ERROR_DETAILS}}
    kind = labels[ERROR]
    shown = ", ".join(f"{name}={quote(text)}" for name, text in sorted(labels.items()) if text)
    return BadDataError(
        f"pipeline error: '{kind}' for series: '{{{shown}}}'.\n"
        'Use a label filter to intentionally skip this error. (e.g | __error__!="'
        f'{kind}").\nTo skip all potential errors you can match empty errors.(e.g __error__="")\n'
        'The label filter can also be specified after unwrap. (e.g | unwrap latency | __error__="" )\n'
    )
