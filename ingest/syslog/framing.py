"""Where messages begin and end on a connection (RFC 6587, RFC 5425)."""

from __future__ import annotations

import re

_COUNTED = re.compile(rb"([1-9][0-9]{0,8}) (?=<)")
_PERHAPS_COUNTED = re.compile(rb"[1-9][0-9]{0,8} ?\Z")
_END = re.compile(rb"[\n\0]")
"""Line feed, as nearly all end a message; Python's SysLogHandler ends it with a zero byte."""


class Framer:
    """Cuts what a connection brings into messages; each one may be counted or ended by a line feed.

    Parameters
    ----------
    bytes_max : of a message; of a longer one nothing is kept

    Attributes
    ----------
    too_long : messages that were longer, since somebody asked last
    """

    def __init__(self, bytes_max: int) -> None:
        self.too_long = 0
        self._bytes_max = bytes_max
        self._rest = b""
        self._skip = 0  # bytes of a counted message that is too long
        self._skip_line = False

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are whole now."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        data, at = self._rest + data, 0
        out: list[bytes] = []
        while at < len(data):
            counted = None if self._skip_line else _COUNTED.match(data, at)
            if counted is not None:
                begin, size = counted.end(), int(counted[1])
                if size > self._bytes_max:
                    self.too_long += 1
                    self._skip = max(0, begin + size - len(data))
                    at = min(begin + size, len(data))
                    continue
                if begin + size > len(data):
                    break
                out.append(data[begin : begin + size])
                at = begin + size
                continue
            if not self._skip_line and _PERHAPS_COUNTED.match(data, at):
                break  # the next byte tells
            end = _END.search(data, at)
            if end is None:
                if self._skip_line or len(data) - at > self._bytes_max:
                    self.too_long += not self._skip_line
                    self._skip_line = True
                    at = len(data)
                break
            if self._skip_line:
                self._skip_line = False
            elif end.start() - at > self._bytes_max:
                self.too_long += 1
            elif end.start() > at:
                out.append(data[at : end.start()])
            at = end.end()
        self._rest = data[at:]
        return out

    def close(self) -> list[bytes]:
        """The connection has ended: what came last and was not ended is a message (RFC 6587, section 3.4.2)."""
        rest, self._rest = self._rest, b""
        if not rest or self._skip_line or _COUNTED.match(rest) or _PERHAPS_COUNTED.match(rest):
            return []
        return [rest]
