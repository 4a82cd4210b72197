"""CPU of nginx' lines: ``python -m benchmarks.nginx [--lines 1000000] [--backlog-bytes 1000000000]``.

Counting (JSON, combined), following a file into the store with a fsynced log and counters, a file that has a backlog
of 1 GB at the start and the memory that takes, and 200 files in which nothing happens. CPU time of this process, all
threads; lines of the shared generator.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import orjson

from benchmarks.logs import SHARED, generator
from ingest.logs.limits import PushLimits
from ingest.logs.push import PushReceiver
from ingest.nginx.columns import COMBINED, JsonFormat, LineFormat, TextFormat
from ingest.nginx.counters import Counters
from ingest.nginx.derive import ACCESS_ROLES, BATCH_ROWS, Deriver, DeriveSettings, Rule
from ingest.nginx.entries import SourceSettings
from ingest.nginx.tail import Source, Tailer
from tsdb.clock import SystemClock
from tsdb.db import TSDB, StoreConfig
from tsdb.logs.frame import Texts
from tsdb.tally import Tally

IDLE_FILES = 200
IDLE_S = 20.0
COUNTED_BAR = 200_000
"""Lines a second and core."""
IDLE_BAR = 0.01
"""Of a core."""


def counted(lines: list[bytes], places: np.ndarray, log_format: LineFormat, rounds: int = 5) -> float:
    """Lines a second of CPU, the median of some rounds."""
    keys = [(f"site-{i}", "prod", "web-1") for i in range(int(places.max()) + 1)]
    batches = [
        (Texts.of(lines[i : i + BATCH_ROWS]), places[i : i + BATCH_ROWS]) for i in range(0, len(lines), BATCH_ROWS)
    ]
    counters = Counters()
    took = []
    for _ in range(rounds + 1):  # the first one learns what the fields are
        begin = time.process_time()
        for texts, place in batches:
            counters.access(keys, place, log_format.read(texts, ACCESS_ROLES), 0)
        took.append(time.process_time() - begin)
    return len(lines) / float(np.median(took[1:]))


def _escaped(text: str) -> str:
    """As nginx writes a value outside of JSON."""
    return text.replace("\\", "\\x5C").replace('"', "\\x22")


class _Tail:
    """A store, a deriver and a tailer over some files."""

    def __init__(self, folder: Path, pattern: str) -> None:
        clock, tally = SystemClock(), Tally()
        self.db = TSDB(StoreConfig(path=folder / "data", min_free_bytes=0, min_free_fraction=0))
        self.db.open()
        tenant = self.db.tenant("default")
        self.deriver = Deriver(tenant, tenant.logs, DeriveSettings(), clock, tally)
        tenant.logs.follower = self.deriver
        log_format = JsonFormat({"site": ["host"]})
        settings = SourceSettings(
            [pattern], format=log_format, labels={"job": "nginx", "host": "web-1"}, site_by_line=True
        )
        source = Source(settings, tenant.logs, self.deriver, self.deriver.add_rule(Rule(log_format)))
        receiver = PushReceiver(clock, tally, PushLimits(age_max_s=0))
        self.tailer = Tailer([source], receiver, folder / "positions.json", tally)
        self.deriver.start()

    def close(self) -> None:
        self.tailer.close()
        self.deriver.close()
        self.db.close()


def followed(lines: list[bytes]) -> tuple[float, float]:
    """CPU and wall seconds to read a file into the store and to count it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "access.log").write_bytes(b"\n".join(lines) + b"\n")
        tail = _Tail(folder, str(folder / "*.log"))
        try:
            tail.tailer.load()
            begin, wall = time.process_time(), time.perf_counter()
            while tail.tailer.poll():
                pass
            while tail.deriver.stats.lines < len(lines):
                time.sleep(0.01)
            return time.process_time() - begin, time.perf_counter() - wall
        finally:
            tail.close()


def backlog(lines: list[bytes], size: int) -> tuple[float, float, float, float]:
    """CPU and wall seconds a GB, bytes of memory above the start, and lines: of a file that waits at the start."""
    block = b"\n".join(lines) + b"\n"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "access.log").open("wb") as file:
            for _ in range(-(-size // len(block))):
                file.write(block)
            written = file.tell()
        tail = _Tail(folder, str(folder / "*.log"))
        try:
            tail.tailer.load()
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            before = _memory("VmRSS")
            begin, wall = time.process_time(), time.perf_counter()
            while tail.tailer.poll():
                pass
            total = written // len(block) * len(lines)
            while tail.deriver.stats.lines < total:
                time.sleep(0.01)
            gigabytes = written / 1e9
            took = (time.process_time() - begin) / gigabytes, (time.perf_counter() - wall) / gigabytes
            assert tail.tailer.stats.lines == total
            return *took, _memory("VmHWM") - before, total
        finally:
            tail.close()


def _memory(name: str) -> float:
    """A number of ``/proc/self/status``, bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024.0 * int(text.partition(f"{name}:")[2].split()[0])


def idle() -> float:
    """Share of a core that files without news cost."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(IDLE_FILES):
            (folder / f"{i}.log").write_bytes(b"")
        tail = _Tail(folder, str(folder / "*.log"))
        try:
            tail.tailer.load()
            tail.tailer.start()
            time.sleep(3)
            begin = time.process_time()
            time.sleep(IDLE_S)
            return (time.process_time() - begin) / IDLE_S
        finally:
            tail.close()


def main() -> int:
    """Print the table; 1 when a bar is not held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--generator", type=Path, default=SHARED / "data" / "nginx_lines.py")
    parser.add_argument("--backlog-bytes", type=int, default=1_000_000_000)
    args = parser.parse_args()
    rows = [row for batch in generator(args.generator).batches(args.lines) for row in batch]
    lines = [text.encode() for _, _, text in rows]
    hosts: dict[str, int] = {}
    few = list(islice(lines, 200_000))
    fields = [orjson.loads(line) for line in few]
    places = np.array([hosts.setdefault(f["host"], len(hosts)) for f in fields], np.int64)
    combined = [
        f'{f["remote_addr"]} - - [25/Nov/2026:21:00:00 +0000] "{f["method"]} {f["path"]} HTTP/1.1" {f["status"]} '
        f'{f["body_bytes_sent"]} "-" "{_escaped(f["user_agent"])}"'.encode()
        for f in fields
    ]
    json_rate = counted(few, places, JsonFormat())
    combined_rate = counted(combined, places, TextFormat(COMBINED))
    cpu, wall = followed(lines)
    cpu_gb, wall_gb, memory, total = backlog(few, args.backlog_bytes)
    share = idle()
    print("| what | measured | bar |\n|---|---|---|")
    print(f"| counting JSON lines | {json_rate:,.0f} lines/s/core | {COUNTED_BAR:,} |")
    print(f"| counting combined lines | {combined_rate:,.0f} lines/s/core | {COUNTED_BAR:,} |")
    size = sum(map(len, lines))
    print(
        f"| a file of {len(lines):,} lines into the store and counted | {len(lines) / cpu:,.0f} lines/s of CPU, "
        f"{cpu / size * 1e9:.1f} CPU s/GB, {len(lines) / wall:,.0f} lines/s | |"
    )
    print(
        f"| a backlog of {args.backlog_bytes / 1e9:g} GB, {total:,.0f} lines | "
        f"{cpu_gb:.1f} CPU s/GB, {wall_gb:.1f} s/GB, {memory / 1e6:.0f} MB above the start | |"
    )
    print(f"| {IDLE_FILES} files without news | {100 * share:.2f} % of a core | {100 * IDLE_BAR:g} % |")
    return int(json_rate < COUNTED_BAR or combined_rate < COUNTED_BAR or share > IDLE_BAR)


if __name__ == "__main__":
    sys.exit(main())
