"""The runtime's part that judges endpoints: the loop, its API and its adapters, from the configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from health.adapters.dogma_ledger import Ledger
from health.adapters.dogma_plan import Target
from health.adapters.file_eds import FileEds, parse_file
from health.adapters.grpc_eds import GrpcEds
from health.adapters.lrs import LoadReports
from health.adapters.rest_eds import PATH as EDS_PATH
from health.adapters.rest_eds import RestEds
from health.api import PREFIX, HealthApi
from health.arrivals import ArrivalLog
from health.journal import Journal
from health.judgements import Judgements
from health.lease import ActuatorLease
from health.log_lines import EventLines
from health.loop import HealthLoop, LoopSettings
from health.mapping import parse_mapping
from health.policy_text import parse_policy
from health.runner import HealthRunner
from health.series import VerdictWriter
from health.topology import FollowedSource, Source, parse_source
from meshpulse.asgi import App
from meshpulse.config import CentralDogmaConfig, Config, milliseconds
from query.engine.engine import Engine
from tsdb.clock import Clock
from tsdb.db import TSDB

if TYPE_CHECKING:
    from health.adapters.centraldogma import CentralDogma


@dataclass(frozen=True, slots=True)
class HealthParts:
    """What exists when ``health.enabled``."""

    runner: HealthRunner
    api: HealthApi
    eds: RestEds
    grpc_eds: GrpcEds
    loads: LoadReports
    files: FileEds
    dogma: CentralDogma | None
    lines: EventLines | None
    executors: tuple[ThreadPoolExecutor, ...]

    def routes(self) -> tuple[Mapping[str, App], Mapping[str, App]]:
        """By exact path, and by prefix."""
        return {EDS_PATH: self.eds}, {PREFIX: self.api}

    def start(self) -> None:
        """Begin to judge, and to follow Central Dogma; on the event loop."""
        self.runner.start()
        if self.dogma is not None:
            self.dogma.start()

    async def use_topology(self, wanted: Sequence[object]) -> None:
        """Read topology from other sources from now on; on the event loop."""
        sources = [parse_source(data) for data in wanted]
        if self.dogma is not None:
            self.dogma.list_too(connected(sources, self.dogma))
        await self.runner.use_sources(sources)

    async def close(self, seconds: float) -> None:
        """Answer those who wait, end the ticks, let everybody use every endpoint.

        Parameters
        ----------
        seconds : for servers that are slow to take our verdicts back
        """
        self.runner.health.board.close()
        if self.dogma is not None:
            await self.dogma.close(seconds)
        await self.runner.close()
        await asyncio.to_thread(self.files.close)
        for executor in self.executors:
            executor.shutdown()


def build_health(config: Config, db: TSDB, engine: Engine, clock: Clock) -> HealthParts | None:
    """Build the parts; None when they are not wanted."""
    wanted = config.health
    if not wanted.enabled:
        return None
    tenant = db.tenant(wanted.tenant)
    settings = LoopSettings(
        mappings=tuple(parse_mapping(data) for data in wanted.mappings),
        policies={policy.name: policy for policy in (parse_policy(data) for data in wanted.policies)},
    )
    writer = VerdictWriter(tenant, milliseconds(wanted.write_interval)) if wanted.write_series else None
    folder = config.storage.path / "health"
    journal = Journal(folder)
    ticking, beside = ThreadPoolExecutor(1, "health"), ThreadPoolExecutor(2, "health-beside")
    lines = EventLines(tenant.logs, beside) if wanted.write_logs else None
    loop = HealthLoop(tenant, settings, journal, clock.now_ms(), writer, lines, ArrivalLog(folder))
    sources = [parse_source(data) for data in wanted.topology]
    runner = HealthRunner(
        loop,
        clock,
        milliseconds(wanted.interval),
        ticking,
        beside,
        sources,
        milliseconds(wanted.topology_interval),
        ActuatorLease(db.store, journal.instance()),
    )
    files = FileEds(loop, runner.lease, [parse_file(data) for data in wanted.file_eds])
    runner.followers.append(files)
    api = HealthApi(runner, wanted.tenant)
    Judgements(runner, tenant, beside, engine, folder, tenant.logs).add_to(api)
    loads = LoadReports(tenant, clock, milliseconds(wanted.load_report_interval))
    return HealthParts(
        runner=runner,
        api=api,
        eds=RestEds(runner),
        grpc_eds=GrpcEds(runner),
        loads=loads,
        files=files,
        dogma=_central_dogma(wanted.central_dogma, runner, db, sources),
        lines=lines,
        executors=(ticking, beside),
    )


def _central_dogma(
    wanted: CentralDogmaConfig, runner: HealthRunner, db: TSDB, sources: Sequence[Source]
) -> CentralDogma | None:
    if not wanted.url:
        return None
    from health.adapters.centraldogma import CentralDogma  # its HTTP client: only who has such a server pays
    from health.adapters.dogma_client import Access, DogmaClient

    access = Access(
        wanted.url,
        wanted.token.get_secret_value() if wanted.token else "",
        wanted.token_file,
        wanted.tls_ca_file,
        wanted.tls_cert_file,
        wanted.tls_key_file,
    )
    written = [Target.parse(cluster) for cluster in wanted.clusters]
    adapter = CentralDogma(runner, DogmaClient(access), Ledger(db.store), written)
    adapter.list_too(connected(sources, adapter))
    return adapter


def connected(sources: Sequence[Source], dogma: CentralDogma) -> list[Target]:
    """Let sources that name clusters of Central Dogma take what is known of them; these clusters."""
    followed = [source for source in sources if isinstance(source, FollowedSource)]
    for source in followed:
        source.provide = dogma.known_facts
    return [Target.parse(cluster) for source in followed for cluster in source.clusters]
