"""The health API without a network: snapshot and long poll, explain, events, policies, orders, errors."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from health.api import HealthApi
from health.lease import ActuatorLease
from health.runner import HealthRunner
from health.topology import Fact
from tests.health.mesh import Mesh
from tests.health.test_loop import QUICK
from tests.query.asgi import Reply, call
from tsdb.blockstore import FolderStore
from tsdb.clock import ManualClock

H = "/api/v1/health"


class Bench:
    def __init__(self, mesh: Mesh, runner: HealthRunner) -> None:
        self.mesh = mesh
        self.runner = runner
        self.api = HealthApi(runner)

    async def get(self, target: str, **headers: str) -> Reply:
        return await call(self.api, "GET", f"{H}/{target}", {k.replace("_", "-"): v for k, v in headers.items()})

    async def send(self, method: str, target: str, data: Any = None, **headers: str) -> Reply:
        body = b"" if data is None else json.dumps(data).encode()
        return await call(self.api, method, f"{H}/{target}", {k.replace("_", "-"): v for k, v in headers.items()}, body)


@asynccontextmanager
async def bench(tmp_path: Path, seconds: int = 30) -> AsyncIterator[Bench]:
    mesh = Mesh(tmp_path / "health", QUICK)
    mesh.run(seconds)
    with ThreadPoolExecutor(1) as executor:
        runner = HealthRunner(
            mesh.loop,
            ManualClock(mesh.now),
            1000,
            executor,
            executor,
            [],
            1000,
            ActuatorLease(FolderStore(tmp_path / "store")),
        )
        mesh.loop.board.bind(asyncio.get_running_loop())
        yield Bench(mesh, runner)


def test_snapshot_and_long_poll(tmp_path: Path) -> None:
    async def main() -> None:
        async with bench(tmp_path) as b:
            first = await b.get("endpoints")
            assert first.status == 200
            etag = first.headers["etag"]
            assert etag == f'"{first.data["revision"]}"'
            assert first.data["mode"] == "enforce"
            row = first.data["endpoints"][0]
            assert (row["state"], row["verdict"], row["weight_factor"]) == ("healthy", "HEALTHY", 1.0)
            assert row["xds"] == {"health_status": "HEALTHY", "load_balancing_weight": 100}

            same = await b.get("endpoints", if_none_match=etag)
            assert (same.status, same.body) == (304, b"")
            assert same.headers["mesh-health-valid-until"] == first.data["valid_until"]
            assert (await b.get(f"endpoints?revision={first.data['revision']}")).status == 304
            assert (await b.get("endpoints", if_none_match='W/"9.1"')).status == 200  # another epoch

            held = asyncio.create_task(b.get("endpoints", if_none_match=etag, prefer="wait=30"))
            other = asyncio.create_task(b.get("endpoints?service=nobody", if_none_match=etag, prefer="wait=1"))
            await asyncio.sleep(0.05)
            assert b.mesh.loop.board.waiting == 2
            b.mesh.failing[2] = 0.5
            b.mesh.run(8)
            answer = await asyncio.wait_for(held, 5)
            assert answer.status == 200
            assert answer.headers["preference-applied"] == "wait=30"
            ill = next(e for e in answer.data["endpoints"] if e["endpoint"] == b.mesh.names[2])
            assert (ill["state"], ill["verdict"]) == ("ejected", "EJECT")
            assert ill["xds"]["health_status"] == "UNHEALTHY"
            assert re.fullmatch(
                r"\d+\.\d % of attempts fail \(\d+ of \d+\), peers \d\.\d %, seen by 4 of 4 observers", ill["reason"]
            )
            assert (await other).status == 304  # only its own service wakes it

            only = await b.get("endpoints?service=svc&state=ejected")
            assert [e["endpoint"] for e in only.data["endpoints"]] == [b.mesh.names[2]]
            assert len((await b.get("endpoints?summary=true")).body) < 4096
            assert (await b.get("endpoints?mode=dry_run")).data["endpoints"] == []

            late = await asyncio.wait_for(b.get("endpoints?wait=100ms&revision=" + answer.data["revision"]), 5)
            assert late.status == 304
            for bad in ("wait=0", "wait=-1", "wait=soon"):
                assert (await b.get("endpoints", if_none_match=etag, prefer=bad)).status == 400
            assert (await b.get("endpoints?revision=x")).status == 400
            held = asyncio.create_task(b.get("endpoints", if_none_match=answer.headers["etag"], prefer="wait=30"))
            await asyncio.sleep(0.05)
            b.mesh.loop.board.close()
            assert (await asyncio.wait_for(held, 1)).status == 304

    asyncio.run(main())


def test_explain_services_zones_observers(tmp_path: Path) -> None:
    async def main() -> None:
        async with bench(tmp_path, 40) as b:
            b.mesh.failing[1] = 0.4
            b.mesh.run(2)
            name = b.mesh.names[1]
            told = (await b.get(f"explain?service=svc&endpoint={name}")).data
            assert told["statistics"]["errors"] >= 5
            assert {g["name"] for g in told["conditions"]} >= {"z", "excess", "tail", "agreement"}
            assert {row["observer"] for row in told["per_observer"]} == set(b.mesh.observers)
            assert sum(row["errors"] for row in told["per_observer"]) == told["statistics"]["errors"]
            assert [g["name"] for g in told["guards"]][:2] == ["data_fresh", "common_cause"]
            assert told["promql"].startswith("sum by (envoy_endpoint_address) (rate(envoy_cluster_endpoint_rq_error{")
            assert told["counterfactual"]
            b.mesh.run(8)
            told = (await b.get(f"explain?service=svc&endpoint={name}")).data  # nothing is sent to it any more
            assert (told["state"], told["statistics"], told["conditions"]) == ("ejected", None, [])
            assert "of attempts fail" in told["reason"]
            assert (await b.get("explain?service=svc")).status == 400
            missing = await b.get("explain?service=svc&endpoint=1.1.1.1:1")
            assert missing.status == 404
            assert missing.json()["errorType"] == "not_found"
            services = (await b.get("services")).data["services"]
            assert services[0]["observers"] == {"known": 4, "reporting": 4}
            assert services[0]["counted"] == "seen"  # nobody lists its endpoints
            b.mesh.loop.use_facts({"svc": {n: Fact(n) for n in b.mesh.names}})
            b.mesh.run(1)
            assert (await b.get("services")).data["services"][0]["counted"] == "listed"
            observers = (await b.get("observers?service=svc")).data
            assert (observers["known"], observers["reporting"], observers["split"]) == (4, 4, False)
            zones = (await b.get("zones?cluster=svc")).data["zones"]
            assert (zones[0]["zone"], zones[0]["endpoints"], zones[0]["evacuate"]) == ("", 6, False)
            assert (await b.get("zones?service=nobody")).status == 404

    asyncio.run(main())


def test_events(tmp_path: Path) -> None:
    async def main() -> None:
        async with bench(tmp_path, 40) as b:
            b.mesh.failing[:1] = 0.5
            b.mesh.run(8)
            events = (await b.get("events?service=svc&type=ejected")).data["events"]
            assert [e["endpoint"] for e in events] == [b.mesh.names[0]]
            assert events[0]["by"] == "policy:default"
            lines = (await b.get("events?limit=2", accept="application/x-ndjson")).body.splitlines()
            assert next(json.loads(line)["type"] for line in lines) == "ejected"
            assert (await b.get(f"events?start={events[0]['time']}&end={events[0]['time']}")).data["events"]
            assert (await b.get("events?start=soon")).status == 400
            assert (await b.get("events?limit=many")).status == 400

    asyncio.run(main())


def test_the_stream_goes_on_from_the_last_event(tmp_path: Path) -> None:
    async def main() -> None:
        async with bench(tmp_path, 40) as b:
            sent: list[bytes] = []
            closed = asyncio.Event()

            async def receive() -> dict[str, Any]:
                await closed.wait()
                return {"type": "http.disconnect"}

            async def send(message: dict[str, Any]) -> None:
                sent.append(message.get("body", b""))

            headers = [(b"last-event-id", b"1.1-1")]
            scope = {
                "type": "http",
                "method": "GET",
                "path": f"{H}/events/stream",
                "query_string": b"",
                "headers": headers,
            }
            stream = asyncio.create_task(b.api(scope, receive, send))
            await asyncio.sleep(0.05)
            b.mesh.failing[3] = 0.5
            b.mesh.run(8)
            await asyncio.sleep(0.1)
            closed.set()
            await asyncio.wait_for(stream, 2)
            text = b"".join(sent).decode()
            assert "event: thaw" in text  # the second event, missed before
            assert "event: freeze" not in text
            assert "event: ejected" in text

    asyncio.run(main())


def test_policies(tmp_path: Path) -> None:
    async def main() -> None:
        async with bench(tmp_path) as b:
            shown = await b.get("policies/default")
            assert shown.data["mode"] == "enforce"
            good = {"match": {"service": "other"}, "error": {"min_excess": 0.02}}
            made = await b.send("PUT", "policies/sensitive", good)
            assert made.status == 201
            again = await b.send("PUT", "policies/sensitive", good, if_match=made.headers["etag"])
            assert again.status == 200
            assert (await b.send("PUT", "policies/sensitive", good, if_match='"x"')).status == 412
            assert len((await b.get("policies")).data["policies"]) == 2
            bad = {"guards": {"cap_percent": 60}}
            refused = await b.send("PUT", "policies/x", bad)
            assert refused.status == 400
            assert "panic threshold" in refused.json()["error"]
            checked = await b.send("POST", "policies/x:validate", bad)
            assert checked.data["valid"] is False
            assert (await b.send("POST", "policies/x:validate", good)).data == {"valid": True, "problems": []}
            assert (await b.send("DELETE", "policies/sensitive")).status == 204
            assert (await b.send("DELETE", "policies/sensitive")).status == 404
            assert (await b.send("PUT", "policies/x", [1])).status == 400

    asyncio.run(main())


def test_orders_need_author_comment_and_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with bench(tmp_path) as b:
            order = {
                "service": "svc", "endpoint": b.mesh.names[0], "action": "force_ejected", "ttl": "1m",
                "author": "oncall", "comment": "ticket",
            }  # fmt: skip
            for key in order:
                reply = await b.send("POST", "overrides", {k: v for k, v in order.items() if k != key})
                assert reply.status == 400
                assert key in reply.json()["error"]
            assert (await b.send("POST", "overrides", order | {"action": "shoot"})).status == 400
            assert (await b.send("POST", "overrides", order | {"x": 1})).status == 400
            assert (await b.send("POST", "overrides", order | {"endpoint": "1.1.1.1:1"})).status == 404
            made = await b.send("POST", "overrides", order)
            assert made.status == 201
            b.mesh.run(1)
            assert b.mesh.state(0) == "ejected"
            assert [o["id"] for o in (await b.get("overrides")).data["overrides"]] == [made.data["id"]]
            assert (await b.send("DELETE", f"overrides/{made.data['id']}")).status == 204
            assert (await b.send("DELETE", f"overrides/{made.data['id']}")).status == 404

    asyncio.run(main())


def test_unknown_paths_and_methods(tmp_path: Path) -> None:
    async def main() -> None:
        async with bench(tmp_path, 1) as b:
            assert (await b.get("nothing")).status == 404
            assert (await b.get("endpoints", x_scope_orgid="other")).status == 404
            assert (await b.get("endpoints", x_scope_orgid="default")).status == 200
            wrong = await b.send("DELETE", "endpoints")
            assert (wrong.status, wrong.headers["allow"]) == (405, "GET")
            head = await b.send("HEAD", "endpoints")
            assert (head.status, head.body) == (200, b"")
            assert (await b.send("POST", "overrides", "x" * (2 << 20))).status == 400

    asyncio.run(main())


def test_numbers_of_numpy_are_json() -> None:
    from health.api import success

    assert success({"a": np.float64(0.5), "b": np.int64(3), "c": np.bool_(True)}).body.endswith(b'"warnings":[]}')
