"""A store in memory that decides samples as the real one does, and an ASGI client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ingest.api import OtlpEndpoint, PushApi, RemoteWriteEndpoint, TextImportEndpoint
from ingest.import_text import TextImporter
from ingest.limits import WriteLimits
from ingest.otlp import OtlpReceiver
from ingest.reception import SampleWriter
from ingest.remote_write import RemoteWriteReceiver
from ingest.remote_write_v2 import RemoteWriteV2Receiver
from ingest.replicas import ReplicaLabels
from ingest.store import Metadata
from tsdb.batch import AppendResult, SampleBatch, SampleStatus
from tsdb.clock import ManualClock
from tsdb.errors import Reason, RejectedError, UnavailableError
from tsdb.exemplars import ExemplarRing
from tsdb.index.registry import NO_REF, SeriesRegistry
from tsdb.limits import SeriesLimits, TimeLimits
from tsdb.replicas import Replicas, ReplicaSource
from tsdb.tally import Tally

NOW = 1_795_000_000_000
WINDOW_MS = 24 * 3_600_000
FAILOVER_MS = 30_000


class FakeTenant:
    """Decides by the rules of the store: repeats pass, other values are refused, a day's window."""

    def __init__(self, limits: SeriesLimits | None = None) -> None:
        self.registry = SeriesRegistry(limits or SeriesLimits())
        self.exemplars = ExemplarRing(self.registry)
        self.replicas = Replicas(FAILOVER_MS)
        self.stored: dict[int, dict[int, int]] = {}  # ref -> time -> bits
        self.metadata: list[Metadata] = []
        self.newest = 0
        self.fail: Exception | None = None
        self.held: list[tuple[Future[AppendResult], SampleBatch]] | None = None

    def forget(self, kept: Sequence[Mapping[str, str]]) -> None:
        """Begin a new generation with some series, which get other numbers; nothing that was stored is kept."""
        refs = np.unique(np.array([self.registry.resolve(labels) for labels in kept], np.uint32))
        former, self.registry = self.registry, self.registry.copied(refs)
        numbers = np.full(len(former), NO_REF, np.uint32)
        numbers[refs] = np.arange(len(refs), dtype=np.uint32)
        former.give_way(self.registry, numbers)
        self.stored.clear()

    def append(self, batch: SampleBatch, source: ReplicaSource | None = None) -> Future[AppendResult]:
        if isinstance(self.fail, UnavailableError):
            raise self.fail
        assert batch.registry is self.registry, "old numbers: what writes all the time takes the new ones"
        future: Future[AppendResult] = Future()
        if self.held is not None:
            self.held.append((future, batch))
        elif self.fail is not None:
            future.set_exception(self.fail)
        elif source is not None and not self.replicas.decide(source):
            future.set_result(AppendResult(len(batch), duplicate=True))
        else:
            future.set_result(self.decide(batch))
        return future

    def release(self) -> None:
        """Decide what was held back."""
        held, self.held = self.held or [], None
        for future, batch in held:
            future.set_result(self.decide(batch))

    def decide(self, batch: SampleBatch) -> AppendResult:
        status = np.zeros(len(batch), np.uint8)
        floor = self.newest - WINDOW_MS
        rows = zip(batch.refs.tolist(), batch.ts_ms.tolist(), batch.bits.tolist(), strict=True)
        for i, (ref, time, bits) in enumerate(rows):
            series = self.stored.setdefault(ref, {})
            if time in series:
                status[i] = SampleStatus.REPEATED if series[time] == bits else SampleStatus.DUPLICATE
            elif time < floor:
                status[i] = SampleStatus.TOO_OLD
            else:
                series[time] = bits
                self.newest = max(self.newest, time)
        rejected = {}
        for code, reason in ((SampleStatus.DUPLICATE, Reason.DUPLICATE), (SampleStatus.TOO_OLD, Reason.TOO_OLD)):
            if count := int((status == code).sum()):
                rejected[reason] = count
        return AppendResult(len(batch) - sum(rejected.values()), rejected, status)

    def put_metadata(self, families: Iterable[Metadata]) -> None:
        self.metadata.extend(families)

    def series(self) -> dict[tuple[tuple[str, str], ...], dict[int, int]]:
        """Sorted label pairs -> time -> bits of all that is stored."""
        refs = np.array(sorted(ref for ref, samples in self.stored.items() if samples), np.uint32)
        table = self.registry.label_table(refs)
        return {tuple(table.labels(i).items()): self.stored[int(ref)] for i, ref in enumerate(refs)}


class FakeTenants:
    def __init__(self) -> None:
        self.default = FakeTenant()
        self.by_name = {"default": self.default, "other": FakeTenant()}

    def tenant(self, name: str) -> FakeTenant:
        if name not in self.by_name:
            raise RejectedError(Reason.TENANT, f"tenant {name!r} does not exist")
        return self.by_name[name]

    def leader(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    gatherer = leader

    def result(self, future: Future[AppendResult]) -> AppendResult:
        return future.result(30)


class Server:
    """The push endpoints over a fake store."""

    def __init__(
        self,
        limits: WriteLimits | None = None,
        times: TimeLimits | None = None,
        accept_delta: bool = False,
        pairs: ReplicaLabels | None = None,
    ) -> None:
        self.tenants = FakeTenants()
        self.tenant = self.tenants.default
        self.tally = Tally()
        self.clock = ManualClock(NOW)
        writer = SampleWriter(self.clock, self.tally, times)
        v1, v2 = RemoteWriteReceiver(writer, limits, pairs), RemoteWriteV2Receiver(writer, limits, pairs)
        self.v2 = v2
        self.executor = ThreadPoolExecutor(2)
        endpoints = {
            "/api/v1/write": RemoteWriteEndpoint(v1.receive, v2.receive),
            "/api/v1/import/prometheus": TextImportEndpoint(TextImporter(writer, limits)),
            "/api/v1/otlp/v1/metrics": OtlpEndpoint(OtlpReceiver(writer, limits, accept_delta)),
        }
        self.api = PushApi(self.tenants, endpoints, self.executor, self.tally, limits)

    def post(self, body: bytes | Sequence[bytes], **headers: str) -> tuple[int, dict[str, str], str]:
        """(status, headers, text); header names with ``_`` for ``-``; several bodies are the parts of one.

        ``path`` and ``query`` are those of the request.
        """
        return asyncio.run(self.apost(body, **headers))

    async def apost(
        self,
        body: bytes | Sequence[bytes],
        method: str = "POST",
        path: str = "/api/v1/write",
        query: str = "",
        **headers: str,
    ) -> tuple[int, dict[str, str], str]:
        parts = [body] if isinstance(body, bytes) else list(body)
        messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": part, "more_body": i + 1 < len(parts)} for i, part in enumerate(parts)
        ]
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        fields = [(name.replace("_", "-").lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": fields}
        await self.api(scope, receive, send)
        if not sent:
            return 0, {}, ""
        names = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], names, b"".join(m["body"] for m in sent[1:]).decode()
