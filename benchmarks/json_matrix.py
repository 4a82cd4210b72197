"""CPU of writing query results as JSON: ``python -m benchmarks.json_matrix`` prints one line a shape.

A matrix of 1,000 series x 1,000 steps is the figure of the README (target: at most 100 ms of CPU).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from query.json_out import query_answer
from query.result import MatrixResult, QueryResult, VectorResult
from tsdb.frame import LabelTable

REPEATS = 5
START_MS = 1_795_415_580_000


class Figure(NamedTuple):
    """One measurement: best of :data:`REPEATS`."""

    name: str
    cpu_ms: float
    megabytes: float
    points: int

    def __str__(self) -> str:
        each = self.cpu_ms * 1e6 / self.points
        return f"{self.name:<46} {self.cpu_ms:8.1f} ms CPU {each:7.1f} ns/point {self.megabytes:7.1f} MB"


def labels(series: int) -> LabelTable:
    """Ten labels a series, as a mesh has them."""
    return LabelTable.of(
        [
            {
                "__name__": "envoy_cluster_upstream_rq_total",
                "cluster": f"outbound|8080||service-{i % 50}.mesh.svc.cluster.local",
                "code": str(200 + i % 5),
                "endpoint": f"10.2.{i // 250}.{i % 250}:8080",
                "instance": f"envoy-{i % 100}",
                "job": "envoy",
                "mesh": "production",
                "node": f"node-{i % 40}",
                "region": "eu-central-1",
                "zone": f"eu-central-1{'abc'[i % 3]}",
            }
            for i in range(series)
        ]
    )


def values(kind: str, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Numbers as queries return them."""
    rng = np.random.default_rng(1)
    if kind == "rates of 17 digits":
        return rng.random(shape) * 1000
    if kind == "gauges of 2 decimals":
        return np.round(rng.random(shape) * 1000, 2)
    return rng.integers(0, 10**7, shape).astype(np.float64)


def best(make: Callable[[], Iterator[bytes]]) -> tuple[float, int]:
    """CPU milliseconds of the best run, and bytes."""
    cpu_s = float("inf")
    size = 0
    for _ in range(REPEATS):
        begin = time.process_time()
        size = sum(map(len, make()))
        cpu_s = min(cpu_s, time.process_time() - begin)
    return cpu_s * 1e3, size


def measure() -> Iterator[Figure]:
    """All figures."""
    series = steps = 1000
    table = labels(series)
    for kind in ("rates of 17 digits", "gauges of 2 decimals", "integers"):
        for step_ms in (15_000, 15_001):
            grid = values(kind, (series, steps))
            times_ms = START_MS + np.arange(steps, dtype=np.int64) * step_ms
            result = QueryResult(MatrixResult(table, times_ms, grid, np.ones_like(grid, np.bool_)))
            cpu_ms, size = best(lambda result=result: query_answer(result))  # type: ignore[misc]
            times = "whole seconds" if step_ms % 1000 == 0 else "milliseconds"
            yield Figure(f"matrix 1000 x 1000, {kind}, {times}", cpu_ms, size / 1e6, series * steps)
    for count in (1, 1000, 100_000):
        grid = values("gauges of 2 decimals", (count, 1))
        vector = QueryResult(VectorResult(labels(count), np.array([START_MS]), grid, np.ones_like(grid, np.bool_)))
        cpu_ms, size = best(lambda vector=vector: query_answer(vector))  # type: ignore[misc]
        yield Figure(f"vector of {count}", cpu_ms, size / 1e6, count)


def main() -> None:
    """Print the table."""
    for figure in measure():
        print(figure, flush=True)


if __name__ == "__main__":
    main()
