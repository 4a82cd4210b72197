"""``/metrics``: read from the counters that the parts keep anyway, at the moment somebody asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ingest.api import PushStats
from ingest.logs.api import LogPushStats
from meshpulse import version
from query.api import ApiStats
from query.asgi import QUERY_BUCKETS_S
from query.loki_api import LokiApiStats
from tsdb.compaction import Failure
from tsdb.db import TSDB
from tsdb.errors import Reason
from tsdb.wal.log import SYNC_BUCKETS_S

if TYPE_CHECKING:
    from health.adapters.centraldogma import CentralDogma
    from ingest.scraping.scraper import Scraper
    from ingest.syslog.receiver import SyslogReceiver
    from meshpulse.health import HealthParts
    from meshpulse.nginx import NginxParts
    from meshpulse.runtime import Runtime
    from tsdb.db import TSDB


def _counter(name: str, what: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"meshpulse_{name}", what, value=value)


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"meshpulse_{name}", what, value=value)


def _histogram(name: str, what: str, bounds: Sequence[float], counts: Iterable[int], total: float) -> Metric:
    """A histogram from counts per bucket (not cumulative), the last one above all bounds."""
    buckets = []
    seen = 0
    for bound, count in zip([*map(str, bounds), "+Inf"], counts, strict=True):
        seen += count
        buckets.append((bound, float(seen)))
    return HistogramMetricFamily(f"meshpulse_{name}", what, buckets=buckets, sum_value=total)


class _Ours(Collector):
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterator[Metric]:
        runtime = self._runtime
        progress = runtime.progress
        yield InfoMetricFamily("meshpulse_build", "Version of the program", value={"version": version()})
        yield _gauge("ready", "1 when requests are answered", float(progress.ready))
        yield _gauge("warm_seconds", "Wall seconds to compile or load the kernels", progress.warm_seconds or 0.0)
        live = runtime.live
        yield _gauge("config_last_reload_successful", "1 if the last reload was", float(live.successful))
        text = "When the configuration was read the last time with success"
        yield _gauge("config_last_reload_success_timestamp_seconds", text, live.loaded.timestamp())
        yield _gauge("replay_seconds", "Wall seconds to open the store", progress.replay_seconds or 0.0)

        rejected = CounterMetricFamily(
            "meshpulse_rejected", "Refused samples, series and requests (docs/rejections.md)", labels=["reason"]
        )
        counts = runtime.tally.snapshot()
        for reason in Reason:
            rejected.add_metric([reason.value], counts.get(reason, 0))
        yield rejected
        yield _gauge("connections", "Open connections", len(runtime.edge.connections))

        if runtime.parts is None:
            return
        yield from self._store()
        yield from self._log()
        yield from self._pushes(runtime.parts.push_api.stats)
        yield from self._queries(runtime.parts.query_api.stats)
        yield from self._log_queries(runtime.parts.loki_api.stats)
        yield from self._log_entries(runtime.parts.db, runtime.parts.loki_push_api.stats)
        if runtime.parts.scraping.scraper:
            yield from self._scrapes(runtime.parts.scraping.scraper)
        if runtime.parts.health:
            yield from self._health(runtime.parts.health)
        if runtime.parts.nginx:
            yield from self._nginx(runtime.parts.nginx)
        if runtime.parts.syslog.receiver:
            yield from self._syslog(runtime.parts.syslog.receiver)
        parts = runtime.parts
        yield self._responses(
            parts.push_api.stats.responses
            + parts.query_api.stats.responses
            + parts.loki_api.stats.responses
            + parts.loki_push_api.stats.responses
        )

    def _store(self) -> Iterator[Metric]:
        stats = self._runtime.store_stats()
        assert stats is not None
        yield _counter("samples_appended", "Samples stored since the start", stats.samples_appended)
        yield _counter("replayed_samples", "Samples read back from the log at the start", stats.replayed_samples)
        yield _gauge("tenants", "Tenants", stats.tenants)
        yield _gauge("series", "Series in memory", stats.series)
        yield _gauge("head_samples", "Samples in the heads", stats.head_samples)
        yield _gauge("head_chunks", "Chunks in the heads", stats.head_chunks)
        yield _gauge("head_bytes", "Memory of the heads' chunks and states", stats.head_bytes)
        yield _gauge("blocks", "Blocks on disk", stats.blocks)
        yield _gauge("block_bytes", "Size of the blocks on disk", stats.block_bytes)
        yield _counter("cuts", "Heads cut into blocks", stats.cuts)
        yield _counter("cut_failures", "Cuts that failed and are tried again", stats.cut_failures)
        yield from self._compaction(self._runtime.parts.db if self._runtime.parts else None)
        yield _gauge("damage", "Damaged ranges set aside", stats.damage)

    def _compaction(self, db: TSDB | None) -> Iterator[Metric]:
        if db is None:
            return
        blocks = GaugeMetricFamily("meshpulse_tier_blocks", "Blocks by the span they are made for", labels=["span"])
        size = GaugeMetricFamily("meshpulse_tier_bytes", "Their size", labels=["span"])
        made = CounterMetricFamily("meshpulse_compactions", "Blocks made of shorter ones", labels=["span"])
        stats = db.compaction
        for tier in db.tiers(db.tenants()):
            span = [f"{tier.span_ms / 3_600_000:g}h" if tier.span_ms else "longer"]
            blocks.add_metric(span, tier.blocks)
            size.add_metric(span, tier.bytes)
            if tier.span_ms in db.config.compaction_spans_ms:
                made.add_metric(span, stats.merges[tier.span_ms])
        failures = CounterMetricFamily(
            "meshpulse_compaction_failures", "Merges of blocks that came to nothing", labels=["reason"]
        )
        for reason in Failure:
            failures.add_metric([reason.value], stats.failures[reason])
        yield from (blocks, size, made, failures)
        yield _counter("compaction_seconds", "Wall seconds of merging blocks, rests included", stats.seconds)
        yield _counter("compaction_read_bytes", "Size of the blocks that were merged", stats.bytes_in)
        yield _counter("compaction_written_bytes", "Size of the blocks that were made of them", stats.bytes_out)

    def _log(self) -> Iterator[Metric]:
        stats = self._runtime.log_stats()
        assert stats is not None
        yield _histogram(
            "wal_fsync_seconds", "Wall seconds of one fdatasync", SYNC_BUCKETS_S, stats.sync_counts, stats.sync_seconds
        )
        yield _counter("wal_sync_failures", "Failed fdatasyncs", stats.sync_failures)
        yield _counter("wal_write_failures", "Failed writes to the log", stats.write_failures)
        yield _counter("wal_records", "Records logged", stats.records)
        yield _counter("wal_raw_bytes", "Bytes of the records before compression", stats.raw_bytes)
        yield _counter("wal_written_bytes", "Bytes written to the log", stats.written_bytes)
        yield _counter("wal_groups", "Group commits", stats.groups)
        yield _gauge("wal_segments", "Log segments on disk", stats.segments)
        yield _gauge("wal_queued_bytes", "Bytes that wait for the disk", stats.queued_bytes)
        yield _gauge("wal_failed", "1 while the log refuses writes after a failure", float(stats.failed))

    def _pushes(self, stats: PushStats) -> Iterator[Metric]:
        yield _counter("received_bytes", "Bytes of pushed bodies as they arrived", stats.body_bytes)
        yield _counter("received_samples", "Samples of pushed bodies that were accepted", stats.samples_accepted)

    def _queries(self, stats: ApiStats) -> Iterator[Metric]:
        yield _histogram(
            "query_seconds",
            "Wall seconds from reading a query to the first piece of its answer",
            QUERY_BUCKETS_S,
            stats.query_seconds,
            stats.query_seconds_sum,
        )
        yield _counter("query_samples", "Samples that queries read from the store", stats.query_samples)
        yield _gauge("requests_in_flight", "Read requests being answered", stats.in_flight)

    def _scrapes(self, scraper: Scraper) -> Iterator[Metric]:
        yield _counter("scrapes", "Scrapes of targets", scraper.pages.scrapes)
        yield _counter("scrape_failures", "Scrapes that failed", scraper.pages.failures)
        yield _counter("scraped_samples", "Scraped samples that were accepted", scraper.pages.samples)
        pools = list(scraper.pools.values())
        yield _gauge("scrape_targets", "Targets that are scraped", sum(len(pool.loops) for pool in pools))
        yield _gauge("scrape_targets_dropped", "Targets that relabelling dropped", sum(p.dropped_count for p in pools))
        yield _gauge("scrape_targets_failed", "Discovered addresses that are no target", sum(p.failed for p in pools))

    def _health(self, parts: HealthParts) -> Iterator[Metric]:
        runner = parts.runner
        board = runner.health.board
        yield _counter("health_evaluations", "Evaluations of all services", runner.ticks)
        yield _counter("health_failures", "Evaluations or adapters that failed", runner.failures)
        yield _gauge("health_evaluation_seconds", "Wall seconds of the last evaluation", runner.tick_seconds)
        yield _gauge("health_services", "Services that are judged", len(board.now.services))
        yield _gauge("health_waiters", "Requests held until a verdict changes", board.waiting)
        yield _gauge("health_actuator", "1 while this instance holds the actuator lease", float(runner.lease.term > 0))
        if parts.lines is not None:
            text = "Events that were not written as log lines"
            yield _counter("health_log_lines_dropped", text, parts.lines.dropped)
        yield _gauge("health_grpc_streams", "Streams of endpoints open over gRPC", parts.grpc_eds.streams)
        yield _counter(
            "health_grpc_acknowledged", "Answers over gRPC that proxies took over", parts.grpc_eds.acknowledged
        )
        yield _counter("health_load_reports", "Load reports of proxies", parts.loads.reports)
        if parts.dogma is not None:
            yield from self._central_dogma(parts.dogma)

    def _nginx(self, parts: NginxParts) -> Iterator[Metric]:
        derived = parts.stats()
        yield _counter("nginx_counted_lines", "Lines of nginx that were counted", derived.lines)
        yield _counter("nginx_unparsed_lines", "... that have not the form they should have", derived.unparsed)
        if parts.tailer is None:
            return
        stats = parts.tailer.stats
        yield _gauge("nginx_files", "Files of nginx that are followed", stats.files)
        yield _gauge("nginx_unread_bytes", "Bytes of these files that wait to be read", stats.unread_bytes)
        yield _counter("nginx_read_lines", "Lines read from files and stored", stats.lines)
        yield _counter("nginx_read_bytes", "Bytes read from files and stored", stats.bytes)
        yield _counter("nginx_replaced_lines", "Lines that were no UTF-8 and were mended", stats.replaced)
        yield _counter("nginx_busy", "Rounds put off because the store was busy", stats.busy)
        yield _counter("nginx_rotations", "Files whose path came to lead elsewhere", stats.rotations)
        yield _counter("nginx_truncations", "Files that were truncated", stats.truncations)
        yield _counter("nginx_unsaved_positions", "Times that positions could not be saved", stats.unsaved)

    def _syslog(self, receiver: SyslogReceiver) -> Iterator[Metric]:
        stats = receiver.stats
        yield _counter("syslog_messages", "Messages of syslog that were stored", stats.messages)
        yield _counter("syslog_bytes", "Bytes of these, as they were sent", stats.bytes)
        yield _counter("syslog_unparsed", "Messages without a priority, whose whole is the line", receiver.unparsed)
        yield _counter("syslog_busy", "Waits because the store was busy", stats.busy)
        yield _counter("syslog_failures", "Batches that were lost by an error of ours", stats.failures)
        yield _counter("syslog_broken_connections", "Connections that ended by an error", stats.broken)
        yield _gauge("syslog_connections", "Open connections of syslog", receiver.connections)
        yield _gauge("syslog_queued_bytes", "Bytes of messages that wait to be stored", stats.queued_bytes)

    def _central_dogma(self, dogma: CentralDogma) -> Iterator[Metric]:
        operations = CounterMetricFamily(
            "meshpulse_health_central_dogma_operations", "Changes of endpoints by how they ended", labels=["result"]
        )
        for result, count in sorted(dogma.operations.items()):
            operations.add_metric([result], count)
        yield operations
        answers = CounterMetricFamily(
            "meshpulse_health_central_dogma_answers", "Answers of Central Dogma; 0 = none came", labels=["code"]
        )
        for status, count in sorted(dogma.client.requests.items()):
            answers.add_metric([str(status)], count)
        yield answers
        yield _gauge("health_central_dogma_problems", "Clusters that cannot be read or written", len(dogma.problems))

    def _log_queries(self, stats: LokiApiStats) -> Iterator[Metric]:
        yield _histogram(
            "log_query_seconds",
            "Wall seconds from reading a LogQL query to the first piece of its answer",
            QUERY_BUCKETS_S,
            stats.query_seconds,
            stats.query_seconds_sum,
        )
        yield _counter("log_query_lines", "Lines that LogQL queries looked at", stats.query_lines)

    def _log_entries(self, db: TSDB, stats: LogPushStats) -> Iterator[Metric]:
        stores = [tenant.logs.store_stats() for tenant in db.tenants()]
        yield _counter("log_received_bytes", "Bytes of log pushes as they arrived", stats.body_bytes)
        yield _counter("log_line_bytes", "Bytes of the lines that were accepted", stats.line_bytes_accepted)
        yield _counter("log_entries", "Log entries stored since the start", sum(s.entries_appended for s in stores))
        yield _counter("log_repeated", "Log entries that were there already", sum(s.repeated for s in stores))
        yield _gauge("log_streams", "Log streams in memory", sum(s.streams for s in stores))
        yield _gauge("log_buffered_bytes", "Log entries that are in no part yet", sum(s.buffered_bytes for s in stores))
        yield _gauge("log_parts", "Parts of log rows on disk", sum(s.parts for s in stores))
        yield _gauge("log_part_bytes", "Size of the parts on disk", sum(s.part_bytes for s in stores))
        yield _gauge("log_part_entries", "Log entries in parts", sum(s.part_entries for s in stores))

    def _responses(self, responses: Counter[tuple[str, int]]) -> Metric:
        family = CounterMetricFamily(
            "meshpulse_http_responses", "Answers of the hot routes; 499 = the client had gone", labels=["path", "code"]
        )
        for (path, status), count in sorted(responses.items()):
            family.add_metric([path, str(status)], count)
        return family


def create_registry(runtime: Runtime) -> CollectorRegistry:
    """All metrics of this process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Ours(runtime))
    ProcessCollector(registry=registry)
    return registry
