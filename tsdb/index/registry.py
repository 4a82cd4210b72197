"""The series of one tenant: from labels to a dense number, and back."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import xxhash
from numpy.typing import NDArray

from tsdb.arena import Arena
from tsdb.errors import LimitError, Reason
from tsdb.index.keys import KeyTable
from tsdb.index.series import NONE, Postings, Recent, Rows, SeriesIndex
from tsdb.index.symbols import SymbolTable
from tsdb.kernels import registry as kernels
from tsdb.kernels.postings import count_pairs
from tsdb.labels import Labels
from tsdb.limits import SeriesLimits
from tsdb.matchers import Matcher, Regex

REJECT_CODES: tuple[Reason, ...] = (
    Reason.MALFORMED,  # code 0 is never written
    Reason.EMPTY_LABEL_NAME,
    Reason.LABEL_NAME_TOO_LONG,
    Reason.LABEL_VALUE_TOO_LONG,
    Reason.INVALID_UTF8,
    Reason.TOO_MANY_LABELS,
    Reason.SERIES_TOO_LONG,
    Reason.DUPLICATE_LABEL,
    Reason.NO_LABELS,
    Reason.NO_METRIC_NAME,
    Reason.SERIES_LIMIT,
)
"""Reason of a refused series: ``REJECT_CODES[-ref]``."""

SPELLINGS_PER_SERIES = 4
"""Keys kept per series allowed: a sender that shuffles labels for ever must not fill the memory."""

TARGET_KEYS_MAX = 1 << 18
TARGET_KEY_BYTES_MAX = 256 << 20
"""Most series and key bytes that are predicted for one scrape target; more are looked up the slow way."""

TAIL_MIN = 1024
"""Series without postings that a query scans by rows (about 10 us) before it builds postings for them."""

DELTA_MIN = 4096
"""Smallest number of series for which all postings are built anew; above, one eighth of the series."""

PASSIVE_SERIES_MAX = 4_000_000
"""Room for series that are only read: what queries touch in the seconds until those that have ended are forgotten."""

NO_REF = 0xFFFFFFFF
"""Number of no series."""

COPIED_AT_ONCE = 1 << 16
"""Series whose labels are in memory at a time when a registry is copied: 25 MB of usual ones."""

_NAMES_MAX = 1 << 24
_KEY_BYTES_MAX = 16 << 30
_SLOTS_FIRST = 1024


class SeriesRegistry(SeriesIndex):
    """Series of a tenant by number (``ref``), dense, until another registry takes its place (docs/decisions/0009).

    One writer at a time (a lock inside), any number of readers without a lock: everything is append-only arrays
    that never move, and a reader takes the counts first.

    Parameters
    ----------
    limits : what a series may be and how many there may be
    reserved : most series that ever count; 0 = twice those that the limits allow

    Attributes
    ----------
    capacity : most series it can number, address space only
    passive : series that only blocks have, as far as is known: they do not count against the limit
    """

    def __init__(self, limits: SeriesLimits, reserved: int = 0) -> None:
        super().__init__(SymbolTable())
        self._limits = limits
        # Series of the log are taken beyond the limit: they were accepted once. Those read from blocks do not count.
        self._reserved = reserved or 2 * limits.active_series_max
        self.capacity = self._reserved + PASSIVE_SERIES_MAX
        self._entries_max = entries_max = min(self.capacity * limits.labels_max, (1 << 32) - 1)
        self.keys = KeyTable(SPELLINGS_PER_SERIES * self._reserved // 2, _KEY_BYTES_MAX)
        self._name_of_symbol = Arena(np.uint32, len(self.symbols.arrays().sym_offsets))
        self._name_symbols = Arena(np.uint32, _NAMES_MAX)
        self._name_newest = Arena(np.uint32, _NAMES_MAX)
        self._name_pairs = Arena(np.uint32, _NAMES_MAX)
        self._pair_names = Arena(np.uint32, entries_max)
        self._pair_values = Arena(np.uint32, entries_max)
        self._pair_older = Arena(np.uint32, entries_max)
        self._pair_slots: NDArray[np.uint64] = np.zeros(_SLOTS_FIRST, np.uint64)
        self._hashes = Arena(np.uint64, self.capacity)
        self._series_slots: NDArray[np.uint32] = np.zeros(_SLOTS_FIRST, np.uint32)
        self._row_offsets = Arena(np.uint32, self.capacity + 1)
        self._rows = Arena(np.uint32, entries_max)
        self._counts: NDArray[np.int64] = np.zeros(4, np.int64)
        self._lock = threading.Lock()
        self.passive = 0
        self._successor: tuple[SeriesRegistry, NDArray[np.uint32]] | None = None
        self._segments: tuple[Postings, ...] = ()
        self._segments_lock = threading.Lock()
        self._found: Recent[int] = Recent()
        self._accepted: Recent[int] = Recent()

    def __len__(self) -> int:
        """Series known."""
        return int(self._counts[kernels.SERIES])

    def use_limits(self, limits: SeriesLimits) -> bool:
        """Check new series against other limits; False = nothing changes, they need more room than was reserved."""
        if limits.active_series_max > self._reserved:
            return False
        if self.capacity * limits.labels_max > self._entries_max and limits.labels_max > self._limits.labels_max:
            return False
        self._limits = limits
        return True

    @property
    def active(self) -> int:
        """Series that count against ``limits.series.active_series_max``."""
        return len(self) - self.passive

    @property
    def _new_series_max(self) -> int:
        """Most series that may be known when a new one is made for a sender."""
        return min(self._limits.active_series_max + self.passive, self.capacity)

    @property
    def series_hash(self) -> NDArray[np.uint64]:
        """XXH3-64 of the canonical bytes by ref: an array that never moves, valid below ``len(self)``."""
        return self._hashes.array

    @property
    def memory_bytes(self) -> int:
        """Bytes in use: symbols, keys, series, postings."""
        names, pairs, series, entries = self._counts.tolist()
        tables = self._pair_slots.nbytes + self._series_slots.nbytes
        postings = sum(s.offsets.nbytes + s.refs.nbytes for s in self._segments)
        own = names * 16 + pairs * 12 + series * 12 + entries * 4 + tables + postings
        return int(own + self.symbols.memory_bytes + self.keys.memory_bytes)

    def new_key_table(self) -> KeyTable:
        """An empty key table, e.g. for one scrape target (its lines are spelled its own way)."""
        return KeyTable(TARGET_KEYS_MAX, TARGET_KEY_BYTES_MAX)

    # -- writing

    def resolve(self, labels: Labels | Mapping[str, str]) -> int:
        """Ref of one series, made if it is new.

        Raises
        ------
        RejectedError        no series may have such labels
        LimitError           ... because of a limit, the number of series included
        """
        series = labels if isinstance(labels, Labels) else Labels.of(labels)
        series.check(self._limits)
        canonical: NDArray[np.uint8] = np.frombuffer(series.canonical, np.uint8)
        offsets = np.array([0, len(canonical)], np.int64)
        ref = int(self._enter(canonical, offsets, np.zeros(1, np.int64), self._new_series_max)[0])
        if ref < 0:
            limit = self._limits.active_series_max
            raise LimitError(REJECT_CODES[-ref], f"the tenant has {limit:,} series (limits.series.active_series_max)")
        return ref

    def resolve_spans(
        self,
        buf: NDArray[np.uint8],
        series_offsets: NDArray[np.int64],
        name_start: NDArray[np.int64],
        name_end: NDArray[np.int64],
        value_start: NDArray[np.int64],
        value_end: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Refs of many series whose label names and values are byte ranges of a buffer; new ones are made.

        Labels may be unsorted; those with an empty value are dropped. A refused series takes no other with it.

        Parameters
        ----------
        buf : (n_bytes,) uint8
        series_offsets : (n + 1,) int64        labels of series i are ``[series_offsets[i], series_offsets[i + 1])``
        name_start, name_end, value_start, value_end : (n_labels,) int64

        Returns
        -------
        (n,) int64        refs; below 0: refused for ``REJECT_CODES[-ref]``
        """
        n = len(series_offsets) - 1
        limits = self._limits
        size = int((name_end - name_start + value_end - value_start).sum()) + 2 * len(name_start)
        canonical: NDArray[np.uint8] = np.empty(max(size, 1), np.uint8)
        offsets: NDArray[np.int64] = np.empty(n + 1, np.int64)
        refs: NDArray[np.int64] = np.empty(n, np.int64)
        kernels.canonicalise(
            buf, series_offsets, name_start, name_end, value_start, value_end,
            limits.labels_max, limits.label_name_bytes_max, limits.label_value_bytes_max, limits.series_bytes_max,
            np.empty(limits.labels_max, np.int64), canonical, offsets, refs,
        )  # fmt: skip
        return self._enter(canonical, offsets, refs, self._new_series_max)

    def adopt(
        self, canonical: NDArray[np.uint8], offsets: NDArray[np.int64], *, passive: bool = False
    ) -> NDArray[np.uint32]:
        """Refs of series by their canonical bytes, as the log and the blocks have them; new ones are made.

        What was accepted once is not checked against the limits again.

        Parameters
        ----------
        canonical : (n_bytes,) uint8
        offsets : (n + 1,) int64
        passive : new ones do not count as active: somebody reads them

        Returns
        -------
        (n,) uint32

        Raises
        ------
        LimitError        no room even beyond the series allowed
        """
        refs = self._enter(canonical, offsets, np.zeros(len(offsets) - 1, np.int64), self.capacity, passive=passive)
        if len(refs) and int(refs.min()) < 0:
            raise LimitError(
                Reason.SERIES_LIMIT, f"more than {self.capacity:,} series (limits.series.active_series_max)"
            )
        return refs.astype(np.uint32)

    def _enter(
        self,
        canonical: NDArray[np.uint8],
        offsets: NDArray[np.int64],
        refs: NDArray[np.int64],
        series_max: int,
        *,
        passive: bool = False,
    ) -> NDArray[np.int64]:
        """Find or create series by canonical bytes; fills and returns ``refs`` (entries below 0 stay)."""
        view = canonical.data
        digest = xxhash.xxh3_64_intdigest
        hashes = np.array([digest(view[a:b]) for a, b in pairwise(offsets.tolist())], np.uint64)
        done = 0
        with self._lock, self.symbols.lock:
            before = len(self)
            while True:
                done = kernels.find_or_create(
                    canonical, offsets, hashes, done, series_max, *self.symbols.arrays(),
                    self._name_of_symbol.array, self._name_symbols.array, self._name_newest.array,
                    self._name_pairs.array, self._pair_names.array, self._pair_values.array, self._pair_older.array,
                    self._pair_slots, self._hashes.array, self._series_slots, self._row_offsets.array,
                    self._rows.array, self._counts, refs,
                )  # fmt: skip
                if done == len(refs):
                    self.passive += (len(self) - before) * passive
                    return refs
                self._grow(int(np.count_nonzero(canonical[offsets[done] : offsets[done + 1]] == 0xFF)) // 2)

    def _grow(self, labels: int) -> None:
        """Double those tables that have no room for one more series of so many labels."""
        _, pairs, series, _ = self._counts.tolist()
        while (len(self.symbols) + 2 * labels) * 2 > len(self.symbols.arrays().slots):
            self.symbols.grow()
        size = len(self._pair_slots)
        while (pairs + labels) * 2 > size:
            size *= 2
        if size > len(self._pair_slots):
            pair_slots: NDArray[np.uint64] = np.zeros(size, np.uint64)
            kernels.rehash_pairs(self._pair_names.array, self._pair_values.array, pairs, pair_slots)
            self._pair_slots = pair_slots
        if (series + 1) * 4 > len(self._series_slots) * 3:
            series_slots: NDArray[np.uint32] = np.zeros(2 * len(self._series_slots), np.uint32)
            kernels.rehash_series(self._hashes.array, series, series_slots)
            self._series_slots = series_slots

    # -- giving way to another registry

    @property
    def is_current(self) -> bool:
        """Whether its numbers are the tenant's."""
        return self._successor is None

    def give_way(self, successor: SeriesRegistry, numbers: NDArray[np.uint32]) -> None:
        """Let another registry number the tenant's series from now on.

        A registry that gave way to this one earlier must be told, too: it would keep this one alive.

        Parameters
        ----------
        numbers : uint32        of each series in the successor, ``NO_REF`` for those that it does not know
        """
        successor.use_limits(self._limits)  # they may have been changed since it was made
        self._successor = successor, numbers

    def skip(self, middle: SeriesRegistry) -> None:
        """Point to the registry that ``middle``, to which this one gave way, has given way to."""
        assert self._successor is not None
        assert self._successor[0] is middle
        assert middle._successor is not None
        numbers, further = self._successor[1], middle._successor[1]
        known = numbers < len(further)
        skipped: NDArray[np.uint32] = np.full(len(numbers), NO_REF, np.uint32)
        skipped[known] = further[numbers[known]]
        self._successor = middle._successor[0], skipped

    def renumbered(
        self, refs: NDArray[np.uint32], *, passive: bool = False
    ) -> tuple[SeriesRegistry, NDArray[np.uint32]]:
        """The tenant's registry of now and the numbers that series of this one have there; made again if forgotten.

        Parameters
        ----------
        passive : those made again do not count as active

        Raises
        ------
        LimitError        no room even beyond the series allowed
        """
        if self._successor is None:
            return self, refs
        successor, numbers = self._successor
        out: NDArray[np.uint32] = np.full(len(refs), NO_REF, np.uint32)
        known = refs < len(numbers)
        out[known] = numbers[refs[known]]
        forgotten = np.flatnonzero(out == NO_REF)
        if len(forgotten):
            out[forgotten] = successor.adopt(*self.canonical(refs[forgotten]), passive=passive)
        return successor.renumbered(out, passive=passive)

    def moved_to(self, registry: SeriesRegistry) -> tuple[NDArray[np.int64], NDArray[np.uint32]] | None:
        """Series of this registry and their numbers in the one that it has given way to; None when that is another."""
        if self._successor is None or self._successor[0] is not registry:
            return None
        numbers = self._successor[1]
        kept = np.flatnonzero(numbers != NO_REF)
        return kept, numbers[kept]

    def copied(self, refs: NDArray[np.uint32]) -> SeriesRegistry:
        """A new registry with some series (ascending, numbered by their places) and their spellings."""
        made = SeriesRegistry(self._limits, self._reserved)
        for begin in range(0, len(refs), COPIED_AT_ONCE):
            made.adopt(*self.canonical(refs[begin : begin + COPIED_AT_ONCE]))
        numbers: NDArray[np.uint32] = np.full(len(self), NO_REF, np.uint32)
        numbers[refs] = np.arange(len(refs), dtype=np.uint32)
        made.keys.copy_from(self.keys, numbers)
        return made

    # -- reading

    def snapshot(self) -> Rows:
        # Series first: the pairs and names that they use were there before them.
        series = int(self._counts[kernels.SERIES])
        return Rows(
            series,
            int(self._counts[kernels.PAIRS]),
            int(self._counts[kernels.NAMES]),
            self._rows.array,
            self._row_offsets.array,
            self._pair_names.array,
            self._pair_values.array,
            self._name_symbols.array,
        )

    def name_number(self, name: str) -> int:
        symbol = self.symbols.find(name)
        return int(self._name_of_symbol.array[symbol]) - 1 if symbol >= 0 else -1

    def pairs_of_name(self, number: int, rows: Rows) -> NDArray[np.uint32]:
        return self._pairs_after(0, number, rows)

    def _pairs_after(self, stop: int, number: int, rows: Rows) -> NDArray[np.uint32]:
        """Ascending pairs of a label name that came after ``stop`` (one of its pairs + 1; 0 = all)."""
        newest = int(self._name_newest.array[number])  # before the count, which the writer raises first
        out: NDArray[np.uint32] = np.empty(int(self._name_pairs.array[number]) if newest != stop else 0, np.uint32)
        n = kernels.walk_pairs(newest, stop, rows.pairs, self._pair_older.array, out)
        return np.ascontiguousarray(out[:n][::-1])

    def pairs_with(self, number: int, values: Sequence[str], rows: Rows) -> NDArray[np.uint32]:
        pairs = []
        for value in values:
            symbol = self.symbols.find(value)
            if symbol > 0:
                pair = kernels.look_up_pair(
                    number, symbol, self._pair_names.array, self._pair_values.array, self._pair_slots
                )
                if 0 <= pair < rows.pairs:
                    pairs.append(pair)
        pairs.sort()
        return np.array(pairs, np.uint32)

    def accepted_pairs(self, number: int, regex: Regex, rows: Rows) -> NDArray[np.uint32]:
        # Pairs only come, so a regex runs once per value for as long as its result is kept.
        key = (number, regex.anchored)
        seen, accepted = self._accepted.get(key) or (0, NONE)
        newer = self._pairs_after(seen, number, rows)
        if len(newer):
            accepted = np.concatenate((accepted, newer[regex.mask(self._strings(newer, rows))]))
            self._accepted.put(key, int(newer[-1]) + 1, accepted)
        return accepted[: int(np.searchsorted(accepted, rows.pairs))]

    def find(self, matchers: Sequence[Matcher]) -> NDArray[np.uint32]:
        """Ascending refs of the series that satisfy every matcher; all of them when there is none.

        Returns
        -------
        (n,) uint32, read-only

        Raises
        ------
        RejectedError        bad_matcher: an invalid regex
        """
        key = tuple(matchers)
        known, found = self._found.get(key) or (0, NONE)
        if known >= len(self):
            return found
        rows = self.snapshot()
        choices = [self.choose(matcher, rows) for matcher in matchers]
        if any(choice.wanted and not len(choice.pairs) for choice in choices):
            found = NONE
        elif known and rows.series - known <= TAIL_MIN:  # series only come: look at the new ones
            found = np.concatenate((found, self.scan(known, rows.series, choices, rows)))
        else:
            segments = self._fresh_segments(rows)
            parts = [self.find_in(segment, choices, rows) for segment in segments]
            parts.append(self.scan(segments[-1].last if segments else 0, rows.series, choices, rows))
            found = np.concatenate(parts)
            # Another thread may have built postings for series that came after our snapshot.
            found = found[: int(np.searchsorted(found, rows.series))]
        self._found.put(key, rows.series, found)
        return found

    def _fresh_segments(self, rows: Rows) -> tuple[Postings, ...]:
        """Postings of nearly all series: a base, perhaps a delta; the rest is few enough to be scanned."""
        segments = self._segments
        covered = segments[-1].last if segments else 0
        if rows.series - covered <= max(TAIL_MIN, covered >> 7) or not self._segments_lock.acquire(blocking=False):
            return segments  # who finds another thread building scans a longer tail this time
        try:
            segments = self._segments
            base = segments[0].last if segments else 0
            if rows.series - base > max(DELTA_MIN, base >> 3) or not segments:
                segments = (Postings.build(rows, 0, rows.series),)
            elif rows.series > segments[-1].last:
                segments = (segments[0], Postings.build(rows, base, rows.series))
            self._segments = segments
            return segments
        finally:
            self._segments_lock.release()

    def pair_counts(self, rows: Rows) -> NDArray[np.uint32]:
        """Number of series of each pair, (pairs,) uint32."""
        counts: NDArray[np.uint32] = np.zeros(rows.pairs, np.uint32)
        count_pairs(rows.rows, 0, int(rows.row_offsets[rows.series]), counts)
        return counts
