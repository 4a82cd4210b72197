"""Pairs of senders: who a request comes from, and its series without the label that tells the two apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingest.wire import read_varint
from tsdb.errors import Reason, RejectedError
from tsdb.replicas import ReplicaSource


class ReplicaLabels(NamedTuple):
    """Names of the labels of a pair, as bytes.

    Attributes
    ----------
    cluster : what both replicas have in common
    replica : which of them it is; dropped from series that have both labels
    """

    cluster: bytes
    replica: bytes

    def source(self, labels: Iterable[tuple[bytes, bytes]], received_ms: int) -> ReplicaSource | None:
        """Who sends these labels; None when it is no replica of a pair."""
        known = dict(labels)
        cluster, replica = known.get(self.cluster), known.get(self.replica)
        if not cluster or not replica:
            return None
        return ReplicaSource(cluster.decode("utf-8", "replace"), replica.decode("utf-8", "replace"), received_ms)


class LabelSpans(NamedTuple):
    """Where the labels of some series lie in a body.

    Attributes
    ----------
    offsets : (n + 1,) int64        labels of series i are ``[offsets[i], offsets[i + 1])``
    name_begin, name_end, value_begin, value_end : (labels,) int64
    """

    offsets: NDArray[np.int64]
    name_begin: NDArray[np.int64]
    name_end: NDArray[np.int64]
    value_begin: NDArray[np.int64]
    value_end: NDArray[np.int64]

    def without_replica(self, raw: NDArray[np.uint8], labels: ReplicaLabels) -> LabelSpans:
        """The same series without the replica label, where they have the cluster label too."""
        is_replica = self.named(raw, labels.replica)
        if not is_replica.any():
            return self
        series = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        paired = np.zeros(len(self.offsets) - 1, np.bool_)
        paired[series[self.named(raw, labels.cluster)]] = True
        keep = ~(is_replica & paired[series])
        kept = np.zeros(len(self.offsets), np.int64)
        np.cumsum(np.bincount(series[keep], minlength=len(self.offsets) - 1), out=kept[1:])
        spans = (self.name_begin, self.name_end, self.value_begin, self.value_end)
        return LabelSpans(kept, *(span[keep] for span in spans))

    def named(self, raw: NDArray[np.uint8], name: bytes) -> NDArray[np.bool_]:
        """Which labels have this name."""
        found: NDArray[np.bool_] = self.name_end - self.name_begin == len(name)
        places = np.flatnonzero(found)
        wanted = np.frombuffer(name, np.uint8)
        texts = raw[self.name_begin[places][:, None] + np.arange(len(name))]
        found[places] = (texts == wanted).all(axis=1)
        return found


def first_message(raw: NDArray[np.uint8], size: int, number: int) -> bytes:
    """The first length-delimited field ``number`` of a sound body; empty when there is none."""
    pos = 0
    while pos < size:
        try:
            tag, used = read_varint(raw[pos : pos + 10].tobytes(), 0)
            pos += used
            wire = tag & 7
            if wire in (0, 2):
                value, used = read_varint(raw[pos : pos + 10].tobytes(), 0)
                pos += used
        except ValueError as error:
            raise RejectedError(Reason.MALFORMED, f"malformed protobuf: {error}") from None
        if wire == 2:
            if tag >> 3 == number:
                return bytes(raw[pos : pos + value].tobytes())
            pos += value
        elif wire in (1, 5):
            pos += 8 if wire == 1 else 4
        elif wire != 0:
            return b""  # a group: nobody's habit
    return b""
