"""Blocks shown to a person: everything is there, damage is named, nothing is changed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tsdb.test_db import HOUR, T0, bits_of, opened, put, series
from tsdb.batch import STALE_BITS
from tsdb.block.inspect import inspect_block, inspect_chunks
from tsdb.errors import CorruptionError
from tsdb.matchers import Matcher, MatchOp


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A block of 40 series and 120 samples each, the last of series 0 a stale marker."""
    db = opened(tmp_path_factory.mktemp("inspect"), shards=1)
    rows = [(series(i), T0 + 60_000 * k, bits_of(k + 0.5)) for k in range(120) for i in range(40)]
    rows[-40] = (series(0), T0 + 60_000 * 119, STALE_BITS)
    put(db.tenant("default"), rows)
    put(db.tenant("default"), [(series(1), T0 + 4 * HOUR, 1)])
    db.maintain()
    (path,) = (p for p in db.config.path.rglob("block-*") if p.is_file())
    db.close()
    return path


def selector(instance: str) -> list[Matcher]:
    return [Matcher("instance", MatchOp.EQUAL, instance)]


def test_a_block_is_described(block: Path) -> None:
    text = "\n".join(inspect_block(block, 3))
    assert text.startswith(f"block {block.name}: 40 series, 40 chunks, 4800 samples, {block.stat().st_size} bytes\n")
    assert "2023-11-15T00:00:00.000Z to 2023-11-15T01:59:00.000Z" in text
    assert "chunk/words" in text
    assert "DAMAGED" not in text
    assert 'm0{instance="10.0.0.0",job="mesh"}: 1 chunks, 120 samples' in text
    assert text.endswith("... and 37 more series")


def test_chunks_are_shown_with_their_bits(block: Path) -> None:
    lines = list(inspect_chunks(block, selector("10.0.0.0")))
    assert lines[0] == 'm0{instance="10.0.0.0",job="mesh"}: 1 chunks'
    assert lines[1].startswith("  chunk 0: kind 1, 120 samples, 2023-11-15T00:00:00.000Z to ")
    assert lines[2] == f"    {T0} 2023-11-15T00:00:00.000Z 0.5 (0x3fe0000000000000)"
    assert lines[-1].endswith(" stale (0x7ff0000000000002)")
    assert len(lines) == 122
    few = list(inspect_chunks(block, selector("10.0.0.1"), 2))
    assert len(few) == 5
    assert few[-1] == "    ... and 118 more"
    assert list(inspect_chunks(block, selector("nowhere"))) == ["no such series in this block"]


def test_damage_is_named(block: Path, tmp_path: Path) -> None:
    data = bytearray(block.read_bytes())
    line = next(line for line in inspect_block(block) if "chunk/words " in line)
    at = int(line.rpartition(" bytes at ")[2].partition(",")[0])
    data[at + 100] ^= 1
    copy = tmp_path / block.name
    copy.write_bytes(data)
    assert "1 DAMAGED" in "\n".join(inspect_block(copy))
    assert "! partial: 1 chunks" in "\n".join(inspect_chunks(copy, selector("10.0.0.1")))
    copy.write_bytes(data[:-3])
    with pytest.raises(CorruptionError, match="trailer"):
        list(inspect_block(copy))
    assert [path.name for path in tmp_path.iterdir()] == [block.name]


def test_every_damaged_byte_is_survived(block: Path, tmp_path: Path) -> None:
    whole = block.read_bytes()
    copy = tmp_path / block.name
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        copy.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        for lines in (inspect_block(copy), inspect_chunks(copy, selector("10.0.0.1"))):
            with contextlib.suppress(CorruptionError):
                assert list(lines)


def test_the_commands(block: Path, tmp_path: Path) -> None:
    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "meshpulse"), "inspect", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    described = run("block", block, "--series", "1")
    assert (described.returncode, described.stdout.count("samples")) == (0, 2)
    shown = run("chunk", block, 'm1{instance="10.0.0.1"}', "--samples", "1")
    assert (shown.returncode, len(shown.stdout.splitlines())) == (0, 4)
    wrong = run("chunk", block, "m1{")
    assert (wrong.returncode, wrong.stderr) == (
        1,
        "meshpulse: 1:4: parse error: unexpected end of input inside braces\n",
    )
    (tmp_path / "no-block").write_bytes(b"x" * 100)
    assert run("block", tmp_path / "no-block").returncode == 1
