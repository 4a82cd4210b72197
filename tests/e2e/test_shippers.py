"""Shippers of log lines, unmodified, against the running server: what they send is what LogQL answers."""

from __future__ import annotations

import logging
import queue
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.e2e.server import Server

LINES = ["first", 'second "quoted" \\ line', "third é\nwith two lines"]
PATIENCE_S = 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("shippers")) as running:
        yield running


Line = tuple[str, dict[str, str]]


def stored(server: Server, selector: str) -> list[Line]:
    """Lines with their labels, the oldest first."""
    query = quote(selector)
    reply = server.get(f"/loki/api/v1/query_range?query={query}&direction=forward&limit=100").json()
    lines = [(int(v[0]), v[1], s["stream"]) for s in reply["data"]["result"] for v in s["values"]]
    return [(line, labels) for _, line, labels in sorted(lines, key=lambda one: one[0])]


def wait_for(server: Server, selector: str, count: int) -> list[Line]:
    """As :func:`stored`, once there are as many."""
    until = time.monotonic() + PATIENCE_S
    while len(found := stored(server, selector)) < count:
        assert time.monotonic() < until, f"{len(found)} of {count} lines of {selector}"
        time.sleep(0.1)
    return found


def test_python_logging_loki(server: Server) -> None:
    """PyPI python-logging-loki: JSON, a queue and a thread; takes anything but 204 for a failure."""
    logging_loki = pytest.importorskip("logging_loki")
    handler = logging_loki.LokiQueueHandler(
        queue.Queue(-1), url=f"{server.url}/loki/api/v1/push", tags={"app": "python"}, version="1"
    )
    failures: list[Any] = []
    handler.handler.handleError = failures.append
    logger = logging.Logger("shop")
    logger.addHandler(handler)
    for line in LINES:
        logger.warning(line, extra={"tags": {"order": "7"}})
    found = wait_for(server, '{app="python"}', len(LINES))
    handler.listener.stop()
    assert sorted(line for line, _ in found) == sorted(LINES)
    assert {(labels["logger"], labels["severity"], labels["order"]) for _, labels in found} == {
        ("shop", "warning", "7")
    }
    assert {labels["detected_level"] for _, labels in found} == {"warn"}
    assert not failures


def test_loki_logger_handler(server: Server) -> None:
    """PyPI loki-logger-handler: gzip JSON with structured metadata."""
    loki_logger_handler = pytest.importorskip("loki_logger_handler.loki_logger_handler")
    handler = loki_logger_handler.LokiLoggerHandler(
        url=f"{server.url}/loki/api/v1/push",
        labels={"app": "handler"},
        timeout=1,
        compressed=True,
        enable_structured_loki_metadata=True,
        loki_metadata={"zone": "z1"},
        loki_metadata_keys=["trace_id"],
    )
    logger = logging.Logger("shop")
    logger.addHandler(handler)
    for line in LINES:
        logger.error(line, extra={"trace_id": "4bf92f35"})
    wait_for(server, '{app="handler"}', len(LINES))
    found = stored(server, '{app="handler"} | trace_id="4bf92f35" | zone="z1" | json | line_format "{{.message}}"')
    assert sorted(line for line, _ in found) == sorted(LINES)
    assert {labels["detected_level"] for _, labels in found} == {"error"}


def run_node(script: str, package: str, *arguments: str) -> None:
    """Run a script that needs an npm package."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    known = subprocess.run([node, "-e", f"require('{package}')"], capture_output=True, check=False)
    if known.returncode:
        pytest.skip(f"needs the npm package {package} (its folder in NODE_PATH)")
    done = subprocess.run([node, "-e", script, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


PINO = """
const pino = require('pino');
const pinoLoki = require('pino-loki');
const [url, ...lines] = process.argv.slice(1);
const stream = pinoLoki.pinoLoki({
  host: url, labels: {app: 'pino'}, propsToLabels: ['site'], structuredMetaKey: 'meta',
  batching: {interval: 1}, silenceErrors: false,
});
const logger = pino({}, stream);
for (const line of lines) logger.warn({site: 'a.example', meta: {trace_id: '4bf92f35'}}, line);
stream.end();
"""


def test_pino_loki(server: Server) -> None:
    """npm pino-loki: JSON in batches, structured metadata as the third element."""
    run_node(PINO, "pino-loki", server.url, *LINES)
    wait_for(server, '{app="pino"}', len(LINES))
    found = stored(server, '{app="pino", site="a.example"} | trace_id="4bf92f35" | json | line_format "{{.msg}}"')
    assert sorted(line for line, _ in found) == sorted(LINES)
    assert {labels["detected_level"] for _, labels in found} == {"warn"}


WINSTON = """
const winston = require('winston');
const LokiTransport = require('winston-loki');
const [url, json, ...lines] = process.argv.slice(1);
const transport = new LokiTransport({
  host: url, labels: {app: 'winston-' + json}, json: json === 'json', interval: 1, gracefulShutdown: false,
  replaceTimestamp: false, format: winston.format.printf((info) => info.message),
  onConnectionError: (error) => { console.error(String(error)); process.exit(1); },
});
const logger = winston.createLogger({transports: [transport]});
for (const line of lines) logger.error({message: line, labels: {site: 'a.example'}});
setTimeout(() => transport.flush().then(() => process.exit(0)), 200);
"""


@pytest.mark.parametrize("form", ["json", "protobuf"])
def test_winston_loki(server: Server, form: str) -> None:
    """npm winston-loki: JSON, or snappy protobuf without an encoding header and with an unsorted label string."""
    run_node(WINSTON, "winston-loki", server.url, form, *LINES)
    found = wait_for(server, f'{{app="winston-{form}", site="a.example"}}', len(LINES))
    assert sorted(line for line, _ in found) == sorted(LINES)
    assert {labels["level"] for _, labels in found} == {"error"}


SYSLOG_NG = """
@version: 3.38
options {{ stats-freq(0); }};
template entry {{ template("[\\"${{R_UNIXTIME}}$(padding $R_USEC 6 0)000\\",\\"$MSG\\"]"); template-escape(yes); }};
source s {{ network(ip("127.0.0.1") port({port}) transport("tcp")); }};
destination d {{
  http(
    url("{url}/loki/api/v1/push") method("POST") headers("Content-Type: application/json")
    batch-lines(10) batch-timeout(200) delimiter(",")
    body-prefix("{{\\"streams\\":[{{\\"stream\\":{{\\"app\\":\\"syslog\\"}},\\"values\\":[")
    body-suffix("]}}]}}")
    body("$(template entry)")
  );
}};
log {{ source(s); destination(d); }};
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(what: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < until
        time.sleep(0.1)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_syslog_ng(server: Server, tmp_path: Path) -> None:
    """Debian's syslog-ng: its ``http()`` destination in batches."""
    program = shutil.which("syslog-ng")
    if program is None:
        pytest.skip("needs syslog-ng")
    port = free_port()
    config = tmp_path / "syslog-ng.conf"
    config.write_text(SYSLOG_NG.format(port=port, url=server.url))
    command = [program, "-F", "-f", str(config), "-R", str(tmp_path / "persist"), "-p", str(tmp_path / "pid")]
    with (tmp_path / "log").open("wb") as log:
        daemon = subprocess.Popen([*command, "-c", str(tmp_path / "ctl"), "--stderr"], stdout=log, stderr=log)
    try:
        wait_until(lambda: listens(port))
        with socket.create_connection(("127.0.0.1", port)) as connection:
            for line in LINES[:2]:
                connection.sendall(f"<12>Nov 25 10:00:00 web-1 shop: {line}\n".encode())
            found = wait_for(server, '{app="syslog"}', 2)
    finally:
        daemon.terminate()
        daemon.wait(20)
    assert [line for line, _ in found] == LINES[:2]
