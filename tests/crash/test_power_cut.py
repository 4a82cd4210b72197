"""Crash matrix row 2: a power cut loses no acknowledged sample.

ext4 drops everything that is not on its loop device yet when it is shut down without flushing the journal
(EXT4_IOC_SHUTDOWN). Needs root and loop devices.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.harness import Senders, Server, audit

EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NOLOGFLUSH = 2  # neither sync nor flush the journal first


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


class Disk:
    """A file system in a file that can lose its power."""

    def __init__(self, folder: Path, options: str) -> None:
        self._image = folder / "disk.img"
        self._options = f"loop,{options}"
        self.root = folder / "disk"
        self.root.mkdir()
        with self._image.open("wb") as image:
            image.truncate(512 << 20)
        run("mkfs.ext4", "-q", "-F", str(self._image))
        self.mount()

    def mount(self) -> None:
        run("mount", "-o", self._options, str(self._image), str(self.root))

    def cut_power(self) -> None:
        fd = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NOLOGFLUSH))
        finally:
            os.close(fd)

    def unmount(self) -> None:
        for _ in range(50):
            if subprocess.run(["umount", str(self.root)], check=False, capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        run("umount", "-l", str(self.root))


@pytest.fixture(params=["defaults", "data=writeback"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a file system")
    for tool in ("mkfs.ext4", "mount", "losetup"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    try:
        made = Disk(tmp_path, request.param)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot mount a loop device here: {error.stderr.strip()}")
    yield made
    made.unmount()


@pytest.mark.slow
def test_power_cuts_lose_nothing_acknowledged(disk: Disk) -> None:
    config = "storage:\n  free_bytes_min: 0\n"
    senders = Senders(4, int(time.time() * 1000) - 4 * 3_600_000)
    server = Server(disk.root / "data", config)
    try:
        for cycle in range(3):
            senders.start(server.port)
            time.sleep(1.0 + 0.4 * cycle)
            # A machine without power answers nobody. Here the process outlives its disk for a moment, and ext4 lets
            # an fdatasync that was under way then succeed without the data: only what was answered before counts.
            acknowledged = senders.so_far()
            disk.cut_power()
            server.kill()
            senders.stop()
            disk.unmount()
            disk.mount()
            server = Server(disk.root / "data", config)
            held = audit(server, senders, acknowledged)
            print(f"cycle {cycle}: {len(acknowledged)} samples acknowledged, {held} held, none lost")
        assert server.stop() == 0
    finally:
        server.kill()
    assert senders.requests > 60
