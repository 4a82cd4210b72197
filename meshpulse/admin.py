"""``/api/v1/admin/tsdb/``: what changes or copies the store as a whole, behind ``server.admin_api``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import orjson
import structlog

from meshpulse.asgi import App, Receive, Scope, Send, answer
from query.endpoints import match_params
from query.errors import BadDataError, QueryError
from query.params import Params, time_param
from tsdb.db import DEFAULT_TENANT, TSDB
from tsdb.errors import CorruptionError, RejectedError, UnavailableError
from tsdb.shard import MAX_MS, MIN_MS
from tsdb.snapshot import take_snapshot
from tsdb.wal.records import Deletion

log = structlog.get_logger(__name__)

SNAPSHOT = "/api/v1/admin/tsdb/snapshot"
DELETE = "/api/v1/admin/tsdb/delete_series"
CLEAN = "/api/v1/admin/tsdb/clean_tombstones"
_JSON = b"application/json"
_TRUE = frozenset({"1", "t", "true", "yes"})


class AdminApi:
    """Snapshots of the store, and deleting from it.

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
        return {SNAPSHOT: self.snapshot, DELETE: self.delete_series, CLEAN: self.clean_tombstones}

    async def snapshot(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``POST|PUT``: link the blocks and copy the log; ``skip_head=true`` leaves the log out."""
        params = await self._params(scope, receive, send)
        if params is None:
            return
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

    async def delete_series(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``POST|PUT``: delete the samples of ``match[]`` from ``start`` to ``end``; 204 once it is durable."""
        params = await self._params(scope, receive, send)
        if params is None:
            return
        name = dict(scope["headers"]).get(b"x-scope-orgid", b"").decode("latin-1") or DEFAULT_TENANT
        try:
            if not any(params.all("match[]")):
                raise BadDataError("no match[] parameter provided")
            mint_ms, maxt_ms = time_param(params, "start", MIN_MS), time_param(params, "end", MAX_MS)
            deletion = Deletion(tuple(match_params(params)), mint_ms, maxt_ms)
            tenant = self._db.find(name)
            if tenant is not None:  # else there is nothing to delete
                await asyncio.to_thread(self._db.delete, tenant, deletion)
        except (QueryError, RejectedError) as error:
            await _json(send, 400, {"status": "error", "errorType": "bad_data", "error": str(error)})
            return
        except (OSError, UnavailableError) as error:
            log.warning("deletion failed", reason=str(error))
            await self._refuse(send, 500, f"delete series: {error}")
            return
        log.info("series deleted", tenant=name, match=params.all("match[]"), start_ms=mint_ms, end_ms=maxt_ms)
        await _done(send)

    async def clean_tombstones(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``POST|PUT``: write the blocks anew from which something was deleted; 204 when the disk is free again."""
        if await self._params(scope, receive, send) is None:
            return
        try:
            blocks = await asyncio.to_thread(self._db.clean)
        except (OSError, UnavailableError, CorruptionError) as error:
            log.warning("cleaning failed", reason=str(error))
            await self._refuse(send, 500, f"clean tombstones: {error}")
            return
        log.info("tombstones cleaned", blocks=blocks)
        await _done(send)

    async def _params(self, scope: Scope, receive: Receive, send: Send) -> Params | None:
        """Parameters of a request that is to be served; otherwise it is answered."""
        if scope["method"] not in ("POST", "PUT"):
            await answer(send, 405, b"Method Not Allowed\n", headers=((b"allow", b"POST, PUT"),))
            return None
        if not self._enabled:
            await self._refuse(send, 500, "admin APIs disabled")
            return None
        content_type = dict(scope["headers"]).get(b"content-type", b"").decode("latin-1")
        return Params.read(scope["query_string"], content_type, await _read(receive))

    @staticmethod
    async def _refuse(send: Send, status: int, text: str) -> None:
        await _json(send, status, {"status": "error", "errorType": "unavailable", "error": text})


async def _done(send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


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
