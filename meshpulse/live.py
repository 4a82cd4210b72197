"""The configuration in force: what a changed file changes at once, what waits for a restart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from meshpulse.config import Config
from meshpulse.config_types import Section

S = TypeVar("S", bound=Section)

AT_ONCE = (
    "scrape_configs",
    "global",
    "auth.tokens",
    "log.level",
    "tenants",
    "storage.retention",
    "storage.retention_bytes",
    "limits.series",
    "limits.query",
    "limits.ingest.scrape_bytes_max",
    "query.lookback_delta",
    "query.timeout",
    "query.default_step",
    "syslog.listeners",
    "health.policies",
    "health.topology",
)
"""Keys, and sections of keys, that a reload changes in the running program (docs/operations.md has them too)."""


@dataclass(slots=True)
class LiveConfig:
    """The configuration in force, and how the last reading of the file went.

    Attributes
    ----------
    loaded : when it was read
    successful : whether the last reload was
    """

    config: Config
    loaded: datetime = field(default_factory=lambda: datetime.now(UTC))
    successful: bool = True


def changed_keys(old: Section, new: Section, prefix: str = "") -> Iterator[str]:
    """Keys whose values differ; a list is one value."""
    for name, info in type(old).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        path = f"{prefix}{info.alias or name}"
        if isinstance(before, Section) and isinstance(after, Section):
            yield from changed_keys(before, after, f"{path}.")
        elif before != after:
            yield path


def is_at_once(key: str) -> bool:
    """Whether a reload changes it in the running program."""
    return any(key == one or key.startswith(f"{one}.") for one in AT_ONCE)


def in_force(old: Config, new: Config) -> Config:
    """What holds after a reload: of ``new`` what changes at once, of ``old`` all else."""
    return _merged(old, new, "")


def _merged(old: S, new: S, prefix: str) -> S:
    chosen = {}
    for name, info in type(old).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        path = f"{prefix}{info.alias or name}"
        if is_at_once(path):
            chosen[name] = after
        elif isinstance(before, Section) and isinstance(after, Section):
            chosen[name] = _merged(before, after, f"{path}.")
    return old.model_copy(update=chosen)
