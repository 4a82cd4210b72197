"""The loop run again over stored history, seeing at each evaluation what the live one saw, where that is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from health.arrivals import Arrivals, Tick, facts_digest, read_arrivals
from health.board import Revision
from health.events import KEPT, Event, EventList, time_text
from health.journal import Journal, Memory
from health.loop import HealthLoop, LoopSettings
from health.mapping import SeriesMapping
from health.policy import Policy
from health.signals import Frames, matchers_of, observers_of
from health.topology import Facts
from health.verdicts import Kind
from health.window import HISTORY_S
from tsdb.frame import SeriesFrame
from tsdb.limits import SelectLimits
from tsdb.matchers import Matcher

_CHUNK_MS = 300_000
_MEMORY_MS = HISTORY_S * 1000 + 60_000
"""What was counted longer ago than this no evaluation remembers."""
_MOVES = frozenset({Kind.EJECTED, Kind.PROBATION, Kind.RAMP, Kind.RECOVERED, Kind.GONE, Kind.RETURNED})


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run again: one service, one policy, (start, end].

    Attributes
    ----------
    step_ms : between evaluations where it is not known when they were
    """

    service: str
    policy: Policy
    start_ms: int
    end_ms: int
    step_ms: int

    @property
    def lead_ms(self) -> int:
        """How long before the start evaluation begins, so that everything is warm, old enough and remembered."""
        guards = self.policy.guards
        return max(guards.warmup_ms, guards.min_age_ms, _MEMORY_MS)

    @property
    def ticks(self) -> int:
        """Evaluations it takes."""
        return (self.end_ms - self.start_ms + self.lead_ms) // self.step_ms


@dataclass(frozen=True, slots=True)
class Past:
    """Where history comes from.

    Attributes
    ----------
    facts : what topology sources say now
    live : events of the live loop
    folder : of the arrivals; None = there are none
    """

    frames: Frames
    mappings: tuple[SeriesMapping, ...]
    facts: Facts
    live: EventList
    folder: Path | None = None


class PastFrames:
    """Answers selections of a minute from chunks of five, which are read once.

    Attributes
    ----------
    reached : observer -> time of its newest sample that is there already; None = every sample came at once
    """

    def __init__(self, frames: Frames, mappings: Iterable[SeriesMapping], only: str) -> None:
        self._frames = frames
        self._mappings = {tuple(matchers_of(mapping, only)): mapping for mapping in mappings}
        self._chunks: dict[tuple[Matcher, ...], _Chunk] = {}
        self.reached: dict[str, int] | None = None

    def select(self, matchers: Sequence[Matcher], mint_ms: int, maxt_ms: int, limits: SelectLimits) -> SeriesFrame:
        key = tuple(matchers)
        chunk = self._chunks.get(key)
        if chunk is None or mint_ms < chunk.first_ms or maxt_ms > chunk.last_ms:
            last_ms = maxt_ms + _CHUNK_MS
            frame = self._frames.select(matchers, mint_ms, last_ms, limits)
            names, number = observers_of(frame.labels, self._mappings[key])
            chunk = self._chunks[key] = _Chunk(mint_ms, last_ms, frame, names, number)
        return chunk.cut(mint_ms, maxt_ms, self.reached)


@dataclass(frozen=True, slots=True)
class _Chunk:
    first_ms: int
    last_ms: int
    frame: SeriesFrame
    observers: list[str]
    number: NDArray[np.int64]

    def cut(self, mint_ms: int, maxt_ms: int, reached: Mapping[str, int] | None) -> SeriesFrame:
        frame = self.frame
        inside = (frame.ts_ms >= mint_ms) & (frame.ts_ms <= maxt_ms)
        if reached is not None and len(self.observers):
            limit = np.array([reached.get(name, mint_ms - 1) for name in self.observers], np.int64)
            inside &= frame.ts_ms <= np.repeat(limit[self.number], np.diff(frame.offsets))
        before = np.concatenate(([0], np.cumsum(inside)))
        return replace(
            frame,
            offsets=before[frame.offsets].astype(np.int64),
            ts_ms=frame.ts_ms[inside],
            values=frame.values[inside],
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


class Rerun:
    """The loop of one service over the past.

    Attributes
    ----------
    loop : of that time
    approximations : why it may differ from what a live loop saw; empty = it saw exactly the same
    """

    def __init__(self, plan: Plan, past: Past) -> None:
        self.plan = plan
        self._past = past
        self._facts = {plan.service: past.facts[plan.service]} if plan.service in past.facts else {}
        self._frames = PastFrames(past.frames, past.mappings, plan.service)
        self._begin_ms = plan.start_ms - plan.lead_ms
        arrivals = Arrivals()
        if past.folder is not None:
            arrivals = read_arrivals(past.folder, plan.service, self._begin_ms, plan.end_ms)
        self.approximations = self._judged(arrivals)
        self._arrivals = arrivals
        settings = LoopSettings(
            past.mappings, {plan.policy.name: replace(plan.policy, service="*")}, plan.service, arrivals.fleet
        )
        self.loop = HealthLoop(self._frames, settings, _NoJournal(), self._begin_ms)

    def run(self) -> Iterator[int]:
        """Evaluate; the time of each evaluation after it.

        Raises
        ------
        tsdb.errors.LimitError        five minutes of the service are more than one selection may read
        """
        if not self._arrivals.ticks:
            self.loop.use_facts(self._facts)
            for now_ms in range(self._begin_ms + self.plan.step_ms, self.plan.end_ms + 1, self.plan.step_ms):
                self.loop.tick(now_ms)
                yield now_ms
            return
        reached = self._frames.reached = dict(self._arrivals.before)
        current = facts_digest(self._facts.get(self.plan.service, {}))
        others = different = 0
        for i, tick in enumerate(self._arrivals.ticks):
            reached |= tick.moved
            if tick.facts not in (0, current):
                others += 1
            self._use_facts(tick)
            self.loop.tick(tick.now_ms)
            service = self.loop.services.get(self.plan.service)
            different += i > 0 and (service.arrived if service else 0) != tick.arrived
            yield tick.now_ms
        if others:
            self.approximations.append(f"during {others} evaluations the topology was another than it is now")
        if different:
            self.approximations.append(
                f"{different} of {len(self._arrivals.ticks)} evaluations saw other samples than the live ones"
            )

    def _use_facts(self, tick: Tick) -> None:
        wanted: Facts = self._facts if tick.facts else {}
        if wanted is not self.loop.facts and wanted != self.loop.facts:
            self.loop.use_facts(wanted)

    def _judged(self, arrivals: Arrivals) -> list[str]:
        """Where the run begins, and what of the live loop's inputs is not known."""
        plan, live = self.plan, self._past.live
        starts = [start for start in arrivals.starts if start[0] <= plan.start_ms]
        if starts:  # nothing of what was before it counts
            self._begin_ms = starts[-1][0]
            arrivals.ticks = [tick for tick in arrivals.ticks if tick.now_ms > self._begin_ms]
            arrivals.before.clear()
        if not arrivals.ticks or (not starts and (arrivals.oldest_ms or plan.start_ms) > self._begin_ms):
            arrivals.ticks = []
            return ["when samples arrived is not known for this time: they count from their own time"]
        said = [f"evaluations before {time_text(gap)} were not written down" for gap in arrivals.gaps]
        said += [f"the program started again at {time_text(at)}" for at, _ in arrivals.starts if at > plan.start_ms]
        if starts and starts[-1][1]:
            said.append(f"the program started at {time_text(self._begin_ms)} with remembered ejections")

        def happened(kinds: frozenset[Kind], start_ms: int, end_ms: int) -> list[Event]:
            found = live.find(start_ms=start_ms, end_ms=end_ms, limit=KEPT)
            return [event for event in found if event.data["type"] in kinds]

        if not starts:
            settled_ms = self._begin_ms + plan.policy.guards.warmup_ms
            if any(
                e.data["service"] == plan.service for e in happened(_MOVES, self._begin_ms - _MEMORY_MS, settled_ms)
            ):
                said.append("endpoints were already ejected when the run begins")
        during = happened(frozenset(Kind), self._begin_ms, plan.end_ms)
        kinds = {e.data["type"] for e in during if e.data["service"] == plan.service}
        if Kind.OVERRIDE in kinds:
            said.append("people gave orders, which are not repeated")
        if any(e.data["type"] in (Kind.POLICY_CHANGED, Kind.POLICY_DELETED) for e in during):
            said.append("policies were changed, the run uses one for all of the time")
        if any(e.data["type"] == Kind.EJECTED and e.data["service"] != plan.service for e in during):
            said.append("other services had ejections, which share the fleet's budget")
        return said
