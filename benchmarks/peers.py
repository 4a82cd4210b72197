"""Servers to measure side by side: meshpulse and, where Debian's packages are installed, its peers.

Every server gets a fresh folder, listens on 127.0.0.1 and is ended by pid. CPU seconds are user + system of the whole
process, from the kernel's books, so a busy neighbour changes them little.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

START_SECONDS_MAX = 180.0


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """One running server under measurement."""

    name: str
    command: list[str]
    port: int
    ready_path: str
    write_path: str
    folder: Path
    query_extra: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        log = (self.folder / "log.txt").open("wb")
        self.process = subprocess.Popen(self.command, stdout=log, stderr=log, cwd=self.folder)
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended: {(self.folder / 'log.txt').read_text()[-2000:]}")
            try:
                if self.get(self.ready_path)[0] == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.05)
        raise TimeoutError(f"{self.name} was not ready within {START_SECONDS_MAX} s")

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def connect(self) -> http.client.HTTPConnection:
        """A keep-alive connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of one GET."""
        connection = self.connect()
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def cpu_seconds(self) -> float:
        """User and system seconds of the process so far."""
        assert self.process is not None
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def rss_bytes(self) -> int:
        """Resident memory now."""
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def settle(self, quiet_seconds: float = 1.0, most_seconds: float = 20.0) -> None:
        """Wait until background work (merges, garbage collection) is over: CPU below 5 % for a second."""
        deadline = time.monotonic() + most_seconds
        while time.monotonic() < deadline:
            before = self.cpu_seconds()
            time.sleep(quiet_seconds)
            if self.cpu_seconds() - before < 0.05 * quiet_seconds:
                return


MESHPULSE_CONFIG = """\
limits:
  query:
    samples_max: 200000000
"""


def meshpulse() -> Server:
    """This repository's server, with the interpreter that runs the benchmark."""
    folder = Path(tempfile.mkdtemp(prefix="bench-meshpulse-"))
    port = free_port()
    config = folder / "config.yaml"
    config.write_text(MESHPULSE_CONFIG)
    binary = Path(sys.executable).parent / "meshpulse"
    command = [str(binary), "serve", "--data-dir", str(folder / "data"), "--listen", f"127.0.0.1:{port}"]
    return Server("meshpulse", [*command, "--config", str(config)], port, "/-/ready", "/api/v1/write", folder)


def victoria_metrics() -> Server | None:
    """Debian's victoria-metrics, or None where it is not installed."""
    binary = shutil.which("victoria-metrics")
    if binary is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="bench-vm-"))
    port = free_port()
    command = [binary, f"-storageDataPath={folder}/data", f"-httpListenAddr=127.0.0.1:{port}", "-retentionPeriod=12"]
    command += ["-search.maxSeries=1000000", "-search.maxUniqueTimeseries=1000000", "-search.latencyOffset=0s"]
    return Server("VictoriaMetrics", command, port, "/health", "/api/v1/write", folder, {"nocache": "1"})


def prometheus() -> Server | None:
    """Debian's prometheus, or None where it is not installed."""
    binary = shutil.which("prometheus")
    if binary is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="bench-prom-"))
    (folder / "prometheus.yml").write_text("global: {}\n")
    port = free_port()
    command = [binary, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--web.enable-remote-write-receiver"]
    command += ["--query.max-samples=200000000", "--log.level=warn"]
    return Server("Prometheus", command, port, "/-/ready", "/api/v1/write", folder)


def all_servers() -> list[Server]:
    """Every server that can be measured here."""
    os.environ.setdefault("GOMAXPROCS", str(os.cpu_count() or 2))
    return [server for server in (meshpulse(), victoria_metrics(), prometheus()) if server is not None]
