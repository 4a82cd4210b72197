"""What a tenant's series are made of: the figures of ``/api/v1/status/tsdb``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsdb.index.registry import SeriesRegistry
from tsdb.labels import METRIC_NAME


@dataclass(frozen=True, slots=True)
class Cardinality:
    """Counts of one tenant; every list holds the largest n, largest first.

    Attributes
    ----------
    series, label_pairs, label_names : how many there are
    series_by_metric : (metric name, series)
    values_by_label : (label name, distinct values)
    bytes_by_label : (label name, bytes of its distinct values)
    series_by_pair : ("name=value", series)
    """

    series: int
    label_pairs: int
    label_names: int
    series_by_metric: list[tuple[str, int]]
    values_by_label: list[tuple[str, int]]
    bytes_by_label: list[tuple[str, int]]
    series_by_pair: list[tuple[str, int]]


def cardinality(registry: SeriesRegistry, top: int = 10) -> Cardinality:
    """Count a registry (one pass over its rows).

    Parameters
    ----------
    top : length of each list
    """
    rows = registry.snapshot()
    texts = registry.symbols.texts
    pair_names, pair_values = rows.pair_names[: rows.pairs], rows.pair_values[: rows.pairs]
    series_of_pair = registry.pair_counts(rows)
    values_of_name = np.bincount(pair_names, minlength=rows.names)
    bytes_of_name = np.zeros(rows.names, np.int64)
    np.add.at(bytes_of_name, pair_names, registry.symbols.lengths(pair_values))

    def names(numbers: NDArray[np.int64]) -> list[str]:
        return texts(rows.name_symbols[numbers].astype(np.int32))

    def values(pairs: NDArray[np.int64]) -> list[str]:
        return texts(pair_values[pairs].astype(np.int32))

    number = registry.name_number(METRIC_NAME)
    metrics = registry.pairs_of_name(number, rows) if number >= 0 else np.zeros(0, np.uint32)
    largest_metrics = metrics[_largest(series_of_pair[metrics], top)].astype(np.int64)
    by_values, by_bytes, by_series = (_largest(c, top) for c in (values_of_name, bytes_of_name, series_of_pair))
    pair_texts = [
        f"{n}={v}" for n, v in zip(names(pair_names[by_series].astype(np.int64)), values(by_series), strict=True)
    ]
    return Cardinality(
        rows.series,
        rows.pairs,
        rows.names,
        _counted(values(largest_metrics), series_of_pair[largest_metrics]),
        _counted(names(by_values), values_of_name[by_values]),
        _counted(names(by_bytes), bytes_of_name[by_bytes]),
        _counted(pair_texts, series_of_pair[by_series]),
    )


def _largest(counts: NDArray[Any], top: int) -> NDArray[np.int64]:
    """Places of the largest counts, largest first."""
    places = np.argpartition(counts, len(counts) - top)[-top:] if 0 < top < len(counts) else np.arange(len(counts))
    return places[np.argsort(-counts[places].astype(np.int64), kind="stable")][:top]


def _counted(texts: list[str], counts: NDArray[Any]) -> list[tuple[str, int]]:
    return list(zip(texts, counts.tolist(), strict=True))
