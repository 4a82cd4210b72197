"""The unit of reading log lines: a bounded batch of entries whose texts are decoded only when they are asked for.

What a query engine holds. A frame knows the stream and the time of each entry; the lines, the fields of a structured
line and the structured metadata come from a *source* (memory, or a compressed group of rows), row by row of the
frame, and only those that are wanted: a filter on one field of a stored column never rebuilds a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tsdb.frame import LabelTable
from tsdb.kernels.log_scan import find_in_rows, gather_texts, pick_pair
from tsdb.matchers import Matcher

if TYPE_CHECKING:
    from tsdb.logs.regex.automaton import Automaton

if TYPE_CHECKING:
    from tsdb.logs.pruning import Clause

ROWS_MAX = 8192
"""Most entries of one frame."""

PAD_BYTES = 64
"""Readable bytes behind the texts of every :class:`Texts`: kernels load whole vectors."""

DETECTED_LEVEL = "detected_level"
LEVELS = ("", "unknown", "trace", "debug", "info", "warn", "error", "critical", "fatal")
"""Level of an entry by its code; 0 = none was derived."""


class Format(IntEnum):
    """What is known of all the lines of a frame."""

    UNKNOWN = 0  # nothing: parse the lines
    JSON = 1  # every line is one JSON object and the fields are its scalar members
    LOGFMT = 2  # every line is key=value pairs and nothing else


class FieldKind(IntEnum):
    """How a field stands in its line."""

    TEXT = 0  # between quotes; the text is as it stands, escapes included
    BARE = 1  # a number, true, false, null, or an unquoted logfmt value
    RAW = 2  # a JSON array, whole


class Texts(NamedTuple):
    """Byte strings one behind the other: text i is ``data[offsets[i]:offsets[i + 1]]``.

    ``data`` is uint8 with ``PAD_BYTES`` more behind the last text; ``offsets`` is (n + 1,) int64. Not always UTF-8.
    """

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    def text(self, i: int) -> bytes:
        """One text (slow path)."""
        return self.data[self.offsets[i] : self.offsets[i + 1]].tobytes()

    def to_list(self) -> list[bytes]:
        """All texts (slow path)."""
        whole = self.data.tobytes()
        return [whole[a:b] for a, b in pairwise(self.offsets.tolist())]

    @staticmethod
    def of(texts: Sequence[bytes]) -> Texts:
        """From Python values (slow path: tests, dictionaries)."""
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(t) for t in texts], out=offsets[1:])
        return Texts(np.frombuffer(b"".join(texts) + bytes(PAD_BYTES), np.uint8), offsets)


@dataclass(frozen=True, slots=True)
class Column:
    """One text a row of a frame, as its type was stored.

    Either ``codes`` with their ``dictionary`` are there, or only :meth:`texts` gives the texts. ``ints`` come in
    addition when the column was stored as numbers: where ``is_int`` the text is exactly the decimal number
    ``ints / 10**scale`` written with ``scale`` decimals.

    Attributes
    ----------
    kind : FieldKind
    dictionary, codes : (n_values,) Texts and (n,) int32: the text of row i is ``dictionary[codes[i]]``
    plain : (n,) Texts, one a row, or what makes them; use :meth:`texts`
    present : (n,) bool, None = every row has the field; absent rows have an empty text
    escaped : whether any text holds a backslash, i.e. must be unescaped as JSON (TEXT) to be the value
    ints : (n,) int64
    is_int : (n,) bool, None = every row
    scale : decimals of ``ints``
    """

    kind: FieldKind
    dictionary: Texts | None = None
    codes: NDArray[np.int32] | None = None
    plain: Texts | Callable[[], Texts] | None = None
    present: NDArray[np.bool_] | None = None
    escaped: bool = False
    ints: NDArray[np.int64] | None = None
    is_int: NDArray[np.bool_] | None = None
    scale: int = 0

    def __len__(self) -> int:
        if self.codes is not None:
            return len(self.codes)
        return len(self.ints) if self.ints is not None else len(self.texts().offsets) - 1

    def texts(self) -> Texts:
        """One text a row, whatever the column's type."""
        if self.codes is None or self.dictionary is None:
            assert self.plain is not None
            return self.plain if isinstance(self.plain, Texts) else self.plain()
        starts = self.dictionary.offsets[self.codes]
        return gather(self.dictionary.data, starts, self.dictionary.offsets[self.codes + 1] - starts)


def padded(size: int) -> NDArray[np.uint8]:
    """Room for so many bytes and the padding, which alone is cleared: fresh zeros cost a page fault each."""
    out: NDArray[np.uint8] = np.empty(size + PAD_BYTES, np.uint8)
    out[size:] = 0
    return out


def gather(data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Texts:
    """Copy byte ranges one behind the other; ``data`` has ``PAD_BYTES`` behind its last text."""
    offsets = np.zeros(len(starts) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    out = padded(int(offsets[-1]))
    gather_texts(data, np.ascontiguousarray(starts), offsets, out)
    return Texts(out, offsets)


def contains(lines: Texts, needle: bytes) -> NDArray[np.bool_]:
    """Which of the (n,) texts hold ``needle``, (n,) bool; about 10 GB/s."""
    n = len(lines.offsets) - 1
    if not needle:
        return np.ones(n, np.bool_)
    wanted = np.frombuffer(needle, np.uint8)
    first, second = pick_pair(needle)
    found = np.zeros(n, np.uint8)
    find_in_rows(lines.data, lines.offsets, wanted, first, second, found)
    return found.view(np.bool_)


class RowSource(Protocol):
    """Where the texts of a frame come from; ``rows`` are (k,) int64 numbers of the source's own rows."""

    @property
    def format(self) -> Format: ...

    @property
    def field_names(self) -> tuple[str, ...]: ...

    @property
    def metadata_names(self) -> tuple[str, ...]: ...

    def lines(self, rows: NDArray[np.int64]) -> Texts: ...

    def line_sizes(self, rows: NDArray[np.int64]) -> NDArray[np.int64]: ...

    def field(self, name: str, rows: NDArray[np.int64]) -> Column | None: ...

    def metadata(self, name: str, rows: NDArray[np.int64]) -> Column | None: ...

    def matches(self, needle: bytes, rows: NDArray[np.int64]) -> NDArray[np.bool_]: ...

    def search(self, automaton: Automaton, rows: NDArray[np.int64]) -> NDArray[np.int8]: ...


class LogFrame:
    """A batch of at most ``ROWS_MAX`` log entries.

    Attributes
    ----------
    refs : (n_streams,) uint32      number of each stream in its tenant; the same in every frame of a process
    labels : LabelTable             one row a stream
    stream_row : (n,) int32         row of ``labels`` and ``refs`` of each entry
    ts_ns : (n,) int64              ascending, unless ``ordered`` was off; entries of one time as they arrived
    frontier_ns : no later frame of the same ``select`` has an entry newer (backward) or older (forward) than this:
        a limit is served exactly once so many entries lie strictly beyond it
    """

    __slots__ = ("_rows", "_source", "frontier_ns", "labels", "refs", "stream_row", "ts_ns")

    def __init__(
        self,
        refs: NDArray[np.uint32],
        labels: LabelTable,
        stream_row: NDArray[np.int32],
        ts_ns: NDArray[np.int64],
        source: RowSource,
        rows: NDArray[np.int64],
        frontier_ns: int,
    ) -> None:
        self.refs = refs
        self.labels = labels
        self.stream_row = stream_row
        self.ts_ns = ts_ns
        self.frontier_ns = frontier_ns
        self._source = source
        self._rows = rows

    def __len__(self) -> int:
        return len(self.ts_ns)

    @property
    def rows(self) -> NDArray[np.int64]:
        """(n,) numbers of the entries in their source."""
        return self._rows

    @property
    def format(self) -> Format:
        """What all the lines are; fields are there only for JSON and LOGFMT."""
        return self._source.format

    @property
    def field_names(self) -> tuple[str, ...]:
        """Fields stored as columns, in the order of the line; members of nested objects as ``outer_inner``."""
        return self._source.field_names

    @property
    def metadata_names(self) -> tuple[str, ...]:
        """Names of structured metadata that any entry has."""
        return self._source.metadata_names

    def lines(self) -> Texts:
        """The lines, exactly as they came."""
        return self._source.lines(self._rows)

    def line_sizes(self) -> NDArray[np.int64]:
        """(n,) bytes of each line; nothing is put together for it."""
        return self._source.line_sizes(self._rows)

    def field(self, name: str) -> Column | None:
        """One field of all lines; None = no line has it, or the lines are of no known format."""
        return self._source.field(name, self._rows)

    def metadata(self, name: str) -> Column | None:
        """Structured metadata by name, ``detected_level`` included; None = no entry has it."""
        return self._source.metadata(name, self._rows)

    def contains(self, needle: bytes) -> NDArray[np.bool_]:
        """Which lines hold ``needle`` (case-sensitive), (n,) bool; looks at columns instead of lines where it can."""
        return self._source.matches(needle, self._rows)

    def search(self, automaton: Automaton) -> NDArray[np.int8]:
        """Which lines hold a match: 1, 0, or -1 where only RE2 can tell, (n,) int8; by columns where it can."""
        return self._source.search(automaton, self._rows)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> LogFrame:
        """The frame of some entries: ascending row numbers or a mask. Nothing is decoded."""
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        return LogFrame(
            self.refs, self.labels, self.stream_row[rows], self.ts_ns[rows], self._source, self._rows[rows],
            self.frontier_ns,
        )  # fmt: skip


class RunCounts(NamedTuple):
    """Runs of entries, each of one stream, taken from the index.

    Attributes
    ----------
    refs, labels : (n_streams,) uint32 and LabelTable, as of a frame
    stream_row : (n,) int32        row of ``refs`` and ``labels`` of each run
    ts_ns, entries, bytes : (n,) int64        time of its first entry, entries, bytes of their lines
    """

    refs: NDArray[np.uint32]
    labels: LabelTable
    stream_row: NDArray[np.int32]
    ts_ns: NDArray[np.int64]
    entries: NDArray[np.int64]
    bytes: NDArray[np.int64]


Alike = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]
"""(first times, last times) of runs -> whether all times in between are as good as one, (n,) each."""


@dataclass(frozen=True, slots=True)
class IndexStats:
    """What a selector covers, from the index alone; whole groups of rows are counted where a range cuts one."""

    streams: int
    chunks: int
    bytes: int
    entries: int


class LogReader(Protocol):
    """What a query engine needs of a tenant's log store (:class:`tsdb.logs.store.LogStore`); start <= ts_ns < end."""

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
        """Entries of all streams that satisfy every matcher, in frames by descending (ascending) newest (oldest) time.

        Frames may overlap in time; ``LogFrame.frontier_ns`` says when a limit is served.

        Parameters
        ----------
        needles : literals that every wanted line holds; frames without any such line may be left out, and within a
            frame the lines still have to be tested (``LogFrame.contains``)
        clauses : tests of labels of which each holds for every wanted entry; as with needles, entries still have to
            be tested
        ordered : False = the entries of a frame may come stream by stream, each ascending in time, which spares
            sorting them: enough for counting
        """
        ...

    def condensed(
        self, matchers: Sequence[Matcher], start_ns: int, end_ns: int, alike: Alike
    ) -> tuple[RunCounts, Iterator[LogFrame]]:
        """The entries of :meth:`select`, each once: runs that ``alike`` says need not be read, and frames of the rest.

        For counting by stream, with the oldest frames first and their entries in any order.
        """
        ...

    def streams(self, selectors: Sequence[Sequence[Matcher]], start_ns: int, end_ns: int) -> LabelTable:
        """Labels of the streams of any selector (none = all) that may have entries in the range, each once."""
        ...

    def label_names(self, selectors: Sequence[Sequence[Matcher]], start_ns: int, end_ns: int) -> list[str]: ...

    def label_values(
        self, name: str, selectors: Sequence[Sequence[Matcher]], start_ns: int, end_ns: int
    ) -> list[str]: ...

    def stats(self, matchers: Sequence[Matcher], start_ns: int, end_ns: int) -> IndexStats:
        """Streams, row groups, raw bytes and entries, from the index only."""
        ...

    def volume(
        self, matchers: Sequence[Matcher], start_ns: int, end_ns: int
    ) -> tuple[LabelTable, NDArray[np.int64], NDArray[np.int64]]:
        """(labels, entries, raw bytes) of each stream, from the index only; (n,) int64 each."""
        ...
