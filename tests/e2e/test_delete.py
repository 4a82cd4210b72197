"""Deleting over HTTP with curl: gone for every reader, also after kill -9, and from the disk once it is cleaned."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.bodies import write_body
from tests.e2e.server import Server

DELETE = "/api/v1/admin/tsdb/delete_series"
CLEAN = "/api/v1/admin/tsdb/clean_tombstones"
CONFIG = "storage: {free_bytes_min: 0, free_fraction_min: 0, out_of_order_window: 2d}\n"
HOUR = 3_600_000


def curl(server: Server, path: str, *arguments: str) -> int:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", "-g", *arguments]
    done = subprocess.run([*command, f"{server.url}{path}"], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


def block_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "data" / "tenants").rglob("shard-*/block-*"))


def wait_for_a_cut(server: Server) -> None:
    until = time.monotonic() + 60
    while server.metric("meshpulse_blocks") < 2:
        assert time.monotonic() < until, "no cut"
        time.sleep(0.1)


def test_delete_and_clean_over_http(tmp_path: Path) -> None:
    chance = random.Random(1)
    now = time.time_ns() // 1_000_000
    times = range(now - 9 * HOUR, now, 10_000)
    with Server(tmp_path, CONFIG, flags=("--web.enable-admin-api",)) as server:
        for pod in ("a", "b"):
            samples = [(t, chance.random()) for t in times]
            assert server.write(write_body([({"__name__": "load", "pod": pod}, samples)])).status == 204
        wait_for_a_cut(server)
        assert server.post(DELETE).status == 400
        assert server.post(DELETE, **{"match[]": "{"}).status == 400
        assert server.post(DELETE, **{"match[]": 'load{pod=~".*', "start": "x"}).json()["errorType"] == "bad_data"
        assert server.post(DELETE, **{"match[]": '{pod=~".*"}'}).status == 400
        assert server.get(DELETE).status == 405
        before = block_bytes(tmp_path)

        assert curl(server, f'{DELETE}?match[]=load{{pod="a"}}') == 204
        middle = (now - 5 * HOUR) / 1000
        span = f"&start={middle}&end={middle + 3600}"
        assert curl(server, DELETE, "-d", f'match[]=load{{pod="b"}}{span}') == 204
        server.kill()

    with Server(tmp_path, CONFIG, flags=("--web.enable-admin-api",)) as server:
        count = "count_over_time(load[12h])"
        left = len([t for t in times if not middle * 1000 <= t <= middle * 1000 + HOUR])

        def check() -> None:
            (row,) = server.query(count, time=now / 1000)
            assert row["metric"] == {"pod": "b"}
            assert float(row["value"][1]) == left
            assert server.query("count_over_time(load[59m])", time=middle + 3599) == []
            assert 'pod="b"' in (page := server.get("/federate", **{"match[]": "load"}).body.decode())
            assert 'pod="a"' not in page
            early = {"match[]": "load", "start": now / 1000 - 9 * 3600, "end": now / 1000 - 8 * 3600}
            assert [row["pod"] for row in server.get("/api/v1/series", **early).json()["data"]] == ["b"]

        check()
        assert curl(server, CLEAN) == 204
        assert block_bytes(tmp_path) < 0.6 * before
        check()
        again = [(times[0], 1.0), (times[-1], 2.0)]
        assert server.write(write_body([({"__name__": "load", "pod": "a"}, again)])).status == 204
        (row,) = server.query('load{pod="a"}[12h]', time=now / 1000)
        assert row["values"] == [[times[0] / 1000, "1"], [times[-1] / 1000, "2"]]
        server.kill()

    with Server(tmp_path, CONFIG) as server:
        (row,) = server.query('load{pod="a"}[12h]', time=now / 1000)
        assert row["values"] == [[times[0] / 1000, "1"], [times[-1] / 1000, "2"]]
        for path in (DELETE, CLEAN):
            reply = server.request("POST", f"{path}?match[]=load")
            assert reply.status == 500
            assert reply.json() == {"status": "error", "errorType": "unavailable", "error": "admin APIs disabled"}
