"""Brings the loop to its thread: a tick every interval, requests in between, topology sources beside it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, ParamSpec, Protocol, TypeVar

from health.lease import ActuatorLease
from health.loop import HealthLoop
from health.topology import Source, merged
from health.verdicts import Kind
from tsdb.clock import Clock
from tsdb.errors import MeshpulseError

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class Follower(Protocol):
    """Told after each tick, on the loop's thread: an adapter that writes what was decided."""

    def follow(self, now_ms: int) -> None: ...


class HealthRunner:
    """Runs a :class:`HealthLoop`; its methods are called on the event loop.

    Parameters
    ----------
    executor : one thread, on which alone the loop is touched
    beside : threads for reading topology sources

    Attributes
    ----------
    health : the loop; only its board and events may be read from here
    lease : whether this instance may actuate
    ticks, failures, tick_seconds : how often it ran, how often that failed, how long the last one took
    """

    def __init__(
        self,
        health: HealthLoop,
        clock: Clock,
        interval_ms: int,
        executor: Executor,
        beside: Executor,
        sources: Sequence[Source],
        topology_interval_ms: int,
        lease: ActuatorLease,
    ) -> None:
        self.health = health
        self.clock = clock
        self.lease = lease
        self.followers: list[Follower] = []
        self.ticks = 0
        self.failures = 0
        self.tick_seconds = 0.0
        self._interval_ms = interval_ms
        self._executor = executor
        self._beside = beside
        self._sources = sources
        self._topology_interval_ms = topology_interval_ms
        self._tasks: list[asyncio.Task[None]] = []
        self._reading: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to tick."""
        self.health.board.bind(asyncio.get_running_loop())
        self._tasks = [asyncio.create_task(self._tick_for_ever())]
        self._read_sources()

    def _read_sources(self) -> None:
        if self._sources:
            self._reading = asyncio.create_task(self._read_sources_for_ever())
            self._tasks.append(self._reading)

    async def use_sources(self, sources: Sequence[Source]) -> None:
        """Read topology from others from now on; what the old ones said holds until the new ones were read."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._tasks.remove(self._reading)
            self._reading = None
        self._sources = sources
        if not sources:
            await self.call(self.health.use_facts, {})
        self._read_sources()

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run something on the loop's thread, between two ticks."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*args, **kwargs))

    async def close(self) -> None:
        """Answer everybody who waits, end the ticks, write down the state, give back the lease."""
        self.health.board.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

        def finish() -> None:
            with contextlib.suppress(OSError):
                self.health.save()
            self.lease.release(self.clock.now_ms())

        await self.call(finish)

    def tick(self) -> None:
        """One tick (the loop's thread). A failure is logged and counted; the lease of what is published runs out."""
        begin = time.perf_counter()
        now_ms = self.clock.now_ms()
        held = self.lease.held(now_ms)
        self.lease.refresh(now_ms)
        lost = held and not self.lease.held(now_ms)
        if self.lease.held(now_ms) != held:
            self.health.board.notify()  # adapters show verdicts from now on, or no more
        try:
            self.health.tick(now_ms)
            if lost:
                self.health.say(Kind.LEASE_EXPIRED, "", "", "actuator", {"lease": "actuator"})
        except (MeshpulseError, OSError) as error:
            self.failures += 1
            log.error("no evaluation this time: %s", error)  # noqa: TRY400
        for follower in self.followers:
            try:
                follower.follow(now_ms)
            except OSError as error:
                self.failures += 1
                log.error("an adapter failed: %s", error)  # noqa: TRY400
        self.ticks += 1
        self.tick_seconds = time.perf_counter() - begin

    async def _tick_for_ever(self) -> None:
        interval = self._interval_ms / 1000
        while True:
            try:
                await self.call(self.tick)
            except Exception:
                self.failures += 1
                log.exception("a fault of ours while evaluating")
            await asyncio.sleep(interval - time.time() % interval)

    async def _read_sources_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            results: list[Any] = await asyncio.gather(
                *(loop.run_in_executor(self._beside, source.refresh) for source in self._sources)
            )
            if any(results):
                await self.call(self.health.use_facts, merged(self._sources))
            await asyncio.sleep(self._topology_interval_ms / 1000)
