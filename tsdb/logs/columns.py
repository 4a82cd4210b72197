"""Typed columns of log values: the type is what gives the identical text back in the fewest bytes.

Each type may leave out some rows, the exceptions, whose texts are kept beside it; so one odd value does not cost a
column its type.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsdb.errors import CorruptionError
from tsdb.kernels import log_columns as kernels
from tsdb.kernels.log_columns import DELTA, DICT_MAX, HEX, IPS, NUMBERS, OTHER, PLAIN, SCALE_MAX
from tsdb.kernels.log_head import longest_words
from tsdb.kernels.log_scan import find_at_begin
from tsdb.logs.blobs import NO_INTS, BlobReader, BlobWriter
from tsdb.logs.facts import EXACT_INT, ColumnFact, HashSet, Known, bounds_of, letters_in, seed_of
from tsdb.logs.frame import Column, FieldKind, Texts, contains, gather, padded
from tsdb.logs.needles import Place
from tsdb.logs.regex.automaton import Kind, Run
from tsdb.logs.text_types import (
    IPV6_BYTES,
    IPV6_RUN,
    UUID_BYTES,
    UUID_RUN,
    UUID_SHAPE,
    UUID_WIDTH,
    Layout,
    format_ipv6,
    format_times,
    format_uuids,
    is_ipv6,
    is_uuid,
    layout_of,
    parse_ipv6,
    parse_times,
    parse_uuids,
)

EXCEPTIONS_MAX = 0.3
"""Share of the rows that a type may leave out."""

SAMPLE_ROWS = 1024
WIDTH_ROWS = 32
HEX_BYTES_MIN = 8
IP_RUN = 3
"""Digits of a dotted quad between two dots."""

NUMBERS_DISTINCT_MIN = 64
"""Fewer distinct numbers are a dictionary."""

FEW = 16
"""A read of fewer rows than one in so many takes just their numbers out of a column."""

_NO_TEXTS = Texts.of([])

TS = -1
"""Number of the time of the entries where a column refers to another."""

_BACKSLASH = 0x5C
_DIGITS = frozenset(b"0123456789")
_NO_DIGITS = re.compile(rb"[^0-9]+")
_INTEGERS = frozenset(_DIGITS | set(b"-"))
_ALPHABETS = {
    "num": _INTEGERS | set(b"."),
    "ip": _DIGITS | set(b"."),
    "hex": _DIGITS | set(b"abcdef"),
    "uuid": _DIGITS | set(b"abcdef-"),
    "ipv6": _DIGITS | set(b"abcdef:."),
}
"""Bytes that the regular texts of a type are made of."""

_LONGEST = {"uuid": UUID_WIDTH, "ipv6": 45, "time": 40}
"""Bytes of the longest text of a type; an IPv6 address may end in dotted digits."""


class Spans(NamedTuple):
    """Texts as byte ranges of one buffer, in any order; ``PAD_BYTES`` readable behind the last."""

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def rows(self, rows: NDArray[np.int64]) -> Spans:
        """Some of them."""
        return Spans(self.data, self.starts[rows], self.lengths[rows])

    def texts(self) -> Texts:
        """One behind the other."""
        return gather(self.data, self.starts, self.lengths)


class Numbers(NamedTuple):
    """A column stored as numbers, which later ones may refer to."""

    column: int
    scale: int
    ints: NDArray[np.int64]


def _alphabet_of(entry: dict[str, Any]) -> frozenset[int] | None:
    """Bytes that the regular texts of a column are made of; None = any."""
    return Layout(*entry["f"]).alphabet if entry["t"] == "time" else _ALPHABETS.get(entry["t"])


def spans_of(texts: Texts) -> Spans:
    """Texts as ranges."""
    return Spans(texts.data, texts.offsets[:-1], texts.offsets[1:] - texts.offsets[:-1])


# -- writing


class ColumnWriter:
    """Encodes the columns of one pattern.

    Parameters
    ----------
    blobs : where the bytes go
    ts_ns : (n,) int64        time of each row: a column may be a function of it
    hashes : gets the values of named columns and the words of lines
    base : METADATA for structured metadata: their words are not those of lines
    longest : (2,) int64        raised to the longest runs of letters and digits, and of these and dashes, of all values
        but ``hex_values`` and ``uuid_values``

    Attributes
    ----------
    hex_values : (bytes of a value, their bytes) of the hex columns without exceptions
    uuid_values : (16 x values,) uint8 of the UUID columns without exceptions
    """

    def __init__(
        self,
        blobs: BlobWriter,
        ts_ns: NDArray[np.int64],
        longest: NDArray[np.int64],
        hashes: HashSet,
        base: Known = Known(0),
    ) -> None:
        self._blobs = blobs
        self._hashes = hashes
        self._base = base
        self._distinct = _NO_TEXTS  # of the last const or dict column
        self._odd = _NO_TEXTS  # exceptions of the last column that may have some
        self._bounds = (0, 0)  # of the last column of numbers, exceptions left out
        self._ts_ns = ts_ns
        self._numbers: list[Numbers] = []
        self._count = 0
        self._longest = longest
        self.hex_values: list[tuple[int, NDArray[np.uint8]]] = []
        self.uuid_values: list[NDArray[np.uint8]] = []

    def _put_texts(self, texts: Texts) -> list[Any]:
        self._add_words(texts)
        return self._blobs.put_texts(texts)

    def _add_words(self, texts: Texts) -> None:
        longest_words(*texts, self._longest)
        if not self._base & Known.METADATA:
            self._hashes.add_words(texts)

    def fact(self, name: str, values: Spans, entry: dict[str, Any]) -> ColumnFact:
        """What the index can say of the column that was encoded last."""
        known, label = self._base, name.encode()
        odd = bool(entry.get("x"))
        if entry.get("e"):  # a query compares what the escapes stand for
            return ColumnFact(label, known)
        type_ = entry["t"]
        if type_ in ("const", "dict", "skel", "str"):
            distinct = self._distinct if type_ in ("const", "dict") and not odd else None
            spans = values if distinct is None else spans_of(distinct)
            if self._hashes.add_values(*spans, seed_of(label, known)):
                known |= Known.HASHED
            bounds = None if distinct is None else bounds_of(distinct.to_list())
            if bounds is not None:
                return ColumnFact(label, known | Known.BOUNDED, *bounds)
        elif type_ == "num" and max(map(abs, self._bounds)) < EXACT_INT:
            low, high = (bound / 10.0 ** entry["s"] for bound in self._bounds)
            others = bounds_of(self._odd.to_list()) if odd else (low, high)
            if others is not None:
                return ColumnFact(label, known | Known.BOUNDED, min(low, others[0]), max(high, others[1]))
        elif type_ in ("hex", "uuid") and not odd:
            width = UUID_BYTES if type_ == "uuid" else entry["w"] // 2
            return ColumnFact(label, known | Known.RAW, width=width)
        return ColumnFact(label, known)

    def encode(self, values: Spans, suspects: NDArray[np.int64] = NO_INTS) -> dict[str, Any]:
        """Add a column; what :class:`StoredColumn` needs to read it.

        The type is guessed from a sample of the rows, and given up when the whole column does not bear it out.

        Parameters
        ----------
        suspects : rows of which some value holds a backslash
        """
        number = self._count
        self._count += 1
        entry = self._encode(values, number)
        if not self._base & Known.METADATA:
            self._hashes.loose_letters |= letters_in(_alphabet_of(entry) or ())
        if len(suspects):
            texts = values.rows(suspects).texts()
            if (texts.data[: int(texts.offsets[-1])] == _BACKSLASH).any():
                entry["e"] = 1
        return entry

    def _encode(self, values: Spans, number: int) -> dict[str, Any]:
        n = len(values.starts)
        sample = values.rows(np.arange(0, n, max(1, n // SAMPLE_ROWS)))
        stats, scale, enough, width, _ = self._measure(sample)
        if stats[kernels.EQUAL] == len(sample.starts) and kernels.all_equal(*values):
            text = values.rows(np.zeros(1, np.int64)).texts()
            self._add_words(text)
            self._distinct = text
            return {"t": "const", "v": text.text(0).decode("latin-1")}
        entry: dict[str, Any] | None = None
        distinct = len(self._number_distinct(sample)[1].offsets) - 1
        many = distinct >= min(DICT_MAX, len(sample.starts) // 2)
        fixed = self._fixed_type(sample) if many else None
        if fixed is not None:
            entry = fixed(values, number)
        elif stats[IPS] >= enough and many:
            entry = self._ip(values)
        elif width >= HEX_BYTES_MIN and width % 2 == 0 and stats[HEX] >= enough and many:
            entry = self._hex(values, width)
        elif distinct > NUMBERS_DISTINCT_MIN and stats[NUMBERS + scale] >= enough:
            _, scale, _, _, (ints, scales) = self._measure(values)
            entry = self._number(values, number, scale, ints, scales == scale)
        if entry is None and distinct < DICT_MAX:
            codes, texts = self._number_distinct(values)
            distinct, left_out = len(texts.offsets) - 1, int(np.count_nonzero(codes < 0))
            if left_out * 16 <= n and (distinct + left_out) * 2 <= n:
                entry = self._dictionary(values, codes, texts)
        return entry or self._skeleton(values) or {"t": "str", "p": self._put_texts(values.texts())}

    @staticmethod
    def _measure(
        values: Spans,
    ) -> tuple[NDArray[np.int64], int, float, int, tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """(stats, most frequent number of decimals, rows a type must fit, usual length, (numbers, decimals))."""
        n = len(values.starts)
        ints, scales, stats = np.empty(n, np.int64), np.empty(n, np.uint8), np.zeros(kernels.STATS, np.int64)
        some = values.lengths[:: max(1, n // WIDTH_ROWS)]
        width = int(np.sort(some)[len(some) // 2])
        kernels.measure(*values, width, ints, scales, stats)
        return stats, int(stats[NUMBERS:].argmax()), n * (1 - EXCEPTIONS_MAX), width, (ints, scales)

    def _exceptions(self, values: Spans, good: NDArray[np.bool_]) -> list[Any] | None:
        rows = np.flatnonzero(~good)
        self._odd = values.rows(rows).texts()
        if not len(rows):
            return None
        return [len(rows), self._blobs.put_ints(rows, DELTA), self._put_texts(self._odd)]

    def _codes(self, codes: NDArray[np.uint8]) -> list[Any]:
        """Codes as they are, or moved to front where that leaves less entropy."""
        moved = np.empty_like(codes)
        kernels.move_to_front(codes, np.arange(DICT_MAX).astype(np.uint8), moved)
        if _entropy(moved) < 0.95 * _entropy(codes):
            return [1, self._blobs.put(moved)]
        return [0, self._blobs.put(codes)]

    @staticmethod
    def _number_distinct(values: Spans) -> tuple[NDArray[np.int32], Texts]:
        slots = np.full(4 * DICT_MAX, -1, np.int32)
        firsts, codes = np.empty(DICT_MAX, np.int32), np.empty(len(values.starts), np.int32)
        count = kernels.build_dict(*values, slots, firsts, codes)
        return codes, values.rows(firsts[:count].astype(np.int64)).texts()

    def _dictionary(self, values: Spans, codes: NDArray[np.int32], texts: Texts) -> dict[str, Any]:
        good = codes >= 0
        self._distinct = texts
        return {
            "t": "dict",
            "d": self._put_texts(texts),
            "c": self._codes(np.where(good, codes, 0).astype(np.uint8)),
            "x": self._exceptions(values, good),
        }

    def _number(
        self, values: Spans, number: int, scale: int, ints: NDArray[np.int64], good: NDArray[np.bool_]
    ) -> dict[str, Any]:
        if good.any():
            self._bounds = int(ints[good].min()), int(ints[good].max())
        others = [Numbers(TS, scale, self._ts_ns // 10 ** (SCALE_MAX - scale))]
        others += [known for known in self._numbers if known.scale == scale]
        best, cost = (PLAIN, TS), -1
        for other in others:
            if not good.all():
                ints = np.where(good, ints, other.ints)  # what is left out differs from it by nothing
            costs = np.empty(3, np.int64)
            kernels.int_costs(ints, other.ints, costs)
            how = int(costs.argmin())
            if cost < 0 or costs[how] < cost:
                best, cost = (how, other.column), int(costs[how])
                chosen, chosen_ints = other, ints
        how, column = best
        if how != OTHER and not good.all():
            chosen_ints = np.where(good, ints, int(np.median(ints[good])))
        np.maximum(self._longest, kernels.NUMBER_BYTES_MAX, out=self._longest)
        self._numbers.append(Numbers(number, scale, chosen_ints))
        entry: dict[str, Any] = {"t": "num", "s": scale, "p": self._blobs.put_ints(chosen_ints, how, chosen.ints)}
        if how == OTHER:
            entry["o"] = column
        entry["x"] = self._exceptions(values, good)
        return entry

    def _ip(self, values: Spans) -> dict[str, Any] | None:
        np.maximum(self._longest, IP_RUN, out=self._longest)
        ints, good = np.empty(len(values.starts), np.int64), np.empty(len(values.starts), np.uint8)
        if kernels.parse_ips(*values, ints, good) < len(good) * (1 - EXCEPTIONS_MAX):
            return None
        return {"t": "ip", "p": self._blobs.put_ints(ints), "x": self._exceptions(values, good.view(np.bool_))}

    def _hex(self, values: Spans, width: int) -> dict[str, Any]:
        data = np.empty(len(values.starts) * (width // 2), np.uint8)
        good = np.empty(len(values.starts), np.uint8)
        kernels.parse_hex(*values, width, data, good)
        if good.all():
            self.hex_values.append((width // 2, data))
        else:
            self._longest[0] = max(self._longest[0], width)
        self._longest[1] = max(self._longest[1], width)
        return {
            "t": "hex",
            "w": width,
            "p": self._blobs.put(data),
            "x": self._exceptions(values, good.view(np.bool_)),
        }

    def _fixed_type(self, sample: Spans) -> Callable[[Spans, int], dict[str, Any] | None] | None:
        """What encodes times, UUIDs or IPv6 addresses, if most of some values are such."""
        n = len(sample.starts)
        texts = sample.rows(np.unique(np.linspace(0, n - 1, 3).astype(np.int64))).texts().to_list()
        if n * (1 - EXCEPTIONS_MAX) > np.count_nonzero(sample.lengths >= 2) or not any(texts):
            return None
        for text in texts:
            layout = layout_of(text)
            if layout is not None and parse_times(*sample, layout)[1].mean() >= 1 - EXCEPTIONS_MAX:
                return partial(self._time, layout)
        if any(map(is_uuid, texts)) and parse_uuids(*sample)[1].mean() >= 1 - EXCEPTIONS_MAX:
            return self._uuid
        if any(map(is_ipv6, texts)) and parse_ipv6(sample.texts().to_list())[1].mean() >= 1 - EXCEPTIONS_MAX:
            return self._ipv6
        return None

    def _time(self, layout: Layout, values: Spans, number: int) -> dict[str, Any] | None:
        ints, good = parse_times(*values, layout)
        if not good.any():
            return None
        return {**self._number(values, number, layout.decimals, ints, good), "t": "time", "f": list(layout)}

    def _planes(self, type_: str, values: Spans, planes: NDArray[np.uint8], good: NDArray[np.bool_]) -> dict[str, Any]:
        exceptions = self._exceptions(values, good)
        return {"t": type_, "p": self._blobs.put(planes.reshape(-1)), "x": exceptions}

    def _uuid(self, values: Spans, number: int) -> dict[str, Any]:  # noqa: ARG002
        planes, good = parse_uuids(*values)
        self._longest[0] = max(self._longest[0], UUID_RUN)
        if good.all():
            self.uuid_values.append(np.ascontiguousarray(planes.T).reshape(-1))
        else:
            self._longest[1] = max(self._longest[1], UUID_WIDTH)
        return self._planes("uuid", values, planes, good)

    def _ipv6(self, values: Spans, number: int) -> dict[str, Any]:  # noqa: ARG002
        np.maximum(self._longest, IPV6_RUN, out=self._longest)
        return self._planes("ipv6", values, *parse_ipv6(values.texts().to_list()))

    def _skeleton(self, values: Spans) -> dict[str, Any] | None:
        n, size = len(values.starts), int(values.lengths.sum())
        data, offsets = padded(size), np.empty(n + 1, np.int64)
        ints, first, good = np.empty(size, np.int64), np.empty(n + 1, np.int64), np.empty(n, np.uint8)
        count = int(kernels.make_skeletons(*values, data, offsets, ints, first, good))
        codes, texts = self._number_distinct(spans_of(Texts(data, offsets)))
        kept = (codes >= 0) & good.view(np.bool_)
        if np.count_nonzero(kept) < n * (1 - EXCEPTIONS_MAX / 2) or (len(texts.offsets) - 1) * 4 > n:
            return None
        if not kept.all():  # the numbers of rows that are left out go with them
            mine = np.repeat(kept, np.diff(first))
            ints = np.ascontiguousarray(ints[:count][mine])
            count = len(ints)
            codes = np.where(kept, codes, 0)
        longest_words(*values.texts(), self._longest)
        # How many numbers a row has follows from its skeleton; those of rows left out are none.
        return {
            "t": "skel",
            "d": self._put_texts(texts),
            "c": self._codes(codes.astype(np.uint8)),
            "n": count,
            "p": self._blobs.put_ints(ints[:count]),
            "x": self._exceptions(values, kept),
        }


def _entropy(codes: NDArray[np.uint8]) -> float:
    """Bits that an ideal code of single bytes needs."""
    counts = np.zeros(DICT_MAX, np.int64)
    kernels.count_codes(codes, counts)
    used = counts[counts > 0]
    return float((used * np.log2(len(codes) / used)).sum())


# -- reading


class StoredColumn:
    """One column; decoded on the first use and kept as long as the object.

    Parameters
    ----------
    entry : what :meth:`ColumnWriter.encode` returned
    n : rows
    others : the columns before it, of the same pattern, by number
    ts_ns : gives the time of the rows
    dictionaries, number : where the decoded dictionary is kept between two reads, and under what number
    """

    def __init__(
        self,
        entry: dict[str, Any],
        n: int,
        blobs: BlobReader,
        others: Callable[[int], StoredColumn],
        ts_ns: Any,
        dictionaries: dict[int, Texts] | None = None,
        number: int = 0,
    ) -> None:
        self._entry = entry
        self._n = n
        self._blobs = blobs
        self._others = others
        self._ts_ns = ts_ns
        self._ints: NDArray[np.int64] | None = None
        self._codes: NDArray[np.uint8] | None = None
        self._first_int: NDArray[np.int64] = NO_INTS
        self._dictionaries = {} if dictionaries is None else dictionaries
        self._number = number
        self._kept: Texts | None = self._dictionaries.get(number)
        self._odd: tuple[NDArray[np.int64], Texts] | None = None
        self.type: str = entry["t"]
        self.escaped = bool(entry.get("e"))

    @property
    def constant(self) -> bytes | None:
        """The one text of a column that has no other."""
        return self._entry["v"].encode("latin-1") if self.type == "const" else None

    @property
    def hex_width(self) -> int:
        """Digits of a hex column, else 0."""
        return int(self._entry["w"]) if self.type == "hex" else 0

    def ints(self) -> NDArray[np.int64]:
        """The (n,) numbers of a ``num`` or ``ip`` column; of exceptions, anything."""
        if self._ints is None:
            others = NO_INTS
            if "o" in self._entry:
                other = self._entry["o"]
                scale = self._entry["s"]
                others = self._ts_ns() // 10 ** (SCALE_MAX - scale) if other == TS else self._others(other).ints()
            self._ints = self._blobs.ints(self._entry["p"], self._n, others)
        return self._ints

    def ints_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of some rows; of few rows without decoding the others."""
        if self._ints is None and len(rows) * FEW < self._n:
            others = NO_INTS
            if "o" in self._entry:
                other = self._entry["o"]
                scale = self._entry["s"]
                others = (
                    self._ts_ns()[rows] // 10 ** (SCALE_MAX - scale)
                    if other == TS
                    else self._others(other).ints_of(rows)
                )
            some = self._blobs.some_ints(self._entry["p"], self._n, rows, others)
            if some is not None:
                return some
        return self.ints()[rows]

    def _bytes(self) -> NDArray[np.uint8]:
        """The codes of a ``dict`` or ``skel`` column."""
        if self._codes is None:
            moved, place = self._entry["c"]
            if place[2] != self._n:
                raise CorruptionError("column", place[0], "codes and rows differ in number")
            codes = self._blobs.get(place, 0)
            if moved:
                out = np.empty(self._n, np.uint8)
                kernels.move_back(codes, np.arange(DICT_MAX).astype(np.uint8), out)
                codes = out
            if self._n and int(codes.max()) >= self._entry["d"][0]:
                raise CorruptionError("column", place[0], "a code beyond the dictionary")
            self._codes = codes
        return self._codes

    def _texts(self, key: str) -> Texts:
        """The dictionary, the skeletons, or all texts."""
        if self._kept is None:
            self._kept = self._blobs.texts(self._entry[key])
            if key == "d":
                self._dictionaries[self._number] = self._kept
        return self._kept

    def odd(self) -> tuple[NDArray[np.int64], Texts]:
        """(rows, texts) of the exceptions."""
        if self._odd is None:
            if self._entry.get("x"):
                n, rows, texts = self._entry["x"]
                self._odd = self._blobs.ints(rows, n), self._blobs.texts(texts)
            else:
                self._odd = NO_INTS, _NO_TEXTS
        return self._odd

    def spans(self, rows: NDArray[np.int64]) -> Spans:
        """The texts of some rows."""
        base = self._regular(rows)
        if not self._entry.get("x"):
            return base
        odd_rows, odd = self.odd()
        at = np.searchsorted(odd_rows, rows)
        at[at == len(odd_rows)] = 0
        hit = odd_rows[at] == rows
        if not hit.any():
            return base
        starts = np.where(hit, len(base.data) + odd.offsets[at], base.starts)
        lengths = np.where(hit, odd.offsets[at + 1] - odd.offsets[at], base.lengths)
        return Spans(np.concatenate([base.data, odd.data]), starts, lengths)

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes of the texts of some rows; those of types with a fixed width are not made."""
        if self.type == "hex" and not self._entry.get("x"):
            return np.full(len(rows), self.hex_width)
        return self.spans(rows).lengths

    def _regular(self, rows: NDArray[np.int64]) -> Spans:
        k = len(rows)
        if self.type == "const":
            text = Texts.of([self._entry["v"].encode("latin-1")])
            return Spans(text.data, np.zeros(k, np.int64), np.full(k, int(text.offsets[1])))
        if self.type == "dict":
            data, offsets = self._texts("d")
            codes = self._bytes()[rows].astype(np.int64)
            starts = offsets[codes]
            return Spans(data, starts, offsets[codes + 1] - starts)
        if self.type == "str":
            data, offsets = self._texts("p")
            starts = offsets[rows]
            return Spans(data, starts, offsets[rows + 1] - starts)
        if self.type == "time":
            return spans_of(format_times(self.ints_of(rows), Layout(*self._entry["f"])))
        if self.type == "uuid":
            return spans_of(format_uuids(self._planes()[:, rows]))
        if self.type == "ipv6":
            return spans_of(format_ipv6(self._planes()[:, rows]))
        if self.type == "hex":
            width = self.hex_width
            half = width // 2
            data = self.hex_bytes().reshape(self._n, half)
            out = padded(k * width)
            kernels.format_hex(np.ascontiguousarray(data[rows]).reshape(-1), out)
            return Spans(out, np.arange(k) * width, np.full(k, width))
        offsets = np.empty(k + 1, np.int64)
        if self.type == "skel":
            out = self._fill(rows, offsets)
        else:
            out = padded(k * kernels.NUMBER_BYTES_MAX)
            picked = self.ints_of(rows)
            if self.type == "num":
                kernels.format_numbers(picked, self._entry["s"], out, offsets)
            elif self.type == "ip":
                kernels.format_ips(picked, out, offsets)
            else:
                raise CorruptionError("column", 0, f"unknown type {self.type!r}")
        return Spans(out, offsets[:-1], np.diff(offsets))

    def _planes(self) -> NDArray[np.uint8]:
        """(16, n) bytes of a ``uuid`` or ``ipv6`` column."""
        place = self._entry["p"]
        if place[2] != IPV6_BYTES * self._n:
            raise CorruptionError("column", place[0], "values and rows differ in number")
        return self._blobs.get(place, 0).reshape(IPV6_BYTES, self._n)

    @property
    def alphabet(self) -> frozenset[int] | None:
        """Bytes that its regular texts are made of; None = any."""
        if self.type == "num" and self._entry["s"] == 0:
            return _INTEGERS
        return _alphabet_of(self._entry)

    @property
    def kind(self) -> Kind | None:
        """What its regular texts have in common for an automaton; None = nothing, or it has a dictionary."""
        if self.type == "hex":
            return (_ALPHABETS["hex"],) * self.hex_width
        if self.type == "time":
            return Layout(*self._entry["f"]).shape
        if self.type == "uuid":
            return UUID_SHAPE
        alphabet = self.alphabet
        return None if alphabet is None else Run(alphabet, _LONGEST.get(self.type, kernels.NUMBER_BYTES_MAX))

    def dictionary(self) -> tuple[Texts, bool] | None:
        """The distinct regular texts of a column of few, and whether byte 0 in them stands for digits of a row."""
        return (self._texts("d"), self.type == "skel") if self.type in ("dict", "skel") else None

    def codes(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of these texts some rows have; of exceptions, anything."""
        return self._bytes()[rows].astype(np.int64)

    def hex_bytes(self) -> NDArray[np.uint8]:
        """(n * width / 2,) uint8 of a hex column."""
        place = self._entry["p"]
        if place[2] != self._n * self.hex_width // 2:
            raise CorruptionError("column", place[0], "hex values and rows differ in number")
        return self._blobs.get(place, 0)

    def _fill(self, rows: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
        codes = self._bytes()
        texts = self._texts("d")
        if not len(self._first_int):
            slots = np.zeros(len(texts.data) + 1, np.int64)
            (texts.data == kernels.SLOT).cumsum(out=slots[1:])
            before = slots[texts.offsets]
            counts = (before[1:] - before[:-1])[codes]
            counts[self.odd()[0]] = 0
            self._first_int = np.zeros(self._n + 1, np.int64)
            counts.cumsum(out=self._first_int[1:])
            if int(self._first_int[-1]) != self._entry["n"]:
                raise CorruptionError("column", 0, "numbers and skeletons differ")
        regular = rows
        odd_rows = self.odd()[0]
        if len(odd_rows):  # an exception has no numbers: give it any skeleton's place, its text is replaced
            regular = np.where(np.isin(rows, odd_rows), -1, rows)
            kept = np.flatnonzero(regular >= 0)
            inner = np.empty(len(kept) + 1, np.int64)
            out = self._fill_regular(texts, codes, np.ascontiguousarray(regular[kept]), inner)
            lengths = np.zeros(len(rows), np.int64)
            lengths[kept] = np.diff(inner)
            offsets[0] = 0
            np.cumsum(lengths, out=offsets[1:])
            return out
        return self._fill_regular(texts, codes, rows, offsets)

    def _fill_regular(
        self, texts: Texts, codes: NDArray[np.uint8], rows: NDArray[np.int64], offsets: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        sizes = np.diff(texts.offsets)[codes[rows]]
        first = self._first_int
        numbers = first[rows + 1] - first[rows]
        room = int(sizes.sum()) + kernels.NUMBER_BYTES_MAX * int(numbers.sum())
        out = padded(room)
        ints = None
        total = self._entry["n"]
        if self._ints is None and len(rows) * FEW < self._n:
            own = np.zeros(len(rows) + 1, np.int64)
            numbers.cumsum(out=own[1:])
            wanted = np.arange(int(own[-1])) + np.repeat(first[rows] - own[:-1], numbers)
            ints = self._blobs.some_ints(self._entry["p"], total, wanted)
            if ints is not None:
                codes, first, rows = codes[rows], own, np.arange(len(rows))
        if ints is None:
            if self._ints is None:
                self._ints = self._blobs.ints(self._entry["p"], total)
            ints = self._ints
        kernels.fill_skeletons(texts.data, texts.offsets, codes, rows, ints, first, out, offsets)
        return out

    # -- looking for literals

    def holds(self, needle: bytes, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some rows have the literal inside their text; decodes only what can have it."""
        flags = self._by_value(lambda texts: contains(texts, needle), rows)
        if flags is None and self.type == "skel" and kernels.SLOT not in needle:
            flags = self._skeletons_hold(needle, rows)
        alphabet = self.alphabet
        if flags is None and alphabet is not None:
            longest = self.hex_width or _LONGEST.get(self.type, kernels.NUMBER_BYTES_MAX)
            if len(needle) > longest or not alphabet.issuperset(needle):
                flags = np.zeros(len(rows), np.bool_)
            elif self.type == "uuid" and is_uuid(needle):
                wanted = np.frombuffer(bytes.fromhex(needle.decode().replace("-", "")), np.uint8)
                flags = (self._planes() == wanted[:, None]).all(axis=0)[rows]
            elif len(needle) == self.hex_width:
                wanted = np.frombuffer(bytes.fromhex(needle.decode()), np.uint8)
                flags = (self.hex_bytes().reshape(self._n, -1)[rows] == wanted).all(axis=1)
        if flags is None:
            return contains(self.spans(rows).texts(), needle)
        return self._with_odd(flags, rows, lambda odd: contains(odd, needle))

    def _skeletons_hold(self, needle: bytes, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """As :meth:`holds`: what is no digit stands in the skeleton, so that few rows need their text."""
        words = _NO_DIGITS.findall(needle)
        texts = self._texts("d")
        known = np.ones(len(texts.offsets) - 1, np.bool_)
        for word in words:
            known &= contains(texts, word)
        flags = known[self._bytes()[rows]]
        if words != [needle]:
            maybe = np.flatnonzero(flags)
            flags[maybe] = contains(self.spans(rows[maybe]).texts(), needle)
        return flags

    @property
    def cost(self) -> int:
        """How much it takes to look for a text, for sorting."""
        return ("const", "dict", "num", "ip", "hex", "uuid", "time", "ipv6", "skel", "str").index(self.type)

    def stands(self, needle: bytes, place: Place, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some rows have a text at a place of their value that is not anywhere."""

        def good(texts: Texts) -> NDArray[np.bool_]:
            return _compared(spans_of(texts), needle, place)

        flags = self._by_value(good, rows)
        if flags is None:
            alphabet = self.alphabet
            if alphabet is None or alphabet.issuperset(needle):
                return _compared(self.spans(rows), needle, place)
            flags = np.zeros(len(rows), np.bool_)
        return self._with_odd(flags, rows, good)

    def never_stands(self, needle: bytes, place: Place) -> bool:
        """Whether it is known without a look at the rows that no value has a text at a place."""
        if self._entry.get("x"):
            return False
        if self.type == "const":
            return not _compared(spans_of(Texts.of([self._entry["v"].encode("latin-1")])), needle, place)[0]
        if self.type == "dict":
            return not _compared(spans_of(self._texts("d")), needle, place).any()
        alphabet = self.alphabet
        return alphabet is not None and not alphabet.issuperset(needle)

    def _by_value(
        self, good: Callable[[Texts], NDArray[np.bool_]], rows: NDArray[np.int64]
    ) -> NDArray[np.bool_] | None:
        """The answer where the column has few values; None for other types."""
        if self.type == "const":
            return np.full(len(rows), good(Texts.of([self._entry["v"].encode("latin-1")]))[0])
        if self.type == "dict":
            flags = good(self._texts("d"))
            return flags[self._bytes()[rows]] if flags.any() else np.zeros(len(rows), np.bool_)
        return None

    def _with_odd(
        self, flags: NDArray[np.bool_], rows: NDArray[np.int64], good: Callable[[Texts], NDArray[np.bool_]]
    ) -> NDArray[np.bool_]:
        """The answer with that of the exceptions put in."""
        odd_rows, odd = self.odd()
        if len(odd_rows):
            answers = np.zeros(self._n, np.int8)
            answers[odd_rows] = np.where(good(odd), 1, -1)
            own = answers[rows]
            flags = np.where(own != 0, own > 0, flags)
        return flags

    def column(self, kind: FieldKind, rows: NDArray[np.int64]) -> Column:
        """Some rows as a frame shows them."""
        if self.type == "const":
            text = Texts.of([self._entry["v"].encode("latin-1")])
            return Column(kind, dictionary=text, codes=np.zeros(len(rows), np.int32), escaped=self.escaped)
        odd_rows, odd = self.odd()
        hit = None
        if len(odd_rows):
            at = np.searchsorted(odd_rows, rows)
            at[at == len(odd_rows)] = 0
            hit = odd_rows[at] == rows
            hit = hit if hit.any() else None
        if self.type == "dict":
            known = self._texts("d")
            codes = self._bytes()[rows].astype(np.int32)
            if hit is not None:
                count = len(known.offsets) - 1
                codes[hit] = count + at[hit]
                size = int(known.offsets[-1])
                known = Texts(
                    np.concatenate([known.data[:size], odd.data]),
                    np.concatenate([known.offsets, odd.offsets[1:] + size]),
                )
            return Column(kind, dictionary=known, codes=codes, escaped=self.escaped)

        def make() -> Texts:
            return self.spans(rows).texts()

        if self.type == "num":
            is_int = None if hit is None else ~hit
            return Column(
                kind, plain=make, escaped=self.escaped, ints=self.ints()[rows], is_int=is_int, scale=self._entry["s"]
            )
        return Column(kind, plain=make, escaped=self.escaped)


def _compared(values: Spans, needle: bytes, place: Place) -> NDArray[np.bool_]:
    """Which texts begin with a literal, end with it, or are it."""
    data, starts, lengths = values
    if place is Place.END:
        starts = np.where(lengths >= len(needle), starts + lengths - len(needle), starts)
    found = np.zeros(len(starts), np.uint8)
    wanted = np.frombuffer(needle, np.uint8)
    find_at_begin(data, np.ascontiguousarray(starts), lengths, wanted, int(place is Place.WHOLE), found)
    return found.view(np.bool_)
