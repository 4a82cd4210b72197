"""One actuator at a time."""

from __future__ import annotations

from pathlib import Path

from health.lease import LEASE_MS, MARGIN_MS, ActuatorLease
from tsdb.blockstore import FolderStore


def test_one_holder_until_it_is_silent(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    one, two = ActuatorLease(store), ActuatorLease(store)
    one.refresh(0)
    two.refresh(0)
    assert (one.held(0), two.held(0)) == (True, False)
    for now in range(0, 5 * LEASE_MS, 1000):  # renewed in time
        one.refresh(now)
        two.refresh(now)
        assert (one.held(now), two.held(now)) == (True, False)
    end = one._until_ms
    assert not one.held(end)
    two.refresh(end + 1)  # by its clock it is over, by the other's perhaps not
    assert not two.held(end + 1)
    two.refresh(end + MARGIN_MS)
    assert two.held(end + MARGIN_MS)
    assert two.term > one.term > 0
    one.refresh(end + MARGIN_MS)
    assert not one.held(end + MARGIN_MS)
    assert len(store.list("health/")) <= 2


def test_giving_it_back_lets_another_have_it_at_once(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    one, two = ActuatorLease(store), ActuatorLease(store)
    one.refresh(1_000_000)
    one.release(1_001_000)
    two.refresh(1_001_001)
    assert two.held(1_001_001)
    assert not one.held(1_001_001)


def test_a_race_has_one_winner(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    one, two = ActuatorLease(store), ActuatorLease(store)
    seen = store.list

    def late(prefix: str) -> list[str]:
        keys = seen(prefix)
        two.refresh(0)
        return keys

    class Racing(FolderStore):
        list = staticmethod(late)  # type: ignore[assignment]

    one._store = Racing(tmp_path)
    one.refresh(0)
    assert (one.held(0), two.held(0)) == (False, True)


def test_the_same_instance_takes_its_own_back_at_once(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    killed, again, other = ActuatorLease(store, "a"), ActuatorLease(store, "a"), ActuatorLease(store, "b")
    killed.refresh(0)
    other.refresh(1)
    again.refresh(1)
    assert (other.held(1), again.held(1)) == (False, True)
    assert again.term > killed.term
