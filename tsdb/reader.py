"""Reading the series of one tenant: postings, then chunks of blocks and heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tsdb.assemble import Selection
from tsdb.block.live import LiveBlock
from tsdb.chunks import Part
from tsdb.errors import CorruptionError, LimitError, Reason
from tsdb.frame import LabelTable, NewestSamples, SeriesFrame, Symbols
from tsdb.generation import Generation
from tsdb.index.registry import SeriesRegistry
from tsdb.limits import SelectLimits
from tsdb.matchers import Matcher, MatchOp
from tsdb.shard import Shard

LIGHT_SERIES_MAX = 64
"""Series that are read in about 0.2 ms at most, chunks included: less than a thread switch may take."""


class Reader:
    """The series of one tenant as one generation numbers them.

    Implements ``query.storage.Storage``; every bound of a time range is inclusive and in milliseconds. A query that
    selects more than once needs one reader for all of it, since label values have the numbers of a generation.
    """

    def __init__(self, generation: Generation, shards: tuple[Shard, ...]) -> None:
        self.generation = generation
        self.shards = shards

    @property
    def symbols(self) -> Symbols:
        """Numbering of all label values of this tenant."""
        return self.generation.registry.symbols

    @property
    def newest_ms(self) -> int:
        """Time of the newest sample; ``MIN_MS`` when there is none."""
        return max(shard.newest_ms for shard in self.shards)

    def select(self, matchers: Sequence[Matcher], mint_ms: int, maxt_ms: int, limits: SelectLimits) -> SeriesFrame:
        """Samples of all series that satisfy every matcher, exact bits, strictly ascending in time.

        Raises
        ------
        LimitError        more series or samples than ``limits`` allow
        """
        return self.open(matchers, mint_ms, maxt_ms, limits).frame()

    def open(self, matchers: Sequence[Matcher], mint_ms: int, maxt_ms: int, limits: SelectLimits) -> Selection:
        """What :meth:`select` returns, still encoded: to be decoded a few series at a time.

        Raises
        ------
        LimitError        more series or samples than ``limits`` allow
        """
        # The head is read before the list of blocks: one published in between is then seen twice, never missed.
        generation = self.generation
        refs = generation.registry.find(matchers)
        parts = self._head_parts(generation, refs, mint_ms, maxt_ms)
        warnings: list[str] = []
        hits = self._block_rows(generation.registry, matchers, mint_ms, maxt_ms, warnings)
        if hits:
            wanted = np.unique(np.concatenate([refs, *(r for _, _, r in hits)]))
            place = np.searchsorted(wanted, refs).astype(np.int32)
            heads = [(replace(c, rows=place[c.rows]), replace(late, rows=place[late.rows])) for c, late in parts]
            parts = []
            for live, rows, block_refs in hits:
                try:
                    parts.append(live.part(rows, block_refs, wanted, mint_ms, maxt_ms, warnings))
                except CorruptionError as error:
                    warnings.append(f"partial: {error}")
            parts += heads  # in the order of time: what follows each other is decoded in place, not merged
            refs = wanted
        self._check_limits(refs, parts, limits)
        return Selection(generation.registry.label_table(refs), parts, mint_ms, maxt_ms, tuple(warnings))

    def newest(
        self, matchers: Sequence[Matcher], oldest_ms: int, at_ms: int, limits: SelectLimits
    ) -> NewestSamples | None:
        """Newest sample at ``at_ms`` of each series, from what the heads keep at hand.

        None when a sample may lie in a chunk: the series has gone on since, or the time reaches behind the last cut.

        Raises
        ------
        LimitError        more series than ``limits`` allow
        """
        generation = self.generation
        refs = generation.registry.find(matchers)
        self._check_limits(refs, (), limits)
        found = self._newest_in_heads(generation, refs, oldest_ms, at_ms)
        if found is None:
            return None
        present, ts_ms, bits = found
        if any(oldest_ms < shard.cut_floor_ms for shard in self.shards):
            return None  # a cut began meanwhile, or a block has series that the registry does not know yet
        return NewestSamples(generation.registry.label_table(refs), present, ts_ms, bits.view(np.float64))

    def _newest_in_heads(
        self, generation: Generation, refs: NDArray[np.uint32], oldest_ms: int, at_ms: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.uint64]] | None:
        """What :meth:`tsdb.head.Head.newest` says of series in any shards."""
        slot_of = generation.slot_of()
        if len(self.shards) == 1:
            return self.shards[0].newest(slot_of[refs], oldest_ms, at_ms)
        n = len(refs)
        present, ts_ms, bits = np.zeros(n, np.bool_), np.empty(n, np.int64), np.empty(n, np.uint64)
        for shard, own, rows in self._by_shard(generation.registry, refs):
            found = shard.newest(slot_of[own], oldest_ms, at_ms)
            if found is None:
                return None
            present[rows], ts_ms[rows], bits[rows] = found
        return present, ts_ms, bits

    def is_light(self, matchers: Sequence[Matcher], oldest_ms: int) -> bool:
        """Whether these series are few, found without a regex, and in memory since ``oldest_ms``."""
        if any(matcher.op is not MatchOp.EQUAL for matcher in matchers):
            return False
        if any(oldest_ms < shard.cut_floor_ms for shard in self.shards):
            return False
        return len(self.generation.registry.find(matchers)) <= LIGHT_SERIES_MAX

    def _check_limits(self, refs: NDArray[np.uint32], parts: Sequence[Part], limits: SelectLimits) -> None:
        if len(refs) > limits.series_max:
            raise LimitError(
                Reason.QUERY_LIMIT,
                f"the selector matches {len(refs):,} series, "
                f"the limit is {limits.series_max:,} (limits.query.series_max)",
            )
        samples = sum(int(chunks.counts.sum()) + len(late) for chunks, late in parts)
        if samples > limits.samples_max:
            raise LimitError(
                Reason.QUERY_LIMIT,
                f"the selector reads {samples:,} samples, "
                f"the limit is {limits.samples_max:,} (limits.query.samples_max)",
            )

    def _by_shard(
        self, registry: SeriesRegistry, refs: NDArray[np.uint32]
    ) -> Iterable[tuple[Shard, NDArray[np.uint32], NDArray[np.int32]]]:
        """Split ascending series over the shards, each with the places of its series in ``refs``."""
        if len(self.shards) == 1:
            yield self.shards[0], refs, np.arange(len(refs), dtype=np.int32)
            return
        shard_of = registry.series_hash[refs] & np.uint64(len(self.shards) - 1)
        for shard in self.shards:
            places = np.flatnonzero(shard_of == shard.number)
            if len(places):
                yield shard, refs[places], places.astype(np.int32)

    def _head_parts(self, generation: Generation, refs: NDArray[np.uint32], mint_ms: int, maxt_ms: int) -> list[Part]:
        if not len(refs):
            return []
        slot_of = generation.slot_of()
        own_shards = self._by_shard(generation.registry, refs)
        return [shard.head_part(slot_of[own], rows, mint_ms, maxt_ms) for shard, own, rows in own_shards]

    def _block_rows(
        self, registry: SeriesRegistry, matchers: Sequence[Matcher], mint_ms: int, maxt_ms: int, warnings: list[str]
    ) -> list[tuple[LiveBlock, NDArray[np.int32], NDArray[np.uint32]]]:
        """Matching rows of the blocks in range, oldest block first, with their series numbers."""
        hits = []
        for shard in self.shards:
            if mint_ms < shard.cut_floor_ms:
                warnings.extend(f"partial: {what}" for what in shard.damage)
            for live in shard.blocks_in(mint_ms, maxt_ms):
                try:
                    rows = live.find(matchers, registry)
                    if len(rows):
                        hits.append((live, rows, live.refs(rows, registry)))
                except CorruptionError as error:
                    warnings.append(f"partial: {error}")
        return hits

    def _refs_in_range(
        self, generation: Generation, selectors: Sequence[Sequence[Matcher]], mint_ms: int, maxt_ms: int
    ) -> NDArray[np.uint32]:
        """Series of any selector whose head or block reaches into the range."""
        registry = generation.registry
        found = []
        for matchers in selectors or [()]:
            refs = registry.find(matchers)
            slot_of = generation.slot_of()
            for shard, own, _ in self._by_shard(registry, refs):
                found.append(own[shard.maybe_in_head(slot_of[own], mint_ms, maxt_ms)])
            found.extend(refs for _, _, refs in self._block_rows(registry, matchers, mint_ms, maxt_ms, []))
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint32)

    def series(self, selectors: Sequence[Sequence[Matcher]], mint_ms: int, maxt_ms: int) -> LabelTable:
        """Labels of the series of any selector that may have samples in the range, each once."""
        generation = self.generation
        return generation.registry.label_table(self._refs_in_range(generation, selectors, mint_ms, maxt_ms))

    def label_names(self, selectors: Sequence[Sequence[Matcher]], mint_ms: int, maxt_ms: int) -> list[str]:
        """Sorted label names of those series."""
        generation = self.generation
        return generation.registry.label_names(self._refs_in_range(generation, selectors, mint_ms, maxt_ms))

    def label_values(self, name: str, selectors: Sequence[Sequence[Matcher]], mint_ms: int, maxt_ms: int) -> list[str]:
        """Sorted values of one label of those series."""
        generation = self.generation
        refs = self._refs_in_range(generation, selectors, mint_ms, maxt_ms)
        return generation.registry.label_values(name, refs)
