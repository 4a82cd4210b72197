"""Series that have ended are forgotten; nobody who still has their old numbers reads or writes another series."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from tests.tsdb.test_db import ALL, EVERYTHING, HOUR, LIMITS, T0, key, opened, put, read
from tsdb import db as store
from tsdb.batch import SampleBatch
from tsdb.db import TSDB
from tsdb.errors import LimitError
from tsdb.index.registry import SeriesRegistry
from tsdb.limits import SeriesLimits
from tsdb.matchers import Matcher, MatchOp
from tsdb.tenant import BeginGeneration, Tenant

MINUTE = 60_000


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FORGET_SERIES_MIN", 10)
    monkeypatch.setattr("tsdb.shard.SLOTS_REST_S", 0.0)


def pod(number: int) -> dict[str, str]:
    return {"__name__": "load", "pod": f"pod-{number:06d}", "job": "mesh"}


def begin_generation(db: TSDB, tenant: Tenant) -> None:
    with db.unchanged():
        db.log.submit(BeginGeneration(tenant)).result()


@pytest.mark.parametrize("shards", [1, 2])
def test_churn_is_never_refused_and_memory_stays_bounded(tmp_path: Path, shards: int) -> None:
    limit = 400
    db = opened(tmp_path, shards=shards, series=SeriesLimits(active_series_max=limit))
    tenant = db.tenant("default")
    first = weakref.ref(tenant.registry)
    lasting = [pod(i) for i in range(50)]
    known, symbols = [], []
    for hour in range(60):
        came = [pod(1000 + 60 * hour + i) for i in range(60)]
        for minute in (0, 20, 40):
            at = T0 + hour * HOUR + minute * MINUTE
            assert put(tenant, [(labels, at, hour) for labels in (*lasting, *came)]).accepted == 110
        db.maintain()
        assert db.cut_failures == 0, db.last_error
        known.append(len(tenant.registry))
        symbols.append(len(tenant.symbols))  # type: ignore[arg-type]
    assert tenant.generations > 5
    assert max(known) <= limit
    assert max(symbols[20:]) <= max(symbols[:20])
    gc.collect()
    assert first() is None, "the first registry is still in memory"
    assert max(int(shard._slot_counts[0]) for shard in tenant.shards) <= limit
    content = read(tenant)
    assert len(content) == 50 + 60 * 60
    assert all(len(content[key(labels)]) == 180 for labels in lasting)
    assert len(content[key(pod(1000))]) == 3
    db.close()
    again = opened(tmp_path, shards=shards, series=SeriesLimits(active_series_max=limit * 20))
    assert read(again.tenant("default")) == content
    again.close()


def test_what_is_read_from_blocks_does_not_count(tmp_path: Path) -> None:
    db = opened(tmp_path, series=SeriesLimits(active_series_max=100))
    tenant = db.tenant("default")
    for hour in range(0, 16, 4):
        put(tenant, [(pod(hour * 100 + i), T0 + hour * HOUR, 1) for i in range(40)])
        db.maintain()
    db.close()
    db = opened(tmp_path, series=SeriesLimits(active_series_max=100))
    tenant = db.tenant("default")
    db.maintain()  # the log has told of all of them
    assert len(tenant.registry) == 40
    assert len(read(tenant)) == 160
    assert tenant.registry.active == 40
    put(tenant, [(pod(7000 + i), T0 + 13 * HOUR, 1) for i in range(40)])
    with pytest.raises(LimitError):
        put(tenant, [(pod(8000 + i), T0 + 13 * HOUR, 1) for i in range(40)])
    db.close()


def test_a_query_keeps_its_numbers(tmp_path: Path) -> None:
    db = opened(tmp_path)
    tenant = db.tenant("default")
    put(tenant, [(pod(i), T0, i) for i in range(50)])
    put(tenant, [(pod(i), T0 + 8 * HOUR, i) for i in range(40, 50)])
    db.maintain()
    begin_generation(db, tenant)  # so that blocks are bound to a registry without refs of their own
    view = tenant.view()
    before = view.select(ALL, *EVERYTHING, LIMITS)
    assert len(tenant.registry) == 50, "40 of them only for reading"
    begin_generation(db, tenant)
    put(tenant, [(pod(i), T0 + 9 * HOUR, i) for i in range(100, 200)])
    after = view.select(ALL, *EVERYTHING, LIMITS)
    assert after.labels.symbols is before.labels.symbols is view.symbols
    assert np.array_equal(after.labels.ids, before.labels.ids)
    assert np.array_equal(after.values.view(np.uint64), before.values.view(np.uint64))
    assert [len(found) for found in (read(view), read(tenant))] == [50, 150]
    registry = weakref.ref(view.generation.registry)
    del view, before, after
    gc.collect()
    assert registry() is None
    db.close()


def test_spellings_are_kept_for_the_living(tmp_path: Path) -> None:
    db = opened(tmp_path)
    tenant = db.tenant("default")
    put(tenant, [(pod(i), T0, i) for i in range(50)])
    refs = [tenant.registry.resolve(pod(i)) for i in range(50)]
    for i, ref in enumerate(refs):
        tenant.registry.keys.add(b"spelling %d" % i, ref)
    put(tenant, [(pod(i), T0 + 8 * HOUR, i) for i in range(20)])
    db.maintain()
    assert tenant.generations == 2
    keys = tenant.registry.keys
    assert len(keys) == 20
    for i in range(50):
        found = keys.find(b"spelling %d" % i)
        assert (found >= 0) == (i < 20)
        if i < 20:
            assert keys.arrays().key_refs[found] == tenant.registry.resolve(pod(i))
    db.close()


def test_numbers_of_any_age_are_understood(tmp_path: Path) -> None:
    db = opened(tmp_path)
    tenant = db.tenant("default")
    kept: list[tuple[SeriesRegistry, np.ndarray]] = []
    for age in range(6):
        registry = tenant.registry
        kept.append((registry, np.array([registry.resolve(pod(i)) for i in range(age, age + 20)], np.uint32)))
        put(tenant, [(pod(i), T0 + age * MINUTE, i) for i in range(age * 3, age * 3 + 4)])
        begin_generation(db, tenant)
        late = registry.resolve(pod(900 + age))  # made after it gave way
        kept.append((registry, np.array([late], np.uint32)))
    for number, (registry, refs) in enumerate(kept):
        ts_ms = np.full(len(refs), T0 + HOUR + number * MINUTE, np.int64)
        assert tenant.append(SampleBatch(refs, ts_ms, refs.astype(np.uint64), registry)).result().accepted == len(refs)
        found = read(tenant, mint=int(ts_ms[0]), maxt=int(ts_ms[0]))
        expected = {key(registry.label_table(refs).labels(i)): int(ref) for i, ref in enumerate(refs.tolist())}
        assert {labels: next(iter(samples.values())) for labels, samples in found.items()} == expected
    gc.collect()
    assert all(registry._successor is not None for registry, _ in kept)
    assert {registry._successor[0] for registry, _ in kept} == {tenant.registry}, "no chain keeps the ones between"
    db.close()


def test_exemplars_follow_their_series(tmp_path: Path) -> None:
    db = opened(tmp_path)
    tenant = db.tenant("default")
    former = tenant.registry
    put(tenant, [(pod(i), T0, i) for i in range(10)])
    refs = np.array([former.resolve(pod(i)) for i in (3, 77)], np.uint32)  # 77 has no sample
    times, bits = np.array([T0, T0], np.int64), np.array([3, 77], np.uint64)
    tenant.exemplars.append(refs, times, bits, [b"a", b"b"], former)
    begin_generation(db, tenant)
    tenant.exemplars.append(refs, times + 1, bits, [b"c", b"d"], former)  # was on its way
    assert tenant.exemplars.select(refs, *EVERYTHING, former) is None
    for number, labels in ((3, [b"a", b"c"]), (77, [b"b", b"d"])):
        matcher = [Matcher("pod", MatchOp.EQUAL, f"pod-{number:06d}")]
        found = tenant.exemplars.select(tenant.registry.find(matcher), *EVERYTHING, tenant.registry)
        assert found is not None
        assert found.bits.tolist() == [number, number]
        assert found.labels == labels
    db.close()


def test_nobody_gets_a_foreign_sample_while_generations_change(tmp_path: Path) -> None:
    """Writers with churn and readers beside generations that begin one after the other; values name their series."""
    db = opened(tmp_path, segment_bytes=1 << 18)
    tenant = db.tenant("default")
    stop = threading.Event()
    faults: list[str] = []
    written: dict[int, int] = {}
    lock = threading.Lock()

    def write(seed: int) -> None:
        at = 0
        while not stop.is_set():
            registry = tenant.registry
            numbers = [seed * 1_000_000 + at + i for i in range(30)] + [
                seed * 1_000_000 + 900_000 + i for i in range(30)
            ]
            refs = np.array([registry.resolve(pod(n)) for n in numbers], np.uint32)
            batch = SampleBatch(refs, np.full(60, T0 + at * 1000, np.int64), np.array(numbers, np.uint64), registry)
            result = tenant.append(batch).result()
            if result.accepted != 60:
                faults.append(f"refused: {result.rejected}")
            with lock:
                for n in numbers:
                    written[n] = written.get(n, 0) + 1
            at += 15

    def check(view: object) -> None:
        for labels, samples in read(view).items():  # type: ignore[arg-type]
            number = int(dict(labels)["pod"].removeprefix("pod-"))
            if set(samples.values()) != {number}:
                faults.append(f"{labels} has {samples}")

    def query() -> None:
        while not stop.is_set():
            view = tenant.view()
            check(view)
            check(view)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(1, 4)] + [threading.Thread(target=query)]
    for thread in threads:
        thread.start()
    for _ in range(25):
        begin_generation(db, tenant)
        stop.wait(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults, faults[:3]
    assert tenant.generations == 26

    def counts(of: Tenant) -> dict[int, int]:
        return {int(dict(k)["pod"].removeprefix("pod-")): len(s) for k, s in read(of).items()}

    assert counts(tenant) == written
    check(tenant)
    db.close()
    again = opened(tmp_path)
    assert counts(again.tenant("default")) == written
    check(again.tenant("default"))
    again.close()
    assert not faults, faults[:3]


def test_a_generation_begins_only_when_it_is_worth_it(tmp_path: Path) -> None:
    db = opened(tmp_path)
    tenant = db.tenant("default")
    put(tenant, [(pod(i), T0, i) for i in range(100)])
    with mock.patch.object(store, "FORGET_SERIES_MIN", 101):
        assert not db.forget(tenant)
    assert not db.forget(tenant)
    put(tenant, [(pod(i), T0 + 8 * HOUR, i) for i in range(80)])
    db.maintain()
    assert tenant.generations == 1, "one in five has ended"
    put(tenant, [(pod(i), T0 + 16 * HOUR, i) for i in range(60)])
    db.maintain()
    assert tenant.generations == 2
    assert len(tenant.registry) == 60
    db.close()
