"""A real meshpulse writes what an operator configured to a stand-in of Central Dogma, and gives it back at its end."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp

from benchmarks.health_dogma import Service, push_for_ever, serve
from tests.health.centraldogma import CentralDogma

ILL = ("10.0.0.3", 80)


async def until(what: str, done: object, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.1)


async def main(folder: Path) -> None:
    policy = {"guards": {"warmup": "10s", "min_age": "10s"}}
    service = Service("checkout", 1.0, 15.0)
    async with CentralDogma(tokens={"secret-of-meshpulse": "WRITE"}) as dogma, aiohttp.ClientSession() as client:
        path = dogma.create("endpoints/checkout", service.assignment())
        token = folder / "token"
        token.write_text("secret-of-meshpulse\n")
        child, url = await serve(folder, dogma.url, [service], client, policy, token)

        def status() -> str:
            (copy,) = dogma.endpoint(path, *ILL)
            return str(copy.get("healthStatus", "UNKNOWN"))

        pushing = asyncio.create_task(push_for_ever(url, [service], client))
        try:
            await until("written", lambda: status() == "UNHEALTHY")
            async with client.get(f"{url}/metrics") as reply:
                page = await reply.text()
            assert 'meshpulse_health_central_dogma_operations_total{result="committed"} 1.0' in page
            assert "meshpulse_health_central_dogma_problems 0.0" in page
            async with client.get(f"{url}/api/v1/health/endpoints") as reply:
                rows = (await reply.json())["data"]["endpoints"]
            assert {row["weight"] if "weight" in row else row["xds"]["load_balancing_weight"] for row in rows} == {
                100_000
            }
        finally:
            pushing.cancel()
            await asyncio.gather(pushing, return_exceptions=True)
            await child.end()  # SIGTERM
        assert status() == "HEALTHY"
        assert [c.author for c in dogma.repos["g"].commits] == ["person", "system", "system"]


def test_written_and_given_back(tmp_path: Path) -> None:
    asyncio.run(main(tmp_path))
