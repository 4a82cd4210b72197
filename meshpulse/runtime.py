"""The one place that builds objects: store, engine, endpoints, scraper, and the threads they run on."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from ingest.api import Endpoint, OtlpEndpoint, PushApi, RemoteWriteEndpoint, TextImportEndpoint
from ingest.import_text import TextImporter
from ingest.limits import WriteLimits
from ingest.logs.api import LokiPushApi
from ingest.logs.limits import PushLimits
from ingest.logs.push import PushReceiver
from ingest.otlp import OtlpReceiver
from ingest.reception import SampleWriter
from ingest.remote_write import RemoteWriteReceiver
from ingest.remote_write_v2 import RemoteWriteV2Receiver
from ingest.replicas import ReplicaLabels
from meshpulse.admin import AdminApi
from meshpulse.asgi import App
from meshpulse.bar import kernel_bar
from meshpulse.config import Config, milliseconds
from meshpulse.edge import Edge, EdgeLimits
from meshpulse.exemplars import ExemplarReader
from meshpulse.health import HealthParts, build_health
from meshpulse.live import LiveConfig
from meshpulse.memory import COMPILING_S, MemoryKeeper, settle_objects
from meshpulse.nginx import NginxParts, build_nginx
from meshpulse.query_log import QueryLog
from meshpulse.scraping import Scraping
from meshpulse.startup import Phase, Progress
from meshpulse.status import Status
from meshpulse.syslog import Syslog
from meshpulse.warm import warm
from query.api import QueryApi
from query.endpoints import PREFIX, Providers
from query.engine.engine import Engine
from query.limits import QueryLimits
from query.logql.engine.engine import LogEngine
from query.loki_api import LokiApi
from query.loki_endpoints import LOKI_VERSION
from query.loki_endpoints import PREFIX as LOKI_PREFIX
from tsdb.clock import Clock, SystemClock
from tsdb.db import TSDB, StoreConfig, StoreStats, TenantConfig
from tsdb.limits import SeriesLimits, TimeLimits
from tsdb.logs.settings import LogLimits
from tsdb.logs.store import LogStore
from tsdb.tally import Tally
from tsdb.tenant import Metadata
from tsdb.wal.log import LogStats

log = structlog.get_logger(__name__)


def store_config(config: Config) -> StoreConfig:
    """What the store needs of the configuration."""
    storage, series = config.storage, config.limits.series
    return StoreConfig(
        path=storage.path,
        shards=storage.shards,
        block_span_ms=milliseconds(storage.block_span),
        retention_ms=milliseconds(storage.retention),
        retention_bytes=storage.retention_bytes,
        compaction_spans_ms=tuple(milliseconds(span) for span in storage.compaction_spans),
        sync=config.wal.sync,
        sync_interval_ms=milliseconds(config.wal.interval),
        segment_bytes=config.wal.segment_bytes,
        log_queue_bytes_max=config.wal.queue_bytes_max,
        tenants=tenant_configs(config),
        tenants_auto_create=config.tenants.auto_create,
        tenants_max=config.tenants.max,
        min_free_bytes=storage.free_bytes_min,
        min_free_fraction=storage.free_fraction_min,
        series=SeriesLimits(**series.model_dump()),
        time=time_limits(config),
        failover_ms=milliseconds(config.ha.failover_timeout),
        logs=log_limits(config),
    )


def tenant_configs(config: Config) -> Mapping[str, TenantConfig]:
    """What is different for some tenants."""
    tenants = {}
    for name, entry in config.tenants.overrides.items():
        own = entry.model_dump(exclude={"retention"}, exclude_none=True)
        series = SeriesLimits(**(config.limits.series.model_dump() | own)) if own else None
        retention = None if entry.retention is None else milliseconds(entry.retention)
        tenants[name] = TenantConfig(series, retention)
    return tenants


def replica_labels(config: Config) -> ReplicaLabels | None:
    """The labels of pairs of senders, if there are pairs."""
    ha = config.ha
    return ReplicaLabels(ha.cluster_label.encode(), ha.replica_label.encode()) if ha.replica_label else None


def time_limits(config: Config) -> TimeLimits:
    """Which times are writable."""
    storage = config.storage
    return TimeLimits(milliseconds(storage.out_of_order_window), milliseconds(storage.future_max))


def query_limits(config: Config) -> QueryLimits:
    """What one query may touch."""
    query = config.query
    return QueryLimits(
        **config.limits.query.model_dump(),
        timeout_s=query.timeout.total_seconds(),
        concurrent_max=query.max_concurrency,
        lookback_ms=milliseconds(query.lookback_delta),
        default_step_ms=milliseconds(query.default_step),
        workers=query.workers,
    )


def write_limits(config: Config) -> WriteLimits:
    """What one write request may be."""
    limits = config.limits.ingest
    return WriteLimits(
        body_bytes_max=limits.body_bytes_max,
        decoded_bytes_max=limits.decoded_bytes_max,
        requests_max=limits.requests_max,
        inflight_bytes_max=limits.inflight_bytes_max,
    )


def edge_limits(config: Config) -> EdgeLimits:
    """What a connection may be."""
    server = config.server
    return EdgeLimits(
        connections_max=server.connections_max,
        header_bytes_max=server.header_bytes_max,
        header_timeout_s=server.header_timeout.total_seconds(),
        body_timeout_s=server.body_timeout.total_seconds(),
        response_timeout_s=server.response_timeout.total_seconds(),
    )


def log_limits(config: Config) -> LogLimits:
    """How the log store of a tenant keeps its entries."""
    return LogLimits(
        config.limits.logs.streams_max,
        retention_ms=milliseconds(config.storage.retention),
        cancel_s=config.limits.logs.delete_cancel_period.total_seconds(),
    )


def push_limits(config: Config) -> PushLimits:
    """What one log push may be."""
    limits = config.limits.logs.model_dump(exclude={"streams_max", "age_max", "ahead_max", "delete_cancel_period"})
    ages = (config.limits.logs.age_max, config.limits.logs.ahead_max)
    return PushLimits(**limits, age_max_s=int(ages[0].total_seconds()), ahead_max_s=int(ages[1].total_seconds()))


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that exists once the program is ready."""

    db: TSDB
    engine: Engine
    push_api: PushApi
    otlp: OtlpReceiver
    query_api: QueryApi
    log_engine: LogEngine
    loki_api: LokiApi
    loki_push_api: LokiPushApi
    admin_api: AdminApi
    scraping: Scraping
    health: HealthParts | None
    nginx: NginxParts | None
    syslog: Syslog
    executors: tuple[ThreadPoolExecutor, ...]


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """What the server lets its pages do to the program.

    Attributes
    ----------
    reload : read the configuration again; what has come of it, for a person
    quit : end as on SIGTERM
    """

    reload: Callable[[], Awaitable[str]]
    quit: Callable[[], None]


class Runtime:
    """Builds the program's parts and ends them.

    Attributes
    ----------
    live, progress, tally : the configuration in force; as given; counts of everything refused
    edge : what all connections share
    parts : None until :meth:`open` is through
    lifecycle : set by the server
    """

    def __init__(self, config: Config, progress: Progress, clock: Clock | None = None) -> None:
        self.live = LiveConfig(config)
        self.progress = progress
        self.tally = Tally()
        self.edge = Edge(edge_limits(config), self.tally)
        self.parts: Parts | None = None
        self._memory = MemoryKeeper()
        self.lifecycle: Lifecycle | None = None
        self._scraping_begins: asyncio.Future[None] | None = None
        self._clock = clock or SystemClock()

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.live.config

    def open(self) -> None:
        """Compile or load the kernels, open the store, replay its log, build what answers requests.

        Raises
        ------
        meshpulse.startup.StoppedError        the program was told to end meanwhile
        """
        progress = self.progress
        progress.enter(Phase.WARMING)
        with kernel_bar() as report:

            def on_kernel(done: int, total: int, name: str) -> None:
                progress.on_kernel(done, total, name)
                report(done, total, name)

            progress.warm_seconds = warm(on_kernel)
        settle_objects(compiled=progress.warm_seconds > COMPILING_S)
        progress.enter(Phase.REPLAYING)
        begin = time.perf_counter()
        db = TSDB(store_config(self.config), self.tally)
        db.open()
        progress.replay_seconds = time.perf_counter() - begin

        cores = os.cpu_count() or 1
        parse_threads = ThreadPoolExecutor(cores, "ingest")
        query_threads = ThreadPoolExecutor(self.config.query.max_concurrency, "query")
        scrape_threads = ThreadPoolExecutor(cores, "scrape")
        log_threads = ThreadPoolExecutor(cores, "log-ingest")  # a push may wait for a part; samples do not
        engine = Engine(query_limits(self.config))
        log_engine = LogEngine(query_limits(self.config), self._clock)
        scraping = Scraping(db, scrape_threads, self._clock, self.tally)
        writer = SampleWriter(self._clock, self.tally, time_limits(self.config))
        log_receiver = PushReceiver(self._clock, self.tally, push_limits(self.config))
        otlp = OtlpReceiver(writer, write_limits(self.config), self.config.otlp.delta)
        self.parts = Parts(
            db=db,
            engine=engine,
            push_api=self._push_api(db, writer, otlp, parse_threads),
            otlp=otlp,
            query_api=QueryApi(engine, db.reader, query_threads, self._providers(db, scraping), self._clock),
            log_engine=log_engine,
            loki_api=self._loki_api(db, log_engine, query_threads),
            loki_push_api=LokiPushApi(
                lambda name: db.tenant(name).logs,
                log_receiver,
                log_threads,
                self.tally,
            ),
            admin_api=AdminApi(db, enabled=self.config.server.admin_api),
            scraping=scraping,
            health=build_health(self.config, db, engine, self._clock),
            syslog=Syslog(lambda name: db.tenant(name, create=True).logs, log_receiver, self.tally),
            nginx=build_nginx(self.config, db, log_receiver, self._clock, self.tally),
            executors=(parse_threads, query_threads, scrape_threads, log_threads),
        )

        self.parts.syslog.apply(self.config)

    def _push_api(self, db: TSDB, writer: SampleWriter, otlp: OtlpReceiver, executor: Executor) -> PushApi:
        limits = write_limits(self.config)
        pairs = replica_labels(self.config)
        v1, v2 = RemoteWriteReceiver(writer, limits, pairs), RemoteWriteV2Receiver(writer, limits, pairs)
        endpoints: dict[str, Endpoint] = {
            "/api/v1/write": RemoteWriteEndpoint(v1.receive, v2.receive),
            "/api/v1/import/prometheus": TextImportEndpoint(TextImporter(writer, limits)),
            "/api/v1/otlp/v1/metrics": OtlpEndpoint(otlp),
            "/opentelemetry/v1/metrics": OtlpEndpoint(otlp),
        }
        return PushApi(db, endpoints, executor, self.tally, limits)

    def _loki_api(self, db: TSDB, engine: LogEngine, executor: Executor) -> LokiApi:
        def logs(name: str) -> LogStore | None:
            tenant = db.find(name)
            return tenant.logs if tenant else None

        build_info = {**Status(self.live, db).build_info(), "version": LOKI_VERSION}
        return LokiApi(engine, logs, executor, build_info, clock=self._clock, deleter_for=logs)

    def _providers(self, db: TSDB, scraping: Scraping) -> Providers:
        status = Status(self.live, db)

        def metadata(tenant: str) -> Mapping[str, Metadata]:
            known = db.find(tenant)
            return known.metadata() if known else {}

        log_file = self.config.query.log_file
        query_log = QueryLog(log_file).write if log_file else None
        return Providers(
            status.build_info(),
            status.cardinality,
            metadata=metadata,
            targets=scraping.targets,
            target_metadata=scraping.metadata,
            scrape_pools=scraping.pools,
            exemplars=ExemplarReader(db),
            status=status.pages(),
            query_log=query_log,
        )

    def routes(self) -> tuple[Mapping[str, App], Mapping[str, App]]:
        """The hot routes: by exact path, and by prefix."""
        assert self.parts is not None
        query_api = self.parts.query_api
        outside = {path: query_api for path in query_api.paths if not path.startswith(PREFIX)}
        pushes: dict[str, App] = dict.fromkeys(self.parts.push_api.paths, self.parts.push_api)
        pushes |= dict.fromkeys(self.parts.loki_push_api.paths, self.parts.loki_push_api)
        exact, prefixes = self.parts.health.routes() if self.parts.health else ({}, {})
        return {**pushes, **outside, **self.parts.admin_api.routes(), **exact}, {
            **prefixes,
            PREFIX: query_api,
            LOKI_PREFIX: self.parts.loki_api,
        }

    def sockets(self) -> Mapping[str, App]:
        """What takes WebSockets, by path."""
        assert self.parts is not None
        return {f"{LOKI_PREFIX}tail": self.parts.loki_api}

    def start_loops(self) -> None:
        """Begin to scrape and to judge endpoints; called on the event loop."""
        self._memory.start()
        if self.parts:
            self._scraping_begins = asyncio.ensure_future(self.parts.scraping.apply(self.config))
        if self.parts and self.parts.health:
            self.parts.health.start()
        if self.parts and self.parts.nginx:
            self.parts.nginx.start()

    def release_waiters(self) -> None:
        """Answer requests that are held until something changes: the program ends. On the event loop."""
        if self.parts and self.parts.health:
            self.parts.health.runner.health.board.close()

    async def stop_loops(self) -> None:
        """End what :meth:`start_loops` began; without stale markers, so that a quick restart leaves no gap."""
        await asyncio.to_thread(self._memory.close)
        if self.parts and self.parts.health:
            await self.parts.health.close(self.config.server.drain.total_seconds())
        if self.parts:
            await self.parts.scraping.close()
            await asyncio.to_thread(self.parts.syslog.close)
        if self.parts and self.parts.nginx:
            await asyncio.to_thread(self.parts.nginx.close)

    def close(self) -> None:
        """Finish what is on its way, then sync and close the log."""
        if self.parts is not None:
            for executor in self.parts.executors:
                executor.shutdown()
            self.parts.engine.close()
            self.parts.log_engine.close()
            self.parts.db.close()

    def store_stats(self) -> StoreStats | None:
        """Counters of the store, None before it is open."""
        return self.parts.db.stats() if self.parts else None

    def log_stats(self) -> LogStats | None:
        """Counters of the write-ahead log, None before it is open."""
        return self.parts.db.log.stats if self.parts else None
