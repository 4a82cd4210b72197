"""OTLP logs: a request in protobuf to label pairs of its streams and the places of its entries.

Which resource attributes make a stream, what else becomes structured metadata and under which name is Loki's default
(grafana/loki ``pkg/loghttp/push/otlp.go``, ``otlp_config.go``).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingest.kernels import otlp_logs as kernels
from ingest.logs.spans import Spans
from ingest.otlp_json import varint
from ingest.otlp_names import label_name, value_text
from ingest.otlp_points import any_value
from ingest.wire import fields
from tsdb.errors import Reason, RejectedError
from tsdb.index.keys import KeyTable
from tsdb.logs.frame import PAD_BYTES

INDEX_ATTRIBUTES = frozenset(
    (
        "service.name", "service.namespace", "service.instance.id", "deployment.environment",
        "deployment.environment.name", "cloud.region", "cloud.availability_zone", "container.name",
        *(
            f"k8s.{what}.name"
            for what in (
                "cluster", "namespace", "pod", "container", "replicaset", "deployment", "statefulset", "daemonset",
                "cronjob", "job",
            )
        ),
    )
)  # fmt: skip
"""Resource attributes that become labels of the stream; all others are structured metadata."""

NAMES_MAX = 1 << 16
"""Attribute names that are remembered; a program has some dozens. Further ones are spelled out each time."""

NAMES_BYTES_MAX = 1 << 20
"""Bytes of them: all of them are copied beside each request."""

_REMEMBERED_BYTES_MAX = 4096
(_OBSERVED, _SEVERITY, _TEXT, _DROPPED, _FLAGS, _TRACE, _SPAN, _EVENT) = range(8)
_FIELD_NAMES = (
    b"observed_timestamp", b"severity_number", b"severity_text", b"dropped_attributes_count", b"flags", b"trace_id",
    b"span_id", b"event_name",
)  # fmt: skip
_LEVELS = np.array([0] + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 4 + [6] * 4 + [8] * 4, np.uint8)
"""SeverityNumber (0 to 24) -> place in ``tsdb.logs.frame.LEVELS``."""

_HEX = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), np.uint8).reshape(256, 2)
_WIRES = {kernels.BOOL: 0, kernels.INT: 0, kernels.DOUBLE: 1}

Texts = tuple[tuple[bytes, bytes], ...]
LabelPairs = tuple[tuple[str, str], ...]
Group = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Pairs of structured metadata: (k,) number of the entry of each, (k, 4) begin and end of name and value."""


class _Known(NamedTuple):
    """Names by number: ``blob[begins[k]:ends[k]]``."""

    blob: bytes
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]


class _Names:
    """Attribute names as they come, with what they are called in structured metadata."""

    def __init__(self) -> None:
        self.table = KeyTable(NAMES_MAX, NAMES_BYTES_MAX)
        self._lock = threading.Lock()
        ends = np.cumsum([len(name) for name in _FIELD_NAMES], dtype=np.int64)
        self.known = _Known(b"".join(_FIELD_NAMES), np.concatenate([np.zeros(1, np.int64), ends[:-1]]), ends)

    def add(self, raw: bytes) -> int:
        """Number of a name; -1 when no more are remembered."""
        with self._lock:
            found = self.table.find(raw)
            if found > 0:
                return int(self.table.arrays().key_refs[found])
            blob, begins, ends = self.known
            name = _encoded(label_name(raw.decode("utf-8", "replace")))
            if len(ends) >= NAMES_MAX or len(blob) + len(name) > NAMES_BYTES_MAX:
                return -1
            # Before the table has it: a walk that finds the number must find the name.
            self.known = _Known(blob + name, np.append(begins, len(blob)), np.append(ends, len(blob) + len(name)))
            return len(ends) if self.table.add(raw, len(ends)) > 0 else -1


class _Tail:
    """Texts that are in no body, to be put behind it."""

    def __init__(self, base: int, first: bytes) -> None:
        self._base = base
        self.parts = [first]
        self._at = base + len(first)

    def put(self, text: bytes) -> tuple[int, int]:
        """Where the text will lie: begin, end."""
        begin = self._at
        self.parts.append(text)
        self._at += len(text)
        return begin, self._at

    def put_rows(self, rows: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Where texts of one width will lie: (n, 2)."""
        begin, _ = self.put(rows.tobytes())
        begins = begin + np.arange(len(rows), dtype=np.int64) * rows.shape[1]
        return np.stack([begins, begins + rows.shape[1]], axis=1)


class OtlpLogReader:
    """Reads requests. Thread-safe."""

    def __init__(self) -> None:
        self._names = _Names()
        self._local = threading.local()

    def read(self, body: bytes, now_ns: int) -> tuple[list[LabelPairs], Spans]:
        """Labels of each stream (one a resource), and where the entries lie.

        Parameters
        ----------
        now_ns : time of records that state none

        Raises
        ------
        RejectedError        MALFORMED
        """
        raw: NDArray[np.uint8] = np.frombuffer(body + bytes(PAD_BYTES), np.uint8)
        resources, scopes, records, attributes = self._walk(raw, len(body))
        keys = attributes[:, kernels.KEY].copy()
        for row in np.flatnonzero(keys < 0).tolist():
            keys[row] = self._names.add(_cut(raw, attributes[row, kernels.NAME_BEGIN : kernels.NAME_END + 1]))
        known = self._names.known
        tail = _Tail(len(body), known.blob)
        names = np.stack([known.begins, known.ends], axis=1) + len(body)

        owners = np.arange(len(records), dtype=np.int64)
        described = [_resource(_cut(raw, span)) for span in resources]
        groups = [
            _shared(owners, records[:, kernels.RESOURCE], [texts for _, texts in described], tail),
            _shared(owners, records[:, kernels.SCOPE], [_scope(_cut(raw, span)) for span in scopes], tail),
            _attributes(raw, records, attributes, keys, names, tail),
            *_fields(raw, records, names, tail),
        ]
        owner = np.concatenate([group[0] for group in groups])
        pairs = np.concatenate([group[1] for group in groups])
        first_pairs = np.zeros(len(records) + 1, np.int64)
        np.cumsum(np.bincount(owner, minlength=len(records)), out=first_pairs[1:])

        lines = records[:, kernels.BODY_BEGIN : kernels.BODY_END + 1].copy()
        for row in np.flatnonzero(records[:, kernels.BODY_KIND] > kernels.STRING).tolist():
            text = value_text(_value(int(records[row, kernels.BODY_KIND]), _cut(raw, lines[row])))
            lines[row] = tail.put(_encoded(text))
        time, observed = records[:, kernels.TIME], records[:, kernels.OBSERVED]
        severity = records[:, kernels.SEVERITY]
        spans = Spans(
            np.frombuffer(b"".join((body, *tail.parts, bytes(PAD_BYTES))), np.uint8),
            records[:, kernels.RESOURCE].astype(np.int32),
            np.where(time != 0, time, np.where(observed != 0, observed, now_ns)),
            lines[:, 0].copy(),
            lines[:, 1] - lines[:, 0],
            first_pairs,
            np.ascontiguousarray(pairs[np.argsort(owner, kind="stable")]),
            _LEVELS[np.where((severity > 0) & (severity < len(_LEVELS)), severity, 0)],
        )
        return [labels for labels, _ in described], spans

    def _walk(self, raw: NDArray[np.uint8], size: int) -> list[NDArray[np.int64]]:
        """Resources, scopes, records and attributes as the kernel finds them."""
        room: list[int] = getattr(self._local, "room", [8, 8, 512, 4096])
        keys = self._names.table.arrays()
        counts = np.zeros(4, np.int64)
        while True:
            widths = (2, 2, kernels.RECORD_COLUMNS, kernels.ATTRIBUTE_COLUMNS)
            resources, scopes, records, attributes = (
                np.empty((rows, width), np.int64) for rows, width in zip(room, widths, strict=True)
            )
            if kernels.walk_logs(
                raw, size, keys.key_bytes, keys.key_offsets, keys.key_lengths, keys.key_refs, keys.slots,
                resources, scopes, records, attributes, counts,
            ):  # fmt: skip
                raise RejectedError(Reason.MALFORMED, "malformed protobuf: not an OTLP logs request")
            found: list[int] = counts.tolist()
            if all(n <= have for n, have in zip(found, room, strict=True)):
                arrays = (resources, scopes, records, attributes)
                return [array[:n] for array, n in zip(arrays, found, strict=True)]
            self._local.room = room = [max(n + n // 4, have) for n, have in zip(found, room, strict=True)]


def _shared(owners: NDArray[np.int64], part_of: NDArray[np.int64], parts: list[Texts], tail: _Tail) -> Group:
    """Pairs that all records of a resource or a scope have."""
    rows = [tail.put(name) + tail.put(value) for part in parts for name, value in part]
    table = np.array(rows, np.int64).reshape(-1, 4)
    sizes = np.array([len(part) for part in parts], np.int64)
    firsts = np.cumsum(sizes) - sizes
    counts = sizes[part_of] if len(sizes) else np.zeros(0, np.int64)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(owners, counts), table[np.repeat(firsts[part_of], counts) + within]


def _attributes(
    raw: NDArray[np.uint8],
    records: NDArray[np.int64],
    attributes: NDArray[np.int64],
    keys: NDArray[np.int64],
    names: NDArray[np.int64],
    tail: _Tail,
) -> Group:
    """Pairs of the records' own attributes; a map is one pair for each of its members."""
    bounds = np.append(records[:, kernels.FIRST_ATTRIBUTE], len(attributes))
    owner = np.repeat(np.arange(len(records), dtype=np.int64), np.diff(bounds))
    pairs = np.empty((len(attributes), 4), np.int64)
    pairs[:, :2] = names[keys]
    pairs[:, 2:] = attributes[:, kernels.VALUE_BEGIN : kernels.VALUE_END + 1]
    more: list[tuple[int, int, int, int]] = []
    more_owners: list[int] = []
    kinds = attributes[:, kernels.KIND]
    short = (keys >= 0) & (pairs[:, 3] - pairs[:, 2] <= 8)
    for kind in (kernels.BOOL, kernels.INT, kernels.DOUBLE):
        _short_values(raw, kind, np.flatnonzero(short & (kinds == kind)), pairs, tail)
    done = short & (kinds >= kernels.BOOL) & (kinds <= kernels.DOUBLE)
    for row in np.flatnonzero(((kinds > kernels.STRING) & ~done) | (keys < 0)).tolist():
        name = _cut(raw, attributes[row, kernels.NAME_BEGIN : kernels.NAME_END + 1])
        value = _value(int(kinds[row]), _cut(raw, pairs[row, 2:]))
        if isinstance(value, Mapping):
            texts = list(_texts(name.decode("utf-8", "replace"), value))
            more += [tail.put(key) + tail.put(text) for key, text in texts]
            more_owners += [int(owner[row])] * len(texts)
            continue
        pairs[row, 2:] = tail.put(_encoded(value_text(value)))
        if keys[row] < 0:
            pairs[row, :2] = tail.put(_encoded(label_name(name.decode("utf-8", "replace"))))
    flat = kinds != kernels.MAP
    return (
        np.concatenate([owner[flat], np.array(more_owners, np.int64)]),
        np.concatenate([pairs[flat], np.array(more, np.int64).reshape(-1, 4)]),
    )


def _short_values(
    raw: NDArray[np.uint8], kind: int, rows: NDArray[np.intp], pairs: NDArray[np.int64], tail: _Tail
) -> None:
    """Put the texts of numbers of at most eight bytes behind the body, each distinct one once."""
    begins, sizes = pairs[rows, 2], pairs[rows, 3] - pairs[rows, 2]
    places = np.arange(8)
    words = np.where(places < sizes[:, None], raw[begins[:, None] + places], 0).astype(np.uint8).view(np.uint64)[:, 0]
    _, firsts, which = np.unique(words, return_index=True, return_inverse=True)
    texts = (value_text(_value(kind, _cut(raw, pairs[row, 2:]))) for row in rows[firsts].tolist())
    pairs[rows, 2:] = np.array([tail.put(_encoded(text)) for text in texts], np.int64).reshape(-1, 2)[which]


def _fields(
    raw: NDArray[np.uint8], records: NDArray[np.int64], names: NDArray[np.int64], tail: _Tail
) -> Iterator[Group]:
    """Pairs of the fields of records that are neither time nor body."""

    def group(field: int, rows: NDArray[np.intp], values: NDArray[np.int64]) -> Group:
        return rows.astype(np.int64), np.concatenate([np.broadcast_to(names[field], (len(rows), 2)), values], axis=1)

    both = np.flatnonzero((records[:, kernels.TIME] != 0) & (records[:, kernels.OBSERVED] > 0))
    yield group(_OBSERVED, both, _numbers(records[both, kernels.OBSERVED], tail))
    for field, column in (
        (_SEVERITY, kernels.SEVERITY),
        (_DROPPED, kernels.DROPPED),
        (_FLAGS, kernels.FLAGS),
    ):
        rows = np.flatnonzero(records[:, column])
        yield group(field, rows, _numbers(records[rows, column], tail))
    for field, column in ((_TEXT, kernels.TEXT_BEGIN), (_EVENT, kernels.EVENT_BEGIN)):
        rows = np.flatnonzero(records[:, column + 1] > records[:, column])
        yield group(field, rows, records[rows, column : column + 2])
    for field, column in ((_TRACE, kernels.TRACE_BEGIN), (_SPAN, kernels.SPAN_BEGIN)):
        sizes = records[:, column + 1] - records[:, column]
        for size in np.unique(sizes[sizes > 0]).tolist():
            rows = np.flatnonzero(sizes == size)
            ids = raw[records[rows, column][:, None] + np.arange(size)]
            real = ids.any(axis=1)  # nothing but zeros is an invalid id
            yield group(field, rows[real], tail.put_rows(_HEX[ids[real]].reshape(-1, 2 * size)))


def _numbers(values: NDArray[np.int64], tail: _Tail) -> NDArray[np.int64]:
    """Where the decimal texts of numbers will lie; equal ones share theirs."""
    distinct, which = np.unique(values, return_inverse=True)
    places = np.array([tail.put(b"%d" % value) for value in distinct.tolist()], np.int64).reshape(-1, 2)
    return places[which]


def _cut(raw: NDArray[np.uint8], span: NDArray[np.int64]) -> bytes:
    return raw[span[0] : span[1]].tobytes()


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")


@functools.lru_cache(maxsize=8192)
def _remembered_value(kind: int, payload: bytes) -> Any:
    wire = _WIRES.get(kind, 2)
    size = varint(len(payload)) if wire == 2 else b""
    return any_value(varint(kind << 3 | wire) + size + payload) if kind else None


def _value(kind: int, payload: bytes) -> Any:
    """The AnyValue of a kind and its payload; records repeat most of the short ones."""
    read = _remembered_value if len(payload) <= 64 else _remembered_value.__wrapped__
    return read(kind, payload)


def _texts(key: str, value: Any) -> Iterator[tuple[bytes, bytes]]:
    """Name and text of an attribute in structured metadata; of a map, of each member."""
    if isinstance(value, Mapping):
        for inner, one in value.items():
            yield from _texts(f"{key}_{inner}", one)
    else:
        yield _encoded(label_name(key)), _encoded(value_text(value))


def _key_value(message: bytes) -> tuple[str, Any]:
    key, value = "", None
    for number, content in fields(message):
        if number == 1 and isinstance(content, bytes):
            key = content.decode("utf-8", "replace")
        elif number == 2 and isinstance(content, bytes):
            value = any_value(content)
    return key, value


def _read_resource(message: bytes) -> tuple[LabelPairs, Texts]:
    labels: list[tuple[str, str]] = []
    texts: list[tuple[bytes, bytes]] = []
    for number, content in fields(message):
        if number == 1 and isinstance(content, bytes):
            key, value = _key_value(content)
            if key in INDEX_ATTRIBUTES and not isinstance(value, Mapping):
                labels.append((label_name(key), value_text(value)))
            else:
                texts += _texts(key, value)
        elif number == 2 and content:
            texts.append((b"resource_dropped_attributes_count", b"%d" % int(content)))
    return tuple(dict(labels).items()), tuple(texts)


def _read_scope(message: bytes) -> Texts:
    texts: list[tuple[bytes, bytes]] = []
    for number, content in fields(message):
        if number in (1, 2) and isinstance(content, bytes) and content:
            texts.append((b"scope_name" if number == 1 else b"scope_version", content))
        elif number == 3 and isinstance(content, bytes):
            texts += _texts(*_key_value(content))
        elif number == 4 and content:
            texts.append((b"scope_dropped_attributes_count", b"%d" % int(content)))
    return tuple(texts)


_remembered_resource = functools.lru_cache(maxsize=4096)(_read_resource)
_remembered_scope = functools.lru_cache(maxsize=4096)(_read_scope)


def _resource(message: bytes) -> tuple[LabelPairs, Texts]:
    """Labels of the stream, and what becomes structured metadata of all records."""
    return (_remembered_resource if len(message) <= _REMEMBERED_BYTES_MAX else _read_resource)(message)


def _scope(message: bytes) -> Texts:
    return (_remembered_scope if len(message) <= _REMEMBERED_BYTES_MAX else _read_scope)(message)
