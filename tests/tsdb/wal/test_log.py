"""The log while it runs: group commit, order of sync and acknowledgement, bounds, failing disks (R6, R7)."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.tsdb.wal.disks import FailingFiles, RecordingFiles
from tsdb.disk import DiskGuard
from tsdb.errors import DiskFullError, LogFailedError, OverloadedError
from tsdb.wal import LocalLog, Record, SyncMode
from tsdb.wal.framing import RECORDS_FIRST

SMALL = 1 << 16
SPARES = shutil.ignore_patterns("spare-*")  # they come and go beside the log; a start throws them away


class Put:
    """Logs one body; remembers where it was asked to."""

    def __init__(self, body: bytes, tenant: str = "t", shard: int = 0, max_ms: int = 0, n_bytes: int = 10) -> None:
        self.body, self.tenant, self.shard, self.max_ms, self.n_bytes = body, tenant, shard, max_ms, n_bytes
        self.segments: list[int] = []

    def records(self, segment: int) -> list[Record]:
        self.segments.append(segment)
        return [Record(2, self.tenant, self.shard, self.body, self.max_ms)]

    def apply(self, position: int) -> int:
        return position


class Held(Put):
    """Holds the committer inside ``apply`` until it is let go."""

    def __init__(self, body: bytes = b"held") -> None:
        super().__init__(body)
        self.reached, self.go = threading.Event(), threading.Event()

    def apply(self, position: int) -> int:
        self.reached.set()
        assert self.go.wait(30)
        return position


def bodies(folder: Path) -> list[bytes]:
    log = LocalLog(folder)
    found = [record.body for record in log.replay()]
    assert not log.damage
    return found


def opened(folder: Path, **options: object) -> LocalLog:
    log = LocalLog(folder, segment_bytes=SMALL, **options)  # type: ignore[arg-type]
    log.start()
    return log


def test_what_was_submitted_comes_back_in_order(tmp_path: Path) -> None:
    log = opened(tmp_path)
    sent = [bytes([i % 251]) * (i * 7 % 900) for i in range(600)]
    futures = [log.submit(Put(body, tenant=f"tenant-{i % 3}", shard=i % 5)) for i, body in enumerate(sent)]
    assert [f.result(30) for f in futures] == list(range(1, 601))
    log.close()
    again = LocalLog(tmp_path)
    records = list(again.replay())
    assert [r.body for r in records] == sent
    assert [(r.position, r.tenant, r.shard, r.kind) for r in records] == [
        (i + 1, f"tenant-{i % 3}", i % 5, 2) for i in range(600)
    ]
    assert not again.damage
    assert not again.torn_tails


def test_what_arrives_during_a_sync_shares_the_next_one(tmp_path: Path) -> None:
    log = opened(tmp_path)
    held = Held()
    first = log.submit(held)
    assert held.reached.wait(30)
    waiting = [log.submit(Put(b"x" * 100)) for _ in range(50)]
    before = log.stats.syncs
    held.go.set()
    for future in [first, *waiting]:
        future.result(30)
    log.close()
    assert log.stats.syncs - before == 1
    assert sum(log.stats.sync_counts) == log.stats.syncs


class Where(Put):
    """Remembers which thread applied it."""

    thread = ""

    def apply(self, position: int) -> int:
        self.thread = threading.current_thread().name
        return super().apply(position)


class HeldWhere(Where, Held):
    """Both."""


def test_a_leader_commits_what_it_submitted_and_all_that_waits(tmp_path: Path) -> None:
    log = opened(tmp_path)
    ops = [Where(b"%d" % i) for i in range(3)]
    with log.leader():
        futures = [log.submit(op) for op in ops]
        time.sleep(0.05)
        assert not any(f.done() for f in futures), "nobody else was woken for it"
        with log.leader():
            futures.append(log.submit(Where(b"nested")))
        assert not futures[-1].done()
    assert [f.result(0) for f in futures] == [1, 2, 3, 4]
    assert {op.thread for op in ops} == {threading.current_thread().name}
    assert log.stats.syncs == 1
    alone = Where(b"alone")
    assert log.submit(alone).result(30) == 5
    assert alone.thread == "log-committer"
    with contextlib.suppress(ZeroDivisionError), log.leader():
        failed = log.submit(Put(b"submitted all the same"))
        raise ZeroDivisionError
    assert failed.result(0) == 6
    log.close()
    with log.leader(), pytest.raises(LogFailedError):
        log.submit(Put(b"late"))
    assert len(bodies(tmp_path)) == 6


def test_a_leader_leaves_its_operations_to_whoever_commits(tmp_path: Path) -> None:
    log = opened(tmp_path)
    held = Held()
    first = log.submit(held)
    assert held.reached.wait(30)
    op = Where(b"x")
    with log.leader():
        future = log.submit(op)
    assert not future.done()
    held.go.set()
    assert future.result(30) == 2
    assert op.thread == "log-committer"
    assert first.result(30) == 1
    log.close()


def test_many_leaders_and_others_share_one_log(tmp_path: Path) -> None:
    log = opened(tmp_path)
    positions: list[int] = []

    def submit(kind: int) -> None:
        for i in range(40):
            body = b"%d/%d" % (kind, i)
            if kind % 2:
                with log.leader() if kind == 1 else log.gatherer():
                    future = log.submit(Put(body))
                positions.append(log.result(future))
            else:
                positions.append(log.submit(Put(body)).result(30))

    threads = [threading.Thread(target=submit, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    log.close()
    assert sorted(positions) == list(range(1, 241))
    found = bodies(tmp_path)
    for kind in range(6):
        assert [b for b in found if b.startswith(b"%d/" % kind)] == [b"%d/%d" % (kind, i) for i in range(40)]


def test_the_role_goes_to_a_thread_that_waits(tmp_path: Path) -> None:
    log = opened(tmp_path)
    held, names = HeldWhere(), []

    def lead(op: Put) -> None:
        with log.leader():
            future = log.submit(op)
        log.result(future)
        names.append(threading.current_thread().name)

    threads = [threading.Thread(target=lead, args=(held,), name="first")]
    threads[0].start()
    assert held.reached.wait(30)
    followers = [Where(b"%d" % i) for i in range(5)]
    threads += [threading.Thread(target=lead, args=(op,), name=f"follower-{i}") for i, op in enumerate(followers)]
    for thread in threads[1:]:
        thread.start()
    while len(log._followers) < 5:
        time.sleep(0.001)
    before = log.stats.syncs
    held.go.set()
    for thread in threads:
        thread.join(30)
    assert len(names) == 6
    assert held.thread == "first"
    assert len({op.thread for op in followers}) == 1, "one of them committed for all"
    assert followers[0].thread.startswith("follower-")
    assert log.stats.syncs == before + 1
    log.submit(Put(b"and nobody holds the role")).result(30)
    log.close()


def test_those_who_prepare_at_the_same_time_share_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsdb.wal.log.GATHER_S", 30.0)
    monkeypatch.setattr("tsdb.wal.log.FOLLOW_S", 30.0)
    log = opened(tmp_path)
    go, positions = threading.Event(), []
    inside = threading.Barrier(5)

    def prepare(op: Put | None) -> None:
        with log.gatherer():
            inside.wait(30)
            future = log.submit(op) if op else None
            if op is None:
                assert go.wait(30)  # the last one, and it has nothing to submit
        if future:
            positions.append(log.result(future))

    ops = [Where(b"%d" % i) for i in range(4)]
    threads = [threading.Thread(target=prepare, args=(op,), name=f"t{i}") for i, op in enumerate([*ops, None])]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    assert log.stats.syncs == 0
    go.set()
    for thread in threads:
        thread.join(30)
    assert sorted(positions) == [1, 2, 3, 4]
    assert log.stats.syncs == 1
    log.close()


def test_nobody_waits_long_for_one_who_prepares(tmp_path: Path) -> None:
    log = opened(tmp_path)
    held, go = threading.Event(), threading.Event()

    def prepare() -> None:
        with log.gatherer():
            held.set()
            assert go.wait(30)

    slow = threading.Thread(target=prepare)
    slow.start()
    assert held.wait(30)
    for i in range(3):
        with log.gatherer():
            future = log.submit(Put(b"%d" % i))
        assert log.result(future) == i + 1, "while the other one is still preparing"
    go.set()
    slow.join(30)
    assert log._preparing == 0
    log.close()


def test_a_waiting_thread_sees_the_error_of_its_operation(tmp_path: Path) -> None:
    files = FailingFiles()
    log = opened(tmp_path, files=files, retry_s=0.0)
    files.fail("write_at", times=1000)
    with log.leader():
        future = log.submit(Put(b"lost"))
    with pytest.raises(LogFailedError):
        log.result(future)
    files.heal()
    with log.leader():
        future = log.submit(Put(b"kept"))
    log.result(future)
    log.close()
    assert bodies(tmp_path)[-1] == b"kept"


def test_what_a_leader_wrote_is_synced_after_the_interval(tmp_path: Path) -> None:
    log = opened(tmp_path, sync=SyncMode.INTERVAL, interval_ms=20)
    with log.leader():
        log.submit(Put(b"x"))
    assert log.stats.syncs == 0
    deadline = time.monotonic() + 30
    while not log.stats.syncs and time.monotonic() < deadline:
        time.sleep(0.01)
    assert log.stats.syncs == 1
    log.close()


def test_acknowledged_means_synced_then_applied(tmp_path: Path) -> None:
    files = RecordingFiles()
    log = opened(tmp_path, files=files)

    class Marked(Put):
        def apply(self, position: int) -> int:
            files.mark("apply")
            return position

    for i in range(5):
        future = log.submit(Marked(b"%d" % i))
        future.add_done_callback(lambda _: files.mark("acknowledge"))
        future.result(30)
    log.close()
    segment = next(event[3] for event in files.events if event[0] == "move")  # spares are prepared meanwhile
    events = [event for event in files.events if event[0] == "mark" or event[1] == segment]
    kinds = [event[1] if event[0] == "mark" else event[0] for event in events]
    at = [i for i, kind in enumerate(kinds) if kind == "acknowledge"]
    assert len(at) == 5
    for i in at:
        assert kinds[i - 3 : i + 1] == ["write", "sync", "apply", "acknowledge"]


def test_a_new_segment_is_durable_by_name_before_a_record_is_acknowledged(tmp_path: Path) -> None:
    files = RecordingFiles()
    log = opened(tmp_path, files=files)
    for _ in range(4):
        log.submit(Put(b"\xff" + bytes(range(256)) * 100)).result(30)
        files.mark("acknowledge")
    log.close()
    for i, event in enumerate(files.events):
        if event[0] == "move":
            assert event[2].suffix == ".wal"  # type: ignore[attr-defined]
            before = [e[0] for e in files.events[:i] if e[1] == event[3]]
            assert before[-1] == "sync", "header first"
            after = [e[0] for e in files.events[i:] if e[0] in ("mark", "sync_folder")]
            assert after[0] == "sync_folder"


def test_r6_a_start_never_appends_behind_an_old_tail(tmp_path: Path) -> None:
    for i in range(3):
        log = opened(tmp_path)
        log.submit(Put(b"start %d" % i)).result(30)
        log.close()
    names = sorted(p.name for p in tmp_path.glob("*.wal"))
    assert [int(n[:-4]) for n in names] == [1, 2, 3]
    assert bodies(tmp_path) == [b"start 0", b"start 1", b"start 2"]


def test_segments_roll_and_positions_go_on(tmp_path: Path) -> None:
    log = opened(tmp_path)
    ops = [Put(bytes([i]) + bytes(range(250)) * 100) for i in range(40)]
    incompressible = [Put(os.urandom(20_000)) for _ in range(40)]
    for op in [*ops, *incompressible]:
        log.submit(op).result(30)
    assert log.stats.segments > 10
    log.close()
    assert bodies(tmp_path) == [op.body for op in [*ops, *incompressible]]
    assert ops[0].segments == [1]
    assert incompressible[-1].segments[0] > 10


def test_positions_start_above_what_the_manifests_have_published(tmp_path: Path) -> None:
    log = LocalLog(tmp_path)
    log.start(first_position=5000)
    assert log.submit(Put(b"x")).result(30) == 5000
    log.close()
    log = LocalLog(tmp_path)
    assert [r.position for r in log.replay()] == [5000]
    log.start(first_position=1)
    assert log.submit(Put(b"y")).result(30) == 5001
    log.close()


def test_a_full_queue_refuses_and_recovers(tmp_path: Path) -> None:
    log = opened(tmp_path, queue_bytes_max=1000)
    held = Held()
    first = log.submit(held)
    assert held.reached.wait(30)
    kept = [log.submit(Put(b"x", n_bytes=400)) for _ in range(2)]
    with pytest.raises(OverloadedError):
        log.submit(Put(b"x", n_bytes=400))
    assert log.stats.queued_ops == 2
    held.go.set()
    for future in [first, *kept]:
        future.result(30)
    # one that is larger than the whole bound passes when nothing else waits
    log.submit(Put(b"big", n_bytes=5000)).result(30)
    assert log.stats.queued_bytes == 0
    log.close()


def test_an_operation_that_was_given_up_while_queued_is_not_logged(tmp_path: Path) -> None:
    log = opened(tmp_path)
    held = Held()
    log.submit(held)
    assert held.reached.wait(30)
    given_up, kept = log.submit(Put(b"given up")), log.submit(Put(b"kept"))
    assert given_up.cancel()
    held.go.set()
    kept.result(30)
    log.close()
    assert bodies(tmp_path) == [b"held", b"kept"]


def test_a_faulty_operation_harms_only_itself(tmp_path: Path) -> None:
    class BadRecords(Put):
        def records(self, segment: int) -> list[Record]:
            raise ValueError("records")

    class BadApply(Put):
        def apply(self, position: int) -> int:
            raise ValueError("apply")

    class TooLong(Put):
        def records(self, segment: int) -> list[Record]:
            return [Record(2, "t", 0, b"first", 0), Record(2, "x" * 300, 0, b"second", 0)]

    log = opened(tmp_path)
    held = Held()
    log.submit(held)
    assert held.reached.wait(30)
    futures: list[Future[int]] = [
        log.submit(op) for op in (Put(b"a"), BadRecords(b""), TooLong(b""), BadApply(b"b"), Put(b"c"))
    ]
    held.go.set()
    assert futures[0].result(30) == 2
    with pytest.raises(ValueError, match="records"):
        futures[1].result(30)
    with pytest.raises(AssertionError):
        futures[2].result(30)
    with pytest.raises(ValueError, match="apply"):
        futures[3].result(30)
    assert futures[4].result(30) == 4
    log.close()
    assert bodies(tmp_path) == [b"held", b"a", b"b", b"c"]


def test_close_writes_what_is_queued_and_then_refuses(tmp_path: Path) -> None:
    log = opened(tmp_path)
    held = Held()
    log.submit(held)
    assert held.reached.wait(30)
    queued = [log.submit(Put(b"%d" % i)) for i in range(20)]
    closer = threading.Thread(target=log.close)
    closer.start()
    held.go.set()
    closer.join(30)
    assert all(f.done() and not f.exception() for f in queued)
    with pytest.raises(LogFailedError):
        log.submit(Put(b"late"))
    assert len(bodies(tmp_path)) == 21
    (segment,) = tmp_path.glob("*.wal")
    assert segment.stat().st_size < SMALL, "a clean close gives the unused space back"


@pytest.mark.parametrize("failing", ["write_at", "sync_data"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_r7_after_one_failure_a_new_segment_takes_the_group(tmp_path: Path, failing: str, number: int) -> None:
    files = FailingFiles()
    log = opened(tmp_path, files=files)
    log.submit(Put(b"before")).result(30)
    files.fail(failing, number=number)
    op = Put(b"during")
    assert log.submit(op).result(30)
    assert op.segments == [1, 2], "asked again, so that the new segment gets its own dictionary"
    log.submit(Put(b"after")).result(30)
    assert log.stats.sync_failures + log.stats.write_failures == 1
    shutil.copytree(tmp_path, tmp_path / "crash", ignore=SPARES)  # as after kill -9
    log.close()
    for folder in (tmp_path, tmp_path / "crash"):
        found = bodies(folder)
        # the failed segment may or may not hold it; samples are idempotent
        assert [b for i, b in enumerate(found) if b not in found[:i]] == [b"before", b"during", b"after"]


@pytest.mark.parametrize("failing", ["write_at", "sync_data"])
def test_r7_when_the_new_segment_fails_too_writes_are_refused_until_the_disk_is_back(
    tmp_path: Path, failing: str
) -> None:
    files = FailingFiles()
    log = opened(tmp_path, files=files, retry_s=0.05)
    log.submit(Put(b"before")).result(30)
    files.fail(failing, times=1000)
    applied = []

    class Seen(Put):
        def apply(self, position: int) -> int:
            applied.append(self.body)
            return position

    for _ in range(3):
        with pytest.raises(LogFailedError):
            log.submit(Seen(b"lost")).result(30)
        assert log.stats.failed
        with pytest.raises(LogFailedError):
            log.submit(Seen(b"refused at once"))
        time.sleep(0.06)
    files.heal()
    log.submit(Seen(b"after")).result(30)
    assert not log.stats.failed
    assert applied == [b"after"]
    log.close()
    found = bodies(tmp_path)
    assert found[0] == b"before"
    assert found[-1] == b"after"
    assert set(found) <= {b"before", b"lost", b"after"}


def test_a_full_disk_is_survived_on_the_reserve_and_writes_come_back_by_themselves(tmp_path: Path) -> None:
    files = FailingFiles()
    log = opened(tmp_path, files=files, retry_s=0.0)
    sent = []
    files.fail("preallocate", times=1_000_000, number=errno.ENOSPC)  # no new segment any more
    refused = 0
    for i in range(30):
        body = bytes([i]) + os.urandom(20_000)
        try:
            log.submit(Put(body)).result(30)
            sent.append(body)
        except LogFailedError:
            refused += 1
    assert len(sent) >= 6, "the open segment and one spare"
    assert refused
    files.heal()
    log.submit(Put(b"space again")).result(30)
    log.close()
    assert bodies(tmp_path) == [*sent, b"space again"]


def test_a_disk_that_gives_no_segment_at_start_says_so(tmp_path: Path) -> None:
    files = FailingFiles()
    log = LocalLog(tmp_path, files=files)
    files.fail("preallocate", times=10, number=errno.ENOSPC)
    with pytest.raises(LogFailedError):
        log.start()
    with pytest.raises(LogFailedError):
        log.submit(Put(b"x"))
    log.close()


def test_the_guard_refuses_before_anything_is_queued(tmp_path: Path) -> None:
    log = opened(tmp_path, guard=DiskGuard(tmp_path, min_free_fraction=1.0))
    with pytest.raises(DiskFullError):
        log.submit(Put(b"x"))
    assert log.stats.queued_ops == 0
    log.close()


@pytest.mark.parametrize("mode", [SyncMode.INTERVAL, SyncMode.OFF])
def test_relaxed_modes_acknowledge_before_the_sync(tmp_path: Path, mode: SyncMode) -> None:
    files = FailingFiles()
    log = opened(tmp_path, files=files, sync=mode, interval_ms=100)
    begin = time.monotonic()
    for i in range(50):
        log.submit(Put(b"%d" % i)).result(30)
    took = time.monotonic() - begin
    assert log.stats.syncs <= took / 0.1 + 1
    time.sleep(0.3)
    assert log.stats.syncs >= (mode is SyncMode.INTERVAL)
    files.fail("sync_data")
    log.submit(Put(b"sync fails")).result(30)
    time.sleep(0.3)
    log.submit(Put(b"goes on")).result(30)
    log.close()
    assert bodies(tmp_path) == [*(b"%d" % i for i in range(50)), b"sync fails", b"goes on"]


def test_segments_are_freed_in_order_and_their_space_is_used_again(tmp_path: Path) -> None:
    log = opened(tmp_path)
    noise = os.urandom
    for i in range(30):
        log.submit(Put(noise(20_000), tenant="ab"[i % 2], shard=i % 3, max_ms=i)).result(30)
    segments = log.stats.segments
    asked: list[tuple[str, int, int, int]] = []

    def published(tenant: str, shard: int, max_ms: int, position: int) -> bool:
        asked.append((tenant, shard, max_ms, position))
        return position <= 10

    assert 1 <= log.free(published) < segments
    assert all(max_ms == position - 1 for _, _, max_ms, position in asked)
    assert {(t, s) for t, s, _, _ in asked} <= {(t, s) for t in "ab" for s in range(3)}
    assert log.free(lambda *_: False) == 0
    assert 2 <= len(list(tmp_path.glob("spare-*"))) <= 3, "one may just be in the making"
    before = bodies_of_copy(tmp_path)
    assert log.free(lambda *_: True) > 0
    for _ in range(8):  # into the recycled files, behind whose end lie records of their former life
        log.submit(Put(noise(20_000))).result(30)
    after = bodies_of_copy(tmp_path)
    assert len(before) > len(after) >= 8
    log.close()


def bodies_of_copy(folder: Path) -> list[bytes]:
    """What a start after kill -9 would find."""
    copy = folder.parent / f"{folder.name}-copy-{time.monotonic_ns()}"
    shutil.copytree(folder, copy, ignore=SPARES)
    return bodies(copy)


def test_a_crash_gives_the_unused_space_back_at_the_next_start(tmp_path: Path) -> None:
    log = opened(tmp_path / "a")
    log.submit(Put(b"x")).result(30)
    shutil.copytree(tmp_path / "a", tmp_path / "b", ignore=SPARES)
    log.close()
    log = opened(tmp_path / "b")
    first = sorted((tmp_path / "b").glob("*.wal"))[0]
    assert RECORDS_FIRST < first.stat().st_size < RECORDS_FIRST + 200
    log.close()
    assert bodies(tmp_path / "b") == [b"x"]


def test_many_threads_submit(tmp_path: Path) -> None:
    log = opened(tmp_path)
    results: list[int] = []

    def work(n: int) -> None:
        results.extend(log.submit(Put(b"%d-%d" % (n, i))).result(30) for i in range(50))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    log.close()
    assert sorted(results) == list(range(1, 401))
    assert len(set(bodies(tmp_path))) == 400
    assert log.stats.groups < 400
