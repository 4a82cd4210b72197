"""All scrape jobs of the program: begun, followed through changes of the configuration, ended."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from ingest.scraping.pool import ScrapePool
from ingest.scraping.scrape import PageScraper, ScrapeConfig
from ingest.store import Metadata, Tenant
from tsdb.clock import Clock
from tsdb.tally import Tally


class Scraper:
    """Scrapes the targets of all jobs into one tenant; everything but reading is done inside the event loop.

    Parameters
    ----------
    tenant : where samples go
    executor : threads that parse
    clock, tally : times of samples; counts of what was refused

    Attributes
    ----------
    pages : what scrapes one page, and counts
    pools : the jobs by name
    """

    def __init__(self, tenant: Tenant, executor: Executor, clock: Clock, tally: Tally) -> None:
        self.pages = PageScraper(tenant, executor, clock, tally)
        self.pools: dict[str, ScrapePool] = {}
        self._lock = asyncio.Lock()

    async def apply(self, configs: Sequence[ScrapeConfig]) -> None:
        """Make the jobs those of ``configs``: gone ones end with stale markers, unchanged ones notice nothing."""
        async with self._lock:
            wanted = {config.job_name for config in configs}
            gone = [self.pools.pop(name) for name in self.pools.keys() - wanted]
            await asyncio.gather(*(pool.close(mark_stale=True) for pool in gone))
            changing = []
            for config in configs:
                pool = self.pools.get(config.job_name)
                if pool is None:
                    self.pools[config.job_name] = pool = ScrapePool(config, self.pages)
                    changing.append(pool.start())
                elif pool.config != config:
                    changing.append(pool.apply(config))
            await asyncio.gather(*changing)

    async def close(self, *, mark_stale: bool) -> None:
        """End all jobs.

        Parameters
        ----------
        mark_stale : write stale markers for everything the targets had; without, queries see the last values for
            the lookback time, which bridges a quick restart
        """
        async with self._lock:
            await asyncio.gather(*(pool.close(mark_stale=mark_stale) for pool in self.pools.values()))
            self.pools = {}
            await self.pages.close()

    def active(self, job: str = "") -> list[dict[str, Any]]:
        """Active targets as ``/api/v1/targets`` shows them, of one job or of all."""
        return [target.status() for pool in self._of(job) for target in pool.targets()]

    def dropped(self, job: str = "") -> list[dict[str, Any]]:
        """What relabelling dropped, as ``/api/v1/targets`` shows it."""
        return [
            {"discoveredLabels": dict(labels), "scrapePool": pool.config.job_name}
            for pool in self._of(job)
            for labels in pool.dropped
        ]

    def dropped_counts(self, job: str = "") -> dict[str, int]:
        """How many were dropped, by job."""
        return {pool.config.job_name: pool.dropped_count for pool in self._of(job)}

    def metadata(self) -> list[tuple[dict[str, str], list[Metadata]]]:
        """Labels of each active target, and the metric families that it described; called on any thread."""
        loops = [loop for pool in self._of("") for loop in list(pool.loops.values())]
        return [(dict(sorted(loop.target.aim.labels.items())), loop.series.metadata()) for loop in loops]

    def _of(self, job: str) -> list[ScrapePool]:
        return [pool for name, pool in sorted(self.pools.items()) if job in ("", name)]
