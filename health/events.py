"""Everything that was decided, with its evidence: the newest events in memory, all of them in the journal."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from health.board import Revision
from health.evidence import sentence
from health.verdicts import Decision, Kind, Scalar

KEPT = 10_000
"""Events held in memory, about 10 MB."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes
    ----------
    number : counts up for ever
    data : its JSON form
    """

    number: int
    time_ms: int
    data: Mapping[str, Any]


def time_text(ms: int) -> str:
    """RFC 3339 with milliseconds, UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def decision_data(decision: Decision, mode: str, by: str) -> dict[str, Any]:
    """A decision as an event shows it, without its id and revision."""
    return {
        "time": time_text(decision.time_ms),
        "time_ms": decision.time_ms,
        "type": str(decision.kind),
        "service": decision.service,
        "endpoint": decision.endpoint,
        "mode": mode,
        "from": decision.before,
        "to": decision.after,
        "until": time_text(decision.until_ms) if decision.until_ms else None,
        "weight": decision.weight,
        "detector": decision.detector,
        "guard": decision.guard,
        "by": by,
        "reason": sentence(decision.kind, decision.guard, decision.evidence),
        "evidence": dict(decision.evidence),
    }


def note_data(
    kind: Kind, service: str, endpoint: str, time_ms: int, by: str, evidence: Mapping[str, Scalar]
) -> dict[str, Any]:
    """An event that is no decision of the state machine, with the same keys."""
    return {
        **dict.fromkeys(("mode", "from", "to", "until", "weight", "detector", "guard")),
        "time": time_text(time_ms),
        "time_ms": time_ms,
        "type": str(kind),
        "service": service,
        "endpoint": endpoint,
        "by": by,
        "reason": sentence(kind, None, evidence),
        "evidence": dict(evidence),
    }


class EventList:
    """The newest events; the loop's thread adds, any thread reads.

    Parameters
    ----------
    old : events of the journal, oldest first
    count : how many there ever were
    """

    def __init__(self, old: Iterable[Mapping[str, Any]] = (), count: int = 0) -> None:
        self._events: deque[Event] = deque(maxlen=KEPT)
        self.count = count
        for data in old:
            number = int(data.get("number", 0))
            self._events.append(Event(number, int(data.get("time_ms", 0)), data))
            self.count = max(self.count, number)

    def add(self, data: Mapping[str, Any], revision: Revision) -> Event:
        """Number an event and keep it."""
        self.count += 1
        full = {"id": f"{revision}-{self.count}", "number": self.count, "revision": str(revision), **data}
        event = Event(self.count, int(data["time_ms"]), full)
        self._events.append(event)
        return event

    def more_than(self, count: int) -> bool:
        """Whether there are events after the ``count``-th."""
        return self.count > count

    def find(
        self,
        *,
        start_ms: int | None = None,
        end_ms: int | None = None,
        after: int = 0,
        limit: int = 1_000,
        **wanted: str,
    ) -> list[Event]:
        """The newest ``limit`` events that fit, oldest first.

        Parameters
        ----------
        start_ms, end_ms : inclusive
        after : only events with a greater number
        wanted : service, endpoint, type; "" = any
        """
        out: list[Event] = []
        for event in reversed(self._events.copy()):
            if event.number <= after or len(out) >= limit:
                break
            if (start_ms is not None and event.time_ms < start_ms) or (end_ms is not None and event.time_ms > end_ms):
                continue
            if all(not value or event.data.get(key) == value for key, value in wanted.items()):
                out.append(event)
        return out[::-1]
