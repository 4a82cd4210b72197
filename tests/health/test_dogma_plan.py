"""What to change in an assignment: pure, both spellings of protobuf's JSON."""

from __future__ import annotations

from typing import Any

import pytest

from health.adapters.dogma_plan import Held, Key, Mark, entries, marked, reconciled, replaced, wanted
from health.board import EndpointView
from health.verdicts import State

HEALTHY, OUT = Mark("HEALTHY", 1000), Mark("UNHEALTHY", 1000)


def view(status: str, factor: float) -> EndpointView:
    return EndpointView("10.0.0.1:80", State.EJECTED, "", status, factor, 0)


def assignment(snake: bool = False) -> dict[str, Any]:
    place = {"address": "10.0.0.1", "port_value" if snake else "portValue": 80}
    endpoint = {"address": {"socket_address" if snake else "socketAddress": place}}
    row = {
        "endpoint": endpoint,
        "health_status" if snake else "healthStatus": 3 if snake else "DRAINING",
        "load_balancing_weight" if snake else "loadBalancingWeight": 7,
    }
    pipe = {"endpoint": {"address": {"pipe": {"path": "/x"}}}}
    locality = {"region": "r", "sub_zone" if snake else "subZone": "s"}
    group = {"locality": locality, "priority": 2, "lb_endpoints" if snake else "lbEndpoints": [row, pipe]}
    return {"clusterName": "groups/g/clusters/c", "endpoints": [group], "policy": {"overprovisioningFactor": 100}}


@pytest.mark.parametrize("snake", [False, True])
def test_both_spellings(snake: bool) -> None:
    data = assignment(snake)
    ((key, entry),) = entries(data).items()
    assert key == Key(2, "r", "", "s", "10.0.0.1:80")
    assert entry.mark == Mark("DRAINING", 7)
    new = replaced(data, {key: OUT})
    assert entries(new)[key].mark == OUT
    assert entries(replaced(new, {key: entry.mark})) == entries(replaced(data, {key: entry.mark}))
    assert new["policy"] == data["policy"]
    assert len(next(iter(new["endpoints"][0].values()))) == len(next(iter(data["endpoints"][0].values())))
    body = entry.body(OUT)
    assert (body["locality"], body["priority"]) == (data["endpoints"][0]["locality"], 2)
    assert (
        body["lbEndpoint"]["endpoint"]
        == data["endpoints"][0]["lb_endpoints" if snake else "lbEndpoints"][0]["endpoint"]
    )


def test_what_is_not_given_stays_so() -> None:
    bare = {"endpoint": {"address": {"socketAddress": {"address": "::1", "portValue": 80}}}}
    data = {"endpoints": [{"lbEndpoints": [bare]}]}
    ((key, entry),) = entries(data).items()
    assert (key, entry.mark) == (Key(0, "", "", "", "[::1]:80"), Mark("UNKNOWN", None))
    assert entry.body(entry.mark) == {"lbEndpoint": bare}
    assert marked(bare, Mark("UNHEALTHY", None)) == {**bare, "healthStatus": "UNHEALTHY"}
    for junk in ({"endpoints": [3]}, {"endpoints": [{"lbEndpoints": [{"endpoint": 4}]}]}):
        with pytest.raises(ValueError, match="no ClusterLoadAssignment"):
            entries(junk)


@pytest.mark.parametrize(
    ("owner", "seen", "said"),
    [
        (HEALTHY, None, HEALTHY),
        (HEALTHY, view("UNHEALTHY", 0.0), OUT),
        (Mark("UNKNOWN", None), view("UNHEALTHY", 0.0), Mark("UNHEALTHY", None)),
        (Mark("DRAINING", 9), view("UNHEALTHY", 0.0), Mark("DRAINING", 9)),
        (HEALTHY, view("HEALTHY", 0.05), Mark("HEALTHY", 50)),
        (Mark("HEALTHY", 3), view("HEALTHY", 0.05), Mark("HEALTHY", 1)),
        (Mark("HEALTHY", None), view("HEALTHY", 0.05), Mark("HEALTHY", None)),
        (HEALTHY, view("HEALTHY", 1.0), HEALTHY),
    ],
)
def test_wanted(owner: Mark, seen: EndpointView | None, said: Mark) -> None:
    assert wanted(owner, seen) == said


@pytest.mark.parametrize(
    ("held", "current", "owner", "against"),
    [
        (None, OUT, OUT, False),
        (Held(HEALTHY, OUT, OUT), OUT, HEALTHY, False),
        (Held(HEALTHY, OUT, OUT), HEALTHY, HEALTHY, True),
        (Held(HEALTHY, OUT, OUT), Mark("UNHEALTHY", 5), Mark("HEALTHY", 5), True),  # only the weight is theirs
        (Held(HEALTHY, OUT, OUT), Mark("DRAINING", 5), Mark("DRAINING", 5), True),
        (Held(HEALTHY, OUT, HEALTHY), HEALTHY, HEALTHY, False),  # our operation did not come through
        (Held(HEALTHY, OUT, HEALTHY), Mark("HEALTHY", 5), Mark("HEALTHY", 5), False),
        (Held(HEALTHY, Mark("HEALTHY", 50), OUT), OUT, HEALTHY, False),  # what is there is our last word but one
        (Held(HEALTHY, HEALTHY, OUT), OUT, HEALTHY, False),
    ],
)
def test_reconciled(held: Held | None, current: Mark, owner: Mark, against: bool) -> None:
    assert reconciled(held, current) == (owner, against)
