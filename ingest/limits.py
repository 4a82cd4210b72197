"""Every limit of what is pushed or scraped, with its reason; the config keys ``limits.ingest.*`` override them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WriteLimits:
    """What one write request, and all of them together, may be."""

    body_bytes_max: int = 32 << 20  # as sent; Prometheus sends 10-100 kB
    decoded_bytes_max: int = 64 << 20  # after decompression; Prometheus sends 0.1-1 MB
    requests_max: int = 64  # being read or decided at once; a Prometheus shard has one on its way
    inflight_bytes_max: int = 256 << 20  # their bodies together
