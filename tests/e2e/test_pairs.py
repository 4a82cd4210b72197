"""Two real Prometheis that scrape the same target and write to us are stored as one, and either may end."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from tests.e2e.prometheus import Exporter, Prometheus
from tests.e2e.server import Server

CONFIG = """
storage: {free_bytes_min: 0, free_fraction_min: 0}
ha: {cluster_label: cluster, replica_label: __replica__, failover_timeout: 3s}
"""


def wait_for(what: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.2)


def passed_over(server: Server) -> float:
    found = re.search(r'meshpulse_rejected_total\{reason="other_replica"\} (\S+)', server.get("/metrics").body.decode())
    return float(found[1]) if found else 0.0


def newest_age(server: Server) -> float:
    found = server.query("time() - max(timestamp(demo_temperature))")
    return float(found[0]["value"][1]) if found else 99.0


def test_a_pair_is_stored_as_one(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("server", "a", "b")]
    for folder in folders:
        folder.mkdir()
    exporter = Exporter()
    try:
        with Server(folders[0], CONFIG) as server:
            url = f"{server.url}/api/v1/write"

            def replica(folder: Path) -> Prometheus:
                labels = {"cluster": "eu", "__replica__": folder.name}
                return Prometheus(folder, exporter.target, url, external_labels=labels)

            with replica(folders[2]):
                with replica(folders[1]):
                    wait_for(lambda: passed_over(server) > 50)
                    rows = server.query('{job="demo"}')
                    assert {row["metric"].get("cluster") for row in rows} == {"eu"}
                    assert not any("__replica__" in row["metric"] for row in rows)
                    assert len(server.query("demo_temperature")) == 4
                    # one sample a second and not two
                    counts = server.query("count_over_time(demo_temperature[4s])")
                    assert all(float(row["value"][1]) <= 5 for row in counts)
                # One has ended. Whoever was listened to: the other one is, once the silence was long enough.
                time.sleep(4)
                wait_for(lambda: newest_age(server) < 1.5)
                before = passed_over(server)
                time.sleep(2)
                assert passed_over(server) == before  # nobody is left to be passed over
    finally:
        exporter.end()
