"""One syslog message: RFC 5424, or RFC 3164 as programs write it.

Nothing is refused for its form. What is no RFC 5424 is read as RFC 3164, whose section 4.3 takes any packet: what
cannot be told apart belongs to the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
)  # fmt: skip
"""RFC 5424, table 1, by the words of syslog.conf; 13 and 14 have none there."""

SEVERITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
"""RFC 5424, table 2."""

USER_NOTICE = 13
"""The priority of a packet without one (RFC 3164, section 4.3.3)."""

PRIORITY_MAX = 191


Pairs = Sequence[tuple[bytes, bytes]]

_PRIORITY = re.compile(rb"<([0-9]{1,3})>")
_HEADER = re.compile(
    rb"1 (\S{1,48}) (\S{1,255}) (\S{1,48}) (\S{1,128}) (\S{1,32}) "
    rb'(?:-|((?:\[[^ =\]"]{1,64}(?: [^ =\]"]{1,64}="(?:[^"\\\]]|\\.)*")*\])+))(?: |$)',
    re.DOTALL,
)
_ELEMENT = re.compile(rb'\[([^ =\]"]+)((?: [^ =\]"]+="(?:[^"\\\]]|\\.)*")*)\]', re.DOTALL)
_PARAMETER = re.compile(rb' ([^ =\]"]+)="((?:[^"\\\]]|\\.)*)"', re.DOTALL)
_ESCAPED = re.compile(rb'\\(["\\\]])')
_STAMP = re.compile(
    rb"(?:(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ 0-9][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?"
    rb"|([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:Z|[+-][0-9]{2}:[0-9]{2}))) "
)
_TAG = re.compile(rb"([A-Za-z0-9_./@-]{1,48})(?:\[([^\]\s]{1,128})\])?:(?: |\Z)")
_HOST = re.compile(rb"([^\s:\[\]]{1,255}|[0-9A-Fa-f:.]{2,45}) ")
_END = b"\0\r\n"
_BOM = b"\xef\xbb\xbf"
_NIL = b"-"


class Message(NamedTuple):
    """One message, its parts as they were sent; "" = not said.

    Attributes
    ----------
    priority : 8 * facility + severity, 0 to 191; -1 = none was sent, which counts as ``USER_NOTICE``
    ts_ns : what it says of itself; 0 = nothing, or a time without year and zone
    unit_ns : below which that says nothing
    data : structured data, ``(id.name, value)``
    text : the line
    """

    priority: int
    ts_ns: int
    unit_ns: int
    host: bytes
    app: bytes
    process: bytes
    kind: bytes
    data: Pairs
    text: bytes


def parse(raw: bytes) -> Message:
    """Read one message, without what framed it."""
    raw = raw.rstrip(_END)
    found = _PRIORITY.match(raw)
    if found is None or (priority := int(found[1])) > PRIORITY_MAX:
        return Message(-1, 0, 0, b"", b"", b"", b"", (), raw)
    header = _HEADER.match(raw, found.end())
    if header is None:
        return _old(raw, found.end(), priority)
    stamp, host, app, process, kind, data = header.groups()
    ts_ns, unit_ns = (0, 0) if stamp == _NIL else read_time(stamp)
    if stamp != _NIL and not ts_ns:
        return _old(raw, found.end(), priority)
    text = raw[header.end() :].removeprefix(_BOM)
    host, app, process, kind = (b"" if part == _NIL else part for part in (host, app, process, kind))
    return Message(priority, ts_ns, unit_ns, host, app, process, kind, _structured(data) if data else (), text)


def read_time(stamp: bytes) -> tuple[int, int]:
    """(nanoseconds, unit) of RFC 3339; (0, 0) = it is none."""
    text = stamp.decode("ascii", "replace")
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return 0, 0
    if when.tzinfo is None or "T" not in text:
        return 0, 0
    seconds = int(when.replace(microsecond=0).timestamp())
    dot = text.find(".")
    if dot < 0:
        return seconds * 1_000_000_000, 1_000_000_000
    digits = re.match(r"[0-9]{1,9}", text[dot + 1 :])
    if digits is None:
        return 0, 0
    unit = 10 ** (9 - len(digits[0]))
    return seconds * 1_000_000_000 + int(digits[0]) * unit, unit


def _old(raw: bytes, at: int, priority: int) -> Message:
    """RFC 3164: time and host, or neither, then perhaps a tag."""
    ts_ns = unit_ns = 0
    host = app = process = b""
    stamp = _STAMP.match(raw, at)
    if stamp is not None:
        at = stamp.end()
        if stamp[1]:
            ts_ns, unit_ns = read_time(stamp[1])
        named = _HOST.match(raw, at)
        # without a host (nginx' ``nohostname``) a tag comes next; a host that looks like one would end in a colon
        if named is not None and _TAG.match(raw, at) is None:
            host = named[1]
            at = named.end()
    tag = _TAG.match(raw, at)
    if tag is not None:
        app, process = tag[1], tag[2] or b""
        at = tag.end()
    return Message(priority, ts_ns, unit_ns, host, app, process, b"", (), raw[at:].removeprefix(_BOM))


def _structured(data: bytes) -> Pairs:
    out: list[tuple[bytes, bytes]] = []
    for element in _ELEMENT.finditer(data):
        parameters = _PARAMETER.findall(element[2])
        if not parameters:
            out.append((element[1], b""))
        for name, value in parameters:
            plain = _ESCAPED.sub(rb"\1", value) if b"\\" in value else value
            out.append((element[1] + b"." + name, plain))
    return out
