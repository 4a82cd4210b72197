"""What is told to a log store and by it: limits, counters, who follows its new entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tsdb.logs.buffer import Buffer


@dataclass(frozen=True, slots=True)
class LogLimits:
    """What a tenant's logs may be."""

    streams_max: int = 500_000  # about 300 MB of labels and postings; fields belong into the line, not into labels
    idle_flush_s: float = 1800.0  # a buffer older than this becomes a part, so that it does not hold the log
    retention_ms: int = 15 * 24 * 3_600_000  # behind the tenant's newest entry; 0 = for ever
    cancel_s: float = 24 * 3600.0  # a deletion may be taken back for so long, then its rows leave the disk; as Loki's


@dataclass(frozen=True, slots=True)
class LogStoreStats:
    """Counters of one tenant's logs."""

    streams: int
    entries_appended: int
    repeated: int
    buffered_entries: int
    buffered_bytes: int
    parts: int
    part_bytes: int
    part_entries: int
    flushes: int
    compactions: int


class Follower(Protocol):
    """Sees every entry that a store takes in, once: what was there already does not come again, nor does a replay."""

    def take(self, buffer: Buffer, first: int, last: int) -> None:
        """Rows of a buffer that are new (committer thread: be quick, never raise). They stay readable."""
        ...

    def wait(self, seconds: float) -> bool:
        """Wait until there is room for more; False = there is none, the sender must come again."""
        ...
