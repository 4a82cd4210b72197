"""Pairs of senders: who is listened to, in the order of the log, and after a restart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tsdb.test_db import opened, read
from tsdb.batch import AppendResult, SampleBatch
from tsdb.errors import Reason
from tsdb.replicas import CLUSTERS_MAX, Replicas, ReplicaSource
from tsdb.tenant import Tenant
from tsdb.wal.records import decode_replicas, encode_replicas

FAILOVER = 100


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 80)), max_size=40))
def test_the_rule(batches: list[tuple[str, str, int]]) -> None:
    """The elected one is kept; another one only after more than the silence that is allowed."""
    replicas = Replicas(FAILOVER)
    elected: dict[str, tuple[str, int]] = {}
    now = 0
    for cluster, replica, pause in batches:
        now += pause
        known = elected.get(cluster)
        keep = known is None or known[0] == replica or now - known[1] > FAILOVER
        source = ReplicaSource(cluster, replica, now)
        assert replicas.would_keep(source) == keep
        assert replicas.decide(source) == keep
        if keep:
            elected[cluster] = (replica, now)
        assert replicas.elected() == {name: who for name, (who, _) in elected.items()}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 80), st.booleans()), max_size=40)
)
def test_any_segment_alone_tells_who_is_elected(batches: list[tuple[str, str, int, bool]]) -> None:
    replicas = Replicas(FAILOVER)
    restored = Replicas(FAILOVER)
    segment = now = 0
    for cluster, replica, pause, next_segment in batches:
        now += pause
        if next_segment:  # the segments before are gone
            segment += 1
            restored = Replicas(FAILOVER)
        if replicas.decide(ReplicaSource(cluster, replica, now)):
            rows = [tuple(source) for source in replicas.to_log(cluster, segment)]
            restored.restore(ReplicaSource(*row) for row in decode_replicas(encode_replicas(rows)))
            assert restored.elected() == replicas.elected()
            for name, source in restored._elected.items():
                assert replicas._elected[name].received_ms - source.received_ms < FAILOVER // 4


def test_clusters_are_bounded() -> None:
    replicas = Replicas(FAILOVER)
    for i in range(CLUSTERS_MAX + 1):
        assert replicas.decide(ReplicaSource(str(i), "x", i))
    assert len(replicas.elected()) == CLUSTERS_MAX
    assert "0" not in replicas.elected()


def push(tenant: Tenant, source: ReplicaSource, ms: int) -> AppendResult:
    ref = tenant.registry.resolve({"__name__": "up", "cluster": source.cluster})
    batch = SampleBatch(
        np.array([ref], np.uint32), np.array([ms], np.int64), np.array([ms], np.uint64), tenant.registry
    )
    return tenant.append(batch, source).result(60)


def test_only_one_is_stored_and_a_restart_changes_nobody(tmp_path: Path) -> None:
    db = opened(tmp_path, failover_ms=FAILOVER)
    tenant = db.tenant("default")
    first, second = ReplicaSource("c", "a", 1000), ReplicaSource("c", "b", 1010)
    assert push(tenant, first, 1).duplicate is False
    skipped = push(tenant, second, 2)
    assert (skipped.duplicate, skipped.accepted, skipped.rejected) == (True, 1, {})
    assert db.tally.snapshot() == {Reason.REPLICA: 1}
    assert push(tenant, second._replace(received_ms=1100), 3).duplicate is True
    content = read(tenant)
    db.close()

    db = opened(tmp_path, failover_ms=FAILOVER)
    tenant = db.tenant("default")
    assert read(tenant) == content == {(("__name__", "up"), ("cluster", "c")): {1: 1}}
    assert push(tenant, second._replace(received_ms=1100), 4).duplicate is True
    assert push(tenant, second._replace(received_ms=1101), 5).duplicate is False  # it was silent for too long
    assert push(tenant, first._replace(received_ms=1150), 6).duplicate is True
    db.close()

    db = opened(tmp_path, failover_ms=FAILOVER)
    assert db.tenant("default").replicas.elected() == {"c": "b"}
    assert read(db.tenant("default")) == {(("__name__", "up"), ("cluster", "c")): {1: 1, 5: 5}}
    db.close()
