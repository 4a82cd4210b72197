"""Countries of clients: from nginx' own field, or from a database made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import netaddr
import orjson
import pytest
from mmdb_writer import MMDBWriter

from ingest.nginx import geo
from ingest.nginx.columns import JsonFormat
from ingest.nginx.derive import Rule
from ingest.nginx.geo import Countries, CountryTagger
from tests.ingest.nginx.builders import NOW_S, World, json_source, line
from tsdb.matchers import Matcher, MatchOp


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return write_database(tmp_path / "country.mmdb", "JP")


def write_database(path: Path, code: str, network: str = "192.0.2.0/24") -> Path:
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="GeoIP2-Country")
    writer.insert_network(netaddr.IPSet([network]), {"country": {"iso_code": code}})
    writer.insert_network(netaddr.IPSet(["2001:db8::/32"]), {"country": {"iso_code": "TW"}})
    writer.insert_network(netaddr.IPSet(["198.51.100.0/24"]), {"registered_country": {"iso_code": "US"}})
    writer.to_db_file(str(path))
    return path


def test_look_up(database: Path) -> None:
    countries = Countries(database)
    addresses = ("192.0.2.9", "2001:db8::1", "198.51.100.1", "203.0.113.1", "-", "unix:")
    assert [countries.of(address) for address in addresses] == ["JP", "TW", "", "", "", ""]


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
        found = told(world)
        assert [found.get(text) for text in lines] == ["JP", None, None, "TW"]
    finally:
        world.close()


def told(world: World) -> dict[bytes, str]:
    """Country of each line that has one."""
    found = {}
    for frame in world.logs.select([], 0, 1 << 62):
        column = frame.metadata("geoip_country")
        for i, text in enumerate(frame.lines().to_list()):
            if column is not None and (column.present is None or bool(column.present[i])):
                found[text] = column.texts().text(i).decode()
    return found


def test_a_file_that_changes_is_read_again(database: Path) -> None:
    countries = Countries(database)
    assert countries.of("192.0.2.1") == "JP"
    write_database(database.with_suffix(".new"), "KR").rename(database)  # as geoipupdate does
    countries.refresh()
    assert countries.of("192.0.2.1") == "KR"
    database.write_bytes(b"half")  # overwritten in place, which a mapped file would not survive
    countries.refresh()
    assert (countries.of("192.0.2.1"), countries.of("2001:db8::1")) == ("KR", "TW")
    database.unlink()
    countries.refresh()
    assert countries.of("192.0.2.1") == "KR"
    write_database(database, "CN")
    countries.refresh()
    assert countries.of("192.0.2.1") == "CN"


def test_it_looks_at_the_file_by_itself(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geo, "CHECK_S", 0.0)
    countries = Countries(database)
    write_database(database.with_suffix(".new"), "KR").rename(database)
    assert countries.of("192.0.2.1") == "KR"


def pushed(world: World, lines: Sequence[bytes], app: str = "edge", metadata: Mapping[str, str] | None = None) -> None:
    stamps = [str((NOW_S + i) * 10**9) for i in range(len(lines))]
    values = [[stamp, text.decode(), metadata or {}] for stamp, text in zip(stamps, lines, strict=True)]
    body = orjson.dumps({"streams": [{"stream": {"app": app}, "values": values}]})
    received = world.receiver.json(world.logs, "default", body)
    assert received.future is not None
    received.future.result()


@pytest.mark.parametrize("flushed", [False, True])
def test_pushed_lines_get_it_too_and_repeated_ones_stay_one(tmp_path: Path, database: Path, flushed: bool) -> None:
    rule = Rule(JsonFormat({}), (Matcher("app", MatchOp.EQUAL, "edge"),))
    errors = Rule(None, (Matcher("app", MatchOp.EQUAL, "errors"),))
    log = tmp_path / "access.log"
    log.write_bytes(line(path="/f", remote_addr="192.0.2.1") + b"\n")
    world = World(tmp_path, [json_source(str(log))], rules=[errors, rule], countries=Countries(database))
    world.receiver.taggers["default"] = CountryTagger(world.deriver, Countries(database))
    try:
        world.tailer.load()
        world.read()
        lines = [
            line(path="/1", remote_addr="192.0.2.1"),
            line(path="/2", remote_addr="192.0.2.1", geoip_country="KR"),
            b"{broken",
            line(path="/4", remote_addr="2001:db8::7"),
            line(path="/5", remote_addr="203.0.113.1"),
        ]
        for _ in range(2):
            pushed(world, lines)
            pushed(world, [line(path="/6", remote_addr="192.0.2.1")], metadata={"a": "b", "trace": "c"})
            pushed(world, [line(path="/7", remote_addr="192.0.2.1")], metadata={"geoip_country": "US"})
            pushed(world, [line(path="/8", remote_addr="192.0.2.1")], app="other")
            pushed(world, [line(path="/9", remote_addr="192.0.2.1")], app="errors")
            if flushed:
                world.logs.flush()
        assert told(world) == {
            line(path="/f", remote_addr="192.0.2.1"): "JP",
            lines[0]: "JP",
            lines[3]: "TW",
            line(path="/6", remote_addr="192.0.2.1"): "JP",
            line(path="/7", remote_addr="192.0.2.1"): "US",
        }
        assert len(world.lines()) == len(lines) + 5, "each is there once"
        [frame] = [f for f in world.logs.select([], 0, 1 << 62) for t in f.lines().to_list() if b'"/6"' in t]
        trace = frame.metadata("trace")
        assert trace is not None
        assert [t for t in trace.texts().to_list() if t] == [b"c"]
    finally:
        world.close()
