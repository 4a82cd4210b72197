"""Where targets come from beside the configuration: files and HTTP servers; each says when its groups have changed."""

from __future__ import annotations

import asyncio
import glob
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import aiohttp
import yaml
from yarl import URL

from ingest.scraping.groups import DiscoveryError, FileSdConfig, HttpSdConfig, TargetGroup, parse_groups
from ingest.scraping.http_client import HttpClient, HttpClientError

log = logging.getLogger(__name__)

FILE_CHECK_S = 1.0
"""Between two looks at the files: a look is a glob and a stat each, and also sees what inotify does not, as on NFS."""

FILE_BYTES_MAX = 64 << 20
"""Of one list of targets, from a file or a server: some hundred thousand targets."""

_JSON_TYPE = re.compile(r'application/json(;\s*charset=("utf-8"|utf-8))?', re.IGNORECASE)


OnGroups = Callable[[Sequence[TargetGroup] | None], None]
"""Told the groups of one source at first and whenever they have changed; None = they cannot be read at the moment."""


class Source(Protocol):
    """Something that finds targets; :meth:`run` until it is cancelled."""

    async def run(self, on_groups: OnGroups) -> None:
        """Tell about the groups now and whenever they change."""


class FileSource:
    """Groups in JSON and YAML files; a file that cannot be read keeps what it had, one that is gone has none."""

    def __init__(self, config: FileSdConfig) -> None:
        self._config = config
        self._groups: dict[str, list[TargetGroup]] = {}
        self._stamps: dict[str, tuple[int, int, int]] = {}

    async def run(self, on_groups: OnGroups) -> None:
        """Look at the files for ever."""
        loop = asyncio.get_running_loop()
        anew = loop.time() + self._config.refresh_interval
        first = True
        while True:
            if loop.time() >= anew:
                self._stamps.clear()
                anew = loop.time() + self._config.refresh_interval
            if await asyncio.to_thread(self.look) or first:
                on_groups(self.groups())
            first = False
            await asyncio.sleep(min(FILE_CHECK_S, self._config.refresh_interval))

    def groups(self) -> list[TargetGroup]:
        """All groups, file by file."""
        return [group for _, groups in sorted(self._groups.items()) for group in groups]

    def look(self) -> bool:
        """Read the files that have changed; whether any group has."""
        before = dict(self._groups)
        paths = {path for pattern in self._config.files for path in glob.glob(pattern, include_hidden=True)}
        for path in sorted(paths):
            try:
                stat = os.stat(path)
                stamp = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
                if self._stamps.get(path) == stamp:
                    continue
                self._stamps[path] = stamp
                self._groups[path] = _read(path)
            except (OSError, DiscoveryError) as error:
                log.warning("targets of %s cannot be read, those from before stay: %s", path, error)
        for path in self._groups.keys() - paths:
            del self._groups[path]
            self._stamps.pop(path, None)
        return self._groups != before


class _Texts(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # chosen when imported
    """Takes every scalar but ``null`` as the text that it is: ``port: 80`` is a label, as in Prometheus."""


_Texts.yaml_implicit_resolvers = {
    first: kept
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [(tag, what) for tag, what in known if tag in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")])
}


def _read(path: str) -> list[TargetGroup]:
    with open(path, "rb") as file:
        body = file.read(FILE_BYTES_MAX + 1)
    if len(body) > FILE_BYTES_MAX:
        raise DiscoveryError(f"is above {FILE_BYTES_MAX:,} bytes")
    try:
        if Path(path).suffix.lower() == ".json":
            data = json.loads(body)
        else:
            data = yaml.load(body, Loader=_Texts)  # noqa: S506  # a SafeLoader
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise DiscoveryError(" ".join(str(error).split())) from None
    return parse_groups(data, path, {"__meta_filepath": path})


class HttpSource:
    """Groups that a server answers with; an answer that is of no use keeps those of the one before."""

    def __init__(self, config: HttpSdConfig, session: aiohttp.ClientSession) -> None:
        self._config = config
        self._session = session
        self._url = URL(config.url)
        self._name = str(self._url.with_user(None))  # without a password
        self._client = HttpClient(config.client)

    async def run(self, on_groups: OnGroups) -> None:
        """Ask for ever."""
        before: list[TargetGroup] | None = None
        said = ""
        while True:
            try:
                groups = await self.ask()
            except DiscoveryError as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("targets of %s cannot be read, those from before stay: %s", self._name, said)
                on_groups(None)
            else:
                said = ""
                if groups != before:
                    on_groups(groups)
                    before = groups
            await asyncio.sleep(self._config.refresh_interval)

    async def ask(self) -> list[TargetGroup]:
        """The groups of now.

        Raises
        ------
        DiscoveryError        there is no answer, or none of use
        """
        interval_s = self._config.refresh_interval
        try:
            given = self._client.arguments(self._url)
            given["headers"] |= {
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "X-Prometheus-Refresh-Interval-Seconds": f"{interval_s:g}",
            }
            timeout = aiohttp.ClientTimeout(total=interval_s)
            async with self._session.get(self._url, timeout=timeout, **given) as response:
                if response.status != 200:
                    raise DiscoveryError(f"server returned HTTP status {response.status} {response.reason}")
                kind = response.headers.get("Content-Type", "").strip()
                if not _JSON_TYPE.fullmatch(kind):
                    raise DiscoveryError(f'unsupported content type "{kind}"')
                body = await self._body(response)
        except TimeoutError:
            raise DiscoveryError(f"no answer within {interval_s:g} s") from None
        except (aiohttp.ClientError, HttpClientError, OSError, ValueError) as error:
            raise DiscoveryError(f"{type(error).__name__}: {error}") from None
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise DiscoveryError(str(error)) from None
        return parse_groups(data, self._config.url, {"__meta_url": self._config.url})

    @staticmethod
    async def _body(response: aiohttp.ClientResponse) -> bytes:
        parts = []
        size = 0
        async for part in response.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > FILE_BYTES_MAX:
                raise DiscoveryError(f"the answer is above {FILE_BYTES_MAX:,} bytes")
        return b"".join(parts)
