"""Exemplars on their way into the ring, whoever sends them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tsdb.errors import Reason
from tsdb.exemplars import LABEL_CHARS_MAX, ExemplarRing, ExemplarStatus
from tsdb.index.registry import SeriesRegistry
from tsdb.labels import SEPARATOR
from tsdb.tally import Tally


class Exemplar(NamedTuple):
    """One exemplar as it was sent."""

    ref: int  # series
    ts_ms: int
    bits: int  # float64 bit pattern of the value
    labels: Sequence[tuple[bytes, bytes]]


class Kept(NamedTuple):
    """What became of the exemplars of one request."""

    written: int  # kept, or there already
    out_of_order: list[int]  # series of those that were refused for it


def canonical_labels(pairs: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """Labels of an exemplar as the ring keeps them, sorted; None when they are too long or not UTF-8."""
    try:
        characters = sum(len(name.decode()) + len(value.decode()) for name, value in pairs)
    except UnicodeDecodeError:
        return None
    if characters > LABEL_CHARS_MAX:
        return None
    return b"".join(name + SEPARATOR + value + SEPARATOR for name, value in sorted(pairs))


def keep_exemplars(ring: ExemplarRing, registry: SeriesRegistry, rows: Sequence[Exemplar], tally: Tally) -> Kept:
    """Put exemplars of series of a registry into the ring and count what it refuses."""
    refs, ts_ms, bits, labels = [], [], [], []
    for row in rows:
        text = canonical_labels(row.labels)
        if text is None:
            tally.add(Reason.EXEMPLAR_TOO_LONG)
            continue
        refs.append(row.ref)
        ts_ms.append(row.ts_ms)
        bits.append(row.bits)
        labels.append(text)
    if not refs:
        return Kept(0, [])
    status = ring.append(
        np.array(refs, np.uint32), np.array(ts_ms, np.int64), np.array(bits, np.uint64), labels, registry
    )
    late = np.flatnonzero(status == ExemplarStatus.OUT_OF_ORDER)
    if len(late):
        tally.add(Reason.EXEMPLAR_OUT_OF_ORDER, len(late))
    return Kept(len(refs) - len(late), [refs[i] for i in late])
