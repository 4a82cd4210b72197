"""Jobs over real sockets: loops, what a changed configuration disturbs, and what discovery adds and takes away."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ingest.relabel import RelabelConfig, Rules
from ingest.scraping import discovery
from ingest.scraping.groups import FileSdConfig, TargetGroup
from ingest.scraping.pool import TargetLoop, next_due
from ingest.scraping.scrape import ScrapeConfig
from ingest.scraping.scraper import Scraper
from tests.ingest.fakes import FakeTenant
from tests.ingest.site import Site
from tsdb.batch import STALE_BITS
from tsdb.clock import SystemClock
from tsdb.tally import Tally

ONE = 0x3FF0000000000000
TWO = 0x4000000000000000
SECONDS = 20.0


def job(*addresses: str, name: str = "job", **config: Any) -> ScrapeConfig:
    times = {"scrape_interval": 0.05, "scrape_timeout": 0.05}
    return ScrapeConfig(name, (TargetGroup(addresses),) if addresses else (), **(times | config))


class Running:
    """A scraper over a fake store."""

    def __init__(self) -> None:
        self.tenant = FakeTenant()
        self.executor = ThreadPoolExecutor(2)

    async def __aenter__(self) -> Running:
        self.scraper = Scraper(self.tenant, self.executor, SystemClock(), Tally())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.scraper.close(mark_stale=False)
        self.executor.shutdown()

    def loops(self, name: str = "job") -> list[TargetLoop]:
        pool = self.scraper.pools.get(name)
        return sorted(pool.loops.values(), key=lambda loop: loop.target.url) if pool else []

    def bits(self, metric: str, **labels: str) -> list[int]:
        """What was written to a metric of these labels, in the order of times."""
        wanted = {("__name__", metric), *labels.items()}
        return [bits for key, v in self.tenant.series().items() if wanted <= set(key) for _, bits in sorted(v.items())]

    async def until(self, done: Callable[[], object]) -> None:
        begin = time.monotonic()
        while not done():
            assert time.monotonic() < begin + SECONDS, "it did not come to that"
            await asyncio.sleep(0.01)

    async def scraped_again(self, name: str = "job") -> None:
        """Until every target was scraped once more."""
        before = {loop: loop.target.last_scrape_ms for loop in self.loops(name)}
        await self.until(lambda: all(loop.target.last_scrape_ms != ms for loop, ms in before.items()))


def test_loops_keep_their_times_and_end_with_stale_markers() -> None:
    async def run() -> None:
        async with Site() as site, Running() as running:
            await running.scraper.apply([job(site.address, scrape_interval=0.1, scrape_timeout=0.1)])
            (loop,) = running.loops()
            for _ in range(4):
                await running.scraped_again()
            await running.scraper.close(mark_stale=True)
            samples = {dict(key)["__name__"]: values for key, values in running.tenant.series().items()}
            offset = loop.target.aim.offset_ms()
            assert sum((t - offset) % 100 <= 60 for t in samples["a"]) >= 3
            assert all(samples[name][max(samples[name])] == STALE_BITS for name in ("a", "up"))
            requests = len(site.requests)
            await asyncio.sleep(0.2)
            assert len(site.requests) == requests

    asyncio.run(run())


def test_close_without_markers_and_before_the_first_scrape() -> None:
    async def run() -> None:
        async with Site() as site, Running() as running:
            await running.scraper.apply([job(site.address, scrape_interval=3600.0)])
            await running.scraper.close(mark_stale=True)
            assert running.tenant.series() == {}
            await running.scraper.apply([job(site.address)])
            await running.scraped_again()
            await running.scraper.close(mark_stale=False)
            assert all(bits != STALE_BITS for values in running.tenant.series().values() for bits in values.values())

    asyncio.run(run())


def test_a_reload_disturbs_only_what_it_changes() -> None:
    async def run() -> None:
        async with Site() as one, Site() as two, Running() as running:
            await running.scraper.apply([job(one.address, two.address), job(one.address, name="other")])
            (other,) = running.loops("other")
            await running.scraped_again()
            await running.scraped_again("other")
            loops = {loop.target.aim.labels["instance"]: loop for loop in running.loops()}
            await running.scraper.apply([job(two.address, scrape_interval=0.1), job(one.address, name="other")])
            assert running.loops() == [loops[two.address]]
            assert running.loops("other") == [other]
            assert loops[two.address].target.status()["scrapeInterval"] == "100ms"
            assert running.bits("a", job="job", instance=one.address)[-1] == STALE_BITS
            assert running.bits("up", job="job", instance=one.address)[-1] == STALE_BITS
            for _ in range(2):
                await running.scraped_again()
                await running.scraped_again("other")
            assert STALE_BITS not in running.bits("a", job="job", instance=two.address)
            assert STALE_BITS not in running.bits("a", job="other")
            assert len({request.transport for request in two.requests}) == 1  # its connection is kept as well
            await running.scraper.apply([])
            assert running.scraper.pools == {}
            assert running.bits("a", job="other")[-1] == STALE_BITS

    asyncio.run(run())


def test_new_rules_for_series_are_followed_with_the_next_scrape() -> None:
    async def run() -> None:
        async with Site("a 1\nb 2\n") as site, Running() as running:
            await running.scraper.apply([job(site.address)])
            await running.scraped_again()
            (loop,) = running.loops()
            rules = (
                RelabelConfig(("__name__",), regex="a", action="drop"),
                RelabelConfig(("__name__",), regex="b", target_label="c", replacement="d"),
            )
            await running.scraper.apply([job(site.address, metric_relabel=Rules(rules))])
            await running.until(lambda: running.bits("b", c="d"))
            assert running.loops() == [loop]
            assert running.bits("a")[-1] == STALE_BITS
            written = {key: values for key, values in running.tenant.series().items() if ("__name__", "b") in key}
            ((_, before), (_, after)) = sorted(written.items(), key=lambda item: ("c", "d") in item[0])
            assert max(before) == min(after)  # the marker of the old one and the first of the new one are of one scrape
            assert (before[max(before)], after[min(after)]) == (STALE_BITS, TWO)
            assert STALE_BITS not in running.bits("up")

    asyncio.run(run())


def test_too_many_targets_are_not_scraped() -> None:
    async def run() -> None:
        async with Site() as one, Site() as two, Running() as running:
            await running.scraper.apply([job(one.address, two.address, target_limit=1)])
            await running.scraped_again()
            words = "target_limit exceeded (number of targets: 2, limit: 1)"
            assert [loop.target.last_error for loop in running.loops()] == [words] * 2
            assert (one.requests, two.requests) == ([], [])
            await running.scraper.apply([job(one.address, two.address, target_limit=2)])
            await running.until(lambda: all(loop.target.health == "up" for loop in running.loops()))

    asyncio.run(run())


def test_what_is_shown() -> None:
    async def run() -> None:
        async with Running() as running:
            drop = Rules((RelabelConfig(("__address__",), regex="h:[12]", action="drop"),))
            slow: dict[str, Any] = {"scrape_interval": 3600.0, "relabel": drop}
            await running.scraper.apply(
                [
                    job("h:1", "h:2", "h:3", keep_dropped_targets=1, **slow),
                    job("h:1", name="b", **slow),
                ]
            )
            scraper = running.scraper
            assert [target["scrapeUrl"] for target in scraper.active()] == ["http://h:3/metrics"]
            assert scraper.active("b") == []
            assert [(t["scrapePool"], t["discoveredLabels"]["__address__"]) for t in scraper.dropped()] == [
                ("b", "h:1"),
                ("job", "h:1"),
            ]
            assert scraper.dropped_counts() == {"b": 1, "job": 2}
            assert scraper.dropped_counts("b") == {"b": 1}

    asyncio.run(run())


def test_files_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(discovery, "FILE_CHECK_S", 0.02)
    file = tmp_path / "targets.json"

    def write(*addresses: str) -> None:
        new = tmp_path / "new"
        new.write_text(json.dumps([{"targets": addresses, "labels": {"zone": "a"}}]))
        new.rename(file)

    async def run() -> None:
        async with Site() as one, Site() as two, Running() as running:
            await running.scraper.apply([job(file_sd_configs=(FileSdConfig((f"{tmp_path}/*.json",)),))])
            assert running.loops() == []
            write(one.address)
            await running.until(lambda: running.bits("a", instance=one.address, zone="a"))
            (first,) = running.loops()
            assert first.target.discovered["__meta_filepath"] == str(file)
            write(one.address, two.address)
            await running.until(lambda: running.bits("a", instance=two.address))
            assert first in running.loops()
            # a reload that leaves the files alone does not read them anew
            file.with_name("other").write_text("")
            config = job(file_sd_configs=(FileSdConfig((f"{tmp_path}/*.json",)),), scrape_interval=0.06)
            await running.scraper.apply([config])
            assert len(running.loops()) == 2
            file.write_text("[{")
            await running.until(lambda: "those from before stay" in caplog.text)
            await running.scraped_again()
            write(two.address)
            await running.until(lambda: len(running.loops()) == 1)
            assert running.bits("a", instance=one.address)[-1] == STALE_BITS
            assert STALE_BITS not in running.bits("a", instance=two.address)
            file.unlink()
            await running.until(lambda: not running.loops())
            assert running.bits("a", instance=two.address)[-1] == STALE_BITS

    asyncio.run(run())


def test_targets_stay_while_a_changed_source_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "targets.yml"

    async def run() -> None:
        async with Site() as site, Running() as running:
            file.write_text(f"- targets: ['{site.address}']")
            await running.scraper.apply([job(file_sd_configs=(FileSdConfig((str(file),)),))])
            await running.until(lambda: running.bits("a"))
            before = running.loops()
            await running.scraper.apply([job(file_sd_configs=(FileSdConfig((str(file),), 60.0),))])
            assert running.loops() == before
            await running.scraped_again()
            assert STALE_BITS not in running.bits("a")

    asyncio.run(run())


@pytest.mark.parametrize(("after", "due"), [(0, 30), (29, 30), (30, 130), (31, 130), (-70, 30), (1_000_030, 1_000_130)])
def test_next_due(after: int, due: int) -> None:
    assert next_due(after, 30, 100) == due
