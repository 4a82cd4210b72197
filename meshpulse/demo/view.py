"""What the demo shows, all of it asked of meshpulse over HTTP: rates in PromQL, verdicts of the health API."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from meshpulse.demo.envoy import CLUSTER

ENDPOINT = "envoy_endpoint_address"
WINDOW = "10s"
"""Five scrapes of 2 s: short, so that a failing endpoint shows at once."""

RATE = f"sum by ({ENDPOINT}) (rate(envoy_cluster_endpoint_rq_total[{WINDOW}]))"
ERRORS = f"sum by ({ENDPOINT}) (rate(envoy_cluster_endpoint_rq_error[{WINDOW}])) / {RATE}"
P99 = f"histogram_quantile(0.99, sum by (le) (rate(envoy_cluster_upstream_rq_time_bucket[{WINDOW}])))"
FACTS = {
    "samples/s": f"sum(rate(meshpulse_samples_appended_total[{WINDOW}]))",
    "series": "sum(meshpulse_series)",
    "samples in memory": "sum(meshpulse_head_samples)",
    "bytes per sample": "sum(meshpulse_head_bytes) / sum(meshpulse_head_samples)",
    "log bytes per sample": f"sum(rate(meshpulse_wal_written_bytes_total[{WINDOW}]))"
    f" / sum(rate(meshpulse_samples_appended_total[{WINDOW}]))",
    "fsync p99": f"histogram_quantile(0.99, sum by (le) (rate(meshpulse_wal_fsync_seconds_bucket[{WINDOW}])))",
}
SITE_LINES = f'sum by (site) (rate({{log="access",env="demo"}}[{WINDOW}]))'
SITE_ERRORS = f'sum by (site) (rate({{log="access",env="demo"}} | json | status >= 500 [{WINDOW}])) / {SITE_LINES}'
LAST_ERROR = '{log="access",env="demo"} | json | status >= 500'
"""LogQL over the lines of nginx, as they stand in its files."""

HISTORY_S = 60
STEP_S = 2
SICK = 0.05
EVENTS_SHOWN = 6
_STYLES = {"healthy": "green", "suspect": "yellow", "ejected": "bold red", "probation": "cyan", "ramp": "cyan"}
_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(slots=True)
class Endpoint:
    """One row of the table; rates per second, errors as a fraction of requests (None = no answer yet)."""

    address: str
    rate: float | None = None
    errors: float | None = None
    history: list[float] = field(default_factory=list)
    state: str = "-"
    weight: float = 1.0


@dataclass(slots=True)
class Snapshot:
    """Everything one picture shows."""

    endpoints: list[Endpoint] = field(default_factory=list)
    p99_ms: float | None = None
    facts: dict[str, float | None] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    sites: dict[str, tuple[float, float]] = field(default_factory=dict)  # lines a second, share of them with 5xx
    last_error: str = ""


class Asker:
    """Asks meshpulse over HTTP.

    Parameters
    ----------
    lines : there are lines of nginx to ask for
    """

    def __init__(self, url: str, client: aiohttp.ClientSession, *, lines: bool = False) -> None:
        self._url = url
        self._client = client
        self._lines = lines

    async def _ask(self, path: str, **params: str) -> list[dict[str, Any]]:
        async with self._client.post(f"{self._url}/api/v1/{path}", data=params) as response:
            body = await response.json(content_type=None)
        result: list[dict[str, Any]] = body["data"]["result"] if body.get("status") == "success" else []
        return result

    async def instant(self, query: str) -> dict[str, float]:
        """Endpoint (or "") -> value of an instant query."""
        rows = await self._ask("query", query=query)
        return {row["metric"].get(ENDPOINT, ""): float(row["value"][1]) for row in rows}

    async def history(self, query: str) -> dict[str, list[float]]:
        """Endpoint -> values of the last minute."""
        end = time.time() // STEP_S * STEP_S
        rows = await self._ask("query_range", query=query, start=str(end - HISTORY_S), end=str(end), step=str(STEP_S))
        return {row["metric"].get(ENDPOINT, ""): [float(value) for _, value in row["values"]] for row in rows}

    async def health(self, path: str) -> list[dict[str, Any]]:
        """Rows of the health API, ``endpoints`` or ``events``."""
        async with self._client.get(f"{self._url}/api/v1/health/{path}", params={"service": CLUSTER}) as response:
            body = await response.json(content_type=None)
        rows: list[dict[str, Any]] = body["data"][path] if body.get("status") == "success" else []
        return rows

    async def _loki(self, path: str, query: str, **params: str) -> list[dict[str, Any]]:
        url = f"{self._url}/loki/api/v1/{path}"
        async with self._client.get(url, params={"query": query, **params}) as response:
            body = await response.json(content_type=None)
        result: list[dict[str, Any]] = body["data"]["result"] if body.get("status") == "success" else []
        return result

    async def lines(self) -> tuple[dict[str, tuple[float, float]], str]:
        """(lines a second, share of 5xx) of each site, and the newest line with 5xx."""
        if not self._lines:
            return {}, ""
        rates, errors, last = await asyncio.gather(
            self._loki("query", SITE_LINES),
            self._loki("query", SITE_ERRORS),
            self._loki("query_range", LAST_ERROR, limit="1"),
        )
        bad = {row["metric"]["site"]: float(row["value"][1]) for row in errors}
        sites = {row["metric"]["site"]: float(row["value"][1]) for row in rates}
        # each stream of the answer has a line; the request id tells nobody anything here
        text = last[0]["values"][0][1].partition(',"request_id"')[0] + "}" if last else ""
        return {site: (rate, bad.get(site, 0.0)) for site, rate in sorted(sites.items())}, text

    async def snapshot(self, names: dict[str, str]) -> Snapshot:
        """Ask for everything at once; ``names`` of the upstreams by address."""
        (rates, errors, p99), history, facts, verdicts, events, (sites, last_error) = await asyncio.gather(
            asyncio.gather(*map(self.instant, (RATE, ERRORS, P99))),
            self.history(ERRORS),
            asyncio.gather(*map(self.instant, FACTS.values())),
            self.health("endpoints"),
            self.health("events"),
            self.lines(),
        )
        rows = [Endpoint(a, rates.get(a), errors.get(a), history.get(a, [])) for a in names]
        known = {verdict["endpoint"]: verdict for verdict in verdicts}
        for row in rows:
            if row.address in known:
                row.state, row.weight = known[row.address]["state"], known[row.address]["weight_factor"]
        told = [event for event in events if event["endpoint"] in names]
        values = {name: _number(fact.get("")) for name, fact in zip(FACTS, facts, strict=True)}
        return Snapshot(rows, _number(p99.get("")), values, told, sites, last_error)


def event_line(event: dict[str, Any], names: dict[str, str]) -> str:
    """An event for a person: when, what, which upstream, why."""
    return f"{event['time'][11:19]} {event['type']} {names[event['endpoint']]}: {event['reason']}"


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else value


def _bar(values: list[float]) -> str:
    steps = len(_BARS) - 1
    return "".join(_BARS[min(steps, round(max(0.0, v) * steps))] if v == v else " " for v in values)


def _text(value: float | None, form: str, scale: float = 1.0, unit: str = "") -> str:
    return "-" if value is None or value != value else f"{value * scale:{form}}{unit}"


def _sick(endpoint: Endpoint) -> bool:
    return endpoint.errors is not None and endpoint.errors > SICK


def facts_lines(snapshot: Snapshot) -> list[str]:
    """The store's own figures."""
    facts = snapshot.facts
    return [
        f"{_text(facts.get('samples/s'), ',.0f')} samples/s · {_text(facts.get('series'), ',.0f')} series"
        f" · {_text(facts.get('samples in memory'), ',.0f')} samples in memory"
        f" · fsync p99 {_text(facts.get('fsync p99'), '.1f', 1000, ' ms')}"
        f" · request p99 {_text(snapshot.p99_ms, '.1f', 1, ' ms')}",
        f"{_text(facts.get('bytes per sample'), '.1f')} bytes per sample in memory (falls as chunks fill)"
        f" · {_text(facts.get('log bytes per sample'), '.1f')} in the log",
    ]


def lines_lines(snapshot: Snapshot) -> list[str]:
    """What the lines of nginx say; nothing without them."""
    if not snapshot.sites:
        return []
    sites = " · ".join(f"{s} {rate:.0f} lines/s, {bad:.1%} 5xx" for s, (rate, bad) in snapshot.sites.items())
    return [f"nginx by its log: {sites}", *([f"newest 5xx: {snapshot.last_error}"] if snapshot.last_error else [])]


def render(snapshot: Snapshot, names: dict[str, str], headline: str) -> RenderableType:
    """The live view."""
    table = Table(expand=True, box=None, pad_edge=False)
    table.add_column("upstream")
    table.add_column("endpoint")
    table.add_column("requests/s", justify="right")
    table.add_column("errors", justify="right")
    table.add_column("verdict")
    table.add_column("weight", justify="right")
    table.add_column(f"errors, last {HISTORY_S} s", min_width=HISTORY_S // STEP_S + 1)
    for endpoint in snapshot.endpoints:
        style = "bold red" if _sick(endpoint) else "green"
        table.add_row(
            names.get(endpoint.address, ""),
            endpoint.address,
            _text(endpoint.rate, ".1f"),
            Text(_text(endpoint.errors, ".1%"), style=style),
            Text(endpoint.state, style=_STYLES.get(endpoint.state, "dim")),
            f"{endpoint.weight:.0%}",
            Text(_bar(endpoint.history), style="red"),
        )
    parts: list[RenderableType] = [table, "", Text("\n".join(facts_lines(snapshot)), style="cyan")]
    if snapshot.sites:
        parts += ["", Text("\n".join(lines_lines(snapshot)), style="magenta", no_wrap=True, overflow="ellipsis")]
    if snapshot.events:
        lines = [event_line(event, names) for event in snapshot.events[-EVENTS_SHOWN:]]
        parts += ["", Text("\n".join(lines), no_wrap=True, overflow="ellipsis")]
    return Panel(Group(*parts), title=headline, title_align="left")


def plain(snapshot: Snapshot, names: dict[str, str], headline: str) -> str:
    """The same for a file or a pipe."""
    lines = [headline, f"  {'upstream':<10} {'endpoint':<22} {'requests/s':>10} {'errors':>8} verdict"]
    for e in snapshot.endpoints:
        mark = "  <- failing" if _sick(e) else ""
        figures = f"{_text(e.rate, '.1f'):>10} {_text(e.errors, '.1%'):>8}"
        lines.append(f"  {names.get(e.address, ''):<10} {e.address:<22} {figures} {e.state}{mark}")
    events = [event_line(event, names) for event in snapshot.events[-EVENTS_SHOWN:]]
    lines += [f"  {line}" for line in (*facts_lines(snapshot), *lines_lines(snapshot), *events)]
    return "\n".join(lines)


def story(snapshot: Snapshot, names: dict[str, str], ill_ms: float, healed_ms: float) -> str:
    """All that was decided, told from the moment the upstream fell ill."""
    lines = []
    for event in snapshot.events:
        after = (event["time_ms"] - ill_ms) / 1000
        where = (
            "" if event["time_ms"] < healed_ms else f" ({(event['time_ms'] - healed_ms) / 1000:.0f} s after it healed)"
        )
        weight = f", weight {event['weight']:.0%}" if event["type"] in ("probation", "ramp") else ""
        why = f": {event['reason']}" if event["reason"] else ""
        lines.append(f"  {after:+6.1f} s  {event['type']:<10} {names[event['endpoint']]}{weight}{why}{where}")
    return "\n".join(lines)
