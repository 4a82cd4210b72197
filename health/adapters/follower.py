"""Beside the proxies: an EDS file by the published verdicts of one service, as long as one may rely on them.

Our own adapters end with our process, and Envoy keeps what it had last. This one is a process of its own: when the
server is killed or cut off, ``valid_until`` passes and it shows every endpoint as its owner lists it (fail open).
"""

from __future__ import annotations

import json
import logging
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import orjson

from health.adapters.eds import assignment_of
from health.adapters.file_eds import replace_file
from health.board import EndpointView
from health.topology import Fact
from health.verdicts import State

log = logging.getLogger(__name__)

WAIT_S = 20
"""How long a poll is held at most; shorter than half of the default lease, so that one may fail."""
_RETRY_S = 1.0
_SPARE_S = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a poll brought.

    Attributes
    ----------
    rows : endpoints as the API shows them; None = nothing newer
    left_s : how long one may still rely on them
    """

    revision: str
    rows: list[dict[str, Any]] | None
    left_s: float


class Poller:
    """Long-polls the snapshot of one service.

    Parameters
    ----------
    url : where the server listens
    token : with the role read; "" = none is asked for
    """

    def __init__(self, url: str, service: str, token: str = "") -> None:
        query = urllib.parse.urlencode({"service": service})
        self._url = f"{url.rstrip('/')}/api/v1/health/endpoints?{query}"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def ask(self, revision: str, wait_s: int) -> Answer:
        """Wait for something newer than ``revision`` ("" = whatever is there).

        Raises
        ------
        OSError, ValueError, KeyError        it does not answer, or not as it should
        """
        headers = dict(self._headers)
        if revision:
            headers |= {"If-None-Match": f'"{revision}"', "Prefer": f"wait={wait_s}"}
        request = urllib.request.Request(self._url, headers=headers)  # noqa: S310  # the user's own URL
        try:
            with urllib.request.urlopen(request, timeout=wait_s + _SPARE_S) as reply:  # noqa: S310
                data = json.load(reply)["data"]
                return Answer(data["revision"], data["endpoints"], _left_s(reply.headers))
        except urllib.error.HTTPError as error:
            if error.code != 304:
                raise
            return Answer(revision, None, _left_s(error.headers))


def _left_s(headers: Any) -> float:
    """Seconds until ``valid_until`` by the server's own clock, which is told to the second."""
    until = datetime.fromisoformat(headers["Mesh-Health-Valid-Until"])
    return (until - parsedate_to_datetime(headers["Date"])).total_seconds() - 1.0


class Follower:
    """Keeps one file.

    Parameters
    ----------
    cluster : its name in Envoy
    facts : its endpoints, as the owner lists them
    path : of the file; Envoy watches its folder

    Attributes
    ----------
    applied : verdicts are in the file; False = every endpoint as its owner lists it
    """

    def __init__(self, cluster: str, facts: Mapping[str, Fact], path: Path, poller: Poller) -> None:
        self._cluster = cluster
        self._facts = facts
        self._path = path
        self._poller = poller
        self._revision = ""
        self._until_s = 0.0
        self._written = b""
        self.applied = False

    def step(self) -> None:
        """Poll once, and write what follows; returns early enough to let go when the lease ends.

        Raises
        ------
        OSError        the file cannot be written
        """
        left_s = self._until_s - time.monotonic()
        try:
            answer = self._poller.ask(self._revision, max(1, min(WAIT_S, int(left_s / 2))))
        except (OSError, ValueError, KeyError) as error:
            log.warning("the server does not answer: %s", error)
            if time.monotonic() >= self._until_s:
                self.let_go()
            time.sleep(_RETRY_S)
            return
        self._until_s = time.monotonic() + answer.left_s
        if answer.left_s <= 0:
            self.let_go()
            time.sleep(_RETRY_S)
            return
        self._revision = answer.revision
        if answer.rows is not None:
            self._apply(answer.rows)

    def let_go(self) -> None:
        """Show every endpoint as its owner lists it.

        Raises
        ------
        OSError
        """
        self._revision = ""  # what comes next is applied, whatever its revision
        self.applied = False
        self._write({})

    def _apply(self, rows: list[dict[str, Any]]) -> None:
        views = {row["endpoint"]: _view(row) for row in rows if row["mode"] == "enforce"}
        self.applied = bool(views)
        self._write(views)

    def _write(self, views: Mapping[str, EndpointView]) -> None:
        content = orjson.dumps([assignment_of(self._cluster, self._facts, views)])
        if content == self._written:
            return
        body = orjson.dumps({"version_info": str(time.time_ns()), "resources": orjson.Fragment(content)})
        replace_file(self._path, body)
        self._written = content


def _view(row: Mapping[str, Any]) -> EndpointView:
    return EndpointView(
        row["endpoint"],
        State(row["state"]),
        row["verdict"],
        row["xds"]["health_status"],
        float(row["weight_factor"]),
        since_ms=0,
    )
