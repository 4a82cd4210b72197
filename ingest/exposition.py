"""Text exposition (Prometheus format 0.0.4) of one target: bytes in, samples by series number out.

The walk is one kernel (:mod:`ingest.kernels.exposition`); Python sees only series that are new, numbers that are
rare and comments that changed.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.kernels import exposition as kernels
from ingest.store import Metadata
from tsdb.errors import Reason, RejectedError
from tsdb.index.registry import REJECT_CODES, SeriesRegistry

PAD = b"\n" + bytes(64)
"""What is put behind a text before it is parsed: its last newline, and room for eight-byte loads."""

_ERRORS = {
    kernels.ERROR_NAME: "expected a metric name",
    kernels.ERROR_BRACES: "labels are not closed by a brace",
    kernels.ERROR_VALUE: "expected a value",
    kernels.ERROR_TIMESTAMP: "expected a timestamp in milliseconds",
    kernels.ERROR_END: "expected the end of the line",
}
_LABEL = re.compile(
    r"[ \t]*(?:(?P<name>[a-zA-Z_][a-zA-Z0-9_]*)|\"(?P<quoted>(?:[^\"\\]|\\.)*)\")[ \t]*"
    r"(?:=[ \t]*\"(?P<value>(?:[^\"\\]|\\.)*)\"[ \t]*)?(?P<end>,|\Z)",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\([\\\"n])")
_COMMENT = re.compile(
    rb"^[ \t]*#[ \t]*(HELP|TYPE|UNIT)[ \t]+(\"(?:[^\"\\\n]|\\.)*\"|[^ \t\n]+)[ \t]*([^\n]*)$", re.MULTILINE
)
_FLOAT = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?)|nan", re.IGNORECASE | re.ASCII)
_TYPES = {"counter", "gauge", "histogram", "summary", "gaugehistogram", "info", "stateset"}
_KEYS_SLACK = 4  # a target's key table starts anew when it holds so many times its series: the rest have vanished
_KEYS_MIN = 4096


class ExpositionError(RejectedError):
    """The text is not an exposition; the message names the line."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(Reason.SCRAPE_FAILED, f"line {line}: {what}")


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda m: "\n" if m[1] == "n" else m[1], text)


def parse_series(text: str) -> list[tuple[str, str]]:
    """Labels of a series as an exposition spells it, in the order written; the metric name is ``__name__``.

    Raises
    ------
    ValueError    the text is no series
    """
    name, brace, rest = text.partition("{")
    name = name.strip(" \t")
    pairs = [("__name__", name)] if name else []
    if brace:
        inner = rest[:-1]  # the kernel has found the closing brace
        pos = 0
        while inner[pos:].strip(" \t"):
            match = _LABEL.match(inner, pos)
            if match is None:
                raise ValueError(f"labels cannot be read from {inner[pos : pos + 40]!r}")
            label = _unescape(match["quoted"]) if match["name"] is None else match["name"]
            if match["value"] is not None:
                pairs.append((label, _unescape(match["value"])))
            elif match["quoted"] is not None:  # a metric name that needs quotes
                pairs.append(("__name__", label))
            else:
                raise ValueError(f"label {label!r} has no value")
            pos = match.end()
    labels = {label for label, _ in pairs}
    if "__name__" not in labels:
        raise ValueError("the series has no metric name")
    if len(labels) < len(pairs):
        raise ValueError(f"a label name is used twice in {text[:200]!r}")
    return pairs


def parse_float(text: str) -> int:
    """Bits of the float64 nearest to ``text``, read as Go's ``strconv.ParseFloat`` reads it.

    Raises
    ------
    ValueError    not a number, or beyond the largest float64
    """
    if not _FLOAT.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no number")
    value = float(text)
    if value in (float("inf"), float("-inf")) and "n" not in text.lower():
        raise ValueError(f"{text[:40]!r} is out of range")
    bits = int.from_bytes(struct.pack("<d", value), "little")
    return int(kernels.NAN_BITS) if value != value else bits


@dataclass(frozen=True, slots=True)
class Exposition:
    """What one scrape brought.

    Attributes
    ----------
    refs, ts_ms, bits : (n,) the samples, as of :class:`tsdb.batch.SampleBatch`
    scraped : int                  samples in the text
    own_times : bool               whether any sample came with a time of its own
    refused : reason -> samples    series that may not be stored
    metadata : families whose HELP, TYPE or UNIT is new or changed
    """

    refs: NDArray[np.uint32]
    ts_ms: NDArray[np.int64]
    bits: NDArray[np.uint64]
    scraped: int
    own_times: bool
    refused: Mapping[Reason, int]
    metadata: list[Metadata]


class ExpositionParser:
    """Parser of one target; it remembers how the target spells its series and what follows what.

    Parameters
    ----------
    registry : series of the tenant
    target_labels : labels of the target (``job``, ``instance``, ...), put on every series
    honor_labels : whether a scraped label wins over a target label; otherwise it becomes ``exported_...``
    honor_timestamps : whether times in the text are used
    """

    def __init__(
        self,
        registry: SeriesRegistry,
        target_labels: Mapping[str, str],
        honor_labels: bool = False,
        honor_timestamps: bool = True,
    ) -> None:
        self._registry = registry
        self._target_labels = dict(target_labels)
        self._honor_labels = honor_labels
        self._honor_timestamps = honor_timestamps
        self._keys = registry.new_key_table()
        self._facts: NDArray[np.int64] = np.zeros(kernels.FACTS, np.int64)
        self._room = 256
        self._comments = 0
        self._families: dict[str, Metadata] = {}

    def parse(self, text: bytes, scrape_ms: int) -> Exposition:
        """Read a whole exposition.

        Parameters
        ----------
        text : the text with :data:`PAD` behind it
        scrape_ms : time of the samples that bring none

        Raises
        ------
        ExpositionError    nothing of the text is to be used
        """
        raw: NDArray[np.uint8] = np.frombuffer(text, np.uint8)
        n_bytes = len(text) - len(PAD) + 1
        n_samples, refs, ts_ms, bits, misses, rare = self._walk(raw, n_bytes, scrape_ms)
        facts: list[int] = self._facts.tolist()
        for begin, end, sample, line in rare[: facts[kernels.FACT_RARE]].tolist():
            try:
                bits[sample] = parse_float(text[begin:end].decode("utf-8", "replace"))
            except ValueError as error:
                raise ExpositionError(line, str(error)) from None
        refused: Counter[Reason] = Counter()
        if facts[kernels.FACT_MISSES]:
            keep = self._resolve(text, misses[: facts[kernels.FACT_MISSES]], refs, refused)
            refs, ts_ms, bits = refs[keep], ts_ms[keep], bits[keep]
        if not self._honor_timestamps:
            ts_ms[:] = scrape_ms
        metadata: list[Metadata] = []
        if facts[kernels.FACT_COMMENTS] != self._comments:
            self._comments = facts[kernels.FACT_COMMENTS]
            metadata = self._changed_metadata(text)
        own_times = self._honor_timestamps and facts[kernels.FACT_TIMESTAMPS] > 0
        if len(self._keys) > _KEYS_SLACK * max(n_samples, _KEYS_MIN):
            self._keys = self._registry.new_key_table()
        return Exposition(refs, ts_ms, bits, n_samples, own_times, refused, metadata)

    def _walk(
        self, raw: NDArray[np.uint8], n_bytes: int, scrape_ms: int
    ) -> tuple[int, NDArray[np.uint32], NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
        while True:
            refs: NDArray[np.uint32] = np.empty(self._room, np.uint32)
            ts_ms: NDArray[np.int64] = np.empty(self._room, np.int64)
            bits: NDArray[np.uint64] = np.empty(self._room, np.uint64)
            misses: NDArray[np.int64] = np.empty((self._room, kernels.COLUMNS), np.int64)
            rare: NDArray[np.int64] = np.empty((self._room, kernels.COLUMNS), np.int64)
            count = int(
                kernels.parse_exposition(
                    raw, n_bytes, scrape_ms, *self._keys.arrays(), refs, ts_ms, bits, misses, rare, self._facts
                )
            )
            if count == kernels.MALFORMED:
                line, at = (int(self._facts[i]) for i in (kernels.FACT_ERROR_LINE, kernels.FACT_ERROR_AT))
                rest = raw[at : at + 40].tobytes().partition(b"\n")[0].decode("utf-8", "replace")
                raise ExpositionError(line, f"{_ERRORS[int(self._facts[kernels.FACT_ERROR])]} at {rest!r}")
            if count != kernels.FULL:
                return count, refs[:count], ts_ms[:count], bits[:count], misses, rare
            self._room *= 2

    def _resolve(
        self, text: bytes, misses: NDArray[np.int64], refs: NDArray[np.uint32], refused: Counter[Reason]
    ) -> NDArray[np.bool_]:
        """Find or create the missed series, fill in their refs, remember their text; which samples stay."""
        parts: list[bytes] = []
        offsets = [0]
        for begin, end, _, line in misses.tolist():
            try:
                pairs = parse_series(text[begin:end].decode())
            except ValueError as error:  # also text that is not UTF-8
                raise ExpositionError(line, str(error)) from None
            for label, value in self._with_target_labels(pairs):
                parts += (label.encode(), value.encode())
            offsets.append(len(parts) // 2)
        edges: NDArray[np.int64] = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=edges[1:])
        found = self._registry.resolve_spans(
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
            misses[good, kernels.COLUMN_BEGIN],
            misses[good, kernels.COLUMN_END],
            found[good].astype(np.uint32),
        )
        samples = misses[:, kernels.COLUMN_SAMPLE]
        refs[samples] = np.maximum(found, 0).astype(np.uint32)
        keep = np.ones(len(refs), np.bool_)
        keep[samples[~good]] = False
        for code in found[~good].tolist():
            refused[REJECT_CODES[-code]] += 1
        return keep

    def _with_target_labels(self, pairs: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        targets = self._target_labels
        taken = {label for label, _ in pairs}
        if self._honor_labels:
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

    def _changed_metadata(self, text: bytes) -> list[Metadata]:
        """Families whose comments differ from what this target said before."""
        seen: dict[str, dict[str, str]] = {}
        for kind, family, rest in _COMMENT.findall(text):
            name = family.decode("utf-8", "replace")
            if name.startswith('"'):
                name = _unescape(name[1:-1])
            seen.setdefault(name, {})[kind.decode()] = rest.decode("utf-8", "replace")
        changed = []
        for name, lines in seen.items():
            kind, unit = lines.get("TYPE", "").strip(), lines.get("UNIT", "").strip()
            entry = Metadata(name, kind if kind in _TYPES else "unknown", _unescape_help(lines.get("HELP", "")), unit)
            if self._families.get(name) != entry:
                self._families[name] = entry
                changed.append(entry)
        return changed


def _unescape_help(text: str) -> str:
    return re.sub(r"\\([\\n])", lambda m: "\n" if m[1] == "n" else "\\", text) if "\\" in text else text
