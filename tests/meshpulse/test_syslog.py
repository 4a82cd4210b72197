"""The section ``syslog``: mistakes that are named, who may be listened to, what a reload may do."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from ingest.logs.push import PushReceiver
from meshpulse.config import Config, ConfigError, parse_config
from meshpulse.syslog import Syslog
from meshpulse.syslog_config import syslog_listener
from tests.certificates import certificate
from tsdb.clock import SystemClock
from tsdb.tally import Tally


def listeners(*entries: str, more: str = "") -> Config:
    return parse_config("syslog:\n  listeners:\n" + "".join(f"    - {entry}\n" for entry in entries) + more)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{}", "syslog.listeners.0.listen: Field required"),
        ("{listen: here}", "listen must be HOST:PORT"),
        ("{listen: '127.0.0.1:514', protocol: sctp}", "syslog.listeners.0.protocol"),
        ("{listen: '127.0.0.1:514', allow: [10.0.0.1/8]}", "allow: 10.0.0.1/8 has host bits set"),
        ("{listen: '127.0.0.1:514', label_from: {a: colour}}", "syslog.listeners.0.label_from.a"),
        ("{listen: '127.0.0.1:514', label_from: {job: hostname}}", "'job' is in labels too"),
        ("{listen: '127.0.0.1:514', labels: {}, label_from: {}}", "must name a label"),
        ("{listen: '127.0.0.1:514', message_bytes_max: 10}", "message_bytes_max"),
        ("{listen: '127.0.0.1:514', protocol: tls}", "tls needs server.tls_cert_file"),
        ("{listen: '0.0.0.0:514'}", "everybody who reaches 0.0.0.0:514 could write log lines"),
        ("{listen: '[::]:514'}", "could write log lines"),
        ("{listen: 'log.example:514'}", "could write log lines"),
    ],
)
def test_mistakes(entry: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        listeners(entry)
    assert message in str(caught.value)


def test_one_port_twice() -> None:
    with pytest.raises(ConfigError, match="is used twice for tcp"):
        listeners("{listen: '127.0.0.1:514', protocol: tcp}", "{listen: '127.0.0.1:514', protocol: tls}")
    listeners("{listen: '127.0.0.1:514', protocol: tcp}", "{listen: '127.0.0.1:514'}")


def test_an_open_port_needs_to_know_its_senders(tmp_path: Path) -> None:
    config = listeners("{listen: '0.0.0.0:514', allow: [10.0.0.0/8, '2001:db8::/32']}")
    networks = syslog_listener(config.syslog.listeners[0]).allow
    assert networks == (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32"))
    listeners("{listen: '0.0.0.0:514'}", more="server: {insecure: true}\n")
    cert, key = certificate(tmp_path, "server")
    files = f"server: {{tls_cert_file: {cert}, tls_key_file: {key}"
    listeners("{listen: '0.0.0.0:514', protocol: tls}", more=f"{files}, tls_client_ca_file: {cert}}}\n")
    with pytest.raises(ConfigError, match="could write log lines"):
        listeners("{listen: '0.0.0.0:514', protocol: tls}", more=f"{files}}}\n")


def test_tls_without_a_certificate_in_force_is_no_plain_text(tmp_path: Path) -> None:
    """A reload brings listeners at once, and certificates only with a restart."""
    cert, key = certificate(tmp_path, "server")
    files = f"server: {{tls_cert_file: {cert}, tls_key_file: {key}}}\n"
    read = listeners("{listen: '127.0.0.1:0', protocol: tls}", more=files)
    in_force = read.model_copy(update={"server": Config().server})

    def no_store(name: str) -> None:
        raise AssertionError(name)

    syslog = Syslog(no_store, PushReceiver(SystemClock(), Tally()), Tally())  # type: ignore[arg-type]
    try:
        with pytest.raises(ConfigError, match="waits for a restart"):
            syslog.apply(in_force)
        assert syslog.receiver is None
        syslog.apply(read)
        assert syslog.receiver is not None
    finally:
        syslog.close()
