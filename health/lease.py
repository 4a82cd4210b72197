"""The actuator lease: of several meshpulse instances on one block store, one at a time changes what proxies see.

Each term and each renewal is a new object ``health/actuator/NUMBER``, created only if absent: two instances cannot both
create one, so the newest object names the holder. A holder that does not renew in time has lost it by its own clock
before another may take it by theirs, as long as their clocks differ by less than :data:`MARGIN_MS`.
"""

from __future__ import annotations

import json
import logging
import secrets

from tsdb.blockstore import AlreadyExistsError, BlockStore

log = logging.getLogger(__name__)

PREFIX = "health/actuator/"
LEASE_MS = 30_000
MARGIN_MS = 5_000
_RENEW_MS = 10_000


class ActuatorLease:
    """Asks for the lease and keeps it.

    Parameters
    ----------
    owner : name of this instance; the same after a restart, which then need not wait for its own lease to run out

    Attributes
    ----------
    term : number of the first object of the current holding, part of every version we publish; 0 = not held
    """

    def __init__(self, store: BlockStore, owner: str = "") -> None:
        self._store = store
        self._owner = owner or secrets.token_hex(8)
        self._until_ms = 0
        self._number = 0
        self.term = 0

    def held(self, now_ms: int) -> bool:
        """Whether we may actuate now."""
        return self.term > 0 and now_ms < self._until_ms

    def refresh(self, now_ms: int) -> None:
        """Take the lease when nobody has it, renew it in time. Never raises: without the store it runs out."""
        if self.held(now_ms) and self._until_ms - now_ms > LEASE_MS - _RENEW_MS:
            return
        try:
            self._refresh(now_ms)
        except AlreadyExistsError:
            self.term = 0  # another instance was quicker
        except (OSError, ValueError, KeyError) as error:
            log.warning("the actuator lease could not be renewed: %s", error)

    def _refresh(self, now_ms: int) -> None:
        keys = self._store.list(PREFIX)
        newest = keys[-1] if keys else ""
        number = int(newest.removeprefix(PREFIX)) if newest else 0
        if newest:
            holder = json.loads(bytes(self._store.open(newest)))
            if holder["owner"] != self._owner:
                self.term = 0
                if now_ms < holder["until_ms"] + MARGIN_MS:
                    return
        term = self.term or number + 1
        until_ms = now_ms + LEASE_MS
        body = {"owner": self._owner, "term": term, "until_ms": until_ms}
        self._store.create(f"{PREFIX}{number + 1:020d}", [json.dumps(body).encode()])
        self.term, self._until_ms, self._number = term, until_ms, number + 1
        for old in keys[:-1]:
            self._store.delete(old)

    def release(self, now_ms: int) -> None:
        """Give the lease back, so that another instance need not wait for it to run out."""
        if not self.held(now_ms):
            return
        self._until_ms = now_ms
        body = {"owner": self._owner, "term": self.term, "until_ms": now_ms - MARGIN_MS}
        try:
            self._store.create(f"{PREFIX}{self._number + 1:020d}", [json.dumps(body).encode()])
        except (AlreadyExistsError, OSError) as error:
            log.warning("the actuator lease could not be given back: %s", error)
        self.term = 0
