"""Snapshots: what was acknowledged before is in them, whatever happens to the store meanwhile and afterwards."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from tests.tsdb.logs import test_store as logs_store
from tests.tsdb.test_db import HOUR, T0, Content, key, opened, put, read, series
from tsdb import snapshot
from tsdb.db import TSDB
from tsdb.snapshot import FOLDER, take_snapshot


def filled(path: Path) -> TSDB:
    """A store with blocks and a head."""
    db = opened(path)
    put(db.tenant("default"), [(series(i), T0 + 60_000 * k, k + i) for k in range(400) for i in range(5)])
    db.maintain()
    put(db.tenant("default"), [(series(i), T0 + 7 * HOUR, i) for i in range(5)])
    assert db.stats().blocks
    return db


def restored(snapshot_path: Path, folder: Path) -> Content:
    """What a store made of a snapshot, as docs/operations.md says, answers."""
    shutil.copytree(snapshot_path, folder)
    db = opened(folder)
    try:
        return read(db.tenant("default"))
    finally:
        db.close()


def test_a_snapshot_restores_everything(tmp_path: Path) -> None:
    db = filled(tmp_path / "data")
    before = read(db.tenant("default"))
    taken = take_snapshot(db)
    assert taken.path == tmp_path / "data" / FOLDER / taken.name
    assert taken.linked_bytes == db.stats().block_bytes
    assert taken.copied_bytes > 0
    put(db.tenant("default"), [(series(9), T0 + 7 * HOUR, 1)])
    assert restored(taken.path, tmp_path / "restored") == before
    db.close()


def test_blocks_cost_nothing_and_outlive_their_deletion(tmp_path: Path) -> None:
    db = filled(tmp_path / "data")
    before = read(db.tenant("default"))
    taken = take_snapshot(db)
    for shard in db.tenant("default").shards:
        for live in shard.blocks:
            assert os.stat(tmp_path / "data" / live.meta.key).st_nlink == 2
        shard.drop_blocks(list(shard.manifest.blocks))
    assert db.stats().blocks == 0
    assert restored(taken.path, tmp_path / "restored") == before
    db.close()


def test_without_the_head_only_blocks_remain(tmp_path: Path) -> None:
    db = filled(tmp_path / "data")
    taken = take_snapshot(db, with_head=False)
    assert not (taken.path / "wal").exists()
    after = restored(taken.path, tmp_path / "restored")
    assert after
    assert T0 + 7 * HOUR not in after[key(series(0))]
    db.close()


def test_a_snapshot_while_samples_come_in_and_heads_are_cut(tmp_path: Path) -> None:
    db = opened(tmp_path / "data", segment_bytes=1 << 16, maintenance_seconds=0.01)
    tenant = db.tenant("default")
    acknowledged = 0
    stop = threading.Event()

    def write() -> None:
        nonlocal acknowledged
        for k in range(3000):
            if stop.is_set():
                break
            put(tenant, [(series(i), T0 + 60_000 * k, k) for i in range(40)])
            acknowledged = k + 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        promised = []
        for _ in range(6):
            least = acknowledged + 40
            while acknowledged < least:
                stop.wait(0.001)
            before = acknowledged
            promised.append((before, take_snapshot(db)))
    finally:
        stop.set()
        writer.join()
    db.close()
    assert db.cuts
    for number, (before, taken) in enumerate(promised):
        content = restored(taken.path, tmp_path / f"restored-{number}")
        for i in range(40):
            times = sorted(content[key(series(i))])
            assert times == [T0 + 60_000 * k for k in range(len(times))], "no gap"
            assert len(times) >= before


def test_log_lines_are_in_it_while_their_parts_are_joined(tmp_path: Path) -> None:
    db = logs_store.open_db(tmp_path / "data")
    logs = db.tenant("default").logs
    stop = threading.Event()

    def maintain() -> None:
        while not stop.is_set():
            logs.flush()
            logs.maintain()

    thread = threading.Thread(target=maintain)
    thread.start()
    try:
        promised = []
        for k in range(12):
            logs_store.push(logs, logs_store.rows_of(100 * k, 100))
            promised.append((100 * (k + 1), take_snapshot(db)))
    finally:
        stop.set()
        thread.join()
    assert logs.compactions
    db.close()
    for number, (rows, taken) in enumerate(promised[::5]):
        shutil.copytree(taken.path, tmp_path / f"restored-{number}")
        again = logs_store.open_db(tmp_path / f"restored-{number}")
        assert sorted(logs_store.read(again.tenant("default").logs)) == sorted(logs_store.rows_of(0, rows))
        again.close()


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = filled(tmp_path / "data")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot, "_copy", full)
    with pytest.raises(OSError, match="No space"):
        take_snapshot(db)
    assert list((tmp_path / "data" / FOLDER).iterdir()) == []
    monkeypatch.undo()
    assert take_snapshot(db).path.is_dir()
    db.close()


def test_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    db = filled(tmp_path / "data")
    stale = tmp_path / "data" / FOLDER / "partial-of-a-crash"
    stale.mkdir(parents=True)
    (stale / "something").write_text("x")
    taken = take_snapshot(db)
    assert [path.name for path in (tmp_path / "data" / FOLDER).iterdir()] == [taken.name]
    db.close()


def test_snapshots_are_no_tenants(tmp_path: Path) -> None:
    db = filled(tmp_path / "data")
    take_snapshot(db)
    before = read(db.tenant("default"))
    db.close()
    again = opened(tmp_path / "data")
    assert [tenant.name for tenant in again.tenants()] == ["default"]
    assert read(again.tenant("default")) == before
    again.close()
