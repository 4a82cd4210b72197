"""Text expositions: the parser against its plain twin, real captures, numbers to the last bit."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.exposition import PAD, Exposition, ExpositionError, ExpositionParser, PageLimitError, PageOptions
from ingest.page_text import normal_bound, parse_float
from ingest.relabel import RelabelConfig, compile_rules
from ingest.store import Metadata
from tests.reference import exposition as reference
from tests.shared import shared_path
from tsdb.errors import Reason
from tsdb.index.registry import SeriesRegistry
from tsdb.limits import SeriesLimits

NOW = 1_795_000_000_000
Rows = list[tuple[dict[str, str], int, int]]


class Target:
    def __init__(self, labels: Mapping[str, str] | None = None, **options: Any) -> None:
        self.registry = SeriesRegistry(SeriesLimits())
        self.parser = ExpositionParser(self.registry, labels or {}, PageOptions(**options))

    def scrape(self, text: str | bytes, now: int = NOW) -> Exposition:
        return self.parser.parse((text.encode() if isinstance(text, str) else text) + PAD, now)

    def rows(self, text: str | bytes, now: int = NOW) -> Rows:
        seen = self.scrape(text, now)
        table = self.registry.label_table(seen.refs)
        return [(table.labels(i), int(seen.bits[i]), int(seen.ts_ms[i])) for i in range(len(seen.refs))]


def bits_of(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


def expected(text: bytes) -> Rows | None:
    try:
        rows = reference.parse(text)
    except ValueError:
        return None
    return [
        ({k: v for k, v in labels.items() if v}, bits, NOW if time is None else time)
        for labels, bits, time in rows
        if labels["__name__"] and all(labels)
    ]


def check(target: Target, text: bytes) -> None:
    try:
        seen: Rows | None = target.rows(text)
    except ExpositionError:
        seen = None
    assert seen == expected(text)


blanks = st.sampled_from(["", "", "", " ", "\t", "  "])
names = st.sampled_from(["up", "up_total", "a:b", "_", "up", "x1"])
values = st.sampled_from(["", "v", "grüße", 'say \\"hi\\"', "back\\\\slash", "new\\nline", "{}", "a,b=c", "\\x", " "])
quoted_names = st.sampled_from(['"metric.name"', '"über all"', '"a\\"b"'])
numbers = st.one_of(
    st.floats(allow_nan=True).map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.sampled_from(["NaN", "+Inf", "-Inf", "Inf", "inf", "nan", "1e3", "1E-3", ".5", "5.", "-0", "1e-400", "1e999"]),
    st.sampled_from(["0x1p3", "1_0", "-nan", "١"]),
)


@st.composite
def series_texts(draw: st.DrawFn) -> str:
    def label() -> str:
        name = draw(st.sampled_from(["job", "le", "b"]) | quoted_names)
        return f'{draw(blanks)}{name}{draw(blanks)}={draw(blanks)}"{draw(values)}"{draw(blanks)}'

    labels = [label() for _ in range(draw(st.integers(0, 3)))]
    name = draw(names)
    if draw(st.integers(0, 5)) == 0:
        labels.insert(draw(st.integers(0, len(labels))), draw(quoted_names))
        name = ""
    if not labels and draw(st.booleans()):
        return name
    return f"{name}{draw(blanks)}{{{','.join(labels)}{draw(st.sampled_from(['', ',']))}}}"


@st.composite
def lines(draw: st.DrawFn) -> str:
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.sampled_from(["", " ", "# EOF", "# HELP up Is it up?", "# TYPE up gauge", "#", "# a {"]))
    gap = draw(st.sampled_from([" ", " ", " ", "\t", "  ", ""]))
    time = draw(st.sampled_from(["", "", "", " 1795000000123", " -5", " 0", " x"]))
    return f"{draw(blanks)}{draw(series_texts())}{gap}{draw(numbers)}{time}{draw(blanks)}"


texts = st.lists(lines(), max_size=10).map(lambda rows: "\n".join(rows).encode())


@pytest.mark.kernel
@settings(max_examples=250, deadline=None)
@given(st.lists(texts, min_size=1, max_size=3))
def test_parser_is_its_twin(scrapes: list[bytes]) -> None:
    target = Target()
    for text in scrapes + scrapes:
        check(target, text)


@pytest.mark.kernel
@settings(max_examples=250, deadline=None)
@given(texts, st.data())
def test_broken_texts_get_the_twins_verdict(text: bytes, data: st.DataObject) -> None:
    target = Target()
    check(target, text)
    broken = bytearray(text)
    for _ in range(data.draw(st.integers(1, 3))):
        if broken:
            at = data.draw(st.integers(0, len(broken) - 1))
            broken[at] = data.draw(st.sampled_from(b'{}",= \t\n#\\a1.\xff\0-'))
    check(target, bytes(broken))


@pytest.mark.kernel
@settings(max_examples=40, deadline=None)
@given(texts)
def test_truncation_anywhere(text: bytes) -> None:
    target = Target()
    for length in range(len(text) + 1):
        check(target, text[:length])


decimals = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).flatmap(
        lambda x: st.sampled_from([repr(x), f"{x:.17g}", f"{x:.15e}", f"{x:.6g}", f"{x:+.3e}"])
    ),
    st.from_regex(r"-?[0-9]{1,20}(\.[0-9]{0,20})?(e[+-]?[0-9]{1,3})?", fullmatch=True),
    st.integers(2**53, 2**64).map(str),
    st.integers(0, 2**53).map(lambda m: str(2 * m + 1 + 2**53)),  # half-way between two floats, or next to it
)


@pytest.mark.kernel
@settings(max_examples=120, deadline=None)
@given(st.lists(decimals.filter(lambda t: abs(float(t)) != float("inf")), min_size=1, max_size=60))
def test_numbers_to_the_last_bit(numbers: list[str]) -> None:
    text = "".join(f"m {number}\n" for number in numbers)
    assert Target().scrape(text).bits.tolist() == [bits_of(float(number)) for number in numbers]


@pytest.mark.parametrize(
    "text",
    ["4.9e-324", "2.2250738585072011e-308", "1.7976931348623157e308", "9007199254740993", "1e23", "8.5e-323",
     "0.1", "123456789012345678901234567890", "-0.0", "0e999", "1e-400", "6.02214076e23", "179769313486231570793e288"],
)  # fmt: skip
def test_hard_numbers(text: str) -> None:
    assert Target().scrape(f"m {text}").bits.tolist() == [bits_of(float(text))]


@pytest.mark.parametrize("text", ["1e999", "-1e309", "1_000", "0x10", "+nan", "1.2.3", "e5", "--1", "١"])
def test_no_numbers(text: str) -> None:
    with pytest.raises(ValueError, match=r"number|range"):
        parse_float(text)
    with pytest.raises(ExpositionError, match=r"^line 2: "):
        Target().scrape(f"ok 1\nm {text}\n")


def test_special_values_keep_their_bits() -> None:
    seen = Target().scrape("a NaN\na +Inf\na -Inf\na Inf\na -0\n")
    nan, inf = 0x7FF8000000000001, 0x7FF0000000000000
    assert seen.bits.tolist() == [nan, inf, inf | 1 << 63, inf, 1 << 63]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ok 1\n{ 1\n", "line 2: labels are not closed by a brace at '{ 1'"),
        ("ok\n", "line 1: expected a value at ''"),
        ("ok 1 2x\n", "line 1: expected the end of the line at '2x'"),
        ("ok 1 x\n", "line 1: expected a timestamp at 'x'"),
        ("\n\n!bad 1", "line 3: expected a metric name at '!bad 1'"),
        ('a{b=c} 1', "line 1: labels cannot be read from 'b=c'"),
        ('a{b="c",b="d"} 1', "line 1: a label name is used twice in 'a{b=\"c\",b=\"d\"}'"),
        ('{b="c"} 1', "line 1: the series has no metric name"),
    ],
)  # fmt: skip
def test_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(ExpositionError) as error:
        Target().scrape(text)
    assert str(error.value) == message


def test_target_labels_are_put_on_and_conflicts_renamed() -> None:
    text = 'a{job="x",exported_job="y",instance="z"} 1\n'
    target = {"job": "envoy", "instance": "h:1"}
    ((labels, _, _),) = Target(target).rows(text)
    assert labels == {
        "__name__": "a", "job": "envoy", "instance": "h:1",
        "exported_exported_job": "x", "exported_job": "y", "exported_instance": "z",
    }  # fmt: skip
    ((labels, _, _),) = Target(target, honor_labels=True).rows(text)
    assert labels == {"__name__": "a", "job": "x", "exported_job": "y", "instance": "z"}
    ((labels, _, _),) = Target(target, honor_labels=True).rows("b 1")
    assert labels == {"__name__": "b", **target}


def test_own_times_can_be_ignored() -> None:
    seen = Target().scrape("a 1 5\nb 2")
    assert (seen.ts_ms.tolist(), seen.own_times) == ([5, NOW], True)
    seen = Target(honor_timestamps=False).scrape("a 1 5\nb 2")
    assert (seen.ts_ms.tolist(), seen.own_times) == ([NOW, NOW], False)


def test_series_that_may_not_be_stored_leave_the_rest() -> None:
    target = Target()
    seen = target.scrape('a{x="' + "v" * 5000 + '"} 1\nb 2\n')
    assert (seen.scraped, len(seen.refs), seen.refused) == (2, 1, {Reason.LABEL_VALUE_TOO_LONG: 1})


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"label_limit": 3}, "label_limit exceeded (metric: metric, number of labels: 4, limit: 3)"),
        (
            {"label_name_length_limit": 8},
            "label_name_length_limit exceeded (metric: metric, label name: long_name, length: 9, limit: 8)",
        ),
        (
            {"label_value_length_limit": 6},
            "label_value_length_limit exceeded "
            '(metric: metric, label name: long_name, value: "größe", length: 7, limit: 6)',
        ),
    ],
)
def test_label_limits_refuse_the_page_in_prometheus_words(limits: dict[str, int], message: str) -> None:
    target = Target({"job": "j"}, **limits)
    for _ in range(2):  # it is no better the second time
        with pytest.raises(PageLimitError) as error:
            target.scrape('metric{a="1",long_name="größe"} 1\n')
        assert str(error.value) == message
    assert len(target.rows('metric{a="1",x=""} 1\n')) == 1  # an empty label is none
    assert len(target.registry) == 1


def test_relabelling_sees_the_labels_of_the_target() -> None:
    rules = compile_rules(
        [
            RelabelConfig(
                source_labels=(
                    "job",
                    "exported_job",
                ),
                regex="envoy;gone",
                action="drop",
            ),
            RelabelConfig(source_labels=("__name__",), regex="(.*)_old", target_label="__name__"),
            RelabelConfig(regex="exported_job", action="labeldrop"),
            RelabelConfig(source_labels=("__name__",), regex="nameless", target_label="__name__", replacement=""),
        ]
    )
    target = Target({"job": "envoy"}, metric_relabel=rules)
    text = 'a_old{job="x"} 1\nb{job="gone"} 2\n'
    for _ in range(2):
        assert target.rows(text) == [({"__name__": "a", "job": "envoy"}, bits_of(1.0), NOW)]
    with pytest.raises(ExpositionError, match="line 1: missing metric name"):
        target.scrape("nameless 1")


@pytest.mark.parametrize(
    ("text", "stored"),
    [("1", "1.0"), ("0", "0.0"), ("-0", "0.0"), ("0.5", "0.5"), ("+Inf", "+Inf"), ("Inf", "+Inf"), ("-inf", "-Inf"),
     ("nan", "NaN"), ("100000", "100000.0"), ("3600000", "3.6e+06"), ("1000000", "1e+06"), ("0.0001", "0.0001"),
     ("0.00001", "1e-05"), ("-12.50", "-12.5"), ("1e100", "1e+100"), ("1.5e-300", "1.5e-300"), ("x", "x"), ("", "")],
)  # fmt: skip
def test_bounds_are_floats_as_prometheus_3_stores_them(text: str, stored: str) -> None:
    assert normal_bound(text) == stored


def test_bounds_are_normal_in_histograms_and_summaries_only() -> None:
    page = """# TYPE h histogram
h_bucket{le="1",quantile="2"} 1
# TYPE s summary
s{le="1",quantile="0.5"} 1
s{le="1",quantile="1"} 1
# HELP g # TYPE g histogram
# TYPE g gauge
g{le="1",quantile="2"} 1
"""
    for text in (page, "a 1\n" + page):
        rows = [(row["le"], row["quantile"]) for row, _, _ in Target().rows(text) if "le" in row]
        assert rows == [("1.0", "2"), ("1", "0.5"), ("1", "1.0"), ("1", "2")]


def test_metadata_is_told_once() -> None:
    target = Target()
    text = "# HELP a It \\\\ has\\ntwo lines\n# TYPE a counter\na 1\n# TYPE b histogram\n# UNIT b seconds\n"
    assert target.scrape(text).metadata == [
        Metadata("a", "counter", "It \\ has\ntwo lines", ""),
        Metadata("b", "histogram", "", "seconds"),
    ]
    assert target.scrape(text).metadata == []
    assert target.scrape(text.replace("a counter", "a gauge")).metadata == [
        Metadata("a", "gauge", "It \\ has\ntwo lines", "")
    ]


def test_a_real_envoy_bit_for_bit() -> None:
    with np.load(shared_path("data/envoy_1.40_scrapes.npz")) as capture:
        keys, values = capture["keys"].tolist(), capture["M"][:, :5]
    target = Target({"job": "envoy", "instance": "i"})
    for column in range(values.shape[1]):
        text = "".join(f"{key} {value!r}\n" for key, value in zip(keys, values[:, column].tolist(), strict=True))
        seen = target.scrape(text)
        assert seen.bits.tolist() == values[:, column].copy().view(np.uint64).tolist()
        assert len(np.unique(seen.refs)) == len(keys) == len(target.registry)
