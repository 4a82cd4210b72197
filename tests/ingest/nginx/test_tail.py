"""Files that are followed: whole lines, rotation of both kinds, positions, and what a crash reads again."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.nginx.columns import COMBINED, TextFormat
from ingest.nginx.entries import SourceSettings
from tests.ingest.nginx.builders import NOW_S, World, json_source, line
from tsdb.errors import OverloadedError, Reason

LABELS = {"job": "nginx", "env": "prod", "host": "web-1"}


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[Any]:
    """Makes worlds over one data folder, one after the other."""
    made: list[World] = []

    def make(*sources: SourceSettings, **settings: Any) -> World:
        world = World(tmp_path, sources or [json_source(str(tmp_path / "*.log"))], **settings)
        world.tailer.load()
        made.append(world)
        return world

    yield make
    if made:
        made[-1].close()


def write(path: Path, *lines: bytes, end: bytes = b"\n") -> None:
    with path.open("ab") as file:
        file.write(b"\n".join(lines) + end)


def test_streams_have_only_the_five_labels(worlds: Any, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    write(log, line(host="a.example"), line(host="B.example"), line(host="a.example", status=502))
    world = worlds()
    world.read()
    assert {tuple(sorted(labels.items())) for _, _, labels in world.entries()} == {
        tuple(sorted({**LABELS, "site": site, "log": "access"}.items())) for site in ("a.example", "b.example")
    }
    assert world.lines(site="a.example") == [line(host="a.example"), line(host="a.example", status=502)]


def test_a_line_without_its_end_waits(worlds: Any, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    text = line()
    write(log, text, text[:30], end=b"")
    world = worlds()
    world.read()
    assert world.lines() == [text]
    write(log, text[30:])
    world.read()
    assert world.lines() == [text, text]


def test_lines_that_are_alike_are_all_kept(worlds: Any, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    text = b'192.0.2.1 - - [02/Nov/2026:06:13:20 +0000] "GET / HTTP/1.1" 200 3 "-" "probe"'
    write(log, *[text] * 5)
    world = worlds(SourceSettings([str(log)], format=TextFormat(COMBINED), labels={**LABELS, "site": "a"}))
    world.read()
    entries = world.entries(site="a")
    assert [entry[1] for entry in entries] == [text] * 5
    assert {entry[0] // 10**9 for entry in entries} == {1_793_600_000}


def test_rotation_by_rename(worlds: Any, tmp_path: Path) -> None:
    log, old = tmp_path / "access.log", tmp_path / "access.log.1"
    write(log, line(path="/1"))
    world = worlds()
    world.read()
    write(log, line(path="/2"))
    log.rename(old)
    write(old, line(path="/3"))  # nginx writes on until it reopens its logs
    world.read()
    write(log, line(path="/4"))
    world.read()
    write(old, line(path="/5"))
    world.read()
    assert sorted(json.loads(text)["path"] for text in world.lines()) == [f"/{i}" for i in range(1, 6)]
    assert world.tailer.stats.rotations == 1


def test_rotation_while_we_are_away(worlds: Any, tmp_path: Path) -> None:
    log, old = tmp_path / "access.log", tmp_path / "access.log-20261125"
    write(log, line(path="/1"))
    world = worlds()
    world.read()
    world.close()
    write(log, line(path="/2"))
    log.rename(old)
    write(log, line(path="/3"))
    world = worlds()
    world.read()
    assert sorted(json.loads(text)["path"] for text in world.lines()) == ["/1", "/2", "/3"]


@pytest.mark.parametrize("away", [False, True])
def test_copytruncate_finds_the_rest_in_the_copy(worlds: Any, tmp_path: Path, away: bool) -> None:
    log, copy = tmp_path / "access.log", tmp_path / "access.log.1"
    write(log, line(path="/1"))
    world = worlds()
    world.read()
    if away:
        world.close()
    write(log, line(path="/2"))
    shutil.copy(log, copy)
    with log.open("r+b") as file:
        file.truncate(0)
    write(log, line(path="/3"))
    if away:
        world = worlds()
    world.read()
    assert sorted(json.loads(text)["path"] for text in world.lines()) == ["/1", "/2", "/3"]


def test_truncated_and_grown_beyond_between_two_looks(worlds: Any, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    write(log, line(path="/1"))
    world = worlds()
    world.read()
    with log.open("r+b") as file:
        file.truncate(0)
    write(log, line(path="/2"), line(path="/3"), line(path="/4"))
    world.read()
    assert [json.loads(text)["path"] for text in world.lines()] == ["/1", "/2", "/3", "/4"]
    assert world.tailer.stats.truncations == 1


def test_another_file_under_the_same_inode_number(worlds: Any, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    write(log, line(path="/1"))
    world = worlds()
    world.read()
    world.close()
    inode = log.stat().st_ino
    with log.open("wb") as file:  # the same inode, as the file system gives to the next file after a removal
        file.write(b"".join(line(path=f"/new/{i}") + b"\n" for i in range(3)))
    assert log.stat().st_ino == inode
    world = worlds()
    world.read()
    assert len(world.lines()) == 4


def test_positions_survive_and_a_crash_reads_again_without_doubles(worlds: Any, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    write(log, *[line(path=f"/{i}") for i in range(10)])
    world = worlds()
    world.read()
    world.tailer.save()
    write(log, *[line(path=f"/{i}") for i in range(10, 20)])
    world.read()
    world.logs.flush()  # into a part: what is in memory would be recognised anyway
    saved = (tmp_path / "positions.json").read_bytes()
    world.close()
    before = json.loads(saved)["files"][0]["offset"]
    assert before == sum(len(line(path=f"/{i}")) + 1 for i in range(10))
    (tmp_path / "positions.json").write_bytes(saved)  # as if the process had been killed before it said more
    write(log, line(path="/20"))
    world = worlds()
    world.read()
    assert [json.loads(text)["path"] for text in world.lines()] == [f"/{i}" for i in range(21)]
    world.count()
    assert world.deriver.stats.lines == 1, "what was stored before is not counted again"


def test_a_file_of_positions_that_is_damaged_stops_the_start(worlds: Any, tmp_path: Path) -> None:
    (tmp_path / "positions.json").write_bytes(b'{"version": 1, "files": [], "crc32": 1}')
    world = World(tmp_path, [json_source(str(tmp_path / "*.log"))])
    try:
        with pytest.raises(ValueError, match="checksum"):
            world.tailer.load()
    finally:
        world.close()


def test_start_at_the_end(worlds: Any, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    write(log, line(path="/old"), line(path="/half")[:20], end=b"")
    world = worlds(json_source(str(log), from_end=True))
    world.read()
    write(log, line(path="/half")[20:], line(path="/new"))
    world.read()
    assert [json.loads(text)["path"] for text in world.lines()] == ["/half", "/new"]


def test_a_busy_store_keeps_the_position(worlds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "access.log"
    write(log, line(path="/1"))
    world = worlds()

    def busy(*_: object) -> None:
        raise OverloadedError("full")

    with monkeypatch.context() as patch:
        patch.setattr(world.logs, "append", busy)
        with pytest.raises(OverloadedError):
            world.tailer.poll()
    assert world.tailer.stats.lines == 0
    world.read()
    assert world.lines() == [line(path="/1")]


def test_long_lines_and_bad_bytes(worlds: Any, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    bad = line(path="/x").replace(b"/x", b"/\xff")
    write(log, line(path="/1"), b"x" * 3_000_000, line(path="/" + "y" * 2000), bad, b"", line(path="/2"))
    world = worlds(limits={"line_bytes_max": 1000})
    world.read()
    assert [json.loads(text)["path"] for text in world.lines()] == ["/1", "/\N{REPLACEMENT CHARACTER}", "/2"]
    assert world.tally.snapshot()[Reason.LINE_TOO_LONG] == 2
    assert world.tailer.stats.replaced == 1


def test_too_many_sites_become_one(worlds: Any, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    write(log, *[line(host=f"{i}.example") for i in range(6)])
    world = worlds(sites_max=3)
    world.read()
    assert {labels["site"] for _, _, labels in world.entries()} == {"0.example", "1.example", "2.example", "other"}
    assert world.tally.snapshot()[Reason.SERIES_LIMIT] == 3


def test_site_from_the_path_and_error_lines(worlds: Any, tmp_path: Path) -> None:
    pattern = re.compile(r"(?P<site>[^/]+)\.access\.log$")
    (tmp_path / "e").mkdir()
    error = tmp_path / "e" / "error.log"
    write(tmp_path / "shop.access.log", line())
    text = (
        b"2026/11/02 06:13:20 [error] 7#7: *1 connect() failed (111: Connection refused) while connecting to upstream, "
        b'client: 127.0.0.1, server: shop, request: "GET / HTTP/1.1", upstream: "http://127.0.0.1:1/", host: "shop"'
    )
    write(error, b"2026/11/02 06:13:20 [notice] 7#7: signal 1", text)
    world = worlds(
        json_source(str(tmp_path / "*.access.log"), site_by_line=False, site_pattern=pattern),
        SourceSettings([str(error)], log="error", labels=LABELS),
    )
    world.read()
    assert world.lines(site="shop", log="access") == [line()]
    assert world.lines(site="shop", log="error") == [text]
    assert world.lines(site="", log="error") == [b"2026/11/02 06:13:20 [notice] 7#7: signal 1"]
    world.count()
    assert world.series("nginx_error_log_lines_total") == {
        (("env", "prod"), ("host", "web-1"), ("level", "error"), ("site", "shop")): 1.0,
        (("env", "prod"), ("host", "web-1"), ("level", "notice")): 1.0,
    }
    assert list(world.series("nginx_upstream_error_log_lines_total").values()) == [1.0]


def test_compressed_files_and_second_names_are_left_alone(worlds: Any, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    write(log, line())
    (tmp_path / "access.log.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "b.log").hardlink_to(log)
    world = worlds(json_source(str(tmp_path / "*")))
    world.read()
    assert [text for text in world.lines() if text == line()] == [line()]
    assert NOW_S > 0


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_to_the_file_every_line_is_stored_once(worlds: Any, tmp_path: Path, seed: int) -> None:
    """Writes, half lines, both kinds of rotation, restarts and crashes in any order."""
    dice = random.Random(seed)
    log, positions = tmp_path / "access.log", tmp_path / "positions.json"
    number = rotations = 0
    half = b""
    log.touch()
    world = worlds(json_source(str(log)))
    saved: bytes | None = None
    for _ in range(40):
        what = dice.choice(
            ("write", "write", "write", "half", "rename", "copy", "read", "read", "save", "restart", "crash")
        )
        if what in ("write", "half") and half:
            write(log, half)
            half = b""
        if what == "write":
            made = [line(path=f"/{number + i}") for i in range(dice.randrange(1, 9))]
            number += len(made)
            write(log, *made)
        elif what == "half":
            text = line(path=f"/{number}")
            number += 1
            cut = dice.randrange(1, len(text))
            write(log, text[:cut], end=b"")
            half = text[cut:]
        elif what == "rename" and not half:
            rotations += 1
            world.read()  # nobody finds a file again that was renamed twice while nobody looked
            log.rename(tmp_path / f"access.log.{rotations}")
            log.touch()
        elif what == "copy" and not half:
            rotations += 1
            world.read()
            if dice.random() < 0.5 and log.stat().st_size:  # a copy is known by its begin
                number += 1
                write(log, line(path=f"/{number - 1}"))
            shutil.copy(log, tmp_path / f"access.log.{rotations}")
            with log.open("r+b") as file:
                file.truncate(0)
            world.read()
        elif what == "read":
            world.read()
        elif what == "save":
            world.tailer.save()
            saved = positions.read_bytes()
        elif what in ("restart", "crash"):
            world.close()
            if what == "crash" and saved is not None:
                positions.write_bytes(saved)
            world = worlds(json_source(str(log)))
    if half:
        write(log, half)
    world.read()
    assert sorted(int(json.loads(text)["path"][1:]) for text in world.lines()) == list(range(number))
