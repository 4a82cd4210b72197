"""Which rows of a push are stored already, in a part or in a buffer that waits to become one: exactly, never by a hash.

Rows come in the order of their times but for some. So each stream's newest time is kept, and a row that is newer is
new: that is all a push pays as a rule. Of the others the index says which runs of rows span their time, the time
columns of these groups (kept, decoded) which rows have just that time, and only those are read and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from tsdb.errors import CorruptionError
from tsdb.index.registry import SeriesRegistry
from tsdb.logs.batch import LogBatch
from tsdb.logs.buffer import Buffer
from tsdb.logs.deletions import Deletion, Eraser
from tsdb.logs.frame import LogFrame, RowSource, Texts, gather
from tsdb.logs.part import Part
from tsdb.logs.select import MAX_NS, MIN_NS, View

Entry = tuple[int, int, bytes, bytes]
"""Stream, time, line and structured metadata in one order."""


class Repeats:
    """What a store knows to tell repeated rows. One thread at a time: the log's committer, or the replay.

    Parameters
    ----------
    report : told of parts that cannot be read; their rows count as not stored
    """

    def __init__(self, registry: SeriesRegistry, report: Callable[[str], None]) -> None:
        self._registry = registry
        self._report = report
        self._newest: NDArray[np.int64] = np.full(1024, MIN_NS, np.int64)

    def saw(self, refs: NDArray[np.integer], ts_ns: NDArray[np.int64]) -> None:
        """Rows that new ones have to be told from: of a part that is opened, of a buffer that takes no more."""
        if len(refs):
            self._grow(int(refs.max()) + 1)
            np.maximum.at(self._newest, refs, ts_ns)

    def _grow(self, streams: int) -> None:
        if streams > len(self._newest):
            grown = np.full(max(streams, 2 * len(self._newest)), MIN_NS, np.int64)
            grown[: len(self._newest)] = self._newest
            self._newest = grown

    def stored(
        self, batch: LogBatch, view: View, deletions: Sequence[Deletion], position: int
    ) -> NDArray[np.bool_] | None:
        """Which rows of a batch lie in ``view`` already, its newest buffer left out; None = none.

        Parameters
        ----------
        deletions : rows that one of them deleted before ``position``, the batch's in the log, are not there
        """
        if not len(batch):
            return None
        self._grow(int(batch.refs.max()) + 1)
        rows = np.flatnonzero(batch.ts_ns <= self._newest[batch.refs])
        if not len(rows):
            return None
        refs, ts_ns = batch.refs[rows].astype(np.int64), batch.ts_ns[rows]
        wanted = np.zeros(len(self._registry), np.uint8)
        wanted[refs] = 1
        low_ns, high_ns = int(ts_ns.min()), int(ts_ns.max())
        before = [known for known in deletions if known.position <= position]
        eraser = Eraser(before, self._registry, wanted, MIN_NS, MAX_NS)
        held: set[Entry] = set()
        for buffer in view.buffers[:-1]:
            held |= self._in_buffer(buffer, ts_ns, wanted, eraser)
        for part in view.parts:
            if part.meta.max_ms < low_ns // 1_000_000 or part.meta.min_ms > high_ns // 1_000_000:
                continue
            try:
                held |= self._in_part(part, refs, ts_ns, eraser)
            except CorruptionError as error:
                self._report(f"rows of log part {part.meta.key} cannot be told from repeated ones: {error}")
        if not held:
            return None
        entries = _entries(
            refs,
            ts_ns,
            gather(batch.line_bytes, batch.line_offsets[rows], np.diff(batch.line_offsets)[rows]),
            gather(batch.meta_bytes, batch.meta_offsets[rows], np.diff(batch.meta_offsets)[rows]),
        )
        out = np.zeros(len(batch), np.bool_)
        out[rows] = [entry in held for entry in entries]
        return out

    def _in_buffer(
        self, buffer: Buffer, ts_ns: NDArray[np.int64], wanted: NDArray[np.uint8], eraser: Eraser
    ) -> set[Entry]:
        """Entries of a buffer with one of some times, of wanted streams."""
        rows = buffer.find(wanted, int(ts_ns.min()), min(int(ts_ns.max()), MAX_NS - 1) + 1)
        rows = rows[np.isin(buffer.ts_ns()[rows], ts_ns)]
        if eraser:
            rows = self._left(eraser, buffer.after, buffer.source(), buffer.refs()[rows], buffer.ts_ns()[rows], rows)
        if not len(rows):
            return set()
        lines, metadata = buffer.lines(), buffer.metadata()
        return set(
            _entries(
                buffer.refs()[rows].astype(np.int64),
                buffer.ts_ns()[rows],
                gather(lines.data, lines.offsets[rows], np.diff(lines.offsets)[rows]),
                gather(metadata.data, metadata.offsets[rows], np.diff(metadata.offsets)[rows]),
            )
        )

    def _in_part(self, part: Part, refs: NDArray[np.int64], ts_ns: NDArray[np.int64], eraser: Eraser) -> set[Entry]:
        """Entries of a part with stream and time of any of some rows."""
        which, runs = part.runs_at(refs, ts_ns)
        order = np.argsort(runs, kind="stable")
        which, runs = which[order], runs[order]
        found: dict[int, list[NDArray[np.int64]]] = {}
        borders = [*np.flatnonzero(np.diff(runs, prepend=-1)).tolist(), len(runs)]
        for first, last in pairwise(borders):
            group, begin, end = part.rows_of_run(int(runs[first]))
            times = part.times(group)[begin:end]
            asked = np.unique(ts_ns[which[first:last]])
            lows, highs = np.searchsorted(times, asked, "left"), np.searchsorted(times, asked, "right")
            counts = highs - lows
            if counts.any():
                starts = np.repeat(begin + lows - (np.cumsum(counts) - counts), counts)
                found.setdefault(group, []).append(starts + np.arange(len(starts)))
        held: set[Entry] = set()
        for group, pieces in found.items():
            rows = np.sort(np.concatenate(pieces))
            source = part.open(group)
            streams = part.refs_of_rows(group)
            if eraser:
                rows = self._left(eraser, part.position, source, streams[rows], source.ts_ns[rows], rows)
            held |= set(
                _entries(streams[rows], part.times(group)[rows], source.lines(rows), source.metadata_blobs(rows))
            )
        return held

    def _left(
        self,
        eraser: Eraser,
        position: int,
        source: RowSource,
        refs: NDArray[np.integer],
        ts_ns: NDArray[np.int64],
        rows: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Those of some rows that no request deleted."""
        used, stream_row = np.unique(refs.astype(np.uint32), return_inverse=True)
        labels = self._registry.label_table(used)
        frame = LogFrame(used, labels, stream_row.astype(np.int32), ts_ns, source, rows, MAX_NS)
        return eraser.left(frame, position).rows


def _entries(refs: NDArray[np.int64], ts_ns: NDArray[np.int64], lines: Texts, metadata: Texts) -> list[Entry]:
    blobs = metadata.to_list()
    if metadata.offsets[-1] > metadata.offsets[0]:
        blobs = [_in_order(blob) for blob in blobs]
    return list(zip(refs.tolist(), ts_ns.tolist(), lines.to_list(), blobs, strict=True))


def _in_order(blob: bytes) -> bytes:
    """Structured metadata as a part keeps it, by name: of repeated names the last counts."""
    texts = blob.split(b"\xff")[:-1]
    pairs = sorted(dict(zip(texts[::2], texts[1::2], strict=True)).items())
    return b"\xff".join(chain.from_iterable(pairs))
