"""OTLP data points in plain Python: for series that no key leads to yet, and for what no kernel reads."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingest.exemplars import Exemplar
from ingest.kernels import otlp as kernels
from ingest.otlp_names import float_text, label_name, labels_of, metric_name, value_text
from ingest.store import Metadata
from ingest.wire import fields
from tsdb.batch import STALE_BITS
from tsdb.exemplars import LABEL_CHARS_MAX

_IDENTITY = ("service.namespace", "service.name", "service.instance.id")
_DEPTH_MAX = 16
_EXEMPLAR_FIELDS = {kernels.NUMBER: 5, kernels.HISTOGRAM: 8}
_REMEMBERED_BYTES_MAX = 512


@dataclass(frozen=True, slots=True)
class Resource:
    """Who reports.

    Attributes
    ----------
    labels : ``job`` and ``instance``, on every series
    info : labels of its ``target_info`` series; None when there is nothing to say or nobody to say it about
    """

    labels: Mapping[str, str]
    info: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Metric:
    """What a metric is, by its message without the points.

    Attributes
    ----------
    name : of the family, as Prometheus spells it
    sent_name : as the sender spells it
    """

    name: str
    sent_name: str
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class Point:
    """One data point as samples.

    Attributes
    ----------
    ts_ms : milliseconds
    series : labels of each sample
    bits : float64 bit pattern of each sample
    exemplars : (place of the sample it belongs to, exemplar without a series)
    """

    ts_ms: int
    series: Sequence[Mapping[str, str]]
    bits: Sequence[int]
    exemplars: Sequence[tuple[int, Exemplar]]


def _text(value: int | bytes) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else ""


def _fixed(value: int | bytes) -> int:
    return int.from_bytes(value, "little") if isinstance(value, bytes) else value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def float_bits(value: float) -> int:
    """Bit pattern of a float64."""
    return int.from_bytes(struct.pack("<d", value), "little")


def _float(bits: int) -> float:
    value: float = struct.unpack("<d", struct.pack("<Q", bits))[0]
    return value


def any_value(message: bytes, depth: int = 0) -> Any:
    """An AnyValue; deeper than 16 levels it is None."""
    found: Any = None
    for number, value in fields(message):
        if number == 1:
            found = _text(value)
        elif number == 2:
            found = bool(value)
        elif number == 3:
            found = _signed(_fixed(value))
        elif number == 4:
            found = _float(_fixed(value))
        elif number == 7:
            found = value
        elif number in (5, 6) and isinstance(value, bytes) and depth < _DEPTH_MAX:
            inner = [one for field, one in fields(value) if field == 1 and isinstance(one, bytes)]
            if number == 5:
                found = [any_value(one, depth + 1) for one in inner]
            else:
                found = dict(_key_value(one, depth + 1) for one in inner)
    return found


def _key_value(message: bytes, depth: int = 0) -> tuple[str, Any]:
    key, value = "", None
    for number, content in fields(message):
        if number == 1:
            key = _text(content)
        elif number == 2 and isinstance(content, bytes):
            value = any_value(content, depth)
    return key, value


@functools.lru_cache(maxsize=32_768)
def _attribute(message: bytes) -> tuple[str, str]:
    """Key and text of an attribute; the points of a request repeat most of them."""
    key, value = _key_value(message)
    return key, value_text(value)


def _attribute_of(message: bytes) -> tuple[str, str]:
    return _attribute(message) if len(message) <= _REMEMBERED_BYTES_MAX else _attribute.__wrapped__(message)


def attributes(message: bytes, number: int) -> Iterator[tuple[str, str]]:
    """Key and text of each attribute in a message's field ``number``."""
    return (_attribute_of(value) for field, value in fields(message) if field == number and isinstance(value, bytes))


def read_resource(message: bytes) -> Resource:
    """Identity and description of a Resource message."""
    known = dict(attributes(message, 1))
    labels: dict[str, str] = {}
    if "service.name" in known:
        space = known.get("service.namespace")
        labels["job"] = f"{space}/{known['service.name']}" if space is not None else known["service.name"]
    if "service.instance.id" in known:
        labels["instance"] = known["service.instance.id"]
    others = {key: value for key, value in known.items() if key not in _IDENTITY}
    if not others or not labels:
        return Resource(labels, None)
    return Resource(labels, {**labels_of(others.items()), **labels, "__name__": "target_info"})


def read_metric(message: bytes, flags: int) -> Metric:
    """Family of a Metric message; ``flags`` are those of its points' keys."""
    texts = {number: _text(value) for number, value in fields(message) if number <= 3}
    kind = flags & 0xFF
    is_sum = bool(flags & kernels.FLAG_SUM)
    counter = is_sum and bool(flags & kernels.FLAG_MONOTONIC)
    unit = texts.get(3, "")
    gauge = kind == kernels.NUMBER and not is_sum
    name = metric_name(texts.get(1, ""), unit, counter=counter, gauge=gauge)
    kinds = {kernels.HISTOGRAM: "histogram", kernels.SUMMARY: "summary"}
    shown = "counter" if counter else kinds.get(kind, "gauge")
    helps, shown_unit = (text.encode("utf-8", "replace").decode() for text in (texts.get(2, ""), unit))
    return Metric(name, texts.get(1, ""), Metadata(name, shown, helps, shown_unit))


def read_point(message: bytes, flags: int, metric: Metric, resource: Resource) -> Point:
    """The samples of one data point, in the order of the kernel."""
    kind = flags & 0xFF
    known: dict[int, int | bytes] = {}
    counts: list[int] = []
    bounds: list[int] = []
    pairs: list[tuple[str, str]] = []
    own_field = attribute_field(kind)
    for number, value in fields(message):
        if number == own_field and isinstance(value, bytes):
            pairs.append(_attribute_of(value))
        elif kind == kernels.HISTOGRAM and number in (6, 7) and isinstance(value, bytes):
            words = struct.unpack(f"<{len(value) // 8}Q", value[: len(value) // 8 * 8])
            (counts if number == 6 else bounds).extend(words)
        else:
            known[number] = value
    ts_ms = _fixed(known.get(3, 0)) // 1_000_000
    stale = _fixed(known.get(8 if kind != kernels.HISTOGRAM else 10, 0)) & kernels.NO_RECORDED_VALUE
    base = {**labels_of(pairs), **resource.labels}

    rows: list[tuple[str, Mapping[str, str], int]] = []
    if kind == kernels.NUMBER:
        bits = _fixed(known.get(4, 0))
        if 6 in known:
            bits = float_bits(float(_signed(_fixed(known[6]))))
        rows.append(("", {}, bits))
        places: list[float] = []
    else:
        count = float_bits(float(_fixed(known.get(4, 0))))
        rows.append(("_count", {}, count))
        if kind == kernels.SUMMARY or 5 in known:
            rows.append(("_sum", {}, _fixed(known.get(5, 0))))
        places = [_float(bound) for bound, _ in zip(bounds, counts, strict=False)]
        if kind == kernels.HISTOGRAM:
            total = 0
            for bound, own in zip(places, counts, strict=False):
                total += own
                rows.append(("_bucket", {"le": float_text(bound)}, float_bits(float(total % (1 << 64)))))
            rows.append(("_bucket", {"le": "+Inf"}, count))
        else:
            rows.extend(_quantiles(message))
    series = [{**base, **extra, "__name__": metric.name + suffix} for suffix, extra, _ in rows]
    values = [STALE_BITS if stale else bits for _, _, bits in rows]
    exemplar_field = _EXEMPLAR_FIELDS.get(kind)
    shown = read_exemplars(message, flags, places) if exemplar_field in known else ()
    return Point(ts_ms, series, values, shown)


def attribute_field(kind: int) -> int:
    """Field number of a data point's attributes."""
    return 9 if kind == kernels.HISTOGRAM else 7


def _quantiles(message: bytes) -> Iterator[tuple[str, Mapping[str, str], int]]:
    for number, content in fields(message):
        if number == 6 and isinstance(content, bytes):
            pair = dict(fields(content))
            yield "", {"quantile": float_text(_float(_fixed(pair.get(1, 0))))}, _fixed(pair.get(2, 0))


def point_bounds(message: bytes) -> list[float]:
    """Bounds of a histogram point that have a bucket, ascending."""
    found = dict(fields(message))
    bounds, counts = found.get(7, b""), found.get(6, b"")
    if not isinstance(bounds, bytes) or not isinstance(counts, bytes):
        return []
    n = min(len(bounds), len(counts)) // 8
    return list(struct.unpack(f"<{n}d", bounds[: 8 * n]))


def read_exemplars(message: bytes, flags: int, bounds: Sequence[float]) -> list[tuple[int, Exemplar]]:
    """Exemplars of a data point with the place of the sample they belong to: of a histogram, its bucket."""
    kind = flags & 0xFF
    number = _EXEMPLAR_FIELDS.get(kind)
    found = []
    for field, content in fields(message):
        if field != number or not isinstance(content, bytes):
            continue
        known = dict(fields(content))
        bits = _fixed(known.get(3, 0))
        if 6 in known:
            bits = float_bits(float(_signed(_fixed(known[6]))))
        place = 0
        if kind == kernels.HISTOGRAM:
            bucket = next((i for i, bound in enumerate(bounds) if _float(bits) <= bound), len(bounds))
            place = 1 + bool(flags & kernels.FLAG_HAS_SUM) + bucket
        ids = [
            (name, value.hex().encode())
            for name, value in ((b"trace_id", known.get(5)), (b"span_id", known.get(4)))
            if isinstance(value, bytes) and value
        ]
        more = [(label_name(key).encode(), _encoded(value)) for key, value in attributes(content, 7)]
        labels = [*ids, *more]
        if _characters(labels) > LABEL_CHARS_MAX:
            labels = ids  # as Prometheus does: the ids are what an exemplar is for
        found.append((place, Exemplar(0, _fixed(known.get(2, 0)) // 1_000_000, bits, labels)))
    return found


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _characters(labels: Iterable[tuple[bytes, bytes]]) -> int:
    return sum(len(name.decode(errors="replace")) + len(value.decode(errors="replace")) for name, value in labels)
