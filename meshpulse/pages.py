"""What is asked seldom: readiness, metrics, the home page; FastAPI with its OpenAPI, errors in Prometheus' words."""

from __future__ import annotations

import html
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException

from health import openapi as health_openapi
from meshpulse import version
from meshpulse.config import ConfigError
from meshpulse.health_page import PAGE as HEALTH_PAGE
from meshpulse.metrics import create_registry
from meshpulse.openapi import document
from meshpulse.runtime import Runtime

_GET = ["GET", "HEAD"]
_CHANGE = ["POST", "PUT"]
_LIFECYCLE_OFF = PlainTextResponse("Lifecycle API is not enabled.", 403)
_TEXT: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}
_UNREADY: dict[int | str, dict[str, Any]] = {503: {"description": "not yet: the text says why", **_TEXT}}
_LIFECYCLE: dict[int | str, dict[str, Any]] = {
    403: {"description": "it is off", **_TEXT},
    405: {"description": "not by GET", **_TEXT},
    500: {"description": "the configuration cannot be used: the text says why", **_TEXT},
}
_METRICS: dict[int | str, dict[str, Any]] = {200: {"content": {**_TEXT["content"], "application/openmetrics-text": {}}}}


async def _http_error(_request: Request, error: Exception) -> Response:
    """404 and 405 as Prometheus words them; clients repeat a POST as GET only when they see these."""
    assert isinstance(error, HTTPException)
    text = {404: "404 page not found", 405: "Method Not Allowed"}.get(error.status_code, str(error.detail))
    return PlainTextResponse(f"{text}\n", error.status_code, headers=error.headers)


async def _our_fault(_request: Request, _error: Exception) -> Response:
    return PlainTextResponse("Internal Server Error\n", 500)


def _complete(app: FastAPI, parts: Sequence[Mapping[str, Any]]) -> Callable[[], dict[str, Any]]:
    """OpenAPI of FastAPI's own routes and of bare ASGI ones, which describe themselves."""
    own = app.openapi

    def openapi() -> dict[str, Any]:
        whole = own()
        for part in parts:
            whole["paths"] |= part["paths"]
            for kind, entries in part["components"].items():
                whole.setdefault("components", {}).setdefault(kind, {}).update(entries)
        whole["security"] = [{}, {"token": []}]
        return whole

    return openapi


def create_pages(runtime: Runtime) -> FastAPI:
    """Build the application for all routes that are not hot."""
    app = FastAPI(
        title="meshpulse",
        version=version(),
        redirect_slashes=False,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        exception_handlers={HTTPException: _http_error, Exception: _our_fault},
    )
    app.openapi = _complete(app, [document(), health_openapi.document()])  # type: ignore[method-assign]  # FastAPI's way to do it
    progress = runtime.progress
    registry = create_registry(runtime)
    begin = datetime.now(UTC)

    @app.api_route("/-/healthy", methods=_GET, response_class=PlainTextResponse)
    async def healthy() -> str:
        """The process lives."""
        return "Prometheus Server is Healthy.\n"

    @app.api_route("/-/ready", methods=_GET, response_class=PlainTextResponse, responses=_UNREADY)
    async def ready() -> PlainTextResponse:
        """Kernels are compiled and the log is replayed: requests are answered."""
        if progress.ready:
            return PlainTextResponse("Prometheus Server is Ready.\n")
        return PlainTextResponse(f"Service Unavailable: {progress.describe()}\n", 503)

    @app.api_route("/ready", methods=_GET, response_class=PlainTextResponse, responses=_UNREADY)
    async def loki_ready() -> PlainTextResponse:
        """The same for those who know Loki."""
        return PlainTextResponse("ready\n") if progress.ready else PlainTextResponse(f"{progress.describe()}\n", 503)

    @app.api_route("/-/reload", methods=["GET"], response_class=PlainTextResponse, responses=_LIFECYCLE)
    @app.api_route("/-/quit", methods=["GET"], response_class=PlainTextResponse, responses=_LIFECYCLE)
    async def not_by_get() -> PlainTextResponse:
        """What changes something is not asked for by a link."""
        return PlainTextResponse("Only POST or PUT requests allowed", 405, headers={"Allow": "POST, PUT"})

    @app.api_route("/-/reload", methods=_CHANGE, response_class=PlainTextResponse, responses=_LIFECYCLE)
    async def reload() -> PlainTextResponse:
        """Read the configuration again; says what has changed and what waits for a restart."""
        if not runtime.config.server.lifecycle or runtime.lifecycle is None:
            return _LIFECYCLE_OFF
        try:
            done = await runtime.lifecycle.reload()
        except ConfigError as error:
            return PlainTextResponse(f"failed to reload config: {error}\n", 500)
        return PlainTextResponse(f"{done}\n")

    @app.api_route("/-/quit", methods=_CHANGE, response_class=PlainTextResponse, responses=_LIFECYCLE)
    async def leave() -> PlainTextResponse:
        """End as on SIGTERM."""
        if not runtime.config.server.lifecycle or runtime.lifecycle is None:
            return _LIFECYCLE_OFF
        runtime.lifecycle.quit()
        return PlainTextResponse("Requesting termination... Goodbye!")

    @app.get("/metrics", response_class=PlainTextResponse, responses=_METRICS)
    def metrics(request: Request) -> Response:
        """Our own metrics, text format or OpenMetrics as ``Accept`` asks."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type})

    @app.api_route("/health", methods=_GET, response_class=HTMLResponse)
    async def health() -> str:
        """Endpoints, their states and reasons, for a person to watch."""
        return HEALTH_PAGE

    @app.api_route("/", methods=_GET, response_class=HTMLResponse)
    def home() -> str:
        """A page for a person, and the connection test of clients."""
        stats = runtime.store_stats()
        rows = {
            "version": f"{version()} (Python {platform.python_version()})",
            "state": progress.describe(),
            "up since": f"{begin:%Y-%m-%d %H:%M:%S} UTC",
        }
        if stats:
            rows |= {
                "series": f"{stats.series:,}",
                "samples taken": f"{stats.samples_appended:,}",
                "chunks in memory": f"{stats.head_chunks:,} ({stats.head_bytes / 2**20:,.1f} MiB)",
                "blocks on disk": f"{stats.blocks:,} ({stats.block_bytes / 2**20:,.1f} MiB)",
            }
        table = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
        return _HOME.replace("{table}", table).replace("{targets}", _targets(runtime))

    return app


TARGETS_SHOWN_MAX = 200
"""Rows of the home page; ``/api/v1/targets`` has all."""


def _targets(runtime: Runtime) -> str:
    """What is scraped, those that are down first; nothing when nothing is."""
    found = runtime.parts.scraping.targets()["activeTargets"] if runtime.parts else []
    if not found:
        return ""
    found.sort(key=lambda target: (target["health"] != "down", target["scrapePool"], target["scrapeUrl"]))
    rows = "".join(map(_target_row, found[:TARGETS_SHOWN_MAX]))
    up = sum(target["health"] == "up" for target in found)
    more = f"<p>{len(found) - TARGETS_SHOWN_MAX:,} more</p>" if len(found) > TARGETS_SHOWN_MAX else ""
    head = f"<h2>Targets: {up:,} of {len(found):,} up</h2>"
    return f"{head}<table><tr><th>health<th>job<th>URL<th>last<th>took</tr>{rows}</table>{more}"


def _target_row(target: Mapping[str, Any]) -> str:
    at, took = "", ""
    if target["health"] != "unknown":
        at, took = target["lastScrape"][11:19], f"{target['lastScrapeDuration'] * 1000:.1f} ms"
    cells = (target["health"], target["scrapePool"], target["scrapeUrl"], at, took)
    row = f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
    error = target["lastError"]
    return row + (f"<tr><td></td><td colspan=4><small>{html.escape(error)}</small></td></tr>" if error else "")


_HOME = """<!doctype html><html lang="en"><meta charset="utf-8"><title>meshpulse</title>
<style>body{font:16px/1.5 system-ui,sans-serif;margin:3rem auto;max-width:56rem;padding:0 1rem}
th{text-align:left;padding-right:2rem;font-weight:600}td{padding-right:1rem;vertical-align:top}</style>
<h1>meshpulse</h1><table>{table}</table>{targets}
<p>Grafana: add a data source of type Prometheus, and one of type Loki, with the address of this page.</p>
<p><a href="health">health</a> · <a href="metrics">metrics</a> · <a href="api/v1/status/tsdb">cardinality</a> ·
<a href="api/v1/status/config">configuration</a> ·
<a href="api/v1/targets">targets</a> · <a href="api/v1/status/runtimeinfo">runtime</a> ·
<a href="openapi.json">OpenAPI</a></p></html>
"""
