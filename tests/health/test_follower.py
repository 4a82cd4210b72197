"""The follower beside the proxies: verdicts in the file, and none of them when nobody may rely on them any more."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from health.adapters import follower as module
from health.adapters.follower import Follower, Poller
from health.topology import Fact

FACTS = {name: Fact(name, zone="z1", weight=2) for name in ("127.0.0.1:1", "127.0.0.1:2")}


class Stand(http.server.BaseHTTPRequestHandler):
    """Answers as the snapshot does: 304 to the revision it has, with the lease it was told."""

    revision = "1.1"
    state = "ejected"
    mode = "enforce"
    lease_s = 30.0
    status = 200
    token = ""

    def do_GET(self) -> None:
        Stand.token = self.headers.get("authorization", "")
        same = self.headers.get("if-none-match") == f'"{self.revision}"'
        row = {
            "endpoint": "127.0.0.1:2", "mode": self.mode, "state": self.state, "verdict": "EJECT",
            "xds": {"health_status": "UNHEALTHY" if self.state == "ejected" else "HEALTHY"},
            "weight_factor": 0.0 if self.state == "ejected" else 0.05,
        }  # fmt: skip
        body = json.dumps({"data": {"revision": self.revision, "endpoints": [row]}}).encode()
        self.send_response(304 if same else self.status)
        until = datetime.now(UTC) + timedelta(seconds=self.lease_s)
        self.send_header("mesh-health-valid-until", until.isoformat(timespec="milliseconds").replace("+00:00", "Z"))
        self.send_header("content-length", "0" if same else str(len(body)))
        self.end_headers()
        if not same:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def follower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Follower]:
    monkeypatch.setattr(module, "_RETRY_S", 0.0)
    for name, value in {
        "revision": "1.1",
        "state": "ejected",
        "mode": "enforce",
        "lease_s": 30.0,
        "status": 200,
    }.items():
        monkeypatch.setattr(Stand, name, value)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stand) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        yield Follower("c", FACTS, tmp_path / "eds.json", Poller(url, "c", "secret"))
        server.shutdown()


def shown(path: Path) -> list[tuple[str, int]]:
    document: dict[str, Any] = json.loads(path.read_text())
    (group,) = document["resources"][0]["endpoints"]
    return [(e["health_status"], e["load_balancing_weight"]) for e in group["lb_endpoints"]]


ALL = [("HEALTHY", 200), ("HEALTHY", 200)]


def test_verdicts_are_written_and_let_go_with_the_lease(
    follower: Follower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "eds.json"
    follower.let_go()
    assert shown(path) == ALL
    follower.step()
    assert (follower.applied, shown(path)) == (True, [("HEALTHY", 200), ("UNHEALTHY", 200)])
    assert Stand.token == "Bearer secret"
    written = path.stat().st_ino
    follower.step()  # 304: nothing is written
    assert path.stat().st_ino == written
    monkeypatch.setattr(Stand, "revision", "1.2")
    monkeypatch.setattr(Stand, "state", "probation")
    follower.step()
    assert shown(path) == [("HEALTHY", 200), ("HEALTHY", 10)]

    monkeypatch.setattr(Stand, "status", 503)  # not now: what was said last still counts
    monkeypatch.setattr(Stand, "revision", "1.3")
    follower.step()
    assert shown(path) == [("HEALTHY", 200), ("HEALTHY", 10)]
    monkeypatch.setattr(follower, "_until_s", time.monotonic() - 0.1)
    follower.step()
    assert (follower.applied, shown(path)) == (False, ALL)
    monkeypatch.setattr(Stand, "status", 200)
    follower.step()
    assert follower.applied


def test_a_lease_that_is_over_and_a_dry_run_change_nothing(
    follower: Follower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stand, "mode", "dry_run")
    follower.step()
    assert (follower.applied, shown(tmp_path / "eds.json")) == (False, ALL)
    monkeypatch.setattr(Stand, "mode", "enforce")
    monkeypatch.setattr(Stand, "revision", "1.2")
    follower.step()
    assert follower.applied
    monkeypatch.setattr(Stand, "lease_s", -1.0)  # the data ended: the server says so itself
    follower.step()
    assert (follower.applied, shown(tmp_path / "eds.json")) == (False, ALL)
