"""Deleting: gone at once and for good, whatever happens afterwards; nothing else goes."""

from __future__ import annotations

import errno
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.tsdb.test_db import ALL, EVERYTHING, HOUR, LIMITS, T0, Content, key, opened, put, read, series
from tests.tsdb.wal.disks import FailingFiles, RecordingFiles, after_power_cut
from tsdb.batch import SampleStatus
from tsdb.blockstore import FolderStore
from tsdb.db import TSDB
from tsdb.errors import Reason, RejectedError
from tsdb.limits import TimeLimits
from tsdb.matchers import Matcher, MatchOp
from tsdb.shard import Shard
from tsdb.snapshot import take_snapshot
from tsdb.wal.records import Deletion, decode_deletion, encode_deletion

MINUTE = 60_000
WINDOW = TimeLimits(out_of_order_window_ms=48 * HOUR)


def of(number: int | str) -> tuple[Matcher, ...]:
    return (Matcher("instance", MatchOp.REGEX, f"10[.]0[.]0[.]{number}"),)


def deletion(number: int | str, mint: int = EVERYTHING[0], maxt: int = EVERYTHING[1]) -> Deletion:
    return Deletion((of(number),), mint, maxt)


def filled(path: Path, **changes: object) -> TSDB:
    """Blocks, chunks in the head, late samples in both."""
    db = opened(path, time=WINDOW, **changes)
    tenant = db.tenant("default")
    put(tenant, [(series(i), T0 + MINUTE * k, k + i) for k in range(400) for i in range(6)])
    db.maintain()
    put(tenant, [(series(i), T0 + MINUTE * k + 1, k) for k in (10, 390) for i in range(6)])
    assert db.stats().blocks
    assert db.stats().head_samples
    return db


def without(content: Content, number: int, mint: int = EVERYTHING[0], maxt: int = EVERYTHING[1]) -> Content:
    out = {
        labels: {t: b for t, b in s.items() if labels != key(series(number)) or not mint <= t <= maxt}
        for labels, s in content.items()
    }
    return {labels: samples for labels, samples in out.items() if samples}


def reopened(db: TSDB) -> TSDB:
    db.close()
    return opened(db.config.path, time=WINDOW, shards=db.config.shards)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    ("mint", "maxt"),
    [
        EVERYTHING,
        (T0 + 5 * MINUTE, T0 + 5 * MINUTE),
        (T0 + 10 * MINUTE, T0 + 380 * MINUTE),
        (T0 + 300 * MINUTE, EVERYTHING[1]),
        (T0 + 399 * MINUTE, T0 + 399 * MINUTE),
        (T0 - HOUR, T0 - 1),
        (T0 + 9, T0 + 8),
    ],
)
def test_what_is_deleted_is_gone_from_head_and_blocks(tmp_path: Path, shards: int, mint: int, maxt: int) -> None:
    db = filled(tmp_path, shards=shards)
    tenant = db.tenant("default")
    expected = without(read(tenant), 2, mint, maxt)
    db.delete(tenant, deletion(2, mint, maxt))
    assert read(tenant) == expected
    low, high = T0 + 7 * MINUTE, T0 + 390 * MINUTE
    narrowed = {k: {t: b for t, b in s.items() if low <= t <= high} for k, s in expected.items()}
    assert read(tenant, mint=low, maxt=high) == {k: s for k, s in narrowed.items() if s}
    db = reopened(db)
    assert read(db.tenant("default")) == expected
    db.clean()
    assert read(db.tenant("default")) == expected
    db = reopened(db)
    assert read(db.tenant("default")) == expected
    db.close()


def test_what_is_written_afterwards_stays(tmp_path: Path) -> None:
    db = filled(tmp_path)
    tenant = db.tenant("default")
    newest = T0 + 399 * MINUTE
    again = [(series(2), T0 + 20 * MINUTE, 77), (series(2), T0 + 395 * MINUTE, 78), (series(2), newest, 79)]
    assert put(tenant, again).rejected == {Reason.DUPLICATE: 3}
    db.delete(tenant, deletion(2))
    assert put(tenant, again).accepted == 3
    assert put(tenant, again).accepted == 3, "a repeat is told from a conflict"
    assert put(tenant, [(series(2), newest, 80)]).rejected == {Reason.DUPLICATE: 1}
    expected = {t: b for _, t, b in again}
    assert read(tenant)[key(series(2))] == expected
    for _ in range(2):
        db = reopened(db)
        assert read(db.tenant("default"))[key(series(2))] == expected
        db.clean()
    put(db.tenant("default"), [(series(0), T0 + 20 * HOUR, 1)])
    db.maintain()
    assert read(db.tenant("default"))[key(series(2))] == expected
    db.delete(db.tenant("default"), deletion(2, T0, T0 + 100 * MINUTE))
    del expected[T0 + 20 * MINUTE]
    assert read(db.tenant("default"))[key(series(2))] == expected
    db.close()


def test_the_newest_sample_of_a_series_that_has_left_the_head_may_come_again(tmp_path: Path) -> None:
    db = filled(tmp_path)
    tenant = db.tenant("default")
    put(tenant, [(series(0), T0 + 30 * HOUR, 1)])
    db.maintain()
    newest = T0 + 399 * MINUTE
    assert put(tenant, [(series(2), newest, 5)]).rejected == {Reason.DUPLICATE: 1}
    db.delete(tenant, deletion(2, newest, newest))
    assert put(tenant, [(series(2), newest, 5)]).accepted == 1
    assert read(tenant)[key(series(2))][newest] == 5
    db.close()


def test_readers_of_the_newest_sample_and_of_labels(tmp_path: Path) -> None:
    db = filled(tmp_path)
    tenant = db.tenant("default")
    newest = T0 + 399 * MINUTE
    db.delete(tenant, deletion(2, T0 + 392 * MINUTE, EVERYTHING[1]))
    found = tenant.newest(of(2), T0 + 380 * MINUTE, newest, LIMITS)
    assert found is not None
    assert found.ts_ms.tolist() == [T0 + 391 * MINUTE]
    db.delete(tenant, deletion(2, T0 + 390 * MINUTE + 1, EVERYTHING[1]))
    found = tenant.newest(of(2), T0 + 380 * MINUTE, newest, LIMITS)
    assert found is not None
    assert found.ts_ms.tolist() == [T0 + 390 * MINUTE], "the late sample that was next is gone, too"
    db.delete(tenant, deletion(2))
    found = tenant.newest(of(2), T0 + 380 * MINUTE, newest, LIMITS)
    assert found is not None
    assert not found.present.any()
    put(tenant, [(series(0), T0 + 30 * HOUR, 1)])
    db.maintain()
    early = (T0, T0 + HOUR)
    assert "10.0.0.2" not in tenant.label_values("instance", [], *early), "nothing of it is left in a block"
    assert len(tenant.series([ALL], *early)) == 5
    assert put(tenant, [(series(2), T0 + 31 * HOUR, 1)]).accepted == 1
    assert read(tenant)[key(series(2))] == {T0 + 31 * HOUR: 1}
    db.close()


def test_a_bad_regex_deletes_nothing(tmp_path: Path) -> None:
    db = filled(tmp_path)
    before = read(db.tenant("default"))
    position = db.log.stats.records
    with pytest.raises(RejectedError):
        db.delete(db.tenant("default"), Deletion(((Matcher("a", MatchOp.REGEX, "("),),), *EVERYTHING))
    assert db.log.stats.records == position
    assert read(db.tenant("default")) == before
    db.close()


def test_cleaning_gives_the_disk_back_and_spares_readers(tmp_path: Path) -> None:
    db = filled(tmp_path)
    tenant = db.tenant("default")
    rng = np.random.default_rng(3)
    put(tenant, [(series(2), T0 + 30 * HOUR + 100 * k, int(rng.integers(1 << 62))) for k in range(20_000)])
    put(tenant, [(series(0), T0 + 60 * HOUR, 1)])
    db.maintain()

    def used() -> int:
        return sum(p.stat().st_size for p in tmp_path.glob("tenants/**/*-*") if p.is_file())

    before, keys = used(), {m.key for s in tenant.shards for m in s.manifest.blocks}
    expected = without(read(tenant), 2, T0 + 30 * HOUR, EVERYTHING[1])
    selection = tenant.open(ALL, *EVERYTHING, LIMITS)
    db.delete(tenant, deletion(2, T0 + 30 * HOUR, EVERYTHING[1]))
    assert db.clean() > 0
    assert used() < before - 100_000
    assert len(selection.frame().ts_ms) > 20_000, "who reads already goes on"
    assert read(tenant) == expected
    assert not keys >= {m.key for s in tenant.shards for m in s.manifest.blocks} or len(keys) > db.stats().blocks
    assert db.clean() == 0
    db.delete(tenant, deletion(".*"))
    db.clean()
    assert db.stats().blocks == 0
    assert read(tenant) == {}
    assert [p.name[:9] for p in tmp_path.glob("tenants/default/shard-0/*")] == ["manifest-"] * 2
    db.close()


def test_samples_that_were_deleted_do_not_hold_the_log(tmp_path: Path) -> None:
    db = opened(tmp_path, segment_bytes=1 << 16, idle_cut_ms=0)
    tenant = db.tenant("default")
    rng = np.random.default_rng(1)
    for k in range(10):
        put(tenant, [(series(i), T0 + 1000 * k, int(rng.integers(1 << 62))) for i in range(2000)])
    db.delete(tenant, deletion(".*"))
    assert db.stats().head_samples == 0
    assert db.log.stats.segments > 2
    for _ in range(3):
        db.maintain()
    assert db.log.stats.segments <= 2
    db.close()


def test_a_failed_save_is_made_up_for_by_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = filled(tmp_path / "a", segment_bytes=1 << 16)
    tenant = db.tenant("default")
    expected = without(read(tenant), 2)

    def fails(_: Shard) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(Shard, "save_deletions", fails)
        with pytest.raises(OSError, match="no space"):
            db.delete(tenant, deletion(2))
        assert read(tenant) == expected, "it is hidden, and in the log"
        assert not db._is_published("default", 0, T0, 1), "so the log keeps everything"
        db.log.close()
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    again = opened(tmp_path / "b", time=WINDOW)
    assert read(again.tenant("default")) == expected
    assert all(b.meta.deleted for b in again.tenant("default").shards[0].blocks if len(b.tombstones))
    again.close()
    db.close()


def test_a_later_pass_saves_what_could_not_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = filled(tmp_path)
    tenant = db.tenant("default")
    expected = without(read(tenant), 2)
    files = FailingFiles()
    monkeypatch.setattr(db.store, "_files", files)
    files.fail("create", times=1, number=errno.ENOSPC)
    with pytest.raises(OSError, match="space"):
        db.delete(tenant, deletion(2))
    assert tenant.shards[0].has_unsaved
    db.maintain()
    assert not tenant.shards[0].has_unsaved
    shutil.rmtree(tmp_path / "wal")
    (tmp_path / "wal").mkdir()
    db.close()
    again = opened(tmp_path, time=WINDOW)
    left = read(again.tenant("default"))  # blocks alone
    assert key(series(2)) not in left
    assert left == {k: {t: b for t, b in s.items() if t in left[k]} for k, s in expected.items()}
    again.close()


def test_a_power_cut_never_brings_back_what_was_deleted(tmp_path: Path) -> None:
    """Every prefix of what deleting and cleaning do to the block store, beside the whole log."""
    root = tmp_path / "live"
    db = opened(root, time=WINDOW)
    tenant = db.tenant("default")
    files = RecordingFiles()
    tenant.shards[0]._store._files = db.store._files = files  # type: ignore[attr-defined]
    put(tenant, [(series(i), T0 + MINUTE * k, k + i) for k in range(400) for i in range(3)])
    db.maintain()
    before = read(tenant)
    begin = len(files.events)
    db.delete(tenant, deletion(1, T0 + 5 * MINUTE, T0 + 200 * MINUTE))
    files.mark("deleted")
    db.delete(tenant, deletion(1, T0 + 250 * MINUTE, T0 + 300 * MINUTE))
    db.clean()
    files.mark("cleaned")
    after = read(tenant)
    db.close()
    assert after == without(
        without(before, 1, T0 + 5 * MINUTE, T0 + 200 * MINUTE), 1, T0 + 250 * MINUTE, T0 + 300 * MINUTE
    )
    chance = random.Random(5)
    for cut in range(begin, len(files.events) + 1):
        target = tmp_path / f"cut-{cut}"
        target.mkdir()
        marks = after_power_cut(files.events[:cut], chance, root, target)
        shutil.copytree(root / "wal", target / "wal")
        if not list(target.glob("tenants/default/shard-0/manifest-*")):
            continue  # the shard's own first manifest was written before the recording
        again = opened(target, time=WINDOW)
        assert not again.tenant("default").shards[0].damage
        assert read(again.tenant("default")) == after, marks  # the log holds both deletions
        again.close()
        shutil.rmtree(target)


def test_a_damaged_manifest_does_not_bring_it_back(tmp_path: Path) -> None:
    db = filled(tmp_path)
    expected = without(read(db.tenant("default")), 2)
    db.delete(db.tenant("default"), deletion(2, T0, T0 + HOUR))
    db.delete(db.tenant("default"), deletion(2))
    db.close()
    newest = max(tmp_path.glob("tenants/default/shard-0/manifest-*"))
    newest.write_bytes(b"?")
    again = opened(tmp_path, time=WINDOW)
    tenant = again.tenant("default")
    assert tenant.shards[0].damage
    frame = tenant.select(ALL, T0 + 5 * HOUR, EVERYTHING[1], LIMITS)
    assert all(labels["instance"] != "10.0.0.2" for i, labels in enumerate(frame.labels) if np.diff(frame.offsets)[i])
    tenant.shards[0].damage.clear()
    assert read(tenant) == expected
    again.close()


def test_a_block_whose_tombstones_are_damaged_is_not_read(tmp_path: Path) -> None:
    db = filled(tmp_path)
    db.delete(db.tenant("default"), deletion(2, T0 + MINUTE, T0 + HOUR))
    db.close()
    (file,) = tmp_path.glob("tenants/default/shard-0/deleted-*")
    data = bytearray(file.read_bytes())
    data[64] ^= 1  # the first section begins here
    file.write_bytes(data)
    shutil.rmtree(tmp_path / "wal")  # which would tell
    again = opened(tmp_path, time=WINDOW)
    frame = again.tenant("default").select(ALL, *EVERYTHING, LIMITS)
    assert any("cannot be opened" in warning for warning in frame.warnings)
    assert frame.ts_ms.min() >= T0 + 2 * HOUR
    assert file.exists()
    again.close()


def test_a_snapshot_holds_what_is_left(tmp_path: Path) -> None:
    db = filled(tmp_path / "data")
    tenant = db.tenant("default")
    db.delete(tenant, deletion(2, T0 + MINUTE, T0 + 390 * MINUTE))
    expected = read(tenant)
    taken = take_snapshot(db)
    bare = take_snapshot(db, with_head=False)
    db.close()
    for path in (taken.path, bare.path):
        again = opened(path, time=WINDOW)
        found = read(again.tenant("default"))
        if path is taken.path:
            assert found == expected
        assert all(expected[k].items() >= s.items() for k, s in found.items())
        again.close()


def test_what_is_too_old_does_not_depend_on_what_was_deleted(tmp_path: Path) -> None:
    db = opened(tmp_path, time=TimeLimits(out_of_order_window_ms=HOUR), idle_cut_ms=0)
    tenant = db.tenant("default")
    put(tenant, [(series(0), T0, 1), (series(1), T0 + 30 * HOUR, 1)])
    for _ in range(3):
        db.maintain()
    db.delete(tenant, deletion(1))
    db.clean()
    db.close()
    again = opened(tmp_path, time=TimeLimits(out_of_order_window_ms=HOUR))
    result = put(again.tenant("default"), [(series(2), T0 + 28 * HOUR, 1)])
    assert result.status.tolist() == [SampleStatus.TOO_OLD]
    again.close()


def test_the_record_keeps_every_selector() -> None:
    given = Deletion(
        (of(1), (Matcher("__name__", MatchOp.EQUAL, 'a"\n\\ü'), Matcher("b", MatchOp.NOT_REGEX, "x|")), ()),
        -(1 << 63),
        (1 << 63) - 1,
    )
    assert decode_deletion(encode_deletion(given)) == given


def test_the_store_cleans_up_tombstones_that_no_manifest_names(tmp_path: Path) -> None:
    db = filled(tmp_path)
    db.close()
    store = FolderStore(tmp_path)
    store.create("tenants/default/shard-0/deleted-1-2-3-00000000000000000009", [b"half made"])
    again = opened(tmp_path, time=WINDOW)
    assert not store.list("tenants/default/shard-0/deleted-")
    again.close()
