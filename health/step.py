"""One evaluation of one service: who moves, who is accused, what the guards let happen, what is said about it.

The rules of design/health.md section 7, endpoint by endpoint; :mod:`health.machine` is the way in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from health.evidence import summary
from health.guards import Candidate, Docket, Evidence, not_fresh, refusal
from health.policy import Policy, Publish
from health.verdicts import (
    Action,
    Decision,
    Detector,
    EndpointState,
    Guard,
    Kind,
    Override,
    Scalar,
    ServiceState,
    Situation,
    State,
    Verdicts,
)
from health.wilson import wilson_bounds

_WEIGHT_OF_PUBLISHED_EJECTION = 0.01
"""``publish: weight``: healthy at weight 1 of 100, which still yields evidence and does not count for panic."""


class Step:
    """One step under way: the docket of the guards is its working copy of the states.

    Parameters
    ----------
    service, policy : whose
    ejection_ms : (endpoint name, number of ejections) -> how long it lasts
    """

    __slots__ = (
        "_candidates",
        "_decisions",
        "_docket",
        "_ejection_ms",
        "_now",
        "_old",
        "_policy",
        "_service",
        "_situation",
        "_verdicts",
    )

    def __init__(
        self,
        service: str,
        policy: Policy,
        ejection_ms: Callable[[str, int], int],
        old: ServiceState,
        verdicts: Verdicts,
        situation: Situation,
        now_ms: int,
    ) -> None:
        self._service = service
        self._policy = policy
        self._ejection_ms = ejection_ms
        self._old = old
        self._verdicts = verdicts
        self._situation = situation
        self._now = now_ms
        self._decisions: list[Decision] = []
        self._candidates: list[tuple[Candidate, Detector]] = []
        orders = situation.overrides
        self._docket = Docket(
            policy=self._policy,
            verdicts=verdicts,
            situation=situation,
            now_ms=now_ms,
            started_ms=old.started_ms,
            states=tuple(old.endpoints.get(name) for name in verdicts.endpoints),
            last_ejection_ms=old.last_ejection_ms,
            spent=situation.fleet.spent(now_ms),
            overrides=tuple(
                order if (order := orders.get(name)) is not None and order.until_ms > now_ms else None
                for name in verdicts.endpoints
            )
            if orders
            else (),
        )

    def run(self) -> tuple[ServiceState, tuple[Decision, ...]]:
        """The state that follows, and what happened."""
        stale = not_fresh(self._docket)
        self._announce_freshness(stale)
        for endpoint in range(len(self._verdicts.endpoints)):
            if not self._obey(endpoint):
                if stale is None:
                    self._move(endpoint)
                else:
                    self._hold(endpoint, stale)
        after = replace(self._old, frozen=stale is not None)
        if stale is None:
            after = self._announce(after)
        self._decide()
        listed = zip(self._verdicts.endpoints, self._docket.states, strict=True)
        states = {**self._kept(), **{name: known for name, known in listed if known is not None}}
        if states != self._old.endpoints or self._docket.last_ejection_ms != self._old.last_ejection_ms:
            after = replace(after, endpoints=states, last_ejection_ms=self._docket.last_ejection_ms)
        return after, tuple(self._decisions)

    # -- endpoints -------------------------------------------------------------------------------------------------

    def _obey(self, endpoint: int) -> bool:
        """Follow an override; True when nothing else may move the endpoint."""
        order = self._docket.overrides[endpoint] if self._docket.overrides else None
        known = self._docket.states[endpoint]
        if order is None:
            if known is not None and known.forced and known.state is State.EJECTED:
                self._to_probation(endpoint, known, Detector.OVERRIDE)
                return True
            return False
        if order.action is Action.FREEZE:
            return True
        if order.action is Action.FORCE_EJECTED:
            if known is not None and known.state is State.EJECTED:
                if not known.forced or known.until_ms != order.until_ms:
                    self._put(endpoint, replace(known, forced=True, until_ms=order.until_ms))
            else:
                self._candidates.append((Candidate(endpoint, 0.0, forced=True), Detector.OVERRIDE))
            return True
        if known is not None and known.state in (State.EJECTED, State.PROBATION, State.RAMP):
            self._become(
                endpoint,
                known,
                State.HEALTHY,
                Kind.OVERRIDE,
                self._order(order),
                detector=Detector.OVERRIDE,
                resets=True,
            )
            return True
        return False

    def _hold(self, endpoint: int, stale: Evidence) -> None:
        """Without data only a sentence that is over ends."""
        known = self._docket.states[endpoint]
        if known is None:
            if self._verdicts.present[endpoint]:
                self._put(endpoint, self._new())
        elif known.state is State.EJECTED and self._now >= known.until_ms:
            self._to_probation(endpoint, known, known.detector)
        elif endpoint in self._verdicts.leading and known.state in (State.HEALTHY, State.SUSPECT, State.UNKNOWN):
            self._block(endpoint, Guard.DATA_FRESH, stale, self._evidence(endpoint))

    def _move(self, endpoint: int) -> None:
        known = self._docket.states[endpoint]
        present = bool(self._verdicts.present[endpoint])
        if known is None:
            if not present:
                return  # listed, but never seen
            known = self._new()
            self._put(endpoint, known)
        if not present and known.state is not State.EJECTED:
            self._missing(endpoint, known)
            return
        flagged = endpoint in self._verdicts.leading
        if endpoint in self._verdicts.partial:
            self._partial(endpoint)
        if known.state is State.UNKNOWN:
            self._unknown(endpoint, known, flagged)
        elif known.state is State.EJECTED:
            if self._now >= known.until_ms:
                self._to_probation(endpoint, known, known.detector)
        elif known.state is State.PROBATION:
            self._probation(endpoint, known)
        elif known.state is State.RAMP:
            self._ramp(endpoint, known, flagged)
        elif flagged:
            self._flagged(endpoint, known)
        elif known.state is State.SUSPECT:
            self._become(endpoint, known, State.HEALTHY, Kind.CLEARED, {})
        else:
            self._forget(endpoint, known)

    def _new(self) -> EndpointState:
        return EndpointState(State.UNKNOWN, since_ms=self._now, first_seen_ms=self._now)

    def _missing(self, endpoint: int, known: EndpointState) -> None:
        if known.state is State.UNKNOWN:
            if not known.absent_since_ms:
                self._put(endpoint, replace(known, absent_since_ms=self._now))
            elif self._now - known.absent_since_ms > self._policy.ejection.keep_ms:
                self._docket = replace(self._docket, states=_with(self._docket.states, endpoint, None))
            return
        back = known.state in (State.PROBATION, State.RAMP)
        if back and self._now - known.since_ms < self._policy.ejection.gone_ms:
            return  # it was ejected: without traffic its series may have ended, and need a moment to begin again
        self._become(
            endpoint,
            replace(known, absent_since_ms=self._now, returning=State.EJECTED if back else None),
            State.UNKNOWN,
            Kind.GONE,
            {},
            before=known.state,
        )

    def _unknown(self, endpoint: int, known: EndpointState, flagged: bool) -> None:
        if known.returning is not None:  # registering again does not wash an ejection away
            known = replace(known, returning=None, absent_since_ms=0)
            if known.until_ms > self._now:
                self._become(
                    endpoint, known, State.EJECTED, Kind.RETURNED, {}, weight=self._ejected_weight, resets=True
                )
            else:
                self._to_probation(endpoint, known, known.detector, kind=Kind.RETURNED)
            return
        if known.absent_since_ms:  # back from nowhere: as young as a new one
            known = replace(known, absent_since_ms=0, first_seen_ms=self._now)
            self._put(endpoint, known)
        if flagged:
            self._flagged(endpoint, known)
        elif self._verdicts.attempts_60s[endpoint] >= self._policy.ejection.healthy_requests:
            self._put(endpoint, replace(known, state=State.HEALTHY, since_ms=self._now, calm_since_ms=self._now))

    def _flagged(self, endpoint: int, known: EndpointState) -> None:
        flags = known.flags + 1
        evidence = self._evidence(endpoint)
        if known.state is State.SUSPECT:
            self._put(endpoint, replace(known, flags=flags, calm_since_ms=self._now))
        else:
            self._become(
                endpoint,
                replace(known, flags=flags, calm_since_ms=self._now),
                State.SUSPECT,
                Kind.SUSPECT,
                evidence,
                detector=self._detector(endpoint),
                before=known.state,
            )
        if endpoint in self._verdicts.hard or flags >= self._policy.error.consecutive:
            self._accuse(endpoint, self._detector(endpoint))

    def _forget(self, endpoint: int, known: EndpointState) -> None:
        calm_ms = self._now - max(known.calm_since_ms, known.since_ms)
        if known.ejections and calm_ms >= self._policy.ejection.decay_ms:
            self._put(endpoint, replace(known, ejections=known.ejections - 1, calm_since_ms=self._now))

    def _probation(self, endpoint: int, known: EndpointState) -> None:
        errors, attempts, failed, evidence = self._probe(endpoint)
        rule = self._policy.ejection.probe
        if failed:
            self._candidates.append((Candidate(endpoint, 0.0, again=True), Detector.PROBE))
            return
        upper = wilson_bounds(errors, attempts, rule.z)[1]
        passed = attempts >= rule.min_requests and upper < self._verdicts.baseline_hi + rule.pass_margin
        if passed or (errors == 0 and self._now - known.since_ms >= rule.timeout_ms):
            weight = self._policy.ejection.ramp_percent[0] / 100
            self._become(
                endpoint,
                replace(known, ramp_step=0, blocked_by=None),
                State.RAMP,
                Kind.RAMP,
                evidence,
                weight=weight,
                detector=Detector.PROBE,
                resets=True,
            )

    def _ramp(self, endpoint: int, known: EndpointState, flagged: bool) -> None:
        _, _, failed, evidence = self._probe(endpoint)
        flags = known.flags + 1 if flagged else 0
        if failed or endpoint in self._verdicts.hard or flags >= self._policy.error.consecutive:
            self._put(endpoint, replace(known, flags=flags))
            self._accuse(endpoint, self._detector(endpoint) if flagged else Detector.PROBE)
            return
        if flags != known.flags:
            self._put(endpoint, replace(known, flags=flags))
        steps = self._policy.ejection.ramp_percent
        if flagged or self._now - known.since_ms < self._policy.ejection.ramp_step_ms:
            return
        at = known.ramp_step + 1
        if at == len(steps):
            self._become(
                endpoint,
                replace(known, flags=0, ramp_step=0, blocked_by=None, calm_since_ms=self._now),
                State.HEALTHY,
                Kind.RECOVERED,
                evidence,
                resets=True,
            )
        else:
            self._become(
                endpoint,
                replace(known, flags=0, ramp_step=at, blocked_by=None),
                State.RAMP,
                Kind.RAMP,
                evidence,
                weight=steps[at] / 100,
                restarts=True,
            )

    def _probe(self, endpoint: int) -> tuple[float, float, bool, dict[str, Scalar]]:
        """Errors and attempts since the counters were restarted, whether that is a clear failure, and the evidence."""
        rule = self._policy.ejection.probe
        errors = float(self._verdicts.probe_errors[endpoint])
        attempts = float(self._verdicts.probe_attempts[endpoint])
        limit = self._verdicts.baseline_hi + rule.fail_margin
        failed = errors >= rule.min_errors and wilson_bounds(errors, attempts, rule.z)[0] > limit
        return errors, attempts, failed, {
            "errors": int(errors),
            "attempts": int(attempts),
            "baseline_hi": self._verdicts.baseline_hi,
        }  # fmt: skip

    def _to_probation(
        self, endpoint: int, known: EndpointState, detector: Detector | None, *, kind: Kind = Kind.PROBATION
    ) -> None:
        probe, topology = self._policy.ejection.probe, self._situation.topology
        weight = probe.weight_percent / 100
        usual = self._situation.rps / max(1, sum(topology.listed))
        if usual > 0:
            wanted = probe.min_requests * 1000 / (probe.target_ms * usual)
            weight = min(max(wanted, weight), probe.max_weight_percent / 100)
        self._become(
            endpoint,
            replace(known, until_ms=0, flags=0, forced=False, blocked_by=None),
            State.PROBATION,
            kind,
            {"ejections": known.ejections},
            weight=weight,
            detector=detector,
            before=known.state,
            resets=True,
        )

    # -- ejections -------------------------------------------------------------------------------------------------

    def _accuse(self, endpoint: int, detector: Detector) -> None:
        excess = 0.0
        if endpoint in self._verdicts.leading:
            finding = self._verdicts.findings[self._verdicts.leading[endpoint]]
            excess = float(finding.stats.column("excess")[endpoint])
        self._candidates.append((Candidate(endpoint, excess), detector))

    def _decide(self) -> None:
        """Ask the guards about each candidate: orders first, then failed probes, then the worst first."""
        rank = {endpoint: i for i, endpoint in enumerate(self._verdicts.flagged)}
        for candidate, detector in sorted(
            self._candidates,
            key=lambda c: (not c[0].forced, not c[0].again, rank.get(c[0].endpoint, len(rank)), c[0].endpoint),
        ):
            refused = refusal(self._docket, candidate)
            if refused is None:
                self._eject(candidate, detector)
            else:
                endpoint = candidate.endpoint
                evidence = self._probe(endpoint)[3] if detector is Detector.PROBE else self._evidence(endpoint)
                self._block(endpoint, *refused, evidence)

    def _eject(self, candidate: Candidate, detector: Detector) -> None:
        endpoint = candidate.endpoint
        known = self._docket.states[endpoint] or self._new()
        name = self._verdicts.endpoints[endpoint]
        count = known.ejections + (not candidate.forced)
        until = self._now + self._ejection_ms(name, count)
        evidence: dict[str, Scalar] = {}
        order = self._docket.overrides[endpoint] if self._docket.overrides else None
        if candidate.forced and order is not None:
            until = order.until_ms
            evidence = self._order(order)
        elif detector is Detector.PROBE:
            evidence = self._probe(endpoint)[3]
        else:
            evidence = self._evidence(endpoint)
        evidence |= {"ejections": count, "seed": self._policy.seed}
        charged = not candidate.again and not candidate.forced
        weight = self._ejected_weight
        new = replace(
            known,
            state=State.EJECTED,
            since_ms=self._now,
            until_ms=until,
            ejections=count,
            flags=0,
            ramp_step=0,
            weight=weight,
            calm_since_ms=self._now,
            detector=detector,
            blocked_by=None,
            forced=candidate.forced,
        )
        self._docket = self._docket.ejected(endpoint, new, charged=charged)
        self._say(
            Kind.EJECTED,
            endpoint,
            evidence,
            before=known.state,
            after=State.EJECTED,
            until_ms=until,
            weight=weight,
            detector=detector,
            charged=charged,
            resets=True,
        )
        counted = [h for h in range(len(self._docket.states)) if self._docket.counts(h)]
        out = sum(self._docket.is_out(h) for h in counted)
        self._say(
            Kind.CAPACITY_LOST,
            None,
            {"unavailable": out, "total": len(counted), "share": out / max(1, len(counted))},
        )

    def _block(self, endpoint: int, guard: Guard, refusal: Evidence, evidence: Mapping[str, Scalar]) -> None:
        known = self._docket.states[endpoint]
        repeated = known is not None and known.blocked_by is guard
        if known is not None and not repeated:
            self._put(endpoint, replace(known, blocked_by=guard))
        state = self._docket.state(endpoint)
        self._say(
            Kind.BLOCKED,
            endpoint,
            {**evidence, **{f"guard_{key}": value for key, value in refusal.items()}},
            before=state,
            after=state,
            weight=1.0 if known is None else known.weight,
            detector=self._detector(endpoint) if endpoint in self._verdicts.leading else None,
            guard=guard,
            repeated=repeated,
        )

    # -- the service -----------------------------------------------------------------------------------------------

    def _announce_freshness(self, stale: Evidence | None) -> None:
        if stale is not None and not self._old.frozen:
            self._say(Kind.FREEZE, None, stale, guard=Guard.DATA_FRESH)
        elif stale is None and self._old.frozen:
            self._say(Kind.THAW, None, {})

    def _announce(self, after: ServiceState) -> ServiceState:
        """Say what is new about observers, groups and the service as a whole."""
        verdicts, topology, old = self._verdicts, self._situation.topology, self._old
        broken = frozenset(topology.observers[p] for p in verdicts.broken)
        for p, row in verdicts.broken.items():
            if topology.observers[p] not in old.broken:
                self._say(Kind.OBSERVER_BROKEN, None, {"observer": topology.observers[p], **row})
        if verdicts.observers_split and not old.observers_split:
            self._say(Kind.OBSERVERS_SPLIT, None, {})
        degraded = frozenset(f"{group.label}={group.value}" for group in verdicts.degraded)
        for group in verdicts.degraded:
            if f"{group.label}={group.value}" not in old.degraded:
                kind = Kind.ZONE_DEGRADED if group.label == "zone" else Kind.VERSION_DEGRADED
                self._say(kind, None, {group.label: group.value, **group.evidence})
        incident = ""
        rising = bool(self._candidates) and verdicts.rising_share >= self._policy.guards.rising_share
        if verdicts.incident or rising:
            incident = "cluster-wide"
            if not old.incident:
                self._say(Kind.INCIDENT, None, {"scope": incident, "rising_share": verdicts.rising_share})
        partial = frozenset(verdicts.endpoints[h] for h in verdicts.partial)
        return replace(
            after,
            broken=broken,
            observers_split=verdicts.observers_split,
            degraded=degraded,
            incident=incident,
            partial=partial,
        )

    def _partial(self, endpoint: int) -> None:
        at = self._verdicts.partial[endpoint]
        known = self._docket.state(endpoint)
        self._say(
            Kind.PARTIAL_VIEW,
            endpoint,
            summary(self._verdicts.findings[at], endpoint, self._policy),
            before=known,
            after=known,
            detector=self._verdicts.findings[at].detector,
            guard=Guard.PARTIAL_VIEW,
            repeated=self._verdicts.endpoints[endpoint] in self._old.partial,
        )

    def _kept(self) -> Mapping[str, EndpointState]:
        """Endpoints that the caller no longer lists, as long as their past is to be remembered."""
        listed = set(self._verdicts.endpoints)
        keep_ms = self._policy.ejection.keep_ms
        kept = {}
        for name, known in self._old.endpoints.items():
            if name in listed:
                continue
            since = known.absent_since_ms or self._now
            if self._now - since <= keep_ms:
                back = known.state in (State.EJECTED, State.PROBATION, State.RAMP)
                kept[name] = replace(
                    known,
                    state=State.UNKNOWN,
                    absent_since_ms=since,
                    returning=State.EJECTED if back else known.returning,
                )
        return kept

    @property
    def _ejected_weight(self) -> float:
        return _WEIGHT_OF_PUBLISHED_EJECTION if self._policy.ejection.publish is Publish.WEIGHT else 0.0

    # -- small things ----------------------------------------------------------------------------------------------

    def _put(self, endpoint: int, new: EndpointState) -> None:
        self._docket = replace(self._docket, states=_with(self._docket.states, endpoint, new))

    def _become(
        self,
        endpoint: int,
        known: EndpointState,
        state: State,
        kind: Kind,
        evidence: Mapping[str, Scalar],
        *,
        weight: float = 1.0,
        detector: Detector | None = None,
        before: State | None = None,
        resets: bool = False,
        restarts: bool = False,
    ) -> None:
        if state is State.HEALTHY:
            known = replace(known, flags=0, until_ms=0, forced=False, blocked_by=None, calm_since_ms=self._now)
        self._put(endpoint, replace(known, state=state, since_ms=self._now, weight=weight))
        self._say(
            kind,
            endpoint,
            evidence,
            before=before or known.state,
            after=state,
            weight=weight,
            detector=detector,
            resets=resets,
            restarts=restarts,
        )

    def _say(
        self,
        kind: Kind,
        endpoint: int | None,
        evidence: Evidence,
        *,
        before: State | None = None,
        after: State | None = None,
        until_ms: int = 0,
        weight: float = 1.0,
        detector: Detector | None = None,
        guard: Guard | None = None,
        repeated: bool = False,
        charged: bool = False,
        resets: bool = False,
        restarts: bool = False,
    ) -> None:
        name = "" if endpoint is None else self._verdicts.endpoints[endpoint]
        self._decisions.append(
            Decision(
                self._now, kind, self._service, name, before, after, until_ms, weight, detector, guard,
                evidence, repeated, charged, resets, restarts,
            )
        )  # fmt: skip

    def _detector(self, endpoint: int) -> Detector:
        return self._verdicts.findings[self._verdicts.leading[endpoint]].detector

    def _evidence(self, endpoint: int) -> dict[str, Scalar]:
        if endpoint not in self._verdicts.leading:
            return {}
        return summary(self._verdicts.findings[self._verdicts.leading[endpoint]], endpoint, self._policy)

    @staticmethod
    def _order(order: Override) -> dict[str, Scalar]:
        return {"action": str(order.action), "author": order.author, "comment": order.comment}


def _with(
    states: tuple[EndpointState | None, ...], endpoint: int, new: EndpointState | None
) -> tuple[EndpointState | None, ...]:
    return (*states[:endpoint], new, *states[endpoint + 1 :])
