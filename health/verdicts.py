"""What the parts of the decision core hand each other: verdicts, facts from outside, states, decisions.

All arrays of one service are aligned with :attr:`Topology.endpoints` (H of them) and ``Topology.observers`` (P).
Everything here is a value; nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Scalar = float | int | str | bool
"""What a piece of evidence may be."""


class State(StrEnum):
    """Where an endpoint stands."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    EJECTED = "ejected"
    PROBATION = "probation"
    RAMP = "ramp"


COMPARED = frozenset({State.HEALTHY, State.SUSPECT, State.UNKNOWN})
"""States whose endpoints are each other's peers: they get their full share of ordinary traffic."""


class Detector(StrEnum):
    """What convicted an endpoint."""

    ERROR_RATIO = "error_ratio"
    SLOW_FRACTION = "slow_fraction"
    HARD_FAILURE = "hard_failure"
    SUCCESS_RATE = "success_rate"
    FAILURE_PERCENTAGE = "failure_percentage"
    PROBE = "probe"
    OVERRIDE = "override"


class Guard(StrEnum):
    """What may forbid an ejection, in the order in which it is asked."""

    DATA_FRESH = "data_fresh"
    COMMON_CAUSE = "common_cause"
    PARTIAL_VIEW = "partial_view"
    CAP = "cap"
    LAST_HEALTHY = "last_healthy"
    CAPACITY = "capacity"
    RATE = "rate"
    AGE = "age"
    OVERRIDE = "override"


class Action(StrEnum):
    """What a person may order."""

    FORCE_HEALTHY = "force_healthy"
    FORCE_EJECTED = "force_ejected"
    FREEZE = "freeze"


class Kind(StrEnum):
    """What a decision says (the ``type`` of an event)."""

    SUSPECT = "suspect"
    CLEARED = "cleared"
    EJECTED = "ejected"
    BLOCKED = "blocked"
    PROBATION = "probation"
    RAMP = "ramp"
    RECOVERED = "recovered"
    GONE = "gone"
    RETURNED = "returned"
    OVERRIDE = "override"
    INCIDENT = "incident"
    PARTIAL_VIEW = "partial_view"
    OBSERVER_BROKEN = "observer_broken"
    OBSERVERS_SPLIT = "observers_split"
    ZONE_DEGRADED = "zone_degraded"
    VERSION_DEGRADED = "version_degraded"
    FREEZE = "freeze"
    THAW = "thaw"
    CAPACITY_LOST = "capacity_lost"
    LEASE_EXPIRED = "lease_expired"
    POLICY_CHANGED = "policy_changed"
    POLICY_DELETED = "policy_deleted"
    NACK = "nack"
    OVERWRITTEN = "overwritten"


@dataclass(frozen=True, slots=True)
class Stats:
    """The sums and statistics of D1 or D2 for each candidate (endpoint, observer or group).

    Attributes
    ----------
    table : (n, len(COLUMNS)) float64   one row per candidate; ``stats.column("z")`` is one statistic of all
    """

    table: NDArray[np.float64]

    COLUMNS = (
        "errors",  # S: errors of the candidate (slow attempts for D2)
        "attempts",  # M
        "expected",  # E
        "variance",  # V
        "z",
        "excess",  # RD: stratified risk difference to the peers
        "ratio",  # RR: stratified risk ratio to the peers
        "baseline",  # the peers' rate, weighted as the candidate's traffic is
        "peer_errors",  # over all observers, also those that never call the candidate
        "peer_attempts",  # M0
        "tail",  # Poisson tail probability
        "wilson_lo",  # lower bound of errors / attempts
        "observers",  # that called the candidate
        "observers_bad",  # that saw an error
        "standard_error",  # of the risk difference, under the null
        "agreement",  # share of attempts in observer zones that see it too
        "limit",  # D2: what wilson_lo had to exceed; D1: max(baseline, floor)
        "bound",  # D2: index of the latency bucket whose upper bound separates slow from fast; -1 otherwise
        "exact",  # bound on the conditional probability of so many errors, given the errors of all
    )

    def column(self, name: str) -> NDArray[np.float64]:
        """One statistic of all candidates, (n,) float64."""
        return self.table[:, self.COLUMNS.index(name)]

    def row(self, candidate: int) -> dict[str, float]:
        """All statistics of one candidate by name."""
        return dict(zip(self.COLUMNS, self.table[candidate].tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Finding:
    """What one detector says on one window.

    Attributes
    ----------
    window_s : length of the window
    quantile : D2: of the peers' latency; 0.0 otherwise
    stats : of each endpoint; those in ``chain`` as they were when convicted
    chain : flagged endpoints among the compared ones, worst first
    others : flagged endpoints that are not compared (on their way back)
    partial : endpoints that only a minority view would flag
    incident : the chain is longer than half of the active endpoints
    """

    detector: Detector
    window_s: int
    quantile: float
    stats: Stats
    chain: tuple[int, ...]
    others: tuple[int, ...]
    partial: tuple[int, ...]
    incident: bool


@dataclass(frozen=True, slots=True)
class Degraded:
    """A zone or version that is bad as a whole.

    Attributes
    ----------
    label : ``zone`` or ``version``
    members : its endpoints
    evidence : statistics of the group by name
    """

    label: str
    value: str
    members: tuple[int, ...]
    evidence: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """One evaluation of one service, before state and guards.

    Attributes
    ----------
    endpoints : (H,) names
    present : (H,) bool            their series exist (zero traffic is not absence)
    attempts_60s : (H,) float64    of the observers that are believed
    flagged : tuple                flagged endpoints, worst first
    leading : endpoint -> index into ``findings`` of the evidence that counts
    hard : endpoints with D3 (subset of ``flagged``)
    partial : endpoints only a minority view would flag, and nothing else does -> index into ``findings``
    incident : more than half of the active endpoints would be flagged: nobody is
    rising_share : endpoints worse than their own last 10 minutes / endpoints that can be judged
    degraded : zones and versions bad as a whole
    broken : observers that are not asked -> their statistics
    observers_split : too many observers would go, so none went
    probe_errors, probe_attempts : (H,) float64   since the counters of the endpoint were last restarted
    baseline_hi : upper bound of the error ratio of the healthy endpoints (u of design page 7)
    """

    endpoints: tuple[str, ...]
    present: NDArray[np.bool_]
    attempts_60s: NDArray[np.float64]
    flagged: tuple[int, ...] = ()
    leading: Mapping[int, int] = field(default_factory=dict)
    hard: frozenset[int] = frozenset()
    partial: Mapping[int, int] = field(default_factory=dict)
    incident: bool = False
    rising_share: float = 0.0
    degraded: tuple[Degraded, ...] = ()
    broken: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    observers_split: bool = False
    findings: tuple[Finding, ...] = ()
    probe_errors: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    probe_attempts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    baseline_hi: float = 0.05


@dataclass(frozen=True, slots=True)
class Topology:
    """What a service consists of, as far as anyone said; "" and 0 stand for "not known".

    Attributes
    ----------
    service : name
    observers, observer_zones : (P,) of the proxies that report
    endpoints : (H,) ``address:port``, those seen in metrics and those only listed
    zones, versions : (H,) of the endpoints
    priorities : (H,)
    listed : (H,) counts for caps; without a topology source: has been seen in metrics
    unavailable : (H,) out for another reason than our ejection: EDS status, or ejected by more than half of the proxies
    deploying : (H,) being rolled out now
    told : a topology source lists the service; otherwise caps can only count what metrics show
    """

    service: str
    observers: tuple[str, ...]
    observer_zones: tuple[str, ...]
    endpoints: tuple[str, ...]
    zones: tuple[str, ...]
    versions: tuple[str, ...]
    priorities: tuple[int, ...]
    listed: tuple[bool, ...]
    unavailable: tuple[bool, ...]
    deploying: tuple[bool, ...]
    told: bool = True

    @classmethod
    def plain(cls, service: str, observers: tuple[str, ...], endpoints: tuple[str, ...]) -> Topology:
        """A topology of which only the names are known."""
        p, h = len(observers), len(endpoints)
        return cls(
            service,
            observers,
            ("",) * p,
            endpoints,
            ("",) * h,
            ("",) * h,
            (0,) * h,
            (True,) * h,
            (False,) * h,
            (False,) * h,
        )


@dataclass(frozen=True, slots=True)
class Override:
    """An order by a person, with an end.

    Attributes
    ----------
    until_ms : it ends by itself then
    """

    action: Action
    until_ms: int
    author: str
    comment: str


@dataclass(frozen=True, slots=True)
class FleetBudget:
    """How many ejections all services together had lately (guard ``rate``).

    Attributes
    ----------
    endpoints : of all services
    ejections_ms : times of recent ejections, ascending
    """

    endpoints: int = 0
    ejections_ms: tuple[int, ...] = ()

    def spent(self, now_ms: int) -> int:
        """Ejections in the last minute."""
        return sum(1 for t in self.ejections_ms if t > now_ms - 60_000)

    def charged(self, decisions: tuple[Decision, ...], now_ms: int) -> FleetBudget:
        """The budget after these decisions, without what is older than a minute."""
        new = (now_ms,) * sum(1 for d in decisions if d.kind is Kind.EJECTED and d.charged)
        return FleetBudget(self.endpoints, (*(t for t in self.ejections_ms if t > now_ms - 60_000), *new))


@dataclass(frozen=True, slots=True)
class Situation:
    """Facts about one service that no detector can know.

    Attributes
    ----------
    data_as_of_ms : newest sample time that went into the verdicts
    scrape_interval_ms : how often observers report
    known_observers, reporting_observers : seen in the last 10 minutes; with a sample within the staleness limit
    partial_result : a query gave less than it should have
    rps : attempts per second of the service now
    rps_peak : most attempts per second and available endpoint in the last 10 minutes; 0 = not known
    overrides : endpoint -> order
    """

    topology: Topology
    data_as_of_ms: int
    scrape_interval_ms: int = 1_000
    known_observers: int = 0
    reporting_observers: int = 0
    partial_result: bool = False
    rps: float = 0.0
    rps_peak: float = 0.0
    overrides: Mapping[str, Override] = field(default_factory=dict)
    fleet: FleetBudget = field(default_factory=FleetBudget)


@dataclass(frozen=True, slots=True)
class EndpointState:
    """Where one endpoint stands, and all that the next step needs to know of its past.

    Attributes
    ----------
    state, since_ms : and since when
    first_seen_ms : for the guard ``age``
    until_ms : ejected until then; 0 otherwise
    ejections : how often it was ejected, less what was forgotten
    flags : evaluations in a row that flagged it
    ramp_step : index into ``EjectionRule.ramp_percent``
    weight : factor of its normal weight, 0 to 1
    calm_since_ms : last flag or last forgotten ejection
    detector : that convicted it last
    blocked_by : guard that refused in the last evaluation, so that an event says it once
    absent_since_ms : its series are gone since then; 0 = present
    forced : ejected by an override
    returning : state to go back to when the series return after ``gone``
    """

    state: State
    since_ms: int
    first_seen_ms: int
    until_ms: int = 0
    ejections: int = 0
    flags: int = 0
    ramp_step: int = 0
    weight: float = 1.0
    calm_since_ms: int = 0
    detector: Detector | None = None
    blocked_by: Guard | None = None
    absent_since_ms: int = 0
    forced: bool = False
    returning: State | None = None


@dataclass(frozen=True, slots=True)
class ServiceState:
    """The state of one service.

    Attributes
    ----------
    started_ms : when judging began (guard ``data_fresh`` waits for the warm-up)
    endpoints : by name
    last_ejection_ms : guard ``rate``
    frozen : data were not fresh in the last evaluation
    incident : name of the common cause in the last evaluation, "" = none
    broken, partial, degraded : what the last evaluation reported, so that an event says it once
    """

    started_ms: int
    endpoints: Mapping[str, EndpointState] = field(default_factory=dict)
    last_ejection_ms: int | None = None
    frozen: bool = False
    incident: str = ""
    observers_split: bool = False
    broken: frozenset[str] = frozenset()
    partial: frozenset[str] = frozenset()
    degraded: frozenset[str] = frozenset()

    def compared(self, endpoints: tuple[str, ...]) -> NDArray[np.bool_]:
        """The comparison set: endpoints that are each other's peers, (H,) bool."""
        known = self.endpoints
        return np.array([name not in known or known[name].state in COMPARED for name in endpoints], dtype=np.bool_)

    def healthy(self, endpoints: tuple[str, ...]) -> NDArray[np.bool_]:
        """Endpoints in state healthy, (H,) bool."""
        known = self.endpoints
        return np.array([name in known and known[name].state is State.HEALTHY for name in endpoints], dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class Decision:
    """Something that happened, with the evidence for it: one event.

    Attributes
    ----------
    endpoint : "" when it concerns the service
    before, after : states of the endpoint; equal when nothing moved
    guard : that refused
    evidence : name -> value, what an event and an explanation show
    repeated : the same was said in the last evaluation; counted, but no new event
    charged : counts against the fleet's budget
    resets : windows of the endpoint must be emptied (``ServiceWindow.clear``)
    restarts : only the counters of probation must be (``ServiceWindow.restart``)
    """

    time_ms: int
    kind: Kind
    service: str
    endpoint: str = ""
    before: State | None = None
    after: State | None = None
    until_ms: int = 0
    weight: float = 1.0
    detector: Detector | None = None
    guard: Guard | None = None
    evidence: Mapping[str, Scalar] = field(default_factory=dict)
    repeated: bool = False
    charged: bool = False
    resets: bool = False
    restarts: bool = False
