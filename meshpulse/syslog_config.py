"""The section ``syslog`` of the configuration (docs/config.md)."""

from __future__ import annotations

import ipaddress
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ingest.syslog.entries import ListenerSettings, Network, Part
from meshpulse.config_types import Section, Size, split_listen
from tsdb.db import DEFAULT_TENANT

_DEFAULT = ListenerSettings("", 0)
_DATAGRAM_MAX = 65_535


class SyslogListenerConfig(Section):
    """A port, and what becomes of its messages."""

    listen: str
    protocol: Literal["udp", "tcp", "tls"] = "udp"
    allow: list[str] = []
    labels: dict[str, str] = dict(_DEFAULT.labels)
    label_from: dict[str, Part] = dict(_DEFAULT.label_parts)
    time: Literal["message", "received"] = "message"
    message_bytes_max: Size = Field(default=_DEFAULT.message_bytes_max, ge=480)  # the least of RFC 5424
    connections_max: int = Field(default=_DEFAULT.connections_max, ge=1)
    rate_max: int = Field(default=_DEFAULT.rate_max, ge=0)
    tenant: str = DEFAULT_TENANT

    @model_validator(mode="after")
    def _usable(self) -> SyslogListenerConfig:
        syslog_listener(self)
        if not self.labels and not self.label_from:
            raise ValueError("labels or label_from must name a label")
        both = sorted(self.labels.keys() & self.label_from.keys())
        if both:
            raise ValueError(f"label_from: {both[0]!r} is in labels too")
        return self


class SyslogConfig(Section):
    """Syslog: ports and bounds."""

    listeners: list[SyslogListenerConfig] = []
    streams_max: int = Field(default=10_000, ge=1)

    @field_validator("listeners")
    @classmethod
    def _each_once(cls, value: list[SyslogListenerConfig]) -> list[SyslogListenerConfig]:
        seen = set()
        for entry in value:
            address = syslog_listener(entry).address
            if address in seen:
                raise ValueError(f"{entry.listen} is used twice for {address[0]}")
            seen.add(address)
        return value


def syslog_listener(entry: SyslogListenerConfig) -> ListenerSettings:
    """One entry of ``syslog.listeners``.

    Raises
    ------
    ValueError        naming the key
    """
    try:
        host, port = split_listen(entry.listen)
    except ValueError as error:
        raise ValueError(f"listen {error}") from None
    networks: list[Network] = []
    for text in entry.allow:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise ValueError(f"allow: {error}") from None
    return ListenerSettings(
        host=host,
        port=port,
        protocol=entry.protocol,
        labels=entry.labels,
        label_parts=entry.label_from,
        tenant=entry.tenant,
        received=entry.time == "received",
        message_bytes_max=min(entry.message_bytes_max, _DATAGRAM_MAX if entry.protocol == "udp" else 1 << 30),
        connections_max=entry.connections_max,
        rate_max=entry.rate_max,
        allow=tuple(networks),
    )


def open_to_all(entry: SyslogListenerConfig, *, asks_certificates: bool) -> bool:
    """Whether others than this machine reach the port, and nothing tells who may write to it."""
    if entry.allow or (entry.protocol == "tls" and asks_certificates):
        return False
    host = split_listen(entry.listen)[0]
    try:
        return not ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host != "localhost"
