"""The country of a client's address, from a MaxMind database."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import maxminddb

_CACHED = 1 << 16
"""Addresses whose country is remembered: a look-up costs 2 us, and clients come again."""


class Countries:
    """Looks addresses up in a database with ``country.iso_code`` (GeoLite2-Country, GeoIP2-City, DB-IP and the like).

    Raises
    ------
    ValueError        the file cannot be read or is no such database
    """

    def __init__(self, path: Path) -> None:
        try:
            self._reader = maxminddb.open_database(str(path))
        except (OSError, maxminddb.InvalidDatabaseError) as error:
            raise ValueError(f"{path}: {error}") from None
        self.of = lru_cache(maxsize=_CACHED)(self._look_up)

    def _look_up(self, address: str) -> str:
        """Two letters; "" = not known, or no address."""
        try:
            found = self._reader.get(address)
        except ValueError:
            return ""
        country = found.get("country") if isinstance(found, dict) else None
        code = country.get("iso_code") if isinstance(country, dict) else None
        return code if isinstance(code, str) else ""

    def close(self) -> None:
        """Let go of the file."""
        self._reader.close()
