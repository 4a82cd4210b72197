"""The log against the real thing: processes killed while they write, a file system that is full."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tsdb.wal.test_log import Put, bodies_of_copy
from tsdb.errors import LogFailedError
from tsdb.wal import LocalLog

REPOSITORY = Path(__file__).resolve().parents[3]

WRITER = """
import sys
from pathlib import Path
from tsdb.wal import LocalLog, Record

class Put:
    n_bytes = 100
    def __init__(self, number): self.number = number
    def records(self, segment): return [Record(2, "t", 0, b"%d:" % self.number + b"x" * (self.number * 37 % 3000), 0)]
    def apply(self, position): return self.number

log = LocalLog(Path(sys.argv[1]), segment_bytes=1 << 16)
log.start()
print("ready", flush=True)
number, waiting = int(sys.argv[2]), []
while True:
    waiting.append(log.submit(Put(number)))
    number += 1
    if len(waiting) == 8:
        print(waiting.pop(0).result(), flush=True)
    if number % 200 == 0:
        log.free(lambda tenant, shard, max_ms, position: position < number - 150)
"""


def kill_cycles(folder: Path, cycles: int, seed: int) -> None:
    chance = random.Random(seed)
    begin = 0
    for _ in range(cycles):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(begin)], stdout=subprocess.PIPE, cwd=REPOSITORY
        )
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        time.sleep(chance.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().split(b"\n")[:-1]
        process.wait()
        acknowledged = [int(line) for line in lines]
        log = LocalLog(folder)
        found = [int(record.body.split(b":")[0]) for record in log.replay()]
        assert not log.damage
        # nothing twice, nothing out of order, and every acknowledged one that was not freed
        assert found == sorted(set(found))
        assert set(acknowledged) - set(found) == {n for n in acknowledged if found and n < found[0]}
        if acknowledged:
            assert found[-1] >= acknowledged[-1]
            assert found[0] <= max(begin, acknowledged[-1] - 100)
        begin = found[-1] + 1 if found else begin


def test_row_1_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    kill_cycles(tmp_path, 3, seed=1)


@pytest.mark.slow
def test_row_1_kill_9_many_times(tmp_path: Path) -> None:
    kill_cycles(tmp_path, 40, seed=2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs root and mount(8)")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("filler", range(0, 4096, 512))
def test_row_4_a_full_disk_loses_nothing_and_recovers_without_help(small_disk: Path, filler: int) -> None:
    """ENOSPC at several byte offsets around a segment change."""
    folder = small_disk / "wal"
    log = LocalLog(folder, segment_bytes=1 << 16, retry_s=0.0)
    log.start()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(filler))
    acknowledged = []
    refused: list[str] = []
    for i in range(200):
        body = b"%d:" % i + os.urandom(5000)
        try:
            log.submit(Put(body)).result(30)
            acknowledged.append(body)
        except LogFailedError as error:
            refused.append(str(error))
            if len(refused) == 5:
                log.free(lambda tenant, shard, max_ms, position: position < 20)
    assert len(acknowledged) > 60
    assert len(refused) >= 5
    assert all(os.strerror(errno.ENOSPC) in text for text in refused)
    log.close()
    log = LocalLog(folder, segment_bytes=1 << 16)
    found = [record.body for record in log.replay()]
    assert not [d for d in log.damage if d.last_position >= d.first_position]
    kept = [body for body in acknowledged if body in found]
    assert kept == acknowledged[-len(kept) :]
    assert len(kept) >= len(acknowledged) - 20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/usr/bin/strace").exists(), reason="needs strace")
@pytest.mark.parametrize("call", ["fdatasync", "pwrite64"])
def test_row_5_failing_system_calls(tmp_path: Path, call: str) -> None:
    script = WRITER.replace("while True:", "while number < 400:").replace(
        "print(waiting.pop(0).result(), flush=True)",
        "w = waiting.pop(0); w.exception() or print(w.result(), flush=True)",
    )
    for when in range(5, 45, 5):
        folder = tmp_path / str(when)
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:error=EIO:when={when}+60"]
        command = ["strace", "-f", "-o", "/dev/null", *inject, sys.executable, "-c", script, str(folder), "0"]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False, cwd=REPOSITORY)
        acknowledged = [int(line) for line in done.stdout.split(b"\n")[1:-1]]
        if not done.stdout.startswith(b"ready"):
            continue  # the very first segment failed, and the log said so
        found = {int(body.split(b":")[0]) for body in bodies_of_copy(folder)}
        first = min(found)
        assert {n for n in acknowledged if n >= first} <= found
