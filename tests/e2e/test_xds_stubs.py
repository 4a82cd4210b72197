"""Our messages as the official stubs read and write them, over TLS and with tokens."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.server import Server
from tests.e2e.test_access import READ, WRITE, bearer, certificate

STUBS = Path(sys.prefix) / "xds-protos"
"""Where ``.ci/run`` puts them."""


@pytest.mark.skipif(not STUBS.is_dir(), reason=f"needs xds-protos in {STUBS}: see .ci/run")
def test_official_stubs(tmp_path: Path) -> None:
    authority = certificate(tmp_path, "authority")
    cert, key = certificate(tmp_path, "server", authority)
    topology = tmp_path / "topology.yml"
    place = {"region": "r", "zone": "z2", "sub_zone": "s", "priority": 1}
    rows = [
        {"address": "10.0.0.1:80", "weight": 3},
        {"address": "[::1]:81", "hostname": "h", "health": "DRAINING", **place},
    ]
    topology.write_text(json.dumps({"services": {"svc": {"endpoints": rows}}}))
    roles = {"reader": (READ, "read"), "writer": (WRITE, "write")}
    config = {
        "storage": {"free_bytes_min": 0, "free_fraction_min": 0},
        "server": {"tls_cert_file": str(cert), "tls_key_file": str(key)},
        "auth": {"tokens": [{"name": n, "token": t, "roles": [role]} for n, (t, role) in roles.items()]},
        "health": {
            "topology": [{"file": str(topology)}],
            "grpc_listen": "127.0.0.1:0",
            "load_report_interval": "2500ms",
        },
    }
    with Server(tmp_path, json.dumps(config), tls=ssl.create_default_context(cafile=str(authority[0]))) as server:
        port = re.search(r"xDS over gRPC.*port=(\d+)", server.log)
        assert port
        script = Path(__file__).with_name("xds_stub_client.py")
        command = [sys.executable, script, port[1], "svc", authority[0], READ, WRITE]
        done = subprocess.run(command, env={"PYTHONPATH": str(STUBS)}, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["told"]["type"].endswith("ClusterLoadAssignment")

        def endpoint(address: str, port: int, status: str, weight: int, **more: str) -> dict[str, object]:
            where = {"address": {"socket_address": {"address": address, "port_value": port}}, **more}
            return {"endpoint": where, "health_status": status, "load_balancing_weight": weight}

        assert said["told"]["assignment"] == {
            "cluster_name": "svc",
            "endpoints": [
                {"lb_endpoints": [endpoint("10.0.0.1", 80, "HEALTHY", 300)]},
                {
                    "locality": {"region": "r", "zone": "z2", "sub_zone": "s"},
                    "priority": 1,
                    "lb_endpoints": [endpoint("::1", 81, "DRAINING", 100, hostname="h")],
                },
            ],
        }
        nack = server.get("/api/v1/health/events", bearer(READ), type="nack").json()["data"]["events"][0]["evidence"]
        assert nack == {"version": said["told"]["version"], "error": "not this", "node": "stub"}
        assert said["refused"] == {"none": "UNAUTHENTICATED", "writer": "PERMISSION_DENIED"}

        interval = {"load_reporting_interval": "2.500s"}
        assert said["wanted"] == {"send_all_clusters": True, "report_endpoint_granularity": True, **interval}
        query = 'endpoint_attempts_error_total{job="lrs",instance="stub",observer_zone="z7",zone="z2",service="svc"}'
        until = time.monotonic() + 20
        while not (found := server.get("/api/v1/query", bearer(READ), query=query).json()["data"]["result"]):
            assert time.monotonic() < until
            time.sleep(0.1)
        assert found[0]["value"][1] == "2"
