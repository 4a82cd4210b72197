"""``POST /api/v1/import/prometheus``."""

from __future__ import annotations

import asyncio
import gzip
import struct
from collections.abc import Iterator

import pytest

from ingest.limits import WriteLimits
from ingest.store import Metadata
from tests.ingest.fakes import NOW, Server
from tsdb.errors import OverloadedError, Reason

PATH = "/api/v1/import/prometheus"


def bits(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(WriteLimits(body_bytes_max=100_000, decoded_bytes_max=200_000))
    yield server
    server.executor.shutdown()


def load(server: Server, text: str | bytes, query: str = "", **headers: str) -> tuple[int, str]:
    body = text.encode() if isinstance(text, str) else text
    status, _, answer = server.post(body, path=PATH, query=query, **headers)
    return status, answer


TEXT = """# HELP up Whether it is up.
# TYPE up gauge
up{job="a"} 1
up{job="b"} 0.5 1794999999000
"""
STORED = {
    (("__name__", "up"), ("job", "a")): {NOW: bits(1.0)},
    (("__name__", "up"), ("job", "b")): {1794999999000: bits(0.5)},
}


def test_samples_and_metadata_are_stored(server: Server) -> None:
    for content_type in ("", "text/plain; version=0.0.4", "application/x-www-form-urlencoded"):
        assert load(server, TEXT, content_type=content_type) == (204, "")
    assert server.tenant.series() == STORED
    assert server.tenant.metadata == [Metadata("up", "gauge", "Whether it is up.", "")]
    assert load(server, "") == (204, "")
    assert load(server, "up 1")[0] == 204  # no newline at the end


def test_openmetrics_by_its_content_type(server: Server) -> None:
    kind = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    page = '# TYPE a counter\na_total 2 1794999999.5 # {trace_id="x"} 0.5\n# EOF\n'
    for _ in range(2):
        assert load(server, page, content_type=kind) == (204, "")
        assert load(server, TEXT, content_type="text/plain") == (204, "")
    assert server.tenant.series() == STORED | {(("__name__", "a_total"),): {1794999999500: bits(2.0)}}
    assert server.tenant.metadata[0] == Metadata("a", "counter", "", "")
    assert len(server.tenant.exemplars) == 1
    assert load(server, "a 1\n", content_type=kind) == (400, "line 2: data does not end with # EOF at ''\n")


def test_gzip(server: Server) -> None:
    body = gzip.compress(TEXT.encode())
    assert load(server, body + gzip.compress(b""), content_encoding="GZIP") == (204, "")
    assert server.tenant.series() == STORED
    assert load(server, body[:-3], content_encoding="gzip") == (400, "the gzip body is cut off\n")
    assert load(server, b"text", content_encoding="gzip")[0] == 400
    assert load(server, TEXT, content_encoding="br")[0] == 415
    status, text = load(server, gzip.compress(b"\n" * 300_000), content_encoding="gzip")
    assert (status, text.strip()) == (
        400,
        "uncompressed body of more than 200,000 bytes (limits.ingest.decoded_bytes_max)",
    )


def test_extra_labels_win_and_timestamp_is_the_default(server: Server) -> None:
    query = "extra_label=job%3Dz&extra_label=zone=a=b&timestamp=1794999998000"
    assert load(server, TEXT, query) == (204, "")
    assert load(server, 'up{job="c"} 7\n', "extra_label=zone=a=b&timestamp=1794999998000") == (204, "")
    assert server.tenant.series() == {
        (("__name__", "up"), ("job", "z"), ("zone", "a=b")): {1794999998000: bits(1.0), 1794999999000: bits(0.5)},
        (("__name__", "up"), ("job", "c"), ("zone", "a=b")): {1794999998000: bits(7.0)},
    }


@pytest.mark.parametrize("query", ["extra_label=x", "extra_label==x", "timestamp=now", f"timestamp={1 << 63}"])
def test_bad_parameters(server: Server, query: str) -> None:
    assert load(server, TEXT, query)[0] == 400
    assert not server.tenant.stored


def test_errors_name_the_line_and_keep_nothing(server: Server) -> None:
    assert load(server, TEXT + "up{ 3\n") == (400, "line 5: labels are not closed by a brace at 'up{ 3'\n")
    assert load(server, "a 1\nb x\n") == (400, "line 2: 'x' is no number\n")
    assert not server.tenant.stored
    assert server.tally.snapshot() == {Reason.MALFORMED: 2}


def test_refused_samples_leave_the_rest(server: Server) -> None:
    long = "n" * 2000
    status, text = load(server, f'a 1\nb{{{long}="1"}} 1\na 2 {NOW}\nb 1 {NOW + 3_600_000}\n')
    assert status == 400
    assert text.startswith("3 of 4 samples refused, the rest was stored")
    assert f'duplicate sample for timestamp: 1, first: {{__name__="a"}} at {NOW} ms' in text
    assert server.tenant.series() == {(("__name__", "a"),): {NOW: bits(1.0)}}


def test_metadata_survives_a_busy_store(server: Server) -> None:
    server.tenant.fail = OverloadedError("full")
    assert load(server, TEXT)[0] == 503
    server.tenant.fail = None
    server.tenant.metadata.clear()
    assert load(server, TEXT)[0] == 204
    assert server.tenant.metadata == [Metadata("up", "gauge", "Whether it is up.", "")]


def test_other_verbs(server: Server) -> None:
    assert asyncio.run(server.apost(b"", method="GET", path=PATH))[0] == 405
