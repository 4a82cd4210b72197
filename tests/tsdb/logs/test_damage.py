"""Damage to the manifests of a log store and to its records in the log: told, named, and only it is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tsdb.logs.test_deletions import request_of
from tests.tsdb.logs.test_store import Row, killed, open_db, push, read, rows_of
from tsdb.db import TSDB
from tsdb.logs.operations import LOG_SHARD
from tsdb.wal.framing import Frame, parse_header, scan
from tsdb.wal.records import Kind

CANCEL_S = 10**10
"""Requests are never carried out: reads alone leave rows out."""


def hurt(whole: bytes, step: int) -> Iterator[bytes]:
    """A file with one bit flipped or cut short, at places that are ``step`` bytes apart."""
    for at in range(0, len(whole), step):
        yield whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :]
        yield whole[:at]


def without_leave(db: TSDB) -> None:
    """End a store whose files shall stay as they are."""
    db.log.close()
    db.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two parts, a request to delete that only manifests hold, and one that was taken back."""
    db = open_db(tmp_path, cancel_s=CANCEL_S)
    logs = db.tenant("default").logs
    push(logs, rows_of(0, 30))
    logs.flush()
    logs.delete(request_of("a0", name="kept")).result()
    logs.delete(request_of("a1", name="taken back")).result()
    logs.maintain()
    logs.cancel("taken back", 0).result()
    push(logs, rows_of(30, 30))
    logs.flush()
    db.close()
    shutil.rmtree(tmp_path / "wal")  # the log has let go of what manifests hold
    return tmp_path


LEFT = sorted([*(row for row in rows_of(0, 30) if row[0] != "a0"), *rows_of(30, 30)])
"""What the folder shows."""


def test_any_damage_of_the_newest_manifest_costs_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = max((folder / "tenants/default/logs").glob("manifest-*"))
    whole = path.read_bytes()
    for damaged in hurt(whole, max(1, len(whole) // 25)):
        path.write_bytes(damaged)
        caplog.clear()
        db = open_db(folder, cancel_s=CANCEL_S)
        logs = db.tenant("default").logs
        assert sorted(read(logs)) == LEFT
        assert [known.request_id for known in logs.deletions()] == ["kept"]
        assert path.name in logs.damage[0]
        assert path.name in caplog.text
        assert db.stats().damage == len(logs.damage)
        without_leave(db)


def test_without_any_manifest_the_parts_are_served_and_lost_requests_are_told(folder: Path) -> None:
    paths = sorted((folder / "tenants/default/logs").glob("manifest-*"))
    for path in paths:
        path.write_bytes(path.read_bytes()[:-3])
    db = open_db(folder, cancel_s=CANCEL_S)
    logs = db.tenant("default").logs
    assert sorted(read(logs)) == sorted(rows_of(0, 60))
    for path in paths:
        assert any(path.name in damage for damage in logs.damage)
    assert any("requests to delete rows" in damage for damage in logs.damage)
    push(logs, rows_of(60, 5))
    logs.flush()
    db.close()
    again = open_db(folder, cancel_s=CANCEL_S)
    assert sorted(read(again.tenant("default").logs)) == sorted(rows_of(0, 65))
    assert not again.stats().damage, "the next commit is a good generation"
    again.close()


def frames_of(path: Path) -> list[Frame]:
    data = path.read_bytes()
    header = parse_header(memoryview(data))
    assert header
    found = scan(data, len(data), header.salt, header.first_position - 1)
    return [frame for frame in found if isinstance(frame, Frame) and frame.shard == LOG_SHARD]


def logged(folder: Path) -> tuple[Path, list[Frame], list[list[Row]]]:
    """A log of pushes that each make a stream, a request to delete ``b1`` between them, more; its files and records.

    The fourth push repeats all streams, in rows of its own.
    """
    pushes: list[list[Row]] = [[(f"b{k}", 1000 * k + i, b"%d %d" % (k, i)) for i in range(9)] for k in range(3)]
    pushes.append([(f"b{k}", 5000 + k, b"again %d" % k) for k in range(3)])
    db = open_db(folder, cancel_s=CANCEL_S)
    logs = db.tenant("default").logs
    for rows in pushes[:3]:
        push(logs, rows)
    logs.delete(request_of("b1")).result()
    push(logs, pushes[3])
    copy = killed(db, folder)
    shutil.rmtree(copy / "tenants")  # as if the request had made no part of what was before it yet
    (segment,) = (copy / "wal").glob("*.wal")
    return segment, frames_of(segment), pushes


def expected(frames: list[Frame], pushes: list[list[Row]], lost: set[int]) -> list[Row]:
    """Rows that are there without the records ``lost`` (indices of ``frames``)."""
    out: list[Row] = []
    streams: set[str] = set()
    is_deleted = False
    kinds = [(i, frame.kind) for i, frame in enumerate(frames)]
    names, batches = iter(("b0", "b1", "b2")), iter(pushes)
    for i, kind in kinds:
        if kind == Kind.STREAM:
            name = next(names)
            streams |= set() if i in lost else {name}
        elif kind == Kind.LOG_DELETE:
            is_deleted = i not in lost
        elif kind == Kind.LOG_ROWS:
            rows = next(batches)
            out += [] if i in lost else [row for row in rows if row[0] in streams]
    return sorted(row for row in out if not (is_deleted and row in pushes[1]))


def test_a_damaged_record_of_logs_costs_what_it_holds_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    segment, frames, pushes = logged(tmp_path / "d")
    assert [frame.kind for frame in frames] == [
        Kind.STREAM, Kind.LOG_ROWS, Kind.STREAM, Kind.LOG_ROWS, Kind.STREAM, Kind.LOG_ROWS, Kind.LOG_DELETE,
        Kind.LOG_ROWS,
    ]  # fmt: skip
    whole = segment.read_bytes()
    folder = segment.parents[1]
    for i, frame in enumerate(frames[:-1]):
        for at in (frame.offset, frame.offset + 13, frame.body_offset, frame.end - 1)[i % 2 :: 2]:
            segment.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            caplog.clear()
            db = open_db(folder, cancel_s=CANCEL_S)
            logs = db.tenant("default").logs
            assert sorted(read(logs)) == expected(frames, pushes, {i})
            first = db.log.damage[0]
            assert (first.path, first.offset, first.first_position) == (str(segment), frame.offset, frame.position)
            assert Path(first.quarantine).read_bytes() == segment.read_bytes()[frame.offset : frame.end]
            assert f"{segment}, byte {frame.offset:,}" in caplog.text
            if frame.kind == Kind.STREAM:  # rows of a stream that nobody defines are set aside, by their own place
                assert [(r.path, r.offset) for r in db.log.damage[1:]] == [
                    (str(segment), f.offset) for f in frames if f.kind == Kind.LOG_ROWS and uses(f, frames, i)
                ]
                assert "rows of log streams whose STREAM record is damaged" in caplog.text
            assert db.stats().damage == len(db.log.damage) >= 1
            without_leave(db)
            restore({segment: whole})


def uses(rows: Frame, frames: list[Frame], stream: int) -> bool:
    """Whether a LOG_ROWS record has rows of the stream that a record defines."""
    return rows in (frames[stream + 1], frames[-1])


def restore(segments: dict[Path, bytes]) -> None:
    """The log of before again, and nothing else: a start wrote parts and another segment, and kept what was damaged."""
    folder = next(iter(segments)).parents[1]
    for name in ("wal", "tenants"):
        shutil.rmtree(folder / name, ignore_errors=not (folder / name).exists())
    (folder / "wal").mkdir()
    for path, data in segments.items():
        path.write_bytes(data)


@pytest.mark.parametrize("acknowledged", [False, True], ids=["last segment", "an earlier segment"])
def test_a_torn_tail_of_log_records_is_the_end_and_a_loss_where_more_was_acknowledged(
    tmp_path: Path, *, acknowledged: bool
) -> None:
    segment, frames, pushes = logged(tmp_path / "d")
    folder = segment.parents[1]
    later: list[Row] = []
    if acknowledged:
        db = open_db(folder, cancel_s=CANCEL_S)
        later = [("b0", 9000, b"later"), ("b9", 9001, b"new")]
        push(db.tenant("default").logs, later)
        folder = killed(db, folder)
        segment = folder / "wal" / segment.name
    whole = segment.read_bytes()
    segments = {path: path.read_bytes() for path in segment.parent.glob("*.wal")}
    restore(segments)
    for i, frame in enumerate(frames):
        for at in (frame.offset + 20, (frame.body_offset + frame.end) // 2, frame.end - 1):
            segment.write_bytes(whole[:at])
            db = open_db(folder, cancel_s=CANCEL_S)
            logs = db.tenant("default").logs
            assert sorted(read(logs)) == sorted([*expected(frames, pushes, set(range(i, len(frames)))), *later])
            (torn,) = db.log.torn_tails
            assert (torn.path, torn.offset) == (str(segment), frame.offset)
            lost = [(r.path, r.offset, r.first_position, r.last_position) for r in db.log.damage]
            assert lost == ([(str(segment), frame.offset, frame.position, frames[-1].position)] if acknowledged else [])
            assert db.stats().damage == len(lost)
            without_leave(db)
            restore(segments)
