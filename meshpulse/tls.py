"""TLS by files: certificates that are renewed on disk are taken without a restart."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

CHECK_SECONDS = 10.0
"""Between two looks at the files; certificates are renewed days before they end."""


class TlsFilesError(Exception):
    """The files are not a certificate and its key."""


class TlsFiles:
    """A server's TLS context that follows its files.

    Attributes
    ----------
    context : ssl.SSLContext        handshakes from the next one on use what was read last

    Raises
    ------
    TlsFilesError        the files cannot be read or do not belong together
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        self._cert = cert
        self._key = key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            self._stamp = self._stamps()
            self.context.load_cert_chain(cert, key)
            if client_ca is not None:
                self.context.load_verify_locations(client_ca)
                self.context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            raise TlsFilesError(f"TLS files {cert} and {key}: {error}") from None

    def _stamps(self) -> tuple[int, ...]:
        """What changes when a file is written or replaced."""
        found = [path.stat() for path in (self._cert, self._key)]
        return tuple(value for stat in found for value in (stat.st_mtime_ns, stat.st_ino, stat.st_size))

    def refresh(self) -> bool:
        """Read changed files; ones that do not fit, as in the middle of a renewal, are tried again the next time."""
        try:
            stamp = self._stamps()
            if stamp == self._stamp:
                return False
            # A context of its own first: a pair that does not fit would leave half of itself in the one in use.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._cert, self._key)
            self.context.load_cert_chain(self._cert, self._key)
        except (OSError, ssl.SSLError) as error:
            log.warning("TLS files cannot be used, the old certificate stays", reason=str(error))
            return False
        self._stamp = stamp
        log.info("TLS certificate read again", file=str(self._cert))
        return True

    async def follow(self) -> None:
        """Look at the files for ever."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self.refresh()
