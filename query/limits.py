"""Every limit of a query with its reason; the config keys ``limits.query.*`` override the defaults."""

from __future__ import annotations

from dataclasses import dataclass

STEPS_MAX = 11_000
"""Points per series of a range query, the number Prometheus' clients know (60 s steps for a week, 1 h for a year)."""


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """What one query may touch, and how many may run at once.

    Attributes
    ----------
    samples_max : samples and points that one query may hold at once; Prometheus' ``query.max-samples``
    samples_read_max : samples that one query may decode, however few of them it holds: about 5 s on one core
    series_max : series one selector may return: beyond, the answer is useless on any screen
    steps_max : evaluation steps of a range query, checked where the request is read and again here
    subquery_steps_max : steps of one subquery; a subquery multiplies the work of everything inside it
    memory_bytes_max : largest array set a query may need, estimated from series x steps before it is allocated
    timeout_s : wall seconds of one query, waiting for its turn included; Prometheus' ``query.timeout``
    concurrent_max : queries evaluated at once; more wait, because two cores gain nothing from more
    lookback_ms : how long an instant selector looks back for a sample; Prometheus' ``query.lookback-delta``
    default_step_ms : resolution of a subquery that names none; Prometheus' global evaluation interval
    batch_points_max : series x steps that an aggregation over a range function holds at once (32 MiB of float64)
    workers : threads of one large window evaluation
    """

    samples_max: int = 50_000_000
    samples_read_max: int = 500_000_000
    series_max: int = 1_000_000
    steps_max: int = STEPS_MAX
    subquery_steps_max: int = 200_000
    memory_bytes_max: int = 2 << 30
    timeout_s: float = 120.0
    concurrent_max: int = 20
    lookback_ms: int = 300_000
    default_step_ms: int = 60_000
    batch_points_max: int = 4 << 20
    workers: int = 2
