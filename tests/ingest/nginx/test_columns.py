"""Formats of access lines: the fast road and the slow one agree, lists stay whole, what is broken is named."""

from __future__ import annotations

import math

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.nginx.columns import COMBINED, ROLES, Columns, JsonFormat, TextFormat, parse_format
from ingest.nginx.derive import ACCESS_ROLES
from tsdb.logs.frame import Texts

ROLES_READ = (*ACCESS_ROLES, "time", "client", "country")


def read(lines: list[bytes], log_format: str = "json", **names: list[str]) -> Columns:
    return parse_format(log_format, names).read(Texts.of(lines), (*ROLES_READ, *names))


def texts(columns: Columns, role: str) -> list[str | None]:
    words = columns.words(role)
    assert words is not None
    return [None if code < 0 else words.texts[code] for code in words.codes.tolist()]


NUMBER = st.sampled_from([0, 7, 200, 502, 0.5, 12.345, 1e6, "-", "", "200", "0.020"])
ADDRESS = st.lists(st.sampled_from(["10.0.0.1:80", "[::1]:8080", "unix:/a.sock", "web"]), max_size=3).map(", ".join)
OBJECT = st.fixed_dictionaries(
    {},
    optional={
        "status": NUMBER, "body_bytes_sent": NUMBER, "request_time": NUMBER, "upstream_addr": ADDRESS,
        "upstream_status": st.sampled_from(["200", "502, 200", "-"]), "junk": st.sampled_from(["", "\n", "\""]),
        "remote_addr": st.sampled_from(["192.0.2.1", "é"]),
    },
)  # fmt: skip
LINE = st.one_of(
    OBJECT.map(orjson.dumps), st.sampled_from([b"", b"{", b"[1]", b"{}{}", b'{"status":200}\n', b"\xff", b"{}"])
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(LINE, max_size=12))
def test_json_whole_and_line_by_line_agree(lines: list[bytes]) -> None:
    batch = Texts.of(lines)
    whole, each = JsonFormat().read(batch, ROLES_READ), JsonFormat()._read_each(batch, ROLES_READ)
    assert whole.good.tolist() == each.good.tolist()
    for role in ROLES_READ:
        a, b = whole.numbers(role), each.numbers(role)
        nothing = np.full(len(lines), np.nan)
        assert np.array_equal(nothing if a is None else a, nothing if b is None else b, equal_nan=True), role
        if role.startswith("upstream_addr"):
            some = [c for c in (whole, each) if c.words(role) is not None]
            assert len({tuple(texts(c, role)) for c in some}) <= 1


def test_a_field_that_comes_later_is_seen() -> None:
    reader = JsonFormat()
    for text, wanted in ((b'{"status":200}', None), (b'{"status":200,"upstream_addr":"a:1"}', "a:1")):
        words = reader.read(Texts.of([text] * 9), ROLES_READ).words("upstream_addr")
        assert (words and words.texts) == (wanted and [wanted])
    assert reader.read(Texts.of([b'{"status":"200"}']), ROLES_READ).numbers("status").tolist() == [200.0]


def test_json_numbers_and_texts() -> None:
    found = read([b'{"status":200,"request_time":0.020}', b'{"status":502,"request_time":1.5,"upstream_status":"502"}'])
    assert found.numbers("status").tolist() == [200.0, 502.0]
    assert texts(found, "status") == ["200", "502"]
    quoted = read([b'{"status":"200","request_time":"0.020"}', b'{"status":"","request_time":"-"}'])
    assert quoted.numbers("status")[0] == 200.0
    assert math.isnan(quoted.numbers("request_time")[1])


def test_own_names() -> None:
    found = read([b'{"code":418,"h":"a"}'], status=["code"], site=["h"])
    assert (found.numbers("status").tolist(), texts(found, "site")) == ([418.0], ["a"])


def test_combined() -> None:
    lines = [
        b'192.0.2.1 - bob smith [02/Nov/2026:06:13:20 +0000] "GET /a b HTTP/1.1" 404 153 "-" "curl/8 (x; y)"',
        b'192.0.2.2 - - [02/Nov/2026:06:13:21 +0000] "\\x16\\x03" 400 0 "-" "-"',
    ]
    found = read(lines, "combined")
    assert found.good.all()
    assert found.numbers("status").tolist() == [404.0, 400.0]
    assert found.numbers("bytes").tolist() == [153.0, 0.0]
    assert texts(found, "client") == ["192.0.2.1", "192.0.2.2"]
    assert texts(found, "time")[0] == "02/Nov/2026:06:13:20 +0000"
    broken = read([*lines, b"what?"], "combined")
    assert broken.good.tolist() == [True, True, False]
    assert broken.numbers("status")[:2].tolist() == [404.0, 400.0]


def test_log_format_with_lists() -> None:
    log_format = "$host $status $upstream_addr $upstream_status ${request_time}s"
    lines = [b"a.example 200 10.0.0.1:80, 10.0.0.2:80 : 10.0.0.3:80 502, 502 : 200 0.100s", b"b.example 304 - - 0.000s"]
    found = read(lines, log_format, site=["host"])
    assert texts(found, "upstream_addr") == ["10.0.0.1:80, 10.0.0.2:80 : 10.0.0.3:80", "-"]
    assert texts(found, "upstream_status") == ["502, 502 : 200", "-"]
    assert texts(found, "site") == ["a.example", "b.example"]
    assert found.numbers("request_time").tolist() == [0.1, 0.0]


@pytest.mark.parametrize(("text", "why"), [("plain", r"\$variable"), ("$a$b", "nothing lies between")])
def test_formats_that_cannot_be_read(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        TextFormat(text)


def test_names() -> None:
    assert set(ACCESS_ROLES) < set(ROLES)
    assert "$request" in COMBINED


def test_fields_that_we_do_not_know() -> None:
    """Variables of modules and of the operator's own, in text and in JSON, are left alone."""
    text = read(
        [b'kw7 200 "TLSv1.3" 0.020 [MISS] 1.2.3.4', b'- 502 "-" 1.000 [-] -'],
        '$my_tenant $status "$ssl_protocol" $request_time [$upstream_cache_status] $http_x_real_ip',
    )
    assert (text.good.all(), text.numbers("status").tolist()) == (True, [200.0, 502.0])
    assert text.numbers("request_time").tolist() == [0.02, 1.0]
    lines = [b'{"status":200,"tenant":{"id":[1,2]},"x":null,"y":true}', b'{"status":502,"tenant":7,"z":1e300}']
    assert read(lines).numbers("status").tolist() == [200.0, 502.0]


@pytest.mark.parametrize(
    "request_line",
    ['GET /"quoted" HTTP/1.1', r"GET /\x22 HTTP/1.1", 'GET /?q="" HTTP/1.1', '" 404 7 "', "", "\\", "'"],
)
def test_combined_with_strange_quotes(request_line: str) -> None:
    """nginx writes a quote as ``\\x22``; ``escape=none`` and other servers do not."""
    agent = 'say "hi" \\" [x]'
    line = f'192.0.2.1 - - [02/Nov/2026:06:13:20 +0000] "{request_line}" 200 153 "-" "{agent}"'.encode()
    found = read([line, line], "combined")
    assert found.good.all()
    assert texts(TextFormat(COMBINED).read(Texts.of([line]), ("time",)), "time") == ["02/Nov/2026:06:13:20 +0000"]
    assert (texts(found, "client"), texts(found, "time")[0]) == (["192.0.2.1"] * 2, "02/Nov/2026:06:13:20 +0000")
    assert not read([line + b"x" * 3000 + b'"'], "combined").good.any(), "what costs too much is left"
    if request_line != '" 404 7 "':  # what a client writes to look like another answer
        assert found.numbers("status").tolist() == [200.0, 200.0]
