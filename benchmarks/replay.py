"""Replay of the write-ahead log into heads, as at a start after a crash.

    python -m benchmarks.replay [--series 10000] [--rounds 480]

Writes counters to a fresh folder, closes the store without a cut, opens it again and prints samples/s and core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.bodies import mesh_labels
from meshpulse.warm import warm
from tsdb.batch import SampleBatch
from tsdb.db import TSDB, StoreConfig

FIRST_MS = 1_795_000_000_000
STEP_MS = 15_000
PER_BATCH = 2000


def opened(folder: Path) -> TSDB:
    """A store that nothing cuts behind our back."""
    db = TSDB(StoreConfig(folder, maintenance_seconds=3600.0))
    db.open()
    return db


def write(db: TSDB, n_series: int, rounds: int) -> None:
    """Counters that move by Poisson steps, 2,000 samples a record."""
    tenant = db.tenant("default")
    refs = np.array([tenant.registry.resolve(dict(mesh_labels(i, n_series))) for i in range(n_series)], np.uint32)
    rng = np.random.default_rng(1)
    values = np.zeros(n_series)
    for k in range(rounds):
        values += rng.poisson(60, n_series)
        ts_ms = np.full(n_series, FIRST_MS + k * STEP_MS)
        bits = values.view(np.uint64).copy()
        logged = [
            tenant.append(
                SampleBatch(refs[i : i + PER_BATCH], ts_ms[i : i + PER_BATCH], bits[i : i + PER_BATCH], tenant.registry)
            )
            for i in range(0, n_series, PER_BATCH)
        ]
        for future in logged:
            future.result()


def main() -> None:
    """Print the best of three replays."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=480)
    given = parser.parse_args()
    warm()
    with tempfile.TemporaryDirectory() as folder:
        db = opened(Path(folder))
        write(db, given.series, given.rounds)
        db.close()
        best = 0.0
        for _ in range(3):
            begin = time.process_time()
            db = opened(Path(folder))
            seconds = time.process_time() - begin
            assert db.replay.samples == given.series * given.rounds, "every logged sample comes back"
            best = max(best, db.replay.samples / seconds)
            db.close()
    print(f"replay: {best / 1e6:.1f} M samples/s/core, {given.series} series, {given.rounds} samples each")


if __name__ == "__main__":
    main()
