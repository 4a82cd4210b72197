"""The head as a few dicts: what it must decide and hold, one sample at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.reference import gorilla
from tsdb.batch import SampleStatus
from tsdb.chunks import Chunks, LateSamples

MIN_MS = -(1 << 63)

Sample = tuple[int, int, int]  # row or slot, time, bits


class HeadModel:
    """Samples by (slot, time): in order, late, and late ones that a cut has taken."""

    def __init__(self) -> None:
        self.chunks: dict[tuple[int, int], int] = {}
        self.late: dict[tuple[int, int], int] = {}
        self.cut_late: dict[tuple[int, int], int] = {}
        self.newest: dict[int, tuple[int, int]] = {}
        self.newest_ms = MIN_MS
        self.border_ms = MIN_MS

    def held(self) -> dict[tuple[int, int], int]:
        return self.chunks | self.late | self.cut_late

    def _known(self, slot: int, time: int, bits: int) -> SampleStatus | None:
        stored = self.held().get((slot, time))
        if stored is None:
            return None
        return SampleStatus.REPEATED if stored == bits else SampleStatus.DUPLICATE

    def append(self, samples: Iterable[Sample], window_floor_ms: int, cut_floor_ms: int) -> list[SampleStatus]:
        cut_floor_ms = max(cut_floor_ms, self.border_ms)
        return [self._append(*sample, window_floor_ms, cut_floor_ms) for sample in samples]

    def _append(self, slot: int, time: int, bits: int, window_floor_ms: int, cut_floor_ms: int) -> SampleStatus:
        last, last_bits = self.newest.get(slot, (MIN_MS, 0))
        if time > last and time >= max(window_floor_ms, cut_floor_ms):
            self.chunks[slot, time] = bits
            self.newest[slot] = (time, bits)
            self.newest_ms = max(self.newest_ms, time)
            return SampleStatus.ACCEPTED
        if slot in self.newest and time == last:  # known even when a drop has taken it
            return SampleStatus.REPEATED if bits == last_bits else SampleStatus.DUPLICATE
        known = self._known(slot, time, bits)
        if known is not None:
            return known
        if time < window_floor_ms:
            return SampleStatus.TOO_OLD
        if time < cut_floor_ms:
            return SampleStatus.BELOW_CUT
        return self._append_late(slot, time, bits)

    def append_late(self, samples: Iterable[Sample]) -> list[SampleStatus]:
        return [self._append_late(*sample) for sample in samples]

    def _append_late(self, slot: int, time: int, bits: int) -> SampleStatus:
        known = self._known(slot, time, bits)
        if known is None:
            self.late[slot, time] = bits
            self.newest_ms = max(self.newest_ms, time)
        return SampleStatus.ACCEPTED if known is None else known

    def cut(self, border_ms: int) -> dict[tuple[int, int], int]:
        self.border_ms = max(self.border_ms, border_ms)
        for key in [k for k in self.late if k[1] < border_ms]:
            self.cut_late[key] = self.late.pop(key)
        return {k: v for k, v in (self.chunks | self.cut_late).items() if k[1] < border_ms}

    def erase(self, slots: Iterable[int], mint_ms: int, maxt_ms: int) -> None:
        def erased(time: int) -> bool:
            return mint_ms <= time <= maxt_ms

        for slot in set(slots):
            own = {k: v for k, v in self.chunks.items() if k[0] == slot}
            if any(erased(t) for _, t in own):
                moving = {k for k in self.late if k[0] == slot and k[1] >= max(self.border_ms, MIN_MS + 1)}
                self.chunks |= {k: self.late.pop(k) for k in moving}
                left = [(t, v) for (s, t), v in self.chunks.items() if s == slot and not erased(t)]
                self.newest.pop(slot, None)
                if left:
                    self.newest[slot] = max(left)
            elif not own and slot in self.newest and erased(self.newest[slot][0]):
                del self.newest[slot]
            for held in (self.chunks, self.late, self.cut_late):
                for key in [k for k in held if k[0] == slot and erased(k[1])]:
                    del held[key]

    def drop(self, border_ms: int) -> None:
        self.chunks = {k: v for k, v in self.chunks.items() if k[1] >= border_ms}
        self.cut_late = {k: v for k, v in self.cut_late.items() if k[1] >= border_ms}


def samples_of(chunks: Chunks, late: LateSamples) -> list[Sample]:
    """All (row, time, bits) of chunks and late samples, in their order, decoded by the plain twin."""
    found: list[Sample] = []
    for i in range(len(chunks)):
        first = int(chunks.word_offsets[i])
        words = chunks.words[first : first + int(chunks.word_counts[i])].tolist()
        decoded = gorilla.decode_chunk(words, int(chunks.counts[i]))
        assert decoded[0][0] == chunks.min_ms[i]
        assert decoded[-1][0] == chunks.max_ms[i]
        found += [(int(chunks.rows[i]), time, bits) for time, bits in decoded]
    found += zip(late.rows.tolist(), late.ts_ms.tolist(), late.bits.tolist(), strict=True)
    return found


def assemble(
    n_rows: int, parts: Sequence[tuple[Chunks, LateSamples]], mint_ms: int, maxt_ms: int
) -> list[list[tuple[int, int]]]:
    """(time, bits) of each row within the range, in order of time; of equal times the first source stays."""
    rows: list[dict[int, int]] = [{} for _ in range(n_rows)]
    for chunks, late in parts:
        for row, time, bits in samples_of(chunks, late):
            if mint_ms <= time <= maxt_ms:
                rows[row].setdefault(time, bits)
    return [sorted(row.items()) for row in rows]
