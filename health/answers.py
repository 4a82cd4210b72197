"""The JSON forms of what is published: snapshot, services, zones, observers (design page 9)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from health.adapters.eds import scaled_weight
from health.board import EndpointView, ServiceView, Snapshot
from health.detectors import judge_errors, rule_vector, zone_numbers
from health.events import time_text
from health.evidence import reason_data, reason_text
from health.explain import Evaluation
from health.verdicts import Stats
from health.window import NEVER_MS

SUMMARY_ROWS = 10
_DEFAULT_LEASE_MS = 90_000


def _counted(service: ServiceView) -> dict[str, Any]:
    """What the caps of a service count: the same for all its endpoints."""
    total = sum(e.listed for e in service.endpoints)
    unavailable = sum(e.health_status == "UNHEALTHY" for e in service.endpoints if e.listed)
    return {
        "healthy_after": total - unavailable,
        "total": total,
        "counted": "listed" if service.listed else "seen",
        "cap_percent": service.cap_percent,
    }


def _endpoint_data(service: ServiceView, view: EndpointView, counted: dict[str, Any] | None) -> dict[str, Any]:
    """One endpoint; briefly without ``counted``. Thousands are written each second, on the event loop."""
    out = {
        "service": service.name,
        "endpoint": view.endpoint,
        "state": str(view.state),
        "verdict": view.verdict,
        "weight_factor": view.weight_factor,
        "reason": reason_text(view.evidence) if view.evidence else "",
    }
    if counted is None:
        return out
    out["mode"] = str(service.mode)
    out["locality"] = {"region": view.region, "zone": view.zone}
    out["version"] = view.version
    out["priority"] = view.priority
    out["since"] = _moment(view.since_ms)
    out["until"] = _moment(view.until_ms) if view.until_ms else None
    out["ejections"] = view.ejections
    out["xds"] = {
        "health_status": view.health_status,
        "load_balancing_weight": scaled_weight(view.weight, view.weight_factor),
    }
    out["applied"] = {"observers": view.observers, "seen_unhealthy": view.observers_against}
    out["reasons"] = [reason_data(view.evidence)] if view.evidence else []
    out["guards"] = {**counted, "blocked": bool(view.blocked_by), "blocked_by": view.blocked_by or None}
    return out


_moment = lru_cache(10_000)(time_text)
"""Endpoints change seldom, and many at the same moment."""


def service_data(view: ServiceView) -> dict[str, Any]:
    """One service as a roll-up."""
    states = Counter(str(e.state) for e in view.endpoints)
    return {
        "service": view.name,
        "mode": str(view.mode),
        "policy": view.policy,
        "endpoints": len(view.endpoints),
        "counted": "listed" if view.listed else "seen",
        "states": dict(states),
        "ejected_allowed": view.allowed_out,
        "evaluated_at": time_text(view.evaluated_at_ms),
        "data_as_of": time_text(view.data_as_of_ms),
        "valid_until": time_text(view.valid_until_ms),
        "frozen": view.frozen,
        "incident": view.incident or None,
        "observers": {"known": view.known_observers, "reporting": view.reporting_observers},
    }


def lease_of(snapshot: Snapshot, services: Iterable[ServiceView]) -> tuple[int, int]:
    """(valid_until, data_as_of) of a filtered view: of its one service, else of the process and its newest data."""
    views = list(services)
    if len(views) == 1:
        return views[0].valid_until_ms, views[0].data_as_of_ms
    leases = [v.valid_until_ms - min(v.evaluated_at_ms, v.data_as_of_ms) for v in views]
    lease = min(leases, default=_DEFAULT_LEASE_MS)
    return snapshot.evaluated_at_ms + lease, max((v.data_as_of_ms for v in views), default=0)


def snapshot_data(
    snapshot: Snapshot, services: list[ServiceView], *, zone: str = "", state: str = "", summary: bool = False
) -> dict[str, Any]:
    """The snapshot of some services."""
    valid_until, data_as_of = lease_of(snapshot, services)
    rows = [
        (service, view)
        for service in services
        for view in service.endpoints
        if (not zone or view.zone == zone) and (not state or view.state == state)
    ]
    modes = {str(service.mode) for service in services}
    out: dict[str, Any] = {
        "revision": str(snapshot.revision),
        "mode": modes.pop() if len(modes) == 1 else "mixed" if modes else "dry_run",
        "evaluated_at": time_text(snapshot.evaluated_at_ms),
        "data_as_of": time_text(data_as_of),
        "valid_until": time_text(valid_until),
    }
    if summary:
        worst = [(s, v) for s, v in rows if v.verdict not in ("HEALTHY", "UNKNOWN") or v.blocked_by]
        out["states"] = dict(Counter(str(view.state) for _, view in rows))
        out["services"] = len(services)
        out["endpoints"] = [_endpoint_data(s, v, None) for s, v in worst[:SUMMARY_ROWS]]
        out["left_out"] = max(0, len(worst) - SUMMARY_ROWS)
    else:
        counted = {service.name: _counted(service) for service in services}
        out["endpoints"] = [_endpoint_data(service, view, counted[service.name]) for service, view in rows]
    return out


def observers_data(evaluation: Evaluation, now_ms: int) -> dict[str, Any]:
    """The proxies that report about a service, and which of them are not believed."""
    service, verdicts = evaluation.service, evaluation.verdicts
    known, reporting = service.known_observers(now_ms), service.reporting_observers(now_ms)
    minute = next(w for w in evaluation.signals.windows if w.window_s == 60)
    rows = []
    for p, name in enumerate(service.observers):
        if not known[p]:
            continue
        broken = verdicts.broken.get(p, {})
        rows.append(
            {
                "observer": name,
                "service": service.name,
                "zone": service.observer_zones[p],
                "state": "broken" if p in verdicts.broken else "reporting" if reporting[p] else "silent",
                "errors": int(minute.errors[p].sum()),
                "requests": int(minute.attempts[p].sum()),
                "rd": broken.get("excess"),
                "mh_z": broken.get("z"),
                "dropped": p in verdicts.broken,
                "last_sample": time_text(int(service.seen_ms[p])) if service.seen_ms[p] > NEVER_MS else None,
            }
        )
    return {
        "observers": rows,
        "known": int(np.count_nonzero(known)),
        "reporting": int(np.count_nonzero(known & reporting)),
        "split": verdicts.observers_split,
    }


def zones_data(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The zones of a service: D1 on each zone against the others, over the last minute."""
    service, topology = evaluation.service, evaluation.situation.topology
    zones = sorted(set(topology.zones))
    minute = next(w for w in evaluation.signals.windows if w.window_s == 60)
    columns = np.array([[zone == z for z in zones] for zone in topology.zones], dtype=np.float64).reshape(
        -1, len(zones)
    )
    if not len(columns):
        return []
    compared = service.state.compared(topology.endpoints)
    columns *= compared[:, None]
    found = judge_errors(
        np.ascontiguousarray(minute.errors @ columns)[None],
        np.ascontiguousarray(minute.attempts @ columns)[None],
        np.ones((1, len(topology.observers)), dtype=np.bool_),
        np.ones((1, len(zones)), dtype=np.bool_),
        zone_numbers(topology.observer_zones),
        rule_vector(service.policy.error),
    )
    stats = Stats(found.table[0])
    degraded = {group.value for group in evaluation.verdicts.degraded if group.label == "zone"}
    out: list[dict[str, Any]] = []
    for z, zone in enumerate(zones):
        members = [name for name, of in zip(topology.endpoints, topology.zones, strict=True) if of == zone]
        states = [service.state.endpoints.get(name) for name in members]
        healthy = sum(known is not None and known.state in ("healthy", "suspect") for known in states)
        row = stats.row(z)
        share = healthy / max(1, len(members))
        out.append(
            {
                "service": service.name,
                "zone": zone,
                "endpoints": len(members),
                "healthy": healthy,
                "errors": int(row["errors"]),
                "requests": int(row["attempts"]),
                "error_ratio": row["errors"] / row["attempts"] if row["attempts"] else None,
                "rd": row["excess"] if len(zones) > 1 else None,
                "mh_z": row["z"] if len(zones) > 1 else None,
                "state": "degraded" if zone in degraded else "healthy" if share >= 0.5 else "weak",
                "residual_capacity": share,
                "suggested_locality_weight": max(1, round(100 * share)),
            }
        )
    ill = [data["zone"] for data in out if data["state"] != "healthy"]
    for data in out:  # never two at a time, and only when the others can take it
        data["evacuate"] = data["state"] == "degraded" and len(out) > 1 and ill == [data["zone"]]
    return out
