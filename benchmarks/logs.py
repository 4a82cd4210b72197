"""Log pushes and reads on the lines of the shared generator: size on disk, CPU, and how long a search takes.

    python -m benchmarks.logs [--lines 1000000] [--generator ../shared/data/nginx_lines.py]

Lines go through the push API of a real server (snappy protobuf, one sender, every push fsynced before it is
acknowledged). The server is then stopped, its data folder opened in this process, and the reads are timed on the
store alone, best of three; LogQL and HTTP come on top.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cramjam
import numpy as np

from benchmarks.peers import Server, meshpulse
from meshpulse.warm import warm
from tsdb.db import TSDB, StoreConfig
from tsdb.logs.frame import LogFrame, contains
from tsdb.logs.store import LogStore
from tsdb.matchers import Matcher, MatchOp

SHARED = Path(os.environ.get("MESHPULSE_SHARED") or Path(__file__).resolve().parents[2] / "shared")
BODY_LINES = 2000
HEADERS = {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy"}
SECOND = 1_000_000_000


def generator(path: Path) -> Any:
    """The generator's module."""
    spec = importlib.util.spec_from_file_location("nginx_lines", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


def bodies(lines: Any, count: int, start_s: int) -> Iterator[tuple[int, bytes]]:
    """(bytes of the lines, body) of each push."""
    for batch in lines.batches(count, seed=1, start=start_s):
        for first in range(0, len(batch), BODY_LINES):
            streams: dict[Any, list[bytes]] = {}
            raw = 0
            for labels, ts_ns, line in batch[first : first + BODY_LINES]:
                text = line.encode()
                raw += len(text)
                stamp = b"\x08" + _varint(ts_ns // SECOND) + b"\x10" + _varint(ts_ns % SECOND)
                entry = _field(b"\x0a", stamp) + _field(b"\x12", text)
                streams.setdefault(labels, []).append(_field(b"\x12", entry))
            out = []
            for labels, entries in streams.items():
                text = "{" + ", ".join(f'{k}="{v}"' for k, v in labels) + "}"
                out.append(_field(b"\x0a", _field(b"\x0a", text.encode()) + b"".join(entries)))
            yield raw, bytes(cramjam.snappy.compress_raw(b"".join(out)))


def push(server: Server, made: Iterator[tuple[int, bytes]]) -> tuple[int, float]:
    """Post every body; (bytes of lines, seconds spent waiting for answers)."""
    connection: http.client.HTTPConnection = server.connect()
    total, waited = 0, 0.0
    for raw, body in made:
        begin = time.perf_counter()
        connection.request("POST", "/loki/api/v1/push", body, HEADERS)
        answer = connection.getresponse()
        text = answer.read()
        waited += time.perf_counter() - begin
        if answer.status != 204:
            raise RuntimeError(f"answered {answer.status}: {text[:500]!r}")
        total += raw
    connection.close()
    return total, waited


def timed(name: str, bar: str, run: Callable[[], object], scale: float = 1e3, unit: str = "ms") -> None:
    """Print the best of three runs."""
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        what = run()
        best = min(best, time.perf_counter() - begin)
    print(f"| {name} | {best * scale:,.1f} {unit} | {bar} | {what} |", flush=True)


def first_lines(logs: LogStore, needle: bytes, limit: int, start_ns: int, end_ns: int) -> int:
    """Newest ``limit`` lines with a literal, as a query engine takes them."""
    held: list[LogFrame] = []
    stamps = np.zeros(0, np.int64)
    for frame in logs.select([], start_ns, end_ns, needles=[needle]):
        hit = frame.take(frame.contains(needle))
        held.append(hit)
        stamps = np.concatenate([stamps, hit.ts_ns])
        if np.count_nonzero(stamps > frame.frontier_ns) >= limit:
            break
    floor = np.sort(stamps)[-limit] if len(stamps) > limit else start_ns
    return sum(len(hit.take(hit.ts_ns >= floor).lines().offsets) - 1 for hit in held if len(hit))


def by_code(logs: LogStore, name: str, start_ns: int, end_ns: int) -> int:
    """Lines by value of a dictionary field."""
    counts: dict[bytes, int] = {}
    for frame in logs.select([], start_ns, end_ns, ordered=False):
        column = frame.field(name)
        if column is None or column.codes is None or column.dictionary is None:
            continue
        for text, n in zip(column.dictionary.to_list(), np.bincount(column.codes).tolist(), strict=False):
            counts[text] = counts.get(text, 0) + n
    return len(counts)


def numbers(logs: LogStore, name: str, start_ns: int, end_ns: int) -> int:
    """Largest number of a field."""
    largest = 0
    for frame in logs.select([], start_ns, end_ns, ordered=False):
        column = frame.field(name)
        if column is not None and column.ints is not None:
            largest = max(largest, int(column.ints.max()))
    return largest


def reads(logs: LogStore, raw: int, start_ns: int, end_ns: int) -> None:
    """Time everything that is read."""
    hour = max(start_ns, end_ns - 3600 * SECOND)
    middle = next(iter(logs.select([], start_ns, end_ns)))
    request = middle.field("request_id")
    assert request is not None
    needle = request.texts().text(len(middle) // 2)

    def first(literal: bytes, limit: int) -> Callable[[], int]:
        return lambda: first_lines(logs, literal, limit, start_ns, end_ns)

    def scan() -> str:
        lines = 0
        for frame in logs.select([], start_ns, end_ns, ordered=False):
            lines += int(np.count_nonzero(contains(frame.lines(), b"no such text")))
        return f"{lines} lines"

    timed("needle: a request id, no field named", "30 ms", first(needle, 1000))
    timed("absent id", "30 ms", first(b"0123456789abcdef0123456789abcdef", 1000))
    timed("substring /api/v1/orders, newest 1,000", "66 ms", first(b"/api/v1/orders", 1000))
    timed("rare status, newest 1,000", "200 ms", first(b'"status":504,', 1000))
    timed("count by status, 1 h", "60 ms", lambda: by_code(logs, "status", hour, end_ns))
    timed("count by status, all", "300 ms", lambda: by_code(logs, "status", start_ns, end_ns))
    timed("count by site (index)", "50 ms", lambda: len(logs.volume([], start_ns, end_ns)[0]))
    timed("request_time of all, 1 h", "250 ms", lambda: numbers(logs, "request_time", hour, end_ns))
    timed("request_time of all", "1,200 ms", lambda: numbers(logs, "request_time", start_ns, end_ns))
    site = [Matcher("site", MatchOp.EQUAL, logs.label_values("site", [], start_ns, end_ns)[0])]

    def last() -> int:
        frame = next(iter(logs.select(site, start_ns, end_ns)))
        return len(frame.take(np.arange(max(0, len(frame) - 100), len(frame))).lines().offsets) - 1

    timed("last 100 lines of a site", "10 ms", last)
    begin = time.thread_time()
    found = scan()
    took = time.thread_time() - begin
    print(f"| full scan, every line rebuilt | {raw / took / 1e9:.2f} GB/s/core | 0.8 GB/s/core | {found} |")
    begin = time.thread_time()
    absent = first(b"no such text", 1000)()
    took = time.thread_time() - begin
    print(f"| full scan by columns | {raw / took / 1e9:.2f} GB/s/core | 0.8 GB/s/core | {absent} lines |")


def main() -> None:
    """Push, flush, read; print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--generator", type=Path, default=SHARED / "data" / "nginx_lines.py")
    given = parser.parse_args()
    lines = generator(given.generator)
    warm()
    start_s = int(time.time()) - given.lines // 500 - 60
    server = meshpulse()
    with server:
        server.settle()
        idle, cpu = server.rss_bytes(), server.cpu_seconds()
        raw, waited = push(server, bodies(lines, given.lines, start_s))
        server.settle(0.5, 10.0)
        cpu = server.cpu_seconds() - cpu
        rss = server.rss_bytes()
        assert server.process is not None
        server.process.terminate()
        server.process.wait(60)
        db = TSDB(StoreConfig(path=server.folder / "data"))
        db.open()
        logs = db.tenant("default").logs
        left = logs.store_stats().buffered_bytes
        begin = time.process_time()
        logs.flush()
        cpu += time.process_time() - begin
        stats = logs.store_stats()
        assert stats.part_entries == given.lines, stats
        print(f"\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {given.lines:,} lines, {raw / 1e9:.2f} GB raw")
        print(
            f"{stats.parts} parts; {left / 1e6:.0f} MB were still in memory and were written after the server ended\n"
        )
        print("| figure | ours | bar | result |\n|---|---|---|---|")
        print(f"| raw / disk | {raw / stats.part_bytes:.2f}x | 12x | {stats.part_bytes / given.lines:.1f} B a line |")
        print(
            f"| ingest, HTTP to parts | {cpu / raw * 1e9:.1f} CPU s/GB | 12 CPU s/GB | {raw / waited / 1e6:.0f} MB/s |"
        )
        print(f"| RSS above idle | {(rss - idle) / 1e6:.0f} MB | 300 MB | idle {idle / 1e6:.0f} MB |")
        reads(logs, raw, start_s * SECOND, (start_s + given.lines // 500 + 600) * SECOND)
        db.close()


if __name__ == "__main__":
    sys.exit(main())
