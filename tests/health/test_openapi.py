"""The OpenAPI document names every route and no other, and describes what really comes back."""

from __future__ import annotations

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from jsonschema import Draft202012Validator

from health.adapters.rest_eds import PATH as EDS_PATH
from health.adapters.rest_eds import RestEds
from health.api import PREFIX, HealthApi
from health.judgements import Judgements
from health.lease import ActuatorLease
from health.openapi import document
from health.policy import Mode
from health.runner import HealthRunner
from health.topology import Fact
from health.verdicts import Kind
from query.engine.engine import Engine
from query.limits import QueryLimits
from tests.health.mesh import START_MS, Mesh
from tests.health.test_loop import QUICK
from tests.query.asgi import Reply, call
from tests.query.memory_storage import MemoryStorage
from tsdb.blockstore import FolderStore
from tsdb.clock import ManualClock

DOCUMENT = document()
STREAM = f"{PREFIX}/events/stream"
"""Endless, hence no row of the table."""


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def check(method: str, path: str, reply: Reply) -> Any:
    """Hold an answer against what the document says of it; its ``data``."""
    responses = DOCUMENT["paths"][path][method.lower()]["responses"]
    assert str(reply.status) in responses, f"{method} {path} answers {reply.status}: {reply.text}"
    content = responses[str(reply.status)].get("content")
    if content is None:
        assert reply.body == b""
        return None
    kind = reply.headers["content-type"].partition(";")[0]
    if kind == "application/x-ndjson":
        for line in reply.text.splitlines():
            validator(content[kind]["schema"]).validate(json.loads(line))
        return None
    parsed = reply.json()
    validator(content[kind]["schema"]).validate(parsed)
    return parsed.get("data")


def test_the_document_is_valid() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    text = json.dumps(DOCUMENT)
    for name in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert name in DOCUMENT["components"]["schemas"]
    for name in DOCUMENT["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in text, f"nobody uses {name}"
    for path, item in DOCUMENT["paths"].items():
        for route in item.values():
            told = {p["name"] for p in route["parameters"] if p["in"] == "path"}
            assert told == set(re.findall(r"\{(\w+)\}", path)), path


def api_of(mesh: Mesh, folder: Path, executor: ThreadPoolExecutor) -> tuple[HealthApi, RestEds]:
    lease = ActuatorLease(FolderStore(folder / "store"))
    lease.refresh(mesh.now)
    runner = HealthRunner(mesh.loop, ManualClock(mesh.now), 1000, executor, executor, [], 1000, lease)
    mesh.loop.board.bind(asyncio.get_running_loop())
    api = HealthApi(runner)
    Judgements(runner, mesh.storage, executor, Engine(QueryLimits()), mesh.folder).add_to(api)
    return api, RestEds(runner)


def test_every_route_is_described_and_no_other(tmp_path: Path) -> None:
    async def routes() -> list[tuple[str, re.Pattern[str]]]:
        with ThreadPoolExecutor(1) as executor:
            api, _ = api_of(Mesh(tmp_path / "health", QUICK), tmp_path, executor)
            return [(method, pattern) for method, pattern, _ in api._routes]

    table = asyncio.run(routes())
    told = {
        (method.upper(), re.sub(r"\{\w+\}", "x", path)) for path, item in DOCUMENT["paths"].items() for method in item
    }
    told -= {("GET", STREAM), ("POST", EDS_PATH)}
    assert len(told) == sum(len(item) for item in DOCUMENT["paths"].values()) - 2
    for method, path in told:
        assert any(m == method and pattern.fullmatch(path) for m, pattern in table), (method, path)
    for method, pattern in table:
        assert any(m == method and pattern.fullmatch(path) for m, path in told), (method, pattern.pattern)


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    """Endpoints of two versions and zones in every state, with blocked ejections and an order."""
    policy = replace(QUICK, mode=Mode.ENFORCE)
    mesh = Mesh(tmp_path_factory.mktemp("health"), policy, storage=MemoryStorage(), arrivals=True)
    mesh.loop.use_facts({"svc": {n: Fact(n, zone=f"z{i % 2}", version=f"v{i % 3}") for i, n in enumerate(mesh.names)}})
    mesh.run(60)
    mesh.failing[:2] = 0.4
    mesh.run(25)
    mesh.loop.say(Kind.NACK, "svc", "", "node:envoy-1", {"version": "1", "error": "no"})
    return mesh


def test_real_answers_fit(lively: Mesh, tmp_path: Path) -> None:
    mesh = lively

    async def main() -> None:
        with ThreadPoolExecutor(2) as executor:
            api, eds = api_of(mesh, tmp_path, executor)

            async def ask(method: str, route: str, target: str = "", body: Any = None, **headers: str) -> Any:
                text = b"" if body is None else json.dumps(body).encode()
                names = {k.replace("_", "-"): v for k, v in headers.items()}
                reply = await call(api, method, f"{PREFIX}/{target or route}", names, text)
                return reply.status, check(method, f"{PREFIX}/{route}", reply)

            _, shown = await ask("GET", "endpoints")
            assert {"healthy", "ejected"} & {e["state"] for e in shown["endpoints"]}
            assert any(e["reasons"] for e in shown["endpoints"])
            for more in ("summary=true", "state=healthy&zone=z1", "mode=dry_run", "service=svc", "cluster=svc"):
                assert (await ask("GET", "endpoints", f"endpoints?{more}"))[0] == 200
            assert (await ask("GET", "endpoints", if_none_match=shown["revision"]))[0] == 304
            assert (await ask("GET", "endpoints", "endpoints?mode=x"))[0] == 400
            _, services = await ask("GET", "services")
            assert services["services"][0]["endpoints"] == 6
            _, zones = await ask("GET", "zones")
            assert [zone["zone"] for zone in zones["zones"]] == ["z0", "z1"]
            assert (await ask("GET", "zones", "zones?service=no"))[0] == 404
            assert len((await ask("GET", "observers"))[1]["observers"]) == 4
            assert (await ask("GET", "observers", "observers?service=no"))[0] == 404

            name = mesh.names[0]
            _, told = await ask("GET", "explain", f"explain?service=svc&endpoint={name}")
            assert told["conviction"] is None or told["conviction"]["evidence"]["mh_z"] > 4
            assert any(event["type"] == "ejected" for event in told["events"])
            at = f"explain?service=svc&endpoint={name}&time={START_MS / 1000 + 62}"
            assert (await ask("GET", "explain", at))[1]["conditions"]
            assert (await ask("GET", "explain", f"explain?service=svc&endpoint={name}&time=x"))[0] == 400
            assert (await ask("GET", "explain", f"explain?service=svc&endpoint={name}&time=1"))[0] == 404
            assert (await ask("GET", "explain", "explain?service=svc&endpoint=1.1.1.1:1"))[0] == 404

            _, events = await ask("GET", "events")
            assert {"ejected", "blocked", "capacity_lost", "nack", "freeze"} <= {e["type"] for e in events["events"]}
            await ask("GET", "events", accept="application/x-ndjson")
            assert (await ask("GET", "events", "events?limit=x"))[0] == 400

            assert len((await ask("GET", "policies"))[1]["policies"]) == 1
            _, policy = await ask("GET", "policies/{name}", "policies/default")
            validator({"$ref": "#/components/schemas/HealthPolicy"}).validate(policy)
            put = policy | {"name": "strict", "match": {"service": "nobody"}}
            assert (await ask("PUT", "policies/{name}", "policies/strict", put))[0] == 201
            assert (await ask("PUT", "policies/{name}", "policies/strict", put))[0] == 200
            assert (await ask("PUT", "policies/{name}", "policies/strict", put, if_match='"x"'))[0] == 412
            assert (await ask("PUT", "policies/{name}", "policies/strict", {"colour": 1}))[0] == 400
            wrong = {"guards": {"cap_percent": 60}}
            route = "policies/{name}:validate"
            assert (await ask("POST", route, "policies/x:validate", wrong))[1]["valid"] is False
            assert (await ask("POST", route, "policies/x:validate", {}))[1]["valid"] is True
            assert (await ask("DELETE", "policies/{name}", "policies/strict"))[0] == 204
            assert (await ask("DELETE", "policies/{name}", "policies/strict"))[0] == 404
            assert (await ask("GET", "policies/{name}", "policies/strict"))[0] == 404

            order = {
                "service": "svc",
                "endpoint": name,
                "action": "freeze",
                "ttl": "1m",
                "author": "me",
                "comment": "x",
            }
            validator({"$ref": "#/components/schemas/HealthOrder"}).validate(order)
            _, made = await ask("POST", "overrides", body=order)
            assert (await ask("POST", "overrides", body=order | {"ttl": "40d"}))[0] == 400
            assert (await ask("POST", "overrides", body=order | {"endpoint": "1.1.1.1:1"}))[0] == 404
            assert (await ask("GET", "overrides"))[1]["overrides"] == [made]
            assert (await ask("DELETE", "overrides/{id}", f"overrides/{made['id']}"))[0] == 204
            assert (await ask("DELETE", "overrides/{id}", f"overrides/{made['id']}"))[0] == 404

            side = quote('version="v1"')
            _, compared = await ask("GET", "compare", f"compare?service=svc&candidate={side}&window=2m")
            assert compared["verdict"] in ("pass", "fail", "inconclusive")
            assert (await ask("GET", "compare", "compare?service=svc&candidate=x"))[0] == 400
            replayed = {"service": "svc", "start": START_MS / 1000 + 50}
            validator({"$ref": "#/components/schemas/HealthReplayRequest"}).validate(replayed)
            _, again = await ask("POST", "replay", body=replayed)
            assert again["decisions"]
            assert (await ask("POST", "replay", body={"service": "svc"}))[0] == 400
            assert (await ask("POST", "replay", body=replayed | {"start": 1000}))[0] == 422
            _, slo = await ask("GET", "slo", "slo?service=svc")
            assert slo["burn"]["5m"] is not None
            assert (await ask("GET", "slo", "slo?service=svc&objective=2"))[0] == 400
            gate = "gates/r?service=svc&version=v1&window=2m"
            statuses = {(await ask("GET", "gates/{rollout}", gate))[0], (await ask("POST", "gates/{rollout}", gate))[0]}
            assert statuses <= {200, 412, 425}
            assert (await ask("GET", "gates/{rollout}", gate + "&status=200"))[0] == 200
            assert (await ask("GET", "gates/{rollout}", "gates/r?service=svc"))[0] == 400
            _, burning = await ask("GET", "gates/{rollout}", gate + "&objective=0.999&status=200")
            (check_of_burn,) = [c for c in burning["checks"] if c["name"] == "burn_5m"]
            assert check_of_burn["verdict"] == "fail"  # 0.4 of one of two endpoints failed for a minute
            assert burning["verdict"] in ("halt", "wait")
            assert (await ask("GET", "gates/{rollout}", gate + "&objective=1"))[0] == 400
            site = f"gates/r?site=a.example&host=web-1&changed_at={mesh.now / 1000 - 60}"
            assert (await ask("GET", "gates/{rollout}", site))[0] == 425

            asked = {"resource_names": ["svc"], "node": {"id": "e"}, "version_info": ""}
            validator({"$ref": "#/components/schemas/DiscoveryRequest"}).validate(asked)
            reply = await call(eds, "POST", EDS_PATH, {}, json.dumps(asked).encode())
            check("POST", EDS_PATH, reply)
            check("POST", EDS_PATH, await call(eds, "POST", EDS_PATH, {}, b"{}"))

    asyncio.run(main())
