"""What a service consists of, from those who know: a YAML file, or Envoy's ``/clusters?format=json``.

Metrics show only endpoints that get traffic and say nothing of weights, priorities or zones. Without a source verdicts
still work on what metrics show, but caps count only that, and no assignment can be served to a proxy.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

log = logging.getLogger(__name__)

_BYTES_MAX = 64 << 20
_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Fact:
    """One endpoint of a service as its owner lists it.

    Attributes
    ----------
    address : ``HOST:PORT``, IPv6 in brackets
    weight : its load balancing weight, at least 1
    health : EDS health status that somebody else gave it; "" = none
    deploying : being rolled out now
    """

    address: str
    region: str = ""
    zone: str = ""
    sub_zone: str = ""
    version: str = ""
    weight: int = 1
    priority: int = 0
    health: str = ""
    hostname: str = ""
    deploying: bool = False


Facts = Mapping[str, Mapping[str, Fact]]
"""service -> address -> fact."""


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[::1]:PORT``.

    Raises
    ------
    ValueError        not of that form
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) <= 65_535:
        raise ValueError(f"{address!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join_address(host: str, port: int) -> str:
    """The name of an endpoint, as Envoy's statistics spell it."""
    try:
        return f"[{host}]:{port}" if ipaddress.ip_address(host).version == 6 else f"{host}:{port}"
    except ValueError:
        return f"{host}:{port}"


_KEYS: Mapping[str, type] = {
    "address": str, "region": str, "zone": str, "sub_zone": str, "version": str, "weight": int, "priority": int,
    "health": str, "hostname": str, "deploying": bool,
}  # fmt: skip


def parse_static(text: str) -> dict[str, dict[str, Fact]]:
    """Read a topology file: ``services: {NAME: {endpoints: [{address, zone, ...}]}}``.

    Raises
    ------
    ValueError        naming what is wrong
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"is no YAML: {error}") from None
    services = data.get("services") if isinstance(data, dict) else None
    if not isinstance(services, dict):
        raise ValueError("needs the mapping services")  # noqa: TRY004  # one kind of error for the caller
    out: dict[str, dict[str, Fact]] = {}
    for service, entry in services.items():
        rows = entry.get("endpoints") if isinstance(entry, dict) else entry
        if not isinstance(rows, list):
            raise ValueError(f"services.{service}.endpoints must be a list")  # noqa: TRY004
        out[str(service)] = {}
        for i, row in enumerate(rows):
            fact = _fact({"address": row} if isinstance(row, str) else row, f"services.{service}.endpoints[{i}]")
            out[str(service)][fact.address] = fact
    return out


def _fact(row: object, where: str) -> Fact:
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be an address or a mapping")  # noqa: TRY004
    for key, value in row.items():
        if key not in _KEYS:
            raise ValueError(f"{where}.{key}: unknown key")
        if not isinstance(value, _KEYS[key]) or (_KEYS[key] is int and isinstance(value, bool)):
            raise ValueError(f"{where}.{key} must be of type {_KEYS[key].__name__}")
    if "address" not in row:
        raise ValueError(f"{where}.address is needed")
    fact = Fact(**row)
    split_address(fact.address)
    if fact.weight < 1 or fact.priority < 0:
        raise ValueError(f"{where}: weight must be at least 1 and priority at least 0")
    return fact


_FLAGS = ("failed_active_health_check", "failed_active_degraded_check", "pending_dynamic_removal")


def parse_envoy_clusters(text: str | bytes) -> dict[str, dict[str, Fact]]:
    """Read Envoy's ``/clusters?format=json``: hosts with locality, weight, priority and health.

    What the local outlier detector or EDS says is left out: the first is in the statistics, the second may be ours.

    Raises
    ------
    ValueError        not that page
    """
    try:
        page = json.loads(text)
        out: dict[str, dict[str, Fact]] = {}
        for cluster in page.get("cluster_statuses", []):
            hosts: dict[str, Fact] = {}
            for host in cluster.get("host_statuses", []):
                place = host["address"].get("socket_address")
                if place is None:
                    continue  # a pipe
                locality: dict[str, Any] = host.get("locality", {})
                health = host.get("health_status", {})
                fact = Fact(
                    join_address(place["address"], int(place["port_value"])),
                    region=locality.get("region", ""),
                    zone=locality.get("zone", ""),
                    sub_zone=locality.get("sub_zone", ""),
                    weight=max(1, int(host.get("weight", 1))),
                    priority=int(host.get("priority", 0)),
                    health="UNHEALTHY" if any(health.get(flag) for flag in _FLAGS) else "",
                    hostname=host.get("hostname", ""),
                )
                hosts[fact.address] = fact
            out[str(cluster["name"]).replace(":", "_")] = hosts  # as the statistics' label spells it
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"is not Envoy's /clusters?format=json: {error!r}") from None
    return out


class TopologySource:
    """Reads one file or URL again and again; keeps the last good answer.

    Parameters
    ----------
    place : a path, or ``http://...``
    kind : ``static`` or ``envoy_clusters``

    Attributes
    ----------
    facts : of the last good reading
    error : why the last reading failed, "" = it did not
    """

    def __init__(self, place: str, kind: str) -> None:
        self.place = place
        self.kind = kind
        self.facts: Facts = {}
        self.error = ""
        self._parse = parse_static if kind == "static" else parse_envoy_clusters

    def refresh(self) -> bool:
        """Read again; whether the facts changed. Never raises: without an answer the old one counts."""
        try:
            facts = self._parse(self._text())
        except (OSError, ValueError) as error:
            if str(error) != self.error:
                log.warning("topology source %s: %s", self.place, error)
            self.error = str(error)
            return False
        self.error = ""
        changed = facts != self.facts
        self.facts = facts
        return changed

    def _text(self) -> str:
        if not self.place.startswith(("http://", "https://")):
            return Path(self.place).read_text(encoding="utf-8")
        with urllib.request.urlopen(self.place, timeout=_TIMEOUT_S) as reply:  # noqa: S310  # an operator's own URL
            body: bytes = reply.read(_BYTES_MAX)
        return body.decode()


class FollowedSource:
    """Facts of an adapter that follows its clusters anyway.

    Parameters
    ----------
    clusters : as the adapter names them

    Attributes
    ----------
    facts : of the last :meth:`refresh`
    provide : what the adapter knows now, by service
    """

    def __init__(self, clusters: tuple[str, ...]) -> None:
        self.clusters = clusters
        self.facts: Facts = {}
        self.provide: Callable[[], Facts] = dict

    def refresh(self) -> bool:
        """Take over what is known; whether that changed."""
        known = self.provide()
        services = (cluster.replace(":", "_") for cluster in self.clusters)
        facts = {service: known[service] for service in services if service in known}
        changed = facts != self.facts
        self.facts = facts
        return changed


Source = TopologySource | FollowedSource


def parse_source(data: object) -> Source:
    """A topology source of the configuration.

    ``{file: PATH}``, ``{envoy_clusters: PATH or URL}`` or ``{central_dogma: [CLUSTER, ...]}``

    Raises
    ------
    ValueError
    """
    if isinstance(data, dict) and len(data) == 1:
        key, place = next(iter(data.items()))
        if key in ("file", "envoy_clusters") and isinstance(place, str) and place:
            return TopologySource(place, "static" if key == "file" else "envoy_clusters")
        if key == "central_dogma" and isinstance(place, list) and place and all(isinstance(c, str) for c in place):
            return FollowedSource(tuple(place))
    raise ValueError("must be {file: PATH}, {envoy_clusters: PATH or URL} or {central_dogma: [CLUSTER, ...]}")


def merged(sources: Sequence[Source]) -> dict[str, dict[str, Fact]]:
    """The facts of all sources; where two list a service, the first does."""
    out: dict[str, dict[str, Fact]] = {}
    for source in sources:
        for service, facts in source.facts.items():
            out.setdefault(service, dict(facts))
    return out
