"""The runtime's part that follows nginx' logs and counts their lines, from the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ingest.logs.push import PushReceiver
from ingest.nginx.derive import Deriver, DeriveSettings, DeriveStats, Rule
from ingest.nginx.tail import Source, Tailer
from meshpulse.config import Config, milliseconds
from meshpulse.nginx_config import nginx_rule, nginx_source
from tsdb.clock import Clock
from tsdb.db import TSDB
from tsdb.tally import Tally

POSITIONS = "nginx/positions.json"
"""Below ``storage.path``."""


@dataclass(frozen=True, slots=True)
class NginxParts:
    """What exists when ``nginx`` names files or streams."""

    derivers: Mapping[str, Deriver]
    tailer: Tailer | None

    def start(self) -> None:
        """Begin to follow and to count."""
        for deriver in self.derivers.values():
            deriver.start()
        if self.tailer is not None:
            self.tailer.start()

    def close(self) -> None:
        """Store what was read, count what was stored, write it down."""
        if self.tailer is not None:
            self.tailer.close()
        for deriver in self.derivers.values():
            deriver.close()

    def stats(self) -> DeriveStats:
        """Totals over all tenants."""
        total = DeriveStats()
        for deriver in self.derivers.values():
            total.lines += deriver.stats.lines
            total.unparsed += deriver.stats.unparsed
            total.writes += deriver.stats.writes
            total.busy += deriver.stats.busy
        return total


def build_nginx(config: Config, db: TSDB, receiver: PushReceiver, clock: Clock, tally: Tally) -> NginxParts | None:
    """Build the parts; None when the configuration names neither files nor streams.

    Raises
    ------
    ValueError        the GeoIP database or the file of positions cannot be used
    """
    wanted = config.nginx
    if not wanted.files and not wanted.streams:
        return None
    settings = DeriveSettings(
        interval_ms=milliseconds(wanted.metrics.interval),
        stale_ms=milliseconds(wanted.metrics.stale_after),
        bounds=wanted.metrics.buckets,
        series_max=wanted.metrics.series_max,
        sites_max=wanted.sites_max,
    )
    derivers: dict[str, Deriver] = {}
    for name in sorted({e.tenant for e in wanted.files} | {e.tenant for e in wanted.streams}):
        tenant = db.tenant(name, create=True)  # who writes the configuration may
        rules = [nginx_rule(entry) for entry in wanted.streams if entry.tenant == name]
        deriver = Deriver(tenant, tenant.logs, replace(settings, rules=rules), clock, tally)
        derivers[name] = tenant.logs.follower = deriver
    countries = None
    if wanted.geoip_database is not None:
        from ingest.nginx.geo import Countries, CountryTagger

        countries = Countries(wanted.geoip_database)
        for name in {entry.tenant for entry in wanted.streams}:
            receiver.taggers[name] = CountryTagger(derivers[name], countries)
    if not wanted.files:
        return NginxParts(derivers, None)
    sources = []
    for entry in wanted.files:
        source = nginx_source(entry)
        deriver = derivers[entry.tenant]
        sources.append(Source(source, db.tenant(entry.tenant).logs, deriver, deriver.add_rule(Rule(source.format))))
    tailer = Tailer(
        sources,
        receiver,
        config.storage.path / POSITIONS,
        tally,
        poll_s=wanted.poll_interval.total_seconds(),
        files_max=wanted.files_max,
        sites_max=wanted.sites_max,
        countries=countries,
    )
    tailer.load()
    return NginxParts(derivers, tailer)
