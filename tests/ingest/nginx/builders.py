"""A store with a deriver in front of it, and lines of nginx."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from ingest.logs.limits import PushLimits
from ingest.logs.push import PushReceiver
from ingest.nginx.columns import JsonFormat
from ingest.nginx.derive import Deriver, DeriveSettings, Rule
from ingest.nginx.entries import SourceSettings
from ingest.nginx.tail import Source, Tailer
from tsdb.clock import ManualClock
from tsdb.db import TSDB, StoreConfig
from tsdb.limits import SelectLimits
from tsdb.matchers import Matcher, MatchOp
from tsdb.tally import Tally

NOW_S = 1_793_600_000


def line(second: float = NOW_S, **fields: Any) -> bytes:
    """An access line in JSON."""
    plain = {"time": second, "host": "a.example", "remote_addr": "192.0.2.1", "status": 200, "body_bytes_sent": 10}
    return orjson.dumps({**plain, "request_time": 0.02, **fields})


class World:
    """One tenant, its deriver, and a tailer whose rounds a test runs by hand."""

    def __init__(self, folder: Path, sources: Sequence[SourceSettings] = (), **settings: Any) -> None:
        self.folder = folder
        self.clock = ManualClock(NOW_S * 1000)
        self.tally = Tally()
        self.db = TSDB(
            StoreConfig(path=folder / "data", min_free_bytes=0, min_free_fraction=0, maintenance_seconds=3600)
        )
        self.db.open()
        self.tenant = self.db.tenant("default")
        self.logs = self.tenant.logs
        rules = settings.pop("rules", ())
        bounds = {key: settings.pop(key) for key in ("series_max", "stale_ms") if key in settings}
        bounds |= {"sites_max": settings["sites_max"]} if "sites_max" in settings else {}
        self.deriver = Deriver(self.tenant, self.logs, DeriveSettings(rules=rules, **bounds), self.clock, self.tally)
        self.logs.follower = self.deriver
        self.receiver = PushReceiver(self.clock, self.tally, PushLimits(**settings.pop("limits", {})))
        made = [Source(s, self.logs, self.deriver, self.deriver.add_rule(Rule(s.format))) for s in sources]
        self.tailer = Tailer(made, self.receiver, folder / "positions.json", self.tally, **settings)

    def resume(self) -> None:
        """Load the positions, without the thread."""
        self.tailer.load()

    def read(self) -> None:
        """Rounds until nothing is left."""
        while self.tailer.poll():
            pass

    def count(self, now_s: float = NOW_S) -> None:
        """Count what is pending and write it."""
        self.deriver.count_pending()
        self.clock.ms = int(now_s * 1000)
        self.deriver.write(self.clock.ms)

    def lines(self, **labels: str) -> list[bytes]:
        """Stored lines, oldest first."""
        return [text for _, text, _ in self.entries(**labels)]

    def entries(self, **labels: str) -> list[tuple[int, bytes, Mapping[str, str]]]:
        """(ns, line, labels) of stored entries, oldest first."""
        matchers = [Matcher(name, MatchOp.EQUAL, value) for name, value in labels.items()]
        out = []
        for frame in self.logs.select(matchers, -(1 << 62), 1 << 62, backward=False):
            for i, text in enumerate(frame.lines().to_list()):
                out.append((int(frame.ts_ns[i]), text, frame.labels.labels(int(frame.stream_row[i]))))
        return sorted(out, key=lambda entry: entry[0])

    def series(self, name: str, at_s: float | None = None) -> dict[tuple[tuple[str, str], ...], float]:
        """Newest value of each series of a metric by its other labels."""
        end = 1 << 62 if at_s is None else int(at_s * 1000)
        frame = self.tenant.select([Matcher("__name__", MatchOp.EQUAL, name)], 0, end, SelectLimits())
        found = {}
        for i in range(len(frame)):
            values = frame.values[frame.offsets[i] : frame.offsets[i + 1]]
            labels = frame.labels.labels(i)
            labels.pop("__name__")
            if len(values):
                found[tuple(sorted(labels.items()))] = float(values[-1])
        return found

    def close(self) -> None:
        """End everything in order."""
        self.tailer.close()
        self.deriver.close()
        self.db.close()


def settled(done: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Wait until something is true."""
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def json_source(pattern: str, **settings: Any) -> SourceSettings:
    """Access logs in JSON; the site is the field ``host``."""
    names = {"site": ["host"]} if settings.get("site_by_line", True) else {}
    labels = {"job": "nginx", "env": "prod", "host": "web-1"}
    return SourceSettings([pattern], format=JsonFormat(names), **{"labels": labels, "site_by_line": True, **settings})
