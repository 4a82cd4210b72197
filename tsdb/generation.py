"""The numbers of a tenant's series while they mean the same: a registry and what is indexed by its numbers."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from tsdb.arena import Arena
from tsdb.index.registry import SeriesRegistry
from tsdb.kernels.shard import NO_SLOT


class Generation:
    """A registry with the slot of each series in its shard, and the log segment that defines it.

    A tenant begins a new generation when it forgets series that have ended (docs/decisions/0009). Who reads keeps the
    one he began with; slots mean the same in all of them.
    """

    __slots__ = ("_lock", "_ready", "_slot_of", "logged_in", "registry")

    def __init__(self, registry: SeriesRegistry) -> None:
        self.registry = registry
        self._slot_of = Arena(np.uint32, registry.capacity)
        self.logged_in = Arena(np.uint32, registry.capacity)
        self._ready = 0
        self._lock = threading.Lock()

    def slot_of(self) -> NDArray[np.uint32]:
        """Slots by series, valid for all series there are now; ``NO_SLOT`` = never written to this generation."""
        count = len(self.registry)
        if count > self._ready:
            with self._lock:
                if count > self._ready:  # arena pages read as zero, which is a slot
                    self._slot_of.array[self._ready : count] = NO_SLOT
                    self._ready = count
        return self._slot_of.array
