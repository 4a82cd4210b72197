"""The targets of one job: sources tell groups, relabelling makes targets of them, each target has a loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ingest.scraping.discovery import FileSource, HttpSource, Source
from ingest.scraping.groups import FileSdConfig, HttpSdConfig, TargetGroup
from ingest.scraping.http_client import HttpClient
from ingest.scraping.scrape import PageScraper, ScrapeConfig
from ingest.scraping.target import TargetSeries
from ingest.scraping.targets import Aim, Target, resolve
from tsdb.errors import RejectedError

log = logging.getLogger(__name__)

ALIGN_TOLERANCE_MS = 5
"""A scrape that starts so close to when it was due gets that time: equal steps compress several times better."""

FIRST_GROUPS_S = 10.0
"""How long a changed job waits for its new sources to tell their groups before targets of the old ones go."""

_SourceConfig = FileSdConfig | HttpSdConfig


class TargetLoop:
    """Scrapes one target at its times; what its job changes is followed from the next scrape on."""

    def __init__(self, pool: ScrapePool, target: Target, pages: PageScraper) -> None:
        self._pool = pool
        self._pages = pages
        self.target = target
        self._options = pool.config.page_options()
        self.series = TargetSeries(pages.registry, target.aim.labels, self._options)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; call it inside the event loop."""
        self._task = asyncio.create_task(self._run(), name=f"scrape {self.target.url}")

    def follow(self, aim: Aim, discovered: Mapping[str, str]) -> None:
        """The same target was discovered again, perhaps with other times or other ``__meta_*``."""
        if aim.scrape_interval != self.target.aim.scrape_interval:
            self._changed.set()
        self.target.aim = aim
        self.target.discovered = discovered

    async def stop(self, *, mark_stale: bool) -> None:
        """End, a scrape under way included; with stale markers for everything the target had, if wanted."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if mark_stale and self.target.last_scrape_ms is not None:
            now_ms = max(self._pages.clock.now_ms(), self.target.last_scrape_ms + 1)
            with contextlib.suppress(RejectedError):  # there was no room even for its own series: nothing to mark
                await self._pages.store(self.target, self.series.end(now_ms))

    async def scrape(self, scrape_ms: int) -> None:
        """Scrape once."""
        config, options = self._pool.config, self._pool.config.page_options()
        if options != self._options:  # what is no longer written under the new rules becomes stale with this scrape
            after = TargetSeries(self._pages.registry, self.target.aim.labels, options)
            after.take_over(self.series)
            self.series, self._options = after, options
        await self._pages.scrape(
            self.target, self.series, config, self._pool.client, scrape_ms, self._pool.forced_error
        )

    async def _run(self) -> None:
        clock = self._pages.clock
        due_ms = self._next_due(clock.now_ms())
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0, due_ms - clock.now_ms()) / 1000):
                    await self._changed.wait()
            if self._changed.is_set():
                self._changed.clear()
                due_ms = self._next_due(clock.now_ms())
                continue
            now_ms = clock.now_ms()
            interval_ms = self._interval_ms()
            tolerance_ms = min(ALIGN_TOLERANCE_MS, interval_ms // 100)
            try:
                await self.scrape(due_ms if abs(now_ms - due_ms) <= tolerance_ms else now_ms)
            except Exception:
                log.exception("a fault of ours while scraping %s", self.target.url)
            # What should have happened meanwhile is left out, and a clock that was set back is followed.
            now_ms = clock.now_ms()
            due_ms = self._next_due(due_ms if 0 < due_ms - now_ms <= interval_ms else now_ms)

    def _interval_ms(self) -> int:
        return max(1, round(self.target.aim.scrape_interval * 1000))

    def _next_due(self, after_ms: int) -> int:
        return next_due(after_ms, self.target.aim.offset_ms(), self._interval_ms())


def next_due(after_ms: int, offset_ms: int, interval_ms: int) -> int:
    """First time after ``after_ms`` that lies ``offset_ms`` behind a multiple of the interval."""
    return after_ms + 1 + (offset_ms - after_ms - 1) % interval_ms


class _RunningSource:
    """A source with its task, and what it told last."""

    def __init__(self, source: Source, pool: ScrapePool) -> None:
        self.groups: Sequence[TargetGroup] = ()
        self.told = asyncio.Event()
        self._pool = pool
        self.task = asyncio.create_task(source.run(self._on_groups), name=f"discovery of {pool.config.job_name}")
        self.task.add_done_callback(self._on_end)

    def _on_groups(self, groups: Sequence[TargetGroup] | None) -> None:
        if groups is not None:
            self.groups = groups
            self._pool.dirty.set()
        self.told.set()

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self.told.set()
        if not task.cancelled() and task.exception() is not None:
            log.error("discovery ended: job %s", self._pool.config.job_name, exc_info=task.exception())


class ScrapePool:
    """One job.

    Attributes
    ----------
    config : as it is now
    loops : identity -> loop of each active target
    dropped : labels of the targets that relabelling dropped, at most ``keep_dropped_targets`` if that is not 0
    dropped_count : how many it dropped
    failed : how many make no target
    forced_error : why no target is scraped at the moment; empty = they are
    dirty : set when the groups have changed
    """

    def __init__(self, config: ScrapeConfig, pages: PageScraper) -> None:
        self.config = config
        self.client = HttpClient(config.client)
        self.loops: dict[tuple[object, ...], TargetLoop] = {}
        self.dropped: Sequence[Mapping[str, str]] = ()
        self.dropped_count = 0
        self.failed = 0
        self.forced_error = ""
        self.dirty = asyncio.Event()
        self._pages = pages
        self._sources: dict[_SourceConfig, _RunningSource] = {}
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._errors: set[str] = set()

    async def start(self) -> None:
        """Begin to discover and to scrape."""
        await self.apply(self.config)
        self._task = asyncio.create_task(self._run(), name=f"targets of {self.config.job_name}")

    async def apply(self, config: ScrapeConfig) -> None:
        """Follow a changed configuration; a target that stays keeps its loop."""
        # what is equal before and after goes on undisturbed
        wanted: list[_SourceConfig] = list(dict.fromkeys([*config.file_sd_configs, *config.http_sd_configs]))
        new = {key: _RunningSource(self._source(key), self) for key in wanted if key not in self._sources}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_GROUPS_S if self.loops else 0):
                await asyncio.gather(*(source.told.wait() for source in new.values()))
        async with self._lock:
            if config.client != self.config.client:
                self.client = HttpClient(config.client)
            self.config = config
            known = {**self._sources, **new}
            gone = [source for key, source in self._sources.items() if key not in wanted]
            self._sources = {key: known[key] for key in wanted}
            await _cancel([source.task for source in gone])
            await self._sync()

    async def close(self, *, mark_stale: bool) -> None:
        """End everything."""
        await _cancel([source.task for source in self._sources.values()])
        async with self._lock:  # so that it is not ended half way through
            if self._task is not None:
                await _cancel([self._task])
            await asyncio.gather(*(loop.stop(mark_stale=mark_stale) for loop in self.loops.values()))
            self.loops = {}

    def targets(self) -> list[Target]:
        """The active targets, by URL."""
        return sorted((loop.target for loop in list(self.loops.values())), key=lambda target: target.url)

    def _source(self, config: _SourceConfig) -> Source:
        if isinstance(config, FileSdConfig):
            return FileSource(config)
        return HttpSource(config, self._pages.session)

    async def _run(self) -> None:
        while True:
            await self.dirty.wait()
            try:
                async with self._lock:
                    await self._sync()
            except Exception:
                log.exception("targets of job %s stay as they are", self.config.job_name)
                await asyncio.sleep(1.0)

    async def _sync(self) -> None:
        """Make the loops those of the groups as they are now: first end what is gone, then begin what is new."""
        self.dirty.clear()
        found_groups = (group for source in self._sources.values() for group in source.groups)
        groups = [*self.config.static_configs, *found_groups]
        found = await asyncio.to_thread(resolve, self.config.target_rules(), groups)
        for error in set(found.errors) - self._errors:
            log.warning("creating target failed: job %s: %s", self.config.job_name, error)
        self._errors = set(found.errors)
        self.failed = len(found.errors)
        keep = self.config.keep_dropped_targets
        self.dropped, self.dropped_count = found.dropped[: keep or None], len(found.dropped)
        limit = self.config.target_limit
        over = 0 < limit < len(found.aims)
        self.forced_error = (
            f"target_limit exceeded (number of targets: {len(found.aims)}, limit: {limit})" if over else ""
        )
        gone = [self.loops.pop(identity) for identity in self.loops.keys() - found.aims.keys()]
        await asyncio.gather(*(loop.stop(mark_stale=True) for loop in gone))
        for identity, (aim, discovered) in found.aims.items():
            loop = self.loops.get(identity)
            if loop is not None:
                loop.follow(aim, discovered)
                continue
            self.loops[identity] = loop = TargetLoop(self, Target(self.config.job_name, aim, discovered), self._pages)
            loop.start()


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
