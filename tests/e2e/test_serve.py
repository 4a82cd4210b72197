"""The life of the process: start, readiness, drain, lock, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.bodies import write_body
from tests.e2e.server import Server

MESHPULSE = str(Path(sys.executable).parent / "meshpulse")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("serve")) as running:
        yield running


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([MESHPULSE, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_version() -> None:
    done = run("version")
    assert done.returncode == 0
    assert done.stdout.startswith("meshpulse 0.")


def test_a_written_sample_is_read_at_once(server: Server) -> None:
    now = time.time_ns() // 1_000_000
    assert server.write(write_body([({"__name__": "e2e_up", "job": "a"}, [(now, 2.5)])])).status == 204
    assert server.query("e2e_up", time=now / 1000) == [
        {"metric": {"__name__": "e2e_up", "job": "a"}, "value": [now / 1000, "2.5"]}
    ]


def test_g5_over_the_wire(server: Server) -> None:
    assert (server.get("/nowhere").status, server.get("/api/v1/nowhere").status) == (404, 404)
    assert server.get("/api/v1/nowhere").body == b"404 page not found\n"
    assert server.get("/api/v1/write").status == 405
    assert server.request("DELETE", "/api/v1/query").body == b"Method Not Allowed\n"


def test_head_has_no_body(server: Server) -> None:
    reply = server.request("HEAD", "/-/ready")
    assert (reply.status, reply.body) == (200, b"")


def test_metrics_count(server: Server) -> None:
    before = server.metric("meshpulse_samples_appended_total")
    now = time.time_ns() // 1_000_000
    samples = [({"__name__": "e2e_counted", "i": str(i)}, [(now, float(i))]) for i in range(50)]
    assert server.write(write_body(samples)).status == 204
    assert server.metric("meshpulse_samples_appended_total") == before + 50
    assert server.metric("meshpulse_series") >= 50
    assert server.metric("meshpulse_wal_fsync_seconds_count") >= 1
    assert server.metric("meshpulse_warm_seconds") > 0
    conflict = write_body([({"__name__": "e2e_counted", "i": "1"}, [(now, 7.0)])])
    assert server.write(conflict).status == 400
    assert server.metric('meshpulse_rejected_total{reason="duplicate_timestamp"}') >= 1


@pytest.mark.parametrize("page", ["runtimeinfo", "flags", "config", "walreplay", "buildinfo", "tsdb"])
def test_status_pages(server: Server, page: str) -> None:
    reply = server.get(f"/api/v1/status/{page}")
    assert reply.status == 200
    assert reply.json()["status"] == "success"


def test_cardinality(server: Server) -> None:
    now = time.time_ns() // 1_000_000
    samples = [({"__name__": "e2e_many", "i": str(i)}, [(now, float(i))]) for i in range(200)]
    assert server.write(write_body(samples)).status == 204
    data = server.get("/api/v1/status/tsdb", limit=1).json()["data"]
    assert data["seriesCountByMetricName"] == [{"name": "e2e_many", "value": 200}]
    assert data["headStats"]["numSeries"] >= 200


def test_home_page_and_openapi(server: Server) -> None:
    assert b"<h1>meshpulse</h1>" in server.get("/").body
    document = server.get("/openapi.json").json()
    assert document["info"]["title"] == "meshpulse"
    assert document["openapi"].startswith("3.1")
    assert {"/metrics", "/api/v1/health/endpoints", "/v3/discovery:endpoints"} <= document["paths"].keys()
    assert "HealthSnapshot" in document["components"]["schemas"]


def test_a_websocket_gets_an_http_answer(server: Server) -> None:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw==",
    }
    assert server.get("/nowhere", headers).status == 404


def test_the_data_folder_is_locked(server: Server) -> None:
    done = run("serve", "--data-dir", str(server.folder / "data"), "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert f"is in use by process {server.pid}" in done.stderr


def test_listening_beyond_loopback_is_refused(tmp_path: Path) -> None:
    done = run("serve", "--data-dir", str(tmp_path), "--listen", "0.0.0.0:0")
    assert done.returncode == 2
    assert "--insecure" in done.stderr


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run("serve", "--data-dir", str(tmp_path), "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.returncode == 2
    assert "Address already in use" in done.stderr


def test_a_mistake_in_the_configuration_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "meshpulse.yml"
    file.write_text("wal:\n  synk: always\n")
    done = run("serve", "--config", str(file))
    assert done.returncode == 2
    assert "meshpulse.yml: line 2: wal.synk: unknown key" in done.stderr


def test_sigterm_drains_and_the_data_survives(tmp_path: Path) -> None:
    now = time.time_ns() // 1_000_000
    labels = {"__name__": "survivor"}
    with Server(tmp_path) as first:
        assert first.write(write_body([(labels, [(now, 1.0)])])).status == 204
        assert first.end() == 0
        assert "ended" in first.log
    with Server(tmp_path) as second:
        assert second.query("survivor", time=now / 1000)[0]["value"] == [now / 1000, "1"]
        assert second.metric("meshpulse_replayed_samples_total") == 1


def test_an_open_request_is_finished_after_sigterm(tmp_path: Path) -> None:
    now = time.time_ns() // 1_000_000
    body = write_body([({"__name__": "late_body"}, [(now, 1.0)])])
    head = f"POST /api/v1/write HTTP/1.1\r\nHost: x\r\nContent-Encoding: snappy\r\nContent-Length: {len(body)}\r\n\r\n"
    with Server(tmp_path) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(head.encode() + body[:5])
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            connection.sendall(body[5:])
            assert connection.recv(1000).startswith(b"HTTP/1.1 204")
        assert server.process.wait(30) == 0
    with Server(tmp_path) as server:
        assert len(server.query("late_body", time=now / 1000)) == 1


def test_inspect_wal_prints_what_was_written(tmp_path: Path) -> None:
    now = time.time_ns() // 1_000_000
    with Server(tmp_path) as server:
        assert server.write(write_body([({"__name__": "inspected", "zone": "a"}, [(now, 1.0)])])).status == 204
    done = run("inspect", "wal", str(tmp_path / "data" / "wal"))
    assert done.returncode == 0, done.stderr
    assert "SERIES: 1 records" in done.stdout
    assert "SAMPLES: 1 records" in done.stdout


def test_warm_tells_where_the_kernels_are() -> None:
    done = run("warm")
    assert done.returncode == 0, done.stderr
    assert "kernels ready in" in done.stdout


def test_another_number_of_shards_is_refused(tmp_path: Path) -> None:
    now = time.time_ns() // 1_000_000
    with Server(tmp_path) as server:
        assert server.write(write_body([({"__name__": "m"}, [(now, 1.0)])])).status == 204
    other = Server(tmp_path, "storage: {shards: 8, free_bytes_min: 0, free_fraction_min: 0}\n")
    try:
        assert other.process.wait(120) == 1
        assert "cannot start" in other.log
        assert "shard" in other.log
        assert "Traceback" not in other.log
    finally:
        other.kill()


def test_every_metric_is_documented(server: Server) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/metrics.md").read_text()
    rows = dict(re.findall(r"^\| `(meshpulse_\w+)`(.*)$", page, re.MULTILINE))
    served = set(re.findall(r"^# TYPE (meshpulse_\w+) ", server.get("/metrics").body.decode(), re.MULTILINE))
    always = {
        name
        for name, row in rows.items()
        if "only with" not in row and not re.search("_nginx_|_syslog_|_central_dogma_", name)
    }
    assert always <= served <= rows.keys()


def test_json_logs(tmp_path: Path) -> None:
    server = Server(tmp_path, flags=("--log-format", "json"))
    try:
        deadline = time.monotonic() + 60
        while '"listening"' not in server.log and time.monotonic() < deadline:
            time.sleep(0.05)
        first = json.loads(server.log.splitlines()[0])
        assert (first["event"], first["level"]) == ("listening", "info")
    finally:
        server.end(60)


def test_sigterm_while_starting_ends_with_0(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        server.wait_listening()
        assert server.end(60) == 0
    finally:
        server.kill()


def test_ready_in_two_cpu_seconds(tmp_path: Path, server: Server) -> None:
    """The module's server has left a warm cache behind."""
    with Server(tmp_path) as second:
        times = psutil.Process(second.pid).cpu_times()
        used = times.user + times.system
    print(f"ready after {used:.2f} CPU s")
    # the promise is 2 s on an idle machine; twice that here, because a busy neighbour inflates CPU time
    assert used < 4.0


def test_nothing_is_left_running(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        pid = server.pid
        assert psutil.Process(pid).children(recursive=True) == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
