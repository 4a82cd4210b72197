"""The configuration of scraping: keys, defaults and refusals are Prometheus'."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_serializer, field_validator, model_validator

from ingest.negotiation import ScrapeProtocol
from ingest.relabel import RelabelConfig, Rules
from ingest.scraping.groups import FILE_NAME, FileSdConfig, HttpSdConfig, TargetGroup
from ingest.scraping.http_client import Authorization, BasicAuth, HttpClientConfig, TlsConfig
from meshpulse.config_types import HIDDEN, Duration, NearPath, Secret, Section, Size, Text

_UNSUPPORTED = frozenset(
    [
        "bearer_token",
        "bearer_token_file",
        "oauth2",
        "no_proxy",
        "proxy_from_environment",
        "proxy_connect_header",
        "enable_http2",
        "http_headers",
        "sigv4",
        "google_iam",
        "azuread",
        "ca",
        "cert",
        "key",
        "username_ref",
        "password_ref",
        "credentials_ref",
        "native_histogram_bucket_limit",
        "native_histogram_min_bucket_factor",
        "scrape_classic_histograms",
        "always_scrape_classic_histograms",
        "convert_classic_histograms_to_nhcb",
        "scrape_native_histograms",
        "metric_name_validation_scheme",
        "metric_name_escaping_scheme",
        "scrape_failure_log_file",
        "evaluation_interval",
        "rule_query_offset",
        "query_log_file",
        "runtime",
        "body_size_limit",
        "sample_limit",
        "label_limit",
        "label_name_length_limit",
        "label_value_length_limit",
        "target_limit",
        "keep_dropped_targets",
        "scrape_protocols",
    ]
)


def is_unsupported(key: str) -> bool:
    """Whether Prometheus knows this key at some place of ``scrape_configs`` or ``global``."""
    return key in _UNSUPPORTED or key.endswith("_sd_configs")


TlsVersion = Literal["TLS10", "TLS11", "TLS12", "TLS13"]


class BasicAuthSection(Section):
    """User and password."""

    username: Text = ""
    username_file: NearPath | None = None
    password: Secret | None = None
    password_file: NearPath | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> BasicAuthSection:
        if self.username and self.username_file:
            raise ValueError("at most one of basic_auth username & username_file must be configured")
        if self.password and self.password_file:
            raise ValueError("at most one of basic_auth password & password_file must be configured")
        return self


class AuthorizationSection(Section):
    """The header ``Authorization``."""

    type: Text = "Bearer"
    credentials: Secret | None = None
    credentials_file: NearPath | None = None

    @model_validator(mode="after")
    def _one_secret(self) -> AuthorizationSection:
        if self.credentials and self.credentials_file:
            raise ValueError("at most one of authorization credentials & credentials_file must be configured")
        if self.type.strip().lower() == "basic":
            raise ValueError('authorization type cannot be set to "basic", use "basic_auth" instead')
        return self


class TlsSection(Section):
    """What is trusted and shown."""

    ca_file: NearPath | None = None
    cert_file: NearPath | None = None
    key_file: NearPath | None = None
    server_name: Text = ""
    insecure_skip_verify: bool = False
    min_version: TlsVersion = "TLS12"
    max_version: TlsVersion | None = None

    @model_validator(mode="after")
    def _both(self) -> TlsSection:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together")
        return self


class HttpClientSection(Section):
    """How others are asked."""

    basic_auth: BasicAuthSection | None = None
    authorization: AuthorizationSection | None = None
    tls_config: TlsSection = TlsSection()
    follow_redirects: bool = True
    proxy_url: Text = ""

    @model_validator(mode="after")
    def _one_way(self) -> HttpClientSection:
        if self.basic_auth and self.authorization:
            raise ValueError("at most one of basic_auth, oauth2 & authorization must be configured")
        return self

    @field_validator("proxy_url")
    @classmethod
    def _proxy(cls, value: str) -> str:
        if value and urlsplit(value).scheme != "http":
            raise ValueError("must begin with http://: no other proxies are supported")
        return value

    @field_serializer("proxy_url")
    def _hide_proxy(self, value: str) -> str:
        return _without_password(value)

    def client(self) -> HttpClientConfig:
        """The same for those who ask."""
        basic, other, tls = self.basic_auth, self.authorization, self.tls_config
        return HttpClientConfig(
            BasicAuth(basic.username, basic.username_file, _reveal(basic.password), basic.password_file)
            if basic
            else None,
            Authorization(other.type.strip(), _reveal(other.credentials), other.credentials_file) if other else None,
            TlsConfig(**(tls.model_dump() | {"max_version": tls.max_version or ""})),
            self.follow_redirects,
            self.proxy_url,
        )


def _reveal(secret: Secret | None) -> str:
    return secret.get_secret_value() if secret else ""


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username}:{HIDDEN}@{host}").geturl()


class RelabelSection(Section):
    """One rule."""

    source_labels: list[Text] = []
    separator: Text = ";"
    regex: Text = "(.*)"
    modulus: int = 0
    target_label: Text = ""
    replacement: Text = "$1"
    action: Text = "replace"

    @model_validator(mode="after")
    def _usable(self) -> RelabelSection:
        Rules((self.rule(),))
        return self

    def rule(self) -> RelabelConfig:
        """The same for those who relabel."""
        return RelabelConfig(**(self.model_dump() | {"source_labels": tuple(self.source_labels)}))


def rules_of(sections: list[RelabelSection]) -> Rules:
    """Rules, ready to run."""
    return Rules(tuple(section.rule() for section in sections))


class StaticSection(Section):
    """Targets that are written down."""

    targets: list[Text]
    labels: dict[str, Text] = {}

    @field_validator("targets")
    @classmethod
    def _hosts(cls, value: list[str]) -> list[str]:
        for target in value:
            if "/" in target:
                raise ValueError(f'"{target}" is not a valid hostname')
        return value


class FileSdSection(Section):
    """Files with groups of targets."""

    files: list[NearPath] = Field(min_length=1)
    refresh_interval: Duration = timedelta(minutes=5)

    @model_validator(mode="after")
    def _names(self) -> FileSdSection:
        for path in self.files:
            if not FILE_NAME.fullmatch(str(path)):
                raise ValueError(f'path name "{path}" is not valid for file discovery')
        if not self.refresh_interval:
            raise ValueError("refresh_interval must be above zero")
        return self

    def source(self) -> FileSdConfig:
        """The same for those who discover."""
        return FileSdConfig(tuple(str(path) for path in self.files), self.refresh_interval.total_seconds())


class HttpSdSection(HttpClientSection):
    """A server that answers with groups of targets."""

    url: Text
    refresh_interval: Duration = timedelta(minutes=1)

    @model_validator(mode="after")
    def _askable(self) -> HttpSdSection:
        parts = urlsplit(self.url)
        if not self.url:
            raise ValueError("URL is missing")
        if parts.scheme not in ("http", "https"):
            raise ValueError("URL scheme must be 'http' or 'https'")
        if not parts.hostname:
            raise ValueError("host is missing in URL")
        if not self.refresh_interval:
            raise ValueError("refresh_interval must be above zero")
        return self

    @field_serializer("url")
    def _hide_url(self, value: str) -> str:
        return _without_password(value)

    def source(self) -> HttpSdConfig:
        """The same for those who discover."""
        return HttpSdConfig(self.url, self.refresh_interval.total_seconds(), self.client())


class ScrapeConfig(HttpClientSection):
    """One scrape job, by Prometheus' names."""

    job_name: str = Field(min_length=1)
    scrape_interval: Duration | None = None
    scrape_timeout: Duration | None = None
    metrics_path: Text = "/metrics"
    scheme: Literal["http", "https"] = "http"
    params: dict[str, list[Text]] = {}
    honor_labels: bool = False
    honor_timestamps: bool = True
    track_timestamps_staleness: bool = False
    scrape_protocols: list[ScrapeProtocol] = Field(default=list(ScrapeProtocol), min_length=1)
    fallback_scrape_protocol: ScrapeProtocol | None = None
    enable_compression: bool = True
    sample_limit: int = Field(default=0, ge=0)
    label_limit: int = Field(default=0, ge=0)
    label_name_length_limit: int = Field(default=0, ge=0)
    label_value_length_limit: int = Field(default=0, ge=0)
    body_size_limit: Size = 0
    extra_scrape_metrics: bool = False
    target_limit: int = Field(default=0, ge=0)
    keep_dropped_targets: int = Field(default=0, ge=0)
    static_configs: list[StaticSection] = []
    file_sd_configs: list[FileSdSection] = []
    http_sd_configs: list[HttpSdSection] = []
    relabel_configs: list[RelabelSection] = []
    metric_relabel_configs: list[RelabelSection] = []

    @field_validator("scrape_protocols")
    @classmethod
    def _each_once(cls, value: list[ScrapeProtocol]) -> list[ScrapeProtocol]:
        if len(set(value)) < len(value):
            raise ValueError("names a format twice")
        return value

    def groups(self) -> tuple[TargetGroup, ...]:
        """The targets that are written down."""
        return tuple(
            TargetGroup(group.targets, group.labels, f"static:{i}") for i, group in enumerate(self.static_configs)
        )
