"""Tokens and TLS over the wire, with unmodified clients."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshpulse import tls
from meshpulse.tls import TlsFiles, TlsFilesError
from tests.certificates import certificate
from tests.e2e.bodies import write_body
from tests.e2e.prometheus import need
from tests.e2e.server import Server

READ, WRITE = "read-token-0123456789", "write-token-0123456789"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("access")


@pytest.fixture(scope="module")
def authority(folder: Path) -> tuple[Path, Path]:
    return certificate(folder, "authority")


@pytest.fixture(scope="module")
def server(folder: Path, authority: tuple[Path, Path]) -> Iterator[Server]:
    cert, key = certificate(folder, "server", authority)
    config = {
        "storage": {"free_bytes_min": 0, "free_fraction_min": 0},
        "server": {"tls_cert_file": str(cert), "tls_key_file": str(key)},
        "auth": {
            "tokens": [
                {"name": "reader", "token": READ, "roles": ["read"]},
                {"name": "writer", "token": WRITE, "roles": ["write"]},
            ]
        },
    }
    with Server(folder, json.dumps(config), tls=ssl.create_default_context(cafile=str(authority[0]))) as running:
        yield running


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_samples_take_the_token_of_a_writer(server: Server) -> None:
    body = write_body([({"__name__": "guarded"}, [(time.time_ns() // 1_000_000, 1.0)])])
    assert server.write(body).status == 401
    assert server.request("POST", "/api/v1/write", body, bearer(READ)).status == 403
    assert server.request("POST", "/api/v1/write", body, bearer(WRITE)).status == 204
    reply = server.get("/api/v1/query", bearer(READ), query="guarded")
    assert len(reply.json()["data"]["result"]) == 1
    assert server.get("/api/v1/query", bearer(WRITE), query="guarded").status == 403
    page = server.get("/metrics", bearer(READ)).body.decode()
    assert 'meshpulse_rejected_total{reason="unauthenticated"} 1.0' in page
    assert 'meshpulse_rejected_total{reason="forbidden"} 2.0' in page
    shown = server.get("/api/v1/status/config", bearer(READ)).json()["data"]["yaml"]
    assert "reader" in shown
    assert READ not in shown
    assert READ not in server.log


def test_probes_pass(server: Server) -> None:
    assert server.get("/-/healthy").status == 200
    assert server.get("/").status == 401


def test_plain_http_gets_nothing(server: Server) -> None:
    context, server.tls = server.tls, None
    try:
        with pytest.raises(OSError):  # noqa: PT011
            server.get("/-/healthy")
    finally:
        server.tls = context
    assert server.get("/-/healthy").status == 200


def test_curl_asks_with_a_password(server: Server, authority: tuple[Path, Path]) -> None:
    url = f"https://127.0.0.1:{server.port}/api/v1/query?query=1%2B1"
    command = [need("curl"), "-sS", "--cacert", authority[0], "-u", f"reader:{READ}", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"]["result"][1] == "2"


# The files


def test_a_renewed_certificate_is_taken(folder: Path, authority: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = certificate(tmp_path, "first", authority), certificate(tmp_path, "second", authority)
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(first[0].read_bytes())
    key.write_bytes(first[1].read_bytes())
    files = TlsFiles(cert, key, None)
    assert not files.refresh()
    cert.write_bytes(second[0].read_bytes())
    assert not files.refresh(), "half of a renewal does not fit"
    key.write_bytes(second[1].read_bytes())
    assert files.refresh()
    assert not files.refresh()
    assert _shown(files, authority[0]) == "second"
    cert.unlink()
    assert not files.refresh()


def _shown(files: TlsFiles, authority: Path) -> str:
    """Common name of the certificate in a handshake, without a network."""
    client_in, client_out, server_in, server_out = (ssl.MemoryBIO() for _ in range(4))
    context = ssl.create_default_context(cafile=str(authority))
    context.check_hostname = False
    client = context.wrap_bio(client_in, client_out)
    server = files.context.wrap_bio(server_in, server_out, server_side=True)
    for _ in range(10):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            server_in.write(client_out.read())
            client_in.write(server_out.read())
    found = client.getpeercert()
    assert found
    return str(dict(pair[0] for pair in found["subject"])["commonName"])


def test_files_that_do_not_fit_stop_the_start(tmp_path: Path, authority: tuple[Path, Path]) -> None:
    other = certificate(tmp_path, "other")
    with pytest.raises(TlsFilesError):
        TlsFiles(authority[0], other[1], None)
    with pytest.raises(TlsFilesError, match="No such file"):
        TlsFiles(tmp_path / "missing", other[1], None)


def test_clients_show_a_certificate_where_it_is_asked_for(tmp_path: Path, authority: tuple[Path, Path]) -> None:
    cert, key = certificate(tmp_path, "both", authority)
    files = TlsFiles(cert, key, authority[0])
    assert files.context.verify_mode is ssl.CERT_REQUIRED
    assert tls.CHECK_SECONDS <= 10
