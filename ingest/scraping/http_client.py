"""How we ask others over HTTP: credentials, TLS, proxy, redirects, by Prometheus' names; for scrapes and discovery."""

from __future__ import annotations

import base64
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yarl import URL

TLS_VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
"""By Prometheus' names."""


class HttpClientError(Exception):
    """A file with a secret or a certificate cannot be used."""


@dataclass(frozen=True, slots=True)
class BasicAuth:
    """User and password, each written down or in a file."""

    username: str = ""
    username_file: Path | None = None
    password: str = field(default="", repr=False)
    password_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Authorization:
    """A scheme and its credentials, written down or in a file."""

    type: str = "Bearer"
    credentials: str = field(default="", repr=False)
    credentials_file: Path | None = None


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """What is trusted, what is shown, which versions are spoken.

    Attributes
    ----------
    ca_file : authorities instead of the system's
    cert_file, key_file : shown to servers that ask who we are
    server_name : expected in the certificate instead of the host
    min_version, max_version : keys of :data:`TLS_VERSIONS`
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str = ""
    insecure_skip_verify: bool = False
    min_version: str = "TLS12"
    max_version: str = ""


@dataclass(frozen=True, slots=True)
class HttpClientConfig:
    """Everything about a client; the default asks plainly and follows redirects."""

    basic_auth: BasicAuth | None = None
    authorization: Authorization | None = None
    tls: TlsConfig = TlsConfig()
    follow_redirects: bool = True
    proxy_url: str = field(default="", repr=False)


_Stamp = tuple[int, int, int]


def _stamp(path: Path) -> _Stamp:
    """What changes when a file is written or replaced."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


class _FileText:
    """The text of a file without the blanks around it, read again when the file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: _Stamp | None = None
        self._text = ""

    def read(self) -> str:
        try:
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._text = self._path.read_text(encoding="utf-8").strip()
                self._stamp = stamp
        except (OSError, UnicodeDecodeError) as error:
            raise HttpClientError(f"unable to read file {self._path}: {error}") from None
        return self._text


class HttpClient:
    """Arguments of requests; files of secrets and certificates may be renewed under way.

    Not for several threads at once.
    """

    def __init__(self, config: HttpClientConfig) -> None:
        self._config = config
        basic, other = config.basic_auth, config.authorization
        named = [basic.username_file, basic.password_file] if basic else [other.credentials_file] if other else []
        self._texts = {path: _FileText(path) for path in named if path}
        self._context: ssl.SSLContext | None = None
        self._stamps: list[_Stamp] = []

    def arguments(self, url: URL) -> dict[str, Any]:
        """What to give to ``aiohttp.ClientSession.get`` beside the URL; ``headers`` is always there.

        Raises
        ------
        HttpClientError        a file cannot be used
        """
        given: dict[str, Any] = {"headers": self._headers(), "allow_redirects": self._config.follow_redirects}
        if url.scheme == "https" or self._config.follow_redirects:
            given["ssl"] = self._tls()
        if url.scheme == "https" and self._config.tls.server_name:
            given["server_hostname"] = self._config.tls.server_name
        if self._config.proxy_url:
            given["proxy"] = self._config.proxy_url
        return given

    def _headers(self) -> dict[str, str]:
        basic, other = self._config.basic_auth, self._config.authorization
        if basic:
            user = self._secret(basic.username, basic.username_file)
            password = self._secret(basic.password, basic.password_file)
            return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
        if other:
            return {"Authorization": f"{other.type} {self._secret(other.credentials, other.credentials_file)}"}
        return {}

    def _secret(self, text: str, path: Path | None) -> str:
        return self._texts[path].read() if path else text

    def _tls(self) -> ssl.SSLContext | bool:
        """The context for the files as they are now; True = the usual one, which the session shares."""
        tls = self._config.tls
        if tls == TlsConfig():
            return True
        try:
            stamps = [_stamp(path) for path in (tls.ca_file, tls.cert_file, tls.key_file) if path]
            if self._context is None or stamps != self._stamps:
                self._context = _context(tls)
                self._stamps = stamps
        except (OSError, ssl.SSLError, ValueError) as error:
            raise HttpClientError(f"tls_config: {error}") from None
        return self._context


def _context(tls: TlsConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(tls.ca_file) if tls.ca_file else None)
    if tls.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = TLS_VERSIONS[tls.min_version]
    if tls.max_version:
        context.maximum_version = TLS_VERSIONS[tls.max_version]
    if tls.cert_file and tls.key_file:
        context.load_cert_chain(tls.cert_file, tls.key_file)
    return context
