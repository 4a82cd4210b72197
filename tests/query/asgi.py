"""Talk to an ASGI application without a network, byte for byte."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class Reply:
    """What came back; ``headers`` have lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes
    pieces: int

    @property
    def text(self) -> str:
        """The body, decompressed."""
        body = gzip.decompress(self.body) if self.headers.get("content-encoding") == "gzip" else self.body
        return body.decode()

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.text)

    @property
    def data(self) -> Any:
        """``data`` of a successful answer."""
        parsed = self.json()
        assert parsed["status"] == "success", parsed
        return parsed["data"]


async def call(
    app: Any,
    method: str,
    target: str,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    root_path: str = "",
    client: tuple[str, int] | None = None,
) -> Reply:
    """Send one request and collect the reply."""
    path, _, query_string = target.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "path": unquote(path),
        "raw_path": path.encode(),
        "root_path": root_path,
        "client": client,
        "query_string": query_string.encode(),
        "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
    }
    incoming = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if incoming:
            return incoming.pop()
        await asyncio.sleep(3600)  # the client stays
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start, *pieces = sent
    assert start["type"] == "http.response.start"
    assert [bool(piece.get("more_body")) for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    got = {name.decode(): value.decode() for name, value in start["headers"]}
    whole = b"".join(piece["body"] for piece in pieces)
    if "content-length" in got and method != "HEAD":
        assert int(got["content-length"]) == len(whole)
    return Reply(start["status"], got, whole, len(pieces))


def ask(
    app: Any, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes | str = b"", **more: Any
) -> Reply:
    """:func:`call` from ordinary code."""
    data = body.encode() if isinstance(body, str) else body
    return asyncio.run(call(app, method, target, headers, data, **more))


def get(app: Any, target: str, **headers: str) -> Reply:
    """GET; header names with ``_`` for ``-``."""
    return ask(app, "GET", target, {k.replace("_", "-"): v for k, v in headers.items()})


def post_form(app: Any, target: str, form: str, **headers: str) -> Reply:
    """POST a form."""
    return ask(
        app, "POST", target, {"content-type": FORM, **{k.replace("_", "-"): v for k, v in headers.items()}}, form
    )
