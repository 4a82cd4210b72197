"""Which replica of a highly available pair of senders is listened to.

Two Prometheis scrape the same targets and send the same series, but for a label that tells them apart. One of a pair
is elected; what the other sends is taken for known. When the elected one has been silent for a while, whoever sends
next is elected.

The decision falls when a batch is logged, in the order of the log, and only elected batches are logged: a replay has
nothing to decide. Who is elected is logged too, so that a restart changes nobody.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

CLUSTERS_MAX = 10_000
"""Pairs a tenant may have; the one that has been silent for longest is forgotten."""


class ReplicaSource(NamedTuple):
    """Who sent a batch."""

    cluster: str
    replica: str
    received_ms: int  # our clock


class Replicas:
    """The elected replicas of one tenant. Everything but :meth:`would_keep` is called by the committer alone.

    Parameters
    ----------
    failover_ms : silence of an elected replica after which another one is taken
    """

    def __init__(self, failover_ms: int) -> None:
        self._failover_ms = failover_ms
        self._elected: dict[str, ReplicaSource] = {}
        self._logged: dict[str, ReplicaSource] = {}
        self._segment = -1

    def would_keep(self, source: ReplicaSource) -> bool:
        """What :meth:`decide` would say now."""
        elected = self._elected.get(source.cluster)
        return (
            elected is None
            or elected.replica == source.replica
            or source.received_ms - elected.received_ms > self._failover_ms
        )

    def decide(self, source: ReplicaSource) -> bool:
        """Whether the batch of this source is kept; elects it when nobody is elected, or silent for too long."""
        if not self.would_keep(source):
            return False
        elected = self._elected.get(source.cluster)
        if elected is None and len(self._elected) >= CLUSTERS_MAX:
            oldest = min(self._elected.values(), key=lambda known: known.received_ms)
            del self._elected[oldest.cluster]
            self._logged.pop(oldest.cluster, None)
        if elected is not None and elected.replica == source.replica:
            source = source._replace(received_ms=max(source.received_ms, elected.received_ms))
        self._elected[source.cluster] = source
        return True

    def to_log(self, cluster: str, segment: int) -> list[ReplicaSource]:
        """What a segment must hold beside a batch of this cluster: everybody with its first such batch, later changes.

        Time alone is logged a few times within the silence that is allowed.
        """
        if segment != self._segment:
            self._segment = segment
            self._logged = dict(self._elected)
            return list(self._elected.values())
        elected, logged = self._elected[cluster], self._logged.get(cluster)
        if (
            logged is not None
            and logged.replica == elected.replica
            and elected.received_ms - logged.received_ms < self._failover_ms // 4
        ):
            return []
        self._logged[cluster] = elected
        return [elected]

    def restore(self, sources: Iterable[ReplicaSource]) -> None:
        """Take over who was elected, from the log."""
        for source in sources:
            self._elected[source.cluster] = source

    def elected(self) -> dict[str, str]:
        """Cluster -> elected replica."""
        return {cluster: source.replica for cluster, source in self._elected.items()}
