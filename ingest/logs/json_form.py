"""Log pushes in JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import orjson

from ingest.logs.labels import parse_labels
from ingest.logs.spans import Entry as SpanEntry
from ingest.logs.spans import Spans, spans_of
from tsdb.errors import Reason, RejectedError

Entry = tuple[int, str, Mapping[str, str]]
LabelPairs = list[tuple[str, str]]
_SECOND = 1_000_000_000


def read_json(body: bytes, *, legacy: bool) -> tuple[list[LabelPairs], Spans]:
    """Labels of each stream, and where the entries lie.

    Parameters
    ----------
    legacy : allow the shape of ``/api/prom/push`` besides

    Raises
    ------
    RejectedError        MALFORMED
    """
    try:
        streams = _streams(orjson.loads(body), legacy=legacy)
    except orjson.JSONDecodeError as error:
        raise RejectedError(Reason.MALFORMED, f"invalid JSON: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise RejectedError(Reason.MALFORMED, f"invalid push: {error}") from None
    return [labels for labels, _ in streams], spans_of(_flat([entries for _, entries in streams]))


def _streams(parsed: Any, *, legacy: bool) -> list[tuple[LabelPairs, list[Entry]]]:
    """(label pairs, entries) of each stream; ValueError and its like when the shape is wrong."""
    out = []
    for stream in parsed["streams"]:
        if legacy and "labels" in stream:
            pairs = parse_labels(stream["labels"])
            entries = [_legacy_entry(entry) for entry in stream.get("entries") or ()]
        else:
            pairs = list(stream["stream"].items())
            if not all(isinstance(value, str) for _, value in pairs):
                raise ValueError("label values must be strings")
            entries = [_entry(values) for values in stream.get("values") or ()]
        out.append((pairs, entries))
    return out


def _entry(values: Any) -> Entry:
    if not isinstance(values, list) or not 2 <= len(values) <= 3:
        raise ValueError("an entry is [timestamp, line] or [timestamp, line, metadata]")
    stamp, line = values[0], values[1]
    if not isinstance(stamp, str) or not isinstance(line, str):
        raise TypeError("timestamp and line must be strings")
    metadata = values[2] if len(values) == 3 else {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise TypeError("structured metadata must be an object of strings")
    return _int64(stamp), line, metadata


def _legacy_entry(entry: Any) -> Entry:
    stamp = datetime.fromisoformat(entry.get("ts") or entry["timestamp"])
    seconds = int(stamp.replace(microsecond=0).timestamp())
    return seconds * _SECOND + stamp.microsecond * 1000, str(entry["line"]), {}


def _int64(text: str) -> int:
    value = int(text)
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"timestamp {text} is out of range")
    return value


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _flat(streams: list[list[Entry]]) -> Iterator[SpanEntry]:
    for number, entries in enumerate(streams):
        for stamp, line, metadata in entries:
            yield number, stamp, _encode(line), [(_encode(name), _encode(value)) for name, value in metadata.items()]
