"""``meshpulse health explain`` against a small stand-in of the API."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
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


REPLAY: dict[str, Any] = {
    "service": "svc", "policy": "default", "start": "S", "end": "E", "evaluations": 1234, "exact": False,
    "approximations": ["people gave orders, which are not repeated"],
    "decisions": [{"time": "T", "type": "ejected", "endpoint": "a:1", "reason": "15 % of attempts fail"}],
    "time_to_detect_s": {"count": 2, "p50": 5.0, "p90": 7.0},
    "ejected_endpoint_seconds": 1240.5, "errors_avoided": 812, "errors_avoided_real": 700, "peak_ejected_percent": 16.7,
    "diff_vs_live": {"added": 2, "removed": 0},
}  # fmt: skip
asked: list[dict[str, Any]] = []


class Stand(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        known = self.path == "/api/v1/health/replay" and asked[-1]["service"] == "svc"
        body = {"status": "success", "data": REPLAY} if known else {"status": "error", "error": "no such service"}
        data = json.dumps(body).encode()
        self.send_response(200 if known else 404)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

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


def test_replay(url: str, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yml"
    policy.write_text("name: strict\nerror: {min_excess: 0.02}\n")
    command = ["health", "replay", "svc", "--start", "30m", "--end", "2026-11-25T00:00:00Z", "--url", url]
    done = CliRunner().invoke(app, [*command, "--policy", str(policy)])
    assert done.exit_code == 0, done.output
    assert asked[-1]["end"] == "2026-11-25T00:00:00Z"
    assert asked[-1]["policy"] == {"name": "strict", "error": {"min_excess": 0.02}}
    assert 1790 < time.time() - float(asked[-1]["start"]) < 1900
    for part in (
        "svc by policy default, S to E",
        "approximate: people gave orders",
        "time to detect: p50 5 s, p90 7 s over 2 ejections",
        "1,240 endpoint seconds",
        "about 812 errors avoided (700 really happened)",
        "2 ejections more",
        "T ejected    a:1                      15 % of attempts fail",
    ):
        assert part in done.output
    raw = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(raw.output) == REPLAY
    assert "policy" not in asked[-1]
    policy.write_text("[")
    for wrong in (["health", "replay", "other", "--start", "1h", "--url", url], [*command, "--policy", str(policy)]):
        failed = CliRunner().invoke(app, wrong)
        assert failed.exit_code == 1
        assert "meshpulse: " in failed.output


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
