"""Addresses, ranges and networks of ``ip("...")``."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_CANDIDATE = re.compile(
    r"(?<![0-9A-Fa-f:.])(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})(?![0-9A-Fa-f:])"
)


@dataclass(frozen=True, slots=True)
class Addresses:
    """All addresses of one version from ``first`` to ``last``."""

    version: int
    first: int
    last: int

    def holds(self, text: str) -> bool | None:
        """Whether ``text`` is one of them; None when it is no address."""
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return None
        return address.version == self.version and self.first <= int(address) <= self.last

    def found_in(self, line: str) -> bool:
        """Whether one of them stands anywhere in a line."""
        return any(self.holds(candidate[0]) for candidate in _CANDIDATE.finditer(line))


def parse_addresses(text: str) -> Addresses:
    """``192.168.4.5``, ``192.168.4.5-192.168.4.20``, ``192.168.4.0/24`` or the same of IPv6.

    Raises
    ------
    ValueError        with Loki's words
    """
    try:
        if "/" in text:
            network = ipaddress.ip_network(text, strict=False)
            return Addresses(network.version, int(network.network_address), int(network.broadcast_address))
        low, dash, high = text.partition("-")
        first = ipaddress.ip_address(low.strip())
        last = ipaddress.ip_address(high.strip()) if dash else first
    except ValueError:
        raise ValueError(f"ip: invalid pattern: {text}") from None
    if first.version != last.version or int(first) > int(last):
        raise ValueError(f"ip: invalid pattern: {text}")
    return Addresses(first.version, int(first), int(last))
