"""Every setting reaches the part that it is for."""

from __future__ import annotations

from pathlib import Path

from ingest.negotiation import ScrapeProtocol
from meshpulse.config import parse_config
from meshpulse.runtime import query_limits, store_config, write_limits
from meshpulse.scraping import scrape_jobs
from tsdb.wal.log import SyncMode


def test_storage_and_wal(tmp_path: Path) -> None:
    config = parse_config(
        f"""
storage: {{path: {tmp_path}, shards: 4, retention: 3d, block_span: 1h, out_of_order_window: 2h, future_max: 1m,
          free_bytes_min: 7, free_fraction_min: 0.5}}
wal: {{sync: interval, interval: 50ms, segment_bytes: 1MiB, queue_bytes_max: 2MiB}}
tenants: {{auto_create: true, max: 3, overrides: {{a: {{active_series_max: 7, retention: 1d}}, b: {{retention: 0}}}}}}
limits: {{series: {{labels_max: 5, active_series_max: 9}}}}
"""
    )
    store = store_config(config)
    assert (store.path, store.shards, store.retention_ms) == (tmp_path, 4, 3 * 86_400_000)
    assert (store.block_span_ms, store.time.out_of_order_window_ms) == (3_600_000, 7_200_000)
    assert (store.time.future_max_ms, store.min_free_bytes, store.min_free_fraction) == (60_000, 7, 0.5)
    assert (store.sync, store.sync_interval_ms) == (SyncMode.INTERVAL, 50)
    assert (store.segment_bytes, store.log_queue_bytes_max) == (1 << 20, 2 << 20)
    assert (store.tenants_auto_create, store.tenants_max) == (True, 3)
    assert (store.series.labels_max, store.series.active_series_max) == (5, 9)
    a, b = store.tenants["a"], store.tenants["b"]
    assert a.series is not None
    assert (a.series.labels_max, a.series.active_series_max, a.retention_ms) == (5, 7, 86_400_000)
    assert (b.series, b.retention_ms) == (None, 0)


def test_queries_and_writes() -> None:
    config = parse_config(
        """
query: {lookback_delta: 1m, timeout: 3s, max_concurrency: 4, default_step: 15s, workers: 1}
limits:
  query: {samples_max: 10, series_max: 11, steps_max: 12, subquery_steps_max: 13, memory_bytes_max: 14}
  ingest: {body_bytes_max: 20, decoded_bytes_max: 21, requests_max: 22, inflight_bytes_max: 23}
"""
    )
    query = query_limits(config)
    assert (query.lookback_ms, query.timeout_s, query.concurrent_max) == (60_000, 3.0, 4)
    assert (query.default_step_ms, query.workers) == (15_000, 1)
    assert (query.samples_max, query.series_max, query.steps_max) == (10, 11, 12)
    assert (query.subquery_steps_max, query.memory_bytes_max) == (13, 14)
    write = write_limits(config)
    assert (write.body_bytes_max, write.decoded_bytes_max) == (20, 21)
    assert (write.requests_max, write.inflight_bytes_max) == (22, 23)


def test_scrape_jobs_inherit_what_they_do_not_name() -> None:
    config = parse_config(
        """
global: {scrape_interval: 4s, scrape_timeout: 9s, external_labels: {mesh: a, zone: x}}
limits: {ingest: {scrape_bytes_max: 99}}
scrape_configs:
  - job_name: plain
    static_configs: [{targets: ["h:1"], labels: {zone: y}}]
  - {job_name: own, scrape_interval: 30s, scheme: https, metrics_path: /m, params: {a: [b]}, honor_labels: true,
     honor_timestamps: false, sample_limit: 5}
"""
    )
    plain, own = scrape_jobs(config)
    assert (plain.scrape_interval, plain.scrape_timeout) == (4.0, 4.0)
    assert (plain.static_configs[0].targets, plain.static_configs[0].labels) == (["h:1"], {"zone": "y"})
    assert plain.external_labels == {"mesh": "a", "zone": "x"}
    assert plain.body_size_limit == 99
    assert (own.scrape_interval, own.scrape_timeout, own.scheme, own.metrics_path) == (30.0, 9.0, "https", "/m")
    assert (own.params, own.honor_labels, own.honor_timestamps, own.sample_limit) == ({"a": ["b"]}, True, False, 5)


def test_scrape_jobs_hand_on_what_is_said_about_pages() -> None:
    config = parse_config(
        """
storage: {future_max: 1m}
scrape_configs:
  - job_name: a
    scrape_protocols: [PrometheusText0.0.4, OpenMetricsText1.0.0]
    fallback_scrape_protocol: PrometheusText1.0.0
    enable_compression: false
    track_timestamps_staleness: true
    extra_scrape_metrics: true
    label_limit: 1
    label_name_length_limit: 2
    label_value_length_limit: 3
    body_size_limit: 4KB
    metric_relabel_configs: [{action: drop, source_labels: [__name__], regex: b}]
"""
    )
    (job,) = scrape_jobs(config)
    assert job.scrape_protocols == (ScrapeProtocol.TEXT_0_0_4, ScrapeProtocol.OPENMETRICS_1_0_0)
    assert (job.fallback_scrape_protocol, job.enable_compression) == (ScrapeProtocol.TEXT_1_0_0, False)
    assert job.body_size_limit == 4096
    options = job.page_options()
    assert (options.label_limit, options.label_name_length_limit, options.label_value_length_limit) == (1, 2, 3)
    assert (options.track_timestamps_staleness, options.extra_scrape_metrics, options.future_max_ms) == (
        True,
        True,
        60_000,
    )
    assert options.metric_relabel.apply({"__name__": "b"}) is None
