"""OpenMetrics 1.0 text in plain Python: the whole page as one regular expression a line."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from tests.reference.exposition import NUMBER, number, unescape

QUOTED = r'"(?:[^"\\\n]|\\.)*"'
LABEL = rf"(?:[a-zA-Z_][a-zA-Z0-9_]*|{QUOTED})={QUOTED}"
PART = rf"(?:{LABEL}|{QUOTED})"
SERIES = rf"[a-zA-Z_:][a-zA-Z0-9_:]*(?:\{{(?:{PART}(?:,{PART})*,?)?\}})?|\{{{PART}(?:,{PART})*,?\}}"
EXEMPLAR = rf"# \{{(?P<pairs>(?:{LABEL}(?:,{LABEL})*,?)?)\}} (?P<evalue>[^ \n]+)(?: (?P<etime>[^ \n]+))?"
SAMPLE = re.compile(rf"(?P<series>{SERIES}) (?P<value>[^ \n]+)(?: (?P<time>[^# \n][^ \n]*))?(?: {EXEMPLAR})?")
TYPES = "counter|gauge|histogram|gaugehistogram|summary|info|stateset|unknown"
FAMILY = rf"(?:[a-zA-Z_:][a-zA-Z0-9_:]*|{QUOTED})"
COMMENT = re.compile(rf"# (?:HELP {FAMILY} .*|TYPE {FAMILY} (?:{TYPES})|UNIT (?P<family>{FAMILY}) (?P<unit>.*))")
PAIR = re.compile(rf"([a-zA-Z_][a-zA-Z0-9_]*|{QUOTED})(?:=({QUOTED}))?")


class Sample(NamedTuple):
    labels: dict[str, str]
    bits: int
    ts_ms: int | None
    exemplar: tuple[dict[str, str], int, int | None] | None


def seconds(text: str) -> int:
    if not NUMBER.fullmatch(text):
        raise ValueError(text)
    number(text)
    ms = int(Fraction(text) * 1000)
    if abs(ms) >= 2**63:
        raise ValueError(text)
    return ms


def pairs(text: str) -> list[tuple[str, str]]:
    out = []
    for name, value in PAIR.findall(text):
        bare = unescape(name[1:-1]) if name.startswith('"') else name
        out.append((bare, unescape(value[1:-1])) if value else ("__name__", bare))
    return out


def sample(line: str) -> Sample:
    match = SAMPLE.fullmatch(line)
    if match is None:
        raise ValueError(line)
    name, _, inside = match["series"].partition("{")
    labels = ([("__name__", name)] if name else []) + pairs(inside[:-1])
    if len(dict(labels)) < len(labels) or "__name__" not in dict(labels):
        raise ValueError("twice the same label, or no metric name")
    exemplar = None
    if match["evalue"] is not None:
        time = None if match["etime"] is None else seconds(match["etime"])
        exemplar = (dict(pairs(match["pairs"])), number(match["evalue"]), time)
    return Sample(dict(labels), number(match["value"]), match["time"] and seconds(match["time"]), exemplar)


def parse(text: bytes) -> list[Sample]:
    """The samples of a page in order; ``ValueError`` when it is no OpenMetrics."""
    if text != b"# EOF" and not text.endswith((b"\n# EOF", b"\n# EOF\n")) and text != b"# EOF\n":
        raise ValueError("no end, or not at the end")
    out = []
    for line in text.decode().removesuffix("\n").split("\n")[:-1]:
        if not line.startswith("#"):
            out.append(sample(line))
            continue
        comment = COMMENT.fullmatch(line)
        if comment is None:
            raise ValueError(line)
        if comment["unit"]:
            family = comment["family"]
            if not (unescape(family[1:-1]) if family.startswith('"') else family).endswith("_" + comment["unit"]):
                raise ValueError(line)
    return out
