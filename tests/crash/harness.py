"""A server that is killed while it is written to, and the audit afterwards.

What counts: every acknowledged sample is there after the restart, bit for bit, and nothing is there that was never
sent. What was sent but not acknowledged may be there or not.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from tests.ingest.bodies import series, snappy

HEADERS = {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy"}
READY_SECONDS_MAX = 120.0
SERIES_PER_SENDER = 40


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """``meshpulse serve`` on a folder, by pid."""

    def __init__(self, data: Path, config: str = "") -> None:
        self.port = free_port()
        command = [str(Path(sys.executable).parent / "meshpulse"), "serve"]
        command += ["--data-dir", str(data), "--listen", f"127.0.0.1:{self.port}"]
        if config:
            path = data.parent / f"config-{self.port}.yaml"
            path.write_text(config)
            command += ["--config", str(path)]
        self.log_path = data.parent / f"server-{self.port}.log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
        self._wait_ready()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log_path.read_text()[-4000:]
            try:
                if self.get("/-/ready")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.02)
        raise TimeoutError(self.log_path.read_text()[-4000:])

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def samples(self, query: str, at_ms: int) -> dict[tuple[str, int], str]:
        """(series number, ms) -> value text of a range selector asked as an instant query."""
        status, body = self.get(
            "/api/v1/query?" + urllib.parse.urlencode({"query": query, "time": f"{at_ms / 1000:.3f}"})
        )
        assert status == 200, body
        out: dict[tuple[str, int], str] = {}
        for row in json.loads(body)["data"]["result"]:
            for t, v in row["values"]:
                out[row["metric"]["n"], round(t * 1000)] = v
        return out

    def kill(self) -> None:
        """The process is gone at whatever instruction it was."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(60)


class SenderThreads:
    """Threads that send to a server until they are told to end; what they send is the business of ``_run``."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()

    def start(self, port: int) -> None:
        """Begin to send to a server."""
        self._stopping.clear()
        self._threads = [threading.Thread(target=self._run, args=(k, port)) for k in range(self._count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; a request that was cut off counts as not acknowledged."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self, sender: int, port: int) -> None:
        raise NotImplementedError


class Senders(SenderThreads):
    """Threads that write as fast as they are answered and remember what was acknowledged."""

    def __init__(self, count: int, first_ms: int) -> None:
        super().__init__(count)
        self.next_ms = first_ms
        self.sent: dict[tuple[str, int], str] = {}
        self.acknowledged: set[tuple[str, int]] = set()
        self.requests = 0

    def so_far(self) -> set[tuple[str, int]]:
        """What has been acknowledged until now."""
        with self._lock:
            return set(self.acknowledged)

    def _run(self, sender: int, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        rng = random.Random(sender)
        while not self._stopping.is_set():
            with self._lock:
                self.next_ms += 1000
                now = self.next_ms
            raw = b""
            batch: dict[tuple[str, int], str] = {}
            for k in range(SERIES_PER_SENDER):
                number = f"{sender}-{k}"
                value = float(rng.randrange(1 << 40))
                raw += series({"__name__": "crash", "n": number}, [(value, now)])
                batch[number, now] = f"{value:.0f}"
            with self._lock:
                self.sent.update(batch)
            try:
                connection.request("POST", "/api/v1/write", snappy(raw), HEADERS)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                return
            if answer.status == 204:
                with self._lock:
                    self.acknowledged.update(batch)
                    self.requests += 1


def audit(server: Server, senders: Senders, acknowledged: set[tuple[str, int]]) -> int:
    """Compare what a restarted server holds with what was acknowledged; the number of samples it holds."""
    held = server.samples("crash[100d]", senders.next_ms + 60_000)
    lost = acknowledged - held.keys()
    assert not lost, f"{len(lost)} of {len(acknowledged)} acknowledged samples are lost, e.g. {sorted(lost)[:3]}"
    foreign = held.keys() - senders.sent.keys()
    assert not foreign, f"{len(foreign)} samples were never sent, e.g. {sorted(foreign)[:3]}"
    changed = [key for key, value in held.items() if senders.sent[key] != value]
    assert not changed, f"{len(changed)} samples changed, e.g. {changed[:3]}"
    return len(held)


def crash_cycles(data: Path, cycles: int, crash: Callable[[Server], None], config: str = "") -> Senders:
    """Write, crash at a random moment, start again on the same folder, audit; ``cycles`` times."""
    rng = random.Random(os.getpid())
    senders = Senders(4, int(time.time() * 1000) - 4 * 3_600_000)
    server = Server(data, config)
    for cycle in range(cycles):
        senders.start(server.port)
        time.sleep(rng.uniform(0.2, 1.2))
        crash(server)
        senders.stop()
        server = Server(data, config)
        held = audit(server, senders, senders.so_far())
        print(f"cycle {cycle}: {senders.requests} requests acknowledged, {held} samples held, none lost")
    assert server.stop() == 0
    assert senders.requests > 20 * cycles, "the senders hardly got anything through"
    return senders
