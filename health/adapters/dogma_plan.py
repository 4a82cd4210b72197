"""What to change in an assignment of Central Dogma: pure functions of the file, our verdicts and what we wrote before.

The file belongs to others: services that register themselves, people. Of ours are two fields of an endpoint, its health
status and its weight; everything else is sent back as it was read. What these two were before us is remembered, so that
they can be given back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from health.adapters.xds import STATUS_NUMBERS
from health.board import EndpointView
from health.topology import Fact, join_address

_CLUSTER = re.compile(r"groups/([^/]+)/(k8s/)?clusters/([a-z](?:[a-z0-9-_/:.]*[a-z0-9])?)")
_STATUS_NAMES = {number: name for name, number in STATUS_NUMBERS.items()}
_IN = frozenset({"HEALTHY", "UNKNOWN", "DEGRADED"})
"""Statuses that we may make worse; whatever else somebody said stays."""


@dataclass(frozen=True, slots=True)
class Target:
    """A cluster as Central Dogma names it: ``groups/GROUP/clusters/ID``.

    Attributes
    ----------
    generated : by a Kubernetes aggregator, nobody else may write it
    """

    cluster: str
    group: str
    id: str
    generated: bool = False

    @classmethod
    def parse(cls, cluster: str) -> Target:
        """Read a name.

        Raises
        ------
        ValueError
        """
        found = _CLUSTER.fullmatch(cluster)
        if found is None:
            raise ValueError(f"{cluster!r} is not groups/GROUP/clusters/ID or groups/GROUP/k8s/clusters/ID")
        return cls(cluster, found[1], found[3], found[2] is not None)

    @property
    def file(self) -> str:
        """Path of its file in the group's repository, without the extension."""
        return f"/k8s/endpoints/{self.id}" if self.generated else f"/endpoints/{self.id}"


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What Central Dogma tells endpoints apart by, exactly: an operation with another one adds a second copy."""

    priority: int
    region: str
    zone: str
    sub_zone: str
    address: str


@dataclass(frozen=True, slots=True)
class Mark:
    """The two fields of an endpoint that are ours to change.

    Attributes
    ----------
    weight : None = not given, which counts as 1
    """

    status: str = "UNKNOWN"
    weight: int | None = None

    @property
    def share(self) -> float:
        """How much traffic it asks for, to tell a relief from an ejection."""
        return float(self.weight or 1) if self.status in _IN else 0.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One endpoint of the file.

    Attributes
    ----------
    locality : as written, None = none
    lb_endpoint : as written
    """

    key: Key
    mark: Mark
    locality: Mapping[str, Any] | None
    lb_endpoint: Mapping[str, Any]

    @property
    def address(self) -> str:
        """``HOST:PORT`` as verdicts name it."""
        return self.key.address

    def body(self, mark: Mark) -> dict[str, Any]:
        """The ``LocalityLbEndpoint`` that says this of it and nothing else anew."""
        out: dict[str, Any] = {} if self.locality is None else {"locality": dict(self.locality)}
        if self.key.priority:
            out["priority"] = self.key.priority
        return {**out, "lbEndpoint": marked(self.lb_endpoint, mark)}

    def fact(self, owner: Mark) -> Fact:
        """The endpoint as a topology source lists it."""
        endpoint = _get(self.lb_endpoint, "endpoint", {})
        filters = _get(_get(self.lb_endpoint, "metadata", {}), "filterMetadata", {})
        version = filters.get("envoy.lb", {}).get("version", "")
        return Fact(
            self.key.address,
            region=self.key.region,
            zone=self.key.zone,
            sub_zone=self.key.sub_zone,
            version=version if isinstance(version, str) else "",
            weight=max(1, owner.weight or 1),
            priority=self.key.priority,
            health="" if owner.status in ("HEALTHY", "UNKNOWN") else owner.status,
            hostname=str(_get(endpoint, "hostname", "")),
        )


@dataclass(frozen=True, slots=True)
class Held:
    """What we said of an endpoint.

    Attributes
    ----------
    owner : what others say of it
    ours : what we want said
    before : what was there when we asked for it; the same once it is there
    """

    owner: Mark
    ours: Mark
    before: Mark


def entries(assignment: Mapping[str, Any]) -> dict[Key, Entry]:
    """The endpoints of a ``ClusterLoadAssignment`` with socket addresses, in both spellings of protobuf's JSON.

    Raises
    ------
    ValueError        not one
    """
    out: dict[Key, Entry] = {}
    try:
        for group in assignment.get("endpoints", ()):
            locality = _get(group, "locality", None)
            where = locality or {}
            place = [str(_get(where, name, "")) for name in ("region", "zone", "subZone")]
            for row in _get(group, "lbEndpoints", ()):
                address = _get(_get(_get(row, "endpoint", {}), "address", {}), "socketAddress", {})
                if "address" not in address or not _get(address, "portValue", 0):
                    continue  # a pipe, or a named port
                name = join_address(str(address["address"]), int(_get(address, "portValue", 0)))
                key = Key(int(_get(group, "priority", 0)), place[0], place[1], place[2], name)
                out[key] = Entry(key, _mark(row), locality, row)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"no ClusterLoadAssignment: {error!r}") from None
    return out


def reconciled(held: Held | None, current: Mark) -> tuple[Mark, bool]:
    """What others say of an endpoint now, and whether they wrote over what we said.

    A field that still has our value is ours: who changes the weight of an endpoint that we called unhealthy, and sends
    the rest back, does not call it unhealthy himself.
    """
    if held is None:
        return current, False
    ours = (held.ours, held.before)  # which of them is there depends on whether the operation came through
    if current in ours:
        return held.owner, False
    status = held.owner.status if current.status in [mark.status for mark in ours] else current.status
    weight = held.owner.weight if current.weight in [mark.weight for mark in ours] else current.weight
    return Mark(status, weight), held.before != held.owner


def wanted(owner: Mark, view: EndpointView | None) -> Mark:
    """What we want said of an endpoint; None = nothing of ours."""
    if view is None:
        return owner
    if view.health_status == "UNHEALTHY":
        return replace(owner, status="UNHEALTHY") if owner.status in _IN else owner
    if owner.weight is None or not 0 < view.weight_factor < 1:
        return owner
    return replace(owner, weight=max(1, round(owner.weight * view.weight_factor)))


def marked(lb_endpoint: Mapping[str, Any], mark: Mark) -> dict[str, Any]:
    """An ``LbEndpoint`` as it was, but for these two fields."""
    out = {
        name: value
        for name, value in lb_endpoint.items()
        if _camel(name) not in ("healthStatus", "loadBalancingWeight")
    }
    if mark.status != "UNKNOWN":
        out["healthStatus"] = mark.status
    if mark.weight is not None:
        out["loadBalancingWeight"] = mark.weight
    return out


def replaced(assignment: Mapping[str, Any], marks: Mapping[Key, Mark]) -> dict[str, Any]:
    """A whole assignment as it was, but for the marks of some endpoints."""
    rows = {id(entry.lb_endpoint): marks[key] for key, entry in entries(assignment).items() if key in marks}
    groups = []
    for group in assignment.get("endpoints", ()):
        name = "lbEndpoints" if "lbEndpoints" in group else "lb_endpoints"
        members = [marked(row, rows[id(row)]) if id(row) in rows else row for row in group.get(name, ())]
        groups.append({**group, name: members} if name in group else group)
    return {**assignment, "endpoints": groups}


def _mark(row: Mapping[str, Any]) -> Mark:
    status = _get(row, "healthStatus", "UNKNOWN")
    weight = _get(row, "loadBalancingWeight", None)
    return Mark(_STATUS_NAMES.get(status, str(status)), None if weight is None else int(weight))


def _get(data: Mapping[str, Any], name: str, default: Any) -> Any:
    """A field by its JSON name, or by its name in the proto."""
    if name in data:
        return data[name]
    return next((value for key, value in data.items() if "_" in key and _camel(key) == name), default)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
