"""CPU time of load reports: 100 proxies that report 200 endpoints each, read, added up and written to a store.

    python -m benchmarks.health_lrs [--rounds 7]

The first round makes the series and is left out; printed is the median of the others, of this process alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from health.adapters.lrs import LoadReports
from health.adapters.xds import read_load_report
from tests.health.test_lrs import load, report  # reports by hand, as the tests write them
from tsdb.clock import SystemClock
from tsdb.db import TSDB, StoreConfig

PROXIES, ENDPOINTS = 100, 200


def main(argv: list[str] | None = None) -> int:
    """Print microseconds an endpoint and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args(argv).rounds
    rows = [load(f"10.0.{h // 250}.{h % 250 + 1}", 80, 40, 1) for h in range(ENDPOINTS)]
    bodies = [report(*rows, node=f"envoy-{p}") for p in range(PROXIES)]
    spent = []
    with tempfile.TemporaryDirectory() as folder:
        db = TSDB(StoreConfig(path=Path(folder), min_free_bytes=0, min_free_fraction=0))
        db.open()
        loads = LoadReports(db.tenant("default"), SystemClock(), 2_000)
        for _ in range(rounds + 1):
            begin = time.process_time()
            for p, body in enumerate(bodies):
                loads.take(f"envoy-{p}", "z", read_load_report(body))
            spent.append((time.process_time() - begin) / (PROXIES * ENDPOINTS))
        db.close()
    print(f"load reports: {statistics.median(spent[1:]) * 1e6:.1f} us CPU an endpoint and report")
    return 0


if __name__ == "__main__":
    sys.exit(main())
