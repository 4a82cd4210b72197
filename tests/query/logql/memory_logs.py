"""A log store in memory for tests: streams as dicts, entries as lists, selection by the plain rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tests.query.memory_storage import MemorySymbols
from tsdb.frame import LabelTable
from tsdb.logs.frame import Alike, Column, FieldKind, Format, IndexStats, LogFrame, RunCounts, Texts, contains
from tsdb.logs.pruning import Clause
from tsdb.logs.regex.automaton import Automaton
from tsdb.logs.regex.walk import search_texts
from tsdb.matchers import Matcher

Entry = tuple[int, str | bytes] | tuple[int, str | bytes, dict[str, str]]


class _Source:
    """Rows of a frame; ``json`` says that all lines are flat JSON objects and their members are stored fields."""

    def __init__(self, lines: list[bytes], metadata: list[dict[str, str]], fields: list[dict[str, str]] | None) -> None:
        self._lines = lines
        self._metadata = metadata
        self._fields = fields

    @property
    def format(self) -> Format:
        return Format.UNKNOWN if self._fields is None else Format.JSON

    @property
    def field_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for row in self._fields or () for name in row))

    @property
    def metadata_names(self) -> tuple[str, ...]:
        return tuple(sorted({name for row in self._metadata for name in row}))

    def lines(self, rows: NDArray[np.int64]) -> Texts:
        return Texts.of([self._lines[row] for row in rows.tolist()])

    def line_sizes(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.diff(self.lines(rows).offsets)

    def field(self, name: str, rows: NDArray[np.int64]) -> Column | None:
        assert self._fields is not None
        return _column(self._fields, name, rows)

    def metadata(self, name: str, rows: NDArray[np.int64]) -> Column | None:
        return _column(self._metadata, name, rows)

    def matches(self, needle: bytes, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        return contains(self.lines(rows), needle)

    def search(self, automaton: Automaton, rows: NDArray[np.int64]) -> NDArray[np.int8]:
        data, offsets = self.lines(rows)
        return search_texts(automaton, data, offsets[:-1], np.diff(offsets))


def _column(table: list[dict[str, str]], name: str, rows: NDArray[np.int64]) -> Column | None:
    texts = [table[row].get(name) for row in rows.tolist()]
    if all(text is None for text in texts):
        return None
    present = np.array([text is not None for text in texts])
    return Column(FieldKind.TEXT, plain=Texts.of([(text or "").encode() for text in texts]), present=present)


class MemoryLogs:
    """A :class:`tsdb.logs.frame.LogReader` over lists; frames are small so that every query crosses their borders."""

    def __init__(
        self,
        streams: Iterable[tuple[dict[str, str], Iterable[Entry]]] = (),
        *,
        frame_rows: int = 3,
        fields: bool = False,
    ) -> None:
        self.symbols = MemorySymbols()
        self._streams = [(labels, [(e[0], e[1], e[2] if len(e) > 2 else {}) for e in rows]) for labels, rows in streams]
        self._frame_rows = frame_rows
        self._fields = fields
        self.needles: list[tuple[bytes, ...]] = []

    def streams_of(self) -> list[tuple[dict[str, str], list[tuple[int, str | bytes, dict[str, str]]]]]:
        """Labels and entries of every stream."""
        return self._streams  # type: ignore[return-value]

    def _matching(self, matchers: Sequence[Matcher]) -> list[int]:
        return [
            number
            for number, (labels, _) in enumerate(self._streams)
            if all(matcher.matches(labels.get(matcher.name, "")) for matcher in matchers)
        ]

    def select(
        self,
        matchers: Sequence[Matcher],
        start_ns: int,
        end_ns: int,
        *,
        needles: Sequence[bytes] = (),
        clauses: Sequence[Clause] = (),
        backward: bool = True,
        ordered: bool = True,
    ) -> Iterator[LogFrame]:
        self.needles.append(tuple(needles))
        chosen = self._matching(matchers)
        entries = [
            (ts, place, *rest)
            for place, number in enumerate(chosen)
            for ts, *rest in self._streams[number][1]
            if start_ns <= ts < end_ns
        ]
        entries.sort(key=lambda entry: entry[0])
        pieces = [entries[at : at + self._frame_rows] for at in range(0, len(entries), self._frame_rows)]
        if backward:
            pieces.reverse()
        table = LabelTable.of([self._streams[number][0] for number in chosen], self.symbols)  # type: ignore[arg-type]
        for at, piece in enumerate(pieces):
            later = pieces[at + 1] if at + 1 < len(pieces) else None
            edge = -(1 << 62) if backward else 1 << 62
            frontier = edge if later is None else later[-1][0] if backward else later[0][0]
            lines = [line if isinstance(line, bytes) else line.encode() for _, _, line, _ in piece]
            metadata = [data for *_, data in piece]
            fields = [_flat(line) for line in lines] if self._fields else None
            yield LogFrame(
                np.array(chosen, np.uint32),
                table,
                np.array([place for _, place, *_ in piece], np.int32),
                np.array([ts for ts, *_ in piece], np.int64),
                _Source(lines, metadata, fields),
                np.arange(len(piece), dtype=np.int64),
                frontier,
            )

    def condensed(
        self, matchers: Sequence[Matcher], start_ns: int, end_ns: int, alike: Alike
    ) -> tuple[RunCounts, Iterator[LogFrame]]:
        """Every other entry is a run, the others come in frames; a run is one entry, so all of its times are alike."""
        frames = list(self.select(matchers, start_ns, end_ns, backward=False))
        some = frames[::2]
        if not some:
            nothing = np.zeros(0, np.int64)
            table = self.streams([matchers], start_ns, end_ns)
            return RunCounts(np.zeros(0, np.uint32), table, np.zeros(0, np.int32), *[nothing] * 3), iter(())
        ts_ns = np.concatenate([frame.ts_ns for frame in some])
        assert alike(ts_ns, ts_ns).all()
        sizes = np.concatenate([np.diff(frame.lines().offsets) for frame in some])
        rows = np.concatenate([frame.stream_row for frame in some])
        return RunCounts(some[0].refs, some[0].labels, rows, ts_ns, np.ones(len(ts_ns), np.int64), sizes), iter(
            frames[1::2]
        )

    def _alive(self, selectors: Sequence[Sequence[Matcher]], start_ns: int, end_ns: int) -> list[int]:
        found = sorted({number for selector in selectors or [[]] for number in self._matching(selector)})
        return [n for n in found if any(start_ns <= ts < end_ns for ts, *_ in self._streams[n][1])]

    def streams(self, selectors: Sequence[Sequence[Matcher]], start_ns: int, end_ns: int) -> LabelTable:
        rows = [self._streams[n][0] for n in self._alive(selectors, start_ns, end_ns)]
        return LabelTable.of(rows, self.symbols)  # type: ignore[arg-type]

    def label_names(self, selectors: Sequence[Sequence[Matcher]], start_ns: int, end_ns: int) -> list[str]:
        return sorted({name for labels in self.streams(selectors, start_ns, end_ns) for name in labels})

    def label_values(self, name: str, selectors: Sequence[Sequence[Matcher]], start_ns: int, end_ns: int) -> list[str]:
        return sorted({labels[name] for labels in self.streams(selectors, start_ns, end_ns) if name in labels})

    def stats(self, matchers: Sequence[Matcher], start_ns: int, end_ns: int) -> IndexStats:
        labels, entries, size = self.volume(matchers, start_ns, end_ns)
        return IndexStats(len(labels), len(labels), int(size.sum()), int(entries.sum()))

    def volume(
        self, matchers: Sequence[Matcher], start_ns: int, end_ns: int
    ) -> tuple[LabelTable, NDArray[np.int64], NDArray[np.int64]]:
        alive = self._alive([matchers], start_ns, end_ns)
        inside = [[len(line) for ts, line, _ in self._streams[n][1] if start_ns <= ts < end_ns] for n in alive]
        table = LabelTable.of([self._streams[n][0] for n in alive], self.symbols)  # type: ignore[arg-type]
        return table, np.array([len(i) for i in inside], np.int64), np.array([sum(i) for i in inside], np.int64)


def _flat(line: bytes) -> dict[str, str]:
    import json

    found: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for name, member in value.items():
                walk(f"{prefix}_{name}" if prefix else name, member)
        elif isinstance(value, bool):
            found[prefix] = "true" if value else "false"
        elif isinstance(value, str):
            found[prefix] = value

    walk("", json.loads(line, parse_float=str, parse_int=str))
    return found
