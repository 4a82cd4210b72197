"""Record what a real Envoy's outlier detection decides: ``python -m tests.health.record_envoy OUT.json``.

Traffic flows in bursts with a pause around every sweep of the detector, so that the per-endpoint counters between two
pauses are exactly what the sweep between them judged. Nothing is enforced (``enforcing_* 0``), all other fields keep
Envoy's defaults; ``consecutive_*`` is out of the way. Needs ``envoy`` beside the Python in use.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
from pathlib import Path

import aiohttp
from aiohttp import web

HOSTS = 7
FIRST_PORT = 18_600
PROXY_PORT, ADMIN_PORT = 18_590, 18_591
INTERVAL_S = 10.0
BURST_S = 5.0
# failure rate and share of traffic of each host, per interval
PLANS = (
    ((0.3, 0, 0, 0, 0, 0, 0), (1, 1, 1, 1, 1, 1, 1)),
    ((0.3, 0.3, 0, 0, 0, 0, 0), (1, 1, 1, 1, 1, 1, 1)),
    ((0.02, 0.01, 0, 0, 0, 0.01, 0.05), (1, 1, 1, 1, 1, 1, 1)),
    ((1.0, 0, 0, 0.9, 0, 0, 0.8), (1, 1, 1, 1, 1, 1, 1)),
    ((0.5, 0.5, 0.5, 0, 0, 0, 0), (1, 1, 1, 0.3, 0.3, 0.3, 1)),
    ((1.0, 0, 0, 0, 0, 0, 0), (0.6, 1, 1, 1, 1, 1, 1)),
    ((0, 0, 0, 0, 0, 0, 0), (1, 1, 1, 1, 1, 1, 1)),
    ((0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1), (1, 1, 1, 1, 1, 1, 1)),
)


def config(events: Path) -> dict[str, object]:
    """One listener; a header picks the endpoint through a subset, so that each host gets the traffic planned for it."""
    endpoints = [
        {
            "endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": FIRST_PORT + h}}},
            "metadata": {"filter_metadata": {"envoy.lb": {"host": str(h)}}},
        }
        for h in range(HOSTS)
    ]
    routes = [
        {
            "match": {"prefix": f"/{h}"},
            "route": {"cluster": "svc", "metadata_match": {"filter_metadata": {"envoy.lb": {"host": str(h)}}}},
        }
        for h in range(HOSTS)
    ]
    network, http = "type.googleapis.com/envoy.extensions.filters.network", "envoy.filters.network"
    manager = {
        "@type": f"{network}.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    return {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ADMIN_PORT}}},
        "cluster_manager": {"outlier_detection": {"event_log_path": str(events)}},
        "static_resources": {
            "listeners": [
                {
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": PROXY_PORT}},
                    "filter_chains": [
                        {"filters": [{"name": f"{http}.http_connection_manager", "typed_config": manager}]}
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "svc",
                    "type": "STATIC",
                    "lb_subset_config": {"subset_selectors": [{"keys": ["host"]}]},
                    "track_cluster_stats": {"per_endpoint_stats": True},
                    "outlier_detection": {
                        "consecutive_5xx": 1_000_000,
                        "consecutive_gateway_failure": 1_000_000,
                        "max_ejection_percent": 100,  # above it nothing is even written to the event log
                        "enforcing_success_rate": 0,
                        "enforcing_failure_percentage": 0,
                    },
                    "load_assignment": {"cluster_name": "svc", "endpoints": [{"lb_endpoints": endpoints}]},
                }
            ],
        },
    }


async def upstreams(failing: list[float]) -> list[web.AppRunner]:
    """A server per host that fails as often as ``failing`` says at the moment."""

    def handler(host: int):
        async def answer(_: web.Request) -> web.Response:
            return web.Response(status=503 if random.random() < failing[host] else 200)

        return answer

    runners = []
    for host in range(HOSTS):
        app = web.Application()
        app.router.add_get("/{path:.*}", handler(host))
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", FIRST_PORT + host).start()
        runners.append(runner)
    return runners


async def counters(session: aiohttp.ClientSession) -> list[tuple[int, int]]:
    """(errors, attempts) of each host so far."""
    async with session.get(f"http://127.0.0.1:{ADMIN_PORT}/stats/prometheus?filter=endpoint") as reply:
        text = await reply.text()
    found = {}
    for line in text.splitlines():
        for name in ("rq_error", "rq_success"):
            if line.startswith(f"envoy_cluster_endpoint_{name}{{"):
                port = int(line.split('envoy_endpoint_address="127.0.0.1:')[1].split('"')[0])
                found[port - FIRST_PORT, name] = int(float(line.rsplit(" ", 1)[1]))
    return [(found[h, "rq_error"], found[h, "rq_error"] + found[h, "rq_success"]) for h in range(HOSTS)]


async def burst(session: aiohttp.ClientSession, shares: tuple[float, ...], seconds: float) -> None:
    """About 150 requests to each host of share 1, evenly over ``seconds``."""

    async def drive(host: int, n: int) -> None:
        for _ in range(n):
            async with session.get(f"http://127.0.0.1:{PROXY_PORT}/{host}") as reply:
                await reply.read()
            await asyncio.sleep(seconds / 160)

    await asyncio.gather(*(drive(h, round(150 * share)) for h, share in enumerate(shares)))


async def record(out: Path) -> None:
    """Run all plans and write the trace."""
    random.seed(1)
    failing = [0.0] * HOSTS
    runners = await upstreams(failing)
    with tempfile.TemporaryDirectory() as folder:
        events, file = Path(folder) / "events.log", Path(folder) / "envoy.json"
        file.write_text(json.dumps(config(events)))
        envoy = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).parent / "envoy"), "-c", str(file), "--disable-hot-restart", "--concurrency", "1",
            "--use-dynamic-base-id", "-l", "error", "--file-flush-interval-msec", "200",
        )  # fmt: skip
        try:
            async with aiohttp.ClientSession() as session:
                trace = await _record(session, failing, events)
        finally:
            envoy.terminate()
            await envoy.wait()
    for runner in runners:
        await runner.cleanup()
    out.write_text(json.dumps({"envoy": "1.40.0", "interval_s": INTERVAL_S, "sweeps": trace}, indent=1) + "\n")


async def _record(session: aiohttp.ClientSession, failing: list[float], events: Path) -> list[dict[str, object]]:
    loop = asyncio.get_running_loop()
    while True:
        try:
            before = await counters(session)
            break
        except (aiohttp.ClientError, KeyError):
            await asyncio.sleep(0.05)
    born = loop.time()
    trace, told = [], 0
    for number, (rates, shares) in enumerate(PLANS):
        # the sweep is expected at born + 10 (number + 1); bursts lie well between two of them
        await asyncio.sleep(max(0.0, born + INTERVAL_S * number + 2.8 - loop.time()))
        failing[:] = rates
        await burst(session, shares, BURST_S)
        await asyncio.sleep(max(0.0, born + INTERVAL_S * (number + 1) + 2.0 - loop.time()))
        now = await counters(session)
        lines = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
        fresh, told = lines[told:], len(lines)
        trace.append(
            {
                "hosts": [[k - k0, n - n0] for (k, n), (k0, n0) in zip(now, before, strict=True)],
                "events": [
                    {
                        "type": event["type"],
                        "host": int(event["upstream_url"].rsplit(":", 1)[1]) - FIRST_PORT,
                        **{k: v for key in event if key.endswith("_event") for k, v in event[key].items()},
                    }
                    for event in fresh
                    if event["action"] == "EJECT"
                ],
            }
        )
        before = now
    return trace


if __name__ == "__main__":
    asyncio.run(record(Path(sys.argv[1])))
