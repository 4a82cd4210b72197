"""The unit of all writing: samples as parallel arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from tsdb.errors import Reason
from tsdb.index.registry import SeriesRegistry

STALE_BITS = 0x7FF0000000000002
"""Bits of Prometheus' stale marker, a signalling NaN: never touch it with float arithmetic."""


class SampleStatus(IntEnum):
    """What became of one sample; the codes the append kernel writes."""

    ACCEPTED = 0
    REPEATED = 1  # same series, time and bits as a stored sample: accepted, nothing to store
    DUPLICATE = 2  # same series and time, other bits: refused, the first stays
    TOO_OLD = 3  # below the out-of-order window
    BELOW_CUT = 4  # late and below the cut range: the caller must look into the blocks, then append again


STATUS_REASON: Mapping[int, Reason] = {
    SampleStatus.DUPLICATE: Reason.DUPLICATE,
    SampleStatus.TOO_OLD: Reason.TOO_OLD,
}


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """Samples of one tenant, in the order they are to be decided.

    Attributes
    ----------
    refs : (n,) uint32       series, as ``registry`` numbers them
    ts_ms : (n,) int64       milliseconds since the epoch
    bits : (n,) uint64       float64 bit patterns (uint64 so that no arithmetic can change a NaN)
    registry : SeriesRegistry        of the tenant; it may have given way to another one since
    """

    refs: NDArray[np.uint32]
    ts_ms: NDArray[np.int64]
    bits: NDArray[np.uint64]
    registry: SeriesRegistry

    def __len__(self) -> int:
        return len(self.refs)


@dataclass(frozen=True, slots=True)
class AppendResult:
    """Outcome of one batch.

    Attributes
    ----------
    accepted : int                  samples stored or already there with the same bits
    rejected : reason -> count
    status : (n,) uint8             one :class:`SampleStatus` a sample, in batch order
    duplicate : bool                the whole batch came from the replica that is not listened to: nothing was stored
    """

    accepted: int
    rejected: Mapping[Reason, int] = field(default_factory=dict)
    status: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    duplicate: bool = False
