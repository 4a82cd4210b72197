"""Remote-write bodies by hand: varints and length-delimited fields, nothing of the code under test."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

import cramjam

Pairs = Sequence[tuple[str | bytes, str | bytes]]


def varint(value: int) -> bytes:
    """A 64-bit varint, two's complement for negative numbers."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def as_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def label(name: str | bytes, value: str | bytes) -> bytes:
    return field(1, field(1, as_bytes(name)) + field(2, as_bytes(value)))


def labels(pairs: Pairs | Mapping[str, str]) -> bytes:
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    return b"".join(label(n, v) for n, v in items)


def sample(value: float | int, ts_ms: int) -> bytes:
    """A sample as every sender writes it; an ``int`` value gives the bits of the float64."""
    bits = struct.pack("<Q", value) if isinstance(value, int) else struct.pack("<d", value)
    return field(2, b"\x09" + bits + b"\x10" + varint(ts_ms))


def series(pairs: Pairs | Mapping[str, str], samples: Iterable[tuple[float | int, int]]) -> bytes:
    """A ``timeseries`` field of a WriteRequest."""
    return field(1, labels(pairs) + b"".join(sample(v, t) for v, t in samples))


def metadata(kind: int, family: str, help_text: str = "", unit: str = "") -> bytes:
    """A ``metadata`` field of a WriteRequest."""
    body = b"\x08" + varint(kind) + field(2, family.encode()) + field(4, help_text.encode())
    return field(3, body + (field(5, unit.encode()) if unit else b""))


def snappy(raw: bytes) -> bytes:
    return bytes(cramjam.snappy.compress_raw(raw))


def mesh_series(count: int) -> list[dict[str, str]]:
    """Labels of a service mesh: 12 a series, about 400 bytes."""
    out = []
    for i in range(count):
        service, pod = i // 100 % 50, i // 10
        out.append(
            {
                "__name__": f"envoy_cluster_upstream_rq_{('total', 'time_bucket', 'active', 'xx', 'retry')[i % 5]}",
                "cluster": f"prod-eu-west-{service % 3}",
                "container": "istio-proxy",
                "endpoint": "http-envoy-prom",
                "envoy_cluster_name": f"outbound|8080||service-{service:03d}.ns-{service % 12}.svc.cluster.local",
                "instance": f"10.{pod >> 16 & 255}.{pod >> 8 & 255}.{pod & 255}:15090",
                "job": "envoy-stats-monitor",
                "le": f"{i % 10}",
                "namespace": f"namespace-{service % 12}",
                "node": f"ip-10-0-{pod % 250}-{pod // 250 % 250}.eu-west-1.compute.internal",
                "pod": f"service-{service:03d}-{pod:08x}-abcde",
                "service": f"service-{service:03d}",
            }
        )
    return out
