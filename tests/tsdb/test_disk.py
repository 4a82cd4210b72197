"""The guard of the free space."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tsdb.disk import DiskGuard
from tsdb.errors import DiskFullError, Reason


def fake_statvfs(monkeypatch: pytest.MonkeyPatch, free: list[int], total: int = 100_000) -> list[int]:
    looks: list[int] = []

    def statvfs(_path: object) -> os.statvfs_result:
        looks.append(1)
        return os.statvfs_result((4096, 4096, total, free[0] + 7, free[0], 0, 0, 0, 0, 255))

    monkeypatch.setattr("tsdb.disk.os.statvfs", statvfs)
    return looks


def test_writes_stop_below_the_larger_reserve_and_come_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free = [5_000]
    fake_statvfs(monkeypatch, free)
    guard = DiskGuard(tmp_path, min_free_fraction=0.05, min_free_bytes=4096, refresh_s=0.0)
    guard.check()
    free[0] = 4_999  # root's own reserve (f_bfree) does not count
    with pytest.raises(DiskFullError, match="writes stop below 19 MiB") as refused:
        guard.check()
    assert refused.value.reason is Reason.DISK_FULL
    free[0] = 5_000
    guard.check()
    with pytest.raises(DiskFullError):
        DiskGuard(tmp_path, min_free_fraction=0.0, min_free_bytes=5_000 * 4096 + 1).check()


def test_the_disk_is_not_asked_at_every_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    looks = fake_statvfs(monkeypatch, [50_000])
    guard = DiskGuard(tmp_path, refresh_s=60.0, min_free_bytes=0)
    for _ in range(1000):
        guard.check()
    assert len(looks) == 1


def test_a_real_folder(tmp_path: Path) -> None:
    space = DiskGuard(tmp_path).space
    assert 0 <= space.free_bytes <= space.total_bytes
    assert space.reserve_bytes >= 1 << 30
