"""Manifest generations: the only commit, and what is done when one is damaged."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tsdb.wal.disks import RecordingFiles, after_power_cut
from tsdb.block.block import BlockMeta, write_block
from tsdb.blockstore import AlreadyExistsError, FolderStore
from tsdb.errors import CorruptionError
from tsdb.gorilla import encode_rows
from tsdb.manifest import MIN_MS, Manifest, ManifestStore, ShardCountError, decode_manifest, encode_manifest

PREFIX = "tenants/t/shard-0"
NO_INDEX: dict[str, np.ndarray] = {}


def block(store: FolderStore, number: int) -> BlockMeta:
    ts_ms = np.arange(10, dtype=np.int64) + number * 1000
    chunks = encode_rows(np.zeros(10, np.int32), ts_ms, np.full(10, number, np.uint64))
    return write_block(store, f"{PREFIX}/block-{number}", NO_INDEX, chunks)


def manifests(store: FolderStore) -> ManifestStore:
    return ManifestStore(store, PREFIX, 4)


def committed(store: FolderStore, n: int) -> list[Manifest]:
    """n generations, each with one block more."""
    book = manifests(store)
    out = [book.load()]
    for i in range(n):
        new = replace(
            out[-1],
            generation=out[-1].generation + 1,
            blocks=(*out[-1].blocks, block(store, i)),
            cut_ms=i * 1000,
            next_position=i * 10,
        )
        out.append(book.commit(new))
    return out


def test_generations_follow_each_other_and_one_old_one_is_kept(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    assert manifests(store).load() == Manifest(0, 4, MIN_MS, 0, ())
    out = committed(store, 5)
    book = manifests(store)
    assert book.load() == out[-1]
    assert not book.damage
    assert store.list(f"{PREFIX}/manifest-") == [f"{PREFIX}/manifest-{g:020d}" for g in (4, 5)]
    text = json.loads((tmp_path / PREFIX / f"manifest-{5:020d}").read_text())
    assert text["manifest"]["shard_count"] == 4
    assert len(text["manifest"]["blocks"]) == 5


def test_only_one_of_two_owners_commits_a_generation(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    committed(store, 2)
    first, second = manifests(store), manifests(store)
    a, b = first.load(), second.load()
    first.commit(replace(a, generation=a.generation + 1, cut_ms=77))
    with pytest.raises(AlreadyExistsError):
        second.commit(replace(b, generation=b.generation + 1, cut_ms=88))
    assert second.load().cut_ms == 77


def test_blocks_that_nobody_lists_are_removed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    out = committed(store, 2)
    block(store, 9)
    assert manifests(store).load() == out[-1]
    assert store.list(f"{PREFIX}/block-") == [m.key for m in out[-1].blocks]


def test_another_shard_count_is_refused(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    committed(store, 1)
    with pytest.raises(ShardCountError, match="4 shards, 8 are configured"):
        ManifestStore(store, PREFIX, 8).load()


@pytest.mark.parametrize("how", ["flip", "empty", "cut", "missing"])
def test_a_damaged_newest_generation_falls_back_without_losing_a_block(tmp_path: Path, how: str) -> None:
    store = FolderStore(tmp_path)
    out = committed(store, 3)
    path = tmp_path / PREFIX / f"manifest-{3:020d}"
    data = bytearray(path.read_bytes())
    data[40] ^= 2
    path.write_bytes({"flip": bytes(data), "empty": b"", "cut": path.read_bytes()[:-30], "missing": b""}[how])
    if how == "missing":
        # indistinguishable from a commit that never happened: its block goes, its samples are still in the log
        path.unlink()
        assert manifests(store).load() == out[2]
        return
    book = manifests(store)
    loaded = book.load()
    assert book.damage
    assert loaded.blocks == out[3].blocks, "the block of the damaged generation is taken in"
    assert (loaded.cut_ms, loaded.next_position) == (out[2].cut_ms, out[2].next_position)
    new = book.commit(replace(loaded, generation=loaded.generation + 1))
    assert new.generation == 4
    again = manifests(store)
    assert again.load() == new
    assert not again.damage
    assert f"{PREFIX}/manifest-{2:020d}" in store.list(f"{PREFIX}/manifest-"), "the last good one is kept"
    book.commit(replace(new, generation=5))
    assert [k[-1] for k in store.list(f"{PREFIX}/manifest-")] == ["4", "5"]


def test_when_all_generations_are_damaged_the_blocks_tell(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    out = committed(store, 4)
    for path in (tmp_path / PREFIX).glob("manifest-*"):
        path.write_bytes(b"?")
    (tmp_path / PREFIX / "block-1").write_bytes(b"damaged too")
    book = manifests(store)
    loaded = book.load()
    assert loaded.blocks == tuple(m for m in out[-1].blocks if not m.key.endswith("block-1"))
    assert loaded.next_position == 0
    assert any("block-1 cannot be taken in" in text for text in book.damage)
    assert (tmp_path / PREFIX / "block-1").exists()


def test_no_bit_flip_goes_unnoticed() -> None:
    meta = BlockMeta("k", -5, 10, 3, 4, 5, 6, 7)
    manifest = Manifest(3, 4, 100, 50, (meta, replace(meta, key="j")))
    data = encode_manifest(manifest)
    assert decode_manifest(data, "k") == manifest
    for offset in range(len(data)):
        for bit in range(8):
            bad = bytearray(data)
            bad[offset] ^= 1 << bit
            with pytest.raises(CorruptionError):
                decode_manifest(bytes(bad), "k")
    for size in range(len(data)):
        with pytest.raises(CorruptionError):
            decode_manifest(data[:size], "k")


def test_a_power_cut_leaves_the_old_or_the_new_generation_with_all_its_blocks(tmp_path: Path) -> None:
    files = RecordingFiles()
    root = tmp_path / "live"
    root.mkdir()
    store = FolderStore(root, files)
    book = manifests(store)
    manifest = book.load()
    out = {0: manifest}
    for i in range(4):
        new = replace(manifest, generation=i + 1, blocks=(*manifest.blocks[-2:], block(store, i)))
        dropped = [m for m in manifest.blocks if m not in new.blocks]
        manifest = out[i + 1] = book.commit(new)
        files.mark(i + 1)
        for meta in dropped:
            store.delete(meta.key)
    chance = random.Random(11)
    for cut in range(1, len(files.events) + 1):
        target = tmp_path / f"cut-{cut}"
        target.mkdir()
        marks = after_power_cut(files.events[:cut], chance, root, target)
        after = FolderStore(target)
        loaded = manifests(after).load()
        assert loaded == out[loaded.generation]
        assert loaded.generation >= max((m for m in marks if isinstance(m, int)), default=0)
        assert set(after.list(f"{PREFIX}/block-")) == {m.key for m in loaded.blocks}
