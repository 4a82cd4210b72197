"""Damaged files under the running program: counted in ``/metrics``, named in its log, or a start that says why not."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.server import Server
from tests.tsdb.logs.test_store import open_db, push, rows_of

PLAIN = "storage: {free_bytes_min: 0, free_fraction_min: 0}\n"


def test_a_damaged_log_part_is_counted_and_named_and_the_rest_is_served(tmp_path: Path) -> None:
    db = open_db(tmp_path / "data")
    logs = db.tenant("default").logs
    for first in (0, 20):
        push(logs, rows_of(first, 20))
        logs.flush()
    db.close()
    part = min((tmp_path / "data/tenants/default/logs").glob("block-*"))
    part.write_bytes(part.read_bytes()[:-1])
    with Server(tmp_path, PLAIN) as server:
        assert server.metric("meshpulse_damage") == 1
        assert f"tenants/default/logs/{part.name} cannot be opened" in server.log
        assert "Traceback" not in server.log
        found = server.get("/loki/api/v1/query_range", query='{app=~".+"}', start=0, end=1, limit=100)
        rows = [value for stream in found.json()["data"]["result"] for value in stream["values"]]
        assert sorted((int(ts), line.encode()) for ts, line in rows) == [row[1:] for row in rows_of(20, 20)]


def test_damaged_positions_stop_the_start_by_name(tmp_path: Path) -> None:
    positions = tmp_path / "data/nginx/positions.json"
    positions.parent.mkdir(parents=True)
    positions.write_bytes(b'{"version":1,"crc32":7,"files":[]}')
    server = Server(tmp_path, f"{PLAIN}nginx: {{files: [{{paths: ['{tmp_path}/*.log'], format: combined}}]}}\n")
    try:
        assert server.process.wait(120) == 1
        assert f"{positions}: the checksum does not match" in server.log
        assert "Traceback" not in server.log
    finally:
        server.kill()
