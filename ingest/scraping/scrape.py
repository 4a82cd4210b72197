"""One scrape of one target: ask, parse, store; one keep-alive session for all targets."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import aiohttp

from ingest.exemplars import keep_exemplars
from ingest.exposition import PAD, PageLimitError, PageOptions
from ingest.negotiation import ScrapeError, ScrapeProtocol, accept_header
from ingest.relabel import NO_RULES, Rules
from ingest.scraping.fetch import Page, fetch
from ingest.scraping.groups import FileSdConfig, HttpSdConfig, TargetGroup
from ingest.scraping.http_client import HttpClient, HttpClientConfig, HttpClientError
from ingest.scraping.target import Answer, Round, TargetSeries
from ingest.scraping.targets import Target, TargetRules
from ingest.store import Tenant
from tsdb.clock import Clock
from tsdb.errors import Reason, RejectedError, UnavailableError
from tsdb.index.registry import SeriesRegistry
from tsdb.limits import TimeLimits
from tsdb.tally import Tally

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 300.0
"""How long an idle connection is kept, as in Prometheus: above any sane interval."""


@dataclass(frozen=True, slots=True)
class ScrapeConfig:
    """One scrape job, by Prometheus' names.

    Attributes
    ----------
    static_configs, file_sd_configs, http_sd_configs : where its targets are written
    scrape_interval, scrape_timeout : seconds
    params : query parameters, name -> values
    relabel, metric_relabel : rules for targets, and for each series of a page
    external_labels : of all its targets, unless they have their own of that name
    client : how targets are asked
    target_limit : most targets; one more and none is scraped
    keep_dropped_targets : most targets shown that relabelling dropped
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
    future_max_ms : how far ahead a time of a page may be
    extra_scrape_metrics : also write ``scrape_timeout_seconds``, ``scrape_sample_limit``, ``scrape_body_size_bytes``
    """

    job_name: str
    static_configs: tuple[TargetGroup, ...] = ()
    file_sd_configs: tuple[FileSdConfig, ...] = ()
    http_sd_configs: tuple[HttpSdConfig, ...] = ()
    scrape_interval: float = 15.0
    scrape_timeout: float = 10.0
    metrics_path: str = "/metrics"
    scheme: str = "http"
    params: Mapping[str, Sequence[str]] = field(default_factory=dict)
    relabel: Rules = NO_RULES
    metric_relabel: Rules = NO_RULES
    external_labels: Mapping[str, str] = field(default_factory=dict)
    client: HttpClientConfig = field(default_factory=HttpClientConfig)
    target_limit: int = 0
    keep_dropped_targets: int = 0
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
    future_max_ms: int = TimeLimits().future_max_ms
    extra_scrape_metrics: bool = False

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
            future_max_ms=self.future_max_ms,
            extra_scrape_metrics=self.extra_scrape_metrics,
            metric_relabel=self.metric_relabel,
        )

    def target_rules(self) -> TargetRules:
        """What it says about its targets."""
        return TargetRules(
            job_name=self.job_name,
            scrape_interval=self.scrape_interval,
            scrape_timeout=self.scrape_timeout,
            metrics_path=self.metrics_path,
            scheme=self.scheme,
            params=self.params,
            relabel=self.relabel,
            external_labels=self.external_labels,
        )


class PageScraper:
    """Scrapes pages of any target into one tenant.

    Attributes
    ----------
    clock : times of samples
    scrapes, failures, samples : totals since the start, for ``/metrics``
    """

    def __init__(self, tenant: Tenant, executor: Executor, clock: Clock, tally: Tally) -> None:
        self.clock = clock
        self._tenant = tenant
        self._executor = executor
        self._tally = tally
        self._session: aiohttp.ClientSession | None = None
        self.scrapes = 0
        self.failures = 0
        self.samples = 0

    @property
    def registry(self) -> SeriesRegistry:
        """Series of the tenant."""
        return self._tenant.registry

    @property
    def session(self) -> aiohttp.ClientSession:
        """Connections to all that are asked; made inside the event loop by the first who needs it."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False,  # so that a small body cannot grow past the limit unseen
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
                headers={"User-Agent": "meshpulse"},
                cookie_jar=aiohttp.DummyCookieJar(),  # what one target sets is no other's business
            )
        return self._session

    async def close(self) -> None:
        """End all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def scrape(
        self,
        target: Target,
        series: TargetSeries,
        config: ScrapeConfig,
        client: HttpClient,
        scrape_ms: int,
        forced_error: str = "",
    ) -> None:
        """Scrape one target once and store the outcome; what goes wrong ends in its status, never in an exception.

        Parameters
        ----------
        forced_error : fail with this and do not ask
        """
        begin = time.perf_counter()
        error = ""
        outcome: Round | None = None
        answer = Answer(0.0, target.aim.scrape_timeout)
        try:
            page = await self._fetch(target, config, client, forced_error)
            answer = answer._replace(seconds=time.perf_counter() - begin, body_bytes=len(page.text) - len(PAD))
            outcome = await self._parse(series, page, scrape_ms, answer)
        except RejectedError as refused:
            error = str(refused)
            self._tally.add(refused.reason)
            if isinstance(refused, PageLimitError):
                answer = answer._replace(scraped=refused.scraped, kept=refused.kept)
            elif refused.reason is Reason.SCRAPE_LIMIT:
                answer = answer._replace(body_bytes=-1)
        except Exception as bug:
            error = f"internal error: {bug}"
            log.exception("scrape of %s failed", target.url)
        seconds = time.perf_counter() - begin
        if error:
            self.failures += 1
            if target.last_error != error:
                log.warning("scrape of %s failed: %s", target.url, error)
            try:
                outcome = series.failure(scrape_ms, answer._replace(seconds=seconds))
            except RejectedError as refused:  # not even room for its own series
                error = str(refused)
        self.scrapes += 1
        target.health = "down" if error else "up"
        target.last_error = error
        target.last_scrape_ms = scrape_ms
        target.last_seconds = seconds
        if outcome is not None and not await self.store(target, outcome):
            series.tell_again()

    async def _fetch(self, target: Target, config: ScrapeConfig, client: HttpClient, forced_error: str) -> Page:
        if forced_error:
            raise ScrapeError(forced_error)
        timeout_s = target.aim.scrape_timeout
        try:
            arguments = client.arguments(target.aim.url)
        except HttpClientError as error:
            raise ScrapeError(str(error)) from None
        arguments["headers"] |= {
            "Accept": accept_header(config.scrape_protocols),
            "Accept-Encoding": "gzip" if config.enable_compression else "identity",
            "X-Prometheus-Scrape-Timeout-Seconds": f"{timeout_s:g}",
        }
        return await fetch(
            self.session,
            target.aim.url,
            arguments,
            timeout_s,
            config.body_size_limit,
            config.fallback_scrape_protocol,
        )

    async def _parse(self, series: TargetSeries, page: Page, scrape_ms: int, answer: Answer) -> Round:
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(self._executor, series.success, page.text, page.openmetrics, scrape_ms, answer)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            await asyncio.wait([job])  # nobody may touch the series before the thread has left them
            raise

    async def store(self, target: Target, outcome: Round) -> bool:
        """Store what a scrape, or the end of one, brought; whether it could be."""
        self._tally.add_all(outcome.refused)
        try:
            if outcome.metadata:
                self._tenant.put_metadata(outcome.metadata)
            result = await asyncio.wrap_future(self._tenant.append(outcome.batch))
        except UnavailableError as error:
            self._tally.add(error.reason)
            target.last_error = f"scraped, but not stored: {error}"
            log.warning("scrape of %s not stored: %s", target.url, error)
            return False
        self.samples += result.accepted
        if outcome.exemplars:
            keep_exemplars(self._tenant.exemplars, outcome.batch.registry, outcome.exemplars, self._tally)
        return True
