"""The gateway and the pages, called as ASGI applications; the running process is in tests/e2e."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from meshpulse.asgi import App, Receive, Scope, Send, answer
from meshpulse.auth import Guard, Role, Token
from meshpulse.config import parse_config
from meshpulse.pages import create_pages
from meshpulse.runtime import Runtime
from meshpulse.server import Gateway, ListenRefusedError, bind
from meshpulse.startup import Phase, Progress, StoppedError


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


def call(app: App, method: str, path: str, headers: dict[str, str] | None = None) -> Reply:
    """One request, without a network."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
        "server": ("127.0.0.1", 9090),
        "client": ("127.0.0.1", 1),
    }
    asyncio.run(app(scope, receive, send))
    fields = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return Reply(sent[0]["status"], fields, b"".join(m.get("body", b"") for m in sent[1:]))


@pytest.fixture
def progress() -> Progress:
    return Progress()


@pytest.fixture
def gateway(progress: Progress, tmp_path: Path) -> Gateway:
    config = parse_config("", {"storage": {"path": tmp_path}})
    runtime = Runtime(config, progress)
    return Gateway(progress, create_pages(runtime), Guard([], runtime.tally))


@pytest.mark.parametrize("prefix", ["/mesh", "/a/b"])
def test_g9_everything_works_below_a_prefix_too(progress: Progress, tmp_path: Path, prefix: str) -> None:
    config = parse_config("", {"storage": {"path": tmp_path}, "server": {"route_prefix": f"{prefix}/"}})
    runtime = Runtime(config, progress)
    gateway = Gateway(progress, create_pages(runtime), Guard([], runtime.tally), config.server.route_prefix)
    seen: list[tuple[str, bytes]] = []

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        seen.append((scope["path"], scope["raw_path"]))
        await answer(send, 200, b"hot")

    gateway.hot = {"/api/v1/write": app}
    for path in ("/api/v1/write", f"{prefix}/api/v1/write"):
        assert call(gateway, "POST", path).body == b"hot"
    assert seen == [("/api/v1/write", b"/api/v1/write")] * 2
    assert call(gateway, "GET", f"{prefix}/-/healthy").status == 200
    assert call(gateway, "GET", prefix).status == 200
    assert call(gateway, "GET", f"{prefix}/").status == 200
    assert call(gateway, "GET", f"{prefix}x/-/healthy").status == 404


def test_a_prefix_hides_nothing_from_the_guard(progress: Progress, tmp_path: Path) -> None:
    runtime = Runtime(parse_config("", {"storage": {"path": tmp_path}}), progress)
    guard = Guard([Token.of("reader", "x" * 20, [Role.READ])], runtime.tally)
    gateway = Gateway(progress, create_pages(runtime), guard, "/mesh")
    bearer = {"Authorization": f"Bearer {'x' * 20}"}
    assert call(gateway, "POST", "/mesh/api/v1/admin/tsdb/snapshot", bearer).status == 403
    assert call(gateway, "GET", "/mesh/metrics").status == 401


async def hot(_scope: Scope, _receive: Receive, send: Send) -> None:
    await answer(send, 200, b"hot")


async def hotter(_scope: Scope, _receive: Receive, send: Send) -> None:
    await answer(send, 200, b"hotter")


def test_g5_unknown_path_is_prometheus_404(gateway: Gateway) -> None:
    for method in ("GET", "POST", "DELETE"):
        reply = call(gateway, method, "/nowhere")
        assert (reply.status, reply.body) == (404, b"404 page not found\n")
        assert reply.headers["content-type"].startswith("text/plain")


def test_g5_wrong_verb_is_prometheus_405(gateway: Gateway) -> None:
    reply = call(gateway, "POST", "/-/ready")
    assert (reply.status, reply.body) == (405, b"Method Not Allowed\n")
    assert "GET" in reply.headers["allow"]
    assert call(gateway, "DELETE", "/metrics").status == 405


def test_no_redirect_for_a_trailing_slash(gateway: Gateway) -> None:
    assert call(gateway, "GET", "/metrics/").status == 404


def test_our_fault_is_a_plain_500(progress: Progress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(parse_config("", {"storage": {"path": tmp_path}}), progress)
    app = create_pages(runtime)
    monkeypatch.setattr(runtime, "store_stats", lambda: 1 / 0)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [], "root_path": ""}
    with pytest.raises(ZeroDivisionError):  # raised again for the server's log, after the answer
        asyncio.run(app(scope, receive, send))
    assert (sent[0]["status"], sent[1]["body"]) == (500, b"Internal Server Error\n")


def test_readiness_follows_the_phases(gateway: Gateway, progress: Progress) -> None:
    for method in ("GET", "HEAD"):
        assert call(gateway, method, "/-/healthy").status == 200
    progress.on_kernel(3, 9, "append")
    reply = call(gateway, "GET", "/-/ready")
    assert (reply.status, reply.body) == (503, b"Service Unavailable: compiling kernels (3 of 9: append)\n")
    assert call(gateway, "GET", "/ready").status == 503
    assert call(gateway, "GET", "/").status == 200
    for path in ("/api/v1/query", "/api/v1/write", "/api/v1/label/x/values"):
        reply = call(gateway, "POST", path)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    progress.enter(Phase.READY)
    reply = call(gateway, "GET", "/-/ready")
    assert (reply.status, reply.body) == (200, b"Prometheus Server is Ready.\n")
    assert call(gateway, "GET", "/ready").body == b"ready\n"
    assert call(gateway, "GET", "/-/healthy").body == b"Prometheus Server is Healthy.\n"


def test_exact_hot_paths_come_first_then_prefixes(gateway: Gateway) -> None:
    gateway.hot = {"/api/v1/write": hotter}
    gateway.hot_prefixes = {"/api/v1/": hot}
    assert call(gateway, "POST", "/api/v1/write").body == b"hotter"
    assert call(gateway, "GET", "/api/v1/query").body == b"hot"


def test_lifecycle_is_off(gateway: Gateway) -> None:
    reply = call(gateway, "POST", "/-/quit")
    assert (reply.status, reply.body) == (403, b"Lifecycle API is not enabled.")
    assert call(gateway, "GET", "/-/reload").status == 405


def test_a_websocket_is_refused_before_the_upgrade(gateway: Gateway) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Scope = {"type": "websocket", "path": "/x", "extensions": {"websocket.http.response": {}}}
    asyncio.run(gateway(scope, send, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 404


def test_metrics_answer_from_the_first_moment(gateway: Gateway) -> None:
    metrics = call(gateway, "GET", "/metrics").body.decode()
    assert "meshpulse_ready 0.0" in metrics
    assert 'meshpulse_rejected_total{reason="duplicate_timestamp"} 0.0' in metrics
    assert "process_resident_memory_bytes" in metrics


def test_metrics_speak_openmetrics_when_asked(gateway: Gateway) -> None:
    reply = call(gateway, "GET", "/metrics", {"Accept": "application/openmetrics-text;version=1.0.0"})
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    assert reply.body.endswith(b"# EOF\n")
    assert call(gateway, "GET", "/metrics").headers["content-type"].startswith("text/plain; version=")


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", ":0", "192.0.2.1:0"])
def test_other_than_loopback_is_refused(listen: str) -> None:
    with pytest.raises(ListenRefusedError, match="--insecure"):
        bind(listen, insecure=False)


def test_insecure_listens_anywhere() -> None:
    bind("0.0.0.0:0", insecure=True).close()


def test_a_taken_port_is_named() -> None:
    first = bind("127.0.0.1:0", insecure=False)
    with first, pytest.raises(ListenRefusedError, match="Address already in use"):
        bind(f"127.0.0.1:{first.getsockname()[1]}", insecure=False)


def test_starting_stops_when_told(progress: Progress) -> None:
    progress.stopping.set()
    with pytest.raises(StoppedError):
        progress.on_kernel(1, 2, "append")
    assert not progress.ready
