"""What holds for every connection, whatever is asked over it: how many, how long they may take, how large a head is."""

from __future__ import annotations

import resource
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from tsdb.errors import Reason
from tsdb.tally import Tally

log = structlog.get_logger(__name__)

IDLE_S = 75.0
"""A connection between requests is closed after this, as nginx does; senders come more often."""
BODY_BYTES_A_SECOND_MIN = 64 << 10
"""Who sends a body at least as fast is never too slow: 32 MiB over a poor link are no attack."""
CHECK_S = 1.0
"""How often the connections are looked through: a timer for each request would cost more than all of this."""
FILES_RESERVED = 512
"""Files that are no connection: log segments, blocks, scraped targets, and a second descriptor of each direct one."""
CONNECTIONS_MIN = 64
"""However few files we may open: then opening one fails and says so, rather than that nobody is served."""


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """What a connection may be; the config keys ``server.*`` override them."""

    connections_max: int = 10_000  # of 12 kB each when idle; a mesh has fewer senders and dashboards
    header_bytes_max: int = 64 << 10  # of a request line and its header; selectors in a URL are long, Go allows 1 MB
    header_timeout_s: float = 10.0  # a head is one packet or two
    body_timeout_s: float = 60.0  # senders give up after 30
    response_timeout_s: float = 60.0  # nothing of a response was taken: it holds the memory of its result


class Refusal(NamedTuple):
    """Why a connection is ended, and how that is said."""

    reason: Reason
    status: int
    text: str


MALFORMED = Refusal(Reason.MALFORMED_REQUEST, 400, "Bad Request: this is no HTTP")
HEADER_TIMEOUT = Refusal(
    Reason.REQUEST_TIMEOUT, 408, "Request Timeout: the header took too long (server.header_timeout)"
)
BODY_TIMEOUT = Refusal(Reason.REQUEST_TIMEOUT, 408, "Request Timeout: the body took too long (server.body_timeout)")
HEADER_TOO_LARGE = Refusal(Reason.HEADER_TOO_LARGE, 431, "Request Header Fields Too Large (server.header_bytes_max)")
TOO_MANY_CONNECTIONS = Refusal(
    Reason.CONNECTIONS, 503, "Service Unavailable: too many connections (server.connections_max)"
)


class Edge:
    """What all connections share.

    Parameters
    ----------
    limits : what one may be
    tally : counts of what was refused

    Attributes
    ----------
    limits, tally : as given
    connections_max : ``limits.connections_max``, or less when we may not open so many files
    connections : those that are open
    """

    def __init__(self, limits: EdgeLimits, tally: Tally) -> None:
        self.limits = limits
        self.tally = tally
        self.connections_max = limits.connections_max
        self.connections: Collection[object] = ()

    def make_room(self) -> None:
        """Let this process open the files that its connections need, as far as the system allows it; or say so."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = self.limits.connections_max + FILES_RESERVED
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return
        files = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
        if files < wanted:
            self.connections_max = max(CONNECTIONS_MIN, files - FILES_RESERVED)
            log.warning(
                "fewer connections than server.connections_max: raise the limit of open files (LimitNOFILE, ulimit -n)",
                connections_max=self.connections_max,
                configured=self.limits.connections_max,
                open_files_max=files,
            )


def response_of(refusal: Refusal) -> bytes:
    """The last response of a connection."""
    phrase = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}
    body = f"{refusal.text}\n".encode()
    head = [
        f"HTTP/1.1 {refusal.status} {phrase.get(refusal.status, 'Service Unavailable')}",
        "content-type: text/plain; charset=utf-8",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    if refusal.status == 503:
        head.append("retry-after: 1")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body
