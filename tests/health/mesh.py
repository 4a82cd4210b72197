"""A mesh in memory: observers that send to endpoints by weight, counters as Envoy keeps them, one clock."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from health.arrivals import ArrivalLog
from health.journal import Journal
from health.loop import HealthLoop, Listener, LoopSettings
from health.mapping import BUILT_IN
from health.policy import Policy
from tests.query.memory_storage import MemoryStorage

START_MS = 1_700_000_000_000


class FreshStorage(MemoryStorage):
    """Only the newest samples are kept, so that a long run stays quick."""

    def add(self, labels: dict[str, str], samples: Any) -> None:
        key = tuple(sorted((name, value) for name, value in labels.items() if value))
        held = self._series.setdefault(key, {})
        for at, value in samples:
            held[at] = value
        while len(held) > 5:
            del held[next(iter(held))]


class Mesh:
    """Traffic of one service; :meth:`run` lets seconds pass.

    Attributes
    ----------
    failing : per endpoint, probability of an error
    delays_s : per observer, how long its samples are under way
    """

    def __init__(
        self,
        folder: Path,
        policy: Policy,
        observers: int = 4,
        endpoints: int = 6,
        rps: float = 40.0,
        seed: int = 1,
        storage: MemoryStorage | None = None,
        listener: Listener | None = None,
        arrivals: bool = False,
        service: str = "svc",
    ) -> None:
        self.listener = listener
        self.arrivals = arrivals
        self.delays_s = [0] * observers
        self._under_way: list[tuple[int, dict[str, str], int, float]] = []
        self.folder = folder
        self.policy = policy
        self.service = service
        self.storage = storage or FreshStorage()
        self.rng = np.random.default_rng(seed)
        self.names = [f"10.0.0.{h + 1}:80" for h in range(endpoints)]
        self.observers = [f"envoy-{p}" for p in range(observers)]
        self.failing = np.full(endpoints, 0.001)
        self.rps = rps
        self.counters = np.zeros((2, observers, endpoints))
        self.silent: set[int] = set()
        self.now = START_MS
        self.errors = 0
        self.moves: list[tuple[int, str, str]] = []
        self.loop = self.start()

    def start(self) -> HealthLoop:
        settings = LoopSettings((BUILT_IN["envoy_endpoint"],), {self.policy.name: self.policy})
        journal = Journal(self.folder)
        log = ArrivalLog(self.folder) if self.arrivals else None
        return HealthLoop(self.storage, settings, journal, self.now, None, self.listener, log)

    def weights(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        view = self.loop.board.now.services.get(self.service)
        out = np.ones(len(self.names))
        for endpoint in view.endpoints if view and view.mode == "enforce" else ():
            if endpoint.endpoint not in self.names:
                continue
            out[self.names.index(endpoint.endpoint)] = endpoint.weight_factor
        return out

    def run(self, seconds: int, scrape_s: int = 1) -> list[dict[str, Any]]:
        """Let time pass; the events of that time."""
        first = self.loop.events.count
        for _ in range(seconds):
            self.now += 1000
            weights = self.weights()
            rate = self.rps * weights / weights.sum()
            n = self.rng.poisson(rate, (len(self.observers), len(self.names)))
            k = self.rng.binomial(n, self.failing)
            self.errors += int(k.sum())
            self.counters += (n - k, k)
            if self.now // 1000 % scrape_s == 0:
                self.scrape()
            self.deliver()
            self.loop.tick(self.now)
        return [dict(event.data) for event in self.loop.events.find(after=first, limit=10_000)]

    def scrape(self) -> None:
        for p, observer in enumerate(self.observers):
            if p in self.silent:
                continue
            for h, name in enumerate(self.names):
                labels = {"envoy_cluster_name": self.service, "envoy_endpoint_address": name, "instance": observer}
                for metric, values in zip(("rq_success", "rq_error"), self.counters, strict=True):
                    series = {"__name__": f"envoy_cluster_endpoint_{metric}", **labels}
                    self._under_way.append((self.now + 1000 * self.delays_s[p], series, self.now, float(values[p, h])))

    def deliver(self) -> None:
        for _, series, at, value in (sample for sample in self._under_way if sample[0] <= self.now):
            self.storage.add(series, [(at, value)])
        self._under_way = [sample for sample in self._under_way if sample[0] > self.now]

    def state(self, endpoint: int = 0) -> str:
        view = self.loop.board.now.services[self.service].endpoint(self.names[endpoint])
        assert view is not None
        return str(view.state)


def kinds(events: Sequence[dict[str, Any]], endpoint: str) -> list[str]:
    return [event["type"] for event in events if event["endpoint"] == endpoint]
