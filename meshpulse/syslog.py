"""The runtime's part that listens for syslog, from the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from ingest.logs.push import PushReceiver, Streams
from meshpulse.config import Config, ConfigError
from meshpulse.syslog_config import syslog_listener
from meshpulse.tls import TlsFiles
from tsdb.tally import Tally

if TYPE_CHECKING:
    from ingest.syslog.receiver import SyslogReceiver

log = structlog.get_logger(__name__)


class Syslog:
    """The receiver, which exists from the first listener on: its thread and loop cost a megabyte.

    Attributes
    ----------
    receiver : None while nobody ever listened
    """

    def __init__(self, store_of: Callable[[str], Streams], receiver: PushReceiver, tally: Tally) -> None:
        self.receiver: SyslogReceiver | None = None
        self._store_of = store_of
        self._push_receiver = receiver
        self._tally = tally

    def apply(self, config: Config) -> None:
        """Listen as the configuration says, from now on.

        Raises
        ------
        OSError        an address cannot be listened to; nothing has changed
        ConfigError, TlsFilesError        there is no certificate; nothing has changed
        """
        tls = any(entry.protocol == "tls" for entry in config.syslog.listeners)
        if tls and not config.server.tls_cert_file:  # checked when it was read, but ``server`` waits for a restart
            raise ConfigError("syslog.listeners: tls needs server.tls_cert_file, which waits for a restart")
        if self.receiver is None:
            if not config.syslog.listeners:
                return
            self.receiver = self._made(config)
        receiver = self.receiver
        listeners = [syslog_listener(entry) for entry in config.syslog.listeners]
        receiver.apply(listeners)
        for (protocol, _, _), (host, port) in receiver.addresses.items():
            log.info("listening for syslog", protocol=protocol, host=host, port=port)

    def _made(self, config: Config) -> SyslogReceiver:
        from ingest.syslog.receiver import SyslogReceiver

        server = config.server
        tls = None
        if server.tls_cert_file and server.tls_key_file:
            tls = TlsFiles(server.tls_cert_file, server.tls_key_file, server.tls_client_ca_file)
        receiver = SyslogReceiver(
            self._store_of,
            self._push_receiver,
            self._tally,
            streams_max=config.syslog.streams_max,
            tls=tls.context if tls else None,
        )
        receiver.start(tls.follow() if tls else None)
        return receiver

    def close(self) -> None:
        """Listen no more, store what was taken."""
        if self.receiver is not None:
            self.receiver.close()
