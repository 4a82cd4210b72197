"""The labels of one series as a value: sorted pairs, canonical bytes, and the hash that picks its shard.

Canonical bytes are, for each label in the order of its name's bytes, ``name 0xFF value 0xFF``. 0xFF never occurs
in UTF-8, so equal bytes mean equal labels and the order of the bytes is the order of the labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import xxhash

from tsdb.errors import LimitError, Reason, RejectedError
from tsdb.limits import SeriesLimits

METRIC_NAME = "__name__"
SEPARATOR = b"\xff"


def series_hash(canonical: bytes | memoryview) -> int:
    """XXH3-64 of the canonical bytes: the same on every machine, for ever (it decides the shard)."""
    return int(xxhash.xxh3_64_intdigest(canonical))


@dataclass(frozen=True)
class Labels:
    """Labels of one series; a label with an empty value is no label.

    Attributes
    ----------
    pairs : (name, value), sorted by the names' UTF-8 bytes, each name once, no empty value
    """

    pairs: tuple[tuple[str, str], ...]

    @staticmethod
    def of(labels: Mapping[str, str]) -> Labels:
        """Labels from a mapping."""
        # Code points sort like their UTF-8 bytes.
        return Labels(tuple(sorted((name, value) for name, value in labels.items() if value)))

    @staticmethod
    def parse(canonical: bytes) -> Labels:
        """Labels from their canonical bytes."""
        parts = canonical.decode("utf-8", "surrogateescape").split("\udcff")[:-1]
        return Labels(tuple(zip(parts[::2], parts[1::2], strict=True)))

    @cached_property
    def canonical(self) -> bytes:
        """Sorted ``name 0xFF value 0xFF``."""
        return b"".join(part.encode() + SEPARATOR for pair in self.pairs for part in pair)

    @cached_property
    def hash(self) -> int:
        """Unsigned 64 bits, see :func:`series_hash`."""
        return series_hash(self.canonical)

    def get(self, name: str) -> str:
        """Value of a label, ``""`` when there is none."""
        return dict(self.pairs).get(name, "")

    def to_dict(self) -> dict[str, str]:
        """As a new dict, names sorted."""
        return dict(self.pairs)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __str__(self) -> str:
        """As PromQL writes a selector of this series."""
        return "{" + ", ".join(f"{name}={value!r}" for name, value in self.pairs) + "}"

    def check(self, limits: SeriesLimits) -> None:
        """Refuse labels that no series may have.

        Raises
        ------
        RejectedError, LimitError        the reason names what is wrong
        """
        size = 0
        for name, value in self.pairs:
            try:
                name_bytes, value_bytes = len(name.encode()), len(value.encode())
            except UnicodeEncodeError:
                raise RejectedError(Reason.INVALID_UTF8, f"label {name!r} is not valid UTF-8") from None
            if not name:
                raise RejectedError(Reason.EMPTY_LABEL_NAME, f"a label name of {self} is empty")
            _limit(Reason.LABEL_NAME_TOO_LONG, name_bytes, limits.label_name_bytes_max, "label_name_bytes_max", name)
            _limit(
                Reason.LABEL_VALUE_TOO_LONG, value_bytes, limits.label_value_bytes_max, "label_value_bytes_max", name
            )
            size += name_bytes + value_bytes
        _limit(Reason.TOO_MANY_LABELS, len(self.pairs), limits.labels_max, "labels_max", self.get(METRIC_NAME))
        _limit(Reason.SERIES_TOO_LONG, size, limits.series_bytes_max, "series_bytes_max", self.get(METRIC_NAME))
        if not self.pairs:
            raise RejectedError(Reason.NO_LABELS, "a series needs labels")
        if not self.get(METRIC_NAME):
            raise RejectedError(Reason.NO_METRIC_NAME, f"{self} has no {METRIC_NAME}")


def _limit(reason: Reason, got: int, limit: int, key: str, what: str) -> None:
    if got > limit:
        raise LimitError(reason, f"{what[:100]!r}: {got}, the limit is {limit} (limits.series.{key})")
