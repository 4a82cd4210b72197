"""What ingest needs of the store: written down so that tests can stand in for it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from tsdb.batch import AppendResult, SampleBatch
from tsdb.exemplars import ExemplarRing
from tsdb.index.registry import SeriesRegistry
from tsdb.replicas import Replicas, ReplicaSource

DEFAULT_TENANT = "default"


class Metadata(NamedTuple):
    """What a sender says about a metric family."""

    family: str
    type: str  # counter, gauge, histogram, gaugehistogram, summary, info, stateset or unknown
    help: str
    unit: str


class Tenant(Protocol):
    """One tenant's writing side (:class:`tsdb.db.Tenant`)."""

    @property
    def registry(self) -> SeriesRegistry:
        """Series by label set and by raw key."""
        ...

    @property
    def exemplars(self) -> ExemplarRing:
        """The exemplars that are kept in memory."""
        ...

    @property
    def replicas(self) -> Replicas:
        """Who of each pair of senders is listened to."""
        ...

    def append(self, batch: SampleBatch, source: ReplicaSource | None = None) -> Future[AppendResult]:
        """Log, decide and store a batch; raises :class:`tsdb.errors.UnavailableError` when it cannot now."""
        ...

    def put_metadata(self, entries: Sequence[Metadata]) -> object:
        """Remember what metric families are."""
        ...


class Tenants(Protocol):
    """All tenants (:class:`tsdb.db.TSDB`)."""

    def tenant(self, name: str) -> Tenant:
        """The tenant; :class:`tsdb.errors.RejectedError` when it neither exists nor may be created."""
        ...

    def leader(self) -> AbstractContextManager[None]:
        """A context at whose end the thread commits what it appended inside (:meth:`tsdb.wal.LocalLog.leader`)."""
        ...

    def gatherer(self) -> AbstractContextManager[None]:
        """The same for threads that then wait for the :meth:`result`: those inside at a time share one sync."""
        ...

    def result(self, future: Future[AppendResult]) -> AppendResult:
        """Wait for what was appended, and commit meanwhile if it is this thread's turn."""
        ...
