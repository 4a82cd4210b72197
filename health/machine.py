"""Where endpoints stand: suspect, ejected, on probation, ramping up, healthy again. A pure state machine.

``Ejector.step`` takes a state and one evaluation and gives the next state and what happened; nothing is changed in
place, nothing is read from a clock, and the only chance (jitter) comes from a hash. So a replay with the same inputs
decides the same. Source: design/health.md section 7.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from health.policy import Policy, Publish, Rule
from health.step import Step
from health.verdicts import Decision, EndpointState, ServiceState, Situation, State, Verdicts


@dataclass(frozen=True, slots=True)
class Publication:
    """How an endpoint is shown to control planes.

    Attributes
    ----------
    verdict : HEALTHY, DEGRADED (on its way back), EJECT or UNKNOWN
    health_status : for EDS, HEALTHY or UNHEALTHY; never EDS's DEGRADED, which means another thing
    weight : factor of its normal weight, 0 to 1
    """

    verdict: str
    health_status: str
    weight: float


_VERDICTS = {
    State.UNKNOWN: "UNKNOWN",
    State.HEALTHY: "HEALTHY",
    State.SUSPECT: "HEALTHY",
    State.EJECTED: "EJECT",
    State.PROBATION: "DEGRADED",
    State.RAMP: "DEGRADED",
}


def publication(state: EndpointState, policy: Policy) -> Publication:
    """What to publish about an endpoint in that state."""
    out = state.state is State.EJECTED and policy.ejection.publish is Publish.UNHEALTHY
    return Publication(_VERDICTS[state.state], "UNHEALTHY" if out else "HEALTHY", state.weight)


def resumed(state: ServiceState, now_ms: int) -> ServiceState:
    """The state to go on with after a restart: everything is unknown, but ejections keep their ``until``.

    An endpoint that was on its way back starts probation anew.
    """
    endpoints = {}
    for name, old in state.endpoints.items():
        if old.state is State.EJECTED or old.state is State.UNKNOWN:
            endpoints[name] = replace(old, flags=0, blocked_by=None)
        elif old.state in (State.PROBATION, State.RAMP):
            endpoints[name] = replace(old, state=State.EJECTED, until_ms=now_ms, weight=0.0, flags=0, blocked_by=None)
        else:
            endpoints[name] = replace(old, state=State.UNKNOWN, since_ms=now_ms, flags=0, blocked_by=None)
    return ServiceState(started_ms=now_ms, endpoints=endpoints, last_ejection_ms=state.last_ejection_ms)


class Ejector:
    """The state machine of one service under one policy.

    Parameters
    ----------
    service : name, part of the jitter's seed and of every decision
    """

    __slots__ = ("policy", "service")

    def __init__(self, service: str, policy: Policy) -> None:
        self.service = service
        self.policy = policy

    def step(
        self, state: ServiceState, verdicts: Verdicts, situation: Situation, now_ms: int
    ) -> tuple[ServiceState, tuple[Decision, ...]]:
        """One evaluation: at most one change of state per endpoint.

        Parameters
        ----------
        state : from the last step, or ``ServiceState(started_ms)``
        verdicts, situation : of this evaluation, aligned with each other

        Returns
        -------
        state, decisions : what follows, and what happened in order. Decisions with ``resets`` or ``restarts`` ask the
            caller to empty the endpoint's windows or counters before the next evaluation.
        """
        assert verdicts.endpoints == situation.topology.endpoints
        step = Step(self.service, self.policy, self.ejection_ms, state, verdicts, situation, now_ms)
        return step.run()

    def jitter(self, endpoint: str, ejections: int) -> float:
        """A number in [0, 1) that only the seed, the names and the count decide."""
        text = f"{self.policy.seed}\0{self.service}\0{endpoint}\0{ejections}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2.0**64

    def ejection_ms(self, endpoint: str, ejections: int) -> int:
        """How long the ``ejections``-th ejection of an endpoint lasts, with back-off and jitter."""
        chance = self.jitter(endpoint, ejections)
        if self.policy.rule is Rule.ENVOY:
            envoy = self.policy.envoy
            most = max(envoy.max_ejection_time_ms, envoy.base_ejection_time_ms)
            return min(envoy.base_ejection_time_ms * ejections, most) + round(
                envoy.max_ejection_time_jitter_ms * chance
            )
        rule = self.policy.ejection
        return round(min(rule.base_ms * ejections, rule.max_ms) * (1 - rule.jitter + 2 * rule.jitter * chance))
