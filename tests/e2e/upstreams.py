"""Upstreams that only count, and requests one after the other, so that a round robin can be counted exactly."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Upstreams:
    """Some HTTP servers on free ports; ``with`` ends them.

    Attributes
    ----------
    addresses : ``127.0.0.1:PORT`` of each
    served : requests answered by each
    """

    def __init__(self, n: int) -> None:
        self.served = [0] * n
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler(i)) for i in range(n)]
        self.addresses = [f"127.0.0.1:{server.server_port}" for server in self._servers]

    def _handler(self, i: int) -> type[BaseHTTPRequestHandler]:
        served = self.served

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # the name is http.server's
                served[i] += 1
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        return Handler

    def __enter__(self) -> Upstreams:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def send(self, port: int, n: int, path: str = "/") -> tuple[list[int], Counter[int]]:
        """Send n requests to a proxy; how many reached each upstream, and the answers by status."""
        before = list(self.served)
        statuses: Counter[int] = Counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            for _ in range(n):
                connection.request("GET", path)
                reply = connection.getresponse()
                reply.read()
                statuses[reply.status] += 1
        finally:
            connection.close()
        return [now - then for now, then in zip(self.served, before, strict=True)], statuses
