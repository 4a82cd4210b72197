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
from tsdb.logs.regex.match import match_frame, match_texts

ERROR = "__error__"
ERROR_DETAILS = "__error_details__"
SPECIAL = frozenset((ERROR, ERROR_DETAILS, "__preserve_error__"))
"""Labels that ``keep`` never removes."""

EXTRACTED = "_extracted"
"""Behind the name of a label that the line has already from elsewhere."""

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

    A label has layers: what the stream and the structured metadata say, and over it what stages have set. Which of them
    holds is a matter of each line: another line of the batch may be of a stream without that label.

    Attributes
    ----------
    frame : LogFrame       streams and times, and the stored lines and fields
    wanted : names of the labels that anybody will look at, None = all
    samples : (n,) float64 values that ``unwrap`` has read, None before
    """

    __slots__ = (
        "_fields", "_gone", "_keep", "_lines", "_metadata_keys", "_set", "_stored", "_through", "_touched", "frame",
        "samples", "wanted",
    )  # fmt: skip

    def __init__(self, frame: LogFrame, wanted: frozenset[str] | None) -> None:
        self.frame = frame
        self.wanted = wanted
        self.samples: NDArray[np.float64] | None = None
        self._set: dict[str, Values] = {}
        self._through: set[str] = set()  # of these, lines without a set value have what is stored
        self._fields: dict[str, str] = {}  # label -> stored field, not read yet
        self._stored: dict[str, dict[Origin, Values]] = {}
        self._touched: set[str] = set()  # stored labels that some lines have lost
        self._gone: set[str] = set()
        self._keep: set[str] | None = None
        self._lines: Texts | None = None
        self._metadata_keys: dict[str, str] | None = None

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

    def line_sizes(self) -> NDArray[np.int64]:
        """(n,) bytes of each line as it is now."""
        return self.frame.line_sizes() if self._lines is None else np.diff(self._lines.offsets)

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

    def matches(self, pattern: str, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some lines hold a match of a regex that RE2 accepts."""
        if self._lines is None:
            return match_frame(self.frame if len(rows) == len(self) else self.frame.take(rows), pattern)
        return match_texts(self.lines_of(rows), pattern)

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
        self._stored = {
            name: {origin: values.take(rows) for origin, values in layers.items()}
            for name, layers in self._stored.items()
        }
        if self._lines is not None:
            self._lines = self.lines_of(rows)

    # ---------------------------------------------------------------- labels

    def wants(self, name: str) -> bool:
        """Whether a label has to be made at all."""
        return self.wanted is None or name in self.wanted

    def wants_field(self, field: str) -> bool:
        """Whether the label of a parsed field has to be made, whatever it is called."""
        name = label_name(field)
        return self.wants(name) or self.wants(name + EXTRACTED)

    def _metadata(self) -> dict[str, str]:
        """Label -> key of structured metadata."""
        if self._metadata_keys is None:
            self._metadata_keys = {}
            for key in self.frame.metadata_names:
                self._metadata_keys.setdefault(label_name(key), key)
        return self._metadata_keys

    def _of_stream(self, name: str) -> Values:
        frame = self.frame
        if name not in frame.labels.names:
            return Values.absent(len(frame))
        return Values.of_labels(frame.labels, name, frame.stream_row)

    def _of_metadata(self, name: str) -> Values:
        key = self._metadata().get(name)
        column = None if key is None else self.frame.metadata(key)
        return Values.absent(len(self)) if column is None else Values.of_column(column)

    def _layers(self, name: str) -> dict[Origin, Values]:
        """A label as it came; metadata whose key is a label of the line's stream is ``<key>_extracted``."""
        layers = self._stored.get(name)
        if layers is None:
            layers = {}
            if name in self.frame.labels.names:
                layers[Origin.STREAM] = self._of_stream(name)
            if name in self._metadata():
                values = self._of_metadata(name)
                stream = layers.get(Origin.STREAM)
                layers[Origin.METADATA] = values if stream is None else values.without(stream.present)
            base = name.removesuffix(EXTRACTED)
            if base != name and base in self.frame.labels.names and base in self._metadata():
                values = self._of_metadata(base).without(~self._of_stream(base).present)
                other = layers.get(Origin.METADATA)
                layers[Origin.METADATA] = values if other is None else other.where(other.present, values)
            self._stored[name] = layers
        return layers

    def _as_it_came(self, name: str) -> Values:
        layers = list(self._layers(name).values())
        if not layers:
            return Values.absent(len(self))
        return layers[0] if len(layers) == 1 else layers[0].where(layers[0].present, layers[1])

    def is_stored(self, name: str) -> bool:
        """Whether a label may be there as it came."""
        if (name in self._set or name in self._fields) and name not in self._through:
            return False
        if name in self._gone or (self._keep is not None and name not in self._keep and name not in SPECIAL):
            return False
        metadata = self._metadata()
        return name in self.frame.labels.names or name in metadata or name.removesuffix(EXTRACTED) in metadata

    def get(self, name: str) -> Values:
        """A label as it is now."""
        self._read_field(name)
        made = self._set.get(name)
        if made is None:
            return self._as_it_came(name) if self.is_stored(name) else Values.absent(len(self))
        if name in self._through and self.is_stored(name):
            return made.where(made.present, self._as_it_came(name))
        return made

    def _read_field(self, name: str) -> None:
        """Read a stored field that was only promised."""
        field = self._fields.pop(name, None)
        if field is not None:
            column = self.frame.field(field)
            self._set[name] = Values.absent(len(self)) if column is None else Values.of_column(column)

    def set(self, name: str, values: Values) -> None:
        """Set a label of all lines."""
        self._gone.discard(name)
        self._through.discard(name)
        self._fields.pop(name, None)
        if self._keep is not None:
            self._keep.add(name)
        self._set[name] = values

    def set_where(self, name: str, mask: NDArray[np.bool_], values: Values) -> None:
        """Set a label of some lines."""
        if not mask.any():
            return
        self._read_field(name)
        made = self._set.get(name)
        if made is not None:
            self._set[name] = values.where(mask, made)
            return
        through = not mask.all() and self.is_stored(name)
        self.set(name, values if mask.all() else values.without(~mask))
        if through:
            self._through.add(name)

    def set_parsed(self, field: str, values: Values) -> None:
        """Set the label of a parsed field where lines have it; ``<name>_extracted`` where the name is taken."""
        name = label_name(field)
        if not name:
            return
        has = values.present
        if not self.is_stored(name):
            if self.wants(name):
                self.set_where(name, has, values)
            return
        taken = self._as_it_came(name).present
        if self.wants(name + EXTRACTED):
            self.set_where(name + EXTRACTED, has & taken, values)
        if self.wants(name):
            self.set_where(name, has & ~taken, values)

    def set_field(self, field: str) -> None:
        """Like :meth:`set_parsed` of a stored field, which is not read before somebody asks for it."""
        name = label_name(field)
        taken = self.is_stored(name)
        if taken and self._as_it_came(name).present.all():
            name, taken = name + EXTRACTED, self.is_stored(name + EXTRACTED)
        if taken or name in self._set or name in self._fields:
            column = self.frame.field(field)
            if column is not None:
                self.set_parsed(field, Values.of_column(column))
        elif self.wants(name):
            self.set(name, Values.absent(0))
            del self._set[name]
            self._fields[name] = field

    def drop(self, name: str) -> None:
        """Remove a label."""
        self._set.pop(name, None)
        self._fields.pop(name, None)
        self._through.discard(name)
        self._gone.add(name)

    def remove_where(self, name: str, mask: NDArray[np.bool_]) -> None:
        """Remove a label from some lines."""
        self._read_field(name)
        if name in self._set:
            self._set[name] = self._set[name].without(mask)
        if self.is_stored(name):
            self._stored[name] = {origin: values.without(mask) for origin, values in self._layers(name).items()}
            self._touched.add(name)

    def keep_only(self, names: Set[str]) -> None:
        """Remove all other labels."""
        for name in {*self._set, *self._fields} - names - SPECIAL:
            self.drop(name)
        self._keep = {*names} if self._keep is None else self._keep & {*names}

    def names(self) -> list[str]:
        """Names of all labels that any line may have, sorted."""
        stored = {*self.frame.labels.names, *self._metadata()}
        stored |= {name + EXTRACTED for name in self._metadata() if name in self.frame.labels.names}
        found = {*self._set, *self._fields, *filter(self.is_stored, stored)}
        return sorted(filter(self.wants, found))

    def layers(self, name: str) -> dict[Origin, Values]:
        """A label as it is now, by where each line has it from."""
        self._read_field(name)
        made = self._set.get(name)
        found = dict(self._layers(name)) if self.is_stored(name) else {}
        if made is not None:
            found = {origin: values.without(made.present) for origin, values in found.items()}
            found[Origin.PARSED] = made
        return found

    def is_of_streams(self, names: Sequence[str]) -> bool:
        """Whether all of these labels are still those of the streams, as they came."""
        if self._gone or self._keep is not None:
            return False
        made = (self._set, self._fields, self._touched, self._metadata())
        return not any(name in names_made for name in names for names_made in made) and not any(
            name.endswith(EXTRACTED) for name in names
        )

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
