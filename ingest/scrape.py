"""Scrape loops: one task a target, one keep-alive session for all of them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import aiohttp

from ingest.exemplars import keep_exemplars
from ingest.exposition import PageLimitError, PageOptions
from ingest.fetch import Page, fetch
from ingest.negotiation import ScrapeProtocol, accept_header
from ingest.relabel import NO_RULES, Rules
from ingest.store import Metadata, Tenant
from ingest.target import Round, TargetSeries
from tsdb.clock import Clock
from tsdb.errors import RejectedError, UnavailableError
from tsdb.tally import Tally

log = logging.getLogger(__name__)

ALIGN_TOLERANCE_MS = 5
"""A scrape that starts so close to when it was due gets that time: equal steps compress several times better."""

KEEP_ALIVE_INTERVALS = 2
"""How long an idle connection is kept: over one failed scrape, whatever the interval."""


@dataclass(frozen=True, slots=True)
class StaticConfig:
    """Targets that are written down, and labels for all of them."""

    targets: Sequence[str]  # host:port
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScrapeConfig:
    """One scrape job, by Prometheus' names.

    Attributes
    ----------
    scrape_interval, scrape_timeout : seconds
    params : query parameters, name -> values
    honor_labels : a scraped label wins over a target label of its name
    honor_timestamps : times in the page are used
    track_timestamps_staleness : series with times of their own get stale markers too when they vanish
    scrape_protocols : formats to ask for, the preferred one first
    fallback_scrape_protocol : format of a page whose ``Content-Type`` is missing or unknown; None = refuse it
    enable_compression : ask for gzip
    sample_limit : most samples a scrape after relabelling; one more and the scrape fails. As of all limits, 0 = any
    label_limit, label_name_length_limit, label_value_length_limit : most labels of a series, bytes of a name and of a
        value; a page with a series beyond is refused whole
    body_size_limit : most bytes of a body, compressed or not
    metric_relabel : rules for each scraped series
    """

    job_name: str
    static_configs: Sequence[StaticConfig] = ()
    scrape_interval: float = 15.0
    scrape_timeout: float = 10.0
    metrics_path: str = "/metrics"
    scheme: str = "http"
    params: Mapping[str, Sequence[str]] = field(default_factory=dict)
    honor_labels: bool = False
    honor_timestamps: bool = True
    track_timestamps_staleness: bool = False
    scrape_protocols: Sequence[ScrapeProtocol] = tuple(ScrapeProtocol)
    fallback_scrape_protocol: ScrapeProtocol | None = None
    enable_compression: bool = True
    sample_limit: int = 0
    label_limit: int = 0
    label_name_length_limit: int = 0
    label_value_length_limit: int = 0
    body_size_limit: int = 64 << 20
    metric_relabel: Rules = NO_RULES

    def page_options(self) -> PageOptions:
        """What is done with the pages of its targets."""
        return PageOptions(
            honor_labels=self.honor_labels,
            honor_timestamps=self.honor_timestamps,
            track_timestamps_staleness=self.track_timestamps_staleness,
            sample_limit=self.sample_limit,
            label_limit=self.label_limit,
            label_name_length_limit=self.label_name_length_limit,
            label_value_length_limit=self.label_value_length_limit,
            metric_relabel=self.metric_relabel,
        )


class Target:
    """One address of a job, and how its last scrape went.

    Attributes
    ----------
    discovered : labels before the target becomes one, ``__address__`` and its like included
    labels : labels of its series
    health : ``up``, ``down`` or ``unknown``
    """

    def __init__(self, config: ScrapeConfig, address: str, labels: Mapping[str, str]) -> None:
        self.config = config
        self.discovered = {
            "__address__": address,
            "__metrics_path__": config.metrics_path,
            "__scheme__": config.scheme,
            "__scrape_interval__": _duration(config.scrape_interval),
            "__scrape_timeout__": _duration(config.scrape_timeout),
            "job": config.job_name,
            **{f"__param_{name}": values[0] for name, values in config.params.items() if values},
            **labels,
        }
        own = {name: value for name, value in self.discovered.items() if not name.startswith("__") and value}
        self.labels = {"instance": self.discovered["__address__"], **own}
        query = urlencode([(name, value) for name, values in config.params.items() for value in values])
        path = self.discovered["__metrics_path__"]
        path = path if path.startswith("/") else "/" + path
        self.url = (
            f"{self.discovered['__scheme__']}://{self.discovered['__address__']}{path}{'?' + query if query else ''}"
        )
        self.health = "unknown"
        self.last_error = ""
        self.last_scrape_ms: int | None = None
        self.last_seconds = 0.0

    def offset_ms(self) -> int:
        """When within each interval it is scraped: spread over targets, the same after every start."""
        text = repr((self.url, sorted(self.labels.items()))).encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return int.from_bytes(digest, "little") % max(1, round(self.config.scrape_interval * 1000))

    def status(self) -> dict[str, Any]:
        """The target as ``/api/v1/targets`` shows it."""
        last = "0001-01-01T00:00:00Z"
        if self.last_scrape_ms is not None:
            last = datetime.fromtimestamp(self.last_scrape_ms / 1000, UTC).isoformat().replace("+00:00", "Z")
        return {
            "discoveredLabels": dict(sorted(self.discovered.items())),
            "labels": dict(sorted(self.labels.items())),
            "scrapePool": self.config.job_name,
            "scrapeUrl": self.url,
            "globalUrl": self.url,
            "lastError": self.last_error,
            "lastScrape": last,
            "lastScrapeDuration": self.last_seconds,
            "health": self.health,
            "scrapeInterval": self.discovered["__scrape_interval__"],
            "scrapeTimeout": self.discovered["__scrape_timeout__"],
        }


class Scraper:
    """Scrapes all static targets of a configuration into one tenant.

    Parameters
    ----------
    tenant : where samples go
    configs : the jobs
    executor : threads that parse
    clock, tally : times of samples; counts of what was refused

    Attributes
    ----------
    active : the targets
    scrapes, failures, samples : totals since the start, for ``/metrics``
    """

    def __init__(
        self, tenant: Tenant, configs: Sequence[ScrapeConfig], executor: Executor, clock: Clock, tally: Tally
    ) -> None:
        self._tenant = tenant
        self._executor = executor
        self._clock = clock
        self._tally = tally
        self._series: dict[Target, TargetSeries] = {}
        for config in configs:
            for target in targets_of(config):
                self._series[target] = TargetSeries(tenant.registry, target.labels, config.page_options())
        self.active = tuple(self._series)
        self._session: aiohttp.ClientSession | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.scrapes = 0
        self.failures = 0
        self.samples = 0

    def start(self) -> None:
        """Start a loop for each target (call it inside the event loop)."""
        longest_s = max((target.config.scrape_interval for target in self.active), default=1.0)
        self._session = aiohttp.ClientSession(
            auto_decompress=False,  # so that a small body cannot grow past the limit unseen
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_INTERVALS * longest_s),
            headers={"User-Agent": "meshpulse"},
        )
        self._tasks = [asyncio.create_task(self._loop(target), name=f"scrape {target.url}") for target in self.active]

    async def close(self, mark_stale: bool = True) -> None:
        """End all loops.

        Parameters
        ----------
        mark_stale : write stale markers for everything the targets had; without, queries see the last values for
            the lookback time, which bridges a quick restart
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._session is not None:
            await self._session.close()
            self._session = None
        if mark_stale:
            now_ms = self._clock.now_ms()
            for target, series in self._series.items():
                if target.last_scrape_ms is not None:
                    await self._store(target, series.end(max(now_ms, target.last_scrape_ms + 1)))

    def targets(self) -> list[dict[str, Any]]:
        """The active targets as ``/api/v1/targets`` shows them."""
        return [target.status() for target in self.active]

    def metadata(self) -> list[tuple[dict[str, str], list[Metadata]]]:
        """Labels of each active target, and the metric families that it described; called on any thread."""
        return [(dict(sorted(target.labels.items())), series.metadata()) for target, series in self._series.items()]

    async def _loop(self, target: Target) -> None:
        interval_ms = max(1, round(target.config.scrape_interval * 1000))
        tolerance_ms = min(ALIGN_TOLERANCE_MS, interval_ms // 100)
        due_ms = next_due(self._clock.now_ms(), target.offset_ms(), interval_ms)
        while True:
            await asyncio.sleep(max(0, due_ms - self._clock.now_ms()) / 1000)
            now_ms = self._clock.now_ms()
            await self.scrape(target, due_ms if abs(now_ms - due_ms) <= tolerance_ms else now_ms)
            # What should have happened meanwhile is left out, and a clock that was set back is followed.
            now_ms = self._clock.now_ms()
            after_ms = due_ms if 0 < due_ms - now_ms <= interval_ms else now_ms
            due_ms = next_due(after_ms, target.offset_ms(), interval_ms)

    async def scrape(self, target: Target, scrape_ms: int) -> None:
        """Scrape one target once and store the outcome; what goes wrong ends in its status, never in an exception."""
        series = self._series[target]
        begin = time.perf_counter()
        error = ""
        outcome: Round | None = None
        beyond = (0, 0)
        try:
            page = await self._fetch(target)
            seconds = time.perf_counter() - begin
            outcome = await self._parse(series, page, scrape_ms, seconds)
        except RejectedError as refused:
            error = str(refused)
            self._tally.add(refused.reason)
            if isinstance(refused, PageLimitError):
                beyond = (refused.scraped, refused.kept)
        except Exception as bug:
            error = f"internal error: {bug}"
            log.exception("scrape of %s failed", target.url)
        seconds = time.perf_counter() - begin
        if error:
            self.failures += 1
            if target.last_error != error:
                log.warning("scrape of %s failed: %s", target.url, error)
            try:
                outcome = series.failure(scrape_ms, seconds, *beyond)
            except RejectedError as refused:  # not even room for its own series
                error = str(refused)
        self.scrapes += 1
        target.health = "down" if error else "up"
        target.last_error = error
        target.last_scrape_ms = scrape_ms
        target.last_seconds = seconds
        if outcome is not None:
            await self._store(target, outcome)

    async def _fetch(self, target: Target) -> Page:
        assert self._session is not None
        config = target.config
        headers = {
            "Accept": accept_header(config.scrape_protocols),
            "Accept-Encoding": "gzip" if config.enable_compression else "identity",
            "X-Prometheus-Scrape-Timeout-Seconds": f"{config.scrape_timeout:g}",
        }
        return await fetch(
            self._session,
            target.url,
            headers,
            config.scrape_timeout,
            config.body_size_limit,
            config.fallback_scrape_protocol,
        )

    async def _parse(self, series: TargetSeries, page: Page, scrape_ms: int, seconds: float) -> Round:
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(self._executor, series.success, page.text, page.openmetrics, scrape_ms, seconds)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            await asyncio.wait([job])  # nobody may touch the series before the thread has left them
            raise

    async def _store(self, target: Target, outcome: Round) -> None:
        self._tally.add_all(outcome.refused)
        try:
            if outcome.metadata:
                self._tenant.put_metadata(outcome.metadata)
            result = await asyncio.wrap_future(self._tenant.append(outcome.batch))
        except UnavailableError as error:
            self._tally.add(error.reason)
            target.last_error = f"scraped, but not stored: {error}"
            log.warning("scrape of %s not stored: %s", target.url, error)
        else:
            self.samples += result.accepted
            if outcome.exemplars:
                keep_exemplars(self._tenant.exemplars, outcome.exemplars, self._tally)


def next_due(after_ms: int, offset_ms: int, interval_ms: int) -> int:
    """First time after ``after_ms`` that lies ``offset_ms`` behind a multiple of the interval."""
    return after_ms + 1 + (offset_ms - after_ms - 1) % interval_ms


def targets_of(config: ScrapeConfig) -> list[Target]:
    """The targets of a job."""
    return [Target(config, address, group.labels) for group in config.static_configs for address in group.targets]


def _duration(seconds: float) -> str:
    """Seconds as Prometheus writes a duration: ``15s``, ``1m30s``, ``500ms``."""
    ms = round(seconds * 1000)
    text = ""
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        if ms >= size:
            text += f"{ms // size}{unit}"
            ms %= size
    return text or "0s"
