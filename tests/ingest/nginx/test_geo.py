"""Countries of clients: from nginx' own field, or from a database made here."""

from __future__ import annotations

from pathlib import Path

import netaddr
import pytest
from mmdb_writer import MMDBWriter

from ingest.nginx.geo import Countries
from tests.ingest.nginx.builders import World, json_source, line


@pytest.fixture
def database(tmp_path: Path) -> Path:
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="GeoIP2-Country")
    writer.insert_network(netaddr.IPSet(["192.0.2.0/24"]), {"country": {"iso_code": "JP"}})
    writer.insert_network(netaddr.IPSet(["2001:db8::/32"]), {"country": {"iso_code": "TW"}})
    writer.insert_network(netaddr.IPSet(["198.51.100.0/24"]), {"registered_country": {"iso_code": "US"}})
    path = tmp_path / "country.mmdb"
    writer.to_db_file(str(path))
    return path


def test_look_up(database: Path) -> None:
    countries = Countries(database)
    addresses = ("192.0.2.9", "2001:db8::1", "198.51.100.1", "203.0.113.1", "-", "unix:")
    assert [countries.of(address) for address in addresses] == ["JP", "TW", "", "", "", ""]
    countries.close()


@pytest.mark.parametrize("content", [b"", b"no database"])
def test_no_database(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.mmdb"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.mmdb"):
        Countries(path)
    with pytest.raises(ValueError, match="No such file"):
        Countries(tmp_path / "absent")


def test_lines_get_the_country_unless_nginx_told_it(tmp_path: Path, database: Path) -> None:
    log = tmp_path / "access.log"
    lines = [
        line(path="/1", remote_addr="192.0.2.1"),
        line(path="/2", remote_addr="192.0.2.1", geoip_country="KR"),
        line(path="/3", remote_addr="203.0.113.1", geoip_country=""),
        line(path="/4", remote_addr="2001:db8::7", geoip_country=""),
    ]
    log.write_bytes(b"\n".join(lines) + b"\n")
    world = World(tmp_path, [json_source(str(log))], countries=Countries(database))
    try:
        world.tailer.load()
        world.read()
        found = {}
        for frame in world.logs.select([], 0, 1 << 62):
            column = frame.metadata("geoip_country")
            for i, text in enumerate(frame.lines().to_list()):
                told = column is not None and (column.present is None or bool(column.present[i]))
                found[text] = column.texts().text(i).decode() if told and column is not None else None
        assert [found[text] for text in lines] == ["JP", None, None, "TW"]
    finally:
        world.close()
