from __future__ import annotations

import pytest

from tsdb.index.registry import SeriesRegistry
from tsdb.index.statistics import Cardinality, cardinality
from tsdb.limits import SeriesLimits


@pytest.mark.kernel
def test_cardinality_counts_series_values_and_bytes() -> None:
    registry = SeriesRegistry(SeriesLimits())
    assert cardinality(registry) == Cardinality(0, 0, 0, [], [], [], [])
    for i in range(6):
        registry.resolve({"__name__": "big" if i < 4 else "small", "pod": f"pod-{i}"})
    registry.resolve({"__name__": "big", "zone": "a-very-long-zone"})
    assert cardinality(registry, 1) == Cardinality(
        series=7,
        label_pairs=9,
        label_names=3,
        series_by_metric=[("big", 5)],
        values_by_label=[("pod", 6)],
        bytes_by_label=[("pod", 30)],
        series_by_pair=[("__name__=big", 5)],
    )
    every = cardinality(registry, 100)
    assert every.series_by_metric == [("big", 5), ("small", 2)]
    assert every.values_by_label == [("pod", 6), ("__name__", 2), ("zone", 1)]
    assert every.bytes_by_label == [("pod", 30), ("zone", 16), ("__name__", 8)]
    assert len(every.series_by_pair) == 9
