"""Write-ahead log: what is acknowledged is on the device (docs/format/wal.md)."""

from tsdb.wal.framing import TIME_NONE, Record
from tsdb.wal.log import LocalLog, Log, LogStats, Operation, SyncMode
from tsdb.wal.replay import DamageReport, ReplayedRecord

__all__ = [
    "TIME_NONE",
    "DamageReport",
    "LocalLog",
    "Log",
    "LogStats",
    "Operation",
    "Record",
    "ReplayedRecord",
    "SyncMode",
]
