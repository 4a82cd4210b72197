"""What forbids an ejection: nine guards, asked in one order; the first that refuses is named with its evidence.

Source: design/health.md section 8. A guard is a pure function of a :class:`Docket` and a candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from health.policy import Policy, Rule
from health.verdicts import Action, EndpointState, Guard, Override, Scalar, Situation, State, Verdicts

Evidence = Mapping[str, Scalar]

_OUT = frozenset({State.EJECTED, State.PROBATION})
"""States that count as unavailable: on probation almost nothing is sent, and it may have to go again at once."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An endpoint that is to be ejected.

    Attributes
    ----------
    endpoint : its number
    excess : risk difference of the evidence
    again : on probation, hence already counted as unavailable
    forced : ordered by a person
    """

    endpoint: int
    excess: float
    again: bool = False
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Docket:
    """All that guards look at; :meth:`ejected` gives the docket after an ejection in the same step.

    Attributes
    ----------
    states : (H,) as they stand now, aligned with ``verdicts.endpoints``
    last_ejection_ms : of this service
    spent : ejections of the whole fleet in the last minute
    """

    policy: Policy
    verdicts: Verdicts
    situation: Situation
    now_ms: int
    started_ms: int
    states: tuple[EndpointState | None, ...]
    last_ejection_ms: int | None = None
    spent: int = 0
    overrides: tuple[Override | None, ...] = field(default=())

    def ejected(self, endpoint: int, state: EndpointState, *, charged: bool) -> Docket:
        """The docket after ``endpoint`` moved to ``state``."""
        states = (*self.states[:endpoint], state, *self.states[endpoint + 1 :])
        if not charged:
            return replace(self, states=states)
        return replace(self, states=states, last_ejection_ms=self.now_ms, spent=self.spent + 1)

    def state(self, endpoint: int) -> State:
        """State of an endpoint, unknown when it has none yet."""
        known = self.states[endpoint]
        return State.UNKNOWN if known is None else known.state

    def counts(self, endpoint: int) -> bool:
        """Whether the endpoint belongs to the service for caps."""
        return self.situation.topology.listed[endpoint]

    def is_out(self, endpoint: int) -> bool:
        """Unavailable by us or by anybody else."""
        return self.state(endpoint) in _OUT or self.situation.topology.unavailable[endpoint]


def not_fresh(docket: Docket) -> Evidence | None:
    """Guard 1, ``data_fresh``: too little or too old data to decide anything. Holds for the service as a whole."""
    rule, situation = docket.policy.guards, docket.situation
    running_ms = docket.now_ms - docket.started_ms
    if running_ms < rule.warmup_ms:
        return {"reason": "warm-up", "running_ms": running_ms, "needs_ms": rule.warmup_ms}
    age_ms = docket.now_ms - situation.data_as_of_ms
    limit_ms = rule.staleness_factor * (docket.policy.eval_interval_ms + situation.scrape_interval_ms)
    if age_ms >= limit_ms:
        return {"reason": "stale data", "age_ms": age_ms, "limit_ms": limit_ms}
    if situation.reporting_observers < rule.min_reporting * situation.known_observers:
        return {
            "reason": "observers missing",
            "reporting": situation.reporting_observers,
            "known": situation.known_observers,
        }
    if situation.partial_result:
        return {"reason": "partial result"}
    return None


def common_cause(docket: Docket, candidate: Candidate) -> Evidence | None:
    """Guard 2: most of the service, or a whole zone or version, got worse together."""
    verdicts = docket.verdicts
    if verdicts.incident:
        return {"scope": "cluster-wide", "reason": "more than half of the endpoints would be flagged"}
    if verdicts.rising_share >= docket.policy.guards.rising_share:
        return {
            "scope": "cluster-wide",
            "rising_share": verdicts.rising_share,
            "limit": docket.policy.guards.rising_share,
        }
    for group in verdicts.degraded:
        if candidate.endpoint in group.members:
            return {"scope": group.label, "value": group.value, "endpoints": len(group.members)}
    return None


def partial_view(docket: Docket, candidate: Candidate) -> Evidence | None:
    """Guard 3: only observers in a minority of the traffic see it fail."""
    verdicts = docket.verdicts
    if candidate.endpoint in verdicts.partial:
        finding = verdicts.findings[verdicts.partial[candidate.endpoint]]
        seen = float(finding.stats.column("agreement")[candidate.endpoint])
        return {"agreement": seen, "needs": docket.policy.agreement}
    return None


def cap(docket: Docket, candidate: Candidate) -> Evidence | None:
    """Guard 4: what is unavailable afterwards stays below the panic threshold, in the service, priority and zone."""
    topology, rule = docket.situation.topology, docket.policy.guards
    everyone = [h for h in range(len(topology.endpoints)) if docket.counts(h)]
    own_priority, own_zone = topology.priorities[candidate.endpoint], topology.zones[candidate.endpoint]
    scopes = [
        ("service", everyone, 0),
        ("priority", [h for h in everyone if topology.priorities[h] == own_priority], 0),
    ]
    if own_zone:
        scopes.append(("zone", [h for h in everyone if topology.zones[h] == own_zone], 1))
    for scope, members, least in scopes:
        after = sum(docket.is_out(h) or h == candidate.endpoint for h in members)
        total = len(members)
        allowed = max(least, rule.cap_percent * total // 100)
        if total == 2 and rule.allow_one_of_two:
            allowed = 1
        if docket.policy.rule is Rule.ENVOY and scope == "service":
            envoy = docket.policy.envoy
            least = 1 if envoy.always_eject_one_host else 0
            allowed = min(allowed, max(least, envoy.max_ejection_percent * total // 100))
        if after > allowed:
            counted = "listed" if topology.told else "seen in metrics, nobody lists them"
            return {
                "scope": scope,
                "unavailable_after": after,
                "allowed": allowed,
                "total": total,
                "counted": counted,
            }
    return None


def last_healthy(docket: Docket, candidate: Candidate) -> Evidence | None:
    """Guard 5: somebody is left who is known to work."""
    left = sum(docket.counts(h) and _works(docket, h) for h in range(len(docket.states)) if h != candidate.endpoint)
    return None if left else {"healthy_after": 0}


def _works(docket: Docket, endpoint: int) -> bool:
    state = docket.state(endpoint)
    if docket.is_out(endpoint) or not docket.verdicts.present[endpoint]:
        return False
    if state is State.UNKNOWN:
        return docket.verdicts.attempts_60s[endpoint] > 0 and endpoint not in docket.verdicts.leading
    return state is not State.SUSPECT or endpoint not in docket.verdicts.leading


def capacity(docket: Docket, candidate: Candidate) -> Evidence | None:
    """Guard 6: the others can take its load, unless it does so little that it takes none off them."""
    rule, situation = docket.policy.guards, docket.situation
    if candidate.excess >= rule.capacity_waiver or situation.rps_peak <= 0:
        return None
    left = sum(
        docket.counts(h) and not docket.is_out(h) and bool(docket.verdicts.present[h])
        for h in range(len(docket.states))
        if h != candidate.endpoint
    )
    load = situation.rps / max(1, left)
    if load <= rule.capacity_factor * situation.rps_peak:
        return None
    return {"rps_per_endpoint_after": load, "rps_per_endpoint_peak": situation.rps_peak, "factor": rule.capacity_factor}


def rate(docket: Docket, _: Candidate) -> Evidence | None:
    """Guard 7: not many at once, in this service and in the fleet."""
    rule = docket.policy.guards
    if docket.last_ejection_ms is not None:
        since_ms = docket.now_ms - docket.last_ejection_ms
        if since_ms < rule.service_gap_ms:
            return {"scope": "service", "since_last_ms": since_ms, "gap_ms": rule.service_gap_ms}
    budget = max(1, int(rule.fleet_percent_per_minute * docket.situation.fleet.endpoints / 100))
    if docket.spent >= budget:
        return {"scope": "fleet", "ejections_last_minute": docket.spent, "budget": budget}
    return None


def age(docket: Docket, candidate: Candidate) -> Evidence | None:
    """Guard 8: new endpoints and rollouts are judged by their version first (D6)."""
    if docket.situation.topology.deploying[candidate.endpoint]:
        return {"reason": "deploy in progress"}
    state = docket.states[candidate.endpoint]
    age_ms = docket.now_ms - (docket.now_ms if state is None else state.first_seen_ms)
    if age_ms < docket.policy.guards.min_age_ms:
        return {"reason": "young", "age_ms": age_ms, "needs_ms": docket.policy.guards.min_age_ms}
    return None


def override(docket: Docket, candidate: Candidate) -> Evidence | None:
    """Guard 9: a person ordered otherwise."""
    order = docket.overrides[candidate.endpoint] if docket.overrides else None
    if order is not None and order.action in (Action.FREEZE, Action.FORCE_HEALTHY):
        return {"action": str(order.action), "author": order.author, "comment": order.comment}
    return None


def _fresh(docket: Docket, _: Candidate) -> Evidence | None:
    return not_fresh(docket)


GUARDS: tuple[tuple[Guard, Callable[[Docket, Candidate], Evidence | None]], ...] = (
    (Guard.DATA_FRESH, _fresh),
    (Guard.COMMON_CAUSE, common_cause),
    (Guard.PARTIAL_VIEW, partial_view),
    (Guard.CAP, cap),
    (Guard.LAST_HEALTHY, last_healthy),
    (Guard.CAPACITY, capacity),
    (Guard.RATE, rate),
    (Guard.AGE, age),
    (Guard.OVERRIDE, override),
)
"""In the order of section 8."""

_AGAIN = frozenset({Guard.DATA_FRESH, Guard.COMMON_CAUSE, Guard.CAP, Guard.LAST_HEALTHY, Guard.OVERRIDE})
"""Asked when an endpoint on probation failed: it takes no capacity and no budget, having neither."""

_FORCED = frozenset({Guard.LAST_HEALTHY})
"""Asked when a person orders an ejection."""


def refusal(docket: Docket, candidate: Candidate) -> tuple[Guard, Evidence] | None:
    """The first guard that refuses to eject the candidate, with its evidence; None when all let it pass."""
    for guard, check in GUARDS:
        if candidate.forced and guard not in _FORCED:
            continue
        if candidate.again and guard not in _AGAIN:
            continue
        evidence = check(docket, candidate)
        if evidence is not None:
            return guard, evidence
    return None


def review(docket: Docket, candidate: Candidate) -> list[tuple[Guard, Evidence | None]]:
    """Every guard's answer about a candidate, for an explanation; None = it would let it pass."""
    return [(guard, check(docket, candidate)) for guard, check in GUARDS]
