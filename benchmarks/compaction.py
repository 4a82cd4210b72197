"""What merging blocks into days and weeks saves and costs: ``python -m benchmarks.compaction``.

Seven days at 15 s are written into a store of their own: the values of the shared captures, over and over with counters
that go on from where they were (a capture is too short for a week), and generated counters and gauges. Then the blocks
of 2 h are merged. Bytes are those of whole blocks, index included. CPU time of this process; best of 3 for the query.
An argument is the seconds between two samples instead of 15: 60 needs a quarter of the time and memory.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.codec import FIRST_MS, STEP_MS, captures
from query.engine.engine import Engine
from query.limits import QueryLimits
from tsdb.batch import SampleBatch
from tsdb.db import TSDB, StoreConfig

WEEK_MS = 7 * 24 * 3_600_000
WRITTEN_MS = WEEK_MS + 30 * 3_600_000  # a week is merged when it lies behind the window of 24 h
SERIES = 1_000
FIRST_OF_WEEK_MS = FIRST_MS // WEEK_MS * WEEK_MS


def generated(step_ms: int) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.float64]]]:
    """Yield what a mesh has: counters of requests under load and gauges of two decimals, scraped with jitter."""
    rng = np.random.default_rng(1)
    n = WRITTEN_MS // step_ms
    times = FIRST_OF_WEEK_MS + np.arange(n, dtype=np.int64) * step_ms + rng.integers(0, 20, n)
    yield "counters", times, np.cumsum(rng.poisson(60, (SERIES, n)), axis=1).astype(float)
    yield "gauges, .2f", times, np.round(rng.normal(50, 10, (SERIES, n)), 2)


def stretched(step_ms: int) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.float64]]]:
    """Yield every (name, times (m,), values (series, m)): each capture repeated for a week, at most 1,000 series."""
    n = WRITTEN_MS // step_ms
    for name, taken, bits in captures():
        chosen = bits[:: max(1, len(bits) // SERIES)][:SERIES]
        values, late = chosen.view(np.float64), taken - FIRST_MS - np.arange(len(taken)) * STEP_MS
        rounds = -(-n // len(taken))
        grown = np.nan_to_num(values[:, -1] - values[:, 0])
        rises = (np.diff(values, axis=1) >= 0).all(axis=1)  # counters go on, gauges begin again
        steps = np.repeat(np.arange(rounds), len(taken))[:n]
        every = np.tile(values, rounds)[:, :n] + np.where(rises, grown, 0.0)[:, None] * steps
        yield name, FIRST_OF_WEEK_MS + np.arange(n, dtype=np.int64) * step_ms + np.tile(late, rounds)[:n], every


def write(db: TSDB, times: NDArray[np.int64], values: NDArray[np.float64]) -> None:
    """Write all series, forty scrapes a batch, and cut as a running store does."""
    tenant = db.tenant("default")
    refs = np.array(
        [tenant.registry.resolve({"__name__": "m", "job": "mesh", "i": str(i)}) for i in range(len(values))], np.uint32
    )
    registry = tenant.registry
    at_once = 40
    for first in range(0, len(times), at_once):
        ts_ms = times[first : first + at_once]
        bits = np.ascontiguousarray(values[:, first : first + at_once].T).view(np.uint64).reshape(-1)
        batch = SampleBatch(np.tile(refs, len(ts_ms)), np.repeat(ts_ms, len(refs)), bits, registry)
        assert tenant.append(batch).result().accepted == len(bits)
        if first % (at_once * 12) == 0:
            db.maintain()
    db.maintain()


def ask(db: TSDB) -> float:
    """CPU seconds of a rate over the week, step 1 h, all series."""
    engine = Engine(QueryLimits(samples_max=1 << 40, workers=1))
    best = float("inf")
    for _ in range(3):
        reader = db.reader("default")
        assert reader is not None
        begin = time.process_time()
        engine.range(reader, "sum(rate(m[1h]))", FIRST_OF_WEEK_MS, FIRST_OF_WEEK_MS + WEEK_MS - 1, 3_600_000)
        best = min(best, time.process_time() - begin)
    return best


def figures(db: TSDB) -> tuple[int, float, float]:
    """Blocks, bytes a sample, and CPU seconds of the query, of the week."""
    week = [b.meta for s in db.tenant("default").shards for b in s.blocks if b.meta.max_ms < FIRST_OF_WEEK_MS + WEEK_MS]
    return len(week), sum(m.bytes for m in week) / sum(m.samples for m in week), ask(db)


def main(step_ms: int = STEP_MS) -> None:
    """Print one line a data set."""
    print(f"{'data':16}{'blocks':>12}{'B/sample':>18}{'merge ns/sample':>18}{'7 d query, CPU s':>20}")
    for make in (stretched, generated):
        for name, times, values in make(step_ms):
            with tempfile.TemporaryDirectory() as folder:
                config = StoreConfig(Path(folder), min_free_bytes=0, min_free_fraction=0, maintenance_seconds=3600.0)
                db = TSDB(config)
                db.open()
                write(db, times, values)
                before = figures(db)
                begin = time.process_time()
                db.compact()
                spent_s = time.process_time() - begin
                after = figures(db)
                merged = db.compaction.samples
                print(
                    f"{name:16}{before[0]:>6} ->{after[0]:>3}{before[1]:>9.3f} ->{after[1]:>6.3f}"
                    f"{spent_s / merged * 1e9:>18.1f}{before[2]:>11.3f} ->{after[2]:>6.3f}",
                    flush=True,
                )
                db.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) * 1000 if len(sys.argv) > 1 else STEP_MS)
