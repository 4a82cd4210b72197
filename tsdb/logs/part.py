"""An immutable object of log rows: groups of compressed rows behind an index that says what each holds.

Rows are ordered by stream (in the order of their labels), then by time, and cut into groups. The index is small and
stays in memory: which streams have how many rows of what time range in which group, and what words a group may hold.
"""

from __future__ import annotations

import itertools
import re
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from tsdb.block.block import BlockMeta, read_meta
from tsdb.block.container import FRAME_BYTES, Container, pack
from tsdb.blockstore import AlreadyExistsError, BlockStore
from tsdb.errors import CorruptionError
from tsdb.index.registry import SeriesRegistry
from tsdb.kernels.log_columns import DELTA
from tsdb.kernels.log_head import BITS_PER_VALUE, bloom_add, bloom_ask
from tsdb.logs.blobs import BlobReader, BlobWriter
from tsdb.logs.columns import Spans
from tsdb.logs.facts import ColumnFact, hash_of, letters_in
from tsdb.logs.frame import ROWS_MAX, Texts, gather
from tsdb.logs.group import LINE_BYTES_MAX, Entries, GroupHead, StoredRows, encode_group
from tsdb.logs.pruning import Clause, ColumnIndex, put_facts
from tsdb.logs.rows import join_texts
from tsdb.logs.text_types import UUID_WIDTH, is_uuid

GROUP_BYTES_MAX = 8 << 20
"""Most raw bytes of a group's lines: what a reader decodes at once."""

HEADS_MAX = 2048
"""Heads of groups in memory, with their dictionaries once those were read: 16 M rows, some 50 KB each."""

TIMES_MAX = 256
"""Decoded times of groups in memory, for rows that come late: 2 M rows, 16 MB."""

DATA, INDEX, BLOOM = "data", "index", "bloom"
_HEAD = struct.Struct("<II")
HASH_BYTES = 8
_WORD = re.compile(rb"[0-9A-Za-z]+")
_DASHED = re.compile(rb"[0-9A-Za-z]*-[0-9A-Za-z-]*")
_WHOLE_WORD = re.compile(rb"(?<=[^A-Za-z])[A-Za-z]+(?=[^A-Za-z])")
"""A word of a text that is one of every line with that text too: the text says what stands on both sides of it."""

_HEX = re.compile(rb"[0-9a-f]+")

T = TypeVar("T")


class Rows(NamedTuple):
    """Rows to become a part, in the order in which they were accepted."""

    refs: NDArray[np.uint32]
    ts_ns: NDArray[np.int64]
    lines: Texts
    metadata: Texts
    levels: NDArray[np.uint8]

    def keep(self, mask: NDArray[np.bool_]) -> Rows:
        """Some of them."""
        rows = np.flatnonzero(mask)
        lines = gather(self.lines.data, self.lines.offsets[rows], np.diff(self.lines.offsets)[rows])
        metadata = gather(self.metadata.data, self.metadata.offsets[rows], np.diff(self.metadata.offsets)[rows])
        return Rows(self.refs[rows], self.ts_ns[rows], lines, metadata, self.levels[rows])


def write_part(store: BlockStore, key: str, rows: Rows, registry: SeriesRegistry) -> BlockMeta:
    """Write a part, read it back and verify it.

    Raises
    ------
    CorruptionError        what was read back is not what was written; the object is removed again
    """
    assert len(rows.refs), "a part holds at least one row"
    streams, local = np.unique(rows.refs, return_inverse=True)
    canonical, offsets = registry.canonical(streams)
    names = Texts(canonical, offsets).to_list()
    by_name = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), np.int64)
    rank[by_name] = np.arange(len(names))
    stream = rank[local]
    by_time = np.argsort(rows.ts_ns, kind="stable")
    order = by_time[np.argsort(stream[by_time].astype(np.uint16 if len(names) < 1 << 16 else np.uint32), kind="stable")]
    stream, ts_ns = stream[order], rows.ts_ns[order]
    starts = rows.lines.offsets[:-1][order]
    sizes = np.diff(rows.lines.offsets)[order]
    meta_starts, meta_sizes = rows.metadata.offsets[:-1][order], np.diff(rows.metadata.offsets)[order]
    levels = rows.levels[order]

    cuts = _cuts(sizes)
    parts: list[bytes | memoryview] = []
    group_columns: list[list[int]] = []
    blooms: list[NDArray[np.uint8]] = []
    columns: list[tuple[int, ColumnFact]] = []
    at = bloom_at = 0
    for first, last in pairwise(cuts):
        entries = Entries(
            ts_ns[first:last],
            Spans(rows.lines.data, starts[first:last], sizes[first:last]),
            gather(rows.metadata.data, meta_starts[first:last], meta_sizes[first:last]),
            levels[first:last],
        )
        made, size, facts = encode_group(entries)
        filtered = [(column.values, column.size) for column in facts.bloomed] + [(facts.hashes, HASH_BYTES)]
        bloom = np.zeros(-(-sum(len(v) // size for v, size in filtered) * BITS_PER_VALUE // 64) * 8, np.uint8)
        for values, size_of_one in filtered:
            bloom_add(values, size_of_one, bloom)
        columns += [(len(blooms), fact) for fact in facts.columns]
        blooms.append(bloom)
        words = [facts.longest_word, facts.hex_widths]
        dashed = [facts.longest_dashed, int(facts.has_uuids)]
        known = [int(facts.format), facts.words]
        group_columns.append([at, size, last - first, *words, bloom_at, len(bloom), *dashed, *known])
        parts.extend(made)
        at += size
        bloom_at += len(bloom)
    data = np.frombuffer(b"".join(parts), np.uint8)
    index = _encode_index([names[i] for i in by_name], group_columns, columns, cuts, stream, ts_ns, sizes)
    facts_ms = {
        "min_ms": int(ts_ns.min() // 1_000_000),
        "max_ms": int(ts_ns.max() // 1_000_000),
        "series": len(names),
        "chunks": len(group_columns),
        "samples": len(ts_ns),
    }
    arrays = {INDEX: index, BLOOM: np.concatenate(blooms), DATA: data}
    pieces, _ = pack(arrays, facts_ms, framed={DATA})
    try:
        store.create(key, pieces)
    except AlreadyExistsError:  # left by a crash before the manifest named it
        store.delete(key)
        store.create(key, pieces)
    damaged = next(Container(store.open(key), key).damage(), None)
    if damaged is not None:
        store.delete(key)
        raise damaged
    return read_meta(store, key)


def _cuts(sizes: NDArray[np.int64]) -> list[int]:
    """Borders of the groups."""
    ends = np.cumsum(sizes)
    cuts = [0]
    while cuts[-1] < len(sizes):
        first = cuts[-1]
        base = int(ends[first - 1]) if first else 0
        by_bytes = int(np.searchsorted(ends, base + GROUP_BYTES_MAX, "right"))
        cuts.append(min(first + ROWS_MAX, max(by_bytes, first + 1), len(sizes)))
    return cuts


def _encode_index(
    names: list[bytes],
    groups: list[list[int]],
    columns: list[tuple[int, ColumnFact]],
    cuts: list[int],
    stream: NDArray[np.int64],
    ts_ns: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> NDArray[np.uint8]:
    blobs = BlobWriter()
    change = np.ones(len(stream), np.bool_)
    change[1:] = np.diff(stream) != 0
    change[cuts[:-1]] = True
    first = np.flatnonzero(change)
    last = np.append(first[1:], len(stream))
    head: dict[str, Any] = {
        "streams": blobs.put_texts(Texts.of(names)),
        "groups": [blobs.put_ints(np.array(column, np.int64)) for column in zip(*groups, strict=True)],
        "n_groups": len(groups),
        "columns": put_facts(blobs, columns),
        "n_runs": len(first),
        "runs": [
            blobs.put_ints(np.searchsorted(cuts, first, "right") - 1, DELTA),
            blobs.put_ints(stream[first], DELTA),
            blobs.put_ints(last - first),
            blobs.put_ints(ts_ns[first], DELTA),
            blobs.put_ints(ts_ns[last - 1] - ts_ns[first]),
            blobs.put_ints(np.add.reduceat(sizes, first)),
        ],
    }
    place = BlobWriter()
    _, stored, raw = place.put(orjson.dumps(head))
    return np.frombuffer(b"".join([_HEAD.pack(stored, raw), *place.parts, *blobs.parts]), np.uint8)


class Runs(NamedTuple):
    """Rows of one stream inside one group, (n_runs,) int64 each; ``ref`` is a registry number."""

    group: NDArray[np.int64]
    ref: NDArray[np.int64]
    rows: NDArray[np.int64]
    min_ns: NDArray[np.int64]
    max_ns: NDArray[np.int64]
    bytes: NDArray[np.int64]


class _Recent(Generic[T]):
    """What was read last of groups, by all stores of the process: parsed, verified and decoded once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[tuple[int, int], T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, part: int, group: int) -> T | None:
        with self._lock:
            found = self._held.get((part, group))
            if found is not None:
                self._held.move_to_end((part, group))
            return found

    def put(self, part: int, group: int, made: T) -> None:
        with self._lock:
            self._held[part, group] = made
            while len(self._held) > self._most:
                self._held.popitem(last=False)


_heads = _Recent[GroupHead](HEADS_MAX)
_times = _Recent[NDArray[np.int64]](TIMES_MAX)
_serials = itertools.count()


def position_of(key: str) -> int:
    """Log position of the newest row of a part: ``.../block-<position>[-<generation>...]``."""
    return int(key.rpartition("/")[2].split("-")[1])


class Part:
    """A part opened for reading.

    Parameters
    ----------
    registry : the tenant's; streams that it does not know yet get their numbers now

    Raises
    ------
    CorruptionError, FileNotFoundError
    """

    def __init__(self, store: BlockStore, meta: BlockMeta, registry: SeriesRegistry) -> None:
        self.meta = meta
        self.position = position_of(meta.key)
        self._serial = next(_serials)
        self._container = Container(store.open(meta.key), meta.key)
        if self._container.crc != meta.crc:
            raise CorruptionError(meta.key, 0, "not the object that the manifest names")
        whole = self._container.array(INDEX).data
        stored, raw = _HEAD.unpack_from(whole)
        begin = _HEAD.size
        head = orjson.loads(BlobReader(whole[begin : begin + stored], meta.key).get([0, stored, raw])[:raw].data)
        blobs = BlobReader(whole[begin + stored :], meta.key)
        names = blobs.texts(head["streams"])
        refs = registry.adopt(names.data[: int(names.offsets[-1])], names.offsets)
        groups, runs = head["n_groups"], head["n_runs"]
        (
            self._offset, self._size, self.rows, self._longest, self._widths, self._bloom_first, self._bloom_size,
        ) = [blobs.ints(entry, groups) for entry in head["groups"][:7]]  # fmt: skip
        self._dashed, self._uuids = np.full(groups, LINE_BYTES_MAX), np.ones(groups, np.int64)
        if len(head["groups"]) > 7:  # else a part from before UUIDs had a type
            self._dashed, self._uuids = (blobs.ints(entry, groups) for entry in head["groups"][7:9])
        formats, self._words = np.zeros(groups, np.int64), np.zeros(groups, np.int64)
        if len(head["groups"]) > 9:  # else a part from before columns were known here
            formats, self._words = (blobs.ints(entry, groups) for entry in head["groups"][9:11])
        self._columns = ColumnIndex(blobs, head.get("columns"), formats)
        group, stream, rows, min_ns, span, size = (blobs.ints(entry, runs) for entry in head["runs"])
        self.runs = Runs(group, refs[stream].astype(np.int64), rows, min_ns, min_ns + span, size)
        self._first_run = np.searchsorted(group, np.arange(groups + 1))
        self.run_counts = np.diff(self._first_run)
        self.refs = refs

    def __len__(self) -> int:
        """Groups."""
        return len(self.rows)

    def runs_of(self, wanted: NDArray[np.uint8], start_ns: int, end_ns: int) -> NDArray[np.int64]:
        """Runs of wanted streams that may have rows with ``start_ns <= ts_ns < end_ns``."""
        runs = self.runs
        known = runs.ref < len(wanted)
        hit = (runs.min_ns < end_ns) & (runs.max_ns >= start_ns) & known
        hit &= wanted[np.where(known, runs.ref, 0)] != 0 if len(wanted) else False
        return np.flatnonzero(hit)

    def may_hold(self, needles: Sequence[bytes], groups: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some groups may have a line with all the literals, by their words alone.

        A word longer than every word of a group can only be a value of one of its hex columns; those are in the
        group's bloom filter.
        """
        maybe = np.ones(len(groups), np.bool_)
        for word in {word for needle in needles for word in _WORD.findall(needle)}:
            inside = self._longest[groups] >= len(word)
            if inside.all():
                continue
            half = len(word) // 2
            found, wider = np.zeros(len(groups), np.bool_), np.zeros(len(groups), np.bool_)
            if _HEX.fullmatch(word):
                wider = (self._widths[groups] >> min(half + 1, 63)) != 0
                if len(word) % 2 == 0:
                    found = self._ask(np.frombuffer(bytes.fromhex(word.decode()), np.uint8), groups)
            maybe &= inside | wider | found
        for word in {word for needle in needles for word in _DASHED.findall(needle)}:
            inside = self._dashed[groups] >= len(word)
            if not inside.all():
                maybe &= inside | self._may_hold_uuid(word, groups)
        for word in {word for needle in needles for word in _WHOLE_WORD.findall(needle)}:
            letters = self._words[groups] >> 1
            inside = (self._words[groups] == 0) | (letters_in(word) & ~letters == 0)
            if not inside.all():
                maybe &= inside | self._ask(hash_of(word), groups)
        return maybe

    def may_pass(self, clauses: Sequence[Clause], groups: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some groups, ascending, may have an entry for which each clause holds, by their columns alone."""
        maybe = np.ones(len(groups), np.bool_)
        for clause in clauses:
            maybe &= self._columns.may_pass(clause, groups, self._ask)
        return maybe

    def _ask(self, value: NDArray[np.uint8], groups: NDArray[np.int64]) -> NDArray[np.bool_]:
        """In the filters of which groups a value may be."""
        found = np.zeros(len(groups), np.uint8)
        bloom_ask(value, self._container.array(BLOOM), self._bloom_first[groups], self._bloom_size[groups], found)
        return found.view(np.bool_)

    def _may_hold_uuid(self, word: bytes, groups: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some groups may have a UUID with a word in it."""
        if not is_uuid(word):
            return np.asarray((self._uuids[groups] != 0) & (len(word) < UUID_WIDTH), np.bool_)
        return self._ask(np.frombuffer(bytes.fromhex(word.replace(b"-", b"").decode()), np.uint8), groups)

    def open(self, group: int) -> StoredRows:
        """One group.

        Raises
        ------
        CorruptionError        one of its frames is damaged
        """
        first, size = int(self._offset[group]), int(self._size[group])
        data = self._container.array(DATA).data[first : first + size]
        known = _heads.get(self._serial, group)
        if known is not None:
            return StoredRows(known, data)
        wanted = np.zeros(self._container.frame_count(DATA), np.uint8)
        wanted[first // FRAME_BYTES : -(-(first + size) // FRAME_BYTES)] = 1
        bad = np.flatnonzero(self._container.bad_frames(DATA, wanted))
        if len(bad):
            offset = self._container.frame_offset(DATA, int(bad[0]))
            raise CorruptionError(self.meta.key, offset, f"group {group} has a damaged frame")
        head = GroupHead(data, f"{self.meta.key} group {group}", int(self._longest[group]), int(self._dashed[group]))
        if head.n != int(self.rows[group]):
            raise CorruptionError(self.meta.key, first, f"group {group} has another number of rows")
        _heads.put(self._serial, group, head)
        return StoredRows(head, data)

    @cached_property
    def _by_ref(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Streams ascending, and first and last + 1 of the runs of each, which lie side by side."""
        first = np.flatnonzero(np.diff(self.runs.ref, prepend=-1))
        last = np.append(first[1:], len(self.runs.ref))
        order = np.argsort(self.runs.ref[first], kind="stable")
        return self.runs.ref[first[order]], first[order], last[order]

    def runs_at(self, refs: NDArray[np.int64], ts_ns: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (which of the asked, run) where a run of that stream spans that time.

        Parameters
        ----------
        refs, ts_ns : (n,) streams and times
        """
        streams, first, last = self._by_ref
        at = np.minimum(np.searchsorted(streams, refs), len(streams) - 1)
        counts = np.where(streams[at] == refs, last[at] - first[at], 0)
        which = np.repeat(np.arange(len(refs)), counts)
        runs = np.repeat(first[at] - (np.cumsum(counts) - counts), counts) + np.arange(len(which))
        hit = (self.runs.min_ns[runs] <= ts_ns[which]) & (self.runs.max_ns[runs] >= ts_ns[which])
        return which[hit], runs[hit]

    def rows_of_run(self, run: int) -> tuple[int, int, int]:
        """(group, first, last + 1) of the rows of a run."""
        group = int(self.runs.group[run])
        first = int(self.runs.rows[int(self._first_run[group]) : run].sum())
        return group, first, first + int(self.runs.rows[run])

    def times(self, group: int) -> NDArray[np.int64]:
        """Times of the rows of a group, (rows,) int64, ascending within each run; kept a while.

        Raises
        ------
        CorruptionError        as :meth:`open`
        """
        known = _times.get(self._serial, group)
        if known is None:
            known = self.open(group).ts_ns
            _times.put(self._serial, group, known)
        return known

    def runs_in(self, group: int) -> slice:
        """The runs of a group, one a stream, in the order of its rows."""
        return slice(int(self._first_run[group]), int(self._first_run[group + 1]))

    def refs_of_rows(self, group: int) -> NDArray[np.int64]:
        """Stream of each row of a group, (rows,) int64 registry numbers."""
        runs = self.runs_in(group)
        return np.repeat(self.runs.ref[runs], self.runs.rows[runs])

    def all_rows(self) -> Rows:
        """Everything, for a compaction."""
        sources = [self.open(group) for group in range(len(self))]
        lines = [source.lines(np.arange(source.n)) for source in sources]
        metadata = [source.metadata_blobs(np.arange(source.n)) for source in sources]
        return Rows(
            np.concatenate([self.refs_of_rows(g) for g in range(len(self))]).astype(np.uint32),
            np.concatenate([source.ts_ns for source in sources]),
            join_texts(lines),
            join_texts(metadata),
            np.concatenate([source.levels for source in sources]),
        )
