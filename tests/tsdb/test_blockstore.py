"""Objects in a folder: put-if-absent, all or nothing, durable."""

from __future__ import annotations

import errno
import random
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.tsdb.wal.disks import FailingFiles, RecordingFiles, after_power_cut
from tsdb.blockstore import AlreadyExistsError, FolderStore


def test_an_object_is_what_was_put(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    array = np.arange(1000, dtype=np.int64)
    parts = [b"head", memoryview(b""), array.data.cast("B"), *[bytes([i % 256]) for i in range(3000)]]
    size = store.create("a/b/one", parts)
    whole = b"".join(bytes(p) for p in parts)
    assert size == len(whole)
    assert bytes(store.open("a/b/one")) == whole
    assert [bytes(r) for r in store.read_ranges("a/b/one", [(0, 4), (4, 12), (len(whole) - 2, len(whole) + 9)])] == [
        b"head",
        bytes(8),
        whole[-2:],
    ]
    store.create("a/empty", [])
    assert bytes(store.open("a/empty")) == b""


def test_a_key_is_created_once(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.create("k", [b"first"])
    with pytest.raises(AlreadyExistsError):
        store.create("k", [b"second"])
    assert bytes(store.open("k")) == b"first"
    wins: list[int] = []
    gate = threading.Barrier(8)

    def race(n: int) -> None:
        gate.wait()
        try:
            FolderStore.create(store, "raced", [b"%d" % n])
            wins.append(n)
        except AlreadyExistsError:
            pass

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(wins) == 1
    assert bytes(store.open("raced")) == b"%d" % wins[0]


def test_list_and_delete(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for key in ("t/a/2", "t/a/1", "t/b", "tt", "other/x"):
        store.create(key, [b"x"])
    assert store.list("") == ["other/x", "t/a/1", "t/a/2", "t/b", "tt"]
    assert store.list("t") == ["t/a/1", "t/a/2", "t/b", "tt"]
    assert store.list("t/") == ["t/a/1", "t/a/2", "t/b"]
    assert store.list("t/a/1") == ["t/a/1"]
    assert store.list("nobody/") == []
    mapped = store.open("t/a/1")
    store.delete("t/a/1")
    store.delete("t/a/1")
    assert bytes(mapped) == b"x", "a reader keeps what it opened"
    with pytest.raises(FileNotFoundError):
        store.open("t/a/1")
    assert store.list("t/a/") == ["t/a/2"]


@pytest.mark.parametrize("key", ["", "/abs", "a//b", "../up", "a/../b", ".", "a/.tmp-x", "nul\0"])
def test_keys_stay_inside_the_folder(tmp_path: Path, key: str) -> None:
    store = FolderStore(tmp_path)
    for call in (store.open, store.delete, lambda k: store.create(k, [b""])):
        with pytest.raises(ValueError, match="not a key"):
            call(key)


@pytest.mark.parametrize("failing", ["create", "write_all", "sync", "link", "sync_folder"])
def test_a_failing_disk_leaves_no_object_and_no_rest(tmp_path: Path, failing: str) -> None:
    files = FailingFiles()
    store = FolderStore(tmp_path, files)
    store.create("k/before", [b"x"])
    files.fail(failing, number=errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        store.create("k/new", [b"y"])
    assert store.list("") == ["k/before"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["before", "k"]
    store.create("k/new", [b"y"])


def test_what_a_crash_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.create("k/x", [b"x"])
    (tmp_path / "k" / ".tmp-123").write_bytes(b"half")
    assert store.list("") == ["k/x"]
    FolderStore(tmp_path)
    assert not (tmp_path / "k" / ".tmp-123").exists()


def test_after_a_power_cut_an_object_is_whole_or_absent_and_whole_once_created(tmp_path: Path) -> None:
    files = RecordingFiles()
    root = tmp_path / "live"
    root.mkdir()
    store = FolderStore(root, files)
    chance = random.Random(5)
    contents = {f"shard/{i}": chance.randbytes(chance.randrange(1, 3000)) for i in range(12)}
    for key, content in contents.items():
        store.create(key, [content[:100], content[100:]])
        files.mark(key)
    for cut in range(1, len(files.events) + 1):
        target = tmp_path / f"cut-{cut}"
        target.mkdir()
        created = after_power_cut(files.events[:cut], chance, root, target)
        after = FolderStore(target)
        found = {key: bytes(after.open(key)) for key in after.list("")}
        assert set(created) <= set(found)
        assert all(content == contents[key] for key, content in found.items())
