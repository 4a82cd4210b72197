"""The log store: what is acknowledged is there, once, after any flush, crash, compaction."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsdb.block.container import Container
from tsdb.db import TSDB, StoreConfig, TenantConfig
from tsdb.errors import CorruptionError
from tsdb.labels import Labels
from tsdb.logs import batch as batch_module
from tsdb.logs import part as part_module
from tsdb.logs.batch import LogBatch, decode_rows, encode_batch, encode_rows
from tsdb.logs.frame import Texts
from tsdb.logs.settings import LogLimits
from tsdb.logs.store import LogStore
from tsdb.matchers import Matcher, MatchOp
from tsdb.wal.step import Step

END = 1 << 62
MS = 1_000_000
Row = tuple[str, int, bytes]


def open_db(path: Path, **logs: float) -> TSDB:
    db = TSDB(
        StoreConfig(
            path=path,
            min_free_bytes=0,
            min_free_fraction=0,
            maintenance_seconds=3600,
            segment_bytes=1 << 20,
            logs=LogLimits(**logs),
        )
    )  # type: ignore[arg-type]
    db.open()
    return db


def killed(db: TSDB, path: Path) -> Path:
    """The folder as a ``kill -9`` would have left it at this moment, somewhere else."""
    copy = path.with_name(path.name + "k")
    with db.tenant("default").logs.unchanged():
        shutil.copytree(path, copy)
    db.close()
    return copy


def batch_of(logs: LogStore, rows: list[Row], metadata: list[dict[str, str]] | None = None) -> LogBatch:
    lines = Texts.of([line for _, _, line in rows])
    blobs = [
        b"".join(k.encode() + b"\xff" + v.encode() + b"\xff" for k, v in m.items())
        for m in metadata or [{}] * len(rows)
    ]
    meta = Texts.of(blobs)
    refs = [logs.resolve(Labels.of({"app": app, "log": "x"})) for app, _, _ in rows]
    ts = np.array([ts for _, ts, _ in rows], np.int64)
    return LogBatch(
        np.array(refs, np.uint32), ts, lines.offsets, lines.data, meta.offsets, meta.data, np.ones(len(rows), np.uint8)
    )


def push(logs: LogStore, rows: list[Row], metadata: list[dict[str, str]] | None = None) -> int:
    return logs.append(batch_of(logs, rows, metadata)).result()


def read(
    logs: LogStore, app: str | None = None, start: int = 0, end: int = END, *, backward: bool = False
) -> list[Row]:
    matchers = [Matcher("app", MatchOp.EQUAL, app)] if app else []
    out = []
    for frame in logs.select(matchers, start, end, backward=backward):
        names = [row["app"] for row in frame.labels]
        assert (np.diff(frame.ts_ns) >= 0).all()
        out += [
            (names[s], t, line)
            for s, t, line in zip(frame.stream_row.tolist(), frame.ts_ns.tolist(), frame.lines().to_list(), strict=True)
        ]
    return out


def rows_of(first: int, n: int, apps: int = 3) -> list[Row]:
    return [
        (f"a{i % apps}", 1_000_000 * i, json.dumps({"i": i, "id": f"{i * 7919:032x}", "p": f"/x/{i % 5}"}).encode())
        for i in range(first, first + n)
    ]


def test_rows_are_read_in_memory_and_from_parts(tmp_path: Path) -> None:
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    first, second = rows_of(0, 500), rows_of(500, 100)
    assert push(logs, first) == 500
    logs.flush()
    assert push(logs, second) == 100
    assert sorted(read(logs)) == sorted(first + second)
    assert sorted(read(logs, "a1", 10_000_000, 510_000_000)) == sorted(
        r for r in first + second if r[0] == "a1" and 10_000_000 <= r[1] < 510_000_000
    )
    stats = logs.stats([], 0, END)
    assert (stats.streams, stats.entries, stats.bytes) == (3, 600, sum(len(r[2]) for r in first + second))
    table, entries, _ = logs.volume([Matcher("app", MatchOp.EQUAL, "a0")], 0, END)
    assert [row["app"] for row in table] == ["a0"]
    assert entries.tolist() == [200]
    assert logs.label_names([], 0, END) == ["app", "log"]
    assert logs.label_values("app", [], 0, END) == ["a0", "a1", "a2"]
    assert logs.label_values("app", [], 599_000_000, END) == ["a2"]
    assert len(logs.streams([], 0, END)) == 3
    db.close()


def test_frontiers_serve_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_module, "ROWS_MAX", 64)
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    rows = rows_of(0, 700)
    for first in (0, 300):
        push(logs, rows[first : first + 300])
        logs.flush()
    push(logs, rows[600:])
    for backward in (True, False):
        seen: list[int] = []
        frames = 0
        for frame in logs.select([], 0, END, backward=backward):
            frames += 1
            seen += frame.ts_ns.tolist()
            beyond = [t for t in seen if (t > frame.frontier_ns if backward else t < frame.frontier_ns)]
            if len(beyond) >= 30:
                break
        newest = sorted(seen, reverse=backward)[:30]
        assert newest == sorted((r[1] for r in rows), reverse=backward)[:30]
        assert frames < 12
    db.close()


def test_needles_leave_out_groups_but_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_module, "ROWS_MAX", 100)
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    rows = rows_of(0, 1000)
    push(logs, rows)
    logs.flush()
    needles = [
        b"%032x" % (777 * 7919),
        b"%030x" % (777 * 7919),
        b'"i":777,',
        b"/x/3",
        b"f" * 32,
        b"G" * 40,
        b'"id":"%032x"' % 7919,
    ]
    for needle in needles:
        got = [
            line
            for frame in logs.select([], 0, END, needles=[needle])
            for line in frame.take(frame.contains(needle)).lines().to_list()
        ]
        assert sorted(got) == sorted(line for _, _, line in rows if needle in line), needle
    assert len(list(logs.select([], 0, END, needles=[needles[0]]))) <= 2
    assert not list(logs.select([], 0, END, needles=[b"G" * 40]))
    db.close()


def check_needles(logs: LogStore, rows: list[Row], needles: list[bytes]) -> list[int]:
    """What is found is what is there; the number of groups that were looked into for each needle."""
    looked = []
    for needle in needles:
        frames = list(logs.select([], 0, END, needles=[needle]))
        got = [line for frame in frames for line in frame.take(frame.contains(needle)).lines().to_list()]
        assert sorted(got) == sorted(line for _, _, line in rows if needle in line), needle
        looked.append(len(frames))
    return looked


def test_a_uuid_is_found_without_naming_its_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_module, "ROWS_MAX", 100)
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    ids = [str(uuid.uuid5(uuid.NAMESPACE_DNS, str(i))) for i in range(1000)]
    rows = [(f"a{i % 3}", MS * i, f'{{"n":{i},"id":"{ids[i]}","m":"a-b-{i % 7}"}}'.encode()) for i in range(1000)]
    push(logs, rows)
    logs.flush()
    absent = str(uuid.uuid5(uuid.NAMESPACE_DNS, "x"))
    needles = [
        ids[777],
        absent,
        ids[5][:30],
        ids[5][20:],
        f'"id":"{ids[9]}"',
        f"{ids[3]}0",
        "a-b-3",
        "b-",
        ids[8].upper(),
    ]
    looked = check_needles(logs, rows, [needle.encode() for needle in needles])
    assert looked[0] <= 2
    assert looked[1] <= 1
    assert looked[5] == 0, "longer than any word with dashes"
    db.close()


def test_short_words_of_addresses_are_found(tmp_path: Path) -> None:
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    rows = [("a", MS * i, f"{i % 256}.{i // 256}.7.127 {i * 7 % 256}.1.2.3".encode()) for i in range(600)]
    push(logs, rows)
    logs.flush()
    check_needles(logs, rows, [b"127", b"255.1.7", b".127 7.", b"128.1.2.3", b"1270"])
    db.close()


def test_a_crash_loses_nothing_acknowledged(tmp_path: Path) -> None:
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    rows = rows_of(0, 400)
    push(logs, rows[:300], [{"trace_id": f"t{i}"} for i in range(300)])
    logs.flush()
    push(logs, rows[300:])
    os.sync()
    db.log.close()  # no other goodbye: the buffers are only in the log
    again = open_db(tmp_path)
    logs = again.tenant("default").logs
    assert sorted(read(logs)) == sorted(rows)
    frame = next(iter(logs.select([Matcher("app", MatchOp.EQUAL, "a0")], 0, 1_000_000)))
    column = frame.metadata("trace_id")
    assert column is not None
    assert column.texts().to_list() == [b"t0"]
    level = frame.metadata("detected_level")
    assert level is not None
    assert level.texts().to_list() == [b"unknown"]
    assert not again.stats().damage
    again.close()


def test_the_log_is_freed_once_rows_are_in_parts(tmp_path: Path) -> None:
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    push(logs, rows_of(0, 10))
    record = (logs.name, 0x8000, 9, logs._view.buffers[-1].position)
    assert not db._is_published(*record)
    logs.flush()
    assert db._is_published(*record)
    db.close()


def test_the_same_entry_is_kept_once(tmp_path: Path) -> None:
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    row = ("a", 5, b"line")
    assert push(logs, [row, row, ("a", 5, b"other"), ("b", 5, b"line")]) == 3
    assert push(logs, [row]) == 0
    assert push(logs, [row], [{"k": "v"}]) == 1
    logs.flush()
    assert push(logs, [row]) == 0
    assert logs.store_stats().repeated == 3
    db.close()


def test_an_entry_is_kept_once_whatever_parts_lie_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_module, "ROWS_MAX", 64)
    monkeypatch.setattr(part_module, "_times", part_module._Recent(2))
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    same_time = [("a0", 5 * MS, b"%d" % i) for i in range(200)]
    rows = [*rows_of(0, 500), *same_time]
    metadata = [{"n": str(i), "m": "x"} for i in range(len(rows))]
    for first in range(0, len(rows), 100):
        assert push(logs, rows[first : first + 100], metadata[first : first + 100]) == 100
        logs.flush()
    assert push(logs, rows, metadata) == 0
    turned = [dict(reversed(list(one.items()))) for one in metadata]
    assert push(logs, rows, turned) == 0, "the order of metadata means nothing"
    late = [(app, ts + 1, line) for app, ts, line in rows]
    assert push(logs, late, metadata) == len(late)
    db.log.close()  # no other goodbye
    again = open_db(tmp_path)
    logs = again.tenant("default").logs
    assert push(logs, rows[::7], metadata[::7]) == 0
    assert push(logs, late, metadata) == 0
    assert sorted(read(logs)) == sorted([*rows, *late])
    again.close()


def test_a_damaged_part_takes_no_push_down(tmp_path: Path) -> None:
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    rows = rows_of(0, 100)
    push(logs, rows)
    logs.flush()
    db.close()
    (path,) = (tmp_path / "tenants/default/logs").glob("block-*")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    again = open_db(tmp_path)
    logs = again.tenant("default").logs
    assert push(logs, rows) == 100, "what cannot be read is not held against a push"
    assert any("cannot be told from repeated ones" in damage for damage in logs.damage)
    again.close()


def test_late_entries_and_any_time_are_taken(tmp_path: Path) -> None:
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    rows = [("a", t, b"x%d" % t) for t in (10**18, 5, 0, 999, 10**15 + 1)]
    push(logs, rows[:3])
    logs.flush()
    push(logs, rows[3:])
    logs.flush()
    assert sorted(read(logs)) == sorted(rows)
    db.close()


def test_small_parts_are_joined_and_old_ones_go(tmp_path: Path) -> None:
    db = open_db(tmp_path, retention_ms=1000)
    logs = db.tenant("default").logs
    rows = rows_of(0, 500)
    for first in range(0, 500, 100):
        push(logs, rows[first : first + 100], [{"n": str(i)} for i in range(100)])
        logs.flush()
    assert logs.store_stats().parts == 5
    logs.maintain()
    assert logs.store_stats().parts == 1
    assert logs.store_stats().compactions == 1
    assert sorted(read(logs)) == sorted(rows)
    assert len(db.store.list("tenants/default/logs/block-")) == 1
    push(logs, [("a0", 10**10, b"newest")])
    logs.flush()
    logs.maintain()
    assert read(logs) == [("a0", 10**10, b"newest")]
    db.close()
    again = open_db(tmp_path)
    assert read(again.tenant("default").logs) == [("a0", 10**10, b"newest")]
    again.close()


def test_damage_costs_a_group_or_a_part_not_the_start(tmp_path: Path) -> None:
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    for k in range(2):
        push(logs, rows_of(100 * k, 100))
        logs.flush()
    db.close()
    (first, _) = sorted((tmp_path / "tenants/default/logs").glob("block-*"))
    first.write_bytes(first.read_bytes()[:-9])
    again = open_db(tmp_path)
    logs = again.tenant("default").logs
    assert len(logs.damage) == 1
    assert sorted(read(logs)) == sorted(rows_of(100, 100))
    push(logs, rows_of(200, 1))
    logs.flush()
    assert len(logs.manifest.blocks) == 3
    again.close()


def read_or_fail(logs: LogStore) -> tuple[str, list[Row]]:
    try:
        return "", read(logs)
    except CorruptionError as error:
        return str(error), []


def test_any_damage_of_a_part_is_told_and_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    """Each place of a part in turn: found at the start or by the read that needs it, named, never a wrong line."""
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    good, hurt = rows_of(0, 60), rows_of(60, 60)
    for rows in (hurt, good):
        push(logs, rows)
        logs.flush()
    db.close()
    path = min((tmp_path / "tenants/default/logs").glob("block-*"))
    whole = path.read_bytes()
    places = range(0, len(whole), max(1, len(whole) // 40))
    for damaged in (
        *(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :] for at in places),
        *(whole[:at] for at in places),
    ):
        path.write_bytes(damaged)
        again = open_db(tmp_path)
        logs = again.tenant("default").logs
        error, got = read_or_fail(logs)
        if error:
            assert path.name in error
            assert sorted(read(logs, end=60 * MS)) == sorted(good), "the other part is served"
        else:
            assert sorted(got) in (sorted(good), sorted([*good, *hurt])), "a part is read whole or not at all"
            assert logs.damage or len(got) == len(good) + len(hurt)
        if logs.damage:
            assert path.name in logs.damage[0]
            assert again.stats().damage == len(logs.damage)
        again.log.close()
        again.close()
    path.write_bytes(whole)


def test_parts_that_cannot_be_joined_stay_and_age(tmp_path: Path) -> None:
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    for first in range(0, 50, 10):
        push(logs, rows_of(first, 10))
        logs.flush()
    db.log.close()  # no other goodbye: closing joins
    path = sorted((tmp_path / "tenants/default/logs").glob("block-*"))[1]
    data = bytearray(path.read_bytes())
    data[Container(memoryview(bytes(data)), "part").frame_offset("data", 0) + 9] ^= 1
    path.write_bytes(data)
    again = open_db(tmp_path, retention_ms=25)
    logs = again.tenant("default").logs
    logs.maintain()
    assert any("cannot be joined" in damage for damage in logs.damage)
    assert [part.min_ms for part in logs.manifest.blocks] == [20, 30, 40], "retention goes on"
    again.close()


def test_record_bodies_round_trip(tmp_path: Path) -> None:
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    batch = batch_of(logs, [("a", -5, b""), ("b", 1 << 62, b"\xff\x00")], [{}, {"k": "é"}])
    got = decode_rows(encode_rows(batch))
    assert got.ts_ns.tolist() == [-5, 1 << 62]
    assert Texts(got.line_bytes, got.line_offsets).to_list() == [b"", b"\xff\x00"]
    assert Texts(got.meta_bytes, got.meta_offsets).to_list() == [b"", b"k\xff\xc3\xa9\xff"]
    db.close()


def test_a_large_batch_is_logged_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "RECORD_BYTES_MAX", 1000)
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    rows = rows_of(0, 200)
    assert len(encode_batch(batch_of(logs, rows))) > 5
    push(logs, rows)
    db.close()
    again = open_db(tmp_path)
    assert sorted(read(again.tenant("default").logs)) == sorted(rows)
    again.close()


def test_a_crash_between_part_and_manifest_keeps_each_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    push(logs, rows_of(0, 50))

    def fail(*_: object, **__: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(logs, "_commit", fail)
    with pytest.raises(OSError, match="power cut"):
        logs.flush()
    assert len(db.store.list("tenants/default/logs/block-")) == 1
    assert sorted(read(logs)) == sorted(rows_of(0, 50))
    db.close()
    again = open_db(tmp_path)
    logs = again.tenant("default").logs
    assert again.store.list("tenants/default/logs/block-") == []
    assert sorted(read(logs)) == sorted(rows_of(0, 50))
    logs.flush()
    assert sorted(read(logs)) == sorted(rows_of(0, 50))
    again.close()


def test_what_is_pushed_again_after_a_part_was_written_is_kept_once_over_a_crash(tmp_path: Path) -> None:
    """Its record is in the log, behind the part that holds the row."""
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    rows = rows_of(0, 50)
    assert push(logs, rows) == 50
    logs.flush()
    assert push(logs, rows[20:]) == 0
    assert push(logs, rows_of(50, 10)) == 10
    expected = read(logs)
    os.sync()
    db.log.close()  # no other goodbye: the last rows are only in the log
    again = open_db(tmp_path)
    assert read(again.tenant("default").logs) == expected
    assert push(again.tenant("default").logs, rows) == 0  # a sender that heard no answer
    again.close()


def test_a_tenant_may_keep_its_logs_for_another_time(tmp_path: Path) -> None:
    config = StoreConfig(
        path=tmp_path, min_free_bytes=0, min_free_fraction=0, tenants={"t": TenantConfig(retention_ms=7)}
    )
    db = TSDB(config)
    db.open()
    assert db.tenant("t", create=True).logs.limits.retention_ms == 7
    assert db.tenant("default").logs.limits.retention_ms == LogLimits().retention_ms
    db.close()


actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("push"), st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 3)), max_size=6)
        ),
        st.tuples(st.sampled_from(["flush", "seal", "maintain", "reopen", "kill"]), st.just([])),
    ),
    max_size=12,
)


@settings(max_examples=30, deadline=None)
@given(actions)
def test_any_sequence_keeps_what_a_set_keeps(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    path = tmp_path_factory.mktemp("logs")
    db = open_db(path)
    model: set[tuple[Row, str]] = set()
    for step, rows in [*steps, ("reopen", [])]:
        logs = db.tenant("default").logs
        if step == "push":
            made = [((f"a{app}", 1_000_000 * ts, f'{{"n":{n % 2}}}'.encode()), str(n // 2)) for app, ts, n in rows]
            if made:
                new = push(logs, [row for row, _ in made], [{"k": k} if k != "0" else {} for _, k in made])
                assert new == len(set(made) - model)
            model.update(made)
        elif step == "kill":
            path = killed(db, path)
            db = open_db(path)
        elif step == "reopen":
            db.close()
            db = open_db(path)
        elif step == "seal":  # full, and not yet a part
            logs._log.submit(Step(logs._seal)).result()
        else:
            getattr(logs, step)()
        logs = db.tenant("default").logs
        assert sorted(read(logs)) == sorted(row for row, _ in model)
        assert logs.stats([], 0, END).entries == len(model)
    db.close()
