"""Reloading the configuration: all of it is read and checked before anything is changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from health.policy_text import parse_policy
from health.topology import FollowedSource, parse_source
from meshpulse.auth import Guard, Token
from meshpulse.config import Config, ConfigError
from meshpulse.live import changed_keys, in_force, is_at_once
from meshpulse.logs import set_level
from meshpulse.runtime import Runtime, query_limits, store_config
from meshpulse.scraping import scrape_jobs
from tsdb.errors import MeshpulseError

log = structlog.get_logger(__name__)

Read = Callable[[], tuple[Config, Sequence[Token]]]
"""Reads the configuration file as the start did, the command line over it, and the secrets of its tokens."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload did.

    Attributes
    ----------
    changed : keys that are in force now
    waiting : keys that differ, and need a restart
    """

    changed: Sequence[str]
    waiting: Sequence[str]

    def describe(self) -> str:
        """For a person, a line each."""
        lines = [f"changed: {', '.join(self.changed) or 'nothing'}"]
        if self.waiting:
            lines.append(f"waiting for a restart: {', '.join(self.waiting)}")
        return "\n".join(lines)


class Reloader:
    """Puts a changed configuration into force; on the event loop, one reload at a time.

    Parameters
    ----------
    open_to_all : whether others than this machine reach the port, so that tokens may not all go
    """

    def __init__(self, read: Read, runtime: Runtime, guard: Guard, *, open_to_all: bool) -> None:
        self._read = read
        self._runtime = runtime
        self._guard = guard
        self._open_to_all = open_to_all
        self._lock = asyncio.Lock()

    async def reload(self) -> Reloaded:
        """Read the file again and follow it.

        Raises
        ------
        ConfigError        it cannot be used; nothing has changed
        """
        live = self._runtime.live
        async with self._lock:
            try:
                done = await self._reload()
            except (ConfigError, MeshpulseError, OSError) as error:
                live.successful = False
                log.error("configuration not reloaded", reason=str(error))  # noqa: TRY400  # the reason says it all
                raise ConfigError(str(error)) from None
            except Exception:
                live.successful = False
                log.exception("configuration not reloaded")
                raise
            live.successful = True
            live.loaded = datetime.now(UTC)
            log.info("configuration reloaded", changed=list(done.changed), waiting_for_restart=list(done.waiting))
            return done

    async def _reload(self) -> Reloaded:
        if self._runtime.parts is None:
            raise ConfigError(f"not yet: {self._runtime.progress.describe()}")
        read, tokens = await asyncio.to_thread(self._read)
        if self._open_to_all and not tokens:
            raise ConfigError("auth.tokens: the last token may not go while others than this machine reach the port")
        old = self._runtime.config
        differing = list(changed_keys(old, read))
        waiting = [key for key in differing if not is_at_once(key)]
        changed = [key for key in differing if is_at_once(key)]
        new = in_force(old, read)
        if "health.topology" in changed and self._cannot_follow(read):
            new = new.model_copy(update={"health": new.health.model_copy(update={"topology": old.health.topology})})
            changed.remove("health.topology")
            waiting.append("health.topology")
        await asyncio.to_thread(scrape_jobs, new)  # what cannot be used is refused before anything is changed
        if "syslog.listeners" in changed:  # first, since it may fail: then nothing has changed
            await asyncio.to_thread(self._runtime.parts.syslog.apply, new)
        # secrets in files change without the configuration
        if self._guard.replace(tokens) and "auth.tokens" not in changed:
            changed.append("auth.tokens")
        set_level(new.log.level)
        self._runtime.live.config = new
        waiting += self._follow_store(new)
        await self._follow_health(old, new)
        await self._runtime.parts.scraping.apply(new)
        return Reloaded(changed, waiting)

    def _follow_store(self, new: Config) -> list[str]:
        """Limits of tenants and queries, and retention; keys that need more room than the start has reserved."""
        parts = self._runtime.parts
        assert parts is not None
        limits = query_limits(new)
        parts.engine.limits = limits
        parts.log_engine.limits = limits
        names = parts.db.follow(store_config(new))
        return [f"active_series_max or labels_max of tenant {name}" for name in names]

    async def _follow_health(self, old: Config, new: Config) -> None:
        parts = self._runtime.parts
        if parts is None or parts.health is None:
            return
        runner = parts.health.runner
        if old.health.policies != new.health.policies:
            policies = [parse_policy(data) for data in new.health.policies]
            await runner.call(runner.health.use_configured, {policy.name: policy for policy in policies})
        if old.health.topology != new.health.topology:
            await parts.health.use_topology(new.health.topology)

    def _cannot_follow(self, read: Config) -> bool:
        """Whether topology is to come from a server whose adapter there is not: its address waits for a restart."""
        parts = self._runtime.parts
        adapter = parts.health.dogma if parts and parts.health else None
        sources = (parse_source(data) for data in read.health.topology)
        return adapter is None and any(isinstance(source, FollowedSource) for source in sources)
