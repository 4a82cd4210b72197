"""Plain definitions of sliding sums, of counter increments and of Envoy's success-rate rule."""

from __future__ import annotations

import math
from collections import defaultdict


class PlainRing:
    """Every increment kept with its bin; sums made when asked."""

    def __init__(self, n_bins: int, spans: tuple[int, ...]) -> None:
        self._n_bins, self._spans = n_bins, spans
        self._counts: dict[tuple[int, int], float] = defaultdict(float)
        self._now: int | None = None

    def advance(self, now: int) -> None:
        if self._now is None or now > self._now:
            self._now = now
            # what has left the ring is gone for good
            self._counts = defaultdict(
                float, {(c, b): v for (c, b), v in self._counts.items() if now - b < self._n_bins}
            )

    def add(self, cell: int, at: int, value: float) -> None:
        assert self._now is not None
        at = min(at, self._now)
        if self._now - at < self._n_bins:
            self._counts[cell, at] += round(value)

    def clear(self, cell: int) -> None:
        self._counts = defaultdict(float, {(c, b): v for (c, b), v in self._counts.items() if c != cell})

    def sums(self, cells: int) -> list[list[float]]:
        assert self._now is not None
        return [
            [
                sum(v for (c, b), v in self._counts.items() if c == cell and self._now - b < span)
                for cell in range(cells)
            ]
            for span in self._spans
        ]


def increments(samples: list[tuple[int, float]], last: tuple[int, float] | None):
    """(begin, end, increment) of one counter's samples, and its new last sample."""
    out = []
    for at, value in samples:
        if last is not None and at <= last[0]:
            continue
        if last is not None and not math.isnan(value) and not math.isnan(last[1]):
            out.append((last[0], at, value - last[1] if value >= last[1] else value))
        last = (at, value)
    return out, last


def envoy_success_rate(hosts: list[tuple[int, int]], minimum_hosts: int, request_volume: int, factor: int):
    """Who Envoy ejects by success rate, from (errors, attempts) of each host; outlier_detection_impl.cc.

    Returns (indices, ejection threshold or None).
    """
    valid = [(i, 100.0 * (n - k) / n) for i, (k, n) in enumerate(hosts) if n > 0 and n >= request_volume]
    if not valid or len(valid) < minimum_hosts:
        return [], None
    mean = sum(rate for _, rate in valid) / len(valid)
    variance = sum((rate - mean) ** 2 for _, rate in valid) / len(valid)
    threshold = mean - factor / 1000.0 * math.sqrt(variance)
    return [i for i, rate in valid if rate < threshold], threshold


def envoy_failure_percentage(hosts: list[tuple[int, int]], minimum_hosts: int, request_volume: int, threshold: int):
    """Who Envoy ejects by failure percentage, from (errors, attempts) of each host."""
    valid = [(i, 100.0 * (n - k) / n) for i, (k, n) in enumerate(hosts) if n > 0 and n >= request_volume]
    if not valid or len(valid) < minimum_hosts:
        return []
    return [i for i, rate in valid if 100.0 - rate >= threshold]
