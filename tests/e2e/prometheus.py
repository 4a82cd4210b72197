"""Debian's unmodified Prometheus, scraping an exporter of ours and remote-writing to a server under test."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


def need(tool: str) -> str:
    """Path of a tool; skips the test where it is not installed."""
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"needs {tool} (Debian's package)")
    return path


class Exporter:
    """Pages of counters, gauges and a histogram that move at every scrape, reproducibly; ``pages`` are those sent."""

    def __init__(self, seed: int = 1) -> None:
        self.pages: list[str] = []
        self._random = random.Random(seed)
        self._counters = {(c, p): 0.0 for c in ("200", "404", "500") for p in ("/", "/cart", "/pay")}
        self._buckets = [0.0] * 5
        self._sum = 0.0
        self._scrapes = 0
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = exporter.page().encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.target = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def page(self) -> str:
        rng = self._random
        self._scrapes += 1
        lines = ["# HELP demo_requests_total Requests served.", "# TYPE demo_requests_total counter"]
        for key in self._counters:
            self._counters[key] += rng.randrange(0, 20)
        if self._scrapes == 8:
            self._counters = dict.fromkeys(self._counters, 1.0)  # a restart: every counter resets
        lines += [f'demo_requests_total{{code="{c}",path="{p}"}} {v}' for (c, p), v in self._counters.items()]
        lines += ["# TYPE demo_temperature gauge"]
        lines += [f'demo_temperature{{room="{r}"}} {rng.uniform(-5, 30)!r}' for r in "abcd"]
        if self._scrapes % 5:
            lines.append('demo_sometimes{kind="there"} 1')
        for _ in range(20):
            seconds = rng.expovariate(4)
            self._sum += seconds
            for i, bound in enumerate((0.1, 0.25, 0.5, 1.0, float("inf"))):
                self._buckets[i] += seconds <= bound
        lines += ["# TYPE demo_seconds histogram"]
        bounds = ("0.1", "0.25", "0.5", "1", "+Inf")
        lines += [f'demo_seconds_bucket{{le="{b}"}} {n}' for b, n in zip(bounds, self._buckets, strict=True)]
        lines += [f"demo_seconds_sum {self._sum!r}", f"demo_seconds_count {self._buckets[-1]}", "demo_nan NaN"]
        self.pages.append("\n".join(lines) + "\n")
        return self.pages[-1]

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Prometheus:
    """One process; ``with Prometheus(...) as prometheus`` ends it whatever happens.

    As an ``agent`` it only scrapes and sends: it keeps what it could not send, and answers no queries. ``jobs`` are
    scrape configurations instead of the one that scrapes ``target``.
    """

    def __init__(
        self,
        folder: Path,
        target: str,
        write_url: str,
        scrape_interval: str = "1s",
        read_url: str = "",
        external_labels: dict[str, str] | None = None,
        *,
        agent: bool = False,
        jobs: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._binary = need("prometheus")
        self._agent = agent
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self._folder = folder
        config: dict[str, Any] = {
            "global": {
                "scrape_interval": scrape_interval,
                "scrape_timeout": scrape_interval,
                "external_labels": external_labels or {},
            },
        }
        if jobs:
            config["scrape_configs"] = list(jobs)
        elif target:
            config["scrape_configs"] = [{"job_name": "demo", "static_configs": [{"targets": [target]}]}]
        if write_url:
            queue = {"batch_send_deadline": "200ms", "max_shards": 2, "min_backoff": "30ms"}
            config["remote_write"] = [
                {"url": write_url, "queue_config": queue, "metadata_config": {"send_interval": "2s"}}
            ]
        if read_url:
            config["remote_read"] = [{"url": read_url, "read_recent": True}]
        self._config = folder / "prometheus.yml"
        self._config.write_text(json.dumps(config))

    def __enter__(self) -> Prometheus:
        listen = self.url.removeprefix("http://")
        kind, feature = ("agent", "agent") if self._agent else ("tsdb", "promql-per-step-stats,exemplar-storage")
        flags = (f"--web.listen-address={listen}", f"--storage.{kind}.path={self._folder / 'prometheus'}")
        command = (self._binary, f"--config.file={self._config}", *flags, f"--enable-feature={feature}")
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as response:
                    if response.status == 200:
                        return self
            except OSError:
                time.sleep(0.1)
            if self._process.poll() is not None:
                break
        self._process.kill()
        pytest.fail((self._folder / "prometheus.log").read_text()[-2000:])

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def ask(url: str, path: str, **params: Any) -> Any:
    """``data`` of an API answer; errors come back as (status, errorType)."""
    query = urllib.parse.urlencode(params, doseq=True)
    try:
        with urllib.request.urlopen(f"{url}/api/v1/{path}?{query}", timeout=60) as response:
            return json.load(response)["data"]
    except urllib.error.HTTPError as error:
        return (error.code, json.load(error)["errorType"])
