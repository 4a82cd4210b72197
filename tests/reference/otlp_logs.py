"""OTLP logs requests in plain Python: what Loki makes of one, read by the official messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from ingest.logs.otlp import INDEX_ATTRIBUTES
from ingest.otlp_names import label_name, value_text

Entry = tuple[dict[str, str], int, str, list[tuple[str, str]], int]
"""Labels, time, line, structured metadata in order, level."""

LEVELS = [0, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 8, 8, 8, 8]


def plain(value: Any) -> Any:
    """An AnyValue as what Python has for it."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(one) for one in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: plain(pair.value) for pair in value.kvlist_value.values}
    return getattr(value, kind) if kind else None


def flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for inner, one in value.items():
            yield from flat(f"{key}_{inner}", one)
    else:
        yield label_name(key), value_text(value)


def attributes(pairs: Iterable[Any]) -> list[tuple[str, str]]:
    return [text for pair in pairs for text in flat(pair.key, plain(pair.value))]


def entries(request: ExportLogsServiceRequest, now_ns: int) -> list[Entry]:
    """All records in their order."""
    out = []
    for resource_logs in request.resource_logs:
        resource = resource_logs.resource
        labels = {}
        shared = []
        for pair in resource.attributes:
            value = plain(pair.value)
            if pair.key in INDEX_ATTRIBUTES and not isinstance(value, dict):
                labels[label_name(pair.key)] = value_text(value)
            else:
                shared += flat(pair.key, value)
        if resource.dropped_attributes_count:
            shared.append(("resource_dropped_attributes_count", str(resource.dropped_attributes_count)))
        for scope_logs in resource_logs.scope_logs:
            scope = scope_logs.scope
            named = [(k, v) for k, v in (("scope_name", scope.name), ("scope_version", scope.version)) if v]
            named += attributes(scope.attributes)
            if scope.dropped_attributes_count:
                named.append(("scope_dropped_attributes_count", str(scope.dropped_attributes_count)))
            out += [(labels, *entry(record, now_ns, shared + named)) for record in scope_logs.log_records]
    return out


def entry(record: Any, now_ns: int, shared: list[tuple[str, str]]) -> tuple[int, str, list[tuple[str, str]], int]:
    flats, maps = [], []  # members of maps come after the other attributes
    for pair in record.attributes:
        (maps if pair.value.WhichOneof("value") == "kvlist_value" else flats).extend(attributes([pair]))
    meta = shared + flats + maps
    time, observed = record.time_unix_nano, record.observed_time_unix_nano
    if time and observed:
        meta.append(("observed_timestamp", str(observed)))
    for name in ("severity_number", "dropped_attributes_count", "flags"):
        if getattr(record, name):
            meta.append((name, str(getattr(record, name))))
    for name in ("severity_text", "event_name"):
        if getattr(record, name):
            meta.append((name, getattr(record, name)))
    for name in ("trace_id", "span_id"):
        if any(getattr(record, name)):
            meta.append((name, getattr(record, name).hex()))
    line = value_text(plain(record.body))
    level = LEVELS[record.severity_number] if record.severity_number < len(LEVELS) else 0
    return time or observed or now_ns, line, meta, level
