"""A batch of lines on its way through a pipeline: the frame it came in, and what the stages have made of it."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from query.logql.engine.columns import Values, decode
from tsdb.logs.frame import FieldKind, LogFrame, Texts, contains, gather

ERROR = "__error__"
ERROR_DETAILS = "__error_details__"
SPECIAL = frozenset((ERROR, ERROR_DETAILS, "__preserve_error__"))
"""Labels that ``keep`` never removes."""

_NO_LABEL_CHAR = re.compile(r"[^A-Za-z0-9_]")


class Origin(IntEnum):
    """Where a label comes from; a later one hides an earlier one."""

    STREAM = 0
    METADATA = 1
    PARSED = 2


@lru_cache(maxsize=4096)
def label_name(name: str) -> str:
    """A field's name as a label: ``http.method`` -> ``http_method``."""
    name = name.strip()
    clean = _NO_LABEL_CHAR.sub("_", name)
    return f"_{clean}" if clean[:1].isdigit() else clean


class Batch:
    """Lines with their labels; stages change it in place.

    Attributes
    ----------
    frame : LogFrame       streams and times, and the stored lines and fields
    wanted : names of the labels that anybody will look at, None = all
    origins : label name -> Origin, for labels set by a stage
    samples : (n,) float64 values that ``unwrap`` has read, None before
    """

    __slots__ = (
        "_cache",
        "_fields",
        "_gone",
        "_keep",
        "_lines",
        "_metadata_names",
        "_set",
        "frame",
        "origins",
        "samples",
        "wanted",
    )

    def __init__(self, frame: LogFrame, wanted: frozenset[str] | None) -> None:
        self.frame = frame
        self.wanted = wanted
        self.samples: NDArray[np.float64] | None = None
        self.origins: dict[str, Origin] = {}
        self._set: dict[str, Values] = {}
        self._fields: dict[str, str] = {}  # label -> stored field, not read yet
        self._cache: dict[str, Values] = {}
        self._gone: set[str] = set()
        self._keep: set[str] | None = None
        self._lines: Texts | None = None
        self._metadata_names: dict[str, str] | None = None

    def __len__(self) -> int:
        return len(self.frame)

    # ---------------------------------------------------------------- lines

    @property
    def rewritten(self) -> bool:
        """Whether a stage has changed the lines."""
        return self._lines is not None

    def lines(self) -> Texts:
        """The lines as they are now."""
        if self._lines is None:
            return self.frame.lines()
        return self._lines

    def lines_of(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Texts:
        """Some of the lines as they are now."""
        if self._lines is None:
            return self.frame.take(rows).lines()
        return gather(self._lines.data, self._lines.offsets[:-1][rows], np.diff(self._lines.offsets)[rows])

    def set_lines(self, lines: Texts) -> None:
        """Replace all lines."""
        self._lines = lines

    def contains(self, needle: bytes) -> NDArray[np.bool_]:
        """Which lines hold a literal."""
        if self._lines is None:
            return self.frame.contains(needle)
        return contains(self._lines, needle)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> None:
        """Keep some rows only: a mask or ascending row numbers."""
        if rows.dtype == np.bool_:
            if rows.all():
                return
            rows = np.flatnonzero(rows)
        self.frame = self.frame.take(rows)
        self._set = {name: values.take(rows) for name, values in self._set.items()}
        if self.samples is not None:
            self.samples = self.samples[rows]
        self._cache = {name: values.take(rows) for name, values in self._cache.items()}
        if self._lines is not None:
            self._lines = self.lines_of(rows)

    # ---------------------------------------------------------------- labels

    def wants(self, name: str) -> bool:
        """Whether a label has to be made at all."""
        return self.wanted is None or name in self.wanted

    def _metadata(self) -> dict[str, str]:
        """Label -> key of structured metadata; a key that is a label of the stream too is ``<key>_extracted``."""
        if self._metadata_names is not None:
            return self._metadata_names
        stream = self.frame.labels.names
        found: dict[str, str] = {}
        self._metadata_names = found
        for raw in self.frame.metadata_names:
            name = label_name(raw)
            found.setdefault(f"{name}_extracted" if name in stream else name, raw)
        return found

    def _stored(self, name: str) -> Values:
        """A label as it came: structured metadata, else of the stream."""
        known = self._cache.get(name)
        if known is None:
            frame = self.frame
            raw = self._metadata().get(name)
            column = None if raw is None else frame.metadata(raw)
            if column is not None:
                known = Values.of_column(column)
            elif name in frame.labels.names:
                known = Values.of_labels(frame.labels, name, frame.stream_row)
            else:
                known = Values.absent(len(frame))
            self._cache[name] = known
        return known

    def get(self, name: str) -> Values:
        """A label as it is now."""
        made = self._set.get(name)
        if made is not None:
            return made
        field = self._fields.pop(name, None)
        if field is not None:
            column = self.frame.field(field)
            made = Values.absent(len(self)) if column is None else Values.of_column(column)
            self._set[name] = made
            return made
        if name in self._gone or (self._keep is not None and name not in self._keep and name not in SPECIAL):
            return Values.absent(len(self))
        return self._stored(name)

    def is_of_streams(self, names: Sequence[str]) -> bool:
        """Whether all of these labels are still those of the streams, as they came."""
        if self._gone or self._keep is not None or any(name in self.origins for name in names):
            return False
        metadata = self._metadata()
        return not any(name in metadata for name in names)

    def pending(self) -> dict[str, str]:
        """Label -> stored field that nobody has read yet."""
        return dict(self._fields)

    def numbers(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]] | None:
        """(values, present) of a stored field that was kept as numbers; None = only its texts are known."""
        field = self._fields.get(name)
        column = None if field is None else self.frame.field(field)
        if column is None or column.ints is None or column.kind != FieldKind.BARE:
            return None
        present = np.ones(len(self), np.bool_) if column.present is None else column.present
        if column.is_int is not None and not (column.is_int | ~present).all():
            return None
        # exact: the integers have fewer than 16 digits where their text is a float64 at all
        if len(column.ints) and np.abs(column.ints).max() >= 1 << 53:
            return None
        return column.ints / 10.0**column.scale, present

    def set(self, name: str, values: Values, origin: Origin = Origin.PARSED) -> None:
        """Set a label of all lines."""
        self._gone.discard(name)
        self._fields.pop(name, None)
        if self._keep is not None:
            self._keep.add(name)
        self._set[name] = values
        self.origins[name] = origin

    def set_field(self, name: str, field: str) -> None:
        """Set a label to a stored field, which is not read before somebody asks for it."""
        if name in self._set or name in self._fields:
            column = self.frame.field(field)
            if column is not None:
                values = Values.of_column(column)
                self.set_where(name, values.present, values)
            return
        self.set(name, Values.absent(0))
        del self._set[name]
        self._fields[name] = field

    def set_where(self, name: str, mask: NDArray[np.bool_], values: Values) -> None:
        """Set a label of some lines."""
        self.set(name, values if mask.all() else values.where(mask, self.get(name)))

    def drop(self, name: str) -> None:
        """Remove a label."""
        self._set.pop(name, None)
        self._fields.pop(name, None)
        self.origins.pop(name, None)
        self._gone.add(name)

    def names(self) -> list[str]:
        """Names of all labels that any line may have, sorted."""
        found = {*self._set, *self._fields, *self.stored_names()}
        return sorted(name for name in found if self.wants(name))

    def stored_names(self) -> dict[str, Origin]:
        """Labels as they came that no stage has removed or replaced."""
        found = dict.fromkeys(self.frame.labels.names, Origin.STREAM)
        found.update(dict.fromkeys(self._metadata(), Origin.METADATA))
        keep = self._keep
        return {
            name: origin
            for name, origin in found.items()
            if name not in self.origins and name not in self._gone and (keep is None or name in keep or name in SPECIAL)
        }

    def keep_only(self, names: Set[str]) -> None:
        """Remove all other labels."""
        for name in [name for name in self.origins if name not in names and name not in SPECIAL]:
            self.drop(name)
        self._keep = {*names} if self._keep is None else self._keep & {*names}

    def is_stored(self, name: str) -> bool:
        """Whether a label is there as it came."""
        if name in self.origins or name in self._gone:
            return False
        if self._keep is not None and name not in self._keep and name not in SPECIAL:
            return False
        return name in self.frame.labels.names or name in self._metadata()

    def parsed_name(self, field: str) -> str:
        """The label of a parsed field: one that the stream (or its metadata) has already is ``<name>_extracted``."""
        name = label_name(field)
        return f"{name}_extracted" if self.is_stored(name) else name

    def wants_field(self, field: str) -> bool:
        """Whether the label of a parsed field has to be made, whatever it is called."""
        if self.wanted is None:
            return True
        name = label_name(field)
        return name in self.wanted or f"{name}_extracted" in self.wanted

    # ---------------------------------------------------------------- errors

    def errors(self) -> NDArray[np.bool_] | None:
        """Which lines carry ``__error__``; None = none."""
        made = self._set.get(ERROR)
        if made is None:
            return None
        has = made.present
        return has if has.any() else None

    def fail(self, mask: NDArray[np.bool_], kind: str, details: Values | str) -> None:
        """Mark lines with an error; the first one of a line stays."""
        had = self.errors()
        if had is not None:
            mask = mask & ~had
        if not mask.any():
            return
        n = len(self)
        self.set_where(ERROR, mask, Values.constant(n, kind))
        self.set_where(ERROR_DETAILS, mask, Values.constant(n, details) if isinstance(details, str) else details)

    def line_texts(self) -> list[str]:
        """The lines as text (slow path: results and templates)."""
        return [decode(line) for line in self.lines().to_list()]
