"""A stand-in for Central Dogma's xDS project, since no package has the server: what its source (0.86, and before) does.

Batches of 3 s per file, 409 for an operation that a newer one overtakes, answers held until the commit, copies under
another locality or priority, watches, raw YAML with comments until an operation rewrites it, roles, generated files.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import yaml
from aiohttp import web

REGISTER, DEREGISTER = ":registerLocalityLbEndpoint", ":deregisterLocalityLbEndpoint"
SYSTEM = "system"
_MESSAGES: Mapping[str, Mapping[str, str]] = {
    "assignment": {"clusterName": "", "endpoints": "group*", "policy": "any"},
    "group": {
        "locality": "locality",
        "lbEndpoints": "lb*",
        "priority": "",
        "loadBalancingWeight": "",
        "metadata": "any",
    },
    "registration": {"locality": "locality", "priority": "", "lbEndpoint": "lb"},
    "locality": {"region": "", "zone": "", "subZone": ""},
    "lb": {"endpoint": "endpoint", "healthStatus": "status", "metadata": "any", "loadBalancingWeight": ""},
    "endpoint": {"address": "address", "hostname": "", "healthCheckConfig": "any"},
    "address": {"socketAddress": "socket", "pipe": "any"},
    "socket": {"protocol": "", "address": "", "portValue": ""},
}
_STATUSES = ("UNKNOWN", "HEALTHY", "UNHEALTHY", "DRAINING", "TIMEOUT", "DEGRADED")


class Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def canonical(kind: str, data: Any) -> dict[str, Any]:
    """Protobuf's JSON of a message: one spelling, no defaults; unknown fields are refused."""
    if not isinstance(data, dict):
        raise Refused(400, f"{kind} expected")
    out: dict[str, Any] = {}
    for name, value in data.items():
        first, *rest = str(name).split("_")
        camel = first + "".join(part.capitalize() for part in rest)
        if camel not in _MESSAGES[kind]:
            raise Refused(400, f"Cannot find field: {name} in message {kind}")
        of = _MESSAGES[kind][camel]
        if of in ("", "any"):
            made: Any = value
        elif of == "status":
            made = _STATUSES[value] if isinstance(value, int) else value
            if made not in _STATUSES:
                raise Refused(400, f"Invalid enum value: {value}")
            made = "" if made == "UNKNOWN" else made
        elif of.endswith("*"):
            made = [canonical(of[:-1], row) for row in value]
        else:
            made = canonical(of, value)
        if made not in (0, "", []):
            out[camel] = made
    return out


@dataclass
class Pending:
    register: bool
    body: dict[str, Any]
    answer: asyncio.Future[tuple[int, str]]


@dataclass
class Commit:
    revision: int
    path: str
    author: str
    summary: str
    at: float


@dataclass
class Repo:
    files: dict[str, str] = field(default_factory=dict)
    revision: int = 1
    changed: dict[str, int] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)


class CentralDogma:
    """``async with`` serves it on a free port.

    Parameters
    ----------
    version : of the server it stands for, (0, 86) or earlier
    tokens : secret -> role, READ or WRITE; empty = nobody is asked

    Attributes
    ----------
    batch_s, commit_s : how long a batch gathers, how long a commit takes
    operations : (time, path, endpoint, status asked for) of each operation that arrived
    down : answer everything with this status
    """

    def __init__(
        self,
        version: tuple[int, int] = (0, 86),
        tokens: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.version = version
        self.tls = tls
        self.tokens = tokens or {}
        self.batch_s, self.commit_s = 3.0, 0.05
        self.repos: dict[str, Repo] = {"g": Repo()}
        self.operations: list[tuple[float, str, str, str]] = []
        self.content_types: set[str] = set()
        self.watches = 0
        self.down = 0
        self.url = ""
        self._batches: dict[tuple[str, str], dict[str, Pending]] = {}
        self._changed = asyncio.Event()
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def yaml(self) -> bool:
        return self.version >= (0, 86)

    async def __aenter__(self) -> CentralDogma:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self.tls)
        await site.start()
        self.url = f"http{'s' * bool(self.tls)}://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await self._runner.cleanup()

    # -- what a test does to it ------------------------------------------------------------------------------------

    def create(self, name: str, assignment: Mapping[str, Any], *, comment: str = "", group: str = "g") -> str:
        """A file as a person or an older server left it; its path."""
        path = f"/{name}{'.yaml' if self.yaml else '.json'}"
        text = yaml.safe_dump(dict(assignment), sort_keys=False) if self.yaml else json.dumps(assignment)
        self._push(group, path, comment * self.yaml + text, "person", "by hand")
        return path

    def assignment(self, path: str, group: str = "g") -> dict[str, Any]:
        return canonical("assignment", self._load(path, self.repos[group].files[path]))

    def endpoint(self, path: str, address: str, port: int) -> list[dict[str, Any]]:
        """All copies of an endpoint."""
        found = []
        for group in self.assignment(path).get("endpoints", ()):
            for row in group["lbEndpoints"]:
                place = row["endpoint"]["address"]["socketAddress"]
                if (place["address"], place["portValue"]) == (address, port):
                    found.append({**row, "in": (group.get("locality"), group.get("priority", 0))})
        return found

    # -- routes ----------------------------------------------------------------------------------------------------

    async def _serve(self, request: web.Request) -> web.Response:
        try:
            return await self._route(request)
        except Refused as refused:
            body = {"exception": "com.linecorp.centraldogma", "message": str(refused)}
            return web.json_response(body, status=refused.status)

    async def _route(self, request: web.Request) -> web.Response:
        if self.down:
            raise Refused(self.down, "down")
        role = self._role(request)
        path = unquote(request.raw_path.partition("?")[0])
        body = await request.text()
        if found := re.fullmatch(r"/api/v1/projects/@xds/repos/([^/]+)/contents(/.+)", path):
            return await self._contents(request, found[1], found[2])
        if found := re.fullmatch(r"/api/v1/xds/groups/([^/]+)/(k8s/)?endpoints(?:/(.+))?", path):
            group, generated, name = found[1], bool(found[2]), found[3] or ""
            if request.method == "GET":
                return self._read(group, generated, name)
            if generated:
                raise Refused(404, "no such route")
            return await self._change(request, role, group, name, body)
        raise Refused(404, f"no such route: {path}")

    def _role(self, request: web.Request) -> str:
        if not self.tokens:
            return "WRITE"
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or token not in self.tokens:
            raise Refused(401, "unauthorized")
        return self.tokens[token]

    def _repo(self, group: str) -> Repo:
        if group not in self.repos:
            raise Refused(404, f"Repository not found: {group}")
        return self.repos[group]

    async def _contents(self, request: web.Request, group: str, path: str) -> web.Response:
        repo = self._repo(group)
        known = request.headers.get("If-None-Match", "").removeprefix("W/").strip('"')
        if known:
            wait = re.search(r"wait=(\d+)", request.headers.get("Prefer", ""))
            self.watches += 1
            try:
                async with asyncio.timeout(int(wait[1]) if wait else 120):
                    while repo.changed.get(path, 0) <= int(known):
                        await self._changed.wait()
            except TimeoutError:
                return web.Response(status=304)
            return web.json_response({"revision": repo.changed[path], "entry": self._entry(repo, path)})
        return web.json_response(self._entry(repo, path))

    def _entry(self, repo: Repo, path: str) -> dict[str, Any]:
        if path not in repo.files:
            raise Refused(404, f"Entry not found: {path}")
        raw = path.endswith(".yaml")
        content = repo.files[path] if raw else json.loads(repo.files[path])
        return {"path": path, "type": "YAML" if raw else "JSON", "revision": repo.revision, "content": content}

    def _read(self, group: str, generated: bool, name: str) -> web.Response:
        if not self.yaml:
            raise Refused(405, "method not allowed")
        repo = self._repo(group)
        if not name:
            rows = [{"path": p, "type": "YAML", "revision": repo.revision} for p in repo.files if p.endswith(".yaml")]
            return web.json_response(rows)
        return web.json_response(self._entry(repo, f"/{'k8s/' * generated}endpoints/{name}.yaml"))

    async def _change(self, request: web.Request, role: str, group: str, name: str, body: str) -> web.Response:
        wanted = "application/yaml" if self.yaml else "application/json"
        self.content_types.add(request.content_type)
        if request.content_type != wanted:
            raise Refused(415, f"expected {wanted}")
        data = yaml.safe_load(body) if self.yaml else json.loads(body)
        operation = next((o for o in (REGISTER, DEREGISTER) if name.endswith(o)), "")
        made = canonical("registration" if operation else "assignment", data)
        repo = self._repo(group)
        if role != "WRITE":
            raise Refused(403, "You must have the WRITE role")
        path = f"/endpoints/{name.removesuffix(operation)}"
        if operation:
            status, text = await self._queue(group, path, made, register=operation == REGISTER)
            return web.Response(status=status, text=text)
        if request.method == "POST":
            path += request.query["endpoint_id"]
        full = self._existing(repo, path)
        if (request.method == "POST") == (full is not None):
            raise Refused(409 if full else 404, f"Resource {path}")
        if request.method != ("PUT" if self.yaml else "PATCH") and request.method != "POST":
            raise Refused(405, "method not allowed")
        await asyncio.sleep(self.commit_s)
        summary = request.query.get("summary", f"Update endpoint: {path}")
        self._push(group, full or path + ".yaml", self._dump(made), "application", summary)
        return web.Response(text=body)

    # -- batches ---------------------------------------------------------------------------------------------------

    async def _queue(self, group: str, path: str, body: dict[str, Any], *, register: bool) -> tuple[int, str]:
        lb = body.get("lbEndpoint", {})
        place = lb.get("endpoint", {}).get("address", {})
        key = json.dumps([body.get("locality", {}), body.get("priority", 0), place], sort_keys=True)
        self.operations.append((time.monotonic(), path, json.dumps(place), lb.get("healthStatus", "UNKNOWN")))
        answer: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        if (group, path) not in self._batches:
            self._batches[group, path] = {}
            task = asyncio.create_task(self._flush(group, path))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        older = self._batches[group, path].get(key)
        self._batches[group, path][key] = Pending(register, body, answer)
        if older is not None:
            older.answer.set_result((409, "Aborted due to a new update for the same endpoint"))
        return await answer

    async def _flush(self, group: str, path: str) -> None:
        await asyncio.sleep(self.batch_s)
        pending = self._batches.pop((group, path)).values()
        async with self._lock:  # one commit at a time goes through ZooKeeper
            await asyncio.sleep(self.commit_s)
            repo = self.repos[group]
            full = self._existing(repo, path)
            if full is None:
                self._answer(pending, 404, f"Resource not found: {path}")
                return
            made = canonical("assignment", self._load(full, repo.files[full]))
            before = json.dumps(made)
            for operation in sorted(pending, key=lambda p: p.register):  # deregistrations first
                _apply(made, operation)
            if json.dumps(made) != before:
                if self.yaml and full.endswith(".json"):
                    del repo.files[full]
                    full = path + ".yaml"
                n = sum(p.register for p in pending)
                text = f"Batch update for groups/{group}{path}: {n} register, {len(pending) - n} deregister"
                self._push(group, full, self._dump(made), SYSTEM, text)
        self._answer(pending, 200, "{}")

    def _answer(self, pending: Any, status: int, text: str) -> None:
        for operation in pending:
            if not operation.answer.done():
                operation.answer.set_result((status, text))

    def _existing(self, repo: Repo, path: str) -> str | None:
        extensions = (".yaml", ".json") if self.yaml else (".json",)
        return next((path + extension for extension in extensions if path + extension in repo.files), None)

    def _load(self, path: str, text: str) -> Any:
        return yaml.safe_load(text) if path.endswith(".yaml") else json.loads(text)

    def _dump(self, made: Mapping[str, Any]) -> str:
        return yaml.safe_dump(dict(made), sort_keys=False) if self.yaml else json.dumps(made)

    def _push(self, group: str, path: str, text: str, author: str, summary: str) -> None:
        repo = self.repos[group]
        repo.revision += 1
        repo.files[path] = text
        repo.changed[path] = repo.revision
        repo.commits.append(Commit(repo.revision, path, author, summary, time.monotonic()))
        self._changed.set()
        self._changed = asyncio.Event()


def _apply(made: dict[str, Any], operation: Pending) -> None:
    """As the batch does: the locality goes to the end, and the endpoint to its end."""
    groups = made.setdefault("endpoints", [])
    lb, where = (
        operation.body.get("lbEndpoint", {}),
        (operation.body.get("locality", {}), operation.body.get("priority", 0)),
    )
    place = lb.get("endpoint", {}).get("address")
    at = next((i for i, g in enumerate(groups) if (g.get("locality", {}), g.get("priority", 0)) == where), None)
    if at is None:
        if operation.register:
            new = {"locality": where[0], "priority": where[1], "lbEndpoints": [lb]}
            groups.append({name: value for name, value in new.items() if name != "priority" or value})
        return
    group = groups[at]
    rest = [row for row in group["lbEndpoints"] if row["endpoint"]["address"] != place]
    if not operation.register and len(rest) == len(group["lbEndpoints"]):
        return
    group["lbEndpoints"] = rest + [lb] * operation.register
    del groups[at]
    if group["lbEndpoints"]:
        groups.append(group)
