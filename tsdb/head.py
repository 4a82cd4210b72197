"""The writable window of one shard: open and sealed XOR chunks, and the samples that came late.

One writer at a time, any number of readers. A reader copies what it needs under the head's lock, at most
``SLOTS_PER_HOLD`` series at a time, so that it neither sees half a sample nor stops the writer for long; the
state of one series is consistent, that of two series may be a batch apart.

A cut is taken in two steps. :meth:`Head.cut` fixes everything older than a border, :meth:`Head.drop` forgets it
once its block is published. In between it stays readable, and nothing older than the border can join it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tsdb.arena import Arena
from tsdb.batch import SampleStatus
from tsdb.chunks import CHUNK_SPAN_MS, ChunkKind, Chunks, LateSamples
from tsdb.erase import forget_newest, forget_rows, has_chunks, unlink_all
from tsdb.errors import CorruptionError, OverloadedError
from tsdb.gorilla import decode_rows
from tsdb.kernels import head as kernels
from tsdb.kernels.gorilla import PAD_WORDS, SAMPLES_MAX, WORDS_MAX
from tsdb.late import LateStore, Run, gather

MIN_MS = -(1 << 63)
MAX_MS = (1 << 63) - 1
_BIAS = 1 << 63
_NO_TIME = np.uint64((1 << 64) - 1)

SLOTS_PER_HOLD = 8192
"""Series copied, sealed or dropped per holding of the lock: about 5 ms."""
SLOTS_PER_ERASURE = 1024
"""Series decoded, erased from and encoded again per holding of the lock: about 10 ms at 720 samples each."""
SEALED_BYTES_PER_SERIES = 16 << 10
"""Reserved address space for sealed chunks: 2 h of incompressible samples every 4 s, or 45 h of usual ones at 15 s."""
SEALED_BYTES_MIN = 256 << 20
BLOCKS_PER_SERIES = -(-WORDS_MAX // 15)
"""Blocks of the longest chunk: with so many per series, open chunks never run out of space."""
WORDS_PER_SAMPLE = 3
"""Most words that one sample adds (145 bits, or the two words of a chunk's first)."""
LATE_SAMPLES_MAX = 1 << 26
"""Most late samples of one head, 1.3 GB; beyond, writers must wait for a cut."""
HUGE_PAGES_FROM = 1 << 16
"""Series from which on the arenas use 2 MiB pages: 4 MiB of state rows read in random order."""


@dataclass(frozen=True, slots=True)
class HeadStats:
    """What a head has done since it was made, in samples, and what it holds.

    Attributes
    ----------
    appended : stored in chunks, newer than their series
    late : stored as late samples
    repeated : already there with the same bits
    duplicate, too_old : refused
    below_cut : handed back to the caller, who looks into the blocks
    open_chunks, sealed_chunks, late_samples : held now
    """

    appended: int
    late: int
    repeated: int
    duplicate: int
    too_old: int
    below_cut: int
    open_chunks: int
    sealed_chunks: int
    late_samples: int


def _biased(ms: int) -> np.uint64:
    return np.uint64(ms + _BIAS)


class Head:
    """Chunks and late samples of one tenant in one shard.

    Parameters
    ----------
    capacity_series : most series; slots are ``0 .. capacity_series - 1``. Address space is reserved for so many,
        memory is used as they come
    span_ms : no chunk crosses a multiple of it; borders of cuts must be multiples
    sealed_bytes_max : most bytes of sealed chunks
    late_samples_max : most late samples
    """

    def __init__(
        self,
        capacity_series: int,
        span_ms: int = CHUNK_SPAN_MS,
        sealed_bytes_max: int | None = None,
        late_samples_max: int = LATE_SAMPLES_MAX,
    ) -> None:
        if sealed_bytes_max is None:
            sealed_bytes_max = max(capacity_series * SEALED_BYTES_PER_SERIES, SEALED_BYTES_MIN)
        assert capacity_series * BLOCKS_PER_SERIES * kernels.BLOCK_WORDS < 1 << 32, "places in blocks have 32 bits"
        self._n_slabs = sealed_bytes_max // 8 // kernels.SLAB_WORDS
        n_words = self._n_slabs * kernels.SLAB_WORDS
        self._chunk_rows_max = n_words // 4
        self.capacity_series = capacity_series
        self.span_ms = span_ms
        self._late_samples_max = late_samples_max
        self._lock = threading.Lock()
        self._late = LateStore()
        self._state = Arena(np.uint64, capacity_series * kernels.STATE_WORDS)
        self._blocks = Arena(np.uint64, (capacity_series * BLOCKS_PER_SERIES + 1) * kernels.BLOCK_WORDS)
        self._sealed = Arena(np.uint64, n_words + PAD_WORDS)
        self._chunks = Arena(np.uint64, self._chunk_rows_max * kernels.CHUNK_WORDS)
        self._slabs = np.zeros(self._n_slabs * 2, np.uint64)
        self._control = np.zeros(kernels.CONTROL_WORDS, np.uint64)
        self._control[kernels.SPAN] = span_ms
        self._control[[kernels.OLDEST, kernels.OLDEST_LEFT]] = _NO_TIME
        self._border_ms = MIN_MS
        self._huge_pages = False
        self._decided = np.zeros(len(SampleStatus), np.int64)
        self._late_accepted = 0
        self._scratch = (
            np.zeros(WORDS_MAX + PAD_WORDS, np.uint64),
            np.zeros(SAMPLES_MAX, np.uint64),
            np.zeros(SAMPLES_MAX, np.uint64),
        )
        self._read = (self._state.array, self._blocks.array, self._sealed.array, self._chunks.array)
        self._write = (*self._read, self._slabs, self._control)

    # -- writing

    def append(
        self,
        slots: NDArray[np.uint32],
        ts_ms: NDArray[np.int64],
        bits: NDArray[np.uint64],
        status: NDArray[np.uint8],
        window_floor_ms: int = MIN_MS,
        cut_floor_ms: int = MIN_MS,
    ) -> int:
        """Decide on a batch, sample by sample in the given order, and store what is new.

        A sample newer than its series goes into the series' chunk. Any other one is looked up: the same time with
        the same bits is REPEATED, with other bits DUPLICATE. What is not there is TOO_OLD below the window, BELOW_CUT
        below the cut (not stored: the caller looks into the blocks, then calls :meth:`append_late`), else late.

        Parameters
        ----------
        slots : (n,) uint32; ts_ms : (n,) int64; bits : (n,) uint64
        status : (n,) uint8, written        one SampleStatus a sample
        window_floor_ms : least time that is accepted as late
        cut_floor_ms : least time that is not, or about to be, in a block; never below the last :meth:`cut`

        Returns
        -------
        int        samples stored or repeated

        Raises
        ------
        tsdb.errors.OverloadedError        no space for the worst case of this batch; nothing was stored
        """
        n = len(slots)
        assert len(ts_ms) == len(bits) == len(status) == n
        if not n:
            return 0
        times = ts_ms.view(np.uint64)
        with self._lock:
            self._reserve(slots)
            cut_floor_ms = max(cut_floor_ms, self._border_ms)
            floor = _biased(max(window_floor_ms, cut_floor_ms))
            before = int(self._control[kernels.SAMPLES])
            pending = kernels.append_samples(slots, times, bits, floor, *self._write, status)
            if int(self._control[kernels.SAMPLES]) - before == n:  # as nearly always: every sample is new
                self._decided[SampleStatus.ACCEPTED] += n
                self._use_huge_pages()
                return n
            if pending:
                places = np.flatnonzero(status == kernels.PENDING)
                self._resolve(slots, ts_ms, bits, status, places, window_floor_ms, cut_floor_ms)
            return self._count(status)

    def append_late(
        self, slots: NDArray[np.uint32], ts_ms: NDArray[np.int64], bits: NDArray[np.uint64], status: NDArray[np.uint8]
    ) -> int:
        """Store samples as late ones whatever their time, unless the head already has one of that time.

        Parameters and the result are as in :meth:`append`.
        """
        if not len(slots):
            return 0
        with self._lock:
            self._reserve(slots)
            self._resolve(slots, ts_ms, bits, status, np.arange(len(slots)), MIN_MS, MIN_MS)
            return self._count(status)

    def _reserve(self, slots: NDArray[np.uint32]) -> None:
        """Raise OverloadedError unless the worst case of a batch fits, the sealing of all open chunks included."""
        n = len(slots)
        assert int(slots.max()) < self.capacity_series, "slot beyond the capacity of the head"
        control = self._control
        open_words = int(control[kernels.BLOCKS_USED]) * kernels.BLOCK_WORDS + n * WORDS_PER_SAMPLE
        slabs_free = self._n_slabs - int(control[kernels.NEXT_SLAB]) + int(control[kernels.FREE_SLABS])
        slabs_needed = open_words // (kernels.SLAB_WORDS - WORDS_MAX) + 1
        rows_free = self._chunk_rows_max - int(control[kernels.CHUNKS_USED])
        if slabs_free < slabs_needed or rows_free < int(control[kernels.OPEN_CHUNKS]) + n:
            raise OverloadedError("the head is full: it must be cut before it takes more samples")
        if self._late.count + n > self._late_samples_max:
            raise OverloadedError(f"the head holds its most late samples, {self._late_samples_max}")

    def _resolve(
        self,
        slots: NDArray[np.uint32],
        ts_ms: NDArray[np.int64],
        bits: NDArray[np.uint64],
        status: NDArray[np.uint8],
        places: NDArray[np.int64],
        window_floor_ms: int,
        cut_floor_ms: int,
    ) -> None:
        """Decide on the samples at ``places`` that are not newer than their series, or below a floor."""
        slots, ts_ms, bits = slots[places], ts_ms[places], bits[places]
        found = np.full(len(places), kernels.PENDING, np.uint8)
        times = ts_ms.view(np.uint64)
        if kernels.find_samples(slots, times, bits, *self._read, *self._scratch, found) < 0:
            raise CorruptionError("head", 0, "a chunk in memory does not decode")
        self._late.find(slots, ts_ms, bits, found)
        unknown = found == kernels.PENDING
        found[unknown & (ts_ms < cut_floor_ms)] = SampleStatus.BELOW_CUT
        found[unknown & (ts_ms < window_floor_ms)] = SampleStatus.TOO_OLD
        new = np.flatnonzero(found == kernels.PENDING)
        if len(new):
            decided = np.zeros(len(new), np.uint8)
            self._late_accepted += self._late.add(slots[new], ts_ms[new], bits[new], decided)
            found[new] = decided
            newest = _biased(int(ts_ms[new].max()))
            self._control[kernels.NEWEST] = max(self._control[kernels.NEWEST], newest)
        status[places] = found

    def _count(self, status: NDArray[np.uint8]) -> int:
        counts = np.bincount(status, minlength=len(self._decided))
        self._decided += counts
        self._use_huge_pages()
        return int(counts[SampleStatus.ACCEPTED] + counts[SampleStatus.REPEATED])

    def _use_huge_pages(self) -> None:
        if not self._huge_pages and self._control[kernels.SLOTS] > HUGE_PAGES_FROM:
            self._huge_pages = True
            self._state.use_huge_pages()
            self._blocks.use_huge_pages()

    # -- reading

    def snapshot(self, slots: NDArray[np.uint32], mint_ms: int, maxt_ms: int) -> tuple[Chunks, LateSamples]:
        """Copy out the chunks that overlap ``[mint_ms, maxt_ms]`` and the late samples within it.

        Take it before the list of blocks: a block published in between is then seen twice, never missed.

        Parameters
        ----------
        slots : (m,) uint32, each once; their places are the rows of the result

        Returns
        -------
        (Chunks, LateSamples)        owned by the caller; ``PAD_WORDS`` unused words lie behind the last payload
        """
        slots = np.ascontiguousarray(slots, np.uint32)
        parts = []
        runs: tuple[Run, ...] = ()
        for begin in range(0, len(slots), SLOTS_PER_HOLD):
            with self._lock:
                if not begin:
                    runs = self._late.runs
                table, words = self._copy(slots[begin : begin + SLOTS_PER_HOLD], mint_ms, maxt_ms)
            table[:, 0] += begin
            parts.append((table, words))
        late = gather(runs, slots, mint_ms, maxt_ms)
        if len(parts) == 1:
            return _chunks_of(*parts[0]), late
        if not parts:
            return _chunks_of(np.empty((0, 6), np.int64), np.zeros(PAD_WORDS, np.uint64)), late
        first = 0
        for table, words in parts:
            table[:, 4] += first
            first += len(words)
        tables, all_words = zip(*parts, strict=True)
        return _chunks_of(np.concatenate(tables), np.concatenate(all_words)), late

    def _copy(
        self, slots: NDArray[np.uint32], mint_ms: int, maxt_ms: int
    ) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Descriptors and words of the chunks that overlap a span of time; the lock is held."""
        low, high = _biased(mint_ms), _biased(maxt_ms)
        totals = np.zeros(1, np.int64)
        n_chunks = kernels.measure_snapshot(slots, low, high, self._read[0], self._read[3], totals)
        table = np.empty((n_chunks, 6), np.int64)
        words = np.empty(int(totals[0]) + PAD_WORDS, np.uint64)
        n_chunks = kernels.copy_snapshot(slots, low, high, *self._read, table, words)
        words[-PAD_WORDS:] = 0
        return table[:n_chunks], words

    def newest(
        self, slots: NDArray[np.uint32], oldest_ms: int, at_ms: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.uint64]] | None:
        """The newest sample of each series within ``[oldest_ms, at_ms]``, without decoding anything.

        Late samples never are the newest, unless they are older than the last cut: ask for nothing older than that.

        Parameters
        ----------
        slots : (n,) uint32        ``NO_SLOT`` for a series without any

        Returns
        -------
        (present (n,), ts_ms (n,), bits (n,)), or None when a series has a newer sample than ``at_ms``
        """
        n = len(slots)
        present, times, bits = np.empty(n, np.uint8), np.empty(n, np.uint64), np.empty(n, np.uint64)
        with self._lock:
            newer = kernels.newest_samples(
                slots, _biased(oldest_ms), _biased(at_ms), self._read[0], present, times, bits
            )
        return None if newer else (present.view(np.bool_), times.view(np.int64), bits)

    # -- forgetting

    def holds(self, n_slots: int) -> NDArray[np.bool_]:
        """Which of the first slots have a sample in a chunk or a late one, (n_slots,)."""
        holds: NDArray[np.bool_] = np.zeros(n_slots, np.bool_)
        with self._lock:
            used = min(n_slots, int(self._control[kernels.SLOTS]))
            holds[:used] = has_chunks(self._state.array, used)
            for run in self._late.runs:
                holds[run.slots[run.slots < n_slots]] = True
        return holds

    def forget(self, slots: NDArray[np.uint32]) -> None:
        """Make slots that hold nothing as good as new."""
        with self._lock:
            forget_rows(self._state.array, slots)

    # -- erasing

    def erase(self, slots: NDArray[np.uint32], mint_ms: int, maxt_ms: int) -> None:
        """Forget the samples of some series within ``[mint_ms, maxt_ms]``; no cut may be between its two steps.

        A series that loses a sample of its chunks is encoded anew from what is left, late samples that a block does
        not hold included: its newest sample then is the newest that is left, and a sample that comes at an erased
        time is stored like any other.

        Raises
        ------
        tsdb.errors.OverloadedError        no space to encode what is left; series so far are erased
        """
        slots = np.unique(slots)
        rebuilt = [np.zeros(0, np.uint32)]
        for begin in range(0, len(slots), SLOTS_PER_ERASURE):
            with self._lock:
                rebuilt.append(self._erase_chunks(slots[begin : begin + SLOTS_PER_ERASURE], mint_ms, maxt_ms))
        with self._lock:
            # After the chunks, so that a reader sees a sample that moves twice, never misses it.
            self._late.erase(slots, mint_ms, maxt_ms, np.concatenate(rebuilt), max(self._border_ms, MIN_MS + 1))
        self._drop_chunks(_biased(MIN_MS))

    def _erase_chunks(self, slots: NDArray[np.uint32], mint_ms: int, maxt_ms: int) -> NDArray[np.uint32]:
        """Erase from the chunks of few series; returns those that were encoded anew."""
        forget_newest(self._state.array, slots, _biased(mint_ms), _biased(maxt_ms))
        overlapping, _ = self._copy(slots, mint_ms, maxt_ms)
        slots = slots[np.unique(overlapping[:, 0])]
        if not len(slots):
            return slots
        chunks = _chunks_of(*self._copy(slots, MIN_MS, MAX_MS))
        ts_ms, bits = decode_rows(chunks)
        rows = np.repeat(chunks.rows, chunks.counts)
        hit = np.zeros(len(slots), np.bool_)
        hit[rows[(ts_ms >= mint_ms) & (ts_ms <= maxt_ms)]] = True
        late = gather(self._late.runs, slots, max(self._border_ms, MIN_MS + 1), MAX_MS)  # no chunk holds MIN_MS
        rows = np.concatenate([rows, late.rows])
        ts_ms, bits = np.concatenate([ts_ms, late.ts_ms]), np.concatenate([bits, late.bits])
        keep = hit[rows] & ((ts_ms < mint_ms) | (ts_ms > maxt_ms))
        rows, ts_ms, bits = rows[keep], ts_ms[keep], bits[keep]
        order = np.lexsort((ts_ms, rows))
        of_sample, ts_ms, bits = slots[rows[order]], ts_ms[order], bits[order]
        if len(of_sample):
            self._reserve(of_sample)
        state, blocks, _, chunk_rows, slabs, control = self._write
        unlink_all(slots[hit], state, blocks, chunk_rows, slabs, control)
        status = np.empty(len(of_sample), np.uint8)
        pending = kernels.append_samples(of_sample, ts_ms.view(np.uint64), bits, np.uint64(0), *self._write, status)
        assert not pending, "what was in order stays in order"
        return slots[hit]

    # -- cutting

    def cut(self, border_ms: int) -> tuple[NDArray[np.uint32], Chunks, LateSamples]:
        """Fix everything older than the border. Nothing leaves the head before :meth:`drop`.

        From now on an older sample is BELOW_CUT, and an older late one belongs to the next cut. Repeating a cut
        before its drop returns the same again, and older late samples that have arrived since.

        Parameters
        ----------
        border_ms : a multiple of ``span_ms``

        Returns
        -------
        (slots (m,) uint32 ascending, Chunks, LateSamples)
            rows number the slots; the words of the chunks are the head's own, valid until :meth:`drop`
        """
        assert border_ms % self.span_ms == 0, "a border must be a multiple of the span that chunks do not cross"
        border = _biased(border_ms)
        with self._lock:
            self._border_ms = max(self._border_ms, border_ms)
            late = self._late.cut(border_ms)
        n_chunks = sum(kernels.seal_below(begin, end, border, *self._write) for begin, end in self._ranges())
        table = np.empty((n_chunks, 6), np.int64)
        at = 0
        for begin, end in self._ranges():
            at = kernels.list_below(begin, end, border, self._read[0], self._read[3], table, at)
        assert at == n_chunks
        slots = np.unique(np.concatenate([table[:, 0].astype(np.uint32), late.slots]))
        table[:, 0] = np.searchsorted(slots, table[:, 0])
        rows = np.searchsorted(slots, late.slots).astype(np.int32)
        return slots, _chunks_of(table, self._sealed.array), LateSamples(rows, late.ts_ms, late.bits)

    def drop(self, border_ms: int) -> None:
        """Forget what :meth:`cut` returned for this border: its block is published."""
        assert border_ms <= self._border_ms, "only what was cut may be dropped"
        border = _biased(border_ms)
        with self._lock:
            self._late.drop(border_ms)
        self._drop_chunks(border)

    def _drop_chunks(self, border: np.uint64) -> None:
        """Forget the sealed chunks below a biased border; find out what the oldest sample is now."""
        with self._lock:
            self._control[kernels.OLDEST_LEFT] = _NO_TIME
        for begin, end in self._ranges():
            kernels.drop_below(
                begin, end, border, self._read[0], self._read[1], self._read[3], self._slabs, self._control
            )
        with self._lock:
            self._control[kernels.OLDEST] = self._control[kernels.OLDEST_LEFT]
            self._collect_slabs()

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """Ranges of all slots in use; the lock is held while the caller works on one."""
        begin = 0
        while True:
            with self._lock:
                end = min(begin + SLOTS_PER_HOLD, int(self._control[kernels.SLOTS]))
                if begin >= end:
                    return
                yield begin, end
            begin = end

    def _collect_slabs(self) -> None:
        """Give the memory of slabs without a living chunk back and put them on the free list."""
        control, size = self._control, kernels.SLAB_WORDS
        used = int(control[kernels.NEXT_SLAB])
        empty = self._slabs[: 2 * used : 2] == 0
        link = int(control[kernels.FREE_SLAB])
        while link:  # these are on the list already
            empty[link - 1] = False
            link = int(self._slabs[2 * link - 1])
        current = (int(control[kernels.SEALED_END]) - 1) // size
        for slab in np.flatnonzero(empty).tolist():
            if slab == current:
                self._sealed.release(slab * size, int(control[kernels.SEALED_AT]))
                control[kernels.SEALED_AT] = slab * size
                continue
            self._sealed.release(slab * size, (slab + 1) * size)
            self._slabs[2 * slab + 1] = control[kernels.FREE_SLAB]
            control[kernels.FREE_SLAB] = slab + 1
            control[kernels.FREE_SLABS] += np.uint64(1)

    # -- figures

    @property
    def newest_ms(self) -> int:
        """Time of the newest sample ever stored; MIN_MS when there was none."""
        return int(self._control[kernels.NEWEST]) - _BIAS

    @property
    def oldest_ms(self) -> int:
        """Least time of the samples held; MAX_MS when there is none."""
        return min(int(self._control[kernels.OLDEST]) - _BIAS, self._late.oldest_ms)

    @property
    def sample_count(self) -> int:
        """Samples held, in chunks and late."""
        return int(self._control[kernels.SAMPLES]) + self._late.count

    @property
    def chunk_count(self) -> int:
        """Chunks held, open and sealed."""
        return int(self._control[kernels.OPEN_CHUNKS] + self._control[kernels.CHUNKS_USED])

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory touched by this head, pages of freed blocks included."""
        control = self._control
        words = (
            int(control[kernels.SLOTS]) * kernels.STATE_WORDS
            + int(control[kernels.NEXT_BLOCK]) * kernels.BLOCK_WORDS
            + int(control[kernels.NEXT_CHUNK]) * kernels.CHUNK_WORDS
            + (int(control[kernels.NEXT_SLAB]) - int(control[kernels.FREE_SLABS])) * kernels.SLAB_WORDS
            - int(control[kernels.SEALED_END] - control[kernels.SEALED_AT])
        )
        return words * 8 + self._late.memory_bytes

    @property
    def stats(self) -> HeadStats:
        """Counts since the head was made, and what it holds."""
        decided = self._decided.tolist()
        return HeadStats(
            appended=decided[SampleStatus.ACCEPTED] - self._late_accepted,
            late=self._late_accepted,
            repeated=decided[SampleStatus.REPEATED],
            duplicate=decided[SampleStatus.DUPLICATE],
            too_old=decided[SampleStatus.TOO_OLD],
            below_cut=decided[SampleStatus.BELOW_CUT],
            open_chunks=int(self._control[kernels.OPEN_CHUNKS]),
            sealed_chunks=int(self._control[kernels.CHUNKS_USED]),
            late_samples=self._late.count,
        )


def _chunks_of(table: NDArray[np.int64], words: NDArray[np.uint64]) -> Chunks:
    """Chunks from rows of (row, min, max, samples, first word, words)."""
    return Chunks(
        rows=table[:, 0].astype(np.int32),
        kinds=np.full(len(table), ChunkKind.XOR, np.uint8),
        min_ms=table[:, 1].copy(),
        max_ms=table[:, 2].copy(),
        counts=table[:, 3].astype(np.int32),
        word_offsets=table[:, 4].copy(),
        word_counts=table[:, 5].astype(np.int32),
        words=words,
    )
