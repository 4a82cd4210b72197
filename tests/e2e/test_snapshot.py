"""A snapshot over HTTP, restored as docs/operations.md says: by the very commands of the page."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

from tests.e2e.bodies import write_body
from tests.e2e.server import Server
from tests.house.test_lint import ROOT

SNAPSHOT = "/api/v1/admin/tsdb/snapshot"


def test_snapshot_and_restore(tmp_path: Path) -> None:
    now = time.time_ns() // 1_000_000
    with Server(tmp_path, flags=("--web.enable-admin-api",)) as server:
        assert server.write(write_body([({"__name__": "kept"}, [(now, 1.0)])])).status == 204
        assert server.get(SNAPSHOT).status == 405
        name = server.request("POST", SNAPSHOT).json()["data"]["name"]
        assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{16}", name)
        assert server.write(write_body([({"__name__": "later"}, [(now, 1.0)])])).status == 204
        without_head = server.request("PUT", f"{SNAPSHOT}?skip_head=true").json()["data"]["name"]
        assert not (tmp_path / "data" / "snapshots" / without_head / "wal").exists()
        assert server.end() == 0

    page = (ROOT / "docs" / "operations.md").read_text()
    commands = re.search(r"<!-- restore -->\n```sh\n(.*?)```", page, re.DOTALL)
    assert commands
    script = commands[1].replace("/var/lib/meshpulse", str(tmp_path / "data")).replace("NAME", name)
    script = "\n".join(line for line in script.splitlines() if not line.startswith(("systemctl", "chown")))
    subprocess.run(["sh", "-ec", script], check=True)

    with Server(tmp_path) as server:
        at = now / 1000
        assert server.query("kept", time=at)
        assert server.query("later", time=at) == []
        reply = server.request("POST", SNAPSHOT)
        assert reply.status == 500
        assert reply.json() == {"status": "error", "errorType": "unavailable", "error": "admin APIs disabled"}
