"""The Wilson score interval."""

from __future__ import annotations

import math


def wilson_bounds(errors: float, attempts: float, z: float) -> tuple[float, float]:
    """Wilson score interval of errors / attempts; (0, 1) without attempts."""
    if attempts <= 0:
        return 0.0, 1.0
    p = errors / attempts
    d = 1 + z * z / attempts
    centre = (p + z * z / (2 * attempts)) / d
    radius = z * math.sqrt(max(0.0, p * (1 - p) / attempts + z * z / (4 * attempts * attempts))) / d
    return max(0.0, centre - radius), min(1.0, centre + radius)
