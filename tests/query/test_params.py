"""Parameters of read requests: every spelling that clients use, and the words of every refusal."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from query.errors import BadDataError
from query.params import (
    MAX_TIME_MS,
    MIN_TIME_MS,
    ParamError,
    Params,
    limit_param,
    number_param,
    parse_step,
    parse_time,
    path_label_name,
    required_time_param,
    step_param,
    time_param,
    unescape_name,
)

FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("4", 4000),
        ("1795415471.095", 1795415471095),
        ("1e3", 1_000_000),
        ("-1.5", -1500),
        (".5", 500),
        ("+2.", 2000),
        ("0.0005", 1),
        ("-0.0005", -1),
        ("1970-01-01T00:00:01Z", 1000),
        ("1970-01-01T01:00:01.25+01:00", 1250),
        ("1969-12-31T23:30:00.123456789-00:30", 123),
        ("2026-11-23T07:26:31.9996Z", 1795418792000),
        ("-9223309901257974", MIN_TIME_MS),
        ("-292273086-05-16T16:47:06Z", MIN_TIME_MS),
        ("292277025-08-18T07:12:54.999999999Z", MAX_TIME_MS),
        ("1600096945000", 1600096945000000),
    ],
)
def test_times(text: str, ms: int) -> None:
    assert parse_time(text) == ms


@pytest.mark.parametrize(
    "text",
    ["", "abc", "NaN", "Inf", "-inf", "1_000", " 1", "1e999", "1e17", "2026-13-01T00:00:00Z", "2026-01-01 00:00:00Z",
     "2026-01-01T00:00:00", "2026-01-01T24:00:00Z", "0x10", "1h"],
)  # fmt: skip
def test_no_times(text: str) -> None:
    with pytest.raises(ValueError, match=r"^cannot parse .* to a valid timestamp$"):
        parse_time(text)


def test_extremes_fit_in_int64_with_room() -> None:
    for ms in (MIN_TIME_MS, MAX_TIME_MS):
        assert abs(ms) + 10 * 365 * 86_400_000 < 1 << 63


@pytest.mark.parametrize(
    ("text", "ms"),
    [("15", 15000), ("0.5", 500), ("1h30m", 5_400_000), ("500ms", 500), ("1.001", 1001), ("-5", -5000), ("0", 0),
     ("1e2", 100_000), ("1y", 31_536_000_000)],
)  # fmt: skip
def test_durations(text: str, ms: int) -> None:
    assert parse_step(text) == ms


@pytest.mark.parametrize("text", ["", "abc", "1ns", "1m1h", "NaN", "1h 5m", "-1h"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match=r"^cannot parse .* to a valid duration$"):
        parse_step(text)


def test_a_duration_may_overflow() -> None:
    with pytest.raises(ValueError, match=r'^cannot parse "1e10" to a valid duration. It overflows int64$'):
        parse_step("1e10")


def test_words_of_the_errors() -> None:
    params = Params([("time", "abc"), ("start", "x"), ("step", ""), ("limit", "-1")])
    with pytest.raises(ParamError) as error:
        time_param(params, "time", 0)
    assert str(error.value) == (
        'invalid parameter "time": Invalid time value for \'time\': cannot parse "abc" to a valid timestamp'
    )
    with pytest.raises(ParamError) as error:
        required_time_param(params, "start")
    assert str(error.value) == 'invalid parameter "start": cannot parse "x" to a valid timestamp'
    with pytest.raises(ParamError) as error:
        step_param(params, "step")
    assert str(error.value) == 'invalid parameter "step": cannot parse "" to a valid duration'
    with pytest.raises(ParamError) as error:
        limit_param(params)
    assert str(error.value) == 'invalid parameter "limit": limit must be non-negative'
    with pytest.raises(ParamError) as error:
        limit_param(Params([("limit", "ten")]))
    assert str(error.value) == 'invalid parameter "limit": strconv.Atoi: parsing "ten": invalid syntax'
    with pytest.raises(BadDataError, match=r"^limit must be a number$"):
        number_param(Params([("limit", "x")]), "limit")


def test_absent_and_empty_mean_the_same() -> None:
    for params in (Params([]), Params([("time", ""), ("limit", "")])):
        assert time_param(params, "time", 7) == 7
        assert limit_param(params) == 0
        assert number_param(params, "limit") == -1


def test_form_wins_over_url_and_repeats_are_kept_form_first() -> None:
    params = Params.read(b"query=url&match[]=c&time=5", FORM, b"query=form&match%5B%5D=a&match[]=b")
    assert params.get("query") == "form"
    assert params.get("time") == "5"
    assert params.all("match[]") == ["a", "b", "c"]


def test_form_with_charset_and_plus() -> None:
    params = Params.read(b"", f"{FORM}; charset=UTF-8", b"query=a+%2B+b&x=")
    assert params.get("query") == "a + b"
    assert params.get("x") == ""


def test_body_that_is_no_form_is_ignored() -> None:
    params = Params.read(b"query=1", "application/json", b'{"query":"2"}')
    assert params.get("query") == "1"


def test_multipart_form() -> None:
    body = b'--XX\r\nContent-Disposition: form-data; name="query"\r\n\r\nsum(up)\r\n--XX--\r\n'
    assert Params.read(b"", "multipart/form-data; boundary=XX", body).get("query") == "sum(up)"


def test_bytes_that_are_no_utf8_stay_visible() -> None:
    assert Params.read(b"query=%ff").get("query") == "\udcff"


@pytest.mark.parametrize(
    ("escaped", "name"),
    [
        ("job", "job"),
        ("U__a_2e_b", "a.b"),
        ("U__x__y_20_z", "x_y z"),
        ("U___1F600_", "\U0001f600"),
        ("U___FFFD_", "\ufffd"),
        ("U___10ffff_", "\U0010ffff"),
        ("U__a_zz_b", "U__a_zz_b"),
        ("U__a_", "U__a_"),
        ("U__a_2e", "U__a_2e"),
        ("U___d800_", "U___d800_"),
        ("U___110000_", "U___110000_"),
        ("U___1234567_", "U___1234567_"),
        ("U__", ""),
    ],
)
def test_escaped_names(escaped: str, name: str) -> None:
    assert unescape_name(escaped) == name


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_every_name_survives_the_escaping(name: str) -> None:
    def escape(char: str) -> str:
        if char == "_":
            return "__"
        return char if char.isascii() and (char.isalnum() or char == ":") else f"_{ord(char):x}_"

    assert unescape_name("U__" + "".join(map(escape, name))) == name


def test_label_name_of_a_path() -> None:
    def name_of(path: bytes) -> str:
        return path_label_name(path, "/api/v1/label/", "/values")

    assert name_of(b"/api/v1/label/job/values") == "job"
    assert name_of(b"/api/v1/label/a%2Fb/values") == "a/b"
    assert name_of(b"/api/v1/label/%C3%A9/values") == "é"
    with pytest.raises(BadDataError, match=r'^invalid label name: ""$'):
        name_of(b"/api/v1/label//values")
    with pytest.raises(BadDataError, match=r'^invalid label name: "\\xff"$'):
        name_of(b"/api/v1/label/%FF/values")


@given(
    st.binary(max_size=40).map(lambda b: b.replace(b"\x00", b"&")) | st.text("ab=&+%4f;", max_size=30).map(str.encode)
)
def test_pairs_are_those_of_the_standard_library(query: bytes) -> None:
    expected: dict[str, list[str]] = {}
    text = query.decode("utf-8", "surrogateescape")
    for name, value in parse_qsl(text, keep_blank_values=True, errors="surrogateescape"):
        expected.setdefault(name, []).append(value)
    params = Params.read(query)
    assert {name: params.all(name) for name in expected} == expected
    assert not params.all("never in it")
