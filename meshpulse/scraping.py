"""The runtime's part that scrapes: jobs from the configuration, and what ``/api/v1/targets`` tells of them."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ingest.store import Metadata
from meshpulse.config import Config
from meshpulse.scrape_config import rules_of
from tsdb.clock import Clock
from tsdb.db import DEFAULT_TENANT, TSDB
from tsdb.tally import Tally

if TYPE_CHECKING:
    from ingest.scraping.scrape import ScrapeConfig
    from ingest.scraping.scraper import Scraper

_OURSELVES = frozenset({"127.0.0.1", "localhost", "::1"})


def scrape_jobs(config: Config) -> list[ScrapeConfig]:
    """The jobs with the file's defaults filled in."""
    from ingest.scraping.scrape import ScrapeConfig

    jobs = []
    for job in config.scrape_configs:
        interval = job.scrape_interval or config.global_.scrape_interval
        timeout = job.scrape_timeout or min(config.global_.scrape_timeout, interval)
        jobs.append(
            ScrapeConfig(
                job_name=job.job_name,
                static_configs=job.groups(),
                file_sd_configs=tuple(section.source() for section in job.file_sd_configs),
                http_sd_configs=tuple(section.source() for section in job.http_sd_configs),
                scrape_interval=interval.total_seconds(),
                scrape_timeout=timeout.total_seconds(),
                metrics_path=job.metrics_path,
                scheme=job.scheme,
                params=job.params,
                relabel=rules_of(job.relabel_configs),
                metric_relabel=rules_of(job.metric_relabel_configs),
                external_labels=config.global_.external_labels,
                client=job.client(),
                target_limit=job.target_limit,
                keep_dropped_targets=job.keep_dropped_targets,
                honor_labels=job.honor_labels,
                honor_timestamps=job.honor_timestamps,
                track_timestamps_staleness=job.track_timestamps_staleness,
                scrape_protocols=tuple(job.scrape_protocols),
                fallback_scrape_protocol=job.fallback_scrape_protocol,
                enable_compression=job.enable_compression,
                sample_limit=job.sample_limit,
                label_limit=job.label_limit,
                label_name_length_limit=job.label_name_length_limit,
                label_value_length_limit=job.label_value_length_limit,
                future_max_ms=round(config.storage.future_max.total_seconds() * 1000),
                extra_scrape_metrics=job.extra_scrape_metrics,
                body_size_limit=job.body_size_limit or config.limits.ingest.scrape_bytes_max,
            )
        )
    return jobs


class Scraping:
    """The scraper, which exists from the first job on: its HTTP client takes a tenth of the start and 15 MB.

    Attributes
    ----------
    scraper : None while nothing was ever scraped
    """

    def __init__(self, db: TSDB, executor: Executor, clock: Clock, tally: Tally) -> None:
        self.scraper: Scraper | None = None
        self._db = db
        self._executor = executor
        self._clock = clock
        self._tally = tally

    async def apply(self, config: Config) -> None:
        """Scrape what the configuration says, from now on; on the event loop."""
        if self.scraper is None:
            if not config.scrape_configs:
                return
            from ingest.scraping.scraper import Scraper

            self.scraper = Scraper(self._db.tenant(DEFAULT_TENANT), self._executor, self._clock, self._tally)
        await self.scraper.apply(scrape_jobs(config))

    async def close(self) -> None:
        """End; without stale markers, so that a quick restart leaves no gap."""
        if self.scraper is not None:
            await self.scraper.close(mark_stale=False)

    def targets(self, job: str = "") -> Mapping[str, Any]:
        """Data of ``/api/v1/targets``, of one job or of all."""
        if self.scraper is None:
            return {"activeTargets": [], "droppedTargets": [], "droppedTargetCounts": {}}
        active = self.scraper.active(job)
        for target in active:
            target["globalUrl"] = seen_from_elsewhere(target["scrapeUrl"])
        return {
            "activeTargets": active,
            "droppedTargets": self.scraper.dropped(job),
            "droppedTargetCounts": self.scraper.dropped_counts(job),
        }

    def metadata(self) -> Sequence[tuple[Mapping[str, str], Sequence[Metadata]]]:
        """Labels of each active target, and the metric families that it described; called on any thread."""
        return self.scraper.metadata() if self.scraper else ()

    def pools(self) -> list[str]:
        """Names of the jobs."""
        return sorted(self.scraper.pools) if self.scraper else []


def seen_from_elsewhere(url: str) -> str:
    """The URL with this machine's name for a loopback address, as Prometheus shows it for links."""
    parts = urlsplit(url)
    if parts.hostname not in _OURSELVES:
        return url
    port = f":{parts.port}" if parts.port else ""
    return parts._replace(netloc=f"{socket.gethostname()}{port}").geturl()
