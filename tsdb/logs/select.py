"""One read of a tenant's log rows: which groups and buffers have to be looked at, and frames of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsdb.index.registry import SeriesRegistry
from tsdb.logs.buffer import Buffer
from tsdb.logs.deletions import Deletion, Eraser
from tsdb.logs.frame import ROWS_MAX, Alike, LogFrame, RunCounts
from tsdb.logs.part import Part, Rows
from tsdb.logs.pruning import Clause
from tsdb.matchers import Matcher, MatchOp


class View(NamedTuple):
    """Where the rows are at one moment."""

    buffers: tuple[Buffer, ...]
    parts: tuple[Part, ...]


class _Groups(NamedTuple):
    """Groups of a part that have wanted runs in the range.

    Attributes
    ----------
    numbers, low_ns, high_ns : (n,) int64
    whole : (n,) bool        all runs of the group are wanted and inside the range
    """

    part: Part
    numbers: NDArray[np.int64]
    low_ns: NDArray[np.int64]
    high_ns: NDArray[np.int64]
    whole: NDArray[np.bool_]

    def choose(self, rows: NDArray[np.bool_]) -> _Groups:
        """Some of them."""
        return _Groups(self.part, self.numbers[rows], self.low_ns[rows], self.high_ns[rows], self.whole[rows])


class _Piece(NamedTuple):
    """What becomes one frame: a group of a part, or some rows of a buffer in the order of their times."""

    low_ns: int
    high_ns: int
    age: int  # of what holds it: larger = newer
    part: Part | None
    group: int
    whole: bool
    buffer: Buffer | None
    rows: NDArray[np.int64]


MIN_NS, MAX_NS = -(1 << 63), (1 << 63) - 1
_NO_ROWS: NDArray[np.int64] = np.zeros(0, np.int64)


def part_without(part: Part, eraser: Eraser, registry: SeriesRegistry) -> Rows | None:
    """The rows of a part that are not deleted; None where all are left.

    Raises
    ------
    CorruptionError
    """
    _, refs, _, min_ns, max_ns, _ = part.runs
    if not eraser or not eraser.touches(part.position, refs, min_ns, max_ns).any():
        return None
    everything = Selection(View((), (part,)), registry, (), (), MIN_NS, MAX_NS)
    keep = []
    for group in range(len(part)):
        frame = everything.frame_of_group(part, group, True, 0, ordered=False)
        left = np.zeros(len(frame), np.bool_)
        left[eraser.left(frame, part.position).rows] = True
        keep.append(left)
    mask = np.concatenate(keep)
    return None if mask.all() else part.all_rows().keep(mask)


class Selection:
    """One read.

    Parameters
    ----------
    view : what there is; taken after ``deletions``, so that nothing newer than a request is held against it
    start_ns, end_ns : the second is excluded
    """

    def __init__(
        self,
        view: View,
        registry: SeriesRegistry,
        deletions: Sequence[Deletion],
        matchers: Sequence[Matcher],
        start_ns: int,
        end_ns: int,
    ) -> None:
        self._buffers, self._parts = view
        self._registry = registry
        self._start_ns = start_ns
        self._end_ns = end_ns
        self._wanted = np.zeros(len(registry), np.uint8)
        self._wanted[registry.find(matchers)] = 1
        self._eraser = Eraser(deletions, registry, self._wanted, start_ns, end_ns)

    def _runs_of(self, part: Part) -> NDArray[np.int64]:
        """Wanted runs of a part in the range that are not deleted whole."""
        runs = part.runs_of(self._wanted, self._start_ns, self._end_ns)
        if self._eraser:
            _, refs, _, min_ns, max_ns, _ = part.runs
            runs = runs[~self._eraser.covers(part.position, refs[runs], min_ns[runs], max_ns[runs])]
        return runs

    def _rows_of(self, buffer: Buffer) -> NDArray[np.int64]:
        """Wanted rows of a buffer in the range that are not deleted whatever their lines are."""
        rows = buffer.find(self._wanted, self._start_ns, self._end_ns)
        if self._eraser:
            ts_ns = buffer.ts_ns()[rows]
            rows = rows[~self._eraser.covers(buffer.after, buffer.refs()[rows].astype(np.int64), ts_ns, ts_ns)]
        return rows

    def _groups_of(self, part: Part) -> _Groups:
        runs = self._runs_of(part)
        if not len(runs):
            return _Groups(part, _NO_ROWS, _NO_ROWS, _NO_ROWS, np.zeros(0, np.bool_))
        numbers, first, count = np.unique(part.runs.group[runs], return_index=True, return_counts=True)
        low_ns = np.minimum.reduceat(part.runs.min_ns[runs], first)
        high_ns = np.maximum.reduceat(part.runs.max_ns[runs], first)
        whole = (count == part.run_counts[numbers]) & (low_ns >= self._start_ns) & (high_ns < self._end_ns)
        return _Groups(part, numbers, low_ns, high_ns, whole)

    def _has_label(self, name: str) -> bool:
        """Whether any wanted stream has a label."""
        refs = self._registry.find([Matcher(name, MatchOp.NOT_EQUAL, "")])
        return bool(self._wanted[refs[refs < len(self._wanted)]].any())

    def _pieces(self, groups: Sequence[_Groups]) -> list[_Piece]:
        """Pieces of some groups, by age of their parts, and of all buffers."""
        pieces = []
        for age, chosen in enumerate(groups):
            columns = (chosen.low_ns, chosen.high_ns, chosen.numbers, chosen.whole)
            for low, high, number, whole in zip(*(column.tolist() for column in columns), strict=True):
                pieces.append(_Piece(low, high, age, chosen.part, number, whole, None, _NO_ROWS))
        for age, buffer in enumerate(self._buffers, len(groups)):
            rows = self._rows_of(buffer)
            rows = rows[np.argsort(buffer.ts_ns()[rows], kind="stable")]
            for first in range(0, len(rows), ROWS_MAX):
                some = rows[first : first + ROWS_MAX]
                low, high = buffer.ts_ns()[some[[0, -1]]].tolist()
                pieces.append(_Piece(low, high, age, None, 0, False, buffer, some))
        return pieces

    def frames(
        self,
        *,
        needles: Sequence[bytes] = (),
        clauses: Sequence[Clause] = (),
        backward: bool = True,
        ordered: bool = True,
    ) -> Iterator[LogFrame]:
        """All entries: see ``LogReader.select``."""
        groups = [self._groups_of(part) for part in self._parts]
        if needles:
            groups = [some.choose(some.part.may_hold(needles, some.numbers)) for some in groups]
        clauses = [clause for clause in clauses if not any(self._has_label(test.label) for test in clause)]
        if clauses:
            groups = [some.choose(some.part.may_pass(clauses, some.numbers)) for some in groups]
        return self._read(self._pieces(groups), backward=backward, ordered=ordered)

    def _read(self, pieces: list[_Piece], *, backward: bool, ordered: bool) -> Iterator[LogFrame]:
        if backward:
            pieces.sort(key=lambda piece: (-piece.high_ns, -piece.age))
            frontiers = [piece.high_ns for piece in pieces[1:]] + [self._start_ns - 1]
        else:
            pieces.sort(key=lambda piece: (piece.low_ns, piece.age))
            frontiers = [piece.low_ns for piece in pieces[1:]] + [self._end_ns]
        for piece, frontier_ns in zip(pieces, frontiers, strict=False):
            if piece.buffer is not None:
                frame = self._frame_of_buffer(piece.buffer, piece.rows, frontier_ns)
            else:
                assert piece.part is not None
                frame = self.frame_of_group(piece.part, piece.group, piece.whole, frontier_ns, ordered=ordered)
            if len(frame):
                yield frame

    def _frame_of_buffer(self, buffer: Buffer, rows: NDArray[np.int64], frontier_ns: int) -> LogFrame:
        used, stream_row = np.unique(buffer.refs()[rows], return_inverse=True)
        labels = self._registry.label_table(used)
        frame = LogFrame(
            used, labels, stream_row.astype(np.int32), buffer.ts_ns()[rows], buffer.source(), rows, frontier_ns
        )
        return self._eraser.left(frame, buffer.after)

    def frame_of_group(self, part: Part, number: int, whole: bool, frontier_ns: int, *, ordered: bool) -> LogFrame:
        """Wanted rows of a group; ``whole`` = all of them are wanted and in the range."""
        group = part.open(number)
        runs = part.runs_in(number)
        refs, ts_ns, rows = part.runs.ref[runs], group.ts_ns, group.every_row
        stream_row = np.repeat(np.arange(len(refs), dtype=np.int32), part.runs.rows[runs])
        if not whole:
            known = refs < len(self._wanted)
            hit = known & (self._wanted[np.where(known, refs, 0)] != 0)
            rows = np.flatnonzero(hit[stream_row] & (ts_ns >= self._start_ns) & (ts_ns < self._end_ns))
            ts_ns, stream_row = ts_ns[rows], stream_row[rows]
            used = np.bincount(stream_row, minlength=len(refs)) > 0
            stream_row = (np.cumsum(used, dtype=np.int32) - np.int32(1))[stream_row]
            refs = refs[used]
        if ordered:
            order = np.argsort(ts_ns, kind="stable")
            rows, ts_ns, stream_row = rows[order], ts_ns[order], stream_row[order]
        numbers = refs.astype(np.uint32)
        labels = self._registry.label_table(numbers)
        frame = LogFrame(numbers, labels, stream_row, ts_ns, group, rows, frontier_ns)
        return self._eraser.left(frame, part.position)

    def condensed(self, alike: Alike) -> tuple[RunCounts, Iterator[LogFrame]]:
        """Runs whose first and last times are as good as one, and frames of all other entries: ``LogReader``.

        A group is taken whole: it is read when any of its wanted runs has to be.
        """
        left: list[_Groups] = []
        taken: list[NDArray[np.int64]] = [np.zeros((4, 0), np.int64)]
        for part in self._parts:
            groups = self._groups_of(part)
            _, refs, entries, min_ns, max_ns, size = part.runs
            runs = self._runs_of(part)
            cut = (min_ns[runs] < self._start_ns) | (max_ns[runs] >= self._end_ns) | ~alike(min_ns[runs], max_ns[runs])
            if self._eraser:
                cut |= self._eraser.touches(part.position, refs[runs], min_ns[runs], max_ns[runs])
            group_of = np.searchsorted(groups.numbers, part.runs.group[runs])
            read = np.bincount(group_of, cut, len(groups.numbers)) > 0
            left.append(groups.choose(read))
            runs = runs[~read[group_of]] if len(runs) else runs
            taken.append(np.stack([refs[runs], min_ns[runs], entries[runs], size[runs]]))
        refs, ts_ns, entries, size = np.concatenate(taken, axis=1)
        used, stream_row = np.unique(refs.astype(np.uint32), return_inverse=True)
        counts = RunCounts(used, self._registry.label_table(used), stream_row.astype(np.int32), ts_ns, entries, size)
        return counts, self._read(self._pieces(left), backward=False, ordered=False)

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """(entries, raw bytes) by stream number, and groups of rows, from the index only."""
        entries, size = np.zeros(len(self._wanted), np.int64), np.zeros(len(self._wanted), np.int64)
        chunks = 0
        for part in self._parts:
            hit = self._runs_of(part)
            np.add.at(entries, part.runs.ref[hit], part.runs.rows[hit])
            np.add.at(size, part.runs.ref[hit], part.runs.bytes[hit])
            chunks += len(np.unique(part.runs.group[hit]))
        for buffer in self._buffers:
            rows = self._rows_of(buffer)
            refs = buffer.refs()[rows]
            entries += np.bincount(refs, minlength=len(self._wanted))
            size += np.bincount(refs, buffer.line_sizes()[rows], minlength=len(self._wanted)).astype(np.int64)
            chunks += len(rows) > 0
        return entries, size, chunks
