"""A service as an Envoy ``ClusterLoadAssignment``: what its owner lists, and what we know better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from health.board import EndpointView, ServiceView, Snapshot
from health.lease import ActuatorLease
from health.policy import Mode
from health.topology import Fact, split_address

TYPE_URL = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
SCALE = 100
"""All weights are multiplied by this, because Envoy refuses weight 0 and a hundredth of 1 must be said somehow."""
_WEIGHT_MAX = (1 << 32) - 1


def scaled_weight(weight: int, factor: float) -> int:
    """Weight to publish for an endpoint of that weight at a share of it; an ejected one (0) keeps its own."""
    return min(max(1, round(weight * SCALE * (factor or 1.0))), _WEIGHT_MAX)


def enforced(snapshot: Snapshot, service: str, lease: ActuatorLease, now_ms: int) -> ServiceView | None:
    """The service's verdicts as far as proxies may act on them now; None = they may not."""
    view = snapshot.services.get(service)
    if view is None or view.mode is not Mode.ENFORCE or now_ms >= view.valid_until_ms or not lease.held(now_ms):
        return None
    return view


def assignment(service: str, facts: Mapping[str, Fact], view: ServiceView | None) -> dict[str, Any]:
    """The whole assignment.

    Parameters
    ----------
    facts : the endpoints of the service, as a topology source lists them
    view : verdicts to apply; None = none
    """
    return assignment_of(service, facts, {endpoint.endpoint: endpoint for endpoint in view.endpoints} if view else {})


def assignment_of(service: str, facts: Mapping[str, Fact], known: Mapping[str, EndpointView]) -> dict[str, Any]:
    """The whole assignment, by the verdicts about single endpoints."""
    groups: dict[tuple[int, str, str, str], list[dict[str, Any]]] = {}
    for address, fact in facts.items():
        key = (fact.priority, fact.region, fact.zone, fact.sub_zone)
        groups.setdefault(key, []).append(_endpoint(fact, known.get(address)))
    endpoints = []
    for (priority, region, zone, sub_zone), members in sorted(groups.items(), key=lambda item: item[0]):
        locality = {"region": region, "zone": zone, "sub_zone": sub_zone}
        group: dict[str, Any] = {"lb_endpoints": members}
        if any(locality.values()):
            group["locality"] = {name: value for name, value in locality.items() if value}
        if priority:
            group["priority"] = priority
        endpoints.append(group)
    return {"@type": TYPE_URL, "cluster_name": service, "endpoints": endpoints}


def _endpoint(fact: Fact, view: EndpointView | None) -> dict[str, Any]:
    host, port = split_address(fact.address)
    endpoint: dict[str, Any] = {"address": {"socket_address": {"address": host, "port_value": port}}}
    if fact.hostname:
        endpoint["hostname"] = fact.hostname
    status, factor = fact.health or "HEALTHY", 1.0
    if view is not None:
        factor = view.weight_factor
        if view.health_status == "UNHEALTHY" and status in ("HEALTHY", "UNKNOWN", "DEGRADED"):
            status = "UNHEALTHY"
    return {
        "endpoint": endpoint,
        "health_status": status,
        "load_balancing_weight": scaled_weight(fact.weight, factor),
    }


def service_name(cluster: str) -> str:
    """The service of a cluster, as the labels of Envoy's statistics spell it."""
    return cluster.replace(":", "_")
