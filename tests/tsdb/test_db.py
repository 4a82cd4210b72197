"""The store as its users see it: what was acknowledged is read back, bit for bit, whatever happens in between."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tsdb.batch import STALE_BITS, AppendResult, SampleBatch
from tsdb.db import TSDB, StoreConfig, TenantConfig
from tsdb.errors import LimitError, Reason, RejectedError
from tsdb.index.registry import SeriesRegistry
from tsdb.kernels.assemble import MAX, MIN
from tsdb.limits import SelectLimits, SeriesLimits, TimeLimits
from tsdb.matchers import Matcher, MatchOp
from tsdb.reader import Reader
from tsdb.tenant import BeginGeneration, Tenant
from tsdb.wal.records import Deletion

HOUR = 3_600_000
T0 = 1_700_006_400_000  # on a 2 h border
EVERYTHING = (-(1 << 62), 1 << 62)
ALL = [Matcher("__name__", MatchOp.NOT_EQUAL, "")]
LIMITS = SelectLimits()


def config(path: Path, **changes: object) -> StoreConfig:
    given: dict[str, object] = {"maintenance_seconds": 3600.0, "min_free_bytes": 0, "min_free_fraction": 0.0}
    return StoreConfig(path, **{**given, **changes})  # type: ignore[arg-type]


def opened(path: Path, **changes: object) -> TSDB:
    db = TSDB(config(path, **changes))
    db.open()
    return db


def bits_of(value: float) -> int:
    return struct.unpack("<Q", struct.pack("<d", value))[0]


def put(
    tenant: Tenant, rows: list[tuple[dict[str, str], int, int]], registry: SeriesRegistry | None = None
) -> AppendResult:
    registry = registry or tenant.registry
    refs = np.array([registry.resolve(labels) for labels, _, _ in rows], np.uint32)
    ts_ms = np.array([t for _, t, _ in rows], np.int64)
    bits = np.array([b for _, _, b in rows], np.uint64)
    return tenant.append(SampleBatch(refs, ts_ms, bits, registry)).result(timeout=60)


Content = dict[tuple[tuple[str, str], ...], dict[int, int]]


def read(
    tenant: Reader, matchers: list[Matcher] | None = None, mint: int = EVERYTHING[0], maxt: int = EVERYTHING[1]
) -> Content:
    frame = tenant.select(matchers or ALL, mint, maxt, LIMITS)
    assert not frame.warnings
    out: Content = {}
    bits = frame.values.view(np.uint64).tolist()
    times = frame.ts_ms.tolist()
    for i, labels in enumerate(frame.labels):
        first, last = frame.offsets[i : i + 2].tolist()
        assert all(a < b for a, b in zip(times[first:last], times[first + 1 : last], strict=False))
        if last > first:
            out[tuple(labels.items())] = dict(zip(times[first:last], bits[first:last], strict=True))
    return out


def series(i: int) -> dict[str, str]:
    return {"__name__": f"m{i % 3}", "instance": f"10.0.0.{i}", "job": "mesh"}


def key(labels: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


@pytest.mark.parametrize("shards", [1, 4])
def test_acknowledged_samples_are_read_back_bit_for_bit(tmp_path: Path, shards: int) -> None:
    db = opened(tmp_path, shards=shards)
    tenant = db.tenant("default")
    patterns = [0, 1, STALE_BITS, bits_of(-0.0), bits_of(float("inf")), 0x7FF8DEADBEEF0001, bits_of(0.1), (1 << 64) - 1]
    rows = [(series(i), T0 + 15_000 * k, patterns[(i + k) % 8]) for k in range(300) for i in range(20)]
    result = put(tenant, rows)
    assert result.accepted == len(rows)
    expected: Content = {}
    for labels, t, b in rows:
        expected.setdefault(key(labels), {})[t] = b
    assert read(tenant) == expected
    db.close()

    again = opened(tmp_path, shards=shards)
    assert read(again.tenant("default")) == expected
    assert again.replay.samples == len(rows)
    again.close()


def test_refusals_are_counted_by_reason_and_good_samples_stay(tmp_path: Path) -> None:
    db = opened(tmp_path, time=TimeLimits(out_of_order_window_ms=HOUR))
    tenant = db.tenant("default")
    a = series(0)
    put(tenant, [(a, T0, 1), (a, T0 + 2 * HOUR, 2)])
    result = put(tenant, [(a, T0 + 2 * HOUR, 2), (a, T0 + 2 * HOUR, 3), (a, T0 + HOUR - 1, 4), (a, T0 + HOUR, 5)])
    assert result.rejected == {Reason.DUPLICATE: 1, Reason.TOO_OLD: 1}
    assert result.accepted == 2
    assert db.tally.snapshot() == {Reason.DUPLICATE: 1, Reason.TOO_OLD: 1}
    assert read(tenant) == {key(a): {T0: 1, T0 + HOUR: 5, T0 + 2 * HOUR: 2}}
    db.close()


def test_a_cut_moves_samples_into_blocks_and_answers_stay_the_same(tmp_path: Path) -> None:
    db = opened(tmp_path)
    tenant = db.tenant("default")
    rows = [(series(i), T0 + 60_000 * k, bits_of(k * 0.5 + i)) for k in range(400) for i in range(10)]
    put(tenant, rows)
    put(tenant, [(series(3), T0 + 61_000, 7)])  # late, inside the head
    before = read(tenant)
    db.maintain()
    stats = db.stats()
    assert stats.cuts == len(tenant.shards)
    assert stats.blocks >= 2 * len(tenant.shards)
    assert stats.head_samples < len(rows)
    assert read(tenant) == before
    window = (T0 + HOUR, T0 + 5 * HOUR)
    narrowed = {k: {t: b for t, b in v.items() if window[0] <= t <= window[1]} for k, v in before.items()}
    assert read(tenant, mint=window[0], maxt=window[1]) == narrowed
    db.close()

    again = opened(tmp_path)
    assert read(again.tenant("default")) == before
    again.close()


def test_blocks_and_head_are_decoded_in_the_order_of_time(tmp_path: Path) -> None:
    """Rows whose pieces follow each other are decoded in place; merging them costs three times as much."""
    db = opened(tmp_path)
    tenant = db.tenant("default")
    for k in range(24):
        put(tenant, [({"__name__": "m", "a": str(a)}, T0 + k * HOUR // 4, k) for a in range(3)])
    db.maintain()
    shard = tenant.shards[0]
    assert len(shard.blocks_in(*EVERYTHING)) >= 2
    assert shard.head.sample_count
    selection = tenant.open(ALL, *EVERYTHING, LIMITS)
    plan = selection._plan
    for first, last in pairwise(plan.row_pieces.tolist()):
        assert last - first >= 3
        times = plan.pieces[first:last, [MIN, MAX]].reshape(-1).tolist()
        assert times == sorted(times)
    frame = selection.frame()
    assert frame.ts_ms.tolist() == [T0 + k * HOUR // 4 for k in range(24)] * 3
    db.close()


def test_late_samples_below_the_cut_become_an_overlapping_block(tmp_path: Path) -> None:
    db = opened(tmp_path, time=TimeLimits(out_of_order_window_ms=48 * HOUR))
    tenant = db.tenant("default")
    put(tenant, [(series(i), T0 + 60_000 * k, k) for k in range(400) for i in range(4)])
    db.maintain()
    blocks = db.stats().blocks
    # a repeat, a conflict and a new time of a range that is in blocks; a series that the head has never seen
    result = put(
        tenant,
        [(series(0), T0 + 60_000, 1), (series(0), T0 + 120_000, 9), (series(0), T0 + 61_000, 5), (series(77), T0, 6)],
    )
    assert result.rejected == {Reason.DUPLICATE: 1}
    assert read(tenant)[key(series(0))][T0 + 61_000] == 5
    expected = read(tenant)
    put(tenant, [(series(i), T0 + 60_000 * k, k) for k in range(400, 600) for i in range(4)])
    expected = read(tenant)
    assert expected[key(series(77))] == {T0: 6}
    db.maintain()
    assert db.stats().blocks > blocks
    assert read(tenant) == expected
    assert put(tenant, [(series(77), T0, 6)]).accepted == 1
    assert put(tenant, [(series(77), T0, 8)]).rejected == {Reason.DUPLICATE: 1}
    assert read(tenant) == expected
    db.close()
    again = opened(tmp_path, time=TimeLimits(out_of_order_window_ms=48 * HOUR))
    assert read(again.tenant("default")) == expected
    again.close()


def test_retention_deletes_whole_blocks(tmp_path: Path) -> None:
    db = opened(tmp_path, retention_ms=4 * HOUR)
    tenant = db.tenant("default")
    for hour in range(0, 14, 2):
        put(tenant, [(series(0), T0 + hour * HOUR + 60_000 * k, k) for k in range(120)])
        db.maintain()
    db.maintain()
    times = sorted(read(tenant)[key(series(0))])
    newest = T0 + 13 * HOUR + 59 * 60_000
    assert times[-1] == newest
    assert newest - 6 * HOUR - 60_000 <= times[0] <= newest - 4 * HOUR
    files = [p for p in tmp_path.rglob("block-*") if p.is_file()]
    assert len(files) == db.stats().blocks
    db.close()


def test_retention_by_size_deletes_the_oldest_blocks_of_all(tmp_path: Path) -> None:
    db = opened(tmp_path, tenants_auto_create=True)
    for hour in range(0, 14, 2):
        for name in ("a", "b"):
            rows = [(series(i), T0 + hour * HOUR + 60_000 * k, k * k) for k in range(120) for i in range(20)]
            put(db.tenant(name), rows)
        db.maintain()
    blocks = db.stats().block_bytes
    before = {name: read(db.tenant(name)) for name in ("a", "b")}
    db.close()

    again = opened(tmp_path, retention_bytes=blocks // 2)
    again.maintain()
    stats = again.stats()
    assert blocks // 4 < stats.block_bytes <= blocks // 2
    for name in ("a", "b"):
        after = read(again.tenant(name))
        for labels, samples in after.items():
            kept = sorted(samples)
            assert kept == sorted(before[name][labels])[-len(kept) :], "the newest stay"
            assert len(kept) < len(before[name][labels])
    files = [p for p in tmp_path.rglob("block-*") if p.is_file()]
    assert len(files) == stats.blocks
    again.close()


def test_limits_and_retention_of_one_tenant(tmp_path: Path) -> None:
    own = TenantConfig(SeriesLimits(active_series_max=5), retention_ms=4 * HOUR)
    db = opened(tmp_path, tenants_auto_create=True, tenants={"small": own})
    for i in range(6):
        db.tenant("large").registry.resolve(series(i))
        if i < 5:
            db.tenant("small").registry.resolve(series(i))
    with pytest.raises(RejectedError) as refused:
        db.tenant("small").registry.resolve(series(5))
    assert refused.value.reason is Reason.SERIES_LIMIT
    for hour in range(0, 14, 2):
        for name in ("small", "large"):
            put(db.tenant(name), [(series(0), T0 + hour * HOUR + 60_000 * k, k) for k in range(120)])
        db.maintain()
    db.maintain()
    assert min(read(db.tenant("large"))[key(series(0))]) == T0
    assert min(read(db.tenant("small"))[key(series(0))]) >= T0 + 7 * HOUR
    db.close()


def test_log_segments_are_freed_once_their_samples_are_in_blocks(tmp_path: Path) -> None:
    db = opened(tmp_path, segment_bytes=1 << 16)
    tenant = db.tenant("default")
    rng = np.random.default_rng(1)
    for hour in range(8):
        rows = [
            (series(i), T0 + hour * HOUR + 60_000 * k, int(rng.integers(1 << 62))) for k in range(60) for i in range(20)
        ]
        put(tenant, rows)
    before = read(tenant)
    segments = db.log.stats.segments
    db.maintain()
    db.maintain()
    assert db.log.stats.segments < segments
    db.close()
    again = opened(tmp_path, segment_bytes=1 << 16)
    assert read(again.tenant("default")) == before
    again.close()


def test_tenants_are_apart_and_only_made_when_allowed(tmp_path: Path) -> None:
    db = opened(tmp_path)
    with pytest.raises(RejectedError, match="auto_create"):
        db.tenant("other")
    assert db.find("other") is None
    put(db.tenant("other", create=True), [(series(0), T0, 1)])
    put(db.tenant("default"), [(series(0), T0, 2)])
    assert read(db.tenant("other")) == {key(series(0)): {T0: 1}}
    for bad in ("", "a/b", "..", "x" * 200):
        with pytest.raises(RejectedError):
            db.tenant(bad, create=True)
    db.close()
    again = opened(tmp_path)
    assert read(again.tenant("other")) == {key(series(0)): {T0: 1}}
    again.close()


def test_selection_limits_name_what_was_asked_and_what_is_allowed(tmp_path: Path) -> None:
    db = opened(tmp_path)
    tenant = db.tenant("default")
    put(tenant, [(series(i), T0 + k, k) for i in range(10) for k in range(10)])
    with pytest.raises(LimitError, match=r"10 series.*limit is 9 \(limits.query.series_max\)"):
        tenant.select(ALL, *EVERYTHING, SelectLimits(series_max=9))
    with pytest.raises(LimitError, match=r"100 samples.*limit is 50 \(limits.query.samples_max\)"):
        tenant.select(ALL, *EVERYTHING, SelectLimits(samples_max=50))
    db.close()


def test_labels_and_series_come_from_head_and_blocks(tmp_path: Path) -> None:
    db = opened(tmp_path)
    tenant = db.tenant("default")
    put(tenant, [({"__name__": "old", "a": "1"}, T0, 1)])
    put(tenant, [({"__name__": "new", "b": "2"}, T0 + 8 * HOUR, 1)])
    db.maintain()
    db.close()
    again = opened(tmp_path)
    tenant = again.tenant("default")
    assert tenant.label_names([], *EVERYTHING) == ["__name__", "a", "b"]
    assert tenant.label_values("__name__", [], *EVERYTHING) == ["new", "old"]
    assert tenant.label_values("__name__", [], T0 + 7 * HOUR, T0 + 9 * HOUR) == ["new"]
    assert tenant.label_values("__name__", [], T0 - HOUR, T0 + HOUR) == ["old"]
    assert tenant.label_values("nobody", [], *EVERYTHING) == []
    assert list(
        tenant.series([[Matcher("a", MatchOp.EQUAL, "1")], [Matcher("__name__", MatchOp.REGEX, "o.*")]], *EVERYTHING)
    ) == [{"__name__": "old", "a": "1"}]
    again.close()


def test_metadata_survives_a_restart(tmp_path: Path) -> None:
    db = opened(tmp_path)
    tenant = db.tenant("default")
    logged = tenant.put_metadata([("up", "gauge", "1 = reachable", "")])
    assert logged is not None
    logged.result(timeout=60)
    assert tenant.put_metadata([("up", "gauge", "1 = reachable", "")]) is None
    db.close()
    again = opened(tmp_path, segment_bytes=1 << 16)
    tenant = again.tenant("default")
    assert tenant.metadata()["up"].help == "1 = reachable"
    # the segments that hold it are freed one by one; a later one holds it again
    for hour in range(12):
        put(
            tenant,
            [(series(i), T0 + hour * HOUR + k * 30_000, (i << 50) ^ k**7) for i in range(20) for k in range(120)],
        )
        again.maintain()
    assert not any(p.name.endswith("00001.wal") for p in (tmp_path / "wal").iterdir())
    again.close()
    last = opened(tmp_path)
    assert last.tenant("default").metadata()["up"].help == "1 = reachable"
    last.close()


def test_the_newest_samples_need_no_chunk(tmp_path: Path) -> None:
    db = opened(tmp_path)
    tenant = db.tenant("default")
    put(tenant, [(series(i), T0 + 60_000 * k, k + i) for k in range(10) for i in range(3)])
    put(tenant, [(series(3), T0 + 60_000 * 4, 77), (series(1), T0 + 60_000 * 9 - 1, 5)])  # stopped early; late
    newest = T0 + 60_000 * 9

    def asked(oldest: int, at: int) -> dict[tuple[tuple[str, str], ...], tuple[int, int]] | None:
        found = tenant.newest(ALL, oldest, at, LIMITS)
        if found is None:
            return None
        rows = zip(
            found.labels, found.present, found.ts_ms.tolist(), found.values.view(np.uint64).tolist(), strict=True
        )
        return {key(labels): (t, b) for labels, present, t, b in rows if present}

    everything = {key(series(i)): (newest, 9 + i) for i in range(3)}
    assert asked(newest - 60_000, newest) == everything
    assert asked(newest, newest + HOUR) == everything
    assert asked(T0, newest) == {**everything, key(series(3)): (T0 + 240_000, 77)}
    assert asked(newest + 1, newest + HOUR) == {}
    assert asked(T0, newest - 1) is None  # in a chunk
    with pytest.raises(LimitError, match="4 series"):
        tenant.newest(ALL, T0, newest, SelectLimits(series_max=3))
    one = [Matcher("instance", MatchOp.EQUAL, "10.0.0.0")]
    assert tenant.is_light(one, T0)
    assert not tenant.is_light(ALL, T0)
    put(tenant, [(series(0), T0 + 8 * HOUR, 1)])
    db.maintain()
    assert asked(T0 + 2 * HOUR, T0 + 8 * HOUR) is None  # behind the cut: blocks may hold it
    assert not tenant.is_light(one, T0)
    assert asked(T0 + 8 * HOUR - 1000, T0 + 8 * HOUR) == {key(series(0)): (T0 + 8 * HOUR, 1)}
    db.close()


MINUTES = st.one_of(st.integers(0, 8 * 60), st.integers(0, 8).map(lambda hour: hour * 60))


class StoreModel(RuleBasedStateMachine):
    """Random writes, cuts and restarts against a dict."""

    @initialize(tmp=st.uuids(), shards=st.sampled_from([1, 2]))
    def start(self, tmp: object, shards: int) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.shards = shards
        self.time = TimeLimits(out_of_order_window_ms=1 << 50)
        self.db = opened(self.path, shards=shards, time=self.time, segment_bytes=1 << 16)
        self.content: Content = {}
        self.began()

    def began(self) -> None:
        """Who has numbers of a generation: writers a registry, readers a view."""
        tenant = self.db.tenant("default")
        self.registries, self.views = [tenant.registry], [tenant.view()]

    @rule(
        rows=st.lists(
            st.tuples(st.integers(0, 5), MINUTES, st.sampled_from([0, 1, STALE_BITS, bits_of(1.5)])),
            min_size=1,
            max_size=60,
        ),
        registry=st.integers(-3, 9),
    )
    def append(self, rows: list[tuple[int, int, int]], registry: int) -> None:
        batch = [(series(i), T0 + minute * 60_000, b) for i, minute, b in rows]
        known = self.registries
        result = put(self.db.tenant("default"), batch, known[min(registry, len(known) - 1)] if registry >= 0 else None)
        refused = 0
        for labels, t, b in batch:
            samples = self.content.setdefault(key(labels), {})
            if samples.setdefault(t, b) != b:
                refused += 1
        assert result.accepted == len(batch) - refused
        assert sum(result.rejected.values()) == refused

    @rule(
        number=st.one_of(st.none(), st.integers(0, 5)),
        first=MINUTES,
        minutes=st.one_of(st.just(0), st.just(1 << 30), st.integers(0, 200)),
    )
    def delete(self, number: int | None, first: int, minutes: int) -> None:
        """Samples of one series or all within a span; what comes afterwards is stored like any other."""
        mint, maxt = T0 + first * 60_000, T0 + (first + minutes) * 60_000
        chosen = ALL if number is None else [Matcher("instance", MatchOp.REGEX, f"10[.]0[.]0[.]{number}")]
        self.db.delete(self.db.tenant("default"), Deletion((tuple(chosen),), mint, maxt))
        for labels, samples in self.content.items():
            if number is None or dict(labels)["instance"] == f"10.0.0.{number}":
                for t in [t for t in samples if mint <= t <= maxt]:
                    del samples[t]
        self.content = {labels: samples for labels, samples in self.content.items() if samples}

    @rule()
    def clean(self) -> None:
        self.db.clean()
        assert not any(len(b.tombstones) for s in self.db.tenant("default").shards for b in s.blocks)

    @rule()
    def maintain(self) -> None:
        self.db.maintain()
        assert self.db.cut_failures == 0, self.db.last_error

    @rule()
    def compact(self) -> None:
        """Blocks become longer ones, also while late samples still come into their spans."""
        for shard in self.db.tenant("default").shards:
            self.db._compactor.run(shard, (4 * HOUR, 8 * HOUR), 0, 0, cpu_share=1.0)
        assert not self.db.compaction.failures, self.db.compaction.last_error

    @rule(rest=st.booleans())
    def forget(self, rest: bool) -> None:
        tenant = self.db.tenant("default")
        self.registries.append(tenant.registry)
        self.views.append(tenant.view())
        with mock.patch("tsdb.shard.SLOTS_REST_S", 0.0 if not rest else 60.0), self.db.unchanged():
            self.db.log.submit(BeginGeneration(tenant)).result()

    @rule()
    def restart(self) -> None:
        self.db.close()
        self.db = opened(self.path, shards=self.shards, time=self.time, segment_bytes=1 << 16)
        self.began()

    @invariant()
    def same(self) -> None:
        if hasattr(self, "db"):
            tenant = self.db.tenant("default")
            assert read(tenant) == self.content
            for view in self.views[-2:]:  # what began earlier may miss a series, but never has samples of another
                for labels, samples in read(view).items():
                    assert samples.items() <= self.content[labels].items()
            last = max((t for samples in self.content.values() for t in samples), default=T0)
            found = tenant.newest(ALL, last - 15 * 60_000, last, LIMITS)
            if found is not None:
                rows = zip(found.labels, found.present.tolist(), found.values.view(np.uint64).tolist(), strict=True)
                recent = {k: max(s) for k, s in self.content.items() if max(s) >= last - 15 * 60_000}
                expected = {k: self.content[k][t] for k, t in recent.items()}
                assert {key(labels): b for labels, present, b in rows if present} == expected

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()
            self.folder.cleanup()


StoreModel.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStoreModel = StoreModel.TestCase


def test_what_a_running_store_follows(tmp_path: Path) -> None:
    db = opened(tmp_path, tenants_auto_create=True, series=SeriesLimits(active_series_max=4))
    known = db.tenant("a")
    put(known, [({"__name__": "m", "i": str(i)}, T0, 0) for i in range(3)])
    own = {"a": TenantConfig(SeriesLimits(active_series_max=3), retention_ms=HOUR), "b": TenantConfig(retention_ms=7)}
    changed = config(
        tmp_path, shards=8, series=SeriesLimits(active_series_max=4), tenants=own, retention_ms=9, retention_bytes=5
    )
    assert db.follow(changed) == []
    assert (db.config.shards, db.config.retention_ms, db.config.retention_bytes) == (1, 9, 5)
    with pytest.raises(LimitError, match="3 series"):
        known.registry.resolve({"__name__": "m", "i": "new"})
    assert known.logs.limits.retention_ms == HOUR
    with pytest.raises(RejectedError):
        db.tenant("new")  # tenants are no more made by writes
    assert db.tenant("b", create=True).logs.limits.retention_ms == 7
    large = {"a": TenantConfig(SeriesLimits(active_series_max=1000))}
    assert db.follow(config(tmp_path, series=SeriesLimits(active_series_max=4), tenants=large)) == ["a"]
    with pytest.raises(LimitError, match="3 series"):  # its old limits hold
        known.registry.resolve({"__name__": "m", "i": "new"})
    db.close()
