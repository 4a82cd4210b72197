"""Exemplars from the store's rings to the query API."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from query.exemplars import SeriesExemplars
from tsdb.db import TSDB
from tsdb.labels import Labels
from tsdb.matchers import Matcher


class ExemplarReader:
    """Finds exemplars by selectors.

    Parameters
    ----------
    db : the store
    """

    def __init__(self, db: TSDB) -> None:
        self._db = db

    def __call__(
        self, tenant_name: str, selectors: Sequence[Sequence[Matcher]], mint_ms: int, maxt_ms: int
    ) -> Iterator[SeriesExemplars]:
        """Exemplars of the series that any selector selects, in a time range with both ends included."""
        tenant = self._db.find(tenant_name)
        if tenant is None or not len(tenant.exemplars):
            return
        rows = None
        while rows is None:  # once more when the tenant has renumbered its series meanwhile
            registry = tenant.exemplars.registry
            wanted: NDArray[np.uint32] = np.unique(np.concatenate([registry.find(matchers) for matchers in selectors]))
            rows = tenant.exemplars.select(wanted, mint_ms, maxt_ms, registry)
        refs, starts = np.unique(rows.refs, return_index=True)
        data, offsets = registry.canonical(refs)
        values = rows.bits.view(np.float64).tolist()
        times = rows.ts_ms.tolist()
        ends = [*starts[1:].tolist(), len(times)]
        for i, (first, last) in enumerate(zip(starts.tolist(), ends, strict=True)):
            labels = Labels.parse(data[offsets[i] : offsets[i + 1]].tobytes()).to_dict()
            shown = [(Labels.parse(rows.labels[k]).to_dict(), values[k], times[k]) for k in range(first, last)]
            yield SeriesExemplars(labels, shown)
