"""Requests to delete log rows: logged, honoured by reads at once, carried out when parts are written anew.

A request is for the rows that were accepted before it. It begins a new buffer, so that of every buffer and every part
either all rows are older than the request or none is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from tsdb.errors import CorruptionError
from tsdb.index.registry import SeriesRegistry
from tsdb.logs.frame import LogFrame
from tsdb.logs.regex.match import match_frame
from tsdb.matchers import Matcher, MatchOp

BODY_VERSION = 1
DELETIONS_MAX = 1000
"""Requests of a tenant that are kept: every read looks at those that are not carried out, the rest is history."""


@dataclass(frozen=True, slots=True)
class LineTest:
    """One line filter of a request.

    Attributes
    ----------
    texts : any of them is enough
    is_regex : RE2, anywhere in the line; else literals
    negated : lines without any of them
    """

    texts: tuple[str, ...]
    is_regex: bool = False
    negated: bool = False

    def mask(self, frame: LogFrame) -> NDArray[np.bool_]:
        """Which lines of a frame pass."""
        found = np.zeros(len(frame), np.bool_)
        for text in self.texts:
            if self.is_regex:
                found |= match_frame(frame, text)
            else:
                found |= frame.contains(text.encode("utf-8", "surrogateescape"))
        return ~found if self.negated else found


@dataclass(frozen=True, slots=True)
class Deletion:
    """One request.

    Attributes
    ----------
    request_id : as its sender knows it
    query : as it came
    matchers, tests : streams, and what their lines must pass to be deleted
    start_ns, end_ns : both included
    created_ms : when it came
    position : in the log; rows before it are meant
    processed : whether it has been carried out
    """

    request_id: str
    query: str
    matchers: tuple[Matcher, ...]
    tests: tuple[LineTest, ...]
    start_ns: int
    end_ns: int
    created_ms: int
    position: int = -1
    processed: bool = False

    def to_json(self) -> dict[str, Any]:
        """As manifests and the log hold it."""
        fields = asdict(self)
        fields["matchers"] = [[m.name, m.op.value, m.value] for m in self.matchers]
        return fields

    @staticmethod
    def of_json(fields: dict[str, Any]) -> Deletion:
        """What :meth:`to_json` gave."""
        matchers = tuple(Matcher(name, MatchOp(op), value) for name, op, value in fields["matchers"])
        tests = tuple(LineTest(tuple(t["texts"]), t["is_regex"], t["negated"]) for t in fields["tests"])
        return Deletion(**{**fields, "matchers": matchers, "tests": tests})


def encode_deletion(deletion: Deletion) -> bytes:
    """Body of a LOG_DELETE record (docs/format/logs.md)."""
    return orjson.dumps({"version": BODY_VERSION, "delete": deletion.to_json()})


def encode_cancel(request_id: str) -> bytes:
    """Body of a LOG_DELETE record that takes a request back."""
    return orjson.dumps({"version": BODY_VERSION, "cancel": request_id})


def decode_deletion(body: bytes) -> Deletion | str:
    """What :func:`encode_deletion` or :func:`encode_cancel` wrote.

    Raises
    ------
    CorruptionError        a version that this program does not read
    """
    try:
        fields = orjson.loads(body)
        if fields["version"] == BODY_VERSION:
            return str(fields["cancel"]) if "cancel" in fields else Deletion.of_json(fields["delete"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise CorruptionError("record body", 0, f"not a request to delete log rows: {error}") from error
    raise CorruptionError("record body", 0, "a request to delete log rows of another version")


class Eraser:
    """The requests that matter to one read.

    Parameters
    ----------
    deletions : in force; ``(wanted, start_ns, end_ns)`` of the read drops those that cannot matter
    """

    def __init__(
        self,
        deletions: Sequence[Deletion],
        registry: SeriesRegistry,
        wanted: NDArray[np.uint8],
        start_ns: int,
        end_ns: int,
    ) -> None:
        self._held: list[tuple[Deletion, NDArray[np.uint8]]] = []
        for deletion in deletions:
            if deletion.processed or deletion.start_ns >= end_ns or deletion.end_ns < start_ns:
                continue
            meant = np.zeros(len(wanted), np.uint8)
            found = registry.find(deletion.matchers)
            meant[found[found < len(wanted)]] = 1
            meant &= wanted
            if meant.any():
                self._held.append((deletion, meant))

    def __bool__(self) -> bool:
        return bool(self._held)

    def _runs(
        self,
        position: int,
        refs: NDArray[np.int64],
        min_ns: NDArray[np.int64],
        max_ns: NDArray[np.int64],
        *,
        whole: bool,
    ) -> NDArray[np.bool_]:
        out = np.zeros(len(refs), np.bool_)
        for deletion, meant in self._held:
            if position >= deletion.position or (whole and deletion.tests):
                continue
            known = refs < len(meant)
            streams = known & (meant[np.where(known, refs, 0)] != 0)
            first, last = (min_ns, max_ns) if whole else (max_ns, min_ns)
            out |= streams & (first >= deletion.start_ns) & (last <= deletion.end_ns)
        return out

    def touches(
        self, position: int, refs: NDArray[np.int64], min_ns: NDArray[np.int64], max_ns: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Of which runs of rows any row may be deleted.

        Parameters
        ----------
        position : in the log, of the newest of the rows
        refs, min_ns, max_ns : (n,) stream and times of each run
        """
        return self._runs(position, refs, min_ns, max_ns, whole=False)

    def covers(
        self, position: int, refs: NDArray[np.int64], min_ns: NDArray[np.int64], max_ns: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Of which runs all rows are deleted, whatever their lines are; parameters as of :meth:`touches`."""
        return self._runs(position, refs, min_ns, max_ns, whole=True)

    def left(self, frame: LogFrame, position: int) -> LogFrame:
        """A frame without the rows that are deleted; ``position`` as in :meth:`touches`."""
        for deletion, meant in self._held:
            if position >= deletion.position or not len(frame):
                continue
            known = frame.refs < len(meant)
            streams = known & (meant[np.where(known, frame.refs, 0)] != 0)
            gone = streams[frame.stream_row] & (frame.ts_ns >= deletion.start_ns) & (frame.ts_ns <= deletion.end_ns)
            for test in deletion.tests:
                rows = np.flatnonzero(gone)
                if not len(rows):
                    break
                gone[rows] = test.mask(frame.take(rows))
            if gone.any():
                frame = frame.take(~gone)
        return frame
