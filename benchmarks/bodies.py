"""Remote-write 1.0 bodies for the benchmarks: built once, then patched in place for every round."""

from __future__ import annotations

import cramjam
import numpy as np
from numpy.typing import NDArray

VARINT_TIME_BYTES = 6  # of a millisecond time between 2004 and 2109


def _field(number: int, body: bytes) -> bytes:
    out = bytearray([number << 3 | 2])
    n = len(body)
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out) + body


def mesh_labels(index: int, pods: int = 1000) -> list[tuple[str, str]]:
    """12 labels and 396 label bytes on the wire, as a sidecar's series have them; ``pods`` series a metric."""
    pod, metric = index % pods, index // pods
    service = pod % 200
    return [
        ("__name__", f"envoy_cluster_upstream_rq_{metric:04d}_total"),
        ("availability_zone", f"ap-northeast-1{'abc'[pod % 3]}"),
        ("cluster", "production-tokyo-01"),
        ("envoy_cluster_name", f"outbound_8080_service-{service:03d}"),
        ("instance", f"10.{pod // 256}.{pod % 256}.17:15090"),
        ("job", "kubernetes-envoy"),
        ("namespace", f"payments-{service % 20:02d}"),
        ("node", f"node-{pod % 120:04d}.tokyo"),
        ("pod", f"service-{service:03d}-7c9f8d6b5-{pod:05d}"),
        ("response_code_class", "2xx"),
        ("service", f"service-{service:03d}"),
        ("version", f"release-2026.11.{service % 28 + 1:02d}"),
    ]


class Bodies:
    """Requests for ``n_series`` series, ``per_request`` series each, one sample a series a round."""

    def __init__(self, n_series: int, per_request: int = 2000, first: int = 0, pods: int = 1000) -> None:
        self.n_series = n_series
        self._raw: list[bytearray] = []
        self._value_at: list[NDArray[np.int64]] = []
        sample = _field(2, b"\x09" + bytes(8) + b"\x10" + bytes(VARINT_TIME_BYTES))
        self.label_bytes = 0
        for begin in range(first, first + n_series, per_request):
            raw = bytearray()
            places = []
            for index in range(begin, min(begin + per_request, first + n_series)):
                labels = b""
                for name, value in mesh_labels(index, pods):
                    labels += _field(1, _field(1, name.encode()) + _field(2, value.encode()))
                    self.label_bytes += len(name) + len(value)
                series = _field(1, labels + sample)
                places.append(len(raw) + len(series) - len(sample) + 3)
                raw += series
            self._raw.append(raw)
            self._value_at.append(np.array(places))
        rng = np.random.default_rng(7)
        self._rate = rng.gamma(1.5, 40.0, n_series)
        self._values = np.floor(rng.uniform(0, 1e6, n_series))
        self._rng = rng

    def round(self, ts_ms: int) -> list[bytes]:
        """The compressed requests of one round: counters that move by Poisson steps."""
        self._values += self._rng.poisson(self._rate)
        varint = bytearray()
        n = ts_ms
        while n > 0x7F:
            varint.append(n & 0x7F | 0x80)
            n >>= 7
        varint.append(n)
        assert len(varint) == VARINT_TIME_BYTES, "time outside the range the bodies are laid out for"
        time_bytes = np.frombuffer(bytes(varint), np.uint8)
        out = []
        first = 0
        for raw, places in zip(self._raw, self._value_at, strict=True):
            view = np.frombuffer(raw, np.uint8)
            values = self._values[first : first + len(places)].astype("<f8").view(np.uint8).reshape(-1, 8)
            view[places[:, None] + np.arange(8)] = values
            view[places[:, None] + 9 + np.arange(VARINT_TIME_BYTES)] = time_bytes
            out.append(bytes(cramjam.snappy.compress_raw(raw)))
            first += len(places)
        return out


HEADERS = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}
