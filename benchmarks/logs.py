"""Log pushes and reads on the lines of the shared generator: size on disk, CPU, memory, and how long a search takes.

    python -m benchmarks.logs [--lines 1000000] [--generator ../shared/data/nginx_lines.py]

Lines go through the push API of a real server (snappy protobuf, one sender, every push fsynced before it is
acknowledged). The server is stopped, what it still had in memory becomes a part, and a new server on that folder
answers LogQL over HTTP: walls hold everything from the request to the last byte of the answer, CPU is the server's.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cramjam

from benchmarks.log_reads import print_reads
from benchmarks.peers import Server, meshpulse
from meshpulse.warm import warm
from tsdb.db import TSDB, StoreConfig

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


def encode_push(streams: Mapping[tuple[tuple[str, str], ...], Sequence[tuple[int, bytes]]]) -> bytes:
    """A push request as protobuf: (ns, line) of each stream."""
    out = []
    for labels, rows in streams.items():
        text = "{" + ", ".join(f'{k}="{v}"' for k, v in labels) + "}"
        entries = []
        for ts_ns, line in rows:
            stamp = b"\x08" + _varint(ts_ns // SECOND) + b"\x10" + _varint(ts_ns % SECOND)
            entries.append(_field(b"\x12", _field(b"\x0a", stamp) + _field(b"\x12", line)))
        out.append(_field(b"\x0a", _field(b"\x0a", text.encode()) + b"".join(entries)))
    return b"".join(out)


def bodies(lines: Any, count: int, start_s: int) -> Iterator[tuple[int, bytes]]:
    """(bytes of the lines, body) of each push."""
    for batch in lines.batches(count, seed=1, start=start_s):
        for first in range(0, len(batch), BODY_LINES):
            streams: dict[tuple[tuple[str, str], ...], list[tuple[int, bytes]]] = {}
            raw = 0
            for labels, ts_ns, line in batch[first : first + BODY_LINES]:
                text = line.encode()
                raw += len(text)
                streams.setdefault(labels, []).append((ts_ns, text))
            yield raw, bytes(cramjam.snappy.compress_raw(encode_push(streams)))


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


class Peak:
    """Largest resident memory of a server while a block runs, looked at every tenth of a second."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.bytes = 0

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self.bytes = max(self.bytes, self._server.rss_bytes())

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def stop(server: Server) -> None:
    """End a server and keep its folder."""
    assert server.process is not None
    server.process.terminate()
    server.process.wait(120)


def flush(folder: Path) -> tuple[float, int, int]:
    """What the ended server left in memory becomes a part: (CPU seconds, bytes of those lines, bytes of all parts)."""
    db = TSDB(StoreConfig(path=folder))
    db.open()
    logs = db.tenant("default").logs
    left = logs.store_stats().buffered_bytes
    begin = time.process_time()
    logs.flush()
    cpu = time.process_time() - begin
    stats = logs.store_stats()
    db.close()
    return cpu, left, stats.part_bytes


def row(name: str, ours: str, bar: str, note: str = "") -> None:
    """One line of the table."""
    print(f"| {name} | {ours} | {bar} | {note} |", flush=True)


def at(server: Server, folder: Path | None) -> Server:
    """The server with its data somewhere else than in the folder that goes with it."""
    if folder is not None:
        server.command[server.command.index("--data-dir") + 1] = str(folder)
    return server


def data_of(server: Server) -> Path:
    """Where a server keeps its data."""
    return Path(server.command[server.command.index("--data-dir") + 1])


def ingest(server: Server, lines: Any, count: int, start_s: int) -> int:
    """Push everything and print what it cost; the bytes of the lines."""
    with server:
        server.settle()
        idle, cpu = server.rss_bytes(), server.cpu_seconds()
        with Peak(server) as peak:
            raw, waited = push(server, bodies(lines, count, start_s))
        server.settle(0.5, 10.0)
        cpu = server.cpu_seconds() - cpu
        rss = server.rss_bytes()
        stop(server)
        flush_cpu, left, size = flush(data_of(server))
    cpu += flush_cpu
    print(f"{left / 1e6:.0f} MB were in memory when the server ended; they are written and counted here\n")
    print("| figure | ours | bar | result |\n|---|---|---|---|")
    row("raw / disk", f"{raw / size:.2f}x", "12x", f"{size / count:.1f} B a line, all parts with their indexes")
    row("ingest, HTTP to parts", f"{cpu / raw * 1e9:.1f} CPU s/GB", "12 CPU s/GB", f"{raw / waited / 1e6:.0f} MB/s")
    row("RSS while ingesting", f"{peak.bytes / 1e6:.0f} MB", "500 MB", f"{(peak.bytes - idle) / 1e6:.0f} MB above idle")
    row("RSS above idle, steady", f"{(rss - idle) / 1e6:.0f} MB", "300 MB", f"idle {idle / 1e6:.0f} MB")
    return raw


def main() -> None:
    """Push, flush, read; print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path, help="keep the data here; if they are here already, only read")
    parser.add_argument("--generator", type=Path, default=SHARED / "data" / "nginx_lines.py")
    given = parser.parse_args()
    warm()
    print(f"\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {given.lines:,} lines")
    # Whole pushes may be at most a week old, and newer lines than now are refused.
    start_s = int(time.time()) - given.lines // 500 - 60
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.data or Path(temporary) / "data"
        note = folder.with_suffix(".json")
        if note.exists():
            raw, start_s = json.loads(note.read_text())
        else:
            raw = ingest(at(meshpulse(), folder), generator(given.generator), given.lines, start_s)
            note.write_text(json.dumps([raw, start_s]))
        with at(meshpulse(), folder) as server:
            server.settle()
            print_reads(server, raw, start_s * SECOND, (start_s + given.lines // 500 + 1) * SECOND)


if __name__ == "__main__":
    sys.exit(main())
