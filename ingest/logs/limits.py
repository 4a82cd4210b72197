"""Every limit of pushed log lines with its reason; the config keys ``limits.logs.*`` override them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PushLimits:
    """What one push, one stream and one entry may be."""

    body_bytes_max: int = 32 << 20  # as sent; shippers send 1 MB
    decoded_bytes_max: int = 64 << 20  # after decompression
    entries_max: int = 1 << 20  # in one push: an entry of four bytes becomes 50
    requests_max: int = 512  # being parsed or logged at once
    inflight_bytes_max: int = 256 << 20  # bodies being read, parsed or logged, together
    line_bytes_max: int = 256 << 10
    labels_max: int = 15  # a stream is a source of lines; what differs from line to line is a field
    label_name_bytes_max: int = 1024
    label_value_bytes_max: int = 2048
    metadata_bytes_max: int = 64 << 10
    metadata_pairs_max: int = 128
    age_max_s: int = 7 * 86_400  # behind our clock; 0 = any
    ahead_max_s: int = 600
    rate_bytes_max: int = 0  # bytes of lines a second and tenant, 0 = any; bursts of ten seconds are fine
    discover_service_name: bool = True
    detect_level: bool = True
