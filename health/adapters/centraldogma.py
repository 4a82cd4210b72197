"""Verdicts as commits in Central Dogma, for meshes whose endpoints live there.

Only the holder of the actuator lease writes, since all instances would write the same file. One task a cluster: read
the file, compare, change what differs, wait. What is read is sent back whole but for health status and weight. Others
write too, so a watch tells when to compare again; who writes over a verdict is overruled, but an endpoint is never the
subject of more than one operation in :data:`GAP_S`, which is more than the server's own batch.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import replace

import aiohttp

from health.adapters.assignments import LOOK_AGAIN_S
from health.adapters.dogma_client import DogmaClient, DogmaError, File
from health.adapters.dogma_ledger import Ledger
from health.adapters.dogma_plan import Entry, Held, Key, Mark, Target, entries, reconciled, replaced, wanted
from health.adapters.eds import enforced, service_name
from health.board import EndpointView
from health.runner import HealthRunner
from health.topology import Fact, Facts
from health.verdicts import Kind
from tsdb.blockstore import AlreadyExistsError

log = logging.getLogger(__name__)

GAP_S = 3.5
"""The server gathers operations for 3 s: one of ours that was superseded must not supersede its successor."""
BULK = 16
"""More changes at once go as one replacement of the file, in a commit with our name: one held answer instead of many.
It is read before and not compared when written, so that a registration in between would be lost: hence not for few."""
_RETRY_S = (1.0, 30.0)
"""After a failure: first wait, longest wait."""
_SUPERSEDED = 409
_SUMMARY = "meshpulse: health of {n} endpoints of {cluster}"

_Problems = (DogmaError, OSError, ValueError, TimeoutError, aiohttp.ClientError, AlreadyExistsError)


class CentralDogma:
    """Keeps assignments up to date; on the event loop.

    Parameters
    ----------
    written : clusters that get our verdicts
    gap_s : between two operations on one endpoint

    Attributes
    ----------
    operations : result -> how often: ``committed``, ``superseded``, ``failed``, ``overwritten``
    problems : cluster -> why it could not be read or written last; absent = it could
    facts : service -> endpoints as others list them, of all these clusters
    """

    def __init__(
        self,
        runner: HealthRunner,
        client: DogmaClient,
        ledger: Ledger,
        written: Sequence[Target],
        gap_s: float = GAP_S,
    ) -> None:
        self._runner = runner
        self._client = client
        self._ledger = ledger
        self._written = tuple(written)
        self._followed = set(self._written)
        self._gap_s = gap_s
        self._acting: set[str] = set()
        self._ledger_lock = asyncio.Lock()
        self._sent_s: dict[tuple[str, Key], float] = {}
        self._tasks: dict[Target, asyncio.Task[None]] = {}
        self._running = False
        self.operations: Counter[str] = Counter()
        self.problems: dict[str, str] = {}
        self.facts: dict[str, dict[str, Fact]] = {}

    def known_facts(self) -> Facts:
        """Endpoints of all clusters as others list them; from any thread."""
        return dict(self.facts)

    @property
    def client(self) -> DogmaClient:
        """Who asks, and counts answers."""
        return self._client

    def start(self) -> None:
        """Begin."""
        self._running = True
        self._tasks = {target: asyncio.create_task(self._keep(target)) for target in self._followed}

    def list_too(self, targets: Iterable[Target]) -> None:
        """Follow these clusters for their endpoints, beside those that are written, and no others."""
        self._followed = {*self._written, *targets}
        if self._running:
            for target in self._tasks.keys() - self._followed:
                self._tasks.pop(target).cancel()
                self.facts.pop(service_name(target.cluster), None)
                self.problems.pop(target.cluster, None)
            new = self._followed - self._tasks.keys()
            self._tasks |= {target: asyncio.create_task(self._keep(target)) for target in new}

    async def close(self, seconds: float) -> None:
        """Give back what we changed, as far as that is possible in this time; the board must be closed by now."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(self._give_back(target) for target in self._written))
        except TimeoutError:
            log.error("Central Dogma: verdicts of ours stay there: no time to take them back")  # noqa: TRY400
        await self._client.close()

    async def _give_back(self, target: Target) -> None:
        """Until nothing of ours is left in the file: an operation may come too early after the last one."""
        while target.cluster in self._acting and self._ledger.rows.get(target.cluster):
            try:
                pause = await self._sync(target, await self._client.read(target))
            except _Problems as error:
                log.error("Central Dogma, %s: verdicts of ours stay there: %s", target.cluster, error)  # noqa: TRY400
                return
            await asyncio.sleep(min(pause, self._gap_s))

    async def _keep(self, target: Target) -> None:
        first, longest = _RETRY_S
        retry = first
        while True:
            try:
                file = await self._client.read(target)
                pause = await self._sync(target, file)
                self.problems.pop(target.cluster, None)
                retry = first
                await self._wait(target, file, pause)
            except _Problems as error:
                self._complain(target, error)
            except Exception as error:
                self._complain(target, error)
                log.exception("a fault of ours with Central Dogma")
            else:
                continue
            await asyncio.sleep(retry)
            retry = min(2 * retry, longest)

    def _complain(self, target: Target, error: Exception) -> None:
        text = f"{error}" or type(error).__name__
        if self.problems.get(target.cluster) != text:
            log.warning("Central Dogma, %s: %s", target.cluster, text)
        self.problems[target.cluster] = text

    # -- one comparison --------------------------------------------------------------------------------------------

    async def _sync(self, target: Target, file: File) -> float:
        """Bring a file to what it should say; seconds after which to look again at the latest."""
        found = entries(file.assignment)
        acting = target in self._written and await self._acts(target)
        held = self._ledger.rows.setdefault(target.cluster, {}) if acting else {}
        said = {key: reconciled(held.get(key), entry.mark) for key, entry in found.items()}
        owners = {key: owner for key, (owner, _) in said.items()}
        self.facts[service_name(target.cluster)] = {e.address: e.fact(owners[k]) for k, e in found.items()}
        if not acting:
            return math.inf
        views = self._views(target)
        marks = {key: wanted(owner, views.get(key.address)) for key, owner in owners.items()}
        for key in held.keys() - found.keys():
            del held[key]  # taken off the list with all that was said of it
        for key, owner in owners.items():
            held[key] = Held(owner, marks[key], found[key].mark)
            if marks[key] == owner == found[key].mark:
                del held[key]
        await self._tell(target, [found[key] for key, (_, against) in said.items() if against], marks)
        changes = {key: mark for key, mark in marks.items() if mark != found[key].mark}
        if not changes and not self._holds_lease():
            self._acting.discard(target.cluster)  # all given back: whoever has the lease goes on
        return await self._change(target, file, changes, found)

    async def _acts(self, target: Target) -> bool:
        """From the moment on when the lease is ours, until what we said is given back after it is not any more."""
        async with self._ledger_lock:
            if target.cluster not in self._acting and self._holds_lease():
                if not self._acting:
                    await asyncio.to_thread(self._ledger.load)
                self._acting.add(target.cluster)
        return target.cluster in self._acting

    def _holds_lease(self) -> bool:
        return self._runner.lease.held(self._runner.clock.now_ms())

    def _views(self, target: Target) -> dict[str, EndpointView]:
        health, now_ms = self._runner.health, self._runner.clock.now_ms()
        if health.board.closed:
            return {}
        view = enforced(health.board.now, service_name(target.cluster), self._runner.lease, now_ms)
        return {endpoint.endpoint: endpoint for endpoint in view.endpoints} if view else {}

    async def _change(
        self, target: Target, file: File, changes: Mapping[Key, Mark], found: Mapping[Key, Entry]
    ) -> float:
        now_s = time.monotonic()
        self._sent_s = {key: at for key, at in self._sent_s.items() if at > now_s - self._gap_s}
        due_s = {key: self._sent_s.get((target.cluster, key), -math.inf) + self._gap_s for key in changes}
        # what gets traffic again goes first: capacity must be there before it is taken elsewhere
        ready = sorted((k for k in changes if due_s[k] <= now_s), key=lambda k: found[k].mark.share - changes[k].share)
        if not ready:
            return min([math.inf, *(due - now_s for due in due_s.values())])
        held = self._ledger.rows[target.cluster]
        await self._remember(giving_back=all(changes[key] == held[key].owner for key in ready if key in held))
        self._sent_s.update({(target.cluster, key): now_s for key in ready})
        if len(ready) > BULK:
            summary = _SUMMARY.format(n=len(ready), cluster=target.cluster)
            new = replaced(file.assignment, {key: changes[key] for key in ready})
            done = [await self._operate(self._client.replace(target, new, summary))] * len(ready)
        else:
            bodies = [found[key].body(changes[key]) for key in ready]
            done = await asyncio.gather(*(self._operate(self._client.register(target, body)) for body in bodies))
        for key, error in zip(ready, done, strict=True):
            if error is None and key in held:
                held[key] = replace(held[key], before=changes[key])
        for error in done:
            if error is not None and not (isinstance(error, DogmaError) and error.status == _SUPERSEDED):
                raise error
        return 0.0  # read again: was it said, and is it still?

    async def _remember(self, *, giving_back: bool) -> None:
        """Write down what we are about to say; giving back must not depend on that."""
        if not self._holds_lease():
            return  # others write there now
        async with self._ledger_lock:
            content = self._ledger.content()
            try:
                if content is not None:
                    await asyncio.to_thread(self._ledger.save, content)
            except (OSError, AlreadyExistsError):
                if not giving_back:
                    raise

    async def _operate(self, operation: Awaitable[None]) -> Exception | None:
        """Count how an operation ended; what went wrong.

        Superseded means that somebody said something newer of the endpoint: what that is, the file will tell.
        """
        try:
            await operation
        except (DogmaError, OSError, TimeoutError, aiohttp.ClientError) as error:
            superseded = isinstance(error, DogmaError) and error.status == _SUPERSEDED
            self.operations["superseded" if superseded else "failed"] += 1
            return error
        self.operations["committed"] += 1
        return None

    async def _tell(self, target: Target, overwritten: Sequence[Entry], marks: Mapping[Key, Mark]) -> None:
        service, say = service_name(target.cluster), self._runner.health.say
        for entry in overwritten:
            self.operations["overwritten"] += 1
            evidence = {"now": entry.mark.status, "wanted": marks[entry.key].status, "cluster": target.cluster}
            await self._runner.call(say, Kind.OVERWRITTEN, service, entry.address, "central_dogma", evidence)

    # -- waiting ---------------------------------------------------------------------------------------------------

    async def _wait(self, target: Target, file: File, seconds: float) -> None:
        """Until the file or a verdict changes, or the time is over."""
        if seconds <= 0:
            return
        said = self._signature(target)
        until = time.monotonic() + seconds
        watching = asyncio.ensure_future(self._client.watch(file, target))
        try:
            while not watching.done() and self._signature(target) == said and time.monotonic() < until:
                await self._listen(watching, target, said, min(LOOK_AGAIN_S, until - time.monotonic()))
            if watching.done():
                watching.result()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _listen(self, watching: asyncio.Future[bool], target: Target, said: object, seconds: float) -> None:
        board = self._runner.health.board
        if board.closed:  # which wakes nobody any more
            await asyncio.wait({watching}, timeout=seconds)
            return
        noticing = asyncio.ensure_future(board.wait(lambda: self._signature(target) != said, seconds))
        try:
            await asyncio.wait({watching, noticing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            noticing.cancel()
            await asyncio.gather(noticing, return_exceptions=True)

    def _signature(self, target: Target) -> object:
        if target not in self._written:
            return None
        views = self._views(target)
        return self._holds_lease(), tuple((v.endpoint, v.health_status, v.weight_factor) for v in views.values())
