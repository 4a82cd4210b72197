"""Every number a health decision depends on, with its default and its allowed range.

Durations are whole milliseconds (``_ms``), windows whole seconds (``_s``), shares fractions of 1 unless the name
says percent. :meth:`Policy.problems` is the only validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

PANIC_PERCENT = 50
"""Envoy's default ``healthy_panic_threshold``: below this share of healthy endpoints it sends to all again."""


class Mode(StrEnum):
    """Whether decisions leave the process."""

    DRY_RUN = "dry_run"
    ENFORCE = "enforce"


class Rule(StrEnum):
    """Which detectors judge errors."""

    MANTEL_HAENSZEL = "mh"
    ENVOY = "envoy"


class Publish(StrEnum):
    """How an ejected endpoint is shown to proxies."""

    UNHEALTHY = "unhealthy"
    WEIGHT = "weight"


@dataclass(frozen=True, slots=True)
class ErrorRule:
    """D1: an endpoint is flagged when all of these hold at once (design page 6.1).

    Attributes
    ----------
    z : Mantel-Haenszel z with continuity correction must exceed this
    min_excess : risk difference to the peers must exceed this; 0.02 is "sensitive"
    min_ratio : risk ratio to the peers must exceed this
    min_errors, min_requests : least errors and attempts in the window
    min_observers : observers that saw an error, or all that called the endpoint when those are fewer
    tail_p : Poisson probability of so many errors at the peers' rate must be below this
    exact_p : and so must the binomial bound of their probability given the errors of all, which does not take the
        peers' rate for known; 1 is the design page's rule
    wilson_z, wilson_floor : lower Wilson bound of the ratio must exceed the floor
    sure_share : and the peers' rate by this share of ``min_excess``; 0 is the design page's rule, which ejects
        endpoints whose true excess is far below ``min_excess`` whenever chance lifts the estimate over it
    consecutive : evaluations in a row before an ejection
    """

    z: float = 4.0
    min_excess: float = 0.05
    min_ratio: float = 2.0
    min_errors: int = 5
    min_requests: int = 10
    min_observers: int = 2
    tail_p: float = 1e-6
    exact_p: float = 3e-5
    wilson_z: float = 3.29
    wilson_floor: float = 0.005
    sure_share: float = 0.6
    consecutive: int = 2


@dataclass(frozen=True, slots=True)
class LatencyRule:
    """D2: share of attempts slower than the peers' quantile (design page 6.3); the other gates are D1's.

    Attributes
    ----------
    enabled : judge latency where buckets are known
    windows_s : sums that are judged; a window between 10 s and 60 s finds small shares of slow attempts earlier
    quantiles, min_excess : for each quantile of the peers, the excess of slow attempts that convicts
    min_ratio : risk ratio of being slow
    min_peer_requests : least attempts at the peers for their quantile to mean something
    """

    enabled: bool = True
    windows_s: tuple[int, ...] = (10, 30, 60)
    quantiles: tuple[float, ...] = (0.90, 0.99)
    min_excess: tuple[float, ...] = (0.05, 0.02)
    min_ratio: float = 2.0
    min_peer_requests: int = 20


@dataclass(frozen=True, slots=True)
class HardRule:
    """D3: nobody can connect. Flagged at once, without a second evaluation."""

    enabled: bool = True
    observers: int = 3
    attempts: int = 5
    window_s: int = 5


@dataclass(frozen=True, slots=True)
class ObserverRule:
    """D5: observers that blame everybody are not asked, unless too many would go."""

    enabled: bool = True
    max_drop: float = 0.25


@dataclass(frozen=True, slots=True)
class GroupRule:
    """D6: a zone or a version as a whole.

    Attributes
    ----------
    enabled : judge zones and versions
    share : fraction of a group's judgeable endpoints that must each be worse than min_excess / 2
    min_endpoints : fewer judgeable endpoints are endpoints, not a group
    """

    enabled: bool = True
    share: float = 0.6
    min_endpoints: int = 2


@dataclass(frozen=True, slots=True)
class EnvoyRule:
    """Envoy's ``cluster.v3.OutlierDetection``, its field names, its defaults (design page 3.1).

    Used when :attr:`Policy.rule` is ``envoy``. ``enforcing_*`` are percentages as in Envoy, but nothing is drawn by
    lot here: 0 detects without flagging, any other value flags.

    Attributes
    ----------
    interval_ms : length of the bucket that is judged
    success_rate_stdev_factor : thousandths of a population standard deviation
    fleet : True sums all observers as if the mesh were one Envoy; False asks each observer for itself and flags what
        more than half of those with enough volume flag
    """

    interval_ms: int = 10_000
    base_ejection_time_ms: int = 30_000
    max_ejection_time_ms: int = 300_000
    max_ejection_time_jitter_ms: int = 0
    max_ejection_percent: int = 10
    always_eject_one_host: bool = False
    enforcing_success_rate: int = 100
    success_rate_minimum_hosts: int = 5
    success_rate_request_volume: int = 100
    success_rate_stdev_factor: int = 1900
    enforcing_failure_percentage: int = 0
    failure_percentage_threshold: int = 85
    failure_percentage_minimum_hosts: int = 5
    failure_percentage_request_volume: int = 50
    fleet: bool = True


@dataclass(frozen=True, slots=True)
class ProbeRule:
    """Probation: a little traffic decides whether an ejected endpoint may come back.

    Attributes
    ----------
    weight_percent, max_weight_percent : share of its normal weight; raised on slow services so that ``min_requests``
        arrive in about ``target_ms``, at most to the second
    min_requests, z, pass_margin : passes when the upper Wilson bound is below the peers' upper bound + margin
    min_errors, fail_margin : fails at once when the lower Wilson bound is above the peers' upper bound + margin
    timeout_ms : passes after so long without any error, however few attempts came
    """

    weight_percent: float = 5.0
    max_weight_percent: float = 25.0
    target_ms: int = 15_000
    min_requests: int = 20
    z: float = 1.64
    pass_margin: float = 0.15
    fail_margin: float = 0.02
    min_errors: int = 2
    timeout_ms: int = 120_000


@dataclass(frozen=True, slots=True)
class EjectionRule:
    """How long an ejection lasts and how its end looks.

    Attributes
    ----------
    base_ms, max_ms : time out = min(base x number of ejections, max) x U(1 - jitter, 1 + jitter)
    jitter : fraction, drawn from a hash of (seed, service, endpoint, number of ejections)
    decay_ms : healthy this long without a flag forgets one ejection
    keep_ms : how long the state of an endpoint whose series are gone is kept
    gone_ms : without any series for so long an endpoint is unknown
    healthy_requests : attempts in 60 s that make an unknown endpoint healthy
    ramp_percent, ramp_step_ms : weights after probation, and how long each lasts
    """

    base_ms: int = 30_000
    max_ms: int = 300_000
    jitter: float = 0.2
    decay_ms: int = 30_000
    keep_ms: int = 600_000
    gone_ms: int = 60_000
    healthy_requests: int = 10
    publish: Publish = Publish.UNHEALTHY
    probe: ProbeRule = field(default_factory=ProbeRule)
    ramp_percent: tuple[int, ...] = (10, 25, 50, 100)
    ramp_step_ms: int = 10_000


@dataclass(frozen=True, slots=True)
class GuardRule:
    """What must hold before an ejection (design page 8, in that order).

    Attributes
    ----------
    min_reporting : share of the known observers that must report; fewer freeze everything
    staleness_factor : data older than factor x (evaluation + scrape interval) freeze everything
    warmup_ms : nothing is ejected so soon after a start
    rising_share : share of endpoints worse than their own last 10 minutes that makes it a common cause
    cap_percent : most of a service, of a priority and of a zone that may be unavailable
    allow_one_of_two : lift the cap for services of two endpoints
    capacity_factor : load per remaining endpoint over its recent maximum
    capacity_waiver : excess (risk difference) from which the capacity guard no longer holds
    service_gap_ms : least time between two ejections of one service
    fleet_percent_per_minute : ejections of all services per minute, percent of all endpoints, at least one
    min_age_ms : younger endpoints are not ejected
    """

    min_reporting: float = 0.8
    staleness_factor: float = 3.0
    warmup_ms: int = 60_000
    rising_share: float = 0.6
    cap_percent: int = 49
    allow_one_of_two: bool = False
    capacity_factor: float = 1.3
    capacity_waiver: float = 0.5
    service_gap_ms: int = 5_000
    fleet_percent_per_minute: float = 1.0
    min_age_ms: int = 60_000


@dataclass(frozen=True, slots=True)
class Policy:
    """All parameters of the decisions about the services that ``service`` matches.

    Attributes
    ----------
    service : glob over service names
    eval_interval_ms : one evaluation, and at most one state change of an endpoint, per interval
    windows_s : sums that are judged; an endpoint is flagged when any of them flags
    sparse_window_s, sparse_rps : longer window, judged too when endpoints get fewer attempts/s than this on average;
        window 0 = never
    agreement : least share of an endpoint's attempts in observer zones that see it fail
    seed : of the jitter
    lease_ms : how long clients may rely on a published board
    """

    name: str = "default"
    service: str = "*"
    mode: Mode = Mode.DRY_RUN
    rule: Rule = Rule.MANTEL_HAENSZEL
    eval_interval_ms: int = 1_000
    windows_s: tuple[int, ...] = (10, 60)
    sparse_window_s: int = 300
    sparse_rps: float = 0.5
    error: ErrorRule = field(default_factory=ErrorRule)
    latency: LatencyRule = field(default_factory=LatencyRule)
    hard: HardRule = field(default_factory=HardRule)
    observer: ObserverRule = field(default_factory=ObserverRule)
    group: GroupRule = field(default_factory=GroupRule)
    envoy: EnvoyRule = field(default_factory=EnvoyRule)
    agreement: float = 0.6
    ejection: EjectionRule = field(default_factory=EjectionRule)
    guards: GuardRule = field(default_factory=GuardRule)
    lease_ms: int = 90_000
    seed: int = 0

    def problems(self) -> list[str]:
        """Why this policy cannot be used, each naming its key; empty when it can."""
        return list(self._problems())

    def _problems(self) -> Iterator[str]:
        yield from _ranges(self)
        for key, windows in (("windows", self.windows_s), ("latency.windows", self.latency.windows_s)):
            if not windows or list(windows) != sorted(set(windows)):
                yield f"{key} must be ascending and not empty"
            elif not 1 <= windows[0] <= windows[-1] <= 60:
                yield f"{key} must lie between 1s and 60s"
        if self.sparse_window_s and (self.sparse_window_s % 10 or not 60 < self.sparse_window_s <= 600):
            yield "sparse_window must be 0, or above 60s, at most 600s, in steps of 10s"
        if len(self.latency.quantiles) != len(self.latency.min_excess) or not self.latency.quantiles:
            yield "latency.min_excess needs one value for each of latency.quantiles"
        if any(not 0 < q < 1 for q in self.latency.quantiles):
            yield "latency.quantiles must lie between 0 and 1"
        if any(not 0 < excess < 1 for excess in self.latency.min_excess):
            yield "latency.min_excess must lie between 0 and 1"
        if self.guards.cap_percent >= PANIC_PERCENT:
            yield f"guards.cap_percent {self.guards.cap_percent} is not below the panic threshold {PANIC_PERCENT}"
        if self.ejection.max_ms < self.ejection.base_ms:
            yield "ejection.max is below ejection.base"
        ramp = self.ejection.ramp_percent
        if not ramp or list(ramp) != sorted(ramp) or ramp[-1] != 100 or ramp[0] < 1:
            yield "ejection.ramp must rise to 100"
        if self.ejection.probe.max_weight_percent < self.ejection.probe.weight_percent:
            yield "ejection.probe.max_weight_percent is below ejection.probe.weight_percent"
        if self.lease_ms < 4 * self.eval_interval_ms:
            yield "lease must be at least four evaluations"


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("eval_interval_ms", 100, 60_000),
    ("sparse_rps", 0, 1e9),
    ("agreement", 0, 1),
    ("lease_ms", 1_000, 3_600_000),
    ("error.z", 1, 100),
    ("error.min_excess", 0.001, 1),
    ("error.min_ratio", 1, 1_000),
    ("error.min_errors", 1, 1e9),
    ("error.min_requests", 1, 1e9),
    ("error.min_observers", 1, 1e6),
    ("error.tail_p", 0, 1),
    ("error.exact_p", 0, 1),
    ("error.wilson_z", 0, 100),
    ("error.wilson_floor", 0, 1),
    ("error.sure_share", 0, 1),
    ("error.consecutive", 1, 100),
    ("latency.min_ratio", 1, 1_000),
    ("latency.min_peer_requests", 1, 1e9),
    ("hard.observers", 1, 1e6),
    ("hard.attempts", 1, 1e9),
    ("hard.window_s", 1, 60),
    ("observer.max_drop", 0, 1),
    ("group.share", 0, 1),
    ("group.min_endpoints", 1, 1e6),
    ("envoy.interval_ms", 1_000, 60_000),
    ("envoy.base_ejection_time_ms", 1, 1e12),
    ("envoy.max_ejection_time_ms", 1, 1e12),
    ("envoy.max_ejection_time_jitter_ms", 0, 1e12),
    ("envoy.max_ejection_percent", 0, 100),
    ("envoy.enforcing_success_rate", 0, 100),
    ("envoy.success_rate_minimum_hosts", 0, 1e6),
    ("envoy.success_rate_request_volume", 0, 1e9),
    ("envoy.success_rate_stdev_factor", 0, 1e6),
    ("envoy.enforcing_failure_percentage", 0, 100),
    ("envoy.failure_percentage_threshold", 0, 100),
    ("envoy.failure_percentage_minimum_hosts", 0, 1e6),
    ("envoy.failure_percentage_request_volume", 0, 1e9),
    ("ejection.base_ms", 1, 86_400_000),
    ("ejection.max_ms", 1, 86_400_000),
    ("ejection.jitter", 0, 0.99),
    ("ejection.decay_ms", 1, 86_400_000),
    ("ejection.keep_ms", 0, 86_400_000),
    ("ejection.gone_ms", 1_000, 86_400_000),
    ("ejection.healthy_requests", 1, 1e9),
    ("ejection.ramp_step_ms", 0, 86_400_000),
    ("ejection.probe.weight_percent", 1, 100),
    ("ejection.probe.max_weight_percent", 1, 100),
    ("ejection.probe.target_ms", 1, 3_600_000),
    ("ejection.probe.min_requests", 1, 1e9),
    ("ejection.probe.z", 0, 100),
    ("ejection.probe.pass_margin", 0, 1),
    ("ejection.probe.fail_margin", 0, 1),
    ("ejection.probe.min_errors", 1, 1e9),
    ("ejection.probe.timeout_ms", 1, 86_400_000),
    ("guards.min_reporting", 0, 1),
    ("guards.staleness_factor", 1, 1_000),
    ("guards.warmup_ms", 0, 3_600_000),
    ("guards.rising_share", 0, 1),
    ("guards.cap_percent", 0, 100),
    ("guards.capacity_factor", 1, 1_000),
    ("guards.capacity_waiver", 0, 1),
    ("guards.service_gap_ms", 0, 3_600_000),
    ("guards.fleet_percent_per_minute", 0, 100),
    ("guards.min_age_ms", 0, 86_400_000),
)


def _ranges(policy: Policy) -> Iterator[str]:
    for path, least, most in _RANGES:
        value: object = policy
        for part in path.split("."):
            value = getattr(value, part)
        assert isinstance(value, int | float)
        if not least <= value <= most:  # also refuses NaN
            key = path.removesuffix("_ms").removesuffix("_s")
            yield f"{key} {value:g} is not between {least:g} and {most:g}"
