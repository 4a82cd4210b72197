"""Replay past damage: the recovery contract R1 to R5 of docs/format/wal.md, one by one and at random."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tsdb.wal.disks import RecordingFiles, after_power_cut
from tests.tsdb.wal.test_log import SMALL, SPARES, Put, opened
from tsdb.errors import LogFailedError
from tsdb.wal import LocalLog, ReplayedRecord
from tsdb.wal.framing import HEADER_COPIES, RECORDS_FIRST, Frame, parse_header, scan
from tsdb.wal.inspect import inspect_wal


def write(folder: Path, sent: list[bytes], **options: object) -> list[Path]:
    """A log of the bodies, one segment a ``None``-free run; its segment files in order."""
    log = opened(folder, **options)
    for i, body in enumerate(sent):
        log.submit(Put(body, max_ms=1000 + i)).result(30)
    log.close()
    return sorted(folder.glob("*.wal"))


def frames(path: Path) -> list[Frame]:
    data = path.read_bytes()
    header = parse_header(memoryview(data))
    assert header
    return [f for f in scan(data, len(data), header.salt, header.first_position - 1) if isinstance(f, Frame)]


def replayed(folder: Path) -> tuple[list[ReplayedRecord], LocalLog]:
    log = LocalLog(folder)
    return list(log.replay()), log


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


BODIES = [b"body %d " % i + bytes(range(40)) * (i % 5) for i in range(12)]


def test_r1_records_count_in_order_with_ascending_positions(tmp_path: Path) -> None:
    (path,) = write(tmp_path, BODIES)
    # a good record of this very segment, copied behind the end: its position is not the next one
    data = path.read_bytes()
    frame = frames(path)[3]
    path.write_bytes(data + data[frame.offset : frame.end])
    records, log = replayed(tmp_path)
    assert [r.body for r in records] == BODIES
    assert [r.position for r in records] == list(range(1, 13))
    assert not log.damage


@pytest.mark.parametrize("where", ["marker", "crc", "length", "position", "tenant", "body"])
def test_r2_r3_r4_one_damaged_record_costs_one_record_and_is_kept_and_reported(tmp_path: Path, where: str) -> None:
    (path,) = write(tmp_path, BODIES)
    frame = frames(path)[5]
    at = {
        "marker": 0,
        "crc": 9,
        "length": 13,
        "position": 24,
        "tenant": 44,
        "body": frame.body_offset - frame.offset + 3,
    }
    flip(path, frame.offset + at[where], 5)
    original = path.read_bytes()
    records, log = replayed(tmp_path)
    assert [r.body for r in records] == BODIES[:5] + BODIES[6:]
    (report,) = log.damage
    assert (report.first_position, report.last_position) == (6, 6)
    assert (report.offset, report.n_bytes) == (frame.offset, frame.end - frame.offset)
    assert (report.before_ms, report.after_ms) == (1004, 1006)
    kept = Path(report.quarantine)
    assert kept.read_bytes() == original[frame.offset : frame.end]
    note = json.loads(kept.with_suffix(".json").read_text())
    assert (note["offset"], note["first_position"], note["path"]) == (frame.offset, 6, str(path))
    assert path.read_bytes() == original, "nothing is deleted or changed"
    replayed(tmp_path)
    assert len(list(kept.parent.iterdir())) == 2, "the same damage is kept once"


def test_r4_a_record_that_the_store_cannot_use_is_set_aside(tmp_path: Path) -> None:
    write(tmp_path, BODIES)
    log = LocalLog(tmp_path)
    for record in log.replay():
        if record.position == 4:
            log.set_aside(record, "its series are unknown")
    (report,) = log.damage
    assert (report.first_position, report.last_position, report.reason) == (4, 4, "its series are unknown")
    (kept,) = (tmp_path / "quarantine").glob("*.bin")
    assert kept.read_bytes() == BODIES[3]


def test_r5_a_tail_torn_at_any_byte_is_the_end(tmp_path: Path) -> None:
    (path,) = write(tmp_path / "whole", BODIES)
    data = path.read_bytes()
    last = frames(path)[-1]
    for cut in range(last.offset, last.end):
        for fill in (b"", bytes(300)):  # a shorter file, or zeros where the bytes did not arrive
            folder = tmp_path / f"{cut}-{len(fill)}"
            folder.mkdir()
            (folder / path.name).write_bytes(data[:cut] + fill)
            records, log = replayed(folder)
            assert [r.body for r in records] == BODIES[:-1]
            assert not log.damage
            assert len(log.torn_tails) == (cut >= last.offset + 8)
            if cut % 16 == 0:  # and the log goes on with the position that was torn
                log.start()
                assert log.submit(Put(b"next")).result(30) == 12
                log.close()
                assert [r.body for r in replayed(folder)[0]] == [*BODIES[:-1], b"next"]
                assert not replayed(folder)[1].damage


def test_r5_the_end_of_a_reused_file_is_found_among_old_records(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for _ in range(12):
        log.submit(Put(b"old" + os.urandom(5_000))).result(30)
    assert log.free(lambda *_: True)
    while log.stats.segments < 3:
        log.submit(Put(b"new" + os.urandom(5_000))).result(30)
    shutil.copytree(tmp_path, tmp_path / "crash", ignore=SPARES)
    log.close()
    records, again = replayed(tmp_path / "crash")
    assert not again.damage
    assert not again.torn_tails
    positions = [r.position for r in records]
    assert positions == list(range(positions[0], positions[-1] + 1))
    assert records[-1].body.startswith(b"new")


def test_an_acknowledged_tail_that_was_damaged_later_is_a_hole_not_an_end(tmp_path: Path) -> None:
    write(tmp_path, BODIES)
    first, second = write(tmp_path, [b"second"])
    last = frames(first)[-1]
    flip(first, last.body_offset)
    records, log = replayed(tmp_path)
    assert [r.body for r in records] == [*BODIES[:-1], b"second"]
    (report,) = log.damage
    assert (report.first_position, report.last_position) == (12, 12)
    assert Path(report.quarantine).read_bytes() == first.read_bytes()[last.offset :]
    assert second.exists()


def test_one_damaged_header_copy_is_harmless_and_both_cost_the_segment(tmp_path: Path) -> None:
    paths = [write(tmp_path, [b"%d" % i])[-1] for i in range(3)]
    flip(paths[1], HEADER_COPIES[0] + 20)
    assert [r.body for r in replayed(tmp_path)[0]] == [b"0", b"1", b"2"]
    flip(paths[1], HEADER_COPIES[1] + 20)
    records, log = replayed(tmp_path)
    assert [r.body for r in records] == [b"0", b"2"]
    assert log.damage[0].reason == "both copies of the segment header are damaged"
    assert (log.damage[-1].first_position, log.damage[-1].last_position) == (2, 2)
    assert Path(log.damage[0].quarantine).read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("how", ["empty", "missing", "swapped", "short"])
def test_row_8_a_lost_file_costs_that_file_and_is_reported(tmp_path: Path, how: str) -> None:
    paths = [write(tmp_path, [b"%d" % i])[-1] for i in range(3)]
    if how == "empty":
        paths[1].write_bytes(b"")
    elif how == "missing":
        paths[1].unlink()
    elif how == "short":
        paths[1].write_bytes(paths[1].read_bytes()[:100])
    else:
        paths[1].write_bytes(paths[0].read_bytes())
    records, log = replayed(tmp_path)
    if how == "short":  # one header copy is left, no record
        assert not any(r.reason.startswith("both") for r in log.damage)
    assert [r.body for r in records] == [b"0", b"2"]
    assert (log.damage[-1].first_position, log.damage[-1].last_position) == (2, 2)
    log.start()
    assert log.submit(Put(b"goes on")).result(30) == 4
    log.close()


def test_a_folder_and_foreign_files_are_no_segments(tmp_path: Path) -> None:
    write(tmp_path, [b"x"])
    (tmp_path / "notes.wal").write_bytes(b"?")
    (tmp_path / "README").write_bytes(b"?")
    records, log = replayed(tmp_path)
    assert [r.body for r in records] == [b"x"]
    assert not log.damage


def test_the_partitions_of_old_segments_are_known_after_replay(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for i, tenant in enumerate("aab"):
        log.submit(Put(b"x", tenant=tenant, shard=i, max_ms=i)).result(30)
    log.close()
    log = LocalLog(tmp_path)
    log.start()
    asked: list[tuple[str, int, int, int]] = []
    log.free(lambda *partition: bool(asked.append(partition)) or True)
    assert asked == [("a", 0, 0, 1), ("a", 1, 1, 2), ("b", 2, 2, 3)]
    log.close()


def test_an_unknown_codec_is_set_aside_like_damage(tmp_path: Path) -> None:
    import zlib

    (path,) = write(tmp_path, BODIES)
    frame = frames(path)[2]
    data = bytearray(path.read_bytes())
    data[frame.offset + 21] = 9
    data[frame.offset + 8 : frame.offset + 12] = zlib.crc32(data[frame.offset + 12 : frame.end]).to_bytes(4, "little")
    path.write_bytes(data)
    records, log = replayed(tmp_path)
    assert [r.body for r in records] == BODIES[:2] + BODIES[3:]
    assert (log.damage[0].first_position, log.damage[0].last_position) == (3, 3)


def test_inspect_tells_what_is_there_and_changes_nothing(tmp_path: Path) -> None:
    (path,) = write(tmp_path, BODIES)
    flip(path, frames(path)[5].body_offset)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    text = "\n".join(inspect_wal(tmp_path))
    assert "segment 1" in text
    assert "11 records" in text
    assert "damaged record" in text
    assert "\n".join(inspect_wal(path)) != ""
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    list(inspect_wal(tmp_path / "absent"))


LOG = st.lists(st.binary(max_size=300), min_size=1, max_size=25)


@given(LOG, st.randoms(use_true_random=False), st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_whatever_is_damaged_nothing_is_delivered_that_was_not_written(
    sent: list[bytes], chance: random.Random, hits: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sent = [b"%d:" % i + body for i, body in enumerate(sent)]
        half = len(sent) // 2
        write(folder, sent[:half])
        paths = write(folder, sent[half:])
        for _ in range(hits):
            path = chance.choice(paths)
            data = bytearray(path.read_bytes())
            if not data:
                continue
            kind = chance.randrange(4)
            first = chance.randrange(RECORDS_FIRST, len(data) + 1) if len(data) > RECORDS_FIRST else 0
            if kind == 0:
                del data[first:]
            elif kind == 1:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            elif kind == 2:
                data[first : first + chance.randrange(600)] = b""
            else:
                data[first : first + 64] = os.urandom(64)
            path.write_bytes(data)
        records, log = replayed(folder)
        place = {body: i for i, body in enumerate(sent)}
        places = [place[r.body] for r in records]  # KeyError: something that was never written
        assert places == sorted(set(places))
        log.start()
        position = log.submit(Put(b"after")).result(30)
        assert position > max([r.position for r in records], default=0)
        log.close()
        records, log = replayed(folder)
        assert [place[r.body] for r in records[:-1]] == places
        assert records[-1].body == b"after"


@pytest.mark.parametrize("seed", range(6))
def test_row_2_and_3_no_power_cut_loses_what_was_acknowledged(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    files = RecordingFiles()
    root = tmp_path / "live"
    log = LocalLog(root, segment_bytes=1 << 14, files=files)
    log.start()
    sent = []
    for i in range(40):
        body = b"%d:" % i + chance.randbytes(chance.randrange(1, 1500))
        sent.append(body)
        log.submit(Put(body, max_ms=i)).result(30)
        files.mark(body)
        if i % 12 == 11:  # frees and recycles, as after a cut
            published = i - 5
            log.free(lambda tenant, shard, max_ms, position: max_ms < published)  # noqa: B023
            files.mark(published)
    log.close()
    place = {body: i for i, body in enumerate(sent)}
    cuts = sorted(chance.sample(range(len(files.events)), 25))
    for cut in cuts:
        target = tmp_path / f"cut-{cut}"
        target.mkdir()
        marks = after_power_cut(files.events[:cut], chance, root, target)
        published = max((m for m in marks if isinstance(m, int)), default=0)
        acknowledged = {place[m] for m in marks if isinstance(m, bytes)}
        # what free() was about to take at the moment of the cut is published too
        upcoming = [e[1] for e in files.events[cut:] if e[0] == "mark" and isinstance(e[1], int)]
        published = max([published, *upcoming[:1]])
        records, again = replayed(target)
        found = [place[r.body] for r in records]
        assert found == sorted(found)
        assert {i for i in acknowledged if i >= published} <= set(found)
        lost = [d for d in again.damage if d.last_position >= d.first_position and d.last_position > published]
        assert not lost, "nothing acknowledged is missing, so nothing is reported as missing"
        again.start()
        again.submit(Put(b"after")).result(30)
        again.close()


def test_a_log_closed_before_start_refuses(tmp_path: Path) -> None:
    log = LocalLog(tmp_path, segment_bytes=SMALL)
    log.close()
    with pytest.raises(LogFailedError):
        log.submit(Put(b"x"))
