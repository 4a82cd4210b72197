"""Senders of syslog, unmodified, against the running server."""

from __future__ import annotations

import logging
import logging.handlers
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshpulse.demo.nginx import find_nginx, nginx_command, nginx_config
from tests.certificates import certificate
from tests.e2e.envoys import free_ports
from tests.e2e.server import Server
from tests.e2e.test_shippers import wait_for
from tests.e2e.upstreams import Upstreams
from tests.ingest.nginx.test_geo import write_database

PATIENCE_S = 60.0
LOCAL = "127.0.0.1"


class Served:
    """A server with one port for datagrams, one for connections, one for TLS."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.udp, self.tcp, self.tls, self.later = free_ports(4)
        self.authority = certificate(folder, "authority")
        self.pair = certificate(folder, "server", self.authority)
        self.context = ssl.create_default_context(cafile=str(self.authority[0]))
        self.countries = write_database(folder / "country.mmdb", "JP", "127.0.0.0/8")
        self.server = Server(folder, self.config(), tls=self.context)

    def config(self, *more: Mapping[str, Any]) -> str:
        listeners: list[Mapping[str, Any]] = [
            {"listen": f"{LOCAL}:{self.udp}", "labels": {"job": "udp", "env": "syslog"}},
            {"listen": f"{LOCAL}:{self.tcp}", "protocol": "tcp", "labels": {"job": "tcp"}},
            {"listen": f"{LOCAL}:{self.tls}", "protocol": "tls", "labels": {"job": "tls"}},
            *more,
        ]
        files = {"labels": {"env": "files", "host": "h", "service_name": "from files"}}
        return yaml.safe_dump(
            {
                "storage": {"free_bytes_min": 0, "free_fraction_min": 0},
                "server": {"tls_cert_file": str(self.pair[0]), "tls_key_file": str(self.pair[1])},
                "syslog": {"listeners": listeners},
                "nginx": {
                    "files": [
                        {"paths": [str(self.folder / "access.json")], "site_field": "server_name", **files},
                        {"paths": [str(self.folder / "error.log")], "log": "error", **files},
                    ],
                    "streams": [
                        {"match": {"app": "nginx_access"}, "site_field": "server_name"},
                        {"match": {"app": "nginx_error"}, "log": "error"},
                    ],
                    "geoip_database": str(self.countries),
                    "metrics": {"interval": "1s"},
                    "poll_interval": "200ms",
                },
            }
        )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("syslog"))
    with made.server:
        yield made


def until(what: str, done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.1)


COUNTERS = (
    "nginx_requests_total", "nginx_response_bytes_total", "nginx_request_time_seconds_bucket",
    "nginx_upstream_requests_total", "nginx_upstream_connect_failures_total",
    "nginx_upstream_response_time_seconds_bucket", "nginx_error_log_lines_total",
    "nginx_upstream_error_log_lines_total",
)  # fmt: skip


def test_nginx_is_counted_as_from_its_files(served: Served) -> None:
    """Debian's nginx writes each line to a file and by syslog (RFC 3164, UDP): both lead to the same counters."""
    program, server, folder = find_nginx(), served.server, served.folder
    if program is None:
        pytest.skip("needs nginx")
    front, closed = free_ports(2)
    to = f"syslog:server={LOCAL}:{served.udp}"
    with Upstreams(1) as upstreams:
        sites = {"good.example": upstreams.addresses, "bad.example": [f"{LOCAL}:{closed}"]}
        text = nginx_config(folder, front, sites)
        for site in sites:
            text = text.replace(
                f"access_log {folder}/{site}.combined.log combined;",
                f"access_log {to},tag=nginx_access access_json; error_log {folder}/error.log;"
                f" error_log {to},tag=nginx_error;",
            )
        (folder / "nginx.conf").write_text(text)
        with (folder / "nginx.out").open("wb") as out:
            nginx = subprocess.Popen(nginx_command(program, folder), stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            until("nginx listens", lambda: connects(front))
            for site, number in (("good.example", 60), ("bad.example", 40)):
                for i in range(number):
                    request(front, site, f'/item/{i}?q="é\\')
        finally:
            nginx.terminate()
            nginx.wait(20)

    def counted(env: str) -> dict[tuple[Any, ...], float]:
        rows = server.query(f'{{__name__=~"{"|".join(COUNTERS)}",env="{env}"}}')
        return {
            tuple(sorted((k, v) for k, v in row["metric"].items() if k not in ("env", "host"))): float(row["value"][1])
            for row in rows
        }

    def requests() -> list[float]:
        query = "sum by (env) (nginx_requests_total) + on (env) sum by (env) (nginx_error_log_lines_total)"
        return [float(row["value"][1]) for row in server.query(query)]

    until("all are counted", lambda: requests() == [140.0, 140.0])
    until("the same", lambda: counted("files") == counted("syslog"))
    names = {dict(key)["__name__"] for key in counted("syslog")}
    assert names == set(COUNTERS)
    found = wait_for(server, '{app="nginx_access"} | json | status = "502"', 40)
    assert {labels["server_name"] for _, labels in found} == {"bad.example"}
    query = 'sum by (job) (count_over_time({log="access"} | geoip_country="JP" [1h]))'
    query += ' or sum by (job) (count_over_time({app="nginx_access"} | geoip_country="JP" [1h]))'
    rows = server.get("/loki/api/v1/query", query=query).json()["data"]["result"]
    assert {row["metric"]["job"]: row["value"][1] for row in rows} == {"nginx": "100", "udp": "100"}
    # what the first page of Logs Drilldown asks, and what it asks after "Add label"
    for label, wanted in (("service_name", {"from files", "nginx_access"}), ("site", {"good.example", "bad.example"})):
        asked = {"query": f'{{{label}=~".+"}}', "targetLabels": label, "limit": 5000}
        rows = server.get("/loki/api/v1/index/volume", **asked).json()["data"]["result"]
        assert wanted <= {row["metric"][label] for row in rows}
    errors = wait_for(server, '{app="nginx_error"} |= "Connection refused"', 40)
    assert {(labels["severity"], labels["detected_level"]) for _, labels in errors} == {("err", "error")}


def connects(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOCAL, port)) == 0


def request(port: int, site: str, path: str) -> None:
    with socket.create_connection((LOCAL, port), timeout=PATIENCE_S) as client:
        client.sendall(f"GET {path.replace(' ', '')} HTTP/1.1\r\nHost: {site}\r\nConnection: close\r\n\r\n".encode())
        while client.recv(1 << 16):
            pass


SYSLOG_NG = """
@version: 3.38
options {{ stats-freq(0); keep-hostname(yes); }};
source s {{ network(ip("127.0.0.1") port({source}) transport("tcp")); }};
destination d {{
  network("127.0.0.1" port({udp}) transport("udp") persist-name("bsd-udp"));
  network("127.0.0.1" port({tcp}) transport("tcp") persist-name("bsd-tcp"));
  syslog("127.0.0.1" port({udp}) transport("udp"));
  syslog("127.0.0.1" port({tcp}) transport("tcp"));
  syslog("127.0.0.1" port({tls}) transport("tls") tls(ca-file("{ca}")));
}};
log {{ source(s); destination(d); }};
"""


def test_syslog_ng(served: Served, tmp_path: Path) -> None:
    """Debian's syslog-ng: ``network()`` (RFC 3164) and ``syslog()`` (RFC 5424, counted) over UDP, TCP and TLS."""
    program = shutil.which("syslog-ng")
    if program is None:
        pytest.skip("needs syslog-ng")
    (source,) = free_ports(1)
    config = tmp_path / "syslog-ng.conf"
    ports = {"udp": served.udp, "tcp": served.tcp, "tls": served.tls}
    config.write_text(SYSLOG_NG.format(source=source, ca=served.authority[0], **ports))
    now = time.strftime("%b %d %H:%M:%S")  # syslog() hands it on as RFC 5424
    command = [program, "-F", "-f", str(config), "-R", str(tmp_path / "persist"), "-p", str(tmp_path / "pid")]
    with (tmp_path / "log").open("wb") as log:
        daemon = subprocess.Popen([*command, "-c", str(tmp_path / "ctl"), "--stderr"], stdout=log, stderr=log)
    try:
        until("syslog-ng listens", lambda: connects(source))
        with socket.create_connection((LOCAL, source)) as connection:
            for i in range(20):
                connection.sendall(f"<12>{now} web-1 shop[7]: paid {i} é\n".encode())
            for job, times in (("udp", 2), ("tcp", 2), ("tls", 1)):
                found = wait_for(served.server, f'{{job="{job}",app="shop"}}', 20 * times)
                assert sorted(line for line, _ in found) == sorted(
                    f"paid {i} é" for i in range(20) for _ in range(times)
                )
                assert {(labels["host"], labels["proc_id"], labels["severity"]) for _, labels in found} == {
                    ("web-1", "7", "warning")
                }
                assert {labels["detected_level"] for _, labels in found} == {"warn"}
    finally:
        daemon.terminate()
        daemon.wait(20)


@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_python(served: Served, kind: str) -> None:
    """logging.handlers.SysLogHandler: no time, no host, a zero byte after each message."""
    how = socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM
    handler = logging.handlers.SysLogHandler((LOCAL, getattr(served, kind)), facility="local3", socktype=how)
    handler.ident = "py[42]: "
    logger = logging.Logger("shop")
    logger.addHandler(handler)
    lines = ["first", 'second "quoted" \\ line', "third é\nwith two lines" if kind == "udp" else "third é"]
    for line in lines:
        logger.error(line)
    handler.close()
    found = wait_for(served.server, f'{{job="{kind}",app="py"}}', len(lines))
    assert sorted(line for line, _ in found) == sorted(lines)
    assert {(labels["facility"], labels["severity"], labels["proc_id"]) for _, labels in found} == {
        ("local3", "err", "42")
    }
    assert {labels["host"] for _, labels in found} == {LOCAL}


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("udp", ["--rfc3164"]),
        ("udp", ["--rfc5424"]),
        ("tcp", ["--rfc3164"]),
        ("tcp", ["--rfc5424"]),
        ("tcp", ["--rfc5424", "--octet-count"]),
    ],
)
def test_logger(served: Served, kind: str, form: list[str]) -> None:
    """util-linux' logger."""
    program = shutil.which("logger")
    if program is None:
        pytest.skip("needs logger")
    tag = f"logger{len(form)}{form[0][-4:]}"
    flag = "--udp" if kind == "udp" else "--tcp"
    command = [program, "--server", LOCAL, "--port", str(getattr(served, kind)), flag, *form]
    subprocess.run([*command, "-t", tag, "-p", "auth.crit", "--id=99", "so it goes"], check=True, timeout=PATIENCE_S)
    [(line, labels)] = wait_for(served.server, f'{{job="{kind}",app="{tag}"}}', 1)
    assert (line, labels["facility"], labels["severity"], labels["proc_id"]) == ("so it goes", "auth", "crit", "99")
    assert labels["host"] == socket.gethostname().partition(".")[0] or labels["host"] == socket.gethostname()
    assert labels["detected_level"] == "critical"


def test_a_reload_opens_and_closes_ports(served: Served) -> None:
    server = served.server
    more = {"listen": f"{LOCAL}:{served.later}", "protocol": "tcp", "labels": {"job": "later"}}
    with socket.create_connection((LOCAL, served.tcp)) as stays:
        stays.sendall(b"<13>stays: 1\n")
        wait_for(server, '{job="tcp",app="stays"}', 1)
        reload(served, served.config(more))
        until("the port is open", lambda: connects(served.later))
        with socket.create_connection((LOCAL, served.later)) as goes:
            goes.sendall(b"<13>goes: 1\n")
            wait_for(server, '{job="later",app="goes"}', 1)
            reload(served, served.config())
            goes.settimeout(PATIENCE_S)
            assert goes.recv(1) == b""
        until("the port is closed", lambda: not connects(served.later))
        stays.sendall(b"<13>stays: 2\n")
        wait_for(server, '{job="tcp",app="stays"}', 2)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the port before linger
        taken.bind((LOCAL, served.later))
        taken.listen()
        reload(served, served.config(more))
        until("it failed", lambda: server.metric("meshpulse_config_last_reload_successful") == 0)
        assert "syslog: cannot listen on" in server.log
    reload(served, served.config())
    until("it did not fail", lambda: server.metric("meshpulse_config_last_reload_successful") == 1)


def reload(served: Served, text: str) -> None:
    (served.folder / "meshpulse.yml").write_text(text)
    served.server.process.send_signal(signal.SIGHUP)


def test_strangers_on_the_tls_port_are_counted(served: Served) -> None:
    broken = served.server.metric("meshpulse_syslog_broken_connections_total")
    with socket.create_connection((LOCAL, served.tls)) as stranger:
        stranger.sendall(b"<13>plain: text\n")
        stranger.settimeout(PATIENCE_S)
        try:
            while stranger.recv(1000):
                pass
        except ConnectionError:
            pass
    name = "meshpulse_syslog_broken_connections_total"
    until("it is counted", lambda: served.server.metric(name) > broken)
    assert served.server.metric("meshpulse_syslog_messages_total") > 0


def test_a_port_that_is_taken_stops_the_start(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((LOCAL, 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = Server(tmp_path, f"syslog: {{listeners: [{{listen: '{LOCAL}:{port}', protocol: tcp}}]}}")
        try:
            assert server.process.wait(240) == 1
        finally:
            server.kill()
        assert f"syslog: cannot listen on {LOCAL}:{port}" in server.log
