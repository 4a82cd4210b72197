"""The configuration file: YAML, every key checked, errors that name the key and its line (docs/config.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from health.adapters.dogma_plan import Target
from health.adapters.file_eds import parse_file
from health.mapping import DEFAULT_MAPPINGS, parse_mapping
from health.policy_text import parse_policy
from health.topology import parse_source
from ingest.limits import WriteLimits
from ingest.logs.limits import PushLimits
from meshpulse.auth import Role, Token
from meshpulse.config_text import ConfigError, KeyPath, Loader, explain, read_lines
from meshpulse.config_types import Duration, Secret, Section, Size, Text, milliseconds, split_listen
from meshpulse.edge import EdgeLimits
from meshpulse.nginx_config import NginxConfig
from meshpulse.scrape_config import ScrapeConfig
from meshpulse.syslog_config import SyslogConfig, open_to_all
from query.limits import QueryLimits
from tsdb.compaction import SPANS_MS
from tsdb.db import DEFAULT_TENANT
from tsdb.limits import SeriesLimits, TimeLimits
from tsdb.logs.buffer import BATCH_ROWS_MAX
from tsdb.logs.settings import LogLimits
from tsdb.tenant import FAILOVER_MS
from tsdb.wal.log import QUEUE_BYTES_MAX, SEGMENT_BYTES, SyncMode

__all__ = ["Config", "ConfigError", "load_config", "milliseconds", "parse_config", "read_tokens", "split_listen"]

_ROUTE_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")

TOKEN_CHARS_MIN = 16
"""Shortest secret of a token; ``openssl rand -hex 32`` makes one of 64."""


class ServerConfig(Section):
    """Where and how we listen."""

    listen: str = "127.0.0.1:9090"
    insecure: bool = False
    drain: Duration = timedelta(seconds=10)
    route_prefix: str = ""
    admin_api: bool = False
    lifecycle: bool = False
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_client_ca_file: Path | None = None
    connections_max: int = Field(default=EdgeLimits().connections_max, ge=1)
    header_bytes_max: Size = Field(default=EdgeLimits().header_bytes_max, ge=1024)
    header_timeout: Duration = timedelta(seconds=EdgeLimits().header_timeout_s)
    body_timeout: Duration = timedelta(seconds=EdgeLimits().body_timeout_s)
    response_timeout: Duration = timedelta(seconds=EdgeLimits().response_timeout_s)

    @field_validator("route_prefix")
    @classmethod
    def _prefix(cls, value: str) -> str:
        prefix = value.rstrip("/")
        if prefix and not _ROUTE_PREFIX.fullmatch(prefix):
            raise ValueError("must begin with / and be plain letters, digits and . _ - ~ /, for example /meshpulse")
        return prefix

    @model_validator(mode="after")
    def _tls(self) -> ServerConfig:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file belong together")
        if self.tls_client_ca_file and not self.tls_cert_file:
            raise ValueError("tls_client_ca_file needs tls_cert_file and tls_key_file")
        return self

    @field_validator("listen")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        split_listen(value)
        return value


class TokenConfig(Section):
    """A bearer token: its secret here or in a file, what it may do, for which tenants."""

    name: str = Field(min_length=1)
    token: Secret | None = None
    token_file: Path | None = None
    roles: list[Role] = Field(min_length=1)
    tenants: list[str] = []

    @model_validator(mode="after")
    def _one_secret(self) -> TokenConfig:
        if (self.token is None) == (self.token_file is None):
            raise ValueError("needs either token or token_file")
        if self.token is not None and len(self.token.get_secret_value()) < TOKEN_CHARS_MIN:
            raise ValueError(f"token is too short, it can be guessed: {TOKEN_CHARS_MIN} characters are the least")
        return self


class AuthConfig(Section):
    """Who may do what; without tokens everybody may do everything."""

    tokens: list[TokenConfig] = []

    @model_validator(mode="after")
    def _names(self) -> AuthConfig:
        names = [token.name for token in self.tokens]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"tokens: name {min(twice)!r} is used twice")
        return self


class StorageConfig(Section):
    """Where samples lie, and for how long."""

    path: Path = Path("data")
    shards: int = 1
    retention: Duration = timedelta(days=15)
    retention_bytes: Size = 0
    out_of_order_window: Duration = timedelta(milliseconds=TimeLimits().out_of_order_window_ms)
    future_max: Duration = timedelta(milliseconds=TimeLimits().future_max_ms)
    block_span: Duration = timedelta(hours=2)
    compaction_spans: list[Duration] = [timedelta(milliseconds=span_ms) for span_ms in SPANS_MS]
    free_bytes_min: Size = 1 << 30
    free_fraction_min: float = Field(default=0.05, ge=0, lt=1)

    @field_validator("compaction_spans")
    @classmethod
    def _spans_nest(cls, spans: list[timedelta]) -> list[timedelta]:
        if any(long <= short or long % short for short, long in pairwise([timedelta(milliseconds=1), *spans])):
            raise ValueError("each span must be a multiple of the one before")
        return spans

    @field_validator("shards")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value < 1 or value & (value - 1):
            raise ValueError("must be a power of two: a sample's shard is hash & (shards - 1)")
        return value


class WalConfig(Section):
    """The write-ahead log."""

    sync: SyncMode = SyncMode.ALWAYS
    interval: Duration = timedelta(milliseconds=200)
    segment_bytes: Size = SEGMENT_BYTES
    queue_bytes_max: Size = QUEUE_BYTES_MAX


class SeriesLimitsConfig(Section):
    """What one series and one tenant may be."""

    labels_max: int = SeriesLimits().labels_max
    label_name_bytes_max: Size = SeriesLimits().label_name_bytes_max
    label_value_bytes_max: Size = SeriesLimits().label_value_bytes_max
    series_bytes_max: Size = SeriesLimits().series_bytes_max
    active_series_max: int = SeriesLimits().active_series_max


class IngestLimitsConfig(Section):
    """What one pushed request or one scrape may be."""

    body_bytes_max: Size = WriteLimits().body_bytes_max
    decoded_bytes_max: Size = WriteLimits().decoded_bytes_max
    requests_max: int = Field(default=WriteLimits().requests_max, ge=1)
    inflight_bytes_max: Size = WriteLimits().inflight_bytes_max
    scrape_bytes_max: Size = 64 << 20


class QueryLimitsConfig(Section):
    """What one query may touch."""

    samples_max: int = QueryLimits().samples_max
    samples_read_max: int = QueryLimits().samples_read_max
    series_max: int = QueryLimits().series_max
    steps_max: int = QueryLimits().steps_max
    subquery_steps_max: int = QueryLimits().subquery_steps_max
    memory_bytes_max: Size = QueryLimits().memory_bytes_max


class LogLimitsConfig(Section):
    """What pushed log lines may be."""

    streams_max: int = LogLimits().streams_max
    body_bytes_max: Size = PushLimits().body_bytes_max
    decoded_bytes_max: Size = PushLimits().decoded_bytes_max
    entries_max: int = Field(default=PushLimits().entries_max, ge=1, le=BATCH_ROWS_MAX)
    requests_max: int = Field(default=PushLimits().requests_max, ge=1)
    inflight_bytes_max: Size = PushLimits().inflight_bytes_max
    line_bytes_max: Size = PushLimits().line_bytes_max
    labels_max: int = PushLimits().labels_max
    label_name_bytes_max: Size = PushLimits().label_name_bytes_max
    label_value_bytes_max: Size = PushLimits().label_value_bytes_max
    metadata_bytes_max: Size = PushLimits().metadata_bytes_max
    metadata_pairs_max: int = PushLimits().metadata_pairs_max
    age_max: Duration = timedelta(seconds=PushLimits().age_max_s)
    ahead_max: Duration = timedelta(seconds=PushLimits().ahead_max_s)
    rate_bytes_max: Size = PushLimits().rate_bytes_max
    discover_service_name: bool = True
    detect_level: bool = True
    delete_cancel_period: Duration = timedelta(seconds=LogLimits().cancel_s)


class LimitsConfig(Section):
    """Everything that is refused above a number."""

    series: SeriesLimitsConfig = SeriesLimitsConfig()
    ingest: IngestLimitsConfig = IngestLimitsConfig()
    query: QueryLimitsConfig = QueryLimitsConfig()
    logs: LogLimitsConfig = LogLimitsConfig()


class TenantConfig(Section):
    """What is different for one tenant; what is not named is as for all."""

    retention: Duration | None = None
    labels_max: int | None = None
    label_name_bytes_max: Size | None = None
    label_value_bytes_max: Size | None = None
    series_bytes_max: Size | None = None
    active_series_max: int | None = None


class TenantsConfig(Section):
    """Who may write under which ``X-Scope-OrgID``."""

    auto_create: bool = False
    max: int = Field(default=100, ge=1)
    overrides: dict[str, TenantConfig] = {}


class HaConfig(Section):
    """Pairs of senders that send the same series but for one label."""

    cluster_label: str = ""
    replica_label: str = ""
    failover_timeout: Duration = timedelta(milliseconds=FAILOVER_MS)

    @model_validator(mode="after")
    def _both(self) -> HaConfig:
        if bool(self.cluster_label) != bool(self.replica_label):
            raise ValueError("cluster_label and replica_label belong together")
        return self


class OtlpConfig(Section):
    """How OpenTelemetry's own protocol is taken in."""

    delta: bool = False
    grpc_listen: str = ""

    @field_validator("grpc_listen")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        if value:
            split_listen(value)
        return value


class QueryConfig(Section):
    """How queries run."""

    lookback_delta: Duration = timedelta(milliseconds=QueryLimits().lookback_ms)
    timeout: Duration = timedelta(seconds=QueryLimits().timeout_s)
    max_concurrency: int = Field(default=QueryLimits().concurrent_max, ge=1)
    default_step: Duration = timedelta(milliseconds=QueryLimits().default_step_ms)
    workers: int = Field(default=QueryLimits().workers, ge=1)
    log_file: Path | None = None


class CentralDogmaConfig(Section):
    """A Central Dogma server whose assignments get verdicts; none without ``url``."""

    url: str = ""
    clusters: list[str] = []
    token: Secret | None = None
    token_file: Path | None = None
    tls_ca_file: Path | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None

    @field_validator("clusters")
    @classmethod
    def _writable(cls, value: list[str]) -> list[str]:
        for i, cluster in enumerate(value):
            if Target.parse(cluster).generated:
                raise ValueError(
                    f"[{i}] {cluster} is generated by a Kubernetes aggregator and can only be read: name it in "
                    "health.topology, and take its verdicts from the API or from EDS of ours"
                )
        return value

    @model_validator(mode="after")
    def _pairs(self) -> CentralDogmaConfig:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError("url must begin with http:// or https://")
        if self.clusters and not self.url:
            raise ValueError("clusters need an url")
        if self.token is not None and self.token_file is not None:
            raise ValueError("needs either token or token_file, or neither")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("needs both tls_cert_file and tls_key_file, or neither")
        return self


class HealthConfig(Section):
    """Judging endpoints by what proxies report; the lists are read by ``health/`` (docs/api/health.md)."""

    enabled: bool = True
    tenant: str = DEFAULT_TENANT
    interval: Duration = timedelta(seconds=1)
    mappings: list[Any] = list(DEFAULT_MAPPINGS)
    policies: list[Any] = []
    topology: list[Any] = []
    topology_interval: Duration = timedelta(seconds=10)
    file_eds: list[Any] = []
    grpc_listen: str = ""
    load_report_interval: Duration = timedelta(seconds=2)
    central_dogma: CentralDogmaConfig = CentralDogmaConfig()
    write_series: bool = True
    write_logs: bool = True
    write_interval: Duration = timedelta(seconds=5)

    @field_validator("grpc_listen")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        if value:
            split_listen(value)
        return value

    @field_validator("interval", "topology_interval", "write_interval", "load_report_interval")
    @classmethod
    def _not_too_short(cls, value: timedelta) -> timedelta:
        if value < timedelta(milliseconds=100):
            raise ValueError("must be at least 100ms")
        return value

    @field_validator("mappings", "policies", "topology", "file_eds")
    @classmethod
    def _readable(cls, value: list[Any], info: ValidationInfo) -> list[Any]:
        parse: dict[str, Callable[[object], object]] = {
            "mappings": parse_mapping,
            "policies": parse_policy,
            "topology": parse_source,
            "file_eds": parse_file,
        }
        for i, entry in enumerate(value):
            try:
                parse[str(info.field_name)](entry)
            except ValueError as error:
                raise ValueError(f"[{i}] {error}") from None
        return value

    @model_validator(mode="after")
    def _reachable(self) -> HealthConfig:
        if not self.central_dogma.url and any("central_dogma" in entry for entry in self.topology):
            raise ValueError("topology: central_dogma needs health.central_dogma.url")
        return self


class LogConfig(Section):
    """What the program says on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class GlobalConfig(Section):
    """Defaults of all scrapes, by Prometheus' names."""

    scrape_interval: Duration = timedelta(seconds=15)
    scrape_timeout: Duration = timedelta(seconds=10)
    external_labels: dict[str, Text] = {}


class Config(Section):
    """The whole file."""

    global_: GlobalConfig = Field(default=GlobalConfig(), alias="global")
    server: ServerConfig = ServerConfig()
    auth: AuthConfig = AuthConfig()
    storage: StorageConfig = StorageConfig()
    wal: WalConfig = WalConfig()
    limits: LimitsConfig = LimitsConfig()
    tenants: TenantsConfig = TenantsConfig()
    ha: HaConfig = HaConfig()
    otlp: OtlpConfig = OtlpConfig()
    query: QueryConfig = QueryConfig()
    health: HealthConfig = HealthConfig()
    nginx: NginxConfig = NginxConfig()
    syslog: SyslogConfig = SyslogConfig()
    log: LogConfig = LogConfig()
    scrape_configs: list[ScrapeConfig] = []

    @model_validator(mode="after")
    def _syslog(self) -> Config:
        for i, entry in enumerate(self.syslog.listeners):
            if entry.protocol == "tls" and not self.server.tls_cert_file:
                raise ValueError(f"syslog.listeners.{i}: tls needs server.tls_cert_file and server.tls_key_file")
            if not self.server.insecure and open_to_all(entry, asks_certificates=bool(self.server.tls_client_ca_file)):
                raise ValueError(
                    f"syslog.listeners.{i}: everybody who reaches {entry.listen} could write log lines: name the "
                    "networks of senders in allow, or use tls with server.tls_client_ca_file, or a loopback address"
                )
        return self

    @model_validator(mode="after")
    def _jobs(self) -> Config:
        names = [job.job_name for job in self.scrape_configs]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"scrape_configs: job_name {min(twice)!r} is used twice")
        for job in self.scrape_configs:
            interval = job.scrape_interval or self.global_.scrape_interval
            if not interval:
                raise ValueError(f"scrape_configs: job {job.job_name!r} has a scrape_interval of zero")
            if job.scrape_timeout and job.scrape_timeout > interval:
                raise ValueError(f"scrape_configs: job {job.job_name!r} has a scrape_timeout above its scrape_interval")
        return self


def parse_config(
    text: str, overrides: Mapping[str, Mapping[str, Any]] | None = None, folder: Path | None = None
) -> Config:
    """Read and check a configuration.

    Parameters
    ----------
    text : YAML; empty text is the default configuration
    overrides : section -> key -> value, from the command line; they win over the file
    folder : where relative paths of ``scrape_configs`` begin; None = the working directory

    Raises
    ------
    ConfigError        every mistake on a line of its own, with the line number in ``text`` and the key
    """
    lines: dict[KeyPath, int] = {}
    try:
        node = yaml.compose(text, Loader=Loader)  # a SafeLoader
        read_lines(node, (), lines)
        data = yaml.load(text, Loader=Loader)  # noqa: S506
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{where}{getattr(error, 'problem', None) or error}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError("line 1: the file must be a mapping of sections")
    # a section that is only named ("wal:") keeps its defaults
    known = {field.alias or name for name, field in Config.model_fields.items()}
    sections = {name: section for name, section in data.items() if section is not None or name not in known}
    for name, keys in (overrides or {}).items():
        given = {key: value for key, value in keys.items() if value is not None}
        if given and isinstance(sections.setdefault(name, {}), dict):
            sections[name] = {**sections[name], **given}
    try:
        return Config.model_validate(sections, context={"folder": folder})
    except ValidationError as error:
        raise ConfigError(explain(error, lines)) from None


def load_config(path: Path | None, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Config:
    """Read a configuration file; without one the defaults and the overrides.

    Raises
    ------
    ConfigError        every line begins with the file's name
    """
    try:
        text = path.read_text(encoding="utf-8") if path else ""
        return parse_config(text, overrides, path.parent if path else None)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    except ConfigError as error:
        prefix = f"{path}: " if path else ""
        raise ConfigError("\n".join(f"{prefix}{line}" for line in str(error).splitlines())) from None


def read_tokens(config: Config) -> list[Token]:
    """The configured tokens, secrets read from their files.

    Raises
    ------
    ConfigError        a file cannot be read, or what it holds is too short for a secret; or two secrets are the same
    """
    tokens: list[Token] = []
    for entry in config.auth.tokens:
        if entry.token_file is None:
            assert entry.token is not None
            secret = entry.token.get_secret_value()
        else:
            try:
                secret = entry.token_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"auth.tokens: {entry.name}: {error}") from None
            if len(secret) < TOKEN_CHARS_MIN:
                raise ConfigError(
                    f"auth.tokens: {entry.name}: {entry.token_file} holds {len(secret)} characters, "
                    f"{TOKEN_CHARS_MIN} are the least"
                )
        token = Token.of(entry.name, secret, entry.roles, entry.tenants)
        if any(token.digest == other.digest for other in tokens):
            raise ConfigError(f"auth.tokens: {entry.name} has the secret of another token")
        tokens.append(token)
    return tokens
