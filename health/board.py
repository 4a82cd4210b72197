"""What is published: the verdicts of all services at one revision, and those who wait for the next.

The loop's thread publishes; any thread may take :attr:`HealthBoard.now`, which never changes once made. The revision
moves only when a verdict, a weight or a mode does, never for evidence; the lease moves with every evaluation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from health.policy import Mode
from health.verdicts import Scalar, State


class Revision(NamedTuple):
    """``epoch.counter``: the counter grows with each change, the epoch when the state could not be restored."""

    epoch: int
    counter: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.counter}"

    @classmethod
    def parse(cls, text: str) -> Revision:
        """Read ``7.42``, ``"7.42"`` or ``W/"7.42"``.

        Raises
        ------
        ValueError
        """
        bare = text.strip().removeprefix("W/").strip('"')
        epoch, dot, counter = bare.partition(".")
        if not dot or not (epoch.isascii() and epoch.isdigit() and counter.isascii() and counter.isdigit()):
            raise ValueError(f"{text!r} is no revision")
        return cls(int(epoch), int(counter))


@dataclass(frozen=True, slots=True)
class EndpointView:
    """One endpoint as it is published.

    Attributes
    ----------
    verdict : HEALTHY, DEGRADED, EJECT or UNKNOWN
    health_status : for EDS
    weight_factor : of its normal weight, 0 to 1
    evidence : of the decision that led here; empty = nothing to say
    observers, observers_against : proxies that told their own view, and those that do not use the endpoint
    listed : a topology source lists it, or there is none
    """

    endpoint: str
    state: State
    verdict: str
    health_status: str
    weight_factor: float
    since_ms: int
    until_ms: int = 0
    ejections: int = 0
    region: str = ""
    zone: str = ""
    version: str = ""
    priority: int = 0
    weight: int = 1
    detector: str = ""
    blocked_by: str = ""
    evidence: Mapping[str, Scalar] = field(default_factory=dict)
    observers: int = 0
    observers_against: int = 0
    listed: bool = True


@dataclass(frozen=True, slots=True)
class ServiceView:
    """One service as it is published.

    Attributes
    ----------
    policy : name of the policy that judges it
    data_as_of_ms : newest sample that went into it
    valid_until_ms : from then on nobody may rely on it; ends too when the data end
    cap_percent, allowed_out : how many endpoints may be out
    frozen : data are not fresh, nothing is decided
    incident : name of a common cause, "" = none
    listed : a topology source lists its endpoints; otherwise caps count what metrics show
    """

    name: str
    mode: Mode
    policy: str
    evaluated_at_ms: int
    data_as_of_ms: int
    valid_until_ms: int
    endpoints: tuple[EndpointView, ...]
    cap_percent: int = 0
    allowed_out: int = 0
    frozen: bool = False
    incident: str = ""
    known_observers: int = 0
    reporting_observers: int = 0
    listed: bool = True

    def published(self) -> tuple[object, ...]:
        """What a revision stands for."""
        return (self.mode, tuple((e.endpoint, e.verdict, e.health_status, e.weight_factor) for e in self.endpoints))

    def endpoint(self, name: str) -> EndpointView | None:
        """One endpoint by its address."""
        return next((view for view in self.endpoints if view.endpoint == name), None)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The board at one revision.

    Attributes
    ----------
    services : by name
    last_changed : service -> counter of its last change; services that went away included
    """

    revision: Revision
    evaluated_at_ms: int = 0
    services: Mapping[str, ServiceView] = field(default_factory=dict)
    last_changed: Mapping[str, int] = field(default_factory=dict)

    def changed_since(self, seen: Revision, service: str = "") -> bool:
        """Whether a reader who saw ``seen`` must be told, about one service or ("") about any."""
        if seen.epoch != self.revision.epoch or seen.counter > self.revision.counter:
            return True
        latest = self.last_changed.get(service, 0) if service else self.revision.counter
        return latest > seen.counter


class HealthBoard:
    """Holds the newest snapshot and wakes those who wait for another.

    Attributes
    ----------
    now : the newest snapshot
    closed : the program ends, nobody waits any more
    """

    def __init__(self, revision: Revision) -> None:
        self.now = Snapshot(revision)
        self._signatures: dict[str, tuple[object, ...]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: dict[asyncio.Future[None], Callable[[], bool]] = {}
        self.closed = False

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Name the event loop on which :meth:`wait` is called."""
        self._loop = loop

    def publish(self, services: Mapping[str, ServiceView], now_ms: int) -> bool:
        """Show these services from now on (the loop's thread); whether the revision moved."""
        old = self.now
        signatures = {name: view.published() for name, view in services.items()}
        changed = self._changed(signatures)
        revision, last_changed = old.revision, old.last_changed
        if changed:
            revision = Revision(revision.epoch, revision.counter + 1)
            last_changed = {**last_changed, **dict.fromkeys(changed, revision.counter)}
        self._signatures = signatures
        self.now = Snapshot(revision, now_ms, services, last_changed)
        if changed:
            self.notify()
        return bool(changed)

    def next_revision(self, services: Mapping[str, ServiceView]) -> Revision:
        """The revision that publishing these services would have."""
        moves = self._changed({name: view.published() for name, view in services.items()})
        return Revision(self.now.revision.epoch, self.now.revision.counter + bool(moves))

    def _changed(self, signatures: Mapping[str, tuple[object, ...]]) -> set[str]:
        names = signatures.keys() | self._signatures.keys()
        return {name for name in names if signatures.get(name) != self._signatures.get(name)}

    def notify(self) -> None:
        """Let everybody who waits look again; from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def close(self) -> None:
        """Answer everybody now (the event loop's thread): the program ends."""
        self.closed = True
        self._wake()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiters)

    async def wait(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Wait until ``ready()``, which is asked again at each notification; False when time or the program ended."""
        if ready() or self.closed or seconds <= 0:
            return ready()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[future] = ready
        try:
            await asyncio.wait_for(future, seconds)
        except TimeoutError:
            return False
        finally:
            self._waiters.pop(future, None)
        return ready()

    def _wake(self) -> None:
        for future, ready in list(self._waiters.items()):
            if not future.done() and (self.closed or ready()):
                future.set_result(None)
