"""The few messages of Envoy's discovery and load reporting that we speak, as protobuf by hand.

Numbers are those of ``envoy/service/discovery/v3``, ``envoy/config/endpoint/v3`` and ``envoy/service/load_stats/v3``
(Envoy 1.40). Why not generated stubs: docs/decisions/0008.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from health.topology import join_address
from ingest.wire import fields
from tsdb.errors import Reason, RejectedError

STATUS_NUMBERS: Mapping[str, int] = {
    "UNKNOWN": 0, "HEALTHY": 1, "UNHEALTHY": 2, "DRAINING": 3, "TIMEOUT": 4, "DEGRADED": 5,
}  # fmt: skip
"""``envoy.config.core.v3.HealthStatus``."""


@dataclass(frozen=True, slots=True)
class DiscoveryRequest:
    """What a proxy asks for, or says of our last answer.

    Attributes
    ----------
    version : that it has; "" = none
    nonce : of the answer that it has read; "" = none yet
    error : why it refuses that answer; None = it does not
    """

    version: str = ""
    node: str = ""
    names: tuple[str, ...] = ()
    type_url: str = ""
    nonce: str = ""
    error: str | None = None


def read_discovery_request(message: bytes) -> DiscoveryRequest:
    """Read ``envoy.service.discovery.v3.DiscoveryRequest``.

    Raises
    ------
    RejectedError        MALFORMED
    """
    text = {1: "", 4: "", 5: ""}
    names, node, error = [], "", None
    for number, value in fields(message):
        if number in text:
            text[number] = _text(value)
        elif number == 2:
            node = _first_text(_message(value), 1)
        elif number == 3:
            names.append(_text(value))
        elif number == 6:
            error = _first_text(_message(value), 2)
    return DiscoveryRequest(text[1], node, tuple(names), text[4], text[5], error)


def discovery_response(version: str, resources: Iterable[Mapping[str, Any]], type_url: str) -> bytes:
    """``DiscoveryResponse`` with assignments in their JSON form, still without a nonce."""
    kind = _string(1, type_url)
    packed = b"".join(_bytes(2, kind + _bytes(2, _assignment(resource))) for resource in resources)
    return _string(1, version) + packed + _string(4, type_url)


def with_nonce(response: bytes, nonce: str) -> bytes:
    """A ``DiscoveryResponse`` with its nonce: fields of a message may come in any order."""
    return response + _string(5, nonce)


def _assignment(resource: Mapping[str, Any]) -> bytes:
    return _string(1, resource["cluster_name"]) + b"".join(_bytes(2, _group(group)) for group in resource["endpoints"])


def _group(group: Mapping[str, Any]) -> bytes:
    out = b""
    if "locality" in group:
        where = group["locality"]
        parts = ((1, "region"), (2, "zone"), (3, "sub_zone"))
        out += _bytes(1, b"".join(_string(number, where.get(name, "")) for number, name in parts))
    out += b"".join(_bytes(2, _lb_endpoint(endpoint)) for endpoint in group["lb_endpoints"])
    return out + _uint(5, group.get("priority", 0))


def _lb_endpoint(row: Mapping[str, Any]) -> bytes:
    place = row["endpoint"]["address"]["socket_address"]
    socket = _string(2, place["address"]) + _uint(3, place["port_value"])
    endpoint = _bytes(1, _bytes(1, socket)) + _string(3, row["endpoint"].get("hostname", ""))
    weight = _uint(1, row["load_balancing_weight"])
    return _bytes(1, endpoint) + _uint(2, STATUS_NUMBERS[row["health_status"]]) + _bytes(4, weight)


# -- load reports ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EndpointLoad:
    """What a proxy sent to one endpoint since its last report.

    Attributes
    ----------
    zone : of the endpoint
    success, error : attempts that ended so
    """

    cluster: str
    endpoint: str
    zone: str
    success: int
    error: int


@dataclass(frozen=True, slots=True)
class LoadReport:
    """``envoy.service.load_stats.v3.LoadStatsRequest``.

    Attributes
    ----------
    node, node_zone : only the first of a stream says
    clusters : with their ``load_report_interval`` in milliseconds
    """

    node: str
    node_zone: str
    clusters: Mapping[str, int]
    loads: Sequence[EndpointLoad]


def read_load_report(message: bytes) -> LoadReport:
    """Read one report.

    Raises
    ------
    RejectedError        MALFORMED
    """
    node = node_zone = ""
    clusters: dict[str, int] = {}
    loads: list[EndpointLoad] = []
    for number, value in fields(message):
        if number == 1:
            for field, part in fields(_message(value)):
                if field == 1:
                    node = _text(part)
                elif field == 4:
                    node_zone = _first_text(_message(part), 2)
        elif number == 2:
            content = _message(value)
            name, groups, interval_ms = "", [], 0
            for field, part in fields(content):
                if field == 1:
                    name = _text(part)
                elif field == 2:
                    groups.append(_message(part))
                elif field == 4:
                    interval_ms = _duration_ms(_message(part))
            clusters[name] = interval_ms
            for group in groups:
                loads += _loads(name, group)
    return LoadReport(node, node_zone, clusters, loads)


def _loads(cluster: str, group: bytes) -> Iterator[EndpointLoad]:
    zone, rows = "", []
    for number, value in fields(group):
        if number == 1:
            zone = _first_text(_message(value), 2)
        elif number == 7:
            rows.append(_message(value))
    for row in rows:
        endpoint, success, error = "", 0, 0
        for number, value in fields(row):
            if number == 1:
                endpoint = _socket_address(_message(value))
            elif number == 2:
                success = _number(value)
            elif number == 4:
                error = _number(value)
        if endpoint:  # a pipe has no address
            yield EndpointLoad(cluster, endpoint, zone, success, error)


def _socket_address(address: bytes) -> str:
    for number, value in fields(address):
        if number == 1:
            host, port = "", 0
            for field, part in fields(_message(value)):
                if field == 2:
                    host = _text(part)
                elif field == 3:
                    port = _number(part)
            return join_address(host, port) if host and port else ""
    return ""


def _duration_ms(duration: bytes) -> int:
    parts = {number: _number(value) for number, value in fields(duration)}
    return parts.get(1, 0) * 1000 + parts.get(2, 0) // 1_000_000


def load_stats_response(interval_ms: int) -> bytes:
    """``LoadStatsResponse``: report all clusters, each endpoint on its own, so often."""
    seconds, rest_ms = divmod(interval_ms, 1000)
    duration = _uint(1, seconds) + _uint(2, rest_ms * 1_000_000)
    return _bytes(2, duration) + _uint(3, 1) + _uint(4, 1)


# -- wire --------------------------------------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _uint(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value) if value else b""


def _bytes(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _string(number: int, text: str) -> bytes:
    return _bytes(number, text.encode()) if text else b""


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise RejectedError(Reason.MALFORMED, "a number where a message belongs")
    return value


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise RejectedError(Reason.MALFORMED, "a message where a number belongs")
    return value


def _text(value: int | bytes) -> str:
    try:
        return _message(value).decode()
    except UnicodeDecodeError as error:
        raise RejectedError(Reason.MALFORMED, f"no UTF-8: {error}") from None


def _first_text(message: bytes, wanted: int) -> str:
    return next((_text(value) for number, value in fields(message) if number == wanted), "")
