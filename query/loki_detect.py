"""What Grafana's Logs Drilldown asks of lines: their fields with types, and their patterns."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from query.engine.gofloat import parse_float
from query.kernels.log_fields import ESCAPED, json_fields, logfmt_fields
from query.logql.engine.batch import label_name
from query.logql.engine.columns import decode, unescape
from query.logql.engine.entries import StreamEntries
from query.logql.engine.parse_fields import Fields, find_fields
from query.logql.units import NS, parse_bytes, parse_go_duration_ns
from tsdb.logs.frame import Texts

_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_VARIABLE = re.compile(r"[^\s\"'=,;|(){}\[\]<>]*\d[^\s\"'=,;|(){}\[\]<>]*")
_BOOLEANS = frozenset(("1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"))


def type_of(text: str) -> str:
    """Type of a field by one of its values, tried in Loki's order."""
    if _INTEGER.fullmatch(text):
        return "int"
    if parse_float(text) is not None:
        return "float"
    if text in _BOOLEANS:
        return "boolean"
    if parse_go_duration_ns(text) is not None:
        return "duration"
    return "bytes" if parse_bytes(text) is not None else "string"


@dataclass(slots=True)
class Detected:
    """A field: its values, and which parsers find it."""

    values: dict[str, None] = field(default_factory=dict)
    parsers: dict[str, None] = field(default_factory=dict)
    json_path: tuple[str, ...] = ()

    def to_json(self, name: str) -> dict[str, Any]:
        """As Drilldown reads it."""
        made: dict[str, Any] = {
            "label": name,
            "type": type_of(next(iter(self.values), "")),
            "cardinality": len(self.values),
            "parsers": list(self.parsers) or None,
        }
        if self.json_path:
            made["jsonPath"] = list(self.json_path)
        return made


def detect_fields(streams: Iterable[StreamEntries]) -> dict[str, Detected]:
    """Fields of the lines and structured metadata, by name."""
    found: dict[str, Detected] = {}
    lines: list[bytes] = []
    labels: list[dict[str, str]] = []
    for stream in streams:
        for entry in stream.entries:
            lines.append(entry.line.encode())
            labels.append(stream.labels)
            for name, value in (entry.metadata | entry.parsed).items():
                found.setdefault(name, Detected()).values[value] = None
    if not lines:
        return found
    texts = Texts.of(lines)
    json = find_fields(texts, json_fields)
    _collect(found, json, texts, labels, "json", ~json.bad)
    logfmt = find_fields(texts, logfmt_fields)
    _collect(found, logfmt, texts, labels, "logfmt", json.bad & ~logfmt.bad)
    return found


def _collect(
    found: dict[str, Detected],
    fields: Fields,
    texts: Texts,
    labels: list[dict[str, str]],
    parser: str,
    good: np.ndarray[Any, np.dtype[np.bool_]],
) -> None:
    data = texts.data.tobytes()
    chosen = good[fields.rows] & (fields.ends > fields.starts)
    columns = (fields.rows, fields.names, fields.starts, fields.ends, fields.kinds)
    for row, number, start, end, kind in zip(*(column[chosen].tolist() for column in columns), strict=True):
        path = fields.paths[number]
        name = "_".join(map(label_name, path))
        if not name:
            continue
        if name in labels[row]:
            name = f"{name}_extracted"
        detected = found.setdefault(name, Detected())
        detected.values[unescape(data[start:end]) if kind == ESCAPED else decode(data[start:end])] = None
        detected.parsers[parser] = None
        if parser == "json":
            detected.json_path = path


def find_patterns(streams: Iterable[StreamEntries], step_ns: int) -> list[dict[str, Any]]:
    """Lines with their variable parts replaced, counted per step, the most frequent first."""
    counts: dict[tuple[str, str], dict[int, int]] = {}
    for stream in streams:
        for entry in stream.entries:
            level = entry.metadata.get("detected_level") or stream.labels.get("level", "")
            steps = counts.setdefault((_VARIABLE.sub("<_>", entry.line), level), {})
            at = entry.ts_ns // step_ns * step_ns // NS
            steps[at] = steps.get(at, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: -sum(item[1].values()))
    return [
        {"pattern": pattern, "level": level, "samples": [list(sample) for sample in sorted(steps.items())]}
        for (pattern, level), steps in ranked[:300]
    ]
