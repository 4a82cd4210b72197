"""Which series say what about which endpoint: mappings, built in and from the configuration.

A mapping names the labels that hold service, endpoint and observer, the counters that count attempts, and optionally a
latency histogram and a gauge of the proxy's own view. Attempts are what is counted, never requests: several tries of
one request are several attempts, each charged to its own endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from health.window import Channel


class Counts(StrEnum):
    """What an increment of a counter means."""

    SUCCESS = "success"
    ERROR = "error"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    ATTEMPT = "attempt"
    ERROR_OF_ATTEMPTS = "error_of_attempts"
    CONNECT_FAIL = "connect_fail"
    NOTHING = "nothing"


CHANNELS: Mapping[Counts, frozenset[Channel]] = {
    Counts.SUCCESS: frozenset({Channel.ATTEMPTS}),
    Counts.ERROR: frozenset({Channel.ERRORS, Channel.ATTEMPTS}),
    Counts.TIMEOUT: frozenset({Channel.ERRORS, Channel.ATTEMPTS}),
    # an attempt that could not connect, and nobody else counts it
    Counts.REFUSED: frozenset(Channel),
    # of any outcome; the errors among them are counted by an ``error_of_attempts`` counter
    Counts.ATTEMPT: frozenset({Channel.ATTEMPTS}),
    Counts.ERROR_OF_ATTEMPTS: frozenset({Channel.ERRORS}),
    Counts.CONNECT_FAIL: frozenset({Channel.CONNECT_FAILS}),
    Counts.NOTHING: frozenset(),
}
"""Sums that an increment is added to."""


@dataclass(frozen=True, slots=True)
class Where:
    """Series whose label matches count as something else."""

    label: str
    matches: re.Pattern[str]
    counts: Counts


@dataclass(frozen=True, slots=True)
class CounterRule:
    """One counter metric: what its series count, unless a label says otherwise (the first that matches)."""

    metric: str
    counts: Counts
    where: tuple[Where, ...] = ()

    def of(self, labels: Mapping[str, str]) -> Counts:
        """What a series with these labels counts."""
        for rule in self.where:
            if rule.matches.fullmatch(labels.get(rule.label, "")):
                return rule.counts
        return self.counts


@dataclass(frozen=True, slots=True)
class SeriesMapping:
    """From series to (service, endpoint, observer, zone, version) and what they count.

    Attributes
    ----------
    service, endpoint : label names; a series without them is not ours
    service_name : the service of all series, when no label tells
    observer : labels whose values together name the proxy that reports
    observer_zone, zone, version : label names; "" = not told by the series
    latency : name of a histogram's ``_bucket`` series, with the label ``le``; "" = none
    healthy : name of a gauge that is 0 when the proxy itself does not use the endpoint; "" = none
    """

    name: str
    endpoint: str
    counters: tuple[CounterRule, ...]
    service: str = ""
    service_name: str = ""
    observer: tuple[str, ...] = ("instance",)
    observer_zone: str = ""
    zone: str = ""
    version: str = ""
    latency: str = ""
    healthy: str = ""

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metric names it reads."""
        names = (*(counter.metric for counter in self.counters), self.latency, self.healthy)
        return tuple(dict.fromkeys(name for name in names if name))

    def errors_metric(self) -> str:
        """The counter whose increments are errors, for queries that a person pastes; "" when labels decide."""
        return next((c.metric for c in self.counters if c.counts is Counts.ERROR and not c.where), "")

    def successes_metric(self) -> str:
        """The counter whose increments are successes; "" when labels decide."""
        return next((c.metric for c in self.counters if c.counts is Counts.SUCCESS and not c.where), "")


BUILT_IN: Mapping[str, SeriesMapping] = {
    mapping.name: mapping
    for mapping in (
        SeriesMapping(
            # rq_total stays at 0 for an endpoint that refuses connections, and rq_timeout is in rq_error already
            name="envoy_endpoint",
            service="envoy_cluster_name",
            endpoint="envoy_endpoint_address",
            observer_zone="zone",
            counters=(
                CounterRule("envoy_cluster_endpoint_rq_success", Counts.SUCCESS),
                CounterRule("envoy_cluster_endpoint_rq_error", Counts.ERROR),
                CounterRule("envoy_cluster_endpoint_cx_connect_fail", Counts.CONNECT_FAIL),
            ),
            healthy="envoy_cluster_endpoint_healthy",
        ),
        SeriesMapping(
            # the same as Envoy's OpenTelemetry sink names it; the observer is the resource's service.instance.id
            name="envoy_otlp",
            service="envoy_cluster_name",
            endpoint="envoy_endpoint_address",
            counters=(
                CounterRule("cluster_endpoint_rq_success_total", Counts.SUCCESS),
                CounterRule("cluster_endpoint_rq_error_total", Counts.ERROR),
                CounterRule("cluster_endpoint_cx_connect_fail_total", Counts.CONNECT_FAIL),
            ),
            healthy="cluster_endpoint_healthy",
        ),
        SeriesMapping(
            # histogram and counter of design page 4.3, as the router's upstream_log writes them, with the cluster
            name="envoy_access_log",
            service="upstream_cluster",
            endpoint="upstream_host",
            observer_zone="zone",
            counters=(
                CounterRule(
                    "envoy_up_rq",
                    Counts.SUCCESS,
                    (
                        Where("flags", re.compile(r"(.*,)?UF(,.*)?"), Counts.REFUSED),
                        Where("code", re.compile(r"5..|0"), Counts.ERROR),
                    ),
                ),
            ),
            latency="envoy_up_rq_time_bucket",
        ),
        SeriesMapping(
            # as above beside envoy_endpoint: latency only, since the errors are counted there
            name="envoy_access_log_latency",
            service="upstream_cluster",
            endpoint="upstream_host",
            observer_zone="zone",
            counters=(),
            latency="envoy_up_rq_time_bucket",
        ),
        SeriesMapping(
            # made of nginx' access lines at ingest (docs/logs.md): one attempt an item of $upstream_addr
            name="nginx_upstream",
            service="site",
            endpoint="upstream_addr",
            observer=("host",),
            counters=(
                CounterRule(
                    "nginx_upstream_requests_total",
                    Counts.SUCCESS,
                    (
                        Where("status_class", re.compile("5xx"), Counts.ERROR),
                        # no answer because the client went first: nobody's fault
                        Where("status_class", re.compile("none"), Counts.NOTHING),
                    ),
                ),
                CounterRule("nginx_upstream_connect_failures_total", Counts.CONNECT_FAIL),
            ),
            latency="nginx_upstream_response_time_seconds_bucket",
        ),
        SeriesMapping(
            name="generic",
            service="service",
            endpoint="endpoint",
            observer_zone="observer_zone",
            zone="zone",
            version="version",
            counters=(
                CounterRule("endpoint_attempts_success_total", Counts.SUCCESS),
                CounterRule("endpoint_attempts_error_total", Counts.ERROR),
                CounterRule("endpoint_attempts_timeout_total", Counts.TIMEOUT),
                CounterRule("endpoint_connect_fail_total", Counts.CONNECT_FAIL),
            ),
            latency="endpoint_attempt_duration_seconds_bucket",
        ),
    )
}
"""Mappings that a configuration names instead of writing them out."""

DEFAULT_MAPPINGS = ("envoy_endpoint", "envoy_otlp", "envoy_access_log_latency", "nginx_upstream", "generic")


@dataclass(slots=True)
class _Reader:
    """Takes keys out of a mapping of the configuration; what is left at the end is a mistake."""

    where: str
    data: dict[str, Any]

    def text(self, key: str, default: str = "") -> str:
        value = self.data.pop(key, default)
        if not isinstance(value, str):
            raise ValueError(f"{self.where}.{key} must be text")  # noqa: TRY004  # pydantic reads ValueError
        return value

    def counts(self, key: str, default: str) -> Counts:
        value = self.text(key, default)
        try:
            return Counts(value)
        except ValueError:
            raise ValueError(f"{self.where}.{key} must be one of {', '.join(Counts)}, not {value!r}") from None

    def rows(self, key: str) -> Iterable[_Reader]:
        value = self.data.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            raise ValueError(f"{self.where}.{key} must be a list of mappings")
        for i, row in enumerate(value):
            yield _Reader(f"{self.where}.{key}[{i}]", dict(row))

    def end(self) -> None:
        for key in self.data:
            raise ValueError(f"{self.where}.{key}: unknown key")


def parse_mapping(data: object) -> SeriesMapping:
    """A mapping of the configuration: the name of a built-in one, or one written out (docs/api/health.md).

    Raises
    ------
    ValueError        naming the key
    """
    if isinstance(data, str):
        if data not in BUILT_IN:
            raise ValueError(f"no built-in mapping {data!r}; there are {', '.join(BUILT_IN)}")
        return BUILT_IN[data]
    if not isinstance(data, dict):
        raise ValueError("must be the name of a built-in mapping, or a mapping")  # noqa: TRY004
    name = data.get("name", "mapping")
    read = _Reader(str(name), dict(data))
    observer = read.data.pop("observer", ["instance"])
    if isinstance(observer, str):
        observer = [observer]
    if not isinstance(observer, list) or not observer or not all(isinstance(label, str) for label in observer):
        raise ValueError(f"{name}.observer must be a label name or a list of them")
    mapping = SeriesMapping(
        name=read.text("name", "mapping"),
        endpoint=read.text("endpoint", "endpoint"),
        counters=tuple(_counter(row) for row in read.rows("counters")),
        service=read.text("service"),
        service_name=read.text("service_name"),
        observer=tuple(observer),
        observer_zone=read.text("observer_zone"),
        zone=read.text("zone"),
        version=read.text("version"),
        latency=read.text("latency"),
        healthy=read.text("healthy"),
    )
    read.end()
    if bool(mapping.service) == bool(mapping.service_name):
        raise ValueError(f"{name} needs either service (a label) or service_name")
    if not mapping.counters and not mapping.latency:
        raise ValueError(f"{name} needs counters or latency")
    return mapping


def _counter(read: _Reader) -> CounterRule:
    metric = read.text("metric")
    if not metric:
        raise ValueError(f"{read.where}.metric is needed")
    where = []
    for row in read.rows("where"):
        label, pattern = row.text("label"), row.text("matches")
        try:
            where.append(Where(label, re.compile(pattern), row.counts("counts", Counts.ERROR)))
        except re.error as error:
            raise ValueError(f"{row.where}.matches: {error}") from None
        row.end()
    rule = CounterRule(metric, read.counts("counts", Counts.SUCCESS), tuple(where))
    read.end()
    return rule
