"""``/api/v1/admin/tsdb/``: what changes or copies the store as a whole, behind ``server.admin_api``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import orjson
import structlog

from meshpulse.asgi import App, Receive, Scope, Send, answer
from query.params import Params
from tsdb.db import TSDB
from tsdb.errors import UnavailableError
from tsdb.snapshot import take_snapshot

log = structlog.get_logger(__name__)

SNAPSHOT = "/api/v1/admin/tsdb/snapshot"
_JSON = b"application/json"
_TRUE = frozenset({"1", "t", "true", "yes"})


class AdminApi:
    """Snapshots of the store.

    Parameters
    ----------
    enabled : ``server.admin_api``; without it every request is refused as Prometheus refuses it
    """

    def __init__(self, db: TSDB, *, enabled: bool) -> None:
        self._db = db
        self._enabled = enabled
        self._busy = threading.Lock()

    def routes(self) -> Mapping[str, App]:
        """Path -> application."""
        return {SNAPSHOT: self.snapshot}

    async def snapshot(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``POST|PUT``: link the blocks and copy the log; ``skip_head=true`` leaves the log out."""
        if scope["method"] not in ("POST", "PUT"):
            await answer(send, 405, b"Method Not Allowed\n", headers=((b"allow", b"POST, PUT"),))
            return
        if not self._enabled:
            await self._refuse(send, 500, "admin APIs disabled")
            return
        headers = dict(scope["headers"])
        body = await _read(receive)
        params = Params.read(scope["query_string"], headers.get(b"content-type", b"").decode("latin-1"), body)
        skip_head = params.get("skip_head").lower() in _TRUE
        if not self._busy.acquire(blocking=False):
            await self._refuse(send, 503, "a snapshot is being taken")
            return
        try:
            taken = await asyncio.to_thread(take_snapshot, self._db, with_head=not skip_head)
        except (OSError, UnavailableError) as error:
            log.warning("snapshot failed", reason=str(error))
            await self._refuse(send, 500, f"create snapshot: {error}")
            return
        finally:
            self._busy.release()
        log.info("snapshot", name=taken.name, linked_bytes=taken.linked_bytes, copied_bytes=taken.copied_bytes)
        await _json(send, 200, {"status": "success", "data": {"name": taken.name}})

    @staticmethod
    async def _refuse(send: Send, status: int, text: str) -> None:
        await _json(send, status, {"status": "error", "errorType": "unavailable", "error": text})


async def _json(send: Send, status: int, data: Any) -> None:
    await answer(send, status, orjson.dumps(data), _JSON)


async def _read(receive: Receive, bytes_max: int = 1 << 16) -> bytes:
    """A small body; what is larger is not kept."""
    body = b""
    while True:
        message = await receive()
        if len(body) < bytes_max:
            body += message.get("body", b"")
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return body
