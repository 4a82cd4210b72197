"""Entries of many frames as one frame, read once and kept as plain texts: what is left of a search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tsdb.frame import LabelTable
from tsdb.logs.frame import Column, Format, LogFrame, Texts, contains, gather
from tsdb.logs.regex.automaton import Automaton
from tsdb.logs.regex.walk import search_texts
from tsdb.logs.rows import join_columns, join_texts


class _ReadRows:
    """The source of a joined frame."""

    format = Format.UNKNOWN
    field_names: tuple[str, ...] = ()

    def __init__(self, lines: Texts, metadata: dict[str, Column]) -> None:
        self._lines = lines
        self._metadata = metadata

    @property
    def metadata_names(self) -> tuple[str, ...]:
        return tuple(sorted(self._metadata))

    def lines(self, rows: NDArray[np.int64]) -> Texts:
        starts = self._lines.offsets[rows]
        return gather(self._lines.data, starts, self._lines.offsets[rows + 1] - starts)

    def line_sizes(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.diff(self._lines.offsets)[rows]

    def field(self, name: str, rows: NDArray[np.int64]) -> Column | None:  # noqa: ARG002
        return None

    def metadata(self, name: str, rows: NDArray[np.int64]) -> Column | None:
        column = self._metadata.get(name)
        if column is None:
            return None
        texts = column.texts()
        present = None if column.present is None else column.present[rows]
        starts = texts.offsets[rows]
        return Column(column.kind, plain=gather(texts.data, starts, texts.offsets[rows + 1] - starts), present=present)

    def matches(self, needle: bytes, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        return contains(self.lines(rows), needle)

    def search(self, automaton: Automaton, rows: NDArray[np.int64]) -> NDArray[np.int8]:
        starts = self._lines.offsets[rows]
        return search_texts(automaton, self._lines.data, starts, self._lines.offsets[rows + 1] - starts)


def join_frames(frames: Sequence[LogFrame]) -> LogFrame:
    """All entries in the order of the frames; of the order of times nothing is promised.

    Parameters
    ----------
    frames : at least one, of one ``select``: their symbols and stream numbers are the same
    """
    sizes = [len(frame) for frame in frames]
    names = sorted({name for frame in frames for name in frame.labels.names}, key=str.encode)
    streams = np.cumsum([0, *(len(frame.refs) for frame in frames)]).tolist()
    ids = np.zeros((streams[-1], len(names)), np.int32)
    for frame, first in zip(frames, streams, strict=False):
        for k, name in enumerate(frame.labels.names):
            ids[first : first + len(frame.refs), names.index(name)] = frame.labels.ids[:, k]
    all_refs = np.concatenate([frame.refs for frame in frames])
    refs, where, inverse = np.unique(all_refs, return_index=True, return_inverse=True)
    labels = LabelTable(tuple(names), ids[where], frames[0].labels.symbols)
    rows = [inverse[first + frame.stream_row] for frame, first in zip(frames, streams, strict=False)]
    bases = np.cumsum([0, *sizes]).tolist()
    metadata: dict[str, Column] = {}
    for name in {name for frame in frames for name in frame.metadata_names}:
        column = join_columns(
            [
                (np.arange(first, first + size), frame.metadata(name) if name in frame.metadata_names else None)
                for frame, first, size in zip(frames, bases, sizes, strict=False)
            ],
            bases[-1],
        )
        if column is not None:
            metadata[name] = column
    return LogFrame(
        refs,
        labels,
        np.concatenate(rows).astype(np.int32),
        np.concatenate([frame.ts_ns for frame in frames]),
        _ReadRows(join_texts([frame.lines() for frame in frames]), metadata),
        np.arange(bases[-1]),
        frames[-1].frontier_ns,
    )
