"""The text exposition format 0.0.4 in plain Python: one expression a line."""

from __future__ import annotations

import re
import struct

LABEL = r"[ \t]*(?:[a-zA-Z_][a-zA-Z0-9_]*[ \t]*=[ \t]*{q}|{q}[ \t]*=[ \t]*{q}|{q})[ \t]*".format(q=r'"(?:[^"\\]|\\.)*"')
LINE = re.compile(
    r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*+)?+"
    rf"(?P<braces>[ \t]*\{{(?:{LABEL}(?:,{LABEL})*,?)?[ \t]*\}})?+"
    r"[ \t]*(?P<value>[^ \t]+)(?:[ \t]+(?P<time>-?[0-9]{1,18}))?[ \t]*"
)
PAIR = re.compile(r'(?:([a-zA-Z_][a-zA-Z0-9_]*)|"((?:[^"\\]|\\.)*)")[ \t]*(?:=[ \t]*"((?:[^"\\]|\\.)*)")?')
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def unescape(text: str) -> str:
    out = ""
    while text:
        two = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}.get(text[:2])
        out += two or text[0]
        text = text[2 if two else 1 :]
    return out


def number(text: str) -> int:
    if NUMBER.fullmatch(text):
        value = float(text)
        if abs(value) == float("inf"):
            raise ValueError(text)
    elif text.lower() in {"inf", "+inf", "-inf", "infinity", "+infinity", "-infinity"}:
        value = float(text)
    elif text.lower() == "nan":
        return 0x7FF8000000000001
    else:
        raise ValueError(text)
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


def labels(name: str | None, braces: str | None) -> dict[str, str]:
    pairs = [("__name__", name)] if name else []
    for match in PAIR.finditer((braces or "").strip(" \t")[1:-1]):
        bare, quoted, value = match.groups()
        if value is None:
            if bare is not None:
                raise ValueError("a label without a value")
            pairs.append(("__name__", unescape(quoted)))
        else:
            pairs.append((unescape(quoted) if bare is None else bare, unescape(value)))
    if len(dict(pairs)) < len(pairs) or "__name__" not in dict(pairs):
        raise ValueError("twice the same label, or no metric name")
    return dict(pairs)


def parse(text: bytes) -> list[tuple[dict[str, str], int, int | None]]:
    """(labels, float64 bits, time) of each sample in order; ``ValueError`` when the text is no exposition."""
    out = []
    for raw in text.split(b"\n"):
        raw = raw.lstrip(b" \t")
        if not raw or raw.startswith(b"#"):
            continue
        line = LINE.fullmatch(raw.decode())
        if line is None or (line["name"] is None and line["braces"] is None):
            raise ValueError(raw)
        series = labels(line["name"], line["braces"])
        out.append((series, number(line["value"]), int(line["time"]) if line["time"] else None))
    return out
