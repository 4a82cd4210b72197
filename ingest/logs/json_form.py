"""Log pushes in JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import numpy as np
import orjson

from ingest.logs.labels import parse_labels
from ingest.logs.spans import LEAD_BYTES, Spans
from tsdb.errors import Reason, RejectedError
from tsdb.logs.frame import PAD_BYTES

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
    return [labels for labels, _ in streams], _spans_of([entries for _, entries in streams])


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


def _spans_of(streams: list[list[Entry]]) -> Spans:
    texts: list[bytes] = [bytes(LEAD_BYTES)]
    entry_streams: list[int] = []
    stamps: list[int] = []
    places: list[int] = []
    first_pairs = [0]
    pairs: list[int] = []  # numbers of texts
    encode: Callable[[str], bytes] = lambda text: text.encode("utf-8", "replace")  # noqa: E731
    for number, entries in enumerate(streams):
        for stamp, line, metadata in entries:
            entry_streams.append(number)
            stamps.append(stamp)
            places.append(len(texts))
            texts.append(encode(line))
            for name, value in metadata.items():
                pairs += [len(texts), len(texts) + 1]
                texts += [encode(name), encode(value)]
            first_pairs.append(len(pairs) // 2)
    ends = np.cumsum([len(text) for text in texts])
    starts = np.concatenate([[0], ends[:-1]])
    lines = np.array(places, np.int64)
    named = np.array(pairs, np.int64).reshape(-1, 2)
    bounds = np.stack([starts[named[:, 0]], ends[named[:, 0]], starts[named[:, 1]], ends[named[:, 1]]], axis=1)
    return Spans(
        np.frombuffer(b"".join(texts) + bytes(PAD_BYTES), np.uint8),
        np.array(entry_streams, np.int32),
        np.array(stamps, np.int64),
        starts[lines],
        (ends - starts)[lines],
        np.array(first_pairs, np.int64),
        np.ascontiguousarray(bounds, np.int64),
    )
