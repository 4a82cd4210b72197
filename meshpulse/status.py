"""Answers about the program itself, in the slots that Prometheus' clients know."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import yaml

from meshpulse import version
from meshpulse.live import LiveConfig
from tsdb.db import TSDB
from tsdb.index.statistics import cardinality

COMPATIBLE_WITH = "2.55.0"
"""Prometheus version in ``status/buildinfo``: Grafana reads from it what it may ask for."""


def _rows(counts: list[tuple[str, int]]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in counts]


def _utc(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Status:
    """What ``/api/v1/status/*`` answers."""

    live: LiveConfig
    db: TSDB
    begin: datetime = field(default_factory=lambda: datetime.now(UTC))

    def build_info(self) -> Mapping[str, str]:
        """Never with a key ``features``: Grafana would take us for Mimir."""
        return {
            "version": COMPATIBLE_WITH,
            "revision": version(),
            "branch": "meshpulse",
            "buildUser": "",
            "buildDate": "",
            "goVersion": "",
        }

    def pages(self) -> Mapping[str, Any]:
        """Name of a page -> what it answers."""
        return {
            "runtimeinfo": self.runtime_info,
            "flags": self.flags,
            "config": self.config_page,
            "walreplay": self.wal_replay,
        }

    def runtime_info(self) -> Mapping[str, Any]:
        """Facts about the process; threads and cores in the slots named after Go's."""
        return {
            "startTime": _utc(self.begin),
            "CWD": os.getcwd(),
            "hostname": socket.gethostname(),
            "serverTime": _utc(datetime.now(UTC)),
            "reloadConfigSuccess": self.live.successful,
            "lastConfigTime": _utc(self.live.loaded),
            "corruptionCount": self.db.stats().damage,
            "goroutineCount": threading.active_count(),
            "GOMAXPROCS": os.cpu_count(),
            "GOMEMLIMIT": 0,
            "GOGC": "",
            "GODEBUG": "",
            "storageRetention": self._retention(),
        }

    def flags(self) -> Mapping[str, str]:
        """The settings by the names of Prometheus' flags."""
        config = self.live.config
        return {
            "web.listen-address": config.server.listen,
            "web.enable-lifecycle": str(config.server.lifecycle).lower(),
            "web.enable-admin-api": str(config.server.admin_api).lower(),
            "storage.tsdb.path": str(config.storage.path),
            "storage.tsdb.retention.time": self._retention(),
            "query.lookback-delta": f"{config.query.lookback_delta.total_seconds():g}s",
            "query.timeout": f"{config.query.timeout.total_seconds():g}s",
            "query.max-samples": str(config.limits.query.samples_max),
            "query.max-concurrency": str(config.query.max_concurrency),
            "log.level": config.log.level,
            "log.format": config.log.format,
        }

    def config_page(self) -> Mapping[str, str]:
        """The configuration in force, defaults included."""
        return {"yaml": yaml.safe_dump(self.live.config.model_dump(mode="json", by_alias=True), sort_keys=False)}

    def wal_replay(self) -> Mapping[str, int]:
        """Prometheus' replay counters; ours is over when this can be asked."""
        return {"min": 0, "max": 0, "current": 0}

    def cardinality(self, tenant: str, top: int) -> Mapping[str, Any]:
        """Data of ``status/tsdb``."""
        known = self.db.find(tenant)
        if known is None:
            head = {"numSeries": 0, "numLabelPairs": 0, "chunkCount": 0, "minTime": 0, "maxTime": 0}
            return {"headStats": head} | {name: [] for name in _LISTS}
        counted = cardinality(known.registry, top)
        heads = [shard.head for shard in known.shards if shard.head.sample_count]
        return {
            "headStats": {
                "numSeries": counted.series,
                "numLabelPairs": counted.label_pairs,
                "chunkCount": sum(head.chunk_count for head in heads),
                "minTime": min((head.oldest_ms for head in heads), default=0),
                "maxTime": max((head.newest_ms for head in heads), default=0),
            },
            "tiers": [
                {
                    "span": f"{tier.span_ms / 3_600_000:g}h" if tier.span_ms else "longer",
                    "blocks": tier.blocks,
                    "bytes": tier.bytes,
                    "samples": tier.samples,
                    "minTime": tier.min_ms,
                    "maxTime": tier.max_ms,
                }
                for tier in self.db.tiers([known])
            ],
            "damagedBlocks": sorted(k for k in self.db.compaction.damaged if k.startswith(f"tenants/{tenant}/")),
            "seriesCountByMetricName": _rows(counted.series_by_metric),
            "labelValueCountByLabelName": _rows(counted.values_by_label),
            "memoryInBytesByLabelName": _rows(counted.bytes_by_label),
            "seriesCountByLabelValuePair": _rows(counted.series_by_pair),
        }

    def _retention(self) -> str:
        return f"{self.live.config.storage.retention.total_seconds() / 86_400:g}d"


_LISTS = (
    "seriesCountByMetricName",
    "labelValueCountByLabelName",
    "memoryInBytesByLabelName",
    "seriesCountByLabelValuePair",
)
