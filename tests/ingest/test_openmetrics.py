"""OpenMetrics pages: the parser against its plain twin and against the parser of Prometheus' own Python client."""

from __future__ import annotations

import math
import re
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Summary
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ingest.exposition import PAD, Exposition, ExpositionParser, PageOptions
from ingest.openmetrics import parse_exemplar
from ingest.page_text import parse_seconds
from ingest.store import Metadata
from tests.reference import openmetrics as reference
from tsdb.errors import RejectedError
from tsdb.index.registry import SeriesRegistry
from tsdb.limits import SeriesLimits

NOW = 1_795_000_000_000
Rows = list[tuple[dict[str, str], int, int]]
Exemplars = list[tuple[dict[str, str], dict[str, str], int, int]]  # series, labels, bits, time


class Target:
    def __init__(self, **options: Any) -> None:
        self.registry = SeriesRegistry(SeriesLimits())
        self.parser = ExpositionParser(self.registry, {}, PageOptions(**options))

    def scrape(self, text: bytes) -> Exposition:
        return self.parser.parse(text + PAD, NOW, openmetrics=True)

    def read(self, text: bytes) -> tuple[Rows, Exemplars]:
        seen = self.scrape(text)
        table = self.registry.label_table(seen.refs)
        rows = [(table.labels(i), int(seen.bits[i]), int(seen.ts_ms[i])) for i in range(len(seen.refs))]
        series = self.registry.label_table(np.array([e.ref for e in seen.exemplars], np.uint32))
        exemplars = [
            (series.labels(i), {n.decode(): v.decode() for n, v in e.labels}, e.bits, e.ts_ms)
            for i, e in enumerate(seen.exemplars)
        ]
        return rows, exemplars


def float_of(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", bits))[0])


def expected(text: bytes) -> tuple[Rows, Exemplars] | None:
    try:
        samples = reference.parse(text)
    except ValueError:
        return None
    rows, exemplars = [], []
    for labels, bits, time, exemplar in samples:
        series = {name: value for name, value in labels.items() if value}
        if not labels["__name__"] or not all(labels):
            continue  # refused by the store, one by one
        at = NOW if time is None else time
        rows.append((series, bits, at))
        if exemplar is not None:
            exemplars.append((series, exemplar[0], exemplar[1], at if exemplar[2] is None else exemplar[2]))
    return rows, exemplars


def check(text: bytes) -> None:
    wanted = expected(text)
    target = Target()
    if wanted is None:
        for _ in range(2):  # what is wrong stays wrong
            with pytest.raises(RejectedError, match=r"^line \d+: "):
                target.scrape(text)
        return
    assert target.read(text) == wanted
    rows, exemplars = target.read(text)  # now that every series is known
    assert rows == wanted[0]
    newest = {tuple(sorted(e[0].items())): e for e in wanted[1]}
    if len(newest) == len(wanted[1]):
        assert exemplars == []  # told once


names = st.sampled_from(["up", "up_total", "a:b", "_", "x1"])
values = st.sampled_from(["", "v", "grüße", 'say \\"hi\\"', "back\\\\slash", "new\\nline", "{}", "a,b=c", "\\x", "# {"])
quoted_names = st.sampled_from(['"metric.name"', '"über all"', '"a\\"b"'])
numbers = st.one_of(
    st.floats(allow_nan=True).map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.sampled_from(["NaN", "+Inf", "-Inf", "1e3", ".5", "5.", "-0", "1e-400", "1e999", "0x1p3", "\t1"]),
)
times = st.one_of(
    st.integers(-(10**6), 2 * 10**9).map(str),
    st.decimals(0, 2 * 10**9, places=3).map(str),
    st.floats(0, 2e9).map(repr),
    st.sampled_from(["1e3", "NaN", "Inf", "1.", ".5", "-0.0019", "x", "", "123456789012345678", "9e18", "1 "]),
)


def labels_text(draw: st.DrawFn, most: int, metric: bool) -> list[str]:
    count = draw(st.integers(0, most))
    labels = [f'{draw(st.sampled_from(["job", "le", "b"]) | quoted_names)}="{draw(values)}"' for _ in range(count)]
    if metric and draw(st.integers(0, 4)) == 0:
        labels.insert(draw(st.integers(0, len(labels))), draw(quoted_names))
    return labels


@st.composite
def samples(draw: st.DrawFn) -> str:
    labels = labels_text(draw, 3, metric=True)
    head = "" if any("=" not in label for label in labels) else draw(names)
    braces = "{" + ",".join(labels) + draw(st.sampled_from(["", "", ","])) + "}" if labels else ""
    line = f"{head}{braces} {draw(numbers)}"
    if draw(st.integers(0, 2)) == 0:
        line += f" {draw(times)}"
    if draw(st.integers(0, 2)) == 0:
        line += f" # {{{','.join(labels_text(draw, 2, metric=False))}}} {draw(numbers)}"
        if draw(st.booleans()):
            line += f" {draw(times)}"
    return line


comments = st.sampled_from(
    [
        "# HELP up Is it up?", "# TYPE up gauge", "# UNIT up_seconds seconds", "# UNIT up ", "# TYPE s stateset",
        '# TYPE "metric.name" info', "# TYPE up untyped", "# UNIT up seconds", "# HELP up", "# a comment", "#",
        "", " ", "# EOF",
    ]
)  # fmt: skip
ends = st.sampled_from(["# EOF\n", "# EOF\n", "# EOF", "", "# EOF\n\n"])
pages = st.tuples(st.lists(samples() | samples() | comments, max_size=8), ends).map(
    lambda page: "".join(f"{line}\n" for line in page[0]).encode() + page[1].encode()
)


@pytest.mark.kernel
@settings(max_examples=300, deadline=None)
@given(pages)
def test_parser_is_its_twin(page: bytes) -> None:
    check(page)


@pytest.mark.kernel
@settings(max_examples=300, deadline=None)
@given(pages, st.data())
def test_broken_pages_get_the_twins_verdict(page: bytes, data: st.DataObject) -> None:
    broken = bytearray(page)
    for _ in range(data.draw(st.integers(1, 3))):
        if broken:
            at = data.draw(st.integers(0, len(broken) - 1))
            broken[at] = data.draw(st.sampled_from(b'{}",= \t\n#\\a1.\xff\0-'))
    check(bytes(broken))


@pytest.mark.kernel
@settings(max_examples=30, deadline=None)
@given(pages)
def test_truncation_anywhere(page: bytes) -> None:
    for length in range(len(page) + 1):
        check(page[:length])


@pytest.mark.kernel
@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_at_all(page: bytes) -> None:
    check(page)
    check(page + b"\n# EOF\n")


def client_registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    counter = Counter("requests", "Requests, \\ and \n", ["code", "path"], registry=registry)
    counter.labels("200", "/grüße").inc(3, {"trace_id": "abc"})
    counter.labels("500", 'a"b\\c\nd').inc(0.1)
    Gauge("temperature", "Degrees.", ["room"], unit="celsius", registry=registry).labels("a").set(-1.5)
    histogram = Histogram("latency", "Seconds.", unit="seconds", registry=registry)
    for value in (0.001, 0.3, 7.5, 100):
        histogram.observe(value, {"trace_id": f"t{value}"})
    Summary("size", "Bytes.", registry=registry).observe(4)
    Info("build", "What runs.", registry=registry).info({"version": "1.2"})
    Enum("state", "What it does.", states=["up", "down"], registry=registry).state("down")
    return registry


def client_rows(page: bytes) -> tuple[list[Any], list[Any], list[Metadata]]:
    """Samples, exemplars and metadata as Prometheus' Python client reads them."""
    rows, exemplars, metadata = [], [], []
    for family in text_string_to_metric_families(page.decode()):
        metadata.append(Metadata(family.name, family.type, family.documentation, family.unit))
        for sample in family.samples:
            time = NOW if sample.timestamp is None else math.floor(float(sample.timestamp) * 1000)
            # it keeps whole numbers as integers, also those that no float64 is equal to
            rows.append(({"__name__": sample.name, **sample.labels}, float(sample.value), time))
            if sample.exemplar:
                at = None if sample.exemplar.timestamp is None else float(sample.exemplar.timestamp)
                exemplars.append((sample.name, sample.exemplar.labels, sample.exemplar.value, at))
    return rows, exemplars, metadata


def test_the_python_clients_pages_are_read_as_it_reads_them() -> None:
    page = generate_latest(client_registry())
    target = Target()
    seen = target.scrape(page)
    rows, exemplars, metadata = client_rows(page)
    table = target.registry.label_table(seen.refs)
    assert [(table.labels(i), float_of(b), NOW) for i, b in enumerate(seen.bits.tolist())] == rows
    assert seen.metadata == metadata
    assert len(exemplars) == 5
    for ours, (_, labels, value, at) in zip(seen.exemplars, exemplars, strict=True):
        assert ({n.decode(): v.decode() for n, v in ours.labels}, float_of(ours.bits)) == (labels, value)
        assert at is not None
        assert ours.ts_ms == pytest.approx(at * 1000, abs=1)


@pytest.mark.kernel
@settings(max_examples=200, deadline=None)
@given(st.lists(samples(), min_size=1, max_size=5))
def test_what_the_python_client_accepts_is_read_alike(lines: list[str]) -> None:
    page = "".join(f"# TYPE f{i} unknown\n{line}\n" for i, line in enumerate(lines)) + "# EOF\n"
    try:
        rows, _, _ = client_rows(page.encode())
    except ValueError:
        return  # it also refuses order and types, which Prometheus does not look at
    except KeyError:
        return  # it stumbles over a quoted name without labels
    if expected(page.encode()) is None:
        return  # its floats and blanks are Python's, which are wider than Go's
    seen = Target().read(page.encode())[0]
    wanted = [({n: v for n, v in labels.items() if v}, value, time) for labels, value, time in rows]
    got = [(labels, float_of(bits), time) for labels, bits, time in seen]
    assert [labels for labels, _, _ in got] == [labels for labels, _, _ in wanted]
    for (_, value, time), (_, other, at) in zip(got, wanted, strict=True):
        assert value == other or (math.isnan(value) and math.isnan(other))
        # of a time with point and exponent it takes what is in front of the point
        assert abs(time - at) <= 1 or re.search(r"\.\d+e", page)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (b"", "line 1: data does not end with # EOF at ''"),
        (b"a 1\n", "line 2: data does not end with # EOF at ''"),
        (b"a 1\n# EOF\nb 2\n", "line 3: unexpected data after # EOF at 'b 2'"),
        (b"a 1\n\n# EOF\n", "line 2: expected a metric name at ''"),
        (b"a 1\n a 2\n# EOF\n", "line 2: expected a metric name at ' a 2'"),
        (b"a  1\n# EOF\n", "line 1: expected a value at ' 1'"),
        (b"a 1 \n# EOF\n", "line 1: expected a timestamp at ''"),
        (b"a 1 2 3\n# EOF\n", "line 1: expected an exemplar or the end of the line at '3'"),
        (b"a 1 NaN\n# EOF\n", "line 1: invalid timestamp 'NaN'"),
        (b'a 1 # {b="c"}\n# EOF\n', "line 1: expected the value of an exemplar at ''"),
        (b"a 1 # {b=c} 1\n# EOF\n", "line 1: labels of an exemplar cannot be read from 'b=c} 1'"),
        (b"a 1 # {} x\n# EOF\n", "line 1: 'x' is no number"),
        (b'a {b="c"} 1\n# EOF\n', "line 1: a blank between name and labels in 'a {b=\"c\"}'"),
        (b'a{ b="c"} 1\n# EOF\n', "line 1: labels cannot be read from ' b=\"c\"'"),
        (b"a 1\n# comment\n# EOF\n", "line 2: expected HELP, TYPE, UNIT or EOF and a metric name at '# comment'"),
        (b"# TYPE a untyped\n# EOF\n", "line 1: invalid metric type 'untyped'"),
        (b"# UNIT a seconds\n# EOF\n", "line 1: unit 'seconds' not a suffix of metric 'a'"),
        (b"# HELP a \xff\n# EOF\n", "line 1: the comment is not valid UTF-8"),
        (b"a 1\r\n# EOF\n", "line 1: '1\\r' is no number"),
    ],
)
def test_errors_name_the_line_and_what(page: bytes, message: str) -> None:
    with pytest.raises(RejectedError) as error:
        Target().scrape(page)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "ms"),
    [("1520879607.789", 1520879607789), ("1e3", 1_000_000), ("-1.0019", -1001), (".5", 500), ("0.0009", 0),
     ("1520879607.7899999", 1520879607789), ("9223372036854775.807", 2**63 - 1)],
)  # fmt: skip
def test_times_are_seconds(text: str, ms: int) -> None:
    assert parse_seconds(text) == ms
    assert Target().scrape(f"a 1 {text}\n# EOF\n".encode()).ts_ms.tolist() == [ms]


@pytest.mark.parametrize("text", ["9223372036854775.808", "Inf", "-Inf", "NaN", "1e300", "x", "1_0"])
def test_no_times(text: str) -> None:
    with pytest.raises(ValueError, match=r"number|timestamp"):
        parse_seconds(text)


def test_exemplars_are_told_when_they_change() -> None:
    target = Target()
    page = b'a_total 1 # {trace_id="%s"} 0.5\nb_bucket{le="1"} 2 5 # {} 7 2.5\n# EOF\n'
    assert [(e.ts_ms, e.labels) for e in target.scrape(page % b"x").exemplars] == [
        (NOW, [(b"trace_id", b"x")]),
        (2500, []),
    ]
    assert target.scrape(page % b"x").exemplars == []
    assert [e.labels for e in target.scrape(page % b"y").exemplars] == [[(b"trace_id", b"y")]]
    quoted = parse_exemplar('# {"trace.id"="a\\nb",} 1e3')
    assert (quoted.labels, float_of(quoted.bits), quoted.ts_ms) == ([("trace.id", "a\nb")], 1000.0, None)


def test_a_target_may_change_its_format() -> None:
    target = Target()
    text, openmetrics = b'a {x="1"} 1 5000\n', b'a{x="1"} 1 5\n# EOF\n'
    for _ in range(2):
        assert target.parser.parse(text + PAD, NOW).ts_ms.tolist() == [5000]
        assert target.scrape(openmetrics).ts_ms.tolist() == [5000]
        with pytest.raises(RejectedError, match="a blank between name and labels"):
            target.scrape(text + b"# EOF\n")
    assert len(target.registry) == 1


def test_metadata() -> None:
    page = b"""# TYPE a counter
# HELP a It \\"has\\"\\ntwo lines
a_total 1
a_created 1.5e9
# TYPE b_seconds gaugehistogram
# UNIT b_seconds seconds
# TYPE "s.x" stateset
# EOF
"""
    target = Target()
    assert target.scrape(page).metadata == [
        Metadata("a", "counter", 'It "has"\ntwo lines', ""),
        Metadata("b_seconds", "gaugehistogram", "", "seconds"),
        Metadata("s.x", "stateset", "", ""),
    ]
    assert target.scrape(page).metadata == []
    assert [labels["__name__"] for labels, _, _ in target.read(page)[0]] == ["a_total", "a_created"]
