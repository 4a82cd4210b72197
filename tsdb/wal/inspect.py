"""Shows a log to a person: ``meshpulse inspect wal PATH``. Looks only; changes and quarantines nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tsdb.wal.framing import TIME_NONE
from tsdb.wal.records import Kind
from tsdb.wal.replay import DamageReport, LogReader
from tsdb.wal.segments import SUFFIX, Segment

_NAMES = {int(kind): kind.name for kind in Kind}


def _time(ms: int) -> str:
    if ms == TIME_NONE:
        return "-"
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):  # any int64 is a sample time, not every one is a date
        return f"{ms} ms"


def _kind(kind: int) -> str:
    return _NAMES.get(kind, f"kind {kind}")


def _report(report: DamageReport) -> str:
    missing = ""
    if report.last_position >= report.first_position:
        missing = f", positions {report.first_position}-{report.last_position} missing"
    return f"  ! byte {report.offset}, {report.n_bytes} bytes: {report.reason}{missing}"


def inspect_wal(path: Path) -> Iterator[str]:
    """Lines about a segment file, or about every segment of a folder: what is in it, and what is damaged.

    Parameters
    ----------
    path : a ``.wal`` file or the folder of them
    """
    if path.is_dir():
        paths = sorted(p for p in path.glob(f"*{SUFFIX}") if p.stem.isdigit())
    else:
        paths = [path] if path.is_file() and path.stem.isdigit() else []
    if not paths:
        yield f"{path}: no log segments"
        return
    reader = LogReader([Segment(int(p.stem), p) for p in paths], quarantine=None)
    shown = 0
    for segment in reader.segments:
        counts: Counter[tuple[str, int, str]] = Counter()
        sizes: Counter[tuple[str, int, str]] = Counter()
        first = last = raw = 0
        newest_ms = TIME_NONE
        for record in reader.read(segment):
            key = (record.tenant, record.shard, _kind(record.kind))
            counts[key] += 1
            sizes[key] += len(record.body)
            raw += len(record.body)
            first, last = first or record.position, record.position
            newest_ms = max(newest_ms, record.max_ms)
        records = sum(counts.values())
        yield (
            f"segment {segment.number}: {records} records, positions {first}-{last}, "
            f"{segment.offset} bytes written, {raw} raw, newest sample {_time(newest_ms)}"
        )
        for (tenant, shard, kind), count in sorted(counts.items()):
            yield f"  {tenant} shard {shard} {kind}: {count} records, {sizes[tenant, shard, kind]} bytes"
        found = [*reader.damage, *reader.torn]
        for report in found[shown:]:
            yield _report(report)
        shown = len(found)
