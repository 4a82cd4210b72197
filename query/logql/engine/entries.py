"""Log queries: the newest (oldest) lines that pass a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from query.logql.ast import Grouping, LogQuery, Stage
from query.logql.engine.batch import Batch, Origin
from query.logql.engine.interval import Spaced
from query.logql.engine.parse_fields import read_pending
from query.logql.engine.prune import clauses_of
from query.logql.engine.stages import is_filter, needles_of, run_stages
from query.logql.engine.wanted import wanted_labels
from tsdb.logs.frame import LogFrame, LogReader
from tsdb.logs.joined import join_frames

COLUMNS_ROWS_MIN = 1000
"""Lines of a batch from which reading each field as a column is cheaper than finding all of them in the lines."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of an answer.

    Attributes
    ----------
    ts_ns, line : as they are after the pipeline
    metadata, parsed : labels by where they come from, sorted by name
    """

    ts_ns: int
    line: str
    metadata: dict[str, str]
    parsed: dict[str, str]


@dataclass(frozen=True, slots=True)
class StreamEntries:
    """Entries of one stream in the order asked for; ``labels`` are the stream's own that are left, sorted by name."""

    labels: dict[str, str]
    entries: list[Entry] = field(default_factory=list)


@dataclass(slots=True)
class Scanned:
    """What a query looked at."""

    lines: int = 0
    lines_kept: int = 0


def select_entries(
    reader: LogReader,
    query: LogQuery,
    start_ns: int,
    end_ns: int,
    limit: int,
    *,
    backward: bool,
    now_ns: int,
    scanned: Scanned,
    check_time: Callable[[], None],
    interval_ns: int = 0,
) -> list[StreamEntries]:
    """Exactly the newest (backward) or oldest ``limit`` lines with start <= ts < end, streams sorted by labels.

    With an interval, only lines that are at least so far apart.

    The stages up to the last filter run with the labels that filters look at; all stages once more, with all labels,
    on the lines that are answered.
    """
    cut = max((i + 1 for i, stage in enumerate(query.stages) if is_filter(stage)), default=0)
    filters = query.stages[:cut]
    wanted = wanted_labels(filters, None, Grouping(()))
    kept: list[LogFrame] = []
    total = 0
    border_ns: int | None = None  # time of the last line that the answer can hold, as far as we have seen
    spaced = Spaced(interval_ns, limit, backward=backward) if interval_ns else None
    needles, clauses = needles_of(query.stages), clauses_of(query.stages)
    for frame in reader.select(
        query.matchers, start_ns, end_ns, needles=needles, clauses=clauses, backward=backward, ordered=False
    ):
        check_time()
        if border_ns is not None:
            inside = _within(frame.ts_ns, border_ns, backward)
            frame = frame if inside.all() else frame.take(inside)
        scanned.lines += len(frame)
        batch = Batch(frame, wanted)
        run_stages(batch, filters, now_ns)
        scanned.lines_kept += len(batch)
        if spaced is not None:
            spaced.add(batch.frame, frame.frontier_ns)
            if spaced.is_full:
                break
        elif len(batch):
            kept.append(batch.frame)
            total += len(batch)
            if total >= limit:
                border_ns = _prune(kept, limit, backward)
                total = sum(map(len, kept))
        if border_ns is not None and (border_ns > frame.frontier_ns if backward else border_ns < frame.frontier_ns):
            break
    if spaced is not None:
        kept = spaced.finish()
    return _answer(kept, limit, query.stages, backward, now_ns)


def _within(ts_ns: NDArray[np.int64], border_ns: int, backward: bool) -> NDArray[np.bool_]:
    return ts_ns >= border_ns if backward else ts_ns <= border_ns


def _prune(kept: list[LogFrame], limit: int, backward: bool) -> int:
    """Let go of lines that are not among the first ``limit``; the time of the last one that is."""
    times = np.concatenate([frame.ts_ns for frame in kept])
    place = len(times) - limit if backward else limit - 1
    border_ns = int(np.partition(times, place)[place])
    inside = [_within(frame.ts_ns, border_ns, backward) for frame in kept]
    kept[:] = [
        frame if mask.all() else frame.take(mask) for frame, mask in zip(kept, inside, strict=True) if mask.any()
    ]
    return border_ns


def _answer(
    kept: list[LogFrame], limit: int, stages: tuple[Stage, ...], backward: bool, now_ns: int
) -> list[StreamEntries]:
    """The first ``limit`` lines of all frames as streams."""
    if not kept:
        return []
    if backward:
        kept.reverse()  # oldest first: of one time, what arrived first stands first
    times = np.concatenate([frame.ts_ns for frame in kept])
    order = np.argsort(times, kind="stable")
    chosen = order[::-1][:limit] if backward else order[:limit]
    rank = np.full(len(times), -1)
    rank[chosen] = np.arange(len(chosen))
    parts: list[LogFrame] = []
    at = 0
    for frame in kept:
        mask = rank[at : at + len(frame)] >= 0
        at += len(frame)
        if mask.any():
            parts.append(frame.take(mask))
    if len(parts) > 1:  # a stage costs as much for five lines as for five hundred
        parts = [join_frames(parts)]
    batch = Batch(parts[0], None)
    run_stages(batch, stages, now_ns)
    rows = list(zip(rank[rank >= 0].tolist(), *_rows(batch), strict=True))
    rows.sort(key=lambda row: row[0])
    streams: dict[tuple[tuple[str, str], ...], StreamEntries] = {}
    for _, labels, entry in rows:
        stream = streams.get(labels)
        if stream is None:
            stream = streams[labels] = StreamEntries(dict(labels))
        stream.entries.append(entry)
    return [streams[labels] for labels in sorted(streams)]


def _rows(batch: Batch) -> tuple[list[tuple[tuple[str, str], ...]], list[Entry]]:
    """Stream labels and entry of every line of a batch."""
    parts: dict[Origin, list[tuple[str, list[str]]]] = {origin: [] for origin in Origin}
    if len(batch) < COLUMNS_ROWS_MIN:
        read_pending(batch)
    for name in batch.names():
        for origin, values in batch.layers(name).items():
            parts[origin].append((name, values.to_list()))
    labels: list[tuple[tuple[str, str], ...]] = []
    entries: list[Entry] = []
    for row, (ts_ns, line) in enumerate(zip(batch.frame.ts_ns.tolist(), batch.line_texts(), strict=True)):
        labels.append(tuple((name, texts[row]) for name, texts in parts[Origin.STREAM] if texts[row]))
        metadata = {name: texts[row] for name, texts in parts[Origin.METADATA] if texts[row]}
        parsed = {name: texts[row] for name, texts in parts[Origin.PARSED] if texts[row]}
        entries.append(Entry(ts_ns, line, metadata, parsed))
    return labels, entries
