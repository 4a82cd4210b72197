"""Central Dogma's xDS project over HTTP: reading, watching and changing assignments.

Routes and behaviour are those of line/centraldogma 0.86; before it the same operations take and give JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import yaml

from health.adapters.dogma_plan import Target

PROJECT = "@xds"
READ_S = 20.0
WATCH_S = 60
"""Of a watch; the server answers 304 then."""
CHANGE_S = 40.0
"""Of a change: the server holds the answer for its batch of 3 s and the commit, which goes through ZooKeeper."""


_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # one of two classes
    """YAML as the server reads it: a zone ``no`` or ``1:30`` is a text, and must be sent back as one."""


_Loader.yaml_implicit_resolvers = {}
for _kind, _form, _first in (
    ("bool", r"true|false", "tf"),
    ("int", r"-?(0|[1-9][0-9]*)", "-0123456789"),
    ("float", r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?", "-0123456789"),
    ("null", r"null|~|", "n~"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_form})\Z"), [*_first, *([""] * (_kind == "null"))]
    )


class DogmaError(Exception):
    """The server refused something.

    Attributes
    ----------
    status : of the answer
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text[:300]}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach the server.

    Attributes
    ----------
    token_file : read again for each request, so that a token can be renewed
    """

    url: str
    token: str = ""
    token_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def headers(self) -> dict[str, str]:
        """What tells the server who we are.

        Raises
        ------
        OSError
        """
        token = self.token_file.read_text(encoding="utf-8").strip() if self.token_file else self.token
        return {"Authorization": f"Bearer {token}"} if token else {}

    def context(self) -> ssl.SSLContext | None:
        """TLS as wanted; None = no TLS.

        Raises
        ------
        OSError
        """
        if not self.url.startswith("https://"):
            return None
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context


@dataclass(frozen=True, slots=True)
class File:
    """An assignment as it is stored.

    Attributes
    ----------
    revision : of the repository
    """

    path: str
    revision: int
    assignment: Mapping[str, Any]


class DogmaClient:
    """Talks to one server; on the event loop.

    Attributes
    ----------
    requests : status -> answers so far; 0 = none came
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._url = access.url.rstrip("/") + "/api/v1"
        self._session: aiohttp.ClientSession | None = None
        self._yaml: bool | None = None
        self.requests: dict[int, int] = {}

    async def close(self) -> None:
        """End open connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def read(self, target: Target) -> File:
        """The newest state of a file.

        Raises
        ------
        DogmaError        404: there is none
        ValueError        it is no assignment
        OSError, TimeoutError, aiohttp.ClientError
        """
        extensions = (".yaml", ".json") if await self._speaks_yaml(target.group) else (".json",)
        for extension in extensions:
            try:
                _, data = await self._call("GET", _contents(target, extension), READ_S)
            except DogmaError as error:
                if error.status != 404 or extension == extensions[-1]:
                    raise
                continue
            if extensions == (".json",):
                self._yaml = False
            # a file of thousands of endpoints takes its time
            return File(target.file + extension, int(data["revision"]), await asyncio.to_thread(_assignment, data))
        raise AssertionError("the last extension raises")

    async def watch(self, file: File, target: Target, wait_s: int = WATCH_S) -> bool:
        """Wait until the file changes; False when it did not in time.

        Raises
        ------
        DogmaError, OSError, TimeoutError, aiohttp.ClientError
        """
        headers = {"If-None-Match": f'"{file.revision}"', "Prefer": f"wait={wait_s}"}
        path = _contents(target, Path(file.path).suffix)
        status, _ = await self._call("GET", path, wait_s + READ_S, headers=headers)
        return status != 304

    async def register(self, target: Target, body: Mapping[str, Any]) -> None:
        """Say something of one endpoint; answered when it is committed.

        Raises
        ------
        DogmaError        409: somebody said something newer of it
        OSError, TimeoutError, aiohttp.ClientError
        """
        path = f"/xds/groups/{quote(target.group)}/endpoints/{quote(target.id)}:registerLocalityLbEndpoint"
        await self._call("PATCH", path, CHANGE_S, body=body, as_yaml=await self._speaks_yaml(target.group))

    async def replace(self, target: Target, assignment: Mapping[str, Any], summary: str) -> None:
        """Replace the whole assignment, in a commit of its own with our summary.

        Raises
        ------
        DogmaError, OSError, TimeoutError, aiohttp.ClientError
        """
        as_yaml = await self._speaks_yaml(target.group)
        path = f"/xds/groups/{quote(target.group)}/endpoints/{quote(target.id)}"
        if as_yaml:
            path += f"?summary={quote(summary, safe='')}"
        await self._call("PUT" if as_yaml else "PATCH", path, CHANGE_S, body=assignment, as_yaml=as_yaml)

    async def _speaks_yaml(self, group: str) -> bool:
        """Whether the server is 0.86 or later, which alone lists endpoints; asked until something is known."""
        if self._yaml is None:
            try:
                await self._call("GET", f"/xds/groups/{quote(group)}/endpoints", READ_S)
                self._yaml = True
            except DogmaError as error:
                if error.status not in (404, 405):
                    raise
                return False  # an old server or no such group: a file that can be read tells
        return self._yaml

    async def _call(
        self,
        method: str,
        path: str,
        seconds: float,
        *,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        as_yaml: bool = False,
    ) -> tuple[int, Any]:
        if self._session is None:
            context = await asyncio.to_thread(self._access.context)
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context or True, limit=0))
        sent = {**self._access.headers(), **(headers or {})}
        data = None
        if body is not None:
            sent["Content-Type"] = "application/yaml" if as_yaml else "application/json; charset=utf-8"
            data = await asyncio.to_thread(_written, body, as_yaml=as_yaml)
        timeout = aiohttp.ClientTimeout(total=seconds)
        status = 0
        try:
            async with self._session.request(
                method, self._url + path, headers=sent, data=data, timeout=timeout
            ) as reply:
                status = reply.status
                text = await reply.text("utf-8", "replace")
        finally:
            self.requests[status] = self.requests.get(status, 0) + 1
        if status == 304:
            return status, None
        if status >= 300:
            raise DogmaError(status, text)
        if method != "GET":
            return status, None
        return status, json.loads(text)


def _contents(target: Target, extension: str) -> str:
    return f"/projects/{PROJECT}/repos/{quote(target.group)}/contents{quote(target.file + extension)}"


def _written(body: Mapping[str, Any], *, as_yaml: bool) -> bytes:
    return (yaml.dump(dict(body), Dumper=_Dumper, sort_keys=False) if as_yaml else json.dumps(body)).encode()


def _assignment(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The content of a file: YAML as text, JSON as it is.

    Raises
    ------
    ValueError
    """
    content = data.get("content")
    if isinstance(content, str):
        try:
            content = yaml.load(content, Loader=_Loader)  # noqa: S506  # a safe one
        except yaml.YAMLError as error:
            raise ValueError(f"no YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError("no ClusterLoadAssignment")  # noqa: TRY004  # one kind of error for the caller
    return content
