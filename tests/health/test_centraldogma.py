"""Verdicts in Central Dogma, against a stand-in that behaves as its source says."""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from health.adapters.centraldogma import BULK, CentralDogma
from health.adapters.dogma_client import Access, DogmaClient, DogmaError, _assignment, _written
from health.adapters.dogma_ledger import Ledger
from health.adapters.dogma_plan import Held, Key, Mark, Target, entries
from health.policy import Mode, Policy
from tests.e2e.test_access import certificate
from tests.health import centraldogma
from tests.health.test_eds import Bench
from tests.health.test_loop import QUICK
from tsdb.blockstore import FolderStore

CLUSTER = "groups/g/clusters/checkout"
TARGET = Target.parse(CLUSTER)
FILE = "endpoints/checkout"
FAST = 0.15
"""Seconds of a batch, and between operations, where the test is not about them."""


def row(address: str, **more: Any) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    place = {"address": {"socketAddress": {"address": host, "portValue": int(port)}}, "hostname": f"h-{port}"}
    metadata = {"filterMetadata": {"envoy.lb": {"version": "v7"}}}
    return {"endpoint": place, "healthStatus": "HEALTHY", "loadBalancingWeight": 1000, "metadata": metadata, **more}


def listed(names: list[str], **more: Any) -> dict[str, Any]:
    zones = {"z1": names[::2], "z2": names[1::2]}
    groups = [
        {
            "locality": {"region": "r1", "zone": zone},
            "priority": 0,
            "lbEndpoints": [row(name, **more) for name in members],
        }
        for zone, members in zones.items()
    ]
    return {"clusterName": CLUSTER, "endpoints": groups}


class World:
    """A mesh with one ejected endpoint, Central Dogma, and our adapter between them."""

    def __init__(
        self, folder: Path, dogma: centraldogma.CentralDogma, policy: Policy, listing: Mapping[str, Any] | None
    ) -> None:
        self.bench = Bench(folder, policy, CLUSTER)
        self.dogma = dogma
        self.names = self.bench.mesh.names
        self.ill = self.bench.ill
        self.path = dogma.create(FILE, listing or listed(self.names), comment="# by hand\n")
        self.made = len(dogma.repos["g"].commits)
        self.adapter = self.start()

    def start(self, **more: Any) -> CentralDogma:
        """An adapter as after a start of the program."""
        self.bench.mesh.loop.board.bind(asyncio.get_running_loop())
        client = DogmaClient(Access(self.dogma.url, token="secret" if self.dogma.tokens else ""))
        ledger = Ledger(self.bench.store)
        options = {"written": [TARGET], "gap_s": self.dogma.batch_s + 0.5, **more}
        listed = options.pop("listed", ())
        adapter = CentralDogma(self.bench.runner, client, ledger, **options)
        adapter.list_too(listed)
        adapter.start()
        return adapter

    def status(self, address: str = "") -> str:
        host, _, port = (address or self.ill).rpartition(":")
        (copy,) = self.dogma.endpoint(self.path, host, int(port))
        return str(copy.get("healthStatus", "UNKNOWN"))

    @property
    def commits(self) -> list[centraldogma.Commit]:
        return self.dogma.repos["g"].commits[self.made :]

    async def until(self, done: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, (self.status(), self.adapter.operations, self.adapter.problems)
            await asyncio.sleep(0.02)

    def move(self, **policy: Any) -> None:
        """Another policy, and a tick with it."""
        self.bench.mesh.loop.put_policy(replace(self.bench.mesh.policy, **policy), "me")
        self.bench.mesh.run(1)

    async def register(self, lb_endpoint: Mapping[str, Any], zone: str = "z1") -> None:
        """A service registers itself."""
        body = {"locality": {"region": "r1", "zone": zone}, "lbEndpoint": lb_endpoint}
        client = DogmaClient(Access(self.dogma.url, token="secret" if self.dogma.tokens else ""))
        try:
            await client.read(TARGET)
            await client.register(TARGET, body)
        finally:
            await client.close()


@asynccontextmanager
async def world(
    folder: Path,
    policy: Policy = QUICK,
    listing: Mapping[str, Any] | None = None,
    *,
    batch_s: float = FAST,
    **options: Any,
) -> AsyncIterator[World]:
    async with centraldogma.CentralDogma(**options) as dogma:
        dogma.batch_s = batch_s
        made = World(folder, dogma, policy, listing)
        try:
            yield made
        finally:
            await made.adapter.close(0)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def test_one_endpoint_is_changed_and_everything_else_is_as_it_was(tmp_path: Path) -> None:
    """With the server's own batch of 3 s, and a commit as slow as ZooKeeper's."""

    async def main() -> None:
        async with world(tmp_path, batch_s=3.0) as w:
            w.dogma.commit_s = 0.5
            before = w.dogma.assignment(w.path)
            begin = time.monotonic()
            await w.until(lambda: w.status() == "UNHEALTHY")
            assert time.monotonic() - begin > 3.4
            (commit,) = w.commits
            assert (commit.author, commit.summary.startswith("Batch update for groups/g")) == (
                centraldogma.SYSTEM,
                True,
            )
            after = w.dogma.assignment(w.path)
            rows = [
                [{**r, "zone": g["locality"]["zone"]} for g in a["endpoints"] for r in g["lbEndpoints"]]
                for a in (before, after)
            ]

            def name(r: Mapping[str, Any]) -> str:
                return str(r["endpoint"]["hostname"]) + json.dumps(r["endpoint"])

            changed = [
                (old, new) for old, new in zip(*(sorted(side, key=name) for side in rows), strict=True) if old != new
            ]
            ((old, new),) = changed
            assert new == old | {"healthStatus": "UNHEALTHY"}
            assert w.dogma.content_types == {"application/yaml"}
            await w.until(lambda: w.adapter.operations["committed"] == 1)
            await asyncio.sleep(0.5)
            assert len(w.dogma.operations) == 1

    run(main)


def test_what_we_do_not_enforce_is_not_written(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, replace(QUICK, mode=Mode.DRY_RUN)) as w:
            await w.until(lambda: CLUSTER in w.adapter.facts)
            await asyncio.sleep(3 * FAST)
            assert w.dogma.operations == []

    run(main)


@pytest.mark.parametrize("what", ["dry run", "no lease", "silence", "end"])
def test_fail_open(tmp_path: Path, what: str) -> None:
    async def main() -> None:
        async with world(tmp_path) as w:
            await w.until(lambda: w.status() == "UNHEALTHY" and w.adapter.operations["committed"] == 1)
            bench = w.bench
            if what == "dry run":
                w.move(mode=Mode.DRY_RUN)
            if what == "no lease":
                bench.lease.release(bench.clock.ms)
            if what == "silence":  # the lease of the board runs out; nothing announces that
                bench.clock.ms += QUICK.lease_ms
                bench.lease.refresh(bench.clock.ms)
            if what == "end":
                bench.mesh.loop.board.close()
                await w.adapter.close(10)
            bench.mesh.loop.board.notify()
            await w.until(lambda: w.status() == "HEALTHY")
            assert [
                r["loadBalancingWeight"] for g in w.dogma.assignment(w.path)["endpoints"] for r in g["lbEndpoints"]
            ] == [1000] * 6

    run(main)


def test_without_the_lease_nothing_is_touched(tmp_path: Path) -> None:
    """Another instance writes: what it says is not ours to take back."""

    async def main() -> None:
        async with world(tmp_path) as w:
            await w.until(lambda: w.status() == "UNHEALTHY" and w.adapter.operations["committed"] == 1)
            other = Bench(tmp_path / "other", replace(QUICK, mode=Mode.DRY_RUN), CLUSTER)
            other.lease.release(other.clock.ms)
            other.mesh.loop.board.bind(asyncio.get_running_loop())
            idle = CentralDogma(
                other.runner, DogmaClient(Access(w.dogma.url)), Ledger(w.bench.store), [TARGET], gap_s=FAST
            )
            idle.start()
            await w.until(lambda: CLUSTER in idle.facts)
            await asyncio.sleep(4 * FAST)
            await idle.close(5)
            assert w.status() == "UNHEALTHY"
            assert idle.operations.total() == 0

    run(main)


def test_a_restart_and_another_instance_know_what_others_had_said(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, listing=listed(["10.0.0.3:80", "10.0.0.1:80"], healthStatus="DEGRADED")) as w:
            await w.until(lambda: w.status() == "UNHEALTHY" and w.adapter.operations["committed"] == 1)
            for task in w.adapter._tasks.values():  # killed
                task.cancel()
            w.move(mode=Mode.DRY_RUN)
            second = w.start()
            await w.until(lambda: w.status() == "DEGRADED")
            await second.close(0)

    run(main)


def test_weights_of_a_probe_are_shares_of_the_owners(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as w:
            await w.until(lambda: w.status() == "UNHEALTHY")
            mesh = w.bench.mesh
            state = mesh.loop.services[CLUSTER].state
            ill = state.endpoints[w.ill]
            mesh.failing[2] = 0.0
            mesh.loop.services[CLUSTER].state = replace(
                state, endpoints={**state.endpoints, w.ill: replace(ill, until_ms=mesh.now)}
            )
            mesh.run(1)
            assert mesh.state(2) == "probation"
            factor = mesh.loop.board.now.services[CLUSTER].endpoint(w.ill).weight_factor  # type: ignore[union-attr]

            def shown() -> tuple[Any, Any]:
                (copy,) = w.dogma.endpoint(w.path, "10.0.0.3", 80)
                return copy.get("healthStatus"), copy["loadBalancingWeight"]

            await w.until(lambda: shown() == ("HEALTHY", round(1000 * factor)))
            w.move(mode=Mode.DRY_RUN)
            await w.until(lambda: shown() == ("HEALTHY", 1000))

    run(main)


def test_a_service_that_registers_itself_is_overruled_but_not_hurried(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as w:
            await w.until(lambda: w.status() == "UNHEALTHY" and w.adapter.operations["committed"] == 1)
            await asyncio.sleep(FAST)
            events = w.bench.mesh.loop.events
            for n in (1, 2):
                await w.register(row(w.ill, loadBalancingWeight=500))
                assert w.status() == "HEALTHY"
                await w.until(lambda: w.status() == "UNHEALTHY")
                await w.until(lambda n=n: len(events.find(type="overwritten")) == n)
            (copy,) = w.dogma.endpoint(w.path, "10.0.0.3", 80)
            assert copy["loadBalancingWeight"] == 500  # what else the service says counts
            event = events.find(type="overwritten")[0].data
            assert (event["endpoint"], event["by"]) == (w.ill, "central_dogma")
            assert event["evidence"] == {"now": "HEALTHY", "wanted": "UNHEALTHY", "cluster": CLUSTER}
            ours = [at for at, _, _, status in w.dogma.operations if status == "UNHEALTHY"]
            assert all(b - a >= FAST for a, b in itertools.pairwise(ours))
            w.move(mode=Mode.DRY_RUN)
            await w.until(lambda: w.status() == "HEALTHY")
            (copy,) = w.dogma.endpoint(w.path, "10.0.0.3", 80)
            assert copy["loadBalancingWeight"] == 500

    run(main)


def test_superseded_is_not_repeated_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, batch_s=1.5) as w:
            await w.until(lambda: len(w.dogma.operations) == 1)
            await w.register(row(w.ill))  # within the batch: ours is answered 409
            await w.until(lambda: w.adapter.operations["superseded"] == 1)
            assert w.status() == "HEALTHY"
            await w.until(lambda: w.status() == "UNHEALTHY")
            times = [at for at, _, _, status in w.dogma.operations if status == "UNHEALTHY"]
            assert len(times) == 2
            assert times[1] - times[0] >= 1.5

    run(main)


def test_before_0_86_bodies_are_json(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, version=(0, 85)) as w:
            await w.until(lambda: w.status() == "UNHEALTHY")
            assert w.dogma.content_types == {"application/json"}
            assert w.path.endswith(".json")

    run(main)


def test_a_file_of_an_older_server_is_still_json(tmp_path: Path) -> None:
    async def main() -> None:
        async with centraldogma.CentralDogma((0, 85)) as dogma:
            dogma.batch_s = FAST
            w = World(tmp_path, dogma, replace(QUICK, mode=Mode.DRY_RUN), None)
            await w.until(lambda: CLUSTER in w.adapter.facts)
            await w.adapter.close(0)
            dogma.version = (0, 86)  # updated; the file is rewritten by the first operation
            w.adapter = w.start()
            w.move(mode=Mode.ENFORCE)
            w.path = w.path.replace(".json", ".yaml")
            await w.until(lambda: w.path in dogma.repos["g"].files)
            assert w.status() == "UNHEALTHY"
            await w.adapter.close(0)

    run(main)


@pytest.mark.parametrize("version", [(0, 86), (0, 85)])
def test_many_changes_are_one_replacement(tmp_path: Path, version: tuple[int, int]) -> None:
    names = [f"10.0.0.{h}:80" for h in range(1, 7)]
    more = [f"10.0.9.{h}:80" for h in range(BULK + 4)]

    async def main() -> None:
        async with world(tmp_path, listing=listed(names + more), version=version) as w:
            await w.until(lambda: w.status() == "UNHEALTHY" and w.adapter.operations["committed"] == 1)
            # everything of the mesh looks as if we had said it, and nothing of it counts any more
            rows = w.adapter._ledger.rows[CLUSTER]
            (held,) = rows.values()
            file = await w.adapter.client.read(TARGET)
            for key, entry in entries(file.assignment).items():
                rows[key] = replace(held, owner=entry.mark, ours=entry.mark)
            for address in more:
                key = next(k for k in rows if k.address == address)
                rows[key] = replace(rows[key], owner=replace(rows[key].owner, status="DEGRADED"))
            await w.register(row(names[0]))  # the file changes, so that it is looked at again
            await w.until(lambda: w.status(more[0]) == "DEGRADED")
            commit = w.commits[-1]
            ours = f"meshpulse: health of {len(more)} endpoints of {CLUSTER}"
            assert commit.author == "application"
            assert commit.summary == (ours if w.dogma.yaml else f"Update endpoint: /{FILE}")  # which JSON cannot say
            assert {w.status(address) for address in more} == {"DEGRADED"}
            assert w.status() == "UNHEALTHY"

    run(main)


@pytest.mark.parametrize(("tokens", "status"), [({"other": "WRITE"}, 401), ({"secret": "READ"}, 403)])
def test_what_is_refused_is_counted_and_told(tmp_path: Path, tokens: dict[str, str], status: int) -> None:
    async def main() -> None:
        async with world(tmp_path, tokens=tokens) as w:
            await w.until(lambda: w.adapter.client.requests.get(status, 0) >= 1)
            await w.until(lambda: str(status) in w.adapter.problems.get(CLUSTER, ""))
            assert w.status() == "HEALTHY"

    run(main)


def test_a_file_that_is_missing_and_a_server_that_is_down(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as w:
            await w.until(lambda: w.status() == "UNHEALTHY")
            text = w.dogma.repos["g"].files.pop(w.path)
            w.adapter._tasks[TARGET].cancel()
            second = w.start()
            await w.until(lambda: "404" in second.problems.get(CLUSTER, ""))
            w.dogma.down = 503
            await w.until(lambda: "503" in second.problems.get(CLUSTER, ""))
            w.dogma.down = 0
            w.dogma.repos["g"].files[w.path] = text
            await w.until(lambda: CLUSTER not in second.problems)
            await second.close(0)

    run(main)


def test_endpoints_are_a_topology(tmp_path: Path) -> None:
    """Also of files that nobody may write; our own verdict is not what others say."""
    names = ["10.0.0.3:80", "10.0.0.1:80"]
    generated = Target.parse("groups/g/k8s/clusters/pods")

    async def main() -> None:
        async with world(tmp_path, listing=listed(names)) as w:
            await w.until(lambda: w.status() == "UNHEALTHY" and w.adapter.operations["committed"] == 1)
            w.dogma.create("k8s/endpoints/pods", listed(["10.1.0.1:80"], healthStatus="DRAINING"))
            second = w.start(listed=[generated])
            await w.until(lambda: len(second.facts) == 2)
            fact = second.facts[CLUSTER][w.ill]
            assert (fact.region, fact.zone, fact.weight, fact.hostname) == ("r1", "z1", 1000, "h-80")
            assert (fact.version, fact.health) == ("v7", "")
            assert second.facts[generated.cluster]["10.1.0.1:80"].health == "DRAINING"
            operations = len(w.dogma.operations)
            second.list_too([])
            assert list(second.facts) == [CLUSTER]
            second.list_too([generated])
            await w.until(lambda: len(second.facts) == 2)
            await second.close(0)
            assert len(w.dogma.operations) == operations

    run(main)


def test_the_stand_in_makes_a_second_copy_under_another_locality(tmp_path: Path) -> None:
    """Why localities are echoed exactly."""

    async def main() -> None:
        async with world(tmp_path, replace(QUICK, mode=Mode.DRY_RUN)) as w:
            await w.register(row(w.ill), zone="z9")
            assert len(w.dogma.endpoint(w.path, "10.0.0.3", 80)) == 2
            with pytest.raises(DogmaError, match="400"):
                await w.register({**row(w.ill), "weight": 3})
            assert w.dogma.repos["g"].files[w.path][0] != "#"  # comments are lost

    run(main)


def test_certificates_of_both_sides(tmp_path: Path) -> None:
    authority = certificate(tmp_path, "authority")
    cert, key = certificate(tmp_path, "server", authority)
    own, own_key = certificate(tmp_path, "client", authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.load_verify_locations(authority[0])
    context.verify_mode = ssl.CERT_REQUIRED

    async def main() -> None:
        async with centraldogma.CentralDogma(tls=context) as dogma:
            dogma.create(FILE, listed(["10.0.0.1:80"]))
            client = DogmaClient(Access(dogma.url, ca_file=authority[0], cert_file=own, key_file=own_key))
            assert (await client.read(TARGET)).path == f"/{FILE}.yaml"
            await client.close()
            for access in (Access(dogma.url, ca_file=authority[0]), Access(dogma.url, cert_file=own, key_file=own_key)):
                client = DogmaClient(access)
                with pytest.raises((aiohttp.ClientError, OSError)):
                    await client.read(TARGET)
                assert client.requests[0] == 1
                await client.close()

    run(main)


def test_words_of_the_file_are_sent_back_as_they_are() -> None:
    locality = "{zone: no, subZone: 1:30, region: 2026-01-01}"
    text = f"endpoints: [{{locality: {locality}, priority: 1, a: true, b: 1.5, c: ~, d: }}]"
    assignment = _assignment({"content": text})
    (group,) = assignment["endpoints"]
    assert group == {
        "locality": {"zone": "no", "subZone": "1:30", "region": "2026-01-01"}, "priority": 1, "a": True, "b": 1.5,
        "c": None, "d": None,
    }  # fmt: skip
    assert yaml.safe_load(_written(assignment, as_yaml=True)) == assignment  # also by the older rules of YAML
    for junk in ("a: [", "- 1", 7):
        with pytest.raises(ValueError, match="no "):
            _assignment({"content": junk})


def test_two_clusters_at_once(tmp_path: Path) -> None:
    """They share what is written down."""
    other = Target.parse("groups/g/clusters/other")

    async def main() -> None:
        async with world(tmp_path, replace(QUICK, mode=Mode.DRY_RUN)) as w:
            await w.adapter.close(0)
            w.dogma.create("endpoints/other", {**listed(w.names), "clusterName": other.cluster})
            w.move(mode=Mode.ENFORCE)
            w.adapter = w.start(written=[TARGET, other])
            await w.until(lambda: w.status() == "UNHEALTHY" and other.cluster in w.adapter.facts)
            assert w.adapter.problems == {}
            w.adapter._ledger.load()
            ((cluster, rows),) = w.adapter._ledger.rows.items()
            assert (cluster, [key.address for key in rows]) == (CLUSTER, [w.ill])

    run(main)


def test_a_ledger_that_cannot_be_read_is_begun_anew(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    held = Held(Mark("HEALTHY", 3), Mark("UNHEALTHY", 3), Mark("HEALTHY", 3))
    key = Key(1, "r", "z", "", "10.0.0.1:80")
    ledger = Ledger(store)
    for version in (1, 9):
        ledger.rows = {CLUSTER: {key: held, replace(key, zone="y"): replace(held, ours=held.owner)}}
        content = ledger.content()
        assert content is not None
        ledger.save(content)
        assert ledger.content() is None
        again = Ledger(store)
        again.load()
        assert again.rows == {CLUSTER: {key: held}}  # the other one is as its owner says
        (name,) = store.list("health/centraldogma/")
        data = {**json.loads(bytes(store.open(name))), "version": version}
        store.delete(name)
        store.create(name, [json.dumps(data).encode()])
        ledger = Ledger(store)
    ledger.load()
    assert ledger.rows == {}


def test_clusters() -> None:
    assert Target(CLUSTER, "g", "checkout") == TARGET
    assert Target.parse("groups/g/clusters/a/b:1").file == "/endpoints/a/b:1"
    assert Target.parse("groups/g/k8s/clusters/x").generated
    for bad in ("checkout", "groups/g/endpoints/x", "groups//clusters/x", "groups/g/clusters/"):
        with pytest.raises(ValueError, match="is not groups"):
            Target.parse(bad)
