"""What survives: the whole state, whole events, and nothing that is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from health import journal as module
from health.board import Revision
from health.journal import Journal, Memory, StoredOverride
from health.verdicts import Action, Detector, EndpointState, Guard, Override, ServiceState, State

ENDPOINT = EndpointState(
    State.EJECTED, 5, 1, until_ms=99, ejections=2, weight=0.0, detector=Detector.ERROR_RATIO,
    blocked_by=Guard.CAP, returning=State.EJECTED,
)  # fmt: skip


def test_the_state_comes_back_as_it_was(tmp_path: Path) -> None:
    memory = Memory(
        Revision(3, 7),
        {"svc": ServiceState(0, {"a:1": ENDPOINT}, last_ejection_ms=5)},
        {"svc": {"a:1": {"errors": 5, "detector": "error_ratio"}}},
        (StoredOverride("x", "svc", "a:1", Override(Action.FREEZE, 9, "me", "why")),),
        {"p": {"name": "p"}},
        12,
    )
    Journal(tmp_path).save(memory)
    assert Journal(tmp_path).load(0) == memory


def test_nothing_saved_is_epoch_one(tmp_path: Path) -> None:
    assert Journal(tmp_path).load(99_000) == Memory(Revision(1, 0))


@pytest.mark.parametrize("text", [b"", b"0 {}", b"zzzzzzzz {}", b"a3e9a1ae {}", b'00000000 {"version":1}'])
def test_damage_is_a_new_epoch(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "state.json").write_bytes(text)
    assert Journal(tmp_path).load(99_000).revision == Revision(99, 0)


def test_torn_and_damaged_events_are_left_out(tmp_path: Path) -> None:
    Journal(tmp_path).append([{"number": n} for n in range(4)])
    file = next(tmp_path.glob("events-*.log"))
    lines = file.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"1}", b"9}")
    file.write_bytes(b"\n".join(lines[:4])[:-3])
    assert [event["number"] for event in Journal(tmp_path).events()] == [0, 2]


def test_old_event_logs_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 100)
    journal = Journal(tmp_path)
    for n in range(30):
        journal.append([{"number": n, "text": "x" * 30}])
    assert len(list(tmp_path.glob("events-*.log"))) == module.SEGMENTS_KEPT
    assert Journal(tmp_path).events()[-1]["number"] == 29
    Journal(tmp_path).append([{"number": 30}])
    assert Journal(tmp_path).events()[-1]["number"] == 30


def test_the_name_of_the_instance_stays(tmp_path: Path) -> None:
    name = Journal(tmp_path).instance()
    assert len(name) == 16
    assert Journal(tmp_path).instance() == name
