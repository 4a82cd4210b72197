"""OTLP metrics in plain Python over the official message classes: what the receiver must make of a request."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tsdb.batch import STALE_BITS

Pairs = tuple[tuple[str, str], ...]
Row = tuple[Pairs, int, int]  # labels, milliseconds, bits

UNITS = {"s": "seconds", "ms": "milliseconds", "By": "bytes", "1": "", "%": "percent"}


def bits(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


def text_of(value) -> str:
    kind = value.WhichOneof("value")
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    return "" if kind is None else str(getattr(value, kind))


def escape(text: str, extra: str = "") -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_" + extra) else "_" for c in text)


def labels_of(attributes) -> dict[str, str]:
    out: dict[str, str] = {}
    for one in sorted(attributes, key=lambda a: (a.key, text_of(a.value))):
        name = escape(one.key)
        if name[:1].isdigit():
            name = "key_" + name
        elif name.startswith("_") and not name.startswith("__"):
            name = "key" + name
        out[name] = f"{out[name]};{text_of(one.value)}" if name in out else text_of(one.value)
    return out


def family(metric) -> str:
    words = [word for word in escape(metric.name, ":").split("_") if word]
    unit = UNITS[metric.unit.split("/")[0]] if metric.unit else ""
    if unit and unit not in words:
        words.append(unit)
    if metric.unit.endswith("/s") and "per_second" not in words:
        words.append("per_second")
    if metric.WhichOneof("data") == "sum" and metric.sum.is_monotonic:
        words = [word for word in words if word != "total"] + ["total"]
    if metric.WhichOneof("data") == "gauge" and metric.unit == "1":
        words = [word for word in words if word != "ratio"] + ["ratio"]
    name = "_".join(words)
    return "_" + name if name[:1].isdigit() else name


def le(bound: float) -> str:
    return np.format_float_positional(bound, trim="-")


def identity(resource) -> dict[str, str]:
    known = {a.key: text_of(a.value) for a in resource.attributes}
    out = {}
    if "service.name" in known:
        space = known.get("service.namespace")
        out["job"] = known["service.name"] if space is None else f"{space}/{known['service.name']}"
    if "service.instance.id" in known:
        out["instance"] = known["service.instance.id"]
    return out


def points_of(metric, own: dict[str, str]) -> Iterator[tuple[dict[str, str], int, float | int]]:
    name = family(metric)
    kind = metric.WhichOneof("data")
    for point in getattr(metric, kind).data_points if kind else ():
        base = {**labels_of(point.attributes), **own}
        ms = point.time_unix_nano // 1_000_000
        stale = point.flags & 1
        rows: list[tuple[str, dict[str, str], float]] = []
        if kind in ("gauge", "sum"):
            value = point.as_int if point.WhichOneof("value") == "as_int" else point.as_double
            rows.append(("", {}, value))
        else:
            rows.append(("_count", {}, point.count))
            if kind == "summary" or point.HasField("sum"):
                rows.append(("_sum", {}, point.sum))
            if kind == "histogram":
                total = 0
                for bound, count in zip(point.explicit_bounds, point.bucket_counts, strict=False):
                    total += count
                    rows.append(("_bucket", {"le": le(bound)}, total))
                rows.append(("_bucket", {"le": "+Inf"}, point.count))
            else:
                rows += [("", {"quantile": le(q.quantile)}, q.value) for q in point.quantile_values]
        for suffix, extra, value in rows:
            yield {**base, **extra, "__name__": name + suffix}, ms, STALE_BITS if stale else bits(float(value))


def refused(metric) -> bool:
    kind = metric.WhichOneof("data")
    return kind == "exponential_histogram" or (
        kind in ("sum", "histogram") and getattr(metric, kind).aggregation_temporality != 2
    )


def parse(body: bytes) -> list[Row]:
    """All samples of a request that are not refused by kind, ``target_info`` included."""
    request = ExportMetricsServiceRequest.FromString(body)
    rows: list[tuple[dict[str, str], int, int]] = []
    for group in request.resource_metrics:
        own = identity(group.resource)
        newest = None
        for scope in group.scope_metrics:
            for metric in scope.metrics:
                if refused(metric):
                    continue
                for labels, ms, value in points_of(metric, own):
                    rows.append((labels, ms, value))
                    newest = ms if newest is None else max(newest, ms)
        taken = ("service.name", "service.namespace", "service.instance.id")
        others = [a for a in group.resource.attributes if a.key not in taken]
        if newest is not None and others and own:
            rows.append(({**labels_of(others), **own, "__name__": "target_info"}, newest, bits(1.0)))
    return [(tuple(sorted((n, v) for n, v in labels.items() if v)), ms, value) for labels, ms, value in rows]


def accumulate(rows: list[tuple[int, int, bool, float]]) -> tuple[list[float], list[int]]:
    """(series, milliseconds, whether it is a delta, value) rows as totals, and 0 for those that are refused."""
    totals: dict[int, float] = {}
    newest: dict[int, tuple[int, float]] = {}
    out, keep = [], []
    for series, ms, delta, value in rows:
        known = newest.get(series)
        first = known is None or known[0] == 0
        good = not delta or first or ms > known[0] or (ms, value) == known
        if delta and good and (first or (ms, value) != known):
            newest[series] = ms, value
            totals[series] = totals.get(series, 0.0) + value
        out.append(totals[series] if delta and good else value)
        keep.append(int(good))
    return out, keep
