"""Load reports of proxies become counters, as a scrape of them would have brought."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from health.adapters import xds
from health.adapters.lrs import ERROR, LINGER_MS, SUCCESS, LoadReports
from health.adapters.xds import EndpointLoad, read_load_report
from health.mapping import BUILT_IN
from ingest.wire import fields
from tests.ingest.fakes import NOW, FakeTenant
from tsdb.clock import ManualClock
from tsdb.errors import DiskFullError, RejectedError


def address(host: str, port: int) -> bytes:
    return xds._bytes(1, xds._string(2, host) + xds._uint(3, port))


def load(host: str, port: int, success: int, error: int) -> bytes:
    counts = xds._uint(2, success) + xds._uint(3, 1) + xds._uint(4, error) + xds._uint(7, success + error)
    return xds._bytes(7, xds._bytes(1, address(host, port)) + counts)


def report(*loads: bytes, node: str = "e-1", cluster: str = "a:b", zone: str = "z1") -> bytes:
    first = b""
    if node:
        first = xds._bytes(1, xds._string(1, node) + xds._bytes(4, xds._string(1, "r") + xds._string(2, "z9")))
    group = xds._bytes(1, xds._string(2, zone)) + xds._uint(2, 5) + b"".join(loads)
    interval = xds._bytes(4, xds._uint(1, 2) + xds._uint(2, 500_000_000))
    return first + xds._bytes(2, xds._string(1, cluster) + xds._bytes(2, group) + interval)


class Bench:
    """A receiver in front of a store that decides as the real one does."""

    def __init__(self) -> None:
        self.store = FakeTenant()
        self.clock = ManualClock(NOW)
        self.loads = LoadReports(self.store, self.clock, 2_000)

    def serve(self, *messages: bytes) -> list[bytes]:
        async def main() -> list[bytes]:
            async def requests() -> AsyncIterator[bytes]:
                for message in messages:
                    yield message
                    self.clock.ms += 2_000

            return [answer async for answer in self.loads.serve(requests())]

        return asyncio.run(main())

    def samples(self, name: str, **labels: str) -> dict[int, float]:
        wanted = {"__name__": name, "job": "lrs", "service": "a_b", "observer_zone": "z9", "zone": "z1", **labels}
        ref = self.store.registry.resolve(wanted)
        held = self.store.stored.get(ref, {})
        return {at - NOW: float(np.uint64(bits).view(np.float64)) for at, bits in held.items()}


def test_a_report_is_read() -> None:
    read = read_load_report(report(load("10.0.0.1", 80, 7, 2), load("::1", 81, 1, 0)))
    assert (read.node, read.node_zone, dict(read.clusters)) == ("e-1", "z9", {"a:b": 2_500})
    assert read.loads == [
        EndpointLoad("a:b", "10.0.0.1:80", "z1", 7, 2),
        EndpointLoad("a:b", "[::1]:81", "z1", 1, 0),
    ]


def test_proxies_are_asked_for_each_endpoint_of_all_clusters() -> None:
    (answer,) = Bench().serve(report())
    said = dict(fields(answer))
    assert (said[3], said[4]) == (1, 1)
    assert dict(fields(said[2])) == {1: 2}  # type: ignore[arg-type]


def test_counts_add_up_from_zero_on() -> None:
    bench = Bench()
    bench.serve(report(load("10.0.0.1", 80, 7, 2)), report(load("10.0.0.1", 80, 3, 0), node=""), report(node=""))
    one = {"instance": "e-1", "endpoint": "10.0.0.1:80"}
    # without the zero before it the first report would count for nothing; without traffic the total is written again
    assert bench.samples(SUCCESS, **one) == {-2_499: 0, 0: 7, 2_000: 10, 4_000: 10}
    assert bench.samples(ERROR, **one) == {-2_499: 0, 0: 2, 2_000: 2, 4_000: 2}
    assert (bench.loads.reports, bench.loads.loads, bench.loads.streams) == (3, 2, 0)


def test_the_numbers_of_series_may_change_between_reports() -> None:
    bench = Bench()
    bench.serve(report(load("10.0.0.1", 80, 7, 2), load("10.0.0.2", 80, 1, 5)), report(node="e-2"))
    bench.store.forget([{"__name__": "other"}])
    bench.serve(report(load("10.0.0.2", 80, 1, 0)))
    for host, success, error in (("10.0.0.1", 7, 2), ("10.0.0.2", 2, 5)):
        one = {"instance": "e-1", "endpoint": f"{host}:80"}
        assert list(bench.samples(SUCCESS, **one).values()) == [success]
        assert list(bench.samples(ERROR, **one).values()) == [error]


def test_series_are_those_of_the_generic_mapping() -> None:
    metrics = {rule.metric for rule in BUILT_IN["generic"].counters}
    assert {SUCCESS, ERROR} <= metrics


def test_a_proxy_that_comes_back_goes_on_and_one_that_was_gone_for_long_begins_anew() -> None:
    bench = Bench()
    one = {"instance": "e-1", "endpoint": "10.0.0.1:80"}
    bench.serve(report(load("10.0.0.1", 80, 7, 2)))
    bench.serve(report(load("10.0.0.1", 80, 1, 0)))
    assert bench.samples(SUCCESS, **one)[2_000] == 8
    bench.clock.ms += LINGER_MS
    begin = bench.clock.ms - NOW
    bench.serve(report(load("10.0.0.1", 80, 1, 0)))
    assert list(bench.samples(SUCCESS, **one).items())[-2:] == [(begin - 2_499, 0), (begin, 1)]


def test_endpoints_that_are_gone_are_let_go() -> None:
    bench = Bench()
    bench.serve(report(load("10.0.0.1", 80, 7, 2), load("10.0.0.2", 80, 1, 0)))
    for _ in range(3):
        bench.clock.ms += LINGER_MS // 2
        bench.serve(report(load("10.0.0.2", 80, 1, 0)))
    last = max(bench.samples(SUCCESS, instance="e-1", endpoint="10.0.0.1:80"))
    assert last < LINGER_MS
    assert bench.samples(SUCCESS, instance="e-1", endpoint="10.0.0.2:80")[bench.clock.ms - 2_000 - NOW] == 4


def test_reports_of_the_same_moment() -> None:
    bench = Bench()
    for _ in range(2):
        bench.loads.take("e-1", "z9", read_load_report(report(load("10.0.0.1", 80, 1, 0))))
    assert bench.samples(SUCCESS, instance="e-1", endpoint="10.0.0.1:80") == {-2_499: 0, 0: 1, 1: 2}


def test_nothing_is_lost_while_the_store_is_full() -> None:
    bench = Bench()
    bench.serve(report(load("10.0.0.1", 80, 1, 0)))
    bench.store.fail = DiskFullError("full")
    with pytest.raises(DiskFullError):
        bench.serve(report(load("10.0.0.1", 80, 5, 0)))
    bench.store.fail = None
    bench.clock.ms += 2_000
    bench.serve(report(load("10.0.0.1", 80, 1, 0)))
    assert max(bench.samples(SUCCESS, instance="e-1", endpoint="10.0.0.1:80").values()) == 7


@pytest.mark.parametrize("junk", [b"\x12\x7f", b"\x10\x01", report(node="")], ids=["cut", "type", "nameless"])
def test_what_is_no_report(junk: bytes) -> None:
    with pytest.raises(RejectedError):
        Bench().serve(junk)
