"""Credentials and TLS of requests, against servers that insist on them."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from ingest.scraping.http_client import (
    Authorization,
    BasicAuth,
    HttpClient,
    HttpClientConfig,
    HttpClientError,
    TlsConfig,
)
from tests.certificates import certificate
from tests.ingest.site import Site


def header(config: HttpClientConfig) -> str | None:
    return HttpClient(config).arguments(URL("http://h/"))["headers"].get("Authorization")


def test_headers() -> None:
    assert header(HttpClientConfig()) is None
    assert header(HttpClientConfig(basic_auth=BasicAuth("ü", password="p:w"))) == "Basic w7w6cDp3"
    assert header(HttpClientConfig(authorization=Authorization(credentials="abc"))) == "Bearer abc"
    assert header(HttpClientConfig(authorization=Authorization("Token", "abc"))) == "Token abc"


def test_secrets_in_files_are_read_again(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    client = HttpClient(HttpClientConfig(authorization=Authorization(credentials_file=file)))
    with pytest.raises(HttpClientError, match=r"unable to read file .*secret"):
        client.arguments(URL("http://h/"))
    for secret in ("first", "second-one"):
        file.write_text(f"{secret}\n")
        assert client.arguments(URL("http://h/"))["headers"] == {"Authorization": f"Bearer {secret}"}
    user = tmp_path / "user"
    user.write_text("me")
    assert header(HttpClientConfig(BasicAuth(username_file=user, password_file=file))) == "Basic bWU6c2Vjb25kLW9uZQ=="


def test_secrets_are_not_shown() -> None:
    config = HttpClientConfig(BasicAuth("u", password="hush"), Authorization(credentials="hush"), proxy_url="hush")
    assert "hush" not in repr(config)


def test_redirects_proxy_and_names() -> None:
    config = HttpClientConfig(follow_redirects=False, proxy_url="http://p:1", tls=TlsConfig(server_name="n"))
    plain = HttpClient(config).arguments(URL("http://h/"))
    assert plain == {"headers": {}, "allow_redirects": False, "proxy": "http://p:1"}
    assert HttpClient(config).arguments(URL("https://h/"))["server_hostname"] == "n"
    assert HttpClient(HttpClientConfig()).arguments(URL("https://h/"))["ssl"] is True


async def _get(site: Site, client: HttpClient) -> str:
    url = URL(f"https://{site.address}/")
    async with aiohttp.ClientSession() as session, session.get(url, **client.arguments(url)) as response:
        return await response.text()


def test_tls_is_checked_as_configured(tmp_path: Path) -> None:
    authority = certificate(tmp_path, "authority")
    other = certificate(tmp_path, "other")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*certificate(tmp_path, "server", authority))
    server.load_verify_locations(authority[0])
    server.verify_mode = ssl.CERT_REQUIRED
    cert, key = certificate(tmp_path, "client", authority)
    mine: dict[str, Any] = {"cert_file": cert, "key_file": key}

    def client(**tls: Any) -> HttpClient:
        return HttpClient(HttpClientConfig(tls=TlsConfig(**tls)))

    async def run() -> None:
        async with Site(tls=server) as site:
            good = client(ca_file=authority[0], **mine)
            assert await _get(site, good) == "a 1\n"
            assert await _get(site, client(insecure_skip_verify=True, **mine)) == "a 1\n"
            assert await _get(site, client(ca_file=authority[0], server_name="127.0.0.1", **mine)) == "a 1\n"
            for bad in (
                client(**mine),  # the system does not know the authority
                client(ca_file=other[0], **mine),
                client(ca_file=authority[0], server_name="elsewhere", **mine),
                client(ca_file=authority[0]),  # the server wants to know who we are
            ):
                with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
                    await _get(site, bad)
            server.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises(aiohttp.ClientError):
                await _get(site, client(ca_file=authority[0], min_version="TLS13", **mine))
            server.maximum_version = ssl.TLSVersion.TLSv1_3
            # a renewed certificate is taken from the next request on, a broken one is named
            before = good.arguments(URL("https://h/"))["ssl"]
            assert good.arguments(URL("https://h/"))["ssl"] is before
            renewed = certificate(tmp_path, "renewed", authority)
            cert.write_bytes(renewed[0].read_bytes())
            key.write_bytes(renewed[1].read_bytes())
            assert good.arguments(URL("https://h/"))["ssl"] is not before
            assert await _get(site, good) == "a 1\n"
            key.write_text("nonsense")
            with pytest.raises(HttpClientError, match="tls_config: "):
                good.arguments(URL("https://h/"))

    asyncio.run(run())


def test_credentials_stay_with_their_server() -> None:
    async def run() -> None:
        async with Site() as other, Site() as site:

            async def away(_: web.Request) -> web.Response:
                return web.Response(status=302, headers={"Location": f"http://{other.address}/x"})

            site.answer = away
            for follow, status in ((True, 200), (False, 302)):
                config = HttpClientConfig(authorization=Authorization(credentials="abc"), follow_redirects=follow)
                url = URL(f"http://{site.address}/")
                arguments = HttpClient(config).arguments(url)
                async with aiohttp.ClientSession() as session, session.get(url, **arguments) as response:
                    assert response.status == status
            assert [request.headers.get("Authorization") for request in site.requests] == ["Bearer abc"] * 2
            assert [request.headers.get("Authorization") for request in other.requests] == [None]

    asyncio.run(run())


def test_a_proxy_is_asked_instead() -> None:
    async def run() -> None:
        async with Site("from the proxy") as proxy:
            url = URL("http://nowhere.invalid/x")
            arguments = HttpClient(HttpClientConfig(proxy_url=f"http://{proxy.address}")).arguments(url)
            async with aiohttp.ClientSession() as session, session.get(url, **arguments) as response:
                assert await response.text() == "from the proxy"
            assert [str(request.url) for request in proxy.requests] == [str(url)]

    asyncio.run(run())
