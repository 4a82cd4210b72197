"""Scrapes over real sockets: an aiohttp server on 127.0.0.1 plays the target."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from aiohttp import web

from ingest.negotiation import ScrapeProtocol
from ingest.scraping.groups import TargetGroup
from ingest.scraping.http_client import HttpClient
from ingest.scraping.scrape import PageScraper, ScrapeConfig
from ingest.scraping.target import TargetSeries
from ingest.scraping.targets import Target, resolve
from tests.ingest.fakes import FakeTenant
from tests.ingest.site import Site
from tsdb.batch import STALE_BITS
from tsdb.clock import SystemClock
from tsdb.errors import OverloadedError, Reason
from tsdb.tally import Tally

ONE = 0x3FF0000000000000
JUNK = "error: Error -3 while decompressing data: incorrect header check"
PROTOBUF = "the target answers in Prometheus' protobuf format, which is not supported"
UNKNOWN = "received unsupported Content-Type 'text/html' and no fallback_scrape_protocol specified for target"
BLANK = "received blank Content-Type and no fallback_scrape_protocol specified for target"
EOF = "line 2: data does not end with # EOF at ''"
BOMB = gzip.compress(b"a 1\n" * 10**6)


class Case:
    """A scraper of one target over a fake store."""

    def __init__(self, address: str, **config: Any) -> None:
        self.tenant = FakeTenant()
        self.tally = Tally()
        self.executor = ThreadPoolExecutor(1)
        self.config = ScrapeConfig("job", (TargetGroup([address]),), **({"scrape_interval": 3600.0} | config))
        self.pages = PageScraper(self.tenant, self.executor, SystemClock(), self.tally)
        ((aim, discovered),) = resolve(self.config.target_rules(), self.config.static_configs).aims.values()
        self.target = Target("job", aim, discovered)
        self.series = TargetSeries(self.tenant.registry, aim.labels, self.config.page_options())
        self.client = HttpClient(self.config.client)
        self.now = 1000

    async def scrape(self, forced_error: str = "") -> dict[str, int]:
        """Scrape once; bits of what was written, by metric name."""
        self.now += 15_000
        await self.pages.scrape(self.target, self.series, self.config, self.client, self.now, forced_error)
        return self.written()

    def written(self) -> dict[str, int]:
        last = self.now
        return {dict(k)["__name__"]: v[last] for k, v in self.tenant.series().items() if last in v}

    async def __aenter__(self) -> Case:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pages.close()
        self.executor.shutdown()


def test_a_good_scrape_and_what_is_asked_for() -> None:
    async def run() -> None:
        async with Site("# TYPE a gauge\na 1\n") as site, Case(site.address, params={"x": ["1", "2"]}) as case:
            written = await case.scrape()
            assert (written["a"], written["up"], written["scrape_samples_scraped"]) == (ONE, ONE, ONE)
            labels = dict(next(k for k in case.tenant.series() if ("__name__", "a") in k))
            assert labels == {"__name__": "a", "job": "job", "instance": site.address}
            assert case.tenant.metadata[0][:2] == ("a", "gauge")
            request = site.requests[0]
            assert (request.path, request.query_string) == ("/metrics", "x=1&x=2")
            assert request.headers["Accept"] == (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
                "application/openmetrics-text;version=0.0.1;q=0.5,"
                "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
            )
            assert request.headers["Accept-Encoding"] == "gzip"
            assert request.headers["X-Prometheus-Scrape-Timeout-Seconds"] == "10"
            assert case.target.status()["health"] == "up"
            await case.scrape()
            assert len({r.transport for r in site.requests}) == 1  # kept alive

    asyncio.run(run())


def test_gzip() -> None:
    async def run() -> None:
        rows = "".join(f'm{{i="{i}"}} {i}\n' for i in range(50_000)).encode()

        async def answer(_: web.Request) -> web.Response:
            return web.Response(
                body=gzip.compress(rows), headers={"Content-Encoding": "gzip"}, content_type="text/plain"
            )

        async with Site(answer) as site, Case(site.address) as case:
            await case.scrape()
            assert case.target.health == "up", case.target.last_error
            assert len(case.tenant.series()) == 50_005

    asyncio.run(run())


def test_openmetrics_with_exemplars() -> None:
    page = b'# TYPE a counter\na_total 1 # {trace_id="x"} 0.5\n{"b.c","d.e"="f"} 2\n# EOF\n'
    kind = "application/openmetrics-text; version=1.0.0; charset=utf-8"

    async def run() -> None:
        async with Site(_body(page, content_type=kind)) as site, Case(site.address) as case:
            assert (await case.scrape()).keys() >= {"a_total", "b.c", "up"}
            assert case.target.last_error == ""
            assert (len(case.tenant.exemplars), case.tenant.metadata[0][:2]) == (1, ("a", "counter"))
            await case.scrape()
            assert len(case.tenant.exemplars) == 1
            long = page.replace(b'"x"', b'"' + b"x" * 121 + b'"')
            site.answer = _body(long, content_type=kind)
            assert (await case.scrape())["up"] == ONE  # the samples are kept
            assert case.tally.snapshot() == {Reason.EXEMPLAR_TOO_LONG: 1}

    asyncio.run(run())


def test_fallback_for_targets_that_name_no_format() -> None:
    async def run() -> None:
        fallback = ScrapeProtocol.OPENMETRICS_1_0_0
        async with Site(_body(b"a 1 5\n# EOF\n", content_type="")) as site:
            async with Case(site.address, fallback_scrape_protocol=fallback, enable_compression=False) as case:
                await case.scrape()
                assert case.target.last_error == ""
                assert {dict(k)["__name__"]: v for k, v in case.tenant.series().items()}["a"] == {5000: ONE}
                assert site.requests[0].headers["Accept-Encoding"] == "identity"
            async with Case(site.address, fallback_scrape_protocol=ScrapeProtocol.TEXT_0_0_4) as case:
                await case.scrape()
                assert {dict(k)["__name__"]: v for k, v in case.tenant.series().items()}["a"] == {5: ONE}

    asyncio.run(run())


async def _hang(_: web.Request) -> web.Response:
    await asyncio.sleep(0.4)
    return web.Response(text="late")


async def _teapot(_: web.Request) -> web.Response:
    return web.Response(status=418)


def _body(
    body: bytes, encoding: str = "identity", content_type: str = "text/plain"
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, headers={"Content-Encoding": encoding, "Content-Type": content_type})

    return answer


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        ("a 1\nb x\n", "line 2: 'x' is no number", Reason.SCRAPE_FAILED),
        (_teapot, "server returned HTTP status 418 I'm a Teapot", Reason.SCRAPE_FAILED),
        (_hang, "no answer within 0.2 s", Reason.SCRAPE_FAILED),
        (_body(b"no", "gzip"), JUNK, Reason.SCRAPE_FAILED),
        (_body(gzip.compress(b"a 1\n")[:-5], "gzip"), "the gzip body is cut off", Reason.SCRAPE_FAILED),
        (_body(b"a 1", "br"), "unexpected content encoding 'br'", Reason.SCRAPE_FAILED),
        (_body(b"a 1", "gzip", "application/vnd.google.protobuf"), PROTOBUF, Reason.SCRAPE_FAILED),
        (_body(b"a 1", content_type="text/html"), UNKNOWN, Reason.SCRAPE_FAILED),
        (_body(b"a 1", content_type=""), BLANK, Reason.SCRAPE_FAILED),
        (_body(b"a 1\n", content_type="application/openmetrics-text"), EOF, Reason.SCRAPE_FAILED),
        ("a 1\n" * 300, "body size limit exceeded", Reason.SCRAPE_LIMIT),
        (_body(BOMB, "gzip"), "body size limit exceeded", Reason.SCRAPE_LIMIT),
        ("a 1\n" * 11, "sample limit exceeded", Reason.SCRAPE_LIMIT),
    ],
)  # fmt: skip
def test_failures_are_down_and_say_why(answer: Any, error: str, reason: Reason) -> None:
    async def run() -> None:
        limits = {"scrape_timeout": 0.2, "body_size_limit": 1000, "sample_limit": 10}
        async with Site() as site, Case(site.address, **limits) as case:
            assert (await case.scrape())["a"] == ONE
            site.answer = answer
            written = await case.scrape()
            assert (written["a"], written["up"]) == (STALE_BITS, 0)
            assert (case.target.health, case.target.last_error) == ("down", error)
            assert case.tally.snapshot() == {reason: 1}
            site.answer = "a 1\n"
            assert (await case.scrape())["up"] == ONE
            assert (case.target.health, case.target.last_error) == ("up", "")
            assert (case.pages.scrapes, case.pages.failures) == (3, 1)

    asyncio.run(run())


def test_nobody_there() -> None:
    async def run() -> None:
        async with Site() as site:
            address = site.address
        async with Case(address) as case:
            assert (await case.scrape())["up"] == 0
            assert case.target.last_error.startswith("ClientConnectorError: ")

    asyncio.run(run())


def test_a_store_that_is_busy_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with Site("# TYPE a gauge\na 1\n") as site, Case(site.address) as case:
            case.tenant.fail = OverloadedError("the queue is full")
            with caplog.at_level(logging.WARNING):
                assert await case.scrape() == {}
            assert case.target.last_error == "scraped, but not stored: the queue is full"
            assert case.tally.snapshot() == {Reason.OVERLOADED: 1}
            case.tenant.fail = None
            case.tenant.metadata.clear()
            assert (await case.scrape())["a"] == ONE
            assert case.tenant.metadata[0][:2] == ("a", "gauge")  # told again: the first time may be lost

    asyncio.run(run())
    assert "not stored" in caplog.text


def test_extra_series_about_the_scrape() -> None:
    async def run() -> None:
        async with Site("a 1\n") as site, Case(site.address, extra_scrape_metrics=True, body_size_limit=6) as case:
            written = await case.scrape()
            assert written["scrape_timeout_seconds"] == 0x4024000000000000  # 10.0
            name = "scrape_body_size_bytes"
            assert written[name] == 0x4010000000000000  # 4.0
            site.answer = "aaa x\n"
            assert (await case.scrape())[name] == 0x4018000000000000  # 6.0
            site.answer = "a 12345\n"
            assert (await case.scrape())[name] == 0xBFF0000000000000  # -1.0
            site.answer = _teapot
            assert (await case.scrape())[name] == 0

    asyncio.run(run())


def test_a_forced_error_asks_nobody() -> None:
    async def run() -> None:
        async with Site() as site, Case(site.address) as case:
            assert (await case.scrape("too many targets"))["up"] == 0
            assert (case.target.last_error, site.requests) == ("too many targets", [])

    asyncio.run(run())
