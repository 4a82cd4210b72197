"""Loki pushes in plain Python: an encoder of the protobuf, and the level of a line by regular expressions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import cramjam

ALIASES = {
    "trace": 2, "trc": 2, "debug": 3, "dbg": 3, "info": 4, "inf": 4, "information": 4, "warn": 5, "wrn": 5,
    "warning": 5, "error": 6, "err": 6, "critical": 7, "fatal": 8,
}  # fmt: skip
NAMES = (
    r"level|LEVEL|Level|log\.level|severity|SEVERITY|Severity|SeverityText|lvl|LVL|Lvl|severity_text|Severity_Text"
    "|SEVERITY_TEXT"
)
JSON_LEVEL = re.compile(rf'(?<![A-Za-z0-9_])"(?:{NAMES})"[\x00-\x20]*:[\x00-\x20]*"?([A-Za-z0-9_]*)')
LOGFMT_LEVEL = re.compile(rf'(?<![A-Za-z0-9_])(?:{NAMES})="?([A-Za-z0-9_]*)')
WORD = re.compile(r"[A-Za-z0-9_]+")

Entry = tuple[int, bytes, Mapping[str, str]]


def level(line: str) -> int:
    """Code of the level of a flat line."""
    pattern = JSON_LEVEL if line.startswith("{") else LOGFMT_LEVEL
    for match in pattern.finditer(line):
        if match[1].lower() in ALIASES:
            return ALIASES[match[1].lower()]
    return next((ALIASES[word.lower()] for word in WORD.findall(line) if word.lower() in ALIASES), 1)


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def push_request(streams: Sequence[tuple[str, Sequence[Entry]]]) -> bytes:
    """A PushRequest, not compressed."""
    out = b""
    for labels, entries in streams:
        stream = field(1, labels.encode())
        for ts_ns, line, metadata in entries:
            seconds, nanos = divmod(ts_ns, 10**9)
            time = b"\x08" + varint(seconds) + b"\x10" + varint(nanos)
            pairs = b"".join(field(3, field(1, k.encode()) + field(2, v.encode())) for k, v in metadata.items())
            stream += field(2, field(1, time) + field(2, line) + pairs)
        out += field(1, stream + b"\x18\x05")
    return out


def snappy(body: bytes) -> bytes:
    return bytes(cramjam.snappy.compress_raw(body))
