"""What we said of endpoints in Central Dogma, and what others had said before: kept in the block store.

Every instance that may actuate reads it, so that one that takes over can give back what another one changed. Written
before the server is told, as a new object each time; the newest counts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from health.adapters.dogma_plan import Held, Key, Mark
from tsdb.blockstore import BlockStore

log = logging.getLogger(__name__)

PREFIX = "health/centraldogma/"
VERSION = 1

Content = Mapping[str, list[dict[str, Any]]]
Rows = dict[str, dict[Key, Held]]
"""cluster -> endpoint -> what we said."""


class Ledger:
    """Only the holder of the actuator lease writes it.

    Attributes
    ----------
    rows : of endpoints of which we say something, or did
    """

    def __init__(self, store: BlockStore) -> None:
        self._store = store
        self._written: Content | None = None
        self.rows: Rows = {}

    def load(self) -> None:
        """Take over what was written last, by whomever.

        Raises
        ------
        OSError
        """
        keys = self._store.list(PREFIX)
        self.rows = {}
        self._written = None
        if not keys:
            return
        try:
            data = json.loads(bytes(self._store.open(keys[-1])))
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']}")  # noqa: TRY301
            self.rows = {cluster: dict(_held(row) for row in rows) for cluster, rows in data["clusters"].items()}
        except (ValueError, KeyError, TypeError) as error:
            log.warning("what was said in Central Dogma is not known any more: %s", error)

    def content(self) -> Content | None:
        """What is to be written down; None when that is written already."""
        clusters = {
            cluster: [_row(key, held) for key, held in rows.items() if {held.ours, held.before} != {held.owner}]
            for cluster, rows in self.rows.items()
        }
        clusters = {cluster: rows for cluster, rows in clusters.items() if rows}
        return None if clusters == self._written else clusters

    def save(self, content: Content) -> None:
        """Write :meth:`content` down; from any thread, but one at a time.

        Raises
        ------
        OSError, AlreadyExistsError        then nothing may be said
        """
        keys = self._store.list(PREFIX)
        number = int(keys[-1].removeprefix(PREFIX)) + 1 if keys else 1
        body = json.dumps({"version": VERSION, "clusters": content}).encode()
        self._store.create(f"{PREFIX}{number:020d}", [body])
        self._written = content
        for key in keys:
            self._store.delete(key)


def _row(key: Key, held: Held) -> dict[str, Any]:
    return {
        "key": [key.priority, key.region, key.zone, key.sub_zone, key.address],
        "owner": [held.owner.status, held.owner.weight],
        "ours": [held.ours.status, held.ours.weight],
        "before": [held.before.status, held.before.weight],
    }


def _held(row: Mapping[str, Any]) -> tuple[Key, Held]:
    return Key(*row["key"]), Held(Mark(*row["owner"]), Mark(*row["ours"]), Mark(*row["before"]))
