"""What of OpenMetrics 1.0 is seldom new: comments, and exemplars behind samples.

As Prometheus 3 reads it. Source: prometheus.io/docs/specs/om/open_metrics_spec.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ingest.page_text import parse_float, parse_seconds, unescape

TYPES = frozenset({"counter", "gauge", "histogram", "summary", "gaugehistogram", "info", "stateset", "unknown"})
"""Types of metric families."""

_COMMENT = re.compile(
    r"# (?P<kind>HELP|TYPE|UNIT) (?:(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)|\"(?P<quoted>(?:[^\"\\]|\\.)*)\") (?P<text>.*)"
)
_LABEL = re.compile(r"(?:([a-zA-Z_][a-zA-Z0-9_]*)|\"((?:[^\"\\]|\\.)*)\")=\"((?:[^\"\\]|\\.)*)\"(,|\})")
_EXEMPLAR = re.compile(r"(?P<value>[^ ]+)(?: (?P<time>[^ ]+))?")


class ExemplarText(NamedTuple):
    """An exemplar as a page spells it."""

    labels: list[tuple[str, str]]
    bits: int  # float64 bit pattern of the value
    ts_ms: int | None


def parse_exemplar(text: str) -> ExemplarText:
    """Read ``# {labels} value [seconds]``.

    Raises
    ------
    ValueError    it is something else
    """
    if not text.startswith("# {"):
        raise ValueError(f"expected an exemplar or the end of the line at {text[:40]!r}")
    pos = 3
    labels: list[tuple[str, str]] = []
    closed = text.startswith("}", pos)
    pos += closed
    while not closed:
        match = _LABEL.match(text, pos)
        if match is None:
            raise ValueError(f"labels of an exemplar cannot be read from {text[pos : pos + 40]!r}")
        name, quoted, value, end = match.groups()
        labels.append((unescape(quoted) if name is None else name, unescape(value)))
        pos = match.end()
        closed = end == "}"
        if not closed and text.startswith("}", pos):  # a comma may be the last
            closed = True
            pos += 1
    rest = _EXEMPLAR.fullmatch(text, pos + 1)
    if rest is None or text[pos] != " ":
        raise ValueError(f"expected the value of an exemplar at {text[pos : pos + 40]!r}")
    time = rest["time"]
    return ExemplarText(labels, parse_float(rest["value"]), None if time is None else parse_seconds(time))


def parse_comments(page: bytes) -> Iterator[tuple[str, str, str]]:
    """(HELP, TYPE or UNIT; family; text) of each comment of a page, ``# EOF`` left out.

    Raises
    ------
    ValueError    a comment that OpenMetrics does not know; the message begins with its line
    """
    for number, raw in enumerate(page.split(b"\n"), 1):
        if not raw.startswith(b"#") or raw == b"# EOF":
            continue
        try:
            line = raw.decode()
        except UnicodeDecodeError:
            raise ValueError(f"line {number}: the comment is not valid UTF-8") from None
        match = _COMMENT.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number}: expected HELP, TYPE, UNIT or EOF and a metric name at {line[:40]!r}")
        kind, rest = match["kind"], match["text"]
        family = unescape(match["quoted"]) if match["name"] is None else match["name"]
        if kind == "TYPE" and rest not in TYPES:
            raise ValueError(f"line {number}: invalid metric type {rest[:40]!r}")
        if kind == "UNIT" and rest and not family.endswith(f"_{rest}"):
            raise ValueError(f"line {number}: unit {rest[:40]!r} not a suffix of metric {family[:200]!r}")
        yield kind, family, unescape(rest) if kind == "HELP" else rest
