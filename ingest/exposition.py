"""Pages of one target, in Prometheus' text format or OpenMetrics: bytes in, samples by series number out.

The walk is one kernel (:mod:`ingest.kernels.exposition`); Python sees only what is new: series, comments and exemplars,
and numbers that are rare.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ingest.exemplars import Exemplar
from ingest.kernels import exposition as kernels
from ingest.openmetrics import TYPES, parse_comments, parse_exemplar
from ingest.page_text import normal_bound, parse_float, parse_seconds, parse_series, unescape
from ingest.relabel import NO_RULES, Rules
from ingest.store import Metadata
from tsdb.errors import LimitError, Reason, RejectedError
from tsdb.index.registry import REJECT_CODES, SeriesRegistry
from tsdb.limits import TimeLimits

PAD = b"\n" + bytes(64)
"""What is put behind a text before it is parsed: its last newline, and room for eight-byte loads."""

DROPPED = 0xFFFFFFFE
"""Ref in a key table of a series that relabelling drops: it costs nothing from its second page on."""

_ERRORS = {
    kernels.ERROR_NAME: "expected a metric name",
    kernels.ERROR_BRACES: "labels are not closed by a brace",
    kernels.ERROR_VALUE: "expected a value",
    kernels.ERROR_TIMESTAMP: "expected a timestamp",
    kernels.ERROR_END: "expected the end of the line",
    kernels.ERROR_AFTER_EOF: "unexpected data after # EOF",
    kernels.ERROR_NO_EOF: "data does not end with # EOF",
}
_COMMENT = re.compile(
    rb"^[ \t]*#[ \t]*(HELP|TYPE|UNIT)[ \t]+(\"(?:[^\"\\\n]|\\.)*\"|[^ \t\n]+)[ \t]*([^\n]*)$", re.MULTILINE
)
_KEYS_SLACK = 4  # a target's key table starts anew when it holds so many times its series: the rest have vanished
_KEYS_MIN = 4096
_TYPE = b"\n# TYPE "
_BOUND_LABELS = {b"histogram": "le", b"summary": "quantile"}
_SHOWN_CHARS = 50  # of a name or value in an error about limits, as in Prometheus
_ANY_LENGTH = 1 << 62


class ExpositionError(RejectedError):
    """The page cannot be read; the message names the line."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(Reason.SCRAPE_FAILED, f"line {line}: {what}")


class PageLimitError(LimitError):
    """The page is beyond a limit of its job.

    Attributes
    ----------
    scraped, kept : samples of the page, before and after relabelling; 0 when nobody has counted
    """

    def __init__(self, what: str, scraped: int = 0, kept: int = 0) -> None:
        super().__init__(Reason.SCRAPE_LIMIT, what)
        self.scraped = scraped
        self.kept = kept


@dataclass(frozen=True, slots=True)
class PageOptions:
    """What is done with the pages of a target, by Prometheus' names; a limit of 0 allows any number.

    Attributes
    ----------
    honor_labels : a label of the page wins over a target label; otherwise it becomes ``exported_...``
    honor_timestamps : times in the page are used
    track_timestamps_staleness : series with times of their own get stale markers too
    sample_limit : most samples after relabelling
    label_limit : most labels of a series, those of the target included
    label_name_length_limit, label_value_length_limit : bytes
    future_max_ms : how far ahead of the scrape a time of the page may be; samples beyond are refused
    extra_scrape_metrics : write three more series about each scrape
    metric_relabel : rules for each series, after the labels of the target are on it
    """

    honor_labels: bool = False
    honor_timestamps: bool = True
    track_timestamps_staleness: bool = False
    sample_limit: int = 0
    label_limit: int = 0
    label_name_length_limit: int = 0
    label_value_length_limit: int = 0
    future_max_ms: int = TimeLimits().future_max_ms
    extra_scrape_metrics: bool = False
    metric_relabel: Rules = NO_RULES

    def check_labels(self, labels: Mapping[str, str]) -> None:
        """Raise :class:`PageLimitError`, in Prometheus' words, when a series has too many or too long labels."""
        metric = labels.get("__name__", "")[:_SHOWN_CHARS]
        if 0 < self.label_limit < len(labels):
            raise PageLimitError(
                f"label_limit exceeded (metric: {metric}, number of labels: {len(labels)}, limit: {self.label_limit})"
            )
        name_max = self.label_name_length_limit or _ANY_LENGTH
        value_max = self.label_value_length_limit or _ANY_LENGTH
        for name, value in labels.items():
            if (length := len(name.encode())) > name_max:
                raise PageLimitError(
                    f"label_name_length_limit exceeded (metric: {metric}, label name: {name[:_SHOWN_CHARS]}, "
                    f"length: {length}, limit: {name_max})"
                )
            if (length := len(value.encode())) > value_max:
                raise PageLimitError(
                    f"label_value_length_limit exceeded (metric: {metric}, label name: {name[:_SHOWN_CHARS]}, "
                    f'value: "{value[:_SHOWN_CHARS]}", length: {length}, limit: {value_max})'
                )


@dataclass(frozen=True, slots=True)
class Exposition:
    """What one page brought.

    Attributes
    ----------
    refs, ts_ms, bits : (n,) the samples, as of :class:`tsdb.batch.SampleBatch`
    scraped : int                  samples in the page
    kept : int                     of these, samples that relabelling kept
    own_times : bool               whether any sample came with a time of its own
    refused : reason -> samples    series that may not be stored
    metadata : families whose HELP, TYPE or UNIT is new or changed
    exemplars : those that are new
    """

    refs: NDArray[np.uint32]
    ts_ms: NDArray[np.int64]
    bits: NDArray[np.uint64]
    scraped: int
    kept: int
    own_times: bool
    refused: Mapping[Reason, int]
    metadata: list[Metadata]
    exemplars: list[Exemplar] = field(default_factory=list)

    def until(self, latest_ms: int) -> Exposition:
        """Without samples later than that: one of them would make everything else of the tenant too old."""
        near = self.ts_ms <= latest_ms
        far = len(near) - int(near.sum())
        if not far:
            return self
        refused = Counter(self.refused) + Counter({Reason.FAR_FUTURE: far})
        refs, ts_ms, bits = self.refs[near], self.ts_ms[near], self.bits[near]
        return replace(self, refs=refs, ts_ms=ts_ms, bits=bits, refused=refused)


@dataclass(frozen=True, slots=True)
class _Walk:
    """What the kernel found; arrays as in its documentation, each as long as it is filled."""

    refs: NDArray[np.uint32]
    ts_ms: NDArray[np.int64]
    bits: NDArray[np.uint64]
    misses: NDArray[np.int64]
    rare: NDArray[np.int64]
    exemplars: NDArray[np.int64]


class _Types:
    """The type of the family that a line belongs to: that of the last TYPE before it. Asked from top to bottom."""

    def __init__(self, page: bytes) -> None:
        self._page = page
        self._seen = 0
        self._kind = self._kind_at(0) if page.startswith(_TYPE[1:]) else b""

    def _kind_at(self, begin: int) -> bytes:
        return self._page[begin : self._page.find(b"\n", begin)].rstrip(b" \t").rpartition(b" ")[2]

    def bound_label(self, begin: int) -> str:
        """The label of the series at ``begin`` that holds a number: ``le`` or ``quantile``; "" = none."""
        last = self._page.rfind(_TYPE, self._seen, begin)
        if last >= 0:
            self._kind = self._kind_at(last + 1)
        self._seen = max(begin - 1, 0)  # the newline before the next TYPE may be the one before this line
        return _BOUND_LABELS.get(self._kind, "")


class ExpositionParser:
    """Parser of one target; it remembers how the target spells its series and what follows what.

    Parameters
    ----------
    registry : series of the tenant
    target_labels : labels of the target (``job``, ``instance``, ...), put on every series
    options : what is done with its pages
    """

    def __init__(
        self, registry: SeriesRegistry, target_labels: Mapping[str, str], options: PageOptions | None = None
    ) -> None:
        self._registry = registry
        self._target_labels = dict(target_labels)
        self._options = options or PageOptions()
        self._facts: NDArray[np.int64] = np.zeros(kernels.FACTS, np.int64)
        self._room = 256
        self._families: dict[str, Metadata] = {}
        self._start(openmetrics=False)

    def _start(self, openmetrics: bool) -> None:
        """Forget how the target spells things: it speaks another format now."""
        self._openmetrics = openmetrics
        self._keys = self._registry.new_key_table()
        self._comments = 0
        self._exemplars: dict[int, bytes] = {}  # ref -> the text of its newest

    def renew(self, registry: SeriesRegistry) -> None:
        """Go on with another registry, which has other numbers for the same series."""
        self._registry = registry
        self._start(self._openmetrics)

    def parse(self, text: bytes, scrape_ms: int, openmetrics: bool = False) -> Exposition:
        """Read a whole page.

        Parameters
        ----------
        text : the page with :data:`PAD` behind it
        scrape_ms : time of the samples that bring none
        openmetrics : whether it is OpenMetrics; else it is the text format

        Raises
        ------
        ExpositionError    nothing of the page is to be used
        PageLimitError     it is beyond a limit; nothing of it is to be used
        """
        if openmetrics != self._openmetrics:
            self._start(openmetrics)
        walk = self._walk(text, scrape_ms)
        refs, ts_ms, bits = walk.refs, walk.ts_ms, walk.bits
        n_samples = len(refs)
        self._fill_rare(text, walk)
        if not self._options.honor_timestamps:
            ts_ms[:] = scrape_ms
        refused: Counter[Reason] = Counter()
        keep = self._resolve(text, walk, refused) if len(walk.misses) else None
        if self._options.metric_relabel:
            held = refs != DROPPED
            keep = held if keep is None else held & keep
            n_kept = int(held.sum())
        else:
            n_kept = n_samples
        if 0 < self._options.sample_limit < n_kept:
            raise PageLimitError("sample limit exceeded", n_samples, n_kept)
        exemplars = self._new_exemplars(text, walk, keep) if len(walk.exemplars) else []
        if keep is not None and not keep.all():
            refs, ts_ms, bits = refs[keep], ts_ms[keep], bits[keep]
        facts: list[int] = self._facts.tolist()
        metadata: list[Metadata] = []
        if facts[kernels.FACT_COMMENTS] != self._comments:
            metadata = self._changed_metadata(text)
            self._comments = facts[kernels.FACT_COMMENTS]
        own_times = self._options.honor_timestamps and facts[kernels.FACT_TIMESTAMPS] > 0
        if len(self._keys) > _KEYS_SLACK * max(n_samples, _KEYS_MIN):
            self._keys = self._registry.new_key_table()
        return Exposition(refs, ts_ms, bits, n_samples, n_kept, own_times, refused, metadata, exemplars)

    def metadata(self) -> list[Metadata]:
        """The metric families that the pages have described; called on any thread."""
        return list(self._families.values())

    def tell_again(self) -> None:
        """What was told last is lost: comments and exemplars of the next page are new whatever they are."""
        self._comments = 0
        self._families = {}
        self._exemplars = {}

    def _walk(self, text: bytes, scrape_ms: int) -> _Walk:
        raw: NDArray[np.uint8] = np.frombuffer(text, np.uint8)
        n_bytes = len(text) - len(PAD) + 1
        while True:
            refs: NDArray[np.uint32] = np.empty(self._room, np.uint32)
            ts_ms: NDArray[np.int64] = np.empty(self._room, np.int64)
            bits: NDArray[np.uint64] = np.empty(self._room, np.uint64)
            misses, rare, exemplars = (np.empty((self._room, kernels.COLUMNS), np.int64) for _ in range(3))
            count = int(
                kernels.parse_exposition(
                    raw, n_bytes, int(self._openmetrics), scrape_ms,
                    *self._keys.arrays(), refs, ts_ms, bits, misses, rare, exemplars, self._facts,
                )
            )  # fmt: skip
            if count == kernels.MALFORMED:
                line, at = (int(self._facts[i]) for i in (kernels.FACT_ERROR_LINE, kernels.FACT_ERROR_AT))
                rest = raw[at : at + 40].tobytes().partition(b"\n")[0].decode("utf-8", "replace")
                raise ExpositionError(line, f"{_ERRORS[int(self._facts[kernels.FACT_ERROR])]} at {rest!r}")
            if count != kernels.FULL:
                break
            self._room *= 2
        n_misses, n_rare, n_exemplars = (
            int(self._facts[i]) for i in (kernels.FACT_MISSES, kernels.FACT_RARE, kernels.FACT_EXEMPLARS)
        )
        return _Walk(
            refs[:count], ts_ms[:count], bits[:count], misses[:n_misses], rare[:n_rare], exemplars[:n_exemplars]
        )

    @staticmethod
    def _fill_rare(text: bytes, walk: _Walk) -> None:
        """Read the numbers that the kernel was not certain of."""
        for begin, end, sample, line in walk.rare.tolist():
            number = text[begin:end].decode("utf-8", "replace")
            try:
                if sample < 0:
                    walk.ts_ms[~sample] = parse_seconds(number)
                else:
                    walk.bits[sample] = parse_float(number)
            except ValueError as error:
                raise ExpositionError(line, str(error)) from None

    def _resolve(self, text: bytes, walk: _Walk, refused: Counter[Reason]) -> NDArray[np.bool_]:
        """Find or create the missed series, fill in their refs, remember their text; which samples may be stored."""
        parts: list[bytes] = []
        offsets = [0]
        dropped: NDArray[np.bool_] = np.zeros(len(walk.misses), np.bool_)
        types = _Types(text)
        for i, (begin, end, _, line) in enumerate(walk.misses.tolist()):
            try:
                labels = self._labels(text[begin:end].decode(), types.bound_label(begin))
            except ValueError as error:  # also text that is not UTF-8
                raise ExpositionError(line, str(error)) from None
            if labels is None:
                dropped[i] = True
                continue
            for label, value in labels.items():
                parts += (label.encode(), value.encode())
            offsets.append(len(parts) // 2)
        edges: NDArray[np.int64] = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=edges[1:])
        found: NDArray[np.int64] = np.full(len(walk.misses), DROPPED, np.int64)
        found[~dropped] = self._registry.resolve_spans(
            np.frombuffer(b"".join(parts) + PAD, np.uint8),
            np.array(offsets, np.int64),
            edges[:-1:2].copy(),
            edges[1::2].copy(),
            edges[1::2].copy(),
            edges[2::2].copy(),
        )
        good = found >= 0
        self._keys.add_batch(
            np.frombuffer(text, np.uint8),
            walk.misses[good, kernels.COLUMN_BEGIN],
            walk.misses[good, kernels.COLUMN_END],
            found[good].astype(np.uint32),
        )
        samples = walk.misses[:, kernels.COLUMN_SAMPLE]
        walk.refs[samples] = np.maximum(found, 0).astype(np.uint32)
        keep = np.ones(len(walk.refs), np.bool_)
        keep[samples[~good]] = False
        for code in found[~good].tolist():
            refused[REJECT_CODES[-code]] += 1
        return keep

    def _labels(self, series: str, bound: str) -> dict[str, str] | None:
        """Labels that a series is stored with, None when relabelling drops it.

        Parameters
        ----------
        bound : the label that holds a number, if there is one

        Raises
        ------
        ValueError        the text is no series, or has lost its name
        PageLimitError    too many or too long labels
        """
        options = self._options
        pairs = parse_series(series, self._openmetrics)
        if bound:
            pairs = [(name, normal_bound(value) if name == bound else value) for name, value in pairs]
        labels = dict(self._with_target_labels(pairs))
        if options.metric_relabel:
            kept = options.metric_relabel.apply(labels)
            if not kept:
                return None
            if "__name__" not in kept:
                raise ValueError("missing metric name (__name__ label) after relabelling")
            labels = kept
        if options.label_limit or options.label_name_length_limit or options.label_value_length_limit:
            options.check_labels({name: value for name, value in labels.items() if value})
        return labels

    def _with_target_labels(self, pairs: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        targets = self._target_labels
        taken = {label for label, _ in pairs}
        if self._options.honor_labels:
            yield from pairs
            yield from ((label, value) for label, value in targets.items() if label not in taken)
            return
        for label, value in pairs:
            while label in targets:
                label = "exported_" + label
                while label in taken:
                    label = "exported_" + label
            yield label, value
        yield from targets.items()

    def _new_exemplars(self, text: bytes, walk: _Walk, keep: NDArray[np.bool_] | None) -> list[Exemplar]:
        """Exemplars that differ from the one that their series had in the page before."""
        seen: dict[int, bytes] = {}
        new = []
        for begin, end, sample, line in walk.exemplars.tolist():
            raw, ref = text[begin:end], int(walk.refs[sample])
            if self._exemplars.get(ref) != raw:
                try:
                    exemplar = parse_exemplar(raw.decode())
                except ValueError as error:  # also text that is not UTF-8
                    raise ExpositionError(line, str(error)) from None
                if keep is not None and not keep[sample]:
                    continue
                ts_ms = int(walk.ts_ms[sample]) if exemplar.ts_ms is None else exemplar.ts_ms
                labels = [(name.encode(), value.encode()) for name, value in exemplar.labels]
                new.append(Exemplar(ref, ts_ms, exemplar.bits, labels))
            seen[ref] = raw
        self._exemplars = seen
        return new

    def _changed_metadata(self, text: bytes) -> list[Metadata]:
        """Families whose comments differ from what this target said before."""
        seen: dict[str, dict[str, str]] = {}
        for kind, name, rest in self._comments_of(text):
            seen.setdefault(name, {})[kind] = rest
        families = {}
        for name, lines in seen.items():
            kind = lines.get("TYPE", "")
            kind = kind if kind in TYPES else "unknown"
            families[name] = Metadata(name, kind, lines.get("HELP", ""), lines.get("UNIT", ""))
        known, self._families = self._families, families
        return [entry for name, entry in families.items() if known.get(name) != entry]

    def _comments_of(self, text: bytes) -> Iterator[tuple[str, str, str]]:
        if self._openmetrics:
            try:
                yield from parse_comments(text)
            except ValueError as error:
                raise RejectedError(Reason.SCRAPE_FAILED, str(error)) from None
            return
        for kind, family, rest in _COMMENT.findall(text):
            name, said = family.decode("utf-8", "replace"), rest.decode("utf-8", "replace")
            if name.startswith('"'):
                name = unescape(name[1:-1])
            yield kind.decode(), name, _unescape_help(said) if kind == b"HELP" else said.strip()


def _unescape_help(text: str) -> str:
    return re.sub(r"\\([\\n])", lambda m: "\n" if m[1] == "n" else "\\", text) if "\\" in text else text
