"""Size and speed of the XOR chunk codec on the real captures: ``python -m benchmarks.codec``.

CPU time, best of 5, one thread. The captures are re-stamped at 15 s: *regular* = exact spacing, *jitter* = the
real lateness of each scrape kept (design/storage.md).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tsdb.chunks import Chunks
from tsdb.gorilla import decode_rows, encode_rows, repack

SHARED = Path(os.environ.get("MESHPULSE_SHARED") or Path(__file__).resolve().parents[2] / "shared")
CAPTURES = {"envoy": ("envoy_1.40_scrapes.npz", 2000), "node": ("node_exporter_1.5_scrapes.npz", 1000)}
STEP_MS = 15_000
FIRST_MS = 1_700_000_000_000


def best_cpu_seconds(run: Callable[[], object], times: int = 5) -> float:
    """Least CPU seconds of this thread over several runs."""
    best = float("inf")
    for _ in range(times):
        begin = time.thread_time()
        run()
        best = min(best, time.thread_time() - begin)
    return best


def captures() -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.uint64]]]:
    """Yield (name, times of a scrape (m,), value bits (n_series, m)) for each capture and spacing."""
    for name, (file, real_step_ms) in CAPTURES.items():
        path = SHARED / "data" / file
        if not path.exists():
            print(f"{name}: skipped, {file} is not in {SHARED / 'data'} (set MESHPULSE_SHARED)")
            continue
        archive = np.load(path)
        taken, values = archive["T"], archive["M"]
        late = (taken - taken[0]) - np.round((taken - taken[0]) / real_step_ms) * real_step_ms
        regular = FIRST_MS + np.arange(len(taken), dtype=np.int64) * STEP_MS
        bits = np.ascontiguousarray(values).view(np.uint64)
        yield f"{name} regular", regular, bits
        yield f"{name} jitter", regular + np.clip(late, -2000, 2000).astype(np.int64), bits


def synthetic() -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.uint64]]]:
    """Yield what a capture of an idle machine lacks: busy counters and gauges of two decimals, 500 series of 2 h."""
    rng = np.random.default_rng(1)
    times = FIRST_MS + np.arange(480, dtype=np.int64) * STEP_MS
    late = times + rng.integers(0, 280, len(times))
    counters = np.cumsum(rng.poisson(60, (500, len(times))), axis=1).astype(float)
    gauges = np.round(rng.normal(50, 10, (500, len(times))), 2)
    yield "counters", late, counters.view(np.uint64)
    yield "gauges, .2f", late, gauges.view(np.uint64)


def measure(name: str, ts_ms: NDArray[np.int64], bits: NDArray[np.uint64]) -> str:
    """One line of the table: chunks of the head (XOR), then of a block (PACK where it fits)."""
    n_series, n_scrapes = bits.shape
    rows = np.repeat(np.arange(n_series, dtype=np.uint32), n_scrapes)
    times = np.tile(ts_ms, n_series)
    flat = bits.reshape(-1)
    n = len(flat)
    done: list[Chunks] = []
    columns = []
    exact = True
    for make in (lambda: encode_rows(rows, times, flat), lambda: repack(done[0])):

        def encode(make: Callable[[], Chunks] = make) -> None:
            done.append(make())

        encode_s = best_cpu_seconds(encode)
        chunks = done[-1]
        decode_s = best_cpu_seconds(lambda chunks=chunks: decode_rows(chunks))
        out_ts, out_bits = decode_rows(chunks)
        exact &= np.array_equal(out_ts, times) and np.array_equal(out_bits, flat)
        size = 8 * int(chunks.word_counts.sum()) / n
        columns.append(f"{size:9.3f} {encode_s / n * 1e9:10.1f} {decode_s / n * 1e9:10.1f}")
    return f"{name:14} {' |'.join(columns)}   {'yes' if exact else 'NO'}"


def main() -> None:
    """Print the table."""
    columns = f"{'B/sample':>9} {'encode ns':>10} {'decode ns':>10}"
    print(f"{'':14} {'head':>31} |{'block':>31}\n{'':14} {columns} |{columns}   exact")
    for name, ts_ms, bits in (*captures(), *synthetic()):
        print(measure(name, ts_ms, bits))


if __name__ == "__main__":
    main()
