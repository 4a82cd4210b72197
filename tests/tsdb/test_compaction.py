"""Blocks of 2 h become days and weeks: every sample bit for bit, whatever is deleted, damaged or killed meanwhile."""

from __future__ import annotations

import errno
import random
import threading
from pathlib import Path
from unittest import mock

import pytest

from tests.tsdb.test_db import ALL, HOUR, Content, bits_of, key, opened, put, read, series
from tsdb import compaction
from tsdb.batch import STALE_BITS
from tsdb.block import merge
from tsdb.compaction import Failure
from tsdb.db import TSDB
from tsdb.limits import TimeLimits
from tsdb.matchers import Matcher, MatchOp
from tsdb.shard import Shard
from tsdb.snapshot import take_snapshot
from tsdb.wal.records import Deletion

DAY = 24 * HOUR
WEEK0 = 1_700_092_800_000 // (7 * DAY) * 7 * DAY
PATTERNS = [0, 1, STALE_BITS, bits_of(-0.0), bits_of(float("inf")), 0x7FF8DEADBEEF0001, bits_of(0.1), (1 << 64) - 1]
TIME = TimeLimits(out_of_order_window_ms=8 * HOUR)
STEP = 10 * 60_000


def new_store(path: Path, **changes: object) -> TSDB:
    return opened(path, **{"time": TIME, "retention_ms": 0, **changes})


def fill(db: TSDB, first_ms: int, end_ms: int, n_series: int = 4) -> Content:
    """Write a sample every 10 minutes, some of them 3 to 7 hours late, cutting as a running store does; what is there.

    Two of three series change or end on the way.
    """
    tenant, content = db.tenant("default"), Content()
    rng = random.Random(first_ms)
    held: list[tuple[dict[str, str], int, int]] = []
    for begin in range(first_ms, end_ms, 2 * HOUR):
        rows = []
        for t in range(begin, min(begin + 2 * HOUR, end_ms), STEP):
            for i in range(n_series):
                number = i + (100 * ((t - first_ms) // (11 * HOUR)) if i % 3 else 0)
                row = series(number), t + rng.randrange(1000), rng.choice(PATTERNS)
                (held if rng.random() < 0.05 else rows).append(row)
        late = [row for row in held if row[1] < begin - 3 * HOUR]
        held = [row for row in held if row[1] >= begin - 3 * HOUR]
        for batch in (rows, late):
            if batch:
                assert put(tenant, batch).accepted == len(batch)
            for labels, t, b in batch:
                content.setdefault(key(labels), {})[t] = b
        db.maintain()
        assert not db.cut_failures, db.last_error
    return content


def shard_of(db: TSDB) -> Shard:
    return db.tenant("default").shards[0]


def spans(db: TSDB) -> list[int]:
    """Days that each block covers, from its key."""
    edges = [live.meta.key.rpartition("/block-")[2].split("-")[:2] for live in shard_of(db).blocks]
    return [(int(end) - int(first)) // HOUR for first, end in edges]


def objects(path: Path) -> set[str]:
    found = (path / "tenants").rglob("block-*")
    return {file.relative_to(path).as_posix() for file in found}


def test_two_hours_become_days_and_weeks_bit_for_bit(tmp_path: Path) -> None:
    db = new_store(tmp_path)
    content = fill(db, WEEK0 - DAY, WEEK0 + 9 * DAY)
    before = spans(db)
    assert set(before) == {2}
    known = len(db.tenant("default").registry)
    with mock.patch.object(merge, "SAMPLES_AT_ONCE_MAX", 500):  # many ranges of series
        assert db.compact() == 10  # nine days, and the week of seven of them
    assert sorted(set(spans(db))) == [2, 24, 168]
    assert spans(db).count(168) == 1
    assert spans(db).count(24) == 2
    assert len(db.tenant("default").registry) == known  # series that ended are not learnt anew
    assert not db.compaction.failures, db.compaction.last_error
    assert db.compaction.merges == {DAY: 9, 7 * DAY: 1}
    assert read(db.tenant("default")) == content
    assert objects(tmp_path) == {live.meta.key for live in shard_of(db).blocks}
    assert db.compact() == 0
    db.close()

    again = new_store(tmp_path)
    assert read(again.tenant("default")) == content
    assert sorted(set(spans(again))) == [2, 24, 168]
    again.close()


def test_what_is_deleted_is_left_out_and_stays_deleted(tmp_path: Path) -> None:
    db = new_store(tmp_path)
    content = fill(db, WEEK0, WEEK0 + 2 * DAY)
    one = [Matcher("instance", MatchOp.EQUAL, "10.0.0.0")]
    first, last = WEEK0 + 5 * HOUR, WEEK0 + 9 * HOUR
    db.delete(db.tenant("default"), Deletion((tuple(one),), first, last))
    mine = content[key(series(0))]
    content[key(series(0))] = {t: b for t, b in mine.items() if not first <= t <= last}
    assert len(content[key(series(0))]) < len(mine)
    assert db.compact() == 1
    assert not any(len(live.tombstones) for live in shard_of(db).blocks if live.meta.max_ms < WEEK0 + DAY)
    assert read(db.tenant("default")) == content
    everything = Deletion((tuple(ALL),), WEEK0, WEEK0 + DAY - 1)
    db.delete(db.tenant("default"), everything)
    db.close()
    again = new_store(tmp_path)
    left = {labels: {t: b for t, b in s.items() if t >= WEEK0 + DAY} for labels, s in content.items()}
    assert read(again.tenant("default")) == {labels: samples for labels, samples in left.items() if samples}
    again.close()


def test_blocks_of_which_nothing_is_left_vanish(tmp_path: Path) -> None:
    db = new_store(tmp_path)
    fill(db, WEEK0, WEEK0 + 2 * DAY)
    db.delete(db.tenant("default"), Deletion((tuple(ALL),), WEEK0, WEEK0 + DAY - 1))
    assert db.compact() == 1
    assert all(live.meta.min_ms >= WEEK0 + DAY for live in shard_of(db).blocks)
    assert objects(tmp_path) == {live.meta.key for live in shard_of(db).blocks}
    db.close()


def test_a_block_is_no_longer_than_half_the_retention_and_goes_when_its_newest_sample_is_past(tmp_path: Path) -> None:
    db = new_store(tmp_path, retention_ms=3 * DAY)
    content = fill(db, WEEK0, WEEK0 + 3 * DAY)
    assert db.compact() == 2
    assert spans(db).count(24) == 2
    content |= fill(db, WEEK0 + 3 * DAY, WEEK0 + 3 * DAY + 20 * HOUR)
    db.compact()
    assert min(live.meta.min_ms for live in shard_of(db).blocks) < WEEK0 + HOUR  # its newest sample is not past yet
    fill(db, WEEK0 + 3 * DAY + 20 * HOUR, WEEK0 + 4 * DAY + 2 * HOUR)
    assert min(live.meta.min_ms for live in shard_of(db).blocks) >= WEEK0 + DAY
    assert set(spans(db)) == {2, 24}
    db.close()


def test_a_day_waits_for_its_late_samples_and_a_stray_block_is_merged_in(tmp_path: Path) -> None:
    db = new_store(tmp_path)
    fill(db, WEEK0, WEEK0 + DAY + 2 * HOUR)
    assert db.compact() == 0  # 2 h past the day: samples of it may still come
    fill(db, WEEK0 + DAY + 2 * HOUR, WEEK0 + DAY + 10 * HOUR)
    assert db.compact() == 1
    db.close()
    wider = new_store(tmp_path, time=TimeLimits(out_of_order_window_ms=3 * DAY))  # somebody widens the window
    tenant = wider.tenant("default")
    stray = [(series(0), WEEK0 + k * HOUR + 77, bits_of(float(k))) for k in range(20)]
    assert put(tenant, stray).accepted == 20
    content = read(tenant)
    wider.cut(shard_of(wider), WEEK0 + DAY + 8 * HOUR)
    assert read(tenant) == content
    wider.close()
    back = new_store(tmp_path)
    assert back.compact() == 1
    assert [live.meta.min_ms // DAY for live in shard_of(back).blocks].count(WEEK0 // DAY) == 1
    assert read(back.tenant("default")) == content
    back.close()


@pytest.mark.parametrize("step", ["scratch", "create"])
def test_a_full_disk_harms_nothing_is_counted_and_tried_again(tmp_path: Path, step: str) -> None:
    db = new_store(tmp_path)
    content = fill(db, WEEK0, WEEK0 + 2 * DAY)
    there = objects(tmp_path)
    with mock.patch.object(db.store, step, side_effect=OSError(errno.ENOSPC, "no space left on device")):
        assert db.compact() == 0
    assert db.compaction.failures == {Failure.DISK_FULL: 1}
    assert objects(tmp_path) == there
    assert read(db.tenant("default")) == content
    assert db.compact() == 0  # it rests
    later = compaction.time.monotonic() + compaction.RETRY_S
    with mock.patch.object(compaction.time, "monotonic", return_value=later):
        assert db.compact() == 1
    assert read(db.tenant("default")) == content
    db.close()


def test_a_merge_does_not_begin_without_room_above_the_reserve(tmp_path: Path) -> None:
    db = new_store(tmp_path)
    fill(db, WEEK0, WEEK0 + 2 * DAY)
    with mock.patch.object(compaction, "DISK_FACTOR", 1 << 60), mock.patch.object(db.store, "scratch") as scratch:
        assert db.compact() == 0
    scratch.assert_not_called()
    assert db.compaction.failures == {Failure.DISK_FULL: 1}
    db.close()


def test_a_damaged_block_is_named_and_left_alone_and_the_others_are_merged(tmp_path: Path) -> None:
    db = new_store(tmp_path)
    fill(db, WEEK0, WEEK0 + 2 * DAY)
    db.close()
    victim = sorted((tmp_path / "tenants").rglob(f"block-{WEEK0 + 4 * HOUR}-*"))[0]
    db = new_store(tmp_path)
    live = next(b for b in shard_of(db).blocks if b.meta.key.endswith(victim.name))
    offset = live.block._container.frame_offset("chunk/words", 0)
    db.close()
    with victim.open("r+b") as file:
        file.seek(offset + 40)
        byte = file.read(1)[0]
        file.seek(offset + 40)
        file.write(bytes([byte ^ 0xFF]))
    db = new_store(tmp_path)
    assert db.compact() == 1
    assert db.compaction.failures == {Failure.DAMAGED: 1}
    assert victim.name in (db.compaction.last_error or "")
    assert victim.exists()
    kept = [b.meta.key.rpartition("/")[2] for b in shard_of(db).blocks if b.meta.max_ms < WEEK0 + DAY]
    assert len(kept) == 2
    assert victim.name in kept
    assert db.compact() == 0
    db.close()


def test_a_deletion_during_a_merge_makes_it_begin_again(tmp_path: Path) -> None:
    db = new_store(tmp_path)
    content = fill(db, WEEK0, WEEK0 + 2 * DAY)
    real = compaction.merge_blocks
    deletion = Deletion(((Matcher("instance", MatchOp.EQUAL, "10.0.0.0"),),), WEEK0, WEEK0 + DAY)

    def merge_then_delete(*args: object) -> object:
        made = real(*args)  # type: ignore[arg-type]
        if not db.compaction.failures:
            db.delete(db.tenant("default"), deletion)
        return made

    with mock.patch.object(compaction, "merge_blocks", merge_then_delete):
        assert db.compact() == 1
    assert db.compaction.failures == {Failure.CHANGED: 1}
    mine = content[key(series(0))]
    content[key(series(0))] = {t: b for t, b in mine.items() if t > WEEK0 + DAY}
    assert read(db.tenant("default")) == content
    assert objects(tmp_path) == {live.meta.key for live in shard_of(db).blocks}
    db.close()


def test_queries_and_snapshots_see_each_sample_once_while_blocks_are_replaced(tmp_path: Path) -> None:
    db = new_store(tmp_path / "data")
    content = fill(db, WEEK0, WEEK0 + 4 * DAY)
    over = threading.Event()
    wrong: list[str] = []
    reads = 0

    def ask() -> None:
        nonlocal reads
        while not over.is_set():
            if read(db.tenant("default")) != content:
                wrong.append("a reader saw something else")
                return
            reads += 1

    threads = [threading.Thread(target=ask) for _ in range(2)]
    snapshots = []
    for thread in threads:
        thread.start()
    real = compaction.merge_blocks

    def merge_slowly(*args: object) -> object:
        snapshots.append(take_snapshot(db))
        made = real(*args)  # type: ignore[arg-type]
        snapshots.append(take_snapshot(db))
        seen = reads
        while reads < seen + 4 and not wrong:
            over.wait(0.01)
        return made

    try:
        with mock.patch.object(compaction, "merge_blocks", merge_slowly):
            assert db.compact() == 3
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not wrong
    db.close()
    for snapshot in snapshots:
        copy = new_store(snapshot.path)
        assert read(copy.tenant("default")) == content
        copy.close()


@pytest.mark.parametrize("step", ["before_commit", "after_commit"])
def test_a_crash_leaves_the_old_blocks_or_the_new_one(tmp_path: Path, step: str) -> None:
    """What a power cut leaves of a merge: an object that no manifest lists, or sources that none lists any more."""
    db = new_store(tmp_path)
    content = fill(db, WEEK0, WEEK0 + 2 * DAY)
    target = ("commit", shard_of(db)._manifests) if step == "before_commit" else ("_remove", shard_of(db))
    with mock.patch.object(target[1], target[0], side_effect=OSError(errno.EIO, "the power went")):
        assert db.compact() == 0
    assert db.compaction.failures == {Failure.OTHER: 1}
    assert read(db.tenant("default")) == content
    listed = {live.meta.key for live in shard_of(db).blocks}
    assert objects(tmp_path) > listed
    db.close()
    again = new_store(tmp_path)
    assert (24 in spans(again)) == (step == "after_commit")
    assert objects(tmp_path) == {live.meta.key for live in shard_of(again).blocks}
    assert read(again.tenant("default")) == content
    again.close()
