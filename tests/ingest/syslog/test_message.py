"""Messages as programs write them, and whatever else a packet may hold."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.syslog.message import Message, parse, read_time

SECOND = 1_000_000_000


def at(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp()) * SECOND  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (  # RFC 5424, section 6.5, example 1
            b"<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \xef\xbb\xbf'su root' failed",
            Message(34, at(2003, 10, 11, 22, 14, 15) + 3_000_000, 1_000_000, b"mymachine.example.com", b"su", b"",
                    b"ID47", (), b"'su root' failed"),
        ),
        (  # example 2
            b"<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time.",
            Message(165, at(2003, 8, 24, 12, 14, 15) + 3000, 1000, b"192.0.2.1", b"myproc", b"8710", b"", (),
                    b"%% It's time."),
        ),
        (  # example 4: structured data only
            b'<165>1 2003-10-11T22:14:15Z - evntslog - ID47 [exampleSDID@32473 iut="3" eventID="1\\"0\\]\\\\1"]'
            b'[examplePriority@32473 class="high"][empty]',
            Message(165, at(2003, 10, 11, 22, 14, 15), SECOND, b"", b"evntslog", b"", b"ID47",
                    [(b"exampleSDID@32473.iut", b"3"), (b"exampleSDID@32473.eventID", b'1"0]\\1'),
                     (b"examplePriority@32473.class", b"high"), (b"empty", b"")], b""),
        ),
        (b"<13>1 - - - - - -", Message(13, 0, 0, b"", b"", b"", b"", (), b"")),
        (  # nginx: access_log syslog:
            b'<190>Nov 26 01:02:03 web-1 nginx: {"status":200}\n',
            Message(190, 0, 0, b"web-1", b"nginx", b"", b"", (), b'{"status":200}'),
        ),
        (  # ... with nohostname
            b"<190>Nov  6 01:02:03 nginx_access: a: b",
            Message(190, 0, 0, b"", b"nginx_access", b"", b"", (), b"a: b"),
        ),
        (  # RFC 3164, section 5.4, example 1
            b"<34>Oct 11 22:14:15 mymachine su[12]: 'su root' failed for lonvick on /dev/pts/8",
            Message(34, 0, 0, b"mymachine", b"su", b"12", b"", (), b"'su root' failed for lonvick on /dev/pts/8"),
        ),
        (  # an address as host, which has colons
            b"<34>Oct 11 22:14:15 2001:db8::1 su: x", Message(34, 0, 0, b"2001:db8::1", b"su", b"", b"", (), b"x"),
        ),
        (  # rsyslog and syslog-ng with ISO times in the old form
            b"<13>2026-11-26T01:02:03.123456+01:00 h app[7]: x",
            Message(13, at(2026, 11, 26, 0, 2, 3) + 123_456_000, 1000, b"h", b"app", b"7", b"", (), b"x"),
        ),
        (b"<14>hello world\0", Message(14, 0, 0, b"", b"", b"", b"", (), b"hello world")),  # Python's SysLogHandler
        (b"<14>shop: paid", Message(14, 0, 0, b"", b"shop", b"", b"", (), b"paid")),
        (b"Use the BFG!", Message(-1, 0, 0, b"", b"", b"", b"", (), b"Use the BFG!")),  # section 4.3.3
        (b"<192>x", Message(-1, 0, 0, b"", b"", b"", b"", (), b"<192>x")),
        (b"<13>1 2026-11-26T01:02:03Z h a - - [broken x", Message(
            13, 0, 0, b"", b"", b"", b"", (), b"1 2026-11-26T01:02:03Z h a - - [broken x")),
        (b"", Message(-1, 0, 0, b"", b"", b"", b"", (), b"")),
    ],
)  # fmt: skip
def test_messages(raw: bytes, expected: Message) -> None:
    assert parse(raw) == expected


@pytest.mark.parametrize("text", [b"yesterday", b"2026-11-26T01:02:03", b"2026-11-26", b"2026-13-26T01:02:03Z", b""])
def test_what_is_no_time(text: bytes) -> None:
    assert read_time(text) == (0, 0)


printed = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1)
names = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters='="]'), min_size=1, max_size=32)


def header_field(most: int) -> st.SearchStrategy[str]:
    return printed.map(lambda text: text[:most]).filter(lambda text: text != "-") | st.just("")


@given(
    st.integers(0, 191),
    header_field(255),
    header_field(48),
    header_field(128),
    header_field(32),
    st.lists(st.tuples(names, st.lists(st.tuples(names, st.text()), max_size=3)), max_size=3),
    st.text(),
)
def test_what_rfc_5424_writes_is_read_back(
    priority: int,
    host: str,
    app: str,
    process: str,
    kind: str,
    data: list[tuple[str, list[tuple[str, str]]]],
    text: str,
) -> None:
    """The twin writes what the parser reads."""

    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")

    elements = "".join(f"[{id_}" + "".join(f' {n}="{escaped(v)}"' for n, v in ps) + "]" for id_, ps in data) or "-"
    parts = [part or "-" for part in (host, app, process, kind)]
    raw = f"<{priority}>1 2026-11-26T01:02:03.25Z {' '.join(parts)} {elements} {text}".encode()
    found = parse(raw)
    pairs = [(f"{id_}.{name}", value) for id_, parameters in data for name, value in parameters]
    pairs += [(id_, "") for id_, parameters in data if not parameters]
    assert found.priority == priority
    assert (found.host, found.app, found.process, found.kind) == tuple(p.encode() for p in (host, app, process, kind))
    assert sorted((name.decode(), value.decode()) for name, value in found.data) == sorted(pairs)
    assert found.text == text.encode().rstrip(b"\0\r\n").removeprefix(b"\xef\xbb\xbf")
    assert (found.ts_ns, found.unit_ns) == (at(2026, 11, 26, 1, 2, 3) + SECOND // 4, SECOND // 100)


@given(st.binary() | st.binary().map(lambda b: b"<13>" + b) | st.binary().map(lambda b: b"<13>1 - " + b))
def test_no_packet_is_refused_or_loses_text(raw: bytes) -> None:
    found = parse(raw)
    assert -1 <= found.priority <= 191
    if not found.data and not found.host and not found.app and not found.ts_ns:
        assert raw.rstrip(b"\0\r\n").endswith(found.text)


def test_a_hostile_header_takes_no_time_but_its_length() -> None:
    """Nothing of the pattern is ambiguous: 60 kB that nearly match are over at once (else this never ends)."""
    parse(b"<13>1 - - - - - " + b'[a b="' * 10_000)
    parse(b"<13>1 - - - - - [a" + b' b="\\]"' * 8_000)
    parse(b"<13>" + b"a" * 60_000)
