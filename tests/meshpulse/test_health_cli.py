"""``meshpulse health explain`` against a small stand-in of the API."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from meshpulse.cli import app

DATA: dict[str, Any] = {
    "service": "svc", "endpoint": "a:1", "state": "ejected", "since": "S", "until": "U", "ejections": 2,
    "mode": "dry_run",
    "reason": "5.9 % of attempts fail",
    "conviction": {
        "time": "C", "detector": "error_ratio", "reason": "8 % of attempts fail",
        "evidence": {
            "window": "10s", "excess": 0.08, "mh_z": 9.25, "p": 1e-9, "threshold": {"z": 4, "min_excess": 0.05},
        },
    },
    "statistics": {
        "detector": "error_ratio", "window": "10s", "errors": 16.0, "attempts": 272.0, "baseline": 0.0, "z": 8.64,
    },
    "conditions": [{"name": "z", "value": 8.64, "needs": "> 4", "ok": True}],
    "counterfactual": "at min_excess 0.06 this endpoint stays healthy",
    "guards": [{"name": "cap", "ok": False, "detail": {"unavailable_after": 3}}],
    "per_observer": [{"observer": "p1", "errors": 4, "requests": 68, "peer_errors": 0, "peer_requests": 340}],
    "events": [{"time": "T", "type": "blocked", "guard": "cap", "reason": "held back by cap"}],
    "promql": "sum(x)",
}  # fmt: skip


class Stand(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = "endpoint=a%3A1" in self.path and self.headers.get("authorization") == "Bearer secret"
        if "/gates/" in self.path:
            found = "status=200" in self.path
            verdict = self.path.partition("/gates/")[2].partition("?")[0]
            body = {"status": "success", "data": {"verdict": verdict, "reason": "because"}}
        else:
            body = {"status": "success", "data": DATA} if found else {"status": "error", "error": "no endpoint"}
        data = json.dumps(body).encode()
        self.send_response(200 if found else 404)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stand) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_explain(url: str) -> None:
    done = CliRunner().invoke(app, ["health", "explain", "svc", "a:1", "--url", url], env={"MESHPULSE_TOKEN": "secret"})
    assert done.exit_code == 0, done.output
    for part in (
        "svc a:1 is ejected",
        "5.9 % of attempts fail",
        "16 of 272 attempts",
        "needs > 4",
        "no  cap",
        "4 of 68",
        "convicted C by error_ratio: 8 % of attempts fail",
        "over 10s: excess 0.08 (needs 0.05), z 9.25 (needs 4), chance 1e-09",
        "T blocked    held back by cap",
        "query: sum(x)",
    ):
        assert part in done.output
    raw = CliRunner().invoke(app, ["health", "explain", "svc", "a:1", "--url", url, "--token", "secret", "--json"])
    assert json.loads(raw.output) == DATA


def test_what_goes_wrong_is_said(url: str) -> None:
    missing = CliRunner().invoke(app, ["health", "explain", "svc", "b:1", "--url", url])
    assert missing.exit_code == 1
    assert "404: no endpoint" in missing.output
    nobody = CliRunner().invoke(app, ["health", "explain", "svc", "b:1", "--url", "http://127.0.0.1:9"])
    assert nobody.exit_code == 1
    assert "does not answer" in nobody.output


@pytest.mark.parametrize(("verdict", "code"), [("go", 0), ("halt", 1), ("wait", 2)])
def test_gate(url: str, verdict: str, code: int) -> None:
    done = CliRunner().invoke(app, ["health", "gate", verdict, "--service", "s", "--version", "v2", "--url", url])
    assert done.exit_code == code
    assert f"{verdict}: because" in done.output
