"""From syslog messages to entries of the log store: streams, times, metadata, levels."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from ingest.logs.spans import Entry, Spans, spans_of
from ingest.syslog.message import FACILITIES, SEVERITIES, USER_NOTICE, Message, parse

Part = Literal["hostname", "app_name", "proc_id", "msg_id", "facility", "severity", "sender"]
"""What of a message may be a label or metadata, by Alloy's names; ``sender`` is the address it came from."""

PARTS: tuple[Part, ...] = ("hostname", "app_name", "proc_id", "msg_id", "facility", "severity", "sender")

OTHER = b"other"
"""Value of every label that a message brings, beyond ``streams_max`` streams."""

LEVELS = np.array([8, 7, 7, 6, 5, 4, 4, 3], np.uint8)
"""``detected_level`` by severity: fatal, critical, critical, error, warn, info, info, debug."""

_STRANGE = re.compile(rb"[^A-Za-z0-9_]")
_SECOND = 1_000_000_000

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """One entry of ``syslog.listeners``.

    Attributes
    ----------
    host, port : where to listen
    labels : of every stream
    label_parts : labels that take their value from a message
    received : take the time of receipt, also of messages that tell one
    message_bytes_max : a longer message is refused
    connections_max : open at once
    rate_max : messages a second; 0 = any
    allow : networks from which messages are taken; empty = all
    """

    host: str
    port: int
    protocol: Literal["udp", "tcp", "tls"] = "udp"
    labels: Mapping[str, str] = field(default_factory=lambda: {"job": "syslog"})
    label_parts: Mapping[str, Part] = field(default_factory=lambda: {"host": "hostname", "app": "app_name"})
    tenant: str = "default"
    received: bool = False
    message_bytes_max: int = 64 << 10
    connections_max: int = 1000
    rate_max: int = 0
    allow: tuple[Network, ...] = ()

    @property
    def address(self) -> tuple[str, str, int]:
        """What makes it another listener: transport, host, port."""
        return "udp" if self.protocol == "udp" else "tcp", self.host, self.port


class Arrived(NamedTuple):
    """Messages that one sender brought at one time."""

    settings: ListenerSettings
    sender: str
    at_ns: int
    messages: Sequence[bytes]


class Batch(NamedTuple):
    """Entries of one tenant on their way to the store."""

    tenant: str
    streams: list[list[tuple[str, str]]]
    spans: Spans
    bytes: int


class EntryReader:
    """Reads messages into batches; on one thread at a time.

    Attributes
    ----------
    unparsed : messages without a priority, since the start
    """

    def __init__(self, streams_max: int) -> None:
        self.unparsed = 0
        self._streams_max = streams_max
        self._known: set[tuple[bytes, ...]] = set()
        self._number = time.time_ns() % _SECOND  # so that it is another one after a restart
        self._last_ns = 0

    def read(self, arrived: Iterable[Arrived]) -> list[Batch]:
        """One batch a tenant."""
        by_tenant: dict[str, list[Arrived]] = {}
        for item in arrived:
            by_tenant.setdefault(item.settings.tenant, []).append(item)
        return [self._batch(tenant, items) for tenant, items in by_tenant.items()]

    def _batch(self, tenant: str, arrived: Iterable[Arrived]) -> Batch:
        numbers: dict[tuple[int, tuple[bytes, ...]], int] = {}
        streams: list[list[tuple[str, str]]] = []
        entries: list[Entry] = []
        levels: list[int] = []
        size = 0
        for settings, sender, at_ns, messages in arrived:
            names = list(settings.label_parts)
            wanted = list(settings.label_parts.values())
            rest = [part for part in PARTS if part not in wanted]
            address = sender.encode()
            for raw in messages:
                size += len(raw)
                message = parse(raw)
                self.unparsed += message.priority < 0
                parts = _parts(message, address)
                key = self._bounded(tuple([parts[part] for part in wanted]))
                number = numbers.setdefault((id(settings), key), len(streams))
                if number == len(streams):
                    own = zip(names, (value.decode("utf-8", "replace") for value in key), strict=True)
                    streams.append([*settings.labels.items(), *own])
                metadata = [(part.encode(), parts[part]) for part in rest if parts[part]]
                if message.data:
                    metadata += {_name(name): value for name, value in message.data}.items()
                entries.append((number, self._time(message, settings, at_ns), _utf8(message.text), metadata))
                levels.append((message.priority if message.priority >= 0 else USER_NOTICE) & 7)
        return Batch(tenant, streams, spans_of(entries, LEVELS[levels]), size)

    def _bounded(self, key: tuple[bytes, ...]) -> tuple[bytes, ...]:
        if key in self._known or not key:
            return key
        if len(self._known) >= self._streams_max:
            return (OTHER,) * len(key)
        self._known.add(key)
        return key

    def _time(self, message: Message, settings: ListenerSettings, at_ns: int) -> int:
        """A time that no other entry has: two messages that are alike are two, since nobody repeats a syslog message.

        Of its own time a message does not tell what is below the unit; there a running number goes.
        """
        if settings.received or not message.ts_ns:
            self._last_ns = max(self._last_ns + 1, at_ns)
            return self._last_ns
        self._number += 1
        return message.ts_ns + self._number % message.unit_ns


def _parts(message: Message, sender: bytes) -> dict[Part, bytes]:
    priority = message.priority if message.priority >= 0 else USER_NOTICE
    return {
        "hostname": message.host or sender,
        "app_name": message.app,
        "proc_id": message.process,
        "msg_id": message.kind,
        "facility": _FACILITIES[priority >> 3],
        "severity": _SEVERITIES[priority & 7],
        "sender": sender,
    }


_FACILITIES = [name.encode() for name in FACILITIES]
_SEVERITIES = [name.encode() for name in SEVERITIES]


@lru_cache(maxsize=4096)
def _name(name: bytes) -> bytes:
    """A name of structured data as LogQL can write it: ``origin.ip`` becomes ``sd_origin_ip``."""
    return b"sd_" + _STRANGE.sub(b"_", name)


def _utf8(text: bytes) -> bytes:
    try:
        text.decode()
    except UnicodeDecodeError:
        return text.decode("utf-8", "replace").encode()
    return text
