"""What a query answers: arrays with their labels, ready for the JSON writer."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from query.promql.ast import ValueType
from tsdb.frame import LabelTable, SeriesFrame


@dataclass(frozen=True, slots=True)
class VectorResult:
    """Instant vector: one point a series. The order of the rows means something (``sort``, ``topk``).

    Attributes
    ----------
    labels : LabelTable              n rows; metric names that must go are gone
    times_ms : (1,) int64            the evaluation time
    values : (n, 1) float64          C order; NaN here is a value
    present : (n, 1) bool            all true: series without a point are left out
    """

    labels: LabelTable
    times_ms: NDArray[np.int64]
    values: NDArray[np.float64]
    present: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class MatrixResult:
    """Answer of a range query: rows sorted by labels, each with at least one point.

    Attributes
    ----------
    labels : LabelTable              n rows
    times_ms : (steps,) int64        evaluation times
    values : (n, steps) float64      C order; undefined where absent, NaN elsewhere is a value
    present : (n, steps) bool        which points exist
    """

    labels: LabelTable
    times_ms: NDArray[np.int64]
    values: NDArray[np.float64]
    present: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class RawMatrix:
    """Answer of an instant query of a range vector: raw samples (stale markers removed), rows sorted by labels."""

    frame: SeriesFrame


@dataclass(frozen=True, slots=True)
class ScalarResult:
    """Answer of an instant query of a scalar expression."""

    time_ms: int
    value: float


@dataclass(frozen=True, slots=True)
class StringResult:
    """Answer of an instant query of a string literal."""

    time_ms: int
    value: str


ResultValue = VectorResult | MatrixResult | RawMatrix | ScalarResult | StringResult


@dataclass(slots=True)
class QueryStats:
    """What a query cost.

    Attributes
    ----------
    samples : raw samples read from the store
    samples_total : samples that all steps together looked at (``totalQueryableSamples``)
    peak_samples : largest number of samples and points held at once (``peakSamples``)
    series : series read from the store
    samples_per_step : (times, counts), (steps,) int64 each        ``samples_total`` by step; None unless asked for
    seconds : wall seconds by phase: ``queue``, ``prepare`` (parse and plan), ``select``, ``eval``, ``sort``, ``total``
    """

    samples: int = 0
    samples_total: int = 0
    peak_samples: int = 0
    series: int = 0
    samples_per_step: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueryResult:
    """An answer with what the reader must be told about it.

    Attributes
    ----------
    value : one of the result classes; a range query always answers a :class:`MatrixResult`
    warnings, infos : complete texts (``PromQL warning: ... (1:5)``), each once, in order of appearance
    stats : QueryStats
    """

    value: ResultValue
    warnings: tuple[str, ...] = ()
    infos: tuple[str, ...] = ()
    stats: QueryStats = field(default_factory=QueryStats)

    @property
    def result_type(self) -> ValueType:
        """``resultType`` of the HTTP API."""
        match self.value:
            case VectorResult():
                return ValueType.VECTOR
            case MatrixResult() | RawMatrix():
                return ValueType.MATRIX
            case ScalarResult():
                return ValueType.SCALAR
            case StringResult():
                return ValueType.STRING
