"""Statistics that proxies push by OTLP: each is an observer of its own, a restart of one is seen by the decrease."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from health.mapping import BUILT_IN
from health.policy import Policy
from health.service import Service
from health.signals import SeriesReader
from health.verdicts import ServiceState
from ingest.otlp import OtlpReceiver
from ingest.reception import SampleWriter
from tests.ingest.test_otlp import Body
from tsdb.clock import ManualClock
from tsdb.db import TSDB, StoreConfig
from tsdb.limits import TimeLimits
from tsdb.tally import Tally

NOW = int(time.time()) * 1000
ENDPOINT = "10.0.0.1:80"


class Bench:
    """A store, the OTLP receiver in front of it, and the reader of the mapping behind it."""

    def __init__(self, path: Path) -> None:
        self.db = TSDB(StoreConfig(path=path, min_free_bytes=0, min_free_fraction=0, maintenance_seconds=3600))
        self.db.open()
        self.tenant = self.db.tenant("default")
        self.clock = ManualClock(NOW)
        self.receiver = OtlpReceiver(SampleWriter(self.clock, Tally(), TimeLimits()))
        self.service = Service("a_b", Policy(), ServiceState(0))
        self.service.window.advance(NOW)
        self.reader = SeriesReader(BUILT_IN["envoy_otlp"], lambda _: self.service)

    def push(self, observer: str, at_s: int, success: int, error: int, started_s: int = 0) -> None:
        """As Envoy does: a metric object for each value, cumulative, start time in whatever unit."""
        body = Body(service__name="envoy", service__instance__id=observer)
        self.clock.ms = NOW + at_s * 1000
        for name, value in (("rq_success", success), ("rq_error", error), ("cx_connect_fail", 0)):
            labels = {"envoy.cluster_name": "a_b", "envoy.endpoint_address": ENDPOINT}
            metric = body.number(f"cluster.endpoint.{name}", value, self.clock.ms, "sum", **labels)
            metric.sum.data_points[0].start_time_unix_nano = (NOW // 1000 + started_s) * 1_000_000  # microseconds
        future = self.receiver.receive(self.tenant, body.raw()).future
        assert future is not None
        future.result()

    def counted(self) -> dict[str, tuple[float, float]]:
        now = self.clock.ms
        self.service.window.advance(now)
        self.reader.read(self.tenant, now - 65_000, now)
        signals = self.service.window.signals(now)
        minute = next(w for w in signals.windows if w.window_s == 60)
        return {o: (minute.errors[p, 0], minute.attempts[p, 0]) for p, o in enumerate(self.service.observers)}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.db.close()


def test_each_instance_is_an_observer(bench: Bench) -> None:
    for at_s in (0, 5):
        bench.push("envoy-1", at_s, 100 + 2 * at_s, 7)
        bench.push("envoy-2", at_s, 100, 7 + at_s)
    assert bench.counted() == {"envoy-1": (0.0, 10.0), "envoy-2": (5.0, 5.0)}


def test_a_restart_is_seen_by_the_decrease_alone(bench: Bench) -> None:
    """The start time of Envoy's points is in microseconds, so it cannot tell."""
    bench.push("envoy-1", 0, 100, 50)
    bench.push("envoy-1", 5, 110, 50)
    bench.push("envoy-1", 10, 4, 3)  # the same start time, smaller
    bench.push("envoy-1", 15, 6, 3, started_s=9)  # another one, not smaller
    assert bench.counted() == {"envoy-1": (3.0, 10.0 + 7.0 + 2.0)}
