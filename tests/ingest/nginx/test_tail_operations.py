"""What an operator meets at three in the morning: files that go, may not be read, are many, or are links."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.nginx import file as tailed
from ingest.nginx import tail
from ingest.nginx.entries import SourceSettings
from tests.ingest.nginx.builders import World, json_source, line
from tests.ingest.nginx.test_tail import write
from tsdb.disk import DiskGuard
from tsdb.errors import DiskFullError, Reason


@pytest.fixture(autouse=True)
def _scans_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "SCAN_S", 0.0)


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[Any]:
    """Makes worlds over one data folder, one after the other."""
    made: list[World] = []

    def make(*sources: SourceSettings) -> World:
        if made:
            made[-1].close()
        world = World(tmp_path, sources or [json_source(str(tmp_path / "*.log"))])
        world.tailer.load()
        made.append(world)
        return world

    yield make
    if made:
        made[-1].close()


def paths(world: World) -> list[str]:
    return sorted(json.loads(text)["path"] for text in world.lines())


def forbid(patch: pytest.MonkeyPatch, log: Path) -> None:
    """Let nobody open a file."""
    allowed = os.open

    def refuse(path: Any, *rest: Any) -> int:
        if str(path) == str(log):
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path, *rest)

    patch.setattr(tailed.os, "open", refuse)


def test_deleted_and_made_anew(worlds: Any, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    write(log, line(path="/1"))
    world = worlds()
    world.read()
    with log.open("ab") as kept:  # nginx writes on into the deleted file until it reopens its logs
        log.unlink()
        kept.write(line(path="/2") + b"\n")
        kept.flush()
        world.read()
        kept.write(line(path="/3") + b"\n")
        kept.flush()
        write(log, line(path="/4"))
        world.read()
    assert paths(world) == ["/1", "/2", "/3", "/4"]
    world = worlds()
    write(log, line(path="/5"))
    world.read()
    assert paths(world) == ["/1", "/2", "/3", "/4", "/5"]


def test_a_file_that_may_not_be_read_yet(worlds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything: the refusal is that of the system, made here."""
    log = tmp_path / "access.log"
    write(log, line(path="/1"))
    write(tmp_path / "other.log", line(path="/other"))
    world = worlds()
    with monkeypatch.context() as patch:
        forbid(patch, log)
        world.read()
        assert paths(world) == ["/other"], "the others are read"
        assert world.tally.snapshot()[Reason.FILE_UNREADABLE] >= 1
    world.read()
    assert paths(world) == ["/1", "/other"]


def test_rotated_to_a_file_that_may_not_be_read(worlds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``create 0600`` of logrotate: the rest of the old file is read, the new one as soon as somebody mends it."""
    log = tmp_path / "access.log"
    write(log, line(path="/1"))
    world = worlds()
    world.read()
    write(log, line(path="/2"))
    log.rename(tmp_path / "access.log.1")
    write(log, line(path="/3"))
    with monkeypatch.context() as patch:
        forbid(patch, log)
        world.read()
        assert paths(world) == ["/1", "/2"]
    world.read()
    assert paths(world) == ["/1", "/2", "/3"]


def test_a_full_disk_keeps_the_positions(worlds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "access.log"
    write(log, line(path="/1"))
    world = worlds()
    world.read()
    write(log, line(path="/2"))

    def full(*_: object) -> None:
        raise DiskFullError("nearly full")

    with monkeypatch.context() as patch:
        patch.setattr(DiskGuard, "check", full)
        with pytest.raises(DiskFullError):
            world.tailer.poll()
        with pytest.raises(DiskFullError):
            world.tailer.poll()
    assert paths(world) == ["/1"]
    world.read()
    assert paths(world) == ["/1", "/2"]


def test_positions_that_cannot_be_saved_hold_up_nothing(
    worlds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "access.log"
    write(log, line(path="/1"))
    world = worlds()
    world.read()
    world.tailer.save()
    monkeypatch.setattr(tail, "SAVE_S", 0.0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tail, "save_positions", full)
        for i in range(2, 6):
            write(log, line(path=f"/{i}"))
            world.read()
        assert paths(world) == [f"/{i}" for i in range(1, 6)]
        world.tailer.close()
    assert world.tailer.stats.unsaved >= 4
    assert [r.getMessage() for r in caplog.records if "not saved" in r.getMessage()] == [
        "positions of log files are not saved: [Errno 28] No space left on device"
    ]
    world = worlds()
    write(log, line(path="/6"))
    world.read()
    assert paths(world) == [f"/{i}" for i in range(1, 7)], "read again, and stored once"


def test_a_hundred_sites_with_ten_files_each(worlds: Any, tmp_path: Path) -> None:
    for i in range(100):
        (tmp_path / f"site-{i:02d}").mkdir()
        for j in range(10):
            write(tmp_path / f"site-{i:02d}" / f"{j}.log", *[line(path=f"/{i}/{j}/{k}") for k in range(3)])
    pattern = re.compile(r"/(?P<site>site-\d+)/\d\.log$")
    world = worlds(json_source(str(tmp_path / "*/*.log"), site_by_line=False, site_pattern=pattern))
    world.read()
    assert world.tailer.stats.files == 1000
    assert paths(world) == sorted(f"/{i}/{j}/{k}" for i in range(100) for j in range(10) for k in range(3))
    assert {labels["site"] for _, _, labels in world.entries()} == {f"site-{i:02d}" for i in range(100)}
    world.count()
    counted = world.series("nginx_requests_total")
    assert (len(counted), set(counted.values())) == (100, {30.0})
    world.tailer.save()
    world = worlds(json_source(str(tmp_path / "*/*.log"), site_by_line=False, site_pattern=pattern))
    world.read()
    assert world.tailer.stats.lines == 0


def test_logrotate_with_compress_and_delaycompress(worlds: Any, tmp_path: Path) -> None:
    """Three nights: access.log -> .1 -> .2.gz -> .3.gz, and a glob that matches all of them."""
    log = tmp_path / "access.log"
    world = worlds(json_source(str(tmp_path / "access.log*")))
    wanted = []
    for night in range(3):
        for i in range(4):
            wanted.append(f"/{night}/{i}")
            write(log, line(path=wanted[-1]))
        world.read()
        wanted.append(f"/{night}/late")
        write(log, line(path=wanted[-1]))
        for old in (3, 2):
            if (tmp_path / f"access.log.{old}.gz").exists():
                (tmp_path / f"access.log.{old}.gz").rename(tmp_path / f"access.log.{old + 1}.gz")
        if (first := tmp_path / "access.log.1").exists():
            with first.open("rb") as plain, gzip.open(tmp_path / "access.log.2.gz", "wb") as packed:
                shutil.copyfileobj(plain, packed)
            first.unlink()
        log.rename(first)
        log.touch()
        world.read()
    assert paths(world) == sorted(wanted)
    world = worlds(json_source(str(tmp_path / "access.log*")))
    world.read()
    assert paths(world) == sorted(wanted)
    assert (tmp_path / "access.log.3.gz").exists()


@pytest.mark.parametrize("same_number", [False, True])
def test_compressed_while_we_were_away_is_said(
    worlds: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, same_number: bool
) -> None:
    """Also when the new file has the inode number of the old one, as file systems like to give it."""
    log = tmp_path / "access.log"
    write(log, line(path="/1"))
    world = worlds()
    world.read()
    world.close()
    write(log, line(path="/2"))
    with log.open("rb") as plain, gzip.open(tmp_path / "access.log.1.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    if same_number:
        log.write_bytes(line(path="/3") + b"\n")
    else:
        write(tmp_path / "new", line(path="/3"))
        (tmp_path / "new").rename(log)
    with caplog.at_level(logging.WARNING):
        world = worlds()
        world.read()
    assert paths(world) == ["/1", "/3"]
    assert f"{log} is another file than before, and that one is gone" in caplog.text


def test_a_link_that_is_pointed_at_the_next_file(worlds: Any, tmp_path: Path) -> None:
    """Dated files with a link to the newest: each line once, whichever name is found first."""
    link = tmp_path / "access.log"
    first, second = tmp_path / "access-20261125.log", tmp_path / "access-20261126.log"
    write(first, line(path="/1"))
    link.symlink_to(first)
    only_link = json_source(str(link))
    for source in (only_link, json_source(str(tmp_path / "*.log"))):
        world = worlds(source)
        world.read()
        assert paths(world) == ["/1"]
    world = worlds(only_link)
    write(first, line(path="/2"))
    world.read()
    write(first, line(path="/3"))
    write(second, line(path="/4"))
    link.unlink()
    link.symlink_to(second)
    world.read()
    write(first, line(path="/5"))
    write(second, line(path="/6"))
    world.read()
    assert paths(world) == [f"/{i}" for i in range(1, 7)]
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    world.read()
    link.unlink()
    link.symlink_to(second)
    write(second, line(path="/7"))
    world.read()
    assert paths(world) == [f"/{i}" for i in range(1, 8)]


def test_a_glob_that_matches_later(worlds: Any, tmp_path: Path) -> None:
    """A site that comes while we run, in a folder that is new: from its begin, also with ``start: end``."""
    world = worlds(json_source(str(tmp_path / "*/access.log"), from_end=True))
    world.read()
    assert world.tailer.stats.files == 0
    (tmp_path / "new.example").mkdir()
    write(tmp_path / "new.example/access.log", line(path="/1"))
    world.read()
    assert paths(world) == ["/1"]
