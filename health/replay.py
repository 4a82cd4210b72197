"""What would a policy have done? The loop itself, run over stored counters with a clock of its own.

Samples count from their own time on. Live they arrived later (a scrape takes a moment, a remote-write batch seconds),
so a replay decides up to that much earlier; it is exact where samples were read at their time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from health.board import Revision
from health.events import Event, EventList, time_text
from health.history import read_totals
from health.journal import Journal, Memory
from health.loop import HealthLoop, LoopSettings
from health.mapping import SeriesMapping
from health.policy import Policy
from health.signals import Frames
from health.topology import Facts
from tsdb.frame import SeriesFrame
from tsdb.limits import SelectLimits
from tsdb.matchers import Matcher

TICKS_MAX = 21_600
"""Six hours at one evaluation a second: about half a minute of CPU for a service of 100 endpoints."""
_CHUNK_MS = 300_000
_SAME_MS = 15_000
"""A live ejection of the same endpoint within this time is the same one."""
_INTERVALS_COUNTED = 100


class PastFrames:
    """Answers selections of a minute from chunks of five, which are read once."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._chunks: dict[tuple[Matcher, ...], tuple[int, int, SeriesFrame]] = {}

    def select(self, matchers: Sequence[Matcher], mint_ms: int, maxt_ms: int, limits: SelectLimits) -> SeriesFrame:
        key = tuple(matchers)
        first, last, chunk = self._chunks.get(key, (0, -1, None))
        if chunk is None or mint_ms < first or maxt_ms > last:
            first, last = mint_ms, maxt_ms + _CHUNK_MS
            chunk = self._frames.select(matchers, first, last, limits)
            self._chunks[key] = (first, last, chunk)
        inside = (chunk.ts_ms >= mint_ms) & (chunk.ts_ms <= maxt_ms)
        before = np.concatenate(([0], np.cumsum(inside)))
        return replace(
            chunk,
            offsets=before[chunk.offsets].astype(np.int64),
            ts_ms=chunk.ts_ms[inside],
            values=chunk.values[inside],
        )


class _NoJournal(Journal):
    """Remembers nothing."""

    def __init__(self) -> None:
        super().__init__(Path(), make=False)

    def load(self, now_ms: int) -> Memory:  # noqa: ARG002
        return Memory(Revision(1, 0))

    def save(self, memory: Memory) -> None:
        pass

    def append(self, events: Iterable[Mapping[str, Any]]) -> None:
        pass

    def events(self) -> list[dict[str, Any]]:
        return []


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """What to replay: one service, one policy, (start, end] by steps."""

    service: str
    policy: Policy
    start_ms: int
    end_ms: int
    step_ms: int

    @property
    def lead_ms(self) -> int:
        """How long before the start evaluation begins, so that everything is warm and old enough by then."""
        guards = self.policy.guards
        return max(guards.warmup_ms, guards.min_age_ms) + 60_000

    @property
    def ticks(self) -> int:
        """Evaluations it takes."""
        return (self.end_ms - self.start_ms + self.lead_ms) // self.step_ms


def replay(
    plan: ReplayPlan, frames: Frames, mappings: tuple[SeriesMapping, ...], facts: Facts, live: EventList
) -> dict[str, Any]:
    """Run it; decisions after the start, what they would have saved, and how they differ from what happened.

    Raises
    ------
    tsdb.errors.LimitError        five minutes of the service are more than one selection may read
    """
    now_ms = plan.start_ms - plan.lead_ms
    policy = replace(plan.policy, service="*")
    settings = LoopSettings(mappings, {policy.name: policy}, only=plan.service)
    loop = HealthLoop(PastFrames(frames), settings, _NoJournal(), now_ms)
    loop.use_facts({plan.service: facts[plan.service]} if plan.service in facts else {})
    out_s = 0.0
    peak = 0.0
    open_since: dict[str, int] = {}
    intervals: list[tuple[str, int, int]] = []
    while now_ms + plan.step_ms <= plan.end_ms:
        now_ms += plan.step_ms
        loop.tick(now_ms)
        view = loop.board.now.services.get(plan.service)
        if view is None or now_ms <= plan.start_ms:
            continue
        out = {e.endpoint for e in view.endpoints if e.verdict == "EJECT"}
        out_s += len(out) * plan.step_ms / 1000
        peak = max(peak, len(out) / max(1, sum(e.listed for e in view.endpoints)))
        for endpoint in out - open_since.keys():
            open_since[endpoint] = now_ms
        intervals += [(endpoint, open_since.pop(endpoint), now_ms) for endpoint in open_since.keys() - out]
    intervals += [(endpoint, since, plan.end_ms) for endpoint, since in open_since.items()]
    found = loop.events.find(start_ms=plan.start_ms, end_ms=plan.end_ms, service=plan.service, limit=10_000)
    was = live.find(start_ms=plan.start_ms, end_ms=plan.end_ms, service=plan.service, type="ejected", limit=10_000)
    return {
        "service": plan.service,
        "policy": plan.policy.name,
        "start": time_text(plan.start_ms),
        "end": time_text(plan.end_ms),
        "exact": False,
        "decisions": [_decision(event) for event in found if event.data["endpoint"]],
        "ejected_endpoint_seconds": round(out_s, 3),
        "errors_avoided": sum(
            _errors(plan, frames, mappings, endpoint, since, until)
            for endpoint, since, until in intervals[:_INTERVALS_COUNTED]
        ),
        "peak_ejected_percent": round(100 * peak, 1),
        "diff_vs_live": _difference([e for e in found if e.data["type"] == "ejected"], was),
    }


def _decision(event: Event) -> dict[str, Any]:
    data = event.data
    keys = ("time", "type", "endpoint", "from", "to", "detector", "guard", "until")
    return {key: data[key] for key in keys}


def _errors(
    plan: ReplayPlan, frames: Frames, mappings: Sequence[SeriesMapping], endpoint: str, since_ms: int, until_ms: int
) -> int:
    """Errors that really happened at an endpoint while the replay had it ejected."""
    totals = read_totals(frames, mappings, plan.service, since_ms, until_ms)
    if endpoint not in totals.endpoints:
        return 0
    return int(totals.errors[:, totals.endpoints.index(endpoint)].sum())


def _difference(found: list[Event], was: list[Event]) -> dict[str, int]:
    """Ejections that only the replay has, and those that only happened live."""

    def alone(some: list[Event], others: list[Event]) -> int:
        return sum(
            not any(e.data["endpoint"] == o.data["endpoint"] and abs(e.time_ms - o.time_ms) <= _SAME_MS for o in others)
            for e in some
        )

    return {"added": alone(found, was), "removed": alone(was, found)}
