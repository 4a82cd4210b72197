"""A tenant whose pods come and go: what is refused, what is kept in memory, what forgetting costs.

    python -m benchmarks.churn [--limit 200000] [--per-day 1000000] [--days 2]

Time is simulated: every minute of it some series end and as many begin, hashed names included; each lives for half an
hour and has a sample a minute, through the receiver of remote-write. The limit of active series stands to the churn as
2 M to 10 M a day. Slots that are given back are used at once, for a minute of rest would be hours of simulated time.
Prints a line per simulated two hours.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import cramjam
import numpy as np

from benchmarks.bodies import mesh_labels
from ingest.reception import SampleWriter
from ingest.remote_write import RemoteWriteReceiver
from meshpulse.warm import warm
from tsdb import shard
from tsdb.clock import ManualClock
from tsdb.db import TSDB, StoreConfig
from tsdb.limits import SeriesLimits
from tsdb.tally import Tally

FIRST_MS = 1_795_003_200_000
LIFE_MINUTES = 30
MINUTE_MS = 60_000


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def _field(number: int, body: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(body)) + body


def labels_of(index: int) -> bytes:
    """The labels of a series: those of a sidecar, of a pod that nobody had before."""
    pairs = dict(mesh_labels(index % 1000 + 1000 * (index % 100)))
    pairs["pod"] = f"{pairs['service']}-{index * 2654435761 % (1 << 32):08x}-{index}"
    return b"".join(_field(1, _field(1, k.encode()) + _field(2, v.encode())) for k, v in pairs.items())


def rss_bytes() -> int:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS")


def main() -> None:
    """Run the churn and print what becomes of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=200_000)
    parser.add_argument("--per-day", type=int, default=1_000_000)
    parser.add_argument("--days", type=float, default=2.0)
    given = parser.parse_args()
    warm()
    shard.SLOTS_REST_S = 0.0
    per_minute = given.per_day // 1440
    clock, tally = ManualClock(FIRST_MS), Tally()
    with tempfile.TemporaryDirectory() as folder:
        limits = SeriesLimits(active_series_max=given.limit)
        config = StoreConfig(Path(folder), maintenance_seconds=3600.0, retention_ms=24 * 3_600_000, series=limits)
        db = TSDB(config, tally)
        db.open()
        tenant = db.tenant("default")
        receiver = RemoteWriteReceiver(SampleWriter(clock, tally))
        alive: list[bytes] = []
        made = samples = 0
        rng = np.random.default_rng(1)
        print("hour  series made     known  limit generation   symbols RSS MiB blocks refused  ms to cut and forget")
        for minute in range(int(given.days * 1440)):
            clock.ms = FIRST_MS + minute * MINUTE_MS
            alive = alive[max(0, len(alive) - per_minute * (LIFE_MINUTES - 1)) :]
            alive += [labels_of(made + i) for i in range(per_minute)]
            made += per_minute
            values = rng.integers(1, 1 << 30, len(alive)).astype(np.float64)
            time_part = b"\x10" + _varint(clock.ms)
            for begin in range(0, len(alive), 2000):
                raw = b"".join(
                    _field(1, labels + _field(2, b"\x09" + value.tobytes() + time_part))
                    for labels, value in zip(alive[begin : begin + 2000], values[begin : begin + 2000], strict=True)
                )
                with db.leader():
                    reception = receiver.receive(tenant, bytes(cramjam.snappy.compress_raw(raw)))
                if reception.future is not None:
                    samples += reception.future.result().accepted
            if minute % 120 == 119:
                before, began = tenant.generations, time.process_time()
                db.maintain()
                spent = (time.process_time() - began) * 1000 if tenant.generations > before else 0.0
                assert not db.cut_failures, db.last_error
                known = len(tenant.registry)
                print(
                    f"{(minute + 1) // 60:4} {made:12,} {known:9,} {known / given.limit:6.1%}"
                    f" {tenant.generations:10} {len(tenant.registry.symbols):9,} {rss_bytes() >> 20:7,}"
                    f" {db.stats().blocks:6} {sum(tally.snapshot().values()):7} {spent:6.0f}"
                )
        print(f"{made:,} series, {samples:,} samples, refused: {dict(tally.snapshot())}")
        db.close()


if __name__ == "__main__":
    main()
