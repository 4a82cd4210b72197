"""The loop: every second, read what is new, judge each service, let the guards decide, remember, publish.

Everything here runs on one thread; :class:`health.runner.HealthRunner` brings ticks and requests there.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from health.arrivals import ArrivalLog, facts_digest
from health.board import EndpointView, HealthBoard, Revision, ServiceView
from health.detectors import detect
from health.events import EventList, decision_data, note_data, time_text
from health.explain import Evaluation
from health.journal import Journal, Memory, StoredOverride
from health.machine import publication, resumed
from health.mapping import SeriesMapping
from health.policy import Policy
from health.policy_text import parse_policy, policy_data
from health.series import VerdictWriter
from health.service import Service
from health.signals import LOOKBACK_MS, Frames, SeriesReader
from health.topology import Fact, Facts
from health.verdicts import Decision, FleetBudget, Kind, Override, Scalar, ServiceState, Situation, State, Topology
from health.window import HISTORY_S

log = logging.getLogger(__name__)

SERVICES_MAX = 10_000
"""More services than any mesh has: a wrong mapping must not take all memory."""
_TIDY_MS = 60_000
_QUIET = frozenset({State.HEALTHY, State.UNKNOWN})


Listener = Callable[[Sequence[Mapping[str, Any]]], None]
"""Takes events, JSON-ready, oldest first."""


class NotFoundError(LookupError):
    """No such service, endpoint, policy or override."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What to read, and how to judge.

    Attributes
    ----------
    policies : by name; none = the default policy
    only : judge this service alone; "" = all
    fleet : endpoints that the whole fleet has at least (guard ``rate``)
    """

    mappings: tuple[SeriesMapping, ...]
    policies: Mapping[str, Policy] = field(default_factory=dict)
    only: str = ""
    fleet: int = 0


class HealthLoop:
    """Judges all services of one tenant. Not thread-safe.

    Parameters
    ----------
    frames : the tenant that is read
    settings : mappings and the configured policies
    journal : what survives
    writer : None = verdicts are not written back
    listener : is given new events, and must return at once
    arrivals : None = replays will not know when samples arrived
    now_ms : of the start

    Attributes
    ----------
    board, events : may be read from any thread
    services : by name
    evaluations : the last one of each service
    overrides : orders in force
    seconds : wall time of the last tick, set by the runner
    """

    def __init__(
        self,
        frames: Frames,
        settings: LoopSettings,
        journal: Journal,
        now_ms: int,
        writer: VerdictWriter | None = None,
        listener: Listener | None = None,
        arrivals: ArrivalLog | None = None,
    ) -> None:
        self._frames = frames
        self._journal = journal
        self._writer = writer
        self._now = now_ms
        self._started = now_ms
        memory = journal.load(now_ms)
        self.board = HealthBoard(Revision(memory.revision.epoch, memory.revision.counter + 1))
        self.events = EventList(journal.events(), memory.events)
        self.services: dict[str, Service] = {}
        self.evaluations: dict[str, Evaluation] = {}
        self.overrides: dict[str, StoredOverride] = {o.id: o for o in memory.overrides}
        self.seconds = 0.0
        self.mappings = settings.mappings
        self._only = settings.only
        self._configured = dict(settings.policies) or {"default": Policy()}
        self._made: dict[str, Policy] = {}
        for name, data in memory.policies.items():
            try:
                self._made[name] = parse_policy(data, name)
            except ValueError as error:
                log.warning("the saved policy %s is not used: %s", name, error)
        self._kept: dict[str, ServiceState] = dict(memory.services)
        self._evidence: dict[str, dict[str, dict[str, Scalar]]] = {
            service: {endpoint: dict(row) for endpoint, row in rows.items()}
            for service, rows in memory.evidence.items()
        }
        self._readers = [SeriesReader(mapping, self._service_of, settings.only) for mapping in settings.mappings]
        self._facts: Facts = {}
        self._digests: dict[str, int] = {}
        self._fleet_min = settings.fleet
        self._arrivals = arrivals
        if arrivals is not None:
            arrivals.begin(now_ms, remembers=any(state.endpoints for state in memory.services.values()))
        self._fleet = FleetBudget()
        self._first = True
        self._tidied_ms = now_ms
        self._dirty = False
        self._views: dict[str, ServiceView] = {}
        self._expired: frozenset[str] = frozenset()
        self._listener = listener

    # -- ticks -----------------------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> bool:
        """One evaluation of everything; whether the revision moved.

        Raises
        ------
        MeshpulseError, OSError        nothing was published: without a next success the lease runs out
        """
        now_ms = self._now = max(now_ms, self._now)
        for service in self.services.values():
            service.window.advance(now_ms)
            service.arrived = 0
        self._expire(now_ms)
        since = now_ms - (HISTORY_S * 1000 if self._first else LOOKBACK_MS)
        partial = False
        for reader in self._readers:
            partial |= any(text.startswith("partial") for text in reader.read(self._frames, since, now_ms))
        self._first = False
        if now_ms - self._tidied_ms >= _TIDY_MS:
            self._tidied_ms = now_ms
            self._tidy(now_ms)
        for name in self._facts.keys() - self.services.keys():
            if name in self._kept:
                self._service_of(name)
        endpoints = sum(len(service.endpoints) for service in self.services.values())
        self._fleet = replace(self._fleet, endpoints=max(self._fleet_min, endpoints))
        if self._arrivals is not None:
            self._arrivals.note(now_ms, self.services.values(), self._digests, endpoints)
        said: list[tuple[Decision, Policy]] = []
        for service in self.services.values():
            said += [(decision, service.policy) for decision in self._evaluate(service, now_ms, partial)]
        return self._publish(said, now_ms)

    def use_facts(self, facts: Facts) -> None:
        """Take over what topology sources say."""
        self._facts = facts
        self._digests = {name: facts_digest(some) for name, some in facts.items()}
        self.board.notify()

    @property
    def facts(self) -> Facts:
        """What topology sources said last."""
        return self._facts

    def save(self) -> None:
        """Write down the state.

        Raises
        ------
        OSError
        """
        states = {**self._kept, **{name: s.state for name, s in self.services.items()}}
        self._journal.save(
            Memory(
                revision=self.board.now.revision,
                services={name: state for name, state in states.items() if state.endpoints},
                evidence=self._evidence,
                overrides=tuple(self.overrides.values()),
                policies={name: policy_data(policy) for name, policy in self._made.items()},
                events=self.events.count,
            )
        )
        self._dirty = False

    def _service_of(self, name: str) -> Service | None:
        service = self.services.get(name)
        if self._only not in ("", name):
            return None
        if service is None and len(self.services) < SERVICES_MAX:
            kept = self._kept.pop(name, None)
            # the warm-up of 60 s is that of the first data, or of the process
            state = ServiceState(self._started if self._first else self._now)
            if kept is not None:
                state = resumed(kept, self._now)
            service = Service(name, self.policy_of(name), state)
            service.window.advance(self._now)
            self.services[name] = service
        return service

    def _tidy(self, now_ms: int) -> None:
        """Let go of what is gone: endpoints and observers, then services without any."""
        for name, service in list(self.services.items()):
            service.forget_gone(now_ms, self._facts.get(name, {}))
            if not service.endpoints:
                service.generation += 1
                del self.services[name]
                self.evaluations.pop(name, None)
                self._views.pop(name, None)
                self._evidence.pop(name, None)

    def _evaluate(self, service: Service, now_ms: int, partial: bool) -> tuple[Decision, ...]:
        facts = dict(self._facts.get(service.name, {}))
        for fact in facts.values():
            service.endpoint(fact.address, fact.zone, fact.version)
        service.fit()
        signals = service.window.signals(now_ms)
        topology = service.topology(facts, signals.present, now_ms)
        verdicts = detect(signals, topology, service.state, service.policy)
        known = service.known_observers(now_ms)
        reporting = service.reporting_observers(now_ms)
        situation = Situation(
            topology=topology,
            data_as_of_ms=service.data_as_of_ms,
            scrape_interval_ms=round(service.interval_ms),
            known_observers=int(np.count_nonzero(known)),
            reporting_observers=int(np.count_nonzero(reporting)),
            partial_result=partial,
            rps=signals.rps,
            rps_peak=signals.rps_peak,
            overrides=self._orders(service.name),
            fleet=self._fleet,
        )
        before = service.state
        self.evaluations[service.name] = Evaluation(
            service, signals, verdicts, situation, now_ms, self._fleet.spent(now_ms)
        )
        service.state, decisions = service.ejector.step(before, verdicts, situation, now_ms)
        self._dirty |= service.state.endpoints != before.endpoints
        self._fleet = self._fleet.charged(decisions, now_ms)
        for decision in decisions:
            self._follow(service, decision, now_ms)
        self._views[service.name] = self._view(service, facts, topology, situation, now_ms)
        return decisions

    def _follow(self, service: Service, decision: Decision, now_ms: int) -> None:
        column = service.column(decision.endpoint)
        if column is None:
            return
        if decision.resets:
            service.window.clear(column, now_ms)
        elif decision.restarts:
            service.window.restart(column, now_ms)
        evidence = self._evidence.setdefault(service.name, {})
        if decision.kind in (Kind.EJECTED, Kind.SUSPECT) and decision.evidence:
            evidence[decision.endpoint] = {"detector": str(decision.detector), **decision.evidence}
        elif decision.after in _QUIET:
            evidence.pop(decision.endpoint, None)

    def _view(
        self, service: Service, facts: Mapping[str, Fact], topology: Topology, situation: Situation, now_ms: int
    ) -> ServiceView:
        policy, state = service.policy, service.state
        evidence = self._evidence.get(service.name, {})
        reporting = service.reporting_observers(now_ms)[:, None]
        told = np.count_nonzero((service.usable >= 0) & reporting, axis=0).tolist()
        against = np.count_nonzero((service.usable == 0) & reporting, axis=0).tolist()
        views = []
        for h, name in enumerate(topology.endpoints):
            known = state.endpoints.get(name)
            if known is None:
                continue  # listed, but never seen
            shown = publication(known, policy)
            fact = facts.get(name) or Fact(name)
            views.append(
                EndpointView(
                    endpoint=name,
                    state=known.state,
                    verdict=shown.verdict,
                    health_status=shown.health_status,
                    weight_factor=shown.weight,
                    since_ms=known.since_ms,
                    until_ms=known.until_ms,
                    ejections=known.ejections,
                    region=fact.region,
                    zone=topology.zones[h],
                    version=topology.versions[h],
                    priority=topology.priorities[h],
                    weight=fact.weight,
                    detector=str(known.detector or ""),
                    blocked_by=str(known.blocked_by or ""),
                    evidence=evidence.get(name, {}),
                    observers=told[h],
                    observers_against=against[h],
                    listed=topology.listed[h],
                )
            )
        total = sum(topology.listed)
        return ServiceView(
            name=service.name,
            mode=policy.mode,
            policy=policy.name,
            evaluated_at_ms=now_ms,
            data_as_of_ms=max(0, service.data_as_of_ms),
            valid_until_ms=max(0, min(now_ms, service.data_as_of_ms)) + policy.lease_ms,
            endpoints=tuple(views),
            cap_percent=policy.guards.cap_percent,
            allowed_out=policy.guards.cap_percent * total // 100,
            frozen=state.frozen,
            incident=state.incident,
            known_observers=situation.known_observers,
            reporting_observers=situation.reporting_observers,
            listed=topology.told,
        )

    def _publish(self, said: Sequence[tuple[Decision, Policy]], now_ms: int) -> bool:
        """Remember first, then tell: what proxies see must survive a restart."""
        new = []
        loud = [(decision, policy) for decision, policy in said if not decision.repeated]
        next_revision = self.board.next_revision(self._views)
        for decision, policy in loud:
            data = decision_data(decision, policy.mode, f"policy:{policy.name}")
            new.append(self.events.add(data, next_revision).data)
        for view in self._lapsed(now_ms):
            evidence = {"data_age_ms": now_ms - view.data_as_of_ms}
            data = note_data(Kind.LEASE_EXPIRED, view.name, "", now_ms, f"policy:{view.policy}", evidence)
            new.append(self.events.add(data, next_revision).data)
        self._tell(new)
        if self._dirty:
            self.save()
        moved = self.board.publish(dict(self._views), now_ms)
        if new and not moved:
            self.board.notify()
        if self._writer is not None:
            for decision, policy in said:
                self._writer.count((decision,), policy.mode)
            self._writer.write(self._views, now_ms, moved=moved)
        return moved

    def _lapsed(self, now_ms: int) -> list[ServiceView]:
        """Services on whose verdicts nobody may act from now on, for want of data."""
        lapsed = {
            view.name: view for view in self._views.values() if view.data_as_of_ms > 0 and now_ms >= view.valid_until_ms
        }
        new = [view for name, view in lapsed.items() if name not in self._expired]
        self._expired = frozenset(lapsed)
        return new

    def say(self, kind: str, service: str, endpoint: str, by: str, evidence: Mapping[str, Scalar]) -> None:
        """Record an event that is no decision of the state machine: an order, a refusal by a proxy, a lost lease."""
        data = note_data(Kind(kind), service, endpoint, self._now, by, evidence)
        self._tell([self.events.add(data, self.board.now.revision).data])
        self.board.notify()

    def _tell(self, events: list[Mapping[str, Any]]) -> None:
        """Events go to the journal first; what listens besides must not hold it up."""
        self._journal.append(events)
        if events and self._listener is not None:
            self._listener(events)

    # -- policies --------------------------------------------------------------------------------------------------

    @property
    def policies(self) -> dict[str, Policy]:
        """All policies by name; those made through the API win over configured ones."""
        return {**self._configured, **self._made}

    def policy_of(self, service: str) -> Policy:
        """The policy of a service: of those whose pattern fits, the one with the most literal characters."""
        fitting = [p for p in self.policies.values() if fnmatchcase(service, p.service)]
        best = max(fitting, key=lambda p: (len(p.service.replace("*", "").replace("?", "")), p.name), default=None)
        return best or Policy()

    def use_configured(self, policies: Mapping[str, Policy]) -> None:
        """Take over the policies of a changed configuration; those made through the API still win."""
        before, self._configured = self._configured, dict(policies) or {"default": Policy()}
        for name, policy in self._configured.items():
            if before.get(name) != policy:
                self._changed_policies("policy_changed", policy, "configuration")
        for name in before.keys() - self._configured.keys():
            self._changed_policies("policy_deleted", before[name], "configuration")

    def put_policy(self, policy: Policy, by: str) -> bool:
        """Make or replace a policy; whether it is new."""
        new = policy.name not in self.policies
        self._made[policy.name] = policy
        self._changed_policies("policy_changed", policy, by)
        return new

    def delete_policy(self, name: str, by: str) -> None:
        """Forget a policy that was made through the API; a configured one of that name counts again.

        Raises
        ------
        NotFoundError
        """
        policy = self._made.pop(name, None)
        if policy is None:
            raise NotFoundError(f"policy {name} was not made through the API" if name in self.policies else name)
        self._changed_policies("policy_deleted", policy, by)

    def _changed_policies(self, kind: str, policy: Policy, by: str) -> None:
        for service in self.services.values():
            service.use(self.policy_of(service.name))
            service.window.advance(self._now)
        self.save()
        self.say(kind, policy.service, "", by, {"policy": policy.name, "mode": str(policy.mode)})

    # -- overrides -------------------------------------------------------------------------------------------------

    def put_override(self, service: str, endpoint: str, order: Override) -> StoredOverride:
        """Order something; it replaces an earlier order about the same endpoint.

        Raises
        ------
        NotFoundError        no such service or endpoint
        """
        known = self.services.get(service)
        if known is None or known.column(endpoint) is None:
            raise NotFoundError(f"no endpoint {endpoint} of service {service}")
        stored = StoredOverride(secrets.token_hex(8), service, endpoint, order)
        self.overrides = {i: o for i, o in self.overrides.items() if (o.service, o.endpoint) != (service, endpoint)} | {
            stored.id: stored
        }
        self.save()
        until = time_text(order.until_ms)
        evidence = {"action": str(order.action), "until": until, "comment": order.comment, "id": stored.id}
        self.say("override", service, endpoint, order.author, evidence)
        return stored

    def delete_override(self, number: str, by: str) -> None:
        """End an order before its time.

        Raises
        ------
        NotFoundError
        """
        stored = self.overrides.pop(number, None)
        if stored is None:
            raise NotFoundError(f"no override {number}")
        self.save()
        evidence = {"action": f"end of {stored.order.action}", "id": number}
        self.say("override", stored.service, stored.endpoint, by, evidence)

    def _expire(self, now_ms: int) -> None:
        over = [i for i, stored in self.overrides.items() if stored.order.until_ms <= now_ms]
        for i in over:
            del self.overrides[i]
        self._dirty |= bool(over)

    def _orders(self, service: str) -> dict[str, Override]:
        return {o.endpoint: o.order for o in self.overrides.values() if o.service == service}

    # -- answers ---------------------------------------------------------------------------------------------------

    def evaluation(self, service: str, endpoint: str = "") -> tuple[Evaluation, int]:
        """The last evaluation of a service, and the column of an endpoint (0 when none is asked for).

        Raises
        ------
        NotFoundError
        """
        found = self.evaluations.get(service)
        if found is None:
            raise NotFoundError(f"no service {service}")
        if endpoint and endpoint not in found.verdicts.endpoints:
            raise NotFoundError(f"no endpoint {endpoint} of service {service}")
        return found, found.verdicts.endpoints.index(endpoint) if endpoint else 0

    def mapping_of(self, service: str) -> SeriesMapping | None:
        """The mapping whose counters a person may query for this service."""
        fitting = (reader.mapping for reader in self._readers if reader.knows(service))
        return next((mapping for mapping in fitting if mapping.errors_metric()), None)

    def override_data(self, stored: StoredOverride) -> dict[str, Any]:
        """An override as the API shows it."""
        order = stored.order
        return {
            "id": stored.id,
            "service": stored.service,
            "endpoint": stored.endpoint,
            "action": str(order.action),
            "until": time_text(order.until_ms),
            "author": order.author,
            "comment": order.comment,
        }
