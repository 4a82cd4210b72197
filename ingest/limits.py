"""Every limit of what is pushed or scraped, with its reason; the config keys ``limits.ingest.*`` override them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WriteLimits:
    """What one write request, and all of them together, may be."""

    body_bytes_max: int = 32 << 20  # as sent; Prometheus sends 10-100 kB
    decoded_bytes_max: int = 64 << 20  # after decompression; Prometheus sends 0.1-1 MB
    samples_max: int = 1 << 20  # in one request: 500 times Prometheus' 2,000; a sample of two bytes becomes 84
    requests_max: int = 512  # being parsed or logged at once; a Prometheus has up to 200 shards with one each
    inflight_bytes_max: int = 256 << 20  # bodies being read, parsed or logged, together
