"""The demo from start to end: everything it starts, it ends."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
from rich.console import Console, RenderableType
from rich.live import Live

from meshpulse.demo.envoy import CLUSTER, Envoy
from meshpulse.demo.mesh import SECONDS_MAX, Tally, Upstream, send_traffic
from meshpulse.demo.nginx import REQUESTS_PER_SECOND as SITE_RPS
from meshpulse.demo.nginx import SITES, nginx_files, start_nginx
from meshpulse.demo.processes import DemoError
from meshpulse.demo.serve import Mesh, free_port, start_meshpulse
from meshpulse.demo.view import ERRORS, RATE, SITE_ERRORS, Asker, Snapshot, plain, render, story

SCRAPE_INTERVAL = "2s"
ENVOYS = 3
FAILS_AFTER_S = 15.0
HEALS_AFTER_S = 50.0
FAILING = 0.15
"""Fraction of requests that the failing upstream answers with 500: too thin for any one proxy to see."""
POLICY = {
    "name": "demo",
    "mode": "enforce",
    "ejection": {
        "base": "10s",
        "max": "20s",
        "ramp": [25, 50, 100],
        "ramp_step": "3s",
        "probe": {"weight_percent": 20},
    },
    "guards": {"warmup": "8s", "min_age": "8s"},  # a minute each, where nobody waits for the show
}

_PLAIN_EVERY_S = 5.0


def _introduce(console: Console, url: str, failing: str, *, lines: bool) -> None:
    console.print(f"\nGrafana: add a data source of type Prometheus with the URL {url}", highlight=False)
    console.print("Or ask by hand:", highlight=False)
    for query in (RATE, ERRORS):
        console.print(f"  curl -s {url}/api/v1/query --data-urlencode 'query={query}'", highlight=False, soft_wrap=True)
    console.print(f"  curl -s {url}/api/v1/status/tsdb", highlight=False)
    if lines:
        console.print(
            f"  curl -sG {url}/loki/api/v1/query --data-urlencode 'query={SITE_ERRORS}'",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"  meshpulse health explain {CLUSTER} {failing} --url {url}", highlight=False, soft_wrap=True)
    console.print(f"Watch endpoints, states and reasons at {url}/health\n", highlight=False)


def _speaker(console: Console) -> Callable[[str], None]:
    """Prints how far the start is, dimly where there are colours."""
    return lambda text: console.print(f"[dim]{text}[/dim]" if console.is_terminal else text, highlight=False)


def _headline(begin: float, ended: bool = False) -> str:
    seconds = time.monotonic() - begin
    if seconds < FAILS_AFTER_S:
        what = f"all upstreams are healthy, c will fail at {FAILS_AFTER_S:.0f} s"
    elif seconds < HEALS_AFTER_S:
        what = f"upstream c answers 500 to {FAILING:.0%}, until {HEALS_AFTER_S:.0f} s"
    else:
        what = "upstream c is healthy again"
    return f"meshpulse demo, {seconds:.0f} s: {what}" + ("" if ended else ", Ctrl-C ends")


async def _show(
    asker: Asker, names: dict[str, str], console: Console, duration_s: float, stop: asyncio.Event
) -> Snapshot:
    """Refresh the view until the time is over or somebody stops it; the last picture."""
    begin = time.monotonic()
    snapshot = Snapshot()
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    every = 1.0 if live else _PLAIN_EVERY_S
    with live or contextlib.nullcontext():
        while not stop.is_set():
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                snapshot = await asker.snapshot(names)
            left = duration_s - (time.monotonic() - begin)
            headline = _headline(begin, ended=left <= 0)
            if live:
                live.update(render(snapshot, names, headline), refresh=True)
            elif left > 0:
                console.out(plain(snapshot, names, headline), highlight=False)
            if left <= 0:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), min(every, left))
    if live is None:
        console.out("\nthe last view\n" + plain(snapshot, names, _headline(begin, ended=True)), highlight=False)
    return snapshot


async def _fall_ill(upstream: Upstream) -> None:
    await asyncio.sleep(FAILS_AFTER_S)
    upstream.failing = FAILING
    await asyncio.sleep(HEALS_AFTER_S - FAILS_AFTER_S)
    upstream.failing = 0.0


async def _demo(duration_s: float, console: Console, picture: Path | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    upstreams = [Upstream(name, 0.003) for name in "abcdef"]
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meshpulse-demo-")))
        timeout = aiohttp.ClientTimeout(total=10)
        client = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        for upstream in upstreams:
            await upstream.start()
            stack.push_async_callback(upstream.end)
        port = free_port()
        envoys = []
        for i in range(ENVOYS):
            envoys.append(await Envoy.start(folder, f"envoy-{i + 1}", port))
            stack.push_async_callback(envoys[-1].child.end)
        nginx = await start_nginx(folder, upstreams)
        if nginx is not None:
            stack.push_async_callback(nginx[0].end)
        else:
            console.print("nginx is not installed: no lines of it are shown", highlight=False)
        more = {"nginx": nginx_files(folder)} if nginx is not None else {}
        mesh = Mesh(folder, port, envoys, upstreams, POLICY, SCRAPE_INTERVAL, more)
        started = asyncio.ensure_future(start_meshpulse(mesh, client, _speaker(console)))
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({started, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not started.done():
            started.cancel()
            await asyncio.gather(started, return_exceptions=True)
            return
        stack.push_async_callback(started.result().end)
        url = mesh.url
        _introduce(console, url, f"127.0.0.1:{upstreams[2].port}", lines=nginx is not None)
        await asyncio.gather(*(envoy.wait_ready(client) for envoy in envoys))
        if nginx is not None:
            nginx[0].check()
        tasks = [asyncio.create_task(send_traffic(envoy.front, client, Tally())) for envoy in envoys]
        tasks.append(asyncio.create_task(_fall_ill(upstreams[2])))
        if nginx is not None:
            front = nginx[1]
            tasks += [asyncio.create_task(send_traffic(front, client, Tally(), SITE_RPS, site)) for site in SITES]
        names = {f"127.0.0.1:{upstream.port}": upstream.name for upstream in upstreams}
        begin = time.monotonic()
        clock_offset = time.time() - begin
        try:
            snapshot = await _show(Asker(url, client, lines=nginx is not None), names, console, duration_s, stop)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if snapshot.events:
            ill_ms = (clock_offset + begin + FAILS_AFTER_S) * 1000
            healed_ms = ill_ms + (HEALS_AFTER_S - FAILS_AFTER_S) * 1000
            console.out("\nwhat was decided, from the moment c fell ill:", highlight=False)
            console.out(story(snapshot, names, ill_ms, healed_ms), highlight=False)
        if picture:
            _draw(picture, render(snapshot, names, _headline(begin, ended=True)))


def _draw(picture: Path, view: RenderableType) -> None:
    """Leave a view as SVG, without the web fonts that rich links to."""
    paper = Console(record=True, width=108, file=io.StringIO(), force_terminal=True)
    paper.print(view)
    svg = paper.export_svg(title="make demo")
    picture.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), encoding="utf-8")


def run_demo(duration_s: float | None, picture: Path | None = None) -> int:
    """Run the demo; the exit code of the process.

    Parameters
    ----------
    duration_s : seconds of the live view; None = until Ctrl-C (at most an hour)
    picture : where to leave the last view as an SVG file
    """
    console = Console(soft_wrap=not sys.stdout.isatty())
    try:
        asyncio.run(_demo(min(duration_s or SECONDS_MAX, SECONDS_MAX), console, picture))
    except DemoError as error:
        Console(stderr=True).print(f"demo: {error}", highlight=False, markup=False)
        return 1
    return 0
