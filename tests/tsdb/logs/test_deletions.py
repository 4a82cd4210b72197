"""Requests to delete rows: nothing of theirs is read again, nothing else is lost, whatever happens in between."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tsdb.logs.test_store import END, Row, killed, open_db, push, read, rows_of
from tsdb.errors import CorruptionError, LimitError
from tsdb.logs import store as store_module
from tsdb.logs.deletions import Deletion, LineTest, decode_deletion, encode_cancel, encode_deletion
from tsdb.logs.store import LogStore
from tsdb.matchers import Matcher, MatchOp

MS = 1_000_000


def request_of(
    app: str, start_ns: int = 0, end_ns: int = END, tests: tuple[LineTest, ...] = (), name: str = "x"
) -> Deletion:
    return Deletion(name, "{}", (Matcher("app", MatchOp.EQUAL, app),), tests, start_ns, end_ns, 1000)


def test_a_request_round_trips() -> None:
    tests = (LineTest(("a", "b"), negated=True), LineTest(("x+",), is_regex=True))
    request = request_of("a", 5, 9, tests)
    assert decode_deletion(encode_deletion(request)) == request
    assert decode_deletion(encode_cancel("x")) == "x"
    for bad in (b"{", b'{"version":9,"cancel":"x"}', b'{"version":1}'):
        with pytest.raises(CorruptionError):
            decode_deletion(bad)


def test_rows_are_gone_at_once_and_their_space_after_a_while(tmp_path: Path) -> None:
    db = open_db(tmp_path, cancel_s=0)
    logs = db.tenant("default").logs
    rows = rows_of(0, 300)
    push(logs, rows[:200], [{"n": str(i)} for i in range(200)])
    logs.flush()
    push(logs, rows[200:])
    logs.delete(request_of("a1", 50 * MS, 250 * MS)).result()
    left = [row for row in rows if not (row[0] == "a1" and 50 * MS <= row[1] <= 250 * MS)]
    assert sorted(read(logs)) == sorted(left)
    again = next(row for row in rows if row not in left)
    assert push(logs, [again]) == 1, "what is pushed after a request is none of its business"
    assert sorted(read(logs)) == sorted([*left, again])
    before = logs.store_stats()
    logs.maintain()
    after = logs.store_stats()
    assert after.part_entries == len(left)
    assert after.part_entries < before.part_entries + before.buffered_entries
    assert [known.processed for known in logs.deletions()] == [True]
    assert sorted(read(logs)) == sorted([*left, again])
    logs.flush()
    assert sorted(read(logs)) == sorted([*left, again])
    db.close()


def test_a_stream_that_is_deleted_whole_is_in_no_listing(tmp_path: Path) -> None:
    db = open_db(tmp_path, cancel_s=0)
    logs = db.tenant("default").logs
    for first in (0, 100):
        push(logs, rows_of(first, 100))
        if not first:
            logs.flush()
    logs.delete(request_of("a2")).result()
    for _ in range(2):  # before and after the rows have left the disk
        assert logs.label_values("app", [], 0, END) == ["a0", "a1"]
        assert logs.stats([], 0, END).entries == len([row for row in rows_of(0, 200) if row[0] != "a2"])
        logs.maintain()
    logs.delete(request_of("a0", name="y")).result()
    logs.delete(request_of("a1", name="z")).result()
    logs.maintain()
    assert logs.store_stats().parts == 0
    db.close()


def test_line_tests(tmp_path: Path) -> None:
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    rows = rows_of(0, 90)
    push(logs, rows)
    logs.flush()
    tests = (
        LineTest(('"/x/3"', '"/x/4"')),
        LineTest((r'"i": \d\d,',), is_regex=True),
        LineTest(('"i": 43,',), negated=True),
    )
    logs.delete(request_of("a1", tests=tests)).result()

    def meant(row: Row) -> bool:
        return (
            row[0] == "a1"
            and row[2].endswith((b'"/x/3"}', b'"/x/4"}'))
            and 10 <= row[1] // MS < 100
            and row[1] != 43 * MS
        )

    assert sorted(read(logs)) == sorted(row for row in rows if not meant(row))
    frames = logs.condensed([], 0, END, lambda first, last: first == first)[1]
    assert sum(map(len, frames)) == sum(not meant(row) for row in rows), "the index does not know which lines are left"
    db.close()


def test_a_request_survives_a_crash_and_can_be_taken_back(tmp_path: Path) -> None:
    db = open_db(tmp_path, cancel_s=1e12)
    logs = db.tenant("default").logs
    rows = rows_of(0, 60)
    push(logs, rows)
    logs.delete(request_of("a0")).result()
    push(logs, rows_of(60, 3))
    db.close()
    again = open_db(tmp_path, cancel_s=1e12)
    logs = again.tenant("default").logs
    left = [*(row for row in rows if row[0] != "a0"), *rows_of(60, 3)]
    assert sorted(read(logs)) == sorted(left)
    logs.maintain()
    assert not logs.deletions()[0].processed, "it may still be taken back"
    logs.cancel("x", 2000).result()
    assert sorted(read(logs)) == sorted([*rows, *rows_of(60, 3)])
    again.close()
    last = open_db(tmp_path, cancel_s=1e12)
    assert last.tenant("default").logs.deletions() == ()
    assert sorted(read(last.tenant("default").logs)) == sorted([*rows, *rows_of(60, 3)])
    last.close()


def test_the_log_is_freed_behind_a_request_without_rows(tmp_path: Path) -> None:
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    push(logs, rows_of(0, 5))
    logs.flush()
    logs.delete(request_of("a0")).result()
    record = (logs.name, 0x8000, 1000, logs.deletions()[0].position)
    assert not db._is_published(*record)
    logs.maintain()
    assert db._is_published(*record)
    db.close()
    again = open_db(tmp_path)
    assert len(read(again.tenant("default").logs)) == 3
    again.close()


def test_requests_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "DELETIONS_MAX", 2)
    db = open_db(tmp_path, cancel_s=0)
    logs = db.tenant("default").logs
    for round_number in range(4):
        for k in range(2):
            logs.delete(request_of("a0", name=f"{round_number}-{k}")).result()
        with pytest.raises(LimitError, match="wait to be carried out"):
            logs.delete(request_of("a0", name="more"))
        logs.maintain()
    assert [known.request_id for known in logs.deletions()] == ["2-0", "2-1", "3-0", "3-1"]
    db.close()


def test_damage_keeps_a_request_in_force(tmp_path: Path) -> None:
    db = open_db(tmp_path, cancel_s=0)
    logs = db.tenant("default").logs
    push(logs, rows_of(0, 50))
    logs.flush()
    db.close()
    (path,) = (tmp_path / "tenants/default/logs").glob("block-*")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    again = open_db(tmp_path, cancel_s=0)
    logs = again.tenant("default").logs
    logs.delete(request_of("a0")).result()
    logs.maintain()
    assert any("rows cannot be deleted" in damage for damage in logs.damage)
    told = len(logs.damage)
    logs.maintain()
    assert len(logs.damage) == told, "once is enough"
    assert not logs.deletions()[0].processed
    again.close()


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("push"), st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 3)), max_size=6)
        ),
        st.tuples(
            st.just("delete"),
            st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 5), st.sampled_from(["", "1", "2"])),
        ),
        st.tuples(st.sampled_from(["flush", "maintain", "reopen", "kill"]), st.just([])),
    ),
    max_size=14,
)


@settings(max_examples=30, deadline=None)
@given(steps, st.sampled_from([0.0, 1e9]))
def test_any_sequence_keeps_what_a_set_keeps(
    tmp_path_factory: pytest.TempPathFactory, actions: list[Any], cancel_s: float
) -> None:
    path = tmp_path_factory.mktemp("logs")
    db = open_db(path, cancel_s=cancel_s)
    model: set[Row] = set()
    for number, (step, what) in enumerate([*actions, ("reopen", [])]):
        logs: LogStore = db.tenant("default").logs
        if step == "push":
            made = [(f"a{app}", MS * ts, f'{{"n":{n}}}'.encode()) for app, ts, n in what]
            if made:
                assert push(logs, made) == len(set(made) - model)
            model.update(made)
        elif step == "delete":
            app, first, width, text = what
            tests = (LineTest((f'"n":{text}',)),) if text else ()
            logs.delete(request_of(f"a{app}", MS * first, MS * (first + width), tests, str(number))).result()
            model = {
                row
                for row in model
                if row[0] != f"a{app}"
                or not first <= row[1] // MS <= first + width
                or (text and f'"n":{text}'.encode() not in row[2])
            }
        elif step == "kill":
            path = killed(db, path)
            db = open_db(path, cancel_s=cancel_s)
        elif step == "reopen":
            db.close()
            db = open_db(path, cancel_s=cancel_s)
        else:
            getattr(logs, step)()
        logs = db.tenant("default").logs
        assert sorted(read(logs)) == sorted(model)
        counts, frames = logs.condensed([], 0, END, lambda first, last: first == last)
        counted: Counter[str] = Counter()
        for row, n in zip(counts.stream_row.tolist(), counts.entries.tolist(), strict=True):
            counted[list(counts.labels)[row]["app"]] += n
        for frame in frames:
            counted.update(list(frame.labels)[row]["app"] for row in frame.stream_row.tolist())
        assert counted == Counter(row[0] for row in model)
    db.close()


def test_what_was_deleted_from_a_part_may_be_pushed_again(tmp_path: Path) -> None:
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    rows = rows_of(0, 50)
    push(logs, rows)
    logs.flush()  # the next buffer knows these rows
    logs.delete(request_of("a1")).result()
    deleted = [row for row in rows if row[0] == "a1"]
    assert push(logs, deleted) == len(deleted)
    db.log.close()  # no other goodbye
    again = open_db(tmp_path)
    assert sorted(read(again.tenant("default").logs)) == sorted(rows)
    again.close()
