"""Every limit of the store with its reason; the config keys ``limits.*`` override the defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SeriesLimits:
    """What one series and one tenant may be (decision 13)."""

    labels_max: int = 64  # a mesh series has 8-20; far above is a mistake in a relabelling
    label_name_bytes_max: int = 1024
    label_value_bytes_max: int = 4096
    series_bytes_max: int = 16 << 10  # all names and values together
    active_series_max: int = 2_000_000  # per tenant: about 1.8 GB of head


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Which times are writable (decisions 8 and 9)."""

    out_of_order_window_ms: int = 24 * 3_600_000  # behind the tenant's newest sample
    future_max_ms: int = 10 * 60_000  # ahead of our clock, checked at receive only


@dataclass(frozen=True, slots=True)
class SelectLimits:
    """What one selection may touch before it is refused."""

    series_max: int = 1_000_000
    samples_max: int = 200_000_000
