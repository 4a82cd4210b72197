"""A real ``meshpulse serve`` on a free port of 127.0.0.1, ended by its process id."""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

READY_SECONDS = 240.0
"""Also enough when no kernel is in the cache and the other core is busy."""


@dataclass
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """One process; ``with Server(folder) as server`` ends it whatever happens.

    ``under`` is a command that runs it and keeps its process id, as ``strace -D`` does.
    """

    def __init__(
        self,
        folder: Path,
        config: str = "",
        flags: tuple[str, ...] = (),
        tls: ssl.SSLContext | None = None,
        under: tuple[str, ...] = (),
    ) -> None:
        self.tls = tls
        self.folder = folder
        self._log_path = folder / "server.log"
        self._log_begin = self._log_path.stat().st_size if self._log_path.exists() else 0
        file = folder / "meshpulse.yml"
        file.write_text(config or "storage: {free_bytes_min: 0, free_fraction_min: 0}\n")
        data = ("--data-dir", str(folder / "data"), "--config", str(file))
        command = (str(Path(sys.executable).parent / "meshpulse"), "serve", "--listen", "127.0.0.1:0", *data, *flags)
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*under, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
            )
        self.port = 0

    def __enter__(self) -> Server:
        try:
            return self.wait_listening().wait_ready()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What this process said so far."""
        with self._log_path.open("rb") as file:
            file.seek(self._log_begin)
            return file.read().decode(errors="replace")

    def _wait(self, what: str, seconds: float, done: Any) -> None:
        until = time.monotonic() + seconds
        while not done():
            if self.process.poll() is not None:
                pytest.fail(f"server ended with {self.process.returncode} before it was {what}:\n{self.log}")
            if time.monotonic() > until:
                pytest.fail(f"server not {what} after {seconds} s:\n{self.log}")
            time.sleep(0.02)

    def wait_listening(self) -> Server:
        def listening() -> bool:
            _, said, rest = self.log.partition("://127.0.0.1:")
            digits = rest.split(maxsplit=1)[0] if said and rest.strip() else ""
            self.port = int(digits) if digits.isdigit() else 0
            return self.port > 0

        self._wait("listening", 30, listening)
        return self

    def wait_ready(self, seconds: float = READY_SECONDS) -> Server:
        def ready() -> bool:
            try:
                return self.get("/-/ready").status == 200
            except ConnectionError:
                return False  # it is ending: the log says why

        self._wait("ready", seconds, ready)
        return self

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        if self.tls:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=60, context=self.tls
            )
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None, **params: Any) -> Reply:
        query = f"?{urllib.parse.urlencode(params, doseq=True)}" if params else ""
        return self.request("GET", path + query, None, headers)

    def post(self, path: str, **form: Any) -> Reply:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.request("POST", path, urllib.parse.urlencode(form, doseq=True).encode(), headers)

    def write(self, body: bytes) -> Reply:
        """Push a snappy-compressed remote-write body."""
        headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy"}
        return self.request("POST", "/api/v1/write", body, headers)

    def query(self, text: str, **params: Any) -> Any:
        """``data.result`` of an instant query."""
        reply = self.post("/api/v1/query", query=text, **params)
        assert reply.status == 200, reply.body
        return reply.json()["data"]["result"]

    def metric(self, name: str) -> float:
        """One sample of ``/metrics``, named as it is written there."""
        for line in self.get("/metrics").body.decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        raise KeyError(name)

    def end(self, seconds: float = 30.0) -> int:
        """SIGTERM, then the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"server did not end within {seconds} s:\n{self.log}")

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
