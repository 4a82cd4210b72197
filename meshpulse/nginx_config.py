"""The section ``nginx`` of the configuration (docs/config.md)."""

from __future__ import annotations

import math
import re
import socket
from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ingest.nginx.columns import ROLES, LineFormat, parse_format
from ingest.nginx.derive import DeriveSettings, Rule
from ingest.nginx.entries import SourceSettings
from meshpulse.config_types import Duration, Section
from tsdb.db import DEFAULT_TENANT
from tsdb.matchers import Matcher, MatchOp


class NginxFilesConfig(Section):
    """Log files of nginx that are followed, and how their lines are read."""

    paths: list[str] = Field(min_length=1)
    log: Literal["access", "error"] = "access"
    format: str = "json"
    fields: dict[str, list[str]] = {}
    labels: dict[Literal["job", "site", "env", "host", "service_name"], str] = {}
    site_field: str = ""
    site_pattern: str = ""
    start: Literal["beginning", "end"] = "beginning"
    tenant: str = DEFAULT_TENANT

    @model_validator(mode="after")
    def _readable(self) -> NginxFilesConfig:
        nginx_source(self)
        return self


class NginxStreamsConfig(Section):
    """Pushed streams that are lines of nginx."""

    match: dict[str, str] = Field(min_length=1)
    log: Literal["access", "error"] = "access"
    format: str = "json"
    fields: dict[str, list[str]] = {}
    site_field: str = ""
    tenant: str = DEFAULT_TENANT

    @model_validator(mode="after")
    def _readable(self) -> NginxStreamsConfig:
        nginx_rule(self)
        return self


class NginxMetricsConfig(Section):
    """Counters made of lines."""

    interval: Duration = timedelta(milliseconds=DeriveSettings().interval_ms)
    buckets: list[float] = list(DeriveSettings().bounds)
    series_max: int = Field(default=DeriveSettings().series_max, ge=1000)
    stale_after: Duration = timedelta(milliseconds=DeriveSettings().stale_ms)

    @field_validator("interval")
    @classmethod
    def _not_too_short(cls, value: timedelta) -> timedelta:
        if value < timedelta(milliseconds=100):
            raise ValueError("must be at least 100ms")
        return value

    @field_validator("buckets")
    @classmethod
    def _ascending(cls, value: list[float]) -> list[float]:
        if not value or sorted(set(value)) != value or not all(0 < bound < math.inf for bound in value):
            raise ValueError("must be positive and ascending")
        return value


class NginxConfig(Section):
    """Logs of nginx: files to follow, streams to count."""

    files: list[NginxFilesConfig] = []
    streams: list[NginxStreamsConfig] = []
    metrics: NginxMetricsConfig = NginxMetricsConfig()
    poll_interval: Duration = timedelta(milliseconds=500)
    files_max: int = Field(default=4096, ge=1)
    sites_max: int = Field(default=DeriveSettings().sites_max, ge=1)
    geoip_database: Path | None = None

    @field_validator("poll_interval")
    @classmethod
    def _not_too_short(cls, value: timedelta) -> timedelta:
        if value < timedelta(milliseconds=10):
            raise ValueError("must be at least 10ms")
        return value


def nginx_source(entry: NginxFilesConfig) -> SourceSettings:
    """One entry of ``nginx.files``.

    Raises
    ------
    ValueError        naming the key
    """
    pattern = None
    if entry.site_pattern:
        try:
            pattern = re.compile(entry.site_pattern)
        except re.error as error:
            raise ValueError(f"site_pattern: {error}") from None
        if "site" not in pattern.groupindex:
            raise ValueError("site_pattern needs a group (?P<site>...)")
    return SourceSettings(
        paths=entry.paths,
        log=entry.log,
        format=_nginx_format(entry),
        labels={"job": "nginx", "host": socket.gethostname(), **{str(k): v for k, v in entry.labels.items()}},
        site_by_line=bool(entry.site_field),
        site_pattern=pattern,
        from_end=entry.start == "end",
        tenant=entry.tenant,
    )


def nginx_rule(entry: NginxStreamsConfig) -> Rule:
    """One entry of ``nginx.streams``.

    Raises
    ------
    ValueError        naming the key
    """
    matchers = tuple(Matcher(name, MatchOp.EQUAL, value) for name, value in entry.match.items())
    return Rule(_nginx_format(entry), matchers, by_line=bool(entry.site_field))


def _nginx_format(entry: NginxFilesConfig | NginxStreamsConfig) -> LineFormat | None:
    unknown = sorted(entry.fields.keys() - ROLES.keys())
    if unknown:
        raise ValueError(f"fields: {unknown[0]!r} is none of {', '.join(ROLES)}")
    if entry.log == "error":
        return None
    names = {**entry.fields, **({"site": [entry.site_field]} if entry.site_field else {})}
    try:
        return parse_format(entry.format, names)
    except ValueError as error:
        raise ValueError(f"format {error}") from None
