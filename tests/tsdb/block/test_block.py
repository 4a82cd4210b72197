"""Blocks: what is written is found again by row and time, and damage stays where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsdb.block.block import Block, BlockMeta, read_meta, write_block
from tsdb.block.container import FRAME_BYTES, Container
from tsdb.blockstore import FolderStore
from tsdb.chunks import Chunks
from tsdb.errors import CorruptionError
from tsdb.gorilla import decode_rows, encode_rows
from tsdb.index.registry import SeriesRegistry
from tsdb.index.static import StaticIndex
from tsdb.limits import SeriesLimits
from tsdb.matchers import Matcher, MatchOp

ALWAYS = (-(1 << 62), 1 << 62)


def registry_of(n: int) -> tuple[SeriesRegistry, np.ndarray]:
    registry = SeriesRegistry(SeriesLimits(active_series_max=10_000))
    refs = [registry.resolve({"__name__": "m", "i": str(i), "parity": "odd" if i % 2 else "even"}) for i in range(n)]
    return registry, np.array(refs, np.uint32)


def chunks_of(n_rows: int, samples: int, seed: int = 0, step_ms: int = 15_000) -> Chunks:
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.arange(n_rows, dtype=np.int32), samples)
    ts_ms = np.tile(np.arange(samples, dtype=np.int64) * step_ms, n_rows)
    return encode_rows(rows, ts_ms, rng.integers(1 << 63, size=len(rows)).astype(np.uint64))


def written(store: FolderStore, chunks: Chunks, n_rows: int, key: str = "b") -> tuple[BlockMeta, Block]:
    registry, refs = registry_of(n_rows)
    meta = write_block(store, key, StaticIndex.build(registry, refs), chunks)
    return meta, Block(store, meta, registry.symbols)


def test_a_block_holds_labels_and_chunks(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    chunks = chunks_of(20, 500)
    meta, block = written(store, chunks, 20)
    assert (meta.series, meta.chunks, meta.samples) == (20, len(chunks), 10_000)
    assert (meta.min_ms, meta.max_ms) == (0, 499 * 15_000)
    assert meta.bytes == (tmp_path / "b").stat().st_size
    assert read_meta(store, "b") == meta
    rows = block.index.find([Matcher("parity", MatchOp.EQUAL, "odd")])
    assert len(rows) == 10
    assert {labels["parity"] for labels in block.index.label_table(rows)} == {"odd"}
    everything = block.chunks(np.arange(20, dtype=np.int32), *ALWAYS)
    for got, expected in zip(decode_rows(everything), decode_rows(chunks), strict=True):
        assert got.tobytes() == expected.tobytes()
    assert not everything.words.flags.owndata, "payloads are not copied"
    assert not block.damage()


@given(
    st.lists(st.integers(-3, 12), max_size=15),
    st.integers(-100_000, 9_000_000),
    st.integers(0, 5_000_000),
    st.integers(1, 300),
)
@settings(deadline=None, max_examples=60)
@pytest.mark.kernel
def test_chunks_of_some_rows_and_a_range(rows: list[int], mint: int, width: int, samples: int) -> None:
    import tempfile

    chunks = chunks_of(9, samples)
    with tempfile.TemporaryDirectory() as folder:
        _, block = written(FolderStore(Path(folder)), chunks, 9)
        got = block.chunks(np.array(rows, np.int32), mint, mint + width)
        expected = [
            (place, i)
            for place, row in enumerate(rows)
            for i in np.flatnonzero(chunks.rows == row).tolist()
            if chunks.min_ms[i] <= mint + width and chunks.max_ms[i] >= mint
        ]
        assert got.rows.tolist() == [place for place, _ in expected]
        for j, (_, i) in enumerate(expected):
            for column in ("kinds", "min_ms", "max_ms", "counts", "word_counts"):
                assert getattr(got, column)[j] == getattr(chunks, column)[i]
            first, n = int(got.word_offsets[j]), int(got.word_counts[j])
            payload = chunks.words[chunks.word_offsets[i] : chunks.word_offsets[i] + n]
            assert got.words[first : first + n].tobytes() == payload.tobytes()


def test_payloads_may_lie_anywhere_and_chunks_of_a_row_may_overlap(tmp_path: Path) -> None:
    a = chunks_of(4, 130, seed=1)
    order = np.arange(len(a))[::-1]
    rows = a.rows[order]
    sort = np.argsort(rows, kind="stable")  # within a row the later chunk first
    picked = order[sort]
    columns = ("rows", "kinds", "min_ms", "max_ms", "counts", "word_offsets", "word_counts")
    shuffled = Chunks(*(getattr(a, column)[picked] for column in columns), a.words)
    _, block = written(FolderStore(tmp_path), shuffled, 4)
    got = block.chunks(np.arange(4, dtype=np.int32), *ALWAYS)
    for x, y in zip(decode_rows(got), decode_rows(shuffled), strict=True):
        assert x.tobytes() == y.tobytes()


def test_a_damaged_frame_costs_the_chunks_in_it_and_the_answer_says_so(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    chunks = chunks_of(200, 240)
    meta, block = written(store, chunks, 200)
    section = Container(store.open("b"), "b").sections["chunk/words"]
    data = bytearray((tmp_path / "b").read_bytes())
    data[section.offset + 2 * FRAME_BYTES + 5] ^= 1
    (tmp_path / "b").write_bytes(data)
    block = Block(store, meta, registry_of(0)[0].symbols)
    rows = np.arange(200, dtype=np.int32)
    with pytest.raises(CorruptionError, match="frame 2 of the chunks"):
        block.chunks(rows, *ALWAYS)
    warnings: list[str] = []
    got = block.chunks(rows, *ALWAYS, warnings)
    first = chunks.word_offsets * 8 // FRAME_BYTES
    last = ((chunks.word_offsets + chunks.word_counts) * 8 - 1) // FRAME_BYTES
    hit = (first <= 2) & (last >= 2)
    assert len(got) == len(chunks) - int(hit.sum())
    assert got.min_ms.tolist() == chunks.min_ms[~hit].tolist()
    assert warnings == [
        f"partial: {int(hit.sum())} chunks of b are damaged (from byte {section.offset + 2 * FRAME_BYTES} on)"
    ]
    untouched = chunks.rows[~hit][-1:].astype(np.int32)
    block.chunks(untouched, *ALWAYS)  # rows elsewhere do not even notice
    assert len(block.damage()) == 1


def _use(block: Block) -> None:
    assert len(block.index) == 3
    block.chunks(np.arange(3, dtype=np.int32), *ALWAYS)


def test_each_damaged_section_is_named_and_lost_files_are_not_found(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    meta, _ = written(store, chunks_of(3, 10), 3)
    good = (tmp_path / "b").read_bytes()
    for name, section in Container(store.open("b"), "b").sections.items():
        data = bytearray(good)
        data[section.offset] ^= 128
        (tmp_path / "b").write_bytes(data)
        block = Block(store, meta, registry_of(0)[0].symbols)
        assert len(block.damage()) >= 1, name
        with pytest.raises(CorruptionError, match=r"chunk|index|row"):
            _use(block)
    for size in (0, 1, 15, 16, 40, len(good) // 2, len(good) - 1):
        (tmp_path / "b").write_bytes(good[:size])
        with pytest.raises(CorruptionError):
            Block(store, meta, registry_of(0)[0].symbols)
    (tmp_path / "b").unlink()
    with pytest.raises(FileNotFoundError):
        Block(store, meta, registry_of(0)[0].symbols)


def test_a_repeated_cut_finds_its_own_block_and_replaces_a_foreign_one(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    meta, _ = written(store, chunks_of(3, 10), 3)
    number = (tmp_path / "b").stat().st_ino
    assert written(store, chunks_of(3, 10), 3)[0] == meta
    assert (tmp_path / "b").stat().st_ino == number
    other, block = written(store, chunks_of(3, 11), 3)
    assert other != meta
    assert not block.damage()
    with pytest.raises(CorruptionError, match="not the object"):
        Block(store, meta, registry_of(0)[0].symbols)


def test_a_block_that_reads_back_wrong_is_not_published(tmp_path: Path) -> None:
    class LyingStore(FolderStore):
        def open(self, key: str) -> memoryview:
            data = bytearray(super().open(key))
            data[Container(memoryview(bytes(data)), key).sections["chunk/words"].offset] ^= 1
            return memoryview(bytes(data))

    with pytest.raises(CorruptionError):
        written(LyingStore(tmp_path), chunks_of(3, 10), 3)
    assert FolderStore(tmp_path).list("") == []
